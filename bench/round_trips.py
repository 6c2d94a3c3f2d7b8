"""How often one statement waits for the server, counted at the socket."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, contextmanager
from time import sleep
from typing import TYPE_CHECKING, Any, TypeAlias

from psycopg_pool import ConnectionPool

from bench.figures import Bar, Figure
from bench.warm import warm
from router import Router, RouterSettings
from router.testing import PostgresCluster
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router.testing import PostgresServer

    Connecting: TypeAlias = Callable[[], AbstractContextManager[Connection[TupleRow]]]

REPEATS = 3  # psycopg prepares a statement when it comes the sixth time: once, one round trip more
UNIT = "round trips"
SELECT = "SELECT name FROM item WHERE id = %s"
UPDATE = "UPDATE item SET name = upper(name) WHERE id = %s"


def measure() -> Iterator[Figure]:
    """Count the round trips of a block with one statement, through proxies between the pools and the servers.

    Yields:
        One figure for each kind of block; the highest of a few repeats.
    """
    with ExitStack() as stack:
        cluster = stack.enter_context(PostgresCluster(standbys=2))
        cluster.primary.execute("CREATE TABLE item (id int PRIMARY KEY, name text)")
        cluster.primary.execute("INSERT INTO item VALUES (1, 'one')")
        cluster.wait_replayed()
        proxies: list[Proxy] = []

        def through_proxy(server: PostgresServer) -> str:
            proxies.append(stack.enter_context(Proxy(server.host, server.port)))
            return server.dsn(port=proxies[-1].port)

        primary, *replicas = map(through_proxy, cluster.servers)
        settings = RouterSettings(
            versions={"v1": {"primary": primary, "replicas": replicas}},
            health={"interval": 3600},  # looks are round trips, too, through the same proxies
        )
        router = stack.enter_context(Router(settings))
        pool = stack.enter_context(ConnectionPool(primary, min_size=1, open=True))

        def count(connecting: Connecting, statement: Any, before: Connecting | None = None) -> int:
            counts = []
            for _ in range(REPEATS):
                if before is not None:
                    with before():
                        pass
                for proxy in proxies:
                    proxy.round_trips = 0
                with connecting() as connection:
                    connection.execute(statement, [1])
                counts.append(sum(proxy.round_trips for proxy in proxies))
            return max(counts)

        def read() -> AbstractContextManager[Connection[TupleRow]]:
            return router.connection(version="v1", read_only=True)

        def write() -> AbstractContextManager[Connection[TupleRow]]:
            return router.connection(version="v1")

        def once() -> None:
            with read(), write():
                pass

        tenants = {pooling: stack.enter_context(_tenants(primary, pooling)) for pooling in ("dedicated", "shared")}
        warm(router, once)
        pool.wait()
        sleep(1.5)  # until the looks with which a version begins are over
        yield Figure("router: one indexed SELECT, read_only", count(read, SELECT), UNIT, bar=Bar("exactly", 1))
        yield Figure("router: a write of one statement", count(write, UPDATE), UNIT, bar=Bar("exactly", 3))
        for pooling, other in tenants.items():
            yield from _of_tenants(pooling, other, count)
        yield Figure("psycopg_pool: one indexed SELECT", count(pool.connection, SELECT), UNIT)
        yield Figure("psycopg_pool: a write of one statement", count(pool.connection, UPDATE), UNIT)


def _tenants(primary: str, pooling: str) -> Router:
    """A router for tenants that are kept apart by a setting; those who share connections, share one."""
    router = Router(
        RouterSettings(
            versions={"v1": {"primary": primary}},
            default_version="v1",
            tenant_template={"row": "app.tenant"},
            tenancy={"pooling": pooling},
            pool={"max_size": 1},
            health={"interval": 3600},
        )
    )
    for read_only in (True, False):
        with router.connection(tenant="one", read_only=read_only):
            pass
    return router


def _of_tenants(pooling: str, router: Router, count: Callable[..., int]) -> Iterator[Figure]:
    def reading(tenant: str = "one") -> AbstractContextManager[Connection[TupleRow]]:
        return router.connection(tenant=tenant, read_only=True)

    @contextmanager
    def writing(tenant: str = "one") -> Iterator[Connection[TupleRow]]:
        with router.session(), router.connection(tenant=tenant) as connection:
            yield connection

    read, written = "router: tenant's SELECT", "router: tenant's write + token"
    yield Figure(f"{read}, {pooling}", count(reading, SELECT), UNIT, bar=Bar("exactly", 1))
    yield Figure(f"{written}, {pooling}", count(writing, UPDATE), UNIT, bar=Bar("exactly", 3))
    if pooling == "shared":
        trips = count(reading, SELECT, lambda: reading("two")), count(writing, UPDATE, lambda: writing("two"))
        yield Figure(f"{read}, other's before", trips[0], UNIT, bar=Bar("exactly", 2))
        yield Figure(f"{written}, other's before", trips[1], UNIT, bar=Bar("exactly", 3))
