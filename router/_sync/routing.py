# Generated from router/_async/routing.py by tools/async_to_sync.py: do not edit.
"""From key to connection when none is ready, and what is learnt on the way."""

from __future__ import annotations

import logging
from random import random
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from router._runtime.calls import Isolated
from router._runtime.flags import Flag, Guard, sleep
from router._runtime.sockets import cut
from router._runtime.workers import join, spawn, wait_quietly
from router._sync.knowledge import Knowledge
from router._sync.lanes import Lane
from router._sync.pool.opener import Opener
from router._sync.pool.registry import Pools
from router._sync.slots import Gate, Slots
from router.core.budget import Claim, Limits
from router.core.choose import choose
from router.core.consistency import UNSURE, later
from router.core.errors import (
    PoolExhausted,
    RouterClosed,
    TokenRefused,
    Unavailable,
)
from router.core.events import Repeated, RequestFailed
from router.core.health import UNKNOWN, NodeUse, login_failure, same_system
from router.core.replication import primary_of
from router.core.resolve import check_key, resolve
from router.core.standing import Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    import psycopg

    from router._runtime.calls import Configure, Password
    from router._runtime.workers import Worker
    from router._sync.directory import Directory
    from router._sync.pool.node_pool import NodePool
    from router.core.choose import Route
    from router.core.consistency import Position
    from router.core.events import Observer
    from router.core.observations import Observation
    from router.core.topology import Cluster, Node, Server, Target, Topology

    Key: TypeAlias = str | tuple[str | None, str] | None  # a version, or a version and a tenant
    Like: TypeAlias = tuple[str, tuple[Node, ...], bool]  # a cluster's name and nodes, and whether it is for reading

FULL = 1e9
"""The load of a pool that has none to lend or open now: more than any other's."""

GRACE = 1.0
"""Seconds that background work gets to end, although the time given for closing has passed."""

HOUSEKEEPING = 1.0
"""Seconds between two rounds in which what nobody uses any more is closed."""

REMEMBERED = 20_000
"""How many keys are remembered with what was worked out for them: where a template makes tenants, anybody may name any.
With more than that, all are worked out anew."""

VISITED = 64
"""How many tenants' own servers are watched although no pool is open there: those that were asked for last."""

logger = logging.getLogger("router")


class NotKnownYet(Exception):
    """Where a tenant lives has to be asked first."""


