# Generated from tests/_async/test_features.py by tools/async_to_sync.py: do not edit.
"""Each feature of a psycopg connection, used and left dirty, and what the next borrower finds."""

from __future__ import annotations

import logging
import tempfile
from contextlib import nullcontext, suppress
from select import select
from time import monotonic
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import Connection, Cursor, IsolationLevel, ServerCursor
from psycopg.adapt import Loader
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from psycopg.types import TypeInfo
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.json import set_json_dumps, set_json_loads
from psycopg.types.string import StrDumper

from router import Router
from router._runtime.flags import Flag
from router._sync.pool import closer
from tests.support import all_of, eventually, new_name, one_of_each, run, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from router import RouterSettings
    from router.testing import PostgresCluster

    Feature = Callable[[Connection[Any], str], object]

ROWS = "SELECT generate_series(1, 100000)"
MORE_THAN_IS_BUFFERED = "SELECT repeat('x', 8000), generate_series(1, 100000)"
"""It is not over before the client has read the most of it."""


class Upper(StrDumper):
    def dump(self, obj: str) -> Any:
        return super().dump(obj.upper())


class Garbled(Loader):
    def load(self, data: Any) -> str:
        return "garbled"


class OtherCursor(Cursor[Any]):
    """Some other cursor class."""


class OtherServerCursor(ServerCursor[Any]):
    """Some other server-side cursor class."""


def pipeline(connection: Connection[Any], _: str) -> object:
    opened = connection.pipeline()
    opened.__enter__()
    connection.execute("SELECT 1")
    return opened


def failed_pipeline(connection: Connection[Any], _: str) -> object:
    opened = connection.pipeline()
    opened.__enter__()
    connection.execute("SELECT 1/0")
    return opened


def copy_out(connection: Connection[Any], _: str) -> object:
    copy = connection.cursor().copy(f"COPY ({ROWS}) TO STDOUT")
    for _row in copy.__enter__():
        break
    return copy


def copy_in(connection: Connection[Any], table: str) -> object:
    copy = connection.cursor().copy(f"COPY {table} FROM STDIN")
    copy.__enter__().write_row([1])
    return copy


def copy_that_is_dropped(connection: Connection[Any], table: str) -> object:
    copy = connection.cursor().copy(f"COPY {table} FROM STDIN")
    copy.__enter__().write_row([1])
    return None


def stream(connection: Connection[Any], _: str) -> object:
    rows = connection.cursor().stream(MORE_THAN_IS_BUFFERED)
    next(rows)
    return rows


def stream_that_is_dropped(connection: Connection[Any], _: str) -> object:
    for _row in connection.cursor().stream(MORE_THAN_IS_BUFFERED):
        break
    return None


def server_cursor(connection: Connection[Any], _: str) -> object:
    if connection.autocommit:
        connection.set_autocommit(False)
    cursor = connection.cursor("one")
    cursor.execute(ROWS)
    cursor.fetchone()
    cursor.close()
    other = connection.cursor("two", scrollable=True)
    other.execute(ROWS)
    other.fetchone()
    return other


def two_phase(connection: Connection[Any], _: str) -> object:
    if connection.pgconn.transaction_status:
        connection.commit()
    connection.set_autocommit(False)
    connection.tpc_begin("left behind")
    return None


def notify(connection: Connection[Any], _: str) -> object:
    connection.execute("LISTEN left_behind")
    connection.execute("NOTIFY left_behind, 'secret'")
    connection.commit()
    connection.execute("UNLISTEN *")
    return None


def notifies(connection: Connection[Any], _: str) -> object:
    connection.execute("LISTEN left_behind")
    connection.execute("NOTIFY left_behind, 'secret'")
    connection.commit()
    heard = connection.notifies(timeout=20)
    next(heard)
    return heard


def notifies_that_is_dropped(connection: Connection[Any], _: str) -> object:
    connection.execute("LISTEN left_behind")
    connection.execute("NOTIFY left_behind, 'secret'")
    connection.commit()
    for _heard in connection.notifies(timeout=20):
        break
    return None


