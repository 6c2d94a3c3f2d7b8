"""What changes from one topology to the next."""

from __future__ import annotations

from typing import Any

from router.core.plan import plan, serves
from router.core.policies import PoolPolicy, TenantPolicy
from router.core.resolve import resolve
from router.core.topology import Cluster, Home, Node, Server, Tenancy, Topology


def cluster(name: str, *hosts: str, **policy: Any) -> Cluster:
    return Cluster(name, tuple(Node(Server(host, 5432), (("host", host),)) for host in hosts), PoolPolicy(**policy))


BEFORE = Topology(
    {"v1": cluster("v1", "a", "b"), "v2": cluster("v2", "c")},
    {"live": "v1", "next": "v2"},
    default_version="live",
    tenancy=Tenancy({"acme": Home(("v1",), database="acme"), "globex": Home(database="globex")}),
)


def test_nothing_changes() -> None:
    found = plan(BEFORE, BEFORE._replace(versions=dict(BEFORE.versions)))
    assert found.is_empty
    assert not any(found[2:])


def test_versions_come_go_and_change_by_value() -> None:
    versions = {"v2": cluster("v2", "c", max_size=7), "v3": cluster("v3", "d")}
    found = plan(BEFORE, BEFORE._replace(versions=versions, aliases={"live": "v3", "next": "v2"}))
    assert (set(found.added), set(found.removed), set(found.changed)) == ({"v3"}, {"v1"}, {"v2"})
    assert found.redirected == {"", "live", "next"}
    assert not found.is_empty


def test_what_a_tenant_changes_is_told_from_what_all_do() -> None:
    assert BEFORE.tenancy is not None
    homes = {"acme": Home(("v2",), database="acme"), "initech": Home()}
    found = plan(BEFORE, BEFORE._replace(tenancy=BEFORE.tenancy._replace(homes=homes)))
    assert found.tenants == {"acme", "globex", "initech"}
    assert (found.rules, found.limits) == (False, False)
    found = plan(BEFORE, BEFORE._replace(tenancy=BEFORE.tenancy._replace(template=Home()), max_connections=5))
    assert (found.tenants, found.rules, found.limits) == (frozenset(), True, True)
    assert plan(BEFORE, BEFORE._replace(tenancy=None)).tenants == {"acme", "globex"}


def test_what_requests_would_use_no_more() -> None:
    after = BEFORE._replace(versions={**BEFORE.versions, "v1": cluster("v1", "a")}, aliases={"live": "v2"})
    v1, v2 = resolve(BEFORE, "live"), resolve(BEFORE, "v2")
    assert (serves(after, v1, None, listed=True), serves(after, v2, None, listed=True)) == (False, True)
    acme, globex = resolve(BEFORE, None, "acme"), resolve(BEFORE, "v2", "globex")
    assert (serves(after, acme, None, listed=True), serves(after, globex, None, listed=True)) == (False, True)
    assert not serves(BEFORE._replace(tenancy=Tenancy()), globex, None, listed=True)


def test_a_home_that_a_directory_tells() -> None:
    home = Home(("v1",), database="x")
    target = resolve(BEFORE, None, "initech", home)
    assert serves(BEFORE, target, home, listed=False)
    assert not serves(BEFORE, target, None, listed=False)
    assert not serves(BEFORE, target, home._replace(versions=("v2",)), listed=False)
    assert not serves(BEFORE, target, home._replace(policy=TenantPolicy(max_connections=3)), listed=False)


def test_a_pool_that_tenants_share_goes_with_its_cluster_only() -> None:
    home = Home(schema=("{tenant}",), policy=TenantPolicy("shared"))
    target = resolve(BEFORE, "v1", "initech", home)
    assert serves(BEFORE, target, None, listed=False)
    assert not serves(BEFORE._replace(versions={"v1": cluster("v1", "a")}), target, home, listed=False)
