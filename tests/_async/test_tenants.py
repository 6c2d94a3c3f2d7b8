"""Tenants are kept apart: what one of them does to a connection, another never sees."""

from __future__ import annotations

import random
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic, process_time
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import AsyncConnection, AsyncCursor
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row, tuple_row

from router import (
    AsyncRouter,
    NoPrimary,
    PoolExhausted,
    RouterClosed,
    RouterSettings,
    Unavailable,
    UnknownTenant,
)
from router._runtime.flags import asleep
from router.core.server_events import UndeclaredPooler
from router.core.topology import Server
from tests._async.internals import inside
from tests.pooler import PgBouncer, Pooler
from tests.proxy import Proxy
from tests.support import (
    PATIENCE,
    aall_of,
    aeventually,
    atogether,
    new_name,
    one_of_each,
    port,
    run,
    settings,
    short_and_long,
)
from tests.tapped import tap

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from router import Node
    from router.core.events import Event
    from router.testing import PostgresCluster
    from tests.pooler import Mode

SHARED = {"pooling": "shared"}
ALTERNATIONS = short_and_long(100, 1000)
"""So often two tenants take turns, over all kinds of what they leave behind, for each way of keeping them apart."""
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

    def settings(self, way: str, *, primary: str | dict[str, Any] | None = None, **arguments: Any) -> RouterSettings:
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
    run(world.dsn(), f"CREATE TABLE {world.keys[0]}.wide AS SELECT 1 AS a")
    run(world.dsn(), f"CREATE TABLE {world.keys[1]}.wide AS SELECT 'one' AS a, 2 AS b")
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
    cluster.wait_replayed()
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
    # Else told() may go on with the plan for the other `me`, or with a half of it.
    "temporary table": (
        "CREATE TEMPORARY TABLE me (name int); INSERT INTO me VALUES (1); COMMIT; DISCARD PLANS; SELECT public.told()"
    ),
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


def says(statement: LiteralString) -> Callable[[AsyncConnection[Any], World, LiteralString], Awaitable[None]]:
    async def say(connection: AsyncConnection[Any], world: World, rival: LiteralString) -> None:
        text = statement.replace("{rival}", rival).replace("{other}", world.other)
        # A session that refuses writes can be talked out of it on a primary.
        await connection.execute(f"BEGIN READ WRITE; {text}; COMMIT" if connection.autocommit else text)

    return say


async def prepared_by_psycopg(connection: AsyncConnection[Any], world: World, rival: LiteralString) -> None:
    cursor = await connection.execute("SELECT name FROM me WHERE name <> %s", [""], prepare=True)
    [(name,)] = await cursor.fetchall()
    assert name != rival


async def open_transaction(connection: AsyncConnection[Any], world: World, rival: LiteralString) -> None:
    await connection.rollback()
    await connection.set_autocommit(True)
    await connection.execute("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT pg_advisory_xact_lock(pg_backend_pid())")


async def failed_transaction(connection: AsyncConnection[Any], world: World, rival: LiteralString) -> None:
    with suppress(psycopg.errors.DivisionByZero):
        await connection.execute("BEGIN; SELECT pg_advisory_xact_lock(pg_backend_pid()); SELECT 1 / 0")


async def left_by_an_error(connection: AsyncConnection[Any], world: World, rival: LiteralString) -> None:
    await connection.execute("SELECT set_config('app.x', 'left', false)")
    raise LeftBehindError


async def attributes(connection: AsyncConnection[Any], world: World, rival: LiteralString) -> None:
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
    async for heard in connection.notifies(timeout=0):
        pytest.fail(f"it hears {heard}")
    assert row[7:] == (*CLEAN, "on" if read_only else "off", *EMPTY)
    return tuple(row[:7])


