# Generated from tests/_async/test_directory.py by tools/async_to_sync.py: do not edit.
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

from router import Router, RouterClosed, RouterError
from router._runtime.flags import Flag
from router._sync.directory import ASKING, Directory
from router.core import sql
from router.core.errors import ConfigError, DirectoryUnavailable, UnknownTenant
from router.core.policies import DirectoryPolicy
from router.core.topology import Home
from tests.proxy import Proxy
from tests.support import PATIENCE, all_of, eventually, new_name, settings, together

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from router._sync.checkout import Checkout
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
        self.go_on = Flag()
        self.go_on.set()

    def lookup(self, tenant: str) -> Mapping[str, Any] | None:
        schema, error = self.schemas.get(tenant), self.error  # as they are when it is asked
        self.asked.append(tenant)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.go_on.wait()
        self.at_once -= 1
        if error is not None:
            raise error
        return None if schema is None else {"schema": schema}

    def was_asked(self, times: int = 1) -> bool:
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
        self.directory = Directory(source, self, policy, self, keep=self.kept)  # type: ignore[arg-type]

    def forget(self, tenant: str | None) -> None:
        self.forgotten.append(tenant)

    def borrow(self, version: str | None) -> Checkout:
        raise NotImplementedError

    def follow_tenant(self, tenant: str, home: Home | None) -> None:
        self.moved.append((tenant, home))

    def schema(self, tenant: str, deadline: float | None = None) -> str:
        [schema] = self.directory.find(tenant, soon() if deadline is None else deadline).schema
        return schema

    def outcome(self, tenant: str) -> str:
        try:
            return self.schema(tenant)
        except UnknownTenant:
            return "unknown"

    def known(self, tenant: str) -> str | None:
        home = self.directory.known(tenant)
        return None if home is None else home.schema[0]


def test_one_question_for_all_who_ask_at_once() -> None:
    told = Told(acme="s1")
    told.go_on.clear()
    made = Made(told)

    def answer() -> list[str]:
        eventually(told.was_asked)
        told.go_on.set()
        return []

    def asking() -> list[str]:
        return together(lambda: made.schema("acme"), 16)

    assert all_of(asking, answer)[0] == ["s1"] * 16
    assert made.schema("acme") == "s1"
    assert told.asked == ["acme"]
    assert made.forgotten == []


def test_an_answer_that_came_a_moment_ago_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(acme="s1")
    made = Made(told)
    assert made.schema("acme") == "s1"
    known, calls = made.directory.known, count()
    # As if the answer had come after this was called.
    monkeypatch.setattr(made.directory, "known", lambda tenant: known(tenant) if next(calls) else None)
    assert made.schema("acme") == "s1"
    assert told.asked == ["acme"]


def test_a_plain_function_and_a_dictionary_will_do() -> None:
    assert Made({"acme": {"schema": "s1"}}.get).schema("acme") == "s1"


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
def test_what_cannot_be_asked_is_no_directory(source: Any, name: str) -> None:
    with pytest.raises(TypeError) as refused:
        Router(settings(primary="postgresql://"), directory=source)
    text = (
        "is not a directory: it must be a callable that takes a tenant's key and nothing else, or an object with such a"
    )
    assert f"{name} {text} lookup()" in str(refused.value)
    assert SECRET not in str(refused.value)


def test_whoever_asks_first_is_nothing_to_the_source() -> None:
    mine: ContextVar[str] = ContextVar("mine", default="nobody's")

    def lookup(_: str) -> Mapping[str, Any]:
        return {"schema": mine.get()}

    mine.set("the first one's")
    assert Made(lookup).schema("acme") == "nobody's"


def test_only_so_many_are_asked_for_at_once() -> None:
    told = Told(**{f"t{number}": f"s{number}" for number in range(20)})
    made = Made(told)
    asked = [partial(made.schema, tenant) for tenant in told.schemas]
    assert all_of(*asked) == list(told.schemas.values())
    assert 1 <= told.most_at_once <= ASKING


