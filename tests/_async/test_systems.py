"""Servers that hold other data than their version: of another system, or copies that nobody promoted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from router import AsyncRouter, NoPrimary, NoReplica
from router.core.server_events import Fenced, OtherSystem
from tests.proxy import Proxy
from tests.support import aeventually, aoutside, settings

if TYPE_CHECKING:
    from router.core.events import Event
    from router.testing import PostgresCluster, PostgresServer
    from router.testing._plugin import MakeCluster

FAST = {"interval": 0.1, "timeout": 0.5, "ban": 0.01}


@pytest.fixture(scope="module")
def other(make_postgres_cluster: MakeCluster) -> PostgresCluster:
    """Two servers of another system, by their release, each of which takes writes; one of them was promoted."""
    cluster: PostgresCluster = make_postgres_cluster(version=16, standbys=1)
    cluster.standbys[0].promote()
    return cluster


@pytest.fixture(scope="module")
def copy(make_postgres_cluster: MakeCluster) -> PostgresServer:
    """A server that takes writes, of the same system as all of its release."""
    cluster: PostgresCluster = make_postgres_cluster(version=18, standbys=0)
    return cluster.primary


def through(proxy: Proxy, server: PostgresServer) -> str:
    return psycopg.conninfo.make_conninfo(server.dsn(), host=proxy.host, port=proxy.port)


async def release(router: AsyncRouter, **how: Any) -> int:
    """Where a request is served, by the release of the server."""
    async with router.connection(**{"timeout": 20, **how}) as connection:
        return connection.info.server_version // 10000


@pytest.mark.parametrize("promoted", [False, True])
async def test_a_server_of_another_system_among_the_replicas_takes_neither_writes_nor_reads(
    cluster: PostgresCluster, other: PostgresCluster, promoted: bool
) -> None:
    stranger = other.servers[promoted]
    told: list[Event] = []
    with Proxy(cluster.primary.host, cluster.primary.port) as proxy:
        options = settings(primary=through(proxy, cluster.primary), replicas=[stranger.dsn()], health=FAST)
        async with AsyncRouter(options, observers=[told.append]) as router:
            proxy.deaf()  # for long enough that a request may as well give up
            with pytest.raises(
                NoPrimary, match=f"{proxy.host}:{proxy.port}, the configured primary, has not been probed yet"
            ):
                await release(router, timeout=0.3)
            proxy.forward()
            assert await release(router) == await release(router, read_only=True) == 18

            async def is_told() -> bool:
                return any(isinstance(event, OtherSystem) for event in told)

            await aeventually(is_told)
            proxy.stop()
            for _ in range(3):
                with pytest.raises(NoPrimary, match="is of another system"):
                    await release(router, timeout=0.3)
                with pytest.raises(NoReplica, match="is of another system"):
                    await release(router, read_only=True, timeout=0.3)
            proxy.start()
            assert await release(router) == await release(router, read_only=True) == 18
            left_out = router.stats().versions[0].nodes[1]
            assert "is of another system" in left_out.reason
            assert router.explain(read_only=True).refused == {left_out.node: left_out.reason}
    events = [event for event in told if isinstance(event, (Fenced, OtherSystem))]
    assert events == [OtherSystem("v1", left_out.node, left_out.reason)]


async def test_a_copy_that_nobody_promoted_takes_nothing_while_the_primary_restarts(
    cluster: PostgresCluster, copy: PostgresServer
) -> None:
    told: list[Event] = []
    with Proxy(cluster.primary.host, cluster.primary.port) as proxy:
        proxy.stop()
        options = settings(primary=through(proxy, cluster.primary), replicas=[copy.dsn()], health=FAST)
        async with AsyncRouter(options, observers=[told.append]) as router:
            for _ in range(2):
                with pytest.raises(NoPrimary, match="was never promoted"):
                    await release(router, timeout=0.7)
                proxy.start()
                async with router.connection(timeout=20) as connection:
                    assert connection.info.port == proxy.port
                async with router.connection(read_only=True, timeout=20) as connection:
                    assert connection.info.port == proxy.port
                proxy.stop()
    assert len([event for event in told if isinstance(event, Fenced)]) == 1


async def test_replicas_stay_behind_when_the_primarys_address_moves_to_another_system(
    cluster: PostgresCluster, other: PostgresCluster
) -> None:
    told: list[Event] = []
    with Proxy(cluster.primary.host, cluster.primary.port) as proxy:
        replicas = [cluster.standbys[0].dsn()]
        options = settings(primary=through(proxy, cluster.primary), replicas=replicas, health=FAST)
        async with AsyncRouter(options, observers=[told.append]) as router:
            assert await release(router) == await release(router, read_only=True) == 18
            proxy.lead_to(other.primary)
            proxy.stop()
            proxy.start()

            async def moved() -> bool:
                return await release(router) == 16

            async def is_told() -> bool:
                return any(isinstance(event, OtherSystem) for event in told)

            await aeventually(moved)
            await aeventually(is_told)
            assert [await release(router, read_only=True) for _ in range(10)] == [16] * 10


async def test_where_roles_are_discovered_the_system_of_most_nodes_counts_or_nobodys(
    cluster: PostgresCluster, other: PostgresCluster
) -> None:
    ours, theirs, standby = cluster.dsn(), other.dsn(), cluster.standbys[0].dsn()
    async with AsyncRouter(settings(nodes=[ours, theirs], health=FAST)) as router:
        for read_only in (False, True):
            with pytest.raises((NoPrimary, NoReplica)) as raised:
                await release(router, read_only=read_only, timeout=0.5)
            for server in (cluster.primary, other.primary):
                [(ident,)] = server.execute("SELECT system_identifier FROM pg_control_system()")
                assert f"{server.host}:{server.port} ({ident})" in str(raised.value)
    async with AsyncRouter(settings(nodes=[theirs, ours, standby], health=FAST)) as router:
        assert [await release(router, read_only=read_only) for read_only in (False, True) * 5] == [18] * 10


async def test_a_process_that_starts_after_a_failover_writes_to_the_new_primary(
    make_postgres_cluster: MakeCluster,
) -> None:
    cluster = make_postgres_cluster(version=18, standbys=1)
    old, new = cluster.servers
    options = settings(**cluster.version_settings())
    await aoutside(old.kill)
    await aoutside(new.promote)
    for _ in range(2):  # while the old one is away, and when it is back and takes itself for the primary
        async with AsyncRouter(options) as router:
            for read_only in (False, True):
                async with router.connection(read_only=read_only, timeout=20) as connection:
                    assert connection.info.port == new.port
        await aoutside(old.start)
