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

    A block that writes is one transaction on the primary, committed on success and rolled back on an error. One
    that only reads runs on a replica, in autocommit unless ``read.autocommit`` is off, in a session in which the
    server refuses writes (SQLSTATE 25006).

    Args:
        version: The version, or an alias of it; ``None`` takes that of :func:`use`, or else the tenant's first, or
            ``default_version``.
        tenant: The tenant; ``None`` takes that of :func:`use`. There is no other default: where there are tenants,
            a request that names none has to name its version.
        read_only: Whether the block only reads.
        max_lag: For a read, the most seconds that a replica may be behind; ``None`` takes ``read.max_lag``.
        after: For a read, the token of a session whose writes it must see, besides those of the session around it.
        timeout: Seconds for choosing, connecting and waiting together; ``None`` takes ``pool.timeout``.

    Returns:
        A context manager that gives a :class:`psycopg.AsyncConnection`.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownVersion: There is no such version, or none was named and there is no default.
        UnknownTenant: There is no such tenant, or it does not live in that version; on entering the block if that
            has to be asked.
        TenantLocked: Another tenant was named than the one a ``use(…, lock=True)`` around it is for.
        RouterClosed: The router was closed.
        TokenRefused: ``after`` is a foreign token, and ``tokens.foreign`` is ``refuse``.
        Unavailable: On entering the block: no connection could be had in time; its subclasses say why.
        TransactionOutcomeUnknown: On leaving it: the connection died during COMMIT.
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

    Its ``close()`` gives it back; what was not committed is rolled back. Its ``commit()`` has the reads of the
    session in force see what was written, in the same round trip; what was committed otherwise, in autocommit say,
    is seen once it is closed. As a context manager it commits, or rolls back on an error, and is closed.

    Args:
        version: As for :func:`connection`.
        tenant: As for :func:`connection`.
        read_only: As for :func:`connection`.
        max_lag: As for :func:`connection`.
        after: As for :func:`connection`.
        timeout: As for :func:`connection`.
        begin: Whether the transaction of a tenant that shares its pool is begun at once, to write: that saves a
            round trip, but ``autocommit`` cannot be set before it has ended.

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
        Unavailable: No connection could be had in time; its subclasses say why.
    """
    return await _here().acquire(
        version=version, tenant=tenant, read_only=read_only, max_lag=max_lag, after=after, timeout=timeout, begin=begin
    )


def session(token: str | None = None) -> Session:
    """Make the reads of this task or thread see what it writes, for the length of a block.

    Args:
        token: What an earlier session handed on, so that its writes are seen, too; ``None`` or empty for nothing.

    Returns:
        A context manager, plain and not async, that gives the :class:`Session`; its ``token`` is for handing on.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        TokenRefused: The token is a foreign one, and ``tokens.foreign`` is ``refuse``.
    """
    return _here().session(token)


def use(*, tenant: str | None = None, version: str | None = None, lock: bool = False) -> Use:
    """Name the tenant and the version of the requests of this task or thread, for the length of a block.

    Child tasks begun inside it have it, too, and as long as it lasts: one that outlives it names its own tenant, or
    fails, whatever blocks are around, and nothing locks it. So it is in threads and executors from the start.

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
        TenantLocked: On entering the block: one around it is locked to another tenant.
    """
    return _here().use(tenant=tenant, version=version, lock=lock)


def current() -> Current:
    """Tell what is in force for the requests of this task or thread.

    Returns:
        Tenant, version and session, as :func:`use`, :func:`session` and :func:`carried` have begun them here for
        any router with these settings.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        RuntimeError: A session or a lock is open here and not in force, for its generator is suspended.
    """
    return _here().current()


def carry() -> dict[str, str]:
    """Write what is in force here as text, for a job or the headers of a request to another service.

    Returns:
        Names, which may be those of headers, and values in ASCII, without secrets: tenant, version, whether that is
        locked, and the token of the session. Empty for nothing.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        RuntimeError: As for :func:`current`.
    """
    return _here().carry()


def carried(mapping: Mapping[str, str]) -> Carried:
    """Have what was carried in force, for the length of a block: the other end of :func:`carry`.

    Args:
        mapping: What was carried, maybe among others, such as the headers of a request. It is not signed, but for
            the token where ``tokens.key`` is set: take it from your own services only.

    Returns:
        A context manager, plain and not async; its ``session`` is the one that goes on in it.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownTenant: It names what is no tenant's key.
        UnknownVersion: It names no version of these settings.
        TokenRefused: Its token is a foreign one, and ``tokens.foreign`` is ``refuse``.
        TenantLocked: On entering the block: one around it is locked to another tenant.
        TypeError: One of the values is no text.
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
    """Run one statement by itself, wherever PostgreSQL lets it run.

    A statement that begins with what writes (INSERT, COPY … FROM, CREATE and the like, comments aside), or that
    administers a server, goes to the primary. Any other that is new to the router goes to a replica, in a session
    that refuses writes; if the server refuses it, it runs on the primary, now and from then on. It is committed at
    once. What it leaves in its session (``SET``, ``LISTEN``, a temporary table, an advisory lock) ends with it.

    Args:
        query: The statement; from Python 3.14 on also as a template string, without parameters of its own.
        params: Its parameters.
        version: As for :func:`connection`.
        tenant: As for :func:`connection`.
        max_lag: As for :func:`connection`, should it read.
        after: As for :func:`connection`, should it read.
        timeout: Seconds for getting a connection; ``None`` takes ``pool.timeout``.

    Returns:
        The whole result.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownVersion: As for :func:`connection`.
        UnknownTenant: As for :func:`connection`.
        Unavailable: No connection could be had in time.
        TransactionOutcomeUnknown: The connection died while the statement ran on the primary. (A read whose
            connection dies is run again elsewhere.)
        TypeError: It is no statement.
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
    """Run a function in a transaction on the primary, and again if that fails for a reason that passes.

    Such reasons are a serialization failure, a deadlock, and a connection that is lost before COMMIT.

    Args:
        function: Called with the connection; it may be called several times, and must leave no trace elsewhere. It
            cannot commit by itself; ``connection.transaction()`` inside it is a savepoint.
        version: As for :func:`connection`.
        tenant: As for :func:`connection`.
        retries: How often it is run again at most.
        timeout: Seconds for getting a connection, each time; ``None`` takes ``pool.timeout``.

    Returns:
        What the function returned.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        TransactionOutcomeUnknown: The connection died during COMMIT: it is not run again.
        Unavailable: No connection could be had in time.
        psycopg.Error: What it failed with the last time.
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
    """Call a function for each tenant, with a connection that writes: one transaction a tenant.

    What fails for one tenant is rolled back and reported, and the others go on. Requests that the function makes
    itself are the tenant's, too, as in :func:`use`. It does not matter whether all find room in the budget: who
    finds none waits until it is their turn.

    Args:
        function: Called with the connection and the tenant's key.
        tenants: Keys; or a pattern as for ``router each --tenants``, such as ``"acme,eu-*"``; ``None`` for all that
            the settings and the directory list.
        version: As for :func:`connection`. Of tenants that are not named by their keys, those who live there.
        jobs: For how many tenants at the same time.
        stop_on_error: Whether no further tenant is begun once one has failed.

    Returns:
        What the function returned or failed with, by tenant.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownVersion: There is no such version.
        UnknownTenant: The pattern stands for nobody, the directory cannot list its tenants, or what was named is no
            tenant's key; nothing has been done.
        TenantLocked: A ``use(…, lock=True)`` around it is for another tenant; nothing has been done.
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
    """Say where a request would go now, and why; nothing is opened.

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
        UnknownTenant: As for :func:`connection`; also when the directory would have to be asked first.
        RouterClosed: The router was closed.
        TokenRefused: As for :func:`connection`.
    """
    return _here().explain(version=version, tenant=tenant, read_only=read_only, max_lag=max_lag, after=after)


def stats() -> Stats:
    """Return one moment's view of every version, node and pool.

    Returns:
        Frozen values; the ``repr`` is for reading.

    Raises:
        RuntimeError: No event loop runs here.
        ConfigError: This is the first use, and the environment's settings are wrong.
    """
    return _here().stats()
