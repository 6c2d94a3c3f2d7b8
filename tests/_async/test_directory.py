"""Where tenants live, when that is said at run time."""

from __future__ import annotations

import dataclasses
from contextvars import ContextVar
from functools import partial
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

import psycopg
import pytest

from router import AsyncRouter, RouterClosed, RouterError
from router._async.directory import ASKING, AsyncDirectory
from router._runtime.flags import AFlag
from router.core import sql
from router.core.errors import ConfigError, DirectoryUnavailable, UnknownTenant
from router.core.policies import DirectoryPolicy
from router.core.topology import Home
from tests.proxy import Proxy
from tests.support import PATIENCE, aall_of, aeventually, atogether, new_name, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from router._async.checkout import AsyncCheckout
    from router.testing import PostgresCluster

SECRET = "postgresql://app:correct-horse@db1/app"
FOR_EVER = DirectoryPolicy(ttl=3600.0, unknown_ttl=3600.0)


def read(tenant: str, said: Mapping[str, Any]) -> Home:
    schema = said["schema"]
    if schema == "wrong":
        raise ConfigError(["tenants.acme.schema: there is no such schema"])
    return Home(schema=(schema,) if isinstance(schema, str) else tuple(schema))


def fall_over(tenant: str, said: Mapping[str, Any]) -> Home:
    raise ZeroDivisionError


def soon() -> float:
    return monotonic() + PATIENCE


class Told:
    """A directory in memory, and what was asked of it."""

    def __init__(self, **schemas: str) -> None:
        self.schemas = schemas
        self.asked: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.error: Exception | None = None
        self.go_on = AFlag()
        self.go_on.set()

    async def lookup(self, tenant: str) -> Mapping[str, Any] | None:
        schema, error = self.schemas.get(tenant), self.error  # as they are when it is asked
        self.asked.append(tenant)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.go_on.wait()
        self.at_once -= 1
        if error is not None:
            raise error
        return None if schema is None else {"schema": schema}

    async def was_asked(self, times: int = 1) -> bool:
        return len(self.asked) >= times


class Made:
    """A directory, and what it had forgotten."""

    def __init__(
        self,
        source: Any = None,
        policy: DirectoryPolicy = FOR_EVER,
        reader: Callable[[str, Mapping[str, Any]], Home] = read,
    ) -> None:
        self.forgotten: list[str | None] = []
        self.kept: list[object] = []
        self.moved: list[tuple[str, Home | None]] = []
        self.home: Any = reader
        self.directory = AsyncDirectory(source, self, policy, self, keep=self.kept)  # type: ignore[arg-type]

    def forget(self, tenant: str | None) -> None:
        self.forgotten.append(tenant)

    def borrow(self, version: str | None) -> AsyncCheckout:
        raise NotImplementedError

    async def follow_tenant(self, tenant: str, home: Home | None) -> None:
        self.moved.append((tenant, home))

    async def schema(self, tenant: str, deadline: float | None = None) -> str:
        [schema] = (await self.directory.find(tenant, soon() if deadline is None else deadline)).schema
        return schema

    async def outcome(self, tenant: str) -> str:
        try:
            return await self.schema(tenant)
        except UnknownTenant:
            return "unknown"

    def known(self, tenant: str) -> str | None:
        home = self.directory.known(tenant)
        return None if home is None else home.schema[0]


async def test_one_question_for_all_who_ask_at_once() -> None:
    told = Told(acme="s1")
    told.go_on.clear()
    made = Made(told)

    async def answer() -> list[str]:
        await aeventually(told.was_asked)
        told.go_on.set()
        return []

    async def asking() -> list[str]:
        return await atogether(lambda: made.schema("acme"), 16)

    assert (await aall_of(asking, answer))[0] == ["s1"] * 16
    assert await made.schema("acme") == "s1"
    assert told.asked == ["acme"]
    assert made.forgotten == []


async def test_an_answer_that_came_a_moment_ago_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(acme="s1")
    made = Made(told)
    assert await made.schema("acme") == "s1"
    known, calls = made.directory.known, count()
    # As if the answer had come after this was called.
    monkeypatch.setattr(made.directory, "known", lambda tenant: known(tenant) if next(calls) else None)
    assert await made.schema("acme") == "s1"
    assert told.asked == ["acme"]


async def test_a_plain_function_and_a_dictionary_will_do() -> None:
    assert await Made({"acme": {"schema": "s1"}}.get).schema("acme") == "s1"


