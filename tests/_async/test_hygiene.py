"""What blocks leave in a version's session, and what of it the next borrower finds: ``pool.hygiene``."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, LiteralString, TypeAlias

import psycopg
import pytest
from psycopg import AsyncClientCursor, AsyncConnection, AsyncRawCursor
from psycopg.sql import SQL, Identifier, Literal

from router import AsyncRouter, ConfigError
from tests._async.test_spoilt import changes
from tests.support import SLOW, aall_of, aeventually, new_name, run, settings

if TYPE_CHECKING:
    from router import RouterSettings
    from router._runtime.calls import AFunction
    from router.testing import PostgresCluster
    from tests.conftest import Postgres
    from tests.tapped import Tapped

    Leaving: TypeAlias = AFunction[[AsyncConnection[Any]], object]

LOCK = "SELECT pg_advisory_lock(77)"
RESETS = ["auto", "full"]

LEFT = """
SELECT session_user, current_user, current_setting('work_mem'), current_setting('search_path'),
    current_setting('TimeZone'), current_setting('application_name'), current_setting('transaction_read_only'),
    ARRAY(SELECT mode FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    ARRAY(SELECT pg_listening_channels()),
    ARRAY(SELECT relname FROM pg_class WHERE relpersistence = 't' AND relnamespace = pg_my_temp_schema()),
    ARRAY(SELECT name FROM pg_cursors WHERE is_holdable),
    ARRAY(SELECT name FROM pg_prepared_statements WHERE from_sql)
"""


class Names:
    """What the statements of these tests need to be there.

    Attributes:
        sequence: A sequence.
        hidden: A function that sets a time zone.
        sets: A procedure that sets ``work_mem``.
    """

    def __init__(self, dsn: str) -> None:
        self.sequence, self.hidden, self.sets = new_name(), new_name(), new_name()
        run(
            dsn,
            f"CREATE SEQUENCE {self.sequence}",
            f"CREATE FUNCTION {self.hidden}() RETURNS void LANGUAGE plpgsql AS "
            "$$ BEGIN EXECUTE 'SET TimeZone = ''Asia/Tokyo'''; END $$",
            f"CREATE PROCEDURE {self.sets}() LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'SET work_mem = ''7MB'''; END $$",
        )

    def reading(self) -> dict[str, LiteralString]:
        """Statements that leave something, by what they leave; a session that refuses writes runs them, too."""
        return {
            "setting": "SET work_mem = '7MB'",
            "setting, by a function": "SELECT set_config('work_mem', '7MB', false)",
            "setting, after another statement": "SELECT 1; SET work_mem = '7MB'",
            "setting, with LOCAL in a comment": "SET /* LOCAL */ work_mem = '7MB'",
            "setting, by a DO": "DO $$ BEGIN EXECUTE 'SET work_mem = ''7MB'''; END $$",
            "setting, by a CALL": f"CALL {self.sets}()",
            "setting, where it is not seen, but reported": f"SELECT {self.hidden}()",
            "search path": "SET search_path = pg_catalog",
            "time zone": "SET TIME ZONE 'Asia/Tokyo'",
            "name": "SET application_name = 'somebody'",
            "role": "SET ROLE pg_monitor",
            "user": "SET SESSION AUTHORIZATION pg_monitor",
            "lock": "SELECT pg_advisory_lock(7)",
            "shared lock": "SELECT pg_advisory_lock_shared(7)",
            "lock, if it is free": "SELECT pg_try_advisory_lock(7)",
            "channel": "LISTEN left_there",
            "cursor": "DECLARE left_open CURSOR WITH HOLD FOR SELECT 1",
            "prepared statement": "PREPARE left_there AS SELECT 1",
        }

    def writing(self) -> dict[str, LiteralString]:
        """The same, and those that only a session that writes runs."""
        return {
            **self.reading(),
            "temporary table": "CREATE TEMP TABLE left_there (i int)",
            "temporary table, by a SELECT": "SELECT 1 AS i INTO TEMP left_there",
            "temporary table, by its schema": "CREATE TABLE pg_temp.left_there (i int)",
            "temporary view": "CREATE OR REPLACE TEMPORARY VIEW left_there AS SELECT 1",
            "temporary sequence": "CREATE LOCAL TEMP SEQUENCE left_there",
            "read only": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        }


@pytest.fixture(scope="module")
def names(postgres: Postgres) -> Names:
    return Names(postgres.primary)


def one(primary: str, hygiene: str, **options: Any) -> RouterSettings:
    return settings(primary=primary, pool={"max_size": 1, "hygiene": hygiene, "timeout": 5.0}, **options)


async def left(router: AsyncRouter, **options: Any) -> tuple[Any, ...]:
    """What there is in the session of a router with one connection, and its process."""
    async with router.connection(**options) as connection:
        row = await (await connection.execute(LEFT, prepare=False)).fetchone()
        assert row is not None
        return (connection.info.backend_pid, *row)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("hygiene", RESETS)
async def test_nothing_that_a_block_leaves_reaches_the_next(
    postgres: Postgres, names: Names, hygiene: str, read_only: bool
) -> None:
    async with AsyncRouter(one(postgres.primary, hygiene)) as router:
        fresh = await left(router, read_only=read_only)
        for what, statement in (names.reading() if read_only else names.writing()).items():
            async with router.connection(read_only=read_only) as connection:
                await connection.execute(statement)
            assert await left(router, read_only=read_only) == fresh, what


@pytest.mark.parametrize("read_only", [False, True])
async def test_transaction_ends_the_transaction_and_nothing_else(
    postgres: Postgres, names: Names, read_only: bool
) -> None:
    async with AsyncRouter(one(postgres.primary, "transaction")) as router:
        fresh = await left(router, read_only=read_only)
        for what, statement in (names.reading() if read_only else names.writing()).items():
            async with router.connection(read_only=read_only) as connection:
                await connection.execute(statement)
            assert await left(router, read_only=read_only) != fresh, what
            async with router.connection(read_only=read_only) as connection:
                await connection.rollback()
                await connection.set_autocommit(True)
                await connection.execute("DISCARD ALL", prepare=False)
            assert await left(router, read_only=read_only) == fresh, what


@SLOW
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("hygiene", RESETS)
async def test_every_setting_goes_back_to_what_it_was(cluster: PostgresCluster, hygiene: str, read_only: bool) -> None:
    async with AsyncRouter(one(cluster.dsn(), hygiene)) as router:

        async def in_force() -> dict[str, str]:
            async with router.connection(read_only=read_only) as connection:
                rows = await (await connection.execute("SELECT name, setting FROM pg_settings")).fetchall()
                # What belongs to the transaction is as the connection object says.
                return {name: setting for name, setting in rows if not name.startswith("transaction_")}

        fresh = await in_force()
        done = 0
        for name, value in changes(cluster):
            with suppress(psycopg.Error):
                async with router.connection(read_only=read_only) as connection:
                    await connection.execute(SQL("SET {} TO {}").format(Identifier(name), Literal(value)))
                    done += 1
            assert await in_force() == fresh, (name, value)
        assert done > 200  # the others are refused


async def by_an_error(router: AsyncRouter, statement: LiteralString) -> None:
    with pytest.raises(ZeroDivisionError):
        async with router.connection() as connection:
            await connection.execute(statement)
            raise ZeroDivisionError


async def by_a_failed_statement(router: AsyncRouter, statement: LiteralString) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with router.connection() as connection:
            await connection.execute(statement)
            await connection.execute("SELECT 1 / 0")


async def by_a_failure_in_the_same_text(router: AsyncRouter, statement: LiteralString) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with router.connection() as connection:
            await connection.set_autocommit(True)
            await connection.execute(f"{statement}; COMMIT; SELECT 1 / 0")


async def by_a_rollback(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        await connection.execute(statement)
        await connection.rollback()
        await connection.execute("SELECT 1")


async def by_a_savepoint(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection, connection.transaction():
        with suppress(ZeroDivisionError):
            async with connection.transaction():
                await connection.execute(statement)
                raise ZeroDivisionError


async def in_autocommit(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        await connection.set_autocommit(True)
        await connection.execute(statement)


async def in_a_pipeline(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection, connection.pipeline():
        await connection.execute("SELECT 1")
        await connection.execute(statement)
        await connection.execute("SELECT 1")


async def by_a_client_cursor(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        await AsyncClientCursor(connection).execute(statement)


async def by_a_raw_cursor(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        await AsyncRawCursor(connection).execute(statement)


async def unprepared(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        connection.prepare_threshold = None
        await connection.execute(statement, prepare=False)


async def prepared(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        await connection.execute(statement.encode(), prepare=True)


async def many(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        await connection.cursor().executemany(statement, [(), ()])


async def acquired(router: AsyncRouter, statement: LiteralString) -> None:
    connection = await router.acquire()
    await connection.execute(statement)
    await connection.close()


async def in_run(router: AsyncRouter, statement: LiteralString) -> None:
    async def leave(connection: AsyncConnection[Any]) -> None:
        await connection.execute(statement)

    await router.run(leave)


async def by_a_copy(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection, connection.cursor().copy(f"COPY ({statement}) TO STDOUT") as copy:
        async for _ in copy:
            pass


async def by_a_copy_and_then_a_harmless_statement(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        async with connection.cursor().copy(f"COPY ({statement}) TO STDOUT") as copy:
            async for _ in copy:
                pass
        await connection.execute("SELECT 1")


async def by_a_stream(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection:
        async for _ in connection.cursor().stream(statement):
            pass


async def by_a_server_cursor(router: AsyncRouter, statement: LiteralString) -> None:
    async with router.connection() as connection, connection.cursor("named") as cursor:
        await cursor.execute(statement)
        await cursor.fetchall()


WAYS = [
    by_an_error, by_a_failed_statement, by_a_failure_in_the_same_text, by_a_rollback, by_a_savepoint, in_autocommit,
    in_a_pipeline, by_a_client_cursor, by_a_raw_cursor, unprepared, prepared, many, acquired, in_run, by_a_copy,
    by_a_copy_and_then_a_harmless_statement, by_a_stream, by_a_server_cursor,
]  # fmt: skip


@pytest.mark.parametrize("hygiene", RESETS)
async def test_nothing_is_left_however_a_statement_is_sent_and_a_block_ends(postgres: Postgres, hygiene: str) -> None:
    async with AsyncRouter(one(postgres.primary, hygiene)) as router:
        fresh = await left(router)
        for way in WAYS:
            await way(router, "SELECT pg_advisory_lock(78)")
            assert await left(router) == fresh, way


async def test_transaction_leaves_a_lock_however_it_was_taken(postgres: Postgres) -> None:
    async with AsyncRouter(one(postgres.primary, "transaction")) as router:
        fresh = await left(router)
        for way in WAYS:
            await way(router, "SELECT pg_advisory_lock(79)")
            assert await left(router) != fresh, way
            async with router.connection() as connection:
                await connection.execute("SELECT pg_advisory_unlock_all()")


@pytest.mark.parametrize("hygiene", RESETS)
async def test_what_a_sequence_gave_last_is_not_known_to_the_next(
    postgres: Postgres, names: Names, hygiene: str
) -> None:
    async with AsyncRouter(one(postgres.primary, hygiene)) as router:
        async with router.connection() as connection:
            await connection.execute(f"SELECT nextval('{names.sequence}')")
            await connection.execute("SELECT lastval()")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            async with router.connection() as connection:
                await connection.execute("SELECT lastval()")


@pytest.mark.parametrize("hygiene", RESETS)
async def test_a_lock_is_free_when_its_block_has_ended(postgres: Postgres, hygiene: str) -> None:
    async with AsyncRouter(one(postgres.primary, hygiene)) as router:
        for read_only in (False, True):
            async with router.connection(read_only=read_only) as connection:
                await connection.execute(LOCK)
                assert run(postgres.primary, "SELECT pg_try_advisory_lock(77)") == [(False,)]
            assert run(postgres.primary, "SELECT pg_try_advisory_lock(77)") == [(True,)]


@pytest.mark.parametrize("hygiene", RESETS)
async def test_a_standbys_session_is_reset_too(cluster: PostgresCluster, hygiene: str) -> None:
    async with AsyncRouter(one(cluster.dsn(), hygiene, replicas=[cluster.standbys[0].dsn()])) as router:
        fresh = await left(router, read_only=True)
        for statement in ("SET work_mem = '7MB'", LOCK, "PREPARE left_there AS SELECT 1", "SET TIME ZONE 'Asia/Tokyo'"):
            async with router.connection(read_only=True) as connection:
                assert (await (await connection.execute("SELECT pg_is_in_recovery()")).fetchone()) == (True,)
                await connection.execute(statement)
            assert await left(router, read_only=True) == fresh, statement


@pytest.mark.parametrize("hygiene", RESETS)
async def test_nobody_hears_what_another_listened_for(postgres: Postgres, hygiene: str) -> None:
    channel = new_name()
    async with AsyncRouter(one(postgres.primary, hygiene)) as router:
        async with router.connection() as connection:
            await connection.execute(f"LISTEN {channel}")
            await connection.commit()
            run(postgres.primary, f"NOTIFY {channel}")
        run(postgres.primary, f"NOTIFY {channel}")
        async with router.connection() as connection:
            await connection.commit()
            async for heard in connection.notifies(timeout=0.05):
                pytest.fail(f"it hears {heard}")


@pytest.mark.parametrize("hygiene", RESETS)
async def test_statements_of_their_own_leave_nothing(postgres: Postgres, names: Names, hygiene: str) -> None:
    async with AsyncRouter(one(postgres.primary, hygiene)) as router:
        for what, statement in names.writing().items():
            with suppress(psycopg.errors.NoActiveSqlTransaction):
                await router.execute(statement)
            for read_only in (False, True):
                _, *found = await left(router, read_only=read_only)
                assert found[7:] == [[], [], [], [], []], what
                assert found[2] == "4MB", what


@pytest.mark.parametrize("hygiene", RESETS)
async def test_those_that_wait_get_what_is_reset(postgres: Postgres, hygiene: str) -> None:
    async with AsyncRouter(one(postgres.primary, hygiene)) as router:
        fresh = await left(router)

        async def leave() -> None:
            for _ in range(5):
                async with router.connection() as connection:
                    row = await (await connection.execute(LEFT)).fetchone()
                    assert row == fresh[1:]
                    await connection.execute("SET work_mem = '7MB'")
                    await connection.execute(LOCK)

        await aall_of(leave, leave, leave)
        assert await left(router) == fresh


# What it costs, counted at the socket


def behind(tapped: Tapped, hygiene: str) -> RouterSettings:
    return one(tapped.version()["primary"], hygiene, health={"interval": 3600})


async def trips(tapped: Tapped, router: AsyncRouter, leaving: Leaving, *, read_only: bool) -> int:
    """How many round trips a block costs, after one that is the same."""
    for _ in range(2):
        tapped.trips()
        async with router.connection(read_only=read_only) as connection:
            await leaving(connection)
    return tapped.trips()[0]


async def nothing(connection: AsyncConnection[Any]) -> None:
    del connection


async def harmless(connection: AsyncConnection[Any]) -> None:
    await connection.execute("SELECT 1", prepare=False)


async def local(connection: AsyncConnection[Any]) -> None:
    await connection.execute("SELECT set_config('app.tenant', %s, true)", ["acme"], prepare=False)


async def locking(connection: AsyncConnection[Any]) -> None:
    await connection.execute(LOCK, prepare=False)


async def copying(connection: AsyncConnection[Any]) -> None:
    async with connection.cursor().copy("COPY (SELECT 1) TO STDOUT") as copy:
        async for _ in copy:
            pass


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(("hygiene", "clean", "traced"), [("transaction", 0, 0), ("auto", 0, 1), ("full", 1, 1)])
async def test_a_reset_costs_one_round_trip(
    tapped: Tapped, hygiene: str, read_only: bool, clean: int, traced: int
) -> None:
    statement = 1 if read_only else 3
    async with AsyncRouter(behind(tapped, hygiene)) as router:
        assert await trips(tapped, router, nothing, read_only=read_only) == clean
        for leaving in (harmless, local):
            assert await trips(tapped, router, leaving, read_only=read_only) == statement + clean
        for leaving in (locking, copying):
            assert await trips(tapped, router, leaving, read_only=read_only) == statement + traced
        assert await trips(tapped, router, harmless, read_only=read_only) == statement + clean


async def test_statements_stay_prepared_as_long_as_nothing_is_reset(postgres: Postgres) -> None:
    async def prepared_ones(router: AsyncRouter) -> int:
        for _ in range(8):  # psycopg prepares a statement when it comes the sixth time
            async with router.connection() as connection:
                await connection.execute("SELECT 7")
        async with router.connection() as connection:
            row = await (
                await connection.execute("SELECT count(*) FROM pg_prepared_statements", prepare=False)
            ).fetchone()
            assert row is not None
            return int(row[0])

    async with AsyncRouter(one(postgres.primary, "auto")) as router:
        assert await prepared_ones(router) == 1
        async with router.connection() as connection:
            await connection.execute("SELECT 7")
            await connection.execute(LOCK)
        assert await prepared_ones(router) == 1  # anew
    async with AsyncRouter(one(postgres.primary, "full")) as router:
        assert await prepared_ones(router) == 0


async def test_what_configure_has_set_is_no_trace(postgres: Postgres) -> None:
    async def configure(connection: AsyncConnection[Any]) -> None:
        await connection.execute("SET work_mem = '9MB'")
        await connection.execute("SET application_name = 'configured'")

    async with AsyncRouter(one(postgres.primary, "auto"), configure=configure) as router:
        for _ in range(3):
            assert (await left(router))[3] == "9MB"
        async with router.connection() as connection:
            await connection.execute(LOCK)
        assert (await left(router))[3] == "4MB"  # a reset goes back to what the session began with


# What becomes of a session that cannot be reset


@pytest.mark.parametrize("hygiene", RESETS)
async def test_a_connection_that_dies_when_it_is_reset_is_nobodys_error(tapped: Tapped, hygiene: str) -> None:
    async with AsyncRouter(behind(tapped, hygiene)) as router:
        pid = (await left(router))[0]
        tapped.cut(tapped.primary, on="DISCARD SEQUENCES", before=True)
        async with router.connection() as connection:
            await connection.execute(LOCK)

        async def is_another() -> bool:
            with suppress(psycopg.OperationalError):
                return bool((await left(router))[0] != pid)
            return False

        assert await aeventually(is_another)
        tapped.cut(tapped.primary, on="DISCARD SEQUENCES", before=True)
        with pytest.raises(ZeroDivisionError):
            async with router.connection() as connection:
                await connection.execute(LOCK)
                raise ZeroDivisionError
        [node] = router.stats().versions[0].nodes
        assert node.write is not None
        assert node.write.in_use == 0


@pytest.mark.parametrize("hygiene", RESETS)
async def test_a_connection_that_dies_when_it_is_reset_was_not_lost_in_its_block(tapped: Tapped, hygiene: str) -> None:
    calls = []

    async def fail(connection: AsyncConnection[Any]) -> None:
        calls.append(connection)
        await connection.execute(LOCK)
        raise psycopg.errors.UniqueViolation

    async with AsyncRouter(behind(tapped, hygiene)) as router:
        tapped.cut(tapped.primary, on="DISCARD SEQUENCES", before=True)
        with pytest.raises(psycopg.errors.UniqueViolation):
            await router.run(fail, retries=3)
        assert len(calls) == 1  # a transaction is run again if its connection was lost
        assert not calls[0].broken


@pytest.mark.parametrize("hygiene", RESETS)
async def test_a_server_that_does_not_answer_a_reset_keeps_nobody_waiting(tapped: Tapped, hygiene: str) -> None:
    async with AsyncRouter(behind(tapped, hygiene)) as router:
        pid = (await left(router))[0]
        tapped.primary.forget_on(b"DISCARD SEQUENCES")
        async with router.connection() as connection:
            await connection.execute(LOCK)
        tapped.primary.forward()

        async def is_another() -> bool:
            with suppress(psycopg.OperationalError):
                return bool((await left(router))[0] != pid)
            return False

        assert await aeventually(is_another)


@pytest.mark.parametrize("hygiene", RESETS)
async def test_a_session_that_a_standby_refuses_every_statement_serves_nobody(
    cluster: PostgresCluster, hygiene: str
) -> None:
    options = settings(
        primary=cluster.dsn(), replicas=[cluster.standbys[0].dsn()], pool={"max_size": 1, "hygiene": hygiene}
    )
    async with AsyncRouter(options) as router:
        for _ in range(3):
            async with router.connection(read_only=True) as connection:
                await connection.execute("SET default_transaction_isolation = 'serializable'")
            async with router.connection(read_only=True) as connection:
                await connection.execute("SELECT 1")


# Where it is set


async def test_a_version_may_differ(postgres: Postgres) -> None:
    versions = {
        "v1": {"primary": postgres.primary},
        "v2": {"primary": postgres.primary, "pool": {"hygiene": "transaction"}},
    }
    async with AsyncRouter(settings(versions=versions, pool={"max_size": 1, "hygiene": "auto"})) as router:
        for version, expected in (("v1", "4MB"), ("v2", "7MB")):
            async with router.connection(version=version) as connection:
                await connection.execute("SET work_mem = '7MB'")
            assert (await left(router, version=version))[3] == expected


@pytest.mark.parametrize("hygiene", RESETS)
@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
async def test_tenants_go_by_what_is_said_of_tenants(tapped: Tapped, pooling: str, hygiene: str) -> None:
    options = one(
        tapped.version()["primary"],
        hygiene,
        health={"interval": 3600},
        tenant_template={"row": "app.tenant"},
        tenancy={"pooling": pooling},
    )
    async with AsyncRouter(options) as router:
        for _ in range(3):
            async with router.connection(tenant="acme", read_only=True) as connection:
                tapped.trips()
                await connection.execute("SET work_mem = '7MB'")
            assert tapped.trips() == (1, 0)
        assert (await left(router, tenant="acme", read_only=True))[3] == "7MB"


def test_a_transaction_pooler_has_no_session_to_reset(postgres: Postgres) -> None:
    node = {"dsn": postgres.primary, "pooler": "transaction"}
    for hygiene in RESETS:
        with pytest.raises(ConfigError, match=r"versions\.v1\.pool\.hygiene.*transaction pooler"):
            one_of(node, hygiene)
    one_of(node, "transaction")
    with pytest.raises(ConfigError, match="hygiene"):
        one_of(node, "sometimes")


def one_of(node: dict[str, Any], hygiene: str) -> RouterSettings:
    return settings(primary=node, pool={"hygiene": hygiene})
