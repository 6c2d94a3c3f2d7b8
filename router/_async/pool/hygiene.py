"""What is reset when a version's connection is given back, as ``pool.hygiene`` says.

A tenant's session is reset when it is borrowed, together with what makes it the tenant's: see ``shared_pool.py``.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

import psycopg

from router._async.pool.inside.connection import drop_notifications, prepared_of, use_prepared
from router._async.pool.inside.prepared import PreparedStatements
from router._async.pool.scripts import TooLate, send
from router._async.pool.session_state import session_of
from router.core import sql
from router.core.traces import leaves_trace

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg.pq.abc import PGconn
    from psycopg.rows import TupleRow

    from router._async.pool.connection import AsyncNodeConnection
    from router.core.policies import PoolHygiene
    from router.core.topology import Target

RESET_GRACE = 1.0
"""Seconds that a server has to reset a session; then it is closed, which has the server do the same by itself."""

RESET = f"{sql.RESET_SESSION}; SELECT {sql.UNLOCK_ALL}".encode()

REPORTED = (
    b"application_name", b"client_encoding", b"DateStyle", b"default_transaction_read_only", b"IntervalStyle",
    b"is_superuser", b"search_path", b"session_authorization", b"standard_conforming_strings", b"TimeZone",
)  # fmt: skip
"""What a server says of a session whenever it changes, whatever changed it; the search path from PostgreSQL 18 on."""

logger = logging.getLogger("router")


def hygiene_of(target: Target) -> PoolHygiene | None:
    """Tell what the sessions of a pool are reset by when they are given back.

    Args:
        target: What the pool serves.

    Returns:
        ``full`` or ``auto``; ``None`` if they are not reset then.
    """
    hygiene = target.cluster.pool.hygiene
    return None if hygiene == "transaction" or target.shared or target.tenant is not None else hygiene


class TracedStatements(PreparedStatements):
    """What psycopg has prepared in a session; notes, too, whether a statement may have left something there.

    Attributes:
        left_trace: Whether one may have.
        unseen: Whether something was begun that has not been seen: a ``copy()``, ``stream()`` or server-side cursor.
    """

    traces = True

    def __init__(self, connection: AsyncNodeConnection) -> None:
        """Begin with a session that has just been opened.

        Args:
            connection: Its connection.
        """
        self.__dict__.update(prepared_of(connection).__dict__)
        self.begin_anew(connection.pgconn)

    def begin_anew(self, pgconn: PGconn) -> None:
        """Note that there is nothing left in the session.

        Args:
            pgconn: libpq's connection.
        """
        self.left_trace = self.unseen = False
        self._reported = _reported(pgconn)

    def has_trace(self, pgconn: PGconn) -> bool:
        """Tell whether there may be anything left in the session.

        Args:
            pgconn: libpq's connection.

        Returns:
            Whether there may be.
        """
        return self.left_trace or self.unseen or _reported(pgconn) != self._reported

    def begin(self) -> None:
        """Note that something is about to be sent, and that what was begun before was never seen, if that is so."""
        self.left_trace = self.left_trace or self.unseen
        self.unseen = True

    def note(self, text: bytes) -> None:
        """Note that a statement was sent, and whether it may have left something.

        Args:
            text: The statement.
        """
        self.unseen = False
        self.left_trace = self.left_trace or leaves_trace(text)


def note_traces(connection: AsyncNodeConnection, hygiene: PoolHygiene | None) -> None:
    """Have it noted what may leave something in a session that has just been opened, if it is to be reset by that.

    Args:
        connection: Its connection.
        hygiene: What is reset when it is given back.
    """
    if hygiene == "auto":
        use_prepared(connection, TracedStatements(connection))


def _reported(pgconn: PGconn) -> list[bytes | None]:
    return [pgconn.parameter_status(name) for name in REPORTED]


async def reset(connection: AsyncConnection[TupleRow]) -> bool:
    """Reset a session whose block has ended, if it has to be: in one round trip.

    It is done here and not before the next block, so that locks, channels and temporary tables are gone when the block
    has ended, however long the connection is idle then, and so that no request pays for what another one left.

    Args:
        connection: The connection for the next borrower: nothing that was kept from the block reaches the session.

    Returns:
        Whether the next borrower may have it; else it has to be closed. That is no error of the block's.
    """
    session, pgconn, prepared = session_of(connection), connection.pgconn, prepared_of(connection)
    if isinstance(prepared, TracedStatements):
        if not prepared.has_trace(pgconn):
            return True
    elif session.target is None:  # nobody has had it since it was reset, or opened
        return True
    pool = session.pool
    try:
        await send(connection, RESET, monotonic() + RESET_GRACE)
    except psycopg.Error as error:
        if session.closed or isinstance(error, TooLate):
            pool.watched.suspect(pool.node.server)
        logger.warning("a connection to %s is closed: its session could not be reset: %s", pool.node, error)
        return False
    note_reset(connection)
    session.target = None
    if isinstance(prepared, TracedStatements):
        prepared.begin_anew(pgconn)
    return True


def note_reset(connection: AsyncConnection[TupleRow]) -> None:
    """Go by a session as it is after a reset: the server has forgotten what was prepared, and what was listened for.

    Args:
        connection: The connection.
    """
    prepared_of(connection).forget()
    drop_notifications(connection)
    session_of(connection).client_encoding = connection.pgconn.parameter_status(b"client_encoding")
