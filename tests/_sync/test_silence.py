# Generated from tests/_async/test_silence.py by tools/async_to_sync.py: do not edit.
"""A gateway or proxy that takes what is sent over a connection and forwards nothing, while the server is well."""

from __future__ import annotations

import os
import socket
from time import monotonic
from typing import TYPE_CHECKING, Any, LiteralString, TypeAlias

import psycopg
import pytest

from router import Router, TransactionOutcomeUnknown, Unavailable
from router.core import sql
from router.core.events import ConnectionsCut, Event
from tests._sync.internals import inside
from tests.pooler import Pooler
from tests.proxy import Proxy
from tests.support import all_of, eventually, new_name, outside, run, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from router.testing import PostgresCluster

Connection: TypeAlias = psycopg.Connection[Any]

LONG = 2.0
"""Seconds that a statement takes which must not be cut: many samples."""

WITHIN = 10.0
"""Seconds in which a borrower is helped at the latest, with samples as short as here."""


@pytest.fixture
def proxy(cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr("router._sync.silence.SAMPLE", 0.25)
    with Proxy(cluster.primary.host, cluster.primary.port) as proxy:
        yield proxy


class World:
    """A version whose server is behind the proxy, and what observers were told."""

    def __init__(self, cluster: PostgresCluster, proxy: Proxy, **options: Any) -> None:
        self.direct = cluster.dsn()
        self.proxy = proxy
        self.events: list[Event] = []
        primary = psycopg.conninfo.make_conninfo(cluster.dsn(), host=proxy.host, port=proxy.port)
        options = {"health": {"interval": 0.1}, **options}
        self.router = Router(settings(primary=primary, **options), observers=[self.events.append])

    def cuts(self) -> list[int]:
        """How many connections were cut each time."""
        return [event.count for event in self.events if isinstance(event, ConnectionsCut)]

    def forget(self, connection: Connection) -> None:
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as duplicate:
            self.proxy.forget(duplicate.getsockname()[1])

    def was_asked_about(self, connection: Connection) -> bool:
        """Whether the server has been asked for the session of a connection."""
        return connection.__dict__["_router"].began is not None

    def is_known(self, connection: Connection) -> bool:
        """Whether the server has shown the session of a connection."""
        return bool(connection.__dict__["_router"].began)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_borrower_whose_connection_is_silent_is_helped(
    cluster: PostgresCluster, proxy: Proxy, read_only: bool
) -> None:
    world = World(cluster, proxy)
    with world.router as router:
        with router.connection(read_only=read_only) as connection:
            pid = connection.info.backend_pid
        begun = monotonic()
        with pytest.raises(psycopg.OperationalError) as caught:
            with router.connection(read_only=read_only) as connection:
                assert connection.info.backend_pid == pid
                world.forget(connection)
                connection.execute("SELECT 1")
        assert monotonic() - begun < WITHIN
        assert "the router cut this connection" in caught.value.__notes__[0]
        assert eventually(world.cuts) == [1]
        with router.connection(read_only=read_only) as connection:
            assert connection.info.backend_pid != pid
            connection.execute("SELECT 1")
        assert {node.state for node in router.stats().versions[0].nodes} == {"up"}


def test_what_a_silent_session_had_locked_is_free(cluster: PostgresCluster, proxy: Proxy) -> None:
    table, world = new_name(), World(cluster, proxy)
    run(world.direct, f"CREATE TABLE {table} (i int)", f"INSERT INTO {table} VALUES (1)")
    with world.router as router:
        with pytest.raises(psycopg.OperationalError):
            with router.connection() as connection:
                connection.execute(f"UPDATE {table} SET i = 2")
                world.forget(connection)
                connection.execute("SELECT 1")
        with router.connection() as connection:
            connection.execute("SET LOCAL lock_timeout = '5s'")
            connection.execute(f"UPDATE {table} SET i = 3")
    assert run(world.direct, f"SELECT i FROM {table}") == [(3,)]


def test_nobody_knows_what_became_of_a_commit_that_was_not_answered(cluster: PostgresCluster, proxy: Proxy) -> None:
    table, world = new_name(), World(cluster, proxy)
    run(world.direct, f"CREATE TABLE {table} (i int)")
    with world.router as router:
        with pytest.raises(TransactionOutcomeUnknown):
            with router.connection() as connection:
                connection.execute(f"INSERT INTO {table} VALUES (1)")
                world.forget(connection)
        assert eventually(world.cuts) == [1]


def test_a_session_that_has_ended_unnoticed_is_silent_too(cluster: PostgresCluster, proxy: Proxy) -> None:
    world = World(cluster, proxy)
    with world.router as router:
        with pytest.raises(psycopg.OperationalError):
            with router.connection() as connection:
                eventually(lambda: world.is_known(connection))
                world.forget(connection)
                outside(run, world.direct, f"SELECT pg_terminate_backend({connection.info.backend_pid})")
                connection.execute("SELECT 1")
        assert eventually(world.cuts) == [1]


def test_idle_connections_that_are_as_silent_are_not_lent(cluster: PostgresCluster, proxy: Proxy) -> None:
    world = World(cluster, proxy, pool={"max_size": 3})
    with world.router as router:

        def borrow(others: int) -> None:
            with router.connection() as connection:
                if others:
                    borrow(others - 1)
                world.forget(connection)

        borrow(2)
        with pytest.raises(psycopg.OperationalError):
            with router.connection() as connection:
                connection.execute("SELECT 1")
        with router.connection() as connection:
            connection.execute("SELECT 1")
        assert eventually(world.cuts) == [1]


# What a new session is asked first: its role where the server does not tell it, its server, whether it is a tenant's.
@pytest.mark.parametrize("asked", [sql.ROLE, f"SELECT {sql.PROCESS}", "SELECT pg_catalog.pg_backend_pid(), "])
def test_a_connection_that_is_silent_once_it_is_open_keeps_nobody_from_the_next(
    cluster: PostgresCluster, proxy: Proxy, asked: str
) -> None:
    if asked == sql.ROLE:
        proxy.hide(b"in_hot_standby")
    world = World(cluster, proxy, tenants={"acme": {"version": "v1", "schema": "public"}})
    with world.router as router, router.connection(version="v1"):  # the server is known
        proxy.forget_on(asked.encode())
        with pytest.raises(Unavailable):
            with router.connection(tenant="acme", read_only=True, timeout=0.5):
                pass
        proxy.forward()
        with router.connection(tenant="acme", read_only=True, timeout=WITHIN) as connection:
            connection.execute("SELECT 1")


class Slow:
    """Blocks that take long and must not be cut."""

    def __init__(self, router: Router, table: LiteralString) -> None:
        self.router = router
        self.table = table

    def runs_long(self, connection: Connection, seconds: float = LONG) -> None:
        connection.execute("SELECT pg_sleep(%s)", [seconds])

    def thinks(self, connection: Connection) -> None:
        connection.execute("SELECT 1")
        self.think()
        connection.execute("SELECT 2")

    def think(self) -> None:
        """Take long, over another connection."""
        with self.router.connection(read_only=True) as connection:
            self.runs_long(connection)

    def streams(self, connection: Connection) -> None:
        rows = connection.cursor().stream("SELECT generate_series(1, 2)")
        next(rows)
        self.think()
        for row in rows:
            assert row == (2,)

    def listens(self, connection: Connection) -> None:
        connection.execute(f"LISTEN {self.table}")
        connection.commit()
        for _ in connection.notifies(timeout=LONG):
            raise AssertionError

    def locks(self, connection: Connection) -> None:
        connection.execute(f"LOCK TABLE {self.table}")
        all_of(self.think, self.wait_for_the_lock)

    def wait_for_the_lock(self) -> None:
        with self.router.connection() as connection:
            connection.execute(f"SET LOCAL lock_timeout = '{LONG / 2}s'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                connection.execute(f"LOCK TABLE {self.table}")
            connection.rollback()

    def copies_in(self, connection: Connection) -> None:
        with connection.cursor().copy("COPY pg_temp.copied FROM STDIN") as copy:
            copy.write("4\n")
            self.think()
            copy.write("5\n")

    def copies_out(self, connection: Connection) -> None:
        with connection.cursor().copy("COPY (SELECT generate_series(1, 2)) TO STDOUT") as copy:
            assert copy.read() == b"1\n"
            self.think()
            assert [copy.read(), copy.read()] == [b"2\n", b""]

    def pipelines(self, connection: Connection) -> None:
        with connection.pipeline():
            connection.execute("SELECT 1").fetchall()
            self.think()
            connection.execute("SELECT 2")


def test_whoever_takes_long_is_not_cut(cluster: PostgresCluster, proxy: Proxy) -> None:
    world = World(cluster, proxy, pool={"max_size": 12})
    with world.router as router:
        slow = Slow(router, new_name())
        run(world.direct, f"CREATE TABLE {slow.table} (i int)")

        def in_block(work: Callable[[Connection], None]) -> Callable[[], None]:
            def block() -> None:
                with router.connection() as connection:
                    connection.execute("CREATE TEMPORARY TABLE copied (i int) ON COMMIT DROP")
                    work(connection)

            return block

        works = [slow.runs_long, slow.thinks, slow.streams, slow.listens, slow.locks, slow.copies_in, slow.copies_out]
        all_of(*map(in_block, [*works, slow.pipelines]))
    assert world.cuts() == []


@pytest.mark.parametrize("query", ["SELECT repeat('x', 3000000)", f"SELECT length('{'x' * 3_000_000}')"])
def test_what_is_on_its_way_for_long_is_not_cut(cluster: PostgresCluster, proxy: Proxy, query: Any) -> None:
    world = World(cluster, proxy)
    with world.router as router, router.connection() as connection:
        connection.execute("SELECT 1")
        proxy.slow(0.05, both_ways=True)
        begun = monotonic()
        connection.execute(query)
        proxy.forward()
        assert monotonic() - begun > 1.0  # else this shows nothing: most of the time the server has nothing to do
    assert world.cuts() == []


def test_a_number_that_a_pooler_made_up_is_nobodys_session(cluster: PostgresCluster, proxy: Proxy) -> None:
    with Pooler(cluster.primary.host, cluster.primary.port) as pooler:
        proxy.lead_to(pooler)
        world = World(cluster, proxy)
        with world.router as router, router.connection() as connection:
            connection.commit()  # the look needs the server process, too
            eventually(lambda: world.was_asked_about(connection))
            assert not world.is_known(connection)


def test_a_session_of_another_age_is_not_the_one_that_the_connection_leads_to(
    cluster: PostgresCluster, proxy: Proxy
) -> None:
    world = World(cluster, proxy, health={"interval": 3600})  # as if another server there had given the same number
    with world.router as router, router.connection() as connection:
        original = connection.__dict__["_router"]
        assert original.began is None
        original.opened_at -= 60.0
        inside(router).clusters.suspect(original.pool.node.server)
        eventually(lambda: world.was_asked_about(connection))
        assert not world.is_known(connection)
