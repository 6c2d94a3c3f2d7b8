"""The router's own statements, whatever ``configure=``, a block or the environment made of the connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import AsyncConnection, AsyncCursor
from psycopg.adapt import Loader
from psycopg.rows import dict_row, scalar_row, tuple_row

from router import AsyncRouter
from router.core import sql
from tests.support import new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.testing import PostgresCluster


class Garbled(Loader):
    """Loads something that no statement of the router's can use."""

    def load(self, data: Any) -> str:
        return f"garbled {bytes(data)!r}"


class OtherCursor(AsyncCursor[Any]):
    """A cursor class that fetches nothing."""

    async def fetchall(self) -> list[Any]:
        return []

    async def fetchone(self) -> Any:
        return None


def rows_are_dicts(connection: AsyncConnection[Any]) -> None:
    connection.row_factory = dict_row


def rows_are_scalars(connection: AsyncConnection[Any]) -> None:
    connection.row_factory = scalar_row


def cursors_are_others(connection: AsyncConnection[Any]) -> None:
    connection.cursor_factory = OtherCursor


def all_is_prepared(connection: AsyncConnection[Any]) -> None:
    connection.prepare_threshold = 0


def values_are_garbled(connection: AsyncConnection[Any]) -> None:
    for kind in ("bool", "int4", "int8", "float8", "text"):
        connection.adapters.register_loader(kind, Garbled)


CHANGES = [rows_are_dicts, rows_are_scalars, cursors_are_others, all_is_prepared, values_are_garbled]


@pytest.fixture
def table(cluster: PostgresCluster) -> LiteralString:
    name = new_name()
    run(cluster.dsn(), f"CREATE TABLE {name} (i int)")
    cluster.wait_replayed()
    return name


@pytest.mark.each_value
@pytest.mark.parametrize("in_block", [False, True])
@pytest.mark.parametrize("change", CHANGES)
async def test_a_session_works_whatever_is_set_on_its_connections(
    cluster: PostgresCluster, table: LiteralString, change: Callable[[Any], None], in_block: bool
) -> None:
    options = settings(**cluster.version_settings())
    async with AsyncRouter(options, configure=None if in_block else change) as router:
        for number in range(1, 4):
            with router.session() as session:
                async with router.connection() as connection:
                    change(connection)
                    await connection.execute(f"INSERT INTO {table} VALUES (%s)", [number])
                assert session.token is not None
                async with router.connection(read_only=True) as connection:
                    change(connection)
                    cursor = AsyncCursor(connection, row_factory=tuple_row)
                    await cursor.execute(f"SELECT count(*) = {number} AS all_there FROM {table}")
                    assert await cursor.fetchone() in [(True,), ("garbled b't'",)]
    assert run(cluster.dsn(), f"SELECT i FROM {table} ORDER BY i") == [(1,), (2,), (3,)]


async def test_a_session_commits_what_a_pipeline_that_was_left_open_has_sent(
    cluster: PostgresCluster, table: LiteralString
) -> None:
    async with AsyncRouter(settings(**cluster.version_settings())) as router:
        with router.session() as session:
            async with router.connection() as connection:
                pipeline = connection.pipeline()
                await pipeline.__aenter__()
                await connection.execute(f"INSERT INTO {table} VALUES (1)")
            assert session.token is not None
            async with router.connection(read_only=True) as connection:
                assert await (await connection.execute(f"SELECT i FROM {table}")).fetchall() == [(1,)]


async def test_a_session_works_with_a_pipeline_that_sent_nothing(
    cluster: PostgresCluster, table: LiteralString
) -> None:
    async with AsyncRouter(settings(**cluster.version_settings())) as router:
        with router.session() as session:
            async with router.connection() as connection:
                pipeline = connection.pipeline()
                await pipeline.__aenter__()
            assert session.token is not None
            with pytest.raises(ZeroDivisionError):
                async with router.connection() as connection:
                    pipeline = connection.pipeline()
                    await pipeline.__aenter__()
                    raise ZeroDivisionError


