# Generated from tests/_async/test_apply.py by tools/async_to_sync.py: do not edit.
"""Another topology is put in force under load: no request fails, and nothing of the old one stays."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from psycopg.conninfo import make_conninfo

from router import Router, RouterClosed, UnknownVersion
from router._runtime.flags import sleep
from tests._sync import internals
from tests.proxy import Proxy
from tests.support import all_of, eventually, port, settings

if TYPE_CHECKING:
    from router._sync.snapshot import PoolSetView
    from router.testing import PostgresCluster

OPTIONS: dict[str, Any] = {"pool": {"max_size": 3, "timeout": 20.0}, "health": {"interval": 0.1}}


def apply(router: Router, **options: Any) -> None:
    internals.apply(router, settings(**{**OPTIONS, **options}).topology())


def host(router: Router, version: str, *, read_only: bool = False) -> str:
    with router.connection(version=version, read_only=read_only) as connection:
        connection.execute("SELECT 1")
        return connection.info.host


def nothing_drains(router: Router) -> bool:
    return not router.stats().draining and not any(pool.draining for pool in router._snapshot().pools)


def test_a_version_that_changes_comes_or_goes_under_load(cluster: PostgresCluster) -> None:
    first, second = cluster.standbys
    one = {"primary": cluster.dsn(), "replicas": [first.dsn()]}
    two = {"primary": cluster.dsn(), "replicas": [second.dsn()]}
    three = {"primary": cluster.dsn(host="localhost"), "replicas": [second.dsn(host="localhost")]}
    with Router(settings(**OPTIONS, versions={"v1": one, "v2": two}, aliases={"live": "v1"})) as router:
        served, over = Counter[int](), list[bool]()

        def read() -> None:
            while not over:
                with router.connection(version="live", read_only=True) as connection:
                    cursor = connection.execute("SELECT 1")
                    assert cursor.fetchall() == [(1,)]
                    served[port(connection)] += 1

        def write() -> None:
            while not over:
                with router.connection(version="live") as connection:
                    connection.execute("SELECT pg_sleep(0.002)")

        def change() -> None:
            try:
                for _ in range(6):
                    for versions in ({"v1": two}, {"v1": three, "v3": one}, {"v1": one, "v2": two}):
                        done = served.total()
                        apply(router, versions=versions, aliases={"live": "v1"})
                        while served.total() < done + 20:
                            sleep(0.005)
            finally:
                over.append(True)

        all_of(change, *[read] * 4, *[write] * 4)
        assert served[first.port]
        assert served[second.port]
        eventually(lambda: nothing_drains(router))
        found = router._snapshot()
        assert {pool.node.server.host for pool in found.pools} == {"127.0.0.1"}
        assert [one.name for one in found.clusters] == ["v1"]
        assert set(found.servers) == found.watched == {node.server for node in found.clusters[0].nodes}


def test_pools_of_clusters_that_are_equal_by_value_go_on(cluster: PostgresCluster) -> None:
    versions = {"v1": {"primary": cluster.dsn()}, "v2": {"primary": cluster.dsn()}}
    with Router(settings(**OPTIONS, versions=versions)) as router:
        host(router, "v1")
        host(router, "v2")
        [stays, _] = router._snapshot().pools
        apply(router, versions={"v1": {"primary": cluster.dsn()}}, max_connections=7, max_pools=5)
        [left] = router._snapshot().pools  # the other one has drained
        assert (left.identity, left.draining) == (stays.identity, False)
        assert router.stats().max_connections == 7
        with pytest.raises(UnknownVersion):
            host(router, "v2")
        apply(router, versions=versions)
        host(router, "v2")


def test_what_was_prepared_before_is_served_by_what_is_in_force(cluster: PostgresCluster) -> None:
    tenants = {"acme": {"version": "v1", "row": "app.tenant"}, "globex": {"version": "v1", "schema": "globex"}}
    shared = {"pooling": "shared"}
    before = settings(**OPTIONS, versions={"v1": {"primary": cluster.dsn()}}, tenants=tenants, tenancy=shared)
    with Router(before) as router:
        for tenant in (None, "acme"):
            with router.connection(version="v1", tenant=tenant) as connection:
                assert connection.info.host == "127.0.0.1"
        late = [router.connection(version="v1", tenant=tenant) for tenant in (None, "acme", "acme")]
        removed = router.connection(version="v1", tenant="globex")
        versions = {"v1": {"primary": cluster.dsn(host="localhost")}, "v2": {"primary": cluster.dsn()}}
        apply(router, versions=versions, tenants={"acme": tenants["acme"]}, tenancy=shared)
        for checkout in late:
            with checkout as connection:
                assert connection.info.host == "localhost"
        with pytest.raises(LookupError):
            with removed:
                pytest.fail("globex is no tenant any more")
        assert {pool.node.server.host for pool in router._snapshot().pools} == {"localhost"}


def test_a_block_goes_on_and_its_pool_goes_when_it_ends(cluster: PostgresCluster) -> None:
    with Router(settings(**OPTIONS, versions={"v1": {"primary": cluster.dsn()}})) as router:
        with router.connection(version="v1") as connection:
            connection.execute("SELECT 1")
            apply(router, versions={"v2": {"primary": cluster.dsn(host="localhost")}})
            assert [pool.version for pool in router.stats().draining] == ["v1"]
            connection.execute("SELECT 1")
            assert host(router, "v2") == "localhost"
        assert router.stats().draining == ()
        assert [one.name for one in router._snapshot().clusters] == ["v2"]
        totals = {(one.version, one.read_only): one.requests for one in router.stats().totals}
        assert (totals["v1", False], totals["v2", False]) == (1, 1)


def test_a_closed_router_takes_no_other_topology(cluster: PostgresCluster) -> None:
    router = Router(settings(**OPTIONS, versions={"v1": {"primary": cluster.dsn()}}))
    router.close()
    with pytest.raises(RouterClosed):
        apply(router, versions={"v2": {"primary": cluster.dsn()}})


def test_a_change_of_one_cluster_touches_no_other_and_no_lane(cluster: PostgresCluster) -> None:
    standby = cluster.standbys[0]
    with Proxy(standby.host, standby.port) as proxy:
        replica = make_conninfo(standby.dsn(), host=proxy.host, port=str(proxy.port))
        versions = {"v1": {"primary": cluster.dsn(), "replicas": [replica]}, "v2": cluster.version_settings()}
        tenants = {f"t{number}": {"version": "v1", "row": "app.tenant"} for number in range(3)}
        with Router(settings(**OPTIONS, versions=versions, tenants=tenants)) as router:

            def all_are_up() -> bool:
                for version in versions:
                    host(router, version, read_only=True)
                return {node.state for version in router.stats().versions for node in version.nodes} == {"up"}

            eventually(all_are_up)
            for version in versions:  # what was worked out before the last of them was probed is worked out anew
                host(router, version, read_only=True)
            for tenant in tenants:
                with router.connection(tenant=tenant, read_only=True):
                    pass

            def pool_sets(version: str) -> list[PoolSetView]:
                return [one for one in router._snapshot().pool_sets if one.cluster == version]

            before, routes = router._snapshot(), [one.route for one in pool_sets("v2")]
            proxy.stop()

            def is_down() -> bool:
                return "down" in {node.state for node in router.stats().versions[0].nodes}

            def is_stale() -> bool:  # once it is known to be down
                return any(one.is_stale for one in pool_sets("v1"))

            eventually(is_down)
            eventually(is_stale)
            assert [(one.route, one.is_stale) for one in pool_sets("v2")] == [(route, False) for route in routes]
            assert router._snapshot().readers == before.readers
            for tenant in tenants:
                with router.connection(tenant=tenant, read_only=True) as connection:
                    assert port(connection) == cluster.primary.port
            assert router._snapshot().readers == before.readers
