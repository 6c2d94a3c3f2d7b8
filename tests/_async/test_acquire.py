"""A connection without a block: what frameworks do with one that they close themselves."""

from __future__ import annotations

import gc
import warnings
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from router import AsyncRouter, PoolExhausted, UnknownTenant, UnknownVersion
from router._runtime.sockets import cut
from tests.support import new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from router.testing import PostgresCluster
    from tests.conftest import Postgres

ONE = {"max_size": 1, "timeout": 2.0}


@pytest.fixture
def table(postgres: Postgres) -> Iterator[str]:
    name = new_name()
    run(postgres.primary, f"CREATE TABLE {name} (i int)")
    yield name
    run(postgres.primary, f"DROP TABLE {name}")


def rows(postgres: Postgres, table: str) -> int:
    [(count,)] = run(postgres.primary, f"SELECT count(*) FROM {table}")
    return int(count)


async def test_close_gives_it_back_and_rolls_back_what_was_not_committed(postgres: Postgres, table: str) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        for _ in range(3):
            connection = await router.acquire()
            assert isinstance(connection, psycopg.AsyncConnection)
            await connection.execute(f"INSERT INTO {table} VALUES (1)")
            await connection.commit()
            await connection.execute(f"INSERT INTO {table} VALUES (2)")
            await connection.close()
            await connection.close()
            assert connection.closed
            with pytest.raises(psycopg.InterfaceError):
                await connection.execute("SELECT 1")
        [node] = router.stats().versions[0].nodes
        assert node.write is not None
        assert (node.write.in_use, node.write.opened) == (0, 1)
    assert rows(postgres, table) == 3


async def test_as_a_context_manager_it_commits_or_rolls_back_and_is_closed(postgres: Postgres, table: str) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        async with await router.acquire() as connection:
            await connection.execute(f"INSERT INTO {table} VALUES (1)")
        assert connection.closed
        with pytest.raises(ZeroDivisionError):
            async with await router.acquire() as connection:
                await connection.execute(f"INSERT INTO {table} VALUES (2)")
                raise ZeroDivisionError
        assert connection.closed
        async with await router.acquire() as connection:
            await connection.close()
    assert rows(postgres, table) == 1


async def test_one_that_fails_or_is_lost_gives_its_place_back(postgres: Postgres) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        connection = await router.acquire()
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.execute("SELECT 1 / 0")
        await connection.close()
        connection = await router.acquire()
        cut(connection)
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("SELECT 1")
        await connection.close()
        async with await router.acquire() as connection:
            await connection.execute("SELECT 1")


async def test_one_that_is_dropped_is_reclaimed(postgres: Postgres) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool={"max_size": 1, "timeout": 20})) as router:
        connection = await router.acquire()
        await connection.execute("SELECT 1")
        with pytest.raises(PoolExhausted):
            await router.acquire(timeout=0.1)
        del connection

        async def ask() -> None:
            gc.collect()
            async with await router.acquire() as connection:
                await connection.execute("SELECT 1")

        with pytest.warns(ResourceWarning):
            await ask()


async def test_what_a_commit_has_written_is_seen_by_the_session_in_force(cluster: PostgresCluster) -> None:
    name = new_name()
    run(cluster.dsn(), f"CREATE TABLE {name} (i int)")
    async with AsyncRouter(settings(**cluster.version_settings())) as router:
        connection = await router.acquire()  # before the session, as one that is kept over several requests
        for number in range(1, 11):
            with router.session() as session:
                await connection.execute(f"INSERT INTO {name} VALUES (1)")
                await connection.commit()
                assert session.token
                async with await router.acquire(read_only=True) as reader:
                    cursor = await reader.execute(f"SELECT count(*) FROM {name}")
                    assert await cursor.fetchall() == [(number,)]
        with router.session() as session:
            await connection.rollback()
            await connection.close()
            assert not session.token


@pytest.mark.parametrize("how", ["autocommit", "transaction"])
async def test_what_was_committed_otherwise_is_noted_when_it_is_closed(cluster: PostgresCluster, how: str) -> None:
    name = new_name()
    run(cluster.dsn(), f"CREATE TABLE {name} (i int)")
    async with AsyncRouter(settings(**cluster.version_settings())) as router:
        with router.session() as session:
            connection = await router.acquire()
            if how == "autocommit":
                await connection.set_autocommit(True)
                await connection.execute(f"INSERT INTO {name} VALUES (1)")
            else:
                async with connection.transaction():
                    await connection.execute(f"INSERT INTO {name} VALUES (1)")
            await connection.close()
            assert session.token
            async with router.connection(read_only=True) as reader:
                cursor = await reader.execute(f"SELECT count(*) FROM {name}")
                assert await cursor.fetchall() == [(1,)]


async def test_after_hands_on_what_must_be_seen(cluster: PostgresCluster) -> None:
    name = new_name()
    run(cluster.dsn(), f"CREATE TABLE {name} (i int)")
    async with AsyncRouter(settings(**cluster.version_settings())) as router:
        with router.session() as session:
            async with await router.acquire() as connection:
                await connection.execute(f"INSERT INTO {name} VALUES (1)")
        async with await router.acquire(read_only=True, after=session.token) as connection:
            cursor = await connection.execute(f"SELECT count(*) FROM {name}")
            assert await cursor.fetchall() == [(1,)]
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                await connection.execute(f"INSERT INTO {name} VALUES (1)")


