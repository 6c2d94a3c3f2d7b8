"""A connection is given back or replaced, however its block ends, and if it never does."""

from __future__ import annotations

import gc
import logging
import warnings
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from router import AsyncRouter
from router._async.pool.session_state import SessionState, session_of
from router._async.slot import AsyncSlot, AsyncSlotRequest
from router._runtime.flags import AFlag
from router._runtime.sockets import cut
from tests._async.internals import inside
from tests.support import aall_of, aeventually, aoutside, new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.core.measures import PoolStats
    from tests.conftest import Postgres

pytestmark = pytest.mark.docker

ONE = {"max_size": 1, "timeout": 20.0}


class Array:
    """Like numpy's, it has no truth value when it is compared."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> Any:
        return Array()

    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array is ambiguous")


class Injected(Exception):
    """What a step of giving back raises."""


def writing(router: AsyncRouter) -> PoolStats:
    [node] = router.stats().versions[0].nodes
    assert node.write is not None
    return node.write


async def is_whole(router: AsyncRouter) -> bool:
    pool = writing(router)
    return (pool.size, pool.idle, pool.in_use, pool.waiting) == (1, 1, 0, 0)


@pytest.fixture
def table(postgres: Postgres) -> Iterator[Any]:
    name = new_name()
    run(postgres.primary, f"CREATE TABLE {name} (i int)")
    yield name
    run(postgres.primary, f"DROP TABLE {name}")


async def test_what_a_block_hangs_on_its_connection_does_not_lose_it(postgres: Postgres, table: Any) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        for _ in range(3):
            async with router.connection() as connection:
                connection.last_rows = Array()  # type: ignore[attr-defined]
                await connection.execute(f"INSERT INTO {table} VALUES (1)")
        await aeventually(lambda: is_whole(router))
    assert run(postgres.primary, f"SELECT count(*) FROM {table}") == [(3,)]


async def test_a_session_that_has_ended_since_it_answered_is_not_handed_to_the_next_in_line(postgres: Postgres) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:

        async def reading() -> PoolStats | None:
            return router.stats().versions[0].nodes[0].read

        async def is_lent() -> bool:
            return (pool := await reading()) is not None and pool.in_use == 1

        async def one_waits() -> bool:
            return (pool := await reading()) is not None and pool.waiting == 1

        async def first() -> None:
            async with router.connection(read_only=True) as connection:
                await connection.execute("SELECT 1")
                await aeventually(one_waits)
                ended = f"SELECT pg_terminate_backend({connection.info.backend_pid}, 5000)"
                assert await aoutside(run, postgres.primary, ended) == [(True,)]

        async def second() -> int:
            await aeventually(is_lent)
            async with router.connection(read_only=True) as connection:
                await connection.execute("SELECT 1")
                return connection.info.backend_pid

        await aall_of(first, second)


@pytest.mark.parametrize("step", ["pass_on", "suspect", "expiry", "preempt", "evict_again", "close_for"])
async def test_what_raises_in_giving_back_loses_nothing_and_leaves_the_blocks_outcome_alone(
    postgres: Postgres, table: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise Injected

    async def block(router: AsyncRouter, error: Exception | None) -> None:
        with monkeypatch.context() as patched:
            async with router.connection() as connection:
                await connection.execute(f"INSERT INTO {table} VALUES (1)")
                [pool] = [pool for pool in inside(router).pools if pool.borrowed]
                slots = inside(router).slots
                match step:
                    case "pass_on":
                        patched.setattr(SessionState, "pass_on", fail)
                    case "suspect":
                        session_of(connection).in_hot_standby = b"?"
                        patched.setattr(type(pool.watched), "suspect", fail)
                    case "expiry":
                        del session_of(connection).expires_at
                    case _:
                        patched.setattr(slots, "waiting", [None])
                        patched.setattr(slots, "preempt", fail if step == "preempt" else lambda _: None)
                        if step == "evict_again":
                            patched.setattr(slots.eviction, "evict_again", fail)
                        if step == "close_for":
                            patched.setattr(slots, "preempt", AsyncSlotRequest)
                            patched.setattr(AsyncSlot, "close", fail)
                if error is not None:
                    raise error

    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        await block(router, None)
        with pytest.raises(ZeroDivisionError):
            await block(router, ZeroDivisionError())
        async with router.connection() as connection:
            await connection.execute("SELECT 1")
        await aeventually(lambda: is_whole(router))
    assert run(postgres.primary, f"SELECT count(*) FROM {table}") == [(1,)]
    assert len([record for record in caplog.records if record.exc_info]) == 2  # one a block


async def test_a_connection_that_is_closed_by_whoever_borrowed_it_gives_its_place_back_at_once(
    postgres: Postgres,
) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        for _ in range(3):
            connection = await router.connection().__aenter__()
            await connection.execute("SELECT 1")
            await connection.close()
            assert connection.closed
            assert writing(router).in_use == 0
        connection = await router.connection().__aenter__()
        cut(connection)
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("SELECT 1")
        await connection.close()
        assert writing(router).in_use == 0
        async with router.connection() as connection:
            await connection.close()
            assert writing(router).in_use == 0
            async with router.connection() as another:
                await another.execute("SELECT 1")
        await aeventually(lambda: is_whole(router))


async def test_a_connection_that_is_dropped_is_reclaimed_with_where_it_was_borrowed(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
            for _ in range(3):
                connection = await router.connection().__aenter__()
                await connection.execute("SELECT 1")
                del connection
                gc.collect()
            async with router.connection() as connection:
                await connection.execute("SELECT 1")
            await aeventually(lambda: is_whole(router))
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    dropped = [warning for warning in caught if warning.category is ResourceWarning]
    assert [str(warning.message) for warning in dropped] == told
    assert len(told) == 3
    for warning in dropped:
        assert f"for v1 in {__file__}, line {warning.lineno}, and dropped" in str(warning.message)
        assert warning.filename == __file__


async def test_where_connections_are_borrowed_is_noted_once_one_was_dropped(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
            for _ in range(2):
                connection = await router.connection().__aenter__()
                del connection
                gc.collect()
            async with router.connection():
                pass
    first, second = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "where is noted from now on" in first
    assert __file__ in second


@pytest.mark.parametrize("drop", [False, True])
async def test_a_tenant_that_may_have_one_connection_may_have_another_when_that_is_closed_or_dropped(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, drop: bool
) -> None:
    monkeypatch.setattr("router._async.in_force.HOUSEKEEPING", 0.02)
    options = settings(
        primary=postgres.primary,
        pool={"max_size": 2, "timeout": 20.0},
        tenancy={"pooling": "shared", "max_connections": 1},
        tenant_template={"row": "app.tenant"},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        async with AsyncRouter(options) as router:
            for _ in range(3):
                connection = await router.connection(tenant="acme").__aenter__()
                await connection.execute("SELECT 1")
                if not drop:
                    await connection.close()
                del connection
                gc.collect()
            async with router.connection(tenant="acme"):
                assert router._snapshot().admissions["acme"].admitted == 1
            assert router._snapshot().admissions["acme"].admitted == 0


async def test_a_request_is_served_although_making_room_for_it_was_interrupted(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings(primary=postgres.primary, tenant_template={"row": "app.tenant"}, max_connections=1)
    async with AsyncRouter(options) as router:
        slots, held, interrupted = inside(router).slots, AFlag(), list[Any]()
        preempt = slots.preempt

        def interrupt(key: Any) -> Any:
            request = preempt(key)
            if request is not None and not interrupted:
                interrupted.append(request)
                raise ZeroDivisionError
            return request

        monkeypatch.setattr(slots, "preempt", interrupt)

        async def hold() -> None:
            async def waits() -> bool:
                return bool(slots.waiting)

            async with router.connection(tenant="one"):
                held.set()
                await aeventually(waits)

        async def wait() -> None:
            assert await held.wait_for(20.0)
            async with router.connection(tenant="two", timeout=20.0) as connection:
                await connection.execute("SELECT 1")

        await aall_of(hold, wait)
        assert interrupted
