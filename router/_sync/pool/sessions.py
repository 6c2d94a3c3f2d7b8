# Generated from router/_async/pool/sessions.py by tools/async_to_sync.py: do not edit.
"""The sessions of a pool: which are open, and which of them are borrowed; they are what the pool's size counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router._sync.pool.returned import borrowed_before_fork
from router._sync.pool.session_state import session_of

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._sync.admission import Admission
    from router._sync.pool.inside.pool import DriverPool
    from router._sync.pool.node_pool import NodePool
    from router._sync.pool.session_state import SessionState


class PoolSessions:
    """The sessions of one pool.

    Attributes:
        borrowed: The sessions that are borrowed. There is no reference to their connection objects: one that its
            borrower drops is collected, and the pool's closer reclaims its session.
        retryable: The borrowed sessions whose query is run again elsewhere if they are cut.
        admitted: For each session that was lent within a tenant's limit, the admission, and what it counts as there.
        lost: Whether a connection may have been dropped.
    """

    def __init__(self, pool: NodePool, driver: DriverPool) -> None:
        """Begin without any.

        Args:
            pool: The pool.
            driver: What counts them.
        """
        self.borrowed: set[SessionState] = set()
        self.retryable: set[SessionState] = set()
        self.admitted: dict[SessionState, tuple[Admission, object]] = {}  # its pop() is atomic
        self.lost = False
        self._pool = pool
        self._driver = driver
        # All that have been opened and not been counted out; guarded by the lock. The pool's size is how many these
        # are, and how many are being opened, but for what an exception has interrupted.
        self._open: set[SessionState] = set()

    def listed(self) -> list[SessionState]:
        """List those that are open, as far as is known."""
        return list(self._open)

    def refuse_use(self) -> None:
        """Have every use of the borrowed connections raise in the child of a fork: they are the parent's."""
        for session in self.borrowed:
            session.refuse_use(borrowed_before_fork(session.borrowed_at))

    def add(self, session: SessionState) -> None:
        """Add a session that has been opened.

        Args:
            session: The session.
        """
        self._open.add(session)

    def note_opened(self, connection: Connection[TupleRow], expires_at: float) -> None:
        """Note until when a connection may be lent.

        Args:
            connection: The connection.
            expires_at: Until when, on the monotonic clock.
        """
        session_of(connection).expires_at = expires_at

    def note_closing(self, connection: Connection[TupleRow]) -> None:
        """Note that a connection is closed that is not counted any more.

        Args:
            connection: The connection.
        """
        self._open.discard(session_of(connection))

    def pop_idle(self) -> Connection[TupleRow] | None:
        """Remove the connection that has been idle longest.

        Returns:
            The connection, which has to be closed; ``None`` if none is idle.
        """
        pool = self._pool
        if not pool.kept:
            return None
        with pool.lock:  # guards kept and the size
            try:
                connection = pool.kept.popleft()
            except IndexError:  # take() needs no lock to have the last
                return None
            self.count_out(session_of(connection))
            return connection

    def count_out(self, session: SessionState) -> None:
        """Count a session no more, unless that was done before; under the lock.

        Args:
            session: The session.
        """
        if session in self._open:
            self._open.discard(session)
            self._driver.count_out()

    def replace(self, session: SessionState) -> None:
        """Count a session that was lent no more, unless that was done before, and have another one opened.

        Args:
            session: The session.
        """
        pool = self._pool
        with pool.lock:  # guards the size, _open
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

    def recount(self) -> None:
        """Put right what an exception may have interrupted, and open a connection for requests that wait."""
        pool = self._pool
        with pool.lock:  # guards all of this
            if not pool.closed and not pool.draining:
                self._driver.recount(len(self._open))
                pool.grow_for_waiting()
