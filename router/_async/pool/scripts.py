"""Sends the router's own statements, and reads the text of the application's statements."""

from __future__ import annotations

from functools import cache
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncCursor, generators, postgres
from psycopg.adapt import AdaptersMap, Loader
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.rows import DictRow, dict_row
from psycopg.sql import Composable
from psycopg.types import TypesRegistry
from psycopg.types.array import register_all_arrays

from router._async.pool.inside.connection import check_usable, use_adapters
from router._async.pool.inside.imports import Interpolation, Template
from router.core import sql

if TYPE_CHECKING:
    from psycopg.abc import Buffer, PQGen
    from psycopg.pq.abc import PGresult

T = TypeVar("T")


NOT_THERE = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.InvalidParameterValue,
    psycopg.errors.InsufficientPrivilege,
)
"""The errors of the expressions of ``sql.settings()``: the first two for a search path, the last two for a role."""

UNKNOWN = 0
"""The OID under which psycopg keeps the loader of types that it does not know."""

INTERVAL = 0.1
"""The most seconds between two checks of the deadline while a server's answer is awaited."""


class TooLate(psycopg.OperationalError):
    """The server has not answered by the deadline."""


def why_not_there(error: psycopg.Error) -> str:
    """Return why a search path or a role cannot be used.

    Args:
        error: One of ``NOT_THERE``.

    Returns:
        The reason.
    """
    text = error.diag.message_primary or ""
    _, no_usage, name = text.partition(sql.NO_USAGE)
    return no_usage + name[:-1].rstrip() if no_usage else text  # without the quote that the server puts after it


async def send(
    connection: AsyncConnection[Any], script: bytes, deadline: float = inf
) -> list[tuple[bytes | None, ...]]:
    """Run statements in one round trip, whatever a borrower or ``configure=`` has set on the connection object.

    psycopg's cursor class, row factory, adapters, prepared statements and transactions are not used.

    Args:
        connection: The connection.
        script: The statements, in ASCII.
        deadline: How long to wait for the answer, on the monotonic clock.

    Returns:
        The rows of the last statement, each value as PostgreSQL writes it.

    Raises:
        TooLate: There was no answer by the deadline; the connection must not be used any more.
        psycopg.Error: A statement failed; those after it were not run.
    """
    interval = max(min(deadline - monotonic(), INTERVAL), 0.001)
    async with connection.lock:
        result = await connection.wait(sent(connection, script, deadline), interval)
    return rows_of(result)


def cursor_of(connection: AsyncConnection[Any]) -> AsyncCursor[DictRow]:
    """Make a cursor with psycopg's defaults, whatever ``configure=`` has set on the connection or in all of psycopg.

    Args:
        connection: The connection.

    Returns:
        The cursor: its rows are dicts, and text is ``str``, also in a session with the encoding SQL_ASCII.
    """
    cursor = AsyncCursor(connection, row_factory=dict_row)
    use_adapters(cursor, AdaptersMap(_adapters()))
    return cursor


@cache
def _adapters() -> AdaptersMap:
    adapters = AdaptersMap(types=TypesRegistry(postgres.types))
    postgres.register_default_adapters(adapters)
    register_all_arrays(adapters)
    for kind in (UNKNOWN, "bpchar", "name", "text", "varchar"):
        adapters.register_loader(kind, _TextLoader)
    return adapters


class _TextLoader(Loader):
    """Loads text as ``str`` also with SQL_ASCII, where psycopg's loader returns bytes of an unknown encoding."""

    def load(self, data: Buffer) -> str:
        encoding = self.connection.info.encoding if self.connection else "utf-8"
        return bytes(data).decode("utf-8" if encoding == "ascii" else encoding, errors="replace")


def text_of(query: Any) -> str:
    """Return the text of a statement, in any of the forms that psycopg accepts.

    Args:
        query: The statement.

    Returns:
        Its text; statements that differ only in their parameters have the same text.

    Raises:
        TypeError: ``query`` is not a statement.
    """
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    if isinstance(query, Template):
        return "".join(map(_text_of_part, query))
    if not isinstance(query, Composable):
        raise TypeError(
            "execute() takes a statement: a str, bytes, what psycopg.sql makes, or a template string; "
            f"not {type(query).__name__}"
        )
    try:
        return query.as_string(None)
    except psycopg.ProgrammingError:  # only a connection may have the adapter for one of its literals
        return repr(query)


def _text_of_part(part: str | Interpolation[Any]) -> str:
    """Write a part of a template string: SQL as it is, and the same mark for every parameter and literal."""
    if isinstance(part, str):
        return part
    if isinstance(part.value, (Template, Composable)):
        return text_of(part.value)
    return f'"{part.value}"' if part.format_spec == "i" else " ? "


def rows_of(result: PGresult) -> list[tuple[bytes | None, ...]]:
    return [tuple(result.get_value(row, column) for column in range(result.nfields)) for row in range(result.ntuples)]


def sent(connection: AsyncConnection[Any], script: bytes, deadline: float) -> PQGen[PGresult]:
    results = yield from answers(connection, script, deadline)
    for result in results:
        check(connection, result)
    return results[-1]


def check(connection: AsyncConnection[Any], result: PGresult) -> None:
    if result.status == ExecStatus.FATAL_ERROR:
        raise error_from_result(result, encoding=connection.info.encoding)


def answers(connection: AsyncConnection[Any], script: bytes, deadline: float) -> PQGen[list[PGresult]]:
    check_usable(connection)
    connection.pgconn.send_query(script)
    return (yield from _until(deadline, generators.execute(connection.pgconn)))


def _until(deadline: float, answer: PQGen[list[PGresult]]) -> PQGen[list[PGresult]]:
    """Run another generator with a deadline: the waiting function returns at intervals, even if nothing has arrived."""
    try:
        wanted = next(answer)
        while True:
            ready = yield wanted
            if not ready and monotonic() >= deadline:
                raise TooLate("the server has not answered in time")
            wanted = answer.send(ready)
    except StopIteration as end:
        results: list[PGresult] = end.value
        return results
