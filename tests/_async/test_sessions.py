"""Reads that see what their session wrote, and tokens handed on, while replicas are behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager, suppress
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import AsyncConnection

from router import AsyncRouter, NoReplica, TokenRefused, TransactionOutcomeUnknown
from router._async import verify
from router._async.cluster import FAST_INTERVAL, WAITING
from router._async.pool.node_pool import AsyncNodePool
from router._runtime.flags import asleep
from router.context import CURRENT
from router.core.consistency import Position, Token
from tests._async.internals import close_idle, inside
from tests.proxy import Proxy
from tests.support import aall_of, aeventually, aoutside, new_name, port, run, settings, short_and_long

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from router import Node
    from router._async.in_force import AsyncInForce
    from router.sessions import Session
    from router.testing import PostgresCluster
    from router.testing._plugin import MakeCluster
    from tests.tapped import Tapped

KEY = "a key of sixteen characters"
DELAY = 0.2


def replicated(cluster: PostgresCluster) -> LiteralString:
    """A new empty table, on every server."""
    name = new_name()
    run(cluster.dsn(), f"CREATE TABLE {name} (i int)")
    cluster.wait_replayed()
    return name


@pytest.fixture
def table(cluster: PostgresCluster) -> LiteralString:
    return replicated(cluster)


@pytest.fixture
def paused(cluster: PostgresCluster, table: LiteralString) -> Iterator[PostgresCluster]:
    """The cluster with the replay of every standby paused, all of them with the table."""
    try:
        for standby in cluster.standbys:
            standby.pause_replay()
        yield cluster
    finally:
        for standby in cluster.standbys:
            standby.resume_replay()
        cluster.wait_replayed()


@pytest.fixture
def delayed(cluster: PostgresCluster, table: LiteralString) -> Iterator[PostgresCluster]:
    """The cluster with standbys that replay each commit after a delay."""
    try:
        for standby in cluster.standbys:
            standby.lag(DELAY)
        yield cluster
    finally:
        for standby in cluster.standbys:
            standby.lag(0)
        cluster.wait_replayed()


async def insert(router: AsyncRouter, table: LiteralString, value: int = 1) -> None:
    async with router.connection() as connection:
        await connection.execute(f"INSERT INTO {table} VALUES (%s)", [value], prepare=False)


async def read(router: AsyncRouter, table: LiteralString, **options: Any) -> tuple[list[int], int]:
    """What is in the table, and the port of the server that says so."""
    async with router.connection(read_only=True, **options) as connection:
        cursor = await connection.execute(f"SELECT i FROM {table} ORDER BY i", prepare=False)
        return [i for (i,) in await cursor.fetchall()], port(connection)


async def ready(router: AsyncRouter, *, quiet: bool = False) -> None:
    """Have a connection open to every server, for what it serves; and no looks any more where they are far apart."""

    async def opened() -> bool:
        async with router.connection(), router.connection(read_only=True):
            [version] = router.stats().versions
            pools = [version.nodes[0].write, *(node.read for node in version.nodes[1:])]
            return all(pool is not None and pool.idle + pool.in_use for pool in pools)

    await aeventually(opened)

    async def still() -> bool:
        [v1] = inside(router).clusters
        # The last hurried look was decided on within a second after somebody waited, and begins soon after that.
        calm = monotonic() > v1.waiting_at + WAITING + 5 * FAST_INTERVAL
        return calm and all(pause > FAST_INTERVAL for pause in router._snapshot().servers.values())

    if quiet:
        await aeventually(still)


# Reads after writes


async def test_a_session_reads_what_it_wrote_and_others_need_not(paused: PostgresCluster, table: LiteralString) -> None:
    standbys = {standby.port for standby in paused.standbys}
    async with AsyncRouter(settings(**paused.version_settings())) as router:
        await ready(router)
        with router.session() as session:
            assert session.token == ""
            assert (await read(router, table))[1] in standbys
            await insert(router, table)
            assert session.token
            assert await read(router, table) == ([1], paused.primary.port)
            assert (await router.execute(f"SELECT i, current_setting('port')::int FROM {table}")).rows == [
                (1, paused.primary.port)
            ]
            assert router.explain(read_only=True).ask
        rows, where = await read(router, table)
        assert (rows, where in standbys) == ([], True)
        for standby in paused.standbys:
            standby.resume_replay()
        paused.wait_replayed()
        with router.session(session.token):
            rows, where = await read(router, table)
            assert (rows, where in standbys) == ([1], True)


async def test_a_read_waits_for_a_replica_as_long_as_it_is_told_to(
    delayed: PostgresCluster, table: LiteralString
) -> None:
    standbys = {standby.port for standby in delayed.standbys}
    async with AsyncRouter(settings(**delayed.version_settings(), read={"catch_up": 20.0})) as router:
        await ready(router)
        for value in range(3):
            with router.session():
                await insert(router, table, value)
                rows, where = await read(router, table)
                assert value in rows
                assert where in standbys


async def test_then_the_primary_serves_it(paused: PostgresCluster, table: LiteralString) -> None:
    async with AsyncRouter(settings(**paused.version_settings(), read={"catch_up": 0.1})) as router:
        await ready(router)
        with router.session():
            await insert(router, table)
            begun = monotonic()
            assert await read(router, table) == ([1], paused.primary.port)
            assert monotonic() - begun >= 0.1


@pytest.mark.parametrize(("fallback", "catch_up", "waits"), [("wait", 0.0, 0.3), ("error", 0.2, 0.2), ("error", 0, 0)])
async def test_where_the_primary_must_not_serve_reads_they_wait_or_fail(
    paused: PostgresCluster, table: LiteralString, fallback: str, catch_up: float, waits: float
) -> None:
    options = settings(**paused.version_settings(), read={"fallback": fallback, "catch_up": catch_up})
    async with AsyncRouter(options) as router:
        await ready(router)
        with router.session():
            await insert(router, table)
            begun = monotonic()
            with pytest.raises(NoReplica, match="has not yet replayed the required position"):
                await read(router, table, timeout=0.3)
            assert waits <= monotonic() - begun < waits + 2.0


@pytest.mark.parametrize("fallback", ["wait", "error"])
async def test_where_the_primary_must_not_serve_reads_they_wait_for_a_replica(
    delayed: PostgresCluster, table: LiteralString, fallback: str
) -> None:
    options = settings(**delayed.version_settings(), read={"fallback": fallback, "catch_up": 20.0})
    async with AsyncRouter(options) as router:
        await ready(router)
        with router.session():
            await insert(router, table)
            rows, where = await read(router, table, timeout=20.0)
            assert rows == [1]
            assert where in {standby.port for standby in delayed.standbys}


async def commit(connection: AsyncConnection[Any], statement: LiteralString) -> None:
    await connection.execute(statement)
    await connection.commit()


async def transaction(connection: AsyncConnection[Any], statement: LiteralString) -> None:
    async with connection.transaction():
        await connection.execute(statement)


async def autocommit(connection: AsyncConnection[Any], statement: LiteralString) -> None:
    await connection.set_autocommit(True)
    await connection.execute(statement)


@pytest.mark.each_value
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("way", [commit, transaction, autocommit])
async def test_what_a_block_commits_by_itself_is_seen_whatever_becomes_of_the_block(
    paused: PostgresCluster, table: LiteralString, way: Callable[..., Any], fails: bool
) -> None:
    async with AsyncRouter(settings(**paused.version_settings())) as router:
        await ready(router)
        with router.session():
            with suppress(ZeroDivisionError):
                async with router.connection() as connection:
                    await way(connection, f"INSERT INTO {table} VALUES (1)")
                    if fails:
                        raise ZeroDivisionError
            assert await read(router, table) == ([1], paused.primary.port)


async def test_what_run_and_execute_write_is_seen(paused: PostgresCluster, table: LiteralString) -> None:
    async with AsyncRouter(settings(**paused.version_settings())) as router:
        await ready(router)
        with router.session():
            await router.execute(f"INSERT INTO {table} VALUES (1)")
            assert await read(router, table) == ([1], paused.primary.port)
        with router.session():
            await router.run(lambda connection: transaction(connection, f"INSERT INTO {table} VALUES (2)"))
            assert await read(router, table) == ([1, 2], paused.primary.port)


@pytest.mark.parametrize("way", ["raises", "rolls back", "swallows"])
async def test_what_was_rolled_back_is_not_there(paused: PostgresCluster, table: LiteralString, way: str) -> None:
    async with AsyncRouter(settings(**paused.version_settings())) as router:
        with router.session(), suppress(ZeroDivisionError):
            async with router.connection() as connection:
                await connection.execute(f"INSERT INTO {table} VALUES (1)")
                if way == "swallows":
                    with suppress(psycopg.Error):
                        await connection.execute("SELECT 1 / 0")
                elif way == "raises":
                    raise ZeroDivisionError
                else:
                    await connection.rollback()
        assert (await read(router, table))[0] == []


async def test_what_a_block_committed_before_it_went_on_and_failed_is_seen(
    paused: PostgresCluster, table: LiteralString
) -> None:
    async with AsyncRouter(settings(**paused.version_settings())) as router:
        await ready(router)
        with router.session():
            with suppress(ZeroDivisionError):
                async with router.connection() as connection:
                    await commit(connection, f"INSERT INTO {table} VALUES (1)")
                    await connection.execute(f"INSERT INTO {table} VALUES (2)")
                    raise ZeroDivisionError
            assert await read(router, table) == ([1], paused.primary.port)


@pytest.mark.parametrize("before", [False, True])
async def test_while_it_is_not_known_whether_it_wrote_a_session_reads_on_the_primary(
    tapped: Tapped, table: LiteralString, before: bool
) -> None:
    for standby in tapped.cluster.standbys:
        standby.pause_replay()
    try:
        async with AsyncRouter(settings(**tapped.version())) as router:
            await ready(router)
            with router.session() as session:
                tapped.cut(tapped.primary, on="COMMIT", before=before)
                with pytest.raises(TransactionOutcomeUnknown):
                    await insert(router, table)
            with router.session(session.token) as other:

                async def right() -> bool:  # the server acts on what it heard, although nobody waits for its answer
                    return (await read(router, table))[0] == ([] if before else [1])

                await aeventually(right)
                assert (await read(router, table))[1] == tapped.primary.port
                await insert(router, table, 2)
                for standby in tapped.cluster.standbys:
                    standby.resume_replay()
                tapped.cluster.wait_replayed()
                rows, where = await read(router, table)
                assert rows == ([2] if before else [1, 2])
                assert where != tapped.primary.port
                assert other.token != session.token
    finally:
        for standby in tapped.cluster.standbys:
            standby.resume_replay()
        tapped.cluster.wait_replayed()


async def test_a_write_is_no_failure_because_its_position_cannot_be_asked(tapped: Tapped, table: LiteralString) -> None:
    for standby in tapped.cluster.standbys:
        standby.pause_replay()
    try:
        async with AsyncRouter(settings(**tapped.version())) as router:
            await ready(router)
            with router.session():
                tapped.cut(tapped.primary, on="SELECT (pg_current_wal_insert_lsn()", before=True)
                assert (await router.execute(f"INSERT INTO {table} VALUES (1)")).rowcount == 1
                assert tapped.primary.cuts == 1
                assert await read(router, table) == ([1], tapped.primary.port)
    finally:
        for standby in tapped.cluster.standbys:
            standby.resume_replay()
        tapped.cluster.wait_replayed()


# What it costs


async def test_a_write_with_its_token_costs_three_round_trips(tapped: Tapped, table: LiteralString) -> None:
    async with AsyncRouter(settings(**tapped.version())) as router:
        await ready(router)
        with router.session() as session:
            tokens = set()
            for _ in range(8):  # psycopg prepares a statement at its sixth time
                tapped.trips()
                await insert(router, table)
                assert tapped.trips() == (3, 0)
                tokens.add(session.token)
            assert len(tokens) == 8
            insertion = f"INSERT INTO {table} VALUES (2)"
            await router.execute(insertion)
            tapped.trips()
            await router.execute(insertion)
            assert tapped.trips() == (2, 0)


async def test_a_read_costs_one_round_trip_and_one_more_where_a_replica_has_to_be_asked(
    tapped: Tapped, table: LiteralString
) -> None:
    async with AsyncRouter(settings(**tapped.version(), health={"interval": 60.0})) as router:
        await ready(router, quiet=True)
        for way in ("connection", "execute"):
            with router.session() as session:
                await insert(router, table)
                tapped.cluster.wait_replayed()
                tapped.trips()
                for trips in (2, 1, 1):
                    if way == "connection":
                        await read(router, table)
                    else:
                        await router.execute(f"SELECT i FROM {table} LIMIT {trips}")
                    assert tapped.trips(looks=True) == (0, trips)
            # What is known, is known to others, too.
            await read(router, table, after=session.token)
            assert tapped.trips(looks=True) == (0, 1)
            with router.session(session.token):
                await read(router, table)
                assert tapped.trips(looks=True) == (0, 1)


async def test_readers_that_come_at_once_ask_a_replica_once(
    tapped: Tapped, table: LiteralString, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Node] = []
    take, probe = AsyncNodePool.take, verify.probe

    async def slowly(pool: AsyncNodePool) -> AsyncConnection[Any] | None:
        await asleep(0.1)  # so that all have made up their minds to ask before the first one does
        return await take(pool)

    async def noted(in_force: AsyncInForce, pool: AsyncNodePool, connection: AsyncConnection[Any]) -> Any:
        asked.append(pool.node)
        return await probe(in_force, pool, connection)

    options = settings(**tapped.version(), health={"interval": 60.0}, pool={"min_size": 8, "max_size": 8})
    async with AsyncRouter(options) as router:
        await ready(router)

        async def full() -> bool:
            pools = [node.read for node in router.stats().versions[0].nodes[1:]]
            return all(pool is not None and pool.idle == 8 for pool in pools)

        await aeventually(full)
        await ready(router, quiet=True)
        with router.session() as session:
            await insert(router, table)
        tapped.cluster.wait_replayed()
        tapped.trips()
        monkeypatch.setattr(AsyncNodePool, "take", slowly)
        monkeypatch.setattr(verify, "probe", noted)
        await aall_of(*[lambda: read(router, table, after=session.token)] * 8)
        assert tapped.trips() == (0, 8)
        assert asked
        assert len(asked) == len({*asked})


async def test_readers_that_come_at_once_each_ask_a_primary_that_may_be_none_any_more(
    cluster: PostgresCluster, table: LiteralString, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = verify.probe

    async def slowly(in_force: AsyncInForce, pool: AsyncNodePool, connection: AsyncConnection[Any]) -> Any:
        await asleep(0.05)
        return await probe(in_force, pool, connection)

    with Proxy(cluster.primary.host, cluster.primary.port) as older:
        older.hide(b"in_hot_standby")
        options = settings(
            primary=cluster.dsn(host=older.host, port=older.port),
            health={"interval": 60.0},
            pool={"min_size": 4, "max_size": 4, "timeout": 3.0},
        )
        async with AsyncRouter(options) as router:

            async def full() -> bool:
                await read(router, table)
                [node] = router.stats().versions[0].nodes
                return node.read is not None and node.read.idle == 4

            await aeventually(full)
            with router.session() as session:
                await insert(router, table)
            monkeypatch.setattr(verify, "probe", slowly)
            found = await aall_of(*[lambda: read(router, table, after=session.token)] * 4)
            assert [rows for rows, _ in found] == [[1]] * 4


# Tokens


async def test_another_router_sees_what_a_token_was_handed_on_for(
    paused: PostgresCluster, table: LiteralString
) -> None:
    options = settings(**paused.version_settings(), tokens={"key": KEY})
    async with AsyncRouter(options) as one, AsyncRouter(options) as two:
        await ready(two)
        with one.session() as session:
            await insert(one, table)
        assert len(session.token) == 55
        assert (await read(two, table))[0] == []
        assert await read(two, table, after=session.token) == ([1], paused.primary.port)
        with two.session(session.token) as later:
            assert later.token == session.token
            assert await read(two, table) == ([1], paused.primary.port)
            assert (await two.execute(f"SELECT count(*) FROM {table}")).value == 1
        assert (await two.execute(f"SELECT count(*) FROM {table} -- {KEY}", after=session.token)).value == 1
    # The first thing that a router ever does.
    async with AsyncRouter(options) as three:
        assert await read(three, table, after=session.token) == ([1], paused.primary.port)


# A process of its own: reads tokens, and answers how many rows it sees and where.
READER = """
import json, sys
from router import Router, RouterSettings

