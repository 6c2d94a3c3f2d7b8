"""The process-wide router: made from the environment at first use, closed at exit."""

from __future__ import annotations

import atexit
import os
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from router._sync.router import Router

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from psycopg import Connection
    from psycopg.abc import Params, Query
    from psycopg.rows import TupleRow

    from router._runtime.calls import Configure, Password, Source
    from router._sync.checkout import Checkout
    from router.context import Use
    from router.core.choose import Route
    from router.core.events import Observer
    from router.core.measures import Stats
    from router.core.outcomes import Outcomes
    from router.core.result import Result
    from router.sessions import Session
    from router.settings import RouterSettings

T = TypeVar("T")

_current: Router | None = None  # replaced whole
_guard = Lock()  # guards the replacing of _current


def configure(
    settings: RouterSettings | None = None,
    *,
    password: Password | None = None,
    configure: Configure | None = None,
    directory: Source | None = None,
    observers: Sequence[Observer] = (),
) -> None:
    """Set the process-wide router; one that was in use is closed.

    Args:
        settings: What to route to; ``None`` reads the environment.
        password: As for :class:`Router`.
        configure: As for :class:`Router`.
        directory: As for :class:`Router`.
        observers: As for :class:`Router`.

    Raises:
        ConfigError: The settings are wrong; the router in use stays.
    """
    new = Router(settings, password=password, configure=configure, directory=directory, observers=observers)
    _replace(new)


def connection(
    *,
    version: str | None = None,
    tenant: str | None = None,
    read_only: bool = False,
    max_lag: float | None = None,
    after: str | None = None,
    timeout: float | None = None,
) -> Checkout:
    """Borrow a connection from the process-wide router, as :meth:`Router.connection` does.

    Args:
        version: As for :meth:`Router.connection`.
        tenant: As for :meth:`Router.connection`.
        read_only: Whether the block only reads.
        max_lag: For a read, the most seconds that a replica may be behind; ``None`` takes ``read.max_lag``.
        after: For a read, the token of a session whose writes it must see.
        timeout: Seconds for choosing, connecting and waiting together; ``None`` takes ``pool.timeout``.

    Returns:
        A context manager that gives a :class:`psycopg.Connection`.

    Raises:
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownVersion: There is no such version, or none was named and there is no default.
        UnknownTenant: There is no such tenant, or it does not live in that version.
        Unavailable: On entering the block: no connection could be had in time; its subclasses say why.
    """
    return (_current or _first()).connection(
        version=version, tenant=tenant, read_only=read_only, max_lag=max_lag, after=after, timeout=timeout
    )


def session(token: str | None = None) -> Session:
    """Make the reads of this thread see what it writes, as :meth:`Router.session` does.

    Args:
        token: What an earlier session handed on; ``None`` or empty for nothing.

    Returns:
        A context manager that gives the :class:`Session`.

    Raises:
        ConfigError: This is the first use, and the environment's settings are wrong.
        TokenRefused: The token is a foreign one, and ``tokens.foreign`` is ``refuse``.
    """
    return (_current or _first()).session(token)


def use(*, tenant: str | None = None, version: str | None = None, lock: bool = False) -> Use:
    """Name the tenant and the version of this thread's requests, for the length of a block, as :meth:`Router.use` does.

    Args:
        tenant: The tenant; ``None`` leaves that to the block around it.
        version: The version, or an alias of it; ``None`` leaves that to the block around it.
        lock: Whether naming another tenant inside is an error.

    Returns:
        A context manager.

    Raises:
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownTenant: What was named is no tenant's key; or nothing was named, neither tenant nor version nor lock.
    """
    return (_current or _first()).use(tenant=tenant, version=version, lock=lock)


