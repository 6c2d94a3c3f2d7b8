"""From the keys of a request to what serves it."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import make_conninfo

from router.core.errors import UnknownTenant, UnknownVersion
from router.core.policies import PoolPolicy, TenantPolicy
from router.core.resolve import resolve
from router.core.topology import TENANT_PATTERN, Cluster, Home, Node, Scope, Server, Target, Tenancy, Topology
from router.settings import RouterSettings
from tests.support import examples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.testing import PostgresCluster

BLUE, GREEN = Cluster("blue", ()), Cluster("green", ())


def topology(default_version: str | None = None) -> Topology:
    return Topology({"blue": BLUE, "green": GREEN}, {"stable": "blue", "next": "green"}, default_version)


@pytest.mark.parametrize(("version", "cluster"), [("blue", BLUE), ("green", GREEN), ("stable", BLUE), ("next", GREEN)])
@pytest.mark.parametrize("default_version", [None, "green", "stable"])
def test_a_version_or_an_alias_names_its_cluster_whatever_the_default(
    version: str, cluster: Cluster, default_version: str | None
) -> None:
    target = resolve(topology(default_version), version)
    assert target == Target(version, cluster)
    assert target.cluster is cluster
    assert target.version == cluster.name


@pytest.mark.parametrize(("default_version", "cluster"), [("green", GREEN), ("stable", BLUE)])
def test_a_request_that_names_none_gets_the_default(default_version: str, cluster: Cluster) -> None:
    assert resolve(topology(default_version), None) == Target(default_version, cluster)


def test_without_a_default_a_request_must_name_one() -> None:
    with pytest.raises(UnknownVersion) as caught:
        resolve(topology(), None)
    assert str(caught.value) == (
        "no version was named and the settings have no default_version; known: blue, green, next, stable"
    )
    assert caught.value.version is None


@pytest.mark.parametrize("default_version", [None, "green"])
def test_an_unknown_version_is_an_error_that_names_the_nearest_even_with_a_default(default_version: str | None) -> None:
    with pytest.raises(UnknownVersion) as caught:
        resolve(topology(default_version), "stabel")
    assert str(caught.value) == ("unknown version 'stabel' (did you mean 'stable'?); known: blue, green, next, stable")
    assert (caught.value.version, caught.value.known) == ("stabel", ("blue", "green", "next", "stable"))


def test_a_default_that_names_nothing_is_what_is_unknown() -> None:
    with pytest.raises(UnknownVersion, match=r"unknown version 'gren' \(did you mean 'green'\?\)"):
        resolve(topology("gren"), None)


@given(st.text())
def test_nothing_but_the_exact_key_will_do(version: str) -> None:
    assume(version not in {"blue", "green", "stable", "next"})
    with pytest.raises(UnknownVersion):
        resolve(topology("blue"), version)


@pytest.mark.parametrize("version", ["Blue", " blue", "blue ", "", "blu"])
def test_nothing_is_guessed(version: str) -> None:
    with pytest.raises(UnknownVersion):
        resolve(topology("blue"), version)


# ------------------------------------------------------------------------------------------------------------- tenants


def node(host: str, **params: str) -> Node:
    return Node(Server(host, 5432), tuple(sorted({"host": host, "port": "5432", **params}.items())))


V1 = Cluster("v1", (node("a", dbname="app", user="app"), node("b", dbname="app", user="app")))
V2 = Cluster("v2", (node("c", dbname="app", user="app", options="-c work_mem=1MB"),))
SHARED, FULL = TenantPolicy("shared"), TenantPolicy(hygiene="full")
CALLED = ("application_name", "router/acme")


def tenants(
    template: Home | None = None,
    homes: Mapping[str, Home] = MappingProxyType({}),
    *,
    pattern: str = TENANT_PATTERN,
    default: str | None = "live",
) -> Topology:
    return Topology(
        {"v1": V1, "v2": V2}, {"live": "v1", "next": "v2"}, default, tenancy=Tenancy(homes, template, pattern)
    )


def resolved(home: Home, version: str | None = None, tenant: str = "acme", pattern: str = TENANT_PATTERN) -> Target:
    return resolve(tenants(home, pattern=pattern), version, tenant)


def params(target: Target) -> list[dict[str, str]]:
    return [dict(node.params) for node in target.cluster.nodes]


def refused(home: Home, version: str | None = None, tenant: str = "acme", pattern: str = TENANT_PATTERN) -> str:
    with pytest.raises(UnknownTenant) as caught:
        resolved(home, version, tenant, pattern)
    assert (caught.value.tenant, caught.value.version) == (tenant, version)
    return str(caught.value)


WAYS = [
    (Home(database="app_{tenant}"), {"dbname": "app_acme"}),
    (Home(user="u_{tenant}"), {"user": "u_acme"}),
    (Home(schema=("t_{tenant}",)), {"options": '-c search_path="t_acme"'}),
    (Home(schema=("{tenant}", "shared")), {"options": '-c search_path="acme",\\ "shared"'}),
    (Home(role="r_{tenant}_{version}"), {"options": "-c role=r_acme_v1"}),
    (Home(row="app.tenant"), {"options": "-c app.tenant=acme"}),
    (
        Home(database="d", user="u", schema=("s",), role="r", row="x.y"),
        {"dbname": "d", "user": "u", "options": '-c search_path="s" -c role=r -c x.y=acme'},
    ),
]


@pytest.mark.parametrize(("home", "expected"), WAYS)
def test_a_dedicated_tenant_has_sessions_of_its_own_from_the_start(home: Home, expected: dict[str, str]) -> None:
    target = resolved(home)
    assert params(target) == [dict([*node.params, *expected.items(), CALLED]) for node in V1.nodes]
    assert [node.server for node in target.cluster.nodes] == [node.server for node in V1.nodes]
    assert (target.requested, target.version, target.tenant) == ("live", "v1", "acme")
    assert (target.scope, target.shared, target.watched) == (None, False, V1)
    for one in target.cluster.nodes:
        assert list(one.params) == sorted(one.params)


def test_the_options_of_the_node_stay() -> None:
    (found,) = params(resolved(Home(schema=("{version}",)), "next"))
    assert found["options"] == '-c work_mem=1MB -c search_path="v2"'


@pytest.mark.parametrize(("home", "expected"), WAYS)
def test_a_shared_tenant_is_set_when_a_connection_is_borrowed(home: Home, expected: dict[str, str]) -> None:
    both = resolved(home._replace(policy=SHARED))
    assert both.shared
    assert both.scope is not None
    *settings, last = both.scope.settings
    written = " ".join(f"-c {name}={value}".replace(", ", ",\\ ") for name, value in settings)
    assert last == CALLED
    assert written == expected.get("options", "")
    assert params(both) == [{**one, **without_options(expected)} for one in params(Target("", V1))]
    assert (both.watched, both.startup, both.scope.tenant) == (V1, (), "acme")


def without_options(found: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in found.items() if name != "options"}


def test_tenants_that_share_a_database_share_its_nodes() -> None:
    homes = {key: Home(("v1",), schema=(key,), row="app.tenant", policy=SHARED) for key in ("acme", "globex")}
    acme, globex = (resolve(tenants(None, homes), None, key) for key in homes)
    assert acme.cluster is globex.cluster is V1
    assert acme.scope == Scope("acme", (("search_path", '"acme"'), ("app.tenant", "acme"), CALLED))


def test_behind_a_transaction_pooler_nothing_is_set_at_the_start() -> None:
    pooled = Cluster("v1", (Node(Server("p", 6432, "app"), (("host", "p"),), pooler="transaction"),))
    home = Home(schema=("acme",), policy=TenantPolicy(min_size=2))
    target = resolve(Topology({"v1": pooled}, tenancy=Tenancy({"acme": home})), "v1", "acme")
    assert (target.cluster, target.shared) == (pooled, True)
    assert target.scope == Scope("acme", (("search_path", '"acme"'), CALLED))


def test_full_hygiene_is_a_scope_without_settings_for_a_dedicated_tenant() -> None:
    target = resolved(Home(schema=("acme",), policy=FULL))
    assert (target.scope, target.shared) == (Scope("acme", (), "full"), False)
    assert params(target)[0]["options"] == '-c search_path="acme"'


def test_a_tenant_is_kept_warm() -> None:
    assert resolved(Home(schema=("acme",), policy=TenantPolicy(min_size=3))).cluster.pool == PoolPolicy(min_size=3)


# ---------------------------------------------------------------------------------------------- tenants and versions


@pytest.mark.parametrize(
    ("versions", "named", "expected"),
    [
        ((), None, ("live", "v1")),
        ((), "v2", ("v2", "v2")),
        ((), "next", ("next", "v2")),
        (("next",), None, ("next", "v2")),
        (("next",), "v2", ("v2", "v2")),
        (("v2",), "next", ("next", "v2")),
        (("v2", "live"), None, ("v2", "v2")),
        (("v2", "live"), "v1", ("v1", "v1")),
    ],
)
def test_a_tenant_lives_in_versions(versions: tuple[str, ...], named: str | None, expected: tuple[str, str]) -> None:
    target = resolved(Home(versions, schema=("{tenant}_{version}",)), named)
    assert (target.requested, target.version) == expected
    assert target.startup == (("search_path", f'"acme_{expected[1]}"'),)


def test_it_is_not_looked_for_where_it_does_not_live() -> None:
    home = Home(("v1",), schema=("acme",))
    assert refused(home, "next") == "unknown tenant 'acme': it lives in 'v1', not in 'next'"
    with pytest.raises(UnknownVersion, match="unknown version 'v3'"):
        resolved(home, "v3")
    with pytest.raises(UnknownVersion, match="no version was named"):
        resolve(tenants(Home(schema=("{tenant}",)), default=None), None, "acme")


def test_without_a_tenant_a_version_must_be_named() -> None:
    with pytest.raises(UnknownTenant) as caught:
        resolve(tenants(Home(schema=("{tenant}",))), None)
    assert (caught.value.tenant, str(caught.value)) == (
        None,
        "no tenant was named, and no use() is in force here: name a tenant, or name the version to work without one",
    )
    assert resolve(tenants(), "live") == Target("live", V1)


def test_who_is_a_tenant() -> None:
    acme = Home(("v1",), schema=("acme",))
    with pytest.raises(UnknownTenant, match=re.escape("unknown tenant 'acne'; did you mean 'acme'?")):
        resolve(tenants(None, {"acme": acme}), None, "acne")
    with pytest.raises(UnknownTenant, match="the settings have no tenants"):
        resolve(topology("blue"), None, "acme")
    template = Home(("v2",), schema=("other_{tenant}",))
    assert resolve(tenants(template, {"acme": acme}), None, "acme").startup == (("search_path", '"acme"'),)
    assert resolve(tenants(template, {"acme": acme}), None, "acne").startup == (("search_path", '"other_acne"'),)
    assert resolve(tenants(None, {"acme": acme}), None, "initech", template).startup == (
        ("search_path", '"other_initech"'),
    )  # of a directory


# --------------------------------------------------------------------------------------------- servers of its own


def own(*nodes: Node) -> Cluster:
    return Cluster("tenant", nodes, PoolPolicy(max_size=3))


def test_servers_of_its_own_need_no_version() -> None:
    home = Home(cluster=own(node("db-{tenant}", dbname="app_{tenant}")), schema=("x",))
    target = resolve(tenants(home, default=None), None, "acme")
    (found,) = target.cluster.nodes
    assert found == node("db-acme", dbname="app_acme", options='-c search_path="x"', application_name="router/acme")
    assert (target.requested, target.version, target.cluster.pool) == ("", "tenant acme", PoolPolicy(max_size=3))
    assert target.watched == Cluster("tenant acme", (node("db-acme", dbname="app_acme"),), PoolPolicy(max_size=3))
    assert (
        refused(home, "v1")
        == "unknown tenant 'acme': it has servers of its own and lives in no version: leave 'v1' out"
    )


@pytest.mark.parametrize(
    "home",
    [
        Home(cluster=own(node("db", dbname="app_{version}"))),
        Home(cluster=own(node("db")), schema=("app_{version}",)),
        Home(cluster=own(node("db")), role="app_{version}"),
        Home(("live", "next"), own(node("db"))),
    ],
)
def test_servers_of_its_own_in_versions(home: Home) -> None:
    for named, key, version in ((None, "live", "v1"), ("v1", "v1", "v1"), ("next", "next", "v2")):
        target = resolved(home, named)
        assert (target.requested, target.version) == (key, f"tenant acme in {version}")
        shown = str(params(target))
        assert "{" not in shown.strip("[{}]")
        assert home.versions or f"app_{version}" in shown


def test_a_server_behind_a_pooler_has_its_database_rendered() -> None:
    pooled = Node(Server("p", 6432, "app_{tenant}"), (("dbname", "app_{tenant}"), ("host", "p"), ("port", "6432")))
    assert resolved(Home(cluster=own(pooled))).cluster.nodes[0].server == Server("p", 6432, "app_acme")


def test_as_the_settings_write_it() -> None:
    written = RouterSettings(
        versions={"v1": "host=a"},
        tenants={
            "acme": "postgresql://%7Btenant%7D:pw@db-{tenant}:5433/app?application_name=x%20{tenant}",
            "globex": {"primary": "host=db-{tenant} user={tenant}", "replicas": "host=/sockets/{tenant}"},
        },
    )
    found = resolve(written.topology(), None, "acme").cluster.nodes[0]
    assert (str(found), dict(found.params)["application_name"]) == ("acme@db-acme:5433/app", "x acme/acme")
    assert dict(found.secrets.values) == {"password": "pw"}
    assert list(map(str, resolve(written.topology(), None, "globex").cluster.nodes)) == [
        "globex@db-globex:5432",
        "/sockets/globex:5432",
    ]


@pytest.mark.parametrize(
    ("param", "template", "key"),
    [
        ("host", "{tenant}", "a,evil"),
        ("host", "{tenant}.db.internal", "evil.example"),
        ("host", "{tenant}.db.internal", "evil.example/"),
        ("host", "db.{tenant}", "ü"),
        ("hostaddr", "10.0.{tenant}", "1.2"),
        ("host", "{tenant}", "/sockets"),
        ("host", "{tenant}", "@abstract"),
        ("hostaddr", "10.0.0.{tenant}", "1,10.0.0.9"),
        ("options", "-c app.tenant={tenant}", "a -c role=postgres"),
        ("options", "-c app.tenant={tenant}", "a\\"),
        ("sslrootcert", "/etc/{tenant}/ca.pem", ".."),
        ("sslrootcert", "/etc/{tenant}.pem", "../x"),
        ("passfile", "/run/{tenant}/pgpass", ".."),
        ("password_file", "/run/secrets/{tenant}", ".."),
        ("password_file", "/run/secrets/{tenant}", "../other"),
    ],
)
def test_a_key_is_no_more_than_a_part_of_a_parameter(param: str, template: str, key: str) -> None:
    if param == "password_file":
        servers = replace(node("db"), password_file=Path(template))
    else:
        servers = node("db", **{param: template}) if param != "host" else node(template)
    takes = "ASCII letters, digits, _ and -" if param.startswith("host") else "letters, digits, _, . and -"
    assert refused(Home(cluster=own(servers)), tenant=key, pattern=".+").endswith(
        f"the key {key!r} cannot stand in {param}: there it takes {takes}"
    )


def test_a_file_of_passwords_for_each_tenant_and_version() -> None:
    file, home = Path("/run/{version}/{tenant}"), Home(cluster=own(node("db", passfile="/run/{tenant}/pgpass")))
    (found,) = resolved(home).cluster.nodes
    assert dict(found.params)["passfile"] == "/run/acme/pgpass"
    for version, expected in ((None, "/run/v1/acme"), ("next", "/run/v2/acme")):
        target = resolved(Home(cluster=own(replace(node("db"), password_file=file))), version)
        assert [node.password_file for node in target.cluster.nodes] == [Path(expected)]


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("kind", ["database", "user", "schema", "role"])
def test_a_name_of_more_than_63_bytes_is_refused_for_postgresql_would_cut_it(kind: str) -> None:
    def home(template: str) -> Home:
        values: dict[str, Any] = {kind: (template,) if kind == "schema" else template}
        return Home(**values)

    assert resolved(home("x" * 15 + "{tenant}"), tenant="t" * 48).tenant == "t" * 48
    problem = f": the name of its {kind} is longer than 63 bytes"
    assert refused(home("x" * 16 + "{tenant}"), tenant="t" * 48).endswith(problem)
    assert resolved(home("x{tenant}"), tenant="ü" * 31, pattern=".+").tenant == "ü" * 31
    assert refused(home("{tenant}"), tenant="ü" * 32, pattern=".+").endswith(problem)
    if kind in ("database", "user"):
        param = "dbname" if kind == "database" else kind
        in_dsn = Home(cluster=own(node("db", **{param: "x" * 16 + "{tenant}"})))
        assert refused(in_dsn, tenant="t" * 48).endswith(problem)


@pytest.mark.parametrize(
    ("home", "key"),
    [
        (Home(schema=("{tenant}",)), "public"),
        (Home(schema=("{tenant}", "x")), "information_schema"),
        (Home(schema=("pg_{tenant}",)), "catalog"),
        (Home(schema=("x", "{tenant}")), "pg_temp"),
        (Home(schema=("${tenant}",)), "user"),
        (Home(database="{tenant}"), "postgres"),
        (Home(database="{tenant}1"), "template"),
        (Home(user="{tenant}"), "postgres"),
        (Home(role="{tenant}"), "postgres"),
        (Home(role="{tenant}"), "none"),
        (Home(role="{tenant}"), "public"),
        (Home(role="pg_{tenant}"), "read_all_data"),
        (Home(cluster=own(node("db", dbname="{tenant}"))), "postgres"),
        (Home(cluster=own(node("db", user="{tenant}"))), "postgres"),
    ],
)
def test_no_key_makes_a_name_that_is_not_the_tenants_own(home: Home, key: str) -> None:
    assert "of a tenant's own" in refused(home, tenant=key)


def test_what_the_settings_name_themselves_is_theirs_to_name() -> None:
    target = resolved(Home(("v1",), database="postgres", schema=("{tenant}", "public"), role="postgres"))
    assert target.startup[0] == ("search_path", '"acme", "public"')


@pytest.mark.parametrize("key", ["{version}", "{tenant}", "{tenant}{version}"])
def test_what_a_key_holds_is_not_read_again(key: str) -> None:
    target = resolved(Home(("v1",), schema=("{tenant}_{version}",), row="app.tenant"), tenant=key, pattern=".+")
    assert target.startup == (("search_path", f'"{key}_v1"'), ("app.tenant", key))
    assert dict(target.cluster.nodes[0].params)["options"] == (f'-c search_path="{key}_v1" -c app.tenant={key}')


NAMES = (
    st.text(st.characters(codec="utf-8").filter(str.isprintable), min_size=1, max_size=63)
    .map(lambda text: text.encode()[:63].decode(errors="ignore"))
    .filter(lambda name: not re.match("pg_|none$|public$|postgres$", name))
)


@settings(max_examples=examples(40))
@given(NAMES)
@example('a"b')
@example('"')
@example("a\\b\\")
@example(" a  b ")
@example("a, b")
@example("%s")
@example("'; DROP SCHEMA public; --")
@example("{version}")
@example("$user x")
@example("Acme")
@example("ü" * 31)
@example("x" * 63)
def test_postgresql_reads_the_very_names(cluster: PostgresCluster, name: str) -> None:
    here = RouterSettings(versions={"v1": cluster.primary.dsn()}).topology().versions["v1"]
    home = Home(("v1",), schema=("{tenant}", "public"), role="{tenant}", row="app.tenant")
    where = Topology({"v1": here}, tenancy=Tenancy({}, home, "(?s:.+)"))
    target = resolve(where, None, name)
    with psycopg.connect(cluster.primary.dsn(), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {0}").format(sql.Identifier(name)))
        admin.execute(sql.SQL("CREATE SCHEMA {0} AUTHORIZATION {0}").format(sql.Identifier(name)))
        try:
            session = make_conninfo(cluster.primary.dsn(), **dict(target.cluster.nodes[0].params))
            with psycopg.connect(session) as connection:
                found = connection.execute("SELECT current_schema(), current_user, current_setting('app.tenant')")
                assert found.fetchone() == (name, name, name)
        finally:
            admin.execute(sql.SQL("DROP SCHEMA {0}").format(sql.Identifier(name)))
            admin.execute(sql.SQL("DROP ROLE {0}").format(sql.Identifier(name)))


# ------------------------------------------------------------------------------------------------------- hostile keys


MANY = tenants(None, {f"tenant_{number}": Home(("v1",), schema=(f"tenant_{number}",)) for number in range(10_000)})
ANY = Home(("v1",), schema=("t_{tenant}",))
HOSTILE: list[Any] = [
    *('"; DROP', "../", "..", "%s", "{tenant}", "x" * 10_000, "a" * 49, "acme\0", "\0", "", " ", " acme", "acme "),
    *("acme\n", "ACME", "Acme", "\u0430cme", "\uff41cme", "acme\u200b", "\u202eacme", "acm\u00e9", "acm\u0065\u0301"),
    *("acme;", "acme'", "acme,globex", "-acme", "_acme", "acme/x", "acme\\", "$user", "*", "\ud800", "\u0661", "a=b"),
    *(0, 1.5, True, b"acme", ["acme"], ("acme",), {"acme": 1}, {"acme"}, object(), b"x" * 10_000, ["acme"] * 10_000),
]


@pytest.mark.parametrize("where", [MANY, tenants(ANY), tenants(ANY, {"acme": ANY})])
@pytest.mark.parametrize("key", HOSTILE, ids=lambda key: ascii(key)[:20])
def test_a_hostile_key_is_an_unknown_tenant(where: Topology, key: Any) -> None:
    for version in (None, "v1"):
        with pytest.raises(UnknownTenant) as caught:
            resolve(where, version, key)
        assert len(str(caught.value)) < 300
        assert str(caught.value).isprintable()


@given(st.text() | st.text(st.characters(codec="ascii")) | st.binary() | st.integers() | st.lists(st.text()))
def test_any_key_that_is_not_as_the_pattern_says_is_an_unknown_tenant(key: Any) -> None:
    assume(not (isinstance(key, str) and re.fullmatch(TENANT_PATTERN, key)))
    with pytest.raises(UnknownTenant) as caught:
        resolve(tenants(ANY), None, key)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("key", ["", "\0", "a\0", "\ud800", "a\n", "\u202e"])
def test_whatever_the_pattern_some_keys_are_none(key: str) -> None:
    with pytest.raises(UnknownTenant):
        resolve(tenants(ANY, pattern="(?s:.*)"), None, key)


@given(st.from_regex(TENANT_PATTERN, fullmatch=True))
def test_an_unlisted_key_is_unknown_without_a_template(key: str) -> None:
    assume(not re.fullmatch(r"tenant_(0|[1-9]\d{0,3})", key))
    with pytest.raises(UnknownTenant) as caught:
        resolve(MANY, None, key)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("key", ["tenant_12345", "tenant_1x", "tenant_", "zzz", "x" * 10_000, "user" * 10_000])
def test_an_unknown_key_is_told_quickly_among_ten_thousand(key: str) -> None:
    def seconds() -> float:
        began = time.thread_time()
        with pytest.raises(UnknownTenant):
            resolve(MANY, None, key)
        return time.thread_time() - began

    assert min(seconds() for _ in range(20)) < 0.005


@pytest.mark.parametrize(
    ("params", "kind"),
    [({"dbname": "{tenant}", "user": "x"}, "database"), ({"dbname": "x", "user": "{tenant}"}, "user")],
)
def test_no_key_leads_to_what_is_a_versions_own_by_a_connection_string_either(
    params: dict[str, str], kind: str
) -> None:
    here, elsewhere = (Home(cluster=own(node(host, **params))) for host in ("a", "z"))
    assert refused(here, tenant="app") == f"unknown tenant 'app': 'app' is a version's own {kind}"
    assert resolved(here, tenant="acme").tenant == "acme"
    assert resolved(elsewhere, tenant="app").tenant == "app"  # another server may have one of that name
    written = Home(cluster=own(node("a", dbname="app", user="app", application_name="{tenant}")))
    assert resolved(written).tenant == "acme"  # the settings may name it themselves


@pytest.mark.parametrize("policy", [TenantPolicy(), SHARED])
@pytest.mark.parametrize("home", [Home(role="{tenant}"), Home(user="{tenant}"), Home(database="{tenant}")])
def test_no_key_is_the_login_or_the_database_of_a_version(home: Home, policy: TenantPolicy) -> None:
    home = home._replace(policy=policy)
    kind = "role" if home.role else "user" if home.user else "database"
    assert refused(home, tenant="app") == f"unknown tenant 'app': 'app' is a version's own {kind}"
    assert resolved(home, tenant="acme").tenant == "acme"
    assert resolved(Home(database="app", schema=("x",))).tenant == "acme"  # the settings may name it themselves
