"""The connections that are lent."""

# ruff: noqa: SLF001  (as scripts.py, and for the same reason)

from __future__ import annotations

from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, LiteralString, NoReturn, Self, TypeVar

import psycopg
from psycopg import AsyncConnection, postgres
from psycopg._preparing import PrepareManager
from psycopg.adapt import AdaptersMap
from psycopg.pq import Format, TransactionStatus
from psycopg.rows import TupleRow

from router._runtime.login import log_in
from router.core.errors import TransactionOutcomeUnknown
from router.core.stale import is_spoilt, is_stale, is_stale_session
from router.core.statement import commits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Xid
    from psycopg._connection_base import NoticeHandler, NotifyHandler
    from psycopg._preparing import Key, Prepare
    from psycopg._queries import PostgresQuery
    from psycopg.abc import PQGen, PQGenConn, QueryNoTemplate
    from psycopg.pq.abc import PGconn

    from router._async.pool.session_state import SessionState
    from router._async.slot import AsyncSlot, AsyncSlotRequest

T = TypeVar("T")


FRESH = 0.001
"""Seconds after a server's answer in which a session is lent without being polled: a poll is a system call, and has a
thread release the interpreter to all others."""

UNREAD = ("25P03", "57P05")
"""SQLSTATEs of sessions that were ended because they were idle: what was sent to them afterwards was never read."""

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
    """Close a session for good, and give its slot of the process's budget back.

    Args:
        connection: The session, or its connection, which is not borrowed.
        beneficiary: The request for a slot that it is closed for, if it is for one.
        in_use: Whether something still uses it: it was cut, and is left to that.
    """
    slot: AsyncSlot | None = getattr(connection, "slot", None)
    if slot is not None:
        await slot.close(connection.pgconn, beneficiary, in_use=in_use)
    elif not in_use:
        connection.pgconn.finish()


class PreparedStatements(PrepareManager):
    """What psycopg has prepared in a session; keeps the texts of what was sent, too.

    psycopg tells it of each statement between sending and waiting, but for those of ``copy()``, ``stream()`` and
    server-side cursors.
    """

    def __init__(self, sent: set[bytes]) -> None:
        super().__init__()
        self._sent = sent

    def begin(self) -> None:
        """Note that something is about to be sent for a cursor."""

    def forget(self) -> None:
        """Keep nothing of what was prepared: the server has forgotten it."""
        self._counts.clear()
        self._names.clear()
        self._to_flush.clear()

    def maybe_add_to_cache(self, query: PostgresQuery, prep: Prepare, name: bytes) -> Key | None:
        self._sent.add(query.query)
        return PrepareManager.maybe_add_to_cache(self, query, prep, name)