async def alternate(
    router: AsyncRouter, world: World, way: str, times: int, *, shared: bool, on_end: bool = False
) -> set[int]:
    """Have two tenants take turns, each leaving something behind; which server processes that took.

    Args:
        router: The router.
        world: Where they live.
        way: How they are kept apart.
        times: How often.
        shared: Whether a pool is shared: a block to write then begins its transaction at once.
        on_end: Whether one may also have several turns on end.
    """
    chance = random.Random(f"{way} {shared} {on_end}")
    kinds = KINDS if way in ("user", "row") else SUPERUSERS_KINDS
    order = [*kinds] * (times // len(kinds) + 1)
    chance.shuffle(order)
    turns, served = [0, 0], set()
    for kind in order[:times]:
        read_only = chance.random() < 0.5
        turns[read_only] += 1
        place = chance.randrange(2) if on_end else turns[read_only] % 2
        key, rival = world.keys[place], world.keys[1 - place]
        with suppress(LeftBehindError):
            async with router.connection(tenant=key, read_only=read_only) as connection:
                begun = shared and not read_only
                assert await spotless(connection, read_only=read_only, begun=begun) == world.identity(way, key), kind
                served.add(connection.info.backend_pid)
                await kinds[kind](connection, world, rival)
    return served


@pytest.mark.each_value
@pytest.mark.parametrize("times", ALTERNATIONS)
@pytest.mark.parametrize("hygiene", ["transaction", "full"])
@pytest.mark.parametrize("way", ["schema", "role", "row"])
async def test_nothing_is_left_for_the_next_tenant_of_a_shared_connection(
    world: World, way: str, hygiene: str, times: int
) -> None:
    options = world.settings(way, tenancy={"pooling": "shared", "hygiene": hygiene}, pool={"max_size": 1})
    async with AsyncRouter(options) as router:
        served = await alternate(router, world, way, times, shared=True, on_end=hygiene == "full")
        assert len(served) == 2  # one to write, one to read


@pytest.mark.each_value
@pytest.mark.parametrize("times", ALTERNATIONS)
@pytest.mark.parametrize(
    ("way", "pooling"), [*((way, "dedicated") for way in WAYS), ("database", "shared"), ("user", "shared")]
)
async def test_nothing_is_left_for_the_next_borrower_of_a_tenants_own_connection(
    world: World, way: str, pooling: str, times: int
) -> None:
    options = world.settings(way, tenancy={"pooling": pooling, "hygiene": "full"}, pool={"max_size": 1})
    async with AsyncRouter(options) as router:
        served = await alternate(router, world, way, times, shared=pooling == "shared")
        assert len(served) == 4


@pytest.mark.each_value
@pytest.mark.parametrize("times", short_and_long(24, 60))
@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
@pytest.mark.parametrize("way", WAYS)
async def test_tenants_change_places_on_the_one_connection_that_there_may_be(
    world: World, way: str, pooling: str, times: int
) -> None:
    options = world.settings(way, tenancy={"pooling": pooling}, max_connections=2)  # one of them looks
    async with AsyncRouter(options) as router:
        served = await alternate(router, world, way, times, shared=pooling == "shared")
        assert len(served) > times // 3  # for another pool, to read or to write, a connection is closed
        assert sum(pool.pool.size for pool in router.stats().tenant_pools) == 1


async def test_what_was_prepared_for_one_tenant_is_not_run_for_another(world: World) -> None:
    wide = {world.keys[0]: (1,), world.keys[1]: ("one", 2)}
    async with AsyncRouter(world.settings("schema", tenancy=SHARED, pool={"max_size": 1})) as router:
        for key in [*wide] * 3:
            for _ in range(8):  # psycopg prepares a statement when it comes the sixth time
                async with router.connection(tenant=key, read_only=True) as connection:
                    cursor = await connection.execute("SELECT * FROM wide")
                    assert await cursor.fetchall() == [wide[key]]
                    kept = connection._prepared
            assert kept._names
        for key in [*wide] * 8:  # as often as that, but no tenant on end
            async with router.connection(tenant=key, read_only=True) as connection:
                cursor = await connection.execute("SELECT * FROM wide")
                assert await cursor.fetchall() == [wide[key]]
            assert not kept._names


@pytest.mark.parametrize("read_only", [True, False])
async def test_what_psycopg_still_had_to_deallocate_for_one_tenant_is_not_for_another(
    world: World, read_only: bool
) -> None:
    one, two = world.keys
    async with AsyncRouter(world.settings("schema", tenancy=SHARED, pool={"max_size": 1})) as router:
        async with router.connection(tenant=one, read_only=read_only) as connection:
            await connection.execute("SELECT name FROM me", prepare=True)
            with pytest.raises(psycopg.errors.DivisionByZero):
                await connection.execute("ROLLBACK; SELECT 1 / 0")
            assert connection._prepared._to_flush
        async with router.connection(tenant=two, read_only=read_only) as connection:
            for _ in range(2):
                cursor = await connection.execute("SELECT name FROM me", prepare=True)
                assert await cursor.fetchall() == [(two,)]


async def test_nobody_is_warned_when_a_session_is_set(world: World) -> None:
    said: list[str | None] = []

    def hear(diagnostic: psycopg.errors.Diagnostic) -> None:
        said.append(diagnostic.message_primary)

    def configure(connection: Any) -> None:
        connection.add_notice_handler(hear)

    options = world.settings("schema", tenancy=SHARED, pool={"max_size": 1})
    async with AsyncRouter(options, configure=configure) as router:
        for turn in range(6):
            async with router.connection(tenant=world.keys[turn % 2], read_only=turn < 3) as connection:
                assert connection._notice_handlers == [hear]
        assert said == []


async def test_what_a_tenant_listened_to_is_not_heard_by_another(world: World) -> None:
    one, two = world.keys
    async with AsyncRouter(world.settings("schema", tenancy=SHARED, pool={"max_size": 1})) as router:
        async with router.connection(tenant=one, read_only=True) as connection:
            await connection.execute("LISTEN left_behind")
        run(world.dsn(), "NOTIFY left_behind")  # it comes while nobody has the connection
        async with router.connection(tenant=two, read_only=True) as connection:
            async for heard in connection.notifies(timeout=0.05):
                pytest.fail(f"it hears {heard}")


# Row-level security


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
async def test_a_row_tenant_keeps_to_its_rows_whatever_is_reset(world: World, pooling: str) -> None:
    one, two = world.keys
    options = world.settings("row", tenancy={"pooling": pooling, "hygiene": "full"}, pool={"max_size": 1})
    async with AsyncRouter(options) as router:

        async def rows(tenant: str, statement: LiteralString = "SELECT 1", *, read_only: bool = True) -> set[str]:
            async with router.connection(tenant=tenant, read_only=read_only) as connection:
                await connection.execute(statement)
                cursor = await connection.execute("SELECT name FROM me")
                return {name for (name,) in await cursor.fetchall()}

        for statement in ("RESET ALL", "RESET app.tenant", "SET app.tenant TO DEFAULT", "RESET ROLE"):
            for read_only in (True, False):
                assert await rows(one, statement, read_only=read_only) <= {one}
                assert await rows(two) == {two}
        assert await rows(one, "DISCARD ALL") <= {one}
        assert await rows(one) == {one}
        # A setting is no wall against the SQL of one's own: it takes a role for that.
        assert await rows(one, f"SET app.tenant = '{two}'") == {two}
        assert await rows(one) == {one}
        assert await rows(two, f"SET app.tenant = '{one}'", read_only=False) == {one}
        assert await rows(two, read_only=False) == {two}


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
async def test_a_row_tenant_cannot_write_into_anothers_rows(world: World, pooling: str) -> None:
    one, two = world.keys
    async with AsyncRouter(world.settings("row", tenancy={"pooling": pooling})) as router:
        async with router.connection(tenant=one) as connection:
            cursor = await connection.execute(f"UPDATE me SET name = name WHERE name = '{two}'")
            assert cursor.rowcount == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            async with router.connection(tenant=one) as connection:
                await connection.execute(f"INSERT INTO me VALUES ('{two}')")


# Round trips, counted at the socket


@dataclass(frozen=True)
class Cost:
    """The round trips of one statement: in a block to read, in one after another tenant's, in one to write."""

    read: int
    read_after_another: int
    write: int


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("pooling", "hygiene", "promised"),
    [
        ("dedicated", "transaction", Cost(1, 1, 3)),
        ("dedicated", "full", Cost(2, 2, 4)),
        ("shared", "transaction", Cost(1, 2, 3)),
        ("shared", "full", Cost(2, 2, 3)),
    ],
)
@pytest.mark.parametrize("way", ["schema", "role", "row"])
async def test_a_tenant_costs_these_round_trips(
    world: World, way: str, pooling: str, hygiene: str, promised: Cost
) -> None:
    one, two = world.keys
    with tap(world.cluster) as tapped:
        primary = world.dsn(way, port=tapped.primary.port)
        tenancy = {"pooling": pooling, "hygiene": hygiene}
        options = world.settings(way, primary=primary, tenancy=tenancy, pool={"max_size": 1})
        async with AsyncRouter(options) as router:

            async def cost(tenant: str, *, read_only: bool) -> int:
                tapped.trips()
                statement: LiteralString = "SELECT name FROM me" if read_only else "UPDATE me SET name = name"
                with router.session():
                    async with router.connection(tenant=tenant, read_only=read_only) as connection:
                        await connection.execute(statement, prepare=False)
                return tapped.trips()[0]

            for tenant in world.keys:
                for read_only in (True, False):
                    await cost(tenant, read_only=read_only)
                    await cost(tenant, read_only=read_only)
            for _ in range(2):
                assert await cost(two, read_only=True) == promised.read
                assert await cost(one, read_only=True) == promised.read_after_another
                assert await cost(one, read_only=True) == promised.read
                assert await cost(two, read_only=True) == promised.read_after_another
                assert [await cost(tenant, read_only=False) for tenant in (one, one, two, two, one)] == [
                    promised.write
                ] * 5


