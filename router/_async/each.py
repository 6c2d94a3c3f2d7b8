"""A function called for many tenants, several at a time."""

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
"""Seconds to look up where a tenant lives, to find out only in which version."""

TURN = 0.05
"""Seconds until a tenant's connection is asked for again, when all that may be open were in use until the deadline."""


STALLED = 5.0
"""Seconds without any progress after which those who have the connections are taken for others."""


class _Progress:
    """How far all jobs together are.

    Attributes:
        holding: The tenants for whom the function runs now.
        at: When it last ended for one.
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
        function: Called with the connection and the tenant.
        tenants: The tenants, each once.
        within: Makes the block in which it is called for a tenant.
        borrow: Borrows the connection.
        jobs: For how many tenants at a time.
        stop_on_error: Whether no further tenant is begun once one has failed.

    Returns:
        What came of it.
    """
    todo, values, errors = deque(tenants), dict[str, T](), dict[str, Exception]()
    progress, around = _Progress(), taken_along()

    async def work() -> None:
        CURRENT.set(around)
        while todo:
            try:
                tenant = todo.popleft()
            except IndexError:  # another thread took the last one
                return
            try:
                with within(tenant):
                    values[tenant] = await _called(function, tenant, borrow, progress)
            except Exception as error:  # noqa: BLE001  (it is an outcome)
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
                    progress.at = monotonic()  # first: else another job may see nobody holding one, and for long
                    progress.holding.remove(tenant)
        except PoolExhausted:  # the nodes are fine: its turn will come, if it is the other jobs that have to end first
            if borrowed or (not progress.holding and monotonic() - progress.at > STALLED):
                raise
        await asleep(TURN)


async def tenants_of(in_force: AsyncInForce, tenants: str | Iterable[str] | None, version: str | None) -> list[str]:
    """Say which tenants are meant.

    Args:
        in_force: The router's.
        tenants: Their keys, or a pattern; ``None`` for all that are listed.
        version: The version in which those live who are not named by their keys; ``None`` for any.

    Returns:
        Their keys, each once.

    Raises:
        UnknownVersion: There is no such version.
        UnknownTenant: The pattern stands for nobody, or the tenants cannot be listed.
    """
    if version is not None:
        in_force.lanes.target(version, None)  # fails if there is no such version
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
    except UnknownTenant:  # it has been removed meanwhile
        return False
    except DirectoryUnavailable:  # its turn will show why
        return True
    return home is not None and lives_in(topology, version, home)
