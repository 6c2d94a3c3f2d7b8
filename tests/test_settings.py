from __future__ import annotations

import copy
import gc
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import textwrap
import time
import tomllib
import traceback
import tracemalloc
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import ValidationError

from router.core.errors import ConfigError
from router.core.faults import quoted
from router.core.policies import DirectoryPolicy, HealthPolicy, PoolPolicy, ReadPolicy, TenantPolicy
from router.core.topology import Cluster, Home, Node, Role, Secrets, Server, Tenancy, Topology
from router.settings import RouterSettings, TenantSettings, dsn
from router.settings.dsn import Dsn
from router.settings.servers import SERVERS
from router.settings.variables import RESERVED
from tests.support import short_and_long
from tools import generate

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = generate.ROOT / "config"
CANARY = "hunter2/canary"  # the "/" and what is after it end a password that is not percent-encoded
ENCODED = "hunter2%2Fcanary"
DEFAULT_HOST = dsn.socket_directory()


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the router or of libpq, and an empty working directory."""
    for name in [name for name in os.environ if name.upper().startswith(("ROUTER_", "PG", "DATABASE_URL"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_


def problems(**values: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        RouterSettings(**values)
    return list(caught.value.problems)


def nodes(**version: Any) -> tuple[Node, ...]:
    return RouterSettings(versions={"v1": version}).topology().versions["v1"].nodes


def servers(dsn: str) -> list[str]:
    return [str(node.server) for node in nodes(nodes=dsn)]


V1 = {"v1": {"primary": "postgresql://app@db1/app"}}


# ----------------------------------------------------------------------------------------------------------- models


def test_the_policies_are_the_topologys_own() -> None:
    settings = RouterSettings(versions=V1)
    assert (settings.pool, settings.read, settings.health) == (PoolPolicy(), ReadPolicy(), HealthPolicy())
    topology = settings.topology()
    bare = Topology(versions=topology.versions, default_version="v1")  # the only one
    limits = attrgetter("max_connections", "max_connections_per_server", "max_pools")
    assert limits(topology) == limits(bare)
    others = attrgetter("health", "tokens", "aliases", "tenancy")
    assert others(topology) == others(bare)


def test_every_key_of_a_policy_is_read() -> None:
    pool = PoolPolicy(1, 2, 3.0, 4, 5, 6.0, 7.0, 8.0)
    read = ReadPolicy("random", "wait", autocommit=False)
    health = HealthPolicy(1.0, 2.0)
    as_tables = RouterSettings(versions=V1, pool=asdict(pool), read=asdict(read), health=asdict(health))
    as_values = RouterSettings(versions=V1, pool=pool, read=read, health=health)
    assert as_tables == as_values
    assert (as_values.pool, as_values.read, as_values.health) == (pool, read, health)
    assert as_values.topology().versions["v1"].pool == pool
    assert as_values.topology().versions["v1"].read == read
    assert as_values.topology().health == health


def test_the_limits_of_the_process() -> None:
    topology = RouterSettings(versions=V1, max_connections=9, max_connections_per_server=8, max_pools=7).topology()
    assert (topology.max_connections, topology.max_connections_per_server, topology.max_pools) == (9, 8, 7)


def test_a_version_differs_key_by_key() -> None:
    settings = RouterSettings(
        versions={**V1, "v2": {"primary": "host=db2", "pool": {"max_size": 30}, "read": {"fallback": "error"}}},
        pool={"timeout": 9, "max_size": 20},
        read={"balance": "random"},
    )
    v1, v2 = settings.topology().versions.values()
    assert (v1.pool, v1.read) == (PoolPolicy(timeout=9, max_size=20), ReadPolicy(balance="random"))
    assert (v2.pool, v2.read) == (PoolPolicy(timeout=9, max_size=30), ReadPolicy(balance="random", fallback="error"))


def test_settings_are_frozen_and_can_be_copied() -> None:
    settings = RouterSettings(versions=V1)
    with pytest.raises(ValidationError):
        settings.max_connections = 5  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings == copy.deepcopy(settings)  # noqa: S301
    assert RouterSettings(**settings.model_dump()).topology() == settings.topology()
    assert RouterSettings(versions=settings.versions).topology() == settings.topology()


def test_roles_order_and_weights() -> None:
    primary, first, second = nodes(primary="host=p", replicas=["host=r1", {"dsn": "host=r2", "weight": 2}])
    assert [node.role for node in (primary, first, second)] == [Role.PRIMARY, Role.REPLICA, Role.REPLICA]
    assert [node.server.host for node in (primary, first, second)] == ["p", "r1", "r2"]
    assert [node.weight for node in (primary, first, second)] == [1.0, 1.0, 2.0]
    assert [node.role for node in nodes(nodes=["host=a", "host=b"])] == [None, None]


@pytest.mark.parametrize("pooler", ["session", "transaction"])
def test_behind_a_pooler_a_server_is_that_of_a_database(pooler: str) -> None:
    first, second = nodes(
        primary={"dsn": "host=p user=app dbname=one", "pooler": pooler},
        replicas=[{"dsn": "host=p user=two", "pooler": pooler}],
    )
    assert (first.server, second.server) == (Server("p", 5432, "one"), Server("p", 5432, "two"))
    assert {first.pooler, second.pooler} == {pooler}


def test_short_forms() -> None:
    long = nodes(nodes=[{"dsn": "postgresql://h1,h2/app"}])
    settings = RouterSettings(versions={"v1": "postgresql://h1,h2/app"})
    assert settings.topology().versions["v1"].nodes == long
    assert nodes(nodes={"dsn": "postgresql://h1,h2/app"}) == long
    assert nodes(nodes=["postgresql://h1/app", "postgresql://h2/app"]) == long
    assert nodes(nodes=" postgresql://h1/app\n postgres://h2/app ") == long
    assert [node.server.host for node in nodes(primary="host=p", replicas="host=r dbname=app")] == ["p", "r"]


def test_aliases_lead_to_versions() -> None:
    settings = RouterSettings(
        versions=V1, aliases={"live": "stable", "stable": "v1"}, default_version="live", max_connections=7
    )
    topology = settings.topology()
    assert dict(topology.aliases) == {"live": "v1", "stable": "v1"}
    assert (topology.default_version, topology.max_connections) == ("live", 7)


@pytest.mark.parametrize("key", ["v1", "2026-11", "db.eu", "Blue", "a b", "ü", "x/y"])
def test_a_key_may_be_any_text(key: str) -> None:
    settings = RouterSettings(versions={key: "host=h"}, aliases={f"{key}-alias": key})
    assert list(settings.topology().versions) == [key]
    assert settings.topology().versions[key].name == key


@pytest.mark.parametrize("key", ["", " v1", "v1\t", "a\nb", "a\x00b"])
def test_what_is_no_key(key: str) -> None:
    (problem,) = problems(versions={key: "host=h"})
    assert problem == (
        f"argument: versions.{quoted(key)}: "
        "is not a valid key: it needs at least one character, only printable ones, and no space around it"
    )


# -------------------------------------------------------------------------------------------------------------- tenants

BESIDE = "cannot be combined with primary or replicas: use those if the roles are fixed, else nodes alone"
TWO = {**V1, "v2": {"nodes": "host=db2"}}


def tenancy(**values: Any) -> Tenancy:
    settings = RouterSettings(versions=TWO, aliases={"live": "v1"}, **values)
    topology = settings.topology()
    assert RouterSettings(**settings.model_dump()).topology() == topology
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301
    assert topology.tenancy is not None
    return topology.tenancy


def home(**tenant: Any) -> Home:
    return tenancy(tenants={"acme": tenant}).homes["acme"]


def test_there_are_tenants_if_any_table_of_theirs_is_there() -> None:
    assert RouterSettings(versions=V1).topology().tenancy is None
    assert RouterSettings(versions=V1, tenants={}).topology().tenancy is None
    assert tenancy(tenancy={}) == tenancy(directory={}) == Tenancy()
    assert tenancy(tenants={"acme": {"schema": "acme"}}).template is None
    assert tenancy(tenant_template={"schema": "{tenant}"}).homes == {}
    assert tenancy(tenant_template={"row": "app.tenant"}).template == Home(row="app.tenant")


def test_every_way_to_keep_apart() -> None:
    assert home(database="app_{tenant}") == Home(database="app_{tenant}")
    assert home(user="{tenant}") == Home(user="{tenant}")
    assert home(schema="acme") == Home(schema=("acme",))
    assert home(schema=["acme", "public"]) == Home(schema=("acme", "public"))
    assert home(role="acme") == Home(role="acme")
    assert home(row="app.tenant") == Home(row="app.tenant")
    assert home(version="live", row="my.app.tenant") == Home(("live",), row="my.app.tenant")
    assert home(version=["v2", "live"], row="x.y", schema="{version}") == Home(
        ("v2", "live"), row="x.y", schema=("{version}",)
    )
    assert home(version=None, schema=["acme"], database=None) == Home(schema=("acme",))


def test_servers_of_a_tenants_own() -> None:
    settings = RouterSettings(
        versions=TWO,
        pool={"max_size": 7},
        read={"fallback": "wait"},
        tenants={
            "acme": {
                "primary": {"dsn": f"host=p password={CANARY}", "weight": 2},
                "replicas": "host=r",
                "version": "v1",
            },
            "globex": "postgresql://a-{tenant},b-{tenant}/app_%7Btenant%7D",
        },
        tenant_template={"nodes": "host=db-{tenant},db-{version} dbname={tenant}", "schema": "x"},
    )
    found = settings.topology().tenancy
    assert found is not None
    policies = (PoolPolicy(max_size=7), ReadPolicy(fallback="wait"))
    acme, globex = (found.homes[key].cluster for key in ("acme", "globex"))
    assert acme == Cluster("tenant acme", nodes(**settings.tenants["acme"].model_dump(include={*SERVERS})), *policies)
    assert [(node.role, node.server.host) for node in acme.nodes] == [(Role.PRIMARY, "p"), (Role.REPLICA, "r")]
    assert password_of(acme.nodes[0]) == CANARY
    assert globex == Cluster("tenant globex", nodes(nodes="host=a-{tenant},b-{tenant} dbname=app_{tenant}"), *policies)
    assert found.template == Home(
        cluster=Cluster("tenant", nodes(nodes="host=db-{tenant},db-{version} dbname={tenant}"), *policies),
        schema=("x",),
    )
    assert "hunter2" not in everything_shown(settings) + everything_shown(found) + everything_shown(
        settings.model_dump()
    )


def test_what_holds_for_all_tenants_and_what_for_one() -> None:
    general = {"pattern": "[A-Z]+", "pooling": "shared", "hygiene": "full", "max_connections": 5, "min_size": 0}
    own = {"pooling": "dedicated", "hygiene": "transaction", "max_connections": 3, "min_size": 2}
    found = tenancy(
        tenancy=general,
        tenants={"A": {"schema": "a"}, "B": {"schema": "b", **own}, "C": {"schema": "c", "hygiene": "transaction"}},
        tenant_template={"schema": "{tenant}", **own},
    )
    assert (found.pattern, found.policy) == ("[A-Z]+", TenantPolicy("shared", "full", 5, 0))
    assert found.homes["A"].policy == found.policy
    assert found.homes["B"].policy == TenantPolicy("dedicated", "transaction", 3, 2)
    assert found.homes["C"].policy == TenantPolicy("shared", "transaction", 5, 0)
    assert found.template is not None
    assert found.template.policy is found.homes["B"].policy


def test_tenants_that_are_kept_apart_alike_share_one_policy() -> None:
    found = tenancy(tenants={f"t{number}": {"row": "a.b", "max_connections": 4} for number in range(9)})
    assert len({id(home.policy) for home in found.homes.values()}) == 1


@pytest.mark.parametrize("many", short_and_long(1000, 10_000))
def test_ten_thousand_tenants_cost_little(write: Callable[[str, str], Path], many: int) -> None:
    path = write(
        "r.toml",
        "[versions]\nv1 = 'host=db1'\n"
        + "".join(f"[tenants.t{number}]\nversion = 'v1'\nschema = 'tenant_{number}'\n" for number in range(many)),
    )
    RouterSettings.load(path)  # whatever is imported or cached the first time
    gc.collect()
    tracemalloc.start()
    try:
        settings = RouterSettings.load(path)
        topology = settings.topology()
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert topology.tenancy is not None
    assert len(topology.tenancy.homes) == many
    assert held < many * 1500


def test_the_directory() -> None:
    assert tenancy(directory={"version": "live", "table": "x.y", "ttl": 5, "unknown_ttl": 0}).directory == (
        DirectoryPolicy("live", "x.y", 5.0, 0.0)
    )
    # What a template leaves open the directory says.
    assert tenancy(directory={"version": "v1"}, tenant_template={"version": "v2"}).template == Home(("v2",))


APART = (
    "has nothing that separates it from other tenants: it needs a database, user, schema, role or "
    "row, or servers of its "
    "own (primary or nodes)"
)
NOT_OURS = "has a placeholder that is neither {tenant} nor {version}"
IN_SECRET = "has {tenant} or {version} in its password or another secret, where it is not replaced: give each tenant a"
OWN_SERVERS = "cannot be combined with servers of its own: write it in their connection strings instead"


@pytest.mark.parametrize(
    ("tenant", "expected"),
    [
        ({}, [f": {APART}"]),
        ({"version": "v1", "pooling": "shared"}, [f": {APART}"]),
        ({"schema": []}, [f": {APART}"]),
        ({"schema": "a", "version": "v22"}, [".version: names no version or alias; did you mean v2?"]),
        ({"schema": "a", "version": ["v1", "x"]}, [".version: names no version or alias; known: v1, v2, live"]),
        ({"schema": "a", "version": 5}, [".version: must be a string or a list"]),
        ({"schema": ""}, [".schema[0]: is empty: leave it out"]),
        ({"schema": ["a", ""]}, [".schema[1]: is empty: leave it out"]),
        ({"schema": 5}, [".schema: must be a string or a list"]),
        ({"role": ""}, [".role: is empty: leave it out"]),
        ({"database": ""}, [".database: is empty: leave it out"]),
        ({"user": ""}, [".user: is empty: leave it out"]),
        ({"schema": "a\0b"}, [".schema[0]: contains a NUL character, which no name may have"]),
        ({"schema": "{tennant}"}, [f".schema[0]: {NOT_OURS}"]),
        ({"database": "{}"}, [f".database: {NOT_OURS}"]),
        ({"role": "{tenant}_{ version }"}, [f".role: {NOT_OURS}"]),
        ({"user": "{tenant!r}"}, [f".user: {NOT_OURS}"]),
        ({"primary": "host=db-{customer}"}, [f".primary: {NOT_OURS}"]),
        ({"primary": "host=a", "replicas": ["host=b", "host=c dbname={x}"]}, [f".replicas: {NOT_OURS}"]),
        ("postgresql://a/%7Bx%7D", [f".nodes: {NOT_OURS}"]),
        ("host=a port={tenant}", [".nodes[0].dsn: has a port that is not a number from 1 to 65535"]),
        ({"nodes": "host=a-{tenant},a-{tenant}"}, [": lists a-{tenant}:5432 twice"]),
        (f"postgresql://app:{ENCODED}@db/{{x}}", [f".nodes: {NOT_OURS}"]),
        ({"primary": {"dsn": "host=a", "password_file": "/run/{customer}"}}, [f".primary: {NOT_OURS}"]),
        ({"primary": {"dsn": "host=a", "password": f"{CANARY}{{tenant}}"}}, [f".primary: {IN_SECRET}"]),
        (f"postgresql://app:{ENCODED}%7Bversion%7D@db", [f".nodes: {IN_SECRET}"]),
        ({"primary": "host=p", "replicas": f"host=a sslpassword={CANARY}{{tenant}}"}, [f".replicas: {IN_SECRET}"]),
        (
            {"database": f"postgresql://app:{ENCODED}@db"},
            [".database: is not a name but a connection string, which goes"],
        ),
        ({"row": "tenant"}, [".row: must be the name of a setting with a dot in it, such as app.tenant"]),
        ({"row": "app.{tenant}"}, [".row: must be the name of a setting with a dot in it, such as app.tenant"]),
        ({"row": "app.tenant=x -c role"}, [".row: must be the name of a setting with a dot in it, such as app.tenant"]),
        ({"row": "app.tenant\n"}, [".row: must be the name of a setting with a dot in it, such as app.tenant"]),
        ({"nodes": "host=a", "database": "x"}, [f".database: {OWN_SERVERS}"]),
        ({"primary": "host=a", "user": "x", "database": "y"}, [f".database: {OWN_SERVERS}", f".user: {OWN_SERVERS}"]),
        ({"primary": "host=a", "nodes": "host=b"}, [f".nodes: {BESIDE}"]),
        ({"replicas": "host=a"}, [".replicas: is given without primary: add it, or list the servers as nodes"]),
        ({"schema": "a", "scema": "b"}, [".scema: unknown key; did you mean schema?"]),
        ({"schema_": "a"}, [".schema_: unknown key; did you mean schema?"]),
        ({"schema": "a", "pooling": "both"}, [".pooling: must be 'dedicated' or 'shared'"]),
        ({"schema": "a", "max_connections": 0}, [".max_connections: must be greater than or equal to 1, not 0"]),
        ({"schema": "a", "min_size": -1}, [".min_size: must be greater than or equal to 0, not -1"]),
        (
            {"schema": "a", "min_size": 1, "pooling": "shared"},
            [': min_size keeps connections open for one tenant alone, which needs pooling = "dedicated"'],
        ),
        (
            {"schema": "a", "min_size": 3, "max_connections": 2},
            [": min_size is 3, more than max_connections, which is 2"],
        ),
        ({"schema": "a", "min_size": 11}, [": min_size is 11, more than pool.max_size, which is 10"]),
        ({"nodes": "host=a", "min_size": 11}, [": min_size is 11, more than pool.max_size, which is 10"]),
        ({"schema": f"{'x' * 60}{{tenant}}"}, [": the name of its schema is longer than 63 bytes"]),
        ({"version": "v1", "role": f"{'x' * 60}_{{version}}"}, []),
        ({"role": f"{'x' * 61}_{{version}}"}, [": the name of its role is longer than 63 bytes"]),
        ({"schema": "pg_catalog"}, [": 'pg_catalog' is not a schema of a tenant's own"]),
        (f"host=a dbname={'x' * 60}{{tenant}}", [": the name of its database is longer than 63 bytes"]),
        (5, [": must be a connection string (of nodes whose roles are discovered) or a table"]),
    ],
)
def test_what_is_wrong_in_a_tenant(tenant: Any, expected: list[str]) -> None:
    values = {"versions": TWO, "aliases": {"live": "v1"}, "tenants": {"acme": tenant, "globex": {"schema": "globex"}}}
    if not expected:
        RouterSettings(**values)
        return
    found = problems(**values)
    assert len(found) == len(expected)
    for line, text in zip(found, expected, strict=True):
        assert line.startswith(f"argument: tenants.acme{text}")
        assert "hunter2" not in line


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"tenants": ["acme"]}, ["tenants: must be a table"]),
        ({"tenancy": {"pattern": "("}}, ["tenancy.pattern: is not a regular expression: missing ), unterminated"]),
        ({"tenancy": {"max_connections": 0}}, ["tenancy.max_connections: must be greater than or equal to 1, not 0"]),
        (
            {"tenancy": {"min_size": 1, "pooling": "shared"}, "tenants": {"a": {"row": "x.y"}}},
            ["tenancy: min_size keeps"],
        ),
        (
            {"tenant_template": {"version": "v1"}},
            ["tenant_template: has no {tenant} anywhere, and no row: all tenants"],
        ),
        ({"tenant_template": {"schema": "{version}"}}, ["tenant_template: has no {tenant} anywhere, and no row: all"]),
        (
            {"tenant_template": "host=db-{version}"},
            ["tenant_template: has no {tenant} anywhere, and no row: all tenants"],
        ),
        ({"tenant_template": {"row": "x"}}, ["tenant_template.row: must be the name of a setting with a dot in it"]),
        ({"tenant_template": {"schema": "{tenant}", "min_size": 11}}, ["tenant_template: min_size is 11, more than"]),
        (
            {"tenant_template": {"schema": "{tenant}", "version": "v22"}},
            ["tenant_template.version: names no version or alias; did you mean v2?"],
        ),
        ({"directory": {"version": "v22"}}, ["directory.version: names no version or alias; did you mean v2?"]),
        ({"directory": {"ttl": 0}}, ["directory.ttl: must be greater than 0, not 0"]),
        ({"directory": {"unknown_ttl": -1}}, ["directory.unknown_ttl: must be greater than or equal to 0, not -1"]),
        ({"directory": {"table": ""}}, ["directory.table: is empty"]),
        (
            {"versions": {**V1, "tenant x": "host=a"}},
            ['versions."tenant x": begins like the names of tenants\' own servers'],
        ),
        (
            {"tenants": {"Acme": {"version": "v1"}, "b": {"row": "x"}, "c": {"schema": "c", "version": "v22"}, "": {}}},
            [
                'tenants."": is not a valid key: it needs at least one character',
                "tenants.Acme: has nothing that separates it",
                "tenants.Acme: is not a valid tenant key: it must match [a-z0-9][a-z0-9_-]{0,47} (tenancy.pattern)",
                "tenants.b.row: must be the name of a setting",
                "tenants.c.version: names no version or alias; did you mean v2?",
            ],
        ),
    ],
)
def test_what_is_wrong_about_tenants(values: dict[str, Any], expected: list[str]) -> None:
    found = problems(**{"versions": TWO, **values})
    assert len(found) == len(expected)
    for line, text in zip(sorted(found), sorted(expected), strict=True):
        assert line.startswith(f"argument: {text}")


TAKEN = "lives in the same place that tenant_template gives 'y': move it, or list both"


@pytest.mark.parametrize(
    ("template", "tenant"),
    [
        ({"schema": "t_{tenant}"}, {"schema": "t_y"}),
        ({"schema": "t_{tenant}", "version": "v1"}, {"schema": "t_y", "version": ["v2", "live"]}),
        ({"schema": "{version}_{tenant}.{tenant}5"}, {"schema": "{version}_y.y5", "version": "v2"}),
        ({"schema": ["{tenant}", "shared"], "role": "r"}, {"schema": ["y", "shared"], "role": "r"}),
        ({"database": "{tenant}"}, {"database": "y"}),
        ({"user": "u{tenant}"}, {"user": "uy", "pooling": "shared"}),
        ({"role": "{tenant}"}, {"role": "y"}),
        ("host=db-{tenant} dbname=app", {"primary": "host=db-y dbname=app"}),
        ({"nodes": "host=db dbname={tenant}_{version}"}, {"nodes": "host=db dbname=y_{version}"}),
        ({"primary": "host=a dbname={tenant}", "replicas": "host=b"}, {"nodes": ["host=b", "host=a dbname=y"]}),
    ],
)
def test_nobody_who_is_listed_lives_where_the_template_has_another(template: Any, tenant: Any) -> None:
    values = {"versions": TWO, "aliases": {"live": "v1"}, "tenant_template": template}
    [problem] = problems(**values, tenants={"x": tenant})
    assert problem.startswith(f"argument: tenants.x: {TAKEN}")
    RouterSettings(**values, tenants={"y": tenant})
    RouterSettings(**values, tenants={"x": tenant, "y": {"schema": "other", "row": "app.tenant"}})
    RouterSettings(**values, tenants={"x": tenant}, directory={"version": "v1"})  # which knows whether there is a y
    RouterSettings(**values, tenants={"x": tenant}, tenancy={"pattern": "[a-x]"})


@pytest.mark.parametrize(
    ("template", "tenant"),
    [
        ({"schema": "t_{tenant}"}, {"schema": "t_y", "role": "x"}),
        ({"schema": "t_{tenant}"}, {"schema": ["t_y", "shared"]}),
        ({"schema": "t_{tenant}", "version": "v1"}, {"schema": "t_y", "version": "v2"}),
        ({"schema": "{tenant}_{tenant}"}, {"schema": "y_z"}),
        ({"schema": "t_{tenant}"}, {"schema": "t_Y"}),
        ({"schema": "t_{tenant}", "row": "app.tenant"}, {"schema": "t_y", "row": "app.tenant"}),
        ({"row": "app.tenant"}, {"row": "app.tenant"}),
        ({"database": "{tenant}"}, {"database": "app"}),  # no key is a version's own database
        ({"schema": "{tenant}"}, {"schema": "public"}),
        ("host=db-{tenant}", {"primary": "host=db-y", "schema": "y"}),
    ],
)
def test_who_is_apart_from_all_others_is_nobodys_twin(template: Any, tenant: Any) -> None:
    RouterSettings(versions=V1 | {"v2": "host=db2"}, tenants={"x": tenant}, tenant_template=template)


def test_no_two_who_are_listed_live_in_one_place() -> None:
    tenants: dict[str, Any] = {
        "a": {"schema": "one"},
        "b": {"schema": "o{tenant}"},
        "c": {"schema": "one", "version": "v2"},
        "d": {"schema": "one", "role": "d"},
        "e": {"schema": "ob", "version": "v1"},
        "f": {"nodes": "host=x"},
        "g": {"primary": "host=x"},
    }
    text = "lives in the same place as tenant {!r}: give one of them another home"
    assert problems(versions=TWO, tenants=tenants) == [
        f"argument: tenants.{one}: {text.format(other)}" for one, other in (("c", "a"), ("e", "b"), ("g", "f"))
    ]
    one_database = {"v1": "host=a dbname=app", "v2": "host=a dbname=app user=x", "v3": "host=a dbname=other"}
    homes = {key: {"schema": "one", "version": key} for key in one_database}
    homes["v2"]["user"] = homes["v1"]["user"] = "x"
    assert problems(versions=one_database, tenants=homes) == [f"argument: tenants.v2: {text.format('v1')}"]


def test_a_secret_with_braces_is_as_it_is_written() -> None:
    (node,) = home(primary="postgresql://app:%7Bx%7D@db/app").cluster.nodes  # type: ignore[union-attr]
    assert password_of(node) == "{x}"


@pytest.mark.parametrize("many", short_and_long(400, 2000))
def test_many_mistakes_in_many_tenants_are_told_in_time(many: int) -> None:
    began = time.process_time()
    tenants = {f"t{number}": {"schema": "a", "version": "v3", "scema": "x"} for number in range(many)}
    assert len(problems(versions=TWO, tenants=tenants)) == 2 * many
    assert time.process_time() - began < many / 200


# -------------------------------------------------------------------------------------- tenants that a directory knows


def answered(answer: Any, **values: Any) -> Home:
    return RouterSettings(versions=TWO, aliases={"live": "v1"}, **values).home("acme", answer)


def test_a_directory_answers_as_the_settings_are_written() -> None:
    written = {"version": ["live", "v2"], "schema": "x", "hygiene": "full", "max_connections": 2, "row": None}
    expected = Home(("live", "v2"), schema=("x",), policy=TenantPolicy("dedicated", "full", 2, 0))
    assert answered(written) == answered(MappingProxyType(written)) == answered(TenantSettings(**written)) == expected
    servers = ["host=a", {"dsn": "host=b", "password": CANARY}]
    own = answered({"nodes": servers}, pool={"max_size": 4})
    assert own.cluster == Cluster("tenant acme", nodes(nodes=servers), PoolPolicy(max_size=4))


TEMPLATE = {"version": "v1", "database": "app_{tenant}", "schema": ["{tenant}", "public"], "min_size": 1}


def test_what_an_answer_leaves_open_is_as_in_the_template() -> None:
    values = {"tenant_template": TEMPLATE, "tenancy": {"hygiene": "full", "max_connections": 9}}
    policy = TenantPolicy("dedicated", "full", 9, 1)
    schema = ("{tenant}", "public")
    assert answered({}, **values) == Home(("v1",), database="app_{tenant}", schema=schema, policy=policy)
    assert answered({"version": None, "schema": None}, **values) == answered({}, **values)
    assert answered({"version": "v2", "schema": "x", "min_size": 2, "user": "u"}, **values) == Home(
        ("v2",), database="app_{tenant}", user="u", schema=("x",), policy=TenantPolicy("dedicated", "full", 9, 2)
    )
    assert answered({"version": []}, **values).versions == ()
    assert answered(TenantSettings(max_connections=3), **values).policy.max_connections == 3


def test_servers_of_its_own_replace_where_the_template_has_it_live() -> None:
    own = answered({"primary": "host=own"}, tenant_template=TEMPLATE)
    assert (own.database, own.schema, own.versions, own.policy.min_size) == ("", ("{tenant}", "public"), ("v1",), 1)
    assert own.cluster is not None
    assert [node.server.host for node in own.cluster.nodes] == ["own"]
    by_template = {"nodes": "host=db-{tenant}"}
    other = answered({"primary": "host=own", "replicas": "host=r"}, tenant_template=by_template)
    assert other.cluster is not None
    assert [(node.role, node.server.host) for node in other.cluster.nodes] == [
        (Role.PRIMARY, "own"),
        (Role.REPLICA, "r"),
    ]
    same = answered({"schema": "x"}, tenant_template=by_template)
    assert same.cluster is not None
    assert [node.server.host for node in same.cluster.nodes] == ["db-{tenant}"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({}, [f": {APART}"]),
        ({"schema": ""}, [": schema[0]: is empty: leave it out"]),
        ({"schemas": "x"}, [": schemas: unknown key; did you mean schema?"]),
        ({"schema": "x", "version": "v22"}, [": version: names no version or alias; did you mean v2?"]),
        ({"schema": "x", "version": ["v1", "zzz"]}, [": version: names no version or alias; known: v1, v2, live"]),
        ({"schema": "x", "min_size": "many"}, [": min_size: must be a valid integer"]),
        ({"schema": "x", "min_size": 3, "pooling": "shared"}, [": min_size keeps connections open for one tenant"]),
        ({"schema": "x" * 64}, [": the name of its schema is longer than 63 bytes"]),
        ({"schema": "pg_temp"}, [": 'pg_temp' is not a schema of a tenant's own"]),
        ({"nodes": "host=a", "database": "x"}, [f": database: {OWN_SERVERS}"]),
        ({"primary": f"host=a password='{CANARY}"}, [": primary.dsn: is not a connection string that libpq can read"]),
        ({"primary": {"dsn": "host=a", "password": [CANARY]}}, [": primary.password: must be a valid string"]),
        ({"database": f"postgresql://app:{ENCODED}@db"}, [": database: is not a name but a connection string"]),
        ({f"postgresql://app:{ENCODED}@db": 1}, [': "…": unknown key']),
        ([CANARY], [": must be a connection string (of nodes whose roles are discovered) or a table"]),
        (None, [": must be a connection string (of nodes whose roles are discovered) or a table"]),
    ],
)
def test_what_is_wrong_in_an_answer(answer: Any, expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        answered(answer)
    assert len(caught.value.problems) == len(expected)
    for line, text in zip(caught.value.problems, expected, strict=True):
        assert line.startswith(f"directory: tenant 'acme'{text}")
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


# ------------------------------------------------------------------------------------------------- connection strings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://app@db1/app", ["db1:5432"]),
        ("postgresql://db1,db2:5433,db3/app", ["db1:5432", "db2:5433", "db3:5432"]),
        ("host=db1,db2 port=6000", ["db1:6000", "db2:6000"]),
        ("host=db1,db2 port=6000,6001", ["db1:6000", "db2:6001"]),
        ("host=db1,db2 port=', 6001 '", ["db1:5432", "db2:6001"]),
        ("hostaddr=10.0.0.1,10.0.0.2", ["10.0.0.1:5432", "10.0.0.2:5432"]),
        ("host=db,db hostaddr=10.0.0.1,10.0.0.2", ["10.0.0.1:5432", "10.0.0.2:5432"]),
        ("host=db,db2 hostaddr=10.0.0.1,", ["10.0.0.1:5432", "db2:5432"]),
        ("postgresql://[::1]:5433,[2001:db8::1]/app", ["[::1]:5433", "[2001:db8::1]:5432"]),
        ("postgresql://%2Fsockets%2Fpg:5433/app", ["/sockets/pg:5433"]),
        ("host=/sockets/pg", ["/sockets/pg:5432"]),
        ("postgresql://", [f"{DEFAULT_HOST}:5432"]),
        ("host='' port=''", [f"{DEFAULT_HOST}:5432"]),
        ("host=db1,", ["db1:5432", f"{DEFAULT_HOST}:5432"]),
    ],
)
def test_hosts_and_ports_are_split_as_libpq_does(text: str, expected: list[str]) -> None:
    assert servers(text) == expected


@pytest.mark.parametrize(
    "text", ["postgresql://a,b:5433/app", "host=a, port=5433", "host=,a port=,5433", "hostaddr=::1 port=1", "port=7"]
)
def test_libpq_itself_agrees_on_the_first_host(text: str) -> None:
    refused = pq.PGconn.connect_start(make_conninfo(text, sslmode="none").encode())  # before any I/O
    server = Dsn.parse(text).nodes[0][0]
    assert (refused.hostaddr or refused.host).decode() == server.host
    assert int(refused.port or b"5432") == server.port  # where an older libpq takes the default, it says nothing


def test_the_default_host_is_concrete() -> None:
    assert DEFAULT_HOST == "localhost" or Path(DEFAULT_HOST).is_absolute()


def test_libpqs_variables_fill_in(env: Callable[..., None]) -> None:
    env(PGHOST="fromenv", PGPORT="6000")
    assert servers("dbname=app") == ["fromenv:6000"]
    assert servers("host=db1") == ["db1:6000"]
    assert servers("host=db1 port=''") == ["db1:5432"]  # as libpq: written but empty is the built-in default
    env(PGHOST="a,b", PGPORT="1,2")
    assert servers("postgresql:///app") == ["a:1", "b:2"]


def test_every_parameter_reaches_the_node() -> None:
    (node,) = nodes(
        primary="postgresql://app@db1/a%20b?sslmode=verify-full&sslrootcert=/x/ca.pem&options=-c%20work_mem%3D1MB"
    )
    assert node.params == (
        ("dbname", "a b"),
        ("host", "db1"),
        ("options", "-c work_mem=1MB"),
        ("port", "5432"),
        ("sslmode", "verify-full"),
        ("sslrootcert", "/x/ca.pem"),
        ("user", "app"),
    )
    assert (node.server, password_of(node), str(node)) == (Server("db1", 5432), None, "app@db1:5432/a b")


KEYWORDS = sorted(
    {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    - {"host", "hostaddr", "port", "password", "service"}
)


@given(
    params=st.dictionaries(
        st.sampled_from(KEYWORDS), st.text(st.characters(exclude_categories=["C"]), min_size=1), max_size=8
    ),
    hosts=st.lists(
        st.sampled_from(["db1", "db2", "10.0.0.1", "::1", "/sockets/pg", "@abstract"]), min_size=1, unique=True
    ),
    port=st.integers(1, 65535),
    password=st.none() | st.text(st.characters(exclude_categories=["C"]), min_size=1),
)
def test_what_goes_in_comes_out(params: dict[str, str], hosts: list[str], port: int, password: str | None) -> None:
    written = make_conninfo("", **params, host=",".join(hosts), port=port, password=password)
    read = Dsn.parse(written)
    assert read.password == password
    assert [server for server, _ in read.nodes] == [Server(host, port) for host in hosts]
    for host, (_, found) in zip(hosts, read.nodes, strict=True):
        assert {**dict(found), **read.secrets} == {**params, "host": host, "port": str(port)}
        assert read.secrets.keys() == params.keys() & SECRET
        assert list(found) == sorted(found)
        assert conninfo_to_dict(make_conninfo("", **dict(found))) == dict(found)
    assert {key: str(value) for key, value in conninfo_to_dict(str(read)).items()} == {
        **{key: value for key, value in params.items() if key not in SECRET},
        "host": ",".join(hosts),
        "port": str(port),
    }


SECRET = {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"} & {
    option.keyword.decode()
    for option in pq.Conninfo.get_defaults()  # an older libpq knows fewer
}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty; postgresql:// stands for libpq's defaults"),
        ("db1", "is not a connection string: that is a URI which begins with postgresql://, or has the form key=value"),
        ("db1:5432/app", "is not a connection string: that is a URI which begins with postgresql://"),
        ("mysql://app:pw@db1/app?ssl=on", "is not a connection string: that is a URI which begins with postgresql://"),
        ("postgresql://[db1/app", "is not a connection string that libpq can read: "),
        ("hostt=db1", "has an unknown parameter 'hostt'; did you mean 'host'?"),
        ("postgresql://app:pw@db1/app?sslmod=require", "has an unknown parameter 'sslmod'; did you mean 'sslmode'?"),
        ("postgresql://app:pw@db1/app?schema=public", "has an unknown parameter 'schema'"),
        ("postgresql+psycopg://app@db1/app", "names a driver, which libpq does not know: write postgresql://"),
        ("host=db1 port=x", "has a port that is not a number from 1 to 65535"),
        ("host=db1 port=65536", "has a port that is not a number from 1 to 65535"),
        ("host=db1 port=²", "has a port that is not a number from 1 to 65535"),
        ("host=a,b,c port=1,2", "names 3 hosts but 2 ports: give one port for all, or one for each"),
        ("host=a,b hostaddr=::1", "names 2 hosts but 1 addresses in hostaddr: give one for each"),
        ("service=app", "names a service without host and port: "),
        ("service=app host=db1", "names a service without host and port: "),
    ],
)
def test_what_is_wrong_with_a_connection_string(text: str, problem: str) -> None:
    (found,) = problems(versions={"v1": {"nodes": [text]}})
    assert found.startswith(f"argument: versions.v1.nodes[0].dsn: {problem}")


def test_a_service_with_host_and_port() -> None:
    assert servers("service=app host=db1 port=6000") == ["db1:6000"]


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://app:{CANARY}@db1/app",
        f"postgresql://app:{CANARY}?x=1@db1/app",
        "postgresql://app:hunter2?canary=1/x@db1/app",
        "postgresql://db1/app?password=hunter2&canary=1",
        "host=db1 password=hunter2 canary",
        "host=db1 password=hunter2 canary=1",
        "host=db1 password='hunter2canary",
        "postgresql://app:hunter2%zzcanary@db1/app",
        "postgresql://app:hunter2 canary@db1/app",
        "postgresql://app:hunter2canary@[db1/app",
        "postgresql://app:a@hunter2canary@db1/app",
        "postgresql://app:/hunter2canary@db1/app",
        "postgresql://app:a@b/hunter2canary@db1/app",
        "pgsql://app:hunter2canary==@db1/app",
    ],
)
def test_a_badly_quoted_password_is_not_shown(text: str) -> None:
    try:
        found = str(RouterSettings(versions={"v1": text}).versions)
    except ConfigError as error:
        found = str(error)
    assert "hunter2" not in found
    assert "canary" not in found


# ----------------------------------------------------------------------------------------------------------- passwords


def password_of(node: Node) -> str | None:
    return dict(node.secrets.values).get("password")


def test_a_password_is_kept_apart() -> None:
    settings = RouterSettings(versions={"v1": {"primary": f"postgresql://app:{ENCODED}@db1/app"}})
    node = settings.versions["v1"].primary
    assert node is not None
    assert node.password is not None
    assert node.password.get_secret_value() == CANARY
    assert node.dsn == "user=app dbname=app host=db1"
    assert password_of(settings.topology().versions["v1"].nodes[0]) == CANARY


def test_which_password_counts() -> None:
    dsn = "host=db1 password=weak"
    assert password_of(nodes(primary=dsn)[0]) == "weak"
    assert password_of(nodes(primary={"dsn": dsn, "password": "strong"})[0]) == "strong"
    by_file = nodes(primary={"dsn": dsn, "password_file": "/run/secrets/db1"})[0]
    assert (password_of(by_file), by_file.password_file) == (None, Path("/run/secrets/db1"))
    assert [password_of(node) for node in nodes(nodes={"dsn": "host=a,b", "password": "both"})] == ["both", "both"]
    assert problems(versions={"v1": {"primary": {"dsn": dsn, "password": "a", "password_file": "b"}}}) == [
        "argument: versions.v1.primary.password_file: cannot be combined with password: give one of them"
    ]


def everything_shown(value: Any) -> str:
    return "\n".join((repr(value), str(value), f"{value}"))


def test_no_secret_is_shown(
    write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("PYDANTIC_SETTINGS_DEBUG", "1")
    monkeypatch.setenv("ROUTER_VERSIONS__V3__PRIMARY", f"postgresql://app:{ENCODED}@db3/app")
    write(".env", f"ROUTER_VERSIONS__V4__NODES=postgresql://app:{ENCODED}@db4/app\n")
    write("secrets/ROUTER_VERSIONS__V5__PRIMARY__PASSWORD", f"{CANARY}\n")
    others = " ".join(f"{key}={CANARY}" for key in sorted(SECRET - {"password"}))
    settings = RouterSettings(
        _secrets_dir="secrets",
        versions={
            "v1": {"primary": f"host=db1 password={CANARY} {others}"},
            "v2": {"nodes": [{"dsn": "host=a,b", "password": CANARY}]},
            "v5": {"primary": "host=db5"},
        },
    )
    topology = settings.topology()
    assert [password_of(cluster.nodes[0]) for cluster in topology.versions.values()] == [CANARY] * 5
    assert dict(topology.versions["v1"].nodes[0].secrets.values).keys() == SECRET
    assert pickle.loads(pickle.dumps(topology.versions["v1"].nodes[0])).secrets == Secrets()  # noqa: S301
    shown = [
        everything_shown(value)
        for value in (settings, settings.versions, settings.model_dump(), settings.model_dump(mode="json"), topology)
    ]
    shown += [everything_shown(list(settings)), settings.model_dump_json(), caplog.text, *map(str, topology.versions)]
    shown += [str(node) for cluster in topology.versions.values() for node in cluster.nodes]
    assert "hunter2" not in "\n".join(shown)


@pytest.mark.parametrize(
    "values",
    [
        {"default_version": f"postgresql://app:{ENCODED}@db1/app", "versions": V1},
        {"aliases": {"live": f"postgresql://app:{ENCODED}@db1/app"}, "versions": V1},
        {"aliases": {f"postgresql://app:{ENCODED}@db1/app": "v2"}, "versions": V1},
        {"versions": {f"postgresql://app:{ENCODED}@db1/app": {}}},
        {"versions": {f"postgresql://app:{ENCODED}@db1": "host=a"}, "tenants": {"a": {"nodes": "host=a-{version}"}}},
        {"versions": {"v1": [f"postgresql://app:{ENCODED}@db1/app"]}},
        {"versions": f"postgresql://app:{ENCODED}@db1/app"},
        {"versions": {"v1": {"primary": {"host": "db1", "password": CANARY}}}},
        {"versions": {"v1": {"primary": {"dsn": "host=db1", "password": [CANARY]}}}},
        {"versions": {"v1": {"primary": {"dsn": "host=db1", "password": CANARY, "weight": 0}}}},
        {"versions": {"v1": {"primary": {"dsn": {"password": CANARY}}}}},
        {"versions": {"v1": {"primary": "host=a", "replicas": f"host=a password={CANARY}"}}},
        {"versions": {"v1": {"primary": f"host=a,b password={CANARY}"}}},
        {"pool": f"postgresql://app:{ENCODED}@db1/app", "versions": V1},
        {"pool": {"max_size": CANARY, "timeout": CANARY}, "read": {"balance": CANARY}, "versions": V1},
    ],
)
def test_no_error_shows_a_secret(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        RouterSettings(**values)
    error = caught.value
    assert (error.__cause__, error.__context__) == (None, None)
    assert "hunter2" not in "".join(traceback.format_exception(error)) + repr(error) + repr(error.args)
    with pytest.raises(ValidationError) as caught_by_pydantic:
        RouterSettings.model_validate(values)
    assert "hunter2" not in repr([{**fault, "loc": ()} for fault in caught_by_pydantic.value.errors()])


# ------------------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.toml", 'max_connections = 5\n[versions]\nv1 = "host=db1"\n[pool]\nmax_size = 3\n'),
        ("r.yaml", "max_connections: 5\nversions: {v1: host=db1}\npool: {max_size: 3}\n"),
        ("r.YML", "max_connections: 5\nversions: {v1: host=db1}\npool: {max_size: 3}\n"),
        (
            "r.json",
            '\ufeff{"$schema": "x", "max_connections": 5, "versions": {"v1": "host=db1"}, "pool": {"max_size": 3}}',
        ),
    ],
)
def test_a_file_by_its_suffix(
    name: str, text: str, write: Callable[[str, str], Path], env: Callable[..., None]
) -> None:
    path = write(name, text)
    expected = RouterSettings(max_connections=5, pool={"max_size": 3}, versions={"v1": "host=db1"})
    assert RouterSettings.load(path) == RouterSettings.load(str(path)) == expected
    env(ROUTER_CONFIG=name)
    assert RouterSettings() == expected


def test_each_source_is_stronger_than_the_next(
    write: Callable[[str, str], Path], env: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("r.toml", '[versions]\nv1 = "host=db1"\n[pool]\nmax_size = 1\nmax_waiting = 6\n')
    env(ROUTER_CONFIG=str(path))
    assert RouterSettings().pool == PoolPolicy(max_size=1, max_waiting=6)
    write("secrets/router_pool__max_size", "2\n")
    env(ROUTER_SECRETS_DIR="secrets")
    assert RouterSettings().pool == PoolPolicy(max_size=2, max_waiting=6)
    write(".env", "ROUTER_POOL__MAX_SIZE=3\nSOMETHING_ELSE=1\n")
    assert RouterSettings().pool == PoolPolicy(max_size=3, max_waiting=6)
    env(ROUTER_POOL__MAX_SIZE="4")
    assert RouterSettings().pool == PoolPolicy(max_size=4, max_waiting=6)
    assert RouterSettings(pool={"max_size": 5}).pool == PoolPolicy(max_size=5, max_waiting=6)
    assert RouterSettings.load(path, pool={"max_size": 5}).pool == PoolPolicy(max_size=5, max_waiting=6)
    assert RouterSettings(pool=PoolPolicy(max_size=5)).pool == PoolPolicy(max_size=5)
    monkeypatch.delenv("ROUTER_POOL__MAX_SIZE")
    assert RouterSettings(_env_file=None).pool.max_size == 2


def test_load_is_not_the_file_of_the_environment(write: Callable[[str, str], Path], env: Callable[..., None]) -> None:
    env(ROUTER_CONFIG=str(write("other.toml", "max_connections = 1\n[versions]\nv1 = 'host=db1'\n")))
    assert RouterSettings.load(write("r.toml", "[versions]\nv1 = 'host=db1'\n")).max_connections == 200


def test_a_file_in_the_working_directory_is_found_unless_another_is_named(
    write: Callable[[str, str], Path], env: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("router.toml", "max_connections = 1\n[versions]\nfound = 'host=db1'\n")
    assert (list(RouterSettings().versions), RouterSettings().max_connections) == (["found"], 1)
    env(ROUTER_MAX_CONNECTIONS="2")
    assert RouterSettings().max_connections == 2
    monkeypatch.delenv("ROUTER_MAX_CONNECTIONS")
    other = write("other.toml", "[versions]\nother = 'host=db1'\n")
    assert list(RouterSettings.load(other).versions) == ["other"]
    assert list(RouterSettings(_config_file=None, versions=V1).versions) == ["v1"]
    assert RouterSettings(_config_file=None, versions=V1).max_connections == 200
    env(ROUTER_CONFIG="other.toml")
    assert list(RouterSettings().versions) == ["other"]


def test_another_programs_file_in_the_working_directory(write: Callable[[str, str], Path]) -> None:
    write("router.toml", "[http.routers.web]\nrule = 'Host(`example.org`)'\n")
    (problem,) = problems(versions=V1)
    assert problem == (
        "router.toml: http: unknown key; if this file belongs to another program, leave it out: "
        "ROUTER_CONFIG names another file, RouterSettings(_config_file=None) reads none"
    )


def test_the_url_of_the_one_database_is_a_version(
    write: Callable[[str, str], Path], env: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(".env", f"DATABASE_URL=postgres://app:{ENCODED}@db1/app\n")
    topology = RouterSettings(max_connections=3).topology()
    assert topology.default_version == "default"
    assert [(node.server.host, node.role, password_of(node)) for node in topology.versions["default"].nodes] == [
        ("db1", None, CANARY)
    ]
    env(DATABASE_URL="postgresql://app@db2a,db2b/app")
    assert [node.server.host for node in RouterSettings().topology().versions["default"].nodes] == ["db2a", "db2b"]
    assert list(RouterSettings(versions=V1).versions) == ["v1"]
    write("router.toml", "[versions]\nfound = 'host=db1'\n")
    assert list(RouterSettings().versions) == ["found"]
    assert list(RouterSettings(_config_file=None).versions) == ["default"]


@pytest.mark.parametrize("url", ["mysql://db1/app", "sqlite:///app.db", "", "postgres"])
def test_the_url_of_another_database_is_not_ours(url: str, env: Callable[..., None]) -> None:
    env(DATABASE_URL=url)
    assert [line.partition(": no version")[0] for line in problems()] == ["settings: versions"]


def test_what_is_wrong_with_the_url(env: Callable[..., None]) -> None:
    env(DATABASE_URL=f"postgresql+psycopg://app:{ENCODED}@db1/app")
    source = "environment variable DATABASE_URL: versions.default"
    assert problems() == [f"{source}.nodes[0].dsn: names a driver, which libpq does not know: write postgresql://"]


def test_files_named_by_a_dotenv_file(write: Callable[[str, str], Path]) -> None:
    write("r.toml", "[versions]\nv1 = 'host=db1'\n")
    write("secrets/ROUTER_MAX_CONNECTIONS", "9")
    write("some.env", "ROUTER_CONFIG=r.toml\nROUTER_SECRETS_DIR=secrets\n")
    assert RouterSettings(_env_file="some.env").max_connections == 9


def test_secrets_lie_beside_other_files(write: Callable[[str, str], Path], tmp_path: Path) -> None:
    write("secrets/ROUTER_VERSIONS__V1__PRIMARY__PASSWORD", "with space \n")
    write("elsewhere", "host=db1")
    (tmp_path / "secrets" / "router_versions__v1__primary__dsn").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "secrets" / "keystore").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "secrets" / "ROUTER_DIRECTORY").mkdir()
    (node,) = RouterSettings(_secrets_dir="secrets").topology().versions["v1"].nodes
    assert (node.server.host, password_of(node)) == ("db1", "with space ")


def test_a_version_from_the_environment_alone(env: Callable[..., None]) -> None:
    env(
        ROUTER_VERSIONS__V2__PRIMARY="postgresql://app@db1/app",
        ROUTER_VERSIONS__V2__REPLICAS='["host=r1", {"dsn": "host=r2", "weight": 3}]',
        ROUTER_VERSIONS__V2__POOL__MAX_SIZE="20",
        ROUTER_VERSIONS__V2__READ='{"fallback": "wait"}',
        ROUTER_VERSIONS__V3__NODES="postgresql://h1/app postgresql://h2/app",
        ROUTER_VERSIONS__V4='{"primary": "host=db4"}',
        ROUTER_VERSIONS__V5="host=db5",
        ROUTER_DEFAULT_VERSION="live",
        ROUTER_ALIASES__LIVE="v2",
        ROUTER_READ__AUTOCOMMIT="false",
    )
    topology = RouterSettings().topology()
    assert {key: [node.server.host for node in cluster.nodes] for key, cluster in topology.versions.items()} == {
        "v2": ["db1", "r1", "r2"],
        "v3": ["h1", "h2"],
        "v4": ["db4"],
        "v5": ["db5"],
    }
    assert topology.versions["v2"].nodes[2].weight == 3
    assert topology.versions["v2"].pool.max_size == 20
    assert topology.versions["v2"].read == ReadPolicy(fallback="wait", autocommit=False)
    assert (topology.default_version, dict(topology.aliases)) == ("live", {"live": "v2"})


def test_tenants_from_the_environment_alone(env: Callable[..., None]) -> None:
    env(
        ROUTER_VERSIONS__V1__PRIMARY="host=db1",
        ROUTER_TENANTS__ACME__SCHEMA="acme",
        ROUTER_TENANTS__ACME__VERSION='["v1"]',
        ROUTER_TENANTS__GLOBEX="postgresql://db-{tenant}/app",
        ROUTER_TENANTS__INITECH='{"schema": ["{tenant}", "x"], "min_size": 2}',
        ROUTER_TENANTS__INITECH__MIN_SIZE="3",
        ROUTER_TENANTS__HOOLI__PRIMARY='{"dsn": "host=h"}',
        ROUTER_TENANTS__HOOLI__PRIMARY__PASSWORD="pw",
        ROUTER_TENANT_TEMPLATE__SCHEMA="{tenant}_{version}",
        ROUTER_TENANT_TEMPLATE__DATABASE="{version}",
        ROUTER_TENANCY__POOLING="dedicated",
        ROUTER_TENANCY__HYGIENE="full",
        ROUTER_DIRECTORY__TABLE="tenants",
    )
    topology = RouterSettings().topology()
    found = topology.tenancy
    assert found is not None
    full = TenantPolicy(hygiene="full")
    assert found.homes["acme"] == Home(("v1",), schema=("acme",), policy=full)
    assert found.homes["initech"] == Home(schema=("{tenant}", "x"), policy=TenantPolicy(hygiene="full", min_size=3))
    assert found.template == Home(database="{version}", schema=("{tenant}_{version}",), policy=full)
    globex, hooli = (found.homes[key].cluster for key in ("globex", "hooli"))
    assert globex is not None
    assert hooli is not None
    assert (globex.nodes[0].server.host, password_of(hooli.nodes[0])) == ("db-{tenant}", "pw")
    assert (found.policy, found.directory) == (full, DirectoryPolicy(table="tenants"))


def test_a_template_as_a_plain_string_and_a_tenant_found_by_its_spelling(env: Callable[..., None]) -> None:
    env(
        ROUTER_TENANT_TEMPLATE="host=db-{tenant}",
        ROUTER_TENANT_TEMPLATE__NODES__PASSWORD="pw",
        ROUTER_TENANTS__ACME_CORP__ROLE="r",
    )
    found = RouterSettings(versions=V1, tenants={"acme-corp": {"schema": "a"}}).topology().tenancy
    assert found is not None
    assert found.homes == {"acme-corp": Home(schema=("a",), role="r")}
    assert found.template is not None
    assert found.template.cluster is not None
    assert password_of(found.template.cluster.nodes[0]) == "pw"


@pytest.mark.parametrize("many", short_and_long(1000, 5000))
def test_many_variables_over_many_tenants_are_read_in_time(
    write: Callable[[str, str], Path], env: Callable[..., None], many: int
) -> None:
    keys = [f"t-{number}" for number in range(many)]
    path = write("r.json", json.dumps({"versions": V1, "tenants": {key: {"schema": key} for key in keys}}))
    lines = "".join(f"ROUTER_TENANTS__{key.upper().replace('-', '_')}__ROLE=r\n" for key in keys)
    write(".env", lines + "ROUTER_TENANTS__NEW__ROW=x.y\n")
    began = time.process_time()
    found = RouterSettings.load(path).topology().tenancy
    assert time.process_time() - began < many / 500
    assert found is not None
    assert found.homes == {**{key: Home(schema=(key,), role="r") for key in keys}, "new": Home(row="x.y")}


def test_a_section_as_json_and_single_keys_of_it(env: Callable[..., None]) -> None:
    env(
        ROUTER_VERSIONS='{"2026-11": {"primary": "host=db1", "pool": {"max_size": 5, "min_size": 1}}}',
        ROUTER_VERSIONS__2026_11__POOL='{"max_size": 6, "timeout": 2}',
        ROUTER_VERSIONS__2026_11__POOL__MAX_SIZE="7",
        ROUTER_POOL='{"max_idle": 60, "max_lifetime": 61}',
        ROUTER_POOL__MAX_LIFETIME="62",
    )
    pool = RouterSettings().topology().versions["2026-11"].pool
    assert pool == PoolPolicy(max_size=7, min_size=1, timeout=2, max_idle=60, max_lifetime=62)


@pytest.mark.parametrize(
    ("key", "segment"),
    [
        ("2026-11", "2026_11"),
        ("Blue", "BLUE"),
        ("Blue", "blue"),
        ("db.EU-1", "DB_EU_1"),
        ("a--b", "A__B"),
        ("a b", "A_B"),
        ("ü", "_"),
        ("x-", "X_"),
    ],
)
def test_a_segment_names_an_existing_key(key: str, segment: str, env: Callable[..., None]) -> None:
    env(
        **{
            f"ROUTER_VERSIONS__{segment}__PRIMARY__PASSWORD": "pw",
            f"ROUTER_VERSIONS__{segment}__POOL__MAX_SIZE": "3",
        }
    )
    versions = RouterSettings(versions={key: {"primary": "host=db1"}}).topology().versions
    assert list(versions) == [key]
    assert (password_of(versions[key].nodes[0]), versions[key].pool.max_size) == ("pw", 3)


def test_a_segment_names_a_key_of_the_file(write: Callable[[str, str], Path], env: Callable[..., None]) -> None:
    path = write(
        "r.toml",
        """
        [versions]
        Blue = "host=old"
        [versions."2026-11"]
        primary = "host=old"
        [aliases]
        Live = "Blue"
        """,
    )
    env(
        ROUTER_VERSIONS__2026_11__PRIMARY="host=new",
        ROUTER_VERSIONS__BLUE__POOL__MAX_SIZE="3",
        ROUTER_VERSIONS__BLUE_2="host=two",
        ROUTER_ALIASES__LIVE="2026-11",
    )
    topology = RouterSettings.load(path).topology()
    assert {key: cluster.nodes[0].server.host for key, cluster in topology.versions.items()} == {
        "Blue": "old",
        "2026-11": "new",
        "blue_2": "two",
    }
    assert topology.versions["Blue"].pool.max_size == 3
    assert dict(topology.aliases) == {"Live": "2026-11"}


def test_the_longest_key_counts(env: Callable[..., None]) -> None:
    env(ROUTER_VERSIONS__A__B__POOL__MAX_SIZE="3")
    versions = RouterSettings(versions={"a": "host=a", "a--b": "host=b"}).topology().versions
    assert {key: cluster.pool.max_size for key, cluster in versions.items()} == {"a": 10, "a--b": 3}


def test_a_segment_that_could_be_either_of_two_keys(env: Callable[..., None]) -> None:
    env(ROUTER_VERSIONS__V_1__POOL__MAX_SIZE="3")
    (problem,) = problems(versions={"v-1": "host=a", "v.1": "host=b"})
    assert problem == (
        "environment variable ROUTER_VERSIONS__V_1__POOL__MAX_SIZE: versions: "
        'the name stands for v-1 and "v.1" alike: set it as JSON in versions'
    )
    exact = RouterSettings(versions={"v-1": "host=a", "v_1": "host=b"}).topology().versions
    assert {key: cluster.pool.max_size for key, cluster in exact.items()} == {"v-1": 10, "v_1": 3}


def test_a_short_form_and_a_table_merge(write: Callable[[str, str], Path], env: Callable[..., None]) -> None:
    path = write(
        "r.toml",
        """
        [versions]
        v1 = "host=a,b"
        v2 = { primary = "host=c", replicas = { dsn = "host=d", password = "old" } }
        v3 = { primary = { dsn = "host=e", password = "old", weight = 2 }, pool = { max_size = 4 } }
        v4 = { primary = "host=g", replicas = "host=h", pool = { max_size = 4 } }
        v5 = { primary = "host=i" }
        """,
    )
    write("secrets/ROUTER_VERSIONS__V5__PRIMARY__PASSWORD", "new")
    write("secrets/ROUTER_VERSIONS__V6__PRIMARY__PASSWORD", "new")
    env(
        ROUTER_VERSIONS__V1__POOL__MAX_SIZE="3",
        ROUTER_VERSIONS__V1__NODES__PASSWORD="new",
        ROUTER_VERSIONS__V2__PRIMARY__PASSWORD="new",
        ROUTER_VERSIONS__V2__REPLICAS__PASSWORD="new",
        ROUTER_VERSIONS__V3__PRIMARY="host=f",
        ROUTER_VERSIONS__V4="host=k",
        ROUTER_VERSIONS__V5__PRIMARY="host=l",
        ROUTER_VERSIONS__V6__PRIMARY="host=m",
        ROUTER_SECRETS_DIR="secrets",
    )
    topology = RouterSettings.load(path).topology()
    assert {
        key: [(node.server.host, password_of(node)) for node in cluster.nodes]
        for key, cluster in topology.versions.items()
    } == {
        "v1": [("a", "new"), ("b", "new")],
        "v2": [("c", "new"), ("d", "new")],
        "v3": [("f", None)],  # the password that stood beside another server's connection string
        "v4": [("k", None)],
        "v5": [("l", "new")],
        "v6": [("m", "new")],
    }
    assert [cluster.pool.max_size for cluster in topology.versions.values()] == [3, 10, 4, 4, 10, 10]
    assert topology.versions["v3"].nodes[0].weight == 2


def test_an_empty_variable_is_not_set_and_an_empty_table_adds_nothing(
    write: Callable[[str, str], Path], env: Callable[..., None]
) -> None:
    path = write("r.toml", "max_connections = 3\n[versions]\nv1 = 'host=db1'\n[pool]\nmax_size = 4\n")
    env(ROUTER_MAX_CONNECTIONS="", ROUTER_POOL="{}", ROUTER_CONFIG="", ROUTER_SECRETS_DIR="")
    settings = RouterSettings.load(path)
    assert (settings.max_connections, settings.pool.max_size) == (3, 4)


def test_text_that_looks_like_json_is_a_password(env: Callable[..., None]) -> None:
    env(ROUTER_VERSIONS__V1__PRIMARY__DSN="host=a", ROUTER_VERSIONS__V1__PRIMARY__PASSWORD='{"a')
    assert password_of(RouterSettings().topology().versions["v1"].nodes[0]) == '{"a'


def test_variables_that_are_not_ours(env: Callable[..., None]) -> None:
    env(
        ROUTERS="1",
        ROUTER_PORT="tcp://10.0.0.1:80",
        ROUTER_PORT_80_TCP_ADDR="10.0.0.1",
        ROUTER_SERVICE_HOST="10.0.0.1",
        ROUTER_SERVICE_PORT_HTTP="80",
    )
    assert RouterSettings(versions=V1) == RouterSettings(versions=V1, _env_file=None)


OF_A_SERVICE = {
    "SERVICE_HOST": "10.0.0.1",
    "SERVICE_PORT": "80",
    "SERVICE_PORT_HTTP": "80",
    "SERVICE_PORT_HTTP_2": "81",
    "PORT": "tcp://10.0.0.1:80",
    "PORT_80_TCP": "tcp://10.0.0.1:80",
    "PORT_80_TCP_PROTO": "tcp",
    "PORT_80_TCP_PORT": "80",
    "PORT_80_TCP_ADDR": "10.0.0.1",
    "PORT_53_UDP_ADDR": "fd00::1",
    "PORT_99_SCTP_PROTO": "sctp",
}


@pytest.mark.parametrize(
    "service",
    ["ROUTER", "ROUTER_API", "ROUTER_ADMIN_V2", "ROUTER_POOL", "ROUTER_VERSIONS", "ROUTER_PORT", "ROUTER_SERVICE",
     "ROUTER_A__B", "ROUTER__API"],
)  # fmt: skip
def test_variables_of_kubernetes_services_are_left_alone(service: str, env: Callable[..., None]) -> None:
    env(**{f"{service}_{name}": value for name, value in OF_A_SERVICE.items()})
    assert RouterSettings(versions=V1) == RouterSettings(versions=V1, _env_file=None)
    env(ROUTER_POOL__MAX_SISE="5", ROUTER_API_PROT="80", ROUTER_DB_PORT="5432", ROUTER_VERSIONS__V1__SERVICE_PORT="80")
    assert sorted(problems(versions=V1)) == [
        "environment variable ROUTER_API_PROT: api_prot: unknown key",
        "environment variable ROUTER_DB_PORT: db_port: unknown key",
        "environment variable ROUTER_POOL__MAX_SISE: pool.max_sise: unknown key; did you mean max_size?",
        "environment variable ROUTER_VERSIONS__V1__SERVICE_PORT: versions.v1.service_port: unknown key",
    ]


def test_a_version_may_be_called_like_a_service(env: Callable[..., None]) -> None:
    env(ROUTER_VERSIONS__A_SERVICE_HOST="host=db1")
    assert list(RouterSettings().versions) == ["a_service_host"]


WITHOUT = (
    "if this file belongs to another program, leave it out: "
    "ROUTER_ENV_FILE=/dev/null, or RouterSettings(_env_file=None)"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ROUTER_IP=192.168.1.1", [f"ROUTER_IP is no setting of psycopg-router; {WITHOUT}"]),
        (
            "\n".join(f"export ROUTER_{name}=x" for name in ("IP", "MODEL", "SSID", "LOGIN", "KEY", "SERVICE_HOST")),
            [f"ROUTER_IP, ROUTER_MODEL, ROUTER_SSID and 2 more are no settings of psycopg-router; {WITHOUT}"],
        ),
        (
            "ROUTER_IP=1\nROUTER_POOL=round\nROUTER_POL__MAX_SIZE=3",
            [
                f"ROUTER_IP is no setting of psycopg-router; {WITHOUT}",
                f"pol: unknown key; did you mean pool?; {WITHOUT}",
                f"pool: must be a table; {WITHOUT}",
            ],
        ),
        ("ROUTER_POOL__MAX_SISE=3", ["pool.max_sise: unknown key; did you mean max_size?"]),
    ],
)
def test_another_programs_dotenv_file(
    text: str, expected: list[str], write: Callable[[str, str], Path], env: Callable[..., None]
) -> None:
    write(".env", text)
    assert sorted(problems(versions=V1)) == sorted(f".env: {line}" for line in expected)
    assert RouterSettings(versions=V1, _env_file=None).versions
    env(ROUTER_ENV_FILE="/dev/null")
    assert RouterSettings(versions=V1).versions
    write("mine.env", "ROUTER_MAX_CONNECTIONS=9")
    env(ROUTER_ENV_FILE="mine.env")
    assert RouterSettings(versions=V1).max_connections == 9


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_dotenv_file_in_another_encoding(encoding: str, tmp_path: Path, env: Callable[..., None]) -> None:
    (tmp_path / ".env").write_text("NAME=Müller\nROUTER_MAX_CONNECTIONS=9\n", encoding=encoding)
    assert problems(versions=V1) == [f".env: is not UTF-8 text; {WITHOUT}"]
    env(ROUTER_ENV_FILE="/dev/null")
    assert RouterSettings(versions=V1).max_connections == 200


def test_a_byte_order_mark_hides_no_setting(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ROUTER_MAX_CONNECTIONS=9\n", encoding="utf-8-sig")
    assert RouterSettings(versions=V1).max_connections == 9


def test_case_does_not_matter(env: Callable[..., None]) -> None:
    env(router_pool__Max_Size="3")
    assert RouterSettings(versions=V1).pool.max_size == 3


# -------------------------------------------------------------------------------------------------------------- errors


def test_a_file_with_five_mistakes(write: Callable[[str, str], Path]) -> None:
    path = write(
        "r.toml",
        f"""
        default_version = "v11"
        [pool]
        max_sise = 5
        timeout = -1
        [versions.v1]
        primary = "postgresql://app:{ENCODED}@db1/app?sslmod=require"
        [versions.v2]
        primary = {{ dsn = "host=db2", password = "{CANARY}" }}
        nodes = ["host=db2 password={CANARY}"]
        """,
    )
    with pytest.raises(ConfigError) as caught:
        RouterSettings.load(path)
    assert sorted(caught.value.problems) == sorted(
        [
            f"{path}: default_version: names no version or alias; did you mean v1?",
            f"{path}: pool.max_sise: unknown key; did you mean max_size?",
            f"{path}: pool.timeout: must be greater than 0, not -1",
            f"{path}: versions.v1.primary.dsn: has an unknown parameter 'sslmod'; did you mean 'sslmode'?",
            f"{path}: versions.v2.nodes: {BESIDE}",
        ]
    )
    assert str(caught.value).startswith("5 problems in the settings:\n  - ")
    assert "hunter2" not in str(caught.value)


def test_each_problem_names_its_source(
    write: Callable[[str, str], Path], env: Callable[..., None], tmp_path: Path
) -> None:
    path = write("r.toml", "nonsense = 1\n[versions.v1]\nprimary = 'host=db1'\n[aliases]\nlive = 'v11'\n")
    write("secrets/router_pool__timeout", "soon")
    write(".env", "ROUTER_HEALTH__BAN=0\n")
    env(ROUTER_SECRETS_DIR="secrets", ROUTER_POOL__MAX_SIZE="0", ROUTER_READ='{"balance": "fair"}', ROUTER_TYPO="1")
    with pytest.raises(ConfigError) as caught:
        RouterSettings.load(path, max_connections="many")
    assert sorted(caught.value.problems) == sorted(
        [
            ".env: health.ban: must be greater than 0, not 0",
            "argument: max_connections: must be a valid integer",
            "environment variable ROUTER_POOL__MAX_SIZE: pool.max_size: must be greater than or equal to 1, not 0",
            "environment variable ROUTER_READ: read.balance: must be 'least_busy', 'round_robin' or 'random'",
            "environment variable ROUTER_TYPO: typo: unknown key",
            "secrets file secrets/router_pool__timeout: pool.timeout: must be a valid number",
            f"{path}: aliases.live: names no version or alias; did you mean v1?",
            f"{path}: nonsense: unknown key",
        ]
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"max_connections": 0}, ["max_connections: must be greater than or equal to 1, not 0"]),
        ({"max_connection": 1}, ["max_connection: unknown key; did you mean max_connections?"]),
        ({"pool": 5}, ["pool: must be a table"]),
        ({"pool": {"connect_timeout": 1}}, ["pool.connect_timeout: must be greater than or equal to 2, not 1"]),
        ({"pool": {"connect_timeout": 2.5}}, ["pool.connect_timeout: must be a valid integer, got a number with a"]),
        ({"pool": {"min_size": -1}}, ["pool.min_size: must be greater than or equal to 0, not -1"]),
        ({"pool": {"max_waiting": -1}}, ["pool.max_waiting: must be greater than or equal to 0, not -1"]),
        ({"pool": {"max_idle": 0}}, ["pool.max_idle: must be greater than 0, not 0"]),
        ({"max_connections_per_server": 0}, ["max_connections_per_server: must be greater than or equal to 1, not 0"]),
        ({"max_pools": 0}, ["max_pools: must be greater than or equal to 1, not 0"]),
        ({"pool": {"max_unused": 0}}, ["pool.max_unused: must be greater than 0, not 0"]),
        ({"pool": {"max_lifetime": 0}}, ["pool.max_lifetime: must be greater than 0, not 0"]),
        ({"pool": {"timeout": float("inf")}}, ["pool.timeout: must be a finite number"]),
        ({"pool": {"timeout": float("nan")}}, ["pool.timeout: must be a finite number"]),
        ({"pool": {"min_size": 11}}, ["pool.max_size: must be at least min_size, which is 11; it is 10"]),
        (
            {"pool": {"min_size": 3, "max_size": 2, "timeout": 0}},
            ["pool.max_size: must be at least min_size, which is 3; it is 2", "pool.timeout: must be greater than 0"],
        ),
        ({"health": {"ban": 20}}, ["health.ban_max: must be at least ban, which is 20.0; it is 15.0"]),
        ({"health": {"intervall": 1}}, ["health.intervall: unknown key; did you mean interval?"]),
        ({"read": {"fallback": "replica"}}, ["read.fallback: must be 'primary', 'wait' or 'error'"]),
        ({"read": {"autocommit": "perhaps"}}, ["read.autocommit: must be a valid boolean"]),
        ({"default_version": "v11"}, ["default_version: names no version or alias; did you mean v1?"]),
        ({"default_version": "zzz"}, ["default_version: names no version or alias; known: v1"]),
        ({"aliases": {"v1": "v1"}}, ["aliases.v1: is also the key of a version: one of them needs another"]),
        ({"aliases": {"a": "b", "b": "a", "c": "a"}}, ["aliases.a: leads back to itself: a → b → a"]),
        ({"aliases": {"a": "a"}}, ["aliases.a: leads back to itself: a → a"]),
        ({"aliases": {"a": "b", "b": "x.y"}}, ["aliases.b: names no version or alias; known: v1, a, b"]),
        ({"aliases": {"a": {"v1": 90}}}, ["aliases.a: must be a valid string"]),
        ({"aliases": ["v1"]}, ["aliases: must be a table"]),
    ],
)
def test_what_is_wrong(values: dict[str, Any], expected: list[str]) -> None:
    found = problems(versions=V1, **values)
    assert len(found) == len(expected)
    for line, text in zip(sorted(found), sorted(expected), strict=True):
        assert line.startswith(f"argument: {text}")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ({}, [": needs `primary`, or `nodes` if the roles are to be discovered"]),
        ({"replicas": ["host=r"]}, [": needs `primary`, or `nodes` if the roles are to be discovered"]),
        ({"primry": "host=r"}, [".primry: unknown key; did you mean primary?"]),
        (5, [": must be a connection string (of nodes whose roles are discovered) or a table"]),
        ({"primary": 5}, [".primary: must be a connection string or a table"]),
        ({"primary": {"weight": 1}}, [".primary.dsn: is missing"]),
        ({"primary": {"dsn": 5}}, [".primary.dsn: must be a connection string"]),
        ({"primary": {"dsn": "host=a", "weight": 0}}, [".primary.weight: must be greater than 0, not 0"]),
        (
            {"primary": {"dsn": "host=a", "pooler": True}},
            [".primary.pooler: must be 'session' or 'transaction'"],
        ),
        ({"primary": {"dsn": "host=a", "pasword": "x"}}, [".primary.pasword: unknown key; did you mean password?"]),
        ({"primary": {"dsn": "host=a", "password": 12345}}, [".primary.password: must be a valid string"]),
        ({"primary": ["host=a"]}, [".primary: must be a connection string or a table"]),
        (
            {"primary": "postgresql://a,b/app"},
            [".primary: names 2 hosts, but only one is allowed here: put several hosts into `nodes`"],
        ),
        (
            {"primary": "host=p", "replicas": ["host=a", "host=b,c,d"]},
            [".replicas[1]: names 3 hosts, but only one is allowed here: put several hosts into `nodes`"],
        ),
        ({"nodes": 5}, [".nodes: must be a list"]),
        (
            {"nodes": "postgresql://a,b/app?target_session_attrs=primary"},
            [".nodes[0]: has target_session_attrs: leave it out, because the router observes which server has"],
        ),
        (
            {"primary": "host=a target_session_attrs=read-write", "replicas": "host=b target_session_attrs=standby"},
            [".primary: has target_session_attrs: leave", ".replicas[0]: has target_session_attrs: leave it out"],
        ),
        ({"primary": "host=a", "replicas": ["host=a port=5432"]}, [": lists a:5432 twice"]),
        ({"nodes": "host=a,b,a"}, [": lists a:5432 twice"]),
        ({"primary": "host=a", "pool": {"min_size": 11}}, [".pool.max_size: must be at least min_size, which is 11;"]),
    ],
)
def test_what_is_wrong_in_a_version(version: Any, expected: list[str]) -> None:
    found = problems(versions={"v1": version})
    assert len(found) == len(expected)
    for line, text in zip(found, expected, strict=True):
        assert line.startswith(f"argument: versions.v1{text}")


def test_a_fault_of_the_general_table_is_told_once() -> None:
    versions: dict[str, dict[str, Any]] = {"v1": {"primary": "host=a", "pool": {"max_size": 3}}, "v2": V1["v1"]}
    assert problems(pool={"timeout": 0}, versions=versions) == ["argument: pool.timeout: must be greater than 0, not 0"]
    versions["v1"]["pool"] = {"timeout": 0}
    assert len(problems(pool={"timeout": 0}, versions=versions)) == 2


def test_no_version() -> None:
    assert problems() == [
        (
            "settings: versions: no version is given: `router init` writes a router.toml to start from "
            "(ROUTER_CONFIG or --config names another file); "
            "or set ROUTER_VERSIONS__NAME__PRIMARY, or DATABASE_URL, to a URI of PostgreSQL"
        )
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"versions": {"blue": "host=a"}}, "blue"),
        ({"versions": {"blue": "host=a"}, "aliases": {"live": "blue"}}, "blue"),
        ({"versions": {"blue": "host=a"}, "aliases": {"live": "blue"}, "default_version": "live"}, "live"),
        ({"versions": {"blue": "host=a", "green": "host=b"}}, None),
    ],
)
def test_a_single_version_is_the_default(values: dict[str, Any], expected: str | None) -> None:
    assert RouterSettings(**values).topology().default_version == expected


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("r.toml", f'a = 1\nb = "{CANARY}\n', r": line 2, column \d+: is not valid TOML: .+"),
        ("r.toml", "a = ", r": .*is not valid TOML: .+"),
        ("r.json", f'{{"a": "{CANARY}" "b"}}', r": line 1, column \d+: is not valid JSON: .+"),
        ("r.json", "[]", ": the top level must be a table of keys and values"),
        ("r.yaml", f"a: 1\nb: *{CANARY}\n", r": line 2, column \d+: is not valid YAML .+"),
        ("r.yaml", f"a: !{CANARY} x\n", r": line 1, column \d+: is not valid YAML .+"),
        ("r.yaml", "versions: {2026-02-30: x}\n", r": is not valid YAML .+"),
        ("r.toml", f"max_connections = {'9' * 5000}\n", r": is not valid TOML \(ValueError\)"),
        ("r.json", f'{{"max_connections": {"9" * 5000}}}', r": is not valid JSON \(ValueError\)"),
        ("r.yaml", "versions: {1: 'host=a'}", ": versions: a key here is no text: put it in quotes"),
        ("r.ini", "", r": the suffix must be .toml, .yaml, .yml or .json"),
    ],
)
def test_a_file_that_is_wrong(name: str, text: str, problem: str, write: Callable[[str, str], Path]) -> None:
    path = write(name, text)
    with pytest.raises(ConfigError) as caught:
        RouterSettings.load(path)
    assert re.fullmatch(re.escape(str(path)) + problem, caught.value.problems[0])
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_file_that_cannot_be_read(tmp_path: Path, env: Callable[..., None]) -> None:
    env(ROUTER_CONFIG="missing.toml")
    assert problems() == ["missing.toml: cannot be read: No such file or directory"]
    (tmp_path / "directory.json").mkdir()
    (tmp_path / "latin.toml").write_bytes(b"a = '\xff'")
    for name, problem in (("directory.json", "cannot be read: Is a directory"), ("latin.toml", "is not UTF-8 text")):
        with pytest.raises(ConfigError, match=re.escape(f"{name}: {problem}")) as caught:
            RouterSettings.load(name)
        assert caught.value.__context__ is None
    (tmp_path / ".env").write_bytes(b"ROUTER_POOL__MAX_SIZE=\xff")
    env(ROUTER_CONFIG="")
    assert problems(versions=V1) == [f".env: is not UTF-8 text; {WITHOUT}"]
    assert problems(versions=V1, _env_file="./.env") == ["./.env: is not UTF-8 text"]


def test_yaml_without_pyyaml(write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = write("r.yaml", "")
    with pytest.raises(ConfigError, match=re.escape("YAML needs PyYAML: pip install 'psycopg-router[yaml]'")):
        RouterSettings.load(path)


def test_a_secrets_directory_that_is_none(env: Callable[..., None]) -> None:
    env(ROUTER_SECRETS_DIR="missing")
    assert problems(versions=V1) == ["missing: the secrets directory cannot be read: No such file or directory"]


def test_a_variable_that_is_no_json(env: Callable[..., None]) -> None:
    env(ROUTER_VERSIONS__V1__REPLICAS=f'["host=a password={CANARY}]', ROUTER_POOL__MAX_SIZE="0")
    found = problems(versions=V1)
    assert [re.sub(r": [A-Z][a-z ]+, column \d+$", "", line) for line in found] == [
        "environment variable ROUTER_VERSIONS__V1__REPLICAS: versions.v1.replicas: is not valid JSON",
        "environment variable ROUTER_POOL__MAX_SIZE: pool.max_size: must be greater than or equal to 1, not 0",
    ]


# ---------------------------------------------------------------------------------------------------- files in config/


ROWS = generate.rows(RouterSettings.model_json_schema())


def uncommented(path: Path) -> str:
    return re.sub(r"^#(?=\S+ ?=)|^#(?= +\{)|^#(?=\[\w)", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def flat(table: Any, path: str = "") -> set[str]:
    """The paths of all keys in ``table``, lists looked through."""
    if isinstance(table, list):
        return set().union(*(flat(item, path) for item in table))
    if not isinstance(table, dict):
        return {path}
    return {path}.union(*(flat(below, f"{path}.{key}".removeprefix(".")) for key, below in table.items()))


def test_the_starter_file_loads() -> None:
    topology = RouterSettings.load(CONFIG / "router.toml").topology()
    assert list(topology.versions) == ["v1", "2026-11"]
    assert [len(cluster.nodes) for cluster in topology.versions.values()] == [3, 2]


def test_the_starter_file_has_every_key(tmp_path: Path) -> None:
    text = uncommented(CONFIG / "router.toml")
    (tmp_path / "all.toml").write_text(text, encoding="utf-8")
    assert len(RouterSettings.load(tmp_path / "all.toml").topology().versions["2026-11"].nodes) == 3
    found = {re.sub(r"^(versions|aliases|tenants)\.[^.]+", r"\1.NAME", path) for path in flat(tomllib.loads(text))}
    found = {re.sub(r"\.(replicas|nodes)\.", ".primary.", path) for path in found}
    assert {row.key for row in ROWS} <= found


def test_what_the_starter_file_leaves_out_is_the_default() -> None:
    defaults = {row.key: row.default for row in ROWS}
    without, section, differ = set(), "", {}
    for line in (CONFIG / "router.toml").read_text(encoding="utf-8").splitlines():
        if opened := re.match(r"#?\[([\w.\-\"]+)\]", line):
            section = f"{opened[1]}."
        elif (left_out := re.match(r"#(\w+) = ([^#]+)", line)) and not section.startswith(("tenants.", "tenant_t")):
            key = f"{section}{left_out[1]}"
            if not defaults[key]:
                without.add(key)
            elif defaults[key] != left_out[2].strip():
                differ[key] = left_out[2]
    assert differ == {}
    assert without == {
        *("max_connections_per_server", "read.max_lag", "read.max_lag_bytes", "tokens.key"),
        *("tenancy.max_connections", "directory.version"),
    }


def test_the_starter_file_has_no_tenants_for_a_request_would_have_to_name_one() -> None:
    assert RouterSettings.load(CONFIG / "router.toml").topology().tenancy is None


@pytest.mark.parametrize("everything", [False, True])
def test_the_example_of_the_environment_loads(everything: bool, tmp_path: Path) -> None:
    example = CONFIG / "router.env.example"
    text = uncommented(example) if everything else example.read_text(encoding="utf-8")
    text = text.replace("config/router.toml", str(CONFIG / "router.toml")).replace("/run/secrets\n", f"{tmp_path}\n")
    (tmp_path / "some.env").write_text(text, encoding="utf-8")
    versions = RouterSettings(_env_file="some.env").topology().versions
    assert {key: len(versions[key].nodes) for key in ("v1", "v2", "v3")} == {"v1": 3, "v2": 2, "v3": 1}


def test_the_example_of_the_environment_has_every_variable() -> None:
    found = re.findall(r"^#?(ROUTER_\w+)=", uncommented(CONFIG / "router.env.example"), re.MULTILINE)
    general = {re.sub(r"(VERSIONS|ALIASES|TENANTS)__[A-Z0-9]+", r"\1__NAME", name) for name in found}
    tables = {row.variable for row in ROWS if "table" in row.kind}
    assert {row.variable for row in ROWS} - general <= tables
    assert general - {row.variable for row in ROWS} == {
        *(f"ROUTER_{name.upper()}" for name in RESERVED - {"tenant"}),  # which `router each` sets
        "ROUTER_VERSIONS__NAME__POOL__MAX_SIZE",
        "ROUTER_TENANT_TEMPLATE__VERSION",
        "ROUTER_TENANT_TEMPLATE__SCHEMA",
    }


def test_every_key_is_described() -> None:
    assert all(row.meaning.endswith(".") for row in ROWS)
    page = generate.PAGE.read_text(encoding="utf-8")
    assert all(f"| `{row.key}` | `{row.variable}` |" in page for row in ROWS)


def test_the_generated_files_are_up_to_date(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert generate.main(["--check"]) == 0
    assert generate.main(["--chek"]) == 2
    (tmp_path / "page.md").write_text(f"a\n{generate.BEGIN}old\n{generate.END}b\n", encoding="utf-8")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(generate, "SCHEMA", tmp_path / "schema.json")
    assert generate.main(["--check"]) == 1
    assert not (tmp_path / "schema.json").exists()
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8").startswith(f"a\n{generate.BEGIN}| key |")
    assert json.loads((tmp_path / "schema.json").read_text(encoding="utf-8")) == RouterSettings.model_json_schema()
    capsys.readouterr()


def test_the_schema_knows_short_forms_and_forbids_other_keys() -> None:
    schema = RouterSettings.model_json_schema()
    for name in ("NodeSettings", "VersionSettings"):
        string, table = schema["$defs"][name]["anyOf"]
        assert (string["type"], table["type"], table["additionalProperties"]) == ("string", "object", False)
    for name in ("PoolPolicy", "ReadPolicy", "HealthPolicy"):
        assert schema["$defs"][name]["additionalProperties"] is False
    assert schema["additionalProperties"] is False


def test_reading_settings_imports_no_parser() -> None:
    code = "import sys, router.settings; print(sorted({'yaml', 'tomllib'} & sys.modules.keys()))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=generate.ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout == "[]\n"


@pytest.mark.parametrize(
    "limits",
    [
        {"max_connections": 1},
        {"max_connections_per_server": 1},
        {"max_pools": 1},
        {"pool": {"max_size": 1}},
        {"versions": {"v1": {"primary": "host=a", "pool": {"max_size": 1}}}},
    ],
)
def test_a_directory_that_could_only_listen_is_refused(limits: dict[str, Any]) -> None:
    values = {"versions": {"v1": {"primary": "host=a"}}, "aliases": {"live": "v1"}, "directory": {"version": "live"}}
    RouterSettings(**values)
    with pytest.raises(ConfigError, match=r"needs a connection of its own to listen.* is 1: it must be at least 2"):
        RouterSettings(**{**values, **limits})


@pytest.mark.parametrize("answer", [{}, {"schema": None}, {"schema": []}, {"hygiene": "full"}])
def test_a_directory_that_says_nothing_of_where_a_tenant_lives_is_wrong(answer: dict[str, Any]) -> None:
    values = {"versions": {"v1": {"primary": "host=a"}}, "directory": {"version": "v1"}}
    for template in ({"version": "v1", "role": "app_tenant"}, None):
        settings = RouterSettings(**values, tenant_template=template)
        with pytest.raises(ConfigError, match=r"tenant 'acme': .*(nothing says where it lives|needs|separates it)"):
            settings.home("acme", answer)
    settings = RouterSettings(**values, tenant_template={"version": "v1", "schema": "t_{tenant}"})
    if answer != {"schema": []}:  # which says that it has none
        assert settings.home("acme", answer).schema == ("t_{tenant}",)