def execute(
    query: Query,
    params: Params | None = None,
    *,
    version: str | None = None,
    tenant: str | None = None,
    max_lag: float | None = None,
    after: str | None = None,
    timeout: float | None = None,
) -> Result:
    """Run one statement by itself, wherever PostgreSQL lets it run, as :meth:`Router.execute` does.

    Args:
        query: The statement.
        params: Its parameters.
        version: As for :meth:`Router.connection`.
        tenant: As for :meth:`Router.connection`.
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
    return (_current or _first()).execute(
        query, params, version=version, tenant=tenant, max_lag=max_lag, after=after, timeout=timeout
    )


def run(
    function: Callable[[Connection[TupleRow]], T],
    *,
    version: str | None = None,
    tenant: str | None = None,
    retries: int = 3,
    timeout: float | None = None,
) -> T:
    """Run a function in a transaction, and again if that fails for a reason that passes, as :meth:`Router.run` does.

    Args:
        function: Called with the connection; it may be called several times.
        version: As for :meth:`Router.connection`.
        tenant: As for :meth:`Router.connection`.
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
    return (_current or _first()).run(function, version=version, tenant=tenant, retries=retries, timeout=timeout)


def each(
    function: Callable[[Connection[TupleRow], str], T],
    *,
    tenants: str | Iterable[str] | None = None,
    version: str | None = None,
    jobs: int = 8,
    stop_on_error: bool = False,
) -> Outcomes[T]:
    """Call a function for each tenant, with a connection that writes, as :meth:`Router.each` does.

    Args:
        function: Called with the connection and the tenant's key.
        tenants: Keys, or a pattern; ``None`` for all that are listed.
        version: As for :meth:`Router.each`.
        jobs: For how many tenants at the same time.
        stop_on_error: Whether no further tenant is begun once one has failed.

    Returns:
        What the function returned or failed with, by tenant.

    Raises:
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownVersion: There is no such version.
        UnknownTenant: The tenants that are meant are not there, or cannot be listed.
    """
    return (_current or _first()).each(
        function, tenants=tenants, version=version, jobs=jobs, stop_on_error=stop_on_error
    )


def explain(
    *,
    version: str | None = None,
    tenant: str | None = None,
    read_only: bool = False,
    max_lag: float | None = None,
    after: str | None = None,
) -> Route:
    """Say where a request to the process-wide router would go now, and why, as :meth:`Router.explain` does.

    Args:
        version: As for :func:`connection`.
        tenant: As for :func:`connection`.
        read_only: As for :func:`connection`.
        max_lag: As for :func:`connection`.
        after: As for :func:`connection`.

    Returns:
        The route; its ``repr`` is for reading.

    Raises:
        ConfigError: This is the first use, and the environment's settings are wrong.
        UnknownVersion: As for :func:`connection`.
    """
    return (_current or _first()).explain(
        version=version, tenant=tenant, read_only=read_only, max_lag=max_lag, after=after
    )


def stats() -> Stats:
    """Return one moment's view of the process-wide router, as :meth:`Router.stats` does.

    Returns:
        Frozen values; the ``repr`` is for reading.

    Raises:
        ConfigError: This is the first use, and the environment's settings are wrong.
    """
    return (_current or _first()).stats()


def close(timeout: float = 5.0) -> int:
    """Close the process-wide router; the next use makes a new one from the environment.

    Args:
        timeout: The most to wait for borrowed connections to come back, in seconds.

    Returns:
        How many borrowed connections were cut because they did not come back in time.
    """
    return _replace(None, timeout)


def _first() -> Router:
    global _current  # noqa: PLW0603  (it is the process-wide one)
    with _guard:
        if _current is None:
            _current = Router()
        return _current


def _replace(new: Router | None, timeout: float = 5.0) -> int:
    global _current
    with _guard:
        old, _current = _current, new
    return 0 if old is None else old.close(timeout)


def _after_fork() -> None:
    global _guard  # noqa: PLW0603  (another thread of the parent may have held it)
    _guard = Lock()


atexit.register(close, 1.0)
os.register_at_fork(after_in_child=_after_fork)
