"""The connection class of the pools: it notes what its death would leave unknown, and closes its session."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, LiteralString, NoReturn, TypeVar

import psycopg
from psycopg import AsyncConnection, postgres
from psycopg.pq import Format, TransactionStatus

from router._async.pool.inside.connection import (
    LENT_BY,
    PIPELINE,
    AsyncDriverConnection,
    deallocate_all,
    in_pipeline,
    is_answered,
    note_closed,
    prepared_of,
    use_prepared,
)
from router._async.pool.inside.objects import ended_by
from router._async.pool.inside.prepared import PreparedStatements
from router.core.errors import TransactionOutcomeUnknown
from router.core.stale import is_spoilt, is_stale, is_stale_session
from router.core.statement import commits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg import Xid
    from psycopg.abc import PQGen, QueryNoTemplate
    from psycopg.adapt import AdaptersMap
    from psycopg.pq.abc import PGconn

    from router._async.pool.session_state import SessionState
    from router._async.slot import AsyncSlot, AsyncSlotRequest

T = TypeVar("T")

FRESH = 0.001
"""Seconds after a server's answer in which a session is lent without polling its socket, which is a system call."""

UNREAD = ("25P03", "57P05")
"""SQLSTATEs of sessions that the server ended because they were idle: it never read what was sent afterwards."""

IDLE, ACTIVE, LOST = TransactionStatus.IDLE, TransactionStatus.ACTIVE, TransactionStatus.UNKNOWN
INERROR = TransactionStatus.INERROR
IN_TRANSACTION = (TransactionStatus.INTRANS, INERROR)
COMMITTING = "during COMMIT: whether the transaction is committed"
WRITING = "while a statement ran there: whether it was carried out"


async def end_session(
    connection: AsyncConnection[Any] | SessionState,
    beneficiary: AsyncSlotRequest | None = None,
    *,
    in_use: bool = False,
) -> None:
    """Close a session, and return its slot of the process's budget.

    Args:
        connection: The session, or its connection, which is not borrowed.
        beneficiary: The request for a slot that it is closed for, if any.
        in_use: Whether a thread or task still uses it: it was cut, and is freed when that use ends.
    """
    if (slot := getattr(connection, "slot", None)) is not None:
        await slot.close(connection.pgconn, beneficiary, in_use=in_use)
    elif not in_use:
        connection.pgconn.finish()


