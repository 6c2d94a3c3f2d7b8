"""The lanes by the keys that requests name, and the targets of keys that were resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from router._async.admission import AsyncAdmission
from router._async.lane import AsyncLane
from router._async.pool.registry import PoolsKey
from router._async.pool_set import AsyncPoolSet
from router._runtime.flags import AGuard, acheck_locks
from router.core.errors import NoPrimary, NoReplica, RouterClosed
from router.core.resolve import check_key, resolve

if TYPE_CHECKING:
    from typing import TypeAlias

    from router._async.in_force import AsyncInForce
    from router.core.errors import Unavailable
    from router.core.topology import Target

    Key: TypeAlias = str | tuple[str | None, str] | None  # a version, or a version and a tenant

REMEMBERED = 20_000
"""The most keys that are remembered with their lanes and targets: where a template makes tenants, requests may name any
number of keys. Beyond that, all are forgotten, and worked out again."""


class DirectoryLookupNeeded(Exception):
    """Where a tenant lives has to be asked first."""


class AsyncLaneTable:
    """The lanes, by what requests name: worked out from the topology in force, and from what the directory has said.

    Attributes:
        readers: The lanes for reading; replaced whole when all are worked out anew, so that a hit needs no guard.
        writers: Those for writing, likewise.
    """

    def __init__(self, in_force: AsyncInForce) -> None:
        """Begin with none.

        Args:
            in_force: What they are worked out from.
        """
        self._in_force = in_force
        self.readers: dict[Key, AsyncLane] = {}
        self.writers: dict[Key, AsyncLane] = {}
        self.targets: dict[Key, Target] = {}
        self._forgotten = 0  # how often forget() was called
        self._admissions: WeakValueDictionary[str, AsyncAdmission] = WeakValueDictionary()  # a lane keeps its own
        self._pool_sets: WeakValueDictionary[PoolsKey, AsyncPoolSet] = WeakValueDictionary()  # likewise
        self._guard = AGuard()  # guards the replacing of all of these

    def clear(self) -> None:
        """Forget all lanes, so that they are made again."""
        self.readers, self.writers = {}, {}

    def find(self, version: str | None, tenant: str | None, *, read_only: bool) -> AsyncLane:
        """Find the lane for a key, or make it.

        Args:
            version: As for :meth:`lane`.
            tenant: As for :meth:`lane`.
            read_only: As for :meth:`lane`.

        Returns:
            The lane.

        Raises:
            LookupError: As for :meth:`lane`.
            DirectoryLookupNeeded: As for :meth:`lane`.
            RouterClosed: As for :meth:`lane`.
        """
        lanes = self.readers if read_only else self.writers
        lane = lanes.get(version if tenant is None else (version, tenant)) if isinstance(tenant, str | None) else None
        return self.lane(version, tenant, read_only=read_only) if lane is None else lane

    def lane(self, version: str | None, tenant: str | None = None, *, read_only: bool) -> AsyncLane:
        """Make the lane for a key.

        Args:
            version: The version, or an alias of it; ``None`` takes the tenant's, or the default.
            tenant: The tenant; ``None`` for none.
            read_only: Whether it is for reading.

        Returns:
            The lane, which serves the key until something changes.

        Raises:
            UnknownVersion: There is no such version.
            UnknownTenant: There is no such tenant, or it does not live there.
            DirectoryLookupNeeded: The directory has to be asked first.
            RouterClosed: The router was closed.
            RuntimeError: Greenlets have replaced threads since the router was made.
        """
        acheck_locks()
        if len(self.readers if read_only else self.writers) >= REMEMBERED:
            with self._guard:
                self.clear()
        lanes, forgotten = self.readers if read_only else self.writers, self._forgotten
        key: Key = version if tenant is None else (version, tenant)
        target = self.target(version, tenant)
        lane = AsyncLane(target, self._pool_set(target, read_only=read_only), self._admission(target), key)
        lanes[key] = lane
        if self._forgotten != forgotten:  # it may be from before
            lanes.pop(key, None)
        return lane

    def target(self, version: str | None, tenant: str | None) -> Target:
        """Resolve the version and tenant of a request, by the settings and the directory's answers.

        Args:
            version: The version, or an alias of it; ``None`` takes the tenant's, or the default.
            tenant: The tenant; ``None`` for none.

        Returns:
            The target.

        Raises:
            UnknownVersion: There is no such version.
            UnknownTenant: There is no such tenant, or it does not live there.
            DirectoryLookupNeeded: The directory has to be asked first.
        """
        if tenant is None:
            return resolve(self._in_force.topology, version)
        key: Key = (version, tenant)
        if len(self.targets) >= REMEMBERED:
            self.targets = {}
        targets, forgotten = self.targets, self._forgotten
        target = targets.get(key) if isinstance(tenant, str) else None
        if target is None:
            home, tenancy = None, self._in_force.topology.tenancy
            if self._in_force.directory is not None and tenancy is not None:
                check_key(tenancy.pattern, tenant)
                if tenant not in tenancy.homes and (home := self._in_force.directory.known(tenant)) is None:
                    raise DirectoryLookupNeeded
            target = targets[key] = resolve(self._in_force.topology, version, tenant, home)
            if self._forgotten != forgotten:  # it may be from before
                targets.pop(key, None)
        return target

    def _pool_set(self, target: Target, *, read_only: bool) -> AsyncPoolSet:
        """Find the pool set that all lanes for the same servers and use share, or make it."""
        if self._in_force.closed:
            raise RouterClosed("the router is closed")
        key = PoolsKey.of(target, read_only=read_only)
        with self._guard:
            pool_set = self._pool_sets.get(key)
            if pool_set is None or pool_set.is_superseded:
                pool_set = self._pool_sets[key] = AsyncPoolSet(self._in_force, target, read_only=read_only)
        self._in_force.clusters.add_pool_set(pool_set)
        return pool_set

    @property
    def pool_sets(self) -> list[AsyncPoolSet]:
        """All pool sets."""
        references = self._pool_sets.valuerefs()
        return [pool_set for reference in references if (pool_set := reference()) is not None]

    @property
    def admissions(self) -> dict[str, AsyncAdmission]:
        """The limits of tenants that are in use, by tenant."""
        return dict(self._admissions)

    def _admission(self, target: Target) -> AsyncAdmission | None:
        tenant, most = target.tenant, target.policy.max_connections
        if not target.shared or tenant is None or most is None:
            return None
        with self._guard:
            admission = self._admissions.get(tenant)
            if admission is None:
                admission = self._admissions[tenant] = AsyncAdmission(most)
            elif admission.limit != most:
                admission.limit = most
            return admission

    def forget(self, tenant: str | None) -> None:
        """Forget the lanes of a tenant, so that its next request looks up where it lives.

        Args:
            tenant: The tenant; ``None`` for all of them.
        """
        with self._guard:
            self._forgotten += 1  # first: a request that has read the former home removes the lane that it stores
            if tenant is None:
                self.targets, self.readers, self.writers = {}, {}, {}
                return
            for version in (None, *self._in_force.topology.versions, *self._in_force.topology.aliases):
                for known in (self.targets, self.readers, self.writers):
                    known.pop((version, tenant), None)

    def unlist(self, lane: AsyncLane) -> None:
        """Forget the lane of a tenant that does not exist: requests may name any key.

        Args:
            lane: The lane.
        """
        for known in (self.targets, self.readers, self.writers):
            known.pop(lane.key, None)

    async def successor(self, lane: AsyncLane, deadline: float) -> AsyncLane:
        """Find the lane that requests for a key use now, for a request that holds an old one.

        Args:
            lane: The old lane.
            deadline: Until when, on the monotonic clock.

        Returns:
            The lane.

        Raises:
            UnknownVersion: The version does not exist any more.
            UnknownTenant: The tenant does not exist any more, or does not live there.
            DirectoryUnavailable: The directory cannot say where the tenant lives.
            Unavailable: The tenant is separated in another way by now, for which the checkout was not made.
            RouterClosed: The router was closed.
        """
        version, tenant = lane.key if isinstance(lane.key, tuple) else (lane.key, None)
        while True:
            try:
                found = self.lane(version, tenant, read_only=lane.read_only)
                break
            except DirectoryLookupNeeded:
                if self._in_force.directory is None:
                    raise
                await self._in_force.directory.find(str(tenant), deadline)
        if (found.target.scope is None) is not (lane.target.scope is None):
            kind: type[Unavailable] = NoReplica if lane.read_only else NoPrimary
            raise kind(
                f"tenant {tenant!r} is separated in another way since connection() was called: call it again",
                version=lane.target.requested,
                tenant=tenant,
            )
        return found

    async def drop(self, lane: AsyncLane) -> None:
        """Drain the pools that were opened for a tenant that does not exist."""
        self.unlist(lane)
        for pool in list(self._in_force.pools):
            if pool.tenant == lane.target.tenant and not pool.in_use and not pool.idle:
                await self._in_force.pools.drain(pool)
