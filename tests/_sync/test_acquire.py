# Generated from tests/_async/test_acquire.py by tools/async_to_sync.py: do not edit.
"""A connection without a block: what frameworks do with one that they close themselves."""

from __future__ import annotations

import gc
import warnings
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from router import PoolExhausted, Router, UnknownTenant, UnknownVersion
from router._runtime.sockets import cut
from tests.support import new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def test_close_gives_it_back_and_rolls_back_what_was_not_committed(postgres: Postgres, table: str) -> None:
    with Router(settings(primary=postgres.primary, pool=ONE)) as router:
        for _ in range(3):
            connection = router.acquire()
            assert isinstance(connection, psycopg.Connection)
            connection.execute(f"INSERT INTO {table} VALUES (1)")
            connection.commit()
            connection.execute(f"INSERT INTO {table} VALUES (2)")
            connection.close()
            connection.close()
            assert connection.closed
            with pytest.raises(psycopg.InterfaceError):
                connection.execute("SELECT 1")
        [node] = router.stats().versions[0].nodes
        assert node.write is not None
        assert (node.write.in_use, node.write.opened) == (0, 1)
    assert rows(postgres, table) == 3


def test_as_a_context_manager_it_commits_or_rolls_back_and_is_closed(postgres: Postgres, table: str) -> None:
    with Router(settings(primary=postgres.primary, pool=ONE)) as router:
        with router.acquire() as connection:
            connection.execute(f"INSERT INTO {table} VALUES (1)")
        assert connection.closed
        with pytest.raises(ZeroDivisionError):
            with router.acquire() as connection:
                connection.execute(f"INSERT INTO {table} VALUES (2)")
                raise ZeroDivisionError
        assert connection.closed
        with router.acquire() as connection:
            connection.close()
    assert rows(postgres, table) == 1


def test_one_that_fails_or_is_lost_gives_its_place_back(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary, pool=ONE)) as router:
        connection = router.acquire()
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1 / 0")
        connection.close()
        connection = router.acquire()
        cut(connection)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
        connection.close()
        with router.acquire() as connection:
            connection.execute("SELECT 1")


def test_one_that_is_dropped_is_reclaimed(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary, pool={"max_size": 1, "timeout": 20})) as router:
        connection = router.acquire()
        connection.execute("SELECT 1")
        with pytest.raises(PoolExhausted):
            router.acquire(timeout=0.1)
        del connection

        def ask() -> None:
            gc.collect()
            with router.acquire() as connection:
                connection.execute("SELECT 1")

        with pytest.warns(ResourceWarning):
            ask()


def test_what_a_commit_has_written_is_seen_by_the_session_in_force(cluster: PostgresCluster) -> None:
    name = new_name()
    run(cluster.dsn(), f"CREATE TABLE {name} (i int)")
    with Router(settings(**cluster.version_settings())) as router:
        connection = router.acquire()  # before the session, as one that is kept over several requests
        for number in range(1, 11):
            with router.session() as session:
                connection.execute(f"INSERT INTO {name} VALUES (1)")
                connection.commit()
                assert session.token
                with router.acquire(read_only=True) as reader:
                    cursor = reader.execute(f"SELECT count(*) FROM {name}")
                    assert cursor.fetchall() == [(number,)]
        with router.session() as session:
            connection.rollback()
            connection.close()
            assert not session.token


@pytest.mark.parametrize("how", ["autocommit", "transaction"])
def test_what_was_committed_otherwise_is_noted_when_it_is_closed(cluster: PostgresCluster, how: str) -> None:
    name = new_name()
    run(cluster.dsn(), f"CREATE TABLE {name} (i int)")
    with Router(settings(**cluster.version_settings())) as router:
        with router.session() as session:
            connection = router.acquire()
            if how == "autocommit":
                connection.set_autocommit(True)
                connection.execute(f"INSERT INTO {name} VALUES (1)")
            else:
                with connection.transaction():
                    connection.execute(f"INSERT INTO {name} VALUES (1)")
            connection.close()
            assert session.token
            with router.connection(read_only=True) as reader:
                cursor = reader.execute(f"SELECT count(*) FROM {name}")
                assert cursor.fetchall() == [(1,)]


def test_after_hands_on_what_must_be_seen(cluster: PostgresCluster) -> None:
    name = new_name()
    run(cluster.dsn(), f"CREATE TABLE {name} (i int)")
    with Router(settings(**cluster.version_settings())) as router:
        with router.session() as session:
            with router.acquire() as connection:
                connection.execute(f"INSERT INTO {name} VALUES (1)")
        with router.acquire(read_only=True, after=session.token) as connection:
            cursor = connection.execute(f"SELECT count(*) FROM {name}")
            assert cursor.fetchall() == [(1,)]
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                connection.execute(f"INSERT INTO {name} VALUES (1)")


