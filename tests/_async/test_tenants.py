"""Tenants are kept apart: what one of them does to a connection, another never sees."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString, cast

import psycopg
import pytest
from psycopg import AsyncConnection, AsyncCursor
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row, tuple_row

from router import AsyncRouter
from tests.support import new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from router import RouterSettings
    from router.testing import PostgresCluster

WAYS = ("database", "schema", "role", "user", "row")
HOMES: dict[str, dict[str, Any]] = {
    "database": {"database": "{tenant}"},
    "schema": {"schema": "{tenant}"},
    "role": {"role": "{tenant}"},
    "user": {"user": "{tenant}"},
    "row": {"row": "app.tenant"},
}


@dataclass(frozen=True)
class World:
    """Two tenants, at home in every way at once: in a table `me` each finds its own key.

    Attributes:
        cluster: The servers.
        database: Where all of them live but for those with a database of their own.
        app: A login role that row-level security holds for.
        other: A role that everybody may take on.
        keys: The tenants.
    """

    cluster: PostgresCluster
    database: LiteralString
    app: LiteralString
    other: LiteralString
    keys: tuple[LiteralString, LiteralString]

    def dsn(self, way: str = "schema", **params: Any) -> str:
        return self.cluster.dsn(dbname=self.database, user=self.app if way == "row" else "postgres", **params)

    def settings(self, way: str, *, primary: str | None = None, **arguments: Any) -> RouterSettings:
        options = {"health": {"interval": 3600}, "tenant_template": HOMES[way], **arguments}
        return settings(primary=primary or self.dsn(way), **options)

    def identity(self, way: str, key: str) -> tuple[str, str, str, str, str, str, str]:
        """Who a tenant is: database, user, login role, schema, setting, and what is in its table, twice."""
        database = key if way == "database" else self.database
        user = {"role": key, "user": key, "row": self.app}.get(way, "postgres")
        login = {"user": key, "row": self.app}.get(way, "postgres")
        schema = {"database": "public", "row": self.app}.get(way, key)
        return database, user, login, schema, key if way == "row" else "", key, key


@pytest.fixture(scope="module")
def world(cluster: PostgresCluster) -> World:
    world = World(cluster, new_name(), new_name(), new_name(), (new_name(), new_name()))
    app, other, database = world.app, world.other, world.database
    run(
        cluster.dsn(),
        f"CREATE ROLE {app} LOGIN",
        f"CREATE ROLE {other}",
        f"GRANT {other} TO {app}",
        f"CREATE DATABASE {database}",
    )
    run(
        world.dsn(),
        "CREATE SEQUENCE seq; GRANT USAGE ON SEQUENCE seq TO PUBLIC",
        # PL/pgSQL keeps the plan of an expression until plans are discarded, whatever `me` is by then.
        """CREATE FUNCTION told() RETURNS text LANGUAGE plpgsql AS $$
        DECLARE found record; BEGIN SELECT * INTO found FROM me; RETURN coalesce(found.name, NULL); END $$""",
        """CREATE FUNCTION drew() RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN PERFORM lastval(); RETURN true;
        EXCEPTION WHEN object_not_in_prerequisite_state THEN RETURN false; END $$""",
    )
    for key in world.keys:
        run(
            cluster.dsn(),
            f"CREATE DATABASE {key} TEMPLATE {database}",
            f"CREATE ROLE {key} LOGIN",
            f"GRANT {other} TO {key}",
        )
        run(cluster.dsn(dbname=key), "CREATE TABLE me (name text)", f"INSERT INTO me VALUES ('{key}')")
        run(
            world.dsn(),
            f"CREATE SCHEMA {key} AUTHORIZATION {key}",
            f"CREATE TABLE {key}.me (name text)",
            f"ALTER TABLE {key}.me OWNER TO {key}",
            f"INSERT INTO {key}.me VALUES ('{key}')",
        )
    run(
        world.dsn(),
        f"CREATE SCHEMA {app}",
        f"GRANT USAGE ON SCHEMA {app} TO {app}",
        f"CREATE TABLE {app}.me (name text)",
        f"INSERT INTO {app}.me VALUES ('{world.keys[0]}'), ('{world.keys[1]}')",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {app}.me TO {app}",
        f"ALTER TABLE {app}.me ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY own ON {app}.me USING (name = current_setting('app.tenant', true))",
    )
    return world


# Nothing is left for the next tenant

# One round trip: who one is, and whatever a session can hold.
LOOK = """
SELECT current_database(), current_user, session_user, current_schema(),
    coalesce(current_setting('app.tenant', true), ''), (SELECT name FROM me), public.told(),
    coalesce(current_setting('app.x', true), ''), current_setting('work_mem'),
    current_setting('transaction_isolation'), current_setting('default_transaction_isolation'),
    current_setting('default_transaction_deferrable'), current_setting('default_transaction_read_only'),
    (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()),
    (SELECT count(*) FROM pg_prepared_statements),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    (SELECT count(*) FROM pg_listening_channels()),
    (SELECT count(*) FROM pg_cursors WHERE name <> ''),
    public.drew(), pg_current_xact_id_if_assigned() IS NULL