async def test_tenants_keep_to_the_connections_that_they_had(world: World) -> None:
    keys = [f"k{number}" for number in range(3)]
    with tap(world.cluster) as tapped:
        primary = world.dsn("row", port=tapped.primary.port)
        async with AsyncRouter(world.settings("row", primary=primary, tenancy=SHARED, pool={"max_size": 3})) as router:

            async def read(tenant: str) -> int:
                async with router.connection(tenant=tenant, read_only=True) as connection:
                    cursor = await connection.execute("SELECT current_setting('app.tenant')", prepare=False)
                    assert await cursor.fetchall() == [(tenant,)]
                    return connection.info.backend_pid

            async with (
                router.connection(tenant=keys[0], read_only=True),
                router.connection(tenant=keys[1], read_only=True),
                router.connection(tenant=keys[2], read_only=True),
            ):
                pass
            served = {tenant: await read(tenant) for tenant in keys}
            assert len(set(served.values())) == 3
            tapped.trips()
            for turn in range(30):
                tenant = keys[turn * turn % 3]
                assert await read(tenant) == served[tenant]
            assert tapped.trips() == (30, 0)


# What a shared pool is like


async def test_a_block_to_write_has_begun_and_can_be_taken_back(world: World) -> None:
    one, two = world.keys
    async with AsyncRouter(world.settings("schema", tenancy=SHARED, pool={"max_size": 1})) as router:
        for tenant in (one, one, two):
            async with router.connection(tenant=tenant) as connection:
                assert connection.pgconn.transaction_status == TransactionStatus.INTRANS
                with pytest.raises(psycopg.ProgrammingError):
                    await connection.set_autocommit(True)
                await connection.rollback()
                await connection.set_autocommit(True)
                await connection.execute("VACUUM me")
                cursor = await connection.execute("SELECT name FROM me")
                assert await cursor.fetchall() == [(tenant,)]
            async with router.connection(tenant=tenant) as connection:
                await connection.execute("INSERT INTO me VALUES ('more')")
                await connection.commit()
                await connection.execute("DELETE FROM me WHERE name = 'more'")
            async with router.connection(tenant=tenant) as connection, connection.transaction():
                await connection.execute("INSERT INTO me VALUES ('more')")
                raise psycopg.Rollback


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
async def test_statements_and_functions_are_run_for_their_tenant(world: World, pooling: str) -> None:
    async with AsyncRouter(world.settings("schema", tenancy={"pooling": pooling}, pool={"max_size": 1})) as router:

        async def add(connection: AsyncConnection[Any]) -> list[Any]:
            cursor = await connection.execute("INSERT INTO me VALUES ('added') RETURNING current_schema()")
            return await cursor.fetchall()

        for key in world.keys * 2:
            assert (await router.execute("SELECT name FROM me", tenant=key)).rows == [(key,)]
            assert await router.run(add, tenant=key) == [(key,)]
            assert (await router.execute("DELETE FROM me WHERE name = 'added'", tenant=key)).rowcount == 1
            await router.execute("CREATE INDEX CONCURRENTLY i ON me (name)", tenant=key)
            assert (
                await router.execute("SELECT schemaname FROM pg_indexes WHERE indexname = 'i'", tenant=key)
            ).rows == [(key,)]
            await router.execute("DROP INDEX i", tenant=key)
            await router.execute("SET app.x = 'left'", tenant=key)
            assert (await router.execute("SELECT current_setting('app.x', true)", tenant=key)).rows in (
                [("",)],
                [(None,)],
            )


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
async def test_a_tenant_reads_what_it_wrote_from_replicas(world: World, pooling: str) -> None:
    replicas = [standby.dsn(dbname=world.database) for standby in world.cluster.standbys]
    options = world.settings("schema", replicas=replicas, tenancy={"pooling": pooling})
    async with AsyncRouter(options) as router:
        for turn in range(20):
            key = world.keys[turn % 2]
            with router.session() as session:
                async with router.connection(tenant=key) as connection:
                    await connection.execute("INSERT INTO me VALUES ('written')")
                async with router.connection(tenant=key, read_only=True) as connection:
                    cursor = await connection.execute("SELECT name FROM me")
                    assert {name for (name,) in await cursor.fetchall()} == {key, "written"}
            async with router.connection(tenant=key, read_only=True, after=session.token) as connection:
                cursor = await connection.execute("SELECT count(*) FROM me")
                assert await cursor.fetchall() == [(2,)]
            async with router.connection(tenant=key) as connection:
                await connection.execute("DELETE FROM me WHERE name = 'written'")
    world.cluster.wait_replayed()


