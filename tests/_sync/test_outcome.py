# Generated from tests/_async/test_outcome.py by tools/async_to_sync.py: do not edit.
"""What a transaction came to when its connection died: unknown, wherever something was sent that may have kept it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import ClientCursor, Connection
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from router import Router, TransactionOutcomeUnknown
from tests.support import eventually, new_name, run, settings

if TYPE_CHECKING:
    from router.testing import PostgresCluster
    from tests.tapped import Tapped


@pytest.fixture(scope="module")
def table(cluster: PostgresCluster) -> LiteralString:
    name = new_name()
    run(cluster.dsn(), f"CREATE TABLE {name} (i int)")
    cluster.wait_replayed()
    return name


class Way:
    """A way for a block to write; `cut` is what it says when its connection is cut.

    Those whose names begin with `autocommit` are in it.
    """

    def __init__(self, table: LiteralString, connection: Connection[Any]) -> None:
        self.connection = connection
        self.insert = f"INSERT INTO {table} VALUES (1)"
        self.copied = f"COPY {table} FROM STDIN"

    def commit(self) -> None:
        self.connection.execute(self.insert)
        self.connection.commit()

    def transaction(self) -> None:
        with self.connection.transaction():
            self.connection.execute(self.insert)

    def inner_transaction(self) -> None:
        with self.connection.transaction("outer"), self.connection.transaction("inner"):
            self.connection.execute(self.insert)

    def rollback(self) -> None:
        self.connection.execute(self.insert)
        self.connection.rollback()

    def statement(self) -> None:
        self.connection.execute(self.insert)

    def several(self) -> None:
        self.connection.execute(f"SELECT '; COMMIT' /* ; COMMIT */; {self.insert} -- ; COMMIT")

    def case(self) -> None:
        self.connection.execute(f"{self.insert} RETURNING CASE WHEN true THEN 1 END")

    def copy(self) -> None:
        with self.connection.cursor() as cursor, cursor.copy(self.copied) as copy:
            copy.write("1\n")

    def commit_text(self) -> None:
        self.connection.execute(self.insert)
        self.connection.execute("/* ; */ -- it\n COMMIT WORK")

    def end_text(self) -> None:
        self.connection.execute(f"{self.insert}; end")

    def commit_text_of_a_client_cursor(self) -> None:
        self.connection.execute(self.insert)
        ClientCursor(self.connection).execute("COMMIT AND CHAIN")

    def pipeline(self) -> None:
        with self.connection.pipeline():
            self.connection.execute(self.insert)
            self.connection.commit()

    def pipeline_text(self) -> None:
        with self.connection.pipeline(), self.connection.cursor() as cursor:
            cursor.execute(self.insert)
            cursor.execute("COMMIT")
            cursor.execute("SELECT 1")

    def pipeline_transaction(self) -> None:
        with self.connection.pipeline(), self.connection.transaction():
            self.connection.execute(self.insert)

    def two_phase(self) -> None:
        self.connection.tpc_begin("it")
        self.connection.execute(self.insert)
        self.connection.tpc_prepare()

    def two_phase_text(self) -> None:
        self.connection.execute(self.insert)
        self.connection.execute("PREPARE TRANSACTION 'it'")

    def two_phases_in_one(self) -> None:
        self.connection.tpc_begin("it")
        self.connection.execute(self.insert)
        self.connection.tpc_commit()

    def second_phase(self) -> None:
        self.connection.tpc_commit("it")

    def second_phase_undone(self) -> None:
        self.connection.tpc_rollback("it")

    def autocommit(self) -> None:
        self.connection.execute(self.insert)

    def autocommit_many(self) -> None:
        with self.connection.cursor() as cursor:
            cursor.executemany(f"{self.insert} RETURNING %s", [[1], [2]])

    def autocommit_copy(self) -> None:
        self.copy()

    def autocommit_stream(self) -> None:
        with self.connection.cursor() as cursor:
            for _ in cursor.stream(f"{self.insert} RETURNING i"):
                pass

    def autocommit_pipeline(self) -> None:
        with self.connection.pipeline():
            self.connection.execute(self.insert)
            self.connection.execute("SELECT 7")  # which no look says

    def autocommit_transaction(self) -> None:
        self.transaction()

    def autocommit_begin_text(self) -> None:
        self.connection.execute("BEGIN")
        self.connection.execute(self.insert)


UNKNOWN = [
    ("commit", "COMMIT"),
    ("transaction", "COMMIT"),
    ("inner_transaction", "COMMIT"),
    ("commit_text", "COMMIT"),
    ("end_text", "; end"),
    ("commit_text_of_a_client_cursor", "CHAIN"),
    ("pipeline", "COMMIT"),
    ("pipeline_text", "COMMIT"),
    ("pipeline_transaction", "COMMIT"),
    ("two_phase", "PREPARE TRANSACTION"),
    ("two_phase_text", "PREPARE TRANSACTION"),
    ("two_phases_in_one", "COMMIT"),
    ("second_phase", "COMMIT PREPARED"),
    ("autocommit", "INSERT"),
    ("autocommit_many", "INSERT"),
    ("autocommit_copy", "COPY"),
    ("autocommit_copy", "1\n"),
    ("autocommit_stream", "INSERT"),
    ("autocommit_pipeline", "INSERT"),
    ("autocommit_pipeline", "SELECT 7"),
    ("autocommit_transaction", "COMMIT"),
]

ROLLED_BACK = [
    ("statement", "BEGIN"),
    ("statement", "INSERT"),
    ("several", "INSERT"),
    ("case", "INSERT"),
    ("copy", "COPY"),
    ("copy", "1\n"),
    ("transaction", "INSERT"),
    ("inner_transaction", "RELEASE"),
    ("rollback", "ROLLBACK"),
    ("pipeline", "BEGIN"),
    ("second_phase_undone", "ROLLBACK PREPARED"),
    ("autocommit_transaction", "BEGIN"),
    ("autocommit_transaction", "INSERT"),
    ("autocommit_begin_text", "INSERT"),
]


def died(tapped: Tapped, table: LiteralString, way: str, cut: str, **request: Any) -> psycopg.Error:
    """How a block fails whose connection is cut when it says this."""
    with Router(settings(**tapped.version())) as router:
        with pytest.raises(psycopg.Error) as raised:
            with router.connection(**request) as connection:
                connection.rollback()
                connection.set_autocommit(way.startswith("autocommit"))
                tapped.cut(tapped.primary, *tapped.standbys, on=cut, before=True)
                getattr(Way(table, connection), way)()
        assert tapped.primary.cuts + sum(proxy.cuts for proxy in tapped.standbys) == 1
    return raised.value


@pytest.mark.parametrize(("way", "cut"), UNKNOWN)
def test_what_was_sent_and_may_be_kept_is_not_guessed_about(
    tapped: Tapped, table: LiteralString, way: str, cut: str
) -> None:
    error = died(tapped, table, way, cut)
    assert isinstance(error, TransactionOutcomeUnknown), repr(error)
    assert (error.version, error.tenant, error.sqlstate) == ("v1", None, None)
    assert isinstance(error.__cause__, psycopg.OperationalError)


@pytest.mark.parametrize(("way", "cut"), ROLLED_BACK)
def test_what_is_certainly_rolled_back_is_psycopgs_own_error(
    tapped: Tapped, table: LiteralString, way: str, cut: str
) -> None:
    error = died(tapped, table, way, cut)
    assert isinstance(error, psycopg.OperationalError)
    assert not isinstance(error, TransactionOutcomeUnknown)


def test_a_session_that_refuses_writes_has_nothing_to_guess_about(tapped: Tapped, table: LiteralString) -> None:
    error = died(tapped, table, "autocommit_stream", "INSERT", read_only=True)
    assert not isinstance(error, TransactionOutcomeUnknown)


def test_what_was_not_sent_is_not_unknown(tapped: Tapped, table: LiteralString) -> None:
    with Router(settings(**tapped.version())) as router:
        with pytest.raises(
            psycopg.OperationalError, match=r"the connection to \S+ was lost before COMMIT: .* may be repeated"
        ):
            with router.connection() as connection:
                tapped.cut(tapped.primary, on="INSERT")
                with pytest.raises(psycopg.OperationalError):
                    connection.execute(f"INSERT INTO {table} VALUES (1)")
                with pytest.raises(psycopg.OperationalError) as raised:
                    connection.execute("COMMIT")
                assert not isinstance(raised.value, TransactionOutcomeUnknown)


def test_a_block_that_swallows_it_does_not_say_that_all_is_rolled_back(tapped: Tapped, table: LiteralString) -> None:
    with Router(settings(**tapped.version())) as router:
        with pytest.raises(TransactionOutcomeUnknown) as raised:
            with router.connection() as connection:
                tapped.cut(tapped.primary, on="COMMIT")
                connection.execute(f"INSERT INTO {table} VALUES (1)")
                with pytest.raises(TransactionOutcomeUnknown) as swallowed:
                    connection.commit()
                with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
                    connection.execute("SELECT 1")
        assert raised.value is swallowed.value


def test_a_transaction_that_was_ended_because_it_was_idle_is_rolled_back(
    cluster: PostgresCluster, table: LiteralString
) -> None:
    with Router(settings(primary=cluster.dsn())) as router:
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            with router.connection() as connection:
                connection.execute(f"INSERT INTO {table} VALUES (1)")
                connection.execute("SET idle_in_transaction_session_timeout = 1")
                pid = connection.info.backend_pid

                def has_ended() -> bool:
                    return cluster.primary.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]) == []

                eventually(has_ended)


def test_a_session_whose_end_came_with_an_earlier_answer_has_not_read_the_commit(
    cluster: PostgresCluster, table: LiteralString
) -> None:
    with Router(settings(primary=cluster.dsn())) as router:
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout, match="had ended the session before"):
            with router.connection() as connection:
                connection.execute(f"INSERT INTO {table} VALUES (1)")
                pid, pgconn = connection.info.backend_pid, connection.pgconn

                def has_ended() -> bool:
                    return cluster.primary.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]) == []

                # As in a process that is busy elsewhere: the answer and the end are read at once.
                pgconn.send_query(b"SET idle_in_transaction_session_timeout = 1")
                pgconn.flush()
                eventually(has_ended)
                pgconn.consume_input()
                while pgconn.get_result() is not None:
                    pass


def test_what_was_answered_by_an_error_is_not_unknown_later(tapped: Tapped, table: LiteralString) -> None:
    with Router(settings(**tapped.version())) as router:
        with pytest.raises(psycopg.OperationalError) as raised:
            with router.connection() as connection:
                connection.set_autocommit(True)
                with pytest.raises(psycopg.errors.DivisionByZero):
                    connection.execute(f"INSERT INTO {table} VALUES (1 / 0)")
                with pytest.raises(psycopg.errors.NoActiveSqlTransaction):
                    connection.execute("COMMIT AND CHAIN")
                connection.set_autocommit(False)
                tapped.cut(tapped.primary, on="SELECT 7")
                connection.execute("SELECT 7")
        assert not isinstance(raised.value, TransactionOutcomeUnknown)


def test_a_tenants_and_an_aliass_outcome_name_them(tapped: Tapped, table: LiteralString) -> None:
    options = settings(
        versions={"v1": tapped.version()}, aliases={"live": "v1"}, tenants={"acme": {"schema": "public"}},
        tenancy={"pooling": "shared"},
    )  # fmt: skip
    with Router(options) as router:
        requests: list[dict[str, Any]] = [{"version": "live"}, {"tenant": "acme", "version": "v1"}]
        for request in requests:
            with pytest.raises(TransactionOutcomeUnknown) as raised:
                with router.connection(**request) as connection:
                    tapped.cut(tapped.primary, on="COMMIT")
                    connection.execute(f"INSERT INTO {table} VALUES (1)")
                    connection.commit()
            assert raised.value.version == request["version"]
            assert raised.value.tenant == request.get("tenant")


@pytest.mark.parametrize(("options", "cut"), [({}, "COMMIT"), ({"isolation_level": "AUTOCOMMIT"}, "INSERT")])
def test_sqlalchemy_shows_it(tapped: Tapped, table: LiteralString, options: dict[str, Any], cut: str) -> None:
    with (
        Router(settings(**tapped.version())) as router,
        pytest.raises(TransactionOutcomeUnknown) as at_the_end,
        router.connection() as connection,
    ):
        engine = create_engine("postgresql+psycopg://", creator=lambda: connection, **options)
        with pytest.raises(OperationalError) as raised, engine.connect() as session:
            tapped.cut(tapped.primary, on=cut)
            session.execute(text(f"INSERT INTO {table} VALUES (1)"))
            session.commit()
    assert raised.value.orig is at_the_end.value
    assert raised.value.connection_invalidated
