"""How long a request waits, for what, and how many connections there may be."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import AsyncConnection

from router import AsyncRouter, NoPrimary, PoolExhausted, Server, TooManyWaiting
from router._async.slot import AsyncSlotRequest
from router._async.slots import AsyncSlots
from router._runtime.flags import asleep
from router.core.budget import BudgetKey, Limits
from tests.proxy import Proxy
from tests.support import PATIENCE, aall_of, aeventually, aoutside, atogether, new_name, port, run, settings

if TYPE_CHECKING:
    from router.testing import PostgresCluster
    from router.testing._plugin import MakeCluster
    from tests.conftest import Postgres


def through(proxy: Proxy, dsn: str) -> str:
    return psycopg.conninfo.make_conninfo(dsn, host=proxy.host, port=proxy.port)


def limit_of(router: AsyncRouter) -> int | None:
    """The limit of its own that the primary has shown."""
    pool = router.stats().versions[0].nodes[0].write
    assert pool is not None
    return pool.server_limit


@pytest.mark.docker
async def test_a_full_pool_is_not_a_dead_node(postgres: Postgres) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool={"max_size": 2})) as router:
        async with router.connection(), router.connection():
            started = time.monotonic()
            with pytest.raises(PoolExhausted, match=r"all 2 connections to .* are in use \(pool.max_size\)"):
                async with router.connection(timeout=0.2):
                    pytest.fail("there was a third connection")
            assert 0.2 <= time.monotonic() - started < 2
            assert router.stats().versions[0].nodes[0].state == "up"
        async with router.connection() as connection:
            await connection.execute("SELECT 1")


@pytest.mark.docker
async def test_too_many_waiting_are_refused_at_the_door(postgres: Postgres) -> None:
    options = settings(primary=postgres.primary, pool={"max_size": 1, "max_waiting": 1})
    async with AsyncRouter(options) as router:
        refused = []

        async def borrow() -> None:
            try:
                async with router.connection(timeout=0.5):
                    pytest.fail("there was a second connection")
            except TooManyWaiting as error:
                refused.append(str(error))
            except PoolExhausted:
                pass

        async with router.connection():
            await atogether(borrow, 3)
        assert len(refused) == 2
        assert "1 request already waits" in refused[0]


async def test_who_waits_at_a_full_replica_goes_to_another_that_comes_up(cluster: PostgresCluster) -> None:
    one, two = cluster.standbys
    proxy = Proxy(two.host, two.port)
    with proxy:
        proxy.stop()
        options = settings(
            primary=cluster.dsn(),
            replicas=[one.dsn(), through(proxy, two.dsn())],
            pool={"max_size": 1},
            read={"fallback": "error"},
            health={"interval": 0.05},
        )
        async with AsyncRouter(options) as router, router.connection(read_only=True) as held:
            assert port(held) == one.port

            async def wait() -> None:
                async with router.connection(read_only=True, timeout=20) as connection:
                    assert port(connection) == proxy.port

            async def come_up() -> None:
                async def waiting() -> bool:
                    return any(node.read and node.read.waiting for node in router.stats().versions[0].nodes)

                await aeventually(waiting)
                proxy.start()

            await aall_of(wait, come_up)


@pytest.mark.docker
async def test_who_gave_up_does_not_count_as_waiting(postgres: Postgres) -> None:
    options = settings(primary=postgres.primary, pool={"max_size": 1, "max_waiting": 1})
    async with AsyncRouter(options) as router, router.connection():
        for _ in range(3):
            with pytest.raises(PoolExhausted) as raised:
                async with router.connection(timeout=0.05):
                    pytest.fail("there was a second connection")
            assert type(raised.value) is PoolExhausted
        [node] = router.stats().versions[0].nodes
        assert node.write is not None
        assert node.write.waiting == 0


async def test_a_server_that_never_answers_costs_no_more_than_the_deadline(cluster: PostgresCluster) -> None:
    with Proxy(cluster.primary.host, cluster.primary.port) as proxy:
        proxy.deaf()
        async with AsyncRouter(settings(primary=through(proxy, cluster.dsn()))) as router:
            started = time.monotonic()
            with pytest.raises(NoPrimary, match="not probed yet"):
                async with router.connection(timeout=0.4):
                    pytest.fail("a deaf server gave a connection")
            assert 0.4 <= time.monotonic() - started < 1.5
            proxy.stop()  # or closing the router would wait for the attempt to time out


async def test_a_deaf_replica_is_left_as_soon_as_another_answers(cluster: PostgresCluster) -> None:
    one, two = cluster.standbys
    with Proxy(one.host, one.port) as proxy:
        proxy.deaf()
        options = settings(primary=cluster.dsn(), replicas=[through(proxy, one.dsn()), two.dsn()])
        async with AsyncRouter(options) as router:
            waits = []

            async def read() -> None:
                started = time.monotonic()
                async with router.connection(read_only=True) as connection:
                    await connection.execute("SELECT 1")
                    assert port(connection) == two.port
                waits.append(time.monotonic() - started)

            for _ in range(10):
                await atogether(read, 8)
            assert max(waits) < 1.5  # connect_timeout is 2 s
            proxy.stop()  # or closing the router would wait for the attempt to time out


async def test_reads_do_not_wait_for_a_replica_that_is_dead_from_the_start(cluster: PostgresCluster) -> None:
    dead = psycopg.conninfo.make_conninfo(cluster.dsn(), port=1)
    options = settings(primary=cluster.dsn(), replicas=[dead, cluster.standbys[0].dsn()])
    async with AsyncRouter(options) as router:
        served: list[tuple[float, int]] = []
        stalls = [0.0]  # how much longer than asked for a pause lasted: the machine is busy

        async def read_many() -> None:
            for _ in range(125):
                started = time.monotonic()
                async with router.connection(read_only=True) as connection:
                    await connection.execute("SELECT 1")
                    where = port(connection)
                served.append((time.monotonic() - started, where))

        async def pause() -> None:
            end = time.monotonic() + PATIENCE
            while len(served) < 1000 and (begun := time.monotonic()) < end:
                await asleep(0.005)
                stalls.append(time.monotonic() - begun - 0.005)

        await aall_of(*[read_many] * 8, pause)
        assert len(served) == 1000
        assert {where for _, where in served} <= {cluster.standbys[0].port, cluster.primary.port}
        first, later, stall = served[:16], served[16:], max(stalls)
        assert max(seconds for seconds, _ in first) < 1.0 + stall
        assert max(seconds for seconds, _ in later) < 0.25 + stall
        [_, replica, _] = router.stats().versions[0].nodes
        assert replica.state == "down"
        # What tries it again is the monitor: no request did after the first.
        pools = [node.read for node in router.stats().versions[0].nodes if node.node.server.port == 1]
        assert sum(pool.failed for pool in pools if pool is not None) <= 4


async def test_a_replica_that_comes_back_is_used_again(cluster: PostgresCluster) -> None:
    one, two = cluster.standbys
    proxy = Proxy(one.host, one.port)
    with proxy:
        proxy.stop()
        options = settings(
            primary=cluster.dsn(), replicas=[through(proxy, one.dsn()), two.dsn()], health={"interval": 0.05}
        )
        async with AsyncRouter(options) as router:

            async def where() -> int:
                async with router.connection(read_only=True) as connection:
                    return port(connection)

            assert set(await atogether(where, 8)) == {two.port}
            proxy.start()

            async def used() -> bool:
                return proxy.port in await atogether(where, 8)

            await aeventually(used)


@pytest.mark.docker
async def test_never_more_connections_than_the_budget(postgres: Postgres) -> None:
    make = psycopg.conninfo.make_conninfo
    versions = {f"v{i}": {"primary": make(postgres.primary, application_name=f"budget{i}")} for i in range(5)}
    options = settings(versions=versions, max_connections=3, pool={"max_size": 2, "timeout": 20})
    async with AsyncRouter(options) as router:
        turns = iter(range(200))
        most = [0]

        async def work() -> None:
            for turn in turns:
                async with router.connection(version=f"v{turn % 5}") as connection:
                    cursor = await connection.execute("SELECT pg_sleep(0.002)")
                    await cursor.fetchall()
                    most.append(router.stats().connections)

        await atogether(work, 10)
        assert len(most) == 201
        assert max(most) == 3


@pytest.mark.docker
async def test_a_spent_budget_says_so(postgres: Postgres) -> None:
    versions = {"v1": {"primary": postgres.primary}, "v2": {"primary": postgres.primary}}
    async with AsyncRouter(settings(versions=versions, max_connections=1)) as router:
        async with router.connection(version="v1"):
            with pytest.raises(PoolExhausted, match=r"the one connection of this process is open \(max_connections\)"):
                async with router.connection(version="v2", timeout=0.2):
                    pytest.fail("there was a second connection")
        async with router.connection(version="v2") as connection:  # the idle one of v1 makes room
            await connection.execute("SELECT 1")
        assert router.stats().connections == 1


@pytest.mark.each_value
@pytest.mark.docker
@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_server"])
async def test_requests_may_have_all_that_there_may_be(postgres: Postgres, limit: str, most: int) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, **{limit: most})) as router:

        async def borrow(left: int) -> None:
            if left:
                async with router.connection():  # the connection of the last look makes room for it
                    return await borrow(left - 1)
            assert router.stats().connections == most
            said = "the one .* is" if most == 1 else f"all {most} .* are"
            held = "1 connection" if most == 1 else f"{most} connections"
            with pytest.raises(PoolExhausted, match=rf"{said} open \({limit}\); v1 holds {held}$"):
                async with router.connection(timeout=0.1):
                    pytest.fail("there was one more")

        await borrow(most)


async def test_a_frozen_server_that_has_the_whole_budget_gives_it_up(cluster: PostgresCluster) -> None:
    with Proxy(cluster.primary.host, cluster.primary.port) as proxy:
        options = settings(
            versions={"v1": {"primary": through(proxy, cluster.dsn())}, "v2": {"primary": cluster.dsn()}},
            max_connections=2,
            pool={"timeout": 20},
            health={"interval": 0.1, "timeout": 0.4, "cut_after": 0.5},
        )
        frozen = []
        async with AsyncRouter(options) as router:

            async def hang() -> None:
                with pytest.raises(psycopg.OperationalError, match="the server has not answered for"):
                    async with router.connection(version="v1") as connection:
                        frozen.append(connection)

                        async def both() -> bool:
                            return len(frozen) == 2

                        await aeventually(both)
                        proxy.deaf()
                        await connection.execute("SELECT 1")

            async def go_on() -> None:
                async def begun() -> bool:
                    return len(frozen) == 2

                await aeventually(begun)
                async with router.connection(version="v2") as connection:
                    await connection.execute("SELECT 1")

            await aall_of(hang, hang, go_on)


@pytest.mark.docker
async def test_long_queries_that_have_the_whole_budget_are_left_alone(postgres: Postgres) -> None:
    health = {"interval": 0.1, "timeout": 0.2, "cut_after": 0.3}
    async with AsyncRouter(settings(primary=postgres.primary, max_connections=2, health=health)) as router:

        async def query() -> None:
            async with router.connection() as connection:
                await connection.execute("SELECT pg_sleep(2)")

        await atogether(query, 2)


@pytest.mark.parametrize("balance", ["least_busy", "round_robin", "random"])
async def test_reads_are_spread_by_weight(cluster: PostgresCluster, balance: str) -> None:
    one, two = cluster.standbys
    replicas = [{"dsn": one.dsn(), "weight": 3}, {"dsn": two.dsn(), "weight": 1}]
    options = settings(primary=cluster.dsn(), replicas=replicas, read={"balance": balance})
    async with AsyncRouter(options) as router:

        async def where() -> int:
            async with router.connection(read_only=True) as connection:
                return port(connection)

        async def both_up() -> bool:
            return len(set(await atogether(where, 4))) == 2

        await aeventually(both_up)
        served = [await where() for _ in range(400)]
        share = served.count(one.port) / 400
        assert share == 0.75 if balance == "round_robin" else 0.6 < share < 0.9


async def test_the_least_busy_of_two_is_taken(cluster: PostgresCluster) -> None:
    async with AsyncRouter(settings(**cluster.version_settings())) as router:

        async def where() -> int:
            async with router.connection(read_only=True) as connection:
                return port(connection)

        async def both_up() -> bool:
            return len(set(await atogether(where, 4))) == 2

        await aeventually(both_up)
        async with router.connection(read_only=True) as held:
            for _ in range(20):
                assert await where() != port(held)


@pytest.mark.docker
async def test_pools_open_once_however_many_come_first(postgres: Postgres) -> None:
    dsn = psycopg.conninfo.make_conninfo(postgres.primary, application_name="single_flight")
    async with AsyncRouter(settings(primary=dsn)) as router:

        async def write() -> None:
            async with router.connection() as connection:
                await connection.execute("SELECT 1")

        await atogether(write, 16)
        [node] = router.stats().versions[0].nodes
        assert node.write is not None
        assert node.write.size <= 10
        assert node.write.requests >= 16
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'single_flight'"

    async def gone() -> bool:
        return run(postgres.primary, count) == [(0,)]

    await aeventually(gone)


async def test_a_limit_of_the_servers_own_below_max_size_is_lived_with(cluster: PostgresCluster) -> None:
    role = new_name()
    cluster.primary.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 3")
    async with AsyncRouter(settings(primary=cluster.dsn(user=role), pool={"max_size": 6, "timeout": 20})) as router:

        async def work() -> None:
            for _ in range(10):
                async with router.connection() as connection:
                    await connection.execute("SELECT pg_sleep(0.001)")

        await atogether(work, 6)
        async with router.connection(), router.connection(), router.connection():  # that of the probes makes room
            full = (
                "accepts no further connection: .*too many connections for role.*; it accepted 3 connections from this"
            )
            with pytest.raises(PoolExhausted, match=full):
                async with router.connection(timeout=0.3):
                    pytest.fail("there was a fourth connection")
            assert limit_of(router) == 3


async def test_a_connection_counts_until_its_server_has_let_it_go(
    cluster: PostgresCluster, caplog: pytest.LogCaptureFixture
) -> None:
    role, one, other = new_name(), new_name(), new_name()
    cluster.primary.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 2")
    cluster.primary.execute(
        f"CREATE SCHEMA {one}; CREATE SCHEMA {other}; GRANT USAGE ON SCHEMA {one}, {other} TO {role}"
    )
    options = settings(
        primary=cluster.dsn(user=role), max_connections=2, tenants={one: {"schema": one}, other: {"schema": other}}
    )
    async with AsyncRouter(options) as router:

        async def use(tenant: str) -> None:
            async with router.connection(tenant=tenant) as connection:
                await connection.execute(  # its process has all of these to drop before it ends
                    """DO $$ BEGIN FOR number IN 1..100 LOOP
                    EXECUTE format('CREATE TEMPORARY TABLE IF NOT EXISTS t%s ()', number); END LOOP; END $$"""
                )

        for tenant in (one, other, one):  # an idle one makes room: one connection looks, so there is one for requests
            await use(tenant)
        for _ in range(2):  # one that comes back does
            await aall_of(partial(use, one), partial(use, other))
    assert not [message for message in caplog.messages if "accepts no further connection" in message]


async def test_an_owner_past_its_own_limit_waits_only_while_sessions_end(cluster: PostgresCluster) -> None:
    server = Server(cluster.primary.host, cluster.primary.port)
    before, former, later = (BudgetKey(server, owner, cap) for owner, cap in (("v1", None), ("a", 5), ("a", 1)))
    slots = AsyncSlots(Limits(2, None))
    leaving = []
    for _ in range(2):
        slot = await slots.take(AsyncSlotRequest(before), 1.0)
        connection = await AsyncConnection.connect(cluster.dsn())
        slots.fill(slot, connection)
        leaving.append((slot, connection))

    async def leave() -> None:
        async def all_wait() -> bool:
            return len(slots.waiting) == 2

        await aeventually(all_wait)
        for slot, connection in leaving:
            await slot.close(connection.pgconn)

    async def take(key: BudgetKey) -> None:
        await slots.take(AsyncSlotRequest(key), PATIENCE)

    await aall_of(partial(take, later), partial(take, former), leave)
    assert slots.held == {former: 1, later: 1}


async def test_a_full_replica_is_passed_over(cluster: PostgresCluster) -> None:
    one, two = cluster.standbys
    replicas = [{"dsn": one.dsn(), "weight": 50}, {"dsn": two.dsn(), "weight": 1}]
    options = settings(primary=cluster.dsn(), replicas=replicas, pool={"max_size": 2})
    async with (
        AsyncRouter(options) as router,
        router.connection(read_only=True, timeout=20) as a,
        router.connection(read_only=True, timeout=20) as b,
        router.connection(read_only=True, timeout=20) as c,
        router.connection(read_only=True, timeout=20) as d,
    ):
        assert sorted(map(port, (a, b, c, d))) == sorted([one.port, one.port, two.port, two.port])


async def test_a_full_server_is_waited_for_and_is_no_refused_login(
    make_postgres_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.core.server_limit.LEAST_PAUSE", 0.1)
    servers = make_postgres_cluster(version=18, standbys=0, settings={"max_connections": 10})
    others: list[psycopg.Connection[Any]] = []

    def fill() -> None:
        with suppress(psycopg.OperationalError):
            while True:
                others.append(psycopg.connect(servers.dsn()))

    def leave() -> None:
        while others:
            others.pop().close()

    async with AsyncRouter(settings(primary=servers.dsn(), health={"interval": 0.05})) as router:
        try:
            async with router.connection():
                await aoutside(fill)
                async with router.connection(read_only=True, timeout=20):  # that of the probes makes room
                    with pytest.raises(PoolExhausted, match=r"accepts no further connection: FATAL: .*(clients|slots)"):
                        async with router.connection(read_only=True, timeout=0.5):
                            pytest.fail("there was room")
                    assert router.stats().versions[0].nodes[0].state == "up"

                    async def wait() -> None:
                        async with router.connection(read_only=True, timeout=20) as connection:
                            await connection.execute("SELECT 1")

                    async def make_room() -> None:
                        await aeventually(refused_again)
                        await aoutside(leave)

                    refused = servers.primary.log.read_text().count("too many clients")

                    async def refused_again() -> bool:
                        return servers.primary.log.read_text().count("too many clients") > refused

                    await aall_of(wait, make_room)
                    assert limit_of(router) is None
        finally:
            await aoutside(leave)
