"""What is kept of each connection that was opened: what it was like then, and what has been noted of it since."""

# ruff: noqa: SLF001  (as node_pool.py, and for the same reason)

from __future__ import annotations

import contextlib
import os
import select
import sys
import warnings
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

from psycopg.adapt import AdaptersMap
from psycopg.types import TypesRegistry

from router._async.pool.connection import AsyncPooledConnection
from router._async.pool.scripts import begin_of

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg.abc import Dumper, Loader
    from psycopg.rows import TupleRow
    from psycopg.types import TypeInfo

    from router.core.topology import Scope, Target

OF_THE_POOL = {"_pool", "_created_at", "_expire_at", "_router"}
"""The attributes that a connection gets after it was opened, from psycopg_pool and from here."""


class SessionState:
    """What a connection was like when it was opened, and what it was like when that was last found still true.

    Comparing all its attributes with those seen last is a quick way to see that nothing changed: only when something
    did, often just a cache of psycopg's own, is each setting looked at.

    Attributes:
        opened_at: When it had been opened, on the monotonic clock.
        process: Which run of which server it leads to; empty while that is not known.
        began: When its server process began, in the server's words: empty if the server did not show the session as its
            own when it was asked, ``None`` if it has not been asked.
        idle_since: When it was last returned.
        scope: What its session is set to; ``None`` for what it was opened with.
        tenant: Of a pool that tenants share, who has it, or had it last.
        application_name: What the server called the session when it was last set.
        refuses_writes: Whether the server is known to refuse writes in this session; a pooler may have dropped that
            option.
        connection: The connection, as long as it is there.
        borrowed_at: File and line of where it was borrowed last, if that is noted.
        target: What whoever has it, or had it last, asked for.
        spent: Set to have it closed once it is given back: its session is not fit for another borrower.
        cut_because: Why it was cut while it was out; empty if it was not.
        adapters: Those that it had when it was opened.
        adapted: Set when a borrower has registered an adapter or a type on it.
        unasked: Polls its socket.
    """

    __slots__ = (
        "_attributes", "adapted", "adapters", "application_name", "began", "borrowed_at", "client_encoding",
        "connection", "cut_because", "idle_since", "in_hot_standby", "notice_handlers", "notify_handlers", "opened_at",
        "prepare_threshold", "prepared_max", "process", "refuses_writes", "scope", "seen", "spent", "target", "tenant",
        "unasked",
    )  # fmt: skip

    def __init__(self, connection: AsyncConnection[TupleRow]) -> None:
        begin_of(connection)  # which psycopg keeps: to do so later is no change
        self.connection = ref(connection)
        self.borrowed_at: tuple[str, int] | None = None
        self.adapted = False
        self.adapters = connection.adapters
        connection._adapters = _Adapters(self)
        self._attributes = dict(connection.__dict__)
        self.notice_handlers = connection._notice_handlers.copy()
        self.notify_handlers = connection._notify_handlers.copy()
        self.prepare_threshold = connection.prepare_threshold
        self.prepared_max = connection.prepared_max
        self.seen: dict[str, Any] = {}
        self.opened_at = self.idle_since = monotonic()
        self.process = ""
        self.began: bytes | None = None
        self.scope: Scope | None = None
        self.target: Target | None = None
        self.tenant = ""
        self.application_name: bytes | None = None
        self.spent = False
        self.cut_because = ""
        self.client_encoding = connection.pgconn.parameter_status(b"client_encoding")
        self.in_hot_standby = connection.pgconn.parameter_status(b"in_hot_standby")
        self.refuses_writes = b"on" in (
            self.in_hot_standby,
            connection.pgconn.parameter_status(b"default_transaction_read_only"),
        ) or (isinstance(connection, AsyncPooledConnection) and connection.read_only is True)
        poll = select.poll()
        poll.register(connection.pgconn.socket, select.POLLIN)
        self.unasked = poll.poll

    async def restore(self, connection: AsyncConnection[TupleRow]) -> None:
        """Put every attribute of an idle connection back; close it if what was left open could still act on it."""
        state = connection.__dict__
        if connection._pipeline is not None or connection._tpc is not None or connection._num_transactions:
            await connection.close()
            return
        for name in state.keys() - self._attributes.keys() - OF_THE_POOL:
            del state[name]
        if self.adapted:
            self.adapted = False
            self._attributes["_adapters"] = _Adapters(self)
        state.update(self._attributes)
        connection._notice_handlers[:] = self.notice_handlers
        connection._notify_handlers[:] = self.notify_handlers
        state["_notifies_backlog"].clear()
        connection.prepare_threshold = self.prepare_threshold
        connection.prepared_max = self.prepared_max
        self.seen = {name: value.copy() if isinstance(value, list) else value for name, value in state.items()}

    def forget(self) -> None:
        """Keep nothing of a connection that was collected, so that libpq's handle, which closes it, is collected, too.

        This object is in a reference cycle with what it keeps: the garbage collector would come too late.
        """
        self._attributes.clear()
        self.seen = {}


class _Adapters(AdaptersMap):
    """The adapters of a connection, which note that a borrower has registered one of its own.

    psycopg copies its maps when they are written to, so those that these are made from stay as they are.
    """

    def __init__(self, original: SessionState) -> None:
        super().__init__(original.adapters)
        self.types = _Types(original)
        self._original = original

    def register_dumper(self, cls: type | str | None, dumper: type[Dumper]) -> None:
        self._original.adapted = True
        super().register_dumper(cls, dumper)

    def register_loader(self, oid: int | str, loader: type[Loader]) -> None:
        self._original.adapted = True
        super().register_loader(oid, loader)


class _Types(TypesRegistry):
    """What a connection knows of types, likewise."""

    def __init__(self, original: SessionState) -> None:
        super().__init__(original.adapters.types)
        self._original = original

    def add(self, info: TypeInfo) -> None:
        self._original.adapted = True
        super().add(info)


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
    frame, found = sys._getframe(1), None
    while frame is not None:
        found, file = frame, frame.f_code.co_filename
        if not file.startswith(_OWN_FILES):
            break
        frame = frame.f_back  # type: ignore[assignment]
    return found.f_code.co_filename, found.f_lineno


_OWN_FILES = (f"{Path(__file__).parents[2]}{os.sep}", contextlib.__file__)


def was_given_up(connection: AsyncConnection[TupleRow]) -> bool:
    """Tell whether psycopg gave up a broken connection itself, because its client was cancelled or interrupted twice.

    Args:
        connection: The connection, broken.

    Returns:
        Whether it did; then its end says nothing of the server.
    """
    return getattr(connection.pgconn, "pgconn_ptr", 0) is None  # one whose server hung up still has a struct of libpq's


def session_of(connection: AsyncConnection[TupleRow]) -> SessionState:
    """Tell what is kept of a connection.

    Args:
        connection: One of a pool of the router's.

    Returns:
        What it was like when it was opened, and what has been noted since.
    """
    original: SessionState = connection.__dict__["_router"]
    return original
