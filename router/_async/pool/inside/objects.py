"""The connection objects of a session: what each one begins with, and what they have in common."""

# ruff: noqa: SLF001  (see the package)

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

from psycopg import AsyncConnection, errors
from psycopg.pq import DiagnosticField

from router._async.pool.inside.connection import LENT_BY, InheritedPgconn, begin_of, use_adapters
from router._runtime.flags import ALock

if TYPE_CHECKING:
    from typing import NoReturn
    from weakref import ReferenceType

    from psycopg.adapt import AdaptersMap
    from psycopg.pq.abc import PGconn, PGresult
    from psycopg.rows import TupleRow


def hear_notice(hearer: ReferenceType[Any], notice: PGresult) -> None:
    """Pass a notice on to psycopg, and note if it ends the session.

    libpq reports an error that ends the session while no statement runs as a notice, too.

    Args:
        hearer: A weak reference to the session's objects.
        notice: The notice.
    """
    objects = hearer()
    if objects is not None and notice.error_field(DiagnosticField.SEVERITY_NONLOCALIZED) in {b"FATAL", b"PANIC"}:
        objects.ended_by = (notice.error_field(DiagnosticField.SQLSTATE) or b"").decode()
    AsyncConnection._notice_handler(hearer, notice)


def ended_by(sqlstate: str) -> errors.Error:
    """Make the error for a statement that was sent after the server had ended the session, and so was never read.

    Args:
        sqlstate: The SQLSTATE with which the server ended the session.

    Returns:
        The error, of the class that psycopg has for that SQLSTATE.
    """
    try:
        kind = errors.lookup(sqlstate)
    except KeyError:
        kind = errors.OperationalError
    return kind(f"the server had ended the session before (SQLSTATE {sqlstate}): what was sent was not carried out")


class AsyncSessionObjects:
    """The state that all connection objects of one session share; psycopg's handlers take it for the current object.

    Attributes:
        pgconn: libpq's connection.
        kind: The class of the objects.
        pristine: The attributes of an unused object; each borrower's object begins with a copy.
        attributes: The attributes of the current object.
        altered: Whether the borrower may have changed state that is not an attribute of its object: the handlers, the
            notifications that arrived, or when statements are prepared.
        adapters: The adapters as ``configure=`` left them; each borrower gets a copy of these, too.
        hears: libpq's handlers of notices and notifications.
        ended_by: The SQLSTATE with which the server ended the session while no statement ran; empty if it did not.
    """

    __slots__ = (
        "__weakref__", "_handlers", "_prepared", "_prepares", "adapters", "altered", "attributes", "ended_by", "hears",
        "kind", "pgconn", "pristine",
    )  # fmt: skip

    def __init__(self, connection: AsyncConnection[TupleRow]) -> None:
        """Begin with the first object.

        Args:
            connection: The object, opened and configured.
        """
        begin_of(connection)  # psycopg keeps the result in the object, so that it is computed once for all borrowers
        self.kind = type(connection)
        self.pgconn: PGconn = connection.pgconn
        self.adapters: AdaptersMap = connection.adapters
        use_adapters(connection, None)
        self._prepared = connection._prepared
        self._prepares = self._prepared.prepare_threshold, self._prepared.prepared_max
        self._handlers = [*connection._notice_handlers], [*connection._notify_handlers]
        self.ended_by = ""
        hearer: Any = ref(self)
        # psycopg's handlers, with the session instead of a connection object: they stay the same for all borrowers.
        self.hears: tuple[Any, Any] = (
            partial(hear_notice, hearer),
            partial(AsyncConnection._notify_handler, hearer),
        )
        self.pgconn.notice_handler, self.pgconn.notify_handler = self.hears
        self.attributes: dict[str, Any] = connection.__dict__
        self.pristine: dict[str, Any] = {**connection.__dict__, LENT_BY: None}
        self.put_right()

    def put_right(self) -> None:
        """Restore for the next object what ``configure=`` has set up: handlers, and when statements are prepared."""
        self.altered = False
        notice, notify = self._handlers
        self.pristine.update(_notice_handlers=[*notice], _notify_handlers=[*notify], _notifies_backlog=deque[Any]())
        self._prepared.prepare_threshold, self._prepared.prepared_max = self._prepares

    def refuse_use(self, explanation: str) -> None:
        """Have every use of the current object raise, without a reference to it: what it does is looked up in it first.

        Args:
            explanation: Why it may not be used.
        """

        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise errors.InterfaceError(explanation)

        error = errors.InterfaceError(explanation)
        self.attributes.update(
            pgconn=InheritedPgconn(error, self.pgconn.parameter_status(b"client_encoding")),
            lock=ALock(),  # another thread may have held the lock
            **dict.fromkeys(("_check_connection_ok", "cancel", "cancel_safe", "wait"), refuse),
        )

    def forget(self) -> None:
        """Drop all references to the object: something still uses it, and libpq's connection is freed with it."""
        self.pristine, self.attributes = {}, {"_notice_handlers": [], "_notify_handlers": [], "_notifies_backlog": None}

    # The attributes that psycopg's handlers of notices and notifications read.

    @property
    def _notice_handlers(self) -> Any:
        return self.attributes["_notice_handlers"]

    @property
    def _notify_handlers(self) -> Any:
        return self.attributes["_notify_handlers"]

    @property
    def _notifies_backlog(self) -> Any:
        self.altered = True  # psycopg reads this to add a notification
        return self.attributes["_notifies_backlog"]
