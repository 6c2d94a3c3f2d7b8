"""Statements of their own, each where PostgreSQL lets it run; and functions that are run again."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString, Self

import psycopg
import pytest
from psycopg import AsyncConnection, sql
from psycopg._compat import Interpolation, Template
from psycopg.adapt import Dumper

from router import AsyncRouter, NoReplica, TransactionOutcomeUnknown, UnknownVersion
from router._runtime.flags import AFlag
from tests.support import PATIENCE, aall_of, aeventually, new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.testing import PostgresCluster
    from tests.tapped import Tapped


@pytest.fixture(scope="module")
def table(cluster: PostgresCluster) -> LiteralString:
    """A table with the row 1, and what the forms of statements need besides."""
    name = new_name()
    run(
        cluster.dsn(),
        f"CREATE TABLE {name} (i int)",
        f"INSERT INTO {name} VALUES (1)",
        f"CREATE SEQUENCE {name}_s",
        f"CREATE FUNCTION {name}_write() RETURNS int LANGUAGE sql AS 'INSERT INTO {name} VALUES (2) RETURNING i'",
        f"CREATE UNLOGGED TABLE {name}_unlogged AS SELECT 7 AS i",
    )
    cluster.wait_replayed()
    return name


PORT = "current_setting('port')::int"


@dataclass(frozen=True)
class Form:
    """A statement, and what comes of it; `{t}` is the table's name.

    Attributes:
        row: The row that it returns, after the port of the server it ran on if it tells that.
        status: PostgreSQL's word for it.
        adds: How many rows the table has afterwards that it had not.
        once: Whether the router knows at once that it has to run on the primary.
    """

    statement: str
    status: str
    row: tuple[Any, ...] | None = None
    adds: int = 0
    once: bool = False


FORMS = {
    "SELECT": Form(f"SELECT {PORT}, i FROM {{t}} WHERE i = 1", "SELECT 1", (1,)),
    "CTE write": Form(
        f"WITH w AS (INSERT INTO {{t}} VALUES (2) RETURNING i) SELECT {PORT}, i FROM w", "SELECT 1", (2,), adds=1
    ),
    "writing function": Form(f"SELECT {PORT}, {{t}}_write()", "SELECT 1", (2,), adds=1),
    "nextval": Form(f"SELECT {PORT}, nextval('{{t}}_s') > 0", "SELECT 1", (True,)),
    "FOR UPDATE": Form(f"SELECT {PORT}, i FROM {{t}} WHERE i = 1 FOR UPDATE", "SELECT 1", (1,)),
    "INSERT": Form(f"/* ( */ INSERT INTO {{t}} VALUES (2) RETURNING {PORT}, i", "INSERT 0 1", (2,), adds=1, once=True),
    "checkpoint": Form("CHECKPOINT", "CHECKPOINT", once=True),
    "WAL position": Form(f"SELECT {PORT}, pg_current_wal_lsn() IS NULL", "SELECT 1", (False,), once=True),
    "EXPLAIN ANALYZE INSERT": Form("EXPLAIN ANALYZE INSERT INTO {t} VALUES (2)", "EXPLAIN", adds=1),
    "COPY": Form("COPY {t} FROM PROGRAM 'echo 2; echo 3'", "COPY 2", adds=2, once=True),
    "LISTEN": Form("LISTEN {t}", "LISTEN"),
    "NOTIFY": Form("NOTIFY {t}, 'hello'", "NOTIFY"),
    "temporary table": Form("CREATE TEMPORARY TABLE {t}_temporary (i int)", "CREATE TABLE", once=True),
    "advisory lock": Form(f"SELECT {PORT}, pg_try_advisory_lock(1)", "SELECT 1", (True,), once=True),
    "unlogged table": Form(f"SELECT {PORT}, i FROM {{t}}_unlogged", "SELECT 1", (7,)),
}


async def ready(router: AsyncRouter) -> None:
    """Have a connection open to every server of each version, for what it serves."""

    async def opened() -> bool:
        for one in router.stats().versions:
            async with router.connection(version=one.version), router.connection(version=one.version, read_only=True):
                pass
        nodes = [version.nodes for version in router.stats().versions]
        pools = [pool for primary, *replicas in nodes for pool in (primary.write, *(node.read for node in replicas))]
        return all(pool is not None and pool.idle for pool in pools)

    await aeventually(opened)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
async def test_each_form_runs_where_it_can_and_the_second_time_at_once(
    tapped: Tapped, table: LiteralString, form: Form
) -> None:
    statement = form.statement.format(t=table)
    reads = form.statement == FORMS["SELECT"].statement
    count = f"SELECT count(*)::int FROM {table}"
    with psycopg.connect(tapped.cluster.dsn(), autocommit=True) as listener:
        listener.execute(f"LISTEN {table}")
        async with AsyncRouter(settings(**tapped.version())) as router:
            await ready(router)
            for attempt in (1, 2):
                [(before,)] = run(tapped.cluster.dsn(), count)
                tapped.trips()
                result = await router.execute(statement.encode())
                asked = attempt == 1 and not form.once
                assert tapped.trips() == ((0, 1) if reads else (1, int(asked)))
                assert result.status == form.status
                if form.row is not None:
                    where, *row = result.rows[0]
                    assert tuple(row) == form.row
                    at = tapped.cluster.standbys if reads else [tapped.cluster.primary]
                    assert where in {server.port for server in at}
                [(after,)] = run(tapped.cluster.dsn(), count)
                assert after - before == form.adds
                if form.status.startswith("COPY"):
                    assert (result.rowcount, result.rows, result.columns) == (form.adds, [], ())
            if form.status == "NOTIFY":
                notified = [message.payload for message in listener.notifies(timeout=PATIENCE, stop_after=2)]
                assert notified == ["hello", "hello"]


async def test_a_result_is_whole(cluster: PostgresCluster, table: LiteralString) -> None:
    async with AsyncRouter(settings(**cluster.version_settings())) as router:
        result = await router.execute("SELECT n, 'a' || n AS name FROM generate_series(1, %s) n", [3])
        assert result.rows == [(1, "a1"), (2, "a2"), (3, "a3")]
        assert result.columns == ("n", "name")
        assert (result.rowcount, result.status) == (3, "SELECT 3")
        assert (result.first, result.value) == ((1, "a1"), 1)
        nothing = await router.execute(f"SELECT i FROM {table} WHERE i < %(least)s", {"least": 0})
        assert (nothing.rows, nothing.first, nothing.value, nothing.columns) == ([], None, None, ("i",))
        empty = await router.execute("SELECT")
        assert (empty.rows, empty.first, empty.value, empty.columns) == ([()], (), None, ())
        several = await router.execute("SELECT 1 AS one; SELECT 2 AS two")
        assert (several.rows, several.columns) == ([(1,)], ("one",))


async def test_bytes_and_composed_statements_are_remembered_too(tapped: Tapped, table: LiteralString) -> None:
    statements: list[bytes | sql.Composed | sql.SQL] = [
        f"WITH w AS (INSERT INTO {table} VALUES (5)) SELECT 1".encode(),
        sql.SQL("WITH w AS (INSERT INTO {} VALUES ({})) SELECT 1").format(sql.Identifier(table), sql.Literal(5)),
        sql.SQL("SELECT pg_notify('nobody', '')"),
    ]
    async with AsyncRouter(settings(**tapped.version())) as router:
        await ready(router)
        for statement in statements:
            tapped.trips()
            await router.execute(statement)
            assert tapped.trips() == (1, 1)
            await router.execute(statement)
            assert tapped.trips() == (1, 0)


class Odd:
    """A value that only connections that were told know how to write."""


class OddDumper(Dumper):
    oid = 23  # int4

    def dump(self, obj: Odd) -> bytes:
        return b"7"


async def test_a_statement_may_hold_a_literal_that_only_the_connections_know(
    cluster: PostgresCluster, table: LiteralString
) -> None:
    def configure(connection: AsyncConnection[Any]) -> None:
        connection.adapters.register_dumper(Odd, OddDumper)

    statement = sql.SQL("INSERT INTO {} VALUES ({}) RETURNING i").format(sql.Identifier(table), sql.Literal(Odd()))
    async with AsyncRouter(settings(**cluster.version_settings()), configure=configure) as router:
        assert (await router.execute(statement)).value == 7


async def test_what_is_remembered_is_bounded(tapped: Tapped, monkeypatch: pytest.MonkeyPatch) -> None:
    table = new_name()
    run(tapped.cluster.dsn(), f"CREATE TABLE {table} (i int)")
    tapped.cluster.wait_replayed()
    monkeypatch.setattr("router._async.statements.REMEMBERED", 2)
    async with AsyncRouter(settings(**tapped.version())) as router:
        await ready(router)
        statements = [f"WITH w AS (INSERT INTO {table} VALUES ({n})) SELECT 1".encode() for n in range(3)]
        for statement in statements:
            await router.execute(statement)
        assert router._snapshot().statements == 2
        tapped.trips()
        for statement in statements[1:]:
            await router.execute(statement)
        assert tapped.trips() == (2, 0)
        await router.execute(statements[0])
        assert tapped.trips() == (1, 1)


@pytest.mark.parametrize(
    ("statement", "error", "trips"),
    [
        (b"SELEC 1", psycopg.errors.SyntaxError, (0, 1)),
        (b"SELECT 1 / 0", psycopg.errors.DivisionByZero, (0, 1)),
        (b"SELECT count(DISTINCT 1) OVER ()", psycopg.errors.FeatureNotSupported, (1, 1)),  # neither on the primary
    ],
)
async def test_a_wrong_statement_fails_and_is_not_remembered(
    tapped: Tapped, statement: bytes, error: type[psycopg.Error], trips: tuple[int, int]
) -> None:
    async with AsyncRouter(settings(**tapped.version())) as router:
        await ready(router)
        for _ in range(2):
            tapped.trips()
            with pytest.raises(error):
                await router.execute(statement)
            assert tapped.trips() == trips
        assert (await router.execute("SELECT 1")).value == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", ["COPY (SELECT 1) TO STDOUT", "COPY {t} FROM STDIN"])
async def test_a_copy_to_or_from_the_client_is_refused_and_harms_nothing(
    cluster: PostgresCluster, table: LiteralString, form: str
) -> None:
    async with AsyncRouter(settings(**cluster.version_settings(), pool={"max_size": 1})) as router:
        for _ in range(2):
            with pytest.raises(psycopg.ProgrammingError, match="COPY cannot be used with this method"):
                await router.execute(form.format(t=table).encode())
            assert (await router.execute("SELECT 1")).value == 1
            async with router.connection() as connection:
                await connection.execute("SELECT 1")


LEFT_BEHIND = (
    "SELECT pg_my_temp_schema() = 0, (SELECT count(*) FROM pg_listening_channels()),"
    " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),"
    " (SELECT count(*) FROM pg_prepared_statements WHERE from_sql), current_setting('search_path')"
)


@pytest.mark.parametrize(
    "statement",
    [
        "LISTEN {t}",
        "CREATE TEMPORARY TABLE temporary (i int)",
        "CREATE TEMPORARY TABLE temporary AS SELECT 1",
        "SELECT 1 AS i INTO TEMPORARY temporary",
        "SELECT pg_advisory_lock(1)",
        "SELECT PG_TRY_ADVISORY_LOCK_SHARED(1)",
        "PREPARE prepared AS SELECT 1",
        "DO 'BEGIN SET search_path TO pg_catalog; END'",
        "SET search_path TO pg_catalog",
        "SELECT set_config('search_path', 'pg_catalog', false)",
        "UPDATE pg_settings SET setting = 'pg_catalog' WHERE name = 'search_path'",
        "SELECT 1; SET search_path TO pg_catalog",
        "INSERT INTO {t} SELECT 1 WHERE false; LISTEN {t}",
    ],
)
async def test_a_statement_leaves_nothing_in_its_session(
    cluster: PostgresCluster, table: LiteralString, statement: str
) -> None:
    async with AsyncRouter(settings(primary=cluster.dsn(), pool={"max_size": 1})) as router:
        for _ in range(2):
            await router.execute(statement.format(t=table).encode())
            for read_only in (True, False):
                async with router.connection(read_only=read_only) as connection:
                    cursor = await connection.execute(LEFT_BEHIND)
                    assert await cursor.fetchone() == (True, 0, 0, 0, '"$user", public')


async def test_a_statement_is_committed_at_once(cluster: PostgresCluster, table: LiteralString) -> None:
    name = new_name()
    async with AsyncRouter(settings(primary=cluster.dsn())) as router:
        await router.execute(f"CREATE DATABASE {name}")  # which PostgreSQL refuses in a transaction
        await router.execute(f"DROP DATABASE {name}")
        await router.execute(f"BEGIN; INSERT INTO {table} VALUES (77)")
        assert (await router.execute(f"SELECT count(*) FROM {table} WHERE i = 77")).value == 1
        async with router.connection() as connection:
            assert connection.autocommit is False


async def test_reading_in_snapshots_costs_a_statement_nothing(tapped: Tapped) -> None:
    async with AsyncRouter(settings(**tapped.version(), read={"autocommit": False})) as router:
        await ready(router)
        for _ in range(2):
            tapped.trips()
            await router.execute("SELECT 1")
            assert tapped.trips() == (0, 1)
            async with router.connection(read_only=True) as connection:
                assert connection.autocommit is False
                assert (await (await connection.execute("SHOW transaction_isolation")).fetchone()) == (
                    "repeatable read",
                )


@pytest.mark.parametrize("before", [True, False])
async def test_a_read_whose_connection_dies_is_run_once_more_elsewhere(tapped: Tapped, before: bool) -> None:
    async with AsyncRouter(settings(**tapped.version())) as router:
        await ready(router)
        for times in range(1, 9):
            name = new_name()
            tapped.cut(*tapped.standbys, on=name, before=before)
            where = (await router.execute(f"SELECT {PORT} AS {name}")).value
            tried = {
                server.port
                for server, proxy in zip(tapped.cluster.standbys, tapped.standbys, strict=True)
                if any(name.encode() in message for message in tapped.heard[proxy])
            }
            assert sum(proxy.cuts for proxy in tapped.standbys) == times
            assert tried == {server.port for server in tapped.cluster.standbys}
            assert where in tried
        assert router.stats().versions[0].nodes[0].read is None  # the primary was not needed


async def test_a_read_survives_two_deaths(tapped: Tapped) -> None:
    async with AsyncRouter(settings(**tapped.version())) as router:
        await ready(router)
        name = new_name()
        tapped.cut(*tapped.standbys, on=name, times=2)
        assert (await router.execute(f"SELECT 1 AS {name}")).value == 1
        assert sum(proxy.cuts for proxy in tapped.standbys) == 2


async def test_the_third_death_of_a_read_is_raised(tapped: Tapped) -> None:
    async with AsyncRouter(settings(**tapped.version())) as router:
        await ready(router)
        with pytest.raises(psycopg.errors.AdminShutdown):
            await router.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        said = [message for heard in tapped.heard.values() for message in heard if b"pg_terminate_backend" in message]
        assert len(said) == 3
        assert (await router.execute("SELECT 1")).value == 1


async def test_where_there_is_one_node_a_read_is_run_once_more_there(tapped: Tapped) -> None:
    async with AsyncRouter(settings(primary=tapped.version()["primary"])) as router:
        name = new_name()
        for times in (1, 2):
            tapped.cut(tapped.primary, on=name)
            if times == 1:
                assert (await router.execute(f"SELECT 1 AS {name}")).value == 1
        assert tapped.primary.cuts == 1


@pytest.mark.each_value
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("before", [True, False])
async def test_a_write_whose_connection_dies_is_never_run_again(tapped: Tapped, before: bool, known: bool) -> None:
    name = new_name()
    run(tapped.cluster.dsn(), f"CREATE TABLE {name} (i int)")
    tapped.cluster.wait_replayed()
    insert = f"WITH w AS (INSERT INTO {name} SELECT %s WHERE %s) SELECT 1"
    async with AsyncRouter(settings(**tapped.version())) as router:
        await ready(router)
        if known:
            await router.execute(insert, [0, False])
        tapped.cut(tapped.primary, on=name, before=before)
        tapped.trips()
        with pytest.raises(TransactionOutcomeUnknown, match="died while a statement ran there") as raised:
            await router.execute(insert, [1, True])
        assert raised.value.version == "v1"
        assert tapped.trips() == (1, int(not known))
        await router.execute(insert, [2, True])
        rows = [(2,)] if before else [(1,), (2,)]

        async def there() -> bool:
            return run(tapped.cluster.dsn(), f"SELECT i FROM {name} ORDER BY i") == rows

        await aeventually(there)


async def test_what_is_remembered_goes_by_the_version_that_is_meant(tapped: Tapped, table: LiteralString) -> None:
    options = settings(versions={"v1": tapped.version(), "v2": tapped.version()}, aliases={"live": "v1"})
    query = f"SELECT {table}_write()"
    async with AsyncRouter(options) as router:
        await ready(router)
        tapped.trips()
        meant: list[tuple[str | None, int]] = [(None, 1), ("live", 0), ("v1", 0), ("v2", 1), ("v2", 0)]
        for named, asked in meant:
            await router.execute(query, version=named)
            assert tapped.trips() == (1, asked)
        with router.use(version="live"):
            await router.execute(query)
        with router.use(version="v2"):
            await router.execute(query)
        assert tapped.trips()[1] == 0
        with pytest.raises(UnknownVersion):
            await router.execute(query, version="v3")


async def test_comments_do_not_make_another_statement(tapped: Tapped, table: LiteralString) -> None:
    async with AsyncRouter(settings(**tapped.version())) as router:
        await ready(router)
        tapped.trips()
        for n in range(4):
            await router.execute(f"/* {n} /* nested */ */ SELECT {table}_write() -- {n}".encode())
            assert tapped.trips() == (1, int(n == 0))
        await router.execute(f"SELECT '-- no comment', {table}_write()".encode())
        assert tapped.trips() == (1, 1)


async def test_what_a_standby_does_not_know_now_is_asked_of_the_primary_and_not_remembered(
    tapped: Tapped,
) -> None:
    """A materialized view that was filled a moment ago, say, is 55000 on a standby that is behind."""
    view = new_name()
    run(tapped.cluster.dsn(), f"CREATE MATERIALIZED VIEW {view} AS SELECT 1 AS i WITH NO DATA")
    tapped.cluster.wait_replayed()
    async with AsyncRouter(settings(**tapped.version())) as router:
        await ready(router)
        for standby in tapped.cluster.standbys:
            standby.pause_replay()
        try:
            run(tapped.cluster.dsn(), f"REFRESH MATERIALIZED VIEW {view}")
            tapped.trips()
            assert (await router.execute(f"SELECT i FROM {view}")).value == 1
            assert tapped.trips() == (1, 1)
        finally:
            for standby in tapped.cluster.standbys:
                standby.resume_replay()
        tapped.cluster.wait_replayed()
        assert (await router.execute(f"SELECT i FROM {view}")).value == 1
        assert tapped.trips() == (0, 1)


class Templated(Template):
    """A template string, where Python has none yet: psycopg takes it apart alike."""

    parts: tuple[str | Interpolation[Any], ...]

    def __new__(cls, *parts: str | Interpolation[Any]) -> Self:
        self = object.__new__(cls)
        self.parts = parts
        return self

    def __iter__(self) -> Iterator[str | Interpolation[Any]]:
        return iter(self.parts)


async def test_a_template_string_is_a_statement_by_its_text_and_not_by_its_values(
    tapped: Tapped, table: LiteralString
) -> None:
    def template(*parts: Any) -> Template:
        interpolated = (part if isinstance(part, str) else Interpolation(part[0], "x", None, part[1]) for part in parts)
        return (Template if sys.version_info >= (3, 14) else Templated)(*interpolated)

    async with AsyncRouter(settings(**tapped.version())) as router:
        await ready(router)
        name = template((f"{table}_write", "i"))
        for n in range(3):
            tapped.trips()
            result = await router.execute(template("SELECT ", (name, "q"), "(), ", (n, ""), "::int /* ", f"{n} */"))
            assert result.rows == [(2, n)]
            assert tapped.trips() == (1, int(n == 0))
        tapped.trips()
        inserted = template((sql.SQL("INSERT INTO"), "q"), " ", (table, "i"), " VALUES (", (5, "l"), ") RETURNING i")
        assert (await router.execute(inserted)).value == 5
        assert tapped.trips() == (1, 0)
        with pytest.raises(TypeError, match="doesn't support parameters"):
            await router.execute(inserted, [1])


@pytest.mark.parametrize("query", [None, 1, ["SELECT 1"], {"query": "SELECT 1"}, object()])
async def test_what_is_no_statement_is_a_type_error(cluster: PostgresCluster, query: Any) -> None:
    async with AsyncRouter(settings(primary=cluster.dsn())) as router:
        with pytest.raises(TypeError, match=rf"takes a statement: .* not {type(query).__name__}"):
            await router.execute(query)


@pytest.mark.parametrize("fallback", ["primary", "error"])
async def test_without_a_replica_reads_do_as_the_settings_say(
    cluster: PostgresCluster, table: LiteralString, fallback: str
) -> None:
    async with AsyncRouter(settings(primary=cluster.dsn(), read={"fallback": fallback})) as router:
        if fallback == "primary":
            assert (await router.execute(f"SELECT {PORT}")).value == cluster.primary.port
            assert (await router.execute(f"INSERT INTO {table} SELECT 1 WHERE false")).rowcount == 0
        else:
            with pytest.raises(NoReplica):
                await router.execute(f"SELECT {PORT}")


async def test_where_a_session_is_not_known_to_refuse_writes_nothing_is_tried_in_it(
    tapped: Tapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = new_name()
    run(tapped.cluster.dsn(), f"CREATE TABLE {table} (i int)")
    monkeypatch.setattr("router._async.pool.opener.READ_ONLY", "")  # as a pooler does that drops startup options
    async with AsyncRouter(settings(primary=tapped.version()["primary"])) as router:
        tapped.cut(tapped.primary, on="INSERT", before=False)
        with pytest.raises(TransactionOutcomeUnknown):  # and not once more, as a read
            await router.execute(f"WITH w AS (INSERT INTO {table} VALUES (1)) SELECT 1")

        async def written() -> bool:
            return run(tapped.cluster.dsn(), f"SELECT i FROM {table}") == [(1,)]

        await aeventually(written)
        assert (await router.execute(f"SELECT count(*) FROM {table}")).value == 1


# Functions that are run again


class Stop(BaseException):
    """As is raised to end a task or a program."""


@pytest.fixture
def counter(cluster: PostgresCluster) -> LiteralString:
    """A table with two rows that count."""
    name = new_name()
    run(cluster.dsn(), f"CREATE TABLE {name} (id int PRIMARY KEY, n int)", f"INSERT INTO {name} VALUES (1, 0), (2, 0)")
    return name


def counted(cluster: PostgresCluster, counter: LiteralString) -> list[int]:
    return [n for (n,) in run(cluster.dsn(), f"SELECT n FROM {counter} ORDER BY id")]


@pytest.mark.parametrize(("conflicts", "retries"), [(1, 3), (2, 2), (1, 0), (3, 2)])
async def test_a_serialization_failure_is_run_again(
    cluster: PostgresCluster, counter: LiteralString, conflicts: int, retries: int
) -> None:
    calls = []

    async def function(connection: AsyncConnection[Any]) -> str:
        calls.append(connection)
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await connection.execute(f"SELECT n FROM {counter}")
        if len(calls) <= conflicts:
            run(cluster.dsn(), f"UPDATE {counter} SET n = n + 100 WHERE id = 1")
        await connection.execute(f"UPDATE {counter} SET n = n + 1 WHERE id = 1")
        return "done"

    async with AsyncRouter(settings(primary=cluster.dsn())) as router:
        if conflicts <= retries:
            assert await router.run(function, retries=retries) == "done"
        else:
            with pytest.raises(psycopg.errors.SerializationFailure):
                await router.run(function, retries=retries)
    assert len(calls) == min(conflicts, retries) + 1
    assert counted(cluster, counter) == [100 * conflicts + (conflicts <= retries), 0]


async def test_a_deadlock_is_run_again(cluster: PostgresCluster, counter: LiteralString) -> None:
    flags, calls = {1: AFlag(), 2: AFlag()}, []

    async def add(connection: AsyncConnection[Any], one: int, two: int) -> None:
        calls.append(one)
        await connection.execute("SET LOCAL deadlock_timeout = '50ms'")
        await connection.execute(f"UPDATE {counter} SET n = n + 1 WHERE id = %s", [one])
        flags[one].set()
        assert await flags[two].wait_for(PATIENCE)
        await connection.execute(f"UPDATE {counter} SET n = n + 1 WHERE id = %s", [two])

    async with AsyncRouter(settings(primary=cluster.dsn())) as router:

        async def there() -> None:
            await router.run(lambda connection: add(connection, 1, 2))

        async def back() -> None:
            await router.run(lambda connection: add(connection, 2, 1))

        await aall_of(there, back)
    assert len(calls) >= 3
    assert counted(cluster, counter) == [2, 2]


@pytest.mark.each_value
@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("before", [True, False])
async def test_a_connection_lost_before_commit_is_run_again(
    tapped: Tapped, counter: LiteralString, before: bool, swallows: bool
) -> None:
    calls = []

    async def function(connection: AsyncConnection[Any]) -> int:
        calls.append(connection)
        try:
            await connection.execute(f"UPDATE {counter} SET n = n + 1 WHERE id = 1")
        except psycopg.OperationalError:
            if not swallows:
                raise
        return len(calls)

    async with AsyncRouter(settings(**tapped.version())) as router:
        await ready(router)
        tapped.cut(tapped.primary, on="UPDATE", before=before)
        assert await router.run(function) == 2
    assert counted(tapped.cluster, counter) == [1, 0]


async def test_a_block_that_swallows_the_loss_of_its_connection_does_not_pretend(
    tapped: Tapped, counter: LiteralString
) -> None:
    async with AsyncRouter(settings(**tapped.version())) as router:
        await ready(router)
        for session in (None, router.session()):
            with ExitStack() as stack:
                if session is not None:
                    stack.enter_context(session)
                tapped.cut(tapped.primary, on="UPDATE")
                with pytest.raises(psycopg.OperationalError, match="lost before COMMIT") as raised:
                    async with router.connection() as connection:
                        with pytest.raises(psycopg.OperationalError):
                            await connection.execute(f"UPDATE {counter} SET n = 1")
                assert not isinstance(raised.value, TransactionOutcomeUnknown)
    assert counted(tapped.cluster, counter) == [0, 0]


@pytest.mark.each_value
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("way", ["connection", "run", "run, a transaction of its own", "session", "run in a session"])
async def test_a_connection_that_dies_during_commit_is_not_guessed_about(
    tapped: Tapped, counter: LiteralString, way: str, before: bool
) -> None:
    calls = []

    async def function(connection: AsyncConnection[Any]) -> None:
        calls.append(connection)
        if way == "run, a transaction of its own":
            async with connection.transaction():
                await connection.execute(f"UPDATE {counter} SET n = n + 1")
        else:
            await connection.execute(f"UPDATE {counter} SET n = n + 1")

    async with AsyncRouter(settings(**tapped.version())) as router:
        await ready(router)
        with ExitStack() as stack:
            if "session" in way:
                stack.enter_context(router.session())
            tapped.cut(tapped.primary, on="COMMIT", before=before)
            with pytest.raises(TransactionOutcomeUnknown, match="died during COMMIT") as raised:
                if way.startswith("run"):
                    await router.run(function)
                else:
                    async with router.connection() as connection:
                        await function(connection)
            assert raised.value.version == "v1"
            assert tapped.primary.cuts == 1
            assert len(calls) == 1

            async def ended() -> bool:  # the server acts on what it heard, although nobody waits for its answer
                return counted(tapped.cluster, counter) == ([0, 0] if before else [1, 1])

            await aeventually(ended)
            await router.run(function)
    assert counted(tapped.cluster, counter) == ([1, 1] if before else [2, 2])


async def test_a_function_that_is_run_cannot_commit_by_itself(cluster: PostgresCluster, counter: LiteralString) -> None:
    calls = []

    async def function(connection: AsyncConnection[Any]) -> None:
        calls.append(connection)
        await connection.execute(f"UPDATE {counter} SET n = n + 1")
        await connection.commit()

    async with AsyncRouter(settings(primary=cluster.dsn())) as router:
        with pytest.raises(psycopg.ProgrammingError, match="commit"):
            await router.run(function)
    assert len(calls) == 1
    assert counted(cluster, counter) == [0, 0]


@pytest.mark.parametrize("error", [ZeroDivisionError, psycopg.errors.UniqueViolation, Stop])
async def test_other_errors_are_not_run_again(
    cluster: PostgresCluster, counter: LiteralString, error: type[BaseException]
) -> None:
    calls = []

    async def function(connection: AsyncConnection[Any]) -> None:
        calls.append(connection)
        await connection.execute(f"UPDATE {counter} SET n = n + 1")
        raise error

    async with AsyncRouter(settings(primary=cluster.dsn())) as router:
        with pytest.raises(error):
            await router.run(function)
        assert len(calls) == 1
        assert counted(cluster, counter) == [0, 0]
        assert (await router.execute("SELECT 1")).value == 1
