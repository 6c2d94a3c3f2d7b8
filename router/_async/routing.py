"""From key to connection when none is ready, and what is learnt on the way."""

from __future__ import annotations

import logging
from random import random
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from router._async.admission import AsyncAdmission
from router._async.checkout import AsyncCheckout
from router._async.clusters import AsyncClusters
from router._async.lanes import AsyncLane, AsyncPoolSet
from router._async.monitor import AsyncMonitor
from router._async.pool.opener import AsyncOpener
from router._async.pool.registry import AsyncPools, PoolsKey
from router._async.slots import AsyncSlots
from router._observers import Observers
from router._runtime.calls import Isolated
from router._runtime.flags import AFlag, AGuard, acheck_locks, asleep
from router._runtime.sockets import cut
from router._runtime.workers import ajoin, aspawn, await_quietly
from router.core.budget import Limits
from router.core.choose import choose
from router.core.consistency import UNSURE, later
from router.core.errors import (
    PoolExhausted,
    RouterClosed,
    TokenRefused,
    Unavailable,
    UnknownTenant,
    UnknownVersion,
)
from router.core.events import Repeated, RequestFailed
from router.core.health import UNKNOWN, NodeUse, login_failure, node_state, same_system
from router.core.replication import primary_of, undecided
from router.core.resolve import check_key, resolve
from router.core.topology import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    import psycopg

    from router._async.cluster import AsyncCluster
    from router._async.directory import AsyncDirectory
    from router._async.pool.node_pool import AsyncNodePool
    from router._runtime.calls import AConfigure, APassword
    from router._runtime.workers import AWorker
    from router.core.choose import Route
    from router.core.consistency import Position
    from router.core.events import Observer
    from router.core.standing import Request
    from router.core.topology import Home, Node, Server, Target, Topology

    Key: TypeAlias = str | tuple[str | None, str] | None  # a version, or a version and a tenant

FULL = 1e9
"""The load of a pool that has none to lend or open now: more than any other's."""

GRACE = 1.0
"""Seconds that background work gets to end, although the time given for closing has passed."""

HOUSEKEEPING = 1.0
"""Seconds between two rounds in which what nobody uses any more is closed."""

REMEMBERED = 20_000
"""How many keys are remembered with what was worked out for them: where a template makes tenants, anybody may name any.
With more than that, all are worked out anew."""

logger = logging.getLogger("router")


class NotKnownYet(Exception):
    """Where a tenant lives has to be asked first."""


