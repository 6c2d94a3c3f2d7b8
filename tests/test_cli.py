from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from router import NoPrimary
from router.cli import main
from tests.pooler import Pooler
from tests.proxy import Proxy
from tests.support import eventually, one_of_each
from tests.terminal import on_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from router.testing import PostgresCluster
    from router.testing._plugin import MakeCluster

ROOT = Path(__file__).parent.parent
CANARY = "canary-hunter2"
ROUTER = [sys.executable, "-m", "router"]
REFUSED = "postgresql://app@127.0.0.1:1/app"  # nobody listens there


@dataclass(frozen=True)
class Result:
    code: int | str | None
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Cli(Protocol):
    def __call__(self, *arguments: str) -> Result: ...


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command; whatever it is, it shows no password and no traceback."""

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["router", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert CANARY not in out + err
        assert "Traceback" not in err
        assert "\x1b" not in out + err
        return Result(ended.value.code or 0, out, err)

    return run


@pytest.fixture(scope="module")
def old(make_postgres_cluster: MakeCluster) -> PostgresCluster:
    return make_postgres_cluster(version=16, standbys=1, password=CANARY)


@pytest.fixture(scope="module")
def new(make_postgres_cluster: MakeCluster) -> PostgresCluster:
    cluster: PostgresCluster = make_postgres_cluster(version=18, standbys=2, password=CANARY)
    cluster.primary.execute("CREATE ROLE unprivileged LOGIN PASSWORD 'other'")
    cluster.wait_replayed()
    return cluster


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Configures versions in the environment."""

    def configure(**configured: Any) -> None:
        monkeypatch.setenv("ROUTER_VERSIONS", json.dumps(configured))

    return configure


@pytest.fixture
def both(versions: Callable[..., None], old: PostgresCluster, new: PostgresCluster) -> None:
    versions(v1=old.version_settings(), v2={"nodes": [server.dsn() for server in new.servers]})


