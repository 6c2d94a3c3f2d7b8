# Generated from router/_async/pool/closer.py by tools/async_to_sync.py: do not edit.
"""How the connections of a pool are closed: idle ones, and those that are borrowed, in use, dropped or cut off."""

from __future__ import annotations

import logging
import warnings
from time import monotonic
from typing import TYPE_CHECKING

import psycopg

from router._runtime.calls import Isolated, shielded
from router._runtime.flags import free_lock, sleep, take_lock, try_lock
from router._runtime.sockets import cut
from router._sync.pool.connection import end_session
from router._sync.pool.inside.connection import LENT_BY
from router._sync.pool.session_state import session_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._sync.pool.node_pool import NodePool
    from router._sync.pool.session_state import SessionState
    from router._sync.pool.sessions import PoolSessions
    from router._sync.slot import SlotRequest
    from router._sync.slots import Slots

USERS = "a stream() or notifies() that was left half way, or another task or thread"
"""What may still use a connection when its block has ended."""

USE_GRACE = 1.0
"""The most seconds to wait for what still uses a connection when its block has ended."""

logger = logging.getLogger("router")


class Closer:
    """Closes the connections of one pool."""

    def __init__(self, pool: NodePool, sessions: PoolSessions, slots: Slots) -> None:
        """Make the closer.

        Args:
            pool: The pool.
            sessions: The sessions of the pool.
            slots: The budget, in which each connection has a slot.
        """
        self._pool = pool
        self._sessions = sessions
        self._slots = slots

    def empty(self) -> None:
        """Close the idle connections."""
        while (connection := self._sessions.pop_idle()) is not None:
            with Isolated("could not close a connection to %s", self._pool.node):
                connection.close()

    def drop(self, why_borrowed: str) -> int:
        """Close the idle connections of a server that must not be used, and cut off borrowed ones.

        Args:
            why_borrowed: Why all borrowed connections are cut off; if empty, only those are whose query is retried.

        Returns:
            How many borrowed connections were cut off; 0 if only those were whose query is retried.
        """
        self.empty()
        doomed = list(self._sessions.borrowed if why_borrowed else self._sessions.retryable)
        _cut_off(doomed, why_borrowed)
        return len(doomed) if why_borrowed else 0

    def drop_silent(self, silent: Collection[SessionState], reason: str) -> None:
        """Cut off connections that get no answer from a server that is up, and close the idle ones, too.

        Args:
            silent: The sessions of these connections.
            reason: Why they are cut off.
        """
        _cut_off(silent, reason)
        self.drop("")

    def wait_unused(self, connection: Connection[TupleRow], *, wait: bool = True) -> bool:
        """Wait a moment until nothing uses a connection whose block has ended; if something still does, cut it off.

        psycopg's lock may be held by another task or thread, or by the generator of a ``stream()`` or ``notifies()``
        that was not exhausted. With asyncio, such a generator ends by itself once no reference to it is left.

        Args:
            connection: The connection.
            wait: Whether to wait at all.

        Returns:
            Whether nothing uses the connection any more. If something does, it is cut off and must not be closed: that
            would free memory that another thread may be using.
        """
        if not self.take_lock(connection, USE_GRACE if wait else 0.0):
            return False
        free_lock(connection.lock)
        return True

    def take_lock(self, connection: Connection[TupleRow], timeout: float = USE_GRACE) -> bool:
        """Take the lock of a connection whose block has ended; cut the connection off if it stays in use for too long.

        Args:
            connection: The connection.
            timeout: The most to wait, in seconds.

        Returns:
            Whether the lock was taken and nothing uses the connection.
        """
        session = session_of(connection)
        if not session.uses and try_lock(connection.lock):
            return True
        if not session.cut_because:
            deadline = monotonic() + timeout
            if take_lock(connection.lock, timeout):
                unused = False
                try:
                    unused = _has_no_uses(session, deadline)
                finally:
                    if not unused:
                        free_lock(connection.lock)
                if unused:
                    return True
            session.cut_because = "its block had ended, but something still used it"
            logger.warning(
                "a connection of the pool %r is cut: its block has ended, but something still uses it, %s",
                self._pool.name,
                USERS,
            )
            cut(session)
        return False

    @shielded
    def close_lent(self, connection: Connection[TupleRow]) -> None:
        """Close a borrowed connection for its ``close()``, and have another one opened in its place.

        Args:
            connection: The connection.
        """
        if self._pool.inherited:
            return
        session, use = session_of(connection), object()
        try:
            session.begin_use(connection, use)
        except psycopg.Error:  # its block has ended meanwhile, or it is being closed
            return
        try:
            session.is_closing = True  # first: a use that begins later fails, an earlier one is counted below
            if len(session.uses) > 1:  # closing would free memory that is in use: its block closes it
                _cut_off([session], "it was closed while something used it")
                return
            connection.__dict__[LENT_BY] = None  # it is no longer lent: its close() closes it
            try:
                connection.close()
            finally:
                self._sessions.replace(session)
        finally:
            session.end_use(connection, use)

    def close_session(self, session: SessionState) -> None:
        """Close a session whose connection object may not be used any more, and have another one opened in its place.

        Args:
            session: The session.
        """
        try:
            end_session(session)
        finally:
            self._sessions.replace(session)

    @shielded
    def close_for(self, connection: Connection[TupleRow], beneficiary: SlotRequest | None = None) -> None:
        """Close a borrowed connection without a replacement, so that another pool may open one.

        Requests that wait for this pool may still have one more opened, within the budget.

        Args:
            connection: The connection.
            beneficiary: The slot request that it is closed for; ``None`` if there is none.
        """
        pool = self._pool
        if pool.inherited:
            return
        session, lock = session_of(connection), connection.lock
        try:
            free = self.take_lock(connection)
            session.over = True
            if free:
                try:
                    session.end(connection)
                finally:
                    free_lock(lock)
                free = not session.uses  # a use may have begun at this very moment
            if not free:
                cut(session)
                session.forget()
            end_session(session, beneficiary, in_use=not free)
        except BaseException as error:
            # No connection object is left whose deletion would be noticed: reclaim() closes the session once unused.
            session.dropped = self._sessions.lost = session.over
            if not isinstance(error, Exception):
                raise
            logger.exception("could not close a connection to %s", pool.node)
            return
        finally:
            if beneficiary is not None:
                self._slots.restore(beneficiary)
        with pool.lock:  # guards the size, growing, waiting
            self._sessions.borrowed.discard(session)
            self._sessions.retryable.discard(session)
            self._sessions.count_out(session)
            pool.grow_for_waiting()
        pool.end_draining()

    @shielded
    def reclaim(self) -> None:
        """Reclaim connections that were dropped or closed without being returned, or were lost in an interruption.

        A signal handler may raise at any moment, so the counts are compared with the connections that exist.
        """
        self._sessions.lost = False
        self._pool.withdraw()
        for session in self._sessions.listed():
            if session.closed or (session.dropped and not (session.over and session.uses)):
                borrowed = session in self._sessions.borrowed
                self.close_session(session)
                if session.dropped and borrowed and not session.over:
                    self._warn_of_dropped(session)
        self._sessions.recount()

    def _warn_of_dropped(self, session: SessionState) -> None:
        asked, at, node = session.target, session.borrowed_at, self._pool.node
        whom = "" if asked is None else f" for {f'tenant {asked.tenant!r}' if asked.tenant else asked.version}"
        where = "; where is noted from now on" if at is None else f" in {at[0]}, line {at[1]}"
        what = f"a connection to {node} was borrowed{whom}{where}, and dropped without being given back or closed"
        self._pool.notes_borrower = True
        logger.warning("%s", what)
        file, line = at or (__file__, 1)
        with Isolated("%s", what):  # warnings may be errors here
            warnings.warn_explicit(what, ResourceWarning, file, line)


def _has_no_uses(session: SessionState, deadline: float) -> bool:
    """Wait until nothing uses a session whose lock is held: a ``cancel()`` in any thread uses it without a lock."""
    while session.uses:
        if monotonic() >= deadline:
            return False
        sleep(0.002)
    return True


def _cut_off(doomed: Collection[SessionState], reason: str) -> None:
    for session in doomed:
        session.cut_because = reason
        session.dirty = True  # the block may end without an error, a moment before an operation would fail
        cut(session)
