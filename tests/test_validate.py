"""What is wrong with a topology as a whole, whoever made it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import RouterSettings
from router.core.errors import ConfigError
from router.core.faults import Fault, KeyPath, dotted
from router.core.policies import DirectoryPolicy, HealthPolicy, PoolPolicy, TenantPolicy
from router.core.resolve import home_of, resolve, versions_of
from router.core.topology import Cluster, Home, Node, Role, Server, Tenancy, Topology
from router.core.validate import faults, resolved, tenant_faults

if TYPE_CHECKING:
    from collections.abc import Sequence


def cluster(name: str, *hosts: str, roles: Sequence[Role | None] = (), **pool: Any) -> Cluster:
    found = tuple(
        Node(Server(host, 5432), (("host", host), ("user", "app")), role)
        for host, role in zip(hosts or (name,), roles or [None] * len(hosts or (name,)), strict=True)
    )
    return Cluster(name, found, PoolPolicy(**pool))


V1, V2 = cluster("v1"), cluster("v2")
TWO = Topology({"v1": V1, "v2": V2}, {"live": "v1"})
APART = Home(schema=("{tenant}",))


def told(topology: Topology, **values: Any) -> list[str]:
    return [f"{dotted(path)}: {text}" for path, text in faults(topology, **values)]


def with_tenants(*, topology: Topology = TWO, **homes: Home) -> Topology:
    return topology._replace(tenancy=Tenancy(homes))


def test_nothing_is_wrong() -> None:
    assert faults(TWO) == []
    assert faults(TWO._replace(default_version="live", tenancy=Tenancy({"a": APART}, APART))) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"versions": {}, "aliases": {}, "default_version": "v1"}, ["versions: no version is given"]),
        ({"default_version": "v11"}, ["default_version: names no version or alias; did you mean v1?"]),
        ({"aliases": {"a": "b", "b": "c", "c": "b"}}, ["aliases.b: leads back to itself: b → c → b"]),
        ({"aliases": {"v1": "v2"}}, ["aliases.v1: is also the key of a version: one of them needs another"]),
        ({"aliases": {"a": "x.y"}}, ["aliases.a: names no version or alias; known: v1, v2, a"]),
        ({"health": HealthPolicy(ban=20)}, ["health.ban_max: must be at least ban, which is 20; it is 15.0"]),
        (
            {"versions": {"v1": cluster("v1", min_size=3, max_size=2)}},
            ["versions.v1.pool.max_size: must be at least min_size, which is 3; it is 2"],
        ),
        (
            {"versions": {"v1": cluster("v1", "a", "b", roles=[Role.REPLICA] * 2)}},
            ["versions.v1: needs `primary`, or `nodes` if the roles are to be discovered"],
        ),
        ({"versions": {"v1": cluster("v1", "a", "b", "a", "a")}}, ["versions.v1: lists a:5432 twice"]),
        (
            {"versions": {"v1": V1, "tenant x": V2}},
            ['versions."tenant x": begins like the names of tenants\' own servers: give it another key'],
        ),
        (
            {"tenancy": Tenancy(directory=DirectoryPolicy("live")), "max_connections": 1, "max_pools": 1},
            [
                f"directory: needs a connection of its own to listen, and {limit} is 1: it must be at least 2"
                for limit in ("max_connections", "max_pools")
            ],
        ),
        (
            {"tenancy": Tenancy({"a": APART}, policy=TenantPolicy("shared", min_size=1))},
            ['tenancy: min_size keeps connections open for one tenant alone, which needs pooling = "dedicated"'],
        ),
        (
            {"tenancy": Tenancy(template=Home(schema=("x",)))},
            ["tenant_template: has no {tenant} anywhere, and no row: all tenants would share one place"],
        ),
    ],
)
def test_what_is_wrong_with_a_topology(changes: dict[str, Any], expected: list[str]) -> None:
    assert told(TWO._replace(**changes)) == expected


@pytest.mark.parametrize(
    ("home", "expected"),
    [
        (APART, []),
        (Home(("v11",), schema=("x",)), [(("version",), "names no version or alias; did you mean v1?")]),
        (Home(schema=("pg_temp",)), [((), "'pg_temp' is not a schema of a tenant's own")]),
        (
            APART._replace(policy=TenantPolicy(max_connections=1, min_size=2)),
            [((), "min_size is 2, more than max_connections, which is 1")],
        ),
        (
            APART._replace(policy=TenantPolicy(min_size=11)),
            [((), "min_size is 11, more than pool.max_size, which is 10")],
        ),
        (
            Home(cluster=cluster("own", "x", "x", roles=[Role.REPLICA] * 2), user="u"),
            [
                (
                    ("replicas",),
                    "is given without primary: add it, or list the servers as nodes if their roles are unknown",
                ),
                ((), "lists x:5432 twice"),
                (("user",), "cannot be combined with servers of its own: write it in their connection strings instead"),
            ],
        ),
    ],
)
def test_one_tenant_is_judged_as_if_it_were_listed(home: Home, expected: list[tuple[KeyPath, str]]) -> None:
    assert tenant_faults(resolved(TWO), "acme", home) == expected
    listed = faults(with_tenants(acme=home))
    assert listed == [Fault(("tenants", "acme", *path), text) for path, text in expected]


def test_what_depends_on_something_unread_is_not_judged() -> None:
    topology = TWO._replace(
        default_version="v3", tenancy=Tenancy({"A": Home(("v3",)), "B": Home(("v44",), role="r")}, pattern="[a-z]")
    )
    assert [dotted(fault.path) for fault in faults(topology)] == [
        *("default_version", "tenants.A", "tenants.A", "tenants.A.version", "tenants.B", "tenants.B.version"),
    ]
    unread: list[KeyPath] = [("versions", "v3", "primary", "dsn"), ("tenants", "A", "role"), ("tenancy", "pattern")]
    assert told(topology, unread=unread) == ["tenants.B.version: names no version or alias; known: v1, v2, v3, live"]
    assert told(topology._replace(tenancy=None), unread=[("aliases",)]) == []
    small = with_tenants(topology=Topology({"v1": V1}), a=APART._replace(policy=TenantPolicy(min_size=11)))
    assert len(faults(small)) == 1
    assert faults(small, unread=[("versions", "v1", "pool", "max_size")]) == []


def test_what_is_wrong_whatever_else_could_not_be_read_is_told() -> None:
    topology = Topology(
        {"v1": cluster("v1", "a", "a", roles=[Role.REPLICA] * 2)},
        {"v2": "v1"},
        tenancy=Tenancy({"a": Home(user="u", cluster=cluster("own"))}, Home()),
    )
    unread: list[KeyPath] = [("versions", "v1", "pool", "timeout"), ("versions", "v2"), ("tenants", "a", "role")]
    assert [dotted(fault.path) for fault in faults(topology, unread=unread)] == [
        *("versions.v1", "versions.v1", "aliases.v2", "tenants.a.user", "tenant_template"),
    ]
    assert [dotted(fault.path) for fault in faults(Topology({}, tenancy=topology.tenancy))] == [
        *("versions", "tenants.a.user", "tenant_template"),
    ]


def test_tenants_in_one_place_are_told_once_all_else_is_right() -> None:
    topology = with_tenants(a=Home(schema=("x",)), b=Home(schema=("x",)))
    assert told(topology) == ["tenants.b: lives in the same place as tenant 'a': give one of them another home"]
    assert told(topology, unread=[("pool", "timeout")]) == []
    by_template = TWO._replace(tenancy=Tenancy({"a": Home(schema=("b",))}, APART))
    assert told(by_template) == [
        "tenants.a: lives in the same place that tenant_template gives 'b': move it, or list both"
    ]
    assert told(by_template, directory=True) == []


NAMES = st.sampled_from(["v1", "v2", "v3", "live", "next"])
PLACED = st.sampled_from(["", "x", "{tenant}", "{version}_{tenant}", "public", "y" * 64])
HOMES = st.builds(
    Home,
    st.lists(NAMES, max_size=2).map(tuple),
    st.none() | st.sampled_from([cluster("own", "a", "b"), cluster("own", "c", roles=[Role.REPLICA])]),
    schema=PLACED.map(lambda name: (name,) if name else ()),
    role=PLACED,
    policy=st.builds(TenantPolicy, st.sampled_from(["dedicated", "shared"]), min_size=st.sampled_from([0, 1, 11])),
)
TOPOLOGIES = st.builds(
    Topology,
    st.dictionaries(st.sampled_from(["v1", "v2"]), st.sampled_from([V1, V2, cluster("v", "a", "a")]), max_size=2).map(
        lambda found: {key: each._replace(name=key) for key, each in found.items()}
    ),
    st.dictionaries(NAMES, NAMES, max_size=3),
    st.none() | NAMES,
    tenancy=st.none() | st.builds(Tenancy, st.dictionaries(st.sampled_from(["a", "b", "x"]), HOMES, max_size=3)),
)


@given(topology=TOPOLOGIES)
def test_what_has_no_fault_can_be_resolved(topology: Topology) -> None:
    if faults(topology):
        return
    topology = resolved(topology)
    for name in filter(None, [*topology.versions, *topology.aliases, topology.default_version]):
        assert resolve(topology, name).cluster.nodes
    for tenant in topology.tenancy.homes if topology.tenancy else ():
        for version in versions_of(topology, home_of(topology, tenant)):
            assert resolve(topology, version, tenant).cluster.nodes


def test_the_settings_tell_what_is_wrong_by_itself_and_together_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        RouterSettings(
            versions={"v1": {"primary": "host=db1", "pool": {"max_size": 0}}, "v2": {"nodes": "host=a,a"}},
            aliases={"live": 5, "next": "live", "old": "v11"},
            default_version="live",
            tenants={
                "a": {"schema": "x", "min_size": 99},
                "b": {"schemma": "y"},
                "c": {"version": "v22", "role": ""},
                "d": {"min_size": -1},
            },
        )
    assert sorted(caught.value.problems) == [
        "argument: aliases.live: must be a valid string",
        "argument: aliases.old: names no version or alias; did you mean v1?",
        "argument: tenants.a: min_size is 99, more than pool.max_size, which is 10",
        "argument: tenants.b.schemma: unknown key; did you mean schema?",
        "argument: tenants.c.role: is empty: leave it out",
        "argument: tenants.c.version: names no version or alias; did you mean v2?",
        "argument: tenants.d.min_size: must be greater than or equal to 0, not -1",
        (
            "argument: tenants.d: has nothing that separates it from other tenants: it needs a database, "
            "user, schema, role "
            "or row, or servers of its own (primary or nodes)"
        ),
        "argument: versions.v1.pool.max_size: must be greater than or equal to 1, not 0",
        "argument: versions.v2: lists a:5432 twice",
    ]
