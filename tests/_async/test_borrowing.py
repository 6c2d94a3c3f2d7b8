"""What a borrower leaves behind, and what the next one finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import AsyncConnection, AsyncCursor, AsyncServerCursor
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row, tuple_row

from router import AsyncRouter
from router._runtime.flags import AFlag
from router._runtime.sockets import cut
from tests.support import PATIENCE, aall_of, aeventually, new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from router.testing import PostgresCluster
    from tests.conftest import Postgres


class OtherCursor(AsyncCursor[Any]):
    """Some other cursor class."""


class OtherServerCursor(AsyncServerCursor[Any]):
    """Some other server-side cursor class."""


def state(connection: AsyncConnection[Any]) -> dict[str, Any]:
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


async def spoil(connection: AsyncConnection[Any]) -> None:
    await connection.set_autocommit(not connection.autocommit)
    await connection.set_read_only(True)
    await connection.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
    await connection.set_deferrable(True)
    connection.row_factory = dict_row
    connection.cursor_factory = OtherCursor
    connection.server_cursor_factory = OtherServerCursor
    connection.prepare_threshold = 1
    connection.prepared_max = 7
    connection.add_notice_handler(lambda _: None)
    connection.add_notify_handler(lambda _: None)


@pytest.mark.docker
@pytest.mark.parametrize("read_only", [False, True])
async def test_the_next_borrower_sees_nothing_of_the_last(postgres: Postgres, read_only: bool) -> None:
    options = settings(primary=postgres.primary, pool={"max_size": 1})
    async with AsyncRouter(options) as router:
        async with router.connection(read_only=read_only) as first:
            fresh, session = state(first), first.pgconn
        assert fresh["autocommit"] is read_only
        assert fresh["row_factory"] is tuple_row
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with router.connection(read_only=read_only) as connection:
                    await spoil(connection)
                    async with connection.transaction():
                        await connection.execute("SELECT 1")
                        raise ZeroDivisionError
            async with router.connection(read_only=read_only) as connection:
                assert connection.pgconn is session
                assert state(connection) == fresh


@pytest.mark.docker
@pytest.mark.parametrize("query", ["SELECT 1", "SELECT 1/0"])
async def test_no_transaction_travels(postgres: Postgres, query: Any) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool={"max_size": 1})) as router:
        with pytest.raises(ZeroDivisionError):
            async with router.connection() as first:
                session = first.pgconn
                try:
                    await first.execute(query)
                except psycopg.errors.DivisionByZero:
                    raise ZeroDivisionError from None
                raise ZeroDivisionError
        async with router.connection() as connection:
            assert connection.pgconn is session
            assert connection.pgconn.transaction_status == TransactionStatus.IDLE


@pytest.mark.docker
async def test_what_an_open_pipeline_or_a_two_phase_transaction_left_is_closed(postgres: Postgres) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool={"max_size": 1})) as router:
        async with router.connection() as first:
            session = first.pgconn
        with pytest.raises(psycopg.ProgrammingError):
            async with router.connection() as connection:
                await connection.tpc_begin("left behind")
        async with router.connection() as connection:
            assert connection.pgconn is not session
            assert (await (await connection.execute("SELECT 1")).fetchone()) == (1,)


async def test_a_connection_that_was_closed_in_its_block_is_not_closed_for_others_at_its_end(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    versions = {version: {"primary": postgres.primary} for version in ("v1", "v2", "v3")}
    async with AsyncRouter(settings(versions=versions, max_connections=1, pool={"timeout": PATIENCE})) as router:
        has_begun, has_ended = AFlag(), AFlag()

        async def closes() -> None:
            async def both_wait() -> bool:
                return len(router._snapshot().slots_waiting) == 2

            async with router.connection(version="v1") as connection:
                has_begun.set()
                await aeventually(both_wait)
                await connection.close()
            has_ended.set()

        def waits(version: str) -> Callable[[], Awaitable[None]]:
            async def wait() -> None:
                assert await has_begun.wait_for(PATIENCE)
                async with router.connection(version=version) as connection:
                    await connection.execute("SELECT 1")
                    assert await has_ended.wait_for(PATIENCE)

            return wait

        await aall_of(closes, waits("v2"), waits("v3"))
    assert "could not" not in caplog.text


@pytest.mark.docker
async def test_a_connection_closed_by_its_borrower_is_replaced(postgres: Postgres) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool={"max_size": 1})) as router:
        async with router.connection() as connection:
            await connection.execute("SELECT 1")
            await connection.close()
        async with router.connection() as connection:
            assert (await (await connection.execute("SELECT 1")).fetchone()) == (1,)


@pytest.mark.docker
async def test_a_connection_whose_block_was_interrupted_is_closed(postgres: Postgres) -> None:
    async with AsyncRouter(settings(primary=postgres.primary, pool={"max_size": 1})) as router:
        with pytest.raises(KeyboardInterrupt):
            async with router.connection() as first:
                await first.execute("SELECT 1")
                raise KeyboardInterrupt
        assert first.closed
        async with router.connection() as connection:
            assert connection is not first
            assert (await (await connection.execute("SELECT 1")).fetchone()) == (1,)


@pytest.mark.docker
async def test_a_failed_commit_raises_and_costs_nobody_a_connection(postgres: Postgres) -> None:
    table = new_name()
    run(postgres.primary, f"CREATE TABLE {table} (i int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    async with AsyncRouter(settings(primary=postgres.primary, pool={"max_size": 1})) as router:
        with pytest.raises(psycopg.errors.UniqueViolation):
            async with router.connection() as first:
                session = first.pgconn
                await first.execute(f"INSERT INTO {table} VALUES (1), (1)")
        async with router.connection() as connection:
            assert connection.pgconn is session
            assert (await (await connection.execute(f"SELECT count(*) FROM {table}")).fetchone()) == (0,)


@pytest.mark.docker
async def test_configure_is_called_once_for_each_connection(postgres: Postgres) -> None:
    configured = []

    def configure(connection: AsyncConnection[Any]) -> None:
        connection.add_notice_handler(print)
        connection.prepare_threshold = None
        configured.append(connection.pgconn)

    async with AsyncRouter(settings(primary=postgres.primary, pool={"max_size": 1}), configure=configure) as router:
        for _ in range(3):
            async with router.connection() as connection:
                await connection.execute("SELECT 1")
                # What configure() set up is how the connection is, and what a borrower changes is put back to that.
                assert connection.prepare_threshold is None
                assert connection._notice_handlers == [print]
                connection.prepare_threshold = 3
                session = connection.pgconn
        assert configured == [session]


@pytest.mark.docker
@pytest.mark.parametrize("hygiene", ["transaction", "full"])
async def test_what_configure_sets_by_sql_is_lost_between_tenants_and_startup_options_are_not(
    postgres: Postgres, hygiene: str
) -> None:
    async def configure(connection: AsyncConnection[Any]) -> None:
        await connection.execute("SET work_mem = '7MB'")
        connection.prepare_threshold = 7

    dsn = psycopg.conninfo.make_conninfo(postgres.primary, options="-c statement_timeout=77s -c work_mem=5MB")
    tenancy = {"pooling": "shared", "hygiene": hygiene}
    options = settings(primary=dsn, tenant_template={"row": "app.tenant"}, tenancy=tenancy, pool={"max_size": 1})
    async with AsyncRouter(options, configure=configure) as router:
        for tenant in ("acme", "globex", "acme"):
            async with router.connection(tenant=tenant) as connection:
                query = "SELECT current_setting('statement_timeout') = '77s', current_setting('work_mem') = '5MB'"
                survives, is_reset = (await (await connection.execute(query)).fetchone()) or (False, False)
                assert (survives, connection.prepare_threshold) == (True, 7)
        assert is_reset


@pytest.mark.docker
async def test_a_failing_configure_says_so(postgres: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    async def configure(connection: AsyncConnection[Any]) -> None:
        raise ZeroDivisionError

    async with AsyncRouter(settings(primary=postgres.primary), configure=configure) as router:
        with pytest.raises(psycopg.OperationalError, match="the configure callable failed"):
            async with router.connection():
                pytest.fail("the connection was handed out")
    assert any(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in caplog.records)


async def test_closing_waits_for_what_is_borrowed(cluster: PostgresCluster) -> None:
    router = AsyncRouter(settings(**cluster.version_settings()))
    entered, counted = AFlag(), []

    async def borrow() -> None:
        async with router.connection() as connection:
            entered.set()
            await connection.execute("SELECT pg_sleep(0.3)")
            counted.append(await (await connection.execute("SELECT 1")).fetchone())

    async def close() -> None:
        await entered.wait_for(20)
        assert await router.close(timeout=20) == 0

    await aall_of(borrow, close)
    assert counted == [(1,)]


async def test_closing_cuts_what_does_not_come_back_and_says_how_many(cluster: PostgresCluster) -> None:
    router = AsyncRouter(settings(**cluster.version_settings()))
    cut, query = [], f"SELECT pg_sleep(60) AS {new_name()}"

    async def borrow() -> None:
        with pytest.raises(psycopg.OperationalError):
            async with router.connection() as connection:
                await connection.execute(query)
        cut.append(connection.closed)

    async def close() -> None:
        async def both_busy() -> bool:
            active = f"SELECT count(*) FROM pg_stat_activity WHERE query = '{query}' AND state = 'active'"
            return run(cluster.dsn(), active) == [(2,)]

        await aeventually(both_busy)
        assert await router.close(timeout=0.1) == 2

    await aall_of(borrow, borrow, close)
    assert cut == [True, True]


@pytest.mark.docker
async def test_a_checkout_is_for_one_block_at_a_time(postgres: Postgres) -> None:
    async with AsyncRouter(settings(primary=postgres.primary)) as router:
        checkout = router.connection()
        async with checkout as connection:
            with pytest.raises(RuntimeError, match="call connection"):
                await checkout.__aenter__()
            await connection.execute("SELECT 1")
        with pytest.raises(RuntimeError, match="not entered"):
            await checkout.__aexit__(None, None, None)
        [node] = router.stats().versions[0].nodes
        assert node.write is not None
        assert (node.write.in_use, node.write.idle) == (0, 1)


@pytest.mark.docker
async def test_what_configure_leaves_open_is_committed(postgres: Postgres) -> None:
    async def configure(connection: AsyncConnection[Any]) -> None:
        await connection.execute("SET work_mem = '7MB'")

    async with AsyncRouter(settings(primary=postgres.primary), configure=configure) as router:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                async with router.connection() as connection:
                    cursor = await connection.execute("SELECT current_setting('work_mem') = '7MB'")
                    assert await cursor.fetchone() == (True,)
                    raise ZeroDivisionError


@pytest.mark.docker
async def test_a_rollback_that_fails_does_not_hide_the_blocks_error(postgres: Postgres) -> None:
    async with AsyncRouter(settings(primary=postgres.primary)) as router:
        with pytest.raises(ZeroDivisionError):
            async with router.connection() as connection:
                await connection.execute("SELECT 1")
                cut(connection)
                raise ZeroDivisionError
        async with router.connection() as connection:
            assert (await (await connection.execute("SELECT 1")).fetchone()) == (1,)
