"""The registry of pools: a pool opens at its first use, and drains when it is unused for long or others need room."""

from __future__ import annotations

from collections import Counter, OrderedDict
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, Protocol
from weakref import ref

from router._async.pool.node_pool import AsyncNodePool
from router._async.pool.shared_pool import AsyncSharedPool
from router._runtime.calls import Isolated, ashielded
from router._runtime.flags import AGuard
from router._runtime.workers import await_quietly
from router.core.errors import RouterClosed
from router.core.events import PoolOpened
from router.core.measures import Totals
from router.core.policies import TenantPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import TypeAlias

    from router._async.clusters import AsyncClusters
    from router._async.pool.counts import Counts
    from router._async.pool.opener import AsyncOpener
    from router.core.topology import Cluster, Node, Target

    Use: TypeAlias = tuple[str | None, bool]  # a version, none for tenants' own servers; whether it is for reading

    class AsyncPoolRequest(Protocol):
        """A request that cannot open its pool because there are too many pools."""

        def wake_for_room(self) -> bool:
            """Wake the request to try again; returns whether it still waits."""


class PoolsKey(NamedTuple):
    """The key of the pools of a target: other nodes, other policies or another tenant have other pools.

    Attributes:
        cluster: The cluster, as the pools connect to it.
        tenant: The tenant; ``None`` for the pools of a version, and for those that tenants share.
        policy: How that tenant is separated from others.
        shared: Whether tenants share the pools.
        read_only: Whether the pools are for reading.
    """

    cluster: Cluster
    tenant: str | None
    policy: TenantPolicy
    shared: bool
    read_only: bool

    @classmethod
    def of(cls, target: Target, *, read_only: bool) -> PoolsKey:
        """Make the key of the pools that serve a target.

        Args:
            target: The target.
            read_only: Whether they are for reading.

        Returns:
            The key.
        """
        if target.shared:
            return cls(target.cluster, None, TenantPolicy(), target.shared, read_only)
        return cls(target.cluster, target.tenant, target.policy, target.shared, read_only)


