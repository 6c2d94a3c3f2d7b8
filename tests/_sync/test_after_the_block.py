# Generated from tests/_async/test_after_the_block.py by tools/async_to_sync.py: do not edit.
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
from psycopg import ClientCursor, Connection, RawCursor
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.types.string import StrDumper

from router import Router
from router._runtime.flags import Flag
from router._sync.slot import Slot
from tests._sync.internals import inside
from tests.proxy import Proxy
from tests.support import all_of, eventually, new_name, outside, run, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Postgres

    Keep: TypeAlias = Callable[[Connection[Any]], Any]
    Use: TypeAlias = Callable[[Any], Any]

ONE: dict[str, Any] = {"max_size": 1, "timeout": 20.0}


def itself(connection: Connection[Any]) -> Any:
    return connection


def a_cursor(connection: Connection[Any]) -> Any:
    return connection.execute("SELECT 1")


def a_server_cursor(connection: Connection[Any]) -> Any:
    cursor = connection.cursor("named", withhold=True)
    cursor.execute("SELECT generate_series(1, 1000)")
    return cursor


def methods(connection: Connection[Any]) -> Any:
    return connection.execute, connection.commit, connection.cancel


def begun(connection: Connection[Any]) -> Any:
    both = range(2)  # each can be entered once
    return (
        [connection.transaction() for _ in both],
        [connection.pipeline() for _ in both],
        [connection.notifies(timeout=0) for _ in both],
    )


def a_raw_cursor(connection: Connection[Any]) -> Any:
    cursor = RawCursor(connection)
    cursor.execute("SELECT $1", [1])
    return cursor


def a_client_cursor(connection: Connection[Any]) -> Any:
    return ClientCursor(connection)


def a_copy(connection: Connection[Any]) -> Any:
    with connection.cursor().copy("COPY (SELECT 1) TO STDOUT") as copying:
        while copying.read():
            pass
    return copying


def a_copy_in(connection: Connection[Any]) -> Any:
    with connection.cursor().copy("COPY note FROM STDIN") as copying:
        pass
    return copying


def ended(connection: Connection[Any]) -> Any:
    with connection.transaction() as transaction, connection.pipeline() as pipeline:
        return transaction, pipeline


def properties(connection: Connection[Any]) -> Any:
    return connection.info, ref(connection), connection.cursor().connection


def execute(kept: Any) -> Any:
    kept.execute("INSERT INTO note VALUES (1)")


def execute_many(kept: Any) -> Any:
    kept.executemany("INSERT INTO note VALUES (%s)", [(1,), (2,)])


def stream(kept: Any) -> Any:
    for _ in kept.stream("SELECT 1"):
        pass


def copy(kept: Any) -> Any:
    with kept.copy("COPY note FROM STDIN") as copying:
        copying.write(b"1\n")


def fetch(kept: Any) -> Any:
    kept.fetchone()


def commit(kept: Any) -> Any:
    kept.commit()


def roll_back(kept: Any) -> Any:
    kept.rollback()


def cancel(kept: Any) -> Any:
    kept.cancel()


def cancel_safely(kept: Any) -> Any:
    kept.cancel_safe()


def enter(kept: Any) -> Any:
    with kept:
        pass


def in_transaction(kept: Any) -> Any:
    with kept.transaction():
        pass


def in_pipeline(kept: Any) -> Any:
    with kept.pipeline():
        pass


def listen(kept: Any) -> Any:
    for _ in kept.notifies(timeout=0):
        pass


def alter(kept: Any) -> Any:
    kept.set_autocommit(True)


def set_attribute(kept: Any) -> Any:
    kept.row_factory = None


def hear(kept: Any) -> Any:
    kept.add_notice_handler(print)


def adapt(kept: Any) -> Any:
    kept.adapters.register_dumper(str, StrDumper)


def ask_libpq(kept: Any) -> Any:
    kept.pgconn.exec_(b"INSERT INTO note VALUES (1)")


def look(kept: Any) -> Any:
    return kept.info


def call_first(kept: Any) -> Any:
    kept[0]("SELECT 1")


def call_second(kept: Any) -> Any:
    kept[1]()


def call_third(kept: Any) -> Any:
    kept[2]()


def enter_first(kept: Any) -> Any:
    with kept[0].pop():
        pass


