"""A signal handler that raises anywhere while a connection is borrowed or given back loses nothing."""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from linecache import getline
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

import pytest

from router import Router
from router._runtime.workers import concurrently
from router._sync.pool.inside.imports import MaintenanceTask
from router._sync.pool.inside.pool import OVERDUE, DriverPool
from tests._sync.internals import inside
from tests.support import eventually, running, settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from tests.conftest import Postgres

pytestmark = pytest.mark.docker

WHERE = ("router/_sync/", "psycopg_pool/", "/queue.py")
NEVER = 10**9


class Interruption(Exception):
    """What a signal handler raises; a step that is isolated from others logs it."""


class Stop(BaseException):
    """The same of a kind that no step swallows."""


class Interrupted:
    """Raises before the n-th line that is run inside; a context manager.

    Attributes:
        happened: Whether it has raised: code inside may have swallowed it.
    """

    def __init__(self, number: int, kind: type[BaseException] = Interruption) -> None:
        self.left = number
        self.happened = False
        self._kind = kind

    def __enter__(self) -> Self:
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not any(where in frame.f_code.co_filename for where in WHERE):
            return None
        # Python leaves a `with` before it looks for signals; a trace function is called when it is about to.
        if event == "line" and not getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
            self.left -= 1
            if self.left < 0:
                self.left, self.happened = NEVER, True
                raise self._kind
        return self.trace


TENANTS: dict[str, Any] = {
    "tenancy": {"pooling": "shared", "max_connections": 1},
    "tenant_template": {"row": "app.tenant"},
}


def use(router: Router, tenant: str | None) -> None:
    with router.connection(version="v1", tenant=tenant) as connection:
        connection.execute("SELECT 1")


def acquire(router: Router, _: str | None) -> None:
    connection = router.acquire(version="v1")
    connection.execute("SELECT 1")
    connection.commit()
    connection.close()


def is_whole(router: Router) -> bool:
    gc.collect()  # an interruption may leave cycles that have become older
    found = router._snapshot()
    return (
        not found.waiting
        and not found.admitted
        and all(
            not pool.borrowed
            and not pool.opening
            and not pool.growing
            and pool.counted == pool.sessions == pool.idle
            and not pool.idle_closed
            for pool in found.pools
        )
    )


@pytest.mark.parametrize("kind", [pytest.param(Interruption, marks=pytest.mark.slow), Stop])
@pytest.mark.parametrize(
    ("use", "growing", "tenant"),
    [
        (use, False, None),
        (use, False, "acme"),
        pytest.param(use, True, None, marks=pytest.mark.slow),
        pytest.param(acquire, False, None, marks=pytest.mark.slow),
    ],
)
def test_an_interruption_at_any_line_loses_no_connection(
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    use: Callable[[Router, str | None], None],
    growing: bool,
    tenant: str | None,
    kind: type[BaseException],
) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr("router._sync.in_force.HOUSEKEEPING", 0.005)
    options = settings(primary=postgres.primary, pool={"max_size": 2}, **(TENANTS if tenant else {}))
    with warnings.catch_warnings(), Router(options) as router:
        warnings.simplefilter("ignore", ResourceWarning)
        use(router, tenant)
        [pool] = inside(router).pools
        number, interrupted = 0, True
        while interrupted:
            while growing and pool.idle:
                pool.evict_idle()
            with suppress(kind), Interrupted(number, kind) as inside_of_it:
                use(router, tenant)
            interrupted = inside_of_it.happened
            eventually(lambda: is_whole(router))
            number += 1
        assert number > 50


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of an object that was half made
@pytest.mark.parametrize("kind", [pytest.param(Interruption, marks=pytest.mark.slow), Stop])
def test_an_interruption_while_a_connection_is_closed_for_a_request_of_another_pool_loses_nothing(
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[BaseException],
) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr("router._sync.in_force.HOUSEKEEPING", 0.005)
    versions = {name: {"primary": postgres.primary} for name in ("v1", "v2")}
    options = settings(versions=versions, max_connections=1, pool={"timeout": 60.0})

    def borrow() -> None:
        with router.connection(version="v2") as connection:
            connection.execute("SELECT 1")

    with warnings.catch_warnings(), Router(options) as router, ThreadPoolExecutor(1) as executor:
        warnings.simplefilter("ignore", ResourceWarning)
        number, interrupted = 0, True
        while interrupted:
            block = router.connection(version="v1")
            block.__enter__().execute("SELECT 1").connection.rollback()
            other = executor.submit(borrow)
            eventually(lambda: inside(router).slots.waiting)
            with suppress(kind), Interrupted(number, kind) as inside_of_it:
                block.__exit__(None, None, None)
            interrupted = inside_of_it.happened
            del block
            other.result(20)
            eventually(lambda: is_whole(router))
            number += 1
        assert number > 50


