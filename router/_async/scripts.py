"""Several statements in one round trip, and what must go before each transaction behind a transaction pooler.

This file and ``pools.py`` use what is inside psycopg: here its generators, ``_get_tx_start_command()``,
``_start_query()`` and ``_exec_command()``, as ``tests/test_inside_psycopg_pool.py`` checks.
"""

# ruff: noqa: SLF001  (see above)

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import AsyncConnection, generators
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.rows import TupleRow

if TYPE_CHECKING:
    from psycopg.abc import PQGen, QueryNoTemplate


NOT_THERE = (psycopg.errors.InvalidSchemaName, psycopg.errors.InvalidTextRepresentation)
"""How the expressions of ``sql.may_use()`` fail."""


def why_not_there(error: psycopg.Error) -> str:
    """Say why a search path cannot be used.

    Args:
        error: One of ``NOT_THERE``.

    Returns:
        The reason.
    """
    text = error.diag.message_primary or ""
    return text if isinstance(error, psycopg.errors.InvalidSchemaName) else text.partition('"')[2].rstrip('"')


def begin_of(connection: AsyncConnection[Any]) -> bytes:
    """Tell what psycopg would begin a transaction with.

    Args:
        connection: The connection, with the isolation level and the like that it has now.

    Returns:
        The statement.
    """
    return connection._get_tx_start_command()


async def send(connection: AsyncConnection[Any], script: bytes) -> None:
    """Run statements in one round trip, whatever state psycopg thinks the connection is in.

    Args:
        connection: The connection.
        script: The statements; their results are not kept.

    Raises:
        psycopg.Error: One of them failed; those after it were not run.
    """
    await connection.wait(_sent(connection, script))


def _sent(connection: AsyncConnection[Any], script: bytes) -> PQGen[None]:
    connection._check_connection_ok()
    connection.pgconn.send_query(script)
    for result in (yield from generators.execute(connection.pgconn)):
        if result.status == ExecStatus.FATAL_ERROR:
            raise error_from_result(result, encoding=connection.pgconn._encoding)


class AsyncPooledConnection(AsyncConnection[TupleRow]):
    """A connection to a transaction pooler: whatever a tenant's session is set to rides with each BEGIN.

    Attributes:
        prelude: What goes after each BEGIN; empty for nothing.
    """

    prelude = b""

    def _get_tx_start_command(self) -> bytes:
        begin = super()._get_tx_start_command()
        return begin + b"; " + self.prelude if self.prelude else begin

    def _start_query(self) -> PQGen[None]:
        if self._autocommit and self.prelude:
            raise psycopg.ProgrammingError(
                "behind a transaction pooler a tenant's statements run in transactions: in autocommit it would be lost"
            )
        return super()._start_query()

    def _exec_command(self, command: QueryNoTemplate, result_format: Format = Format.TEXT) -> PQGen[Any]:
        if self.prelude and isinstance(command, bytes) and command.endswith(self.prelude):
            if self._pipeline:
                raise psycopg.ProgrammingError(
                    "behind a transaction pooler a tenant's transaction cannot begin in a pipeline: "
                    "run a statement before the pipeline"
                )
            return _sent(self, command)
        return super()._exec_command(command, result_format)
