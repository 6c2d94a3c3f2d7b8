"""The state of a session: what its connection object was like when it was opened, and what was noted since."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import warnings
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import ConnStatus

from router._async.pool.connection import FRESH, end_session
from router._async.pool.inside.connection import CLOSED_HERE, NOTIFY_HANDLERS
from router._async.pool.inside.objects import AsyncSessionObjects
from router._async.pool.pooled import AsyncPooledConnection
from router._async.pool.returned import AsyncReturnedConnection, given_back
from router._runtime.flags import ALock

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

    from router._async.pool.connection import AsyncNodeConnection
    from router._async.pool.node_pool import AsyncNodePool
    from router.core.topology import Scope, Target

new = object.__new__

logger = logging.getLogger("router")


class SessionState(AsyncSessionObjects):
    """The state of one session of a pool, with the attributes that its connection object had when it was opened.

    The session lasts, and each borrower gets a connection object of its own for it. When a block ends, :meth:`pass_on`
    makes the next object with the attributes that the first one had when it was opened, and makes the borrowed object
    unusable.

    Attributes:
        pool: The pool that it belongs to.
        slot: Its slot of the process's budget, which is returned when it is closed.
        dropped: Whether its object was garbage-collected without being returned.
        over: Whether its last block has ended while something may still use the object, which becomes unusable when
            that use ends.
        is_closing: Whether its borrower is closing it.
        uses: The operations that wait for the server now, or ask it to cancel a statement; reading rows that have
            arrived already is not one. There is no reference to the connection object in it: if an interruption leaves
            an entry behind, the object is still collected.
        opened_at: When it had been opened, on the monotonic clock.
        process: The server process that it leads to, by its start time; empty while unknown.
        began: When its backend process began, as the server writes it: empty if the server did not show the session
            when it was asked, ``None`` if it has not been asked.
        fresh_until: Until then it is lent without a poll of its socket, since its server has just answered.
        idle_since: When it was last returned.
        expires_at: Until when it may be lent, on the monotonic clock.
        scope: The tenant's settings that are in force; ``None`` for those that it was opened with.
        tenant: In a shared pool, the tenant of its current or last borrower.
        application_name: The ``application_name`` that the server reported after the tenant's settings were made.
        refuses_writes: Whether the server is known to refuse writes in it; a pooler may have dropped that option.
        borrowed_at: The file and line where it was borrowed last, if that is noted.
        target: The target of its current or last request.
        dirty: Whether it has to be closed when it is returned, because another borrower must not get it.
        cut_because: Why it was cut while it was borrowed; empty if it was not.
        client_encoding: The encoding in which the server writes text for it.
        in_hot_standby: Whether the server said that it was a standby, when the session was opened.
        has_input: Polls its socket.
    """

    __slots__ = (
        "application_name", "began", "borrowed_at", "client_encoding", "cut_because", "dirty", "dropped", "expires_at",
        "fresh_until", "has_input", "idle_since", "in_hot_standby", "is_closing", "opened_at", "over", "pool",
        "process", "refuses_writes", "scope", "slot", "target", "tenant", "uses",
    )  # fmt: skip

    def __init__(self, connection: AsyncNodeConnection, pool: AsyncNodePool) -> None:
        """Begin with a connection that has just been opened and configured.

        Args:
            connection: The connection.
            pool: The pool that it belongs to.
        """
        super().__init__(connection)
        self.attributes["_router"] = self.pristine["_router"] = self
        self.pool = pool
        pgconn = self.pgconn
        self.slot = connection.slot
        self.dropped = self.over = self.dirty = self.is_closing = False
        self.uses = set[object]()  # no lock: the methods of a set are atomic
        self.opened_at = self.idle_since = monotonic()
        self.fresh_until = 0.0
        self.expires_at = inf
        self.process = self.tenant = self.cut_because = ""
        self.began: bytes | None = None
        self.scope: Scope | None = None
        self.target: Target | None = None
        self.borrowed_at: tuple[str, int] | None = None
        self.application_name: bytes | None = None
        self.client_encoding = pgconn.parameter_status(b"client_encoding")
        self.in_hot_standby = pgconn.parameter_status(b"in_hot_standby")
        self.refuses_writes = b"on" in (
            self.in_hot_standby,
            pgconn.parameter_status(b"default_transaction_read_only"),
        ) or (isinstance(connection, AsyncPooledConnection) and connection.read_only is True)
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN)
        self.has_input = poll.poll

    @property
    def closed(self) -> bool:
        """Whether libpq's connection is closed, by either side."""
        return self.pgconn.status == ConnStatus.BAD

    async def lives(self) -> bool:
        """Read the input of an idle session: close it if the server has ended it or it was used meanwhile.

        An idle session awaits no answer, so its input is most likely the message that ends it. No borrower has its
        connection object, so no other thread or task reads from its socket.

        Returns:
            Whether it may be lent; if not, it has been closed.
        """
        pgconn, pool = self.pgconn, self.pool
        try:
            while self.has_input(0):
                pgconn.consume_input()
            while not self.attributes[NOTIFY_HANDLERS] and pgconn.notifies() is not None:
                pass  # it was for an earlier borrower
        except psycopg.OperationalError:
            await end_session(self)
            pool.watched.suspect(pool.node.server)
            return False
        if pgconn.transaction_status:  # something of libpq's was kept from a block
            logger.warning("a connection of the pool %r is closed: it was used while it was not borrowed", pool.name)
            await end_session(self)
            return False
        self.fresh_until = monotonic() + FRESH
        return True

    def pass_on(self, connection: AsyncConnection[TupleRow]) -> AsyncConnection[TupleRow]:
        """Make the object for the next borrower, and make the last borrower's object unusable; its lock is held.

        Args:
            connection: The object of the last borrower.

        Returns:
            The object for the next borrower.
        """
        if self.altered:
            self.put_right()
        pgconn = self.pgconn
        pgconn.notice_handler, pgconn.notify_handler = self.hears
        attributes = self.pristine.copy()
        attributes["lock"] = ALock()
        following = new(self.kind)
        following.__dict__ = self.attributes = attributes
        if self.borrowed_at is not None:
            connection.__dict__["_borrowed_at"] = self.borrowed_at
        connection.__class__ = AsyncReturnedConnection
        return following

    def end(self, connection: AsyncConnection[TupleRow]) -> None:
        """Make the object of a borrower unusable after its block.

        Args:
            connection: The object; if it is unusable already, nothing happens.
        """
        if isinstance(connection, AsyncReturnedConnection):
            return
        if self.borrowed_at is not None:
            connection.__dict__["_borrowed_at"] = self.borrowed_at
        connection.__class__ = AsyncReturnedConnection
        self.note_broken(connection)

    def note_broken(self, connection: AsyncConnection[TupleRow]) -> None:
        """Make the object of a borrower show after its block, too, whether the connection was lost.

        Args:
            connection: The object, which is unusable already.
        """
        attributes = connection.__dict__
        attributes["_was_broken"] = self.closed and not attributes[CLOSED_HERE]

    def begin_use(self, connection: AsyncConnection[TupleRow], use: object) -> None:
        """Note the begin of an operation on the session, with or without the lock of its object.

        Args:
            connection: The object.
            use: Identifies the operation.

        Raises:
            psycopg.InterfaceError: The block has ended meanwhile.
            psycopg.OperationalError: The borrower is closing the connection.
        """
        # The end of a block makes the object unusable first, and then looks for operations. This comes in the opposite
        # order, so that one of the two always sees the other.
        self.uses.add(use)
        if isinstance(connection, AsyncReturnedConnection):
            self.uses.discard(use)
            raise given_back(self.borrowed_at)
        if self.is_closing:
            self.uses.discard(use)
            raise psycopg.OperationalError("the connection is closed")

    def end_use(self, connection: AsyncConnection[TupleRow], use: object) -> None:
        """Note the end of an operation on the session.

        Args:
            connection: The object.
            use: Identifies the operation.
        """
        self.uses.discard(use)
        if self.over:
            self.end(connection)

    def object_is_gone(self) -> None:
        """Note that the connection object was garbage-collected without being returned; this may run in any thread."""
        if not self.closed:
            self.dropped = self.pool.sessions.lost = True
            if not self.cut_because and not self.pool.inherited:
                self.pgconn.finish()
                if self.slot is not None:
                    self.slot.note_dropped()