class _Holds(MaintenanceTask):
    """Keeps a pool's worker busy."""

    def __init__(self, pool: Any, go_on: Event) -> None:
        super().__init__(pool)
        self._go_on = go_on

    def _run(self, _: Any) -> None:
        assert self._go_on.wait(10)


def test_an_attempt_that_ends_while_it_is_queued_again_is_not_counted_for_ever(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Router(settings(primary=postgres.primary, pool={"max_size": 2})) as router:
        use(router, None)
        [pool] = inside(router).pools
        driver = pool.opening._driver
        go_on = Event()
        driver.run_task(_Holds(driver, go_on))
        with driver.lock:
            driver.add_one()
        keep_in_mind = DriverPool._kept_in_mind

        def late(driver: DriverPool, task: MaintenanceTask) -> MaintenanceTask:
            go_on.set()
            eventually(lambda: not driver.adding)
            return keep_in_mind(driver, task)

        monkeypatch.setattr(DriverPool, "_kept_in_mind", late)
        [adding] = driver._adding
        for _ in range(OVERDUE):
            adding.queue_again(driver)
        monkeypatch.undo()
        go_on.set()
        eventually(lambda: is_whole(router))


@pytest.mark.parametrize("waits", [False, True])
def test_an_interruption_after_a_connection_has_passed_to_another_thread_does_not_close_it(
    postgres: Postgres, waits: bool
) -> None:
    has_it, interrupted, pids = Event(), Event(), list[int]()

    def borrow() -> None:
        with router.connection() as connection:
            has_it.set()
            assert interrupted.wait(10)
            connection.execute("SELECT 1")
            pids.append(connection.info.backend_pid)

    other = Thread(target=borrow)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.endswith("_sync/pool/release.py"):
            return None
        before = getline(code.co_filename, frame.f_lineno - 1)
        if event == "line" and ("line.hand_over(" if waits else "kept.append(") in before:
            sys.settrace(None)
            if not waits:
                other.start()
            assert has_it.wait(10)
            raise Interruption
        return trace

    with Router(settings(primary=postgres.primary, pool={"max_size": 1})) as router:
        try:
            with pytest.raises(Interruption), router.connection() as connection:
                pid = connection.info.backend_pid
                connection.commit()
                if waits:
                    other.start()
                    eventually(lambda: router._snapshot().waiting)
                sys.settrace(trace)
        finally:
            interrupted.set()
            if other.ident is not None:  # otherwise the test has failed before it was started
                other.join()
    assert pids == [pid]


def test_an_interruption_while_a_connection_is_handed_over_delays_no_request_and_loses_no_connection(
    postgres: Postgres,
) -> None:
    served = list[float]()

    def borrow() -> None:
        begun = monotonic()
        with router.connection() as connection:
            connection.execute("SELECT 1")
        served.append(monotonic() - begun)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        code, caller = frame.f_code, frame.f_back
        if code.co_filename.endswith("_sync/line.py") and (
            event == "call"
            and code.co_name == "_remove"
            and caller is not None
            and caller.f_code.co_name == "hand_over"
        ):
            sys.settrace(None)
            raise Interruption
        return trace

    with Router(settings(primary=postgres.primary, pool={"max_size": 1, "timeout": 60.0})) as router:
        waiting = [Thread(target=borrow) for _ in range(3)]
        with pytest.raises(Interruption), router.connection() as connection:
            connection.commit()
            for thread in waiting:
                thread.start()
            eventually(lambda: router._snapshot().waiting == len(waiting))
            sys.settrace(trace)
        for thread in waiting:
            thread.join()
        [pool] = router._snapshot().pools
        assert (pool.sessions, pool.idle, pool.borrowed) == (1, 1, 0)
        assert not router._snapshot().waiting
    assert max(served) < 30


@pytest.mark.parametrize("begins", [False, True])
def test_after_an_interruption_while_the_first_of_several_threads_starts_none_of_them_goes_on(begins: bool) -> None:
    calls, ended = list[int](), list[int]()
    stopped = Event()

    def function() -> None:
        calls.append(1)
        assert stopped.wait(10)
        ended.append(1)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if code.co_filename.endswith("threading.py") and code.co_name == "start":
            if event == "line" and "_started.wait(" in getline(code.co_filename, frame.f_lineno):
                sys.settrace(None)
                if begins:
                    eventually(lambda: calls)
                raise Interruption
            return trace
        return None

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1.0)  # unless it is waited for, the thread does not begin before the interruption
    try:
        with pytest.raises(Interruption):
            sys.settrace(trace)
            concurrently(function, 3, stopped.set)
        assert len(calls) == len(ended) == begins
    finally:
        sys.settrace(None)
        sys.setswitchinterval(interval)
    eventually(lambda: not any(name.startswith("router at once") for name in running()))
    assert len(calls) == len(ended) == begins
