# Generated from tests/_async/test_dropped.py by tools/async_to_sync.py: do not edit.
"""A router that nobody has any more, and that was not closed."""

from __future__ import annotations

import gc
import re
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import ref

import psycopg
import pytest

from router import Router
from router.core import sql
from tests._sync.internals import inside
from tests.support import eventually, new_name, outside, run, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from router.testing import PostgresCluster


class World:
    """Servers, and the sessions there that are this test's."""

    def __init__(self, cluster: PostgresCluster) -> None:
        self.name = new_name()
        self.plain = cluster.dsn()
        self.table = new_name()
        run(self.plain, f"CREATE TABLE {self.table} (i int)")
        primary, *replicas = (
            psycopg.conninfo.make_conninfo(server.dsn(), application_name=self.name)
            for server in (cluster.primary, *cluster.standbys)
        )
        self.options: dict[str, Any] = {"primary": primary, "replicas": replicas}

    def sessions(self) -> int:
        asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = "
        return int(run(self.plain, f"{asked}'{self.name}'")[0][0])

    def is_left(self) -> bool:
        return outside(self.sessions) == 0


@pytest.fixture
def world(cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("router._sync.in_force.HOUSEKEEPING", 0.02)
    return World(cluster)


def use(router: Router, **named: Any) -> None:
    for read_only in (False, True):
        with router.connection(read_only=read_only, **named) as connection:
            connection.execute("SELECT 1")
    router.execute("SELECT 1", **named)


def ends(inside: ref[Any]) -> None:
    """Wait until nothing is left of a router's inside, which its threads or tasks hold."""

    def is_gone() -> bool:
        gc.collect()
        return inside() is None

    eventually(is_gone)


@contextmanager
def told() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
        gc.collect()
    [warning] = said
    assert warning.category is ResourceWarning
    assert re.match(r"unclosed <(Async)?Router .*: call close\(\)", str(warning.message))


class Service:
    """What has a router, and gives it functions of its own that lead back to it."""

    def __init__(self, **options: Any) -> None:
        self.seen: list[object] = []
        self.router = Router(
            settings(tenant_template={"row": "app.tenant"}, **options),
            password=self.password,
            configure=self.configure,
            directory=self,
            observers=[self.note],
        )

    def password(self, _: object) -> str:
        return repr(self.router)

    def configure(self, _: object) -> None:
        self.seen.append(self.router)

    def lookup(self, tenant: str) -> dict[str, str]:
        return {"row": "app.tenant"} if tenant in self.tenants() else {}

    def tenants(self) -> list[str]:
        return ["acme", str(self.router)]

    def note(self, event: object) -> None:
        self.seen.append((event, self.router))


def plain(world: World) -> Router:
    return Router(settings(**world.options, pool={"min_size": 2}))


def of_a_service(world: World) -> Router:
    return Service(**world.options).router


def with_a_table(world: World) -> Router:
    table = new_name()
    run(world.plain, sql.tenants_table(table), f"INSERT INTO {table} (tenant, row) VALUES ('acme', 'app.tenant')")
    options = {"directory": {"version": "v1", "table": table}, "tenancy": {"pooling": "shared"}}
    return Router(settings(**world.options, **options))


@pytest.mark.parametrize(
    ("make", "named"),
    [(plain, {}), (of_a_service, {"tenant": "acme"}), (with_a_table, {"tenant": "acme"})],
    ids=["plain", "service", "table"],
)
def test_its_sessions_are_closed_and_it_is_collected(
    world: World, make: Callable[[World], Router], named: dict[str, str]
) -> None:
    router = make(world)
    use(router, **named)
    left = ref(inside(router))
    with told():
        del router
    eventually(world.is_left)
    ends(left)


def test_a_block_goes_on_until_its_end(world: World) -> None:
    router = Router(settings(**world.options, pool={"max_unused": 0.01}))
    left: Any = ref(inside(router))
    use(router)

    def only_that_pool_is_left() -> bool:
        return len(list(left().pools)) == 1

    with router.connection() as connection:
        with told():
            del router
        eventually(only_that_pool_is_left)  # those that nobody uses are closed by what closes all, in its time
        connection.execute(f"INSERT INTO {world.table} VALUES (1)")
    assert run(world.plain, f"SELECT i FROM {world.table}") == [(1,)]
    del connection
    eventually(world.is_left)
    ends(left)


def test_one_that_was_closed_or_never_used_ends_without_a_word(world: World) -> None:
    with warnings.catch_warnings(record=True) as said:
        unused = Router(settings(**world.options))
        unused.explain()
        unused.connection()
        closed = Router(settings(**world.options))
        use(closed)
        closed.close()
        insides = [ref(inside(unused)), ref(inside(closed))]
        del unused, closed
        for left in insides:
            ends(left)
    assert not [warning for warning in said if "unclosed" in str(warning.message)]
    eventually(world.is_left)
