# Generated from router/_async/router.py by tools/faces.py: do not edit.

"""The process-wide async routers: one for each event loop, made at its first use and closed with the loop.

::

    import router
    async with router.aio.connection(version="v2") as conn: ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from router._loops import close, configure
from router._loops import here as _here

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from psycopg import AsyncConnection
    from psycopg.abc import Params, Query
    from psycopg.rows import TupleRow

    from router._async.checkout import AsyncCheckout
    from router._runtime.calls import AFunction
    from router.ambient import Carried, Current
    from router.context import Use
    from router.core.choose import Route
    from router.core.measures import Stats
    from router.core.outcomes import Outcomes
    from router.core.result import Result
    from router.sessions import Session

__all__ = [
    "acquire",
    "carried",
    "carry",
    "close",
    "configure",
    "connection",
    "current",
    "each",
    "execute",
    "explain",
    "run",
    "session",
    "stats",
    "use",
]

T = TypeVar("T")


def connection(
    *,
    version: str | None = None,
    tenant: str | None = None,
    read_only: bool = False,
    max_lag: float | None = None,
    after: str | None = None,
    timeout: float | None = None,
) -> AsyncCheckout:
    """Borrow a connection for the length of a block.

    A block that writes is one transaction on the primary, committed on success and rolled back on an error. A block
    that only reads runs on a replica, in a session in which the server refuses writes (SQLSTATE 25006). It is in
    autocommit, unless ``read.autocommit`` is off.

    Args:
        version: The version, or an alias of it; ``None`` takes the version of :func:`use`, or else the tenant's
            first version, or else ``default_version``.
        tenant: The tenant; ``None`` takes the tenant of :func:`use`. There is no other default: if the settings
            have tenants, a request without a tenant has to name its version.
        read_only: Whether the block only reads.
        max_lag: For a read, the most seconds that a replica may be behind; ``None`` takes ``read.max_lag``.
        after: For a read, the token of a session whose writes the read must see, besides those of the session in
            force.
        timeout: Seconds for choosing, connecting and waiting together; ``None`` takes ``pool.timeout``.

    Returns:
        A context manager that gives a :class:`psycopg.AsyncConnection`.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownVersion: There is no such version, or none was named and there is no default.
        UnknownTenant: There is no such tenant, or it does not live in that version. If the directory has to be
            asked first, this is raised when the block is entered.
        TenantLocked: Another tenant was named than the one of a ``use(…, lock=True)`` around the request.
        RouterClosed: The router was closed.
        TokenRefused: ``after`` is a foreign token, and ``tokens.foreign`` is ``refuse``.
        ValueError: ``timeout`` or ``max_lag`` is negative or not a number, or ``read_only`` is not a bool.
        Unavailable: When the block is entered: no connection was available in time; the subclasses say why.
        TransactionOutcomeUnknown: When the block ends: the connection died during COMMIT.
    """
    return _here().connection(
        version=version, tenant=tenant, read_only=read_only, max_lag=max_lag, after=after, timeout=timeout
    )


async def acquire(
    *,
    version: str | None = None,
    tenant: str | None = None,
    read_only: bool = False,
    max_lag: float | None = None,
    after: str | None = None,
    timeout: float | None = None,
    begin: bool = False,
) -> AsyncConnection[TupleRow]:
    """Borrow a connection without a block, for a framework that closes its connections itself.

    ``close()`` on the connection returns it to its pool; what was not committed is rolled back. ``commit()`` also
    notes the position of the writes, in the same round trip, so that reads of the session in force see them. Writes
    that were committed in another way, for example in autocommit, are seen once the connection is closed. Used as a
    context manager, the connection commits, or rolls back on an error, and is then closed.

    Args:
        version: As for :func:`connection`.
        tenant: As for :func:`connection`.
        read_only: As for :func:`connection`.
        max_lag: As for :func:`connection`.
        after: As for :func:`connection`.
        timeout: As for :func:`connection`.
        begin: Whether to begin the transaction at once if the connection is to write for a tenant in a shared pool.
            This saves a round trip, but ``autocommit`` cannot be set before the transaction has ended.

    Returns:
        The connection; after ``close()``, every use of it raises ``InterfaceError``.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownVersion: As for :func:`connection`.
        UnknownTenant: As for :func:`connection`.
        TenantLocked: As for :func:`connection`.
        RouterClosed: The router was closed.
        TokenRefused: As for :func:`connection`.
        ValueError: As for :func:`connection`.
        Unavailable: No connection was available in time; the subclasses say why.
    """
    return await _here().acquire(
        version=version, tenant=tenant, read_only=read_only, max_lag=max_lag, after=after, timeout=timeout, begin=begin
    )


def session(token: str | None = None) -> Session:
    """Make the reads of this task or thread see its own writes, for the length of a block.

    Args:
        token: The token of an earlier session, whose writes are to be seen, too; ``None`` or empty for none.

    Returns:
        A plain context manager (not async) that gives the :class:`Session`; its ``token`` can be passed on.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        TokenRefused: The token is foreign, and ``tokens.foreign`` is ``refuse``.
    """
    return _here().session(token)


def use(*, tenant: str | None = None, version: str | None = None, lock: bool = False) -> Use:
    """Name the tenant and the version for the requests of this task or thread, for the length of a block.

    Child tasks that are started inside inherit the block for as long as it lasts. In a child task that outlives it,
    neither this block nor those around it are in force: a request there names its own tenant, or fails. Threads and
    executors inherit nothing.

    Args:
        tenant: The tenant; ``None`` leaves it to the block around this one.
        version: The version, or an alias of it; ``None`` leaves it to the block around this one.
        lock: Whether it is an error to name another tenant inside.

    Returns:
        A plain context manager (not async).

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownTenant: ``tenant`` is not a tenant's key; or neither tenant nor version nor lock was given.
        TenantLocked: When the block is entered: a block around it is locked to another tenant.
    """
    return _here().use(tenant=tenant, version=version, lock=lock)


def current() -> Current:
    """Return what is in force for the requests of this task or thread.

    Returns:
        Tenant, version and session, as begun by :func:`use`, :func:`session` and :func:`carried` here, on any
        router with these settings.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        RuntimeError: A session or a locked ``use()`` is open here but not in force, because its generator is
            suspended.
    """
    return _here().current()


def carry() -> dict[str, str]:
    """Return what is in force here as strings, for a job or for the headers of a request to another service.

    Returns:
        Names, which are valid names of headers, and values in ASCII, without secrets: the tenant, the version,
        whether the tenant is locked, and the session's token. Empty if nothing is in force.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        RuntimeError: As for :func:`current`.
    """
    return _here().carry()


def carried(mapping: Mapping[str, str]) -> Carried:
    """Put in force what :func:`carry` returned elsewhere, for the length of a block.

    Args:
        mapping: What :func:`carry` returned; other entries, such as further headers of a request, are ignored. Only
            the token in it is signed, if ``tokens.key`` is set: accept it from your own services only.

    Returns:
        A plain context manager (not async); its ``session`` continues the session that was carried.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownTenant: The tenant in it is not a tenant's key.
        UnknownVersion: The version in it is not one of these settings.
        TokenRefused: Its token is foreign, and ``tokens.foreign`` is ``refuse``.
        TenantLocked: When the block is entered: a block around it is locked to another tenant.
        TypeError: One of the values is not a string.
    """
    return _here().carried(mapping)


async def execute(
    query: Query,
    params: Params | None = None,
    *,
    version: str | None = None,
    tenant: str | None = None,
    max_lag: float | None = None,
    after: str | None = None,
    timeout: float | None = None,
) -> Result:
    """Run one statement by itself: on a replica if PostgreSQL allows it there, else on the primary.

    A statement that begins with a word that writes (INSERT, COPY … FROM, CREATE and the like, comments ignored), or
    that administers a server, goes to the primary. The router sends any other statement to a replica, in a session
    that refuses writes. If the server refuses it, the router runs it on the primary, now and from then on. The
    statement is committed at once. What it leaves in its session (``SET``, ``LISTEN``, a temporary table, an
    advisory lock) ends with it.

    Args:
        query: The statement; from Python 3.14 on also as a template string, without parameters of its own.
        params: The statement's parameters.
        version: As for :func:`connection`.
        tenant: As for :func:`connection`.
        max_lag: As for :func:`connection`, if the statement reads.
        after: As for :func:`connection`, if the statement reads.
        timeout: Seconds to get a connection; ``None`` takes ``pool.timeout``.

    Returns:
        The whole result.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownVersion: As for :func:`connection`.
        UnknownTenant: As for :func:`connection`.
        Unavailable: No connection was available in time.
        TransactionOutcomeUnknown: The connection died while the statement ran on the primary. (A read whose
            connection dies is run again elsewhere.)
        TypeError: ``query`` is not a statement.
        ValueError: As for :func:`connection`.
        psycopg.Error: PostgreSQL refused the statement.
    """
    return await _here().execute(
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
    """Run a function in a transaction on the primary, and run it again after a transient failure.

    Transient failures are a serialization failure, a deadlock, and a connection that is lost before COMMIT.

    Args:
        function: Called with the connection. It may be called several times, so it must have no effect outside the
            transaction. It cannot commit by itself; ``connection.transaction()`` inside it is a savepoint.
        version: As for :func:`connection`.
        tenant: As for :func:`connection`.
        retries: How often the function is run again at most.
        timeout: Seconds to get a connection, for each attempt; ``None`` takes ``pool.timeout``.

    Returns:
        What the function returned.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        TransactionOutcomeUnknown: The connection died during COMMIT; the function is not run again.
        Unavailable: No connection was available in time.
        ValueError: ``retries`` or ``timeout`` is negative or not a number.
        psycopg.Error: The error of the last attempt.
    """
    return await _here().run(function, version=version, tenant=tenant, retries=retries, timeout=timeout)


async def each(
    function: AFunction[[AsyncConnection[TupleRow], str], T],
    *,
    tenants: str | Iterable[str] | None = None,
    version: str | None = None,
    jobs: int = 8,
    stop_on_error: bool = False,
) -> Outcomes[T]:
    """Call a function for each tenant, with a connection that writes: one transaction for each tenant.

    If the function fails for one tenant, that transaction is rolled back and the error is reported; the other
    tenants continue. Requests that the function itself makes are for the tenant, too, as in :func:`use`. There may
    be more tenants than the budget has connections: a tenant waits until a connection is available.

    Args:
        function: Called with the connection and the tenant's key.
        tenants: Keys; or a pattern as for ``router each --tenants``, such as ``"acme,eu-*"``; ``None`` for all
            tenants that the settings and the directory list.
        version: As for :func:`connection`. Tenants that a pattern matches are limited to those that live there.
        jobs: How many tenants are worked on at the same time.
        stop_on_error: Whether to begin no further tenant once one has failed.

    Returns:
        For each tenant, what the function returned, or the error.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownVersion: There is no such version.
        UnknownTenant: The pattern matches no tenant, the directory cannot list its tenants, or a name is not a
            tenant's key; nothing has been done.
        TenantLocked: A ``use(…, lock=True)`` around the call is for another tenant; nothing has been done.
        ValueError: ``jobs`` is less than 1.
    """
    return await _here().each(function, tenants=tenants, version=version, jobs=jobs, stop_on_error=stop_on_error)


def explain(
    *,
    version: str | None = None,
    tenant: str | None = None,
    read_only: bool = False,
    max_lag: float | None = None,
    after: str | None = None,
) -> Route:
    """Return where a request would go now, and why, without opening a connection.

    Args:
        version: As for :func:`connection`.
        tenant: As for :func:`connection`.
        read_only: As for :func:`connection`.
        max_lag: As for :func:`connection`.
        after: As for :func:`connection`.

    Returns:
        The route; its ``repr`` is meant for people.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownVersion: As for :func:`connection`.
        UnknownTenant: As for :func:`connection`; also when the directory would have to be asked first.
        RouterClosed: The router was closed.
        TokenRefused: As for :func:`connection`.
        ValueError: As for :func:`connection`.
    """
    return _here().explain(version=version, tenant=tenant, read_only=read_only, max_lag=max_lag, after=after)


def stats() -> Stats:
    """Return the state of every version, node and pool at this moment.

    Returns:
        Frozen values; their ``repr`` is meant for people.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
    """
    return _here().stats()
