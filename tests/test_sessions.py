"""Where a session is in force: what tasks share, threads do not, and generators cannot leak."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from router import AsyncRouter, Router
from router.context import CURRENT
from router.core.consistency import Position
from router.core.policies import TokenPolicy
from router.sessions import Session, current_session
from tests.support import new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from router.testing import PostgresCluster

OWNER = object()


def session() -> Session:
    return Session(OWNER, TokenPolicy(), None)


async def test_child_tasks_share_it_and_what_they_write_is_the_parents(cluster: PostgresCluster) -> None:
    table = new_name()
    run(cluster.dsn(), f"CREATE TABLE {table} (i int)")
    async with AsyncRouter(settings(**cluster.version_settings())) as router:

        async def write() -> None:
            async with router.connection() as connection:
                await connection.execute(f"INSERT INTO {table} VALUES (1)")

        with router.session() as parent:
            await asyncio.create_task(write())
            assert parent.token
            async with router.connection(read_only=True) as connection:
                assert await (await connection.execute(f"SELECT i FROM {table}")).fetchone() == (1,)
            late = asyncio.create_task(write())
        before = parent.token
        await late  # it began inside the block, and writes after it
        assert parent.token == before


def test_threads_do_not_but_may_be_handed_its_token(cluster: PostgresCluster) -> None:
    table = new_name()
    run(cluster.dsn(), f"CREATE TABLE {table} (i int)")
    found = []
    with Router(settings(**cluster.version_settings())) as router:

        def work(token: str) -> None:
            with router.connection() as connection:
                connection.execute(f"INSERT INTO {table} VALUES (2)")
            with router.session(token), router.connection(read_only=True) as connection:
                found.extend(connection.execute(f"SELECT i FROM {table} WHERE i = 1").fetchall())

        with router.session() as parent:
            with router.connection() as connection:
                connection.execute(f"INSERT INTO {table} VALUES (1)")
            before = parent.token
            thread = threading.Thread(target=work, args=[before])
            thread.start()
            thread.join()
            assert parent.token == before
    assert found == [(1,)]


async def test_an_async_generator_that_is_closed_elsewhere_leaves_none_in_force() -> None:
    async def generate() -> AsyncGenerator[Session, None]:
        with session() as inside:
            yield inside

    generator = generate()
    with session() as around:
        await anext(generator)
        with pytest.raises(RuntimeError, match=r"session\(\) of .*test_sessions\.py:\d+ is open"):  # for nobody else
            current_session(OWNER)
        await asyncio.create_task(generator.aclose())  # in a copy of this context
        assert current_session(OWNER) is around
    assert CURRENT.get() is None


def test_a_session_may_be_entered_again_after_its_block() -> None:
    again = session()
    for lsn in (1, 2):
        with again:
            inside = current_session(OWNER)
            assert inside is not None
            inside.wrote("v1", Position(1, 1, lsn))
            assert again.positions("v1") == [Position(1, 1, lsn)]
    assert CURRENT.get() is None


def test_a_session_that_nobody_entered_is_of_nobody() -> None:
    session()
    assert current_session(OWNER) is None
