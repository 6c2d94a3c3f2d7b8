# Generated from router/_async/router.py by tools/async_to_sync.py: do not edit.
"""The public face of the router: connections, and what can be asked of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self
from warnings import warn

from router._runtime.calls import WeakCall
from router._runtime.forks import survive_fork
from router._runtime.workers import loop_closed
from router._sync.acquired import lend
from router._sync.checkouts import Checkouts
from router._sync.directory import Directory
from router._sync.in_force import InForce
from router._sync.operations import Operations
from router._sync.snapshot import stats
from router._sync.statements import Statements
from router.ambient import ambient_of
from router.context import CURRENT
from router.core.topology import Tenancy
from router.settings import RouterSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._runtime.calls import Configure, Password, Source
    from router._sync.checkout import Checkout
    from router.core.choose import Route
    from router.core.events import Observer
    from router.core.measures import Stats
    from router.core.topology import Topology


class Router(Operations):
    """Sends each request to the right pool: by version, to the right server, for reading or for writing.

    Pools open at first use. It may be used at once, or as a context manager that closes it at the end.
    """

    def __init__(
        self,
        settings: RouterSettings | None = None,
        *,
        password: Password | None = None,
        configure: Configure | None = None,
        directory: Source | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Make a router; nothing is opened yet.

        Args:
            settings: What to route to; ``None`` reads the environment.
            password: Gives the password of a node, for credentials that rotate: asked at the first connection to the
                node, and again when the server turns its last answer down.
            configure: Called with each new connection, to register adapters and the like; it must leave it idle. What
                it sets in the session by SQL is lost when a shared connection passes to another tenant: that belongs in
                ``options`` of the connection string, or in the settings of the login role (``ALTER ROLE … SET``).
            directory: Says where tenants live that the settings do not list: called with a tenant's key, or an object
                with such a ``lookup()``, it returns the keys of a ``[tenants.KEY]``, or ``None`` if there is no such
                tenant. ``None`` takes the one that the settings name.
            observers: Called with each event (``router.events``), in the thread or task where it is seen: they must
                not block.

        Raises:
            ConfigError: The settings are wrong.
            TypeError: ``directory`` cannot be called so.
        """
        self._settings = RouterSettings() if settings is None else settings
        if not isinstance(self._settings, RouterSettings):
            given = type(settings).__name__
            raise TypeError(f"settings must be RouterSettings, not {given}: RouterSettings(**values), or .load(path)")
        topology = self._settings.topology()
        if directory is not None and topology.tenancy is None:
            topology = topology._replace(tenancy=Tenancy())
        self._directory = directory
        self._ambient = ambient_of(topology)
        self._given: list[object] = []
        self._in_force = InForce(
            topology,
            password=None if password is None else WeakCall(password, self._given),
            configure=None if configure is None else WeakCall(configure, self._given),
            observers=[WeakCall(observer, self._given, quiet=True) for observer in observers],
        )
        self._in_force.directory = self._ask_of()
        self._checkouts = Checkouts(self._in_force, self._ambient)
        self._statements = Statements(self._in_force)
        survive_fork(self)

    def connection(
        self,
        *,
        version: str | None = None,
        tenant: str | None = None,
        read_only: bool = False,
        max_lag: float | None = None,
        after: str | None = None,
        timeout: float | None = None,
    ) -> Checkout:
        """Borrow a connection for the length of a block.

        A block that writes is one transaction on the primary, committed on success and rolled back on an error. One
        that only reads runs on a replica, in autocommit unless ``read.autocommit`` is off, in a session in which the
        server refuses writes (SQLSTATE 25006).

        Args:
            version: The version, or an alias of it; ``None`` takes that of :meth:`use`, or else the tenant's first, or
                ``default_version``.
            tenant: The tenant; ``None`` takes that of :meth:`use`. There is no other default: where there are tenants,
                a request that names none has to name its version.
            read_only: Whether the block only reads.
            max_lag: For a read, the most seconds that a replica may be behind; ``None`` takes ``read.max_lag``.
            after: For a read, the token of a session whose writes it must see, besides those of the session around it.
            timeout: Seconds for choosing, connecting and waiting together; ``None`` takes ``pool.timeout``.

        Returns:
            A context manager that gives a :class:`psycopg.Connection`.

        Raises:
            UnknownVersion: There is no such version, or none was named and there is no default.
            UnknownTenant: There is no such tenant, or it does not live in that version; on entering the block if that
                has to be asked.
            TenantLocked: Another tenant was named than the one a ``use(…, lock=True)`` around it is for.
            RouterClosed: The router was closed.
            TokenRefused: ``after`` is a foreign token, and ``tokens.foreign`` is ``refuse``.
            Unavailable: On entering the block: no connection could be had in time; its subclasses say why.
            TransactionOutcomeUnknown: On leaving it: the connection died during COMMIT.
        """
        lanes = self._in_force.lanes
        key = version if tenant is None else (version, tenant)
        try:
            lane = (lanes.readers if read_only else lanes.writers).get(key)
        except TypeError:  # no key at all; it is refused below
            lane = None
        if lane is None or after is not None or max_lag is not None or CURRENT.get() is not None:
            return self._checkouts.make(
                version=version, tenant=tenant, read_only=read_only, max_lag=max_lag, after=after, timeout=timeout
            )
        return lane.checkout(lane, timeout)

    def acquire(
        self,
        *,
        version: str | None = None,
        tenant: str | None = None,
        read_only: bool = False,
        max_lag: float | None = None,
        after: str | None = None,
        timeout: float | None = None,
        begin: bool = False,
    ) -> Connection[TupleRow]:
        """Borrow a connection without a block, for a framework that closes its connections itself.

        Its ``close()`` gives it back; what was not committed is rolled back. Its ``commit()`` has the reads of the
        session in force see what was written, in the same round trip; what was committed otherwise, in autocommit say,
        is seen once it is closed. As a context manager it commits, or rolls back on an error, and is closed.

        Args:
            version: As for :meth:`connection`.
            tenant: As for :meth:`connection`.
            read_only: As for :meth:`connection`.
            max_lag: As for :meth:`connection`.
            after: As for :meth:`connection`.
            timeout: As for :meth:`connection`.
            begin: Whether the transaction of a tenant that shares its pool is begun at once, to write: that saves a
                round trip, but ``autocommit`` cannot be set before it has ended.

        Returns:
            The connection; after ``close()``, every use of it raises ``InterfaceError``.

        Raises:
            UnknownVersion: As for :meth:`connection`.
            UnknownTenant: As for :meth:`connection`.
            TenantLocked: As for :meth:`connection`.
            RouterClosed: The router was closed.
            TokenRefused: As for :meth:`connection`.
            Unavailable: No connection could be had in time; its subclasses say why.
        """
        checkout = self._checkouts.make(
            version=version,
            tenant=tenant,
            read_only=read_only,
            max_lag=max_lag,
            after=after,
            timeout=timeout,
            begin=begin,
            detached=True,
        )
        return lend(checkout, self._ambient, self._checkouts.note_written)

    def explain(
        self,
        *,
        version: str | None = None,
        tenant: str | None = None,
        read_only: bool = False,
        max_lag: float | None = None,
        after: str | None = None,
    ) -> Route:
        """Say where a request would go now, and why; nothing is opened.

        Args:
            version: As for :meth:`connection`.
            tenant: As for :meth:`connection`.
            read_only: As for :meth:`connection`.
            max_lag: As for :meth:`connection`.
            after: As for :meth:`connection`.

        Returns:
            The route; its ``repr`` is for reading.

        Raises:
            UnknownVersion: As for :meth:`connection`.
            UnknownTenant: As for :meth:`connection`; also when the directory would have to be asked first.
            RouterClosed: The router was closed.
            TokenRefused: As for :meth:`connection`.
        """
        return self._checkouts.route(version=version, tenant=tenant, read_only=read_only, max_lag=max_lag, after=after)

    def stats(self) -> Stats:
        """Return one moment's view of every version, node and pool.

        Returns:
            Frozen values; the ``repr`` is for reading.
        """
        return stats(self._in_force)

    def close(self, timeout: float = 5.0) -> int:
        """Close every pool; no further request is served.

        Args:
            timeout: The most to wait for borrowed connections to come back, in seconds.

        Returns:
            How many borrowed connections were cut because they did not come back in time; their queries fail.
        """
        if loop_closed(self._in_force.slots.loop):
            return self._in_force.discard()
        self._checkouts.bind_loop()
        return self._in_force.close(timeout)

    def __enter__(self) -> Self:
        """Return the router itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Show its versions and aliases."""
        topology = self._topology
        names = ", ".join([*topology.versions, *(f"{alias}={version}" for alias, version in topology.aliases.items())])
        return f"<{type(self).__name__} {'closed ' if self._in_force.closed else ''}{names}>"

    def __del__(self, _warn: Callable[..., None] = warn) -> None:
        """Have it closed, with a warning, by what it has begun, if it was dropped without :meth:`close`."""
        in_force: InForce | None = getattr(self, "_in_force", None)  # there is none if __init__ failed
        if in_force is not None and in_force.begun:
            # This may run in any thread, whatever that holds: nothing is waited for, and no lock is taken.
            if loop_closed(in_force.slots.loop):
                in_force.discard()
            in_force.dropped = True
            _warn(f"unclosed {self!r}: call close(), or use it in a `with`", ResourceWarning, source=self)

    def abandon(self) -> None:
        """Start anew in the child of a fork: what is open is the parent's, and is neither used nor closed here."""
        self._in_force.abandon()
        self._in_force.directory = self._ask_of()
        self._statements.abandon()

    @property
    def _topology(self) -> Topology:
        return self._in_force.topology

    def _ask_of(self) -> Directory | None:
        """The directory, if there is one."""
        tenancy, source = self._topology.tenancy, self._directory
        if tenancy is None or (source is None and tenancy.directory.version is None):
            return None
        return Directory(source, self._settings, tenancy.directory, self._in_force, keep=self._given)