def enter_second(kept: Any) -> Any:
    with kept[1].pop():
        pass


def iterate_third(kept: Any) -> Any:
    for _ in kept[2].pop():
        pass


def read(kept: Any) -> Any:
    kept.read_row()


def write(kept: Any) -> Any:
    for _ in range(10):
        kept.write(b"1\n" * 10_000)


def execute_raw(kept: Any) -> Any:
    kept.execute("INSERT INTO note VALUES ($1)", [1])


def two_phase(kept: Any) -> Any:
    kept.tpc_begin("stray")


def hear_notifications(kept: Any) -> Any:
    kept.add_notify_handler(print)


def ask_for_file(kept: Any) -> Any:
    kept.fileno()


def ask_connection_of(kept: Any) -> Any:
    kept.connection.execute("INSERT INTO note VALUES (1)")


def leave_first(kept: Any) -> Any:
    kept[0].__exit__(None, None, None)


def sync_second(kept: Any) -> Any:
    kept[1].sync()


def leave_second(kept: Any) -> Any:
    kept[1].__exit__(None, None, None)


def look_at_first(kept: Any) -> Any:
    return kept[0].transaction_status, kept[0].parameter_status("search_path"), kept[0].dsn


def execute_second(kept: Any) -> Any:
    kept[1]().execute("INSERT INTO note VALUES (1)")


def execute_third(kept: Any) -> Any:
    kept[2].execute("INSERT INTO note VALUES (1)")


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
def test_what_is_kept_raises_and_nobody_else_notices(postgres: Postgres, keep: Keep, use: Use) -> None:
    with Router(settings(primary=postgres.primary, pool=ONE)) as router:
        with router.connection() as connection:
            pid = connection.info.backend_pid
            connection.execute("CREATE TEMPORARY TABLE note (i int)")
            kept = keep(connection)
        with pytest.raises(psycopg.InterfaceError, match="block that borrowed this connection has ended"):
            use(kept)
        with router.connection() as another:
            assert another.pgconn.transaction_status == TransactionStatus.IDLE
            assert another.info.backend_pid == pid
            another.execute("SELECT 1")
            with pytest.raises(psycopg.InterfaceError, match="block that borrowed this connection has ended"):
                use(kept)
            assert another.pgconn.transaction_status == TransactionStatus.INTRANS
            rows = another.execute("SELECT * FROM note")
            assert rows.fetchall() == []
            assert another.execute("SELECT %s::text", ["a"]).fetchone() == ("a",)
        del kept


HARMLESS = {"broken", "close", "closed", "lock", "pgconn"}
"""What a connection object still has when its block has ended; its ``pgconn`` says that it is closed."""


@pytest.mark.parametrize("read_only", [False, True])
def test_nothing_of_the_object_is_of_use(postgres: Postgres, read_only: bool) -> None:
    with Router(settings(primary=postgres.primary, pool=ONE)) as router:
        with router.connection(read_only=read_only) as kept:
            names = {name for name in dir(kept) if not name.startswith("__")}
        acquired = router.acquire(read_only=read_only)
        acquired.close()
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
def test_an_object_cannot_be_copied(postgres: Postgres, duplicate: Any) -> None:
    options = settings(primary=postgres.primary, pool=ONE)
    with Router(options) as router, router.connection() as connection:
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            duplicate(connection)
        connection.execute("SELECT 1")


def test_rows_are_read_after_the_block_in_the_encoding_of_the_session(postgres: Postgres) -> None:
    dsn = psycopg.conninfo.make_conninfo(postgres.primary, client_encoding="latin1")
    with Router(settings(primary=dsn, pool=ONE)) as router:
        with router.connection() as connection:
            cursor = connection.execute("SELECT ARRAY[chr(233)], chr(233)")
        with router.connection():
            assert cursor.fetchone() == (["\u00e9"], "\u00e9")


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[Proxy]:
    where = psycopg.conninfo.conninfo_to_dict(postgres.primary)
    with Proxy(str(where["host"]), int(str(where["port"]))) as proxy:
        yield proxy


