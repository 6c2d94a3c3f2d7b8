"""One address that leads to several standbys: what is known of one is true of the connections to that one only."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from router import AsyncRouter
from router.core.server_events import SeveralServers
from tests._async.internals import inside
from tests.proxy import Proxy
from tests.support import aeventually, aoutside, new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.core.events import Event
    from router.testing import PostgresCluster, PostgresServer

FAST = {"interval": 0.1, "ban": 0.01}


@contextmanager
def balanced(*servers: PostgresServer) -> Iterator[str]:
    """An address each connection to which leads to the next of several servers."""
    with Proxy(servers[0].host, servers[0].port) as proxy:
        proxy.lead_to(*servers)
        yield psycopg.conninfo.make_conninfo(servers[0].dsn(), host=proxy.host, port=proxy.port)


async def test_it_is_noticed_and_told_once(cluster: PostgresCluster) -> None:
    told: list[Event] = []
    with balanced(*cluster.standbys) as address:
        options = settings(primary=cluster.dsn(), replicas=[address], pool={"min_size": 2}, health=FAST)
        async with AsyncRouter(options, observers=[told.append]) as router:
            async with router.connection(read_only=True, timeout=20):
                pass

            async def is_told() -> bool:
                return any(isinstance(event, SeveralServers) for event in told)

            await aeventually(is_told)
            replica = router.stats().versions[0].nodes[1]
            assert (replica.state, replica.reason) == ("up", "several servers answer at this address")
            assert "several servers answer at this address" in repr(router.explain(read_only=True))
            for _ in range(8):  # which matters to nobody who reads without further ado
                async with router.connection(read_only=True) as connection:
                    assert connection.info.port == replica.node.server.port
    assert [event.server for event in told if isinstance(event, SeveralServers)] == [replica.node.server]


@pytest.mark.parametrize("limit", ["session", "request", "version"])
async def test_what_has_to_be_seen_is_seen_whichever_server_a_connection_leads_to(
    cluster: PostgresCluster, limit: str
) -> None:
    table = new_name()
    count: Any = f"SELECT count(*) FROM {table}"
    run(cluster.dsn(), sql.SQL("CREATE TABLE {} (i int)").format(sql.Identifier(table)).as_string(None))
    cluster.wait_replayed()
    stopped = cluster.standbys[1]
    with balanced(*cluster.standbys) as address:
        read = {"max_lag": 0.2} if limit == "version" else {}
        pool = {"min_size": 4}
        options = settings(primary=cluster.dsn(), replicas=[address], pool=pool, read=read, health=FAST)
        async with AsyncRouter(options) as router:
            how: dict[str, Any] = {"read_only": True, "timeout": 20}
            if limit == "request":
                how["max_lag"] = 0.2

            async def rows() -> tuple[int, int]:
                async with router.connection(**how) as connection:
                    found = await (await connection.execute(count)).fetchone()
                    assert found is not None
                    return found[0], connection.info.port

            await rows()

            async def is_full() -> bool:
                return all(pool.at_max_size or pool.idle >= 4 for pool in router._snapshot().pools if pool.read_only)

            await aeventually(is_full)
            await aoutside(stopped.pause_replay)
            try:
                [(replayed,)] = stopped.execute("SELECT (pg_last_wal_replay_lsn() - '0/0')::bigint")
                with router.session():
                    async with router.connection() as connection:
                        await connection.execute(f"INSERT INTO {table} VALUES (1)")
                    if limit == "session":
                        assert [(await rows())[0] for _ in range(20)] == [1] * 20
                await aoutside(cluster.standbys[0].wait_replayed)

                async def is_behind() -> bool:  # by more than it may be, as of the last probes
                    health, nodes = inside(router).clusters.health, router.stats().versions[0].nodes
                    primary, replica = (health[node.node.server] for node in nodes)
                    return any(
                        position > replayed and replica.position_at - at > 0.2 for at, position in primary.history
                    )

                if limit != "session":
                    await aeventually(is_behind)
                    assert [(await rows())[0] for _ in range(20)] == [1] * 20
            finally:
                await aoutside(stopped.resume_replay)
    cluster.wait_replayed()
