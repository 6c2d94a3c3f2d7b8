# Generated from router/_async/pool/connection.py by tools/async_to_sync.py: do not edit.
"""The connections that are lent."""

# ruff: noqa: SLF001  (as scripts.py, and for the same reason)

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, LiteralString, Self, TypeVar

import psycopg
from psycopg import Connection
from psycopg._preparing import PrepareManager
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.rows import TupleRow

from router._runtime.login import log_in
from router._sync.pool.scripts import answers, check, rows_of, send, sent
from router.core.errors import TransactionOutcomeUnknown
from router.core.statement import commits

if TYPE_CHECKING:
    from psycopg import Xid
    from psycopg._preparing import Key, Prepare
    from psycopg._queries import PostgresQuery
    from psycopg.abc import PQGen, PQGenConn, QueryNoTemplate
    from psycopg.pq.abc import PGconn

    from router._sync.slots import Slot, SlotRequest

T = TypeVar("T")


UNREAD = ("25P03", "57P05")
"""SQLSTATEs of sessions that were ended because they were idle: what was sent to them afterwards was never read."""

IDLE, ACTIVE, LOST = TransactionStatus.IDLE, TransactionStatus.ACTIVE, TransactionStatus.UNKNOWN
INERROR = TransactionStatus.INERROR
IN_TRANSACTION = (TransactionStatus.INTRANS, INERROR)
COMMITTING = "during COMMIT: whether the transaction is committed"
WRITING = "while a statement ran there: whether it was carried out"


def is_stale(error: psycopg.Error) -> bool:
    """Tell whether a statement failed because its session goes by tables or types as they were before a migration.

    Args:
        error: What it failed with.

    Returns:
        Whether it is so: then another session, or this one once it has forgotten what is prepared, may run it.
    """
    return _is_stale_plan(error) or _is_stale_session(error)


def is_spoilt(error: psycopg.Error) -> bool:
    """Tell whether a statement failed because its session is set so that every statement fails there.

    Args:
        error: What it failed with.

    Returns:
        Whether it is so: a hot standby has no serializable transactions, whoever made that the session's default.
    """
    return error.sqlstate == "0A000" and error.diag.source_function == "GetSerializableTransactionSnapshot"


def _is_stale_plan(error: psycopg.Error) -> bool:
    # 0A000 is also what a standby has for what it cannot read. The function's name is the same in every language.
    return error.sqlstate == "0A000" and error.diag.source_function == "RevalidateCachedQuery"


def _is_stale_session(error: psycopg.Error) -> bool:
    if error.sqlstate == "XX000":  # PostgreSQL does not translate what it says of errors of its own
        return (error.diag.message_primary or "").startswith("cache lookup failed")
    # PL/pgSQL, which keeps the types of its variables as long as the session lasts.
    return error.sqlstate == "42804" and (error.diag.source_function or "").startswith("plpgsql_param_eval")


def end_session(connection: Connection[Any], beneficiary: SlotRequest | None = None, *, in_use: bool = False) -> None:
    """Close a connection for good, and give its slot of the process's budget back.

    Args:
        connection: The connection, which is not borrowed.
        beneficiary: The request for a slot that it is closed for, if it is for one.
        in_use: Whether something still uses it: it was cut, and is left to that.
    """
    slot = connection.slot if isinstance(connection, NodeConnection) else None
    if slot is not None:
        slot.close(connection, beneficiary, in_use=in_use)
    elif not in_use:
        Connection.close(connection)


class _Prepared(PrepareManager):
    """Keeps the texts of what was sent: psycopg tells it of each statement between sending and waiting."""

    def __init__(self, sent: set[bytes]) -> None:
        super().__init__()
        self._sent = sent

    def maybe_add_to_cache(self, query: PostgresQuery, prep: Prepare, name: bytes) -> Key | None:
        self._sent.add(query.query)
        return PrepareManager.maybe_add_to_cache(self, query, prep, name)


