"""The inside of psycopg's connections: a public name for each overridden step, and for each attribute that is read."""

# ruff: noqa: SLF001  (see the package)

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString, Self

from psycopg import AsyncConnection
from psycopg.adapt import AdaptersMap
from psycopg.pq import ConnStatus, Format, TransactionStatus
from psycopg.rows import TupleRow

from router._async.pool.inside.imports import conninfo_encoding, pg2pyenc
from router._async.pool.inside.libpq import verbosity_setter
from router._runtime.login import log_in

if TYPE_CHECKING:
    from typing import NoReturn

    from psycopg import AsyncCursor, InterfaceError, Xid
    from psycopg.abc import PQGen, PQGenConn, QueryNoTemplate

    from router._async.pool.inside.prepared import PreparedStatements

LENT_BY = "_pool"
"""The attribute for the pool that lent a connection: psycopg does not close a lent connection at the end of a ``with``.

It is ``None`` for an idle connection, and missing for one that belongs to no pool.
"""

NOTIFY_HANDLERS = "_notify_handlers"
"""The attribute that lists the handlers of notifications; without handlers, they are kept for ``notifies()``."""

OPEN_TRANSACTIONS = "_num_transactions"
"""The attribute that counts the ``transaction()`` blocks of a connection that have not ended."""

PIPELINE = "_pipeline"
"""The attribute for the open pipeline; ``None`` for none."""

CLOSED_HERE = "_closed"
"""The attribute that tells a connection closed by this process from a broken one."""

PUT_BACK = frozenset({"_notifies_backlog", "_pipeline"})
"""The attributes that psycopg's generators restore when they end, even if they were kept unfinished after the block."""


class AsyncDriverConnection(AsyncConnection[TupleRow]):
    """psycopg's connection, with a public name for each step that the router overrides."""

    @classmethod
    def _connect_gen(cls, conninfo: str = "") -> PQGenConn[Self]:
        return cls((yield from log_in(conninfo, conninfo_encoding(conninfo), verbosity_setter())))

    @property
    def adapters(self) -> AdaptersMap:
        """The adapters: a copy of :attr:`initial_adapters`, with what the borrower registers."""
        if self._adapters is None:
            self._adapters = AdaptersMap(self.initial_adapters)
        return self._adapters

    @property
    def initial_adapters(self) -> AdaptersMap:
        """The adapters that a borrower begins with."""
        raise NotImplementedError

    def _start_query(self) -> PQGen[None]:
        self.note_statement(commits_itself=self._autocommit and not self._num_transactions)
        prepared: PreparedStatements = self._prepared  # type: ignore[assignment]  # of this package's own class
        if prepared.traces:
            prepared.begin()
        return AsyncConnection._start_query(self)

    def note_statement(self, *, commits_itself: bool) -> None:
        """Note that a statement is about to be sent.

        Args:
            commits_itself: Whether no transaction is begun before it: in autocommit, outside of every
                ``transaction()``.
        """

    def _get_tx_start_command(self) -> bytes:
        return self.begin_command()

    def begin_command(self) -> bytes:
        """Return the command that begins a transaction."""
        return super()._get_tx_start_command()

    def _exec_command(self, command: QueryNoTemplate, result_format: Format = Format.TEXT) -> PQGen[Any]:
        return self.run_command(command, result_format)

    def run_command(self, command: QueryNoTemplate, result_format: Format) -> PQGen[Any]:
        """Run a command that psycopg sends by itself, such as ``BEGIN`` and ``COMMIT``.

        Args:
            command: The command.
            result_format: The format of the result.
        """
        return super()._exec_command(command, result_format)

    def _tpc_prepare_gen(self) -> PQGen[None]:
        return self.prepare_two_phase()

    def prepare_two_phase(self) -> PQGen[None]:
        """Run the first phase of a two-phase commit."""
        return super()._tpc_prepare_gen()

    def _tpc_finish_gen(self, action: LiteralString, xid: Xid | str | None) -> PQGen[None]:
        return self.finish_two_phase(action, xid)

    def finish_two_phase(self, action: LiteralString, xid: Xid | str | None) -> PQGen[None]:
        """Run the second phase of a two-phase commit.

        Args:
            action: ``COMMIT`` or ``ROLLBACK``.
            xid: The transaction; ``None`` for the connection's own.
        """
        return super()._tpc_finish_gen(action, xid)


