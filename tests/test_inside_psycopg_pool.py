"""What ``router/_async`` assumes of the inside of psycopg_pool and psycopg; it must hold in every release."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg_pool
import pytest
from psycopg._preparing import PrepareManager
from psycopg.adapt import AdaptersMap, PyFormat
from psycopg.pq import Format, TransactionStatus
from psycopg.types import TypeInfo, TypesRegistry
from psycopg.types.string import ByteaLoader, BytesDumper
from psycopg_pool._acompat import ALock

from tests.support import aeventually, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg._preparing import Key, Prepare
    from psycopg._queries import PostgresQuery
    from psycopg.abc import PQGen

    from tests.conftest import Postgres

pytestmark = pytest.mark.docker


@pytest.fixture
def pool(postgres: Postgres) -> Iterator[psycopg_pool.ConnectionPool[Any]]:
    pool = psycopg_pool.ConnectionPool(postgres.primary, min_size=0, max_size=1, open=False)
    pool.open()
    yield pool
    pool.close()


def test_idle_connections_are_in_one_deque_the_oldest_first(postgres: Postgres) -> None:
    pool = psycopg_pool.ConnectionPool(postgres.primary, min_size=2, max_size=2, open=False)
    idle = pool._pool
    assert isinstance(idle, deque)
    with pool:
        pool.wait()
        one, two = idle
        assert pool.getconn() is one
        pool.putconn(one)
        assert list(idle) == [two, one]
        assert pool._nconns == 2
        assert pool._nconns_min == 1  # the fewest that were idle
        assert pool._stats[pool._REQUESTS_NUM] == 1
        assert one._pool is None
        # As evict_idle() does: what is taken out and counted out is gone for the pool, and may be opened anew.
        with pool._lock:
            idle.popleft().close()
            pool._nconns -= 1
        assert pool.get_stats()["pool_size"] == 1
        assert pool.getconn() is one
        pool.putconn(pool.getconn(timeout=20))
        pool.putconn(one)
    assert pool._pool is idle
    assert pool._closed


def test_a_waiting_client_can_be_failed(pool: psycopg_pool.ConnectionPool[Any]) -> None:
    class OtherProcess(Exception): ...

    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            pool.getconn(timeout=20)
        except OtherProcess as error:
            outcome.append(error)

    connection = pool.getconn(timeout=20)
    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: pool._waiting)
    with pool._lock:
        waiting = list(pool._waiting)
        pool._waiting.clear()
    assert [client.error for client in waiting] == [None]
    assert [client.fail(OtherProcess()) for client in waiting] == [True]
    assert [type(client.error) for client in waiting] == [OtherProcess]
    thread.join()
    assert len(outcome) == 1
    pool.putconn(connection)
    assert pool.getconn(timeout=1) is connection
    pool.putconn(connection)


def test_a_connection_is_returned_to_whoever_waits_first(pool: psycopg_pool.ConnectionPool[Any]) -> None:
    served: list[int] = []

    def wait(number: int) -> None:
        connection = pool.getconn(timeout=20)
        served.append(number)
        pool.putconn(connection)

    connection = pool.getconn(timeout=20)
    threads = []
    for number in range(3):
        threads.append(threading.Thread(target=wait, args=[number]))
        threads[-1].start()
        eventually(lambda: len(pool._waiting) == len(threads))
    pool.putconn(connection)
    for thread in threads:
        thread.join()
    assert served == [0, 1, 2]


def test_what_a_worker_opens_is_handed_to_whatever_is_first_in_the_deque(
    pool: psycopg_pool.ConnectionPool[Any],
) -> None:
    class Place:
        def __init__(self, *, waits: bool) -> None:
            self.waits = waits
            self.handed: list[psycopg.Connection[Any]] = []

        def set(self, connection: psycopg.Connection[Any]) -> bool:
            self.handed.append(connection)
            return self.waits

    first, second = Place(waits=False), Place(waits=True)
    waiting: deque[Any] = pool._waiting
    with pool._lock:
        waiting += [first, second]
        pool._maybe_grow_pool()
        pool._maybe_grow_pool()  # it grows by one at a time
    eventually(lambda: second.handed)
    assert first.handed == second.handed
    assert (len(pool._pool), pool._nconns, pool._stats[pool._REQUESTS_QUEUED]) == (0, 1, 0)
    (connection,) = second.handed
    assert connection._pool is None
    connection._pool = pool
    pool.putconn(connection)
    assert list(pool._pool) == [connection]


def test_without_time_to_reconnect_a_failed_attempt_is_repeated_once_and_given_up() -> None:
    attempts: list[int] = []

    class Failing(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *_: Any, **__: Any) -> Any:
            attempts.append(1)
            raise psycopg.OperationalError("no")

    given_up = threading.Event()
    pool = psycopg_pool.ConnectionPool(
        connection_class=Failing, min_size=0, max_size=1, open=False, reconnect_timeout=0.0, num_workers=1,
        reconnect_failed=lambda _: given_up.set(),
    )  # fmt: skip
    with pool:
        with pytest.raises(psycopg_pool.PoolTimeout):
            pool.getconn(timeout=0.2)
        assert given_up.wait(20)
        assert (len(attempts), pool._nconns, pool._growing) == (2, 0, False)


def test_a_closed_pool_closes_what_it_is_given_back(pool: psycopg_pool.ConnectionPool[Any]) -> None:
    connection = pool.getconn(timeout=20)
    pool.close()
    pool.putconn(connection)
    assert connection.closed


async def test_the_async_pool_is_made_alike(postgres: Postgres) -> None:
    pool = psycopg_pool.AsyncConnectionPool(postgres.primary, min_size=0, max_size=1, open=False)
    assert isinstance(pool._pool, deque)
    assert isinstance(pool._waiting, deque)
    assert not hasattr(pool, "_lock")  # before it is opened
    pool._lock = lock = ALock()
    async with pool:
        assert pool._lock is lock
        assert isinstance(lock, asyncio.Lock)
        connection = await pool.getconn(timeout=20)
        task = asyncio.create_task(pool.getconn(timeout=20))
        await aeventually(lambda: asyncio.sleep(0, bool(pool._waiting)))
        client = pool._waiting.popleft()
        assert await client.fail(ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            await task
        await pool.putconn(connection)
        # Nothing is awaited for real on the way in when a connection is ready, nor on the way back when nobody waits.
        for call in (pool.getconn(), pool.putconn(connection)):
            with pytest.raises(StopIteration):
                call.send(None)


@pytest.mark.parametrize("kind", [psycopg.Connection, psycopg.AsyncConnection])
def test_what_a_connection_is_lies_in_its_dict(kind: type[Any]) -> None:
    assert "__slots__" not in kind.__dict__
    source = inspect.getsource(psycopg.Connection.__mro__[1].__init__)  # type: ignore[misc]
    names = ("_notice_handlers", "_notify_handlers", "_notifies_backlog", "_pipeline", "_tpc", "_num_transactions")
    for name in (*names, "_prepared", "_adapters"):
        assert f"self.{name}" in source


def test_what_is_sent_passes_where_it_is_noted(postgres: Postgres) -> None:
    passed: list[Any] = []

    class Prepared(PrepareManager):
        def maybe_add_to_cache(self, query: PostgresQuery, prep: Prepare, name: bytes) -> Key | None:
            assert connection.pgconn.transaction_status == TransactionStatus.ACTIVE  # it has been sent already
            passed.append(query.query)
            return super().maybe_add_to_cache(query, prep, name)

    class Connection(psycopg.Connection[Any]):
        def wait(self, *args: Any, **kwargs: Any) -> Any:
            passed.append("wait")
            return super().wait(*args, **kwargs)

        def _start_query(self) -> PQGen[None]:
            passed.append("start")
            return super()._start_query()

        def _exec_command(self, command: Any, *args: Any) -> PQGen[Any]:
            passed.append(command)
            return super()._exec_command(command, *args)

    def by(*expected: Any) -> bool:
        noted = [*passed]
        passed.clear()
        return noted == [*expected]

    with Connection.connect(postgres.primary) as connection:
        connection._prepared = Prepared()
        connection.execute("SELECT 1")
        assert by("wait", "start", b"BEGIN", b"SELECT 1")
        psycopg.ClientCursor(connection).execute("SELECT 1")
        assert by("wait", "start", b"SELECT 1")
        assert list(connection.cursor().stream("SELECT 1")) == [(1,)]
        assert by("wait", "start", "wait", "wait")
        connection.commit()
        assert by("wait", b"COMMIT")
        with connection.transaction():
            assert by("wait", b"BEGIN")
        assert by("wait", b"COMMIT")


def test_what_a_pool_and_psycopg_add_to_a_connection_is_known(
    pool: psycopg_pool.ConnectionPool[Any], postgres: Postgres
) -> None:
    with psycopg.connect(postgres.primary) as plain, pool.connection() as connection:
        first = set(vars(connection))
        for _ in range(7):
            connection.execute("SELECT %s", [1])
        assert set(vars(connection)) == first
        assert first - set(vars(plain)) == {"_pool", "_created_at", "_expire_at"}


def test_adapters_are_copied_when_they_are_written_to(pool: psycopg_pool.ConnectionPool[Any]) -> None:
    with pool.connection() as connection:
        original = connection.adapters
        copy = AdaptersMap(original)
        copy.types = TypesRegistry(original.types)
        copy.register_dumper(str, BytesDumper)
        copy.register_loader("text", ByteaLoader)
        copy.types.add(TypeInfo("mine", 123456, 0))
        assert original.get_dumper(str, PyFormat.TEXT) is not copy.get_dumper(str, PyFormat.TEXT)
        assert original.get_loader(25, Format.TEXT) is not copy.get_loader(25, Format.TEXT)
        assert original.types.get("mine") is None
        cursor = connection.cursor()
        cursor._adapters = copy  # is what it loads with
        assert cursor.execute("SELECT '\\x61'::text").fetchone() == (b"a",)
