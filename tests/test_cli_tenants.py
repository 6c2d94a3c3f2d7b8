"""``router tenants``, and what other commands say and do for one tenant."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

import psycopg
import pytest

from router import Router, RouterSettings
from router.cli import main
from router.cli._tenants import UNLISTED
from router.core import sql
from tests.support import new_name, run, short_and_long

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.testing import PostgresCluster
    from router.testing._plugin import MakeCluster

CANARY = "canary-hunter2"
REFUSED = "postgresql://app@127.0.0.1:1/app"  # nobody listens there


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def tenants(self) -> dict[str, Any]:
        return {tenant.pop("tenant"): tenant for tenant in json.loads(self.out)["tenants"]}


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command; whatever it is, it shows no password and no traceback."""

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["router", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert CANARY not in out + err
        assert "Traceback" not in err
        return Result(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture(scope="module")
def server(make_postgres_cluster: MakeCluster) -> PostgresCluster:
    cluster: PostgresCluster = make_postgres_cluster(version=18, standbys=1, password=CANARY)
    for name in ("one", "two"):
        cluster.primary.execute(f"CREATE DATABASE {name}")
        cluster.primary.execute(f"CREATE SCHEMA {name}")
    cluster.wait_replayed()
    return cluster


@pytest.fixture
def config(server: PostgresCluster, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Configures tenants, on a version of two nodes and one that is the same primary."""

    def configure(tenants: dict[str, Any] | None = None, **others: Any) -> None:
        versions = {"v1": {"nodes": [one.dsn() for one in server.servers]}, "v2": {"primary": server.dsn()}}
        configured = {"versions": versions, "default_version": "v1", "tenants": tenants or {}, **others}
        Path("router.json").write_text(json.dumps(configured), encoding="utf-8")
        monkeypatch.setenv("ROUTER_CONFIG", "router.json")

    return configure


def test_where_each_of_them_lives(
    cli: Callable[..., Result], config: Callable[..., None], server: PostgresCluster
) -> None:
    config(
        {
            "a": {"schema": "s_{version}", "row": "app.tenant", "role": "r"},
            "b": {"database": "one", "version": "v2", "pooling": "shared"},
            "c": {"primary": server.dsn("two"), "pooling": "shared"},
            "d": {"schema": ["x", "y"], "user": "postgres", "version": ["v2", "v1"]},
        },
        tenant_template={"schema": "t_{tenant}"},
    )
    shown = cli("tenants")
    assert (shown.code, shown.err) == (0, f"{UNLISTED}\n")
    assert [line.split("  ") for line in shown.out.replace("sessions", "").splitlines()[-1:]] == [["4 tenants"]]
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in shown.out.splitlines()[1:-1]]
    assert rows == [
        ["a", "v1, v2", "schema s_v1, role r, row app.tenant", "dedicated", "0"],
        ["b", "v2", "database one", "shared", "0"],
        ["c", f"servers {server.primary.host}:{server.primary.port}", "shared", "0"],
        ["d", "v2, v1", "user postgres, schema x, y", "dedicated", rows[3][-1]],
    ]
    found = cli("tenants", "--json").tenants
    assert found["a"] == {
        "versions": ["v1", "v2"], "servers": [], "database": None, "user": None, "schema": ["s_v1"], "role": "r",
        "row": "app.tenant", "pooling": "dedicated", "sessions": 0, "problem": None,
    }  # fmt: skip
    assert found["d"]["schema"] == ["x", "y"]
    assert list(cli("tenants", "--json", "--version", "v2").tenants) == ["a", "b", "d"]
    assert cli("tenants", "--json", "--version", "v2").tenants["a"]["schema"] == ["s_v2"]
    assert list(cli("tenants", "[cd],b", "--json").tenants) == ["c", "d", "b"]
    assert cli("tenants", "other", "--json").tenants["other"]["schema"] == ["t_other"]
    nobody = cli("tenants", "x*")
    assert (nobody.code, nobody.err) == (2, f"{UNLISTED}\nno tenant is listed that matches 'x*'\n")


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
def test_what_each_of_them_uses(
    cli: Callable[..., Result], config: Callable[..., None], server: PostgresCluster, pooling: str
) -> None:
    config(
        {
            "schema": {"schema": "one"},
            "other": {"schema": "two"},
            "database": {"database": "one"},
            "together": {"database": "two", "schema": "public"},
            "apart": {"database": "two", "schema": "pub"},
        },
        tenancy={"pooling": pooling},
        default_version="v2",
    )
    with (
        Router(RouterSettings.load("router.json")) as router,
        router.connection(tenant="schema"),
        router.connection(tenant="schema", read_only=True),
        router.connection(tenant="together"),
        psycopg.connect(server.dsn("one"), application_name="somebody/schema"),
        psycopg.connect(server.dsn("two"), application_name="somebody/apart"),
        psycopg.connect(server.dsn("two"), application_name="somebody"),
    ):
        found = cli("tenants", "--json").tenants
    counts = {key: tenant["sessions"] for key, tenant in found.items()}
    assert counts == {"schema": 2, "other": 0, "database": 1, "together": 1, "apart": 1}


def test_a_server_that_cannot_be_asked_is_told(cli: Callable[..., Result], config: Callable[..., None]) -> None:
    config({"near": {"schema": "one"}, "far": {"primary": REFUSED}})
    result = cli("tenants", "--json")
    assert result.code == 1
    assert [problem.partition(":1 ")[2][:25] for problem in json.loads(result.out)["problems"]] == [
        "cannot be asked: Connecti"
    ]
    assert (result.tenants["near"]["sessions"], result.tenants["far"]["sessions"]) == (0, None)
    assert "- 127.0.0.1:1 cannot be asked: " in cli("tenants").out


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
def test_check_looks_for_what_listed_tenants_need(
    cli: Callable[..., Result], config: Callable[..., None], server: PostgresCluster, pooling: str
) -> None:
    role, hidden, primary = new_name(), new_name(), f"127.0.0.1:{server.primary.port}"
    run(server.dsn(), f"CREATE ROLE {role}", f"GRANT USAGE ON SCHEMA one TO {role}", f"CREATE SCHEMA {hidden}")
    tenants = {
        "whole": {"schema": ["one", "public"], "role": role, "row": "app.tenant"},
        "database": {"database": "two", "schema": "public"},
        "servers": {"primary": server.dsn("one"), "schema": "public"},
    }
    missing = {
        "schema": {"schema": ["one", "nowhere"], "version": "v2"},
        "usage": {"schema": hidden, "role": role, "version": "v2"},
        "role": {"schema": "one", "role": "nobody", "version": "v2"},
        "db": {"database": "nowhere", "version": "v2"},
        "in-it": {"database": "two", "schema": "two", "version": "v2"},
        "user": {"user": "nobody", "version": "v2"},
        "own": {"primary": server.dsn("one"), "schema": "nowhere"},
        "each": {"schema": "{version}_{tenant}", "version": ["v1", "v2"]},
    }
    config(tenants, tenancy={"pooling": pooling})
    assert json.loads(cli("check", "--json").out)["problems"] == []
    config(tenants | missing, tenancy={"pooling": pooling})
    found = json.loads(cli("check", "--json").out)["problems"]
    assert all("correct the" in line for line in found)
    at = f": postgres@{primary}"
    expected = {
        f'tenant schema in v2{at}/postgres: schema "nowhere" does not exist',
        f"tenant usage in v2{at}/postgres: no USAGE on schema {hidden}",
        f'tenant role in v2{at}/postgres: role "nobody" does not exist',
        f"tenant db in v2{at}/nowhere cannot be used: ",
        f'tenant in-it in v2{at}/two: schema "two" does not exist',
        f"tenant user in v2: nobody@{primary}/postgres cannot be used: ",
        f'tenant own{at}/one: schema "nowhere" does not exist',
        f'tenant each in v1{at}/postgres: schema "v1_each" does not exist',
        f'tenant each in v2{at}/postgres: schema "v2_each" does not exist',
    }
    assert len(found) == len(expected)
    assert 'database "nowhere" does not exist: create what' in "".join(found)
    assert {line for line in expected if not any(one.startswith(line) for one in found)} == set(), found
    only = json.loads(cli("check", "--version", "v1", "--json").out)["problems"]
    assert [line.partition(":")[0] for line in only] == ["tenant each in v1"]


def test_check_looks_at_servers_that_tenants_have_themselves(
    cli: Callable[..., Result], config: Callable[..., None], server: PostgresCluster
) -> None:
    config(
        {
            "near": {"schema": "one"},
            "far": {"primary": REFUSED},
            "twice": {"primary": server.dsn("two"), "version": ["v2", "v1"]},
            "each": {"primary": server.dsn("{version}"), "schema": "public"},
            "wrong": {"primary": server.standbys[0].dsn("one")},
        },
        tenant_template={"primary": "host=db-{tenant}"},
    )
    result = cli("check", "--json")
    found = json.loads(result.out)
    assert (result.code, list(found["versions"])) == (1, ["v1", "v2"])
    assert {name: [node["up"] for node in nodes] for name, nodes in found["tenants"].items()} == {
        "tenant far": [False],
        "tenant twice in v1": [True],
        "tenant each in v1": [False],
        "tenant each in v2": [False],
        "tenant wrong": [True],
    }
    problems = [problem for problem in found["problems"] if problem.startswith("tenant ")]
    assert [problem.partition(":")[0] for problem in problems] == [
        name for name in found["tenants"] if "twice" not in name
    ]
    assert 'refuses the login: FATAL: database "v1" does not exist' in problems[1]
    assert "is configured as primary and is a replica" in problems[3]
    [line] = [line for line in cli("check").out.splitlines() if line.startswith("tenant twice in v1")]
    assert line.split()[4:6] == [f"postgres@{server.primary.host}:{server.primary.port}/two", "primary"]


@pytest.fixture
def table(server: PostgresCluster, cli: Callable[..., Result], config: Callable[..., None]) -> LiteralString:
    """A directory's table, made as the command says; others are listed in the settings."""
    name = new_name()
    config({"own": {"schema": "own"}}, directory={"version": "v2", "table": f"public.{name}"})
    ddl = cli("tenants", "--sql")
    assert (ddl.code, ddl.out) == (0, sql.tenants_table(f"public.{name}"))
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(ddl.out.replace("router_tenant_changed", f"{name}_changed").encode())
    return name


def test_those_of_the_directory_are_listed_too(
    cli: Callable[..., Result], table: LiteralString, server: PostgresCluster
) -> None:
    assert list(cli("tenants", "--json").tenants) == ["own"]
    run(
        server.dsn(),
        f"""INSERT INTO {table} (tenant, schema, version, database) VALUES
        ('b', '{{sb}}', '{{v2}}', NULL), ('a', NULL, NULL, 'one'), ('own', '{{other}}', NULL, NULL),
        ('bad', '{{pg_x}}', NULL, NULL)""",
    )
    result = cli("tenants", "--json")
    assert result.code == 1
    assert list(result.tenants) == ["own", "a", "b", "bad"]
    assert result.tenants["own"]["schema"] == ["own"], "what the settings say is stronger"
    assert (result.tenants["a"]["database"], result.tenants["b"]["versions"]) == ("one", ["v2"])
    assert "'pg_x' is not a schema" in result.tenants["bad"]["problem"]
    assert "- bad: directory: tenant 'bad': 'pg_x' is not a schema" in cli("tenants").out
    assert list(cli("tenants", "b,own", "--json").tenants) == ["b", "own"]
    assert cli("tenants", "nobody").err == "unknown tenant 'nobody'\n"
    assert list(cli("tenants", "--json", "--version", "v1").tenants) == ["own", "a", "bad"]
    run(server.dsn(), f"DROP TABLE {table}")
    gone = cli("tenants")
    assert gone.code == 1
    assert gone.err == (
        f'the table public.{table} cannot be read: relation "public.{table}" does not exist; '
        "`router tenants --sql` prints how to make it\n"
    )


def test_settings_without_tenants_have_none_to_list(cli: Callable[..., Result], config: Callable[..., None]) -> None:
    config()
    result = cli("tenants")
    assert (result.code, result.out) == (2, "")
    assert "the settings have no tenants: add [tenants.KEY]" in result.err
    assert cli("tenants", "--sql").out == sql.tenants_table("router_tenant")


@pytest.mark.parametrize("many", short_and_long(1000, 10_000))
def test_ten_thousand_are_listed_quickly(cli: Callable[..., Result], config: Callable[..., None], many: int) -> None:
    config({f"t{number}": {"schema": f"t{number}"} for number in range(many)})
    begun = process_time()
    assert cli("tenants").out.endswith(f"\n{many} tenants\n")
    assert process_time() - begun < many / 1000


# One tenant


HOME = {"schema": "one", "row": "app.tenant"}


@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
def test_dsn_and_psql_open_the_tenants_session(
    cli: Callable[..., Result],
    config: Callable[..., None],
    server: PostgresCluster,
    pooling: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config({"acme": {**HOME, "pooling": pooling}})
    monkeypatch.setenv("PGPASSWORD", CANARY)

    def session(dsn: str) -> Any:
        with psycopg.connect(dsn, application_name="") as connection:
            query = "SELECT current_schema(), current_setting('app.tenant'), pg_is_in_recovery()"
            return connection.execute(query).fetchone()

    assert session(cli("dsn", "--tenant", "acme").out.strip()) == ("one", "acme", False)
    assert session(cli("dsn", "--tenant", "acme", "--read-only").out.strip()) == ("one", "acme", True)
    assert cli("dsn", "--tenant", "nobody").code == 2

    passed: list[Any] = []
    monkeypatch.setattr(os, "execvpe", lambda *arguments: passed.append(arguments))
    assert cli("psql", "--tenant", "acme", "--", "-c", "SELECT 1").code == 0
    [(_, (*_, uri, option, query), environment)] = passed
    assert (session(uri), option, query) == (("one", "acme", False), "-c", "SELECT 1")
    assert environment["PGPASSWORD"] == CANARY
    assert CANARY not in uri
    assert cli("psql", "--tenant", "acme", "--read-only").code == 0
    assert passed[1][2]["PGOPTIONS"] == ('-c search_path="one" -c app.tenant=acme -c default_transaction_read_only=on')


def test_explain_shows_where_a_tenants_request_would_go(
    cli: Callable[..., Result], config: Callable[..., None], server: PostgresCluster
) -> None:
    config({"acme": {"database": "one", "version": "v1"}, "far": {"primary": REFUSED}})
    shown = cli("explain", "--tenant", "acme", "--read-only")
    assert shown.code == 0
    assert f"  1. postgres@127.0.0.1:{server.standbys[0].port}/one  replica, up\n" in shown.out
    found = json.loads(cli("explain", "--tenant", "acme", "--json").out)
    assert (found["tenant"], found["version"], found["nodes"][0]["role"]) == ("acme", "v1", "primary")
    assert cli("explain", "--tenant", "far").code == 1
    assert cli("explain", "--tenant", "acme", "--offline").code == 0
    assert "it lives in 'v1', not in 'v2'" in cli("explain", "--tenant", "acme", "--version", "v2").err
    assert cli("explain", "--tenant", "nobody").err == "unknown tenant 'nobody'\n"


def test_explain_names_the_tenant_and_what_keeps_it_apart(
    cli: Callable[..., Result], config: Callable[..., None], server: PostgresCluster
) -> None:
    config(
        {"own": {"primary": server.dsn("two")}, "row": {"row": "app.tenant", "schema": ["{tenant}s", "public"]}},
        tenant_template={"schema": "t_{tenant}_{version}", "role": "r_{tenant}"},
        tenancy={"pooling": "shared"},
        aliases={"live": "v2"},
    )
    shown = {key: cli("explain", "--tenant", key, "--version", "live").out.splitlines()[-1] for key in ("acme", "row")}
    assert shown == {
        "acme": "  tenant acme: schema t_acme_v2, role r_acme; shared",
        "row": "  tenant row: schema rows, public, row app.tenant; shared",
    }
    own = f"{server.primary.host}:{server.primary.port}"
    assert cli("explain", "--tenant", "own").out.splitlines()[-1] == f"  tenant own: servers {own}; shared"
    assert json.loads(cli("explain", "--tenant", "acme", "--json").out)["lives_in"] == {
        "servers": [], "database": None, "user": None, "schema": ["t_acme_v1"], "role": "r_acme", "row": None,
        "pooling": "shared",
    }  # fmt: skip
    assert json.loads(cli("explain", "--version", "v1", "--json").out)["lives_in"] is None


def test_explain_asks_the_directory_unless_offline(
    cli: Callable[..., Result], table: LiteralString, server: PostgresCluster
) -> None:
    run(server.dsn(), f"INSERT INTO {table} (tenant, schema) VALUES ('acme', '{{one}}'), ('bad', '{{pg_x}}')")
    assert cli("explain", "--tenant", "acme").code == 0
    assert cli("explain", "--tenant", "own", "--offline").code == 0
    offline = cli("explain", "--tenant", "acme", "--offline")
    assert (offline.code, offline.err) == (
        2,
        "only the directory knows where tenant 'acme' lives: leave --offline out\n",
    )
    wrong = cli("explain", "--tenant", "bad")
    assert wrong.code == 2
    assert "directory: tenant 'bad': 'pg_x' is not a schema" in wrong.err
