"""The clusters in use: observations of a server are reported here, and their effects go to each cluster on it."""

from __future__ import annotations

from random import random
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from router._async.cluster import FAST_INTERVAL, AsyncCluster
from router._async.server_in_use import AsyncServerInUse
from router._runtime.calls import Isolated
from router._runtime.flags import AGuard
from router.core.changes import changes
from router.core.events import ConnectionsCut, Event, PoolClosed
from router.core.health import UNKNOWN, NodeUse, login_failure, observe
from router.core.observations import AttemptFailed, Connected, OtherProcess
from router.core.topology import Server
from router.core.view import NOTHING_KNOWN, makes_a_difference, recompute

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from router._async.pool.node_pool import AsyncNodePool
    from router._async.pool.session_state import SessionState
    from router._async.pool_set import AsyncPoolSet
    from router._async.silence import Silent
    from router._observers import Observers
    from router.core.health import Health
    from router.core.observations import Observation
    from router.core.policies import HealthPolicy
    from router.core.topology import Cluster

RECENT = 64
"""How many clusters of tenants' own stay in use without a pool: those that requests have used last."""

SILENT = "the server has no work for them, and nothing arrives: a gateway or proxy in between has forgotten them"
"""The reason for which connections to a server that is up are cut."""


class AsyncClusters:
    """The clusters in use, and the health of their servers.

    A cluster is in use while one of these holds: it has a pool; a request looks for one of its servers; it is the
    cluster of a version that was requested before; it is among the last that requests have used.

    A request that begins to use a cluster, and another thread that stops using it at the same moment, must not undo
    each other's work. So nothing is ever undone: the four conditions change only under the guard of this class, and in
    the same section :meth:`_settle` computes from them whether the cluster and its servers are in use. Only the
    watchers follow outside of the guard. A watcher ends by itself when its :class:`AsyncServerInUse` is no longer in
    use. A server that is used again gets a new such object, and the request that put it in use starts a watcher for it:
    after it is in use, and before the request waits. So in any order, a server in use has a watcher: if the cluster is
    left between these two steps, it has no request that could wait.

    Attributes:
        policy: How servers are watched.
        observers: Receive each event.
        health: The health of each server, and of refused logins; the mapping is replaced, not changed.
        servers: The servers in use; the mapping is replaced, not changed.
    """

    def __init__(self, policy: HealthPolicy, observers: Observers) -> None:
        """Begin without a cluster in use.

        Args:
            policy: How servers are watched.
            observers: Receive each event.
        """
        self.policy = policy
        self.observers = observers
        self.health: Health = {}
        self.servers: Mapping[Server, AsyncServerInUse] = {}
        self._guard = AGuard()  # guards all that is changed here, and in each cluster what its docstring says
        self._known: WeakValueDictionary[Cluster, AsyncCluster] = WeakValueDictionary()
        self._in_use: dict[AsyncCluster, None] = {}
        self._recent: dict[AsyncCluster, None] = {}  # the latest at the end

    def __iter__(self) -> Iterator[AsyncCluster]:
        return iter(list(self._in_use))

    def of(self, value: Cluster) -> AsyncCluster:
        """Find the object for a cluster.

        Args:
            value: The cluster that is watched.

        Returns:
            The object, which may be in use or not.
        """
        with self._guard:
            cluster = self._known.get(value)
            if cluster is None:
                cluster = self._known[value] = AsyncCluster(value, self)
            return cluster

    def begin_request(self, cluster: AsyncCluster) -> None:
        """Put a cluster in use while a request looks for one of its servers, and for a while after that.

        Args:
            cluster: The cluster; :meth:`end_request` has to be called.
        """
        with self._guard:
            cluster.requests += 1
            if not cluster.kept:
                self._recent.pop(cluster, None)
                self._recent[cluster] = None
            self._settle(cluster)
            while len(self._recent) > RECENT:
                oldest = next(iter(self._recent))
                del self._recent[oldest]
                self._settle(oldest)

    def end_request(self, cluster: AsyncCluster) -> None:
        """Note that a request has its connection, or has failed.

        Args:
            cluster: The cluster.
        """
        with self._guard:
            cluster.requests -= 1
            if not cluster.requests:
                self._settle(cluster)

    def keep(self, cluster: AsyncCluster, *, kept: bool) -> None:
        """Set whether a cluster stays in use although nothing needs it.

        Args:
            cluster: The cluster.
            kept: Whether it stays in use.
        """
        with self._guard:
            cluster.kept = kept
            cluster.stays_in_use &= kept
            self._recent.pop(cluster, None)
            self._settle(cluster)

    def add(self, pool: AsyncNodePool) -> None:
        """Add a pool to its cluster.

        Args:
            pool: The pool.
        """
        with self._guard:
            pool.watched.pools = (*pool.watched.pools, pool)
            self._settle(pool.watched)
            pool.watched.judge(pool)  # after it was added: from now on, it gets every change

    def add_pool_set(self, pool_set: AsyncPoolSet) -> None:
        """Add a pool set, which is invalidated when its cluster changes.

        Args:
            pool_set: The pool set.
        """
        with self._guard:
            pool_set.cluster.pool_sets.add(pool_set)

    def remove(self, pool: AsyncNodePool) -> None:
        """Remove a pool that has no connections any more, and forget the login of a tenant that only it has used.

        Args:
            pool: The pool.
        """
        cluster = pool.watched
        with self._guard:
            if pool not in cluster.pools:
                return
            cluster.pools = tuple(other for other in cluster.pools if other is not pool)
            if pool.tenant is not None and not any(other.node == pool.node for other in cluster.pools):
                forgotten = {pool.node, NodeUse(pool.node, read_only=True), NodeUse(pool.node, read_only=False)}
                self.health = {key: state for key, state in self.health.items() if key not in forgotten}
            if not cluster.pools:
                self._recent.pop(cluster, None)
            self._settle(cluster)
        self.observers.emit([PoolClosed(pool.cluster.name, pool.node, pool.read_only, pool.tenant)])

    def _settle(self, cluster: AsyncCluster) -> None:
        """Compute whether a cluster and its servers are in use. Called under the guard."""
        needed = bool(cluster.kept or cluster.requests or cluster.pools or cluster in self._recent)
        if needed == (cluster in self._in_use):
            return
        servers = dict(self.servers)
        if needed:
            self._in_use[cluster] = None
            for server in cluster.servers:
                there = servers[server] = servers.get(server) or AsyncServerInUse(server)
                there.clusters = (*there.clusters, cluster)
            self.servers = servers
            return
        del self._in_use[cluster]
        for server in cluster.servers:
            there = servers[server]
            there.clusters = tuple(other for other in there.clusters if other is not cluster)
            if not there.clusters:
                del servers[server]
                there.probe_now.set()  # its watcher finds that it is not needed any more
        self.servers, cluster.view = servers, NOTHING_KNOWN
        self.health = {
            key: state
            for key, state in self.health.items()
            if (key if isinstance(key, Server) else key.server) in servers
        }

    # Observations

    async def report(self, seen: Observation) -> None:
        """Record an observation, and do what follows from it.

        Args:
            seen: The observation.
        """
        with Isolated("could not record what was observed of %s", seen.node):
            if self._is_news(seen):
                await self._report(seen)

    def _is_news(self, seen: Observation) -> bool:
        known = self.health.get(seen.node.server, UNKNOWN)
        if isinstance(seen, Connected):
            if known.role is not seen.role:
                self.probe_now(seen.node.server)
            return login_failure(self.health, seen.node, read_only=seen.read_only) is not None
        if isinstance(seen, OtherProcess):
            if known.several_servers or not known.process or seen.process in {"", known.process}:
                return False
            self.probe_now(seen.node.server)  # the probe finds out whether the former server process still answers
        return True

    async def _report(self, seen: Observation) -> None:
        now, events = monotonic(), list[Event]()
        clusters, changed = self._learn(seen, events, now)
        for cluster in clusters:  # before events are emitted, because observers may be slow
            for pool in cluster.pools:
                pool.behind |= cluster in changed or isinstance(seen, AttemptFailed)
                if pool.behind:
                    with Isolated("the pool to %s could not be told of a change of its server", pool.node):
                        cut_off = await cluster.follow(pool, now)
                        pool.behind = False
                        if cut_off:
                            events.append(cut_off)
        self.observers.emit(events)

    def _learn(
        self, seen: Observation, events: list[Event], now: float
    ) -> tuple[tuple[AsyncCluster, ...], list[AsyncCluster]]:
        """Replace the health; return the clusters on the server, and those of them whose standings have changed."""
        with self._guard:
            there = self.servers.get(seen.node.server)
            if there is None:  # it is no longer in use
                return (), []
            clusters = there.clusters
            before, views = self.health, {cluster: cluster.view for cluster in clusters}
            try:
                self.health = observe(before, seen, now=now, jitter=random(), policy=self.policy)
                events += changes(before, self.health, [cluster.value for cluster in clusters], now=now)
                for cluster, view in views.items():
                    cluster.view, told = recompute(cluster.value, self.health, view, now=now)
                    events += told
                changed = [cluster for cluster, view in views.items() if makes_a_difference(view, cluster.view)]
                for cluster in changed:
                    cluster.invalidate()
                    for pool in cluster.pools:
                        cluster.judge(pool)
            except BaseException:  # all or nothing: a change that is recorded in part would never have its effects
                self.health = before
                for cluster, view in views.items():
                    cluster.view = view
                raise
            for cluster in clusters:
                cluster.choose_again()
        return clusters, changed

    # Reports of connections

    def probe_now(self, server: Server) -> None:
        """Ask the watcher of a server to probe it at once.

        Args:
            server: The server; nothing happens if it is not in use.
        """
        if (there := self.servers.get(server)) is not None:
            there.probe_now.set()

    def suspect(self, server: Server, *, dying: bool = False) -> None:
        """Have a server probed at once, because of an error on a connection.

        Args:
            server: The server.
            dying: Whether its other connections may be about to end as well, because the processes of a server do not
                all die at the same moment. Its pools are then in quarantine: they lend no idle connection until a probe
                has ended that began later.
        """
        try:
            if dying:
                with self._guard:
                    if (there := self.servers.get(server)) is not None:
                        there.quarantined = True
                        for pool in there.pools:
                            pool.quarantine.begin()
        finally:
            self.probe_now(server)

    async def end_quarantine(self, there: AsyncServerInUse, begun: float) -> None:
        """Let pools lend idle connections to a server again, once the result of a probe was reported.

        Args:
            there: The server.
            begun: When that probe began.
        """
        if not there.quarantined:
            return
        with self._guard:
            pools = [pool for pool in there.pools if pool.quarantined]
            there.quarantined = bool(pools)
        for pool in pools:
            if pool.quarantine.begun_at < begun:
                with Isolated("could not release the idle connections to %s from quarantine", pool.node):
                    await pool.quarantine.end()

    def pause(self, there: AsyncServerInUse) -> float:
        """Return how long to wait before the next probe of a server.

        Args:
            there: The server.

        Returns:
            Seconds, before jitter.
        """
        now, interval = monotonic(), self.policy.interval
        return min(FAST_INTERVAL, interval) if any(one.is_urgent(now) for one in there.clusters) else interval

    async def cut_silent(self, silent: Sequence[Silent]) -> None:
        """Cut silent connections to a server that is up.

        Args:
            silent: The connections.
        """
        by_pool: dict[AsyncNodePool, list[SessionState]] = {}
        for one in silent:
            by_pool.setdefault(one.pool, []).append(one.state)
        for pool, states in by_pool.items():
            with Isolated("the silent connections of the pool to %s could not be closed", pool.node):
                await pool.closer.drop_silent(states, SILENT)
        self.observers.emit(ConnectionsCut(pool.node, len(states), SILENT) for pool, states in by_pool.items())
