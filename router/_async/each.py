"""Calls a function for many tenants, several at a time."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from router._runtime.calls import acall
from router._runtime.flags import asleep
from router._runtime.workers import aconcurrently
from router.context import CURRENT, taken_along
from router.core.errors import DirectoryUnavailable, PoolExhausted, UnknownTenant
from router.core.outcomes import ALL, Outcomes, needs_list, selected
from router.core.policies import PoolPolicy
from router.core.resolve import lives_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

    from router._async.checkout import AsyncCheckout
    from router._async.in_force import AsyncInForce
    from router._runtime.calls import AFunction
    from router.context import Use

T = TypeVar("T")

PATIENCE = PoolPolicy().timeout
"""The most seconds to look up a tenant's home, where only its version has to be known."""

RETRY_DELAY = 0.05
"""Seconds until a tenant's connection is requested again, if all connections were in use until the deadline."""

STALLED = 5.0
"""Seconds without progress of any job after which the connections are taken to be in use by others than these jobs."""


class _Progress:
    """The progress of all jobs together.

    Attributes:
        holding: The tenants for which the function runs now.
        at: When the function last ended for a tenant.
    """

    def __init__(self) -> None:
        self.holding: list[str] = []
        self.at = monotonic()


async def each(
    function: AFunction[[AsyncConnection[TupleRow], str], T],
    tenants: Sequence[str],
    *,
    within: Callable[[str], Use],
    borrow: Callable[[str], AsyncCheckout],
    jobs: int,
    stop_on_error: bool,
) -> Outcomes[T]:
    """Call a function for each tenant, with a connection that writes.

    Args:
        function: The function, called with the connection and the tenant.
        tenants: The tenants, each once.
        within: Makes the block in which the function is called for a tenant.
        borrow: Borrows the connection for a tenant.
        jobs: The number of tenants at a time.
        stop_on_error: Whether no further tenant is begun once one has failed.

    Returns:
        The outcome for each tenant.
    """
    todo, values, errors = deque(tenants), dict[str, T](), dict[str, Exception]()
    progress, around = _Progress(), taken_along()

    async def work() -> None:
        CURRENT.set(around)
        while todo:
            try:
                tenant = todo.popleft()
            except IndexError:  # another thread took the last tenant
                return
            try:
                with within(tenant):
                    values[tenant] = await _called(function, tenant, borrow, progress)
            except Exception as error:  # noqa: BLE001  (the error is the tenant's outcome)
                errors[tenant] = error
                if stop_on_error:
                    todo.clear()

    await aconcurrently(work, min(jobs, len(tenants)), todo.clear)
    return Outcomes(
        {tenant: values[tenant] for tenant in tenants if tenant in values},
        {tenant: errors[tenant] for tenant in tenants if tenant in errors},
        tuple(tenant for tenant in tenants if tenant not in values and tenant not in errors),
    )


async def _called(
    function: AFunction[[AsyncConnection[TupleRow], str], T],
    tenant: str,
    borrow: Callable[[str], AsyncCheckout],
    progress: _Progress,
) -> T:
    while True:
        borrowed = False
        try:
            async with borrow(tenant) as connection:
                borrowed = True
                progress.holding.append(tenant)
                try:
                    return await acall(function, connection, tenant)
                finally:
                    # In this order: otherwise another job could see an old time and no tenant in progress, and give up.
                    progress.at = monotonic()
                    progress.holding.remove(tenant)
        except PoolExhausted:  # the nodes are fine: the tenant is tried again as long as other jobs hold connections
            if borrowed or (not progress.holding and monotonic() - progress.at > STALLED):
                raise
        await asleep(RETRY_DELAY)


async def tenants_of(in_force: AsyncInForce, tenants: str | Iterable[str] | None, version: str | None) -> list[str]:
    """List the tenants that a selection stands for.

    Args:
        in_force: What is in force in the router.
        tenants: The keys of the tenants, or a pattern; ``None`` for all listed tenants.
        version: The version in which tenants selected by a pattern live; ``None`` for any.

    Returns:
        The keys, each once.

    Raises:
        UnknownVersion: There is no such version.
        UnknownTenant: The pattern matches no tenant, or the tenants cannot be listed.
    """
    if version is not None:
        in_force.lanes.target(version, None)  # raises if there is no such version
    if tenants is not None and not isinstance(tenants, str):
        return list(dict.fromkeys(tenants))
    tenancy, directory = in_force.topology.tenancy, in_force.directory
    if tenancy is None:
        raise UnknownTenant(None, "the settings have no tenants")
    pattern = ALL if tenants is None else tenants
    listed = dict.fromkeys(tenancy.homes)
    if directory is None and not listed and needs_list(pattern):
        raise UnknownTenant(None, "the settings list no tenants: name their keys")
    if directory is not None and needs_list(pattern):
        if not directory.lists:
            raise UnknownTenant(None, "the directory cannot list its tenants: give it tenants(), or name their keys")
        listed |= dict.fromkeys(await directory.tenants())
    if version is None or not needs_list(pattern):
        return selected(pattern, listed)
    return selected(pattern, [tenant for tenant in listed if await _may_live_in(in_force, version, tenant)])


async def _may_live_in(in_force: AsyncInForce, version: str, tenant: str) -> bool:
    topology, directory = in_force.topology, in_force.directory
    home = topology.tenancy.homes.get(tenant) if topology.tenancy is not None else None
    try:
        if home is None and directory is not None:
            home = await directory.find(tenant, monotonic() + PATIENCE)
    except UnknownTenant:  # the tenant has been removed meanwhile
        return False
    except DirectoryUnavailable:  # the call for this tenant will raise the reason
        return True
    return home is not None and lives_in(topology, version, home)
