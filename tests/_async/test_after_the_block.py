"""What is kept from a block after its end: it raises, it harms nobody, and a connection that it uses is not lent."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from contextlib import suppress
from copy import copy as copy_object
from copy import deepcopy
from typing import TYPE_CHECKING, Any, LiteralString, TypeAlias
from weakref import ref

import psycopg
import pytest
from psycopg import AsyncClientCursor, AsyncConnection, AsyncRawCursor
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.types.string import StrDumper

from router import AsyncRouter
from router._async.slot import AsyncSlot
from router._runtime.flags import AFlag
from tests._async.internals import inside
from tests.proxy import Proxy
from tests.support import aall_of, aeventually, aoutside, new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.conftest import Postgres

    Keep: TypeAlias = Callable[[AsyncConnection[Any]], Awaitable[Any]]
    Use: TypeAlias = Callable[[Any], Awaitable[Any]]

ONE: dict[str, Any] = {"max_size": 1, "timeout": 20.0}


async def itself(connection: AsyncConnection[Any]) -> Any:
    return connection


async def a_cursor(connection: AsyncConnection[Any]) -> Any:
    return await connection.execute("SELECT 1")


async def a_server_cursor(connection: AsyncConnection[Any]) -> Any:
    cursor = connection.cursor("named", withhold=True)
    await cursor.execute("SELECT generate_series(1, 1000)")
    return cursor


async def methods(connection: AsyncConnection[Any]) -> Any:
    return connection.execute, connection.commit, connection.cancel


async def begun(connection: AsyncConnection[Any]) -> Any:
    both = range(2)  # each can be entered once
    return (
        [connection.transaction() for _ in both],
        [connection.pipeline() for _ in both],
        [connection.notifies(timeout=0) for _ in both],
    )


async def a_raw_cursor(connection: AsyncConnection[Any]) -> Any:
    cursor = AsyncRawCursor(connection)
    await cursor.execute("SELECT $1", [1])
    return cursor


async def a_client_cursor(connection: AsyncConnection[Any]) -> Any:
    return AsyncClientCursor(connection)


async def a_copy(connection: AsyncConnection[Any]) -> Any:
    async with connection.cursor().copy("COPY (SELECT 1) TO STDOUT") as copying:
        while await copying.read():
            pass
    return copying


async def a_copy_in(connection: AsyncConnection[Any]) -> Any:
    async with connection.cursor().copy("COPY note FROM STDIN") as copying:
        pass
    return copying


async def ended(connection: AsyncConnection[Any]) -> Any:
    async with connection.transaction() as transaction, connection.pipeline() as pipeline:
        return transaction, pipeline


async def properties(connection: AsyncConnection[Any]) -> Any:
    return connection.info, ref(connection), connection.cursor().connection


async def execute(kept: Any) -> Any:
    await kept.execute("INSERT INTO note VALUES (1)")


async def execute_many(kept: Any) -> Any:
    await kept.executemany("INSERT INTO note VALUES (%s)", [(1,), (2,)])


async def stream(kept: Any) -> Any:
    async for _ in kept.stream("SELECT 1"):
        pass


async def copy(kept: Any) -> Any:
    async with kept.copy("COPY note FROM STDIN") as copying:
        await copying.write(b"1\n")


async def fetch(kept: Any) -> Any:
    await kept.fetchone()


async def commit(kept: Any) -> Any:
    await kept.commit()


async def roll_back(kept: Any) -> Any:
    await kept.rollback()


async def cancel(kept: Any) -> Any:
    kept.cancel()


async def cancel_safely(kept: Any) -> Any:
    await kept.cancel_safe()


async def enter(kept: Any) -> Any:
    async with kept:
        pass


async def in_transaction(kept: Any) -> Any:
    async with kept.transaction():
        pass


async def in_pipeline(kept: Any) -> Any:
    async with kept.pipeline():
        pass


async def listen(kept: Any) -> Any:
    async for _ in kept.notifies(timeout=0):
        pass


async def alter(kept: Any) -> Any:
    await kept.set_autocommit(True)


async def set_attribute(kept: Any) -> Any:
    kept.row_factory = None


async def hear(kept: Any) -> Any:
    kept.add_notice_handler(print)


async def adapt(kept: Any) -> Any:
    kept.adapters.register_dumper(str, StrDumper)


async def ask_libpq(kept: Any) -> Any:
    kept.pgconn.exec_(b"INSERT INTO note VALUES (1)")


async def look(kept: Any) -> Any:
    return kept.info


async def call_first(kept: Any) -> Any:
    await kept[0]("SELECT 1")


async def call_second(kept: Any) -> Any:
    await kept[1]()


async def call_third(kept: Any) -> Any:
    kept[2]()


async def enter_first(kept: Any) -> Any:
    async with kept[0].pop():
        pass


async def enter_second(kept: Any) -> Any:
    async with kept[1].pop():
        pass


async def iterate_third(kept: Any) -> Any:
    async for _ in kept[2].pop():
        pass


async def read(kept: Any) -> Any:
    await kept.read_row()


async def write(kept: Any) -> Any:
    for _ in range(10):
        await kept.write(b"1\n" * 10_000)


async def execute_raw(kept: Any) -> Any:
    await kept.execute("INSERT INTO note VALUES ($1)", [1])


async def two_phase(kept: Any) -> Any:
    await kept.tpc_begin("stray")


async def hear_notifications(kept: Any) -> Any:
    kept.add_notify_handler(print)


async def ask_for_file(kept: Any) -> Any:
    kept.fileno()


async def ask_connection_of(kept: Any) -> Any:
    await kept.connection.execute("INSERT INTO note VALUES (1)")


async def leave_first(kept: Any) -> Any:
    await kept[0].__aexit__(None, None, None)


async def sync_second(kept: Any) -> Any:
    await kept[1].sync()


async def leave_second(kept: Any) -> Any:
    await kept[1].__aexit__(None, None, None)


async def look_at_first(kept: Any) -> Any:
    return kept[0].transaction_status, kept[0].parameter_status("search_path"), kept[0].dsn


async def execute_second(kept: Any) -> Any:
    await kept[1]().execute("INSERT INTO note VALUES (1)")


async def execute_third(kept: Any) -> Any:
    await kept[2].execute("INSERT INTO note VALUES (1)")


STRAYS: list[tuple[Keep, Use]] = [
    *((itself, use) for use in (
        execute, commit, roll_back, cancel, cancel_safely, enter, in_transaction, in_pipeline, listen, alter,
        set_attribute, hear, adapt, ask_libpq, look, two_phase, hear_notifications, ask_for_file,
    )),
    *((a_cursor, use) for use in (execute, execute_many, stream, copy)),
    *((a_server_cursor, use) for use in (execute, fetch)),
    *((a_cursor, use) for use in (ask_connection_of,)),
    *((a_raw_cursor, use) for use in (execute_raw, ask_connection_of)),
    *((a_client_cursor, use) for use in (execute, stream, copy)),
    *((a_copy, use) for use in (read,)),
    *((a_copy_in, use) for use in (write,)),
    *((ended, use) for use in (leave_first, sync_second, leave_second)),
    *((properties, use) for use in (look_at_first, execute_second, execute_third)),
    *((methods, use) for use in (call_first, call_second, call_third)),
    *((begun, use) for use in (enter_first, enter_second, iterate_third)),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")  # of psycopg's, on cursors
@pytest.mark.parametrize(("keep", "use"), STRAYS)
async def test_what_is_kept_raises_and_nobody_else_notices(postgres: Postgres, keep: Keep, use: Use) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        async with router.connection() as connection:
            pid = connection.info.backend_pid
            await connection.execute("CREATE TEMPORARY TABLE note (i int)")
            kept = await keep(connection)
        with pytest.raises(psycopg.InterfaceError, match="block that borrowed this connection has ended"):
            await use(kept)
        async with router.connection() as another:
            assert another.pgconn.transaction_status == TransactionStatus.IDLE
            assert another.info.backend_pid == pid
            await another.execute("SELECT 1")
            with pytest.raises(psycopg.InterfaceError, match="block that borrowed this connection has ended"):
                await use(kept)
            assert another.pgconn.transaction_status == TransactionStatus.INTRANS
            rows = await another.execute("SELECT * FROM note")
            assert await rows.fetchall() == []
            assert await (await another.execute("SELECT %s::text", ["a"])).fetchone() == ("a",)
        del kept


HARMLESS = {"broken", "close", "closed", "lock", "pgconn"}
"""What a connection object still has when its block has ended; its ``pgconn`` says that it is closed."""


@pytest.mark.parametrize("read_only", [False, True])
async def test_nothing_of_the_object_is_of_use(postgres: Postgres, read_only: bool) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        async with router.connection(read_only=read_only) as kept:
            names = {name for name in dir(kept) if not name.startswith("__")}
        acquired = await router.acquire(read_only=read_only)
        await acquired.close()
        for one in (kept, acquired):
            for name in names - HARMLESS - {"_pipeline", "_notifies_backlog"}:
                with pytest.raises(psycopg.InterfaceError, match="block that borrowed this connection has ended"):
                    getattr(one, name)
                with pytest.raises(psycopg.InterfaceError, match="block that borrowed this connection has ended"):
                    setattr(one, name, None)
                with pytest.raises(psycopg.InterfaceError, match="block that borrowed this connection has ended"):
                    delattr(one, name)
            assert one.closed
            assert one.pgconn.status == ConnStatus.BAD
            for name in ("transaction_status", "socket", "exec_", "get_cancel", "finish", "reset"):
                with pytest.raises(psycopg.InterfaceError, match="block that borrowed this connection has ended"):
                    getattr(one.pgconn, name)


@pytest.mark.parametrize("duplicate", [copy_object, deepcopy, pickle.dumps])
async def test_an_object_cannot_be_copied(postgres: Postgres, duplicate: Any) -> None:
    options = settings(primary=postgres.primary, pool=ONE)
    async with AsyncRouter(options) as router, router.connection() as connection:
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            duplicate(connection)
        await connection.execute("SELECT 1")


async def test_rows_are_read_after_the_block_in_the_encoding_of_the_session(postgres: Postgres) -> None:
    dsn = psycopg.conninfo.make_conninfo(postgres.primary, client_encoding="latin1")
    async with AsyncRouter(settings(primary=dsn, pool=ONE)) as router:
        async with router.connection() as connection:
            cursor = await connection.execute("SELECT ARRAY[chr(233)], chr(233)")
        async with router.connection():
            assert await cursor.fetchone() == (["\u00e9"], "\u00e9")


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[Proxy]:
    where = psycopg.conninfo.conninfo_to_dict(postgres.primary)
    with Proxy(str(where["host"]), int(str(where["port"]))) as proxy:
        yield proxy


async def test_a_cancel_on_its_way_when_the_block_ends_ends_nobody_elses_statement(
    postgres: Postgres, proxy: Proxy
) -> None:
    dsn = psycopg.conninfo.make_conninfo(postgres.primary, host=proxy.host, port=proxy.port)
    kept: list[AsyncConnection[Any]] = []
    begun = AFlag()

    async def cancel_late() -> None:
        assert await begun.wait_for(20.0)
        with suppress(psycopg.Error):
            await kept[0].cancel_safe()

    async def borrow() -> None:
        async with router.connection(read_only=True) as connection:
            await connection.execute("SELECT 1")
            accepted = proxy.accepted
            proxy.deaf()  # it does not get further than here
            kept.append(connection)
            begun.set()

            async def on_its_way() -> bool:
                return proxy.accepted > accepted

            await aeventually(on_its_way)
        proxy.forward()
        async with router.connection(read_only=True) as connection:
            for _ in range(50):
                await connection.execute("SELECT pg_sleep(0.01)")

    async with AsyncRouter(settings(primary=dsn, pool=ONE, health={"interval": 60.0})) as router:
        await aall_of(cancel_late, borrow)


async def test_a_session_whose_cancel_was_given_up_serves_nobody_else(postgres: Postgres, proxy: Proxy) -> None:
    dsn = psycopg.conninfo.make_conninfo(postgres.primary, host=proxy.host, port=proxy.port)
    async with AsyncRouter(settings(primary=dsn, pool=ONE, health={"interval": 60.0})) as router:
        async with router.connection(read_only=True) as connection:
            pid = connection.info.backend_pid
            proxy.deaf()
            with pytest.raises(psycopg.OperationalError):
                await connection.cancel_safe(timeout=0.1)
        proxy.forward()  # what is on its way may arrive now
        async with router.connection(read_only=True) as connection:
            await connection.execute("SELECT 1")
            assert connection.info.backend_pid != pid


async def test_the_error_says_where_the_connection_was_borrowed_if_that_is_noted(postgres: Postgres) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        async with router.connection() as connection:  # pytest shows ResourceWarnings, so that it is noted
            pass
        async with router.connection():
            with pytest.raises(psycopg.InterfaceError, match=rf"{__file__}, line \d+"):
                await connection.execute("SELECT 1")


async def test_to_close_what_is_kept_does_no_harm(postgres: Postgres) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        async with router.connection() as connection:
            cursor, named = connection.cursor(), connection.cursor("named", withhold=True)
            await named.execute("SELECT 1")
            pid = connection.info.backend_pid
        async with router.connection() as another:
            await another.execute("SELECT 1")
            await cursor.close()
            await named.close()
            await connection.close()
            assert connection.closed
            assert not connection.broken
            assert "given back" in repr(connection)
            assert another.info.backend_pid == pid
            await another.execute("SELECT 1")


async def test_a_close_that_was_kept_does_no_harm(postgres: Postgres) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        async with router.connection() as connection:
            pid, close = connection.info.backend_pid, connection.close
        async with router.connection() as another:
            await close()
            await another.execute("SELECT 1")
            assert another.info.backend_pid == pid
            [node] = router.stats().versions[0].nodes
            assert node.write is not None
            assert (node.write.size, node.write.in_use) == (1, 1)
        async with router.connection() as another:
            assert another.info.backend_pid == pid


async def test_a_connection_that_is_closed_while_a_statement_runs_fails_that_and_nobody_else(
    postgres: Postgres,
) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        for _ in range(3):
            kept: list[AsyncConnection[Any]] = []
            query: LiteralString = f"SELECT pg_sleep(60) AS {new_name()}"  # the server goes on with one that was cut

            async def borrow(kept: list[AsyncConnection[Any]] = kept, query: LiteralString = query) -> None:
                with pytest.raises(psycopg.OperationalError):
                    async with router.connection(read_only=True) as connection:
                        kept.append(connection)
                        await connection.execute(query)

            async def close(kept: list[AsyncConnection[Any]] = kept, query: LiteralString = query) -> None:
                async def runs() -> bool:
                    active = f"SELECT 1 FROM pg_stat_activity WHERE query = '{query}' AND state = 'active'"
                    return bool(await aoutside(run, postgres.primary, active))

                await aeventually(runs)
                await kept[0].close()

            await aall_of(borrow, close)
            async with router.connection(read_only=True) as another:
                assert await (await another.execute("SELECT 1")).fetchone() == (1,)


async def test_a_statement_that_begins_while_its_connection_is_closed_fails_before_anything_is_sent(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        async with router.connection(read_only=True) as connection:

            async def close(slot: AsyncSlot, *args: Any, **options: Any) -> None:
                with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
                    await connection.execute("SELECT 1")
                begun.append("a statement")
                await closes(slot, *args, **options)

            closes = AsyncSlot.close
            monkeypatch.setattr(AsyncSlot, "close", close)
            await connection.close()
            monkeypatch.undo()
        async with router.connection(read_only=True) as another:
            await another.execute("SELECT 1")
    assert begun == ["a statement"]


async def test_a_connection_that_was_cut_is_lent_to_nobody_though_its_block_ends_well(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router._async.pool.connection.FRESH", 60.0)
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        async with router.connection(read_only=True) as connection:
            await connection.execute("SELECT 1")
            [pool] = inside(router).pools
            await pool.closer.drop("its server must not be used")
        async with router.connection(read_only=True) as another:
            await another.execute("SELECT 1")


async def test_rows_that_were_received_in_the_block_can_still_be_read(postgres: Postgres) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        async with router.connection() as connection:
            cursor = await connection.execute("SELECT 1, ARRAY['a', 'b'], '{\"a\": 1}'::jsonb, now() - now()")
        async with router.connection() as another:
            await another.execute("SELECT 2")
            [(one, array, json, _)] = await cursor.fetchall()
    assert (one, array, json) == (1, ["a", "b"], {"a": 1})


async def test_adapters_that_were_kept_are_nobody_elses(postgres: Postgres) -> None:
    class Upper(StrDumper):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.upper())

    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        async with router.connection() as connection:
            adapters = connection.adapters
        async with router.connection() as another:
            adapters.register_dumper(str, Upper)
            assert await (await another.execute("SELECT %s::text", ["a"])).fetchone() == ("a",)


async def test_a_session_that_was_used_while_nobody_had_it_is_replaced_and_reported_once(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        async with router.connection() as connection:
            kept = connection.pgconn
        kept.exec_(b"BEGIN")
        for _ in range(2):
            async with router.connection() as connection:
                assert connection.pgconn.transaction_status == TransactionStatus.IDLE
                assert connection.pgconn is not kept
                await connection.execute("SELECT 1")
        [node] = router.stats().versions[0].nodes
        assert node.write is not None
        assert (node.write.size, node.write.in_use) == (1, 0)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert "while it was not borrowed" in told[0]


async def test_what_a_block_changes_of_libpqs_connection_is_put_right(postgres: Postgres) -> None:
    heard: list[Any] = []
    async with AsyncRouter(settings(primary=postgres.primary, pool=ONE)) as router:
        async with router.connection() as connection:
            pid = connection.info.backend_pid
            connection.pgconn.nonblocking = 0
            connection.pgconn.notice_handler = heard.append
            connection.pgconn.notify_handler = heard.append
        async with router.connection() as connection:
            assert connection.info.backend_pid == pid
            assert connection.pgconn.nonblocking == 1
            said: list[str | None] = []
            connection.add_notice_handler(lambda notice: said.append(notice.message_primary))
            await connection.execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
            assert said == ["hello"]
        assert heard == []


async def test_strays_see_and_write_nothing_of_others(postgres: Postgres) -> None:
    one, two = new_name(), new_name()
    for tenant in (one, two):
        run(postgres.primary, f"CREATE SCHEMA {tenant}", f"CREATE TABLE {tenant}.note (body text)")
        run(postgres.primary, f"INSERT INTO {tenant}.note VALUES ('{tenant}')")
    count = Counter[str]()
    for pooling in ("shared", "dedicated"):
        options = settings(
            primary=postgres.primary,
            pool={"max_size": 3, "timeout": 20.0},
            tenancy={"pooling": pooling},
            tenant_template={"schema": "{tenant}"},
        )
        async with AsyncRouter(options) as router:

            async def work(stray: int) -> None:
                kept: Any = None
                for turn in range(100):
                    tenant = (one, two)[(turn + stray) % 2]
                    async with router.connection(tenant=tenant, read_only=turn % 3 > 0) as connection:
                        rows = await (await connection.execute("SELECT body FROM note")).fetchall()
                        count["wrong rows"] += rows != [(tenant,)]
                        if kept is not None:
                            with suppress(psycopg.InterfaceError):
                                await kept.execute("INSERT INTO note VALUES ('stray')")
                                count["carried out"] += 1
                    kept = connection if stray else None
                    if stray:
                        with suppress(psycopg.InterfaceError):
                            await kept.execute("INSERT INTO note VALUES ('stray')")
                            count["carried out"] += 1

            await aall_of(*(lambda stray=stray: work(stray) for stray in (0, 0, 0, 1, 1, 1)))
    assert +count == Counter()
    for tenant in (one, two):
        assert run(postgres.primary, f"SELECT body FROM {tenant}.note") == [(tenant,)]
