"""Blocks in a generator that somebody else resumes, as pytest does with fixtures and Litestar with dependencies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString

import pytest

from router import AsyncRouter, Outcomes, Session, TenantLocked, Use
from router.core.errors import RouterError
from tests.support import new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from router.testing import PostgresCluster


class World:
    """Two tenants with a schema each, and a table in it."""

    def __init__(self, cluster: PostgresCluster) -> None:
        self.settings = settings(**cluster.version_settings(), tenant_template={"schema": "{tenant}"})
        # Blocks are for all routers of the same settings.
        self.other_settings = settings(
            **cluster.version_settings(), tenant_template={"schema": "{tenant}"}, max_pools=9
        )
        self.one, self.two = keys = new_name(), new_name()
        for key in keys:
            run(cluster.dsn(), f"CREATE SCHEMA {key}", f"CREATE TABLE {key}.note (body text)")


@pytest.fixture
def world(cluster: PostgresCluster) -> World:
    return World(cluster)


def inside(block: Use | Session) -> Iterator[None]:
    with block:
        yield


def between(block: Use | Session) -> Iterator[None]:
    block.enter()
    yield
    block.exit()


async def add(router: AsyncRouter, **named: Any) -> None:
    async with router.connection(**named) as connection:
        await connection.execute("INSERT INTO note VALUES ('x')")


async def read(router: AsyncRouter, **named: Any) -> Any:
    async with router.connection(read_only=True, **named) as connection:
        return (await (await connection.execute("SELECT current_schema(), count(*) FROM note")).fetchone() or ())[:2]


@pytest.mark.parametrize(
    "make",
    [
        lambda router, world: router.use(tenant=world.one, lock=True),
        lambda router, _: router.session(),
    ],
    ids=["lock", "session"],
)
async def test_a_request_that_would_pass_over_a_guard_is_refused_and_told_where_that_stands(
    world: World, make: Callable[[AsyncRouter, World], Use | Session]
) -> None:
    async with AsyncRouter(world.settings) as router:
        fixture = inside(make(router, world))
        next(fixture)
        where = rf"of {__file__}:{inside.__code__.co_firstlineno + 1} is open.* call its enter\(\) and exit\(\)"
        for tenant in (world.one, world.two):
            for request in (add, read):
                with pytest.raises(RuntimeError, match=where):
                    await request(router, tenant=tenant)
            with pytest.raises(RuntimeError, match=where):
                await router.execute("INSERT INTO note VALUES ('x')", tenant=tenant)
            with pytest.raises(RuntimeError, match=where):
                router.explain(tenant=tenant)
            with pytest.raises(RuntimeError, match=where), router.use(tenant=tenant):
                pytest.fail("it was used")
        async with AsyncRouter(world.other_settings) as other:
            assert await read(other, tenant=world.two) == (world.two, 0)
        next(fixture, None)
        assert await read(router, tenant=world.two) == (world.two, 0)


async def test_a_lock_that_was_entered_without_with_holds_while_its_generator_is_suspended(world: World) -> None:
    async with AsyncRouter(world.settings) as router:
        fixture = between(router.use(tenant=world.one, lock=True))
        next(fixture)
        assert await read(router) == (world.one, 0)
        with pytest.raises(TenantLocked):
            await read(router, tenant=world.two)
        with router.use(version="v1"), pytest.raises(TenantLocked):
            await read(router, tenant=world.two)
        next(fixture, None)
        with pytest.raises(RouterError, match="no tenant was named"):
            await read(router)
        assert await read(router, tenant=world.two) == (world.two, 0)


async def test_a_session_that_was_entered_without_with_notes_what_is_written_meanwhile(world: World) -> None:
    async with AsyncRouter(world.settings) as router:
        session = router.session()
        fixture = between(session)
        next(fixture)
        for count in range(1, 4):
            await add(router, tenant=world.one)
            assert await read(router, tenant=world.one) == (world.one, count)
        noted = session.token
        assert noted
        next(fixture, None)
        await add(router, tenant=world.one)
        assert session.token == noted


async def test_what_was_entered_without_with_is_ended_once_and_not_entered_twice(world: World) -> None:
    async with AsyncRouter(world.settings) as router:
        use = router.use(tenant=world.one, lock=True)
        use.exit()
        for _ in range(2):
            assert use.enter() is use
            with pytest.raises(RuntimeError, match="in use"):
                use.enter()
            use.exit()
            use.exit()
        assert await read(router, tenant=world.two) == (world.two, 0)


async def test_a_block_inside_of_one_that_was_entered_without_with_comes_first_wherever_it_stands(world: World) -> None:
    async with AsyncRouter(world.settings) as router:
        entered = router.use(tenant=world.one)

        def generate() -> Iterator[str | None]:
            with router.use(tenant=world.two):
                entered.enter()
                yield router.explain().target.tenant

        generator = generate()
        assert next(generator) == world.one
        assert router.explain().target.tenant == world.one
        with router.use(tenant=world.two):
            assert router.explain().target.tenant == world.two
        entered.exit()


async def test_each_tenants_function_is_in_the_blocks_of_the_generator_that_waits_for_it(world: World) -> None:
    keys: list[LiteralString] = [world.one, world.two]
    async with AsyncRouter(world.settings) as router:
        around, session = router.session(), router.session()

        async def write(_: Any, tenant: str) -> None:
            await add(router, tenant=tenant)

        async def generate() -> AsyncIterator[Outcomes[None]]:
            with around, session:
                yield await router.each(write, tenants=keys)

        async for outcomes in generate():
            assert not outcomes.errors
        assert session.token
        assert around.token == session.token