def notice_handlers(connection: Connection[Any], _: str) -> object:
    heard: list[object] = []
    connection.add_notice_handler(heard.append)
    connection.add_notify_handler(heard.append)
    connection.execute("DO $$ BEGIN RAISE NOTICE 'hear, hear'; END $$")
    assert heard
    return None


def adapters(connection: Connection[Any], _: str) -> object:
    connection.adapters.register_dumper(str, Upper)
    connection.adapters.register_loader("text", Garbled)
    set_json_loads(lambda _: "garbled", connection)
    set_json_dumps(lambda _: '"garbled"', connection)
    connection.execute("SELECT 1")
    return None


def types(connection: Connection[Any], _: str) -> object:
    TypeInfo("text", 1700, 0).register(connection)
    info = EnumInfo("text", 25, 1009, ["hello"])  # as if another tenant's enum had the OID
    register_enum(info, connection)
    return None


def prepared_statements(connection: Connection[Any], _: str) -> object:
    for _time in range(3):
        connection.execute("SELECT %s::text, '{}'::json", ["hello"], prepare=True)
    connection.prepare_threshold = 0
    connection.prepared_max = 1
    return None


def wait(connection: Connection[Any], _: str) -> object:
    connection.pgconn.send_query(b"SELECT 1; SELECT 2")
    return None


def cancel(connection: Connection[Any], _: str) -> object:
    rows = connection.cursor().stream(MORE_THAN_IS_BUFFERED)
    next(rows)
    connection.cancel()
    with pytest.raises(psycopg.errors.QueryCanceled):
        for _row in rows:
            pass
    connection.cancel()
    return None


def set_autocommit(connection: Connection[Any], _: str) -> object:
    if connection.pgconn.transaction_status:
        connection.commit()
    connection.set_autocommit(not connection.autocommit)
    connection.execute("SELECT 1")
    return None


def isolation(connection: Connection[Any], _: str) -> object:
    if connection.pgconn.transaction_status:
        connection.commit()
    connection.set_isolation_level(IsolationLevel.SERIALIZABLE)
    connection.set_read_only(True)
    connection.set_deferrable(True)
    connection.execute("SELECT 1")
    return None


def factories(connection: Connection[Any], _: str) -> object:
    connection.row_factory = dict_row
    connection.cursor_factory = OtherCursor
    connection.server_cursor_factory = OtherServerCursor
    connection.execute("SELECT 1")
    return None


def client_encoding(connection: Connection[Any], _: str) -> object:
    connection.execute("SET client_encoding TO 'SQL_ASCII'")
    connection.commit()
    return None


def transaction(connection: Connection[Any], _: str) -> object:
    opened = connection.transaction()
    opened.__enter__()
    return opened


def transaction_ended_by_sql(connection: Connection[Any], _: str) -> object:
    opened = connection.transaction()
    opened.__enter__()
    connection.execute("COMMIT")
    return opened


def attributes(connection: Connection[Any], _: str) -> object:
    connection.request_id = "secret"  # type: ignore[attr-defined]
    return None


def swallowed_error(connection: Connection[Any], _: str) -> object:
    with pytest.raises(psycopg.errors.DivisionByZero):
        connection.execute("SELECT 1/0")
    return None


def lock(connection: Connection[Any], _: str) -> object:
    connection.lock.acquire()
    return None


FEATURES: list[Feature] = [
    pipeline, failed_pipeline, copy_out, copy_in, copy_that_is_dropped, stream, stream_that_is_dropped, server_cursor,
    two_phase, notify, notifies, notifies_that_is_dropped, notice_handlers, adapters, types, prepared_statements, wait,
    cancel, set_autocommit, isolation, factories, client_encoding, transaction, transaction_ended_by_sql, attributes,
    swallowed_error, lock,
]  # fmt: skip
WRITE = (copy_in, copy_that_is_dropped, notify, notifies, notifies_that_is_dropped)
USES = [
    (feature, read_only) for feature in FEATURES for read_only in (False, True) if feature not in WRITE or not read_only
]


