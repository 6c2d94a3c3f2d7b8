# Generated from tests/_async/test_waiting.py by tools/async_to_sync.py: do not edit.
"""Requests wait in one line: in order, at no cost, each woken by itself when there is something to have."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psycopg
import pytest

import router.core.choose
from router import NoPrimary, PoolExhausted, Router, RouterClosed, Unavailable
from router._sync import routes
from router._sync.pool.node_pool import NodePool
from router._sync.pool_set import PoolSet
from router._sync.waiter import Waiter
from tests._sync.internals import inside, invalidate
from tests.proxy import Proxy
from tests.support import PATIENCE, all_of, current, eventually, outside, settings, short_and_long

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from router._sync.snapshot import PoolSetView
    from router.testing import PostgresCluster
    from router.testing._plugin import MakeCluster
    from tests.conftest import Postgres

SHELL = str(Path(routes.__file__).parent)
FILES = 9
"""As many files as a reader follows a request through for which nothing was ready."""

DEAD = [f"postgresql://postgres@127.0.0.1:{port}/postgres" for port in (1, 2)]


class Passed:
    """Notes through which files of the shell this task or thread goes, and how often it chooses; a context manager."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: set[str] = set()
        self.chosen, self.of = 0, current()
        choose = router.core.choose.choose

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.chosen += current() == self.of
            return choose(*args, **kwargs)

        monkeypatch.setattr(routes, "choose", counted)

    def __enter__(self) -> Self:
        self.files.clear()
        self.chosen = 0
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def trace(self, frame: FrameType, _event: str, _: Any) -> None:
        if (file := frame.f_code.co_filename).startswith(SHELL) and current() == self.of:
            self.files.add(os.path.relpath(file, SHELL))


def works(router: Router) -> None:
    with router.connection(version="v1", timeout=PATIENCE) as connection:
        connection.execute("SELECT 1")


def test_a_request_for_which_nothing_is_ready_passes_few_files_and_chooses_once(
    cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings(primary=cluster.dsn(), replicas=[standby.dsn() for standby in cluster.standbys])
    with Router(options) as router:
        works(router)
        passed = Passed(monkeypatch)
        # What is known has changed, and a connection is idle.
        [pool] = inside(router).pools
        pool.notes_borrower = False  # which it does where warnings are shown
        invalidate(router)
        with passed:
            first = router.connection(version="v1").__enter__()
        assert passed.chosen == 1
        assert len(passed.files) <= FILES, " ".join(sorted(passed.files))
        # Nothing has changed, and one more has to be opened.
        with passed:
            second = router.connection(version="v1").__enter__()
        assert passed.chosen == 0
        assert len(passed.files) <= FILES, " ".join(sorted(passed.files))
        # Both.
        invalidate(router)
        with passed:
            third = router.connection(version="v1").__enter__()
        assert passed.chosen == 1
        assert len(passed.files) <= FILES, " ".join(sorted(passed.files))
        for connection in (first, second, third):
            connection.close()


@pytest.mark.parametrize("crowd", short_and_long(100, 400))
def test_a_crowd_that_waits_for_a_server_costs_nothing_and_is_served_when_it_is_back(
    make_postgres_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, crowd: int
) -> None:
    cluster = make_postgres_cluster(version=18, standbys=0)
    outside(cluster.primary.stop)
    options = settings(nodes=[cluster.dsn(), *DEAD])
    with Router(options) as router:
        served: list[float] = []
        choose, chosen, woken = inside(router).routes.choose, [0], [0]
        wait = Waiter.wait

        def counted(*args: Any, **kwargs: Any) -> Any:
            chosen[0] += 1
            return choose(*args, **kwargs)

        def counted_wait(waiter: Waiter, timeout: float) -> None:
            wait(waiter, timeout)
            woken[0] += 1

        def request() -> None:
            works(router)
            served.append(time.monotonic())

        def bring_back() -> None:
            def all_wait() -> bool:
                return router._snapshot().waiting == crowd

            eventually(all_wait)
            monkeypatch.setattr(inside(router).routes, "choose", counted)
            monkeypatch.setattr(Waiter, "wait", counted_wait)
            cpu, since = time.process_time(), time.monotonic()

            def a_while() -> bool:
                return time.monotonic() > since + 1.0

            eventually(a_while)
            assert time.process_time() - cpu < 0.2 * (time.monotonic() - since)
            assert chosen[0] <= 10  # the first in line alone looks at what is known
            assert woken[0] <= 10
            outside(cluster.primary.start)
            before = chosen[0]

            def all_served() -> bool:
                return len(served) == crowd

            eventually(all_served)
            assert chosen[0] - before <= 10

        all_of(bring_back, *[request] * crowd)


def test_those_that_wait_are_served_in_order_and_one_that_gives_up_leaves_its_place(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary, pool={"max_size": 1})) as router:
        served: list[int] = []
        held = router.connection().__enter__()

        def request(number: int, timeout: float) -> Callable[[], None]:
            def ask() -> None:
                def is_next() -> bool:
                    return router._snapshot().waiting >= number

                eventually(is_next)
                with router.connection(timeout=timeout):
                    served.append(number)

            return ask

        def give_up() -> None:
            with pytest.raises(PoolExhausted):
                request(1, 1.0)()

        def close_held() -> None:
            def four_wait() -> bool:
                return router._snapshot().waiting == 4

            def one_gave_up() -> bool:
                return router._snapshot().waiting == 3

            eventually(four_wait)
            eventually(one_gave_up)
            held.close()

        all_of(request(0, PATIENCE), give_up, request(2, PATIENCE), request(3, PATIENCE), close_held)
        assert served == [0, 2, 3]