@pytest.mark.each_value
@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("pooling", ["shared", "dedicated"])
async def test_it_is_a_tenants(postgres: Postgres, pooling: str, begin: bool) -> None:
    one, two = new_name(), new_name()
    for tenant in (one, two):
        run(postgres.primary, f"CREATE SCHEMA {tenant}; CREATE TABLE {tenant}.me AS SELECT '{tenant}' AS name")
    options = settings(
        primary=postgres.primary,
        tenancy={"pooling": pooling, "max_connections": 1},
        tenants={tenant: {"version": "v1", "schema": tenant} for tenant in (one, two)},
        pool={"max_size": 1, "timeout": 5.0},
    )
    async with AsyncRouter(options) as router:
        for tenant in (one, two, one):
            with router.use(tenant=tenant):
                connection = await router.acquire(begin=begin)
                if not begin:
                    await connection.set_autocommit(True)
                cursor = await connection.execute("SELECT name FROM me")
                assert await cursor.fetchall() == [(tenant,)]
                await connection.close()
        with pytest.raises(UnknownTenant):
            await router.acquire()


@pytest.mark.each_value
@pytest.mark.parametrize("ends", ["closed", "closed twice", "broken", "dropped", "failed"])
@pytest.mark.parametrize("pooling", ["shared", "dedicated"])
async def test_its_end_makes_room_for_another_of_its_tenant(postgres: Postgres, pooling: str, ends: str) -> None:
    options = settings(
        primary=postgres.primary,
        tenancy={"pooling": pooling, "max_connections": 1},
        tenant_template={"row": "app.tenant"},
        pool={"max_size": 1, "timeout": 20.0},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        async with AsyncRouter(options) as router:
            for _ in range(3):
                connection = await router.acquire(tenant="acme")
                await connection.execute("SELECT 1")
                with pytest.raises(PoolExhausted):
                    await router.acquire(tenant="acme", timeout=0.05)
                if ends == "broken":
                    cut(connection)
                if ends == "failed":
                    with pytest.raises(psycopg.errors.DivisionByZero):
                        await connection.execute("SELECT 1 / 0")
                if ends != "dropped":
                    await connection.close()
                if ends == "closed twice":
                    await connection.close()
                del connection
                gc.collect()
            for tenant in ("globex", "acme"):
                connection = await router.acquire(tenant=tenant)
                await connection.close()


@pytest.mark.parametrize("use", ["execute", "commit", "rollback", "cursor", "transaction", "pipeline", "kept"])
async def test_after_close_every_use_of_it_raises(postgres: Postgres, use: str) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        connection = await router.acquire()
        cursor = connection.cursor()
        await connection.close()
        async with await router.acquire() as another:
            await another.execute("SELECT 1")
            with pytest.raises(psycopg.InterfaceError, match="given back"):
                match use:
                    case "execute":
                        await connection.execute("SELECT 1")
                    case "commit":
                        await connection.commit()
                    case "rollback":
                        await connection.rollback()
                    case "cursor":
                        connection.cursor()
                    case "transaction":
                        async with connection.transaction():
                            pytest.fail("it began")
                    case "pipeline":
                        async with connection.pipeline():
                            pytest.fail("it began")
                    case "kept":
                        await cursor.execute("SELECT 1")
            await another.execute("SELECT 1")


async def test_a_tenant_that_the_directory_knows_may_be_asked_for(postgres: Postgres) -> None:
    name = new_name()
    run(postgres.primary, f"CREATE SCHEMA {name}; CREATE TABLE {name}.me AS SELECT 7 AS i")

    def lookup(tenant: str) -> Any:
        return {"version": "v1", "schema": name} if tenant == "acme" else None

    async with AsyncRouter(settings(primary=postgres.primary), directory=lookup) as router:
        async with await router.acquire(tenant="acme", read_only=True) as connection:
            cursor = await connection.execute("SELECT i FROM me")
            assert await cursor.fetchall() == [(7,)]
        with pytest.raises(UnknownTenant):
            await router.acquire(tenant="globex")
        with pytest.raises(UnknownVersion):
            await router.acquire(version="v9")


async def test_a_pipeline_goes_on_after_a_commit_and_what_that_wrote_is_seen(cluster: PostgresCluster) -> None:
    name = new_name()
    run(cluster.dsn(), f"CREATE TABLE {name} (i int)")
    async with AsyncRouter(settings(**cluster.version_settings())) as router:
        with router.session():
            async with await router.acquire() as connection, connection.pipeline():
                for number in range(3):
                    await connection.execute(f"INSERT INTO {name} VALUES ({number})")
                    await connection.commit()
            async with router.connection(read_only=True) as reader:
                cursor = await reader.execute(f"SELECT count(*) FROM {name}")
                assert await cursor.fetchall() == [(3,)]


async def test_it_is_given_back_even_where_no_session_can_be_told(postgres: Postgres) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:

        async def suspended() -> AsyncIterator[None]:
            with router.session():
                yield

        connection = await router.acquire()
        await connection.execute("SELECT 1")
        generator = suspended()
        await anext(generator)
        with pytest.raises(RuntimeError, match="suspended"):
            await connection.close()
        async for _ in generator:
            pass
        assert connection.closed
        async with await router.acquire() as connection:
            await connection.execute("SELECT 1")
