# Generated from tests/_async/test_hygiene_ways.py by tools/async_to_sync.py: do not edit.
"""However a statement is sent and a block ends, nothing is left in a version's session: ``pool.hygiene``."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import ClientCursor, Connection, RawCursor

from router import Router
from tests._sync.test_hygiene import RESETS, left, one

if TYPE_CHECKING:
    from tests.conftest import Postgres


def by_an_error(router: Router, statement: LiteralString) -> None:
    with pytest.raises(ZeroDivisionError):
        with router.connection() as connection:
            connection.execute(statement)
            raise ZeroDivisionError


def by_a_failed_statement(router: Router, statement: LiteralString) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        with router.connection() as connection:
            connection.execute(statement)
            connection.execute("SELECT 1 / 0")


def by_a_failure_in_the_same_text(router: Router, statement: LiteralString) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        with router.connection() as connection:
            connection.set_autocommit(True)
            connection.execute(f"{statement}; COMMIT; SELECT 1 / 0")


def by_a_rollback(router: Router, statement: LiteralString) -> None:
    with router.connection() as connection:
        connection.execute(statement)
        connection.rollback()
        connection.execute("SELECT 1")


def by_a_savepoint(router: Router, statement: LiteralString) -> None:
    with router.connection() as connection, connection.transaction():
        with suppress(ZeroDivisionError):
            with connection.transaction():
                connection.execute(statement)
                raise ZeroDivisionError


def in_autocommit(router: Router, statement: LiteralString) -> None:
    with router.connection() as connection:
        connection.set_autocommit(True)
        connection.execute(statement)


def in_a_pipeline(router: Router, statement: LiteralString) -> None:
    with router.connection() as connection, connection.pipeline():
        connection.execute("SELECT 1")
        connection.execute(statement)
        connection.execute("SELECT 1")


def by_a_client_cursor(router: Router, statement: LiteralString) -> None:
    with router.connection() as connection:
        ClientCursor(connection).execute(statement)


def by_a_raw_cursor(router: Router, statement: LiteralString) -> None:
    with router.connection() as connection:
        RawCursor(connection).execute(statement)


def unprepared(router: Router, statement: LiteralString) -> None:
    with router.connection() as connection:
        connection.prepare_threshold = None
        connection.execute(statement, prepare=False)


def prepared(router: Router, statement: LiteralString) -> None:
    with router.connection() as connection:
        connection.execute(statement.encode(), prepare=True)


def many(router: Router, statement: LiteralString) -> None:
    with router.connection() as connection:
        connection.cursor().executemany(statement, [(), ()])


def acquired(router: Router, statement: LiteralString) -> None:
    connection = router.acquire()
    connection.execute(statement)
    connection.close()


def in_run(router: Router, statement: LiteralString) -> None:
    def leave(connection: Connection[Any]) -> None:
        connection.execute(statement)

    router.run(leave)


def by_a_copy(router: Router, statement: LiteralString) -> None:
    with router.connection() as connection, connection.cursor().copy(f"COPY ({statement}) TO STDOUT") as copy:
        for _ in copy:
            pass


def by_a_copy_and_then_a_harmless_statement(router: Router, statement: LiteralString) -> None:
    with router.connection() as connection:
        with connection.cursor().copy(f"COPY ({statement}) TO STDOUT") as copy:
            for _ in copy:
                pass
        connection.execute("SELECT 1")


def by_a_stream(router: Router, statement: LiteralString) -> None:
    with router.connection() as connection:
        for _ in connection.cursor().stream(statement):
            pass


def by_a_server_cursor(router: Router, statement: LiteralString) -> None:
    with router.connection() as connection, connection.cursor("named") as cursor:
        cursor.execute(statement)
        cursor.fetchall()


WAYS = [
    by_an_error, by_a_failed_statement, by_a_failure_in_the_same_text, by_a_rollback, by_a_savepoint, in_autocommit,
    in_a_pipeline, by_a_client_cursor, by_a_raw_cursor, unprepared, prepared, many, acquired, in_run, by_a_copy,
    by_a_copy_and_then_a_harmless_statement, by_a_stream, by_a_server_cursor,
]  # fmt: skip


@pytest.mark.parametrize("hygiene", RESETS)
def test_nothing_is_left_however_a_statement_is_sent_and_a_block_ends(postgres: Postgres, hygiene: str) -> None:
    with Router(one(postgres.primary, hygiene)) as router:
        fresh = left(router)
        for way in WAYS:
            way(router, "SELECT pg_advisory_lock(78)")
            assert left(router) == fresh, way


def test_transaction_leaves_a_lock_however_it_was_taken(postgres: Postgres) -> None:
    with Router(one(postgres.primary, "transaction")) as router:
        fresh = left(router)
        for way in WAYS:
            way(router, "SELECT pg_advisory_lock(79)")
            assert left(router) != fresh, way
            with router.connection() as connection:
                connection.execute("SELECT pg_advisory_unlock_all()")
