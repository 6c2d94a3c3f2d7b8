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
    from collections.abc import Container
    from types import TracebackType

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._runtime import Configure, Password
    from router.choose import Route
    from router.health import Failed, Health
    from router.topology import Cluster, Node, Target

FULL = 1e9
"""The load of a pool that has no connection left to open: more than any other's."""

GRACE = 1.0
"""Seconds that background work gets to end, although the time given for closing has passed."""

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
        self._pools: dict[tuple[str, Node, bool], NodePool] = {}  # by version, node, and whether it only reads
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
            RouterClosed: The router was closed.
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
                read, write = pools.get((name, node, True)), pools.get((name, node, False))
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
        self._changed.set()
        self._slots.close()
        for pool in pools:
            pool.retired = True
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
        deadline = max(deadline, monotonic() + GRACE)
        self._monitor.close(max(deadline - monotonic(), 0.0))
        for pool in pools:
            pool.close(max(deadline - monotonic(), 0.0))
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
        cluster, since = target.cluster, monotonic()
        patience: dict[Node, float] = {}  # for each node asked, until when to wait while it is not known to be up
        while True:
            changed = self._changed  # taken before what is known is looked at: no change after that goes unnoticed
            preferred = None if prefer is None or prefer.full else prefer.node
            route = self._choose(target, read_only=read_only, prefer=preferred)
            now = monotonic()
            nodes = [
                node
                for node in route.nodes
                if now < patience.get(node, deadline) or (self._up(node) and now < deadline)
                if not self._failed(node, since)
            ]
            if not nodes:
                if now >= deadline or not read_only or cluster.read.fallback != "wait":
                    raise self._unavailable(route, patience, since)
                changed.wait_for(deadline - now)
                since = monotonic()
                patience.clear()
                continue
            for other in nodes[1:]:
                if self._up(other) is None:
                    self._monitor.watch(other, cluster)
            node = nodes[0]
            up = self._up(node)
            if up or (up is None and len(nodes) == 1):
                pool = self._pool(node, cluster, read_only=read_only)
                patience.setdefault(node, deadline)
                try:
                    return pool, pool.borrow(deadline - now)
                except TooManyRequests as error:
                    raise TooManyWaiting(
                        f"no connection for version {target.requested!r}: {pool.max_waiting} requests wait for one to "
                        f"{node} already (pool.max_waiting)",
                        version=target.requested,
                    ) from error
                except (PoolTimeout, Reroute, PoolClosed):
                    continue  # choose again, or find that there is no time left
            # Never wait in the pool of a node that may not answer. The monitor finds out, and `changed` tells.
            self._monitor.watch(node, cluster, now=True)
            changed.wait_for(patience.setdefault(node, now + (deadline - now) / len(nodes)) - now)

    def _up(self, node: Node) -> bool | None:
        return state_of(self._health, node).up

    def _failed(self, node: Node, since: float) -> bool:
        state = state_of(self._health, node)
        return state.up is False and state.seen_at >= since

    def _choose(self, target: Target, *, read_only: bool, prefer: Node | None = None) -> Route:
        if self._closed:
            raise RouterClosed("the router is closed")
        pools = self._pools

        def load(node: Node) -> float:
            pool = pools.get((target.version, node, read_only))
            return 0.0 if pool is None else pool.load + FULL * pool.full

        return choose(target, self._health, read_only=read_only, turn=random(), load=load, prefer=prefer)

    def _pool(self, node: Node, cluster: Cluster, *, read_only: bool) -> NodePool:
        key = (cluster.name, node, read_only)
        pool = self._pools.get(key)
        if pool is None:
            with self._guard:
                if self._closed:
                    raise RouterClosed("the router is closed")
                pool = self._pools.get(key)
                if pool is None:
                    pool = NodePool(node, cluster, self._opener, read_only=read_only)
                    self._pools = {**self._pools, key: pool}
        return pool

    def _unavailable(self, route: Route, asked: Container[Node], since: float) -> Unavailable:
        version = route.target.requested
        in_time = f"no connection for version {version!r} in time"
        failed = {node for node in route.nodes if self._failed(node, since)}
        if self._slots.waiting and not failed:
            full = f"{in_time}: all {self._slots.limit} of the process are open (max_connections)"
            return PoolExhausted(full, version=version)
        silent = {}
        for node in route.nodes:
            pool = self._pools.get((route.target.version, node, route.read_only))
            if self._up(node) and pool is not None and pool.grown:
                full = f"{in_time}: all {pool.max_size} to {node} are in use (pool.max_size)"
                return PoolExhausted(full, version=version)
            if node in asked and node not in failed:
                refusal = f": {pool.refusal}" if pool is not None and pool.refusal else ""
                silent[node] = f"gave no connection in time{refusal}" if self._up(node) else "did not answer in time"
        kind, use = (NoReplica, "read from") if route.read_only else (NoPrimary, "written to")
        return kind(
            f"no node of version {version!r} can be {use} now",
            version=version,
            attempts=len(failed) + len(silent),
            refused={**route.refused, **route.notes, **silent},
        )

    # What is learnt

    def _report(self, seen: Connected | Failed) -> None:
        with self._guard:
            before = self._health
            self._health = observe(before, seen, now=monotonic(), jitter=random(), policy=self._topology.health)
            if self._health != before:
                self._readers, self._writers = {}, {}
            changed, self._changed = self._changed, Event()
        changed.set()
        up = state_of(before, seen.node).up
        if isinstance(seen, Connected):
            if not up:
                version = seen.server_version // 10000
                logger.info("%s is up: %s, PostgreSQL %d", seen.node.server, seen.role, version)
                # Those who wait at a full pool may be served there now.
                for pool in self._pools.values():
                    if pool.full and seen.node in pool.cluster.nodes:
                        pool.reroute()
            return
        if up is not False:
            logger.warning("%s is down: %s", seen.node if seen.answered else seen.node.server, seen.reason)
        cluster = next(cluster for cluster in self._topology.versions.values() if seen.node in cluster.nodes)
        self._monitor.watch(seen.node, cluster)
        if not seen.answered:  # what is idle there is as dead, and must not be handed out once the server is back
            for pool in self._pools.values():
                if pool.node.server == seen.node.server:
                    pool.evict_all_idle()

    def _make_room(self) -> bool:
        pool = max(self._pools.values(), key=lambda pool: len(pool.idle), default=None)
        return pool is not None and pool.evict_idle()

    # fork

    def abandon(self) -> None:
        """Start anew in the child of a fork: what is open is the parent's, and is neither used nor closed here."""
        for pool in self._pools.values():
            pool.abandon()
        self._start()
