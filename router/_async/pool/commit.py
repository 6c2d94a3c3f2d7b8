"""Commits a block's transaction, and sends a query in the same round trip."""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import ExecStatus

from router._async.pool.connection import AsyncNodeConnection
from router._async.pool.inside.connection import in_pipeline, only_psycopg_commits
from router._async.pool.scripts import answers, check, rows_of, send

if TYPE_CHECKING:
    from psycopg.abc import PQGen


async def commit(connection: AsyncConnection[Any], then: bytes) -> list[tuple[bytes | None, ...]]:
    """Commit a transaction, and run a query after it in the same round trip.

    Args:
        connection: The connection, in a transaction.
        then: The query, in ASCII.

    Returns:
        The rows of the query; none if it failed, which does not undo the commit.

    Raises:
        psycopg.ProgrammingError: psycopg refuses to commit here, since a ``transaction()`` is open for example.
        psycopg.Error: The transaction could not be committed.
    """
    if only_psycopg_commits(connection):
        await AsyncConnection.commit(connection)
        if in_pipeline(connection):  # no script can be sent in a pipeline
            connection.pgconn.exit_pipeline_mode()
        with suppress(psycopg.Error):
            return await send(connection, then)
        return []
    async with connection.lock:
        return await connection.wait(_committed(connection, b"COMMIT; " + then))


def _committed(connection: AsyncConnection[Any], script: bytes) -> PQGen[list[tuple[bytes | None, ...]]]:
    if isinstance(connection, AsyncNodeConnection):
        connection.note_commit()
    committed, *asked = yield from answers(connection, script, inf)
    check(connection, committed)
    return rows_of(asked[0]) if asked and asked[0].status == ExecStatus.TUPLES_OK else []
