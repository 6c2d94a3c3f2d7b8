# Generated from tests/_async/test_background.py by tools/async_to_sync.py: do not edit.
"""What raises in the background, once, stops nothing else, and leaves nothing half done."""

from __future__ import annotations

import inspect
import sys
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from router import Router
from router._observers import Observers
from router._sync.cluster import SyncCluster
from router._sync.clusters import Clusters
from router._sync.directory import ASKING, Directory
from router._sync.directory_source import TenantSource
from router._sync.in_force import InForce
from router._sync.lane_table import LaneTable
from router._sync.monitor import Monitor
from router._sync.pool.closer import Closer
from router._sync.pool.inside.pool import DriverPool
from router._sync.pool.login import Login
from router._sync.pool.node_pool import NodePool
from router._sync.pool.opener import Opener
from router._sync.pool.opening import Opening
from router._sync.pool.quarantine import Quarantine
from router._sync.pool.registry import Pools
from router._sync.pool.server_queries import ServerQueries
from router._sync.pool.sessions import PoolSessions
from router._sync.slots import Slots
from router._sync.snapshot import DirectoryView
from router._sync.watcher import Watcher
from router.core.errors import DirectoryUnavailable
from router.core.server_events import ReadsFellBack, ReadsReturned
from tests._sync.internals import inside
from tests.proxy import Proxy
from tests.support import current, eventually, running, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from router.core.events import Event
    from router.testing import PostgresCluster

# What tasks and threads of the router's own do: each of these raises once.
STEPS: dict[type[Any], set[str]] = {
    Directory: {"_answer", "_next", "_settle", "_start_worker", "tick"},
    SyncCluster: {"follow", "invalidate", "is_urgent", "judge"},
    Clusters: {"_learn", "_report", "_settle", "end_quarantine", "pause", "remove", "report"},
    Observers: {"emit"},
    LaneTable: {"forget"},
    Monitor: set(),
    NodePool: {"end_draining"},
    PoolSessions: {"pop_idle"},
    Closer: {"drop"},
    Opening: {"keep_warm", "open_connection"},
    Quarantine: {"end"},
    Login: {"_log_in", "_password", "begin", "forget_unused"},
    Opener: {"connect_to_probe", "open"},
    Pools: {"_drain", "sweep"},
    InForce: {"_drain_superseded"},
    ServerQueries: {"probe"},
    Slots: {"_grant", "_release", "fill", "sweep", "take"},
    TenantSource: {"_works", "ask"},
    Watcher: {"_ask", "_attempt", "_find_silent", "_next_node", "_probe", "_try_logins"},
}
# The loops: whatever they call must be listed, but for what only lets go of something, and cannot do half of that.
LOOPS = {"_run_housekeeping", "_do_housekeeping", "_listen", "_watch", "_work"}
LETS_GO = {"_leave_open", "close_held"}

by_the_test: ContextVar[bool] = ContextVar("by_the_test", default=False)


class Injected(Exception):
    """What a step raises."""


