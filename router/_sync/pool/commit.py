# Generated from router/_async/pool/commit.py by tools/async_to_sync.py: do not edit.
"""How a block's transaction is committed, with a question in the same round trip."""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import Connection
from psycopg.pq import ExecStatus

from router._sync.pool.connection import COMMITTING, NodeConnection
from router._sync.pool.inside.connection import in_pipeline, only_psycopg_commits
from router._sync.pool.scripts import answers, check, rows_of, send

if TYPE_CHECKING:
    from psycopg.abc import PQGen


def commit(connection: Connection[Any], then: bytes) -> list[tuple[bytes | None, ...]]:
    """Commit a transaction, and ask something after that in the same round trip.

    Args:
        connection: The connection, in a transaction.
        then: What to ask, in ASCII.

    Returns:
        The rows; none if the question failed: the transaction is committed all the same.

    Raises:
        psycopg.ProgrammingError: psycopg would not commit here: a ``transaction()`` is open, say.
        psycopg.Error: It could not be committed.
    """
    if only_psycopg_commits(connection):
        Connection.commit(connection)
        if in_pipeline(connection):  # where no script can be sent
            connection.pgconn.exit_pipeline_mode()
        with suppress(psycopg.Error):
            return send(connection, then)
        return []
    with connection.lock:
        return connection.wait(_committed(connection, b"COMMIT; " + then))


def _committed(connection: Connection[Any], script: bytes) -> PQGen[list[tuple[bytes | None, ...]]]:
    if isinstance(connection, NodeConnection):
        connection._death = COMMITTING  # noqa: SLF001  (of its own kind)
    committed, *asked = yield from answers(connection, script, inf)
    check(connection, committed)
    return rows_of(asked[0]) if asked and asked[0].status == ExecStatus.TUPLES_OK else []
