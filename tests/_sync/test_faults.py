# Generated from tests/_async/test_faults.py by tools/async_to_sync.py: do not edit.
"""Connections that break, slow down or come back, seen from a block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from router import Router
from router.events import LoginRefused, RequestFailed, ServerDown
from router.testing import PostgresCluster
from tests.proxy import Proxy
from tests.support import all_of, conflicts, eventually, new_name, port, run, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router._sync.pool.node_pool import NodePool
    from router.events import Event
    from tests.conftest import Postgres

pytestmark = pytest.mark.docker  # but for the last two, which have servers of their own


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[Proxy]:
    where = psycopg.conninfo.conninfo_to_dict(postgres.primary)
    with Proxy(str(where["host"]), int(str(where["port"]))) as proxy:
        yield proxy


@pytest.fixture
def dsn(postgres: Postgres, proxy: Proxy) -> str:
    return psycopg.conninfo.make_conninfo(postgres.primary, host=proxy.host, port=proxy.port)


def works(router: Router, *, read_only: bool) -> bool:
    try:
        with router.connection(read_only=read_only) as connection:
            return (connection.execute("SELECT 1").fetchone()) == (1,)
    except psycopg.OperationalError:
        return False


@pytest.mark.parametrize("read_only", [False, True])
def test_an_answer_cut_in_the_middle_is_a_typed_error_and_the_next_request_is_served(
    dsn: str, proxy: Proxy, read_only: bool
) -> None:
    with Router(settings(primary=dsn, pool={"max_size": 1})) as router:
        assert works(router, read_only=read_only)
        proxy.cut_after(1000)
        with pytest.raises(psycopg.OperationalError):
            with router.connection(read_only=read_only) as broken:
                broken.execute("SELECT repeat('x', 100000)")
        assert proxy.cuts == 1
        assert broken.closed
        with router.connection(read_only=read_only) as connection:
            assert (connection.execute("SELECT 1").fetchone()) == (1,)
        assert router.stats().connections == 2  # the other one looks at the server


def test_a_connection_cut_before_its_commit_arrives_has_written_nothing(
    postgres: Postgres, dsn: str, proxy: Proxy
) -> None:
    table = new_name()
    run(postgres.primary, f"CREATE TABLE {table} (i int)")
    with Router(settings(primary=dsn)) as router:
        proxy.cut_on(b"COMMIT", before=True)
        with pytest.raises(psycopg.OperationalError):
            with router.connection() as connection:
                connection.execute(f"INSERT INTO {table} VALUES (1)")
        with router.connection() as connection:
            connection.execute(f"INSERT INTO {table} VALUES (2)")
    assert run(postgres.primary, f"SELECT i FROM {table}") == [(2,)]


def test_a_slow_server_is_waited_for(dsn: str, proxy: Proxy) -> None:
    proxy.slow(0.02)
    with Router(settings(primary=dsn)) as router:
        assert works(router, read_only=False)
        assert works(router, read_only=True)
        assert {node.state for node in router.stats().versions[0].nodes} == {"up"}


@pytest.mark.parametrize("read_only", [False, True])
def test_idle_connections_that_have_died_harm_nobody(dsn: str, proxy: Proxy, read_only: bool) -> None:
    with Router(settings(primary=dsn, pool={"max_size": 4}, health={"interval": 3600})) as router:
        with router.connection(read_only=read_only), router.connection(read_only=read_only):
            pass
        proxy.stop()
        proxy.start()
        assert [works(router, read_only=read_only) for _ in range(4)] == [True] * 4


def test_a_connection_that_has_died_is_not_handed_to_whoever_waits(dsn: str, proxy: Proxy) -> None:
    with Router(settings(primary=dsn, pool={"max_size": 1}, health={"interval": 3600})) as router:
        has: list[NodePool] = []

        def leave_it_dead() -> None:
            with (borrowed := router.connection(read_only=True)) as connection:
                connection.execute("SELECT 1")
                has.append(borrowed.pool)

                def is_waited_for() -> bool:
                    return bool(has[0].waiting)

                eventually(is_waited_for)
                proxy.stop()
                proxy.start()

        def wait() -> None:
            def is_out() -> bool:
                return bool(has)

            eventually(is_out)
            assert works(router, read_only=True)

        all_of(leave_it_dead, wait)


def test_after_an_outage_the_node_is_used_again(dsn: str, proxy: Proxy) -> None:
    options = settings(primary=dsn, health={"interval": 0.05}, pool={"max_size": 2, "timeout": 2.0})
    with Router(options) as router:
        with router.connection(), router.connection():
            pass
        proxy.stop()
        assert not works(router, read_only=False)  # one of the two connections it had is found dead

        def down() -> bool:
            return router.stats().versions[0].nodes[0].reason == "Connection refused"

        eventually(down)
        assert not works(router, read_only=False)
        proxy.start()

        def up() -> bool:
            return router.stats().versions[0].nodes[0].state == "up"

        eventually(up)
        assert works(router, read_only=False)  # by a new connection: the other one is gone


def test_a_replica_lost_under_load_costs_only_what_was_in_flight(cluster: PostgresCluster) -> None:
    one, two = cluster.standbys
    with Proxy(one.host, one.port) as proxy:
        through = psycopg.conninfo.make_conninfo(one.dsn(), host=proxy.host, port=proxy.port)
        with Router(settings(primary=cluster.dsn(), replicas=[through, two.dsn()])) as router:
            served: set[int] = set()

            def both() -> bool:
                with router.connection(read_only=True) as connection:
                    served.add(port(connection))
                return served == {proxy.port, two.port}

            eventually(both)
            proxy.stop()

            def noticed() -> bool:
                works(router, read_only=True)
                return any(node.state == "down" for node in router.stats().versions[0].nodes)

            eventually(noticed)
            for _ in range(50):
                with router.connection(read_only=True) as connection:
                    assert (connection.execute("SELECT 1").fetchone()) == (1,)
                    assert port(connection) == two.port


def test_a_login_that_recovery_cancels_refuses_nothing_and_puts_no_server_down() -> None:
    events: list[Event] = []
    impatient: dict[str, Any] = {"max_standby_streaming_delay": 0}
    with PostgresCluster(version=18, standbys=1, settings=impatient) as cluster, conflicts(cluster):
        options = settings(**cluster.version_settings(), read={"fallback": "wait"}, health={"interval": 0.05})
        with Router(options, observers=[events.append]) as router:

            def cancelled() -> bool:
                with router.connection(read_only=True) as connection:
                    assert port(connection) == cluster.standbys[0].port
                    connection.close()  # the next block needs another login
                return sum(one.failed for one in router.stats().totals) >= 5

            eventually(cancelled)
    assert not [event for event in events if isinstance(event, LoginRefused | ServerDown | RequestFailed)]