class GonePgconn:
    """The ``pgconn`` of a connection object after its block: closed, but values received before can still be read."""

    status = ConnStatus.BAD

    def __init__(self, error: InterfaceError, client_encoding: bytes | None) -> None:
        """Make the stand-in.

        Args:
            error: The error that every other use raises.
            client_encoding: The encoding in which the server wrote text.
        """
        self._error = error
        self._encoding = pg2pyenc(client_encoding or b"UTF8")

    def __getattr__(self, name: str) -> NoReturn:
        raise self._error


class InheritedPgconn(GonePgconn):
    """The ``pgconn`` of a connection object in the child of a fork that did not borrow it: its block may still end."""

    transaction_status = TransactionStatus.UNKNOWN


# Sending statements, and their answers


def check_usable(connection: AsyncConnection[Any]) -> None:
    """Check that a statement may be sent.

    Args:
        connection: The connection.

    Raises:
        psycopg.Error: It may not, because the connection is closed for example.
    """
    connection._check_connection_ok()


def in_pipeline(connection: AsyncConnection[Any]) -> bool:
    """Tell whether a pipeline is open.

    Args:
        connection: The connection.

    Returns:
        Whether one is.
    """
    return connection._pipeline is not None


def is_answered(connection: AsyncConnection[Any]) -> bool:
    """Tell whether every statement in a pipeline has been answered.

    Args:
        connection: The connection.

    Returns:
        Whether every one has, or there is no pipeline.
    """
    return connection._pipeline is None or not connection._pipeline.result_queue


def only_psycopg_commits(connection: AsyncConnection[Any]) -> bool:
    """Tell whether psycopg itself has to commit, or to refuse it, because a plain ``COMMIT`` would be wrong.

    Args:
        connection: The connection.

    Returns:
        Whether it has to: in a ``transaction()``, a two-phase transaction or a pipeline.
    """
    return bool(connection._num_transactions or connection._tpc or connection._pipeline)


def begin_of(connection: AsyncConnection[Any]) -> bytes:
    """Return the command with which psycopg would begin a transaction.

    Args:
        connection: The connection, whose isolation level and other properties the command includes.

    Returns:
        The command.
    """
    return connection._get_tx_start_command()


def note_closed(connection: AsyncConnection[Any]) -> None:
    """Mark a connection as closed by this process and not broken, unless it was broken before.

    Args:
        connection: The connection, before it is closed.
    """
    connection._closed = connection._closed or not connection.closed


def drop_notifications(connection: AsyncConnection[Any]) -> None:
    """Drop the notifications that have arrived and have not been read.

    Args:
        connection: The connection.
    """
    if connection._notifies_backlog is not None:
        connection._notifies_backlog.clear()


def use_adapters(user: AsyncConnection[Any] | AsyncCursor[Any], adapters: AdaptersMap | None) -> None:
    """Set the adapters of a connection or cursor.

    Args:
        user: The connection or cursor.
        adapters: The adapters; ``None`` for those that it begins with.
    """
    user._adapters = adapters


# Prepared statements


def use_prepared(connection: AsyncConnection[Any], prepared: PreparedStatements) -> None:
    """Replace the object in which psycopg keeps the prepared statements of a connection.

    Args:
        connection: The connection.
        prepared: The new object.
    """
    connection._prepared = prepared


def prepared_of(connection: AsyncConnection[Any]) -> PreparedStatements:
    """Return the object in which psycopg keeps the prepared statements of a connection.

    Args:
        connection: A connection of the router.

    Returns:
        The object.
    """
    prepared: PreparedStatements = connection._prepared  # type: ignore[assignment]  # of this package's own class
    return prepared


def deallocate_all(connection: AsyncConnection[Any]) -> PQGen[None]:
    """Make the server drop all prepared statements.

    Args:
        connection: The connection, idle.

    Returns:
        psycopg's generator for it.
    """
    return connection._deallocate(None)