def test_a_request_that_leaves_twice_gives_its_connection_back_once(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary, pool={"max_size": 1})) as router:
        with router.connection():
            [pool_set] = inside(router).lanes.pool_sets
            waiter = Waiter(pool_set.line)
            pool_set.line.join(waiter)
        assert waiter.connection is not None
        waiter.leave()
        waiter.leave()  # as if the first time was interrupted
        [pool] = router._snapshot().pools
        assert (pool.idle, pool.borrowed) == (1, 0)


@pytest.mark.parametrize("kind", ["plain", "shared", "needy"])
def test_a_request_that_waits_again_gets_the_place_back_that_it_had(postgres: Postgres, kind: str) -> None:
    shared = {"tenant_template": {"row": "app.tenant"}, "tenancy": {"pooling": "shared"}} if kind == "shared" else {}
    tenant = "acme" if shared else None
    with Router(settings(primary=postgres.primary, pool={"max_size": 1}, **shared)) as router:
        checkout = router.connection(version=None if shared else "v1", tenant=tenant)
        with checkout:
            [line] = {pool_set.line for pool_set in inside(router).lanes.pool_sets}
            waiters = [Waiter(line, tenant or "", has_needs=kind == "needy") for _ in range(5)]
            for waiter in waiters:
                waiter.accepts = checkout.pool if kind == "needy" else None
                line.join(waiter)
            for waiter in waiters[:3]:
                assert line.leave(waiter)
            for index in (1, 0, 2):
                line.join(waiters[index])
        for waiter in waiters:
            assert [one for one in waiters if one.connection is not None] == [waiter]
            waiter.leave()


def test_a_change_of_one_version_leaves_the_pool_sets_of_others_alone(cluster: PostgresCluster) -> None:
    with Proxy(cluster.primary.host, cluster.primary.port) as proxy:
        versions = {
            "v1": {"primary": cluster.dsn()},
            "v2": {"primary": psycopg.conninfo.make_conninfo(cluster.dsn(), host=proxy.host, port=proxy.port)},
        }
        with Router(settings(versions=versions, health={"interval": 0.05})) as router:
            for version in versions:
                with router.connection(version=version) as connection:
                    connection.execute("SELECT 1")
            before = router._snapshot()
            assert set(before.writers) == {*versions}
            proxy.stop()

            def of(version: str) -> PoolSetView:
                [found] = [one for one in router._snapshot().pool_sets if one.cluster == version]
                return found

            def noticed() -> bool:
                return of("v2").is_stale or not of("v2").pools

            eventually(noticed)
            assert not of("v1").is_stale
            assert of("v1").pools
            assert router._snapshot().writers == before.writers  # nor are lanes dropped