class _Info(psycopg.ConnectionInfo):
    """The value of ``connection.info``: it reads from the connection object, so that it ends with the block."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection

    @property
    def pgconn(self) -> PGconn:  # type: ignore[override]  # an attribute of psycopg's
        return self._connection.pgconn


class AsyncNodeConnection(AsyncDriverConnection):
    """A connection of a node: it raises if the outcome of a transaction is unknown, and drops stale plans.

    If the server refuses the login, the error has the SQLSTATE. Statements that were sent and may commit something are
    noted until they have been answered.

    Attributes:
        slot: Its slot of the process's budget, which is returned when it is closed.
        unknown: The error that was raised when it died with an unknown outcome.
    """

    # Most borrowers never set these, so they are class attributes: a new object is made for every borrower.
    slot: AsyncSlot | None = None
    unknown: TransactionOutcomeUnknown | None = None
    _unknown_if_lost = ""  # what is not known if the connection is lost now; empty for nothing
    _router: SessionState | None = None  # the state of its session, once it belongs to a pool

    def __init__(self, pgconn: PGconn) -> None:
        super().__init__(pgconn)
        self._sent: set[bytes] = set()  # the texts of statements that are not answered yet
        use_prepared(self, PreparedStatements(self._sent))

    def __del__(self) -> None:  # type: ignore[override]  # psycopg's takes the function that warns, too
        if (session := self.__dict__.get("_router")) is None:
            super().__del__()
        else:
            session.object_is_gone()

    @property
    def initial_adapters(self) -> AdaptersMap:
        """The adapters that the borrower begins with, as ``configure=`` left them."""
        return postgres.adapters if self._router is None else self._router.adapters

    @property
    def info(self) -> psycopg.ConnectionInfo:
        """Properties of the connection, readable until its block ends."""
        return _Info(self)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse to be copied: a copy of this object could use the session after the block."""
        raise TypeError("a connection cannot be copied or pickled")

    def cancel(self) -> None:
        """Cancel the current operation; no other borrower gets the connection before the request has been sent."""
        with self._cancelling():
            super().cancel()

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Cancel the current operation; no other borrower gets the connection before the request has been sent.

        Args:
            timeout: The most to wait, in seconds.
        """
        with self._cancelling():
            await super().cancel_safe(timeout=timeout)

    @contextmanager
    def _cancelling(self) -> Iterator[None]:
        """Note that a request to cancel is under way; it takes no lock, and any thread may make it."""
        if (session := self._router) is None:
            yield
            return
        session.begin_use(self, use := object())
        try:
            yield
        except BaseException:
            session.dirty = True  # the request may still arrive, and would then cancel a statement of the next borrower
            raise
        finally:
            session.end_use(self, use)

    # Values set below are not attributes of the connection object, which is new for each borrower: so it is noted that
    # they have to be restored. (`type: ignore`: mypy takes a property of a class for the value that it returns.)

    @property
    def prepare_threshold(self) -> int | None:
        """How often a query is executed before it is prepared; 0 prepares it at once, ``None`` never."""
        return AsyncConnection.prepare_threshold.fget(self)  # type: ignore[attr-defined, no-any-return]

    @prepare_threshold.setter
    def prepare_threshold(self, value: int | None) -> None:
        self._note_altered()
        AsyncConnection.prepare_threshold.fset(self, value)  # type: ignore[attr-defined]

    @property
    def prepared_max(self) -> int | None:
        """The most statements that are prepared at a time; ``None`` for any number."""
        return AsyncConnection.prepared_max.fget(self)  # type: ignore[attr-defined, no-any-return]

    @prepared_max.setter
    def prepared_max(self, value: int | None) -> None:
        self._note_altered()
        AsyncConnection.prepared_max.fset(self, value)  # type: ignore[attr-defined]

    def add_notice_handler(self, callback: Callable[[psycopg.errors.Diagnostic], None]) -> None:
        """Call a function with each notice until the block ends.

        Args:
            callback: The function.
        """
        self._note_altered()
        super().add_notice_handler(callback)

    def add_notify_handler(self, callback: Callable[[psycopg.Notify], None]) -> None:
        """Call a function with each notification until the block ends.

        Args:
            callback: The function.
        """
        self._note_altered()
        super().add_notify_handler(callback)

    def remove_notice_handler(self, callback: Callable[[psycopg.errors.Diagnostic], None]) -> None:
        """Stop calling a function with notices, until the block ends.

        Args:
            callback: The function.
        """
        self._note_altered()
        super().remove_notice_handler(callback)

    def remove_notify_handler(self, callback: Callable[[psycopg.Notify], None]) -> None:
        """Stop calling a function with notifications, until the block ends.

        Args:
            callback: The function.
        """
        self._note_altered()
        super().remove_notify_handler(callback)

    def _note_altered(self) -> None:
        if self._router is not None:
            self._router.altered = True

    async def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Run a generator of psycopg that operates on the connection; everything that is sent and read goes through it.

        Args:
            gen: The generator.
            *args: psycopg's arguments.
            **kwargs: psycopg's keyword arguments.

        Returns:
            The generator's result.

        Raises:
            TransactionOutcomeUnknown: The connection died after a statement that commits was sent, unless the server
                had ended the session before that.
            psycopg.Error: The operation failed.
        """
        if (session := self._router) is not None:
            session.uses.add(id(gen))  # begin_use(), and end_use() below, written out: every statement runs this
        try:
            sent, before = self._sent, self.pgconn.transaction_status  # `_sent` raises once the block has ended
            if session is not None and session.is_closing:
                raise psycopg.OperationalError("the connection is closed")
            pipeline = self.__dict__[PIPELINE]
            if before != ACTIVE and (pipeline is None or is_answered(self)):
                self._unknown_if_lost = ""
                sent.clear()
            try:
                run = AsyncConnection.wait
                answer = await (run(self, gen, *args, **kwargs) if args or kwargs else run(self, gen))
            except psycopg.Error as error:
                await self._note_failed(error, before)
                raise
            if pipeline is None and session is not None and (sent or self._unknown_if_lost):
                session.fresh_until = monotonic() + FRESH
            return answer
        finally:
            if session is not None:
                session.uses.discard(id(gen))
                if session.over:
                    session.end(self)

    async def close(self) -> None:
        """Close the connection; if it is borrowed, its pool may open another connection in its place."""
        pool: Any = self.__dict__.get(LENT_BY)
        if pool is not None:
            await pool.closer.close_lent(self)
        else:
            note_closed(self)
            await end_session(self)

    async def _note_failed(self, error: psycopg.Error, before: int) -> None:
        """Note what an error shows of the session, and raise a more precise error if there is one."""
        if (session := self._router) is not None:
            if is_spoilt(error) or is_stale_session(error):
                session.dirty = True
            if session.ended_by and error.sqlstate is None:
                raise ended_by(session.ended_by) from error
        if is_stale(error):
            await self._forget()
        ended = self.closed or error.diag.severity_nonlocalized in ("FATAL", "PANIC")
        if before == LOST or error.sqlstate in UNREAD or not ended or (unknown := self._outcome_unknown()) is None:
            return
        self.unknown = unknown
        raise unknown from error

    def _outcome_unknown(self) -> TransactionOutcomeUnknown | None:
        """Make the error for an unknown outcome; ``None`` if the outcome is known or does not matter."""
        pool: Any = self.__dict__.get(LENT_BY)
        if pool is None or (session := self._router) is None or session.target is None:
            return None
        unknown = self._unknown_if_lost or (COMMITTING if any(map(commits, self._sent)) else "")
        if not unknown or (pool.read_only and session.refuses_writes):
            return None
        return TransactionOutcomeUnknown(
            f"the connection to {pool.node} died {unknown} is not known; "
            "look on the primary for what it wrote before you repeat it",
            version=session.target.requested,
            tenant=session.target.tenant,
        )

    async def _forget(self) -> None:
        """Drop the prepared statements, of psycopg and of the server."""
        prepared = prepared_of(self)
        names = prepared.forget()
        if self.pgconn.transaction_status == IDLE and not in_pipeline(self):
            with suppress(psycopg.Error):
                await AsyncConnection.wait(self, deallocate_all(self))
        else:  # later, when the server accepts statements again; by name, since others may have been prepared by then
            prepared.deallocate_later(names)

    def note_statement(self, *, commits_itself: bool) -> None:
        """Note that a statement may write, if it runs outside of a transaction."""
        if commits_itself and self.pgconn.transaction_status not in IN_TRANSACTION:
            self._unknown_if_lost = WRITING

    def note_commit(self) -> None:
        """Note that a statement is about to be sent that commits."""
        self._unknown_if_lost = COMMITTING

    def run_command(self, command: QueryNoTemplate, result_format: Format) -> PQGen[Any]:
        """Run a command that psycopg sends by itself, and note whether it commits.

        Args:
            command: The command.
            result_format: The format of the result.

        Returns:
            psycopg's generator for it.
        """
        if command == b"COMMIT" and self.pgconn.transaction_status != INERROR:
            self.note_commit()
        return super().run_command(command, result_format)

    def prepare_two_phase(self) -> PQGen[None]:
        """Run the first phase of a two-phase commit, and note that it commits."""
        self.note_commit()
        yield from super().prepare_two_phase()

    def finish_two_phase(self, action: LiteralString, xid: Xid | str | None) -> PQGen[None]:
        """Run the second phase of a two-phase commit, and note if it commits.

        Args:
            action: ``COMMIT`` or ``ROLLBACK``.
            xid: The transaction; ``None`` for the connection's own.

        Yields:
            The events that psycopg waits for.
        """
        if action == "COMMIT":
            self.note_commit()
        yield from super().finish_two_phase(action, xid)
