# Generated from tests/_async/test_failover.py by tools/async_to_sync.py: do not edit.
"""Servers die, freeze, are promoted and come back under load; what the callers see of it."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import Connection

from router import NoPrimary, NoReplica, Role, Router, Unavailable
from router._runtime.flags import sleep
from router._sync import watcher
from router._sync.cluster import FAST_INTERVAL
from router._sync.pool.quarantine import Quarantine
from tests._sync.internals import inside
from tests.proxy import Proxy
from tests.support import PATIENCE, all_of, eventually, outside, port, run, settings, short_and_long

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.testing import PostgresCluster, PostgresServer
    from router.testing._plugin import MakeCluster
    from tests.conftest import Postgres

WRITERS = 8
READERS = 16
FAST = 0.25
"""Seconds that no read may take that starts once the death of a server is known."""


@dataclass
class Load:
    """Writers and readers of one router, until told to stop; what each request saw."""

    router: Router
    table: str
    over: bool = False
    written: list[tuple[float, int, str]] = field(default_factory=list)  # when, where, what
    failed_writes: list[tuple[str, int, psycopg.Error]] = field(default_factory=list)  # whose, where, how
    reads: list[tuple[float, float, int]] = field(default_factory=list)  # begun, seconds, where
    failed_reads: list[tuple[int | None, psycopg.Error]] = field(default_factory=list)
    executed: list[tuple[float, float, int]] = field(default_factory=list)
    failed_executes: list[psycopg.Error] = field(default_factory=list)
    witnessed: list[tuple[float, float]] = field(default_factory=list)  # begun, seconds

    def write(self, name: str) -> None:
        number = 0
        while not self.over:
            number += 1
            what, where = f"{name}:{number}", 0
            try:
                with self.router.connection(timeout=20) as connection:
                    where = port(connection)
                    connection.execute(f"INSERT INTO {self.table} VALUES (%s)", [what])
                self.written.append((time.monotonic(), where, what))
            except psycopg.Error as error:
                self.failed_writes.append((name, where, error))
            sleep(0.002)

    def read(self) -> None:
        while not self.over:
            begun, where = time.monotonic(), None
            try:
                with self.router.connection(read_only=True, timeout=20) as connection:
                    where = port(connection)
                    connection.execute(f"SELECT count(*) FROM (SELECT FROM {self.table} LIMIT 10) AS first")
                self.reads.append((begun, time.monotonic() - begun, where))
            except psycopg.Error as error:
                self.failed_reads.append((where, error))
            sleep(0.002)

    def execute(self) -> None:
        while not self.over:
            begun = time.monotonic()
            try:
                result = self.router.execute("SELECT current_setting('port')::int")
                self.executed.append((begun, time.monotonic() - begun, result.value))
            except psycopg.Error as error:
                self.failed_executes.append(error)
            sleep(0.002)

    def witness(self, server: PostgresServer) -> None:
        """See how long a connection of its own takes for next to nothing: that is the machine's fault."""
        with Connection.connect(server.dsn(), autocommit=True) as connection:
            while not self.over:
                begun = time.monotonic()
                sleep(0.002)
                connection.execute("SELECT 1")
                self.witnessed.append((begun, time.monotonic() - begun))

    def routers_part(self, begun: float, seconds: float) -> float:
        """How much longer a request took than anybody's would have, seconds."""
        meanwhile = (took for other, took in self.witnessed if other < begun + seconds and other + took > begun)
        return seconds - max(meanwhile, default=0.0)

    def during(
        self,
        accidents: Callable[[], None],
        *others: Callable[[], None],
        writers: int,
        readers: int,
        executes: int,
    ) -> None:
        """Run it while the accidents happen, and others with it."""

        def happen() -> None:
            try:
                accidents()
            finally:
                self.over = True

        def writer(number: int) -> Callable[[], None]:
            return lambda: self.write(f"w{number}")

        all_of(
            happen,
            *others,
            *[writer(number) for number in range(writers)],
            *[self.read] * readers,
            *[self.execute] * executes,
        )


