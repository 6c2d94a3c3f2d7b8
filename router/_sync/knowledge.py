# Generated from router/_async/knowledge.py by tools/async_to_sync.py: do not edit.
"""What is known of the servers in use, and what follows from each thing that is learnt."""

from __future__ import annotations

import logging
from random import random
from time import monotonic
from typing import TYPE_CHECKING

from router._runtime.calls import Isolated
from router._runtime.flags import Flag, Guard
from router._sync.monitor import Monitor
from router.core.changes import changes, track_fallback, track_primary
from router.core.events import ConnectionsCut, Event
from router.core.health import UNKNOWN, NodeUse, login_failure, observe
from router.core.observations import AttemptFailed, Connected, OtherProcess
from router.core.standing import Request, Tier, standings
from router.core.topology import Role, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import TypeAlias

    from router._sync.pool.node_pool import NodePool
    from router._sync.pool.opener import Opener
    from router._sync.pool.session_state import SessionState
    from router._sync.silence import Silent
    from router.core.changes import LastPrimary
    from router.core.events import Observer
    from router.core.health import Health
    from router.core.observations import Observation
    from router.core.policies import HealthPolicy
    from router.core.standing import Standing
    from router.core.topology import Cluster, Node

    Standings: TypeAlias = Mapping[Server, Standing]

HURRIED = 0.1
"""Seconds between two looks while a version has no primary, or a request waits for a server."""

MISSED = 60.0
"""For so many seconds after a primary was lost there are hurried looks, even if nobody waits."""

FORGOTTEN = "the server has nothing to do for them, and they hear nothing: what is between has forgotten them"
"""Why connections to a server that is well are cut."""

logger = logging.getLogger("router")