@pytest.mark.each_value
@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("pooling", ["shared", "dedicated"])
def test_it_is_a_tenants(postgres: Postgres, pooling: str, begin: bool) -> None:
    one, two = new_name(), new_name()
    for tenant in (one, two):
        run(postgres.primary, f"CREATE SCHEMA {tenant}; CREATE TABLE {tenant}.me AS SELECT '{tenant}' AS name")
    options = settings(
        primary=postgres.primary,
        tenancy={"pooling": pooling, "max_connections": 1},
        tenants={tenant: {"version": "v1", "schema": tenant} for tenant in (one, two)},
        pool={"max_size": 1, "timeout": 5.0},
    )
    with Router(options) as router:
        for tenant in (one, two, one):
            with router.use(tenant=tenant):
                connection = router.acquire(begin=begin)
                if not begin:
                    connection.set_autocommit(True)
                cursor = connection.execute("SELECT name FROM me")
                assert cursor.fetchall() == [(tenant,)]
                connection.close()
        with pytest.raises(UnknownTenant):
            router.acquire()


@pytest.mark.each_value
@pytest.mark.parametrize("ends", ["closed", "closed twice", "broken", "dropped", "failed"])
@pytest.mark.parametrize("pooling", ["shared", "dedicated"])
def test_its_end_makes_room_for_another_of_its_tenant(postgres: Postgres, pooling: str, ends: str) -> None:
    options = settings(
        primary=postgres.primary,
        tenancy={"pooling": pooling, "max_connections": 1},
        tenant_template={"row": "app.tenant"},
        pool={"max_size": 1, "timeout": 20.0},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with Router(options) as router:
            for _ in range(3):
                connection = router.acquire(tenant="acme")
                connection.execute("SELECT 1")
                with pytest.raises(PoolExhausted):
                    router.acquire(tenant="acme", timeout=0.05)
                if ends == "broken":
                    cut(connection)
                if ends == "failed":
                    with pytest.raises(psycopg.errors.DivisionByZero):
                        connection.execute("SELECT 1 / 0")
                if ends != "dropped":
                    connection.close()
                if ends == "closed twice":
                    connection.close()
                del connection
                gc.collect()
            for tenant in ("globex", "acme"):
                connection = router.acquire(tenant=tenant)
                connection.close()


@pytest.mark.parametrize("use", ["execute", "commit", "rollback", "cursor", "transaction", "pipeline", "kept"])
def test_after_close_every_use_of_it_raises(postgres: Postgres, use: str) -> None:
    with Router(settings(primary=postgres.primary, pool=ONE)) as router:
        connection = router.acquire()
        cursor = connection.cursor()
        connection.close()
        with router.acquire() as another:
            another.execute("SELECT 1")
            with pytest.raises(psycopg.InterfaceError, match="given back"):
                match use:
                    case "execute":
                        connection.execute("SELECT 1")
                    case "commit":
                        connection.commit()
                    case "rollback":
                        connection.rollback()
                    case "cursor":
                        connection.cursor()
                    case "transaction":
                        with connection.transaction():
                            pytest.fail("it began")
                    case "pipeline":
                        with connection.pipeline():
                            pytest.fail("it began")
                    case "kept":
                        cursor.execute("SELECT 1")
            another.execute("SELECT 1")


def test_a_tenant_that_the_directory_knows_may_be_asked_for(postgres: Postgres) -> None:
    name = new_name()
    run(postgres.primary, f"CREATE SCHEMA {name}; CREATE TABLE {name}.me AS SELECT 7 AS i")

    def lookup(tenant: str) -> Any:
        return {"version": "v1", "schema": name} if tenant == "acme" else None

    with Router(settings(primary=postgres.primary), directory=lookup) as router:
        with router.acquire(tenant="acme", read_only=True) as connection:
            cursor = connection.execute("SELECT i FROM me")
            assert cursor.fetchall() == [(7,)]
        with pytest.raises(UnknownTenant):
            router.acquire(tenant="globex")
        with pytest.raises(UnknownVersion):
            router.acquire(version="v9")


def test_a_pipeline_goes_on_after_a_commit_and_what_that_wrote_is_seen(cluster: PostgresCluster) -> None:
    name = new_name()
    run(cluster.dsn(), f"CREATE TABLE {name} (i int)")
    with Router(settings(**cluster.version_settings())) as router:
        with router.session():
            with router.acquire() as connection, connection.pipeline():
                for number in range(3):
                    connection.execute(f"INSERT INTO {name} VALUES ({number})")
                    connection.commit()
            with router.connection(read_only=True) as reader:
                cursor = reader.execute(f"SELECT count(*) FROM {name}")
                assert cursor.fetchall() == [(3,)]


def test_it_is_given_back_even_where_no_session_can_be_told(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary, pool=ONE)) as router:

        def suspended() -> Iterator[None]:
            with router.session():
                yield

        connection = router.acquire()
        connection.execute("SELECT 1")
        generator = suspended()
        next(generator)
        with pytest.raises(RuntimeError, match="suspended"):
            connection.close()
        for _ in generator:
            pass
        assert connection.closed
        with router.acquire() as connection:
            connection.execute("SELECT 1")