def test_a_cancel_on_its_way_when_the_block_ends_ends_nobody_elses_statement(postgres: Postgres, proxy: Proxy) -> None:
    dsn = psycopg.conninfo.make_conninfo(postgres.primary, host=proxy.host, port=proxy.port)
    kept: list[Connection[Any]] = []
    begun = Flag()

    def cancel_late() -> None:
        assert begun.wait_for(20.0)
        with suppress(psycopg.Error):
            kept[0].cancel_safe()

    def borrow() -> None:
        with router.connection(read_only=True) as connection:
            connection.execute("SELECT 1")
            accepted = proxy.accepted
            proxy.deaf()  # it does not get further than here
            kept.append(connection)
            begun.set()

            def on_its_way() -> bool:
                return proxy.accepted > accepted

            eventually(on_its_way)
        proxy.forward()
        with router.connection(read_only=True) as connection:
            for _ in range(50):
                connection.execute("SELECT pg_sleep(0.01)")

    with Router(settings(primary=dsn, pool=ONE, health={"interval": 60.0})) as router:
        all_of(cancel_late, borrow)


def test_a_session_whose_cancel_was_given_up_serves_nobody_else(postgres: Postgres, proxy: Proxy) -> None:
    dsn = psycopg.conninfo.make_conninfo(postgres.primary, host=proxy.host, port=proxy.port)
    with Router(settings(primary=dsn, pool=ONE, health={"interval": 60.0})) as router:
        with router.connection(read_only=True) as connection:
            pid = connection.info.backend_pid
            proxy.deaf()
            with pytest.raises(psycopg.OperationalError):
                connection.cancel_safe(timeout=0.1)
        proxy.forward()  # what is on its way may arrive now
        with router.connection(read_only=True) as connection:
            connection.execute("SELECT 1")
            assert connection.info.backend_pid != pid


def test_the_error_says_where_the_connection_was_borrowed_if_that_is_noted(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary, pool=ONE)) as router:
        with router.connection() as connection:  # pytest shows ResourceWarnings, so that it is noted
            pass
        with router.connection():
            with pytest.raises(psycopg.InterfaceError, match=rf"{__file__}, line \d+"):
                connection.execute("SELECT 1")


def test_to_close_what_is_kept_does_no_harm(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary, pool=ONE)) as router:
        with router.connection() as connection:
            cursor, named = connection.cursor(), connection.cursor("named", withhold=True)
            named.execute("SELECT 1")
            pid = connection.info.backend_pid
        with router.connection() as another:
            another.execute("SELECT 1")
            cursor.close()
            named.close()
            connection.close()
            assert connection.closed
            assert not connection.broken
            assert "given back" in repr(connection)
            assert another.info.backend_pid == pid
            another.execute("SELECT 1")


def test_a_close_that_was_kept_does_no_harm(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary, pool=ONE)) as router:
        with router.connection() as connection:
            pid, close = connection.info.backend_pid, connection.close
        with router.connection() as another:
            close()
            another.execute("SELECT 1")
            assert another.info.backend_pid == pid
            [node] = router.stats().versions[0].nodes
            assert node.write is not None
            assert (node.write.size, node.write.in_use) == (1, 1)
        with router.connection() as another:
            assert another.info.backend_pid == pid


def test_a_connection_that_is_closed_while_a_statement_runs_fails_that_and_nobody_else(
    postgres: Postgres,
) -> None:
    with Router(settings(primary=postgres.primary, pool=ONE)) as router:
        for _ in range(3):
            kept: list[Connection[Any]] = []
            query: LiteralString = f"SELECT pg_sleep(60) AS {new_name()}"  # the server goes on with one that was cut

            def borrow(kept: list[Connection[Any]] = kept, query: LiteralString = query) -> None:
                with pytest.raises(psycopg.OperationalError):
                    with router.connection(read_only=True) as connection:
                        kept.append(connection)
                        connection.execute(query)

            def close(kept: list[Connection[Any]] = kept, query: LiteralString = query) -> None:
                def runs() -> bool:
                    active = f"SELECT 1 FROM pg_stat_activity WHERE query = '{query}' AND state = 'active'"
                    return bool(outside(run, postgres.primary, active))

                eventually(runs)
                kept[0].close()

            all_of(borrow, close)
            with router.connection(read_only=True) as another:
                assert another.execute("SELECT 1").fetchone() == (1,)


