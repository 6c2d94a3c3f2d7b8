"""What sessions keep of tables and types: after a migration or a restore, a statement fails once at most."""

from __future__ import annotations

from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg.types.enum import EnumInfo, register_enum

from router import AsyncRouter
from tests.support import new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from psycopg import AsyncConnection

    from router.testing import PostgresCluster

    Use = Callable[[AsyncConnection[Any], str], Awaitable[Any]]

TIMES = 8
"""How often a statement runs until it is prepared for certain."""

PREPARED = "SELECT count(*)::int FROM pg_prepared_statements"


@pytest.fixture
def table(cluster: PostgresCluster) -> LiteralString:
    """A table with one row, that is to be changed; in a schema and with an enum of the same name."""
    name = new_name()
    run(
        cluster.dsn(),
        f"CREATE SCHEMA {name}",
        f"CREATE TYPE {name}.mood AS ENUM ('happy')",
        f"CREATE TABLE {name} (a int, mood {name}.mood)",
        f"INSERT INTO {name} VALUES (1, 'happy')",
    )
    cluster.wait_replayed()
    return name


def migrate(cluster: PostgresCluster, table: LiteralString) -> None:
    run(cluster.dsn(), f"ALTER TABLE {table} ADD COLUMN b int")
    cluster.wait_replayed()


def restore(cluster: PostgresCluster, table: LiteralString) -> None:
    """Have the enum made anew, as a dump does that is restored: it has another OID."""
    run(
        cluster.dsn(),
        f"ALTER TABLE {table} ALTER COLUMN mood TYPE text",
        f"DROP TYPE {table}.mood",
        f"CREATE TYPE {table}.mood AS ENUM ('happy')",
        f"ALTER TABLE {table} ALTER COLUMN mood TYPE {table}.mood USING mood::{table}.mood",
    )
    cluster.wait_replayed()


async def by_execute(connection: AsyncConnection[Any], table: str) -> Any:
    return await (await connection.execute(f"SELECT * FROM {table}".encode())).fetchone()


async def by_many(connection: AsyncConnection[Any], table: str) -> Any:
    async with connection.cursor() as cursor:
        await cursor.executemany(f"SELECT * FROM {table} WHERE a = %s".encode(), [[1], [2]], returning=True)
        return await cursor.fetchone()


async def by_pipeline(connection: AsyncConnection[Any], table: str) -> Any:
    async with connection.pipeline():
        cursor = await connection.execute(f"SELECT * FROM {table}".encode())
        return await cursor.fetchone()


async def by_transaction(connection: AsyncConnection[Any], table: str) -> Any:
    async with connection.transaction(), connection.transaction():
        return await by_execute(connection, table)


async def by_hand(connection: AsyncConnection[Any], table: str) -> Any:
    await connection.execute("BEGIN")
    try:
        return await by_execute(connection, table)
    finally:
        await connection.execute("ROLLBACK")


async def by_parameter(connection: AsyncConnection[Any], table: str) -> Any:
    return await (await connection.execute(f"SELECT a FROM {table} WHERE mood = %s".encode(), ["happy"])).fetchone()


WAYS = [by_execute, by_many, by_pipeline, by_transaction, by_hand]


async def used(use: Use, router: AsyncRouter, table: str, *, swallowed: bool, read_only: bool) -> bool:
    """Whether a block of its own finds the row."""
    found = None
    with suppress(psycopg.Error):
        async with router.connection(read_only=read_only) as connection:
            if not swallowed:
                found = await use(connection, table)
            else:
                with suppress(psycopg.Error):
                    found = await use(connection, table)
    return found is not None


@pytest.mark.each_value
@pytest.mark.parametrize("use", WAYS)
@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("swallowed", [True, False])
async def test_after_a_migration_blocks_fail_once(
    cluster: PostgresCluster, table: LiteralString, use: Use, *, swallowed: bool, read_only: bool
) -> None:
    replica = cluster.standbys[0].dsn()
    async with AsyncRouter(settings(primary=cluster.dsn(), replicas=[replica], pool={"max_size": 1})) as router:
        for _ in range(TIMES):
            assert await used(use, router, table, swallowed=swallowed, read_only=read_only)
        migrate(cluster, table)
        results = [await used(use, router, table, swallowed=swallowed, read_only=read_only) for _ in range(TIMES)]
    assert results == [False] + [True] * (TIMES - 1)


async def test_a_block_that_goes_on_prepares_anew(cluster: PostgresCluster, table: LiteralString) -> None:
    async with AsyncRouter(settings(primary=cluster.dsn())) as router, router.connection(read_only=True) as connection:
        pid = connection.info.backend_pid
        for use in (by_execute, by_parameter):
            for _ in range(TIMES):
                assert await use(connection, table)
        assert await (await connection.execute(PREPARED)).fetchone() == (2,)
        migrate(cluster, table)
        restore(cluster, table)
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="cached plan"):
            await by_execute(connection, table)
        assert await (await connection.execute(PREPARED)).fetchone() == (0,)
        for use in (by_execute, by_parameter):  # the second has been forgotten, too, before it could fail
            for _ in range(TIMES):
                assert await use(connection, table)
        assert connection.info.backend_pid == pid


async def test_a_statement_prepared_at_once_after_the_failure_is_not_forgotten(
    cluster: PostgresCluster, table: LiteralString
) -> None:
    async with AsyncRouter(settings(primary=cluster.dsn())) as router, router.connection() as connection:
        for _ in range(TIMES):
            await by_many(connection, table)
        await connection.commit()
        migrate(cluster, table)
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="cached plan"):
            await by_many(connection, table)
        await connection.commit()
        for _ in range(TIMES):
            assert await by_many(connection, table)
        assert await (await connection.execute(PREPARED)).fetchone() == (1,)