"""
CLEAN = ("", "4MB", "read committed", "read committed", "off")
EMPTY = (0, 0, 0, 0, 0, False, True)

# What one statement leaves behind.
STATEMENTS: dict[str, LiteralString] = {
    "search_path": "SET search_path TO {rival}, public",
    "role": "SET ROLE {other}",
    "placeholder": "SET app.x = 'left'; SET app.tenant = '{rival}'",
    "setting": "SET work_mem = '77kB'",
    "temporary table": "CREATE TEMPORARY TABLE me (name int); INSERT INTO me VALUES (1); COMMIT; SELECT public.told()",
    "PREPARE": "PREPARE left_behind AS SELECT name FROM me",
    "advisory lock": "SELECT pg_advisory_lock(pg_backend_pid())",
    "LISTEN": "LISTEN left_behind; NOTIFY left_behind",  # heard with the answer to COMMIT
    "cursor": "DECLARE left_behind CURSOR WITH HOLD FOR SELECT name FROM me",
    "characteristics": (
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ WRITE, DEFERRABLE"
    ),
    "sequence": "SELECT nextval('public.seq')",
}
SUPERUSERS: dict[str, LiteralString] = {"session authorization": "SET SESSION AUTHORIZATION {other}"}


class LeftBehindError(Exception):
    """The block's own."""


class OtherCursor(AsyncCursor[Any]):
    """Some other cursor class."""


def says(statement: LiteralString) -> Callable[[AsyncConnection[Any], World, str], Awaitable[None]]:
    async def say(connection: AsyncConnection[Any], world: World, rival: str) -> None:
        text = cast("LiteralString", statement.format(rival=rival, other=world.other))
        # A session that refuses writes can be talked out of it on a primary.
        await connection.execute(f"BEGIN READ WRITE; {text}; COMMIT" if connection.autocommit else text)

    return say


async def prepared_by_psycopg(connection: AsyncConnection[Any], world: World, rival: str) -> None:
    cursor = await connection.execute("SELECT name FROM me WHERE name <> %s", [""], prepare=True)
    [(name,)] = await cursor.fetchall()
    assert name != rival


async def open_transaction(connection: AsyncConnection[Any], world: World, rival: str) -> None:
    await connection.rollback()
    await connection.set_autocommit(True)
    await connection.execute("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT pg_advisory_xact_lock(pg_backend_pid())")


async def failed_transaction(connection: AsyncConnection[Any], world: World, rival: str) -> None:
    with suppress(psycopg.errors.DivisionByZero):
        await connection.execute("BEGIN; SELECT pg_advisory_xact_lock(pg_backend_pid()); SELECT 1 / 0")


async def left_by_an_error(connection: AsyncConnection[Any], world: World, rival: str) -> None:
    await connection.execute("SELECT set_config('app.x', 'left', false)")
    raise LeftBehindError


async def attributes(connection: AsyncConnection[Any], world: World, rival: str) -> None:
    await connection.rollback()
    await connection.set_autocommit(not connection.autocommit)
    await connection.set_read_only(True)
    await connection.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
    await connection.set_deferrable(True)
    connection.row_factory = dict_row
    connection.cursor_factory = OtherCursor
    connection.prepare_threshold = 0
    connection.prepared_max = 1
    connection.add_notice_handler(lambda _: None)
    connection.add_notify_handler(lambda _: None)
    await connection.execute("SELECT name FROM me")