@pytest.mark.parametrize("read_only", [True, False])
async def test_a_connection_that_dies_while_it_changes_hands_is_replaced_unseen(world: World, read_only: bool) -> None:
    one, two = world.keys
    with tap(world.cluster) as tapped:
        primary = world.dsn(port=tapped.primary.port)
        options = world.settings("schema", primary=primary, tenancy=SHARED, pool={"max_size": 1})
        async with AsyncRouter(options) as router:
            served = set()
            for tenant, before in [(one, None), (two, True), (one, False), (two, None)]:
                if before is not None:
                    tapped.cut(tapped.primary, on="set_config", before=before)
                async with router.connection(tenant=tenant, read_only=read_only) as connection:
                    cursor = await connection.execute("SELECT name FROM me")
                    assert await cursor.fetchall() == [(tenant,)]
                    pid = connection.info.backend_pid
                    served.add(pid)
            assert tapped.primary.cuts == 2
            assert len(served) == 3
            run(world.dsn(), f"SELECT pg_terminate_backend({pid}, 10000)")
            async with router.connection(tenant=one, read_only=read_only) as connection:
                cursor = await connection.execute("SELECT name FROM me")
                assert await cursor.fetchall() == [(one,)]


@pytest.mark.each_value
@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
@pytest.mark.parametrize("way", ["schema", "database", "role", "user"])
async def test_a_tenant_that_is_not_there_is_unknown_and_harms_nobody(world: World, way: str, pooling: str) -> None:
    one, _ = world.keys
    options = world.settings(way, tenancy={"pooling": pooling}, pool={"max_size": 1})
    async with AsyncRouter(options) as router:
        served = set()
        for number in range(3):
            for read_only in (True, False):
                async with router.connection(tenant=one, read_only=read_only) as connection:
                    await connection.execute("SELECT name FROM me", prepare=True)
                    served.add(connection.info.backend_pid)
                with pytest.raises(UnknownTenant, match=rf'"nobody{number}.* does not exist'):
                    async with router.connection(tenant=f"nobody{number}", read_only=read_only):
                        pytest.fail("there was one")
            with pytest.raises(UnknownTenant):
                await router.execute("SELECT 1", tenant=f"nobody{number}")
        assert len(served) == 2
        async with router.connection(tenant=one) as connection:
            cursor = await connection.execute("SELECT name FROM me")
            assert await cursor.fetchall() == [(one,)]
        assert {key for key in router._snapshot().targets if isinstance(key, tuple) and key[1] != one} == set()


@pytest.mark.each_value
@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
@pytest.mark.parametrize("kind", ["primary", "nodes"])
@pytest.mark.parametrize("param", ["dbname", "user"])
async def test_a_tenant_whose_own_servers_do_not_have_it_is_unknown_at_once(
    world: World, param: str, kind: str, pooling: str
) -> None:
    servers = psycopg.conninfo.make_conninfo(world.dsn(), **{param: "{tenant}"})
    options = world.settings("row", tenancy={"pooling": pooling}, tenant_template={kind: servers})
    for read_only in (True, False):
        async with AsyncRouter(options) as router:  # its first request: nothing is known of any server
            begun = monotonic()
            with pytest.raises(UnknownTenant, match='"nobody" does not exist'):
                async with router.connection(tenant="nobody", read_only=read_only, timeout=PATIENCE):
                    pytest.fail("there was one")
            assert monotonic() - begun < PATIENCE / 4
            async with router.connection(tenant=world.keys[0], read_only=read_only) as connection:
                assert world.keys[0] in (connection.info.dbname, connection.info.user)


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
async def test_a_role_that_may_not_be_taken_on_is_unknown_and_harms_nobody(world: World, pooling: str) -> None:
    key, _ = world.keys
    homes = {key: {"row": "app.tenant"}, "greedy": {"role": "postgres"}}
    options = world.settings("row", tenancy={"pooling": pooling}, tenants=homes, pool={"max_size": 1})
    async with AsyncRouter(options) as router:
        served = set()
        for read_only in (True, False) * 3:
            with pytest.raises(UnknownTenant, match='permission denied to set role "postgres"'):
                async with router.connection(tenant="greedy", read_only=read_only):
                    pytest.fail("it was let")
            async with router.connection(tenant=key, read_only=read_only) as connection:
                served.add(connection.info.backend_pid)
        assert len(served) == 2


@pytest.mark.parametrize("read_only", one_of_each([True, False]))
async def test_the_deadline_holds_while_a_connection_changes_hands(world: World, read_only: bool) -> None:
    server = world.cluster.primary
    with Proxy(server.host, server.port) as proxy:
        primary = world.dsn("row", host=proxy.host, port=proxy.port)
        async with AsyncRouter(world.settings("row", primary=primary, tenancy=SHARED, pool={"max_size": 1})) as router:
            async with router.connection(tenant="acme", read_only=read_only):
                pass
            proxy.deaf()
            begun = monotonic()
            with pytest.raises(Unavailable, match="tenant 'globex'"):
                async with router.connection(tenant="globex", read_only=read_only, timeout=0.3):
                    pytest.fail("a server that says nothing had it set")
            assert 0.3 <= monotonic() - begun < 1.0


async def test_who_is_late_closes_no_connection_that_is_sound(world: World) -> None:
    server = world.cluster.primary
    with Proxy(server.host, server.port) as proxy:
        primary = world.dsn("row", host=proxy.host, port=proxy.port)
        async with AsyncRouter(world.settings("row", primary=primary, tenancy=SHARED, pool={"max_size": 2})) as router:
            async with router.connection(tenant="acme"), router.connection(tenant="acme"):
                pass
            proxy.slow(0.1)
            for number in range(4):
                with suppress(Unavailable):
                    async with router.connection(tenant=f"k{number}", timeout=0.01):
                        pass
            proxy.forward()
            [pool] = router.stats().tenant_pools
            assert (pool.pool.opened, pool.pool.size) == (2, 2)


async def test_closing_lets_nobody_in_who_waits_for_a_tenants_turn(world: World) -> None:
    options = world.settings("row", tenancy={"pooling": "shared", "max_connections": 1}, pool={"timeout": PATIENCE})
    async with AsyncRouter(options) as router:
        inside, crowded = list[bool](), list[bool]()

        async def hold() -> None:
            async with router.connection(tenant="acme"):

                async def all_wait() -> bool:
                    return router._snapshot().admissions["acme"].held == 4

                async def is_closed() -> bool:
                    found = router._snapshot()
                    return found.closed and all(pool.draining for pool in found.pools)

                inside.append(True)
                await aeventually(all_wait)
                crowded.append(True)
                await aeventually(is_closed)

        async def wait() -> None:
            async def is_held() -> bool:
                return bool(inside)

            await aeventually(is_held)
            with pytest.raises(RouterClosed):
                async with router.connection(tenant="acme"):
                    pytest.fail("it was let in")

        async def close() -> None:
            async def is_crowded() -> bool:
                return bool(crowded)

            await aeventually(is_crowded)
            assert await router.close(PATIENCE) == 0

        await aall_of(hold, close, *[wait] * 4)


