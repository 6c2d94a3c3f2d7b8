# Generated from router/_async/pool/hygiene.py by tools/async_to_sync.py: do not edit.
"""Resets the sessions of a version's pool when they are returned, as ``pool.hygiene`` says.

A session of a shared pool is reset when it is borrowed, in the same round trip that sets it to the tenant: see
``shared_pool.py``.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

import psycopg

from router._sync.pool.inside.connection import drop_notifications, prepared_of, use_prepared
from router._sync.pool.inside.prepared import PreparedStatements
from router._sync.pool.scripts import TooLate, send
from router._sync.pool.session_state import session_of
from router.core import sql
from router.core.traces import leaves_trace

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.pq.abc import PGconn
    from psycopg.rows import TupleRow

    from router._sync.pool.connection import NodeConnection
    from router.core.policies import PoolHygiene
    from router.core.topology import Target

RESET_GRACE = 1.0
"""Seconds that a server is given to reset a session; after that the session is closed, which ends all of its state."""

RESET = f"{sql.RESET_SESSION}; SELECT {sql.UNLOCK_ALL}".encode()

REPORTED = (
    b"application_name", b"client_encoding", b"DateStyle", b"default_transaction_read_only", b"IntervalStyle",
    b"is_superuser", b"search_path", b"session_authorization", b"standard_conforming_strings", b"TimeZone",
)  # fmt: skip
"""The parameters whose changes a server reports, whatever statement changed them; search_path from PostgreSQL 18 on."""

logger = logging.getLogger("router")


def hygiene_of(target: Target) -> PoolHygiene | None:
    """Tell how the sessions of a pool are reset when they are returned.

    Args:
        target: The target that the pool serves.

    Returns:
        ``full`` or ``auto``; ``None`` if they are not reset when they are returned.
    """
    hygiene = target.cluster.pool.hygiene
    return None if hygiene == "transaction" or target.shared or target.tenant is not None else hygiene


class TracedStatements(PreparedStatements):
    """The prepared statements of a session; it also notes whether a statement may have left a trace in the session.

    Attributes:
        left_trace: Whether a statement may have left a trace.
        unseen: Whether a statement was begun whose text was not seen: of a ``copy()``, a ``stream()`` or a server-side
            cursor.
    """

    traces = True

    def __init__(self, connection: NodeConnection) -> None:
        """Start with a session that has just been opened.

        Args:
            connection: Its connection.
        """
        self.__dict__.update(prepared_of(connection).__dict__)
        self.clear_traces(connection.pgconn)

    def clear_traces(self, pgconn: PGconn) -> None:
        """Note that the session has no traces any more.

        Args:
            pgconn: libpq's connection.
        """
        self.left_trace = self.unseen = False
        self._reported = _reported(pgconn)

    def has_trace(self, pgconn: PGconn) -> bool:
        """Tell whether the session may have a trace of an earlier statement.

        Args:
            pgconn: libpq's connection.

        Returns:
            Whether it may.
        """
        return self.left_trace or self.unseen or _reported(pgconn) != self._reported

    def begin(self) -> None:
        """Note that a statement is about to be sent; the one before may have left a trace if its text was not seen."""
        self.left_trace = self.left_trace or self.unseen
        self.unseen = True

    def note(self, text: bytes) -> None:
        """Note that a statement was sent, and whether it may have left a trace.

        Args:
            text: The statement.
        """
        self.unseen = False
        self.left_trace = self.left_trace or leaves_trace(text)


def note_traces(connection: NodeConnection, hygiene: PoolHygiene | None) -> None:
    """Begin to note traces in a session that has just been opened, if its reset depends on them.

    Args:
        connection: The connection of the session.
        hygiene: How the session is reset when it is returned.
    """
    if hygiene == "auto":
        use_prepared(connection, TracedStatements(connection))


def _reported(pgconn: PGconn) -> list[bytes | None]:
    return [pgconn.parameter_status(name) for name in REPORTED]


def reset(connection: Connection[TupleRow]) -> bool:
    """Reset a session whose block has ended, if that is needed: in one round trip.

    The reset comes at the end of the block and not before the next one. So locks, channels and temporary tables are
    gone once the block has ended, however long the connection is idle then, and no request waits for the reset of what
    another one left.

    Args:
        connection: The next borrower's connection object, so nothing that was kept from the block reaches the session.

    Returns:
        Whether the connection may be lent again; otherwise it has to be closed. The block itself has not failed.
    """
    session, pgconn, prepared = session_of(connection), connection.pgconn, prepared_of(connection)
    if isinstance(prepared, TracedStatements):
        if not prepared.has_trace(pgconn):
            return True
    elif session.target is None:  # the session was not borrowed since it was opened or reset
        return True
    pool = session.pool
    try:
        send(connection, RESET, monotonic() + RESET_GRACE)
    except psycopg.Error as error:
        if session.closed or isinstance(error, TooLate):
            pool.watched.suspect(pool.node.server)
        logger.warning("a connection to %s is closed: its session could not be reset: %s", pool.node, error)
        return False
    note_reset(connection)
    session.target = None
    if isinstance(prepared, TracedStatements):
        prepared.clear_traces(pgconn)
    return True


def end_trace(connection: Connection[TupleRow], text: str) -> None:
    """Have what a single statement may leave in its session end with its block, however the pool resets sessions.

    Where a pool does not reset them when they are returned, the session is closed. What a sequence gave last is left
    there, since that is not worth a login.

    Args:
        connection: The connection that the statement has run on.
        text: The statement.
    """
    session = session_of(connection)
    if hygiene_of(session.pool.target) is None and leaves_trace(text.encode(errors="replace"), sequences=False):
        session.dirty = True


def note_reset(connection: Connection[TupleRow]) -> None:
    """Note that the server has reset a session: it has dropped the prepared statements, and listens to no channel.

    Args:
        connection: The connection.
    """
    prepared_of(connection).forget()
    drop_notifications(connection)
    session_of(connection).client_encoding = connection.pgconn.parameter_status(b"client_encoding")