def test_closing_ends_all_that_wait(postgres: Postgres) -> None:
    router = Router(settings(nodes=DEAD))

    def request(**how: Any) -> None:
        with pytest.raises(RouterClosed):
            with router.connection(timeout=PATIENCE, **how):
                pass

    def close() -> None:
        def all_wait() -> bool:
            return router._snapshot().waiting == 3

        eventually(all_wait)
        router.close()

    all_of(request, partial(request, read_only=True), partial(request, read_only=True, max_lag=1.0), close)


def test_if_the_first_in_line_is_interrupted_before_it_looks_for_what_is_idle_the_next_looks(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Injected(Exception):
        pass

    with Router(settings(primary=postgres.primary, pool={"max_size": 1, "timeout": PATIENCE})) as router:
        works(router)
        [pool] = inside(router).pools
        [pool_set] = inside(router).lanes.pool_sets
        work, led = PoolSet.work, list[Waiter]()

        def take_none(_: NodePool) -> None:
            """Find nothing, as if the connection were given back only after that."""

        def interrupted_work(pool_set: PoolSet, waiter: Waiter) -> None:
            if not led:
                led.append(waiter)
                eventually(two_wait)
                raise Injected
            work(pool_set, waiter)

        def one_waits() -> bool:
            return len(pool_set.line) == 1

        def two_wait() -> bool:
            return len(pool_set.line) == 2

        def first() -> None:
            with pytest.raises(Injected):
                works(router)

        def second() -> None:
            eventually(one_waits)
            begun = time.monotonic()
            works(router)
            assert time.monotonic() - begun < PATIENCE / 2

        monkeypatch.setattr(NodePool, "take", take_none)
        monkeypatch.setattr(PoolSet, "work", interrupted_work)
        assert len(pool.idle) == 1
        all_of(first, second)
        assert led


def test_who_waits_for_a_server_fails_at_the_deadline_with_the_reason() -> None:
    with Router(settings(nodes=DEAD)) as router:
        begun = time.monotonic()
        with pytest.raises(NoPrimary, match="refused"):
            with router.connection(timeout=0.5):
                pass
        assert 0.5 <= time.monotonic() - begun < 3.0
        assert router._snapshot().waiting == 0


def test_nobody_is_lost_in_a_crowd_of_which_some_give_up_while_what_is_known_changes(
    cluster: PostgresCluster,
) -> None:
    options = settings(
        primary=cluster.dsn(),
        replicas=[standby.dsn() for standby in cluster.standbys],
        pool={"max_size": 2, "timeout": PATIENCE},
        tenancy={"pooling": "shared", "max_connections": 2},
        tenant_template={"version": "v1", "row": "app.tenant"},
    )
    with Router(options) as router:
        served: list[int] = []
        until = time.monotonic() + 2.0

        def request(number: int) -> None:
            turns = count(number)
            ways: list[dict[str, Any]] = [
                {"version": "v1", "read_only": True},
                {"tenant": f"k{number % 3}", "read_only": number % 2 == 0},
                {"version": "v1", "read_only": True, "max_lag": 60.0},
                {"version": "v1", "timeout": 0.002},
            ]
            while time.monotonic() < until:
                turn = next(turns)
                how = ways[turn % len(ways)]
                try:
                    with router.connection(**how) as connection:
                        connection.execute("SELECT 1")
                    served.append(turn)
                except Unavailable:
                    assert "timeout" in how
                if turn % 50 == 0:
                    invalidate(router)

        all_of(*(partial(request, number) for number in range(16)))
        assert served

        def whole() -> bool:
            found = router._snapshot()
            return not (found.waiting or found.admitted or any(pool.borrowed or pool.waiting for pool in found.pools))

        eventually(whole)
