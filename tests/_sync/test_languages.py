# Generated from tests/_async/test_languages.py by tools/async_to_sync.py: do not edit.
"""Servers speak many languages; what the router does hangs on none of them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import psycopg
import pytest

from router import NoPrimary, PoolExhausted, Router, UnknownTenant
from router._runtime.login import LoginFailed
from router._sync.pool.connection import NodeConnection
from tests.proxy import Proxy
from tests.support import eventually, new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.testing import PostgresCluster

WORDS = "»nobody«: что-то не так 在数据库"


@pytest.fixture
def server(cluster: PostgresCluster) -> Iterator[Proxy]:
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(cluster.primary.host, cluster.primary.port))
        proxy.translate(WORDS)
        yield proxy


@pytest.mark.each_value
@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
@pytest.mark.parametrize("way", ["database", "user", "role", "schema"])
def test_a_tenant_that_is_not_there_is_unknown_in_any_language(
    cluster: PostgresCluster, server: Proxy, way: str, pooling: str
) -> None:
    options = settings(
        primary=cluster.primary.dsn(port=server.port),
        tenancy={"pooling": pooling},
        tenant_template={"version": "v1", way: "{tenant}"},
        read={"fallback": "primary"},
    )
    with Router(options) as router:
        for read_only in (True, False):
            with pytest.raises(UnknownTenant, match="что-то не так"):
                with router.connection(tenant="nobody", read_only=read_only):
                    pytest.fail("there was one")
        with router.connection(version="v1") as connection:  # nobody else is harmed
            connection.execute("SELECT 1")


@pytest.mark.parametrize("sqlstate", ["57P01", "57P02", "57P03"])
def test_a_server_that_starts_up_is_waited_for_in_any_language(
    cluster: PostgresCluster, server: Proxy, sqlstate: str
) -> None:
    with Router(settings(primary=cluster.primary.dsn(port=server.port))) as router:
        with router.connection() as connection:
            connection.execute("SELECT 1")
        server.refuse(sqlstate, WORDS)
        server.stop()
        server.start()  # every session has ended, and nobody gets in

        def is_down() -> bool:
            return router.stats().versions[0].nodes[0].state == "down"

        eventually(is_down)
        with pytest.raises(NoPrimary, match=r"down: FATAL: .*что-то не так"):
            with router.connection(timeout=0.3):
                pytest.fail("there was one")
        server.forward()
        with router.connection() as connection:  # it has waited, and no ban keeps it out
            connection.execute("SELECT 1")


def test_a_server_that_is_full_is_full_in_any_language(cluster: PostgresCluster, server: Proxy) -> None:
    role = new_name()
    run(cluster.primary.dsn(), f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 2")
    dsn = cluster.primary.dsn(port=server.port, user=role)
    with Router(settings(primary=dsn, pool={"max_size": 3})) as router:
        with router.connection() as connection, router.connection():  # that of the probes makes room
            with pytest.raises(PoolExhausted, match=r"accepts no further connection: FATAL: .*что-то не так"):
                with router.connection(timeout=0.5):
                    pytest.fail("there was one")
            connection.execute("SELECT 1")
        assert router.stats().versions[0].nodes[0].state == "up"


@pytest.mark.parametrize(
    ("params", "sqlstate", "routine"),
    [
        ({"dbname": "nobody"}, "3D000", "InitPostgres"),
        ({"user": "nobody"}, "28000", "InitializeSessionUserId"),
        ({"options": "-c role=nobody"}, "22023", "call_string_check_hook"),
    ],
)
def test_libpq_tells_what_a_server_refuses_a_login_with(
    cluster: PostgresCluster, params: dict[str, str], sqlstate: str, routine: str
) -> None:
    with pytest.raises(LoginFailed) as failure:
        NodeConnection.connect(cluster.primary.dsn(**params))
    assert (failure.value.sqlstate, failure.value.routine) == (sqlstate, routine)
    assert str(failure.value).endswith("does not exist")
    connection = NodeConnection.connect(cluster.primary.dsn())
    assert isinstance(connection, psycopg.Connection)
    with pytest.raises(psycopg.Error, match=r"^column") as mistake:
        connection.execute("SELECT nobody")
    assert "LOCATION" not in str(mistake.value)  # it is as talkative as any other by now
    connection.close()
