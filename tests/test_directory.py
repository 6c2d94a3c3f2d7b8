"""How far the answers of a directory of tenants are believed; and what only asyncio can do to those who ask."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import monotonic, process_time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from router import RouterError
from router._async.directory import ASKING, AsyncDirectory
from router.core import sql
from router.core.directory import KNOWN_MAX, SPREAD, UNKNOWN_MAX, UNUSED_TTLS, Answers, describe_failure
from router.core.errors import DirectoryUnavailable
from router.core.names import quoted
from router.core.policies import DirectoryPolicy
from router.core.topology import TENANT_PATTERN, Home
from tests.support import PATIENCE, aeventually, new_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.testing import PostgresCluster

TTL, UNKNOWN_TTL = 100.0, 10.0
HERE, THERE = Home(database="here"), Home(database="there")


@pytest.fixture
def answers() -> Answers:
    return Answers(DirectoryPolicy(ttl=TTL, unknown_ttl=UNKNOWN_TTL))


def test_an_answer_counts_for_its_time(answers: Answers) -> None:
    assert answers.use("acme", 0.0) == (None, False)
    assert not answers.keep("acme", HERE, 0.0, 0.0)
    assert not answers.keep("globex", HERE, 0.0, 1.0)
    assert answers.use("acme", TTL - 1.0) == (HERE, False)
    assert answers.use("acme", TTL) == (HERE, True)
    assert answers.use("globex", TTL * (1.0 - SPREAD)) == (HERE, True)
    assert not answers.keep("acme", Home(database="here"), TTL, 0.0)
    assert answers.use("acme", TTL) == (HERE, False)
    assert answers.keep("acme", THERE, TTL, 0.0)
    assert answers.keep("acme", None, TTL, 0.0)
    assert not answers.keep("acme", None, TTL, 0.0)


def test_what_is_due_is_told_once(answers: Answers) -> None:
    answers.keep("acme", HERE, 0.0, 0.0)
    assert answers.tick(TTL - 1.0) == []
    assert answers.tick(TTL) == ["acme"]
    assert answers.tick(TTL + 1.0) == []
    answers.keep("acme", HERE, TTL, 0.0)
    assert answers.tick(2 * TTL) == ["acme"]


def test_what_nobody_uses_is_dropped_unless_that_cannot_be_told(answers: Answers) -> None:
    for tenant in ("used", "unused", "unconfirmed"):
        answers.keep(tenant, HERE, 0.0, 0.0)
    answers.mark_unconfirmed("unconfirmed", 0.0)
    answers.keep("unused", HERE, TTL, 0.0)  # that it is kept up to date is no use
    answers.use("used", 1.0)
    answers.tick(UNUSED_TTLS * TTL + 0.5)
    assert answers.tenants == ["used", "unconfirmed"]
    answers.tick(UNUSED_TTLS * TTL + 1.5)
    assert answers.tenants == ["unconfirmed"]


def test_a_doubtful_answer_becomes_due_again_and_again(answers: Answers) -> None:
    answers.keep("acme", HERE, 0.0, 0.0)
    assert answers.mark_unconfirmed("acme", TTL / 2)
    assert answers.tick(TTL) == []
    assert answers.tick(1.5 * TTL) == ["acme"]
    assert answers.mark_unconfirmed("acme", 2 * TTL)
    assert answers.tick(3 * TTL) == ["acme"]
    answers.recover()
    assert answers.tick(3 * TTL) == ["acme"]


def test_known_tenants_are_remembered_but_not_without_end_and_cost_nothing_until_due(answers: Answers) -> None:
    for number in range(KNOWN_MAX):
        answers.keep(f"t{number}", HERE, 0.0, 0.0)
    assert answers.tick(1.0) == []
    assert len(answers.tenants) == KNOWN_MAX
    for number in range(KNOWN_MAX // 2):
        answers.use(f"t{number}", 2.0)
    begun = process_time()
    for _ in range(1000):
        answers.tick(2.0)
    assert process_time() - begun < 1.0  # to walk through all of them takes some 50 times that
    answers.keep("one more", HERE, 3.0, 0.0)
    gone = answers.tick(3.0)
    assert len(answers.tenants) == KNOWN_MAX - KNOWN_MAX // 10
    assert not {"one more", *(f"t{number}" for number in range(KNOWN_MAX // 2))} & {*gone}


def test_unknown_keys_are_remembered_for_a_while_and_not_without_end(answers: Answers) -> None:
    answers.keep("first", None, 0.0, 0.0)
    for number in range(UNKNOWN_MAX - 1):
        answers.keep(f"t{number}", None, 1.0, 0.0)
    assert answers.is_unknown("first", 1.0)
    answers.keep("last", None, 1.0, 0.0)
    assert answers.stats(1.0).unknown == UNKNOWN_MAX
    assert not answers.is_unknown("first", 1.0)
    assert answers.is_unknown("t0", UNKNOWN_TTL)
    assert not answers.is_unknown("t0", UNKNOWN_TTL + 1.0)
    answers.tick(UNKNOWN_TTL + 1.0)
    assert answers.unknown == 0


def test_a_change_makes_an_answer_count_no_more(answers: Answers) -> None:
    answers.keep("acme", HERE, 0.0, 0.0)
    answers.keep("globex", None, 0.0, 0.0)
    answers.mark_changed("acme")
    answers.mark_changed("globex")
    assert answers.use("acme", 0.0) == (None, False)
    assert answers.has("acme")
    assert not answers.is_unknown("globex", 0.0)
    assert answers.stats(0.0).unconfirmed == 1
    assert answers.mark_unconfirmed("acme", 0.0)
    assert not answers.mark_unconfirmed("globex", 0.0)
    assert answers.use("acme", TTL - 1.0) == (HERE, False)
    assert answers.unconfirmed == ["acme"]
    answers.recover()
    assert answers.use("acme", 0.0) == (HERE, True)
    assert answers.tick(0.0) == ["acme"]
    answers.keep("acme", HERE, 0.0, 0.0)
    assert answers.unconfirmed == []


def test_any_change_makes_every_answer_one_to_confirm(answers: Answers) -> None:
    answers.keep("acme", HERE, 0.0, 0.0)
    answers.keep("globex", None, 0.0, 0.0)
    answers.mark_all_changed()
    assert answers.use("acme", 0.0) == (HERE, True)
    assert not answers.is_unknown("globex", 0.0)


def test_errors_in_words() -> None:
    assert describe_failure(RouterError("what the router says")) == "what the router says"
    assert describe_failure(ValueError("password=secret")) == "ValueError"
    assert describe_failure(psycopg.errors.UndefinedTable("password=secret")) == "UndefinedTable (42P01)"
    with pytest.raises(KeyError) as raised:
        {"public": 1}["secret"]
    assert describe_failure(raised.value).startswith("KeyError in test_directory.py, line ")


@pytest.mark.parametrize(
    ("schema", "table"),
    [("", "{}"), ("", '"{}.t"'), ("{}", "{}.t"), ("{} a.b", '"{} a.b"."my.t"'), ('{}"5%', '"{}""5%" . "t"')],
)
def test_a_table_is_made_with_what_tells_of_its_changes(cluster: PostgresCluster, schema: str, table: str) -> None:
    name = new_name()
    schema, table = schema.format(name), table.format(name)
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        if schema:
            connection.execute(f"CREATE SCHEMA {quoted(schema)}")
        connection.execute(sql.tenants_table(table))
        where = connection.execute(
            "SELECT n.nspname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid "
            "JOIN pg_namespace n ON n.oid = p.pronamespace WHERE t.tgrelid = %s::regclass",
            [table],
        )
        assert where.fetchall() == [(schema or "public",)] * 2
        connection.execute(f"INSERT INTO {table} (tenant) VALUES ('b'), ('a')")
        assert connection.execute(sql.tenants_of(table)).fetchall() == [("a",), ("b",)]
        assert len(connection.execute(sql.tenant_of(table), ["a"]).fetchall()) == 1
        connection.execute(f"DROP TABLE {table}")


@pytest.mark.parametrize(("pattern", "taken"), [(TENANT_PATTERN, ["a", "a" * 48]), (r"\w+", ["a", "a" * 48, "A", "-"])])
def test_a_table_holds_keys_that_the_pattern_allows_if_both_read_it_alike(
    cluster: PostgresCluster, pattern: str, taken: list[str]
) -> None:
    table = new_name()
    found = []
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        connection.execute(sql.tenants_table(table, pattern))
        for key in ("a", "a" * 48, "A", "-"):
            with suppress(psycopg.errors.CheckViolation):
                connection.execute(f"INSERT INTO {table} (tenant) VALUES (%s)", [key])
                found.append(key)
        connection.execute(f"DROP TABLE {table}")
    assert found == taken


class Told:
    """A directory in memory that lets one wait."""

    def __init__(self) -> None:
        self.asked = 0
        self.go_on = asyncio.Event()

    async def lookup(self, tenant: str) -> Mapping[str, Any]:
        self.asked += 1
        await self.go_on.wait()
        return {"database": tenant}

    async def was_asked(self) -> bool:
        return self.asked > 0


KEPT: list[object] = []


class Homes:
    def home(self, _: str, said: Mapping[str, Any]) -> Home:
        return Home(**said)

    def forget(self, tenant: str | None) -> None:
        pass

    def borrow(self, version: str | None) -> Any:
        raise NotImplementedError

    async def follow_tenant(self, tenant: str, home: Home | None) -> None:
        pass


def made(source: Any) -> AsyncDirectory:
    return AsyncDirectory(source, Homes(), DirectoryPolicy(), Homes(), keep=KEPT)  # type: ignore[arg-type]


async def test_one_that_is_cancelled_spoils_it_for_nobody() -> None:
    told = Told()
    directory = made(told)
    asking = [asyncio.create_task(directory.find("acme", monotonic() + PATIENCE)) for _ in range(3)]
    await aeventually(told.was_asked)
    asking[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking[0]
    told.go_on.set()
    assert await asyncio.gather(*asking[1:]) == [Home(database="acme")] * 2
    assert told.asked == 1


async def test_when_all_are_cancelled_the_answer_is_kept() -> None:
    told = Told()
    directory = made(told)
    asking = asyncio.create_task(directory.find("acme", monotonic() + PATIENCE))
    await aeventually(told.was_asked)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    told.go_on.set()

    async def known() -> bool:
        return directory.known("acme") is not None

    await aeventually(known)
    assert told.asked == 1


async def test_a_source_that_is_cancelled_gives_no_answer_and_the_next_is_asked() -> None:
    told = Told()
    directory = made(told)
    for _ in range(ASKING):
        told.asked = 0
        asking = asyncio.create_task(directory.find("acme", monotonic() + PATIENCE))
        await aeventually(told.was_asked)
        for task in asyncio.all_tasks():
            if task.get_name().startswith("router looks up tenants"):
                task.cancel()
        with pytest.raises(DirectoryUnavailable, match="asking for it was cancelled"):
            await asking
    told.go_on.set()
    assert await directory.find("acme", monotonic() + PATIENCE) == Home(database="acme")


def test_what_is_known_can_be_told_without_an_event_loop() -> None:
    told = Told()
    told.go_on.set()
    directory = made(told)

    async def find() -> Home:
        return await directory.find("acme", monotonic() + PATIENCE)

    async def asked_again() -> bool:
        directory.tick(monotonic())
        return told.asked == 2

    asyncio.run(find())
    directory.changed(None)
    assert directory.known("acme") == Home(database="acme")
    assert told.asked == 1
    asyncio.run(aeventually(asked_again))
