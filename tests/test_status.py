"""``router status``: what it shows of servers in every condition, once and again and again."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest

from router.cli import main
from tests.support import PATIENCE, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from router.testing import PostgresCluster, PostgresServer
    from router.testing._plugin import MakeCluster

CANARY = "canary-hunter2"
COMMAND = [sys.executable, "-m", "router.cli", "status"]
PYTHONPATH = str(Path(__file__).parent.parent)


class Shown(NamedTuple):
    code: int
    out: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """Of all versions, one after the other."""
        return nodes(self.json)


def nodes(report: Any) -> list[dict[str, Any]]:
    return [node for version in report["versions"].values() for node in version["nodes"]]


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Shown]:
    """Runs the command; whatever it finds, it shows no password and says nothing on stderr."""

    def run(*arguments: str) -> Shown:
        monkeypatch.setattr(sys, "argv", ["router", "status", "--timeout", "10", *arguments])  # the last one counts
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert err == ""
        assert CANARY not in out
        return Shown(int(ended.value.code or 0), out)

    return run


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Configures versions in the environment."""

    def configure(**configured: Any) -> None:
        monkeypatch.setenv("ROUTER_VERSIONS", json.dumps(configured))

    return configure


@pytest.fixture(scope="module")
def pg(make_postgres_cluster: MakeCluster) -> PostgresCluster:
    """A primary and a standby that every test leaves as they were; nobody but the tests commits anything."""
    cluster: PostgresCluster = make_postgres_cluster(
        version=18, standbys=1, password=CANARY, settings={"autovacuum": False}
    )
    cluster.primary.execute("CREATE ROLE unprivileged LOGIN PASSWORD 'other'")
    cluster.wait_replayed()
    return cluster