def state(connection: Connection[Any]) -> dict[str, Any]:
    """Everything about a connection that a borrower may have changed."""
    own = {"pgconn", "lock", "_router", "_prepared", "_adapters", "_created_at", "_expire_at", "_notifies_backlog"}
    own |= {"_unknown_if_lost", "_sent", "slot"}  # what the router notes of a statement that is sent, and of the budget
    held = {name: value for name, value in vars(connection).items() if name not in own}
    maps: Any = connection.adapters
    return {
        **{name: list(value) if isinstance(value, list) else value for name, value in held.items()},
        "prepare": (connection.prepare_threshold, connection.prepared_max),
        "dumpers": {kind: dict(map_) for kind, map_ in maps._dumpers.items()},
        "by oid": [dict(map_) for map_ in (*maps._dumpers_by_oid, *maps._loaders)],
        "types": dict(maps.types._registry),
        "backlog": list(connection._notifies_backlog or ()),
        "status": connection.pgconn.transaction_status,
        "encoding": connection.info.encoding,
        "locked": connection.lock.locked(),
    }


def answer(connection: Connection[Any]) -> Any:
    """What a few statements, more than are prepared, give."""
    for _ in range(7):
        cursor = connection.execute("SELECT %s::text, '{}'::json, 1::bool", ["hello"])
        rows = cursor.fetchall()
    for heard in connection.notifies(timeout=0):
        pytest.fail(f"it hears {heard}")
    return rows


@pytest.fixture(scope="module")
def names(cluster: PostgresCluster) -> list[str]:
    """Two schemas, and a table outside of them."""
    one, two, table = (new_name() for _ in range(3))
    run(cluster.dsn(), f"CREATE SCHEMA {one}", f"CREATE SCHEMA {two}", f"CREATE TABLE {table} (i int)")
    cluster.wait_replayed()
    return [one, two, f"public.{table}"]


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closer, "USE_GRACE", 0.05)


def pool_of_one(cluster: PostgresCluster, **options: Any) -> RouterSettings:
    """One connection to write, and one to read, which is never the primary's."""
    only = {"pool": {"max_size": 1}, "read": {"fallback": "error"}}
    return settings(primary=cluster.dsn(), replicas=[cluster.standbys[0].dsn()], **only, **options)


@pytest.mark.each_value
@pytest.mark.usefixtures("_impatient")
@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")  # of psycopg's, on cursors
@pytest.mark.parametrize("pooling", one_of_each(["shared", "version", "dedicated"]))
@pytest.mark.parametrize(("feature", "read_only"), USES)
def test_the_next_borrower_finds_nothing_of_it(
    cluster: PostgresCluster, names: list[str], feature: Feature, read_only: bool, pooling: str
) -> None:
    one, two, table = names
    whose: list[dict[str, Any]] = [{}, {}]
    options: dict[str, Any] = {}
    if pooling != "version":
        whose = [{"tenant": one}, {"tenant": two if pooling == "shared" else one}]
        options = {"tenant_template": {"schema": "{tenant}"}, "tenancy": {"pooling": pooling}}
    with Router(pool_of_one(cluster, **options)) as router:
        with router.connection(read_only=read_only, **whose[1]) as connection:
            fresh = state(connection)
            connection.execute("SELECT 1")
        with suppress(psycopg.Error):  # its block may be told
            with router.connection(read_only=read_only, **whose[0]) as connection:
                kept = feature(connection, table)
        for _ in range(2):
            with router.connection(read_only=read_only, timeout=10, **whose[1]) as connection:
                assert state(connection) == fresh
                assert answer(connection) == [("hello", {}, True)]
        del kept


