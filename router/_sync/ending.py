# Generated from router/_async/ending.py by tools/async_to_sync.py: do not edit.
"""How a block ends: commit or roll back, read the position of its writes, and observe what the outcome shows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus

from router._runtime.calls import Isolated
from router._sync.pool.closer import USERS
from router._sync.pool.commit import commit
from router._sync.pool.connection import NodeConnection
from router._sync.pool.inside.connection import in_pipeline
from router._sync.pool.scripts import send
from router._sync.pool.session_state import session_of, was_given_up
from router.core import sql
from router.core.errors import TransactionOutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._sync.pool.node_pool import NodePool
    from router.core.topology import Node

    Note: TypeAlias = Callable[[Node, tuple[int, int] | None], None]

GOES_DOWN = ("57P01", "57P02", "57P03")
"""SQLSTATEs that may show that the server shuts down, has crashed or starts up."""

UNDECIDED = (TransactionStatus.INTRANS, TransactionStatus.ACTIVE)
"""The states in which a transaction may still be committed; in the second one in a pipeline only."""

HALF_WAY = "with a copy() or a query left half way"

READ_ONLY = "25006"
"""The SQLSTATE that may show that the server is a standby."""

logger = logging.getLogger("router")


def end(connection: Connection[TupleRow], pool: NodePool, error: BaseException | None, note: Note | None) -> None:
    """End the transaction of a block: commit on success, roll back on an error, close an interrupted connection.

    Args:
        connection: The connection, which is returned to its pool after this.
        pool: The pool of the connection.
        error: The error that the block raised; ``None`` for none.
        note: Called with the position of the block's writes.

    Raises:
        TransactionOutcomeUnknown: The connection died during COMMIT.
        psycopg.Error: The transaction could not be committed.
    """
    if pool.inherited:
        return
    observe_outcome(pool, connection, error)
    if error is not None and (reason := session_of(connection).cut_because):
        error.add_note(f"the router cut this connection: {reason}")
    written: tuple[int, int] | None = None
    idle = connection.pgconn.transaction_status == TransactionStatus.IDLE
    try:
        if error is not None and not isinstance(error, (Exception, GeneratorExit)):
            if pool.closer.wait_unused(connection, wait=False):
                connection.close()
        elif not pool.closer.wait_unused(connection):
            if error is None and not pool.read_only and not idle:
                raise psycopg.ProgrammingError(
                    f"the block has ended, but something still uses its connection to {pool.node}, {USERS}: "
                    "its transaction is rolled back; let that end before the block does"
                )
        elif error is None:
            written = (_end_reading if pool.read_only else _commit)(connection, pool, note)
        elif not connection.closed:
            written = _roll_back(connection, pool, error, note)
    finally:
        if note is not None:  # even after an error: the block may have committed something itself before
            with Isolated("could not note what was written to %s", pool.node):
                note(pool.node, written)


def _roll_back(
    connection: Connection[TupleRow], pool: NodePool, error: Exception | GeneratorExit, note: Note | None
) -> tuple[int, int] | None:
    written = None
    try:
        connection.rollback()
        written = None if note is None else read_position(connection)
    except psycopg.Error as problem:  # the block's own error matters more; release() closes the connection
        observe_outcome(pool, connection, problem)
        logger.warning("could not roll back on a connection of the pool %r: %s", pool.name, problem)
    if not pool.read_only and isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        connection.close()  # its server may be a standby by now
    return written


def _commit(connection: Connection[TupleRow], pool: NodePool, note: Note | None) -> tuple[int, int] | None:
    if connection.broken:
        if isinstance(connection, NodeConnection) and connection.unknown is not None:
            raise connection.unknown  # the block has swallowed this error
        raise psycopg.OperationalError(
            f"the connection to {pool.node} was lost before COMMIT: "
            "the transaction was rolled back, and may be repeated"
        )
    if connection.closed:  # by the block
        return None
    status = connection.pgconn.transaction_status
    if status == TransactionStatus.ACTIVE and not in_pipeline(connection):
        connection.close()
        raise psycopg.ProgrammingError(
            f"the block on {pool.node} has ended {HALF_WAY}: its transaction is rolled back; "
            "read it to its end, or leave its `with`, before the block ends"
        )
    if status == TransactionStatus.INERROR:
        logger.warning(
            "a block on %s has ended without an error, but its transaction is rolled back: a statement had failed, "
            "or a stream() or copy() was left half way",
            pool.node,
        )
    try:
        if note is not None:
            return read_position(connection)
        connection.commit()
    except psycopg.OperationalError as error:
        if not connection.broken:
            raise
        observe_outcome(pool, connection, error)
        if status == TransactionStatus.IDLE:
            return None  # everything written is committed; only the position is not known
        raise
    return None


def _end_reading(connection: Connection[TupleRow], pool: NodePool, _: Note | None) -> None:
    if connection.pgconn.transaction_status == TransactionStatus.ACTIVE:  # release() closes the connection
        if not in_pipeline(connection):
            logger.warning("a block on %s has ended %s: its connection is closed", pool.node, HALF_WAY)
    elif not connection.closed:
        try:
            connection.commit()
        except psycopg.Error as error:
            observe_outcome(pool, connection, error)
            raise


def observe_outcome(pool: NodePool, connection: Connection[TupleRow], error: BaseException | None) -> None:
    """Request a probe if the outcome of a block, or of its end, may show that the server is down or a standby.

    Args:
        pool: The pool of the connection.
        connection: The connection.
        error: The error that was raised; ``None`` for none.
    """
    if isinstance(error, TransactionOutcomeUnknown):
        error = error.__cause__
    sqlstate, broken = getattr(error, "sqlstate", None), connection.broken
    # A session for reading always refuses writes, which says nothing about its server.
    if broken or sqlstate in GOES_DOWN or (sqlstate == READ_ONLY and not pool.read_only):
        # If the session ended for a reason of its own, such as a timeout, it has another SQLSTATE.
        lost = broken and not was_given_up(connection)
        pool.watched.suspect(pool.node.server, dying=lost and (sqlstate is None or sqlstate in GOES_DOWN))


def read_position(connection: Connection[TupleRow]) -> tuple[int, int] | None:
    """Commit if a transaction is open, and read in the same round trip where the WAL ends.

    Args:
        connection: The connection.

    Returns:
        The position and timeline where the WAL ends; ``None`` if they could not be read.

    Raises:
        psycopg.Error: The transaction could not be committed.
    """
    status = connection.pgconn.transaction_status
    if status in UNDECIDED or in_pipeline(connection):
        rows = commit(connection, sql.WRITTEN.encode())
    else:
        if status != TransactionStatus.IDLE:
            connection.rollback()
        rows = send(connection, sql.WRITTEN.encode())
    for position, timeline in rows:
        return int(position or 0), int(timeline or 0)
    return None
