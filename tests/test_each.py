"""``router each``: a command or SQL for many tenants, each of them once, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

import psycopg
import pytest

from router.cli import _job, main
from router.cli._tenants import UNLISTED
from router.testing._binaries import account, cache_directory, programs
from tests.support import PATIENCE, eventually, new_name, one_of_each, run, short_and_long
from tests.terminal import on_terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.testing import PostgresCluster
    from router.testing._plugin import MakeCluster

CANARY = "canary-hunter2"
MANY = 300
ROUTER = [sys.executable, "-m", "router.cli"]
LOG = Path("router-each.log")
SQL = Path("work.sql")
GO_ON = Path("go-on")


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def each(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs the command; whatever happens, it shows no password and no traceback, and neither does its log."""

    def call(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["router", "each", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert CANARY not in out + err + (LOG.read_text(encoding="utf-8") if LOG.exists() else "")
        assert "Traceback" not in err
        return Result(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture(scope="module")
def server(make_postgres_cluster: MakeCluster) -> PostgresCluster:
    cluster: PostgresCluster = make_postgres_cluster(version=18, standbys=1, password=CANARY)
    cluster.primary.execute("CREATE TABLE done (tenant text, note text)")
    cluster.primary.execute(
        f"DO $$ BEGIN FOR n IN 1..{MANY} LOOP EXECUTE format('CREATE SCHEMA t%s', n); END LOOP; END $$"
    )
    return cluster


@pytest.fixture
def psql(server: PostgresCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts psql, and what else the commands run, on the path."""
    directory = programs(18, cache_directory(account()), account())
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def tenants(server: PostgresCluster, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Configures so many tenants, with a schema each, and forgets what was done for them."""

    def configure(count: int, **variables: Any) -> list[str]:
        server.primary.execute("TRUNCATE done")
        keys = [f"t{number}" for number in range(1, count + 1)]
        configured = {"versions": {"v1": {"nodes": [one.dsn() for one in server.servers]}}, "default_version": "v1"}
        configured |= {"tenants": {key: {"schema": key} for key in keys}, **variables}
        Path("router.json").write_text(json.dumps(configured), encoding="utf-8")
        monkeypatch.setenv("ROUTER_CONFIG", "router.json")
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
        return keys

    return configure


def done(server: PostgresCluster) -> Counter[str]:
    return Counter(tenant for (tenant,) in server.primary.execute("SELECT tenant FROM done"))


def entries() -> list[Any]:
    return [json.loads(line) for line in LOG.read_text(encoding="utf-8").splitlines()] if LOG.exists() else []


def ended() -> int:
    """For how many tenants it has been noted so far that it is done."""
    return sum('"code": 0' in line for line in LOG.read_text(encoding="utf-8").splitlines()) if LOG.exists() else 0


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [*ROUTER, "each", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, process_group=0)


def finished(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=PATIENCE * 3)
    assert CANARY not in out + err
    assert "Traceback" not in err
    return Result(process.returncode, out, err)


def killed_after(count: int, *arguments: str | Path) -> None:
    """Start it, and kill it once so many tenants are done."""
    process = start(*arguments)
    eventually(lambda: ended() >= count or process.poll() is not None)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


# Every tenant once


INSERT = "INSERT INTO public.done VALUES (current_schema())"


@pytest.mark.usefixtures("psql")
@pytest.mark.parametrize("many", short_and_long(60, MANY))
def test_many_tenants_are_done_once_by_a_command_that_is_killed_and_resumed(
    server: PostgresCluster, tenants: Callable[..., list[str]], each: Callable[..., Result], many: int
) -> None:
    keys = tenants(many)
    command = ("--", "psql", "-Xqc", INSERT)
    killed_after(many // 10, "--tenants", "all", *command)
    killed_after(many // 4, "--tenants", "all", "--resume", *command)
    before = ended()
    assert before < many
    result = each("--tenants", "all", "--resume", "--json", *command)
    assert (result.code, result.json()) == (
        0,
        {"ok": True, "log": "router-each.log", "done": many, "failed": {}, "left": []},
    )
    assert done(server) == Counter(keys)


@pytest.mark.parametrize("many", short_and_long(60, MANY))
def test_many_tenants_are_done_once_by_sql_that_is_killed_and_resumed(
    server: PostgresCluster, tenants: Callable[..., list[str]], each: Callable[..., Result], many: int
) -> None:
    keys = tenants(many, tenancy={"pooling": "shared"})
    SQL.write_text(f"{INSERT}; SELECT 1", encoding="utf-8")
    killed_after(many // 10, "--tenants", "all", "--sql", SQL)
    killed_after(many // 4, "--tenants", "all", "--sql", SQL, "--resume")
    result = each("--tenants", "all", "--sql", SQL, "--resume")
    assert result.code == 0
    assert result.out.endswith(f"{many} of {many} done, 0 failed, 0 left; log: router-each.log\n")
    assert done(server) == Counter(keys)


@pytest.fixture
def crowded(server: PostgresCluster, tenants: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> str:
    """Configures two tenants, whose login may have two connections: one of them is for watching the server at first."""
    role = new_name()
    run(server.dsn(), f"CREATE ROLE {role} LOGIN PASSWORD '{CANARY}' CONNECTION LIMIT 2 IN ROLE pg_write_all_data")
    monkeypatch.setattr(_job, "STALLED", 1.0)
    dsn = server.dsn(user=role, password=CANARY)
    tenants(2, versions={"v1": {"primary": dsn}}, tenancy={"pooling": "shared"}, pool={"timeout": 0.2})
    return dsn


def test_those_who_find_no_connection_wait_as_long_as_others_have_their_turn(
    crowded: str, server: PostgresCluster, each: Callable[..., Result]
) -> None:
    SQL.write_text(f"{INSERT}; SELECT pg_sleep(2.5)", encoding="utf-8")
    assert each("--tenants", "all", "--sql", SQL).code == 0
    assert done(server) == Counter(["t1", "t2"])


@pytest.mark.usefixtures("psql")
@pytest.mark.parametrize("how", ["command", "sql"])
def test_nobody_waits_without_end_for_the_connections_of_others(
    crowded: str, each: Callable[..., Result], how: str
) -> None:
    SQL.write_text(INSERT, encoding="utf-8")
    work = ("--sql", SQL) if how == "sql" else ("--", "psql", "-Xqc", INSERT)
    with psycopg.connect(crowded) as other, psycopg.connect(crowded):
        some_day = Timer(PATIENCE, other.close)  # so that who does wait without end comes to one
        some_day.start()
        result = each("--tenants", "all", "--json", *work)
        some_day.cancel()
    failed = result.json()["failed"]
    assert (result.code, {key: failure["code"] for key, failure in failed.items()}) == (
        1,
        {"t1": "PoolExhausted", "t2": "PoolExhausted"},
    )


WAIT = f'psql -Xqc "{INSERT}" && touch "began-$ROUTER_TENANT" && until [ -e go-on ]; do sleep 0.01; done; echo over'


def began() -> int:
    return len(list(Path().glob("began-*")))


@pytest.mark.usefixtures("psql")
@pytest.mark.slow
def test_commands_go_on_when_it_is_killed_and_resuming_waits_for_them(
    server: PostgresCluster, tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    keys = tenants(4)
    command = ("--tenants", "all", "--jobs", "2", "--", "sh", "-c", WAIT)
    process = start(*command)
    eventually(lambda: began() == 2)
    process.kill()
    process.communicate()
    refused = each(*command)
    assert (refused.code, refused.out) == (2, "")
    assert "commands of it still go on: --resume waits for them" in refused.err
    again = start("--resume", *command)
    assert again.stderr is not None
    assert again.stderr.readline() == "waiting for commands that still run ...\n"
    assert began() == 2
    GO_ON.touch()
    assert finished(again).code == 0
    assert done(server) == Counter(keys)


@pytest.mark.usefixtures("psql")
@pytest.mark.parametrize("number", one_of_each([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
def test_a_signal_lets_those_finish_that_have_begun(
    server: PostgresCluster,
    tenants: Callable[..., list[str]],
    each: Callable[..., Result],
    number: signal.Signals,
) -> None:
    keys = tenants(4)
    command = ("--tenants", "all", "--jobs", "2", "--", "sh", "-c", WAIT)
    process = start(*command)
    eventually(lambda: began() == 2)
    os.killpg(process.pid, number)  # as a terminal does
    assert process.stderr is not None
    assert process.stderr.readline().startswith("stopping: what has begun is finished first")
    GO_ON.touch()
    result = finished(process)
    assert result.code == 1
    assert result.out.endswith("2 of 4 done, 0 failed, 2 left; log: router-each.log; go on with --resume\n")
    assert each("--resume", *command).code == 0
    assert done(server) == Counter(keys)


@pytest.mark.usefixtures("psql")
@pytest.mark.slow
def test_a_second_signal_leaves_commands_to_themselves(
    server: PostgresCluster, tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    keys = tenants(3)
    command = ("--tenants", "all", "--jobs", "2", "--", "sh", "-c", WAIT)
    process = start(*command)
    eventually(lambda: began() == 2)
    os.killpg(process.pid, signal.SIGINT)
    assert process.stderr is not None
    process.stderr.readline()
    os.killpg(process.pid, signal.SIGINT)
    result = finished(process)
    assert result.code == 1
    assert "leaving what still runs to itself" in result.err
    GO_ON.touch()
    assert each("--resume", *command).code == 0
    assert done(server) == Counter(keys)


def test_what_was_cut_off_is_done_again_only_if_told_so(
    tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    tenants(2)
    command = ("--tenants", "all", "--", "sh", "-c", "touch again-$ROUTER_TENANT")
    assert each(*command).code == 0
    lines = LOG.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if '"t1", "code"' not in line and '"end"' not in line]
    LOG.write_text("".join(kept), encoding="utf-8")  # as if all had been killed, the command included
    Path("again-t1").unlink()
    result = each("--resume", "--json", *command)
    assert (result.code, result.json()["failed"]["t1"]["code"]) == (1, "unknown")
    assert "may be done or not" in result.json()["failed"]["t1"]["text"]
    assert not Path("again-t1").exists()
    Path("again-t2").unlink()
    assert each("--resume", "--redo", *command).code == 0
    assert Path("again-t1").exists()
    assert not Path("again-t2").exists()


# SQL whose COMMIT was sent, and nobody knows what became of it


@pytest.fixture
def committing(
    server: PostgresCluster, tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> Callable[..., None]:
    """Makes the log of a run that was killed when it had sent COMMIT for the only tenant."""

    def make(transaction: int | None = None, timeline: int | None = None) -> None:
        tenants(1)
        SQL.write_text(INSERT, encoding="utf-8")
        assert each("--tenants", "all", "--sql", SQL).code == 0
        run_, sent, _, _ = entries()
        sent["transaction"] = str(transaction or sent["transaction"])
        sent["timeline"] = timeline or sent["timeline"]
        LOG.write_text(f"{json.dumps(run_)}\n{json.dumps(sent)}\n", encoding="utf-8")

    return make


RESUME = ("--tenants", "all", "--sql", SQL, "--resume")


def test_sql_that_was_committed_is_not_run_again(
    server: PostgresCluster, committing: Callable[..., None], each: Callable[..., Result]
) -> None:
    committing()
    assert each(*RESUME).code == 0
    assert done(server) == Counter({"t1": 1})


def test_sql_that_was_not_committed_is_run_again(
    server: PostgresCluster, committing: Callable[..., None], each: Callable[..., Result]
) -> None:
    with psycopg.connect(server.dsn()) as connection:
        [(aborted,)] = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchall()
        connection.rollback()
    for transaction in (aborted, aborted + 1_000_000):  # which there was none of yet, as after a failover
        committing(transaction)
        assert each(*RESUME).code == 0
        assert done(server) == Counter({"t1": 2})
        LOG.unlink()


@pytest.mark.parametrize("commits", one_of_each([False, True]))
def test_it_is_waited_for_a_transaction_that_is_not_over(
    server: PostgresCluster, committing: Callable[..., None], commits: bool
) -> None:
    with psycopg.connect(server.dsn()) as connection:
        [(number,)] = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchall()
        committing(number)
        process = start(*RESUME)
        asking = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'router/t1' AND query LIKE '%xact_status%'"
        )
        eventually(lambda: server.primary.execute(asking) == [(1,)])
        assert process.poll() is None
        (connection.commit if commits else connection.rollback)()
    assert finished(process).code == 0
    assert done(server) == Counter({"t1": 1 if commits else 2})


def test_after_a_failover_a_transaction_number_is_not_believed(
    server: PostgresCluster, committing: Callable[..., None], each: Callable[..., Result]
) -> None:
    committing(timeline=7)
    result = each(*RESUME, "--json")
    assert (result.code, result.json()["failed"]["t1"]["code"]) == (1, "unknown")
    assert done(server) == Counter({"t1": 1})
    assert each(*RESUME, "--redo").code == 0
    assert done(server) == Counter({"t1": 2})


# The log


def test_a_line_that_was_not_written_to_its_end_counts_for_nothing(
    tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    tenants(2)
    command = ("--tenants", "all", "--", "sh", "-c", "echo x >> $ROUTER_TENANT.txt")
    assert each(*command).code == 0
    whole = LOG.read_bytes().splitlines(keepends=True)
    last = next(line for line in whole if b'"t2", "code"' in line)
    kept = [line for line in whole if b'"t2"' not in line and b'"end"' not in line]
    LOG.write_bytes(b"".join(kept) + last[:20])
    assert each("--resume", *command).code == 0
    assert all(isinstance(entry, dict) for entry in entries())
    assert (Path("t1.txt").read_text("utf-8"), Path("t2.txt").read_text("utf-8")) == ("x\n", "x\nx\n")


def test_only_the_same_work_is_gone_on_with(tenants: Callable[..., list[str]], each: Callable[..., Result]) -> None:
    tenants(1)
    SQL.write_text("SELECT 1", encoding="utf-8")
    nothing = each("--tenants", "all", "--resume", "--", "true")
    assert (nothing.code, nothing.err) == (
        2,
        "there is no router-each.log to go on with: leave --resume out, or name another file by --log\n",
    )
    assert each("--tenants", "all", "--", "sh", "-c", "exit 3").code == 1
    for other in (
        ("--", "sh", "-c", "exit 4"),
        ("--version", "v1", "--", "sh", "-c", "exit 3"),
        ("--sql", SQL),
    ):
        refused = each("--tenants", "all", "--resume", *other)
        assert refused.code == 2
        assert "is of another run, sh, begun 20" in refused.err
    LOG.write_text("what is this?\n", encoding="utf-8")
    refused = each("--tenants", "all", "--", "true")
    assert refused.code == 2
    assert "has a line that `router each` has not written" in refused.err
    assert LOG.read_text(encoding="utf-8") == "what is this?\n"


def test_a_run_that_has_not_come_to_its_end_is_not_begun_anew(
    tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    tenants(3)
    command = ("--tenants", "all", "--jobs", "1", "--", "sh", "-c", "[ $ROUTER_TENANT != t2 ]")
    assert each("--stop-on-error", *command).code == 1
    refused = each(*command)
    assert refused.code == 2
    assert "is of a run that has not come to its end, sh, begun 20" in refused.err
    assert each("--log", "other.log", *command).code == 1
    assert each(*command, "ignored").code == 2
    assert each("--resume", *command).code == 1, "t2 fails again, and t3 has had its turn"
    assert each(*command).code == 1, "it had come to its end"
    assert len([entry for entry in entries() if entry.get("router") == "each"]) == 2


@pytest.mark.usefixtures("psql")
def test_a_log_is_for_one_process_at_a_time(tenants: Callable[..., list[str]], each: Callable[..., Result]) -> None:
    tenants(1)
    command = ("--tenants", "all", "--", "sh", "-c", WAIT)
    process = start(*command)
    eventually(lambda: began() == 1)
    for arguments in (command, ("--resume", *command)):
        refused = each(*arguments)
        assert (refused.code, refused.err) == (2, "router-each.log is in use by another `router each`\n")
    GO_ON.touch()
    assert finished(process).code == 0


def test_the_log_says_nothing_of_the_command_but_its_name(
    tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    tenants(1)
    assert each("--tenants", "all", "--", "true", f"--password={CANARY}").code == 0  # looked for by the fixture
    run_, began_, ended_, end = entries()
    assert (run_["what"], began_["tenant"], ended_["code"], end["end"]) == ("true", "t1", 0, True)


# The order, and what ends it


def test_canaries_go_first_and_if_one_fails_nobody_else_does(
    tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    tenants(5)
    command = ("--tenants", "all", "--canary", "2", "--json", "--", "sh", "-c", "touch $ROUTER_TENANT; [ -e fine ]")
    result = each(*command)
    assert result.code == 1
    assert (sorted(result.json()["failed"]), result.json()["left"]) == (["t1", "t2"], ["t3", "t4", "t5"])
    assert sorted(path.name for path in Path().glob("t*")) == ["t1", "t2"]
    Path("fine").touch()
    assert each("--resume", *command).json()["done"] == 5


def test_nobody_else_begins_after_a_failure_if_that_is_asked_for(
    tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    tenants(5)
    command = ("--tenants", "all", "--jobs", "1", "--json", "--", "sh", "-c", "[ $ROUTER_TENANT != t2 ]")
    result = each("--stop-on-error", *command).json()
    assert (result["done"], list(result["failed"]), result["left"]) == (1, ["t2"], ["t3", "t4", "t5"])
    result = each("--resume", *command).json()
    assert (result["done"], list(result["failed"]), result["left"]) == (4, ["t2"], [])


def test_more_jobs_than_connections_wait_for_their_turn(
    server: PostgresCluster, tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    keys = tenants(6, tenancy={"pooling": "shared"}, pool={"max_size": 1, "max_waiting": 1})
    SQL.write_text(f"{INSERT}; SELECT pg_sleep(0.05)", encoding="utf-8")
    assert each("--tenants", "all", "--jobs", "6", "--sql", SQL).code == 0
    assert done(server) == Counter(keys)


# What is shown


def test_output_is_shown_tenant_by_tenant_and_failures_in_a_table(
    tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    tenants(3)
    script = "echo one; echo two >&2; [ $ROUTER_TENANT != t2 ] || { echo it broke; echo; exit 7; }; kill -9 $$"
    result = each("--tenants", "t2,t1", "--jobs", "1", "--", "sh", "-c", script)
    assert (result.code, result.err) == (1, "")
    assert result.out.splitlines() == [
        "t2 | one",
        "t2 | two",
        "t2 | it broke",
        "t2 | ",
        "t2: failed: 7: it broke (1 of 2)",
        "t1 | one",
        "t1 | two",
        "t1: failed: -9: two (2 of 2)",
        "tenant  code  said last",
        "t2      7     it broke ",
        "t1      -9    two      ",
        "0 of 2 done, 2 failed, 0 left; log: router-each.log; go on with --resume",
    ]


def test_sql_shows_rows_and_notices_and_fails_by_sqlstate(
    server: PostgresCluster, tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    tenants(2)
    SQL.write_text(
        """
        DO $$ BEGIN RAISE NOTICE 'at %', current_schema(); END $$;
        INSERT INTO public.done VALUES (current_schema());
        SELECT 1, NULL, 'two %' ;
        SELECT 1 / (current_schema() <> 't2')::int;
        """,
        encoding="utf-8",
    )
    result = each("--tenants", "all", "--jobs", "1", "--sql", SQL)
    assert result.code == 1
    assert result.out.splitlines()[:6] == [
        "t1 | NOTICE: at t1",
        "t1 | 1\t\ttwo %",
        "t1 | 1",
        "t1: done (1 of 2)",
        "t2 | NOTICE: at t2",
        "t2: failed: 22012: division by zero (2 of 2)",
    ]
    assert done(server) == Counter({"t1": 1})


def test_a_terminal_gets_a_bar(tenants: Callable[..., list[str]]) -> None:
    tenants(2)
    command = [*ROUTER, "each", "--tenants", "all", "--", "sh", "-c", "cat; echo it is $ROUTER_TENANT; exit 1"]
    typed = Path("typed")
    typed.write_text("not for the command", encoding="utf-8")
    with typed.open(encoding="utf-8") as keys:
        code, shown = on_terminal(command, {**os.environ, "TERM": "xterm-256color"}, stdin=keys)
    assert code == 1
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "━━━" in text
    assert "2/2" in text
    assert "t1 | it is t1" in text
    assert "not for the command" not in text
    assert "0 of 2 done, 2 failed" in text


# Where it is done


@pytest.mark.usefixtures("psql")
@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
def test_a_command_is_in_its_tenants_session_whatever_it_looks_at(
    server: PostgresCluster,
    tenants: Callable[..., list[str]],
    each: Callable[..., Result],
    pooling: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    role: LiteralString = new_name()
    run(
        server.dsn(),
        f"CREATE ROLE {role}",
        f"CREATE DATABASE {role}",
    )
    run(server.dsn(dbname=role), f'CREATE SCHEMA t1 AUTHORIZATION {role}; CREATE SCHEMA "a b" AUTHORIZATION {role}')
    home = {"schema": ["t1", "a b"], "role": role, "row": "app.tenant", "database": role, "pooling": pooling}
    tenants(0, tenants={"acme": home})
    monkeypatch.setenv("PGSERVICE", "missing")
    monkeypatch.setenv("PGSERVICEFILE", "services")
    Path("services").write_text("[missing]\nhost=nowhere\ndbname=wrong\n", encoding="utf-8")
    query = (
        "SELECT concat_ws(' ', current_database(), session_user, current_user, current_setting('search_path'), "
        "current_setting('app.tenant'), current_setting('application_name'), pg_is_in_recovery())"
    )
    script = f"""
        psql -XAtc "{query}"; psql -XAtd "$DATABASE_URL" -c "{query}"
        echo "$DATABASE_URL $PGOPTIONS $ROUTER_TENANT"
        tr '\\0' ' ' < /proc/$$/cmdline; tr '\\0' ' ' < /proc/$PPID/cmdline;
        read line
    """
    result = each("--tenants", "acme", "--", "sh", "-c", script)
    shown = [line.removeprefix("acme | ") for line in result.out.splitlines()]
    expected = f'{role} postgres {role} "t1", "a b" acme router/acme f'
    assert shown[:2] == [expected, expected]
    url, options, tenant = re.fullmatch(r"(\S+) (.*) (\S+)", shown[2]).groups()  # type: ignore[union-attr]
    assert url.startswith(f"postgresql://postgres@127.0.0.1:{server.primary.port}/{role}?")
    assert (options, tenant) == (psycopg.conninfo.conninfo_to_dict(url)["options"], "acme")
    assert options.startswith(r"-c search_path=\"t1\",\ ".replace(r"\"", '"'))
    assert result.code == 1, "there is nothing to read"


def test_a_command_may_use_a_router_itself(tenants: Callable[..., list[str]], each: Callable[..., Result]) -> None:
    tenants(1)
    code = "import os, router; router.execute('SELECT 1', tenant=os.environ['ROUTER_TENANT'])"
    assert each("--tenants", "all", "--", sys.executable, "-c", code).code == 0


@pytest.mark.usefixtures("psql")
def test_sql_and_commands_go_to_the_primary_as_it_is_now(
    server: PostgresCluster, tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    nodes = [one.dsn() for one in reversed(server.servers)]
    tenants(1, versions={"v1": {"nodes": nodes}})
    assert each("--tenants", "all", "--", "psql", "-Xqc", INSERT).code == 0
    assert done(server) == Counter({"t1": 1})


def test_a_tenant_that_is_not_there_fails_before_its_command_begins(
    tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    tenants(1, tenants={"gone": {"schema": "gone"}, "t1": {"schema": "t1"}})
    result = each("--tenants", "all", "--json", "--", "sh", "-c", "touch $ROUTER_TENANT")
    assert (result.code, result.json()["failed"]["gone"]["code"]) == (1, "UnknownTenant")
    assert 'schema "gone" does not exist' in result.json()["failed"]["gone"]["text"]
    assert (Path("gone").exists(), Path("t1").exists()) == (False, True)


def test_a_transaction_pooler_would_drop_the_session_of_a_command(
    server: PostgresCluster, tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    tenants(1, versions={"v1": {"primary": {"dsn": server.dsn(), "pooler": "transaction"}}})
    SQL.write_text(INSERT, encoding="utf-8")
    result = each("--tenants", "all", "--", "true")
    assert result.code == 1
    assert "is kept apart by search_path, which" in result.out
    assert each("--tenants", "all", "--log", "other.log", "--sql", SQL).code == 0
    assert done(server) == Counter({"t1": 1})


def test_of_patterns_those_who_live_in_the_version(
    server: PostgresCluster, tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    homes = {"t1": {"schema": "t1", "version": "v1"}, "t2": {"schema": "t2"}, "t3": {"schema": "t3", "version": "v2"}}
    both = {"v1": {"primary": server.dsn()}, "v2": {"primary": server.dsn()}}
    tenants(0, tenants=homes, versions=both)
    SQL.write_text(INSERT, encoding="utf-8")
    assert each("--tenants", "t*", "--version", "v2", "--sql", SQL).code == 0
    assert done(server) == Counter(["t2", "t3"])


def test_tenants_of_the_directory(
    server: PostgresCluster, tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    table: LiteralString = new_name()
    run(
        server.dsn(),
        f"CREATE TABLE {table} (tenant text PRIMARY KEY, schema text[])",
        f"INSERT INTO {table} VALUES ('one', '{{t1}}'), ('two', '{{t2}}'), ('wrong', '{{pg_x}}')",
    )
    tenants(0, tenants={}, directory={"version": "v1", "table": table})
    SQL.write_text(INSERT, encoding="utf-8")
    result = each("--tenants", "all", "--json", "--sql", SQL)
    assert (result.code, result.json()["done"]) == (1, 2)
    assert "'pg_x' is not a schema" in result.json()["failed"]["wrong"]["text"]
    assert done(server) == Counter(["t1", "t2"])
    assert each("--tenants", "nobody", "--sql", SQL, "--log", "other.log").code == 2


# Usage


def test_a_mistake_is_found_before_anything_is_done(
    tenants: Callable[..., list[str]], each: Callable[..., Result]
) -> None:
    tenants(1)
    Path("nul.sql").write_text("INSERT INTO t VALUES ('half');\0INSERT INTO t VALUES ('rest');", encoding="utf-8")
    for arguments, message in (
        (("--tenants", "all"), "give either a command, after --, or SQL by --sql FILE"),
        (("--tenants", "all", "--sql", SQL, "--", "true"), "give either"),
        (("--tenants", "all", "--redo", "--", "true"), "--redo is about what --resume finds"),
        (("--tenants", "all", "--", "no-such-program"), "no-such-program is not found"),
        (("--tenants", "all", "--sql", "nul.sql"), "nul.sql has a NUL character, after which nothing would be run"),
        (("--tenants", "all", "--sql", "missing.sql"), "missing.sql cannot be read: No such file"),
        (("--tenants", "x*", "--", "true"), "no tenant is listed that matches 'x*'"),
        (("--tenants", "nobody", "--", "true"), "unknown tenant 'nobody'"),
        (("--tenants", "../", "--", "true"), "a key matches"),
        (("--tenants", "all", "--version", "v7", "--", "true"), "unknown version 'v7'"),
        (("--", "true"), "--tenants"),
    ):
        result = each(*arguments)
        assert (result.code, result.out) == (2, "")
        assert message in result.err
    assert not LOG.exists()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("BEGIN; SELECT 1; COMMIT;", "BEGIN"),
        ("SELECT 1;\n-- done\n commit", "COMMIT"),
        ("SELECT ';'; /* ; */ End", "END"),
        ("start  transaction", "START  TRANSACTION"),
        ("SELECT 1; rollback and chain", "ROLLBACK"),
        ("PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION"),
        ("ROLLBACK TO SAVEPOINT s; rollback work to s; SAVEPOINT s; PREPARE a AS SELECT 1", None),
        ("SELECT '; COMMIT', E'\\'; COMMIT', \"; COMMIT\" /* ; COMMIT */ -- ; COMMIT", None),
        ("DO $$ BEGIN COMMIT; END $$; CREATE FUNCTION f() RETURNS int AS $f$ ; COMMIT $f$", None),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; SELECT 1", None),
        ("SELECT begin, commits FROM commit_log", None),
        ("SELECT 1 AS a$b$; COMMIT; SELECT 1 AS a$b$", "COMMIT"),
        ("SELECT 1; /* a /* b */ ' */ COMMIT; -- '", "a comment in a comment"),
    ],
)
def test_sql_must_not_end_its_transaction(
    tenants: Callable[..., list[str]], each: Callable[..., Result], text: str, found: str | None
) -> None:
    tenants(1, tenants={"gone": {"schema": "gone"}})
    SQL.write_text(text, encoding="utf-8")
    result = each("--tenants", "all", "--sql", SQL)
    if found is None:
        assert result.code == 1, "the tenant is not there"
    else:
        assert result.code == 2
        assert result.err.startswith(f"work.sql has {found}, ")
        assert found.islower() or "and for each tenant it is one transaction: leave that out" in result.err


def test_nobody_to_be_listed_is_a_mistake(tenants: Callable[..., list[str]], each: Callable[..., Result]) -> None:
    tenants(0, tenant_template={"schema": "{tenant}"})
    result = each("--tenants", "all", "--", "true")
    note, error = result.err.splitlines()
    assert note == UNLISTED
    assert (result.code, error.partition(":")[0]) == (2, "no tenant is listed")
    assert each("--tenants", "t1", "--", "true").code == 0


def test_a_log_that_cannot_be_written_stops_it(tenants: Callable[..., list[str]], each: Callable[..., Result]) -> None:
    tenants(1)
    result = each("--tenants", "all", "--log", "missing/each.log", "--", "true")
    assert (result.code, result.out) == (1, "")
    assert "No such file or directory" in result.err
