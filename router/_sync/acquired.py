# Generated from router/_async/acquired.py by tools/async_to_sync.py: do not edit.
"""A connection without a block, for frameworks: ``close()`` gives it back, and ``commit()`` notes what was written."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import psycopg
from psycopg import Connection
from psycopg.pq import TransactionStatus

from router._sync.checkout import TrackedCheckout
from router._sync.ending import observe_outcome, read_position
from router._sync.pool.connection import NodeConnection
from router._sync.pool.inside.connection import in_pipeline
from router._sync.pool.pooled import PooledConnection
from router._sync.tenant_checkout import LookupCheckout
from router.sessions import current_session

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import TypeAlias

    from psycopg.abc import PQGen
    from psycopg.rows import TupleRow

    from router._sync.checkout import Checkout
    from router.ambient import Ambient
    from router.core.topology import Node
    from router.sessions import Session

    NoteWritten: TypeAlias = Callable[[Session, str, Node, tuple[int, int] | None], None]

T = TypeVar("T")


class Lease:
    """How an acquired connection is given back to its pool, and how the session in force learns what it has written."""

    __slots__ = ("_ambient", "_checkout", "_note", "interruption", "unnoted")

    def __init__(self, checkout: TrackedCheckout, ambient: Ambient, note: NoteWritten) -> None:
        """Begin with a connection that has just been borrowed.

        Args:
            checkout: Borrowed the connection, and gives it back. It keeps no reference to the connection, so that a
                connection that is dropped is collected.
            ambient: Finds the session in force.
            note: Called with the session, the version, the node and where its WAL ends after a write.
        """
        self.unnoted = True  # whether there may be a write that no session has noted
        # What interrupted a query, a cancellation say: its answer may still come when the connection is closed.
        self.interruption: BaseException | None = None
        self._checkout = checkout
        self._ambient = ambient
        self._note = note

    def commit(self, connection: Connection[TupleRow]) -> None:
        """Commit; where a session is in force, note in the same round trip how far that went.

        Args:
            connection: The connection.
        """
        checkout, session = self._checkout, self._session()
        try:
            if session is None:
                Connection.commit(connection)
            elif in_pipeline(connection):  # nothing can be asked before it ends
                Connection.commit(connection)
                self._note(session, checkout.version, checkout.pool.node, None)
            else:
                position = read_position(connection)
                self._note(session, checkout.version, checkout.pool.node, position)
                self.unnoted = False
        except psycopg.OperationalError as error:
            observe_outcome(checkout.pool, connection, error)
            raise

    def end(self, connection: Connection[TupleRow]) -> None:
        """Give the connection back; what was not committed is rolled back.

        Args:
            connection: The connection.
        """
        checkout, error, note = self._checkout, self.interruption, None
        if error is None and connection.pgconn.transaction_status != TransactionStatus.IDLE:
            error = psycopg.OperationalError("it was closed without a commit")
        try:
            if self.unnoted and (session := self._session()) is not None:
                note = partial(self._note, session, checkout.version)
        finally:  # also where the session in force cannot be told
            checkout.release(connection, error, note)

    def _session(self) -> Session | None:
        return None if self._checkout.pool.read_only else current_session(self._ambient)


class AcquiredConnection(NodeConnection):
    """A connection that was acquired: no block around it gives it back."""

    __slots__ = ()  # the class of an existing object is set to this one
    _lent_as: ClassVar[type[NodeConnection]] = NodeConnection

    def commit(self) -> None:
        """Commit the transaction; where a session is in force, its reads will see it."""
        if (lease := self.__dict__.get("_lease")) is None:  # it is being given back
            Connection.commit(self)
        else:
            lease.commit(self)

    def close(self) -> None:
        """Give the connection back; what was not committed is rolled back."""
        if (lease := self.__dict__.pop("_lease", None)) is not None:
            lease.end(self)

    def __enter__(self) -> Self:
        """Return the connection itself."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Commit on success, and give the connection back."""
        try:
            if exc_val is None and not self.closed:
                self.commit()
        finally:
            self.close()

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Note an interruption: the session is then not lent again."""
        try:
            return self._lent_as.wait(self, gen, *args, **kwargs)
        except BaseException as error:
            if not isinstance(error, Exception | GeneratorExit) and (lease := self.__dict__.get("_lease")) is not None:
                lease.interruption = type(error)()  # one without a traceback, which would keep what the caller has
            raise

    def note_statement(self, *, commits_itself: bool) -> None:
        """Note that a statement may write."""
        if (lease := self.__dict__.get("_lease")) is not None:
            lease.unnoted = True
        self._lent_as.note_statement(self, commits_itself=commits_itself)


class AcquiredPooledConnection(PooledConnection):
    """The same behind a transaction pooler."""

    # No class in common: the class of an existing object is set to this one, and both must have the same layout. So the
    # methods find the class that they extend in `_lent_as`, since super() would be that of the class above.
    __slots__ = ()
    _lent_as: ClassVar[type[NodeConnection]] = PooledConnection
    commit = AcquiredConnection.commit
    close = AcquiredConnection.close
    __enter__ = AcquiredConnection.__enter__
    __exit__ = AcquiredConnection.__exit__
    wait = AcquiredConnection.wait
    note_statement = AcquiredConnection.note_statement


def lend(checkout: Checkout, ambient: Ambient, note: NoteWritten) -> Connection[TupleRow]:
    """Borrow a connection without a block.

    Args:
        checkout: Borrows it.
        ambient: As for :class:`Lease`.
        note: As for :class:`Lease`.

    Returns:
        The connection, to be closed.

    Raises:
        Unavailable: None could be had in time.
    """
    assert isinstance(checkout, TrackedCheckout | LookupCheckout)  # noqa: S101  (only these can be detached)
    connection: Any = checkout.__enter__()
    pooled = isinstance(connection, PooledConnection)
    connection.__class__ = AcquiredPooledConnection if pooled else AcquiredConnection
    connection.__dict__["_lease"] = Lease(checkout.detach(), ambient, note)
    acquired: Connection[TupleRow] = connection
    return acquired