class Injector:
    """Has each step raise at its first call in the background."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead: set[tuple[type[Any], str]] = set()
        self.not_listed: set[str] = set()
        for kind in STEPS:
            for name, function in list(vars(kind).items()):
                if inspect.isfunction(function) and not name.startswith("__"):
                    monkeypatch.setattr(kind, name, self._raising(kind, name, function))

    def begin(self) -> None:
        """Have them raise from now on."""
        self.ahead = {(kind, name) for kind, names in STEPS.items() for name in names}

    def _raising(self, kind: type[Any], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            # Of the test's own context, a pool's worker has what the request had that opened the pool.
            in_background = not by_the_test.get() or "-worker-" in current()
            if in_background and (kind, name) in self.ahead:
                self.ahead.discard((kind, name))
                raise Injected
            if sys._getframe(1).f_code.co_name in LOOPS and name not in STEPS[kind] | LETS_GO | LOOPS:
                self.not_listed.add(f"{kind.__name__}.{name}")
            return function(*args, **kwargs)

        return step


def lookup(tenant: str) -> Mapping[str, Any] | None:
    return {"version": "v1", "row": "app.tenant"}


def ask(router: Router, query: Any = "SELECT 1", **how: Any) -> bool:
    """Whether a request is served."""
    try:
        with router.connection(**{"version": "v1", **how}) as connection:
            connection.execute(query)
    except (psycopg.OperationalError, DirectoryUnavailable):
        return False
    return True


def test_each_step_raises_once_and_all_goes_on(
    cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("router._sync.in_force.HOUSEKEEPING", 0.02)
    by_the_test.set(True)
    injector = Injector(monkeypatch)  # before anything refers to what it replaces
    with Proxy(cluster.primary.host, cluster.primary.port) as proxy:
        options = settings(
            primary=psycopg.conninfo.make_conninfo(cluster.dsn(), host=proxy.host, port=proxy.port),
            replicas=[cluster.standbys[0].dsn()],
            pool={"max_size": 2, "timeout": 0.5, "max_unused": 0.05},
            health={"interval": 0.02, "ban": 0.02, "ban_max": 0.02},
            directory={"ttl": 0.02, "unknown_ttl": 0.02},
            tenancy={"pooling": "shared"},
        )
        with Router(options, directory=lookup) as router:
            assert ask(router)
            there = {name for name in running() if name.startswith("router ") and not name.endswith(" now")}
            injector.begin()

            def all_have_raised() -> bool:
                ask(router)
                ask(router, read_only=True)
                ask(router, tenant="acme")
                ask(router, "SELECT pg_terminate_backend(pg_backend_pid())")
                if not any(pool.borrowed or pool.waiting for pool in router._snapshot().pools):
                    proxy.stop()
                    ask(router, timeout=0.05)
                    proxy.start()
                return not injector.ahead

            with suppress(AssertionError):
                eventually(all_have_raised)
            assert injector.ahead == set()

            def all_is_well() -> bool:
                return ask(router) and ask(router, read_only=True) and ask(router, tenant="acme")

            def nothing_is_left() -> bool:
                found = router._snapshot()
                return not found.pools and all(owner.startswith("probes") for owner in found.slots)

            eventually(all_is_well)
            assert not ask(router, "SELECT pg_terminate_backend(pg_backend_pid())")
            eventually(all_is_well)
            assert there <= running()
            eventually(nothing_is_left)
            assert {node.state for node in router.stats().versions[0].nodes} == {"up"}
            assert router._snapshot().directory == DirectoryView(questions=0, idle_workers=ASKING)
    assert any(record.exc_info and record.exc_info[0] is Injected for record in caplog.records)
    assert injector.not_listed == set()


def test_a_pool_that_was_never_opened_does_not_keep_the_others_in_quarantine(cluster: PostgresCluster) -> None:
    versions = {name: {"primary": cluster.dsn()} for name in ("v1", "v2")}
    with Router(settings(versions=versions, health={"interval": 3600})) as router:
        assert ask(router, read_only=True)
        inside(router).lanes.lane("v1", read_only=False).pool_set.refresh()  # which makes the pool, and opens nothing
        assert [pool.opened for pool in router._snapshot().pools] == [True, False]
        assert ask(router, version="v2", read_only=True)
        assert not ask(router, "SELECT pg_terminate_backend(pg_backend_pid())", version="v2", read_only=True)

        def ended() -> bool:
            return not any(pool.quarantined for pool in router._snapshot().pools)

        assert len([pool for pool in router._snapshot().pools if pool.quarantined_at]) == 3
        eventually(ended)
        assert ask(router, version="v2", read_only=True)


def test_a_pool_that_could_not_be_opened_is_opened_by_the_next_request(
    cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: DriverPool) -> None:
        raise Injected

    with Router(settings(primary=cluster.dsn())) as router:
        assert ask(router)
        with monkeypatch.context() as patched, pytest.raises(Injected):
            patched.setattr(DriverPool, "_start_initial_tasks", fail)  # its threads run by then
            ask(router, read_only=True)
        assert ask(router, read_only=True)
        [_, pool] = router._snapshot().pools
        assert (pool.counted, pool.idle) == (1, 1)


def test_that_reads_fell_back_is_told_although_what_follows_from_it_has_raised_once(
    cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    replica = cluster.standbys[0]
    with Proxy(replica.host, replica.port) as proxy:
        options = settings(
            primary=cluster.dsn(),
            replicas=[psycopg.conninfo.make_conninfo(replica.dsn(), host=proxy.host, port=proxy.port)],
            health={"interval": 0.05},
        )
        with Router(options, observers=[events.append]) as router:
            assert ask(router, read_only=True)
            raised = list[Injected]()
            invalidate = SyncCluster.invalidate

            def raise_once(cluster: SyncCluster) -> None:
                if cluster.view.fell_back and not raised:
                    raised.append(Injected())
                    raise raised[0]
                invalidate(cluster)

            def is_told() -> bool:
                return any(isinstance(event, ReadsFellBack) for event in events)

            monkeypatch.setattr(SyncCluster, "invalidate", raise_once)
            proxy.stop()
            eventually(is_told)
            assert raised
    told = [type(event) for event in events if isinstance(event, ReadsFellBack | ReadsReturned)]
    assert told == [ReadsFellBack]
