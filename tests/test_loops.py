"""Event loops: an AsyncRouter belongs to one, and ``router.aio`` has one for each."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from typing import TYPE_CHECKING, Any
from weakref import ref

import psycopg
import pytest

import router as process_wide
from router import AsyncRouter, ConfigError, _default, _loops, aio
from router.core.errors import RouterClosed, UnknownVersion
from tests._async.internals import inside as of
from tests.support import PATIENCE, aeventually, eventually, new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.conftest import Postgres

pytestmark = pytest.mark.docker


class World:
    """A server, and the sessions there that are this test's."""

    def __init__(self, postgres: Postgres) -> None:
        self.name = new_name()
        self.plain = postgres.primary
        self.dsn = psycopg.conninfo.make_conninfo(postgres.primary, application_name=self.name)

    def sessions(self) -> int:
        asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = "
        [(count,)] = run(self.plain, f"{asked}'{self.name}'")
        return int(count)

    def left(self) -> bool:
        return eventually(lambda: self.sessions() == 0)


@pytest.fixture
def world(postgres: Postgres) -> World:
    return World(postgres)


@pytest.fixture
def _configured(world: World) -> Iterator[None]:
    aio.configure(settings(primary=world.dsn))
    yield
    aio.configure(settings(primary=world.dsn))
    assert not _loops.routers


async def pid(router: Any = aio, **named: Any) -> int:
    async with router.connection(**named) as connection:
        return int(connection.info.backend_pid)


async def nothing(*_: object) -> None:
    pass


REQUESTS: dict[str, Callable[[AsyncRouter], Awaitable[object]]] = {
    "read": lambda router: pid(router, version="v1", read_only=True),
    "write": lambda router: pid(router, version="v1"),
    "execute": lambda router: router.execute("SELECT 1", version="v1"),
    "run": lambda router: router.run(lambda connection: connection.execute("SELECT 1"), version="v1"),
    "tenant": lambda router: pid(router, tenant="acme"),
    "tenant_of_the_directory": lambda router: pid(router, tenant="globex"),
    "each": lambda router: router.each(nothing, tenants=["acme"]),
}


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_router_is_refused_in_a_second_loop_at_its_first_use_there(
    world: World, request_: Callable[[AsyncRouter], Awaitable[object]], pooling: str
) -> None:
    options = {"tenants": {"acme": {"row": "app.tenant"}}, "tenancy": {"pooling": pooling}}
    router = AsyncRouter(settings(primary=world.dsn, **options), directory=lambda _: {"row": "app.tenant"})

    async def use() -> None:
        await REQUESTS["tenant"](router)
        await request_(router)

    async def use_again() -> None:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="in which it is first used, which is closed"):
                await request_(router)
        assert await router.close() == 0

    asyncio.run(use())
    assert world.sessions()
    asyncio.run(use_again())
    assert world.left()


def test_a_router_is_refused_in_the_loop_of_another_thread_and_goes_on_in_its_own(world: World) -> None:
    refused: list[RuntimeError] = []

    async def use_elsewhere(router: AsyncRouter) -> None:
        uses: list[Awaitable[int]] = [pid(router), router.close()]
        for use in uses:
            with pytest.raises(RuntimeError, match=r"this is another one.*router\.aio") as raised:
                await use
            refused.append(raised.value)

    async def main() -> None:
        async with AsyncRouter(settings(primary=world.dsn)) as router:
            first = await pid(router)
            await asyncio.to_thread(asyncio.run, use_elsewhere(router))
            assert await pid(router) == first

    asyncio.run(main())
    assert len(refused) == 2
    assert world.left()


def test_a_router_that_was_made_before_any_loop_belongs_to_the_one_that_uses_it(world: World) -> None:
    router = AsyncRouter(settings(primary=world.dsn))
    router.explain()
    router.stats()
    with router.session():
        pass

    async def main() -> None:
        async with router:
            await pid(router)

    asyncio.run(main())
    with pytest.raises(RouterClosed):
        asyncio.run(pid(router))


@pytest.mark.usefixtures("_configured")
def test_each_loop_has_a_router_of_its_own_that_ends_with_it(world: World) -> None:
    async def main() -> int:
        first = await pid()
        assert await pid() == first
        assert (await aio.execute("SELECT 1")).value == 1
        assert await process_wide.aio.run(lambda connection: pid(), version="v1")
        with aio.session() as session:
            await pid()
            assert session.token
        with aio.use(version="v1"):
            assert aio.explain().target.version == "v1"
        assert aio.stats().connections
        return first

    for _ in range(3):
        asyncio.run(main())
        assert not _loops.routers
        assert world.left()


