# Generated from router/_async/pool/session_state.py by tools/async_to_sync.py: do not edit.
"""What is kept of each connection that was opened: what it was like then, and what has been noted of it since."""

from __future__ import annotations

import contextlib
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

from router._runtime.flags import Lock
from router._sync.pool.inside.connection import CLOSED_HERE
from router._sync.pool.inside.objects import SessionObjects
from router._sync.pool.pooled import PooledConnection
from router._sync.pool.returned import ReturnedConnection, given_back

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._sync.pool.connection import NodeConnection
    from router._sync.pool.node_pool import NodePool
    from router.core.topology import Scope, Target

new = object.__new__


class SessionState(SessionObjects):
    """What is known of one session of a pool, and what its connection object was like when it was opened.

    The session lasts; each borrower gets an object of its own for it. When a block ends, :meth:`pass_on` makes the next
    one out of the attributes that the first one had when it was opened, and the one that was borrowed becomes useless.

    Attributes:
        pool: The pool that it belongs to.
        slot: Its slot of the process's budget, given back when it is closed.
        dropped: Whether its object was collected without being given back.
        over: Whether its last block has ended, although something may still use the object: once that has failed, the
            object is of no use, either.
        is_closing: Whether its borrower closes it.
        uses: What waits for the server now, or asks it to cancel a statement; not what takes rows that have come.
        opened_at: When it had been opened, on the monotonic clock.
        process: Which run of which server it leads to; empty while that is not known.
        began: When its server process began, in the server's words: empty if the server did not show the session as its
            own when it was asked, ``None`` if it has not been asked.
        fresh_until: Until when it need not be polled before it is lent, as its server was heard a moment ago.
        idle_since: When it was last returned.
        expires_at: Until when it may be lent, on the monotonic clock.
        scope: What its session is set to; ``None`` for what it was opened with.
        tenant: Of a pool that tenants share, who has it, or had it last.
        application_name: What the server called the session when it was last set.
        refuses_writes: Whether the server is known to refuse writes in this session; a pooler may have dropped that
            option.
        borrowed_at: File and line of where it was borrowed last, if that is noted.
        target: The target of the request that has it, or had it last.
        dirty: Set to have it closed once it is given back: its session is not fit for another borrower.
        cut_because: Why it was cut while it was out; empty if it was not.
        client_encoding: What its server was told to write text in.
        in_hot_standby: What its server said of itself when it was opened.
        has_input: Polls its socket.
    """

    __slots__ = (
        "application_name", "began", "borrowed_at", "client_encoding", "cut_because", "dirty", "dropped", "expires_at",
        "fresh_until", "has_input", "idle_since", "in_hot_standby", "is_closing", "opened_at", "over", "pool",
        "process", "refuses_writes", "scope", "slot", "target", "tenant", "uses",
    )  # fmt: skip

    def __init__(self, connection: NodeConnection, pool: NodePool) -> None:
        """Begin with a connection that was opened just now, and is configured.

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
        self.uses = set[object]()  # whose methods are atomic
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
        ) or (isinstance(connection, PooledConnection) and connection.read_only is True)
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN)
        self.has_input = poll.poll

    @property
    def closed(self) -> bool:
        """Whether libpq's connection is closed, by whichever side."""
        return self.pgconn.status == ConnStatus.BAD

    def pass_on(self, connection: Connection[TupleRow]) -> Connection[TupleRow]:
        """Make the object for the next borrower; the one of the last, whose lock is held, is of no use from here on.

        Args:
            connection: The object of the last one.

        Returns:
            That of the next.
        """
        if self.altered:
            self.put_right()
        pgconn = self.pgconn
        pgconn.notice_handler, pgconn.notify_handler = self.hears
        attributes = self.pristine.copy()
        attributes["lock"] = Lock()
        following = new(self.kind)
        following.__dict__ = self.attributes = attributes
        if self.borrowed_at is not None:
            connection.__dict__["_borrowed_at"] = self.borrowed_at
        connection.__class__ = ReturnedConnection
        return following

    def end(self, connection: Connection[TupleRow]) -> None:
        """Make the object of a borrower useless, whose block has ended.

        Args:
            connection: The object; if it is so already, nothing happens.
        """
        if isinstance(connection, ReturnedConnection):
            return
        if self.borrowed_at is not None:
            connection.__dict__["_borrowed_at"] = self.borrowed_at
        connection.__class__ = ReturnedConnection
        self.note_broken(connection)

    def note_broken(self, connection: Connection[TupleRow]) -> None:
        """Have the object of a borrower say after its block, too, that the connection was lost in it.

        Args:
            connection: The object; it is useless already.
        """
        attributes = connection.__dict__
        attributes["_was_broken"] = self.closed and not attributes[CLOSED_HERE]

    def begin_use(self, connection: Connection[TupleRow], use: object) -> None:
        """Note that something uses the session from here on, with or without the lock of its object.

        Args:
            connection: The object.
            use: What uses it.

        Raises:
            psycopg.InterfaceError: Its block has ended meanwhile.
            psycopg.OperationalError: Its borrower closes it.
        """
        # In this order: what ends a block makes the object useless first, and looks for uses then.
        self.uses.add(use)
        if isinstance(connection, ReturnedConnection):
            self.uses.discard(use)
            raise given_back(self.borrowed_at)
        if self.is_closing:
            self.uses.discard(use)
            raise psycopg.OperationalError("the connection is closed")

    def end_use(self, connection: Connection[TupleRow], use: object) -> None:
        """Note that something uses the session no more.

        Args:
            connection: The object.
            use: What used it.
        """
        self.uses.discard(use)
        if self.over:
            self.end(connection)

    def object_is_gone(self) -> None:
        """Note that the connection object was collected, wherever that happened to be, without being given back."""
        if not self.closed:
            self.dropped = self.pool.lost = True
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
    """Find out who borrows a connection now.

    Returns:
        File and line of the nearest caller outside of the router and of ``contextlib``.
    """
    frame, found = sys._getframe(1), None  # noqa: SLF001  (there is no other name for it)
    while frame is not None:
        found, file = frame, frame.f_code.co_filename
        if not file.startswith(_OWN_FILES):
            break
        frame = frame.f_back  # type: ignore[assignment]  # the last one has none
    return found.f_code.co_filename, found.f_lineno


_OWN_FILES = (f"{Path(__file__).parents[2]}{os.sep}", contextlib.__file__)


def was_given_up(connection: Connection[TupleRow]) -> bool:
    """Tell whether psycopg gave up a broken connection itself, because its client was cancelled or interrupted twice.

    Args:
        connection: The connection, broken.

    Returns:
        Whether it did; then its end says nothing of the server.
    """
    return getattr(connection.pgconn, "pgconn_ptr", 0) is None  # one whose server hung up still has a struct of libpq's


def session_of(connection: Connection[TupleRow]) -> SessionState:
    """Tell what is kept of a connection.

    Args:
        connection: One of a pool of the router's.

    Returns:
        What it was like when it was opened, and what has been noted since.
    """
    session: SessionState = connection.__dict__["_router"]
    return session
