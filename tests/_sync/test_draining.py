# Generated from tests/_async/test_draining.py by tools/async_to_sync.py: do not edit.
"""A pool that is not needed any more drains in view: it lends nothing, and is like any other until it is empty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from router import Router, UnknownTenant
from router.core.events import PoolClosed, PoolOpened
from tests.proxy import Proxy
from tests.support import eventually, new_name, outside, run, settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from router.core.events import Event
    from router.testing import PostgresCluster
    from router.testing._plugin import MakeCluster

SOON = {"ttl": 0.2, "unknown_ttl": 0.2}


class Homes:
    """A directory whose tenants move."""

    def __init__(self, **homes: dict[str, Any]) -> None:
        self.homes = homes

    def lookup(self, tenant: str) -> Mapping[str, Any] | None:
        return self.homes.get(tenant)


@pytest.fixture
def database(cluster: PostgresCluster) -> Iterator[str]:
    name = new_name()
    run(cluster.dsn(), f"CREATE DATABASE {name}")
    yield name
    run(cluster.dsn(), f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def sessions(cluster: PostgresCluster, database: str) -> int:
    [(number,)] = run(cluster.dsn(), f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'")
    return int(number)


def asked(router: Router, tenant: str) -> bool:
    """Whether there is such a tenant; its connection is used for a moment."""
    try:
        with router.connection(tenant=tenant) as connection:
            connection.execute("SELECT 1")
    except UnknownTenant:
        return False
    return True


# A tenant that moves, or is removed


def test_a_tenant_with_servers_of_its_own_is_served_by_those_that_it_moves_to(cluster: PostgresCluster) -> None:
    homes = Homes(acme={"primary": cluster.dsn()})
    options = settings(versions={"v1": cluster.dsn()}, tenant_template={}, directory=SOON, tenancy={"min_size": 1})
    with Router(options, directory=homes.lookup) as router:
        with router.connection(tenant="acme") as connection:
            assert connection.info.host == "127.0.0.1"
        homes.homes["acme"] = {"primary": cluster.dsn(host="localhost")}

        def is_served_there() -> bool:
            with router.connection(tenant="acme", timeout=2.0) as connection:
                return connection.info.host == "localhost"

        eventually(is_served_there)

        def nothing_is_left() -> bool:
            hosts = {pool.node.server.host for pool in router.stats().tenant_pools}
            return hosts == {"localhost"} and not router.stats().draining

        eventually(nothing_is_left)


@pytest.mark.each_value
@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
@pytest.mark.parametrize("again", [True, False])
def test_the_database_of_a_tenant_that_was_removed_can_be_dropped(
    cluster: PostgresCluster, database: str, pooling: str, again: bool
) -> None:
    homes = Homes(acme={"database": database, "pooling": pooling})
    least = {} if pooling == "shared" else {"min_size": 1}
    options = settings(versions={"v1": cluster.dsn()}, tenant_template={}, directory=SOON, tenancy=least)
    with Router(options, directory=homes.lookup) as router:
        assert asked(router, "acme")
        assert sessions(cluster, database)
        del homes.homes["acme"]

        def is_refused() -> bool:
            return not asked(router, "acme")

        def nobody_is_there() -> bool:
            return not sessions(cluster, database)

        if again:  # else nobody asks for it any more
            eventually(is_refused)
        eventually(nobody_is_there)
        run(cluster.dsn(), f"DROP DATABASE {database}")


def test_a_block_of_a_removed_tenant_goes_on_to_its_end_and_nothing_of_it_is_lent_again(
    cluster: PostgresCluster, database: str
) -> None:
    homes = Homes(acme={"database": database})
    options = settings(versions={"v1": cluster.dsn()}, tenant_template={}, directory=SOON, tenancy={"min_size": 1})
    with Router(options, directory=homes.lookup) as router:
        with router.connection(tenant="acme") as connection:
            connection.execute("SELECT 1")
            late = router.connection(tenant="acme")  # entered after the removal
            del homes.homes["acme"]

            def drains() -> bool:
                return [pool.tenant for pool in router.stats().draining] == ["acme"]

            eventually(drains)
            stats = router.stats()
            assert (stats.tenant_pools, dict(stats.tenants)) == ((), {"acme": 1})
            assert "draining: 1 pool, 1 in use" in repr(stats)
            connection.execute("SELECT 1")
        assert router.stats().draining == ()
        assert sessions(cluster, database) == 0
        assert late.tenant == "acme"


# A pool that drains is like any other


class World:
    """A router with a block of acme's on a pool that drains, since the tenant has another policy by now."""

    def __init__(self, cluster: PostgresCluster, **options: Any) -> None:
        self.events: list[Event] = []
        self.homes = Homes(acme={"version": "v1", "row": "app.tenant", "max_connections": 5})
        self.settings = settings(**{"tenant_template": {}, "directory": SOON, "primary": cluster.dsn(), **options})

    def router(self) -> Router:
        return Router(self.settings, directory=self.homes.lookup, observers=[self.events.append])

    def replace(self, router: Router) -> None:
        """Have the pool replaced by another one."""
        self.homes.homes["acme"] = {**self.homes.homes["acme"], "max_connections": 4}

        def drains() -> bool:
            assert asked(router, "acme")
            stats = router.stats()
            return (len(stats.draining), len(stats.tenant_pools)) == (1, 1)

        eventually(drains)