async def test_a_connection_that_changes_hands_when_its_server_freezes_is_had_elsewhere(world: World) -> None:
    one, two = world.cluster.standbys
    with Proxy(one.host, one.port) as proxy:
        places = (proxy.host, proxy.port), (two.host, two.port)
        replicas = [world.dsn("row", host=host, port=at) for host, at in places]
        options = world.settings(
            "row",
            replicas=replicas,
            tenancy=SHARED,
            pool={"max_size": 1, "timeout": PATIENCE},
            read={"balance": "round_robin"},
            health={"interval": 0.1, "timeout": 0.3},
        )
        async with AsyncRouter(options) as router:

            async def read(tenant: str) -> int:
                async with router.connection(tenant=tenant, read_only=True) as connection:
                    cursor = await connection.execute("SELECT current_setting('app.tenant')")
                    assert await cursor.fetchall() == [(tenant,)]
                    return port(connection)

            served = set[int]()

            async def both_serve() -> bool:
                served.add(await read("acme"))
                return len(served) == 2

            await aeventually(both_serve)
            proxy.deaf()
            assert {await read(f"k{number}") for number in range(4)} == {two.port}


# How many connections and pools


async def test_a_tenant_of_a_shared_pool_has_no_more_than_it_may(world: World) -> None:
    options = world.settings(
        "row", tenancy={"pooling": "shared", "max_connections": 2}, pool={"max_size": 6, "timeout": PATIENCE}
    )
    async with AsyncRouter(options) as router:
        most = [0]

        async def work() -> None:
            for turn in range(10):
                async with router.connection(tenant="acme", read_only=turn % 2 == 0) as connection:
                    most.append(router.stats().tenants["acme"])
                    await connection.execute("SELECT pg_sleep(0.002)")

        await atogether(work, 8)
        assert max(most) == 2
        async with router.connection(tenant="acme"), router.connection(tenant="acme", read_only=True):
            with pytest.raises(
                PoolExhausted, match=r"'acme'.*it uses all 2 connections that it may have \(tenancy.max_connections\)"
            ):
                async with router.connection(tenant="acme", timeout=0.1):
                    pytest.fail("there was a third connection")
            async with router.connection(tenant="globex", timeout=0.5), router.connection(tenant="globex"):
                pass
        async with router.connection(tenant="acme", timeout=0.5), router.connection(tenant="acme", timeout=0.5):
            pass  # who gave up took no place


async def test_a_tenant_with_pools_of_its_own_has_no_more_than_it_may(world: World) -> None:
    options = world.settings("row", tenancy={"max_connections": 2}, pool={"max_size": 6, "timeout": PATIENCE})
    async with AsyncRouter(options) as router:
        most = [0]

        async def work() -> None:
            for turn in range(10):
                async with router.connection(tenant="acme", read_only=turn % 2 == 0) as connection:
                    most.append(sum(pool.pool.size for pool in router.stats().tenant_pools))
                    await connection.execute("SELECT pg_sleep(0.002)")

        await atogether(work, 8)
        assert router.stats().tenants == {}
        async with router.connection(tenant="acme"), router.connection(tenant="acme", read_only=True):
            with pytest.raises(
                PoolExhausted, match=r"has all 2 connections that it may have \(tenancy.max_connections\)"
            ):
                async with router.connection(tenant="acme", timeout=0.1):
                    pytest.fail("there was a third connection")
            async with router.connection(tenant="globex", timeout=0.5):
                pass


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
async def test_a_limit_that_changes_is_kept_from_then_on(world: World, pooling: str) -> None:
    home = {"row": "app.tenant", "max_connections": 2}
    options = settings(primary=world.dsn("row"), tenancy={"pooling": pooling}, pool={"timeout": PATIENCE})
    async with AsyncRouter(options, directory=lambda _: dict(home)) as router:
        directory = inside(router).directory
        assert directory is not None
        for limit in (2, 1, 2):
            home["max_connections"] = limit
            directory.changed("acme")

            async def is_kept() -> bool:
                async with router.connection(tenant="acme"):
                    try:
                        async with router.connection(tenant="acme", timeout=0.1):
                            return limit == 2  # noqa: B023  (it is called before the next)
                    except PoolExhausted:
                        return limit == 1  # noqa: B023

            await aeventually(is_kept)


async def test_a_tenant_named_like_its_version_counts_by_itself(world: World) -> None:
    options = world.settings("row", tenancy={"max_connections": 1})
    async with (
        AsyncRouter(options) as router,
        router.connection(version="v1"),
        router.connection(tenant="v1") as connection,
    ):
        cursor = await connection.execute("SELECT current_setting('app.tenant')")
        assert await cursor.fetchall() == [("v1",)]


async def test_those_of_a_tenant_that_wait_are_served_in_order(world: World) -> None:
    options = world.settings(
        "row", tenancy={"pooling": "shared", "max_connections": 1}, pool={"max_size": 6, "timeout": PATIENCE}
    )
    async with AsyncRouter(options) as router:
        served: list[int] = []

        def held() -> int | None:
            admission = router._snapshot().admissions.get("acme")
            return None if admission is None else admission.held

        def request(number: int) -> Callable[[], Awaitable[None]]:
            async def ask() -> None:
                async def is_next() -> bool:
                    return held() == number

                await aeventually(is_next)
                async with router.connection(tenant="acme"):
                    served.append(number)

            return ask

        async def hold() -> None:
            async with router.connection(tenant="acme"):

                async def all_wait() -> bool:
                    return held() == 5

                await aeventually(all_wait)

        await aall_of(hold, *map(request, range(5)))
        assert served == [0, 1, 2, 3, 4]


