# Generated from tests/_async/test_spoilt.py by tools/async_to_sync.py: do not edit.
"""Sessions that a borrower has spoilt by what it set there: the next request is served by another."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from router import Router
from tests.support import new_name, one_of_each, run, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router import RouterSettings
    from router.testing import PostgresCluster

SERIALIZABLE = "SET default_transaction_isolation = 'serializable'"  # with which a hot standby runs no statement


@pytest.fixture(scope="module")
def names(cluster: PostgresCluster) -> list[LiteralString]:
    """Two tenants, each a schema with a table."""
    found = [new_name(), new_name()]
    for name in found:
        run(cluster.dsn(), f"CREATE SCHEMA {name}", f"CREATE TABLE {name}.x AS SELECT '{name}' AS name")
    cluster.wait_replayed()
    return found


def pool_of(cluster: PostgresCluster, size: int, **options: Any) -> RouterSettings:
    return settings(primary=cluster.dsn(), replicas=[cluster.standbys[0].dsn()], pool={"max_size": size}, **options)


def tenants(**tenancy: Any) -> dict[str, Any]:
    return {"tenant_template": {"schema": "{tenant}"}, "tenancy": {"pooling": "shared", **tenancy}}


def changes(cluster: PostgresCluster) -> Iterator[tuple[str, str]]:
    """Every setting that a session may change, with unusual values."""
    rows = run(
        cluster.dsn(),
        "SELECT name, vartype, enumvals, min_val, max_val FROM pg_settings WHERE context IN ('user', 'superuser')",
    )
    assert len(rows) > 150
    for name, kind, words, least, most in rows:
        values = {"bool": ["on", "off"], "enum": words, "string": ["", "x"]}.get(kind) or [least, "1", most]
        yield from ((name, value) for value in values)
    for name in ("role", "session_authorization"):
        yield from ((name, value) for value in ("pg_monitor", "none", "default"))
    yield "client_encoding", "SQL_ASCII"
    yield "client_encoding", "SJIS"
    yield "search_path", "nowhere, pg_temp"
    yield "DateStyle", "German"


@pytest.mark.parametrize("read_only", one_of_each([False, True]))
def test_whatever_one_tenant_sets_the_next_is_served(
    cluster: PostgresCluster, names: list[str], read_only: bool
) -> None:
    one, two = names
    failed: list[str] = []
    done = 0
    with Router(pool_of(cluster, 1, **tenants())) as router:
        for name, value in changes(cluster):
            with suppress(psycopg.Error):
                with router.connection(tenant=one, read_only=read_only) as connection:
                    change = sql.SQL("SET {} TO {}").format(sql.Identifier(name), sql.Literal(value))
                    connection.execute(change)
                    done += 1
            try:
                with router.connection(tenant=two, read_only=read_only) as connection:
                    if not read_only:
                        connection.execute("INSERT INTO x VALUES ('written')")
                        connection.execute("DELETE FROM x WHERE name = 'written'")
                    assert connection.execute("SELECT name FROM x").fetchall() == [(two,)]
            except psycopg.Error as error:
                failed.append(f"{name} = {value!r}: {error!r}")
    assert failed == []
    assert done > 200  # the others are refused


@pytest.mark.each_value
@pytest.mark.parametrize("hygiene", ["transaction", "full"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_session_that_a_standby_refuses_everything_serves_nobody(
    cluster: PostgresCluster, names: list[str], size: int, hygiene: str
) -> None:
    one, two = names
    with Router(pool_of(cluster, size, **tenants(hygiene=hygiene))) as router:
        for _ in range(5):
            with router.connection(tenant=one, read_only=True) as connection:
                connection.execute(SERIALIZABLE)
            with router.connection(tenant=two, read_only=True) as connection:
                assert connection.execute("SELECT name FROM x").fetchall() == [(two,)]


@pytest.mark.parametrize("caught", [False, True])
def test_a_versions_session_that_a_standby_refuses_everything_fails_once(
    cluster: PostgresCluster, caught: bool
) -> None:
    with Router(pool_of(cluster, 1)) as router:
        failures = 0
        with router.connection(read_only=True) as connection:
            connection.execute(SERIALIZABLE)
        for _ in range(5):
            try:
                with router.connection(read_only=True) as connection:
                    try:
                        connection.execute("SELECT 1")
                    except psycopg.errors.FeatureNotSupported:
                        if not caught:
                            raise
                        failures += 1
            except psycopg.errors.FeatureNotSupported:
                failures += 1
        assert failures == 1


def test_statements_of_their_own_are_run_again_by_another_session_and_not_by_the_primary(
    cluster: PostgresCluster,
) -> None:
    where = "SELECT pg_is_in_recovery()"
    with Router(pool_of(cluster, 2)) as router:
        for _ in range(3):
            with router.connection(read_only=True) as connection:
                connection.execute(SERIALIZABLE)
            for _ in range(3):
                assert router.execute(where).value is True


def test_a_session_of_reads_is_served_by_another_connection(cluster: PostgresCluster, names: list[str]) -> None:
    with Router(pool_of(cluster, 1)) as router:
        with router.connection(read_only=True) as connection:
            connection.execute(SERIALIZABLE)
        with router.session():
            with router.connection() as connection:
                connection.execute(f"INSERT INTO {names[0]}.x VALUES ('seen')")
            with router.connection(read_only=True) as connection:  # a standby has to be asked how far it is
                cursor = connection.execute(f"SELECT count(*) FROM {names[0]}.x WHERE name = 'seen'")
                assert cursor.fetchall() == [(1,)]
            with router.connection() as connection:
                connection.execute(f"DELETE FROM {names[0]}.x WHERE name = 'seen'")
