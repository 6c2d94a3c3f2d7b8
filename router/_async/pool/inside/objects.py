"""The connection objects of a session, one after the other: what each begins with, and what all have in common."""

# ruff: noqa: SLF001  (see the package)

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

from psycopg import AsyncConnection, errors
from psycopg.pq import DiagnosticField

from router._async.pool.inside.connection import LENT_BY, begin_of, use_adapters

if TYPE_CHECKING:
    from weakref import ReferenceType

    from psycopg.adapt import AdaptersMap
    from psycopg.pq.abc import PGconn, PGresult
    from psycopg.rows import TupleRow


def hear_notice(hearer: ReferenceType[Any], notice: PGresult) -> None:
    """Pass a notice on to psycopg; of an error that ends the session while nothing runs, libpq tells by a notice, too.

    Args:
        hearer: Refers to the session's objects.
        notice: What the server said.
    """
    objects = hearer()
    if objects is not None and notice.error_field(DiagnosticField.SEVERITY_NONLOCALIZED) in {b"FATAL", b"PANIC"}:
        objects.ended_by = (notice.error_field(DiagnosticField.SQLSTATE) or b"").decode()
    AsyncConnection._notice_handler(hearer, notice)


def ended_by(sqlstate: str) -> errors.Error:
    """Make the error for what is sent to a session that the server had ended before: it was not read any more.

    Args:
        sqlstate: What the server ended it with.

    Returns:
        The error, of the class that psycopg has for that SQLSTATE.
    """
    try:
        kind = errors.lookup(sqlstate)
    except KeyError:
        kind = errors.OperationalError
    return kind(f"the server had ended the session before (SQLSTATE {sqlstate}): what was sent was not carried out")


class AsyncSessionObjects:
    """What is the same for all connection objects of one session, and stands for the one that there is now.

    Attributes:
        pgconn: libpq's connection.
        kind: The class of the objects.
        pristine: The attributes of an object that nobody has used yet; each borrower gets a copy.
        attributes: Those of the object that there is now.
        altered: Whether its borrower has, or may have, altered what lies deeper than an attribute of that object: the
            handlers, the notifications that came, or what is prepared when.
        adapters: What ``configure=`` left of them; each borrower gets a copy, too.
        hears: libpq's handlers of notices and notifications.
        ended_by: The SQLSTATE with which the server ended the session while nothing ran; empty if it did not.
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
        begin_of(connection)  # which psycopg keeps: no borrower has to work it out again
        self.kind = type(connection)
        self.pgconn: PGconn = connection.pgconn
        self.adapters: AdaptersMap = connection.adapters
        use_adapters(connection, None)
        self._prepared = connection._prepared
        self._prepares = self._prepared.prepare_threshold, self._prepared.prepared_max
        self._handlers = [*connection._notice_handlers], [*connection._notify_handlers]
        self.ended_by = ""
        hearer: Any = ref(self)
        # psycopg's, told of the session instead of one connection object: so they stay the same for all borrowers.
        self.hears: tuple[Any, Any] = (
            partial(hear_notice, hearer),
            partial(AsyncConnection._notify_handler, hearer),
        )
        self.pgconn.notice_handler, self.pgconn.notify_handler = self.hears
        self.attributes: dict[str, Any] = connection.__dict__
        self.pristine: dict[str, Any] = {**connection.__dict__, LENT_BY: None}
        self.put_right()

    def put_right(self) -> None:
        """Have the next object begin with what ``configure=`` has set up: handlers, and what is prepared when."""
        self.altered = False
        notice, notify = self._handlers
        self.pristine.update(_notice_handlers=[*notice], _notify_handlers=[*notify], _notifies_backlog=deque[Any]())
        self._prepared.prepare_threshold, self._prepared.prepared_max = self._prepares

    def forget(self) -> None:
        """Keep nothing of the connection object: something still uses it, and libpq's connection is freed with it."""
        self.pristine, self.attributes = {}, {"_notice_handlers": [], "_notify_handlers": [], "_notifies_backlog": None}

    # What psycopg's handlers of notices and notifications look for.

    @property
    def _notice_handlers(self) -> Any:
        return self.attributes["_notice_handlers"]

    @property
    def _notify_handlers(self) -> Any:
        return self.attributes["_notify_handlers"]

    @property
    def _notifies_backlog(self) -> Any:
        self.altered = True  # there is something to be added
        return self.attributes["_notifies_backlog"]