def make_load(cluster: PostgresCluster, router: Router) -> Load:
    table = "seen"
    run(cluster.dsn(), f"CREATE TABLE {table} (what text PRIMARY KEY)")
    cluster.wait_replayed()
    return Load(router, table)


def most_advanced(cluster: PostgresCluster) -> PostgresServer:
    return max(
        (standby for standby in cluster.standbys if standby.running),
        key=lambda standby: standby.execute("SELECT pg_last_wal_receive_lsn() - '0/0'")[0][0],
    )


def promote(server: PostgresServer) -> float:
    """Promote a standby; when it began to accept writes, as a connection of its own saw it."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection, ThreadPoolExecutor(1) as executor:
        promoted = executor.submit(server.promote)
        while connection.execute("SELECT pg_is_in_recovery()").fetchone() != (False,):
            pass
        accepts = time.monotonic()
        promoted.result()
    return accepts


def some_time(seconds: float) -> None:
    """Let the load go on: there is nothing to wait for but what it does meanwhile."""
    sleep(seconds)


@pytest.mark.parametrize("hints", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_failover_is_a_pause_for_writers_and_nothing_for_readers(
    make_postgres_cluster: MakeCluster, hints: bool
) -> None:
    cluster = make_postgres_cluster(version=18, standbys=2, synchronous=True)
    old = cluster.primary
    nodes = cluster.version_settings() if hints else {"nodes": [server.dsn() for server in cluster.servers]}
    accepts: list[float] = []
    with Router(settings(**nodes)) as router:
        load = make_load(cluster, router)

        def accidents() -> None:
            some_time(1.0)
            outside(old.kill)
            some_time(0.3)
            accepts.append(outside(promote, outside(most_advanced, cluster)))
            new = cluster.primary.port

            def resumed() -> bool:
                return any(where == new for _, where, _ in load.written)

            eventually(resumed)
            some_time(1.0)

            def read_often() -> bool:
                return len(load.reads) > 1000

            eventually(read_often)

        def witness() -> None:
            load.witness(cluster.standbys[0])

        load.during(accidents, witness, writers=WRITERS, readers=READERS, executes=0)
        new = cluster.primary.port
        first = min(when for when, where, _ in load.written if where == new)
        assert load.routers_part(accepts[0], first - accepts[0]) <= 0.5
        assert load.failed_reads == []
        # Only transactions that were open on the old primary failed; whoever was about to begin one waited.
        assert {where for _, where, _ in load.failed_writes} <= {old.port}
        assert all(isinstance(error, psycopg.OperationalError) for _, _, error in load.failed_writes)
        # It does not die in one moment, so that a writer may find two of its processes still alive.
        assert len(load.failed_writes) <= 2 * WRITERS
        kept = {what for (what,) in run(cluster.dsn(), "SELECT what FROM seen")}
        assert {what for _, _, what in load.written} <= kept
        roles = {node.node.server.port: (node.role, node.state) for node in router.stats().versions[0].nodes}
        assert roles[new] == (Role.PRIMARY, "up")
        assert roles[old.port][1] == "down"


@pytest.mark.slow
def test_writes_leave_a_frozen_primary_when_another_is_promoted(make_postgres_cluster: MakeCluster) -> None:
    cluster = make_postgres_cluster(version=18, standbys=2, synchronous=True)
    old = cluster.primary
    with Router(settings(**cluster.version_settings(), health={"timeout": 0.5})) as router:
        load = make_load(cluster, router)
        thawed: list[float] = []

        def accidents() -> None:
            some_time(0.5)
            outside(old.freeze)
            outside(promote, outside(most_advanced, cluster))
            new = cluster.primary.port

            def resumed() -> bool:
                return {name for name, _, _ in load.failed_writes} | {
                    what.partition(":")[0] for _, where, what in load.written if where == new
                } == {f"w{number}" for number in range(WRITERS)}

            eventually(resumed)
            thawed.append(time.monotonic())
            outside(old.thaw)
            some_time(2.0)

        load.during(accidents, writers=WRITERS, readers=4, executes=0)
        assert load.failed_reads == []
        assert {where for _, where, _ in load.failed_writes} <= {old.port}
        assert len(load.failed_writes) <= WRITERS
        assert not [what for when, where, what in load.written if where == old.port and when > thawed[0]]
        kept = {what for (what,) in run(cluster.dsn(), "SELECT what FROM seen")}
        assert {what for _, _, what in load.written} <= kept


def test_an_old_primary_that_comes_back_is_fenced(make_postgres_cluster: MakeCluster) -> None:
    cluster = make_postgres_cluster(version=18, standbys=2)
    old, new, _ = cluster.servers
    told: list[str] = []
    router = Router(settings(**cluster.version_settings()), observers=[lambda event: told.append(str(event))])
    with router:
        load = make_load(cluster, router)
        before: list[list[tuple[str, ...]]] = []
        died: list[float] = []

        def accidents() -> None:
            some_time(0.5)
            outside(old.kill)
            died.append(time.monotonic())
            outside(promote, new)
            outside(old.start)  # and it believes to be the primary, as ever
            before.append(outside(run, old.dsn(), "SELECT what FROM seen ORDER BY what"))

            def fenced() -> bool:
                return any("fenced" in line for line in told)

            eventually(fenced)
            some_time(1.0)
            outside(new.kill)  # now it is the only one that says so
            some_time(1.5)
            outside(new.start)
            back = time.monotonic()

            def resumed() -> bool:
                return load.written[-1][0] > back

            eventually(resumed)

        load.during(accidents, writers=4, readers=4, executes=0)
        assert run(old.dsn(), "SELECT what FROM seen ORDER BY what") == before[0]
        assert before[0]
        assert {where for _, where, _ in load.written} == {old.port, new.port}
        assert {where for where, _ in load.failed_reads} <= {
            new.port
        }  # when it was killed: the third one is left behind
        assert len(load.failed_reads) <= 4
        # Before that, while no probe has found the standbys yet, reads go to the primary.
        assert not [begun for begun, _, where in load.reads if where == old.port and begun > died[0]]
        assert f"v1: the primary is {new.host}:{new.port} now" in "\n".join(told)


@pytest.mark.slow
def test_a_frozen_replica_is_left_and_used_again(make_postgres_cluster: MakeCluster) -> None:
    cluster = make_postgres_cluster(version=18, standbys=2)
    frozen, sound = cluster.standbys
    down: list[float] = []
    thawed: list[float] = []
    options = settings(**cluster.version_settings(), pool={"max_size": 8})

    def observe(event: object) -> None:
        if f"{frozen.host}:{frozen.port} is down" in str(event):
            down.append(time.monotonic())

    with Router(options, observers=[observe]) as router:
        load = make_load(cluster, router)

        def accidents() -> None:
            some_time(1.0)
            began = time.monotonic()
            outside(frozen.freeze)
            some_time(6.0 - (time.monotonic() - began))
            thawed.append(time.monotonic())
            outside(frozen.thaw)

            def used() -> bool:
                return any(where == frozen.port for begun, _, where in load.reads[-200:] if begun > thawed[0])

            eventually(used)

        def witness() -> None:
            load.witness(sound)

        load.during(accidents, witness, writers=1, readers=8, executes=8)
        [found, *_] = down
        assert load.failed_reads == []
        assert load.failed_executes == []
        later = [(begun, seconds) for begun, seconds, _ in (*load.reads, *load.executed) if found < begun < thawed[0]]
        assert len(later) > 100
        assert not [one for one in later if one[1] >= FAST and load.routers_part(*one) >= FAST]
        # A statement of its own did not wait for the thaw.
        assert max(seconds for _, seconds, _ in load.executed) < 3.0
        again = min(begun for begun, _, where in load.reads if where == frozen.port and begun > thawed[0])
        assert again - thawed[0] < 3.0


def test_a_killed_replica_costs_only_the_blocks_that_were_on_it(make_postgres_cluster: MakeCluster) -> None:
    cluster = make_postgres_cluster(version=18, standbys=2)
    victim = cluster.standbys[0]
    with Router(settings(**cluster.version_settings())) as router:
        load = make_load(cluster, router)
        killed: list[float] = []

        def accidents() -> None:
            some_time(1.0)
            killed.append(time.monotonic())
            outside(victim.kill)
            some_time(1.5)
            outside(victim.start)

            def used() -> bool:
                return any(where == victim.port for begun, _, where in load.reads[-200:] if begun > killed[0] + 1.0)

            eventually(used)

        load.during(accidents, writers=1, readers=8, executes=8)
        assert load.failed_executes == []
        assert all(where == victim.port for where, _ in load.failed_reads)
        assert all(isinstance(error, psycopg.OperationalError) for _, error in load.failed_reads)
        assert len(load.failed_reads) <= 8
        assert load.failed_writes == []


@pytest.mark.parametrize("seconds", short_and_long(2.0, 10.0))
def test_everything_is_down_for_seconds_and_comes_back(make_postgres_cluster: MakeCluster, seconds: float) -> None:
    cluster = make_postgres_cluster(version=18, standbys=1)
    with Router(settings(**cluster.version_settings())) as router:
        load = make_load(cluster, router)

        def accidents() -> None:
            some_time(0.5)
            for server in cluster.servers:
                outside(server.kill)
            some_time(seconds)
            for server in cluster.servers:
                outside(server.start)
            back = time.monotonic()

            def served() -> bool:
                return load.written[-1][0] > back and load.reads[-1][0] + load.reads[-1][1] > back

            eventually(served)

        load.during(accidents, writers=4, readers=4, executes=4)
        # Those that had to wait for it waited: only what was in flight failed.
        assert not [error for _, _, error in load.failed_writes if isinstance(error, (NoPrimary, NoReplica))]
        assert len(load.failed_writes) <= 4
        assert len(load.failed_reads) <= 4


def test_nobody_gets_another_connection_of_a_server_that_goes_down(make_postgres_cluster: MakeCluster) -> None:
    cluster = make_postgres_cluster(version=18, standbys=1)
    [standby] = cluster.standbys
    postmaster = int((standby.data_dir / "postmaster.pid").read_text().split()[0])
    with Router(settings(**cluster.version_settings(), health={"interval": 60.0})) as router:
        with router.connection(read_only=True) as connection, router.connection(read_only=True) as other:
            assert port(connection) == port(other) == standby.port
            pids = {connection.info.backend_pid, other.info.backend_pid}
        try:
            with pytest.raises(psycopg.OperationalError):
                with router.connection(read_only=True) as connection:
                    [lingering] = pids - {connection.info.backend_pid}
                    os.kill(lingering, signal.SIGSTOP)  # it learns of its server's end later than others
                    os.kill(postmaster, signal.SIGKILL)
                    while True:
                        connection.execute("SELECT 1")
            with router.connection(read_only=True, timeout=5) as connection:
                assert port(connection) == cluster.primary.port
                connection.execute("SELECT 1")
        finally:
            os.kill(lingering, signal.SIGCONT)


def test_a_session_that_an_administrator_ends_costs_the_others_a_moment(postgres: Postgres) -> None:
    pool = {"max_size": 4, "max_waiting": 1}
    options = settings(primary=postgres.primary, pool=pool, health={"interval": 60.0})
    with Router(options) as router:
        read = partial(router.connection, read_only=True, timeout=20)
        with read() as one, read() as two, read() as three, read() as four:
            pids = {connection.info.backend_pid for connection in (one, two, three, four)}
        with pytest.raises(psycopg.errors.AdminShutdown):
            with read() as connection:
                pids.remove(connection.info.backend_pid)
                connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        served: set[int] = set()

        def serve() -> None:
            def all_are_served() -> bool:
                return len(served) == 3

            with read() as connection:
                served.add(connection.info.backend_pid)
                eventually(all_are_served)

        all_of(*[serve] * 3)  # more than may wait
        living = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s::int[])"
        assert router.execute(living, [list(pids)]).value == 3


@pytest.mark.parametrize(
    ("what", "quarantines"),
    [
        ("SELECT pg_terminate_backend(pg_backend_pid())", True),
        ("SET transaction_timeout = '50ms'; SELECT pg_sleep(20)", False),
        ("DO $$ BEGIN RAISE 'not I' USING ERRCODE = '57P01'; END $$", False),
    ],
)
def test_what_puts_the_other_sessions_of_a_server_in_doubt(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, what: str, *, quarantines: bool
) -> None:
    monkeypatch.setattr(f"{Quarantine.__module__}.QUARANTINE_COOLDOWN", 60.0)
    quarantined: list[float] = []
    with Router(settings(primary=postgres.primary, health={"interval": 60.0})) as router:
        with router.connection():
            pass
        [pool] = inside(router).pools

        def released() -> bool:
            return not pool.quarantined

        for _ in range(3):
            with pytest.raises(psycopg.Error):
                with router.connection() as connection:
                    connection.execute(what)
            quarantined.append(pool.quarantine.begun_at)
            eventually(released)
        assert any(quarantined) == quarantines
        assert len({*quarantined}) == 1  # not again after a moment


def test_who_waits_for_a_connection_in_doubt_gets_another_if_that_makes_room(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary, health={"interval": 60.0})) as router:
        with router.connection():
            pass
        [pool] = inside(router).pools
        pool.quarantine.begin()

        def borrow() -> None:
            with router.connection(timeout=20):
                pass

        def waits() -> bool:
            return bool(pool.waiting)

        def make_room() -> None:
            eventually(waits)
            pool.evict_idle()
            pool.quarantine.end()

        all_of(borrow, make_room)


@pytest.mark.slow
def test_without_replicas_the_primary_serves_reads_until_they_are_back(
    make_postgres_cluster: MakeCluster,
) -> None:
    cluster = make_postgres_cluster(version=18, standbys=2)
    replicas = {standby.port for standby in cluster.standbys}
    with Router(settings(**cluster.version_settings())) as router:
        load = make_load(cluster, router)

        def accidents() -> None:
            some_time(0.5)
            for standby in cluster.standbys:
                outside(standby.kill)

            def fallen_back() -> bool:
                return load.reads[-1][2] == load.executed[-1][2] == cluster.primary.port

            eventually(fallen_back)
            for standby in cluster.standbys:
                outside(standby.start)

            def returned() -> bool:
                return {where for _, _, where in load.reads[-50:]} == replicas

            eventually(returned)

        load.during(accidents, writers=1, readers=4, executes=4)
        assert load.failed_executes == []
        assert len(load.failed_reads) <= 8  # those in flight: four on each
        assert load.failed_writes == []


def test_a_replica_behind_its_limit_stays_stale_when_the_primary_stops(
    make_postgres_cluster: MakeCluster,
) -> None:
    cluster = make_postgres_cluster(version=18, standbys=1)
    [standby] = cluster.standbys
    options = settings(
        **cluster.version_settings(), read={"max_lag_bytes": 1000, "fallback": "wait"}, health={"interval": 0.1}
    )
    with Router(options) as router:
        with router.connection(read_only=True) as connection:
            assert port(connection) == standby.port
        outside(standby.pause_replay)
        run(cluster.dsn(), "CREATE TABLE more AS SELECT generate_series(1, 10000)")

        def stale() -> bool:
            return "stale" in repr(router.explain(read_only=True))

        eventually(stale)
        outside(cluster.primary.kill)

        def down() -> bool:
            return router.stats().versions[0].nodes[0].state == "down"

        eventually(down)
        for _ in range(5):
            with pytest.raises(NoReplica, match="stale"):
                with router.connection(read_only=True, timeout=0.3):
                    pytest.fail("a stale replica served")
        outside(cluster.primary.start)
        outside(standby.resume_replay)
        with router.connection(read_only=True, timeout=20) as connection:
            assert port(connection) == standby.port


def test_a_query_on_a_server_that_has_been_silent_for_long_is_cut(make_postgres_cluster: MakeCluster) -> None:
    cluster = make_postgres_cluster(version=18, standbys=1)
    [standby] = cluster.standbys
    options = settings(**cluster.version_settings(), health={"interval": 0.1, "timeout": 0.3, "cut_after": 1.0})
    with Router(options) as router:
        with pytest.raises(psycopg.OperationalError) as raised:
            with router.connection(read_only=True) as connection:
                assert port(connection) == standby.port
                outside(standby.freeze)
                begun = time.monotonic()
                try:
                    connection.execute("SELECT 1")
                finally:
                    seconds = time.monotonic() - begun
        assert not isinstance(raised.value, Unavailable)
        assert 0.9 < seconds < 3.0
        assert "the server has not answered for" in "".join(raised.value.__notes__)
        outside(standby.thaw)


def test_a_process_that_may_open_no_more_connections_does_not_take_servers_for_dead(
    cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "PATIENCE", 0.1 / PATIENCE)  # a probe waits 0.1 s for a slot
    told: list[str] = []
    with Proxy(cluster.primary.host, cluster.primary.port) as proxy:
        options = settings(
            primary=cluster.dsn(port=proxy.port),
            replicas=[standby.dsn() for standby in cluster.standbys],
            max_connections=1,
            health={"interval": 0.05, "timeout": PATIENCE, "cut_after": 0.5},
        )
        router = Router(options, observers=[lambda event: told.append(str(event))])
        with router, router.connection(timeout=PATIENCE) as connection:
            accepted = proxy.accepted

            def is_pinged() -> bool:  # again and again, while no connection may be opened
                return proxy.accepted >= accepted + 10

            eventually(is_pinged)
            connection.execute("SELECT 1")
            assert router.stats().connections == 1
    assert not [line for line in told if "is down" in line or "cut" in line]


def test_a_connection_of_a_fenced_primary_is_not_handed_out_even_if_it_was_on_its_way(
    cluster: PostgresCluster,
) -> None:
    with Router(settings(**cluster.version_settings())) as router:
        with router.connection() as connection:
            pass
        [pool] = [pool for pool in inside(router).pools if not pool.read_only]
        pool.fenced_reason = "fenced"
        assert pool.take() is None
        assert connection.closed
        with pytest.raises(Unavailable):  # nor is one that is opened
            with router.connection(timeout=0.3):
                pass
        assert pool.borrowed == set()


def test_the_old_primary_serves_reads_once_it_has_rejoined(make_postgres_cluster: MakeCluster) -> None:
    cluster = make_postgres_cluster(version=18, standbys=1)
    old, new = cluster.servers
    with Router(settings(**cluster.version_settings())) as router:
        with router.connection() as connection:
            assert port(connection) == old.port
        outside(old.kill)

        def hurried() -> bool:  # while there is no primary
            return set(router._snapshot().servers.values()) == {FAST_INTERVAL}

        eventually(hurried)
        outside(promote, new)
        with router.connection(timeout=20) as connection:
            assert port(connection) == new.port
        outside(old.rejoin, new)

        def reads() -> bool:
            with router.connection(read_only=True) as connection:
                return port(connection) == old.port

        eventually(reads)
