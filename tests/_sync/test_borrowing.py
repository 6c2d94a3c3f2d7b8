# Generated from tests/_async/test_borrowing.py by tools/async_to_sync.py: do not edit.
"""What a borrower leaves behind, and what the next one finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import Connection, Cursor, ServerCursor
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row, tuple_row

from router import Router
from router._runtime.flags import Flag
from router._runtime.sockets import cut
from tests.support import PATIENCE, all_of, eventually, new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.testing import PostgresCluster
    from tests.conftest import Postgres


class OtherCursor(Cursor[Any]):
    """Some other cursor class."""


class OtherServerCursor(ServerCursor[Any]):
    """Some other server-side cursor class."""


def state(connection: Connection[Any]) -> dict[str, Any]:
    """Everything about a connection that a borrower may have changed."""
    return {
        "autocommit": connection.autocommit,
        "read_only": connection.read_only,
        "isolation_level": connection.isolation_level,
        "deferrable": connection.deferrable,
        "row_factory": connection.row_factory,
        "cursor_factory": connection.cursor_factory,
        "server_cursor_factory": connection.server_cursor_factory,
        "prepare_threshold": connection.prepare_threshold,
        "prepared_max": connection.prepared_max,
        "notice_handlers": list(connection._notice_handlers),
        "notify_handlers": list(connection._notify_handlers),
        "transaction_status": connection.pgconn.transaction_status,
    }


def spoil(connection: Connection[Any]) -> None:
    connection.set_autocommit(not connection.autocommit)
    connection.set_read_only(True)
    connection.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
    connection.set_deferrable(True)
    connection.row_factory = dict_row
    connection.cursor_factory = OtherCursor
    connection.server_cursor_factory = OtherServerCursor
    connection.prepare_threshold = 1
    connection.prepared_max = 7
    connection.add_notice_handler(lambda _: None)
    connection.add_notify_handler(lambda _: None)


@pytest.mark.docker
@pytest.mark.parametrize("read_only", [False, True])
def test_the_next_borrower_sees_nothing_of_the_last(postgres: Postgres, read_only: bool) -> None:
    options = settings(primary=postgres.primary, pool={"max_size": 1})
    with Router(options) as router:
        with router.connection(read_only=read_only) as first:
            fresh, session = state(first), first.pgconn
        assert fresh["autocommit"] is read_only
        assert fresh["row_factory"] is tuple_row
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                with router.connection(read_only=read_only) as connection:
                    spoil(connection)
                    with connection.transaction():
                        connection.execute("SELECT 1")
                        raise ZeroDivisionError
            with router.connection(read_only=read_only) as connection:
                assert connection.pgconn is session
                assert state(connection) == fresh


@pytest.mark.docker
@pytest.mark.parametrize("query", ["SELECT 1", "SELECT 1/0"])
def test_no_transaction_travels(postgres: Postgres, query: Any) -> None:
    with Router(settings(primary=postgres.primary, pool={"max_size": 1})) as router:
        with pytest.raises(ZeroDivisionError):
            with router.connection() as first:
                session = first.pgconn
                try:
                    first.execute(query)
                except psycopg.errors.DivisionByZero:
                    raise ZeroDivisionError from None
                raise ZeroDivisionError
        with router.connection() as connection:
            assert connection.pgconn is session
            assert connection.pgconn.transaction_status == TransactionStatus.IDLE


@pytest.mark.docker
def test_what_an_open_pipeline_or_a_two_phase_transaction_left_is_closed(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary, pool={"max_size": 1})) as router:
        with router.connection() as first:
            session = first.pgconn
        with pytest.raises(psycopg.ProgrammingError):
            with router.connection() as connection:
                connection.tpc_begin("left behind")
        with router.connection() as connection:
            assert connection.pgconn is not session
            assert (connection.execute("SELECT 1").fetchone()) == (1,)


def test_a_connection_that_was_closed_in_its_block_is_not_closed_for_others_at_its_end(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    versions = {version: {"primary": postgres.primary} for version in ("v1", "v2", "v3")}
    with Router(settings(versions=versions, max_connections=1, pool={"timeout": PATIENCE})) as router:
        has_begun, has_ended = Flag(), Flag()

        def closes() -> None:
            def both_wait() -> bool:
                return len(router._snapshot().slots_waiting) == 2

            with router.connection(version="v1") as connection:
                has_begun.set()
                eventually(both_wait)
                connection.close()
            has_ended.set()

        def waits(version: str) -> Callable[[], None]:
            def wait() -> None:
                assert has_begun.wait_for(PATIENCE)
                with router.connection(version=version) as connection:
                    connection.execute("SELECT 1")
                    assert has_ended.wait_for(PATIENCE)

            return wait

        all_of(closes, waits("v2"), waits("v3"))
    assert "could not" not in caplog.text


@pytest.mark.docker
def test_a_connection_closed_by_its_borrower_is_replaced(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary, pool={"max_size": 1})) as router:
        with router.connection() as connection:
            connection.execute("SELECT 1")
            connection.close()
        with router.connection() as connection:
            assert (connection.execute("SELECT 1").fetchone()) == (1,)


@pytest.mark.docker
def test_a_connection_whose_block_was_interrupted_is_closed(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary, pool={"max_size": 1})) as router:
        with pytest.raises(KeyboardInterrupt):
            with router.connection() as first:
                first.execute("SELECT 1")
                raise KeyboardInterrupt
        assert first.closed
        with router.connection() as connection:
            assert connection is not first
            assert (connection.execute("SELECT 1").fetchone()) == (1,)


@pytest.mark.docker
def test_a_failed_commit_raises_and_costs_nobody_a_connection(postgres: Postgres) -> None:
    table = new_name()
    run(postgres.primary, f"CREATE TABLE {table} (i int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    with Router(settings(primary=postgres.primary, pool={"max_size": 1})) as router:
        with pytest.raises(psycopg.errors.UniqueViolation):
            with router.connection() as first:
                session = first.pgconn
                first.execute(f"INSERT INTO {table} VALUES (1), (1)")
        with router.connection() as connection:
            assert connection.pgconn is session
            assert (connection.execute(f"SELECT count(*) FROM {table}").fetchone()) == (0,)


@pytest.mark.docker
def test_configure_is_called_once_for_each_connection(postgres: Postgres) -> None:
    configured = []

    def configure(connection: Connection[Any]) -> None:
        connection.add_notice_handler(print)
        connection.prepare_threshold = None
        configured.append(connection.pgconn)

    with Router(settings(primary=postgres.primary, pool={"max_size": 1}), configure=configure) as router:
        for _ in range(3):
            with router.connection() as connection:
                connection.execute("SELECT 1")
                # What configure() set up is how the connection is, and what a borrower changes is put back to that.
                assert connection.prepare_threshold is None
                assert connection._notice_handlers == [print]
                connection.prepare_threshold = 3
                session = connection.pgconn
        assert configured == [session]


@pytest.mark.docker
@pytest.mark.parametrize("hygiene", ["transaction", "full"])
def test_what_configure_sets_by_sql_is_lost_between_tenants_and_startup_options_are_not(
    postgres: Postgres, hygiene: str
) -> None:
    def configure(connection: Connection[Any]) -> None:
        connection.execute("SET work_mem = '7MB'")
        connection.prepare_threshold = 7

    dsn = psycopg.conninfo.make_conninfo(postgres.primary, options="-c statement_timeout=77s -c work_mem=5MB")
    tenancy = {"pooling": "shared", "hygiene": hygiene}
    options = settings(primary=dsn, tenant_template={"row": "app.tenant"}, tenancy=tenancy, pool={"max_size": 1})
    with Router(options, configure=configure) as router:
        for tenant in ("acme", "globex", "acme"):
            with router.connection(tenant=tenant) as connection:
                query = "SELECT current_setting('statement_timeout') = '77s', current_setting('work_mem') = '5MB'"
                survives, is_reset = (connection.execute(query).fetchone()) or (False, False)
                assert (survives, connection.prepare_threshold) == (True, 7)
        assert is_reset


@pytest.mark.docker
def test_a_failing_configure_says_so(postgres: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    def configure(connection: Connection[Any]) -> None:
        raise ZeroDivisionError

    with Router(settings(primary=postgres.primary), configure=configure) as router:
        with pytest.raises(psycopg.OperationalError, match="the configure callable failed"):
            with router.connection():
                pytest.fail("the connection was handed out")
    assert any(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in caplog.records)


def test_closing_waits_for_what_is_borrowed(cluster: PostgresCluster) -> None:
    router = Router(settings(**cluster.version_settings()))
    entered, counted = Flag(), []

    def borrow() -> None:
        with router.connection() as connection:
            entered.set()
            connection.execute("SELECT pg_sleep(0.3)")
            counted.append(connection.execute("SELECT 1").fetchone())

    def close() -> None:
        entered.wait_for(20)
        assert router.close(timeout=20) == 0

    all_of(borrow, close)
    assert counted == [(1,)]


def test_closing_cuts_what_does_not_come_back_and_says_how_many(cluster: PostgresCluster) -> None:
    router = Router(settings(**cluster.version_settings()))
    cut, query = [], f"SELECT pg_sleep(60) AS {new_name()}"

    def borrow() -> None:
        with pytest.raises(psycopg.OperationalError):
            with router.connection() as connection:
                connection.execute(query)
        cut.append(connection.closed)

    def close() -> None:
        def both_busy() -> bool:
            active = f"SELECT count(*) FROM pg_stat_activity WHERE query = '{query}' AND state = 'active'"
            return run(cluster.dsn(), active) == [(2,)]

        eventually(both_busy)
        assert router.close(timeout=0.1) == 2

    all_of(borrow, borrow, close)
    assert cut == [True, True]


@pytest.mark.docker
def test_a_checkout_is_for_one_block_at_a_time(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary)) as router:
        checkout = router.connection()
        with checkout as connection:
            with pytest.raises(RuntimeError, match="call connection"):
                checkout.__enter__()
            connection.execute("SELECT 1")
        with pytest.raises(RuntimeError, match="not entered"):
            checkout.__exit__(None, None, None)
        [node] = router.stats().versions[0].nodes
        assert node.write is not None
        assert (node.write.in_use, node.write.idle) == (0, 1)


@pytest.mark.docker
def test_what_configure_leaves_open_is_committed(postgres: Postgres) -> None:
    def configure(connection: Connection[Any]) -> None:
        connection.execute("SET work_mem = '7MB'")

    with Router(settings(primary=postgres.primary), configure=configure) as router:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                with router.connection() as connection:
                    cursor = connection.execute("SELECT current_setting('work_mem') = '7MB'")
                    assert cursor.fetchone() == (True,)
                    raise ZeroDivisionError


@pytest.mark.docker
def test_a_rollback_that_fails_does_not_hide_the_blocks_error(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary)) as router:
        with pytest.raises(ZeroDivisionError):
            with router.connection() as connection:
                connection.execute("SELECT 1")
                cut(connection)
                raise ZeroDivisionError
        with router.connection() as connection:
            assert (connection.execute("SELECT 1").fetchone()) == (1,)