class Knowledge:
    """What is known of the servers in use; each reference is replaced whole, so that a reader needs no guard.

    Attributes:
        health: What is known of each server, and of logins that are refused.
        changed: Set, and replaced, with each thing that is learnt.
        monitor: Looks at the servers.
    """

    def __init__(
        self,
        policy: HealthPolicy,
        opener: Opener,
        observers: Sequence[Observer],
        *,
        pools: Callable[[], Iterable[NodePool]],
        moved: Callable[[], None],
    ) -> None:
        """Begin with nothing known.

        Args:
            policy: How servers are watched.
            opener: Opens the connections that look at them.
            observers: Told of each event.
            pools: Gives those that are open.
            moved: Told, under the guard, when a node is worth something else than before.
        """
        self.health: Health = {}
        self.changed = Flag()
        self.monitor = Monitor(
            opener,
            policy,
            health=lambda: self.health,
            report=self.report,
            looked=self._looked,
            pause=self._pause,
            pools=pools,
            silent=self._cut_silent,
        )
        self._policy = policy
        self._opener = opener
        self._observers = observers
        self._pools = pools
        self._moved = moved
        self._guard = Guard()  # guards the replacing of all of these
        self._in_use: dict[Server, tuple[Cluster, ...]] = {}
        self._standings: dict[str, tuple[Standings, Standings]] = {}  # to read, to write
        self._watched: set[str] = set()  # the clusters in use, once all their servers are watched
        self._leaders: dict[str, LastPrimary | None] = {}
        self._doubted: set[Server] = set()  # those of which pools may be in doubt
        self._fell_back = frozenset[str]()  # the clusters whose reads the primary serves, for want of replicas
        self._wanted: dict[str, float] = {}  # when a request last waited for a server of a cluster

    def use(self, cluster: Cluster) -> None:
        """Have the servers of a cluster watched from now on.

        Args:
            cluster: The cluster.
        """
        if cluster.name in self._watched:
            return
        with self._guard:
            if cluster.name not in self._standings:
                for node in cluster.nodes:
                    self._in_use = {**self._in_use, node.server: (*self._in_use.get(node.server, ()), cluster)}
                self._standings = {**self._standings, cluster.name: ({}, {})}
        self.monitor.watch(cluster)
        self._watched.add(cluster.name)  # only now: should a watcher not start, the next request tries again

    def wants(self, cluster: Cluster) -> None:
        """Take note that a request waits for a server of a cluster: they are looked at more often for a while.

        Args:
            cluster: The cluster.
        """
        first = monotonic() - self._wanted.get(cluster.name, 0.0) > 1.0
        self._wanted[cluster.name] = monotonic()
        if first:  # from a pause of full length
            for node in cluster.nodes:
                self.monitor.hurry(node.server)

    def forget_login(self, node: Node) -> None:
        """Forget its password, and that its login was refused.

        Args:
            node: The node, which is used no more.
        """
        self._opener.forget(node)
        with self._guard:
            self.health = {
                key: state
                for key, state in self.health.items()
                if node not in (key, key.node if isinstance(key, NodeUse) else None)
            }

    def leave(self, name: str) -> None:
        """Watch the servers of a cluster no longer, and forget what only it is about.

        Args:
            name: The cluster's name.
        """
        with self._guard:
            self._watched.discard(name)
            left_behind = {
                cluster for clusters in self._in_use.values() for cluster in clusters if cluster.name == name
            }
            self._in_use = {
                server: left
                for server, clusters in self._in_use.items()
                if (left := tuple(cluster for cluster in clusters if cluster.name != name))
            }
            self._standings = {other: known for other, known in self._standings.items() if other != name}
            self._wanted.pop(name, None)
            self._fell_back -= {name}
            self._leaders = {other: leader for other, leader in self._leaders.items() if other != name}
            self.health = {
                key: state
                for key, state in self.health.items()
                if (key if isinstance(key, Server) else key.server) in self._in_use
            }
            self._doubted.intersection_update(self._in_use)
        self.monitor.unwatch(name)
        for cluster in left_behind:
            for node in cluster.nodes:
                self._opener.forget(node)

    def report(self, seen: Observation) -> None:
        """Take note of what was observed, and do what follows from it.

        Args:
            seen: The observation.
        """
        with Isolated("could not take note of what was seen of %s", seen.node):
            self._report(seen)

    def _report(self, seen: Observation) -> None:
        server = seen.node.server
        if isinstance(seen, Connected):
            known = self.health.get(server, UNKNOWN)
            if known.role is not seen.role:
                self.monitor.hurry(server)
            if login_failure(self.health, seen.node, read_only=seen.read_only) is None:
                return
        if isinstance(seen, OtherProcess):
            known = self.health.get(server, UNKNOWN)
            if known.several_servers or not known.process or seen.process in {"", known.process}:
                return
            self.monitor.hurry(server)  # whether what it led to before still answers
        now, events = monotonic(), list[Event]()
        names, moved = self._learn(seen, events, now)
        for pool in list(self._pools()):  # before anybody is told: observers may be slow
            pool.behind |= pool.cluster.name in (names if moved or isinstance(seen, AttemptFailed) else ())
            if pool.behind and pool.cluster.name in names:
                with Isolated("the pool to %s could not follow what is known of it", pool.node):
                    cut_off = self._follow(pool, now, moved=pool.cluster.name in moved)
                    pool.behind = False
                    if cut_off:
                        events.append(cut_off)
        self.tell(events)

    def _learn(self, seen: Observation, events: list[Event], now: float) -> tuple[set[str], set[str]]:
        """Replace what is known; the names of the clusters it is about, and of those that it makes a difference to."""
        with self._guard:
            before, was = self.health, (self.health, self._standings, self._leaders, self._fell_back)
            try:
                self.health = observe(before, seen, now=now, jitter=random(), policy=self._policy)
                clusters = self._in_use.get(seen.node.server, ())
                events += changes(before, self.health, clusters, now=now)
                names = {cluster.name for cluster in clusters}
                moved = {cluster.name for cluster in clusters if self._stand(cluster, events, now)}
                if moved:
                    self._moved()
                    for pool in self._pools():
                        if pool.cluster.name in moved:
                            self.judge(pool)
            except BaseException:  # nothing is known in part, or what follows from the rest would never be done
                self.health, self._standings, self._leaders, self._fell_back = was
                raise
            changed, self.changed = self.changed, Flag()
        changed.set()
        return names, moved

    def _stand(self, cluster: Cluster, events: list[Event], now: float) -> bool:
        """Work out what the nodes of a cluster are worth now; whether that is new. Under the guard."""
        reading, writing = (standings(cluster, self.health, Request(read_only), now=now) for read_only in (True, False))
        known = self._standings.get(cluster.name)
        # By server: the nodes of tenants differ from those that are watched, their servers do not.
        new: tuple[Standings, Standings] = (
            {node.server: standing for node, standing in reading.items()},
            {node.server: standing for node, standing in writing.items()},
        )
        self._standings = {**self._standings, cluster.name: new}
        primary = next((node for node, standing in writing.items() if standing.tier is Tier.BEST), None)
        leader, failover = track_primary(cluster.name, self._leaders.get(cluster.name), primary, now=now)
        self._leaders = {**self._leaders, cluster.name: leader}
        fell_back, reads = track_fallback(cluster.name, reading, fell_back=cluster.name in self._fell_back)
        self._fell_back = self._fell_back | {cluster.name} if fell_back else self._fell_back - {cluster.name}
        events += [event for event in (failover, reads) if event is not None]
        return known != new

    def judge(self, pool: NodePool) -> None:
        """Tell a pool what is known of its node: whether anybody may use its connections now, and who serves its reads.

        Args:
            pool: The pool.
        """
        # Of a frozen primary, too, once another has taken over: it may yet carry out a COMMIT that it was sent, and
        # nobody must take that for a success.
        standing = self._standings.get(pool.cluster.name, ({}, {}))[1].get(pool.node.server)
        pool.barred = "" if pool.read_only or standing is None or standing.tier is not None else standing.note
        role = self.health.get(pool.node.server, UNKNOWN).role
        pool.counts.follow(on_primary=pool.read_only and role is Role.PRIMARY and len(pool.cluster.nodes) > 1)

    def _follow(self, pool: NodePool, now: float, *, moved: bool) -> ConnectionsCut | None:
        """Have a pool follow what its node is worth by now."""
        node, (reading, writing) = pool.node, self._standings.get(pool.cluster.name, ({}, {}))
        standing, reason = (reading if pool.read_only else writing).get(node.server), pool.barred
        if standing is None:  # nobody has looked since it is used, or it is used no more
            return None
        if not reason:
            if standing.tier is not Tier.DOWN:
                if standing.tier in (None, Tier.REFUSES_WRITES) or (
                    moved and pool.full
                ):  # those who wait may be served elsewhere
                    pool.reroute()
                return None
            state = self.health[node.server]
            # Not from before it was found down: nobody may have asked it for long, for want of a slot, say.
            silent = now - max(state.answered_at, state.since)
            if silent >= self._policy.cut_after:
                reason = f"the server has not answered for {silent:.0f} s"
        count = pool.drop(reason)
        return ConnectionsCut(node, count, reason) if count else None

    def suspect(self, server: Server, *, dying: bool = False) -> None:
        """Have a server looked at, because of what a connection showed.

        Args:
            server: The server.
            dying: Whether its other connections may be about to end as that one did: its processes do not all die at
                the same moment. None that is idle is lent until a look has ended that began after the first such sign.
        """
        try:
            if dying:
                with self._guard:
                    if server in self._in_use:
                        self._doubted.add(server)
                        for pool in self._pools():
                            if pool.node.server == server:
                                pool.doubt()
        finally:
            self.monitor.hurry(server)

    def _looked(self, server: Server, begun: float) -> None:
        """Have idle connections lent again, once what a look has shown was reported."""
        if server not in self._doubted:
            return
        with self._guard:
            doubted = [pool for pool in self._pools() if pool.node.server == server and pool.doubted]
            if not doubted:
                self._doubted.discard(server)
        for pool in doubted:
            if pool.doubted_at < begun:
                with Isolated("could not lend the idle connections to %s again", pool.node):
                    pool.trust()

    def _cut_silent(self, silent: list[Silent]) -> None:
        """Cut connections that hear nothing from a server that is well."""
        by_pool: dict[NodePool, list[SessionState]] = {}
        for one in silent:
            by_pool.setdefault(one.pool, []).append(one.original)
        for pool, originals in by_pool.items():
            with Isolated("the pool to %s could not part with what hears nothing", pool.node):
                pool.drop_silent(originals, FORGOTTEN)
        self.tell(ConnectionsCut(pool.node, len(originals), FORGOTTEN) for pool, originals in by_pool.items())

    def _pause(self, server: Server) -> float:
        """How long to wait before the next look at a server."""
        now = monotonic()
        for cluster in self._in_use.get(server, ()):
            leader = self._leaders.get(cluster.name)
            lost_at = None if leader is None else leader.lost_at
            if (lost_at is not None and now < lost_at + MISSED) or now < self._wanted.get(cluster.name, -1.0) + 1.0:
                return min(HURRIED, self._policy.interval)
        return self._policy.interval

    def heard(self, kind: type[Event]) -> bool:
        """Say whether anybody is told of events of a kind: else they need not be made.

        Args:
            kind: The kind.

        Returns:
            Whether there is an observer, or the log takes them.
        """
        return bool(self._observers) or logger.isEnabledFor(kind.level)

    def tell(self, events: Iterable[Event]) -> None:
        """Log events, and tell the observers.

        Args:
            events: What happened.
        """
        for event in events:
            with Isolated("an event could not be logged"):
                logger.log(event.level, "%s", event)
            for observer in self._observers:
                with Isolated("an observer failed"):
                    observer(event)
