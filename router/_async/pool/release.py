"""How a pool takes a borrowed connection back: the other half of the hot path."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from router._async.pool.hygiene import hygiene_of, reset
from router._async.pool.inside.connection import OPEN_TRANSACTIONS
from router._runtime.calls import ashielded
from router._runtime.flags import afree_lock, atry_lock

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

    from router._async.pool.closer import AsyncCloser
    from router._async.pool.node_pool import AsyncNodePool
    from router._async.pool.session_state import SessionState
    from router._async.pool.sessions import AsyncPoolSessions
    from router._async.waiter import AsyncWaiter

logger = logging.getLogger("router")


class AsyncRelease:
    """Takes the borrowed connections of one pool back, by :meth:`release`."""

    __slots__ = ("_closer", "_hygiene", "_pool", "_retryable")

    def __init__(self, pool: AsyncNodePool, sessions: AsyncPoolSessions, closer: AsyncCloser) -> None:
        """Make the release of a pool.

        Args:
            pool: The pool.
            sessions: The sessions of the pool.
            closer: Closes the connections that must not be lent again.
        """
        self._pool = pool
        self._closer = closer
        self._retryable = sessions.retryable
        self._hygiene = hygiene_of(pool.target)

    @ashielded
    async def release(  # noqa: C901, PLR0912  (the hot path: a call in it costs more than the rest of a line)
        self, connection: AsyncConnection[TupleRow]
    ) -> None:
        """Take a borrowed connection back, in the state in which it was opened.

        Args:
            connection: The connection; it is closed here if it is in a transaction or in an unknown state.
        """
        pool = self._pool
        if pool.inherited:
            return
        session: SessionState = connection._router  # type: ignore[attr-defined]  # noqa: SLF001  (the router's own)
        pgconn, lock, is_kept = session.pgconn, connection.lock, False
        taker: list[AsyncWaiter | None] = [None]  # the request that was handed the session; it may have returned it
        try:
            if not atry_lock(lock) and not await self._closer.take_lock(connection):
                await self._closer.close_for(connection)
                return
            open_transactions = session.attributes[OPEN_TRANSACTIONS]  # transaction() blocks that have not ended
            try:
                following = session.pass_on(connection)
            finally:
                afree_lock(lock)
            # From here on, a reference kept from the block does not reach the session, except in a use that has begun.
            if session.uses:
                session.end(following)
                await self._closer.close_for(connection)
                return
            if pgconn.transaction_status or pgconn.pipeline_status or open_transactions or session.dirty:
                pass
            elif pgconn.parameter_status(b"in_hot_standby") != session.in_hot_standby:
                pool.watched.suspect(pool.node.server)  # it may have been promoted
            elif self._hygiene is not None and not await reset(following):
                await self._closer.close_session(session)  # no note_broken(): it was not lost in the block
                return
            elif pgconn.parameter_status(b"client_encoding") == session.client_encoding:  # psycopg goes by it
                pgconn.untrace()  # always: libpq does not tell whether it is traced
                if not pgconn.nonblocking:
                    pgconn.nonblocking = 1
                session.idle_since = now = monotonic()
                self._retryable.discard(session)
                waiting = pool.waiting
                # As take() does: hand_over() of the pool passes connections that may have been idle.
                if now < session.expires_at and (not waiting or now < session.fresh_until or await session.lives()):
                    async with pool.lock:  # guards kept, waiting, closed
                        if not pool.draining:
                            # The session counts as borrowed until it is handed over.
                            while waiting and waiting.line is not None:
                                if waiting.line.hand_over(pool, following, taker):
                                    return
                            pool.borrowed.discard(session)
                            is_kept = True  # first: once it is kept, another thread may have it
                            pool.kept.append(following)
                            return
        except BaseException as error:
            is_gone = is_kept or taker[0] is not None
            if is_gone or await self._close_after(error, connection, session):
                raise  # an interruption
        else:
            session.note_broken(connection)
            await self._closer.close_session(session)

    async def _close_after(
        self, error: BaseException, connection: AsyncConnection[TupleRow], session: SessionState
    ) -> bool:
        """Close a connection that could not be returned, and tell whether the error is to be raised.

        The block has had its own outcome by now, so only an interruption is raised.
        """
        session.is_closing = True  # first: a use that begins later fails
        await (self._closer.close_for(connection) if session.uses else self._closer.close_session(session))
        if isinstance(error, Exception):
            node = self._pool.node
            logger.error("a connection to %s was closed: it could not be given back", node, exc_info=error)
            return False
        return True
