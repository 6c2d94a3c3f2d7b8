"""The process-wide async routers: one for each event loop, made at its first use there and closed with the loop.

::

    import router
    async with router.aio.connection(version="v2") as conn: ...
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from router._async.router import AsyncRouter
from router._loops import close_here, here, replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg import AsyncConnection
    from psycopg.abc import Params, QueryNoTemplate
    from psycopg.rows import TupleRow

    from router._async.checkout import AsyncCheckout
    from router._runtime.calls import AConfigure, AFunction, APassword, ASource
    from router.context import Use
    from router.core.choose import Route
    from router.core.events import Observer
    from router.core.measures import Stats
    from router.core.outcomes import Outcomes
    from router.core.result import Result
    from router.sessions import Session
    from router.settings import RouterSettings

T = TypeVar("T")


def configure(
    settings: RouterSettings | None = None,
    *,
    password: APassword | None = None,
    configure: AConfigure | None = None,
    directory: ASource | None = None,
    observers: Sequence[Observer] = (),
) -> None:
    """Set what the routers of all loops are made from; those in use are closed by their loops.

    Args:
        settings: What to route to; ``None`` reads the environment.
        password: As for :class:`AsyncRouter`.
        configure: As for :class:`AsyncRouter`.
        directory: As for :class:`AsyncRouter`.
        observers: As for :class:`AsyncRouter`.

    Raises:
        ConfigError: The settings are wrong; the routers in use stay.
    """
    make = partial(
        AsyncRouter, settings, password=password, configure=configure, directory=directory, observers=observers
    )
    make()
    replace(make)


def connection(
    *,
    version: str | None = None,
    tenant: str | None = None,
    read_only: bool = False,
    max_lag: float | None = None,
    after: str | None = None,
    timeout: float | None = None,
) -> AsyncCheckout:
    """Borrow a connection from this loop's router, as :meth:`AsyncRouter.connection` does.

    Args:
        version: As for :meth:`AsyncRouter.connection`.
        tenant: As for :meth:`AsyncRouter.connection`.
        read_only: Whether the block only reads.
        max_lag: For a read, the most seconds that a replica may be behind; ``None`` takes ``read.max_lag``.
        after: For a read, the token of a session whose writes it must see.
        timeout: Seconds for choosing, connecting and waiting together; ``None`` takes ``pool.timeout``.

    Returns:
        An async context manager that gives a :class:`psycopg.AsyncConnection`.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownVersion: There is no such version, or none was named and there is no default.
        UnknownTenant: There is no such tenant, or it does not live in that version.
        Unavailable: On entering the block: no connection could be had in time; its subclasses say why.
    """
    return here().connection(
        version=version, tenant=tenant, read_only=read_only, max_lag=max_lag, after=after, timeout=timeout
    )


def session(token: str | None = None) -> Session:
    """Make the reads of this task see what it writes, as :meth:`AsyncRouter.session` does.

    Args:
        token: What an earlier session handed on; ``None`` or empty for nothing.

    Returns:
        A context manager, plain and not async, that gives the :class:`Session`.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        TokenRefused: The token is a foreign one, and ``tokens.foreign`` is ``refuse``.
    """
    return here().session(token)


def use(*, tenant: str | None = None, version: str | None = None, lock: bool = False) -> Use:
    """Name the tenant and the version of this task's requests, for the length of a block: :meth:`AsyncRouter.use`.

    Args:
        tenant: The tenant; ``None`` leaves that to the block around it.
        version: The version, or an alias of it; ``None`` leaves that to the block around it.
        lock: Whether naming another tenant inside is an error.

    Returns:
        A context manager, plain and not async.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownTenant: What was named is no tenant's key; or nothing was named, neither tenant nor version nor lock.
    """
    return here().use(tenant=tenant, version=version, lock=lock)


async def execute(
    query: QueryNoTemplate,
    params: Params | None = None,
    *,
    version: str | None = None,
    tenant: str | None = None,
    max_lag: float | None = None,
    after: str | None = None,
    timeout: float | None = None,
) -> Result:
    """Run one statement by itself, wherever PostgreSQL lets it run, as :meth:`AsyncRouter.execute` does.

    Args:
        query: The statement.
        params: Its parameters.
        version: As for :meth:`AsyncRouter.connection`.
        tenant: As for :meth:`AsyncRouter.connection`.
        max_lag: As for :func:`connection`, should it read.
        after: As for :func:`connection`, should it read.
        timeout: Seconds for getting a connection; ``None`` takes ``pool.timeout``.

    Returns:
        The whole result.

    Raises:
        ConfigError: This is the first use, and the environment's settings are wrong.
        Unavailable: No connection could be had in time.
        TransactionOutcomeUnknown: The connection died while the statement ran on the primary.
        psycopg.Error: PostgreSQL refused the statement.
    """
    return await here().execute(
        query, params, version=version, tenant=tenant, max_lag=max_lag, after=after, timeout=timeout
    )


async def run(
    function: AFunction[[AsyncConnection[TupleRow]], T],
    *,
    version: str | None = None,
    tenant: str | None = None,
    retries: int = 3,
    timeout: float | None = None,
) -> T:
    """Run a function in a transaction, and again if that fails for a reason that passes: :meth:`AsyncRouter.run`.

    Args:
        function: Called with the connection; it may be called several times.
        version: As for :meth:`AsyncRouter.connection`.
        tenant: As for :meth:`AsyncRouter.connection`.
        retries: How often it is run again at most.
        timeout: Seconds for getting a connection, each time; ``None`` takes ``pool.timeout``.

    Returns:
        What the function returned.

    Raises:
        ConfigError: This is the first use, and the environment's settings are wrong.
        TransactionOutcomeUnknown: The connection died during COMMIT: it is not run again.
        Unavailable: No connection could be had in time.
        psycopg.Error: What it failed with the last time.
    """
    return await here().run(function, version=version, tenant=tenant, retries=retries, timeout=timeout)


async def each(
    function: AFunction[[AsyncConnection[TupleRow], str], T],
    *,
    tenants: str | Iterable[str] | None = None,
    version: str | None = None,
    jobs: int = 8,
    stop_on_error: bool = False,
) -> Outcomes[T]:
    """Call a function for each tenant, with a connection that writes, as :meth:`AsyncRouter.each` does.

    Args:
        function: Called with the connection and the tenant's key.
        tenants: Keys, or a pattern; ``None`` for all that are listed.
        version: As for :meth:`AsyncRouter.each`.
        jobs: For how many tenants at the same time.
        stop_on_error: Whether no further tenant is begun once one has failed.

    Returns:
        What the function returned or failed with, by tenant.

    Raises:
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownVersion: There is no such version.
        UnknownTenant: The tenants that are meant are not there, or cannot be listed.
    """
    return await here().each(function, tenants=tenants, version=version, jobs=jobs, stop_on_error=stop_on_error)


def explain(
    *,
    version: str | None = None,
    tenant: str | None = None,
    read_only: bool = False,
    max_lag: float | None = None,
    after: str | None = None,
) -> Route:
    """Say where a request to this loop's router would go now, and why, as :meth:`AsyncRouter.explain` does.

    Args:
        version: As for :func:`connection`.
        tenant: As for :func:`connection`.
        read_only: As for :func:`connection`.
        max_lag: As for :func:`connection`.
        after: As for :func:`connection`.

    Returns:
        The route; its ``repr`` is for reading.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownVersion: As for :func:`connection`.
    """
    return here().explain(version=version, tenant=tenant, read_only=read_only, max_lag=max_lag, after=after)


def stats() -> Stats:
    """Return one moment's view of this loop's router, as :meth:`AsyncRouter.stats` does.

    Returns:
        Frozen values; the ``repr`` is for reading.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
    """
    return here().stats()


async def close(timeout: float = 5.0) -> int:
    """Close this loop's router; the next use makes a new one.

    Args:
        timeout: The most to wait for borrowed connections to come back, in seconds.

    Returns:
        How many borrowed connections were cut because they did not come back in time.
    """
    return await close_here(timeout)