@pytest.mark.each_value
@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("in_session", [False, True])
@pytest.mark.parametrize("feature", [stream, copy_in, copy_out, wait, transaction, lock, failed_pipeline])
def test_a_block_that_cannot_be_committed_says_so_at_once(
    cluster: PostgresCluster, names: list[str], feature: Feature, in_session: bool
) -> None:
    with Router(pool_of_one(cluster)) as router:
        with router.session() if in_session else nullcontext():
            begun = monotonic()
            with pytest.raises(psycopg.Error):
                with router.connection() as connection:
                    connection.execute(f"INSERT INTO {names[2]} VALUES (1)")
                    kept = feature(connection, names[2])
            with pytest.raises(ZeroDivisionError):
                with router.connection() as connection:
                    connection.execute(f"INSERT INTO {names[2]} VALUES (1)")
                    kept = feature(connection, names[2])
                    raise ZeroDivisionError
            assert monotonic() < begun + 10
            with router.connection() as connection:
                assert connection.execute(f"SELECT * FROM {names[2]}").fetchall() == []
        del kept


@pytest.mark.parametrize("feature", [swallowed_error, stream_that_is_dropped, copy_that_is_dropped])
def test_a_block_whose_transaction_has_failed_says_that_it_is_rolled_back(
    cluster: PostgresCluster, names: list[str], feature: Feature, caplog: pytest.LogCaptureFixture
) -> None:
    with Router(pool_of_one(cluster)) as router:
        with router.connection() as connection:
            connection.execute(f"INSERT INTO {names[2]} VALUES (1)")
            feature(connection, names[2])
        [told] = [record for record in caplog.records if record.name == "router" and record.levelno == logging.WARNING]
        assert "rolled back" in told.getMessage()
        with router.connection(read_only=True) as connection:
            with suppress(psycopg.errors.DivisionByZero):
                connection.execute("SELECT 1/0")
        with router.connection() as connection:
            assert connection.execute(f"SELECT * FROM {names[2]}").fetchall() == []
        assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_a_function_that_caught_the_error_of_its_transaction_is_told(
    cluster: PostgresCluster, names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def function(connection: Connection[Any]) -> None:
        connection.execute(f"INSERT INTO {names[2]} VALUES (1)")
        swallowed_error(connection, "")

    with Router(pool_of_one(cluster)) as router:
        router.run(function)
        [told] = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "rolled back" in told.getMessage()


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("read_only", one_of_each([False, True]))
def test_a_connection_that_is_still_used_is_cut_and_its_place_is_free(
    cluster: PostgresCluster, caplog: pytest.LogCaptureFixture, read_only: bool
) -> None:
    kept = []
    with Router(pool_of_one(cluster, max_connections=4)) as router:
        for number in range(1, 7):
            with router.connection(read_only=read_only, timeout=10) as connection:
                connection.set_autocommit(True)
                if read_only:
                    kept.append(stream(connection, ""))
                else:
                    kept.append(notifies(connection, "public_t"))
            told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
            assert len(told) == number
            assert all("still uses it" in message for message in told)
        with router.connection(read_only=read_only, timeout=10) as connection:
            assert answer(connection) == [("hello", {}, True)]


def test_what_a_block_left_in_a_pipeline_is_run_and_committed(cluster: PostgresCluster, names: list[str]) -> None:
    with Router(pool_of_one(cluster)) as router:
        for autocommit in (False, True):
            with router.connection() as connection:
                connection.set_autocommit(autocommit)
                opened = connection.pipeline()
                opened.__enter__()
                connection.execute(f"CREATE TABLE {names[autocommit]}.made ()")
        with router.connection() as connection:
            for schema in names[:2]:
                connection.execute(f"DROP TABLE {schema}.made")
        del opened


def test_what_configure_set_up_is_put_back(cluster: PostgresCluster) -> None:
    def configure(connection: Any) -> None:
        connection.adapters.register_dumper(str, Upper)
        connection.adapters.types.add(TypeInfo("mine", 123456, 0))
        connection.purpose = "tests"
        connection.row_factory = dict_row

    with Router(pool_of_one(cluster), configure=configure) as router:
        for _ in range(3):
            with router.connection() as connection:
                cursor = connection.execute("SELECT %s::text AS said", ["hello"])
                rows: Any = cursor.fetchall()
                assert rows == [{"said": "HELLO"}]
                assert connection.adapters.types["mine"].oid == 123456
                assert connection.purpose == "tests"  # type: ignore[attr-defined]
                connection.adapters.register_dumper(str, StrDumper)
                connection.adapters.types.add(TypeInfo("mine", 654321, 0))
                connection.purpose = "others"  # type: ignore[attr-defined]


def test_an_encoding_that_configure_sets_costs_no_connection(cluster: PostgresCluster, names: list[str]) -> None:
    def configure(connection: Connection[Any]) -> None:
        connection.execute("SET client_encoding TO 'LATIN1'")

    options: dict[str, Any] = {"tenant_template": {"schema": "{tenant}"}, "tenancy": {"pooling": "shared"}}
    for whose in [{"version": "v1"}] * 4, [{"tenant": names[turn % 2]} for turn in range(4)]:
        served = set()
        with Router(pool_of_one(cluster, **options), configure=configure) as router:
            for one in whose:
                with router.connection(**one) as connection:  # type: ignore[arg-type]
                    served.add(connection.info.backend_pid)
        assert len(served) == 1


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_block_that_ends_while_another_uses_its_connection_cuts_that_off(
    cluster: PostgresCluster, read_only: bool, fails: bool
) -> None:
    borrowed: list[Connection[Any]] = []
    entered, begun = Flag(), monotonic()
    query: LiteralString = f"SELECT pg_sleep(60) AS {new_name()}"

    def stray() -> None:
        entered.wait_for(20)
        with pytest.raises(psycopg.OperationalError):
            borrowed[0].execute(query)

    def block() -> None:
        with Router(pool_of_one(cluster)) as router:
            ends = ZeroDivisionError if fails else psycopg.ProgrammingError
            with (
                suppress(ends) if read_only and not fails else pytest.raises(ends, match=None if fails else "uses its")
            ):
                with router.connection(read_only=read_only) as connection:
                    borrowed.append(connection)
                    entered.set()

                    def busy() -> bool:
                        return connection.pgconn.transaction_status == TransactionStatus.ACTIVE

                    eventually(busy)
                    if fails:
                        raise ZeroDivisionError
            with router.connection(read_only=read_only, timeout=10) as connection:
                assert answer(connection) == [("hello", {}, True)]

    try:
        all_of(stray, block)
        assert monotonic() < begun + 20
    finally:  # the server goes on with a query that was cut, and its snapshot would keep a standby from replaying
        server = cluster.standbys[0] if read_only else cluster.primary
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = %s", [query])


def test_a_trace_of_the_protocol_ends_with_its_block(cluster: PostgresCluster) -> None:
    with tempfile.TemporaryFile("w+") as trace:
        with Router(pool_of_one(cluster)) as router:
            with router.connection() as connection:
                connection.pgconn.trace(trace.fileno())
                connection.execute("SELECT 'of the first'")
            with router.connection() as connection:
                connection.execute("SELECT 'of the second'")
        trace.seek(0)
        traced = trace.read()
    assert "of the first" in traced
    assert "of the second" not in traced


@pytest.mark.parametrize("pooling", ["version", "shared"])
def test_no_notification_reaches_the_next_borrower_that_came_while_nobody_had_the_connection(
    cluster: PostgresCluster, names: list[str], pooling: str
) -> None:
    options: dict[str, Any] = {"tenant_template": {"schema": "{tenant}"}, "tenancy": {"pooling": "shared"}}
    whose: dict[str, Any] = {"version": "v1"} if pooling == "version" else {"tenant": names[0]}
    channel = new_name()
    with Router(pool_of_one(cluster, **options)) as router:
        with router.connection(**whose) as connection:
            connection.execute(f"LISTEN {channel}")
            idle = connection.fileno()
        run(cluster.dsn(), f"NOTIFY {channel}, 'secret'")

        def came() -> bool:
            return bool(select([idle], [], [], 0)[0])

        eventually(came)
        with router.connection(**whose) as connection:
            connection.execute("SELECT 1")
            for heard in connection.notifies(timeout=0):
                pytest.fail(f"it hears {heard}")
