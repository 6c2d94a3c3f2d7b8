"""What it costs to reset a version's session, what becomes of one that cannot be reset, and where that is set."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg
import pytest
from psycopg import AsyncConnection

from router import AsyncRouter, ConfigError
from tests._async.test_hygiene import LOCK, RESETS, left, one
from tests.support import aeventually, settings

if TYPE_CHECKING:
    from router import RouterSettings
    from router._runtime.calls import AFunction
    from router.testing import PostgresCluster
    from tests.conftest import Postgres
    from tests.tapped import Tapped

    Leaving: TypeAlias = AFunction[[AsyncConnection[Any]], object]


# What it costs, counted at the socket


def behind(tapped: Tapped, hygiene: str) -> RouterSettings:
    return one(tapped.version()["primary"], hygiene, health={"interval": 3600})


async def trips(tapped: Tapped, router: AsyncRouter, leaving: Leaving, *, read_only: bool) -> int:
    """How many round trips a block costs, after one that is the same."""
    for _ in range(2):
        tapped.trips()
        async with router.connection(read_only=read_only) as connection:
            await leaving(connection)
    return tapped.trips()[0]


async def nothing(connection: AsyncConnection[Any]) -> None:
    del connection


async def harmless(connection: AsyncConnection[Any]) -> None:
    await connection.execute("SELECT 1", prepare=False)


async def local(connection: AsyncConnection[Any]) -> None:
    await connection.execute("SELECT set_config('app.tenant', %s, true)", ["acme"], prepare=False)


async def locking(connection: AsyncConnection[Any]) -> None:
    await connection.execute(LOCK, prepare=False)


async def copying(connection: AsyncConnection[Any]) -> None:
    async with connection.cursor().copy("COPY (SELECT 1) TO STDOUT") as copy:
        async for _ in copy:
            pass


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(("hygiene", "clean", "traced"), [("transaction", 0, 0), ("auto", 0, 1), ("full", 1, 1)])
async def test_a_reset_costs_one_round_trip(
    tapped: Tapped, hygiene: str, read_only: bool, clean: int, traced: int
) -> None:
    statement = 1 if read_only else 3
    async with AsyncRouter(behind(tapped, hygiene)) as router:
        assert await trips(tapped, router, nothing, read_only=read_only) == clean
        for leaving in (harmless, local):
            assert await trips(tapped, router, leaving, read_only=read_only) == statement + clean
        for leaving in (locking, copying):
            assert await trips(tapped, router, leaving, read_only=read_only) == statement + traced
        assert await trips(tapped, router, harmless, read_only=read_only) == statement + clean


async def test_statements_stay_prepared_as_long_as_nothing_is_reset(postgres: Postgres) -> None:
    async def prepared_ones(router: AsyncRouter) -> int:
        for _ in range(8):  # psycopg prepares a statement when it comes the sixth time
            async with router.connection() as connection:
                await connection.execute("SELECT 7")
        async with router.connection() as connection:
            row = await (
                await connection.execute("SELECT count(*) FROM pg_prepared_statements", prepare=False)
            ).fetchone()
            assert row is not None
            return int(row[0])

    async with AsyncRouter(one(postgres.primary, "auto")) as router:
        assert await prepared_ones(router) == 1
        async with router.connection() as connection:
            await connection.execute("SELECT 7")
            await connection.execute(LOCK)
        assert await prepared_ones(router) == 1  # anew
    async with AsyncRouter(one(postgres.primary, "full")) as router:
        assert await prepared_ones(router) == 0


async def test_what_configure_has_set_is_no_trace(postgres: Postgres) -> None:
    async def configure(connection: AsyncConnection[Any]) -> None:
        await connection.execute("SET work_mem = '9MB'")
        await connection.execute("SET application_name = 'configured'")

    async with AsyncRouter(one(postgres.primary, "auto"), configure=configure) as router:
        for _ in range(3):
            assert (await left(router))[3] == "9MB"
        async with router.connection() as connection:
            await connection.execute(LOCK)
        assert (await left(router))[3] == "4MB"  # a reset goes back to what the session began with


# What becomes of a session that cannot be reset


@pytest.mark.parametrize("hygiene", RESETS)
async def test_a_connection_that_dies_when_it_is_reset_is_nobodys_error(tapped: Tapped, hygiene: str) -> None:
    async with AsyncRouter(behind(tapped, hygiene)) as router:
        pid = (await left(router))[0]
        tapped.cut(tapped.primary, on="DISCARD SEQUENCES", before=True)
        async with router.connection() as connection:
            await connection.execute(LOCK)

        async def is_another() -> bool:
            with suppress(psycopg.OperationalError):
                return bool((await left(router))[0] != pid)
            return False

        assert await aeventually(is_another)
        tapped.cut(tapped.primary, on="DISCARD SEQUENCES", before=True)
        with pytest.raises(ZeroDivisionError):
            async with router.connection() as connection:
                await connection.execute(LOCK)
                raise ZeroDivisionError
        [node] = router.stats().versions[0].nodes
        assert node.write is not None
        assert node.write.in_use == 0


@pytest.mark.parametrize("hygiene", RESETS)
async def test_a_connection_that_dies_when_it_is_reset_was_not_lost_in_its_block(tapped: Tapped, hygiene: str) -> None:
    calls = []

    async def fail(connection: AsyncConnection[Any]) -> None:
        calls.append(connection)
        await connection.execute(LOCK)
        raise psycopg.errors.UniqueViolation

    async with AsyncRouter(behind(tapped, hygiene)) as router:
        tapped.cut(tapped.primary, on="DISCARD SEQUENCES", before=True)
        with pytest.raises(psycopg.errors.UniqueViolation):
            await router.run(fail, retries=3)
        assert len(calls) == 1  # a transaction is run again if its connection was lost
        assert not calls[0].broken


@pytest.mark.parametrize("hygiene", RESETS)
async def test_a_server_that_does_not_answer_a_reset_keeps_nobody_waiting(tapped: Tapped, hygiene: str) -> None:
    async with AsyncRouter(behind(tapped, hygiene)) as router:
        pid = (await left(router))[0]
        tapped.primary.forget_on(b"DISCARD SEQUENCES")
        async with router.connection() as connection:
            await connection.execute(LOCK)
        tapped.primary.forward()

        async def is_another() -> bool:
            with suppress(psycopg.OperationalError):
                return bool((await left(router))[0] != pid)
            return False

        assert await aeventually(is_another)


@pytest.mark.parametrize("hygiene", RESETS)
async def test_a_session_that_a_standby_refuses_every_statement_serves_nobody(
    cluster: PostgresCluster, hygiene: str
) -> None:
    options = settings(
        primary=cluster.dsn(), replicas=[cluster.standbys[0].dsn()], pool={"max_size": 1, "hygiene": hygiene}
    )
    async with AsyncRouter(options) as router:
        for _ in range(3):
            async with router.connection(read_only=True) as connection:
                await connection.execute("SET default_transaction_isolation = 'serializable'")
            async with router.connection(read_only=True) as connection:
                await connection.execute("SELECT 1")


# Where it is set


async def test_a_version_may_differ(postgres: Postgres) -> None:
    versions = {
        "v1": {"primary": postgres.primary},
        "v2": {"primary": postgres.primary, "pool": {"hygiene": "transaction"}},
    }
    async with AsyncRouter(settings(versions=versions, pool={"max_size": 1, "hygiene": "auto"})) as router:
        for version, expected in (("v1", "4MB"), ("v2", "7MB")):
            async with router.connection(version=version) as connection:
                await connection.execute("SET work_mem = '7MB'")
            assert (await left(router, version=version))[3] == expected


@pytest.mark.parametrize("hygiene", RESETS)
@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
async def test_tenants_go_by_what_is_said_of_tenants(tapped: Tapped, pooling: str, hygiene: str) -> None:
    options = one(
        tapped.version()["primary"],
        hygiene,
        health={"interval": 3600},
        tenant_template={"row": "app.tenant"},
        tenancy={"pooling": pooling},
    )
    async with AsyncRouter(options) as router:
        for _ in range(3):
            async with router.connection(tenant="acme", read_only=True) as connection:
                tapped.trips()
                await connection.execute("SET work_mem = '7MB'")
            assert tapped.trips() == (1, 0)
        assert (await left(router, tenant="acme", read_only=True))[3] == "7MB"


def test_a_transaction_pooler_has_no_session_to_reset(postgres: Postgres) -> None:
    node = {"dsn": postgres.primary, "pooler": "transaction"}
    for hygiene in RESETS:
        with pytest.raises(ConfigError, match=r"versions\.v1\.pool\.hygiene.*transaction pooler"):
            one_of(node, hygiene)
    one_of(node, "transaction")
    with pytest.raises(ConfigError, match="hygiene"):
        one_of(node, "sometimes")


def one_of(node: dict[str, Any], hygiene: str) -> RouterSettings:
    return settings(primary=node, pool={"hygiene": hygiene})