async def test_a_deadline_longer_than_the_pools_keeps_the_place_in_the_order_of_arrival(world: World) -> None:
    async with AsyncRouter(world.settings("row", max_connections=1, pool={"timeout": 0.1})) as router:
        served: list[int] = []

        def request(number: int) -> Callable[[], Awaitable[None]]:
            async def ask() -> None:
                async def is_next() -> bool:
                    waiting = [owner for owner in router._snapshot().slots_waiting if "tenant k" in owner]
                    return len(waiting) == number and bool(held)

                await aeventually(is_next)
                await asleep(0.03)  # so that what the pools have ends for one after the other
                async with router.connection(tenant=f"k{number}", timeout=PATIENCE):
                    served.append(number)

            return ask

        async def hold() -> None:
            async with router.connection(tenant="acme", timeout=PATIENCE):
                held.append(True)

                async def all_wait() -> bool:
                    return len([owner for owner in router._snapshot().slots_waiting if "tenant k" in owner]) == 8

                await aeventually(all_wait)
                await asleep(0.5)  # several times what the pools have

        held = list[bool]()
        await aall_of(hold, *map(request, range(8)))
        assert served == [*range(8)]


@pytest.mark.slow
async def test_no_more_pools_are_open_than_may_be(world: World) -> None:
    options = world.settings("row", max_pools=4, max_connections=6, pool={"max_size": 2, "timeout": PATIENCE})
    async with AsyncRouter(options) as router:
        turns = iter(range(240))
        most, served = [0], set()

        async def work() -> None:
            for turn in turns:
                tenant = f"k{turn * 7 % 30}"
                async with router.connection(tenant=tenant, read_only=turn % 2 == 0) as connection:
                    cursor = await connection.execute("SELECT current_setting('app.tenant')")
                    assert await cursor.fetchall() == [(tenant,)]
                    served.add(tenant)
                    stats = router.stats()
                    most.append(len(stats.tenant_pools))
                    assert stats.connections <= 6

        await atogether(work, 8)
        assert len(served) == 30
        assert max(most) == 4


async def test_who_waits_for_a_pool_waits_quietly(world: World) -> None:
    async with AsyncRouter(world.settings("row", max_pools=1, pool={"timeout": PATIENCE})) as router:
        held, served = list[bool](), []

        async def is_held() -> bool:
            return bool(held)

        async def request(tenant: str) -> None:
            await aeventually(is_held)
            async with router.connection(tenant=tenant) as connection:
                cursor = await connection.execute("SELECT current_setting('app.tenant')")
                served.append(await cursor.fetchall())

        async def hold() -> None:
            async with router.connection(tenant="held"):
                held.append(True)

                async def all_wait() -> bool:
                    return router._snapshot().pools_waiting == 4

                await aeventually(all_wait)
                dirty = process_time()
                await asleep(0.5)
                assert process_time() - dirty < 0.25

        await aall_of(hold, *(partial(request, f"k{number}") for number in range(4)))
        assert sorted(served) == [[(f"k{number}",)] for number in range(4)]


async def test_pools_that_nobody_uses_are_closed_but_those_to_be_kept_warm(world: World) -> None:
    tenants = {"warm": {"row": "app.tenant", "min_size": 1}}
    async with AsyncRouter(world.settings("row", tenants=tenants, pool={"max_unused": 0.1})) as router:
        for tenant in ("warm", "cold"):
            async with router.connection(tenant=tenant):
                pass

        async def left() -> bool:
            pools = router.stats().tenant_pools
            return [(pool.tenant, pool.pool.idle > 0) for pool in pools] == [("warm", True)]

        await aeventually(left)
        async with router.connection(tenant="cold") as connection:
            cursor = await connection.execute("SELECT current_setting('app.tenant')")
            assert await cursor.fetchall() == [("cold",)]


# What is remembered of keys that anybody may name


async def test_of_keys_without_end_only_so_many_are_remembered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router._async.lane_table.REMEMBERED", 10)
    tenancy = {"pooling": "shared", "max_connections": 1}
    async with (
        AsyncRouter(world.settings("row", tenancy=tenancy, pool={"max_size": 1})) as router,
        router.connection(tenant="k0"),
    ):
        for number in range(1, 100):
            async with router.connection(tenant=f"k{number}", read_only=True):
                found = router._snapshot()
                assert len(found.readers) <= 10
                assert len(found.targets) <= 10
                assert len(found.admissions) <= 21
        with pytest.raises(PoolExhausted, match="it uses the one connection that it may have"):
            async with router.connection(tenant="k0", timeout=0.05):
                pytest.fail("it was forgotten that it has one")


async def test_of_tenants_servers_that_are_down_only_so_many_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router._async.clusters.RECENT", 3)
    options = RouterSettings(tenant_template="postgresql://app@127.0.0.{tenant}:1/app", versions={"v1": "host=h"})
    async with AsyncRouter(options) as router:
        for number in range(2, 20):
            with pytest.raises(NoPrimary):  # looked at or not, in so short a time
                async with router.connection(tenant=str(number), timeout=0.05):
                    pytest.fail("somebody listens there")
            inside = router._snapshot()
            assert len(inside.servers) <= 3
            assert len(inside.health) <= 3


async def test_of_passwords_only_those_in_use_are_remembered(world: World) -> None:
    asked = []

    async def password(node: Node) -> str:
        asked.append(node)
        return "secret"

    async with AsyncRouter(world.settings("user"), password=password) as router:
        for number in range(10):
            with pytest.raises(UnknownTenant):
                async with router.connection(tenant=f"k{number}"):
                    pytest.fail("it was let in")
        assert len(asked) >= 10

        async def are_forgotten() -> bool:
            return router._snapshot().passwords <= 1  # the version's own

        await aeventually(are_forgotten)


# Keys that PostgreSQL has to be told with care

ODD = [
    'a"b',
    "a'b",
    "a\\b",
    "a b",
    "%s",
    "%(tenant)s",
    "{version}",
    "é",
    "a,b",
    "Ab",
    "a;b",
    "$1",
    "E'x'",
    "-- a",
    "a{tenant}",
]


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
async def test_odd_keys_that_the_pattern_allows_name_what_they_say(world: World, pooling: str) -> None:
    tenancy = {"pooling": pooling, "pattern": ".+"}
    home = {"schema": "o_{tenant}", "role": "o_{tenant}", "row": "app.tenant"}
    with psycopg.connect(world.dsn(), autocommit=True) as connection:
        for key in ODD:
            name = psycopg.sql.Identifier(f"o_{key}")
            with suppress(psycopg.errors.DuplicateObject):
                connection.execute(psycopg.sql.SQL("CREATE ROLE {}").format(name))
            connection.execute(psycopg.sql.SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}").format(name, name))
    options = world.settings("row", primary=world.dsn(), tenant_template=home, tenancy=tenancy, pool={"max_size": 1})
    async with AsyncRouter(options) as router:
        for key in ODD * 2:
            async with router.connection(tenant=key, read_only=True) as connection:
                cursor = await connection.execute(
                    "SELECT current_schema(), current_user, current_setting('app.tenant')"
                )
                assert await cursor.fetchall() == [(f"o_{key}", f"o_{key}", key)]