class NoDirectory:
    def lookup(self, tenant: str, version: str) -> None:
        pytest.fail("it was asked")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (soon, "soon"),
        (lambda _, *, version: version, "<lambda>"),
        (NoDirectory(), "NoDirectory.lookup"),
        (Told, "Told.lookup"),  # the class, not one of it
        ({"acme": {"schema": SECRET}}, "dict"),
        (SECRET, "str"),
    ],
)
async def test_what_cannot_be_asked_is_no_directory(source: Any, name: str) -> None:
    with pytest.raises(TypeError) as refused:
        AsyncRouter(settings(primary="postgresql://"), directory=source)
    text = (
        "is not a directory: it must be a callable that takes a tenant's key and nothing else, or an object with such a"
    )
    assert f"{name} {text} lookup()" in str(refused.value)
    assert SECRET not in str(refused.value)


async def test_whoever_asks_first_is_nothing_to_the_source() -> None:
    mine: ContextVar[str] = ContextVar("mine", default="nobody's")

    async def lookup(_: str) -> Mapping[str, Any]:
        return {"schema": mine.get()}

    mine.set("the first one's")
    assert await Made(lookup).schema("acme") == "nobody's"


async def test_only_so_many_are_asked_for_at_once() -> None:
    told = Told(**{f"t{number}": f"s{number}" for number in range(20)})
    made = Made(told)
    asked = [partial(made.schema, tenant) for tenant in told.schemas]
    assert await aall_of(*asked) == list(told.schemas.values())
    assert 1 <= told.most_at_once <= ASKING