def test_it_is_counted_cut_and_counted_by_close(cluster: PostgresCluster) -> None:
    world = World(cluster)
    router = world.router()
    with pytest.raises(psycopg.OperationalError):
        with router.connection(tenant="acme") as connection:
            world.replace(router)
            stats = router.stats()
            assert dict(stats.tenants) == {"acme": 1}
            assert [pool.pool.in_use for pool in stats.draining] == [1]
            assert [pool.pool.in_use for pool in stats.tenant_pools] == [0]
            assert router.close(0.05) == 1
            connection.execute("SELECT 1")
    assert router.stats().draining == ()
    opened, closed = ([event for event in world.events if isinstance(event, kind)] for kind in (PoolOpened, PoolClosed))
    assert len(opened) == len(closed) == 2


def test_it_is_told_to_be_closed_when_its_last_connection_is_back(cluster: PostgresCluster) -> None:
    world = World(cluster)
    with world.router() as router:
        with router.connection(tenant="acme"):
            world.replace(router)
            assert not [event for event in world.events if isinstance(event, PoolClosed)]
        assert [event.tenant for event in world.events if isinstance(event, PoolClosed)] == ["acme"]


def test_it_is_cut_when_its_server_does_not_answer_for_long(cluster: PostgresCluster) -> None:
    with Proxy(cluster.primary.host, cluster.primary.port) as proxy:
        world = World(
            cluster,
            primary=make_conninfo(cluster.dsn(), host=proxy.host, port=str(proxy.port)),
            health={"interval": 0.05, "timeout": 0.2, "cut_after": 0.3},
        )
        with world.router() as router:
            with pytest.raises(psycopg.OperationalError):
                with router.connection(tenant="acme") as connection:
                    world.replace(router)
                    proxy.deaf()
                    connection.execute("SELECT 1")
            assert router.stats().draining == ()
            proxy.forward()


def test_it_is_cut_when_its_server_is_fenced(make_postgres_cluster: MakeCluster) -> None:
    cluster = make_postgres_cluster(version=18, standbys=1)
    world = World(cluster, **cluster.version_settings(), health={"interval": 0.1})
    with world.router() as router:
        with pytest.raises(psycopg.OperationalError):
            with router.connection(tenant="acme") as connection:
                world.replace(router)
                outside(cluster.standbys[0].promote)
                connection.execute("SELECT pg_sleep(60)")
        assert router.stats().draining == ()
