# Generated from tests/_async/test_hygiene.py by tools/async_to_sync.py: do not edit.
"""What blocks leave in a version's session, and what of it the next borrower finds: ``pool.hygiene``."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg.sql import SQL, Identifier, Literal

from router import Router
from tests._sync.test_spoilt import changes
from tests.support import SLOW, all_of, new_name, run, settings

if TYPE_CHECKING:
    from router import RouterSettings
    from router.testing import PostgresCluster
    from tests.conftest import Postgres

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


def left(router: Router, **options: Any) -> tuple[Any, ...]:
    """What there is in the session of a router with one connection, and its process."""
    with router.connection(**options) as connection:
        row = connection.execute(LEFT, prepare=False).fetchone()
        assert row is not None
        return (connection.info.backend_pid, *row)


@pytest.mark.each_value
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("hygiene", RESETS)
def test_nothing_that_a_block_leaves_reaches_the_next(
    postgres: Postgres, names: Names, hygiene: str, read_only: bool
) -> None:
    with Router(one(postgres.primary, hygiene)) as router:
        fresh = left(router, read_only=read_only)
        for what, statement in (names.reading() if read_only else names.writing()).items():
            with router.connection(read_only=read_only) as connection:
                connection.execute(statement)
            assert left(router, read_only=read_only) == fresh, what


@pytest.mark.parametrize("read_only", [False, True])
def test_transaction_ends_the_transaction_and_nothing_else(postgres: Postgres, names: Names, read_only: bool) -> None:
    with Router(one(postgres.primary, "transaction")) as router:
        fresh = left(router, read_only=read_only)
        for what, statement in (names.reading() if read_only else names.writing()).items():
            with router.connection(read_only=read_only) as connection:
                connection.execute(statement)
            assert left(router, read_only=read_only) != fresh, what
            with router.connection(read_only=read_only) as connection:
                connection.rollback()
                connection.set_autocommit(True)
                connection.execute("DISCARD ALL", prepare=False)
            assert left(router, read_only=read_only) == fresh, what


@pytest.mark.each_value
@SLOW
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("hygiene", RESETS)
def test_every_setting_goes_back_to_what_it_was(cluster: PostgresCluster, hygiene: str, read_only: bool) -> None:
    with Router(one(cluster.dsn(), hygiene)) as router:

        def in_force() -> dict[str, str]:
            with router.connection(read_only=read_only) as connection:
                rows = connection.execute("SELECT name, setting FROM pg_settings").fetchall()
                # What belongs to the transaction is as the connection object says.
                return {name: setting for name, setting in rows if not name.startswith("transaction_")}

        fresh = in_force()
        done = 0
        for name, value in changes(cluster):
            with suppress(psycopg.Error):
                with router.connection(read_only=read_only) as connection:
                    connection.execute(SQL("SET {} TO {}").format(Identifier(name), Literal(value)))
                    done += 1
            assert in_force() == fresh, (name, value)
        assert done > 200  # the others are refused


@pytest.mark.parametrize("hygiene", RESETS)
def test_what_a_sequence_gave_last_is_not_known_to_the_next(postgres: Postgres, names: Names, hygiene: str) -> None:
    with Router(one(postgres.primary, hygiene)) as router:
        with router.connection() as connection:
            connection.execute(f"SELECT nextval('{names.sequence}')")
            connection.execute("SELECT lastval()")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            with router.connection() as connection:
                connection.execute("SELECT lastval()")


@pytest.mark.parametrize("hygiene", RESETS)
def test_a_lock_is_free_when_its_block_has_ended(postgres: Postgres, hygiene: str) -> None:
    with Router(one(postgres.primary, hygiene)) as router:
        for read_only in (False, True):
            with router.connection(read_only=read_only) as connection:
                connection.execute(LOCK)
                assert run(postgres.primary, "SELECT pg_try_advisory_lock(77)") == [(False,)]
            assert run(postgres.primary, "SELECT pg_try_advisory_lock(77)") == [(True,)]


@pytest.mark.parametrize("hygiene", RESETS)
def test_a_standbys_session_is_reset_too(cluster: PostgresCluster, hygiene: str) -> None:
    with Router(one(cluster.dsn(), hygiene, replicas=[cluster.standbys[0].dsn()])) as router:
        fresh = left(router, read_only=True)
        for statement in ("SET work_mem = '7MB'", LOCK, "PREPARE left_there AS SELECT 1", "SET TIME ZONE 'Asia/Tokyo'"):
            with router.connection(read_only=True) as connection:
                assert (connection.execute("SELECT pg_is_in_recovery()").fetchone()) == (True,)
                connection.execute(statement)
            assert left(router, read_only=True) == fresh, statement


@pytest.mark.parametrize("hygiene", RESETS)
def test_nobody_hears_what_another_listened_for(postgres: Postgres, hygiene: str) -> None:
    channel = new_name()
    with Router(one(postgres.primary, hygiene)) as router:
        with router.connection() as connection:
            connection.execute(f"LISTEN {channel}")
            connection.commit()
            run(postgres.primary, f"NOTIFY {channel}")
        run(postgres.primary, f"NOTIFY {channel}")
        with router.connection() as connection:
            connection.commit()
            for heard in connection.notifies(timeout=0.05):
                pytest.fail(f"it hears {heard}")


@pytest.mark.parametrize("hygiene", RESETS)
def test_statements_of_their_own_leave_nothing(postgres: Postgres, names: Names, hygiene: str) -> None:
    with Router(one(postgres.primary, hygiene)) as router:
        for what, statement in names.writing().items():
            with suppress(psycopg.errors.NoActiveSqlTransaction):
                router.execute(statement)
            for read_only in (False, True):
                _, *found = left(router, read_only=read_only)
                assert found[7:] == [[], [], [], [], []], what
                assert found[2] == "4MB", what


def backends(router: Router) -> list[int]:
    """The process that serves writes, and the one that serves reads."""
    return [left(router, read_only=read_only)[0] for read_only in (False, True)]


@pytest.mark.parametrize("hygiene", RESETS)
def test_a_session_that_is_reset_is_not_closed_after_a_statement_of_its_own(
    postgres: Postgres, names: Names, hygiene: str
) -> None:
    with Router(one(postgres.primary, hygiene)) as router:
        before = backends(router)
        for statement in (
            "SET work_mem = '7MB'",
            LOCK,
            f"CALL {names.sets}()",
            "DO 'BEGIN SET work_mem = ''7MB''; END'",
        ):
            router.execute(statement)
            assert left(router)[3] == "4MB"
            assert backends(router) == before


def test_a_session_that_is_not_reset_is_closed_only_after_a_statement_that_may_leave_a_trace(
    postgres: Postgres, names: Names
) -> None:
    table = new_name()
    with Router(one(postgres.primary, "transaction")) as router:
        before = backends(router)
        for statement in (
            f"CREATE TABLE {table} (i int)",
            f"DROP TABLE {table}",
            f"SELECT nextval('{names.sequence}')",
        ):
            router.execute(statement)
            assert backends(router) == before
        for statement in (f"CALL {names.sets}()", "DO 'BEGIN SET work_mem = ''7MB''; END'", LOCK):
            before = backends(router)
            router.execute(statement)
            assert left(router)[3] == "4MB"
            assert backends(router) != before


@pytest.mark.parametrize("hygiene", RESETS)
def test_those_that_wait_get_what_is_reset(postgres: Postgres, hygiene: str) -> None:
    with Router(one(postgres.primary, hygiene)) as router:
        fresh = left(router)

        def leave() -> None:
            for _ in range(5):
                with router.connection() as connection:
                    row = connection.execute(LEFT).fetchone()
                    assert row == fresh[1:]
                    connection.execute("SET work_mem = '7MB'")
                    connection.execute(LOCK)

        all_of(leave, leave, leave)
        assert left(router) == fresh