def test_a_statement_that_begins_while_its_connection_is_closed_fails_before_anything_is_sent(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    with Router(settings(primary=postgres.primary, pool=ONE)) as router:
        with router.connection(read_only=True) as connection:

            def close(slot: Slot, *args: Any, **options: Any) -> None:
                with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
                    connection.execute("SELECT 1")
                begun.append("a statement")
                closes(slot, *args, **options)

            closes = Slot.close
            monkeypatch.setattr(Slot, "close", close)
            connection.close()
            monkeypatch.undo()
        with router.connection(read_only=True) as another:
            another.execute("SELECT 1")
    assert begun == ["a statement"]


def test_a_connection_that_was_cut_is_lent_to_nobody_though_its_block_ends_well(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router._sync.pool.connection.FRESH", 60.0)
    with Router(settings(primary=postgres.primary, pool=ONE)) as router:
        with router.connection(read_only=True) as connection:
            connection.execute("SELECT 1")
            [pool] = inside(router).pools
            pool.closer.drop("its server must not be used")
        with router.connection(read_only=True) as another:
            another.execute("SELECT 1")


def test_rows_that_were_received_in_the_block_can_still_be_read(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary, pool=ONE)) as router:
        with router.connection() as connection:
            cursor = connection.execute("SELECT 1, ARRAY['a', 'b'], '{\"a\": 1}'::jsonb, now() - now()")
        with router.connection() as another:
            another.execute("SELECT 2")
            [(one, array, json, _)] = cursor.fetchall()
    assert (one, array, json) == (1, ["a", "b"], {"a": 1})


def test_adapters_that_were_kept_are_nobody_elses(postgres: Postgres) -> None:
    class Upper(StrDumper):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.upper())

    with Router(settings(primary=postgres.primary, pool=ONE)) as router:
        with router.connection() as connection:
            adapters = connection.adapters
        with router.connection() as another:
            adapters.register_dumper(str, Upper)
            assert another.execute("SELECT %s::text", ["a"]).fetchone() == ("a",)


def test_a_session_that_was_used_while_nobody_had_it_is_replaced_and_reported_once(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    with Router(settings(primary=postgres.primary, pool=ONE)) as router:
        with router.connection() as connection:
            kept = connection.pgconn
        kept.exec_(b"BEGIN")
        for _ in range(2):
            with router.connection() as connection:
                assert connection.pgconn.transaction_status == TransactionStatus.IDLE
                assert connection.pgconn is not kept
                connection.execute("SELECT 1")
        [node] = router.stats().versions[0].nodes
        assert node.write is not None
        assert (node.write.size, node.write.in_use) == (1, 0)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert "while it was not borrowed" in told[0]


def test_what_a_block_changes_of_libpqs_connection_is_put_right(postgres: Postgres) -> None:
    heard: list[Any] = []
    with Router(settings(primary=postgres.primary, pool=ONE)) as router:
        with router.connection() as connection:
            pid = connection.info.backend_pid
            connection.pgconn.nonblocking = 0
            connection.pgconn.notice_handler = heard.append
            connection.pgconn.notify_handler = heard.append
        with router.connection() as connection:
            assert connection.info.backend_pid == pid
            assert connection.pgconn.nonblocking == 1
            said: list[str | None] = []
            connection.add_notice_handler(lambda notice: said.append(notice.message_primary))
            connection.execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
            assert said == ["hello"]
        assert heard == []


def test_strays_see_and_write_nothing_of_others(postgres: Postgres) -> None:
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
        with Router(options) as router:

            def work(stray: int) -> None:
                kept: Any = None
                for turn in range(100):
                    tenant = (one, two)[(turn + stray) % 2]
                    with router.connection(tenant=tenant, read_only=turn % 3 > 0) as connection:
                        rows = connection.execute("SELECT body FROM note").fetchall()
                        count["wrong rows"] += rows != [(tenant,)]
                        if kept is not None:
                            with suppress(psycopg.InterfaceError):
                                kept.execute("INSERT INTO note VALUES ('stray')")
                                count["carried out"] += 1
                    kept = connection if stray else None
                    if stray:
                        with suppress(psycopg.InterfaceError):
                            kept.execute("INSERT INTO note VALUES ('stray')")
                            count["carried out"] += 1

            all_of(*(lambda stray=stray: work(stray) for stray in (0, 0, 0, 1, 1, 1)))
    assert +count == Counter()
    for tenant in (one, two):
        assert run(postgres.primary, f"SELECT body FROM {tenant}.note") == [(tenant,)]