def test_a_worker_that_cannot_be_started_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(Told(acme="s1"))

    def fails(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr("router._sync.directory.spawn", fails)
        for number in range(2 * ASKING):
            with pytest.raises(DirectoryUnavailable, match="no worker could be started: can't start new thread"):
                made.directory.find(f"bad{number}", monotonic() + 0.01)
    assert made.schema("acme") == "s1"
    made.directory.close(PATIENCE)


def test_an_unknown_tenant_is_asked_for_once_a_while() -> None:
    told = Told()
    made = Made(told)
    for _ in range(2):
        with pytest.raises(UnknownTenant, match="unknown tenant 'acme'"):
            made.schema("acme")
    assert told.asked == ["acme"]
    assert made.directory.stats().unknown == 1

    brief = Made(told, DirectoryPolicy(unknown_ttl=0.01))
    assert brief.outcome("globex") == "unknown"
    told.schemas["globex"] = "s2"

    def found() -> bool:
        return brief.outcome("globex") == "s2"

    eventually(found)
    assert brief.directory.stats().unknown == 0


def test_what_is_out_of_date_is_asked_for_in_the_background() -> None:
    told = Told(acme="s1")
    made = Made(told, DirectoryPolicy(ttl=0.01))
    assert made.schema("acme") == "s1"
    told.schemas["acme"] = "s2"
    told.go_on.clear()

    def asked_again() -> bool:
        assert made.known("acme") == "s1"  # nobody waits
        made.directory.tick(monotonic())
        return len(told.asked) == 2

    def heard() -> bool:  # where it lives is known before that is forgotten
        return made.known("acme") == "s2" and len(made.forgotten) > 1

    eventually(asked_again)
    assert made.forgotten == ["acme"]  # once, because it was out of date
    told.go_on.set()
    eventually(heard)
    assert made.forgotten[:2] == ["acme", "acme"]  # because it has moved


def test_a_tenant_that_vanished_unheard_is_refused_once_that_is_known() -> None:
    told = Told(acme="s1")
    made = Made(told)
    assert made.schema("acme") == "s1"
    del told.schemas["acme"]
    made.directory.changed(None)
    assert made.forgotten == [None]
    assert made.known("acme") == "s1"

    def refused() -> bool:
        return made.outcome("acme") == "unknown" and len(made.forgotten) > 1

    eventually(refused)
    assert made.forgotten == [None, "acme"]


def test_after_a_change_the_old_answer_is_not_given_any_more() -> None:
    told = Told(acme="s1")
    made = Made(told)
    assert made.schema("acme") == "s1"
    told.schemas["acme"] = "s2"
    assert made.schema("acme") == "s1"
    made.directory.changed("acme")
    assert made.forgotten == ["acme"]
    assert made.known("acme") is None
    assert made.schema("acme") == "s2"
    del told.schemas["acme"]
    made.directory.changed("acme")
    assert made.outcome("acme") == "unknown"
    told.schemas["acme"] = "s3"
    made.directory.changed("acme")
    assert made.schema("acme") == "s3"
    assert told.asked == ["acme"] * 4


@pytest.mark.parametrize("heard", ["acme", None])
def test_an_answer_that_a_change_overtook_does_not_count(heard: str | None) -> None:
    told = Told(acme="old")
    told.go_on.clear()
    made = Made(told)

    def change() -> str:
        eventually(told.was_asked)
        told.schemas["acme"] = "new"  # the old row has been read
        made.directory.changed(heard)
        told.go_on.set()
        return ""

    assert all_of(lambda: made.schema("acme"), change) == ["new", ""]
    assert made.known("acme") == "new"
    assert told.asked == ["acme", "acme"]


def test_while_the_source_fails_what_is_known_goes_on_working(caplog: pytest.LogCaptureFixture) -> None:
    told = Told(acme="s1", globex="s2")
    made = Made(told)
    assert made.schema("acme") == "s1"
    told.error = OSError(f"no answer from {SECRET}")
    told.schemas["acme"] = "s3"
    made.directory.changed("acme")
    assert made.directory.stats().unconfirmed == 1
    assert made.schema("acme") == "s1"
    assert made.known("acme") == "s1"
    with pytest.raises(
        DirectoryUnavailable, match="'globex' lives is not known: the directory could not be read: OSError in "
    ) as e:
        made.schema("globex")
    stats = made.directory.stats()
    assert (stats.known, stats.unconfirmed) == (1, 1)
    assert stats.failing_for is not None
    assert stats.failing_for < PATIENCE
    assert stats.reason.startswith("the directory could not be read: OSError in test_directory.py, line ")
    assert e.value.__cause__ is None
    told.error = None
    assert made.schema("globex") == "s2"  # it works again

    def confirmed() -> bool:
        return made.known("acme") == "s3" and made.forgotten[-1] == "acme"

    eventually(confirmed)
    assert made.directory.stats().unconfirmed == 0
    assert (made.directory.stats().failing_for, made.directory.stats().reason) == (None, "")
    assert [record.levelname for record in caplog.records if record.name == "router"] == ["WARNING"]
    assert "correct-horse" not in f"{e.value} {e.value!r} {stats} {caplog.text}"


def test_a_source_that_fails_is_tried_again_and_again() -> None:
    told = Told(acme="s1")
    made = Made(told)
    assert made.schema("acme") == "s1"
    told.error = OSError()
    made.directory.changed("acme")
    assert made.schema("acme") == "s1"

    def tried_again() -> bool:
        made.directory.tick(monotonic())
        return told.was_asked(5)

    def confirmed() -> bool:
        made.directory.tick(monotonic())
        return made.directory.stats().unconfirmed == 0

    eventually(tried_again)
    assert made.directory.stats().unconfirmed == 1
    told.error = None
    eventually(confirmed)


def test_those_for_whom_somebody_waits_are_asked_for_first() -> None:
    tenants = ["a", "b", *(f"t{number}" for number in range(ASKING))]
    told = Told(**dict.fromkeys(tenants, "s1"))
    made = Made(told)
    for tenant in tenants:
        made.schema(tenant)
    told.asked.clear()
    told.go_on.clear()
    made.directory.changed(None)
    for tenant in tenants[2:]:
        assert made.known(tenant) == "s1"
    eventually(partial(told.was_asked, ASKING))
    for tenant in ("a", "b"):
        assert made.known(tenant) == "s1"
    made.directory.changed("b")

    def go_on() -> str:
        def waited_for() -> bool:
            return made.directory.questions["b"].waiting == 1

        eventually(waited_for)
        told.go_on.set()
        return ""

    assert all_of(partial(made.schema, "b"), go_on) == ["s1", ""]
    assert told.asked[ASKING] == "b"


def test_what_is_said_wrongly_of_one_tenant_is_its_fault_only(caplog: pytest.LogCaptureFixture) -> None:
    told = Told(acme="wrong", globex="s2")
    made = Made(told)
    with pytest.raises(DirectoryUnavailable, match=r"the directory's answer is wrong: .*\n.*no such schema"):
        made.schema("acme")
    assert made.schema("globex") == "s2"
    told.schemas["globex"] = "wrong"
    made.directory.changed("globex")
    assert made.forgotten[-1:] == ["globex"]
    for _ in range(2):  # where it lived is not where it lives
        with pytest.raises(DirectoryUnavailable, match="the directory's answer is wrong"):
            made.schema("globex")
    assert [record.message for record in caplog.records if "globex" in record.message] != []
    assert made.directory.stats().failing_for is None
    told.schemas["globex"] = "s3"
    assert made.schema("globex") == "s3"
    with pytest.raises(DirectoryUnavailable, match=r"lookup\(\) returned a list, not a mapping"):
        Made(lambda _: []).schema("acme")
    with pytest.raises(DirectoryUnavailable, match="the directory's answer is wrong: ZeroDivisionError in "):
        Made(told, reader=fall_over).schema("globex")


def test_who_cannot_wait_spoils_it_for_nobody() -> None:
    told = Told(acme="s1")
    told.go_on.clear()
    made = Made(told)

    def hurried() -> str:
        with pytest.raises(
            DirectoryUnavailable, match=r"'acme' lives .*: the directory did not answer within 0\.\d* s"
        ):
            made.schema("acme", monotonic() + 0.05)
        told.go_on.set()
        return ""

    assert all_of(lambda: made.schema("acme"), hurried) == ["s1", ""]
    assert told.asked == ["acme"]


def test_a_silent_source_does_not_use_up_the_time_of_those_who_are_known() -> None:
    told = Told(acme="s1")
    made = Made(told)
    made.schema("acme")
    told.schemas["acme"] = "s2"
    told.go_on.clear()
    made.directory.changed("acme")
    begun = monotonic()
    assert made.schema("acme", begun + 0.2) == "s1"
    assert 0.1 <= monotonic() - begun < 0.2
    assert made.known("acme") == "s1"  # now without any waiting
    assert made.directory.stats().unconfirmed == 1
    told.go_on.set()

    def heard() -> bool:
        return made.known("acme") == "s2" and len(made.forgotten) > 1

    eventually(heard)
    assert made.forgotten == ["acme", "acme"]
    assert made.directory.stats().unconfirmed == 0


def test_nobody_is_asked_for_any_more_when_nobody_waits() -> None:
    told = Told(acme="s1")
    told.go_on.clear()
    made = Made(told)
    for number in range(ASKING + 10):
        with pytest.raises(DirectoryUnavailable):
            made.schema(f"t{number}", monotonic() + 0.01)
    told.go_on.set()
    assert made.schema("acme") == "s1"
    # Those that were asked for within their deadline, which are the first ones unless this process had to wait.
    assert len(told.asked) == ASKING + 1
    assert told.asked[-1] == "acme"


def test_closing_ends_all_waiting() -> None:
    told = Told(acme="s1")
    told.go_on.clear()
    made = Made(told)

    def ask() -> str:
        with pytest.raises(RouterClosed):
            made.schema("globex")
        return ""

    def close() -> str:
        eventually(told.was_asked)
        made.directory.close(0.0)
        return ""

    begun = monotonic()
    all_of(ask, close)
    assert monotonic() - begun < PATIENCE / 4
    with pytest.raises(RouterClosed):
        made.schema("acme")
    told.go_on.set()  # what was asked ends by itself
    made.directory.close(PATIENCE)


def test_only_a_source_that_can_list_lists() -> None:
    class Listing(Told):
        def tenants(self) -> list[str]:
            return sorted(self.schemas)

    made = Made(Listing(b="s1", a="s2"))
    assert made.directory.tenants() == ["a", "b"]
    assert Made(Told(a="s1")).directory.tenants() == []


class Table(Made):
    """A directory that reads a table, and a connection to change it by."""

    def __init__(self, dsn: str, *, through: str | None = None) -> None:
        self.schema_name = f'"{new_name()} 5%"'
        self.table = f'{self.schema_name}."my.tenants"'
        looks = {"interval": 0.2, "timeout": 0.3}
        self.router = Router(settings(versions={"control": {"primary": through or dsn}}, health=looks))
        self.deaf = False
        super().__init__(policy=dataclasses.replace(FOR_EVER, version="control", table=self.table))
        assert self.directory.table is not None
        self.source = self.directory.table
        self.control = psycopg.connect(dsn, autocommit=True)
        self.do(f"CREATE SCHEMA {self.schema_name}; {sql.tenants_table(self.table)}")

    def borrow(self, version: str | None) -> Checkout:
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

    def hears(self) -> bool:
        """Whether a change made now will be heard; that any may have changed has been."""
        return None in self.forgotten

    def __enter__(self) -> Self:
        assert self.outcome("nobody") == "unknown"
        eventually(self.hears)
        return self

    def __exit__(self, *_: object) -> None:
        begun = monotonic()
        self.directory.close(PATIENCE)
        assert self.router.close(PATIENCE) == 0
        assert monotonic() - begun < 2.0
        self.control.close()


def seconds_until(table: Table, tenant: str, outcome: str, statement: str) -> float:
    """How long after a statement was committed a tenant is where it is to be."""
    table.do(statement)
    committed = monotonic()

    def so() -> bool:
        return table.outcome(tenant) == outcome

    eventually(so)
    return monotonic() - committed


def test_changes_of_a_table_are_heard_within_100_ms(cluster: PostgresCluster) -> None:
    changes = [
        ("acme", "s1", "INSERT INTO {table} (tenant, schema) VALUES ('acme', '{s1}'), ('globex', '{s2}')"),
        ("acme", "s3", "UPDATE {table} SET schema = '{s3}' WHERE tenant = 'acme'"),
        ("initech", "s3", "UPDATE {table} SET tenant = 'initech' WHERE tenant = 'acme'"),
        ("acme", "unknown", "SELECT"),
        ("initech", "unknown", "DELETE FROM {table} WHERE tenant = 'initech'"),
        ("globex", "unknown", "TRUNCATE {table}"),
    ]
    with Table(cluster.dsn()) as table:
        for tenant, outcome, statement in changes:
            table.outcome(tenant)  # known, or known not to be there
            assert seconds_until(table, tenant, outcome, statement) < 0.1
            table.outcome("globex")


def test_what_a_row_says(cluster: PostgresCluster) -> None:
    with Table(cluster.dsn()) as table:
        table.do("ALTER TABLE {table} ADD COLUMN note text")
        table.do("INSERT INTO {table} (tenant, schema, max_connections, role, note) VALUES ('a', '{x,y}', 3, 'r', 'n')")
        table.do("INSERT INTO {table} (tenant) VALUES ('b')")
        for number in range(6):  # as often as it takes to have a statement prepared
            assert table.source.lookup("a") == {"schema": ["x", "y"], "max_connections": 3, "role": "r"}
            table.do(f"ALTER TABLE {{table}} ADD COLUMN note{number} text")
        assert table.source.lookup("b") == {}
        assert table.source.lookup("A") is None
        assert table.directory.tenants() == ["a", "b"]
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


def test_a_row_that_is_found_by_another_key_is_not_that_tenants(cluster: PostgresCluster) -> None:
    with Table(cluster.dsn()) as table:
        # As a collation may find "acme" by "ACME", this type finds a key by any that begins with it.
        table.do('ALTER TABLE {table} DROP CONSTRAINT "my.tenants_tenant_check", ALTER tenant TYPE name')
        key = "a" * 63
        table.do(f"INSERT INTO {{table}} (tenant, schema) VALUES ('{key}', '{{x}}')")
        assert table.do(f"SELECT schema FROM {{table}} WHERE tenant = '{key}b'") == [(["x"],)]
        assert table.source.lookup(key) == {"schema": ["x"]}
        assert table.source.lookup(f"{key}b") is None


def test_a_table_that_is_not_there(cluster: PostgresCluster) -> None:
    with Table(cluster.dsn()) as table:
        table.do("DROP TABLE {table}")
        with pytest.raises(DirectoryUnavailable, match=r'cannot be read: relation ".*my.tenants" does not exist'):
            table.schema("acme")
        with pytest.raises(RouterError, match="cannot be read"):
            table.directory.tenants()


def test_nobody_gets_a_connection_that_listened(cluster: PostgresCluster) -> None:
    with Table(cluster.dsn()) as table:
        for _ in range(3):
            table.source.lookup("acme")
        [pid] = table.listeners
        with table.router.connection(version="control") as connection:
            assert not connection.autocommit
            assert connection.info.backend_pid != pid
            assert table.router.stats().connections <= 3  # the listener's, this one, the look's
        table.directory.close(PATIENCE)

        def gone() -> bool:
            return not table.listeners

        eventually(gone)
        with pytest.raises(RouterClosed):
            table.source.lookup("acme")


def test_a_listener_that_was_killed_learns_what_it_missed(cluster: PostgresCluster) -> None:
    with Table(cluster.dsn()) as table:
        table.do("INSERT INTO {table} (tenant, schema) VALUES ('acme', '{s1}'), ('globex', '{s2}')")
        assert table.schema("acme") == "s1"
        assert table.schema("globex") == "s2"
        table.deaf = True
        [pid] = table.listeners
        table.do("SELECT pg_terminate_backend(%s, 5000)", pid)
        table.do("DELETE FROM {table} WHERE tenant = 'acme'")
        table.do("UPDATE {table} SET schema = '{s3}' WHERE tenant = 'globex'")
        assert table.schema("acme") == "s1"  # nobody can have heard, nor ask
        table.forgotten.clear()
        table.deaf = False

        def right() -> bool:
            assert table.outcome("globex") in {"s2", "s3"}
            return (table.outcome("acme"), table.known("globex")) == ("unknown", "s3")

        eventually(right)
        eventually(table.hears)  # all are forgotten; one alone, too, where its question came before that
        back = "INSERT INTO {table} (tenant, schema) VALUES ('acme', '{s1}')"
        assert seconds_until(table, "acme", "s1", back) < 0.1


def test_a_listener_that_the_server_ends_says_why(cluster: PostgresCluster, caplog: pytest.LogCaptureFixture) -> None:
    dsn = psycopg.conninfo.make_conninfo(cluster.dsn(), options="-c idle_session_timeout=200ms")
    with Table(cluster.dsn(), through=dsn):

        def says_why() -> bool:
            return "its connection was lost: terminating connection due to idle-session timeout" in caplog.text

        eventually(says_why)


def test_a_server_that_freezes_stops_nobody_for_ever(cluster: PostgresCluster) -> None:
    where = psycopg.conninfo.conninfo_to_dict(cluster.dsn())
    with Proxy(str(where["host"]), int(str(where["port"]))) as proxy:
        through = psycopg.conninfo.make_conninfo(cluster.dsn(), host=proxy.host, port=proxy.port)
        with Table(cluster.dsn(), through=through) as table:
            table.do("INSERT INTO {table} (tenant, schema) VALUES ('acme', '{s1}')")
            assert table.schema("acme") == "s1"
            proxy.deaf()
            begun = monotonic()
            with pytest.raises(DirectoryUnavailable):
                table.schema("globex")
            assert monotonic() - begun < PATIENCE / 2
            assert table.schema("acme") == "s1"
            table.do("UPDATE {table} SET schema = '{s2}'")
            proxy.forward()

            def right() -> bool:
                return table.outcome("acme") == "s2"

            eventually(right)


def test_closing_waits_for_no_lock(cluster: PostgresCluster, caplog: pytest.LogCaptureFixture) -> None:
    with Table(cluster.dsn()) as table:

        def ask() -> str:
            with pytest.raises(RouterClosed):
                table.schema("acme")
            return ""

        def blocked() -> bool:
            return bool(table.do("SELECT pid FROM pg_locks WHERE NOT granted AND relation = %s::regclass", table.table))

        def close() -> str:
            eventually(blocked)
            begun = monotonic()
            table.directory.close(PATIENCE)
            assert monotonic() - begun < PATIENCE / 4
            return ""

        table.do("BEGIN; LOCK TABLE {table}")
        all_of(ask, close)
        table.do("ROLLBACK")
    assert caplog.text == ""
