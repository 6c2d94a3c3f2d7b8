"""The sessions of a pool: which are open, and which are borrowed. The pool's size is the number of open sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router._async.pool.returned import borrowed_before_fork
from router._async.pool.session_state import session_of

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

    from router._async.admission import AsyncAdmission
    from router._async.pool.inside.pool import AsyncDriverPool
    from router._async.pool.node_pool import AsyncNodePool
    from router._async.pool.session_state import SessionState


class AsyncPoolSessions:
    """The sessions of one pool.

    Attributes:
        borrowed: The sessions that are borrowed. They do not refer to their connection objects: an object that is
            dropped is collected, and the pool's closer reclaims its session.
        retryable: The borrowed sessions whose query is run again elsewhere if they are cut off.
        admitted: For each session that was lent within a tenant's limit, the admission and the token there.
        lost: Whether a connection may have been dropped.
    """

    def __init__(self, pool: AsyncNodePool, driver: AsyncDriverPool) -> None:
        """Start without sessions.

        Args:
            pool: The pool.
            driver: psycopg_pool's pool, which counts them.
        """
        self.borrowed: set[SessionState] = set()
        self.retryable: set[SessionState] = set()
        self.admitted: dict[SessionState, tuple[AsyncAdmission, object]] = {}  # pop() is atomic
        self.lost = False
        self._pool = pool
        self._driver = driver
        # The sessions that were opened and are still counted; guarded by the pool's lock. The pool's size is their
        # number plus the connections being opened. Where an interruption has broken that, recount() restores it.
        self._open: set[SessionState] = set()

    def listed(self) -> list[SessionState]:
        """List the open sessions; some may have been closed without being counted out yet."""
        return list(self._open)

    def refuse_use(self) -> None:
        """Make every use of a borrowed connection raise in the child of a fork: they belong to the parent."""
        for session in self.borrowed:
            session.refuse_use(borrowed_before_fork(session.borrowed_at))

    def add(self, session: SessionState) -> None:
        """Add a session that has been opened.

        Args:
            session: The session.
        """
        self._open.add(session)

    def note_opened(self, connection: AsyncConnection[TupleRow], expires_at: float) -> None:
        """Note until when a connection may be lent.

        Args:
            connection: The connection.
            expires_at: Until when, on the monotonic clock.
        """
        session_of(connection).expires_at = expires_at

    def note_closing(self, connection: AsyncConnection[TupleRow]) -> None:
        """Note that the connection, which is not counted any more, is being closed.

        Args:
            connection: The connection.
        """
        self._open.discard(session_of(connection))

    async def pop_idle(self) -> AsyncConnection[TupleRow] | None:
        """Remove the connection that has been idle longest, to be closed by the caller.

        Returns:
            The connection; ``None`` if none is idle.
        """
        pool = self._pool
        if not pool.kept:
            return None
        async with pool.lock:  # guards kept and the size
            try:
                connection = pool.kept.popleft()
            except IndexError:  # take() may have removed the last one: it takes no lock
                return None
            self.count_out(session_of(connection))
            return connection

    def count_out(self, session: SessionState) -> None:
        """Stop counting a session, if it is still counted; under the pool's lock.

        Args:
            session: The session.
        """
        if session in self._open:
            self._open.discard(session)
            self._driver.count_out()

    async def replace(self, session: SessionState) -> None:
        """Stop counting a borrowed session, and have another one opened in its place; repeating this has no effect.

        Args:
            session: The session.
        """
        pool = self._pool
        async with pool.lock:  # guards the size, _open
            self.borrowed.discard(session)
            self.retryable.discard(session)
            if (entry := self.admitted.pop(session, None)) is not None:
                entry[0].leave(entry[1])
            if session in self._open:
                self._open.discard(session)
                if pool.closed or pool.draining:
                    self._driver.count_out()
                else:
                    self._driver.replace_one()
        pool.end_draining()

    async def recount(self) -> None:
        """Correct counts that an interruption has left wrong, and open a connection if requests wait."""
        pool = self._pool
        async with pool.lock:  # guards all of this
            if not pool.closed and not pool.draining:
                self._driver.recount(len(self._open))
                pool.grow_for_waiting()
