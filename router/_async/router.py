"""The public face of the router: connections, sessions, statements, and what can be asked of it."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Self, TypeVar
from warnings import warn

from router._async.acquired import lend
from router._async.checkout import AsyncCheckout, AsyncLookupCheckout, AsyncScopedCheckout, AsyncTrackedCheckout
from router._async.directory import AsyncDirectory
from router._async.each import each, tenants_of
from router._async.in_force import AsyncInForce
from router._async.lane_table import DirectoryLookupNeeded
from router._async.snapshot import stats
from router._async.statements import AsyncStatements
from router._runtime.calls import WeakCall
from router._runtime.flags import acheck_locks
from router._runtime.forks import survive_fork
from router._runtime.workers import abind_loop, aloop_closed, arunning_loop
from router.ambient import ambient_of
from router.context import CURRENT, named
from router.core.consistency import UNSURE, Position, without_page_header
from router.core.errors import TokenRefused, UnknownTenant
from router.core.health import UNKNOWN
from router.core.outcomes import needs_list
from router.core.policies import PoolPolicy
from router.core.standing import Request
from router.core.topology import Tenancy
from router.sessions import current_session, parsed
from router.settings import RouterSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from psycopg import AsyncConnection
    from psycopg.abc import Params, Query
    from psycopg.rows import TupleRow

    from router._runtime.calls import AConfigure, AFunction, APassword, ASource
    from router.ambient import Carried, Current
    from router.context import Use
    from router.core.choose import Route
    from router.core.events import Observer
    from router.core.measures import Stats
    from router.core.outcomes import Outcomes
    from router.core.result import Result
    from router.core.topology import Node, Target
    from router.sessions import Session

T = TypeVar("T")

ASK = PoolPolicy().timeout
"""Seconds to find out where a tenant lives and to get a connection, for a request that names no timeout."""


class AsyncRouter:
    """Sends each request to the right pool: by version, to the right server, for reading or for writing.

    Pools open at first use. It may be used at once, or as a context manager that closes it at the end.
    """

    def __init__(
        self,
        settings: RouterSettings | None = None,
        *,
        password: APassword | None = None,
        configure: AConfigure | None = None,
        directory: ASource | None = None,
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
        self._topology = self._settings.topology()
        if directory is not None and self._topology.tenancy is None:
            self._topology = self._topology._replace(tenancy=Tenancy())
        self._directory = directory
        self._ambient = ambient_of(self._topology)
        self._given: list[object] = []
        self._in_force = AsyncInForce(
            self._topology,
            password=None if password is None else WeakCall(password, self._given),
            configure=None if configure is None else WeakCall(configure, self._given),
            observers=[WeakCall(observer, self._given, quiet=True) for observer in observers],
        )
        self._in_force.directory = self._ask_of()
        self._statements = AsyncStatements(self._in_force)
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
    ) -> AsyncCheckout:
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
            A context manager that gives a :class:`psycopg.AsyncConnection`.

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
            return self._checkout(
                version=version, tenant=tenant, read_only=read_only, max_lag=max_lag, after=after, timeout=timeout
            )
        return lane.checkout(lane, timeout)

    async def acquire(
        self,
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
        checkout = self._checkout(
            version=version,
            tenant=tenant,
            read_only=read_only,
            max_lag=max_lag,
            after=after,
            timeout=timeout,
            begin=begin,
            detached=True,
        )
        return await lend(checkout, self._ambient, self._note)

    def session(self, token: str | None = None) -> Session:
        """Make the reads of this task or thread see what it writes, for the length of a block.

        Args:
            token: What an earlier session handed on, so that its writes are seen, too; ``None`` or empty for nothing.

        Returns:
            A context manager, plain and not async, that gives the :class:`Session`; its ``token`` is for handing on.

        Raises:
            TokenRefused: The token is a foreign one, and ``tokens.foreign`` is ``refuse``.
        """
        return self._ambient.session(self._in_force.topology, token)

    def use(self, *, tenant: str | None = None, version: str | None = None, lock: bool = False) -> Use:
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
            UnknownTenant: What was named is no tenant's key; or nothing was named, neither tenant nor version nor lock.
            TenantLocked: On entering the block: one around it is locked to another tenant.
        """
        return self._ambient.use(self._in_force.topology, tenant, version, lock=lock)

    def current(self) -> Current:
        """Tell what is in force for the requests of this task or thread.

        Returns:
            Tenant, version and session, as :meth:`use`, :meth:`session` and :meth:`carried` have begun them here for
            any router with these settings.

        Raises:
            RuntimeError: A session or a lock is open here and not in force, for its generator is suspended.
        """
        return self._ambient.current()

    def carry(self) -> dict[str, str]:
        """Write what is in force here as text, for a job or the headers of a request to another service.

        Returns:
            Names, which may be those of headers, and values in ASCII, without secrets: tenant, version, whether that is
            locked, and the token of the session. Empty for nothing.

        Raises:
            RuntimeError: As for :meth:`current`.
        """
        return self._ambient.carry()

    def carried(self, mapping: Mapping[str, str]) -> Carried:
        """Have what was carried in force, for the length of a block: the other end of :meth:`carry`.

        Args:
            mapping: What was carried, maybe among others, such as the headers of a request. It is not signed, but for
                the token where ``tokens.key`` is set: take it from your own services only.

        Returns:
            A context manager, plain and not async; its ``session`` is the one that goes on in it.

        Raises:
            UnknownTenant: It names what is no tenant's key.
            UnknownVersion: It names no version of these settings.
            TokenRefused: Its token is a foreign one, and ``tokens.foreign`` is ``refuse``.
            TenantLocked: On entering the block: one around it is locked to another tenant.
            TypeError: One of the values is no text.
        """
        return self._ambient.carried(self._in_force.topology, mapping)

    async def execute(
        self,
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
            version: As for :meth:`connection`.
            tenant: As for :meth:`connection`.
            max_lag: As for :meth:`connection`, should it read.
            after: As for :meth:`connection`, should it read.
            timeout: Seconds for getting a connection; ``None`` takes ``pool.timeout``.

        Returns:
            The whole result.

        Raises:
            UnknownVersion: As for :meth:`connection`.
            UnknownTenant: As for :meth:`connection`.
            Unavailable: No connection could be had in time.
            TransactionOutcomeUnknown: The connection died while the statement ran on the primary. (A read whose
                connection dies is run again elsewhere.)
            TypeError: It is no statement.
            psycopg.Error: PostgreSQL refused the statement.
        """
        checkout = partial(self._checkout, version=version, tenant=tenant, timeout=timeout)
        reading = partial(checkout, read_only=True, max_lag=max_lag, after=after)
        writing = partial(checkout, begin=False)
        return await self._statements.execute(query, params, reading, writing)

    async def run(
        self,
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
            version: As for :meth:`connection`.
            tenant: As for :meth:`connection`.
            retries: How often it is run again at most.
            timeout: Seconds for getting a connection, each time; ``None`` takes ``pool.timeout``.

        Returns:
            What the function returned.

        Raises:
            TransactionOutcomeUnknown: The connection died during COMMIT: it is not run again.
            Unavailable: No connection could be had in time.
            psycopg.Error: What it failed with the last time.
        """
        writing = partial(self._checkout, version=version, tenant=tenant, timeout=timeout, begin=False)
        return await self._statements.run(function, writing, retries=retries)

    async def each(
        self,
        function: AFunction[[AsyncConnection[TupleRow], str], T],
        *,
        tenants: str | Iterable[str] | None = None,
        version: str | None = None,
        jobs: int = 8,
        stop_on_error: bool = False,
    ) -> Outcomes[T]:
        """Call a function for each tenant, with a connection that writes: one transaction a tenant.

        What fails for one tenant is rolled back and reported, and the others go on. Requests that the function makes
        itself are the tenant's, too, as in :meth:`use`. It does not matter whether all find room in the budget: who
        finds none waits until it is their turn.

        Args:
            function: Called with the connection and the tenant's key.
            tenants: Keys; or a pattern as for ``router each --tenants``, such as ``"acme,eu-*"``; ``None`` for all that
                the settings and the directory list.
            version: As for :meth:`connection`. Of tenants that are not named by their keys, those who live there.
            jobs: For how many tenants at the same time.
            stop_on_error: Whether no further tenant is begun once one has failed.

        Returns:
            What the function returned or failed with, by tenant.

        Raises:
            UnknownVersion: There is no such version.
            UnknownTenant: The pattern stands for nobody, the directory cannot list its tenants, or what was named is no
                tenant's key; nothing has been done.
            TenantLocked: A ``use(…, lock=True)`` around it is for another tenant; nothing has been done.
            ValueError: ``jobs`` is less than 1.
        """
        if jobs < 1:
            raise ValueError(f"jobs is {jobs}: it must be at least 1")
        self._belongs_here()
        _, version = named(self._ambient, None, version)
        keys = await tenants_of(self._in_force, tenants, version)
        for key in keys:
            try:
                with self.use(tenant=key):  # one that is not to be named here is refused before anything is done
                    pass
            except UnknownTenant:  # of those that a list has, each fails by itself
                if tenants is not None and not (isinstance(tenants, str) and needs_list(tenants)):
                    raise
        return await each(
            function,
            keys,
            within=lambda tenant: self.use(tenant=tenant, version=version),
            borrow=lambda tenant: self.connection(version=version, tenant=tenant),
            jobs=jobs,
            stop_on_error=stop_on_error,
        )

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
        tenant, version = named(self._ambient, tenant, version)
        try:
            target = self._in_force.lanes.target(version, tenant)
        except DirectoryLookupNeeded:
            raise UnknownTenant(tenant, "the directory has not been asked for it yet") from None
        position = self._must_see(target, current_session(self._ambient), after) if read_only else None
        return self._in_force.routes.choose(target, Request(read_only, max_lag, position))

    def stats(self) -> Stats:
        """Return one moment's view of every version, node and pool.

        Returns:
            Frozen values; the ``repr`` is for reading.
        """
        return stats(self._in_force)

    async def close(self, timeout: float = 5.0) -> int:
        """Close every pool; no further request is served.

        Args:
            timeout: The most to wait for borrowed connections to come back, in seconds.

        Returns:
            How many borrowed connections were cut because they did not come back in time; their queries fail.
        """
        if aloop_closed(self._in_force.slots.loop):
            return self._in_force.discard()
        self._belongs_here()
        return await self._in_force.close(timeout)

    async def __aenter__(self) -> Self:
        """Return the router itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()

    def __repr__(self) -> str:
        """Show its versions and aliases."""
        topology = self._topology
        names = ", ".join([*topology.versions, *(f"{alias}={version}" for alias, version in topology.aliases.items())])
        return f"<{type(self).__name__} {'closed ' if self._in_force.closed else ''}{names}>"

    def __del__(self, _warn: Callable[..., None] = warn) -> None:
        """Have it closed, with a warning, by what it has begun, if it was dropped without :meth:`close`."""
        in_force: AsyncInForce | None = getattr(self, "_in_force", None)  # there is none if __init__ failed
        if in_force is not None and in_force.begun:
            # This may run in any thread, whatever that holds: nothing is waited for, and no lock is taken.
            if aloop_closed(in_force.slots.loop):
                in_force.discard()
            in_force.dropped = True
            _warn(f"unclosed {self!r}: call close(), or use it in a `with`", ResourceWarning, source=self)

    def abandon(self) -> None:
        """Start anew in the child of a fork: what is open is the parent's, and is neither used nor closed here."""
        self._in_force.abandon()
        self._in_force.directory = self._ask_of()
        self._statements.abandon()

    def _checkout(
        self,
        *,
        version: str | None,
        tenant: str | None,
        read_only: bool = False,
        max_lag: float | None = None,
        after: str | None = None,
        timeout: float | None,
        avoid: Node | None = None,
        begin: bool = True,
        detached: bool = False,
    ) -> AsyncCheckout:
        """Borrow a connection, for whoever does not name a known key and nothing else."""
        tenant, version = named(self._ambient, tenant, version)
        try:
            lane = self._in_force.lanes.find(version, tenant, read_only=read_only)
        except DirectoryLookupNeeded:
            again = partial(
                self._checkout,
                version=version,
                tenant=tenant,
                read_only=read_only,
                max_lag=max_lag,
                after=after,
                avoid=avoid,
                begin=begin,
                detached=detached,
            )
            return AsyncLookupCheckout(partial(self._find, str(tenant), again), ASK if timeout is None else timeout)
        session, note, request = current_session(self._ambient), None, None
        if not read_only:
            if session is not None and not detached:
                note = partial(self._note, session, lane.target.version)
        else:
            position = self._must_see(lane.target, session, after)
            if position is not None or max_lag is not None or avoid is not None:
                request = Request(read_only, max_lag, position, avoid)
        if lane.target.scope is not None:
            return AsyncScopedCheckout(lane, timeout, request=request, note=note, begin=begin)
        if note is None and request is None and not detached:
            return AsyncCheckout(lane, timeout)
        return AsyncTrackedCheckout(lane, timeout, request=request, note=note)

    async def _find(self, tenant: str, again: Callable[..., AsyncCheckout], deadline: float) -> AsyncCheckout:
        """Ask where a tenant lives, and make the checkout for the time that is left."""
        checkout: AsyncCheckout | None = None
        self._belongs_here()
        acheck_locks()
        directory = self._in_force.directory
        while directory is not None and (checkout is None or isinstance(checkout, AsyncLookupCheckout)):
            await directory.find(tenant, deadline)
            checkout = again(timeout=max(deadline - monotonic(), 0.0))  # a change may have been heard of again
        assert checkout is not None  # noqa: S101  (who asks has a directory)
        return checkout

    def _belongs_here(self) -> None:
        slots = self._in_force.slots
        if slots.loop is not arunning_loop():
            slots.loop = abind_loop(slots.loop)

    def _ask_of(self) -> AsyncDirectory | None:
        """The directory, if there is one."""
        tenancy, source = self._topology.tenancy, self._directory
        if tenancy is None or (source is None and tenancy.directory.version is None):
            return None
        return AsyncDirectory(source, self._settings, tenancy.directory, self._in_force, keep=self._given)

    def _must_see(self, target: Target, session: Session | None, after: str | None) -> Position | None:
        """What a read has to see: the writes of its session, and those of a token."""
        policy, version = self._topology.tokens, target.version
        positions = [] if session is None else session.positions(version)
        if after:
            token = parsed(after, policy)
            handed_on = token.of(version)
            if handed_on is not None:
                positions.append(handed_on)
            elif token and policy.foreign == "refuse":
                raise TokenRefused(f"the token says nothing of version {version!r}")
        return self._in_force.routes.must_see(target, positions)

    def _note(self, session: Session, version: str, node: Node, written: tuple[int, int] | None) -> None:
        known = self._in_force.clusters.health.get(node.server, UNKNOWN)
        position, timeline = (UNSURE, known.timeline) if written is None else written
        session.wrote(version, Position(known.system, timeline, without_page_header(position)))