async def test_execute_does_not_fail_and_reads_stay_on_the_replica(
    cluster: PostgresCluster, table: LiteralString
) -> None:
    replica = cluster.standbys[0].dsn()
    insert = f"INSERT INTO {table} (a) VALUES (2) RETURNING *"
    async with AsyncRouter(settings(primary=cluster.dsn(), replicas=[replica], pool={"max_size": 1})) as router:
        for change in (None, migrate, restore, migrate_again):
            if change is not None:
                change(cluster, table)
            for _ in range(TIMES):
                assert (await router.execute(insert)).rowcount == 1
                assert (await router.execute(f"SELECT *, pg_is_in_recovery() FROM {table}")).rows[0][-1] is True
                found = await router.execute(f"SELECT a, pg_is_in_recovery() FROM {table} WHERE mood = %s", ["happy"])
                assert found.rows == [(1, True)]


def migrate_again(cluster: PostgresCluster, table: LiteralString) -> None:
    run(cluster.dsn(), f"ALTER TABLE {table} DROP COLUMN b")
    cluster.wait_replayed()


@pytest.mark.parametrize("retries", [1, 0])
async def test_a_transaction_that_is_run_does_not_fail(
    cluster: PostgresCluster, table: LiteralString, retries: int
) -> None:
    calls = []

    async def function(connection: AsyncConnection[Any]) -> Any:
        calls.append(connection)
        await connection.execute(f"UPDATE {table} SET a = a + 1")
        return await by_execute(connection, table)

    async with AsyncRouter(settings(primary=cluster.dsn())) as router:
        for _ in range(TIMES):
            await router.run(function)
        migrate(cluster, table)
        calls.clear()
        if retries:
            assert await router.run(function, retries=retries) == (TIMES + 2, "happy", None)
        else:
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="cached plan"):
                await router.run(function, retries=retries)
    assert len(calls) == retries + 1


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
async def test_a_tenants_reads_fail_once_after_a_restore(
    cluster: PostgresCluster, table: LiteralString, pooling: str
) -> None:
    options = settings(
        primary=cluster.dsn(), tenants={"acme": {"schema": [table, "public"]}}, tenancy={"pooling": pooling},
        pool={"max_size": 1},
    )  # fmt: skip
    results = []
    async with AsyncRouter(options) as router:

        async def read() -> None:
            try:
                async with router.connection(tenant="acme", read_only=True) as connection:
                    results.append((await by_parameter(connection, table))[0])
            except psycopg.errors.InternalError_ as error:
                results.append(str(error)[:17])

        for _ in range(TIMES):
            await read()
        restore(cluster, table)
        for _ in range(TIMES):
            await read()
    assert results == [1] * TIMES + ["cache lookup fail"] + [1] * (TIMES - 1)


class Mood(Enum):
    happy = "happy"


STALE = {
    "variable of a function": ("SELECT {t}.variable()", []),
    "field in a function": ("SELECT {t}.field()", []),
    "registered enum": ("SELECT mood::text FROM {t} WHERE mood = %s", [Mood.happy]),
}


@pytest.mark.parametrize("stale", STALE)
async def test_a_session_whose_functions_or_types_are_stale_is_replaced(
    cluster: PostgresCluster, table: LiteralString, stale: str
) -> None:
    """PL/pgSQL keeps the types of variables, and psycopg what `configure` registered, as long as a session lasts."""
    run(
        cluster.dsn(),
        f"CREATE FUNCTION {table}.variable() RETURNS text LANGUAGE plpgsql AS"
        f" 'DECLARE m {table}.mood; BEGIN SELECT mood INTO m FROM {table}; RETURN m; END'",
        f"CREATE FUNCTION {table}.field() RETURNS text LANGUAGE plpgsql AS 'DECLARE r record; BEGIN"
        f" SELECT * INTO r FROM {table}; RETURN (SELECT ''happy'' || left(r.a::text, 0)); END'",
    )
    statement, params = STALE[stale][0].format(t=table).encode(), STALE[stale][1]

    async def configure(connection: AsyncConnection[Any]) -> None:
        info = await EnumInfo.fetch(connection, f"{table}.mood")
        assert info is not None
        register_enum(info, connection, Mood)

    async def read(connection: AsyncConnection[Any]) -> Any:
        return (await (await connection.execute(statement, params)).fetchall())[0][0]

    async def change() -> None:
        restore(cluster, table)
        [(kind,)] = run(cluster.dsn(), f"SELECT pg_typeof(a)::text FROM {table}")
        other: LiteralString = "text" if kind == "integer" else "integer"
        run(cluster.dsn(), f"ALTER TABLE {table} ALTER COLUMN a TYPE {other} USING a::{other}")

    async with AsyncRouter(settings(primary=cluster.dsn(), pool={"max_size": 1}), configure=configure) as router:
        async with router.connection(read_only=True) as connection:
            assert await read(connection) == "happy"
        assert await router.run(read) == "happy"
        await change()
        with pytest.raises(psycopg.Error):
            async with router.connection(read_only=True) as connection:
                await read(connection)
        async with router.connection(read_only=True) as connection:
            assert await read(connection) == "happy"
        assert await router.run(read) == "happy"
        await change()
        assert (await router.execute(statement, params)).value == "happy"
        assert await router.run(read) == "happy"
