"""The proxy, between psycopg and a real server."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from router.testing import PostgresCluster
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import LiteralString


@pytest.fixture(scope="module")
def pg() -> Iterator[PostgresCluster]:
    with PostgresCluster(standbys=0) as cluster:
        cluster.primary.execute("CREATE TABLE seen (value int)")
        yield cluster


@pytest.fixture
def proxy(pg: PostgresCluster) -> Iterator[Proxy]:
    pg.primary.execute("TRUNCATE seen")
    with Proxy(pg.primary.host, pg.primary.port) as proxy:
        yield proxy


def connect(pg: PostgresCluster, proxy: Proxy) -> psycopg.Connection:
    return psycopg.connect(pg.dsn(host=proxy.host, port=proxy.port), autocommit=True)


def begin(connection: psycopg.Connection, query: LiteralString) -> threading.Thread:
    thread = threading.Thread(target=connection.execute, args=[query])
    thread.start()
    return thread


def test_round_trips_are_counted(pg: PostgresCluster, proxy: Proxy) -> None:
    with connect(pg, proxy) as connection:
        assert proxy.round_trips > 0
        proxy.round_trips = 0
        connection.execute("SELECT %s, repeat('x', 1000000)", [1])  # several messages there, many pieces back
        assert proxy.round_trips == 1
        with connection.transaction():
            connection.execute("SELECT 1")
        assert proxy.round_trips == 4
        with connection.pipeline():
            for _ in range(20):
                connection.execute("SELECT 1")
        assert proxy.round_trips == 5
    with connect(pg, proxy) as connection:
        proxy.round_trips = 0
    assert proxy.round_trips == 0
    assert proxy.accepted == 2


async def test_a_pool_and_an_async_connection_are_counted_alike(pg: PostgresCluster, proxy: Proxy) -> None:
    dsn = pg.dsn(host=proxy.host, port=proxy.port)
    with ConnectionPool(dsn, min_size=1) as pool:
        pool.wait()
        proxy.round_trips = 0
        with pool.connection() as connection:
            connection.execute("SELECT 1")
        assert proxy.round_trips == 3
    async with await psycopg.AsyncConnection.connect(dsn) as aconnection:
        proxy.round_trips = 0
        await aconnection.execute("SELECT 1")
        await aconnection.commit()
        assert proxy.round_trips == 3


def test_stopped_it_cuts_and_refuses_until_started(pg: PostgresCluster, proxy: Proxy) -> None:
    port = proxy.port
    with closing(connect(pg, proxy)) as connection:
        proxy.stop()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect(pg, proxy)
    proxy.start()
    assert proxy.port == port
    with connect(pg, proxy) as connection:
        connection.execute("SELECT 1")


def test_deaf_it_accepts_and_passes_nothing(pg: PostgresCluster, proxy: Proxy) -> None:
    with closing(connect(pg, proxy)) as connection:
        proxy.deaf()
        insert = begin(connection, "INSERT INTO seen VALUES (1)")
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            psycopg.connect(pg.dsn(host=proxy.host, port=proxy.port, connect_timeout=2))
        assert pg.primary.execute("SELECT value FROM seen") == []
        assert insert.is_alive()
        proxy.forward()
        insert.join(20)
        assert pg.primary.execute("SELECT value FROM seen") == [(1,)]


def test_slow_it_holds_each_answer_back(pg: PostgresCluster, proxy: Proxy) -> None:
    with connect(pg, proxy) as connection:
        proxy.slow(0.2)
        for _ in range(2):
            before = time.monotonic()
            connection.execute("SELECT 1")
            assert time.monotonic() - before >= 0.2
        proxy.slow(3600)
        insert = begin(connection, "INSERT INTO seen VALUES (1)")
        deadline = time.monotonic() + 20
        while not pg.primary.execute("SELECT value FROM seen"):
            assert time.monotonic() < deadline
        assert insert.is_alive()
        proxy.forward()  # lets go what is held back already, too
        insert.join(20)
        assert not insert.is_alive()


def test_it_cuts_in_the_middle_of_an_answer(pg: PostgresCluster, proxy: Proxy) -> None:
    with closing(connect(pg, proxy)) as connection:
        proxy.cut_after(500_000)
        connection.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT repeat('x', 1000000)")
    assert proxy.cuts == 1
    with connect(pg, proxy) as connection:  # once
        connection.execute("SELECT repeat('x', 1000000)")


@pytest.mark.parametrize("before", [True, False])
def test_it_cuts_at_a_commit_before_or_after_the_server_hears_it(
    pg: PostgresCluster, proxy: Proxy, *, before: bool
) -> None:
    proxy.cut_on(b"COMMIT", before=before)
    with closing(connect(pg, proxy)) as connection:
        connection.execute("BEGIN; INSERT INTO seen VALUES (1)")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("COMMIT")
    proxy.stop()  # returns when the server's session is over
    assert len(pg.primary.execute("SELECT value FROM seen")) == (0 if before else 1)
    assert proxy.cuts == 1


def test_it_cuts_where_a_predicate_says(pg: PostgresCluster, proxy: Proxy) -> None:
    proxy.cut_on(lambda message: message.startswith(b"Q") and b"second" in message)
    with closing(connect(pg, proxy)) as connection:
        connection.execute("SELECT 'first'")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 'second'")


def test_a_dead_target_hangs_up(pg: PostgresCluster) -> None:
    with Proxy("127.0.0.1", 1) as proxy, pytest.raises(psycopg.OperationalError):
        connect(pg, proxy)


def test_a_thread_is_started_before_it_may_be_joined(
    pg: PostgresCluster, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    joinable: list[bool] = []
    start = threading.Thread.start

    def seen(thread: threading.Thread) -> None:
        joinable.append(thread in proxy._threads)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", seen)
    connect(pg, proxy).close()
    assert joinable
    assert not any(joinable)
