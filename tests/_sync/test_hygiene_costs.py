# Generated from tests/_async/test_hygiene_costs.py by tools/async_to_sync.py: do not edit.
"""What it costs to reset a version's session, what becomes of one that cannot be reset, and where that is set."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg
import pytest
from psycopg import Connection

from router import ConfigError, Router
from tests._sync.test_hygiene import LOCK, RESETS, left, one
from tests.support import eventually, settings

if TYPE_CHECKING:
    from router import RouterSettings
    from router._runtime.calls import Function
    from router.testing import PostgresCluster
    from tests.conftest import Postgres
    from tests.tapped import Tapped

    Leaving: TypeAlias = Function[[Connection[Any]], object]


# What it costs, counted at the socket


def behind(tapped: Tapped, hygiene: str) -> RouterSettings:
    return one(tapped.version()["primary"], hygiene, health={"interval": 3600})


def trips(tapped: Tapped, router: Router, leaving: Leaving, *, read_only: bool) -> int:
    """How many round trips a block costs, after one that is the same."""
    for _ in range(2):
        tapped.trips()
        with router.connection(read_only=read_only) as connection:
            leaving(connection)
    return tapped.trips()[0]


def nothing(connection: Connection[Any]) -> None:
    del connection


def harmless(connection: Connection[Any]) -> None:
    connection.execute("SELECT 1", prepare=False)


def local(connection: Connection[Any]) -> None:
    connection.execute("SELECT set_config('app.tenant', %s, true)", ["acme"], prepare=False)


def locking(connection: Connection[Any]) -> None:
    connection.execute(LOCK, prepare=False)


def copying(connection: Connection[Any]) -> None:
    with connection.cursor().copy("COPY (SELECT 1) TO STDOUT") as copy:
        for _ in copy:
            pass


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(("hygiene", "clean", "traced"), [("transaction", 0, 0), ("auto", 0, 1), ("full", 1, 1)])
def test_a_reset_costs_one_round_trip(tapped: Tapped, hygiene: str, read_only: bool, clean: int, traced: int) -> None:
    statement = 1 if read_only else 3
    with Router(behind(tapped, hygiene)) as router:
        assert trips(tapped, router, nothing, read_only=read_only) == clean
        for leaving in (harmless, local):
            assert trips(tapped, router, leaving, read_only=read_only) == statement + clean
        for leaving in (locking, copying):
            assert trips(tapped, router, leaving, read_only=read_only) == statement + traced
        assert trips(tapped, router, harmless, read_only=read_only) == statement + clean


def test_statements_stay_prepared_as_long_as_nothing_is_reset(postgres: Postgres) -> None:
    def prepared_ones(router: Router) -> int:
        for _ in range(8):  # psycopg prepares a statement when it comes the sixth time
            with router.connection() as connection:
                connection.execute("SELECT 7")
        with router.connection() as connection:
            row = (connection.execute("SELECT count(*) FROM pg_prepared_statements", prepare=False)).fetchone()
            assert row is not None
            return int(row[0])

    with Router(one(postgres.primary, "auto")) as router:
        assert prepared_ones(router) == 1
        with router.connection() as connection:
            connection.execute("SELECT 7")
            connection.execute(LOCK)
        assert prepared_ones(router) == 1  # anew
    with Router(one(postgres.primary, "full")) as router:
        assert prepared_ones(router) == 0


def test_what_configure_has_set_is_no_trace(postgres: Postgres) -> None:
    def configure(connection: Connection[Any]) -> None:
        connection.execute("SET work_mem = '9MB'")
        connection.execute("SET application_name = 'configured'")

    with Router(one(postgres.primary, "auto"), configure=configure) as router:
        for _ in range(3):
            assert left(router)[3] == "9MB"
        with router.connection() as connection:
            connection.execute(LOCK)
        assert left(router)[3] == "4MB"  # a reset goes back to what the session began with


# What becomes of a session that cannot be reset


@pytest.mark.parametrize("hygiene", RESETS)
def test_a_connection_that_dies_when_it_is_reset_is_nobodys_error(tapped: Tapped, hygiene: str) -> None:
    with Router(behind(tapped, hygiene)) as router:
        pid = left(router)[0]
        tapped.cut(tapped.primary, on="DISCARD SEQUENCES", before=True)
        with router.connection() as connection:
            connection.execute(LOCK)

        def is_another() -> bool:
            with suppress(psycopg.OperationalError):
                return bool(left(router)[0] != pid)
            return False

        assert eventually(is_another)
        tapped.cut(tapped.primary, on="DISCARD SEQUENCES", before=True)
        with pytest.raises(ZeroDivisionError):
            with router.connection() as connection:
                connection.execute(LOCK)
                raise ZeroDivisionError
        [node] = router.stats().versions[0].nodes
        assert node.write is not None
        assert node.write.in_use == 0


@pytest.mark.parametrize("hygiene", RESETS)
def test_a_connection_that_dies_when_it_is_reset_was_not_lost_in_its_block(tapped: Tapped, hygiene: str) -> None:
    calls = []

    def fail(connection: Connection[Any]) -> None:
        calls.append(connection)
        connection.execute(LOCK)
        raise psycopg.errors.UniqueViolation

    with Router(behind(tapped, hygiene)) as router:
        tapped.cut(tapped.primary, on="DISCARD SEQUENCES", before=True)
        with pytest.raises(psycopg.errors.UniqueViolation):
            router.run(fail, retries=3)
        assert len(calls) == 1  # a transaction is run again if its connection was lost
        assert not calls[0].broken


@pytest.mark.parametrize("hygiene", RESETS)
def test_a_server_that_does_not_answer_a_reset_keeps_nobody_waiting(tapped: Tapped, hygiene: str) -> None:
    with Router(behind(tapped, hygiene)) as router:
        pid = left(router)[0]
        tapped.primary.forget_on(b"DISCARD SEQUENCES")
        with router.connection() as connection:
            connection.execute(LOCK)
        tapped.primary.forward()

        def is_another() -> bool:
            with suppress(psycopg.OperationalError):
                return bool(left(router)[0] != pid)
            return False

        assert eventually(is_another)


@pytest.mark.parametrize("hygiene", RESETS)
def test_a_session_that_a_standby_refuses_every_statement_serves_nobody(cluster: PostgresCluster, hygiene: str) -> None:
    options = settings(
        primary=cluster.dsn(), replicas=[cluster.standbys[0].dsn()], pool={"max_size": 1, "hygiene": hygiene}
    )
    with Router(options) as router:
        for _ in range(3):
            with router.connection(read_only=True) as connection:
                connection.execute("SET default_transaction_isolation = 'serializable'")
            with router.connection(read_only=True) as connection:
                connection.execute("SELECT 1")


# Where it is set


def test_a_version_may_differ(postgres: Postgres) -> None:
    versions = {
        "v1": {"primary": postgres.primary},
        "v2": {"primary": postgres.primary, "pool": {"hygiene": "transaction"}},
    }
    with Router(settings(versions=versions, pool={"max_size": 1, "hygiene": "auto"})) as router:
        for version, expected in (("v1", "4MB"), ("v2", "7MB")):
            with router.connection(version=version) as connection:
                connection.execute("SET work_mem = '7MB'")
            assert left(router, version=version)[3] == expected


@pytest.mark.parametrize("hygiene", RESETS)
@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
def test_tenants_go_by_what_is_said_of_tenants(tapped: Tapped, pooling: str, hygiene: str) -> None:
    options = one(
        tapped.version()["primary"],
        hygiene,
        health={"interval": 3600},
        tenant_template={"row": "app.tenant"},
        tenancy={"pooling": pooling},
    )
    with Router(options) as router:
        for _ in range(3):
            with router.connection(tenant="acme", read_only=True) as connection:
                tapped.trips()
                connection.execute("SET work_mem = '7MB'")
            assert tapped.trips() == (1, 0)
        assert left(router, tenant="acme", read_only=True)[3] == "7MB"


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
