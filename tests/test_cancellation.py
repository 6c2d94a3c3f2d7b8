"""An asyncio task cancelled anywhere in a checkout takes no connection with it; threads know no such thing."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from router import AsyncRouter
from tests._async.internals import inside
from tests.support import PATIENCE, aeventually, settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.conftest import Postgres

SIZE = 4


async def borrow(router: AsyncRouter, *, read_only: bool) -> None:
    async with router.connection(read_only=read_only, timeout=PATIENCE) as connection:
        await connection.execute("SELECT 1")
        await asyncio.sleep(0)
        await connection.execute("SELECT pg_sleep(0.001)")


async def borrow_without_a_block(router: AsyncRouter, *, read_only: bool) -> None:
    connection = await router.acquire(read_only=read_only, timeout=PATIENCE)
    try:
        await connection.execute("SELECT 1")
        await asyncio.sleep(0)
        await connection.execute("SELECT pg_sleep(0.001)")
        await connection.commit()
    finally:
        await connection.close()


async def whole(router: AsyncRouter, *, read_only: bool) -> bool:
    """Whether as many connections as may be there are there, nobody has one, and all of them work."""
    [node] = router.stats().versions[0].nodes
    pool = node.read if read_only else node.write
    if pool is None or (pool.size, pool.idle, pool.in_use, pool.waiting) != (SIZE, SIZE, 0, 0):
        return False
    everyone = asyncio.Barrier(SIZE)

    async def use() -> int:
        async with router.connection(read_only=read_only, timeout=PATIENCE) as connection:
            cursor = await connection.execute("SELECT pg_backend_pid()")
            row = await cursor.fetchone()
            assert row is not None
            await everyone.wait()  # so that each has one of its own
            return int(row[0])

    return len(set(await asyncio.gather(*(use() for _ in range(SIZE))))) == SIZE


@pytest.mark.docker
@pytest.mark.each_value
@pytest.mark.parametrize("borrow", [borrow, borrow_without_a_block])
@pytest.mark.parametrize("read_only", [False, True])
async def test_500_cancellations_leave_the_pool_whole(
    postgres: Postgres, read_only: bool, borrow: Callable[..., Awaitable[None]]
) -> None:
    options = settings(primary=postgres.primary, pool={"min_size": SIZE, "max_size": SIZE})
    async with AsyncRouter(options) as router:
        chance = random.Random(20)
        await borrow(router, read_only=read_only)
        await aeventually(lambda: whole(router, read_only=read_only))
        cancelled = 0
        while cancelled < 500:
            tasks = [asyncio.ensure_future(borrow(router, read_only=read_only)) for _ in range(2 * SIZE)]
            for task in tasks:
                # Between two steps of the event loop, or in the middle of a query.
                await asyncio.sleep(chance.choice([0, 0, 0, 0.0005, 0.001, 0.002]))
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
                cancelled += outcome is not None
        await aeventually(lambda: whole(router, read_only=read_only))


async def test_a_session_whose_query_was_cancelled_is_not_lent_again(postgres: Postgres) -> None:
    options = settings(primary=postgres.primary, pool={"max_size": 1, "timeout": PATIENCE})
    async with AsyncRouter(options) as router:
        connection = await router.acquire()
        before = connection.info.backend_pid
        task = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
        await aeventually(lambda: asyncio.sleep(0, connection.lock.locked()))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await connection.close()
        async with await router.acquire() as connection:
            assert connection.info.backend_pid != before


async def test_a_return_that_has_to_wait_survives_cancellation(postgres: Postgres) -> None:
    options = settings(primary=postgres.primary, pool={"min_size": 1, "max_size": 1})
    async with AsyncRouter(options) as router:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def borrow_and_wait() -> None:
            async with router.connection():
                entered.set()
                await leave.wait()

        task = asyncio.create_task(borrow_and_wait())
        await entered.wait()
        [pool] = inside(router).pools
        async with pool.lock:  # so that giving back is suspended at this lock
            leave.set()
            await aeventually(lambda: asyncio.sleep(0, bool(pool.lock._waiters)))
            for _ in range(2):
                task.cancel()
                for _ in range(10):
                    await asyncio.sleep(0)
                assert not task.done()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (len(pool.borrowed), len(pool.idle)) == (0, 1)
        async with router.connection(timeout=PATIENCE) as connection:
            await connection.execute("SELECT 1")


@pytest.mark.docker
async def test_a_request_that_is_cancelled_while_it_hands_idle_connections_over_drops_none(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool={"max_size": SIZE})) as router:
        everyone = asyncio.Barrier(SIZE)

        async def use() -> int:
            async with router.connection(timeout=PATIENCE) as connection:
                await everyone.wait()
                return connection.info.backend_pid

        before = await asyncio.gather(*(use() for _ in range(SIZE)))
        [pool] = inside(router).pools
        pool.quarantine.begin()
        waiting = [asyncio.ensure_future(use()) for _ in range(SIZE)]
        await aeventually(lambda: asyncio.sleep(0, pool.waiting.number() == SIZE))
        pool.idle = pool.kept
        async with pool.lock:
            giver = asyncio.ensure_future(pool.hand_over())
            await asyncio.sleep(0)
            other = asyncio.ensure_future(pool.lock.acquire())  # is next, so that the giver has to wait again
            await asyncio.sleep(0)
        await other
        await asyncio.sleep(0.01)
        giver.cancel()
        await asyncio.sleep(0.01)
        pool.lock.release()
        with pytest.raises(asyncio.CancelledError):
            await giver
        assert set(await asyncio.gather(*waiting)) == set(before)
    assert not caplog.records


async def test_a_connection_given_up_for_a_second_cancellation_puts_no_pool_in_quarantine(postgres: Postgres) -> None:
    async with AsyncRouter(settings(primary=postgres.primary)) as router:
        entered = asyncio.Event()
        broken = []

        async def wait_long() -> None:
            async with router.connection() as connection:
                await connection.execute("SELECT 1")
                entered.set()
                try:
                    await connection.execute("SELECT pg_sleep(60)")
                finally:
                    broken.append(connection.broken)

        task = asyncio.create_task(wait_long())
        await entered.wait()
        await asyncio.sleep(0)
        for _ in range(2):  # the second while psycopg waits for the query to be cancelled
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert broken == [True]
        assert [pool.quarantined_at for pool in router._snapshot().pools] == [0.0]
        async with router.connection() as connection:
            await connection.execute("SELECT 1")