async def test_a_session_does_not_commit_what_psycopg_would_not(cluster: PostgresCluster, table: LiteralString) -> None:
    async with AsyncRouter(settings(**cluster.version_settings())) as router:
        with router.session():
            with pytest.raises(psycopg.ProgrammingError, match="Transaction"):
                async with router.connection() as connection:
                    transaction = connection.transaction()
                    await transaction.__aenter__()
                    await connection.execute(f"INSERT INTO {table} VALUES (1)")
            async with router.connection() as connection:
                assert await (await connection.execute(f"SELECT i FROM {table}")).fetchall() == []


async def test_a_commit_stands_if_nobody_can_ask_how_far_it_went(
    cluster: PostgresCluster, table: LiteralString
) -> None:
    own = new_name()
    run(
        cluster.dsn(),
        f"CREATE SCHEMA {own}",
        f"CREATE FUNCTION {own}.pg_walfile_name(pg_lsn) RETURNS text AS $$ SELECT (1 / 0)::text $$ LANGUAGE sql",
    )
    async with AsyncRouter(settings(**cluster.version_settings())) as router:
        for number, in_pipeline in enumerate((False, True)):
            with router.session():
                async with router.connection() as connection:
                    await connection.execute(f"SET search_path TO {own}, public, pg_catalog")
                    pipeline = connection.pipeline()
                    if in_pipeline:
                        await pipeline.__aenter__()
                    await connection.execute(f"INSERT INTO {table} VALUES (1)")
                async with router.connection(read_only=True) as connection:  # the primary has it in any case
                    cursor = await connection.execute(f"SELECT count(*) FROM public.{table}")
                    assert await cursor.fetchone() == (number + 1,)
    assert run(cluster.dsn(), f"SELECT i FROM {table}") == [(1,), (1,)]


@pytest.mark.parametrize(
    ("encoding", "change"),
    [("SQL_ASCII", None), ("LATIN1", None), ("UTF8", None), *(("UTF8", change) for change in CHANGES)],
)
async def test_a_directory_works_in_any_encoding_and_whatever_configure_sets(
    cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None] | None, encoding: str
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    directory, schema = new_name(), new_name()
    statements = (
        f"CREATE SCHEMA {schema}",
        sql.tenants_table(directory, ".*"),
        f"INSERT INTO {directory} (tenant, schema) VALUES ('Zoë', '{{{schema}}}')",
    )
    with psycopg.connect(cluster.dsn(), autocommit=True, client_encoding="utf8") as control:
        for statement in statements:
            control.execute(statement.encode())
    options = settings(
        **cluster.version_settings(), directory={"version": "v1", "table": directory}, tenancy={"pattern": ".*"}
    )
    async with AsyncRouter(options, configure=change) as router, router.connection(tenant="Zoë") as connection:
        cursor = AsyncCursor(connection, row_factory=tuple_row)
        await cursor.execute(f"SELECT current_schema() = '{schema}'")
        assert await cursor.fetchone() in [(True,), ("garbled b't'",)]


async def test_a_directory_works_in_a_database_without_an_encoding(cluster: PostgresCluster) -> None:
    database, schema = new_name(), new_name()
    encoding = "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    run(cluster.dsn(), f"CREATE DATABASE {database} {encoding}")
    with psycopg.connect(cluster.dsn(database), autocommit=True) as control:
        control.execute(sql.tenants_table("router_tenant").encode())
        control.execute("ALTER TABLE router_tenant ADD COLUMN called text")
        control.execute(f"CREATE SCHEMA {schema}")
        row = f"INSERT INTO router_tenant (tenant, schema, called) VALUES ('acme', '{{{schema}}}', 'Müller')"
        control.execute(row.encode("latin1"))
    options = settings(primary=cluster.dsn(database), directory={"version": "v1"})
    async with AsyncRouter(options) as router, router.connection(tenant="acme") as connection:
        cursor = await connection.execute(f"SELECT current_schema() = '{schema}'")
        assert await cursor.fetchone() == (True,)
