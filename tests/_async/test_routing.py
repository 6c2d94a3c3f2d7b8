"""Which server a request reaches, and what it may do there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest

from router import AsyncRouter, NoPrimary, NoReplica, Role, RouterClosed, RouterSettings, UnknownVersion
from router._async import acquire
from router.core.events import PoolClosed, PoolOpened
from tests._async.internals import inside
from tests.proxy import Proxy
from tests.support import aeventually, atogether, new_name, port, run, settings

if TYPE_CHECKING:
    from router.core.events import Event
    from router.testing import PostgresCluster
    from tests.conftest import Postgres


def refused(dsn: str) -> str:
    """The same connection string, on a port where nothing listens."""
    return psycopg.conninfo.make_conninfo(dsn, host="127.0.0.1", port=1)


async def read_port(router: AsyncRouter, version: str | None = None) -> int:
    async with router.connection(version=version, read_only=True) as connection:
        await connection.execute("SELECT 1")
        return port(connection)


@pytest.mark.docker
async def test_a_write_commits_and_a_read_sees_it(postgres: Postgres) -> None:
    table = new_name()
    async with AsyncRouter(settings(**postgres.settings())) as router:
        async with router.connection() as connection:
            await connection.execute(f"CREATE TABLE {table} (i int)")
            await connection.execute(f"INSERT INTO {table} VALUES (42)")

        async def visible() -> bool:
            async with router.connection(read_only=True) as connection:
                cursor = await connection.execute("SELECT to_regclass(%s) IS NOT NULL", [table])
                return (await cursor.fetchone()) == (True,)

        await aeventually(visible)
        async with router.connection(read_only=True) as connection:
            cursor = await connection.execute(f"SELECT i FROM {table}")
            assert await cursor.fetchall() == [(42,)]


@pytest.mark.docker
async def test_an_error_in_the_block_rolls_back(postgres: Postgres) -> None:
    table = new_name()
    run(postgres.primary, f"CREATE TABLE {table} (i int)")
    async with AsyncRouter(settings(**postgres.settings())) as router:
        with pytest.raises(ZeroDivisionError):
            async with router.connection() as connection:
                await connection.execute(f"INSERT INTO {table} VALUES (1)")
                raise ZeroDivisionError
    assert run(postgres.primary, f"SELECT count(*) FROM {table}") == [(0,)]


async def test_writes_go_to_the_primary_and_reads_to_the_replicas(cluster: PostgresCluster) -> None:
    async with AsyncRouter(settings(**cluster.version_settings())) as router:
        async with router.connection() as connection:
            assert port(connection) == cluster.primary.port
            assert isinstance(connection, psycopg.AsyncConnection)

        async def both() -> bool:
            return set(await atogether(lambda: read_port(router), 8)) == {s.port for s in cluster.standbys}

        await aeventually(both)


@pytest.mark.each_value
@pytest.mark.parametrize("where", ["standby", "primary"])
@pytest.mark.parametrize("form", ["INSERT", "CTE", "function", "nextval"])
async def test_the_server_refuses_a_write_in_a_read(cluster: PostgresCluster, where: str, form: str) -> None:
    name = new_name()
    statements: dict[str, LiteralString] = {
        "INSERT": f"INSERT INTO {name} VALUES (1)",
        "CTE": f"WITH new AS (INSERT INTO {name} VALUES (1) RETURNING i) SELECT i FROM new",
        "function": f"SELECT {name}_write()",
        "nextval": f"SELECT nextval('{name}_s')",
    }
    run(
        cluster.dsn(),
        f"CREATE TABLE {name} (i int)",
        f"CREATE SEQUENCE {name}_s",
        f"CREATE FUNCTION {name}_write() RETURNS void LANGUAGE sql AS 'INSERT INTO {name} VALUES (1)'",
    )
    cluster.wait_replayed()
    replicas = [standby.dsn() for standby in cluster.standbys] if where == "standby" else []
    async with AsyncRouter(settings(primary=cluster.dsn(), replicas=replicas)) as router:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as raised:
            async with router.connection(read_only=True) as connection:
                cursor = await connection.execute("SELECT pg_is_in_recovery()")
                assert await cursor.fetchone() == (where == "standby",)
                await connection.execute(statements[form])
        assert raised.value.sqlstate == "25006"
    assert run(cluster.dsn(), f"SELECT count(*), (SELECT is_called FROM {name}_s) FROM {name}") == [(0, False)]


@pytest.mark.docker
async def test_round_trips(postgres: Postgres) -> None:
    table = new_name()
    run(postgres.primary, f"CREATE TABLE {table} (i int PRIMARY KEY)", f"INSERT INTO {table} VALUES (1)")
    where = psycopg.conninfo.conninfo_to_dict(postgres.primary)
    with Proxy(str(where["host"]), int(str(where["port"]))) as proxy:
        dsn = psycopg.conninfo.make_conninfo(postgres.primary, host=proxy.host, port=proxy.port)
        # Looks are round trips, too.
        async with AsyncRouter(settings(primary=dsn, health={"interval": 3600})) as router:
            await read_port(router)  # opens the connection
            async with router.connection():
                pass
            reads, writes = [], []
            for number in range(2, 5):  # looks that are on their way still add to the first
                proxy.round_trips = 0
                async with router.connection(read_only=True) as connection:
                    await connection.execute(f"SELECT i FROM {table} WHERE i = %s", [1])
                reads.append(proxy.round_trips)
                proxy.round_trips = 0
                async with router.connection() as connection:
                    await connection.execute(f"INSERT INTO {table} VALUES (%s)", [number])
                writes.append(proxy.round_trips)
            assert min(reads) == 1
            assert min(writes) == 3  # BEGIN, INSERT, COMMIT


async def test_several_versions_and_aliases(cluster: PostgresCluster) -> None:
    one, two = cluster.standbys
    versions = {"v1": {"nodes": one.dsn()}, "v2": {"nodes": two.dsn()}}
    router = AsyncRouter(settings(versions=versions, aliases={"stable": "v1", "next": "v2"}))
    async with router:
        assert await read_port(router, "v1") == await read_port(router, "stable") == one.port
        assert await read_port(router, "v2") == await read_port(router, "next") == two.port
        assert await read_port(router) == one.port
        with pytest.raises(UnknownVersion, match=r"'v3'.*known: next, stable, v1, v2"):
            router.connection(version="v3")
        with pytest.raises(UnknownVersion, match="did you mean 'stable'"):
            router.connection(version="stabel")


async def test_no_version_without_a_default_is_an_error(cluster: PostgresCluster) -> None:
    two = {"v1": cluster.dsn(), "v2": cluster.dsn()}
    async with AsyncRouter(RouterSettings(versions=two)) as router:
        with pytest.raises(UnknownVersion, match="no default_version"):
            router.connection()


async def test_a_single_version_is_the_default(cluster: PostgresCluster) -> None:
    async with AsyncRouter(RouterSettings(versions={"v1": cluster.dsn()})) as router:
        assert (await router.execute("SELECT 1")).value == 1
        assert router.explain().target.version == "v1"


async def test_roles_are_discovered(cluster: PostgresCluster) -> None:
    nodes = [server.dsn() for server in reversed(cluster.servers)]
    async with AsyncRouter(settings(nodes=nodes)) as router:
        assert "role unknown, not probed yet" in repr(router.explain())
        async with router.connection() as connection:
            assert port(connection) == cluster.primary.port

        async def both() -> bool:
            return set(await atogether(lambda: read_port(router), 8)) == {s.port for s in cluster.standbys}

        await aeventually(both)
        [version] = router.stats().versions
        roles = {node.node.server.port: node.role for node in version.nodes}
        assert roles == {s.port: Role.REPLICA for s in cluster.standbys} | {cluster.primary.port: Role.PRIMARY}
        assert {node.server_version // 10000 for node in version.nodes} == {18}


async def test_a_primary_that_is_a_standby_is_not_written_to(cluster: PostgresCluster) -> None:
    one, two = cluster.standbys
    async with AsyncRouter(settings(primary=one.dsn(), replicas=[two.dsn()])) as router:
        with pytest.raises(NoPrimary, match="is a replica"):
            async with router.connection(timeout=2):
                pytest.fail("a standby was handed out for writing")
        assert await read_port(router) in {one.port, two.port}


async def test_a_read_falls_back_to_the_primary(cluster: PostgresCluster) -> None:
    async with AsyncRouter(settings(primary=cluster.dsn(), replicas=[refused(cluster.dsn())])) as router:
        assert await read_port(router) == cluster.primary.port
        lines = repr(router.explain(read_only=True)).splitlines()
        assert lines[0] == "Route to v1 for reading"
        assert lines[1].endswith("primary, up")
        assert lines[2].endswith("replica, down: Connection refused")


async def test_a_read_that_may_not_fall_back_fails(cluster: PostgresCluster) -> None:
    options = settings(primary=cluster.dsn(), replicas=[refused(cluster.dsn())], read={"fallback": "error"})
    async with AsyncRouter(options) as router:
        with pytest.raises(NoReplica) as raised:
            await read_port(router)
        assert raised.value.version == "v1"
        assert raised.value.attempts == 1
        assert set(raised.value.refused.values()) == {
            "replica, down: Connection refused",
            "is the primary, and read.fallback is 'error'",
        }
        async with router.connection() as connection:
            assert port(connection) == cluster.primary.port


async def test_the_only_node_is_not_read_from_once_it_turns_out_to_be_the_primary(cluster: PostgresCluster) -> None:
    async with AsyncRouter(settings(nodes=cluster.dsn(), read={"fallback": "error"})) as router:
        for _ in range(2):
            with pytest.raises(NoReplica, match=r"is the primary, and read\.fallback"):
                await read_port(router)


async def test_a_read_that_waits_is_served_when_a_replica_comes_back(cluster: PostgresCluster) -> None:
    standby = cluster.standbys[0]
    proxy = Proxy(standby.host, standby.port)
    with proxy:
        dsn = psycopg.conninfo.make_conninfo(standby.dsn(), host=proxy.host, port=proxy.port)
        proxy.stop()
        options = settings(primary=cluster.dsn(), replicas=[dsn], read={"fallback": "wait"}, health={"interval": 0.05})
        async with AsyncRouter(options) as router:
            with pytest.raises(NoReplica):
                async with router.connection(read_only=True, timeout=0.3):
                    pytest.fail("there was no replica")
            proxy.start()
            async with router.connection(read_only=True, timeout=20) as connection:
                assert port(connection) == proxy.port


async def test_no_primary_names_what_each_node_said(cluster: PostgresCluster) -> None:
    options = settings(primary=refused(cluster.dsn()), replicas=[cluster.standbys[0].dsn()])
    async with AsyncRouter(options) as router:
        with pytest.raises(NoPrimary) as raised:
            async with router.connection(timeout=2):
                pytest.fail("there was no primary")
        assert isinstance(raised.value, psycopg.OperationalError)
        assert {str(node): reason for node, reason in raised.value.refused.items()} == {
            "postgres@127.0.0.1:1/postgres": "primary, down: Connection refused",
            f"postgres@127.0.0.1:{cluster.standbys[0].port}/postgres": "is a replica",
        }


@pytest.mark.docker
async def test_a_snapshot_for_each_block_without_autocommit(postgres: Postgres) -> None:
    table = new_name()
    run(postgres.primary, f"CREATE TABLE {table} (i int)")
    options = settings(primary=postgres.primary, read={"autocommit": False})
    async with AsyncRouter(options) as router:
        async with router.connection(read_only=True) as connection:
            cursor = await connection.execute(f"SELECT count(*) FROM {table}")
            assert await cursor.fetchone() == (0,)
            run(postgres.primary, f"INSERT INTO {table} VALUES (1)")
            cursor = await connection.execute(f"SELECT count(*) FROM {table}")
            assert await cursor.fetchone() == (0,)
        async with router.connection(read_only=True) as connection:
            cursor = await connection.execute(f"SELECT count(*) FROM {table}")
            assert await cursor.fetchone() == (1,)


async def test_a_closed_router_refuses(cluster: PostgresCluster) -> None:
    events: list[Event] = []
    router = AsyncRouter(settings(primary=cluster.dsn()), observers=[events.append])
    async with router.connection() as connection:
        await connection.execute("SELECT 1")
    assert await router.close() == 0
    with pytest.raises(RouterClosed):
        router.connection()
    assert await router.close() == 0
    assert "closed" in repr(router)
    assert [type(event) for event in events if isinstance(event, PoolOpened | PoolClosed)] == [PoolOpened, PoolClosed]


async def test_a_request_is_served_although_its_servers_are_forgotten_meanwhile(
    cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings(primary=cluster.primary.dsn(), replicas=[server.dsn() for server in cluster.standbys])
    async with AsyncRouter(options) as router:
        in_force = inside(router)
        may_serve, calls = acquire._may_serve, list[Any]()

        async def as_the_last_pool_is_closed(*args: Any) -> bool:
            calls.append(args)
            in_force.clusters.health = {}
            return await may_serve(*args)

        monkeypatch.setattr(acquire, "_may_serve", as_the_last_pool_is_closed)
        async with router.connection(read_only=True) as connection:
            await connection.execute("SELECT 1")
        assert calls


async def test_explain_opens_nothing(cluster: PostgresCluster) -> None:
    with Proxy(cluster.primary.host, cluster.primary.port) as proxy:
        dsn = psycopg.conninfo.make_conninfo(cluster.dsn(), host=proxy.host, port=proxy.port)
        async with AsyncRouter(settings(nodes=dsn)) as router:
            assert router.explain(read_only=True).nodes == router.explain().nodes
            assert router.stats().connections == 0
        assert proxy.accepted == 0


async def test_stats_count(cluster: PostgresCluster) -> None:
    async with AsyncRouter(settings(**cluster.version_settings(), max_connections=7)) as router:
        async with router.connection() as connection:
            await connection.execute("SELECT 1")
            stats = router.stats()
        assert stats.max_connections == 7
        [version] = stats.versions
        assert version.version == "v1"
        primary = next(node for node in version.nodes if node.node.server.port == cluster.primary.port)
        assert (primary.state, primary.role, primary.read) == ("up", Role.PRIMARY, None)
        assert primary.write is not None
        assert (primary.write.in_use, primary.write.idle, primary.write.size, primary.write.opened) == (1, 0, 1, 1)
        assert "write: 1 in use, 0 idle, 0 waiting" in repr(stats)
