# Generated from router/_async/router.py by tools/async_to_sync.py: do not edit.
"""The public class: it lends connections, runs statements, and reports its state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self
from warnings import warn

from router._runtime.calls import WeakCall
from router._runtime.forks import survive_fork
from router._runtime.workers import loop_closed
from router._sync.acquired import lend
from router._sync.checkouts import Checkouts
from router._sync.in_force import InForce
from router._sync.operations import Operations
from router._sync.pool.inside.check import check_inside
from router._sync.statements import Statements
from router._sync.stats import stats
from router.ambient import ambient_of
from router.context import CURRENT
from router.core.errors import at_least_zero
from router.core.topology import Tenancy
from router.settings import RouterSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._runtime.calls import Configure, Password, Source
    from router._sync.checkout import Checkout
    from router._sync.directory import Directory
    from router._sync.snapshot import Snapshot
    from router.core.choose import Route
    from router.core.events import Observer
    from router.core.measures import Stats
    from router.core.topology import Topology


class Router(Operations):
    """Lends connections from the right pool: by version or tenant, to the right server, for reading or for writing.

    Pools open at first use. The router may be used at once, or as a context manager, which closes it at the end.
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
        """Make a router; it opens nothing yet.

        Args:
            settings: The versions and tenants to route to; ``None`` reads the environment.
            password: Returns the password of a node, for credentials that rotate. The router calls it before the first
                connection to the node, and again when the server refuses the last password.
            configure: Called with each new connection, for example to register adapters; it must leave the connection
                idle. What it sets in the session by SQL is lost when a shared connection passes to another tenant: put
                such settings into ``options`` of the connection string, or into the login role (``ALTER ROLE … SET``).
            directory: Tells where tenants live that the settings do not list. It is a callable, or an object with a
                method ``lookup()``, that takes a tenant's key and returns the keys of a ``[tenants.KEY]`` table, or
                ``None`` if there is no such tenant. ``None`` takes the directory that the settings name.
            observers: Called with each event (``router.events``), in the thread or task that emits it; they must not
                block.

        Raises:
            ConfigError: The settings are wrong.
            RouterError: psycopg or psycopg_pool is installed in a release that this one does not work with.
            TypeError: ``settings`` are not :class:`RouterSettings`, ``directory`` does not take one argument, or
                another argument is not callable.
        """
        check_inside()
        _check_callable(password=password, configure=configure)
        for observer in observers:
            _check_callable(observer=observer)
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

        A block that writes is one transaction on the primary, committed on success and rolled back on an error. A block
        that only reads runs on a replica, in a session in which the server refuses writes (SQLSTATE 25006). It is in
        autocommit, unless ``read.autocommit`` is off.

        Args:
            version: The version, or an alias of it; ``None`` takes the version of :meth:`use`, or else the tenant's
                first version, or else ``default_version``.
            tenant: The tenant; ``None`` takes the tenant of :meth:`use`. There is no other default: if the settings
                have tenants, a request without a tenant has to name its version.
            read_only: Whether the block only reads.
            max_lag: For a read, the most seconds that a replica may be behind; ``None`` takes ``read.max_lag``.
            after: For a read, the token of a session whose writes the read must see, besides those of the session in
                force.
            timeout: Seconds for choosing, connecting and waiting together; ``None`` takes ``pool.timeout``.

        Returns:
            A context manager that gives a :class:`psycopg.Connection`.

        Raises:
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
        lanes = self._in_force.lanes
        key = version if tenant is None else (version, tenant)
        try:
            lane = (lanes.readers if read_only is True else lanes.writers if read_only is False else {}).get(key)
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

        ``close()`` on the connection returns it to its pool; what was not committed is rolled back. ``commit()`` also
        notes the position of the writes, in the same round trip, so that reads of the session in force see them. Writes
        that were committed in another way, for example in autocommit, are seen once the connection is closed. Used as a
        context manager, the connection commits, or rolls back on an error, and is then closed.

        Args:
            version: As for :meth:`connection`.
            tenant: As for :meth:`connection`.
            read_only: As for :meth:`connection`.
            max_lag: As for :meth:`connection`.
            after: As for :meth:`connection`.
            timeout: As for :meth:`connection`.
            begin: Whether to begin the transaction at once if the connection is to write for a tenant in a shared pool.
                This saves a round trip, but ``autocommit`` cannot be set before the transaction has ended.

        Returns:
            The connection; after ``close()``, every use of it raises ``InterfaceError``.

        Raises:
            UnknownVersion: As for :meth:`connection`.
            UnknownTenant: As for :meth:`connection`.
            TenantLocked: As for :meth:`connection`.
            RouterClosed: The router was closed.
            TokenRefused: As for :meth:`connection`.
            ValueError: As for :meth:`connection`.
            Unavailable: No connection was available in time; the subclasses say why.
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
        """Return where a request would go now, and why, without opening a connection.

        Args:
            version: As for :meth:`connection`.
            tenant: As for :meth:`connection`.
            read_only: As for :meth:`connection`.
            max_lag: As for :meth:`connection`.
            after: As for :meth:`connection`.

        Returns:
            The route; its ``repr`` is meant for people.

        Raises:
            UnknownVersion: As for :meth:`connection`.
            UnknownTenant: As for :meth:`connection`; also when the directory would have to be asked first.
            RouterClosed: The router was closed.
            TokenRefused: As for :meth:`connection`.
            ValueError: As for :meth:`connection`.
        """
        return self._checkouts.route(version=version, tenant=tenant, read_only=read_only, max_lag=max_lag, after=after)

    def stats(self) -> Stats:
        """Return the state of every version, node and pool at this moment.

        Returns:
            Frozen values; their ``repr`` is meant for people.
        """
        return stats(self._in_force)

    def close(self, timeout: float = 5.0) -> int:
        """Close every pool; the router serves no further request.

        Args:
            timeout: The most seconds to wait until borrowed connections are returned.

        Returns:
            How many borrowed connections were cut because they were not returned in time; their queries fail.

        Raises:
            ValueError: ``timeout`` is negative or not a number; nothing is closed.
        """
        at_least_zero("timeout", timeout)
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
        """If the router was dropped without :meth:`close`, warn, and let its housekeeping task close it."""
        in_force: InForce | None = getattr(self, "_in_force", None)  # there is none if __init__ failed
        if in_force is not None and in_force.begun:
            # This may run in any thread, whatever locks that holds: it waits for nothing and takes no lock.
            if loop_closed(in_force.slots.loop):
                in_force.discard()
            in_force.dropped = True
            _warn(f"unclosed {self!r}: call close(), or use it in a `with`", ResourceWarning, source=self)

    def _abandon(self) -> None:
        """Reset the router in the child of a fork; the parent's connections are neither used nor closed here."""
        self._in_force.abandon()
        self._in_force.directory = self._ask_of()
        self._statements.abandon()

    @property
    def _topology(self) -> Topology:
        return self._in_force.topology

    def _snapshot(self) -> Snapshot:
        """Return one moment's view of the inside, for tests."""
        from router._sync.snapshot import snapshot

        return snapshot(self._in_force, self._statements)

    def _ask_of(self) -> Directory | None:
        """The directory of these settings; ``None`` if they have none."""
        tenancy, source = self._topology.tenancy, self._directory
        if tenancy is None or (source is None and tenancy.directory.version is None):
            return None
        from router._sync.directory import Directory

        return Directory(source, self._settings, tenancy.directory, self._in_force, keep=self._given)


def _check_callable(**given: object) -> None:
    for name, function in given.items():
        if function is not None and not callable(function):  # the value is not shown: it may be a password
            raise TypeError(f"{name} must be callable, not {type(function).__name__}")