class AsyncPools:
    """The pools of a router.

    A pool is open or draining. :meth:`get` finds open pools only. A draining pool lends nothing, but is treated like
    any other pool in every other way until its last connection has been returned: iteration gives both kinds.

    Attributes:
        closed: Whether no pool may be opened any more.
        waiting: The requests that wait for room for one more pool, in order of arrival.
    """

    def __init__(
        self,
        most: int,
        versions: Iterable[str],
        opener: AsyncOpener,
        clusters: AsyncClusters,
    ) -> None:
        """Begin without pools.

        Args:
            most: The most pools that may be open.
            versions: The versions whose requests are counted separately.
            opener: Opens the pools' connections.
            clusters: The clusters in use, which all pools belong to.
        """
        self.closed = False
        self._most = most
        self._opener = opener
        self._clusters = clusters
        self._guard = AGuard()  # guards the changes of _open, _totals, _counts
        self._open: dict[PoolsKey, dict[Node, AsyncNodePool]] = {}  # both levels are replaced, never changed
        uses: list[Use] = [(version, read_only) for version in versions for read_only in (True, False)]
        self._totals = {use: Counter[str]() for use in uses}
        self._counts: list[tuple[ref[AsyncNodePool], Use, Counts]] = []  # of the pools that still exist, open or not
        self.waiting: OrderedDict[AsyncPoolRequest, None] = OrderedDict()

    def __iter__(self) -> Iterator[AsyncNodePool]:
        """Iterate over all pools, open or draining."""
        return (pool for cluster in self._clusters for pool in cluster.pools)

    def allow(self, most: int, versions: Iterable[str]) -> None:
        """Change the limit, and the versions that are counted.

        Args:
            most: The most pools that may be open; surplus pools drain once they are unused.
            versions: The versions whose requests are counted separately; the counters of other versions are kept.
        """
        with self._guard:
            self._most = most
            for version in versions:
                for read_only in (True, False):
                    self._totals.setdefault((version, read_only), Counter())
        self.note_unused()

    def serving(self, target: Target, *, read_only: bool) -> Mapping[Node, AsyncNodePool]:
        """Find the open pools for a target.

        Args:
            target: The target that they serve.
            read_only: Whether they are for reading.

        Returns:
            The pools, by node.
        """
        return self._open.get(PoolsKey.of(target, read_only=read_only), {})

    def get(self, target: Target, node: Node, *, read_only: bool) -> AsyncNodePool | None:
        """Find a pool.

        Args:
            target: The target that it serves.
            node: The node that it connects to.
            read_only: Whether it is for reading.

        Returns:
            The pool; ``None`` if it is not open.
        """
        return self.serving(target, read_only=read_only).get(node)

    def open_at_once(
        self, target: Target, node: Node, *, read_only: bool, wants: AsyncPoolRequest
    ) -> AsyncNodePool | None:
        """Find a pool, or open it if there is room for one more and no earlier request waits for that room.

        Args:
            target: The target that it serves.
            node: The node that it connects to.
            read_only: Whether it is for reading.
            wants: The request for the pool.

        Returns:
            The pool; ``None`` if another pool has to be closed first.

        Raises:
            RouterClosed: The router was closed.
        """
        pool = self.get(target, node, read_only=read_only)
        if pool is not None:
            return pool
        watched = self._clusters.of(target.watched or target.cluster)
        with self._guard:
            if self.closed:
                raise RouterClosed("the router is closed")
            if (pool := self.get(target, node, read_only=read_only)) is not None:
                return pool
            if self._number >= self._most or not self._is_first(wants):
                return None
            self.waiting.pop(wants, None)
            kind = AsyncSharedPool if target.shared else AsyncNodePool
            pool = kind(node, target, watched, self._opener, read_only=read_only)
            key = PoolsKey.of(target, read_only=read_only)
            self._open = {**self._open, key: {**self._open.get(key, {}), node: pool}}
            self._counts.append((ref(pool), self._use(pool.cluster.name, read_only=read_only), pool.counts))
            self._clusters.add(pool)
        self._clusters.observers.emit([PoolOpened(pool.cluster.name, node, read_only, pool.tenant)])
        if self.waiting and self._number < self._most:
            self.note_unused()
        return pool

    async def find_room(self, wants: AsyncPoolRequest) -> bool:
        """Drain the pool that has been unused longest, for a request that needs room; else the request waits.

        Args:
            wants: The request. It is woken when there may be room, in order of arrival, until it has opened a pool.

        Returns:
            Whether there is room now.
        """
        with self._guard:
            self.waiting.setdefault(wants)
        while not self._is_first(wants):
            first = next(iter(list(self.waiting)), None)  # of a copy, since another thread may change it
            if first is None or first.wake_for_room():
                return False
            self.waiting.pop(first, None)  # that request does not wait any more
        return self._number < self._most or await self._close_one()

    def note_unused(self) -> None:
        """Wake the first request that waits for room: a pool has become unused, or has gone."""
        for wants in list(self.waiting):
            if wants.wake_for_room():
                return
            self.waiting.pop(wants, None)

    def _is_first(self, wants: AsyncPoolRequest | None) -> bool:
        return next(iter(list(self.waiting)), wants) is wants  # of a copy, as above

    async def sweep(self) -> None:
        """Drain the pools that have been unused for long, and open connections for ``min_size`` in the others."""
        now = monotonic()
        with self._guard:
            self._add_up()
        for pool in list(self):
            with Isolated("could not do the housekeeping of the pool to %s", pool.node):
                await pool.closer.reclaim()
                await pool.opening.keep_warm()
                pool.end_draining()
                if not pool.in_use and not pool.min_size and now - pool.used_at > pool.cluster.pool.max_unused:
                    await self.drain(pool)

    async def drain(self, pool: AsyncNodePool) -> None:
        """Drain a pool: it lends no more connections, and is removed when its last connection has been returned.

        Requests that wait for it choose another pool, and its idle connections are closed at once. A block that has one
        of its connections keeps it to the block's end, or, as in any other pool, until the server is fenced or silent
        for too long.

        Args:
            pool: The pool.
        """
        with self._guard:
            self._leave_out(pool)
        await self._drain(pool)

    @ashielded
    async def _drain(self, pool: AsyncNodePool) -> None:
        with Isolated("could not remove the pool to %s from the lanes", pool.node):
            if (line := pool.line) is not None:  # the requests that wait for it choose another pool
                line.owner.invalidate()
        with Isolated("could not close the idle connections of the pool to %s", pool.node):
            await pool.closer.empty()
        with Isolated("could not close the pool to %s", pool.node):
            if not pool.closed:
                await await_quietly(pool.opening.stop, 1.0)
        pool.end_draining()
        self.note_unused()

    def _leave_out(self, pool: AsyncNodePool) -> None:
        """Remove a pool from the open ones. Called under the guard."""
        pool.begin_draining()
        key = PoolsKey.of(pool.target, read_only=pool.read_only)
        left = {node: other for node, other in self._open.get(key, {}).items() if other is not pool}
        self._open = {**self._open, key: left}
        if not left:
            del self._open[key]

    @property
    def _number(self) -> int:
        """The number of open pools."""
        return sum(map(len, self._open.values()))

    @property
    def open_pools(self) -> list[AsyncNodePool]:
        """The open pools."""
        return [pool for pools in self._open.values() for pool in pools.values()]

    def count(self, what: str, version: str, *, read_only: bool) -> None:
        """Increment a counter of the totals.

        Args:
            what: The counter, an attribute of :class:`~router.core.measures.Totals`.
            version: The version, or the name of a tenant's own cluster.
            read_only: Whether the request was for reading.
        """
        with self._guard:
            self._totals.setdefault(self._use(version, read_only=read_only), Counter())[what] += 1

    def totals(self) -> tuple[Totals, ...]:
        """Return the counters, by version and use."""
        with self._guard:
            self._add_up()
            totals = {use: counted.copy() for use, counted in self._totals.items()}
            for _, use, counts in self._counts:
                totals.setdefault(use, Counter()).update(counts.measured())
        return tuple(
            Totals(version, read_only, wait_seconds=counted.pop("wait_ms", 0) / 1000.0, **counted)
            for (version, read_only), counted in totals.items()
        )

    @property
    def counted(self) -> int:
        """For how many pools, open or gone, counters are kept."""
        return len(self._counts)

    def _add_up(self) -> None:
        """Add the counters of pools that were garbage-collected: no other pool's are final. Called under the guard."""
        there = []
        for entry in self._counts:
            pool, use, counts = entry
            if pool() is None:
                self._totals.setdefault(use, Counter()).update(counts.measured())
            else:
                there.append(entry)
        self._counts = there

    def _use(self, version: str, *, read_only: bool) -> Use:
        known = (version, read_only) in self._totals
        return version if known else None, read_only

    def close(self) -> list[AsyncNodePool]:
        """Refuse to open pools from now on.

        Returns:
            All pools, which the caller has to close.
        """
        with self._guard:
            self.closed = True
            return list(self)

    async def _close_one(self) -> bool:
        unused = [pool for pool in self.open_pools if not pool.in_use]
        pool = min(unused, key=lambda pool: (bool(pool.min_size), bool(pool.idle), pool.used_at), default=None)
        if pool is None:
            return False
        await self.drain(pool)
        return True
