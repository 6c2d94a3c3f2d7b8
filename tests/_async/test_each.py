"""A function called for each tenant."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest

from router import AsyncRouter, UnknownTenant, UnknownVersion
from router._runtime.flags import AFlag
from router.core.errors import DirectoryUnavailable, TenantLocked
from tests.support import PATIENCE, new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from psycopg.rows import TupleRow

    from router.testing import PostgresCluster

COUNT = 6


class World:
    """Tenants with a schema each, listed in this order, and a table that all of them can write to."""

    def __init__(self, cluster: PostgresCluster) -> None:
        self.dsn = cluster.dsn()
        self.table: LiteralString = new_name()
        self.keys: list[LiteralString] = [new_name() for _ in range(COUNT)]
        run(self.dsn, *(f"CREATE SCHEMA {key}" for key in self.keys), f"CREATE TABLE {self.table} (tenant text)")

    def router(self, directory: Any = None, **arguments: Any) -> AsyncRouter:
        listed = {"tenants": {key: {"schema": key} for key in self.keys}}
        options = {"pool": {"timeout": PATIENCE}, "health": {"interval": 3600}, **listed, **arguments}
        return AsyncRouter(settings(primary=self.dsn, **options), directory=directory)

    async def add(self, connection: psycopg.AsyncConnection[TupleRow], tenant: str) -> str:
        [(schema, _)] = await (await connection.execute("SELECT current_schema(), pg_sleep(0.01)")).fetchall()
        await connection.execute(f"INSERT INTO public.{self.table} VALUES (%s)".encode(), [tenant])
        return str(schema)

    def added(self) -> list[str]:
        return [tenant for (tenant,) in run(self.dsn, f"SELECT tenant FROM {self.table} ORDER BY ctid")]


@pytest.fixture
def world(cluster: PostgresCluster) -> World:
    return World(cluster)


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
async def test_each_tenant_has_its_own_session_and_all_of_them_their_turn_in_a_tight_budget(
    world: World, pooling: str
) -> None:
    pool = {"max_size": 1, "max_waiting": 1, "timeout": PATIENCE}  # others are refused at the door, where they share it
    async with world.router(max_connections=3, pool=pool, tenancy={"pooling": pooling}) as router:
        outcomes = await router.each(world.add, jobs=COUNT)
    assert list(outcomes.values.items()) == [(key, key) for key in world.keys]
    assert (outcomes.errors, outcomes.left, outcomes.check()) == ({}, (), outcomes.values)
    assert sorted(world.added()) == sorted(world.keys)


async def test_one_that_fails_is_rolled_back_and_the_others_go_on(world: World) -> None:
    failing = world.keys[2]

    async def work(connection: psycopg.AsyncConnection[TupleRow], tenant: str) -> None:
        await world.add(connection, tenant)
        if tenant == failing:
            await connection.execute("SELECT 1 / 0")

    async with world.router() as router:
        outcomes = await router.each(work)
    assert list(outcomes.values) == [key for key in world.keys if key != failing]
    assert list(outcomes.errors) == [failing]
    assert sorted(world.added()) == sorted(outcomes.values)
    assert repr(outcomes) == f"Outcomes: 5 tenants done, 1 failed\n  {failing}: DivisionByZero: division by zero"
    with pytest.raises(ExceptionGroup, match="5 tenants done, 1 failed") as raised:
        outcomes.check()
    (error,) = raised.value.exceptions
    assert isinstance(error, psycopg.errors.DivisionByZero)
    assert error.__notes__ == [f"for tenant {failing!r}"]


async def test_nothing_is_begun_after_a_failure_if_that_is_asked_for(world: World) -> None:
    async def work(connection: psycopg.AsyncConnection[TupleRow], tenant: str) -> None:
        await world.add(connection, tenant)
        if tenant == world.keys[1]:
            raise ZeroDivisionError

    async with world.router() as router:
        outcomes = await router.each(work, jobs=1, stop_on_error=True)
    assert list(outcomes.values) == world.keys[:1]
    assert list(outcomes.errors) == world.keys[1:2]
    assert outcomes.left == tuple(world.keys[2:])
    assert world.added() == world.keys[:1]


async def test_so_many_at_a_time_and_no_more(world: World) -> None:
    running: set[str] = set()
    most = []
    everybody = AFlag()

    async def work(connection: psycopg.AsyncConnection[TupleRow], tenant: str) -> None:
        running.add(tenant)
        most.append(len(running))
        if len(running) == 3:
            everybody.set()
        assert await everybody.wait_for(PATIENCE)
        running.discard(tenant)

    async with world.router() as router:
        outcomes = await router.each(work, jobs=3)
        assert (outcomes.errors, max(most)) == ({}, 3)
        with pytest.raises(ValueError, match="jobs is 0"):
            await router.each(work, jobs=0)


async def test_who_is_meant(world: World) -> None:
    one, two, *_ = world.keys

    async def who(tenants: Any) -> list[str]:
        async with world.router(tenant_template={"schema": "{tenant}"}) as router:
            outcomes = await router.each(world.add, tenants=tenants)
            assert outcomes.errors == {}
            return list(outcomes.values)

    other = new_name()
    run(world.dsn, f"CREATE SCHEMA {other}")
    assert await who("all") == world.keys
    assert await who("*") == world.keys
    assert await who(f"{two}, {one[:-1]}[{one[-1]}],{two}") == [two, one]
    assert await who(iter([two, one, two])) == [two, one]
    assert await who(f"{other},{one}") == [other, one], "it need not be listed"
    assert await who([]) == []
    with pytest.raises(UnknownTenant, match=r"no tenant is listed that matches 'nobody\*'"):
        await who(f"{one},nobody*")


async def test_nothing_is_done_if_one_of_them_cannot_be_meant(world: World) -> None:
    async with world.router() as router:
        for tenants in (f"{world.keys[0]},No Key", [world.keys[0], "../"], [world.keys[0], 7]):
            with pytest.raises(UnknownTenant, match=r"a key .*matches"):
                await router.each(world.add, tenants=tenants)  # type: ignore[arg-type]
        with pytest.raises(UnknownVersion):
            await router.each(world.add, version="v7")
        with router.use(tenant=world.keys[0], lock=True):
            with pytest.raises(TenantLocked):
                await router.each(world.add)
            assert list((await router.each(world.add, tenants=[world.keys[0]])).values) == world.keys[:1]
        outcomes = await router.each(world.add, tenants=["nobody"])
    assert isinstance(outcomes.errors["nobody"], UnknownTenant)
    assert world.added() == world.keys[:1]


async def test_there_must_be_tenants(world: World) -> None:
    async with AsyncRouter(settings(primary=world.dsn)) as router:
        with pytest.raises(UnknownTenant, match="the settings have no tenants"):
            await router.each(world.add)
    async with world.router(tenants={}, tenant_template={"schema": "{tenant}"}) as router:
        with pytest.raises(UnknownTenant, match="the settings list no tenants"):
            await router.each(world.add)


async def test_of_those_who_are_listed_the_ones_that_live_in_the_version(world: World) -> None:
    listed = {
        key: {"schema": key, "version": ["v1", "v2"] if place % 2 else "v1"} for place, key in enumerate(world.keys)
    }
    versions = {"v1": {"primary": world.dsn}, "v2": {"primary": world.dsn}}
    one, two, *_ = world.keys
    async with AsyncRouter(settings(versions=versions, aliases={"new": "v2"}, tenants=listed)) as router:
        assert list((await router.each(world.add, version="new")).values) == world.keys[1::2]
        assert list((await router.each(world.add, version="v1")).values) == world.keys
        with router.use(version="v2"):
            assert list((await router.each(world.add)).values) == world.keys[1::2]
        outcomes = await router.each(world.add, tenants=f"{one},{two}", version="v2")
    assert list(outcomes.values) == [two]
    assert "lives in 'v1', not in 'v2'" in str(outcomes.errors[one])


class Table:
    """A directory in memory that can list its tenants."""

    def __init__(self, homes: Mapping[str, Any]) -> None:
        self.homes = homes

    async def lookup(self, tenant: str) -> Mapping[str, Any] | None:
        home = self.homes.get(tenant)
        if isinstance(home, Exception):
            raise home
        return home

    async def tenants(self) -> Sequence[str]:
        return list(self.homes)


async def test_those_of_the_directory_come_after_those_of_the_settings(world: World) -> None:
    own, *others = world.keys
    homes: dict[str, Any] = {key: {"schema": key, "version": "v1"} for key in others}
    homes[others[0]] = OSError("gone")
    homes[others[1]] = {"schema": others[1], "version": "v2"}
    versions = {"v1": {"primary": world.dsn}, "v2": {"primary": world.dsn}}
    configured = settings(versions=versions, tenants={own: {"schema": own}}, tenancy={})
    async with AsyncRouter(configured, directory=Table(homes)) as router:
        outcomes = await router.each(world.add)
        assert list(outcomes.values) == [own, *others[1:]]
        assert isinstance(outcomes.errors[others[0]], DirectoryUnavailable)
        outcomes = await router.each(world.add, version="v1")
        assert list(outcomes.values) == [own, *others[2:]]
        assert list(outcomes.errors) == others[:1], "where it lives is not known: that must be seen"


async def test_one_that_is_listed_and_is_no_key_fails_by_itself(world: World) -> None:
    homes: dict[str, Any] = {"NO KEY": {"schema": "x"}, **{key: {"schema": key} for key in world.keys}}
    async with world.router(Table(homes), tenants={}, tenancy={}) as router:
        outcomes = await router.each(world.add)
        assert list(outcomes.values) == world.keys
        assert [str(error) for error in outcomes.errors.values()] == [str(outcomes.errors["NO KEY"])]
        with pytest.raises(UnknownTenant, match="a key matches"):
            await router.each(world.add, tenants=["NO KEY", *world.keys])
    assert sorted(world.added()) == sorted(world.keys)


async def test_a_directory_that_cannot_list_its_tenants_does_not_pass_for_one_without(world: World) -> None:
    homes = {key: {"schema": key} for key in world.keys}
    async with world.router(homes.get, tenants={}, tenancy={}) as router:
        with pytest.raises(UnknownTenant, match="cannot list its tenants"):
            await router.each(world.add)
        assert list((await router.each(world.add, tenants=",".join(world.keys))).values) == world.keys


async def test_what_the_function_asks_for_itself_is_the_tenants_too_and_it_has_the_callers_context(
    world: World,
) -> None:
    mine: ContextVar[str] = ContextVar("mine", default="nobody's")

    async def work(connection: psycopg.AsyncConnection[TupleRow], tenant: str) -> tuple[str, Any]:
        return mine.get(), (await router.execute("SELECT current_schema()")).value

    mine.set("the caller's")
    async with world.router() as router:
        outcomes = await router.each(work)
        assert outcomes.check() == {key: ("the caller's", key) for key in world.keys}
        with pytest.raises(UnknownTenant):
            await router.execute("SELECT 1")


async def test_what_is_no_error_of_a_tenants_ends_all_of_it(world: World) -> None:
    async def work(connection: psycopg.AsyncConnection[TupleRow], tenant: str) -> None:
        await world.add(connection, tenant)
        raise asyncio.CancelledError

    async with world.router() as router:
        with pytest.raises(asyncio.CancelledError):
            await router.each(work, jobs=1)
    assert world.added() == []