options = json.loads(sys.argv[1])
with Router(RouterSettings(**options)) as router:
    for line in sys.stdin:
        query, token = line.rstrip().rsplit(" ", 1)
        with router.session(token), router.connection(read_only=True) as connection:
            print(*connection.execute(query).fetchone(), connection.info.port, flush=True)
"""


@contextmanager
def reader(version: dict[str, Any]) -> Iterator[Callable[[str, str], tuple[int, int]]]:
    """Another process that answers a query after a token: with its value, and the port of the server that gave it."""
    options = json.dumps({"versions": {"v1": version}, "default_version": "v1"})
    with subprocess.Popen(
        [sys.executable, "-c", READER, options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        questions, answers = process.stdin, process.stdout
        assert questions is not None
        assert answers is not None

        def ask(query: str, token: str) -> tuple[int, int]:
            questions.write(f"{query} {token}\n")
            questions.flush()
            value, where = answers.readline().split()
            return int(value), int(where)

        yield ask
        questions.close()


async def test_another_process_sees_what_a_token_was_handed_on_for(
    paused: PostgresCluster, table: LiteralString
) -> None:
    async with AsyncRouter(settings(**paused.version_settings())) as router:
        with router.session() as session:
            await insert(router, table)
    with reader(paused.version_settings()) as ask:
        assert ask(f"SELECT count(*) FROM {table}", session.token) == (1, paused.primary.port)


async def test_sessions_in_sessions_see_and_note_what_is_written_in_either(
    paused: PostgresCluster, table: LiteralString
) -> None:
    async with AsyncRouter(settings(**paused.version_settings())) as router:
        await ready(router)
        with router.session() as outer:
            await insert(router, table, 1)
            with router.session() as inner:
                assert await read(router, table) == ([1], paused.primary.port)
                assert inner.token == ""
                await insert(router, table, 2)
            assert inner.token == outer.token
            assert await read(router, table) == ([1, 2], paused.primary.port)
        with router.session() as outer:
            with router.session():
                await insert(router, table, 3)
            assert await read(router, table) == ([1, 2, 3], paused.primary.port)


async def test_a_session_is_of_the_routers_with_its_settings(paused: PostgresCluster, table: LiteralString) -> None:
    options, others = settings(**paused.version_settings()), settings(**paused.version_settings(), max_pools=77)
    async with AsyncRouter(options) as one, AsyncRouter(others) as two:
        await ready(one)
        await ready(two)
        with one.session() as first, two.session() as second:
            await insert(one, table)
            assert (bool(first.token), second.token) == (True, "")
            assert await read(one, table) == ([1], paused.primary.port)
            assert (await read(two, table))[0] == []
            await insert(two, table)
            assert second.token
            assert await read(two, table) == ([1, 1], paused.primary.port)


async def test_a_session_is_no_longer_in_force_after_its_block(paused: PostgresCluster, table: LiteralString) -> None:
    async with AsyncRouter(settings(**paused.version_settings())) as router:
        await ready(router)

        def generate() -> Generator[Session, None, None]:
            with router.session() as session:
                yield session

        generator = generate()
        first = next(generator)
        with router.session() as second:
            generator.close()  # not in the order in which they began
            await insert(router, table)
            assert (first.token, bool(second.token)) == ("", True)
            assert await read(router, table) == ([1], paused.primary.port)
            with pytest.raises(RuntimeError, match="call session"), second:
                pass
        assert CURRENT.get() is None
        assert (await read(router, table))[0] == []


def token(system: int = 0, timeline: int = 1, *, version: str = "v1", key: str | None = KEY) -> str:
    """A token for the very beginning, which everybody has replayed."""
    return Token().at(version, Position(system, timeline, 1)).text(None if key is None else key.encode())


@pytest.mark.parametrize("text", ["damaged", token(key="another key of 16"), token(key=None)])
async def test_a_token_that_cannot_be_read_is_as_the_settings_say(
    cluster: PostgresCluster, table: LiteralString, text: str
) -> None:
    standbys = {standby.port for standby in cluster.standbys}
    async with AsyncRouter(settings(**cluster.version_settings(), tokens={"key": KEY})) as router:
        assert (await read(router, table, after=text))[1] in standbys
        with router.session(text) as session:
            assert session.token == ""
            assert (await read(router, table))[1] in standbys
    async with AsyncRouter(settings(**cluster.version_settings(), tokens={"key": KEY, "foreign": "refuse"})) as router:
        with pytest.raises(TokenRefused):
            await read(router, table, after=text)
        with pytest.raises(TokenRefused):
            router.session(text)
        with pytest.raises(TokenRefused):
            await router.execute("SELECT 1", after=text)
        assert (await read(router, table, after=token()))[0] == []


@pytest.mark.parametrize("known", [True, False])
async def test_a_token_of_another_cluster_is_as_the_settings_say(
    cluster: PostgresCluster, table: LiteralString, known: bool
) -> None:
    standbys = {standby.port for standby in cluster.standbys}
    foreign = token(system=1, key=None)
    async with AsyncRouter(settings(**cluster.version_settings())) as router:
        if known:
            await ready(router)
        assert (await read(router, table, after=foreign))[1] in standbys
        with router.session(foreign):
            assert (await read(router, table))[1] in standbys
    async with AsyncRouter(settings(**cluster.version_settings(), tokens={"foreign": "refuse"})) as router:
        if known:
            await ready(router)
        with pytest.raises(TokenRefused, match="another cluster"):
            await read(router, table, after=foreign)
        with router.session(foreign), pytest.raises(TokenRefused, match="another cluster"):
            await read(router, table)


async def test_a_token_of_another_version_is_as_the_settings_say(
    cluster: PostgresCluster, table: LiteralString
) -> None:
    other = token(version="v2", key=None)
    async with AsyncRouter(settings(**cluster.version_settings())) as router:
        assert (await read(router, table, after=other))[0] == []
    async with AsyncRouter(settings(**cluster.version_settings(), tokens={"foreign": "refuse"})) as router:
        with pytest.raises(TokenRefused, match="has no position of version 'v1'"):
            await read(router, table, after=other)


async def test_a_foreign_token_does_not_stand_in_for_what_the_session_wrote(
    paused: PostgresCluster, table: LiteralString
) -> None:
    async with AsyncRouter(settings(**paused.version_settings())) as router:
        await ready(router)
        with router.session():
            await insert(router, table)
            foreign = token(system=1, key=None)
            assert await read(router, table, after=foreign) == ([1], paused.primary.port)
            with router.session(foreign):
                assert await read(router, table) == ([1], paused.primary.port)


# Accidents


async def test_what_was_written_before_a_failover_is_seen_after_it(make_postgres_cluster: MakeCluster) -> None:
    servers = make_postgres_cluster(version=18, standbys=1)
    old, new = servers.servers
    options = settings(**servers.version_settings(), health={"interval": 0.1}, pool={"timeout": 20.0})
    refusing = settings(
        **servers.version_settings(), health={"interval": 0.1}, pool={"timeout": 20.0}, tokens={"foreign": "refuse"}
    )
    table = replicated(servers)
    async with AsyncRouter(options) as router, AsyncRouter(refusing) as strict:
        await ready(router)
        await ready(strict)
        with router.session() as session:
            await insert(router, table)
            servers.wait_replayed()
            assert (await read(strict, table, after=session.token))[0] == [1]
            await aoutside(old.kill)
            await aoutside(new.promote)
            await insert(router, table, 2)  # which waits until the new primary is seen as one
            assert await read(router, table) == ([1, 2], new.port)
        before = Token.parse(session.token, None).of("v1")
        assert before is not None
        assert before.timeline == 2
        first = token(before.system, 1, key=None)
        await aoutside(old.rejoin, new)

        async def refused() -> bool:
            try:
                await read(strict, table, after=first)
            except TokenRefused as error:
                return "before a failover" in str(error)
            return False

        await aeventually(refused)
        assert await read(router, table, after=first) == ([1, 2], new.port)
        with router.session(first):
            assert await read(router, table) == ([1, 2], new.port)


async def test_a_standby_that_comes_back_at_an_earlier_position_serves_nothing_stale(
    make_postgres_cluster: MakeCluster,
) -> None:
    servers = make_postgres_cluster(version=18, standbys=1)
    [standby] = servers.standbys
    table = replicated(servers)
    standby.execute("CHECKPOINT")  # where it will begin again
    # No look in between tells of it.
    async with AsyncRouter(settings(**servers.version_settings(), health={"interval": 60.0})) as router:
        await ready(router, quiet=True)
        with router.session():
            await insert(router, table)
            servers.wait_replayed()
            assert await read(router, table) == ([1], standby.port)

            def restart() -> None:
                standby.lag(600.0)
                standby.kill()
                standby.start()

            await aoutside(restart)
            assert standby.execute(f"SELECT count(*) FROM {table}") == [(0,)]
            for _ in range(3):
                assert await read(router, table) == ([1], servers.primary.port)
                assert (await router.execute(f"SELECT count(*) FROM {table}")).value == 1


async def test_a_primary_that_turns_out_to_be_a_standby_serves_nothing_stale(
    cluster: PostgresCluster, make_postgres_cluster: MakeCluster, table: LiteralString
) -> None:
    servers = make_postgres_cluster(version=18, standbys=2)
    table = replicated(servers)
    one, two = servers.standbys
    with Proxy(servers.primary.host, servers.primary.port) as address:
        options = settings(
            primary=servers.dsn(port=address.port),
            replicas=[one.dsn()],
            health={"interval": 60.0},
            pool={"timeout": 1.0},
        )
        async with AsyncRouter(options) as router:
            with router.session():
                one.pause_replay()
                two.pause_replay()
                await insert(router, table)
                assert await read(router, table) == ([1], address.port)
                await close_idle(router)
                address.stop()
                address.lead_to(two)
                address.start()
                with pytest.raises(NoReplica):
                    pytest.fail(f"served {await read(router, table)}")


# Many


@pytest.mark.parametrize("many", short_and_long(500, 10_000))
async def test_ten_thousand_reads_after_writes_are_never_stale_and_replicas_serve_some(
    delayed: PostgresCluster, table: LiteralString, many: int
) -> None:
    numbers, stale, served = count(), list[int](), Counter[int]()
    async with AsyncRouter(settings(**delayed.version_settings())) as router:
        await ready(router)

        async def look(value: int) -> None:
            async with router.connection(read_only=True) as connection:
                cursor = await connection.execute(f"SELECT count(*) FROM {table} WHERE i = %s", [value])
                if await cursor.fetchone() != (1,):
                    stale.append(value)
                served[port(connection)] += 1

        async def pairs() -> None:
            while (value := next(numbers)) < many:
                with router.session():
                    await insert(router, table, value)
                    await look(value)
                    if value % 100 == 0:
                        await asleep(1.5 * DELAY)  # as long as replicas need
                        await look(value)

        await aall_of(*[pairs] * 16)
    assert stale == []
    assert sum(served[standby.port] for standby in delayed.standbys) > 0


@pytest.mark.parametrize("many", short_and_long(100, 300))
async def test_pairs_across_two_processes_are_never_stale(
    delayed: PostgresCluster, table: LiteralString, many: int
) -> None:
    standbys, at_standbys = {standby.port for standby in delayed.standbys}, 0
    async with AsyncRouter(settings(**delayed.version_settings())) as router:
        with reader(delayed.version_settings()) as ask:
            for value in range(many):
                with router.session() as session:
                    await insert(router, table, value)
                query = f"SELECT count(*) FROM {table} WHERE i = {value}"
                found, where = ask(query, session.token)
                assert found == 1
                if value % 100 == 0:
                    await asleep(1.5 * DELAY)
                    found, where = ask(query, session.token)
                    assert found == 1
                at_standbys += where in standbys
    assert at_standbys > 0