@pytest.mark.usefixtures("_configured")
def test_an_acquired_connection_that_outlives_its_loop_is_closed_with_it(world: World) -> None:
    async def main() -> psycopg.AsyncConnection[Any]:
        connection = await aio.acquire()
        await connection.execute("SELECT 1")
        return connection

    async def use(connection: psycopg.AsyncConnection[Any]) -> None:
        with pytest.raises(psycopg.Error):
            await connection.execute("SELECT 1")
        await connection.close()
        await pid()

    kept = asyncio.run(main())
    assert world.left()
    asyncio.run(use(kept))
    assert kept.closed
    assert world.left()


@pytest.mark.usefixtures("_configured")
def test_loops_of_several_threads_do_not_meet(world: World) -> None:
    together, found = threading.Barrier(3), set[int]()

    async def main() -> None:
        found.add(await pid())
        await asyncio.to_thread(together.wait, PATIENCE)
        found.add(await pid())

    threads = [threading.Thread(target=asyncio.run, args=[main()]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(found) == 3
    assert world.left()


@pytest.mark.usefixtures("_configured")
def test_the_router_of_a_loop_that_was_closed_without_a_word_is_forgotten_at_the_next_ones_first_use(
    world: World,
) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(pid())
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.wait(tasks))
    loop.close()
    assert world.sessions()
    asyncio.run(pid())
    assert not _loops.routers
    assert world.left()


@pytest.mark.usefixtures("_configured")
def test_it_may_be_closed_and_used_again(world: World) -> None:
    async def main() -> None:
        assert await aio.close() == 0
        first = await pid()
        with pytest.raises(ValueError, match="timeout is nan"):
            await aio.close(float("nan"))
        assert await pid() == first
        assert await aio.close() == 0
        assert await pid() != first
        async with aio.connection():
            assert await aio.close(0.0) == 1

    asyncio.run(main())
    assert world.left()


@pytest.mark.usefixtures("_configured")
def test_new_settings_are_for_every_loop_and_wrong_ones_for_none(world: World) -> None:
    async def main() -> None:
        first = await pid()
        with pytest.raises(ConfigError):
            aio.configure()
        assert await pid() == first
        aio.configure(settings(versions={"v7": {"primary": world.dsn}}))
        assert await pid(version="v7") != first
        with pytest.raises(UnknownVersion):
            aio.connection(version="v1")
        await aeventually(lambda: ended(first))

    async def ended(backend: int) -> bool:
        return not (await aio.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [backend])).rows

    asyncio.run(main())
    assert world.left()


def test_it_needs_a_loop_that_runs() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        aio.connection()


def test_it_has_the_names_of_the_process_wide_router() -> None:
    def face(module: object) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(value).parameters)
            for name, value in vars(module).items()
            if inspect.isfunction(value) and not name.startswith("_")
        }

    assert face(aio) == face(_default)
    assert "aio" in dir(process_wide)


@pytest.mark.parametrize("late", [False, True], ids=["in_its_loop", "after_its_loop"])
def test_a_router_that_is_dropped_without_close_leaves_nothing_when_its_loop_ends(world: World, late: bool) -> None:
    inside: list[ref[object]] = []

    async def main() -> AsyncRouter | None:
        router = AsyncRouter(settings(primary=world.dsn))
        inside.append(ref(of(router)))
        await pid(router)
        await pid(router, read_only=True)
        return router if late else None

    with pytest.warns(ResourceWarning, match="unclosed <AsyncRouter"):
        asyncio.run(main())
    assert world.left()
    gc.collect()
    assert inside[0]() is None


def test_one_that_is_kept_longer_than_its_loop_may_still_be_closed_or_dropped(world: World) -> None:
    kept = [AsyncRouter(settings(primary=world.dsn)) for _ in range(2)]
    for router in kept:
        asyncio.run(pid(router))
    assert world.sessions()
    assert asyncio.run(kept.pop().close()) == 0
    with pytest.warns(ResourceWarning, match="unclosed"):
        del router, kept[:]
    assert world.left()