KINDS = {
    **{kind: says(statement) for kind, statement in STATEMENTS.items()},
    "prepared by psycopg": prepared_by_psycopg,
    "open transaction": open_transaction,
    "failed transaction": failed_transaction,
    "left by an error": left_by_an_error,
    "attributes": attributes,
}
SUPERUSERS_KINDS = {**KINDS, **{kind: says(statement) for kind, statement in SUPERUSERS.items()}}


async def spotless(connection: AsyncConnection[Any], *, read_only: bool, begun: bool) -> tuple[Any, ...]:
    """Who one is, once it is sure that a connection has nothing of anybody else."""
    status = TransactionStatus.INTRANS if begun else TransactionStatus.IDLE
    assert connection.pgconn.transaction_status == status
    assert connection.autocommit is read_only
    assert (connection.isolation_level, connection.read_only, connection.deferrable) == (None, None, None)
    assert connection.row_factory is tuple_row
    assert connection.cursor_factory is AsyncCursor
    assert (connection.prepare_threshold, connection.prepared_max) == (5, 100)
    assert (connection._notice_handlers, connection._notify_handlers) == ([], [])
    cursor = await connection.execute(LOOK, prepare=False)
    row = await cursor.fetchone()
    assert row is not None
    assert [heard async for heard in connection.notifies(timeout=0)] == []
    assert row[7:] == (*CLEAN, "on" if read_only else "off", *EMPTY)
    return tuple(row[:7])


async def alternate(router: AsyncRouter, world: World, way: str, times: int, *, shared: bool, full: bool) -> set[int]:
    """Have two tenants take turns, each leaving something behind; which server processes that took.

    Args:
        router: The router.
        world: Where they live.
        way: How they are kept apart.
        times: How often.
        shared: Whether a pool is shared: a block to write then begins its transaction at once.
        full: Whether a tenant finds nothing of its own, either.
    """
    chance = random.Random(f"{way} {shared} {full}")
    kinds = KINDS if way in ("user", "row") else SUPERUSERS_KINDS
    order = [*kinds] * (times // len(kinds) + 1)
    chance.shuffle(order)
    turns, served = [0, 0], set()
    for kind in order[:times]:
        read_only = chance.random() < 0.5
        turns[read_only] += 1
        place = chance.randrange(2) if full else turns[read_only] % 2
        key, rival = world.keys[place], world.keys[1 - place]
        with suppress(LeftBehindError):
            async with router.connection(tenant=key, read_only=read_only) as connection:
                begun = shared and not read_only
                assert await spotless(connection, read_only=read_only, begun=begun) == world.identity(way, key), kind
                served.add(connection.info.backend_pid)
                await kinds[kind](connection, world, rival)
    return served


@pytest.mark.parametrize("hygiene", ["transaction", "full"])
@pytest.mark.parametrize("way", ["schema", "role", "row"])
async def test_nothing_is_left_for_the_next_tenant_of_a_shared_connection(
    world: World, way: str, hygiene: str
) -> None:
    options = world.settings(way, tenancy={"pooling": "shared", "hygiene": hygiene}, pool={"max_size": 1})
    async with AsyncRouter(options) as router:
        served = await alternate(router, world, way, 500, shared=True, full=hygiene == "full")
        assert len(served) == 2  # one to write, one to read


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
@pytest.mark.parametrize("way", WAYS)
async def test_nothing_is_left_for_the_next_borrower_of_a_tenants_own_connection(
    world: World, way: str, pooling: str
) -> None:
    options = world.settings(way, tenancy={"pooling": pooling, "hygiene": "full"}, pool={"max_size": 1})
    async with AsyncRouter(options) as router:
        served = await alternate(router, world, way, 400, shared=pooling == "shared", full=True)
        assert len(served) == (2 if pooling == "shared" and way in ("schema", "role", "row") else 4)


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
@pytest.mark.parametrize("way", WAYS)
async def test_tenants_change_places_on_the_one_connection_that_there_may_be(
    world: World, way: str, pooling: str
) -> None:
    options = world.settings(way, tenancy={"pooling": pooling}, max_connections=2)  # one of them looks
    async with AsyncRouter(options) as router:
        served = await alternate(router, world, way, 100, shared=pooling == "shared", full=False)
        assert len(served) > 40  # for another pool, to read or to write, a connection is closed
        assert sum(pool.pool.size for pool in router.stats().tenant_pools) == 1