# Behind a transaction pooler


@contextmanager
def a_pooler(world: World, request: pytest.FixtureRequest, mode: Mode) -> Iterator[Pooler | PgBouncer]:
    server = world.cluster.primary
    if request.config.getoption("--pooler", "embedded") == "pgbouncer":
        with PgBouncer(server.host, server.port, ["postgres", world.app, *world.keys], mode) as pgbouncer:
            yield pgbouncer
    else:
        with Pooler(server.host, server.port, mode) as pooler:
            yield pooler


@pytest.fixture
def pooler(world: World, request: pytest.FixtureRequest) -> Iterator[Pooler | PgBouncer]:
    with a_pooler(world, request, "transaction") as pooler:
        yield pooler


def behind(pooler: Pooler | PgBouncer, world: World, way: str, **arguments: Any) -> RouterSettings:
    node = {"dsn": world.dsn(way, port=pooler.port), "pooler": "transaction"}
    return world.settings(way, primary=node, **arguments)


WHO = """
SELECT current_database(), current_user, session_user, current_schema(),
    coalesce(current_setting('app.tenant', true), ''), (SELECT name FROM me), public.told(), pg_backend_pid()
"""


@pytest.mark.each_value
@pytest.mark.parametrize("times", short_and_long(100, 500))
@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
@pytest.mark.parametrize("way", ["schema", "role", "row"])
async def test_behind_a_transaction_pooler_a_tenant_is_itself_in_each_transaction(
    world: World, pooler: Pooler | PgBouncer, way: str, pooling: str, times: int
) -> None:
    async with AsyncRouter(behind(pooler, world, way, tenancy={"pooling": pooling}, pool={"max_size": 2})) as router:
        turns = iter(range(times))
        served = set()

        async def look(connection: AsyncConnection[Any], key: str) -> None:
            cursor = await connection.execute(WHO)
            [(*who, backend)] = await cursor.fetchall()
            assert tuple(who) == world.identity(way, key)
            served.add(backend)

        async def work() -> None:
            for turn in turns:
                key = world.keys[turn % 2]
                async with router.connection(tenant=key, read_only=turn % 3 == 0) as connection:
                    for _ in range(2):
                        await look(connection, key)
                        await connection.commit()  # another's transaction may come in between
                    async with connection.transaction():
                        await look(connection, key)

        await atogether(work, 4)
        assert len(served) == 1
    left = run(world.dsn(way, port=pooler.port), "SELECT current_user, current_setting('app.tenant', true)")
    assert left in ([(world.app if way == "row" else "postgres", value)] for value in (None, ""))


async def test_behind_a_transaction_pooler_what_would_lose_the_tenant_is_refused(
    world: World, pooler: Pooler | PgBouncer
) -> None:
    key = world.keys[0]
    async with AsyncRouter(behind(pooler, world, "schema")) as router:
        async with router.connection(tenant=key, read_only=True) as connection:
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                await connection.execute("INSERT INTO me VALUES ('more')")
            await connection.rollback()
            await connection.set_autocommit(True)
            with pytest.raises(psycopg.ProgrammingError, match="a tenant's statements run in transactions"):
                await connection.execute("SELECT name FROM me")
        async with router.connection(tenant=key) as connection, connection.cursor() as cursor:
            await cursor.executemany("SELECT name FROM me WHERE name <> %s", [("x",), ("y",)], returning=True)
            assert await cursor.fetchall() == [(key,)]
            await connection.commit()
            async with connection.pipeline():
                await cursor.execute("SELECT name FROM me")
                assert await cursor.fetchall() == [(key,)]
                await connection.commit()
                await cursor.execute("SELECT name, current_setting('transaction_read_only') FROM me")
                assert await cursor.fetchall() == [(key, "off")]
        async with router.connection(tenant=key, read_only=True) as connection, connection.cursor("named") as named:
            await named.execute("SELECT name FROM me")
            assert await named.fetchall() == [(key,)]
        with pytest.raises(psycopg.Error, match="does not exist"):
            async with router.connection(tenant="nobody") as connection:
                await connection.execute("SELECT name FROM me")


async def test_behind_a_transaction_pooler_statements_sessions_and_functions_are_the_tenants(
    world: World, pooler: Pooler | PgBouncer
) -> None:
    async with AsyncRouter(behind(pooler, world, "schema")) as router:

        async def add(connection: AsyncConnection[Any]) -> list[Any]:
            cursor = await connection.execute("INSERT INTO me VALUES ('added') RETURNING current_schema()")
            return await cursor.fetchall()

        for key in world.keys * 2:
            assert (await router.execute("SELECT name FROM me", tenant=key)).rows == [(key,)]
            with router.session() as session:
                assert await router.run(add, tenant=key) == [(key,)]
                assert session.token
                async with router.connection(tenant=key, read_only=True) as connection:
                    cursor = await connection.execute("SELECT count(*) FROM me")
                    assert await cursor.fetchall() == [(2,)]
                async with router.connection(tenant=key) as connection:
                    await connection.execute("DELETE FROM me WHERE name = 'added'")
            assert (await router.execute("UPDATE me SET name = name", tenant=key)).rowcount == 1


# Behind a pooler that nobody declared

UNDECLARED = r'set pooler = "transaction" on the node, or "session"'


