"""The public face of the router: connections, sessions, statements, and what can be asked of it."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Self, TypeVar

from router._async.checkout import AsyncCheckout, AsyncTrackedCheckout
from router._async.routing import AsyncRouting
from router._async.statements import AsyncStatements
from router._runtime import survive_fork
from router.choose import Request
from router.consistency import UNSURE, Position, settled
from router.errors import TokenRefused
from router.health import UNKNOWN, fenced, lag_of, primary_of, role_of, state_of
from router.measures import NodeStats, Stats, VersionStats
from router.resolve import resolve
from router.sessions import CURRENT, Session, current, parsed
from router.settings import RouterSettings
from router.topology import Role

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from psycopg import AsyncConnection
    from psycopg.abc import Params, QueryNoTemplate
    from psycopg.rows import TupleRow

    from router._runtime import AConfigure, AFunction, APassword
    from router.choose import Route
    from router.events import Observer
    from router.result import Result
    from router.topology import Node, Target

T = TypeVar("T")


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
        observers: Sequence[Observer] = (),
    ) -> None:
        """Make a router; nothing is opened yet.

        Args:
            settings: What to route to; ``None`` reads the environment.
            password: Gives the password of a node, for credentials that rotate: asked at the first connection to the
                node, and again when the server turns its last answer down.
            configure: Called with each new connection, to register adapters and the like; it must leave it idle.
            observers: Called with each event (``router.events``), in the thread or task where it is seen: they must
                not block.

        Raises:
            ConfigError: The settings are wrong.
        """
        self._topology = (RouterSettings() if settings is None else settings).topology()
        self._routing = AsyncRouting(self._topology, password=password, configure=configure, observers=observers)
        self._statements = AsyncStatements()
        survive_fork(self)

    def connection(
        self,
        *,
        version: str | None = None,
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
            version: The version, or an alias of it; ``None`` takes ``default_version``.
            read_only: Whether the block only reads.
            max_lag: For a read, the most seconds that a replica may be behind; ``None`` takes ``read.max_lag``.
            after: For a read, the token of a session whose writes it must see, besides those of the session around it.
            timeout: Seconds for choosing, connecting and waiting together; ``None`` takes ``pool.timeout``.

        Returns:
            A context manager that gives a :class:`psycopg.AsyncConnection`.

        Raises:
            UnknownVersion: There is no such version, or none was named and there is no default.
            RouterClosed: The router was closed.
            TokenRefused: ``after`` is a foreign token, and ``tokens.foreign`` is ``refuse``.
            Unavailable: On entering the block: no connection could be had in time; its subclasses say why.
            TransactionOutcomeUnknown: On leaving it: the connection died during COMMIT.
        """
        routing = self._routing
        lane = (routing.readers if read_only else routing.writers).get(version)
        if lane is None or after is not None or max_lag is not None or CURRENT.get() is not None:
            return self._checkout(version=version, read_only=read_only, max_lag=max_lag, after=after, timeout=timeout)
        return AsyncCheckout(lane, timeout)

    def session(self, token: str | None = None) -> Session:
        """Make the reads of this task or thread see what it writes, for the length of a block.

        Args:
            token: What an earlier session handed on, so that its writes are seen, too; ``None`` or empty for nothing.

        Returns:
            A context manager, plain and not async, that gives the :class:`Session`; its ``token`` is for handing on.

        Raises:
            TokenRefused: The token is a foreign one, and ``tokens.foreign`` is ``refuse``.
        """
        return Session(self, self._topology.tokens, token)

    async def execute(
        self,
        query: QueryNoTemplate,
        params: Params | None = None,
        *,
        version: str | None = None,
        max_lag: float | None = None,
        after: str | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Run one statement by itself, wherever PostgreSQL lets it run.

        A statement that is new to the router goes to a replica, in a session that refuses writes; if the server refuses
        it, it runs on the primary, now and from then on. It is committed at once. What it leaves in its session
        (``SET``, ``LISTEN``, a temporary table, an advisory lock) ends with it.

        Args:
            query: The statement.
            params: Its parameters.
            version: The version, or an alias of it; ``None`` takes ``default_version``.
            max_lag: As for :meth:`connection`, should it read.
            after: As for :meth:`connection`, should it read.
            timeout: Seconds for getting a connection; ``None`` takes ``pool.timeout``.

        Returns:
            The whole result.

        Raises:
            UnknownVersion: There is no such version, or none was named and there is no default.
            Unavailable: No connection could be had in time.
            TransactionOutcomeUnknown: The connection died while the statement ran on the primary. (A read whose
                connection dies is run once more elsewhere.)
            psycopg.Error: PostgreSQL refused the statement.
        """
        reading = partial(
            self._checkout, version=version, read_only=True, max_lag=max_lag, after=after, timeout=timeout
        )
        writing = partial(self._checkout, version=version, timeout=timeout)
        return await self._statements.execute(query, params, version, reading, writing)

    async def run(
        self,
        function: AFunction[[AsyncConnection[TupleRow]], T],
        *,
        version: str | None = None,
        retries: int = 3,
        timeout: float | None = None,
    ) -> T:
        """Run a function in a transaction on the primary, and again if that fails for a reason that passes.

        Such reasons are a serialization failure, a deadlock, and a connection that is lost before COMMIT.

        Args:
            function: Called with the connection; it may be called several times, and must leave no trace elsewhere. It
                cannot commit by itself; ``connection.transaction()`` inside it is a savepoint.
            version: The version, or an alias of it; ``None`` takes ``default_version``.
            retries: How often it is run again at most.
            timeout: Seconds for getting a connection, each time; ``None`` takes ``pool.timeout``.

        Returns:
            What the function returned.

        Raises:
            TransactionOutcomeUnknown: The connection died during COMMIT: it is not run again.
            Unavailable: No connection could be had in time.
            psycopg.Error: What it failed with the last time.
        """
        writing = partial(self._checkout, version=version, timeout=timeout)
        return await self._statements.run(function, writing, retries=retries)

    def explain(
        self,
        *,
        version: str | None = None,
        read_only: bool = False,
        max_lag: float | None = None,
        after: str | None = None,
    ) -> Route:
        """Say where a request would go now, and why; nothing is opened.

        Args:
            version: As for :meth:`connection`.
            read_only: As for :meth:`connection`.
            max_lag: As for :meth:`connection`.
            after: As for :meth:`connection`.

        Returns:
            The route; its ``repr`` is for reading.

        Raises:
            UnknownVersion: As for :meth:`connection`.
            RouterClosed: The router was closed.
            TokenRefused: As for :meth:`connection`.
        """
        target = resolve(self._topology, version)
        position = self._must_see(target, current(self), after) if read_only else None
        return self._routing.choose(target, Request(read_only, max_lag, position))

    def stats(self) -> Stats:
        """Return one moment's view of every version, node and pool.

        Returns:
            Frozen values; the ``repr`` is for reading.
        """
        health, pools, now = self._routing.health, self._routing.pools, monotonic()
        versions = []
        for name, cluster in self._topology.versions.items():
            out = fenced(health, cluster)
            primary = primary_of(health, cluster, out)
            nodes = []
            for node in cluster.nodes:
                state, role = state_of(health, node), role_of(health, node)
                lag = lag_of(health, node, primary, now=now) if state.up and role is Role.REPLICA else None
                read, write = pools.get((name, node, True)), pools.get((name, node, False))
                nodes.append(
                    NodeStats(
                        node=node,
                        role=role,
                        state="unknown" if state.up is None else "up" if state.up else "down",
                        reason=state.reason or out.get(node, ""),
                        server_version=state.server_version,
                        timeline=state.timeline,
                        lag=None if lag is None else lag.seconds,
                        lag_bytes=None if lag is None else lag.bytes,
                        latency=state.latency,
                        failures=state.failures,
                        read=None if read is None else read.stats(),
                        write=None if write is None else write.stats(),
                    )
                )
            versions.append(VersionStats(name, tuple(nodes)))
        return Stats(self._routing.slots.taken, self._topology.max_connections, tuple(versions))

    async def close(self, timeout: float = 5.0) -> int:
        """Close every pool; no further request is served.

        Args:
            timeout: The most to wait for borrowed connections to come back, in seconds.

        Returns:
            How many borrowed connections were cut because they did not come back in time; their queries fail.
        """
        return await self._routing.close(timeout)

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
        return f"<{type(self).__name__} {'closed ' if self._routing.closed else ''}{names}>"

    def abandon(self) -> None:
        """Start anew in the child of a fork: what is open is the parent's, and is neither used nor closed here."""
        self._routing.abandon()
        self._statements.abandon()

    def _checkout(
        self,
        *,
        version: str | None,
        read_only: bool = False,
        max_lag: float | None = None,
        after: str | None = None,
        timeout: float | None,
        avoid: Node | None = None,
    ) -> AsyncCheckout:
        """Borrow a connection, for whoever does not name a known key and nothing else."""
        routing, session = self._routing, current(self)
        lane = (routing.readers if read_only else routing.writers).get(version)
        if lane is None:
            lane = routing.lane(version, read_only=read_only)
        if not read_only:
            if session is None:
                return AsyncCheckout(lane, timeout)
            note = partial(self._note, session, lane.target.version)
            return AsyncTrackedCheckout(lane, timeout, request=None, note=note)
        position = self._must_see(lane.target, session, after)
        if position is None and max_lag is None and avoid is None:
            return AsyncCheckout(lane, timeout)
        return AsyncTrackedCheckout(lane, timeout, request=Request(read_only, max_lag, position, avoid), note=None)

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
        return self._routing.must_see(target, positions)

    def _note(self, session: Session, version: str, node: Node, written: tuple[int, int] | None) -> None:
        known = self._routing.health.get(node.server, UNKNOWN)
        position, timeline = (UNSURE, known.timeline) if written is None else written
        session.wrote(version, Position(known.system, timeline, settled(position)))