def shows_resource_warnings() -> bool:
    """Tell whether a ``ResourceWarning`` would be shown, as in Python's development mode."""
    for action, message, category, module, _ in warnings.filters:
        if message is None and module is None and issubclass(ResourceWarning, category):
            return action != "ignore"
    return True


def borrower() -> tuple[str, int]:
    """Find the code that borrows a connection now.

    Returns:
        The file and line of the nearest caller outside of the router and ``contextlib``.
    """
    frame, found = sys._getframe(1), None  # noqa: SLF001  (there is no other name for it)
    while frame is not None:
        found, file = frame, frame.f_code.co_filename
        if not file.startswith(_OWN_FILES):
            break
        frame = frame.f_back  # type: ignore[assignment]  # the last one has none
    return found.f_code.co_filename, found.f_lineno


_OWN_FILES = (f"{Path(__file__).parents[2]}{os.sep}", contextlib.__file__)


def was_given_up(connection: AsyncConnection[TupleRow]) -> bool:
    """Tell whether psycopg itself closed a broken connection, because its client was cancelled or interrupted twice.

    Args:
        connection: The connection, which is broken.

    Returns:
        Whether psycopg did; then the end of the connection says nothing about the server.
    """
    return getattr(connection.pgconn, "pgconn_ptr", 0) is None  # if the server hangs up, libpq's struct is still there


def session_of(connection: AsyncConnection[TupleRow]) -> SessionState:
    """Return the state of a connection's session.

    Args:
        connection: A connection of a pool of the router.

    Returns:
        The state.
    """
    session: SessionState = connection.__dict__["_router"]
    return session