@pytest.mark.each_value
@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
@pytest.mark.parametrize("way", ["schema", "role", "row"])
async def test_behind_an_undeclared_pooler_no_session_serves_a_tenant(
    world: World, pooler: Pooler | PgBouncer, way: str, pooling: str
) -> None:
    told: list[Event] = []
    options = world.settings(way, primary=world.dsn(way, port=pooler.port), tenancy={"pooling": pooling})
    async with AsyncRouter(options, observers=[told.append]) as router:
        requests = 10_000 if isinstance(pooler, PgBouncer) else 400
        turns = iter(range(requests))

        async def work() -> None:
            for turn in turns:
                with pytest.raises(Unavailable, match=UNDECLARED):
                    async with router.connection(tenant=world.keys[turn % 2], read_only=turn % 3 == 0):
                        pass

        begun = monotonic()
        await atogether(work, 8)
        assert monotonic() - begun < requests / 80  # none waited for its deadline
        assert UndeclaredPooler(Server("127.0.0.1", pooler.port)) in told
        assert re.search(UNDECLARED, repr(router.explain(tenant=world.keys[0])))
        async with router.connection(version="v1") as connection:  # which needs no session of its own
            await connection.execute("SELECT 1")


async def test_behind_an_undeclared_pooler_a_database_of_its_own_serves_a_tenant(
    world: World, pooler: Pooler | PgBouncer
) -> None:
    options = world.settings("database", primary=world.dsn("database", port=pooler.port))
    async with AsyncRouter(options) as router:
        for key in world.keys * 2:
            async with router.connection(tenant=key) as connection:
                cursor = await connection.execute("SELECT current_database(), name FROM me")
                assert await cursor.fetchall() == [(key, key)]


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
async def test_an_undeclared_pooler_is_found_when_a_connection_is_opened(
    world: World, pooler: Pooler | PgBouncer, pooling: str
) -> None:
    server, [key, other] = world.cluster.primary, world.keys
    with Proxy(server.host, server.port) as proxy:
        options = world.settings("schema", primary=world.dsn(port=proxy.port), tenancy={"pooling": pooling})
        async with AsyncRouter(options) as router, router.connection(tenant=key) as connection:
            assert await (await connection.execute("SELECT name FROM me")).fetchall() == [(key,)]
            # What looks at the server keeps its own connection to it, and would never see this.
            proxy.lead_to(pooler)
            with pytest.raises(NoPrimary, match=UNDECLARED):
                async with router.connection(tenant=other):
                    pass


async def test_behind_a_pooler_declared_for_sessions_shared_tenants_are_served_and_dropped_options_noticed(
    world: World, request: pytest.FixtureRequest
) -> None:
    key = world.keys[0]
    with a_pooler(world, request, "session") as pooler:
        node = {"dsn": world.dsn("row", port=pooler.port), "pooler": "session"}
        homes = {"shared": {"row": "app.tenant", "pooling": "shared"}, key: {"row": "app.tenant"}}
        async with AsyncRouter(world.settings("row", primary=node, tenants=homes)) as router:
            for read_only in (True, False):
                async with router.connection(tenant="shared", read_only=read_only) as connection:
                    cursor = await connection.execute("SELECT current_setting('app.tenant')")
                    assert await cursor.fetchall() == [("shared",)]
                with pytest.raises(Unavailable, match=r"drops the startup options .* \(app\.tenant\): "):
                    async with router.connection(tenant=key, read_only=read_only):
                        pass


async def test_behind_an_undeclared_pooler_a_tenant_is_told_of_it_in_every_mode(
    world: World, request: pytest.FixtureRequest
) -> None:
    modes: list[Mode] = ["session", "statement"]
    for mode in modes:
        with a_pooler(world, request, mode) as pooler:
            options = world.settings("row", primary=world.dsn("row", port=pooler.port), tenancy=SHARED)
            async with AsyncRouter(options) as router:
                with pytest.raises(NoPrimary, match=UNDECLARED):
                    async with router.connection(tenant=world.keys[0]):
                        pass


# A search path leads where it says


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
async def test_no_schema_of_a_search_path_is_passed_over(world: World, pooling: str) -> None:
    key, other = world.keys
    hidden = new_name()
    run(world.dsn(), f"CREATE SCHEMA {hidden}")
    homes = {
        "last": {"schema": ["public", "nowhere"]},
        "first": {"schema": ["nowhere", "public"]},
        "hidden": {"schema": [hidden, key], "role": key},
        "fine": {"schema": [key, "public"], "role": key},
    }
    options = world.settings("schema", tenancy={"pooling": pooling}, tenants=homes)
    async with AsyncRouter(options) as router:
        for tenant, why in (("last", "nowhere"), ("first", "nowhere"), ("hidden", f"no USAGE on schema {hidden}")):
            for read_only in (True, False):
                with pytest.raises(UnknownTenant, match=why):
                    async with router.connection(tenant=tenant, read_only=read_only):
                        pytest.fail("a part of its search path was passed over")
        async with router.connection(tenant="fine") as connection:
            cursor = await connection.execute("SELECT current_schemas(false), current_user")
            assert await cursor.fetchall() == [([key, "public"], key)]
    assert other != key


@pytest.mark.each_value
@pytest.mark.parametrize("hygiene", ["transaction", "full"])
@pytest.mark.parametrize("reset", ["RESET ALL", "DISCARD ALL"])
@pytest.mark.parametrize("way", ["schema", "row"])
async def test_a_shared_session_that_a_block_has_reset_is_the_tenants_again_for_the_next(
    world: World, way: str, reset: LiteralString, hygiene: str
) -> None:
    options = world.settings(way, tenancy={"pooling": "shared", "hygiene": hygiene}, pool={"max_size": 1})
    async with AsyncRouter(options) as router:
        for _ in range(3):
            async with router.connection(tenant=world.keys[0], read_only=True) as connection:
                cursor = await connection.execute("SELECT name FROM me")
                assert await cursor.fetchall() == [(world.keys[0],)]
                await connection.execute(reset)
                if way == "row":  # nobody's: it sees nobody's rows
                    assert await (await connection.execute("SELECT name FROM me")).fetchall() == []


async def test_whatever_encoding_the_last_tenant_left_a_key_means_what_it_says(world: World) -> None:
    tenancy = {"pooling": "shared", "pattern": r"\w+"}
    options = world.settings("row", tenancy=tenancy, pool={"max_size": 1})
    async with AsyncRouter(options) as router:
        for key in ("é", "я", "語") * 2:
            async with router.connection(tenant="plain", read_only=True) as connection:
                await connection.execute("SET client_encoding = 'LATIN1'")
            async with router.connection(tenant=key, read_only=True) as connection:
                cursor = await connection.execute("SELECT current_setting('app.tenant'), %s", [key])
                assert await cursor.fetchall() == [(key, key)]
