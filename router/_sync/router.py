# Generated from router/_async/router.py by tools/async_to_sync.py: do not edit.
"""The router: one call from key to connection, and what the router learns on the way."""

from __future__ import annotations

import logging
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Self

from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from router._runtime import Event, Guard, cut, sleep, survive_fork
from router._sync.checkout import Checkout, Lane
from router._sync.monitor import Monitor
from router._sync.opener import Opener
from router._sync.pools import NodePool, Reroute
from router._sync.slots import Slots
from router.choose import choose
from router.errors import NoPrimary, NoReplica, PoolExhausted, RouterClosed, TooManyWaiting, Unavailable
from router.health import Connected, observe, role_of, state_of
from router.measures import NodeStats, Stats, VersionStats
from router.resolve import resolve
from router.settings import RouterSettings

if TYPE_CHECKING:
    from types import TracebackType

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._runtime import Configure, Password
    from router.choose import Route
    from router.health import Failed, Health
    from router.topology import Cluster, Node, Target

logger = logging.getLogger("router")


class Router:
    """Sends each request to the right pool: by version, to the right server, for reading or for writing.

    Pools open at first use. It may be used at once, or as a context manager that closes it at the end.
    """

    def __init__(
        self,
        settings: RouterSettings | None = None,
        *,
        password: Password | None = None,
        configure: Configure | None = None,
    ) -> None:
        """Make a router; nothing is opened yet.

        Args:
            settings: What to route to; ``None`` reads the environment.
            password: Gives the password of a node, for credentials that rotate: asked at the first connection to the
                node, and again when the server turns its last answer down.
            configure: Called with each new connection, to register adapters and the like; it must leave it idle.

        Raises:
            ConfigError: The settings are wrong.
        """
        self._topology = (RouterSettings() if settings is None else settings).topology()
        self._callables = (password, configure)
        self._closed = False
        self._start()
        survive_fork(self)

    def _start(self) -> None:
        password, configure = self._callables
        # Replaced whole, never edited: a reader needs no guard. The lanes are what was worked out from the others.
        self._health: Health = {}
        self._pools: dict[tuple[Node, bool], NodePool] = {}
        self._readers: dict[str | None, Lane] = {}
        self._writers: dict[str | None, Lane] = {}
        self._changed = Event()  # set, and replaced, when the health changes
        self._guard = Guard()  # guards the replacing of all of these
        self._slots = Slots(self._topology.max_connections, self._make_room)
        self._opener = Opener(self._slots, self._report, password=password, configure=configure)
        self._monitor = Monitor(lambda: self._health, self._opener.probe)

    # The public face

    def connection(
        self, *, version: str | None = None, read_only: bool = False, timeout: float | None = None
    ) -> Checkout:
        """Borrow a connection for the length of a block.

        A block that writes is one transaction on the primary, committed on success and rolled back on an error. One
        that only reads runs on a replica, in autocommit unless ``read.autocommit`` is off, in a session in which the
        server refuses writes (SQLSTATE 25006).

        Args:
            version: The version, or an alias of it; ``None`` takes ``default_version``.
            read_only: Whether the block only reads.
            timeout: Seconds for choosing, connecting and waiting together; ``None`` takes ``pool.timeout``.

        Returns:
            A context manager that gives a :class:`psycopg.Connection`.

        Raises:
            UnknownVersion: There is no such version, or none was named and there is no default.
            RouterClosed: The router was closed.
            Unavailable: On entering the block: no connection could be had in time; its subclasses say why.
        """
        lane = (self._readers if read_only else self._writers).get(version)
        return Checkout(self._lane(version, read_only=read_only) if lane is None else lane, timeout)

    def explain(self, *, version: str | None = None, read_only: bool = False) -> Route:
        """Say where a request would go now, and why; nothing is opened.

        Args:
            version: As for :meth:`connection`.
            read_only: As for :meth:`connection`.

        Returns:
            The route; its ``repr`` is for reading.

        Raises:
            UnknownVersion: As for :meth:`connection`.
        """
        return self._choose(resolve(self._topology, version), read_only=read_only)

    def stats(self) -> Stats:
        """Return one moment's view of every version, node and pool.

        Returns:
            Frozen values; the ``repr`` is for reading.
        """
        health, pools = self._health, self._pools
        versions = []
        for name, cluster in self._topology.versions.items():
            nodes = []
            for node in cluster.nodes:
                state = state_of(health, node)
                read, write = pools.get((node, True)), pools.get((node, False))
                nodes.append(
                    NodeStats(
                        node=node,
                        role=role_of(health, node),
                        state="unknown" if state.up is None else "up" if state.up else "down",
                        reason=state.reason,
                        server_version=state.server_version,
                        read=None if read is None else read.stats(),
                        write=None if write is None else write.stats(),
                    )
                )
            versions.append(VersionStats(name, tuple(nodes)))
        return Stats(self._slots.taken, self._topology.max_connections, tuple(versions))

    def close(self, timeout: float = 5.0) -> int:
        """Close every pool; no further request is served.

        Args:
            timeout: The most to wait for borrowed connections to come back, in seconds.

        Returns:
            How many borrowed connections were cut because they did not come back in time; their queries fail.
        """
        deadline = monotonic() + timeout
        with self._guard:
            self._closed = True
            pools = list(self._pools.values())
            self._readers, self._writers = {}, {}
        self._slots.close()
        for pool in pools:
            pool.reroute()
        while any(pool.borrowed for pool in pools) and monotonic() < deadline:
            sleep(0.01)
        cut_off = 0
        for pool in pools:
            for connection in list(pool.borrowed):
                cut(connection)
                cut_off += 1
        if cut_off:
            logger.warning("closing the router cut %d connections that were still borrowed", cut_off)
        remaining = max(deadline - monotonic(), 0.1)
        self._monitor.close(remaining)
        for pool in pools:
            pool.close(remaining)
        return cut_off

    def __enter__(self) -> Self:
        """Return the router itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Show its versions and aliases."""
        topology = self._topology
        names = ", ".join([*topology.versions, *(f"{alias}={version}" for alias, version in topology.aliases.items())])
        return f"<{type(self).__name__} {'closed ' if self._closed else ''}{names}>"

    # From key to connection, when no connection is ready

    def _lane(self, version: str | None, *, read_only: bool) -> Lane:
        if self._closed:
            raise RouterClosed("the router is closed")
        lanes = self._readers if read_only else self._writers
        target = resolve(self._topology, version)
        route = self._choose(target, read_only=read_only)
        pools = tuple(self._pool(node, target.cluster, read_only=read_only) for node in route.nodes[: route.best])
        lane = Lane(target, pools, self._acquire, self._slots, read_only=read_only)
        # If anything changed since `lanes` was looked up, it is no longer in use, and neither is this lane.
        lanes[version] = lane
        return lane

    def _acquire(self, lane: Lane, deadline: float, prefer: NodePool | None) -> tuple[NodePool, Connection[TupleRow]]:
        target, read_only = lane.target, lane.read_only
        tried: dict[Node, str] = {}
        while True:
            changed = self._changed
            route = self._choose(target, read_only=read_only, prefer=None if prefer is None else prefer.node)
            nodes = [node for node in route.nodes if node not in tried]
            remaining = deadline - monotonic()
            if self._closed:
                raise RouterClosed("the router is closed")
            if nodes and remaining > 0:
                node = nodes[0]
                self._watch_untried(nodes[1:], target.cluster)
                pool = self._pool(node, target.cluster, read_only=read_only)
                # A node without any connection may never answer: leave time for the others.
                patience = remaining / len(nodes) if pool.cold else remaining
                try:
                    return pool, pool.borrow(patience)
                except (TooManyRequests, PoolTimeout) as error:
                    if (full := self._full(target, pool, error)) is not None:
                        raise full from error
                    tried[node] = f"gave no connection within {patience:.1f} s"
                except (Reroute, PoolClosed):
                    if (state := state_of(self._health, node)).up is False:
                        tried[node] = state.reason
            elif remaining > 0 and read_only and target.cluster.read.fallback == "wait":
                changed.wait_for(remaining)
                tried.clear()
            else:
                raise self._unavailable(target, route, tried, read_only=read_only)

    def _watch_untried(self, nodes: list[Node], cluster: Cluster) -> None:
        for node in nodes:
            if state_of(self._health, node).up is None:
                self._monitor.watch(node, cluster)

    def _choose(self, target: Target, *, read_only: bool, prefer: Node | None = None) -> Route:
        pools = self._pools

        def load(node: Node) -> float:
            pool = pools.get((node, read_only))
            return 0.0 if pool is None else pool.load

        return choose(target, self._health, read_only=read_only, turn=random(), load=load, prefer=prefer)

    def _pool(self, node: Node, cluster: Cluster, *, read_only: bool) -> NodePool:
        pool = self._pools.get((node, read_only))
        if pool is None:
            with self._guard:
                if self._closed:
                    raise RouterClosed("the router is closed")
                pool = self._pools.get((node, read_only))
                if pool is None:
                    pool = NodePool(node, cluster, self._opener, read_only=read_only)
                    self._pools = {**self._pools, (node, read_only): pool}
        return pool

    def _unavailable(self, target: Target, route: Route, tried: dict[Node, str], *, read_only: bool) -> Unavailable:
        kind = NoReplica if read_only else NoPrimary
        doing = "read from" if read_only else "written to"
        refused = {**route.refused, **{node: route.notes[node] for node in route.nodes}, **tried}
        return kind(
            f"no node of version {target.requested!r} can be {doing} now",
            version=target.requested,
            attempts=len(tried),
            refused=refused,
        )

    def _full(self, target: Target, pool: NodePool, error: Exception) -> PoolExhausted | None:
        version, of = target.requested, f"for version {target.requested!r} in time"
        if isinstance(error, TooManyRequests):
            waiting = f"{pool.max_waiting} requests wait for a connection to {pool.node} already (pool.max_waiting)"
            return TooManyWaiting(f"no connection {of}: {waiting}", version=version)
        if self._slots.waiting:
            limit = f"all {self._slots.limit} connections of the process are open (max_connections)"
            return PoolExhausted(f"no connection {of}: {limit}", version=version)
        if len(pool.borrowed) >= pool.max_size:
            limit = f"all {pool.max_size} connections to {pool.node} are in use (pool.max_size)"
            return PoolExhausted(f"no connection {of}: {limit}", version=version)
        return None

    # What is learnt

    def _report(self, seen: Connected | Failed) -> None:
        with self._guard:
            before = self._health
            health = observe(before, seen, now=monotonic(), jitter=random(), policy=self._topology.health)
            if health is before:
                return
            self._health = health
            self._readers, self._writers = {}, {}
            changed, self._changed = self._changed, Event()
            pools = list(self._pools.values())
        changed.set()
        if isinstance(seen, Connected):
            version = seen.server_version // 10000
            logger.info("%s is up: %s, PostgreSQL %d", seen.node.server, seen.role, version)
        else:
            if state_of(before, seen.node).up is not False:
                logger.warning("%s is down: %s", seen.node if seen.answered else seen.node.server, seen.reason)
            self._monitor.watch(seen.node, next(c for c in self._topology.versions.values() if seen.node in c.nodes))
        # Those who wait for a first connection may have somewhere better to go by now.
        for pool in pools:
            if pool.cold and not (isinstance(seen, Connected) and pool.node == seen.node):
                pool.reroute()

    def _make_room(self) -> bool:
        pools = sorted(self._pools.values(), key=lambda pool: len(pool.idle), reverse=True)
        return bool(pools) and pools[0].evict_idle()

    # fork

    def abandon(self) -> None:
        """Start anew in the child of a fork: what is open is the parent's, and is neither used nor closed here."""
        for pool in self._pools.values():
            pool.abandon()
        self._start()
