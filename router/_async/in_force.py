"""What is in force in a router: its one mutable reference."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from router._async.checkout import AsyncCheckout
from router._async.clusters import AsyncClusters
from router._async.lane_table import AsyncLaneTable
from router._async.monitor import AsyncMonitor
from router._async.pool.opener import AsyncOpener
from router._async.pool.registry import AsyncPools
from router._async.routes import AsyncRoutes
from router._async.slots import AsyncSlots
from router._observers import Observers
from router._runtime.calls import Isolated
from router._runtime.flags import AFlag, AGuard, asleep
from router._runtime.sockets import cut
from router._runtime.workers import ajoin, aspawn, await_quietly
from router.core.budget import Limits
from router.core.errors import RouterClosed
from router.core.plan import serves

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router._async.cluster import AsyncCluster
    from router._async.directory import AsyncDirectory
    from router._async.pool.node_pool import AsyncNodePool
    from router._runtime.calls import AConfigure, APassword
    from router._runtime.workers import AWorker
    from router.core.events import Observer
    from router.core.plan import Plan
    from router.core.topology import Home, Server, Target, Topology

GRACE = 1.0
"""Seconds that background work has to end, even if the timeout of ``close()`` has passed."""

HOUSEKEEPING = 1.0
"""Seconds between two rounds of housekeeping."""

logger = logging.getLogger("router")


class AsyncInForce:
    """The owner of everything in a router that changes.

    Attributes:
        topology: The topology in force; replaced, not changed.
        closed: Whether the router was closed.
        dropped: Whether nothing refers to the router any more, although it was not closed.
        directory: Tells where tenants live that the settings do not list; ``None`` for none.
        observers: Receive the events.
        slots: The process's budget.
        clusters: The clusters in use, and the health of their servers.
        monitor: The watchers of the servers.
        opener: Opens connections.
        pools: The pools, open and draining.
        lanes: The lanes, by the keys that requests name.
        routes: Chooses the nodes for requests.
        guard: Guards ``asked``, the replacing of the topology, and the start of housekeeping.
        asked: The servers that some request is asking now how far they have replayed.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        password: APassword | None,
        configure: AConfigure | None,
        observers: Sequence[Observer],
    ) -> None:
        """Put a topology in force; nothing is opened yet.

        Args:
            topology: The topology.
            password: Returns the password of a node.
            configure: Called with each new connection.
            observers: Called with each event.
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
        self.guard = AGuard()
        self.asked: set[Server] = set()
        self._closing = AFlag()
        self._housekeeper: AWorker | None = None
        self.slots = AsyncSlots(_limits(self.topology))
        self.clusters = AsyncClusters(self.topology.health, self.observers)
        self.opener = AsyncOpener(self.slots, self.clusters, password=password, configure=configure)
        self.monitor = AsyncMonitor(self.clusters, self.opener)
        self.pools = AsyncPools(self.topology.max_pools, self.topology.versions, self.opener, self.clusters)
        self.slots.eviction.sources = (self.pools, self.monitor)
        self.lanes = AsyncLaneTable(self)
        self.routes = AsyncRoutes(self)

    def borrow(self, version: str | None) -> AsyncCheckout:
        """Make the checkout of a connection that writes, for a version and no tenant.

        Args:
            version: The version.

        Returns:
            The checkout.
        """
        return AsyncCheckout(self.lanes.find(version, None, read_only=False), None)

    # Change

    async def apply(self, plan: Plan) -> None:
        """Put another topology in force.

        Pools of clusters that are equal by value are not touched: requests from before and after share them. The order
        of the steps makes sure that no request fails, and that no pool of a cluster that is removed stays open:

        1. Under the guard, the topology is replaced and all lanes are forgotten. A request that looks up a lane from
           now on gets a new one; a request that has read the old topology before stores no lane.
        2. The pool sets that serve no request any more are superseded. From then on, none of them opens a pool; the
           requests that wait in their lines, and those that hold an old lane, look up their lanes again.
        3. The pools that serve no request any more drain. This comes after step 2: otherwise a pool set that is still
           in use would open other pools in their place.
        4. A pool that was opened during step 2 by a request that did not see it yet is drained by housekeeping, which
           repeats steps 2 and 3.

        Args:
            plan: The change; its ``before`` is the topology in force.

        Raises:
            RouterClosed: The router was closed.
        """
        with self.guard:
            if self.closed:
                raise RouterClosed("the router is closed")
            self.topology = plan.after
            self.lanes.forget(None)
        for cluster in self.clusters:
            if cluster.kept and not self._is_version(cluster):
                self.clusters.keep(cluster, kept=False)
        self.clusters.policy = plan.after.health
        self.pools.allow(plan.after.max_pools, plan.after.versions)
        self.slots.allow(_limits(plan.after))
        for pool_set in self.lanes.pool_sets:
            if not self._serves(pool_set.target):
                pool_set.supersede()
        await self._drain_superseded()
        if self.directory is not None and self.directory.table is not None:
            self.directory.table.leave_draining()

    def forget(self, tenant: str | None) -> None:
        """Forget the lanes of a tenant, so that its next request looks up where it lives.

        Args:
            tenant: The tenant; ``None`` for all of them.
        """
        self.lanes.forget(tenant)

    async def follow_tenant(self, tenant: str, home: Home | None) -> None:
        """Drain the pools of a tenant that has moved, or was removed.

        Args:
            tenant: The tenant.
            home: Where it lives, by the directory; ``None`` if it was removed.
        """
        for pool_set in self.lanes.pool_sets:
            if pool_set.target.tenant == tenant and not serves(self.topology, pool_set.target, home, listed=False):
                pool_set.supersede()
        for pool in self.pools.open_pools:
            if pool.target.tenant == tenant and not serves(self.topology, pool.target, home, listed=False):
                await self.pools.drain(pool)

    async def _drain_superseded(self) -> None:
        """Drain the pools that requests would not use any more.

        A tenant with pools of its own counts as in use: the directory is asked for it again when that is due, even if
        no request names it, because its pools may be kept open by ``min_size``.
        """
        for pool in self.pools.open_pools:
            if pool.target.tenant is not None and self.directory is not None:
                self.directory.confirm(pool.target.tenant)
            if not self._serves(pool.target):
                for pool_set in self.lanes.pool_sets:
                    if pool in pool_set.pools:
                        pool_set.supersede()
                await self.pools.drain(pool)

    def _serves(self, target: Target) -> bool:
        """Whether requests would still use a pool that was opened for a target, by what is known now."""
        tenancy, directory, tenant = self.topology.tenancy, self.directory, target.tenant
        if tenant is None or tenancy is None or directory is None or tenant in tenancy.homes:
            return serves(self.topology, target, None, listed=True)
        known, home = directory.peek(tenant)
        if not known:  # the directory is being asked; until then, a pool on the servers of a version in force stays
            return (target.watched or target.cluster) in self.topology.versions.values() or home is not None
        return serves(self.topology, target, home, listed=False)

    def begin_request(self, cluster: AsyncCluster) -> None:
        """Put a cluster in use, and have its servers watched, while a request looks for one of them.

        Args:
            cluster: The cluster; ``clusters.end_request()`` has to be called, unless this fails.
        """
        if not cluster.kept and self._is_version(cluster):
            self.clusters.keep(cluster, kept=True)
        self.clusters.begin_request(cluster)
        try:
            self.monitor.watch(cluster)
            self._begin_housekeeping()
            cluster.stays_in_use = cluster.kept
        except BaseException:
            self.clusters.end_request(cluster)
            raise

    def _is_version(self, cluster: AsyncCluster) -> bool:
        return self.topology.versions.get(cluster.value.name) == cluster.value

    def _begin_housekeeping(self) -> None:
        if self._housekeeper is None:
            with self.guard:
                if self._housekeeper is None and not self.closed:
                    self._housekeeper = aspawn(self._run_housekeeping, "router housekeeping")

    @property
    def begun(self) -> bool:
        """Whether anything was opened that has to be closed."""
        return self._housekeeper is not None and not self.closed

    async def _run_housekeeping(self) -> None:
        try:
            while not await self._closing.wait_for(HOUSEKEEPING):
                await self._do_housekeeping()
                if self.dropped and await self._ended():
                    return
        finally:
            if self.dropped and not self.closed:  # the event loop is ending
                self.discard()

    async def _ended(self) -> bool:
        """Close everything if no request has a connection any more; return whether that was done."""
        if self.directory is not None:  # its listener has a connection
            await self.directory.close(GRACE)
        if any(pool.in_use for pool in self.pools):
            return False
        self._housekeeper = None  # otherwise close() would wait for this task or thread itself
        await self.close(GRACE)
        return True

    async def _do_housekeeping(self) -> None:
        with Isolated("could not close unused pools"):
            await self.pools.sweep()
        with Isolated("could not find connections that were lost"):
            await self.slots.sweep()
        with Isolated("could not drain superseded pools"):
            await self._drain_superseded()
        with Isolated("could not forget old passwords"):
            self.opener.login.forget_unused(self.clusters)
        with Isolated("could not refresh the directory"):
            if self.directory is not None:
                self.directory.tick(monotonic())

    # Closing

    async def close(self, timeout: float) -> int:
        """Close every pool; the router serves no further request.

        Args:
            timeout: The most seconds to wait until borrowed connections are returned.

        Returns:
            How many borrowed connections were cut because they were not returned in time.
        """
        deadline = monotonic() + timeout
        with self.guard:
            self.closed = True
            self.lanes.clear()
        pools = self.pools.close()
        self._closing.set()
        for pool_set in self.lanes.pool_sets:
            pool_set.invalidate()
            pool_set.line.fail(RouterClosed("the router is closed"))
        with Isolated("could not close the directory of tenants"):
            if self.directory is not None:
                await self.directory.close(GRACE)
        self.slots.close()
        cut_off = await _emptied(pools, deadline)
        deadline = max(deadline, monotonic() + GRACE)
        with Isolated("could not stop the watchers"):
            await self.monitor.close(max(deadline - monotonic(), 0.0))
        for pool in pools:
            with Isolated("could not close the pool to %s", pool.node):
                if not pool.closed:
                    await pool.closer.drop("")  # psycopg_pool does this only if its workers end in time
                    await await_quietly(pool.opening.stop, max(deadline - monotonic(), 0.1))
            self.clusters.remove(pool)
        if self._housekeeper is not None:
            await ajoin(self._housekeeper, max(deadline - monotonic(), 0.0))
        return cut_off

    def discard(self) -> int:
        """Close every connection at once, when no code that uses them can run any more.

        Returns:
            How many of them were borrowed.
        """
        self.closed = True
        self.lanes.clear()
        pools = self.pools.close()
        borrowed = sum(len(pool.borrowed) for pool in pools)
        self.slots.discard()
        for pool in pools:
            pool.abandon()
        return borrowed

    def abandon(self) -> None:
        """Reset the router in the child of a fork; the parent's connections are neither used nor closed here."""
        for pool in self.pools:
            pool.abandon()
            pool.sessions.refuse_use()
        self.monitor.abandon()
        self._inherited = self.clusters, self.monitor  # keeps the parent's connections from being collected, and closed
        self._start()


def _limits(topology: Topology) -> Limits:
    return Limits(topology.max_connections, topology.max_connections_per_server)


async def _emptied(pools: Sequence[AsyncNodePool], deadline: float) -> int:
    """Drain pools until the deadline, and cut the connections that are still borrowed; return how many those are."""
    for pool in pools:
        pool.begin_draining()
    while any(pool.borrowed for pool in pools) and monotonic() < deadline:
        await asleep(0.01)
        for pool in pools:
            if pool.sessions.lost:
                await pool.closer.reclaim()
    cut_off = [session for pool in pools for session in list(pool.borrowed) if not session.dropped]
    for session in cut_off:
        cut(session)
    if cut_off:
        logger.warning("closing the router cut connections that were still borrowed: %d", len(cut_off))
    return len(cut_off)
