"""The inside of psycopg's connections: a public name for each step that is done otherwise, and for what is read."""

# ruff: noqa: SLF001  (see the package)

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString, Self

from psycopg import AsyncConnection
from psycopg.adapt import AdaptersMap
from psycopg.pq import ConnStatus, Format
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
"""The attribute that says which pool lent a connection: psycopg does not close such a one where a ``with`` of it ends.

It is ``None`` for one that is idle, and not there for one that belongs to no pool.
"""

NOTIFY_HANDLERS = "_notify_handlers"
"""The attribute that lists what notifications are handled by; without, they are kept for ``notifies()``."""

OPEN_TRANSACTIONS = "_num_transactions"
"""The attribute that counts the ``transaction()`` blocks of a connection that have not ended."""

PIPELINE = "_pipeline"
"""The attribute that has the pipeline that is open; ``None`` for none."""

CLOSED_HERE = "_closed"
"""The attribute that tells a connection that was closed here from one that broke."""

PUT_BACK = frozenset({"_notifies_backlog", "_pipeline"})
"""The attributes that psycopg's generators put back when they end, those that were kept half way."""


class AsyncDriverConnection(AsyncConnection[TupleRow]):
    """psycopg's connection, with a public name for each step that a connection of the router's does otherwise."""

    @classmethod
    def _connect_gen(cls, conninfo: str = "") -> PQGenConn[Self]:
        return cls((yield from log_in(conninfo, conninfo_encoding(conninfo), verbosity_setter())))

    @property
    def adapters(self) -> AdaptersMap:
        """What values are written and read with: a copy of :attr:`initial_adapters` until something is registered."""
        if self._adapters is None:
            self._adapters = AdaptersMap(self.initial_adapters)
        return self._adapters

    @property
    def initial_adapters(self) -> AdaptersMap:
        """What values are written and read with at first."""
        raise NotImplementedError

    def _start_query(self) -> PQGen[None]:
        self.note_statement(commits_itself=self._autocommit and not self._num_transactions)
        prepared: PreparedStatements = self._prepared  # type: ignore[assignment]  # of this package's own class
        if prepared.traces:
            prepared.begin()
        return AsyncConnection._start_query(self)

    def note_statement(self, *, commits_itself: bool) -> None:
        """Note that a statement is about to be sent; before it, a transaction is begun, if one is needed.

        Args:
            commits_itself: Whether none is: in autocommit, outside of every ``transaction()``.
        """

    def _get_tx_start_command(self) -> bytes:
        return self.begin_command()

    def begin_command(self) -> bytes:
        """Tell what a transaction is begun with."""
        return super()._get_tx_start_command()

    def _exec_command(self, command: QueryNoTemplate, result_format: Format = Format.TEXT) -> PQGen[Any]:
        return self.run_command(command, result_format)

    def run_command(self, command: QueryNoTemplate, result_format: Format) -> PQGen[Any]:
        """Run what psycopg sends by itself: ``BEGIN``, ``COMMIT`` and the like.

        Args:
            command: What it sends.
            result_format: How the answer is to come.
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
    """The ``pgconn`` of a connection that nobody may use: it is closed, and values that have been received are read."""

    status = ConnStatus.BAD

    def __init__(self, error: InterfaceError, client_encoding: bytes | None) -> None:
        """Make it.

        Args:
            error: Raised by every other use.
            client_encoding: What the server has written text in.
        """
        self._error = error
        self._encoding = pg2pyenc(client_encoding or b"UTF8")

    def __getattr__(self, name: str) -> NoReturn:
        raise self._error


# What is sent and answered


def check_usable(connection: AsyncConnection[Any]) -> None:
    """Make sure that something may be sent.

    Args:
        connection: The connection.

    Raises:
        psycopg.Error: It is closed, say.
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
    """Tell whether a pipeline waits for no answer.

    Args:
        connection: The connection.

    Returns:
        Whether it waits for none, or there is no pipeline.
    """
    return connection._pipeline is None or not connection._pipeline.result_queue


def only_psycopg_commits(connection: AsyncConnection[Any]) -> bool:
    """Tell whether a plain ``COMMIT`` would not do, so that psycopg has to commit, or to refuse to.

    Args:
        connection: The connection.

    Returns:
        Whether it is so: in a ``transaction()``, a two-phase transaction or a pipeline.
    """
    return bool(connection._num_transactions or connection._tpc or connection._pipeline)


def begin_of(connection: AsyncConnection[Any]) -> bytes:
    """Tell what psycopg would begin a transaction with.

    Args:
        connection: The connection, with the isolation level and the like that it has now.

    Returns:
        The statement.
    """
    return connection._get_tx_start_command()


def note_closed(connection: AsyncConnection[Any]) -> None:
    """Have a connection that is closed here not be taken for a broken one, unless it was broken before.

    Args:
        connection: The connection, before it is closed.
    """
    connection._closed = connection._closed or not connection.closed


def drop_notifications(connection: AsyncConnection[Any]) -> None:
    """Forget the notifications that have come and that nobody has read.

    Args:
        connection: The connection.
    """
    if connection._notifies_backlog is not None:
        connection._notifies_backlog.clear()


def use_adapters(user: AsyncConnection[Any] | AsyncCursor[Any], adapters: AdaptersMap | None) -> None:
    """Have values written and read with other adapters.

    Args:
        user: The connection or cursor.
        adapters: The adapters; ``None`` for those that it begins with.
    """
    user._adapters = adapters


# What is prepared


def use_prepared(connection: AsyncConnection[Any], prepared: PreparedStatements) -> None:
    """Have it kept elsewhere what psycopg has prepared.

    Args:
        connection: The connection.
        prepared: Where.
    """
    connection._prepared = prepared


def prepared_of(connection: AsyncConnection[Any]) -> PreparedStatements:
    """Tell where it is kept what psycopg has prepared.

    Args:
        connection: One of the router's.

    Returns:
        Where.
    """
    prepared: PreparedStatements = connection._prepared  # type: ignore[assignment]  # of this package's own class
    return prepared


def deallocate_all(connection: AsyncConnection[Any]) -> PQGen[None]:
    """Have the server forget everything that is prepared.

    Args:
        connection: The connection, idle.

    Returns:
        psycopg's generator for it.
    """
    return connection._deallocate(None)