class Routing:
    """Everything of one router that changes: what is known, the pools, and the lanes that were worked out from both.

    Attributes:
        topology: What is configured.
        closed: Whether the router was closed.
        dropped: Whether nobody has the router any more, and it was not closed.
        directory: Says where tenants live that the settings do not list; ``None`` for nobody.
        known: What is known of the servers.
        pools: Those that are open.
        readers: The lanes for reading, by what requests name.
        writers: Those for writing.
        slots: The process's budget.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        password: Password | None,
        configure: Configure | None,
        observers: Sequence[Observer],
    ) -> None:
        """Begin with nothing known and nothing open.

        Args:
            topology: What is configured.
            password: Gives the password of a node.
            configure: Called with each new connection.
            observers: Told of each event.
        """
        self.topology = topology
        self.closed = False
        self.dropped = False
        self.directory: Directory | None = None
        self._callables = (password, configure)
        self._observers = tuple(observers)
        self._start()

    def _start(self) -> None:
        password, configure = self._callables
        # Replaced whole, never edited: a reader needs no guard. All are worked out from what is known and configured.
        self.readers: dict[Key, Lane] = {}
        self.writers: dict[Key, Lane] = {}
        self._bases: dict[Like, Lane] = {}  # what the lanes of tenants have in common
        self._targets: dict[Key, Target] = {}
        self._forgotten = 0  # how often forget() was called
        self._gates: WeakValueDictionary[str, Gate] = WeakValueDictionary()  # a lane keeps its own
        self.guard = Guard()  # guards the replacing of all of these, and what begins with the first request
        self._visited: dict[str, None] = {}  # tenants' own clusters that were asked for last, the latest at the end
        self.asked: set[Server] = set()  # those that a request asks now
        self._closing = Flag()
        self._housekeeper: Worker | None = None
        limits = Limits(self.topology.max_connections, self.topology.max_connections_per_server)
        self.slots = Slots(limits, self._make_room)
        opener = Opener(
            self.slots,
            self._report,
            self._suspect,
            password=password,
            configure=configure,
        )
        self.known = Knowledge(
            self.topology.health, opener, self._observers, pools=lambda: self.pools, moved=self._start_lanes_anew
        )
        self.pools = Pools(
            self.topology.max_pools,
            self.topology.versions,
            opener,
            self.known.suspect,
            judge=self.known.judge,
            gone=self._gone,
            tell=self.known.tell,
        )

    def _report(self, seen: Observation) -> None:
        self.known.report(seen)

    def _suspect(self, server: Server) -> None:
        self.known.suspect(server)

    def _start_lanes_anew(self) -> None:
        self.readers, self.writers, self._bases = {}, {}, {}

    # From key to connection

    def lane(self, version: str | None, tenant: str | None = None, *, read_only: bool) -> Lane:
        """Work out the lane for a key.

        Args:
            version: The version, or an alias of it; ``None`` takes the tenant's, or the default.
            tenant: The tenant; ``None`` for none.
            read_only: Whether it is for reading.

        Returns:
            The lane, which serves the key until something changes.

        Raises:
            UnknownVersion: There is no such version.
            UnknownTenant: There is no such tenant, or it does not live there.
            NotKnownYet: Where the tenant lives has to be asked.
            RouterClosed: The router was closed.
        """
        if len(self.readers if read_only else self.writers) >= REMEMBERED:
            with self.guard:
                self._start_lanes_anew()
        lanes, bases, forgotten = self.readers if read_only else self.writers, self._bases, self._forgotten
        key: Key = version if tenant is None else (version, tenant)
        target = self.target(version, tenant)
        if not target.shared:
            lane = self._lane_over(target, read_only=read_only)
            if tenant is not None:
                for pool in lane.pools:
                    pool.keys.add(key)
                    pool.outdated |= pool.policy != target.policy
        else:
            like = (target.cluster.name, target.cluster.nodes, read_only)
            base = bases.get(like)
            if base is None:
                base = bases[like] = self._lane_over(target, read_only=read_only)
            lane = base.of(target, self._gate(target))
        lane.key = key
        # If servers changed since `lanes` was looked up, it is no longer in use, and neither is this lane.
        lanes[key] = lane
        if self._forgotten != forgotten:
            lanes.pop(key, None)
        return lane

    def _lane_over(self, target: Target, *, read_only: bool) -> Lane:
        # A login of a tenant's that is refused makes no difference to the lane: acquire() leaves it out for a while.
        route = self.choose(target, Request(read_only), logins=target.tenant is None)
        best = [node for node in route.nodes[: route.best] if node not in route.ask]
        pools = [self.pools.open_at_once(target, node, read_only=read_only) for node in best]
        there = tuple(pool for pool in pools if pool is not None)
        return Lane(target, there, self, read_only=read_only)

    def target(self, version: str | None, tenant: str | None) -> Target:
        """Resolve what a request names, by the settings and by what the directory has said.

        Args:
            version: The version, or an alias of it; ``None`` takes the tenant's, or the default.
            tenant: The tenant; ``None`` for none.

        Returns:
            The target.

        Raises:
            UnknownVersion: There is no such version.
            UnknownTenant: There is no such tenant, or it does not live there.
            NotKnownYet: Where the tenant lives has to be asked.
        """
        if tenant is None:
            return resolve(self.topology, version)
        key: Key = (version, tenant)
        if len(self._targets) >= REMEMBERED:
            self._targets = {}
        targets, forgotten = self._targets, self._forgotten
        target = targets.get(key) if isinstance(tenant, str) else None
        if target is None:
            home, tenancy = None, self.topology.tenancy
            if self.directory is not None and tenancy is not None:
                check_key(tenancy.pattern, tenant)
                if tenant not in tenancy.homes and (home := self.directory.known(tenant)) is None:
                    raise NotKnownYet
            target = targets[key] = resolve(self.topology, version, tenant, home)
            if self._forgotten != forgotten:  # it may be from before
                targets.pop(key, None)
        return target

    def forget(self, tenant: str | None) -> None:
        """Work out anew where a tenant lives, from its next request on.

        Args:
            tenant: The tenant; ``None`` for all of them.
        """
        with self.guard:
            self._forgotten += 1  # first: who has looked before stores nothing after this, or before what follows
            if tenant is None:
                self._targets, self._bases, self.readers, self.writers = {}, {}, {}, {}
                return
            for version in (None, *self.topology.versions, *self.topology.aliases):
                for known in (self._targets, self.readers, self.writers):
                    known.pop((version, tenant), None)

    def unlist(self, lane: Lane) -> None:
        """Keep nothing of a tenant that turned out not to be there: anybody may ask for anything.

        Args:
            lane: Its lane.
        """
        for known in (self._targets, self.readers, self.writers):
            known.pop(lane.key, None)

    def drop(self, lane: Lane) -> None:
        """Close the pools that were opened for a tenant that turned out not to be there."""
        self.unlist(lane)
        for pool in list(self.pools):
            if pool.tenant == lane.target.tenant and not pool.in_use and not pool.idle:
                self.pools.retire(pool)

    def _gate(self, target: Target) -> Gate | None:
        tenant, most = target.tenant, target.policy.max_connections
        if tenant is None or most is None:
            return None
        with self.guard:
            gate = self._gates.get(tenant)
            if gate is None:
                gate = self._gates[tenant] = Gate(most)
            elif gate.limit != most:
                gate.limit = most
            return gate

    def choose(self, target: Target, request: Request, *, prefer: Node | None = None, logins: bool = True) -> Route:
        """Choose the nodes for a request, by what is known now.

        Args:
            target: What it resolved to.
            request: What it asks for.
            prefer: A node to put first if it is among the best.
            logins: Whether it matters that a login is refused.

        Returns:
            The route.

        Raises:
            RouterClosed: The router was closed.
        """
        if self.closed:
            raise RouterClosed("the router is closed")
        pools = self.pools

        def load(node: Node) -> float:
            pool = pools.get(target, node, read_only=request.read_only)
            return 0.0 if pool is None else pool.load + FULL * pool.full

        health, now = self.known.health, monotonic()
        if target.watched is not None and target.watched is not target.cluster:
            # Nobody but requests tries a tenant's own logins: one that was refused is tried again when it is time.
            refused = [
                login
                for node in target.cluster.nodes
                for login in (node, NodeUse(node, request.read_only))
                if login in health
            ]
            again = {login for login in refused if not logins or now >= health[login].banned_until}
            health = {key: state for key, state in health.items() if key not in again} if again else health
            if target.watched.name not in self.topology.versions:  # servers of its own: looks log in as it does
                pairs = zip(target.cluster.nodes, target.watched.nodes, strict=True)
                theirs = {node: login_failure(health, seen, read_only=request.read_only) for node, seen in pairs}
                health = {**{node: login for node, login in theirs.items() if login is not None}, **health}
        return choose(target, health, request, now=now, tie_break=random(), load=load, prefer=prefer)

    def failed(self, lane: Lane, error: Unavailable) -> None:
        """Count a request that got no connection, and tell of it."""
        target, read_only, name = lane.target, lane.read_only, type(error).__name__
        what = "exhausted" if isinstance(error, PoolExhausted) else "unavailable"
        self.pools.count(what, target.cluster.name, read_only=read_only)
        if self.known.heard(RequestFailed):
            reason = str(error).replace("\n  -", ";")
            self.known.tell([RequestFailed(target.cluster.name, target.tenant, read_only, name, reason)])

    def repeated(self, pool: NodePool, tenant: str | None, error: psycopg.Error) -> None:
        """Count what is run again, and tell of it.

        Args:
            pool: Where it failed.
            tenant: Whose it is, if it is a tenant's.
            error: How it failed.
        """
        self.pools.count("repeated", pool.cluster.name, read_only=pool.read_only)
        if self.known.heard(Repeated):
            # Not its text, which may hold data.
            reason = type(error).__name__ + (f" ({error.sqlstate})" if error.sqlstate else "")
            self.known.tell([Repeated(pool.cluster.name, tenant, pool.read_only, pool.node, reason)])

    def renew(self, lane: Lane) -> None:
        """Have a lane worked out anew: one of its pools was opened after it was made."""
        cluster = lane.target.cluster
        (self.readers if lane.read_only else self.writers).pop(lane.key, None)
        self._bases.pop((cluster.name, cluster.nodes, lane.read_only), None)

    def must_see(self, target: Target, positions: Iterable[Position | None]) -> Position | None:
        """Put together what a read must see, without what is foreign to its cluster by what is known now.

        Args:
            target: Where it reads.
            positions: What it is asked to see.

        Returns:
            The latest of them; ``None`` when there is none.

        Raises:
            TokenRefused: One is foreign, and ``tokens.foreign`` is ``refuse``.
        """
        asked = [position for position in positions if position is not None]
        primary = primary_of(self.known.health, target.cluster) if asked else None
        known = UNKNOWN if primary is None else self.known.health.get(primary.server, UNKNOWN)
        seen: Position | None = None
        for position in asked:
            foreign = not same_system(known.system, position.system)
            past = position.lsn == UNSURE or position.timeline < known.timeline
            if self.topology.tokens.foreign == "refuse":
                if foreign:
                    raise TokenRefused(f"the token was made for another cluster than version {target.version!r} is now")
                if position.timeline < known.timeline:
                    raise TokenRefused(
                        f"the token is from before a failover: it is of timeline {position.timeline}, "
                        f"and version {target.version!r} is on timeline {known.timeline}"
                    )
            if foreign or (past and target.cluster.read.fallback != "primary"):
                continue  # only the primary could serve it, and must not
            seen = later(seen, position)
        return seen

    def use(self, cluster: Cluster) -> None:
        self.known.use(cluster)
        if cluster.name not in self.topology.versions:
            self._visit(cluster.name)
        if self._housekeeper is None:
            with self.guard:
                if self._housekeeper is None and not self.closed:
                    self._housekeeper = spawn(self._keep_house, "router keeps house")

    def _visit(self, name: str) -> None:
        """Watch a tenant's own servers before any pool is open there, in place of those asked for longest ago."""
        with self.guard:
            self._visited.pop(name, None)
            self._visited[name] = None
            if len(self._visited) <= VISITED:
                return
            oldest = next(iter(self._visited))
            del self._visited[oldest]
        if not any(pool.cluster.name == oldest for pool in self.pools):
            self.known.leave(oldest)

    @property
    def begun(self) -> bool:
        """Whether there is something to close."""
        return self._housekeeper is not None and not self.closed

    def _keep_house(self) -> None:
        try:
            while not self._closing.wait_for(HOUSEKEEPING):
                self._keep_house_once()
                if self.dropped and self._ended():
                    return
        finally:
            if self.dropped and not self.closed:  # its event loop ends
                self.discard()

    def _ended(self) -> bool:
        """Close it all once nobody has a connection any more; whether that is done."""
        if self.directory is not None:  # which has one
            self.directory.close(GRACE)
        if any(pool.in_use for pool in self.pools):
            return False
        self._housekeeper = None  # else it would wait for itself
        self.close(GRACE)
        return True

    def _keep_house_once(self) -> None:
        with Isolated("could not close what is not used"):
            self.pools.sweep()
        with Isolated("could not find out which connections have ended"):
            self.slots.sweep()
        with Isolated("could not ask the directory again"):
            if self.directory is not None:
                self.directory.tick(monotonic())

    def _gone(self, pool: NodePool) -> None:
        """Forget what was worked out with a pool; and the servers of a tenant's own, when it was their last pool."""
        lanes = self.readers if pool.read_only else self.writers
        if pool.tenant is None:
            self._start_lanes_anew()
        for key in list(pool.keys):
            lanes.pop(key, None)
        if pool.tenant is not None and not any(other.node == pool.node for other in self.pools):
            self.known.forget_login(pool.node)
        name = pool.cluster.name
        if name not in self.topology.versions and not any(other.cluster.name == name for other in self.pools):
            self.known.leave(name)

    def _make_room(self, taken: list[Claim], waiting: list[Claim]) -> int | None:
        limits = self.slots.limits
        index = self.pools.make_room(limits, taken, waiting)
        return self.known.monitor.make_room(limits, taken, waiting) if index is None else index

    # The end

    def close(self, timeout: float) -> int:
        """Close every pool; no further request is served.

        Args:
            timeout: The most to wait for borrowed connections to come back, in seconds.

        Returns:
            How many borrowed connections were cut because they did not come back in time.
        """
        deadline = monotonic() + timeout
        with self.guard:
            self.closed = True
            self._start_lanes_anew()
        pools = self.pools.close()
        self._closing.set()
        self.known.changed.set()
        with Isolated("could not close the directory of tenants"):
            if self.directory is not None:
                self.directory.close(GRACE)
        self.slots.close()
        cut_off = _emptied(pools, deadline)
        deadline = max(deadline, monotonic() + GRACE)
        with Isolated("could not stop looking at the servers"):
            self.known.monitor.close(max(deadline - monotonic(), 0.0))
        for pool in pools:
            with Isolated("could not close the pool to %s", pool.node):
                if not pool.closed:
                    pool.drop("")  # which psycopg_pool comes to only if its workers end as they should
                    wait_quietly(pool.close, max(deadline - monotonic(), 0.1))
            self.pools.forget(pool)
        if self._housekeeper is not None:
            join(self._housekeeper, max(deadline - monotonic(), 0.0))
        return cut_off

    def discard(self) -> int:
        """Close every connection at once, when nothing that uses them can run any more.

        Returns:
            How many of them were borrowed.
        """
        self.closed = True
        self._start_lanes_anew()
        pools = self.pools.close()
        borrowed = sum(len(pool.borrowed) for pool in pools)
        self.slots.discard()
        for pool in pools:
            pool.abandon()
        return borrowed

    def abandon(self) -> None:
        """Start anew in the child of a fork: what is open is the parent's, and is neither used nor closed here."""
        for pool in self.pools:
            pool.abandon()
        self.known.monitor.abandon()
        self._inherited = self.known  # what it holds is not to be closed by being forgotten
        self._start()


def _emptied(pools: Sequence[NodePool], deadline: float) -> int:
    """Let nobody borrow any more, wait for what is out, and cut the rest; how many that was."""
    for pool in pools:
        pool.retired = True
        pool.reroute()
    while any(pool.borrowed for pool in pools) and monotonic() < deadline:
        sleep(0.01)
        for pool in pools:
            if pool.lost:
                pool.reclaim()
    lent = [original.connection() for pool in pools for original in list(pool.borrowed)]
    cut_off = [connection for connection in lent if connection is not None]
    for connection in cut_off:
        cut(connection)
    if cut_off:
        logger.warning("closing the router cut %d connections that were still borrowed", len(cut_off))
    return len(cut_off)
