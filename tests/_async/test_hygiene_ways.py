"""However a statement is sent and a block ends, nothing is left in a version's session: ``pool.hygiene``."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import AsyncClientCursor, AsyncConnection, AsyncRawCursor

from router import AsyncRouter
from tests._async.test_hygiene import RESETS, left, one

if TYPE_CHECKING:
    from tests.conftest import Postgres


async def by_an_error(router: AsyncRouter, statement: LiteralString) -> None:
    with pytest.raises(ZeroDivisionError):
        async with router.connection() as connection:
            await connection.execute(statement)
            raise ZeroDivisionError


async def by_a_failed_statement(router: AsyncRouter, statement: LiteralString) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with router.connection() as connection:
            await connection.execute(statement)
            await connection.execute("SELECT 1 / 0")


async def by_a_failure_in_the_same_text(router: AsyncRouter, statement: LiteralString) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with router.connection() as connection:
            await connection.set_autocommit(True)
            await connection.execute(f"{statement}; COMMIT; SELECT 1 / 0")


async def by_a_rollback(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        await connection.execute(statement)
        await connection.rollback()
        await connection.execute("SELECT 1")


async def by_a_savepoint(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection, connection.transaction():
        with suppress(ZeroDivisionError):
            async with connection.transaction():
                await connection.execute(statement)
                raise ZeroDivisionError


async def in_autocommit(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        await connection.set_autocommit(True)
        await connection.execute(statement)


async def in_a_pipeline(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection, connection.pipeline():
        await connection.execute("SELECT 1")
        await connection.execute(statement)
        await connection.execute("SELECT 1")


async def by_a_client_cursor(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        await AsyncClientCursor(connection).execute(statement)


async def by_a_raw_cursor(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        await AsyncRawCursor(connection).execute(statement)


async def unprepared(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        connection.prepare_threshold = None
        await connection.execute(statement, prepare=False)


async def prepared(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        await connection.execute(statement.encode(), prepare=True)


async def many(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        await connection.cursor().executemany(statement, [(), ()])


async def acquired(router: AsyncRouter, statement: LiteralString) -> None:
    connection = await router.acquire()
    await connection.execute(statement)
    await connection.close()


async def in_run(router: AsyncRouter, statement: LiteralString) -> None:
    async def leave(connection: AsyncConnection[Any]) -> None:
        await connection.execute(statement)

    await router.run(leave)


async def by_a_copy(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection, connection.cursor().copy(f"COPY ({statement}) TO STDOUT") as copy:
        async for _ in copy:
            pass


async def by_a_copy_and_then_a_harmless_statement(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        async with connection.cursor().copy(f"COPY ({statement}) TO STDOUT") as copy:
            async for _ in copy:
                pass
        await connection.execute("SELECT 1")


async def by_a_stream(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        async for _ in connection.cursor().stream(statement):
            pass


async def by_a_server_cursor(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection, connection.cursor("named") as cursor:
        await cursor.execute(statement)
        await cursor.fetchall()


WAYS = [
    by_an_error, by_a_failed_statement, by_a_failure_in_the_same_text, by_a_rollback, by_a_savepoint, in_autocommit,
    in_a_pipeline, by_a_client_cursor, by_a_raw_cursor, unprepared, prepared, many, acquired, in_run, by_a_copy,
    by_a_copy_and_then_a_harmless_statement, by_a_stream, by_a_server_cursor,
]  # fmt: skip


@pytest.mark.parametrize("hygiene", RESETS)
async def test_nothing_is_left_however_a_statement_is_sent_and_a_block_ends(postgres: Postgres, hygiene: str) -> None:
    async with AsyncRouter(one(postgres.primary, hygiene)) as router:
        fresh = await left(router)
        for way in WAYS:
            await way(router, "SELECT pg_advisory_lock(78)")
            assert await left(router) == fresh, way


async def test_transaction_leaves_a_lock_however_it_was_taken(postgres: Postgres) -> None:
    async with AsyncRouter(one(postgres.primary, "transaction")) as router:
        fresh = await left(router)
        for way in WAYS:
            await way(router, "SELECT pg_advisory_lock(79)")
            assert await left(router) != fresh, way
            async with router.connection() as connection:
                await connection.execute("SELECT pg_advisory_unlock_all()")