class _Info(psycopg.ConnectionInfo):
    """What ``connection.info`` returns: it asks the connection object, so that it ends with the block."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection

    @property
    def pgconn(self) -> PGconn:  # type: ignore[override]  # an attribute of psycopg's
        return self._connection.pgconn


class AsyncNodeConnection(AsyncConnection[TupleRow]):
    """A connection of a node: it says when nobody can know what became of a transaction, and forgets stale plans.

    If the server refuses the login, the error has the SQLSTATE.
    What was sent and may have committed something is noted until it has been answered.

    Attributes:
        slot: Its slot of the process's budget, given back when it is closed.
        unknown: What was raised when it died in such a moment.
    """

    # What most borrowers leave alone is no attribute of each object: a new one is made for every borrower.
    slot: AsyncSlot | None = None
    unknown: TransactionOutcomeUnknown | None = None
    _death = ""  # what it would mean if the connection died now; empty for nothing
    _router: SessionState | None = None  # what is known of its session, once it is a pool's

    def __init__(self, pgconn: PGconn) -> None:
        super().__init__(pgconn)
        self._sent: set[bytes] = set()  # the texts of statements that are not answered yet
        self._prepared: PreparedStatements = PreparedStatements(self._sent)

    def __del__(self) -> None:  # type: ignore[override]
        if (session := self.__dict__.get("_router")) is None:
            super().__del__()
        else:
            session.object_is_gone()

    @property
    def adapters(self) -> AdaptersMap:
        """What this borrower's values are written and read with: as ``configure=`` left it, until the borrower adds."""
        if self._adapters is None:
            self._adapters = AdaptersMap(postgres.adapters if self._router is None else self._router.adapters)
        return self._adapters

    @property
    def info(self) -> psycopg.ConnectionInfo:
        """What is known of the connection, until its block ends."""
        return _Info(self)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse to be copied: a copy of this object would outlive the block, and use the session."""
        raise TypeError("a connection cannot be copied or pickled")

    def cancel(self) -> None:
        """Cancel the current operation; the connection serves nobody else before the server has been told."""
        with self._cancelling():
            super().cancel()

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Cancel the current operation; the connection serves nobody else before the server has been told.

        Args:
            timeout: The most to wait, in seconds.
        """
        with self._cancelling():
            await super().cancel_safe(timeout=timeout)

    @contextmanager
    def _cancelling(self) -> Iterator[None]:
        """Note that a request to cancel is on its way, which takes no lock, and may come from any thread."""
        if (session := self._router) is None:
            yield
            return
        session.begin_use(self, use := object())
        try:
            yield
        except BaseException:
            session.dirty = True  # it may still arrive, and would then end a statement of the next borrower's
            raise
        finally:
            session.end_use(self, use)

    # What is told to these lies deeper than the attributes that each borrower gets anew.

    @property
    def prepare_threshold(self) -> int | None:
        """How often a query is executed before it is prepared: at once if 0, never if ``None``."""
        return self._prepared.prepare_threshold

    @prepare_threshold.setter
    def prepare_threshold(self, value: int | None) -> None:
        self._note_altered()
        self._prepared.prepare_threshold = value

    @property
    def prepared_max(self) -> int | None:
        """The most statements that are prepared at a time; ``None`` for any number."""
        return AsyncConnection.prepared_max.fget(self)  # type: ignore[attr-defined, no-any-return]

    @prepared_max.setter
    def prepared_max(self, value: int | None) -> None:
        self._note_altered()
        AsyncConnection.prepared_max.fset(self, value)  # type: ignore[attr-defined]

    def add_notice_handler(self, callback: NoticeHandler) -> None:
        """Have a function called with each notice until the block ends.

        Args:
            callback: The function.
        """
        self._note_altered()
        super().add_notice_handler(callback)

    def add_notify_handler(self, callback: NotifyHandler) -> None:
        """Have a function called with each notification until the block ends.

        Args:
            callback: The function.
        """
        self._note_altered()
        super().add_notify_handler(callback)

    def remove_notice_handler(self, callback: NoticeHandler) -> None:
        """Have a function called no more, until the block ends.

        Args:
            callback: The function.
        """
        self._note_altered()
        super().remove_notice_handler(callback)

    def remove_notify_handler(self, callback: NotifyHandler) -> None:
        """Have a function called no more, until the block ends.

        Args:
            callback: The function.
        """
        self._note_altered()
        super().remove_notify_handler(callback)

    def _note_altered(self) -> None:
        if self._router is not None:
            self._router.altered = True

    @classmethod
    def _connect_gen(cls, conninfo: str = "") -> PQGenConn[Self]:
        return cls((yield from log_in(conninfo)))

    async def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Consume a generator of psycopg's that operates on the connection: all that is sent and read goes this way.

        Args:
            gen: The generator.
            *args: As psycopg takes them.
            **kwargs: As psycopg takes them.

        Returns:
            What the generator returns.

        Raises:
            TransactionOutcomeUnknown: The connection died when something had been sent that commits.
            psycopg.Error: It failed.
        """
        before = self.pgconn.transaction_status
        if before != ACTIVE and (self._pipeline is None or not self._pipeline.result_queue):  # all is answered
            self._death = ""
            self._sent.clear()
        if (session := self._router) is not None:
            session.begin_use(self, gen)
        try:
            answer = await AsyncConnection.wait(self, gen, *args, **kwargs)
            if session is not None and (self._sent or self._death) and self._pipeline is None:
                session.fresh_until = monotonic() + FRESH
            return answer  # noqa: TRY300
        except psycopg.Error as error:
            if is_stale(error):
                await self._forget(error)
            if session is not None and is_spoilt(error):
                session.dirty = True
            if before == LOST or not self._is_ended_by(error) or (unknown := self._outcome_unknown()) is None:
                raise
            self.unknown = unknown
            raise unknown from error
        finally:
            if session is not None:
                session.end_use(self, gen)

    async def close(self) -> None:
        """Close the connection; if it is borrowed, its pool may open another one in its place."""
        pool: Any = self.__dict__.get("_pool")
        if pool is not None:
            await pool.close_lent(self)
        else:
            self._closed = self._closed or not self.closed  # as psycopg tells whether it was broken before
            await end_session(self)

    def _is_ended_by(self, error: psycopg.Error) -> bool:
        if error.sqlstate in UNREAD:
            return False
        return self.closed or error.diag.severity_nonlocalized in ("FATAL", "PANIC")

    def _outcome_unknown(self) -> TransactionOutcomeUnknown | None:
        """Say that nobody knows what became of what was sent; ``None`` where that is known or does not matter."""
        pool: Any = self.__dict__.get("_pool")
        if pool is None or (session := self._router) is None or session.target is None:
            return None
        if pool.read_only and session.refuses_writes:
            return None
        death = self._death or (COMMITTING if any(map(commits, self._sent)) else "")
        if not death:
            return None
        return TransactionOutcomeUnknown(
            f"the connection to {pool.node} died {death} is not known; "
            "look on the primary for what it wrote before you repeat it",
            version=session.target.requested,
            tenant=session.target.tenant,
        )

    async def _forget(self, error: psycopg.Error) -> None:
        """Have psycopg and the server forget what is prepared; if that may not do, end the session with its block."""
        if self._router is not None and is_stale_session(error):
            self._router.dirty = True
        prepared = self._prepared
        names = [*prepared._names.values()]
        prepared.clear()
        prepared._to_flush.clear()
        if self.pgconn.transaction_status == IDLE and self._pipeline is None:
            with suppress(psycopg.Error):
                await AsyncConnection.wait(self, self._deallocate(None))
        else:  # as soon as the server listens again: each by its name, for others may have been prepared by then
            prepared._to_flush.extend(names)

    def _start_query(self) -> PQGen[None]:
        if self._autocommit and not self._num_transactions and self.pgconn.transaction_status not in IN_TRANSACTION:
            self._death = WRITING
        self._prepared.begin()
        return AsyncConnection._start_query(self)

    def _exec_command(self, command: QueryNoTemplate, result_format: Format = Format.TEXT) -> PQGen[Any]:
        if command == b"COMMIT" and self.pgconn.transaction_status != INERROR:
            self._death = COMMITTING
        return super()._exec_command(command, result_format)

    def _tpc_prepare_gen(self) -> PQGen[None]:
        self._death = COMMITTING
        yield from super()._tpc_prepare_gen()

    def _tpc_finish_gen(self, action: LiteralString, xid: Xid | str | None) -> PQGen[None]:
        if action == "COMMIT":
            self._death = COMMITTING
        yield from super()._tpc_finish_gen(action, xid)