class AsyncRouting:
    """Everything of one router that changes: what is known, the pools, and the lanes that were worked out from both.

    Attributes:
        topology: What is configured.
        closed: Whether the router was closed.
        dropped: Whether nobody has the router any more, and it was not closed.
        directory: Says where tenants live that the settings do not list; ``None`` for nobody.
        observers: Told of events.
        clusters: The clusters in use, and what is known of their servers.
        monitor: Watches the servers.
        pools: The pools, open and draining.
        readers: The lanes for reading, by what requests name.
        writers: Those for writing.
        slots: The process's budget.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        password: APassword | None,
        configure: AConfigure | None,
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
        self.directory: AsyncDirectory | None = None
        self.observers = Observers(observers)
        self._callables = (password, configure)
        self._start()

    def _start(self) -> None:
        password, configure = self._callables
        # Replaced whole, never edited: a reader needs no guard. All are worked out from what is known and configured.
        self.readers: dict[Key, AsyncLane] = {}
        self.writers: dict[Key, AsyncLane] = {}
        self._targets: dict[Key, Target] = {}
        self._forgotten = 0  # how often forget() was called
        self._admissions: WeakValueDictionary[str, AsyncAdmission] = WeakValueDictionary()  # a lane keeps its own
        self._pool_sets: WeakValueDictionary[PoolsKey, AsyncPoolSet] = WeakValueDictionary()  # likewise
        self.guard = AGuard()  # guards the replacing of all of these, and what begins with the first request
        self.asked: set[Server] = set()  # those that a request asks now
        self._closing = AFlag()
        self._housekeeper: AWorker | None = None
        limits = Limits(self.topology.max_connections, self.topology.max_connections_per_server)
        self.slots = AsyncSlots(limits)
        self.clusters = AsyncClusters(self.topology.health, self.observers)
        self._opener = AsyncOpener(self.slots, self.clusters, password=password, configure=configure)
        self.monitor = AsyncMonitor(self.clusters, self._opener)
        self.pools = AsyncPools(self.topology.max_pools, self.topology.versions, self._opener, self.clusters)
        self.slots.sources = (self.pools, self.monitor)

    def _start_lanes_anew(self) -> None:
        self.readers, self.writers = {}, {}

    # From key to connection

    def lane(self, version: str | None, tenant: str | None = None, *, read_only: bool) -> AsyncLane:
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
            RuntimeError: Greenlets have taken the place of threads since the router was made.
        """
        acheck_locks()
        if len(self.readers if read_only else self.writers) >= REMEMBERED:
            with self.guard:
                self._start_lanes_anew()
        lanes, forgotten = self.readers if read_only else self.writers, self._forgotten
        key: Key = version if tenant is None else (version, tenant)
        target = self.target(version, tenant)
        lane = AsyncLane(target, self._pool_set(target, read_only=read_only), self._admission(target), key)
        lanes[key] = lane
        if self._forgotten != forgotten:  # it may be from before
            lanes.pop(key, None)
        return lane

    def _pool_set(self, target: Target, *, read_only: bool) -> AsyncPoolSet:
        """Find what all lanes for the same servers and use have in common, or make it."""
        if self.closed:
            raise RouterClosed("the router is closed")
        key = PoolsKey.of(target, read_only=read_only)
        with self.guard:
            pool_set = self._pool_sets.get(key)
            if pool_set is None:
                pool_set = self._pool_sets[key] = AsyncPoolSet(self, target, read_only=read_only)
        self.clusters.add_pool_set(pool_set)
        return pool_set

    @property
    def pool_sets(self) -> list[AsyncPoolSet]:
        """The pool sets that there are."""
        references = self._pool_sets.valuerefs()
        return [pool_set for reference in references if (pool_set := reference()) is not None]

    def is_unsettled(self, route: Route) -> bool:
        """Tell whether a server that was not probed yet may change what is best.

        Args:
            route: What is best now.

        Returns:
            Whether one may.
        """
        health = self.clusters.health
        if route.read_only and health.get(route.nodes[0].server, UNKNOWN).role is not Role.PRIMARY:
            return undecided(health, route.target.cluster)
        return any(node_state(health, node).up is None for node in route.target.cluster.nodes)

    def is_login_refused(self, target: Target, *, read_only: bool) -> bool:
        """Tell whether a login of a tenant's own was refused.

        Args:
            target: What its requests resolve to.
            read_only: Whether they only read.

        Returns:
            Whether one was, at any of its nodes.
        """
        health = self.clusters.health
        return target.watched is not target.cluster and any(
            node in health or NodeUse(node, read_only) in health for node in target.cluster.nodes
        )

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
                self._targets, self.readers, self.writers = {}, {}, {}
                return
            for version in (None, *self.topology.versions, *self.topology.aliases):
                for known in (self._targets, self.readers, self.writers):
                    known.pop((version, tenant), None)

    def borrow(self, version: str | None) -> AsyncCheckout:
        """Prepare to borrow a connection that writes, as a request would that names a version only.

        Args:
            version: The version.

        Returns:
            The checkout.
        """
        return AsyncCheckout(self.writers.get(version) or self.lane(version, read_only=False), None)

    async def follow_tenant(self, tenant: str, home: Home | None) -> None:
        """Drain the pools that a tenant uses no more, since it lives elsewhere by now, or nowhere.

        Args:
            tenant: The tenant.
            home: Where it lives, by what the directory says; ``None`` for nowhere.
        """
        for pool in self.pools.open_pools:
            if pool.target.tenant == tenant:
                await self._follow_home(pool, home)

    async def _follow_homes(self) -> None:
        """Do the same for all whose pools are open, even if nobody asks for them: those pools may be kept warm."""
        tenancy, directory = self.topology.tenancy, self.directory
        if tenancy is None or directory is None:
            return
        for pool in self.pools.open_pools:
            tenant = pool.target.tenant
            if tenant is not None and tenant not in tenancy.homes and pool.is_of_one_tenant:
                is_known, home = directory.confirmed(tenant)
                if is_known and (home is None or home is not pool.home):
                    await self._follow_home(pool, home)

    async def _follow_home(self, pool: AsyncNodePool, home: Home | None) -> None:
        if pool.is_of_one_tenant and not self._serves(pool, home):
            with Isolated("could not drain the pool to %s", pool.node):
                await self.pools.drain(pool)
        pool.home = home

    def _serves(self, pool: AsyncNodePool, home: Home | None) -> bool:
        """Whether requests of the tenant for which a pool was opened would still go there."""
        target = pool.target
        if home is None:
            return False
        try:
            now = resolve(self.topology, target.requested or None, target.tenant, home)
        except (UnknownTenant, UnknownVersion):
            return False
        return PoolsKey.of(now, read_only=pool.read_only) == PoolsKey.of(target, read_only=pool.read_only)

    def unlist(self, lane: AsyncLane) -> None:
        """Keep nothing of a tenant that turned out not to be there: anybody may ask for anything.

        Args:
            lane: Its lane.
        """
        for known in (self._targets, self.readers, self.writers):
            known.pop(lane.key, None)

    async def drop(self, lane: AsyncLane) -> None:
        """Close the pools that were opened for a tenant that turned out not to be there."""
        self.unlist(lane)
        for pool in list(self.pools):
            if pool.tenant == lane.target.tenant and not pool.in_use and not pool.idle:
                await self.pools.drain(pool)

    def _admission(self, target: Target) -> AsyncAdmission | None:
        tenant, most = target.tenant, target.policy.max_connections
        if not target.shared or tenant is None or most is None:
            return None
        with self.guard:
            admission = self._admissions.get(tenant)
            if admission is None:
                admission = self._admissions[tenant] = AsyncAdmission(most)
            elif admission.limit != most:
                admission.limit = most
            return admission

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
        pools = self.pools.serving(target, read_only=request.read_only)

        def load(node: Node) -> float:
            pool = pools.get(node)
            return 0.0 if pool is None else pool.load + FULL * pool.full

        health, now = self.clusters.health, monotonic()
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

    def failed(self, lane: AsyncLane, error: Unavailable) -> None:
        """Count a request that got no connection, and tell of it."""
        target, read_only, name = lane.target, lane.read_only, type(error).__name__
        what = "exhausted" if isinstance(error, PoolExhausted) else "unavailable"
        self.pools.count(what, target.cluster.name, read_only=read_only)
        if self.observers.hear_of(RequestFailed):
            reason = str(error).replace("\n  -", ";")
            self.observers.tell([RequestFailed(target.cluster.name, target.tenant, read_only, name, reason)])

    def repeated(self, pool: AsyncNodePool, tenant: str | None, error: psycopg.Error) -> None:
        """Count what is run again, and tell of it.

        Args:
            pool: Where it failed.
            tenant: Whose it is, if it is a tenant's.
            error: How it failed.
        """
        self.pools.count("repeated", pool.cluster.name, read_only=pool.read_only)
        if self.observers.hear_of(Repeated):
            # Not its text, which may hold data.
            reason = type(error).__name__ + (f" ({error.sqlstate})" if error.sqlstate else "")
            self.observers.tell([Repeated(pool.cluster.name, tenant, pool.read_only, pool.node, reason)])

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
        primary = primary_of(self.clusters.health, target.cluster) if asked else None
        known = UNKNOWN if primary is None else self.clusters.health.get(primary.server, UNKNOWN)
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

    def begin_request(self, cluster: AsyncCluster) -> None:
        """Have a cluster in use, and its servers watched, while a request looks for one of them.

        Args:
            cluster: The cluster; ``clusters.end_request()`` has to be called, unless this fails.
        """
        if not cluster.kept and self.topology.versions.get(cluster.value.name) == cluster.value:
            self.clusters.keep(cluster, kept=True)
        self.clusters.begin_request(cluster)
        try:
            self.monitor.watch(cluster)
            self._begin_housekeeping()
        except BaseException:
            self.clusters.end_request(cluster)
            raise

    def _begin_housekeeping(self) -> None:
        if self._housekeeper is None:
            with self.guard:
                if self._housekeeper is None and not self.closed:
                    self._housekeeper = aspawn(self._keep_house, "router keeps house")

    @property
    def begun(self) -> bool:
        """Whether there is something to close."""
        return self._housekeeper is not None and not self.closed

    async def _keep_house(self) -> None:
        try:
            while not await self._closing.wait_for(HOUSEKEEPING):
                await self._keep_house_once()
                if self.dropped and await self._ended():
                    return
        finally:
            if self.dropped and not self.closed:  # its event loop ends
                self.discard()

    async def _ended(self) -> bool:
        """Close it all once nobody has a connection any more; whether that is done."""
        if self.directory is not None:  # which has one
            await self.directory.close(GRACE)
        if any(pool.in_use for pool in self.pools):
            return False
        self._housekeeper = None  # else it would wait for itself
        await self.close(GRACE)
        return True

    async def _keep_house_once(self) -> None:
        with Isolated("could not close what is not used"):
            await self.pools.sweep()
        with Isolated("could not find out which connections have ended"):
            await self.slots.sweep()
        with Isolated("could not drain the pools of tenants that live elsewhere"):
            await self._follow_homes()
        with Isolated("could not forget passwords"):
            self._opener.forget_unused()
        with Isolated("could not ask the directory again"):
            if self.directory is not None:
                self.directory.tick(monotonic())

    # The end

    async def close(self, timeout: float) -> int:
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
        for pool_set in self.pool_sets:
            pool_set.invalidate()
            pool_set.line.fail(RouterClosed("the router is closed"))
        with Isolated("could not close the directory of tenants"):
            if self.directory is not None:
                await self.directory.close(GRACE)
        self.slots.close()
        cut_off = await _emptied(pools, deadline)
        deadline = max(deadline, monotonic() + GRACE)
        with Isolated("could not stop looking at the servers"):
            await self.monitor.close(max(deadline - monotonic(), 0.0))
        for pool in pools:
            with Isolated("could not close the pool to %s", pool.node):
                if not pool.closed:
                    await pool.drop("")  # which psycopg_pool comes to only if its workers end as they should
                    await await_quietly(pool.close, max(deadline - monotonic(), 0.1))
            self.clusters.remove(pool)
        if self._housekeeper is not None:
            await ajoin(self._housekeeper, max(deadline - monotonic(), 0.0))
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
        self.monitor.abandon()
        self._inherited = self.clusters, self.monitor  # what it holds is not to be closed by being forgotten
        self._start()


async def _emptied(pools: Sequence[AsyncNodePool], deadline: float) -> int:
    """Let nobody borrow any more, wait for what is out, and cut the rest; how many that was."""
    for pool in pools:
        pool.begin_draining()
    while any(pool.borrowed for pool in pools) and monotonic() < deadline:
        await asleep(0.01)
        for pool in pools:
            if pool.lost:
                await pool.reclaim()
    lent = [original.connection() for pool in pools for original in list(pool.borrowed)]
    cut_off = [connection for connection in lent if connection is not None]
    for connection in cut_off:
        cut(connection)
    if cut_off:
        logger.warning("closing the router cut %d connections that were still borrowed", len(cut_off))
    return len(cut_off)