@pytest.fixture
def deaf() -> Iterator[socket.socket]:
    """Takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        yield listener


@contextmanager
def paused(standby: PostgresServer) -> Iterator[None]:
    standby.pause_replay()
    try:
        yield
    finally:
        standby.resume_replay()


def commit(server: PostgresServer) -> None:
    server.execute("SELECT pg_logical_emit_message(true, 'test', '')")


# Once


def test_every_node_of_every_version_is_shown(
    status: Callable[..., Shown], versions: Callable[..., None], pg: PostgresCluster
) -> None:
    pg.wait_replayed()
    versions(v1=pg.version_settings(), v2={"nodes": [pg.primary.dsn("template1")]})
    result = status("--json")
    assert (result.code, result.json["ok"]) == (0, True)
    primary, standby = (f"postgres@127.0.0.1:{server.port}/postgres" for server in pg.servers)
    assert {name: version["primary"] for name, version in result.json["versions"].items()} == {
        "v1": primary,
        "v2": primary.replace("/postgres", "/template1"),
    }
    first, second, third = result.nodes
    assert 0 < first.pop("latency") < PATIENCE
    assert first == {
        "node": primary,
        "host": "127.0.0.1",
        "port": pg.primary.port,
        "configured_role": "primary",
        "role": "primary",
        "state": "up",
        "lag": None,
        "lag_bytes": None,
        "in_use": first["in_use"],
        "idle": first["idle"],
        "waiting": 0,
        "problems": [],
    }
    assert (second["node"], second["role"], second["lag"], second["lag_bytes"]) == (standby, "replica", 0.0, 0)
    assert (third["role"], third["configured_role"]) == ("primary", None)


def test_a_plain_table_when_nobody_sees_it(
    status: Callable[..., Shown], versions: Callable[..., None], pg: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    pg.wait_replayed()
    versions(v1={"nodes": [pg.primary.dsn("template1"), pg.standbys[0].dsn("template1")]}, v2=pg.version_settings())
    monkeypatch.setenv("ROUTER_ALIASES", '{"stable": "v1"}')
    result = status("--version", "stable")
    assert result.code == 0
    heading, *rows = result.out.splitlines()
    assert re.split(r" {2,}", heading.strip()) == [
        *("version", "node", "role", "state", "lag s", "lag bytes", "in use", "idle", "waiting", "probe ms")
    ]
    for row, server, expected in zip(rows, pg.servers, ("primary +up", r"replica +up +0\.0 +0"), strict=False):
        node = f"postgres@127.0.0.1:{server.port}/template1"
        assert re.fullmatch(rf"v1 +{node} +{expected} +0 +0 +0 +\d+\.\d *", row)
    assert "".join(rows[2:]).strip() == ""


def test_connections_are_those_of_the_nodes_user_and_database(
    status: Callable[..., Shown], versions: Callable[..., None], pg: PostgresCluster
) -> None:
    own = pg.dsn("template1", "unprivileged", password="other")
    versions(v1={"primary": own}, v2={"primary": pg.dsn("template1")})
    with ExitStack() as stack:

        def connect(dsn: str) -> psycopg.Connection[Any]:
            return stack.enter_context(psycopg.connect(dsn))

        connect(pg.dsn("template1")).execute("SELECT 1")
        connect(pg.dsn("postgres", "unprivileged", password="other")).execute("SELECT 1")
        connect(own)
        waits, holds = connect(own), connect(own)
        holds.execute("SELECT pg_advisory_lock(1)")
        waiting = Thread(target=waits.execute, args=["SELECT pg_advisory_lock(1)"])
        waiting.start()
        found, others = eventually(lambda: found if (found := status("--json").nodes)[0]["waiting"] else [])
        assert (found["in_use"], found["idle"], found["waiting"]) == (2, 1, 1)
        assert (others["in_use"], others["idle"], others["waiting"]) == (1, 0, 0)
        holds.execute("SELECT pg_advisory_unlock(1)")
        waiting.join()


def test_a_replica_that_is_behind(
    status: Callable[..., Shown],
    versions: Callable[..., None],
    pg: PostgresCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions(v1=pg.version_settings())
    pg.wait_replayed()
    with paused(pg.standbys[0]):
        commit(pg.primary)
        _, behind = status("--json").nodes
        assert behind["lag"] > 0
        assert behind["lag_bytes"] > 0
        assert behind["problems"] == []
        monkeypatch.setenv("ROUTER_READ__MAX_LAG", "0.000001")
        monkeypatch.setenv("ROUTER_READ__MAX_LAG_BYTES", "1000000")
        result = status("--json")
        assert result.nodes[1]["problems"] == ["is stale: read.max_lag is 1e-06 and read.max_lag_bytes is 1,000,000"]
        assert (result.code, result.nodes[1]["state"]) == (0, "up")
    pg.wait_replayed()
    assert status("--json").nodes[1]["problems"] == []


def test_a_replica_is_of_unknown_freshness_without_its_primary(
    status: Callable[..., Shown], versions: Callable[..., None], pg: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(v1={"nodes": [pg.standbys[0].dsn()]})
    monkeypatch.setenv("ROUTER_READ__MAX_LAG", "1000000")
    result = status("--json")
    (node,) = result.nodes
    assert (result.code, result.json["versions"]["v1"]["primary"]) == (1, None)
    assert (node["state"], node["lag"], node["lag_bytes"]) == ("up", None, None)
    assert node["problems"] == ["is stale: read.max_lag is 1,000,000.0"]
    result = status()
    assert re.search(r" up +unknown +unknown ", result.out)
    assert result.out.endswith(
        f"\n- v1: {node['node']} is stale: read.max_lag is 1,000,000.0\n- v1 has no primary that can be written to\n"
    )


def test_a_role_that_is_not_the_configured_one(
    status: Callable[..., Shown], versions: Callable[..., None], pg: PostgresCluster
) -> None:
    versions(v1={"primary": pg.standbys[0].dsn(), "replicas": [pg.primary.dsn()]})
    result = status("--json")
    assert [node["problems"] for node in result.nodes] == [
        ["is configured as primary and is a replica"],
        ["is configured as replica and is a primary"],
    ]
    assert (result.code, result.json["versions"]["v1"]["primary"]) == (0, result.nodes[1]["node"])


def test_a_login_that_is_refused_is_no_dead_server(
    status: Callable[..., Shown], versions: Callable[..., None], pg: PostgresCluster
) -> None:
    versions(
        v1={"primary": {"dsn": pg.dsn(), "password": f"not-{CANARY}"}, "replicas": [pg.standbys[0].dsn()]},
        v2={"primary": pg.dsn("template1")},
    )
    result = status("--json")
    refused, *others = result.nodes
    assert (refused["state"], refused["latency"], refused["in_use"]) == ("login refused", None, None)
    (problem,) = refused["problems"]
    assert problem.startswith("refuses the login: FATAL: password authentication failed")
    assert [node["state"] for node in others] == ["up", "up"]
    assert [version["primary"] is None for version in result.json["versions"].values()] == [True, False]
    assert (result.code, result.json["ok"]) == (1, False)


def test_a_frozen_server_holds_nobody_up(
    status: Callable[..., Shown], versions: Callable[..., None], pg: PostgresCluster
) -> None:
    versions(v1=pg.version_settings())
    standby = pg.standbys[0]
    standby.freeze()
    try:
        begun = time.monotonic()
        result = status("--json", "--timeout", "0.7")
        took = time.monotonic() - begun
    finally:
        standby.thaw()
    primary, frozen = result.nodes
    assert (primary["state"], frozen["state"], result.code) == ("up", "down", 1)
    assert frozen["problems"] == ["is down: no answer within 0.7 s"]
    assert took < 2, "as libpq would let it take"


def test_killed_servers_and_a_split_brain(
    status: Callable[..., Shown], versions: Callable[..., None], make_postgres_cluster: MakeCluster
) -> None:
    cluster = make_postgres_cluster(version=18, standbys=2)
    old, new, third = cluster.servers
    versions(v1={"nodes": [server.dsn() for server in cluster.servers]})
    new.promote()
    third.kill()
    result = status("--json")
    assert (result.code, result.json["versions"]["v1"]["primary"]) == (1, result.nodes[1]["node"])
    assert [(node["role"], node["state"]) for node in result.nodes] == [
        ("primary", "fenced"),
        ("primary", "up"),
        (None, "down"),
    ]
    assert [node["problems"] for node in result.nodes] == [
        [f"is fenced: it is a primary on timeline 1, and 127.0.0.1:{new.port} is on the later timeline 2"],
        [],
        ["is down: Connection refused"],
    ]
    assert re.search(rf":{third.port}/postgres +unknown +down *$", status().out, re.MULTILINE)
    new.kill()
    result = status("--json")
    assert result.json["versions"]["v1"]["primary"] == result.nodes[0]["node"], "who else is there is not known"
    old.kill()
    result = status()
    cluster.close()
    assert result.code == 1
    assert result.out.endswith("\n- v1 has no primary that can be written to\n")


def test_two_primaries_that_are_no_copies_the_first_configured_one_stays(
    status: Callable[..., Shown], versions: Callable[..., None], pg: PostgresCluster, cluster: PostgresCluster
) -> None:
    for first, second in ((pg, cluster), (cluster, pg)):
        versions(v1={"nodes": [first.dsn(), second.dsn()]})
        assert [node["state"] for node in status("--json").nodes] == ["up", "fenced"]


# Again and again


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Iterator[str]]]:
    """Starts `--watch`, and gives its lines; it ends by SIGINT, quietly and at once."""
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setenv("ROUTER_HEALTH__INTERVAL", "0.1")
    with ExitStack() as stack:

        def start(*arguments: str) -> Iterator[str]:
            process = stack.enter_context(
                subprocess.Popen(
                    [*COMMAND, "--watch", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
            assert process.stdout is not None
            line = process.stdout.readline()  # from here on, it is in its loop

            def end() -> None:
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=PATIENCE)
                assert (process.returncode, err) == (0, "")
                assert CANARY not in out

            stack.callback(end)
            yield line
            for line in process.stdout:  # `yield from` would close it with this generator, and break its pipe
                yield line

        yield start


def until(lines: Iterator[str], holds: Callable[[list[dict[str, Any]]], object]) -> Any:
    """The first report of whose nodes something holds."""
    deadline = time.monotonic() + PATIENCE
    for line in lines:
        assert time.monotonic() < deadline, "it did not happen"
        report = json.loads(line)
        if holds(nodes(report)):
            return report
    pytest.fail("it ended before")


def moment(report: Any) -> float:
    return datetime.fromisoformat(report["at"]).timestamp()


def test_watch_measures_the_lag(
    watch: Callable[..., Iterator[str]],
    status: Callable[..., Shown],
    versions: Callable[..., None],
    pg: PostgresCluster,
) -> None:
    pg.wait_replayed()
    versions(v1=pg.version_settings())
    lines = watch("--json")
    before, _ = (until(lines, lambda found: found[1]["lag_bytes"] == 0) for _ in range(2))
    assert nodes(before)[1]["lag"] == 0.0
    with paused(pg.standbys[0]):
        commit(pg.primary)
        behind = until(lines, lambda found: found[1]["lag_bytes"])
        passed = moment(behind) - moment(before)
        assert nodes(behind)[1]["lag"] < passed
        assert status("--json").nodes[1]["lag"] > passed, "one look knows the age of the last commit only"
    until(lines, lambda found: found[1]["lag_bytes"] == 0)


def test_watch_sees_a_server_die_and_come_back(
    watch: Callable[..., Iterator[str]],
    versions: Callable[..., None],
    pg: PostgresCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROUTER_HEALTH__BAN", "100")
    monkeypatch.setenv("ROUTER_HEALTH__BAN_MAX", "100")
    versions(v1={"nodes": [server.dsn() for server in pg.servers]})
    standby = pg.standbys[0]
    lines = watch("--json")
    until(lines, lambda found: found[1]["state"] == "up")
    standby.kill()
    _, down = nodes(until(lines, lambda found: found[1]["state"] == "down"))
    assert (down["role"], down["lag"], down["in_use"]) == ("replica", None, None), "its role is remembered"
    standby.start()
    _, back = nodes(until(lines, lambda found: found[1]["state"] == "up"))
    (avoided,) = back["problems"]
    assert re.fullmatch(r"is avoided for \d+\.\d s more: it went down 1 time recently", avoided)


def test_watch_goes_on_while_a_server_never_answers_and_leaves_it_alone(
    watch: Callable[..., Iterator[str]], versions: Callable[..., None], pg: PostgresCluster, deaf: socket.socket
) -> None:
    dsn = f"postgresql://app:{CANARY}@127.0.0.1:{deaf.getsockname()[1]}/app?connect_timeout=600"
    versions(v1={"primary": pg.dsn(), "replicas": [dsn]})
    lines = watch("--json", "--timeout", "0.2")
    for _ in range(5):
        until(lines, lambda found: [node["state"] for node in found] == ["up", "down"])
    with deaf.accept()[0], pytest.raises(BlockingIOError):
        deaf.accept()


def test_watch_shows_a_look_when_it_is_over_and_ends_without_another(
    watch: Callable[..., Iterator[str]],
    versions: Callable[..., None],
    pg: PostgresCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROUTER_HEALTH__INTERVAL", "600")
    versions(v1=pg.version_settings())
    assert json.loads(next(watch("--json")))["ok"]


def test_watch_prints_one_table_after_the_other_when_nobody_sees_it(
    watch: Callable[..., Iterator[str]], versions: Callable[..., None], pg: PostgresCluster
) -> None:
    versions(v1=pg.version_settings())
    lines = watch()
    for _ in range(2):
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", next(lines))
        assert next(lines).startswith("version ")
        assert [re.split(r" +", next(lines))[:4:2] for _ in range(2)] == [["v1", "primary"], ["v1", "replica"]]


def test_watch_stays_in_its_place_on_a_terminal(versions: Callable[..., None], pg: PostgresCluster) -> None:
    versions(v1=pg.version_settings())
    screen, end = pty.openpty()
    with os.fdopen(screen, "rb", closefd=True) as reader:
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "TERM": "xterm", "ROUTER_HEALTH__INTERVAL": "0.1"}
        process = subprocess.Popen([*COMMAND, "--watch"], env=environment, stdout=end, stderr=end)
        os.close(end)
        shown = b""
        while shown.count(b"\x1b[1A") < 5:  # up, over what it showed before
            shown += reader.read1()
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # EIO: the other end is closed
            while part := reader.read1():
                shown += part
        assert process.wait(PATIENCE) == 0
    assert shown.endswith(b"\x1b[?25h"), "the cursor is back, and nothing said after it"
    assert b"Traceback" not in shown
