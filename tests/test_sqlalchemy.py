"""SQLAlchemy over the router: its connections are acquired, and closed by its pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from router import AsyncRouter, Router
from tests.support import new_name, run, settings

if TYPE_CHECKING:
    from router.testing import PostgresCluster


def options(cluster: PostgresCluster, **pool: Any) -> Any:
    return settings(**cluster.version_settings(), pool={"max_size": 2, "timeout": 5.0, **pool})


def test_its_engine_borrows_and_gives_back_and_its_commits_are_seen_by_the_reads_of_a_session(
    cluster: PostgresCluster,
) -> None:
    table = new_name()
    run(cluster.dsn(), f"CREATE TABLE {table} (i int)")
    with Router(options(cluster)) as router:
        engine = create_engine("postgresql+psycopg://", creator=router.acquire, poolclass=NullPool)
        for number in range(1, 6):
            with router.session() as session:
                with engine.begin() as connection:
                    connection.execute(text(f"INSERT INTO {table} VALUES (1)"))
                assert session.token
                with router.connection(read_only=True) as reader:
                    assert reader.execute(f"SELECT count(*) FROM {table}").fetchall() == [(number,)]
            with engine.connect() as connection:  # which is rolled back
                connection.execute(text(f"INSERT INTO {table} VALUES (2)"))
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                assert connection.execute(text(f"SELECT count(*) FROM {table}")).scalar() == number
        engine.dispose()
        [write] = [node.write for node in router.stats().versions[0].nodes if node.write]
        assert write.in_use == 0


async def test_its_async_engine_does_so_too(cluster: PostgresCluster) -> None:
    table = new_name()
    run(cluster.dsn(), f"CREATE TABLE {table} (i int)")
    async with AsyncRouter(options(cluster)) as router:
        engine = create_async_engine("postgresql+psycopg://", async_creator=router.acquire, poolclass=NullPool)
        for number in range(1, 6):
            with router.session() as session:
                async with engine.begin() as connection:
                    await connection.execute(text(f"INSERT INTO {table} VALUES (1)"))
                assert session.token
                async with router.connection(read_only=True) as reader:
                    cursor = await reader.execute(f"SELECT count(*) FROM {table}")
                    assert await cursor.fetchall() == [(number,)]
        await engine.dispose()
        [write] = [node.write for node in router.stats().versions[0].nodes if node.write]
        assert write.in_use == 0


@pytest.mark.parametrize("hygiene", ["auto", "full"])
def test_what_it_leaves_in_a_session_is_reset(cluster: PostgresCluster, hygiene: str) -> None:
    with Router(options(cluster, max_size=1, hygiene=hygiene)) as router:
        engine = create_engine("postgresql+psycopg://", creator=router.acquire, poolclass=NullPool)
        for _ in range(3):
            with engine.begin() as connection:
                pid = connection.execute(text("SELECT pg_backend_pid()")).scalar()
                assert connection.execute(text("SHOW work_mem")).scalar() == "4MB"
                connection.execute(text("SET work_mem = '7MB'"))
                connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": 76})
            assert run(cluster.dsn(), "SELECT pg_try_advisory_lock(76)") == [(True,)]
        with router.connection() as plain:
            assert plain.info.backend_pid == pid
        engine.dispose()