@pytest.fixture
def deaf() -> Iterator[str]:
    """A server that takes connections and never says anything, and one is to wait for it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"postgresql://app:{CANARY}@127.0.0.1:{listener.getsockname()[1]}/app?connect_timeout=600"


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


def problems(result: Result) -> list[str]:
    """What `check` found wrong, which it also says by its exit code."""
    found: list[str] = result.json()["problems"]
    assert result.code == (1 if found else 0)
    return found


# The program


def test_without_its_extra_it_says_in_one_line_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from router.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "the command line needs its extra: pip install 'psycopg-router[cli]'\n"


@pytest.mark.parametrize("option", one_of_each(["--version", "-V"]))
def test_it_runs_as_a_module_and_prints_its_version(option: str) -> None:
    done = subprocess.run([*ROUTER, option], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == f"psycopg-router {version('psycopg-router')}\n"


@pytest.mark.parametrize("command", ["check", "status", "explain", "dsn", "psql", "tenants", "each"])
def test_a_command_means_a_version_of_the_database(cli: Cli, command: str, versions: Callable[..., None]) -> None:
    versions(v1=REFUSED)
    assert re.search(r"\n  --version KEY ", cli(command, "--help").out)
    assert "--version goes behind the command: router" in cli("--version", command).err
    assert "--version" not in cli("--help").out


def test_an_error_is_json_where_json_is_asked_for(cli: Cli, versions: Callable[..., None], tmp_path: Path) -> None:
    config = tmp_path / "router.toml"
    config.write_text(f'nonsense = 1\nversions.v1 = "postgresql://app:{CANARY}@h:port/app"\n', encoding="utf-8")
    without = (
        "if this file belongs to another program, leave it out: "
        "ROUTER_CONFIG names another file, RouterSettings(_config_file=None) reads none"
    )
    for arguments in (("check",), ("status",), ("status", "--watch"), ("explain",), ("tenants",)):
        result = cli(*arguments, "--json")
        assert (result.code, result.err) == (2, "")
        assert result.json().pop("ok") is False
        assert sorted(result.json()["problems"]) == [
            f"router.toml: nonsense: unknown key; {without}",
            "router.toml: versions.v1.nodes[0].dsn: has a port that is not a number from 1 to 65535",
        ]
    config.unlink()
    versions(v1=REFUSED)
    result = cli("status", "--version", "v2", "--json")
    assert (result.code, result.json()) == (2, {"ok": False, "problems": ["unknown version 'v2'; known: v1"]})


def test_help_documents_the_exit_codes_and_every_command(cli: Cli) -> None:
    shown = cli("--help")
    assert shown.code == 0
    assert "Exit codes: 0 all is fine; 1 something is wrong" in shown.out
    for command in ("demo", "check", "status", "explain", "dsn", "psql", "tenants", "each", "init", "schema"):
        assert f"\n  {command}  " in shown.out
        assert cli(command, "--help").out.count(f"router {command}") > 1, "its usage, and an example"


@pytest.mark.parametrize("dsn", [f"postgresql://app:{CANARY}@db1/app", f"host=db1 password={CANARY}"])
@pytest.mark.parametrize(
    "arguments",
    ["{}", "check {}", "check --processes={}", "check --{}", "check --config {}", "check --config {}.toml", "init {}",
     "init {}.toml", "status --version {}", "explain --version {}", "explain --tenant {}", "dsn --version={}",
     "each --tenants {} -- true", "each --tenants all --sql {}", "each --tenants all --log {} --resume -- true"],
)  # fmt: skip
def test_a_connection_string_in_the_wrong_argument_is_not_shown(
    arguments: str, dsn: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUTER_VERSIONS__V1", REFUSED)
    monkeypatch.setenv("ROUTER_TENANTS__ACME__SCHEMA", "acme")
    assert cli(*(part.replace("{}", dsn) for part in arguments.split())).code in {1, 2}


@pytest.mark.parametrize(
    "arguments", [["bogus"], ["check", "--bogus"], ["check", "--processes", "0"], ["demo", "--seconds", "0"]]
)
def test_bad_usage_exits_with_2(cli: Cli, arguments: list[str]) -> None:
    result = cli(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Error: " in result.err


@pytest.mark.parametrize("command", ["check", "status", "explain", "dsn", "psql"])
def test_bad_settings_exit_with_2_and_every_problem(cli: Cli, command: str, tmp_path: Path) -> None:
    config = tmp_path / "router.toml"
    config.write_text(
        f'defaultversion = "v1"\npool = {{ max_size = 0 }}\n'
        f'versions.v1.primary = "postgresql://app:{CANARY}@127.0.0.1:port/app"\n',
        encoding="utf-8",
    )
    result = cli(command, "--config", str(config))
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("3 problems in the settings:\n")
    assert result.err.count(str(config)) == 3


@pytest.mark.parametrize("command", ["status", "explain", "dsn", "psql"])
def test_an_unknown_version_exits_with_2_and_the_nearest(cli: Cli, command: str, both: None) -> None:
    result = cli(command, "--version", "v22")
    assert (result.code, result.out) == (2, "")
    assert result.err == "unknown version 'v22' (did you mean 'v2'?); known: v1, v2\n"


def test_the_config_option_is_stronger_than_router_config(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(f'versions.{name}.primary = "{REFUSED}"', encoding="utf-8")
    monkeypatch.setenv("ROUTER_CONFIG", "one.toml")
    assert cli("explain", "--offline", "--version", "one").code == 0
    assert cli("explain", "--offline", "--version", "one", "--config", "two.toml").code == 2
    assert cli("explain", "--offline", "--version", "two", "--config", "two.toml").code == 0


# check


def test_check_finds_nothing_wrong_with_healthy_servers(
    cli: Cli, both: None, old: PostgresCluster, new: PostgresCluster
) -> None:
    result = cli("check", "--json")
    assert problems(result) == []
    found = result.json()["versions"]
    assert [(node["port"], node["role"], node["configured_role"]) for node in found["v1"] + found["v2"]] == [
        (old.servers[0].port, "primary", "primary"),
        (old.servers[1].port, "replica", "replica"),
        (new.servers[0].port, "primary", None),
        (new.servers[1].port, "replica", None),
        (new.servers[2].port, "replica", None),
    ]
    assert {node["server_version"].partition(".")[0] for node in found["v1"]} == {"16"}
    assert {node["server_version"].partition(".")[0] for node in found["v2"]} == {"18"}
    for primary, *replicas in found.values():
        assert primary["behind_bytes"] is primary["wal_receiver"] is None
        for replica in replicas:
            assert replica["wal_receiver"] == "streaming"
            assert replica["behind_bytes"] >= 0


def test_check_prints_a_plain_table_when_nobody_sees_it(cli: Cli, both: None, new: PostgresCluster) -> None:
    result = cli("check")
    assert (result.code, result.err) == (0, "")
    heading, *rows, end = result.out.splitlines()
    assert heading.split() == ["version", "node", "role", "PostgreSQL", "replication", "may", "open", "allowed"]
    assert re.search(rf"^v2 +postgres@127.0.0.1:{new.servers[1].port}/postgres +replica +18\.\d", rows[3])
    assert (len(rows), end) == (5, "all is fine (5 nodes)")


def test_check_lets_no_dead_server_delay_the_others(
    cli: Cli, versions: Callable[..., None], new: PostgresCluster, deaf: str
) -> None:
    # Shown as they are, although brackets mean something to rich.
    versions(v2={"primary": new.dsn(), "replicas": [deaf, new.standbys[0].dsn(), "postgresql://app@[::1]:1/%5Bb%5D"]})
    result = cli("check", "--json", "--timeout", "0.5")
    silent, refused = problems(result)
    assert re.match(
        r"v2: app@127\.0\.0\.1:\d+/app cannot be reached: no answer within 0\.5 s; start the server", silent
    )
    assert refused.startswith("v2: app@[::1]:1/[b] cannot be reached: ")
    assert [node["up"] for node in result.json()["versions"]["v2"]] == [True, False, True, False]
    shown = cli("check", "--timeout", "0.5")
    assert shown.code == 1
    assert " app@[::1]:1/[b]  " in shown.out
    assert f"\n- {silent}\n" in shown.out
    assert shown.out.endswith("\n2 problems\n")


def test_check_ends_although_a_server_never_answers(versions: Callable[..., None], deaf: str) -> None:
    versions(v2={"primary": deaf})
    done = subprocess.run(
        [*ROUTER, "check", "--timeout", "0.1"], env=environment(), capture_output=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr) == (1, b"")


def test_check_compares_roles_with_the_configured_ones(
    cli: Cli, versions: Callable[..., None], new: PostgresCluster
) -> None:
    versions(v2={"primary": new.standbys[0].dsn(), "replicas": [new.primary.dsn()]})
    first, second = problems(cli("check", "--json"))
    assert "is configured as primary and is a replica: correct the settings" in first
    assert "is configured as replica and is a primary: correct the settings" in second


def test_check_wants_exactly_one_primary_among_nodes(
    cli: Cli, versions: Callable[..., None], old: PostgresCluster, new: PostgresCluster
) -> None:
    versions(v1={"nodes": [old.standbys[0].dsn()]}, v2={"nodes": [old.primary.dsn(), new.primary.dsn()]})
    none, two, other = problems(cli("check", "--json"))
    assert none.startswith("v1: no node is a primary that answers: promote a replica")
    assert two.startswith("v2: 2 nodes are primaries, each with writes of its own: ")
    assert other.startswith("v2: its nodes are no copies of one another")
    assert f"leaves out postgres@127.0.0.1:{old.primary.port}/postgres, postgres@" in other


def test_check_finds_a_replica_of_another_cluster(
    cli: Cli, versions: Callable[..., None], old: PostgresCluster, new: PostgresCluster
) -> None:
    versions(v2={"primary": new.dsn(), "replicas": [new.standbys[0].dsn(), old.standbys[0].dsn()]})
    (other,) = problems(cli("check", "--json"))
    assert other.startswith("v2: its nodes are no copies of one another, by their system identifiers: ")
    theirs = f"postgres@127.0.0.1:{old.standbys[0].port}/postgres"
    assert f"; the router leaves out {theirs}: correct the addresses" in other
    shown = cli("status", "--json").json()["versions"]["v2"]["nodes"]
    assert [node["state"] for node in shown] == ["up", "up", "other system"]
    assert shown[2]["problems"][0].startswith("is of another system (")
    assert f"-  {theirs}  left out: is of another system (" in cli("explain", "--version", "v2", "--read-only").out


def test_check_finds_a_copy_among_the_replicas_that_nobody_promoted(
    cli: Cli, versions: Callable[..., None], new: PostgresCluster, cluster: PostgresCluster
) -> None:
    versions(v2={"primary": cluster.dsn(), "replicas": [new.dsn()]})
    role, fenced = problems(cli("check", "--json"))
    assert "is configured as replica and is a primary" in role
    assert (
        "is fenced: it is a primary, is configured as a replica, and was never promoted: it is on timeline 1" in fenced
    )
    assert [node["state"] for node in cli("status", "--json").json()["versions"]["v2"]["nodes"]] == ["up", "fenced"]


def test_check_and_status_see_a_primary_that_refuses_writes(
    cli: Cli, versions: Callable[..., None], new: PostgresCluster
) -> None:
    new.primary.execute("CREATE ROLE reporting LOGIN PASSWORD 'other'")
    new.primary.execute("ALTER ROLE reporting SET default_transaction_read_only = on")
    versions(v2={"primary": new.dsn(user="reporting", password="other")})
    (refuses,) = problems(cli("check", "--json"))
    assert "cannot be written to: default_transaction_read_only is on" in refuses
    status = cli("status", "--json")
    (node,) = status.json()["versions"]["v2"]["nodes"]
    assert (status.code, node["state"]) == (1, "read-only")
    assert node["problems"] == ["cannot be written to: default_transaction_read_only is on"]
    explained = cli("explain", "--version", "v2")
    assert explained.code == 1
    assert "primary, up, refuses writes: default_transaction_read_only is on" in explained.out


def test_check_sees_replay_that_is_paused(cli: Cli, both: None, new: PostgresCluster) -> None:
    standby = new.standbys[0]
    standby.pause_replay()
    try:
        (paused,) = problems(cli("check", "--json"))
    finally:
        standby.resume_replay()
    assert f":{standby.port}/postgres has paused replay" in paused


def test_check_sees_a_replica_that_receives_nothing(
    cli: Cli, versions: Callable[..., None], make_postgres_cluster: MakeCluster
) -> None:
    cluster = make_postgres_cluster(version=18, standbys=1)
    versions(v2={"nodes": [server.dsn() for server in cluster.servers]})
    cluster.primary.kill()
    standby = cluster.standbys[0]
    eventually(lambda: standby.execute("SELECT count(*) FROM pg_stat_wal_receiver") == [(0,)])
    unreachable, receives_nothing, no_primary = problems(cli("check", "--json"))
    cluster.close()
    assert "cannot be reached: Connection refused; start the server" in unreachable
    assert "receives nothing from its primary" in receives_nothing
    assert "no node is a primary that answers" in no_primary


@pytest.mark.parametrize(("processes", "enough"), [(3, True), (4, False)])
def test_check_counts_the_connections_that_all_processes_may_open(
    cli: Cli, versions: Callable[..., None], new: PostgresCluster, processes: int, enough: bool
) -> None:
    # 97 are allowed. The primary serves writes of both versions, and reads of the one that falls back to it.
    versions(
        one={"primary": new.dsn(), "replicas": [new.standbys[0].dsn()], "pool": {"max_size": 8}},
        two={"primary": new.dsn("template1"), "pool": {"max_size": 8}, "read": {"fallback": "error"}},
    )
    result = cli("check", "--json", "--processes", str(processes))
    found = result.json()["versions"]
    assert [node["connections_may_open"] for node in found["one"]] == [25 * processes, 9 * processes]
    assert found["two"][0]["connections_may_open"] == 25 * processes
    assert {node["connections_allowed"] for node in found["one"]} == {97}
    expected = (
        f"127.0.0.1:{new.primary.port} allows 97 connections, and this configuration may open 100 (4 x 25): lower"
    )
    assert [problem.startswith(expected) for problem in problems(result)] == ([] if enough else [True])


def test_check_knows_the_limit_of_a_role(cli: Cli, versions: Callable[..., None], new: PostgresCluster) -> None:
    new.primary.execute("CREATE ROLE few LOGIN PASSWORD 'few' CONNECTION LIMIT 4")
    try:
        versions(one={"primary": new.dsn(user="few", password="few"), "pool": {"max_size": 8}})
        result = cli("check", "--json", "--processes", "1")
    finally:
        new.primary.execute("DROP ROLE few")
    [node] = result.json()["versions"]["one"]
    assert node["connections_allowed"] == 4
    assert any("raise the limit of the server, role or database" in problem for problem in problems(result))


def test_check_knows_that_max_connections_caps_the_pools(cli: Cli, both: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_MAX_CONNECTIONS", "7")
    found = cli("check", "--json", "--processes", "2").json()["versions"]
    assert {node["connections_may_open"] for nodes in found.values() for node in nodes} == {14}


def test_check_needs_no_privilege_and_shows_what_it_may_not_see_as_unknown(
    cli: Cli, versions: Callable[..., None], new: PostgresCluster
) -> None:
    versions(v2={"nodes": [server.dsn(user="unprivileged", password="other") for server in new.servers]})
    result = cli("check", "--json")
    assert problems(result) == []
    assert [node["wal_receiver"] for node in result.json()["versions"]["v2"]] == [None, "running", "running"]


def test_check_of_one_version(cli: Cli, versions: Callable[..., None], new: PostgresCluster) -> None:
    versions(v1=REFUSED, v2={"primary": new.dsn()})
    assert cli("check", "--version", "v2").code == 0
    assert list(cli("check", "--version", "v1", "--json").json()["versions"]) == ["v1"]


@pytest.mark.parametrize(
    ("arguments", "settings", "wrong"),
    [
        ("", {}, False),
        ("--processes 1", {}, True),
        ("", {"ROUTER_MAX_CONNECTIONS": "200"}, True),
        ("", {"ROUTER_MAX_CONNECTIONS_PER_SERVER": "150"}, True),
        ("--processes 1", {"ROUTER_MAX_CONNECTIONS_PER_SERVER": "97"}, None),
    ],
)
def test_limits_that_are_the_defaults_are_no_mistake(
    arguments: str,
    settings: dict[str, str],
    wrong: bool | None,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cli, versions, new = map(request.getfixturevalue, ("cli", "versions", "new"))
    versions(v2={"primary": new.dsn()})
    monkeypatch.setenv("ROUTER_TENANT_TEMPLATE__SCHEMA", "tenant_{tenant}")  # there may be any number of pools
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    result = cli("check", "--json", *arguments.split())
    found, warnings = problems(result), result.json()["warnings"]
    may_open = settings.get("ROUTER_MAX_CONNECTIONS_PER_SERVER", "200")
    expected = f"127.0.0.1:{new.primary.port} allows 97 connections, and this configuration may open {may_open} "
    assert [[text.startswith(expected) for text in texts] for texts in (found, warnings)] == [
        [True] if wrong else [],
        [True] if wrong is False else [],
    ]
    if wrong is False:
        end = "once one of them is set, or with --processes, this is an error"
        assert warnings[0].endswith(end)
        shown = cli("check").out
        assert f"\nwarnings:\n- {expected}" in shown
        assert shown.endswith("\nall is fine (1 node), 1 warning\n")


def test_check_warns_of_several_servers_behind_one_address(
    cli: Cli, versions: Callable[..., None], new: PostgresCluster
) -> None:
    with Proxy("127.0.0.1", new.primary.port) as one, Proxy("127.0.0.1", new.standbys[0].port) as other:
        one.lead_to(*new.standbys)
        replicas = [make_conninfo(new.dsn(), port=str(proxy.port)) for proxy in (one, other)]
        versions(v2={"primary": new.dsn(), "replicas": replicas})
        result = cli("check", "--json")
        assert problems(result) == []
        (warning,) = result.json()["warnings"]
    assert warning.startswith(f"v2: several servers answer at postgres@127.0.0.1:{one.port}/postgres, and")


def test_check_warns_of_a_pooler_that_is_not_declared(
    cli: Cli, versions: Callable[..., None], cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pooler("127.0.0.1", cluster.primary.port) as pooler:
        dsn = make_conninfo(cluster.dsn(), port=str(pooler.port))
        versions(v2={"primary": dsn})
        result = cli("check", "--json")
        assert problems(result) == []
        (warning,) = result.json()["warnings"]
        assert warning.startswith(f"v2: postgres@127.0.0.1:{pooler.port}/postgres is a pooler, such as PgBouncer: ")
        monkeypatch.setenv("ROUTER_TENANT_TEMPLATE__SCHEMA", "tenant_{tenant}")
        monkeypatch.setenv("ROUTER_MAX_CONNECTIONS", "50")
        assert problems(cli("check", "--json")) == [warning]
        versions(v2={"primary": {"dsn": dsn, "pooler": "transaction"}})
        result = cli("check", "--json")
        assert (problems(result), result.json()["warnings"]) == ([], [])


def test_check_warns_of_what_libpq_is_told_about_roles(
    cli: Cli, versions: Callable[..., None], new: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(v2={"primary": new.dsn()})
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "primary")
    (warning,) = cli("check", "--json").json()["warnings"]
    assert warning.startswith("PGTARGETSESSIONATTRS is set")


def test_check_says_when_a_login_is_refused(cli: Cli, versions: Callable[..., None], new: PostgresCluster) -> None:
    versions(v2={"primary": {"dsn": new.dsn(), "password": f"not-{CANARY}"}})
    (refused,) = problems(cli("check", "--json"))
    assert "refuses the login: " in refused
    assert "correct user, password or database" in refused
    assert "primary, login refused" in cli("check").out


@pytest.mark.slow
def test_a_terminal_gets_a_drawn_table_and_colours_unless_no_color(both: None) -> None:
    def in_terminal(**variables: str) -> str:
        code, shown = on_terminal([*ROUTER, "check"], environment(**variables))
        assert code == 0
        return shown

    colours = re.compile(r"\x1b\[[0-9;]*3[0-9]m")
    shown = in_terminal(TERM="xterm-256color")
    assert "────" in shown
    assert colours.search(shown)
    shown = in_terminal(TERM="xterm-256color", NO_COLOR="1")
    assert "────" in shown
    assert not colours.search(shown)
    shown = in_terminal(TERM="dumb")
    assert not re.search("────|\x1b", shown)


# explain


def test_explain_looks_at_the_nodes_first(cli: Cli, both: None, new: PostgresCluster) -> None:
    primary, *standbys = (f"postgres@127.0.0.1:{server.port}/postgres" for server in new.servers)
    result = cli("explain", "--version", "v2", "--read-only")
    assert result.code == 0
    assert result.out.splitlines() == [
        "Route to v2 for reading",
        f"  1. {standbys[0]}  replica, up",
        f"  2. {standbys[1]}  replica, up",
        f"  3. {primary}  primary, up",
        "  the first 2 are equally good: least_busy (read.balance)",
    ]
    route = cli("explain", "--version", "v2", "--json").json()
    assert route["nodes"][0] == {"node": primary, "role": "primary", "up": True, "note": "primary, up", "refused": None}
    assert [node["refused"] for node in route["nodes"][1:]] == ["is a replica"] * 2


def test_explain_offline_connects_to_nobody(cli: Cli, versions: Callable[..., None]) -> None:
    versions(v1={"nodes": [REFUSED]})
    result = cli("explain", "--version", "v1", "--offline")
    assert result.code == 0
    assert result.out == "Route to v1 for writing\n  1. app@127.0.0.1:1/app  role unknown, not probed yet\n"


def test_explain_fails_when_no_node_can_serve(cli: Cli, versions: Callable[..., None]) -> None:
    versions(v1={"primary": REFUSED})
    result = cli("explain", "--version", "v1")
    assert result.code == 1
    assert "primary, down: Connection refused" in result.out


# dsn and psql


def test_dsn_gives_the_right_node_without_the_password(
    cli: Cli, both: None, monkeypatch: pytest.MonkeyPatch, new: PostgresCluster
) -> None:
    write, read = cli("dsn", "--version", "v2"), cli("dsn", "--version", "v2", "--read-only")
    assert write.out == f"postgresql://postgres@127.0.0.1:{new.primary.port}/postgres\n"
    monkeypatch.setenv("PGPASSWORD", CANARY)
    with psycopg.connect(write.out.strip()) as connection:
        assert connection.info.port == new.primary.port
    with psycopg.connect(read.out.strip()) as connection:
        assert connection.info.port in {standby.port for standby in new.standbys}
        assert connection.execute("SHOW default_transaction_read_only").fetchone() == ("on",)


def test_dsn_keeps_every_parameter_but_the_secret_ones(
    cli: Cli, versions: Callable[..., None], new: PostgresCluster
) -> None:
    own = {"options": "-c work_mem=1MB", "application_name": "a b/c?&=%", "sslpassword": CANARY}
    versions(v2={"primary": new.dsn(host=str(new.directory), **own)})
    found = psycopg.conninfo.conninfo_to_dict(cli("dsn", "--version", "v2", "--read-only").out.strip())
    del own["sslpassword"]
    assert found == {
        **own,
        "options": "-c work_mem=1MB -c default_transaction_read_only=on",
        "host": str(new.directory),
        "port": str(new.primary.port),
        "user": "postgres",
        "dbname": "postgres",
    }


def test_dsn_fails_in_plain_lines_when_no_node_can_serve(cli: Cli, versions: Callable[..., None]) -> None:
    versions(v1={"primary": REFUSED, "pool": {"timeout": 1.0}})
    result = cli("dsn", "--version", "v1")
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(
        r"no node of version 'v1' can be written to now\n  - app@127.0.0.1:1/app: .*Connection refused\n", result.err
    )


def run_psql(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ROUTER, "psql", *arguments], env=environment(PATH=str(path)), capture_output=True, text=True, check=False
    )


@pytest.fixture
def psql(tmp_path: Path) -> Callable[..., tuple[list[str], dict[str, str]]]:
    """Runs `router psql` with a psql that writes down its arguments and its environment."""
    program = tmp_path / "psql"
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv, dict(os.environ)]))\nsys.exit(3)\n",
        encoding="utf-8",
    )
    program.chmod(0o755)

    def run(*arguments: str) -> tuple[list[str], dict[str, str]]:
        done = run_psql(tmp_path, *arguments)
        assert (done.returncode, done.stderr) == (3, "")
        (_, *passed), variables = json.loads(done.stdout)
        assert CANARY not in " ".join(passed)
        return passed, variables

    return run


def test_psql_gets_the_node_and_the_password_by_environment(
    psql: Callable[..., tuple[list[str], dict[str, str]]], both: None, new: PostgresCluster
) -> None:
    passed, variables = psql("--version", "v2", "--", "-c", "SELECT 1", "--version")
    assert passed == [
        "-d",
        f"postgresql://postgres@127.0.0.1:{new.primary.port}/postgres",
        "-c",
        "SELECT 1",
        "--version",
    ]
    assert variables["PGPASSWORD"] == CANARY
    assert "PGOPTIONS" not in variables


@pytest.mark.slow
def test_psql_for_reading_refuses_writes_whatever_options_there_are(
    psql: Callable[..., tuple[list[str], dict[str, str]]],
    versions: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    new: PostgresCluster,
) -> None:
    versions(
        plain={"primary": new.dsn()},
        own={"primary": new.dsn(options="-c work_mem=1MB")},
    )
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=2MB")
    for name, size in (("plain", "2MB"), ("own", "1MB")):
        (_, uri), variables = psql("--version", name, "--read-only")
        assert "options" not in uri
        assert variables["PGOPTIONS"] == f"-c work_mem={size} -c default_transaction_read_only=on"


def test_psql_that_is_not_installed_is_one_line(both: None, tmp_path: Path) -> None:
    done = run_psql(tmp_path, "--version", "v2")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "psql cannot be run (No such file or directory): install PostgreSQL's client programs"
    )
    assert done.stderr.count("\n") == 1


# schema and init


def test_schema_prints_the_schema_of_the_settings_file(cli: Cli) -> None:
    assert cli("schema").out == (ROOT / "config" / "router.schema.json").read_text(encoding="utf-8")


def test_init_writes_the_commented_example(cli: Cli, tmp_path: Path) -> None:
    written = tmp_path / "router.toml"
    result = cli("init")
    assert result.code == 0
    assert result.out == "wrote router.toml: put your servers in, then run: router check\n"
    assert written.read_bytes() == (ROOT / "config" / "router.toml").read_bytes()
    assert cli("explain", "--offline").code == 0  # it is found
    assert cli("init", "mine.toml").out.endswith("then run: router check --config mine.toml\n")


def test_no_settings(cli: Cli) -> None:
    assert "`router init` writes a router.toml to start from" in cli("check").err


def test_init_overwrites_only_by_force(cli: Cli, tmp_path: Path) -> None:
    written = tmp_path / "mine.toml"
    written.write_text("mine", encoding="utf-8")
    result = cli("init", "mine.toml")
    assert (result.code, result.out) == (2, "")
    assert result.err == "mine.toml exists: nothing was written; --force overwrites it\n"
    assert written.read_text(encoding="utf-8") == "mine"
    assert cli("init", "mine.toml", "--force").code == 0
    assert written.read_text(encoding="utf-8") != "mine"


def test_init_writes_toml_where_it_can(cli: Cli) -> None:
    assert cli("init", "router.yaml").code == 2
    result = cli("init", "missing/router.toml")
    assert (result.code, result.err) == (1, "missing/router.toml cannot be written: No such file or directory\n")


# demo


def directory_of(keeper: int | str) -> str:
    return Path(f"/proc/{keeper}/cmdline").read_text(encoding="utf-8").split("\0")[-2]


def serving(process: subprocess.Popen[str], line: str = " failed") -> dict[int, str]:
    """Wait until a demo reports what it serves, and give its keepers and their directories, one for each version."""
    assert process.stderr is not None
    while line not in (read := process.stderr.readline()):
        assert read, "it ended before"
    # The threads that started them have ended, and left them to the main one.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8")
    keepers = [int(pid) for pid in children.split()]
    assert len(keepers) == 2
    return {keeper: directory_of(keeper) for keeper in keepers}


def start_demo(*arguments: str) -> subprocess.Popen[str]:
    # What the environment says is not meant for the demo's own servers.
    unfit = environment(ROUTER_VERSIONS="{", ROUTER_CONFIG="missing.toml", PGSSLMODE="require", PGOPTIONS="-c bogus=1")
    command = [*ROUTER, "demo", "--json", *arguments]
    return subprocess.Popen(command, env=unfit, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def served(summary: Any) -> set[tuple[str, str, str, str]]:
    return {
        (row["version"], row["use"], row["role"], row["server_version"].partition(".")[0]) for row in summary["served"]
    }


def accidents(summary: Any) -> list[tuple[str, ...]]:
    """What happened, and to whom: the ports."""
    return [(re.sub(r":\d+", ":", what["what"]), *re.findall(r":(\d+)", what["what"])) for what in summary["accidents"]]


ALL_OF_IT = {
    ("v1", "write", "primary", "16"),
    ("v1", "read", "standby", "16"),
    ("v2", "write", "primary", "18"),
    ("v2", "read", "standby", "18"),
}
STANDBY_KILLED = "kill -9: v2's standby :"
PRIMARY_KILLED = "kill -9: v2's primary :; standby : promoted"
BACK = "v2's killed servers are back as standbys: :, :"
WRITERS_OF_V2 = 2


@pytest.mark.slow
def test_demo_routes_across_two_versions_through_accidents_and_leaves_nothing_behind() -> None:
    with start_demo("--seconds", "3") as process:
        keepers = serving(process)
        out, _ = process.communicate()
    assert process.returncode == 0
    summary = json.loads(out)
    assert (summary["failed"], summary["failures"], summary["kept"]) == (0, {}, None)
    assert served(summary) >= ALL_OF_IT
    assert summary["requests"] == sum(row["requests"] for row in summary["served"]) > 100
    assert not any(Path(f"/proc/{pid}").exists() or Path(directory).exists() for pid, directory in keepers.items())

    (killed, one), (failed_over, old, successor), (back, *returned) = accidents(summary)
    assert (killed, failed_over, back) == (STANDBY_KILLED, PRIMARY_KILLED, BACK)
    assert {*returned} == {one, old}
    assert successor not in returned
    ports = {(row["use"], row["role"], str(row["port"])) for row in summary["served"] if row["version"] == "v2"}
    assert {("write", "primary", old), ("write", "primary", successor)} <= ports
    assert {("read", "standby", one), ("read", "standby", successor)} <= ports
    assert summary["accidents"][1]["seconds"] > 0.55 * 3
    assert summary["writes_gap_seconds"] >= summary["writes_gap_after_promotion_seconds"] >= 0
    assert summary["writes_in_flight_failed"] <= WRITERS_OF_V2
    written = sum(row["requests"] for row in summary["served"] if row["use"] == "write")
    assert (summary["writes_acknowledged"], summary["writes_lost"]) == (written, 0)


def test_demo_says_how_long_writes_waited_and_that_nothing_was_lost(cli: Cli) -> None:
    result = cli("demo", "--seconds", "0.5")
    assert result.code == 0
    shown = re.sub(r":\d+", ":", result.out)
    for line in (STANDBY_KILLED, PRIMARY_KILLED, BACK):
        told = rf"^ +\d+ s  {re.escape(line)}$"
        assert len(re.findall(told, shown, re.MULTILINE)) == 2, "when it happened, and in the summary"
    assert re.search(r"\nv2's writes waited \d+\.\d\d s for their new primary, \d+\.\d\d s of it after its", shown)
    assert re.search(r"\n0 of [\d,]+ acknowledged writes were lost, 0 of [\d,]+ reads failed\n", shown)


@pytest.mark.slow
def test_demo_ends_early_by_ctrl_c_with_its_summary() -> None:
    with start_demo("--seconds", "600") as process:
        keepers = serving(process)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    assert process.returncode == 0
    summary = json.loads(out)
    assert (served(summary), summary["accidents"], summary["writes_gap_seconds"]) == (ALL_OF_IT, [], None)
    assert not any(Path(f"/proc/{pid}").exists() or Path(directory).exists() for pid, directory in keepers.items())


@pytest.mark.slow
def test_demo_that_ctrl_c_ends_during_an_accident_finishes_it() -> None:
    with start_demo("--seconds", "2") as process:
        keepers = serving(process)
        # The killed servers are coming back from here on.
        eventually(lambda: any(Path(directory, "pg_basebackup.log").exists() for directory in keepers.values()))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 0
    assert "Traceback" not in err
    assert [what for what, *_ in accidents(json.loads(out))] == [STANDBY_KILLED, PRIMARY_KILLED, BACK]
    assert not any(Path(f"/proc/{pid}").exists() or Path(directory).exists() for pid, directory in keepers.items())


@pytest.mark.slow
@pytest.mark.parametrize("interrupted", [False, True])
def test_demo_keeps_its_servers_and_says_how_to_use_and_to_stop_them(cli: Cli, interrupted: bool) -> None:
    with start_demo("--seconds", "3" if interrupted else "0.5", "--keep") as process:
        if interrupted:
            serving(process, "kill -9: v2's standby")  # which is down
            process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    kept = json.loads(out)["kept"]
    command, *keepers = kept["stop"].split()
    try:
        assert (process.returncode, command, len(keepers)) == (0, "kill", 2)
        directories = [Path(directory_of(keeper)) for keeper in keepers]
        assert all(directory.is_dir() for directory in directories)
        checked = cli("check", "--config", kept["config"], "--json")
        assert problems(checked) == []
        roles = [node["role"] for node in checked.json()["versions"]["v2"]]
        assert sorted(roles) == ["primary", "replica", "replica"]
        assert interrupted or roles[0] == "replica", "the settings are true of the servers as they are now"
        password = Path(kept["config"]).with_name("password").read_text(encoding="utf-8")
        assert password
        assert password not in out + err + Path(kept["config"]).read_text(encoding="utf-8")
    finally:
        for keeper in keepers:
            os.kill(int(keeper), signal.SIGTERM)
    eventually(lambda: not any(directory.exists() for directory in directories))


LOST_WRITE = """
    WITH other AS (INSERT INTO customer (first_name, last_name) VALUES (%s, %s) RETURNING *)
    SELECT -id, concat_ws(' ', first_name, last_name), server.* FROM other, server
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ({"read": "SELECT 'wrong', 1, '', false WHERE %s > 0"}, "v2 read: ValueError: the answer is 'wrong', not "),
        ({"write": LOST_WRITE}, None),
    ],
    ids=["wrong answer", "lost write"],
)
def test_demo_fails_when_a_request_fails_or_a_write_is_lost(
    monkeypatch: pytest.MonkeyPatch, cli: Cli, broken: dict[str, Any], found: str | None
) -> None:
    from router.cli import demo
    from router.cli._service import RELEASES

    old, new = RELEASES
    monkeypatch.setattr(demo, "RELEASES", (old, replace(new, **broken)))
    result = cli("demo", "--seconds", "0.5", "--json")
    assert result.code == 1
    summary = result.json()
    if found:
        assert summary["failed"] == sum(summary["failures"].values()) > WRITERS_OF_V2
        assert {failure.startswith(found) for failure in summary["failures"]} == {True}
        assert summary["writes_lost"] == 0
    else:
        assert (summary["failed"], summary["failures"]) == (0, {})
        assert summary["writes_lost"] == sum(
            row["requests"] for row in summary["served"] if (row["version"], row["use"]) == ("v2", "write")
        )


@pytest.mark.parametrize(
    ("dead_at", "error", "in_flight"),
    [
        (-inf, psycopg.OperationalError("lost"), 0),
        (inf, psycopg.OperationalError("lost"), WRITERS_OF_V2),
        (inf, NoPrimary("none came up", version="v2"), 0),
        (inf, psycopg.DataError("its own fault"), 0),
    ],
    ids=["before the kill", "in flight", "never on a server", "not lost"],
)
def test_demo_excuses_a_write_in_flight_on_the_killed_primary_once_a_writer_and_nothing_else(
    dead_at: float, error: Exception, in_flight: int
) -> None:
    from router.cli._service import RELEASES, Load

    class Broken:
        def fail(self, *arguments: Any, **options: Any) -> None:
            raise error

        connection = execute = fail

    accidents: Any = SimpleNamespace(version="v2", dead_at=dead_at)
    load = Load(Broken(), accidents, RELEASES)  # type: ignore[arg-type]
    with load.running():
        eventually(lambda: len(load.failures) > 100)
    assert [(failure.version, failure.use) for failure in load.in_flight] == [("v2", "write")] * in_flight
    assert (load.served, load.written) == ({}, [])
