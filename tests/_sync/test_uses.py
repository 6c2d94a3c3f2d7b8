# Generated from tests/_async/test_uses.py by tools/async_to_sync.py: do not edit.
"""What keeps a node from being read from says nothing of writing, and the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from router import NoPrimary, NoReplica, Router
from router.core.server_events import LoginRefused, ServerDown, WritesRefused
from tests._sync.internals import close_idle, inside
from tests.proxy import Proxy
from tests.support import all_of, eventually, new_name, outside, run, settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from psycopg import Connection

    from router.core.events import Event
    from router.testing import PostgresCluster
    from router.testing._plugin import MakeCluster
    from tests.conftest import Postgres

FAST = {"interval": 0.1, "ban": 0.01, "ban_max": 0.1}
REFUSES = "refuses writes: default_transaction_read_only is on"


def attempt(router: Router, statement: LiteralString = "SELECT 1", **how: Any) -> None:
    with router.connection(**{"timeout": 20, **how}) as connection:
        connection.execute(statement)


# Refused logins


@pytest.mark.parametrize("read_only", [True, False])
def test_a_session_that_cannot_be_had_for_one_use_says_nothing_of_the_other(
    postgres: Postgres, read_only: bool
) -> None:
    told: list[Event] = []
    fails = [True]

    def configure(connection: Connection[Any]) -> None:
        [value] = connection.execute("SHOW default_transaction_read_only").fetchone() or [""]
        if fails and (value == "on") is read_only:
            raise ValueError("not for this use")

    options = settings(primary=postgres.primary, health=FAST, pool={"max_idle": 0.1})
    with Router(options, configure=configure, observers=[told.append]) as router:
        for _ in range(3):
            with pytest.raises((NoPrimary, NoReplica), match="the configure callable failed"):
                attempt(router, read_only=read_only)
            attempt(router, read_only=not read_only)
            close_idle(router)  # so that the next one needs a session of its own
        [node] = router.stats().versions[0].nodes
        assert node.state == "up"
        assert node.reason.startswith(f"cannot be {'read from' if read_only else 'written to'}: the configure callable")
        refused = [event for event in told if isinstance(event, LoginRefused)]
        assert [event.read_only for event in refused] == [read_only]
        assert not [event for event in told if isinstance(event, ServerDown)]
        fails.clear()

        def works_again() -> bool:
            try:
                attempt(router, read_only=read_only)
            except (NoPrimary, NoReplica):
                return False
            return True

        eventually(works_again)


# default_transaction_read_only


@pytest.fixture(scope="module")
def lone(make_postgres_cluster: MakeCluster) -> PostgresCluster:
    """A primary whose settings are changed."""
    cluster: PostgresCluster = make_postgres_cluster(version=18, standbys=0)
    cluster.primary.execute("CREATE ROLE app LOGIN; GRANT CREATE ON SCHEMA public TO app")
    return cluster


WHERE = ("SYSTEM", "DATABASE postgres", "ROLE app", "ROLE ALL")


def switch(cluster: PostgresCluster, where: str, value: str) -> None:
    """Set or reset it for everybody, a database, a role; as somebody for whom it is off."""
    off = cluster.dsn(options="-c default_transaction_read_only=off")
    change = f"RESET {DEFAULT}" if value == "off" else f"SET {DEFAULT} = on"
    run(off, sql.SQL("ALTER {}").format(sql.SQL(f"{where} {change}")).as_string(None), "SELECT pg_reload_conf()")


DEFAULT = "default_transaction_read_only"


@pytest.fixture(params=WHERE)
def refusing(request: pytest.FixtureRequest, lone: PostgresCluster) -> Iterator[str]:
    yield request.param
    switch(lone, request.param, "off")


@pytest.mark.each_value
@pytest.mark.parametrize("hidden", [False, True])
def test_writes_wait_while_a_primary_refuses_them_by_a_setting(
    lone: PostgresCluster, refusing: str, hidden: bool
) -> None:
    table = new_name()
    insert: Any = f"INSERT INTO {table} VALUES (1)"
    told: list[Event] = []
    run(lone.dsn(user="app"), sql.SQL("CREATE TABLE {} (i int)").format(sql.Identifier(table)).as_string(None))
    with Proxy(lone.primary.host, lone.primary.port) as proxy:
        if hidden:
            proxy.hide(b"default_transaction_read_only")  # as servers before 14 do
        dsn = psycopg.conninfo.make_conninfo(lone.dsn(user="app"), host=proxy.host, port=proxy.port)
        with Router(settings(primary=dsn, health=FAST), observers=[told.append]) as router:
            with router.connection(timeout=20) as connection:
                connection.execute(insert)
                outside(switch, lone, refusing, "on")

                def refuses() -> bool:
                    try:
                        attempt(router, insert, timeout=0.3)
                    except NoPrimary as error:
                        return REFUSES in str(error)
                    except psycopg.errors.ReadOnlySqlTransaction:
                        pass
                    return False

                eventually(refuses)  # a session that was there before may serve until it is needed
                connection.execute(insert)  # nor is a transaction cut that began before
            assert REFUSES in repr(router.explain())
            attempt(router, read_only=True)
            [node] = router.stats().versions[0].nodes
            assert (node.state, node.reason) == ("up", f"cannot be written to: {DEFAULT} is on")
            opened = proxy.accepted

            def write() -> None:
                attempt(router, insert)

            [v1] = inside(router).clusters
            since = v1.waiting_at

            def waits() -> bool:
                return v1.waiting_at > since

            def let_them() -> None:
                eventually(waits)
                outside(switch, lone, refusing, "off")

            all_of(let_them, *[write] * 8)  # nobody fails
            assert proxy.accepted - opened < 200
    if refusing == "SYSTEM":
        changes = [event.refused for event in told if isinstance(event, WritesRefused)]
        assert changes == [True, False]
    else:
        assert [event.read_only for event in told if isinstance(event, LoginRefused)] == [False]


def test_what_a_block_sets_itself_is_no_sign_of_its_server(lone: PostgresCluster) -> None:
    told: list[Event] = []
    with Router(settings(primary=lone.dsn(), health=FAST), observers=[told.append]) as router:
        for statement in ("SET default_transaction_read_only = on", "SET TRANSACTION READ ONLY"):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                with router.connection(timeout=20) as connection:
                    connection.execute(statement)
                    connection.commit()
                    connection.execute("SET LOCAL transaction_read_only = on; CREATE TABLE never ()")
            attempt(router, "SELECT pg_current_xact_id()")
    assert not [event for event in told if isinstance(event, (WritesRefused, LoginRefused))]


# target_session_attrs


@pytest.mark.parametrize("where", ["environment", "service"])
def test_target_session_attrs_from_elsewhere_hinder_no_session(
    cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    told: list[Event] = []
    primary = cluster.dsn()
    if where == "environment":
        monkeypatch.setenv("PGTARGETSESSIONATTRS", "read-write")
    else:
        (tmp_path / "services").write_text("[app]\ntarget_session_attrs=read-write\n")
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
        primary = psycopg.conninfo.make_conninfo(primary, service="app")
    options = settings(primary=primary, replicas=[cluster.standbys[0].dsn()], read={"fallback": "primary"})
    with Router(options, observers=[told.append]) as router:
        attempt(router)
        attempt(router, read_only=True)
    with Router(settings(primary=primary), observers=[told.append]) as router:
        attempt(router, read_only=True)
        attempt(router)
    assert not [event for event in told if isinstance(event, (ServerDown, LoginRefused))]