async def test_a_worker_that_cannot_be_started_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(Told(acme="s1"))

    def fails(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr("router._async.directory.aspawn", fails)
        for number in range(2 * ASKING):
            with pytest.raises(DirectoryUnavailable, match="no worker could be started: can't start new thread"):
                await made.directory.find(f"bad{number}", monotonic() + 0.01)
    assert await made.schema("acme") == "s1"
    await made.directory.close(PATIENCE)


async def test_an_unknown_tenant_is_asked_for_once_a_while() -> None:
    told = Told()
    made = Made(told)
    for _ in range(2):
        with pytest.raises(UnknownTenant, match="unknown tenant 'acme'"):
            await made.schema("acme")
    assert told.asked == ["acme"]
    assert made.directory.stats().unknown == 1

    brief = Made(told, DirectoryPolicy(unknown_ttl=0.01))
    assert await brief.outcome("globex") == "unknown"
    told.schemas["globex"] = "s2"

    async def found() -> bool:
        return await brief.outcome("globex") == "s2"

    await aeventually(found)
    assert brief.directory.stats().unknown == 0


async def test_what_is_out_of_date_is_asked_for_in_the_background() -> None:
    told = Told(acme="s1")
    made = Made(told, DirectoryPolicy(ttl=0.01))
    assert await made.schema("acme") == "s1"
    told.schemas["acme"] = "s2"
    told.go_on.clear()

    async def asked_again() -> bool:
        assert made.known("acme") == "s1"  # nobody waits
        made.directory.tick(monotonic())
        return len(told.asked) == 2

    async def heard() -> bool:  # where it lives is known before that is forgotten
        return made.known("acme") == "s2" and len(made.forgotten) > 1

    await aeventually(asked_again)
    assert made.forgotten == ["acme"]  # once, because it was out of date
    told.go_on.set()
    await aeventually(heard)
    assert made.forgotten[:2] == ["acme", "acme"]  # because it has moved


async def test_a_tenant_that_vanished_unheard_is_refused_once_that_is_known() -> None:
    told = Told(acme="s1")
    made = Made(told)
    assert await made.schema("acme") == "s1"
    del told.schemas["acme"]
    made.directory.changed(None)
    assert made.forgotten == [None]
    assert made.known("acme") == "s1"

    async def refused() -> bool:
        return await made.outcome("acme") == "unknown" and len(made.forgotten) > 1

    await aeventually(refused)
    assert made.forgotten == [None, "acme"]


async def test_after_a_change_the_old_answer_is_not_given_any_more() -> None:
    told = Told(acme="s1")
    made = Made(told)
    assert await made.schema("acme") == "s1"
    told.schemas["acme"] = "s2"
    assert await made.schema("acme") == "s1"
    made.directory.changed("acme")
    assert made.forgotten == ["acme"]
    assert made.known("acme") is None
    assert await made.schema("acme") == "s2"
    del told.schemas["acme"]
    made.directory.changed("acme")
    assert await made.outcome("acme") == "unknown"
    told.schemas["acme"] = "s3"
    made.directory.changed("acme")
    assert await made.schema("acme") == "s3"
    assert told.asked == ["acme"] * 4


@pytest.mark.parametrize("heard", ["acme", None])
async def test_an_answer_that_a_change_overtook_does_not_count(heard: str | None) -> None:
    told = Told(acme="old")
    told.go_on.clear()
    made = Made(told)

    async def change() -> str:
        await aeventually(told.was_asked)
        told.schemas["acme"] = "new"  # the old row has been read
        made.directory.changed(heard)
        told.go_on.set()
        return ""

    assert await aall_of(lambda: made.schema("acme"), change) == ["new", ""]
    assert made.known("acme") == "new"
    assert told.asked == ["acme", "acme"]


async def test_while_the_source_fails_what_is_known_goes_on_working(caplog: pytest.LogCaptureFixture) -> None:
    told = Told(acme="s1", globex="s2")
    made = Made(told)
    assert await made.schema("acme") == "s1"
    told.error = OSError(f"no answer from {SECRET}")
    told.schemas["acme"] = "s3"
    made.directory.changed("acme")
    assert made.directory.stats().unconfirmed == 1
    assert await made.schema("acme") == "s1"
    assert made.known("acme") == "s1"
    with pytest.raises(
        DirectoryUnavailable, match="'globex' lives is not known: the directory could not be read: OSError in "
    ) as e:
        await made.schema("globex")
    stats = made.directory.stats()
    assert (stats.known, stats.unconfirmed) == (1, 1)
    assert stats.failing_for is not None
    assert stats.failing_for < PATIENCE
    assert stats.reason.startswith("the directory could not be read: OSError in test_directory.py, line ")
    assert e.value.__cause__ is None
    told.error = None
    assert await made.schema("globex") == "s2"  # it works again

    async def confirmed() -> bool:
        return made.known("acme") == "s3" and made.forgotten[-1] == "acme"

    await aeventually(confirmed)
    assert made.directory.stats().unconfirmed == 0
    assert (made.directory.stats().failing_for, made.directory.stats().reason) == (None, "")
    assert [record.levelname for record in caplog.records if record.name == "router"] == ["WARNING"]
    assert "correct-horse" not in f"{e.value} {e.value!r} {stats} {caplog.text}"


async def test_a_source_that_fails_is_tried_again_and_again() -> None:
    told = Told(acme="s1")
    made = Made(told)
    assert await made.schema("acme") == "s1"
    told.error = OSError()
    made.directory.changed("acme")
    assert await made.schema("acme") == "s1"

    async def tried_again() -> bool:
        made.directory.tick(monotonic())
        return await told.was_asked(5)

    async def confirmed() -> bool:
        made.directory.tick(monotonic())
        return made.directory.stats().unconfirmed == 0

    await aeventually(tried_again)
    assert made.directory.stats().unconfirmed == 1
    told.error = None
    await aeventually(confirmed)


async def test_those_for_whom_somebody_waits_are_asked_for_first() -> None:
    tenants = ["a", "b", *(f"t{number}" for number in range(ASKING))]
    told = Told(**dict.fromkeys(tenants, "s1"))
    made = Made(told)
    for tenant in tenants:
        await made.schema(tenant)
    told.asked.clear()
    told.go_on.clear()
    made.directory.changed(None)
    for tenant in tenants[2:]:
        assert made.known(tenant) == "s1"
    await aeventually(partial(told.was_asked, ASKING))
    for tenant in ("a", "b"):
        assert made.known(tenant) == "s1"
    made.directory.changed("b")

    async def go_on() -> str:
        async def waited_for() -> bool:
            return made.directory.questions["b"].waiting == 1

        await aeventually(waited_for)
        told.go_on.set()
        return ""

    assert await aall_of(partial(made.schema, "b"), go_on) == ["s1", ""]
    assert told.asked[ASKING] == "b"


async def test_what_is_said_wrongly_of_one_tenant_is_its_fault_only(caplog: pytest.LogCaptureFixture) -> None:
    told = Told(acme="wrong", globex="s2")
    made = Made(told)
    with pytest.raises(DirectoryUnavailable, match=r"the directory's answer is wrong: .*\n.*no such schema"):
        await made.schema("acme")
    assert await made.schema("globex") == "s2"
    told.schemas["globex"] = "wrong"
    made.directory.changed("globex")
    assert made.forgotten[-1:] == ["globex"]
    for _ in range(2):  # where it lived is not where it lives
        with pytest.raises(DirectoryUnavailable, match="the directory's answer is wrong"):
            await made.schema("globex")
    assert [record.message for record in caplog.records if "globex" in record.message] != []
    assert made.directory.stats().failing_for is None
    told.schemas["globex"] = "s3"
    assert await made.schema("globex") == "s3"
    with pytest.raises(DirectoryUnavailable, match=r"lookup\(\) returned a list, not a mapping"):
        await Made(lambda _: []).schema("acme")
    with pytest.raises(DirectoryUnavailable, match="the directory's answer is wrong: ZeroDivisionError in "):
        await Made(told, reader=fall_over).schema("globex")


async def test_who_cannot_wait_spoils_it_for_nobody() -> None:
    told = Told(acme="s1")
    told.go_on.clear()
    made = Made(told)

    async def hurried() -> str:
        with pytest.raises(
            DirectoryUnavailable, match=r"'acme' lives .*: the directory did not answer within 0\.\d* s"
        ):
            await made.schema("acme", monotonic() + 0.05)
        told.go_on.set()
        return ""

    assert await aall_of(lambda: made.schema("acme"), hurried) == ["s1", ""]
    assert told.asked == ["acme"]


async def test_a_silent_source_does_not_use_up_the_time_of_those_who_are_known() -> None:
    told = Told(acme="s1")
    made = Made(told)
    await made.schema("acme")
    told.schemas["acme"] = "s2"
    told.go_on.clear()
    made.directory.changed("acme")
    begun = monotonic()
    assert await made.schema("acme", begun + 0.2) == "s1"
    assert 0.1 <= monotonic() - begun < 0.2
    assert made.known("acme") == "s1"  # now without any waiting
    assert made.directory.stats().unconfirmed == 1
    told.go_on.set()

    async def heard() -> bool:
        return made.known("acme") == "s2" and len(made.forgotten) > 1

    await aeventually(heard)
    assert made.forgotten == ["acme", "acme"]
    assert made.directory.stats().unconfirmed == 0


async def test_nobody_is_asked_for_any_more_when_nobody_waits() -> None:
    told = Told(acme="s1")
    told.go_on.clear()
    made = Made(told)
    for number in range(ASKING + 10):
        with pytest.raises(DirectoryUnavailable):
            await made.schema(f"t{number}", monotonic() + 0.01)
    told.go_on.set()
    assert await made.schema("acme") == "s1"
    # Those that were asked for within their deadline, which are the first ones unless this process had to wait.
    assert len(told.asked) == ASKING + 1
    assert told.asked[-1] == "acme"


async def test_closing_ends_all_waiting() -> None:
    told = Told(acme="s1")
    told.go_on.clear()
    made = Made(told)

    async def ask() -> str:
        with pytest.raises(RouterClosed):
            await made.schema("globex")
        return ""

    async def close() -> str:
        await aeventually(told.was_asked)
        await made.directory.close(0.0)
        return ""

    begun = monotonic()
    await aall_of(ask, close)
    assert monotonic() - begun < PATIENCE / 4
    with pytest.raises(RouterClosed):
        await made.schema("acme")
    told.go_on.set()  # what was asked ends by itself
    await made.directory.close(PATIENCE)


async def test_only_a_source_that_can_list_lists() -> None:
    class Listing(Told):
        async def tenants(self) -> list[str]:
            return sorted(self.schemas)

    made = Made(Listing(b="s1", a="s2"))
    assert await made.directory.tenants() == ["a", "b"]
    assert await Made(Told(a="s1")).directory.tenants() == []


class Table(Made):
    """A directory that reads a table, and a connection to change it by."""

    def __init__(self, dsn: str, *, through: str | None = None) -> None:
        self.schema_name = f'"{new_name()} 5%"'
        self.table = f'{self.schema_name}."my.tenants"'
        looks = {"interval": 0.2, "timeout": 0.3}
        self.router = AsyncRouter(settings(versions={"control": {"primary": through or dsn}}, health=looks))
        self.deaf = False
        super().__init__(policy=dataclasses.replace(FOR_EVER, version="control", table=self.table))
        assert self.directory.table is not None
        self.source = self.directory.table
        self.control = psycopg.connect(dsn, autocommit=True)
        self.do(f"CREATE SCHEMA {self.schema_name}; {sql.tenants_table(self.table)}")

    def borrow(self, version: str | None) -> AsyncCheckout:
        if self.deaf:
            raise psycopg.OperationalError("the network is down")
        return self.router.connection(version=version)

    def do(self, statement: str, *params: object) -> list[tuple[Any, ...]]:
        cursor = self.control.execute(statement.replace("{table}", self.table), params or None)
        return cursor.fetchall() if cursor.description else []

    @property
    def listeners(self) -> list[int]:
        """The backends that have been told to listen."""
        pids = self.do("SELECT pid FROM pg_stat_activity WHERE query = %s", sql.LISTEN_TO_TENANTS)
        return [pid for (pid,) in pids]

    async def hears(self) -> bool:
        """Whether a change made now will be heard; that any may have changed has been."""
        return None in self.forgotten

    async def __aenter__(self) -> Self:
        assert await self.outcome("nobody") == "unknown"
        await aeventually(self.hears)
        return self

    async def __aexit__(self, *_: object) -> None:
        begun = monotonic()
        await self.directory.close(PATIENCE)
        assert await self.router.close(PATIENCE) == 0
        assert monotonic() - begun < 2.0
        self.control.close()


async def seconds_until(table: Table, tenant: str, outcome: str, statement: str) -> float:
    """How long after a statement was committed a tenant is where it is to be."""
    table.do(statement)
    committed = monotonic()

    async def so() -> bool:
        return await table.outcome(tenant) == outcome

    await aeventually(so)
    return monotonic() - committed


async def test_changes_of_a_table_are_heard_within_100_ms(cluster: PostgresCluster) -> None:
    changes = [
        ("acme", "s1", "INSERT INTO {table} (tenant, schema) VALUES ('acme', '{s1}'), ('globex', '{s2}')"),
        ("acme", "s3", "UPDATE {table} SET schema = '{s3}' WHERE tenant = 'acme'"),
        ("initech", "s3", "UPDATE {table} SET tenant = 'initech' WHERE tenant = 'acme'"),
        ("acme", "unknown", "SELECT"),
        ("initech", "unknown", "DELETE FROM {table} WHERE tenant = 'initech'"),
        ("globex", "unknown", "TRUNCATE {table}"),
    ]
    async with Table(cluster.dsn()) as table:
        for tenant, outcome, statement in changes:
            await table.outcome(tenant)  # known, or known not to be there
            assert await seconds_until(table, tenant, outcome, statement) < 0.1
            await table.outcome("globex")


async def test_what_a_row_says(cluster: PostgresCluster) -> None:
    async with Table(cluster.dsn()) as table:
        table.do("ALTER TABLE {table} ADD COLUMN note text")
        table.do("INSERT INTO {table} (tenant, schema, max_connections, role, note) VALUES ('a', '{x,y}', 3, 'r', 'n')")
        table.do("INSERT INTO {table} (tenant) VALUES ('b')")
        for number in range(6):  # as often as it takes to have a statement prepared
            assert await table.source.lookup("a") == {"schema": ["x", "y"], "max_connections": 3, "role": "r"}
            table.do(f"ALTER TABLE {{table}} ADD COLUMN note{number} text")
        assert await table.source.lookup("b") == {}
        assert await table.source.lookup("A") is None
        assert await table.directory.tenants() == ["a", "b"]
        for wrong in (
            "max_connections = 0",
            "min_size = -1",
            "pooling = 'both'",
            "hygiene = 'none'",
            "tenant = NULL",
            "tenant = ''",
            "tenant = 'A'",
            "tenant = E'a\n'",
            "tenant = repeat('a', 49)",
        ):
            with pytest.raises(psycopg.errors.IntegrityError):
                table.do(f"UPDATE {{table}} SET {wrong}")


async def test_a_row_that_is_found_by_another_key_is_not_that_tenants(cluster: PostgresCluster) -> None:
    async with Table(cluster.dsn()) as table:
        # As a collation may find "acme" by "ACME", this type finds a key by any that begins with it.
        table.do('ALTER TABLE {table} DROP CONSTRAINT "my.tenants_tenant_check", ALTER tenant TYPE name')
        key = "a" * 63
        table.do(f"INSERT INTO {{table}} (tenant, schema) VALUES ('{key}', '{{x}}')")
        assert table.do(f"SELECT schema FROM {{table}} WHERE tenant = '{key}b'") == [(["x"],)]
        assert await table.source.lookup(key) == {"schema": ["x"]}
        assert await table.source.lookup(f"{key}b") is None


async def test_a_table_that_is_not_there(cluster: PostgresCluster) -> None:
    async with Table(cluster.dsn()) as table:
        table.do("DROP TABLE {table}")
        with pytest.raises(DirectoryUnavailable, match=r'cannot be read: relation ".*my.tenants" does not exist'):
            await table.schema("acme")
        with pytest.raises(RouterError, match="cannot be read"):
            await table.directory.tenants()


async def test_nobody_gets_a_connection_that_listened(cluster: PostgresCluster) -> None:
    async with Table(cluster.dsn()) as table:
        for _ in range(3):
            await table.source.lookup("acme")
        [pid] = table.listeners
        async with table.router.connection(version="control") as connection:
            assert not connection.autocommit
            assert connection.info.backend_pid != pid
            assert table.router.stats().connections <= 3  # the listener's, this one, the look's
        await table.directory.close(PATIENCE)

        async def gone() -> bool:
            return not table.listeners

        await aeventually(gone)
        with pytest.raises(RouterClosed):
            await table.source.lookup("acme")


async def test_a_listener_that_was_killed_learns_what_it_missed(cluster: PostgresCluster) -> None:
    async with Table(cluster.dsn()) as table:
        table.do("INSERT INTO {table} (tenant, schema) VALUES ('acme', '{s1}'), ('globex', '{s2}')")
        assert await table.schema("acme") == "s1"
        assert await table.schema("globex") == "s2"
        table.deaf = True
        [pid] = table.listeners
        table.do("SELECT pg_terminate_backend(%s, 5000)", pid)
        table.do("DELETE FROM {table} WHERE tenant = 'acme'")
        table.do("UPDATE {table} SET schema = '{s3}' WHERE tenant = 'globex'")
        assert await table.schema("acme") == "s1"  # nobody can have heard, nor ask
        table.forgotten.clear()
        table.deaf = False

        async def right() -> bool:
            assert await table.outcome("globex") in {"s2", "s3"}
            return (await table.outcome("acme"), table.known("globex")) == ("unknown", "s3")

        await aeventually(right)
        await aeventually(table.hears)  # all are forgotten; one alone, too, where its question came before that
        back = "INSERT INTO {table} (tenant, schema) VALUES ('acme', '{s1}')"
        assert await seconds_until(table, "acme", "s1", back) < 0.1


async def test_a_listener_that_the_server_ends_says_why(
    cluster: PostgresCluster, caplog: pytest.LogCaptureFixture
) -> None:
    dsn = psycopg.conninfo.make_conninfo(cluster.dsn(), options="-c idle_session_timeout=200ms")
    async with Table(cluster.dsn(), through=dsn):

        async def says_why() -> bool:
            return "its connection was lost: terminating connection due to idle-session timeout" in caplog.text

        await aeventually(says_why)


async def test_a_server_that_freezes_stops_nobody_for_ever(cluster: PostgresCluster) -> None:
    where = psycopg.conninfo.conninfo_to_dict(cluster.dsn())
    with Proxy(str(where["host"]), int(str(where["port"]))) as proxy:
        through = psycopg.conninfo.make_conninfo(cluster.dsn(), host=proxy.host, port=proxy.port)
        async with Table(cluster.dsn(), through=through) as table:
            table.do("INSERT INTO {table} (tenant, schema) VALUES ('acme', '{s1}')")
            assert await table.schema("acme") == "s1"
            proxy.deaf()
            begun = monotonic()
            with pytest.raises(DirectoryUnavailable):
                await table.schema("globex")
            assert monotonic() - begun < PATIENCE / 2
            assert await table.schema("acme") == "s1"
            table.do("UPDATE {table} SET schema = '{s2}'")
            proxy.forward()

            async def right() -> bool:
                return await table.outcome("acme") == "s2"

            await aeventually(right)


async def test_closing_waits_for_no_lock(cluster: PostgresCluster, caplog: pytest.LogCaptureFixture) -> None:
    async with Table(cluster.dsn()) as table:

        async def ask() -> str:
            with pytest.raises(RouterClosed):
                await table.schema("acme")
            return ""

        async def blocked() -> bool:
            return bool(table.do("SELECT pid FROM pg_locks WHERE NOT granted AND relation = %s::regclass", table.table))

        async def close() -> str:
            await aeventually(blocked)
            begun = monotonic()
            await table.directory.close(PATIENCE)
            assert monotonic() - begun < PATIENCE / 4
            return ""

        table.do("BEGIN; LOCK TABLE {table}")
        await aall_of(ask, close)
        table.do("ROLLBACK")
    assert caplog.text == ""