class NodeConnection(Connection[TupleRow]):
    """A connection of a node: it says when nobody can know what became of a transaction, and forgets stale plans.

    If the server refuses the login, the error has the SQLSTATE.
    What was sent and may have committed something is noted until it has been answered.

    Attributes:
        slot: Its slot of the process's budget, given back when it is closed.
        unknown: What was raised when it died in such a moment.
        waiting: Whether somebody waits for the server now; not while rows are taken that have come.
    """

    __slots__ = ("_death", "_sent", "slot", "unknown", "waiting")  # not in its __dict__, which giving back compares

    def __init__(self, pgconn: PGconn) -> None:
        super().__init__(pgconn)
        self._death = ""  # what it would mean if the connection died now; empty for nothing
        self._sent: set[bytes] = set()  # the texts of statements that are not answered yet
        self._prepared = _Prepared(self._sent)
        self.slot: Slot | None = None
        self.unknown: TransactionOutcomeUnknown | None = None
        self.waiting = False

    @classmethod
    def _connect_gen(cls, conninfo: str = "") -> PQGenConn[Self]:
        return cls((yield from log_in(conninfo)))

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
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
        self.waiting = True
        try:
            return Connection.wait(self, gen, *args, **kwargs)
        except psycopg.Error as error:
            if is_stale(error):
                self._forget(error)
            if is_spoilt(error) and "_router" in self.__dict__:
                self.__dict__["_router"].spent = True
            if before == LOST or not self._is_ended_by(error):
                raise
            if (unknown := self._outcome_unknown()) is None:
                raise
            self.unknown = unknown
            raise unknown from error
        finally:
            self.waiting = False

    def close(self) -> None:
        """Close the connection; if it is borrowed, its pool may open another one in its place."""
        pool: Any = self.__dict__.get("_pool")
        if pool is not None:
            pool.close_lent(self)
        else:
            end_session(self)

    def _is_ended_by(self, error: psycopg.Error) -> bool:
        if error.sqlstate in UNREAD:
            return False
        return self.closed or error.diag.severity_nonlocalized in ("FATAL", "PANIC")

    def _outcome_unknown(self) -> TransactionOutcomeUnknown | None:
        """Say that nobody knows what became of what was sent; ``None`` where that is known or does not matter."""
        pool: Any = self.__dict__.get("_pool")
        if pool is None or (state := self.__dict__["_router"]).target is None:
            return None
        if pool.read_only and state.refuses_writes:
            return None
        death = self._death or (COMMITTING if any(map(commits, self._sent)) else "")
        if not death:
            return None
        return TransactionOutcomeUnknown(
            f"the connection to {pool.node} died {death} is not known; "
            "look on the primary for what it wrote before you repeat it",
            version=state.target.requested,
            tenant=state.target.tenant,
        )

    def _forget(self, error: psycopg.Error) -> None:
        """Have psycopg and the server forget what is prepared; if that may not do, end the session with its block."""
        if "_router" in self.__dict__ and _is_stale_session(error):
            self.__dict__["_router"].spent = True
        prepared = self._prepared
        names = [*prepared._names.values()]
        prepared.clear()
        prepared._to_flush.clear()
        if self.pgconn.transaction_status == IDLE and self._pipeline is None:
            with suppress(psycopg.Error):
                Connection.wait(self, self._deallocate(None))
        else:  # as soon as the server listens again: each by its name, for others may have been prepared by then
            prepared._to_flush.extend(names)

    def _start_query(self) -> PQGen[None]:
        if self._autocommit and not self._num_transactions and self.pgconn.transaction_status not in IN_TRANSACTION:
            self._death = WRITING
        return Connection._start_query(self)

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


class PooledConnection(NodeConnection):
    """A connection to a transaction pooler: whatever a tenant's session is set to rides with each BEGIN.

    Attributes:
        prelude: What goes after each BEGIN; empty for nothing.
    """

    prelude = b""

    def _get_tx_start_command(self) -> bytes:
        begin = super()._get_tx_start_command()
        return begin + b"; " + self.prelude if self.prelude else begin

    def _start_query(self) -> PQGen[None]:
        if self._autocommit and self.prelude:
            raise psycopg.ProgrammingError(
                "behind a transaction pooler a tenant's statements run in transactions: in autocommit it would be lost"
            )
        return super()._start_query()

    def _exec_command(self, command: QueryNoTemplate, result_format: Format = Format.TEXT) -> PQGen[Any]:
        if not self.prelude or not isinstance(command, bytes) or not command.endswith(self.prelude):
            return super()._exec_command(command, result_format)
        return self._begin_in_pipeline(command, result_format) if self._pipeline else sent(self, command, inf)

    def _begin_in_pipeline(self, command: bytes, result_format: Format) -> PQGen[None]:
        """Send both statements by themselves: in a pipeline each goes alone, and costs no round trip."""
        yield from super()._exec_command(command.removesuffix(b"; " + self.prelude), result_format)
        yield from super()._exec_command(self.prelude, result_format)


def commit(connection: Connection[Any], then: bytes) -> list[tuple[bytes | None, ...]]:
    """Commit a transaction, and ask something after that in the same round trip.

    Args:
        connection: The connection, in a transaction.
        then: What to ask, in ASCII.

    Returns:
        The rows; none if the question failed: the transaction is committed all the same.

    Raises:
        psycopg.ProgrammingError: psycopg would not commit here: a ``transaction()`` is open, say.
        psycopg.Error: It could not be committed.
    """
    if connection._num_transactions or connection._tpc or connection._pipeline:
        connection.commit()
        if connection._pipeline:  # where no script can be sent
            connection.pgconn.exit_pipeline_mode()
        with suppress(psycopg.Error):
            return send(connection, then)
        return []
    with connection.lock:
        return connection.wait(_committed(connection, b"COMMIT; " + then))


def _committed(connection: Connection[Any], script: bytes) -> PQGen[list[tuple[bytes | None, ...]]]:
    if isinstance(connection, NodeConnection):
        connection._death = COMMITTING
    committed, *asked = yield from answers(connection, script, inf)
    check(connection, committed)
    return rows_of(asked[0]) if asked and asked[0].status == ExecStatus.TUPLES_OK else []
