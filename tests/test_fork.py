"""A router that was used before a ``fork()`` serves both processes, as under a prefork server."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from router import Router
from tests._sync.internals import inside
from tests.support import PATIENCE, eventually, run, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Postgres

pytestmark = [
    pytest.mark.docker,
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning"),
]


def in_child(function: Callable[[], object]) -> int:
    """Run a function in a forked child, and give the child's exit code."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(PATIENCE))  # it may wait for ever for what a thread held that is not here
        try:
            function()
        except BaseException:  # noqa: BLE001  (whatever it is, the child must not go on as a second pytest)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def backend(router: Router, *, tenant: str | None = None, read_only: bool = False) -> int:
    with router.connection(tenant=tenant, read_only=read_only) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        return int(row[0])


def test_a_child_has_connections_of_its_own_and_the_parents_live_on(postgres: Postgres) -> None:
    with Router(settings(**postgres.settings(), pool={"max_size": 1})) as router:
        mine = backend(router)

        def child() -> None:
            assert backend(router) not in {mine, 0}
            backend(router, read_only=True)
            router.close()

        assert in_child(child) == 0
        assert in_child(child) == 0
        assert backend(router) == mine


def test_a_child_that_closes_an_acquired_connection_leaves_it_to_the_parent(postgres: Postgres) -> None:
    options = settings(
        primary=postgres.primary,
        tenant_template={"row": "app.tenant"},
        tenancy={"pooling": "shared", "max_connections": 1},
        pool={"timeout": PATIENCE},
    )
    with Router(options) as router:
        for tenant in (None, "acme"):
            named: dict[str, Any] = {"version": "v1"} if tenant is None else {"tenant": tenant}
            connection = router.acquire(**named)
            connection.execute("CREATE TEMPORARY TABLE mine (i int) ON COMMIT DROP")

            def child(connection: Any = connection, named: dict[str, Any] = named) -> None:
                connection.close()
                router.acquire(**named).close()
                router.close()

            assert in_child(child) == 0
            assert connection.execute("SELECT count(*) FROM mine").fetchone() == (0,)
            connection.close()
            router.acquire(**named).close()


def test_a_fork_inside_a_block_leaves_the_parents_transaction_alone(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary, pool={"max_size": 1})) as router:
        borrowed = router.connection()
        with borrowed as connection:
            connection.execute("CREATE TEMPORARY TABLE mine (i int)")

            def child() -> None:
                borrowed.__exit__(None, None, None)
                backend(router)

            assert in_child(child) == 0
            assert connection.execute("SELECT count(*) FROM mine").fetchone() == (0,)
        with router.connection() as connection:
            assert connection.execute("SELECT count(*) FROM mine").fetchone() == (0,)


def test_a_connection_that_was_borrowed_before_a_fork_raises_in_the_child(postgres: Postgres) -> None:
    options = settings(primary=postgres.primary, pool={"max_size": 2})
    with Router(options) as router, router.connection() as connection, router.connection() as busy:
        connection.execute("CREATE TEMPORARY TABLE mine (i int)")
        cursor = connection.execute("SELECT generate_series(1, 3)")
        server_cursor = connection.cursor("named")
        server_cursor.execute("SELECT generate_series(1, 3)")
        transaction = connection.transaction()
        uses: dict[str, Callable[[], object]] = {
            "execute": lambda: connection.execute("INSERT INTO mine VALUES (1)"),
            "cursor": connection.cursor,
            "commit": connection.commit,
            "rollback": connection.rollback,
            "transaction": connection.transaction().__enter__,
            "an old transaction": transaction.__enter__,
            "pipeline": connection.pipeline().__enter__,
            "notifies": lambda: list(connection.notifies(timeout=0)),
            "autocommit": lambda: connection.set_autocommit(True),
            "an old cursor": lambda: cursor.execute("INSERT INTO mine VALUES (1)"),
            "stream": lambda: list(cursor.stream("SELECT 1")),
            "copy": lambda: cursor.copy("COPY mine FROM STDIN").__enter__(),
            "executemany": lambda: cursor.executemany("INSERT INTO mine VALUES (%s)", [(1,)]),
            "server-side cursor": server_cursor.fetchall,
            "cancel": lambda: connection.cancel(),  # noqa: PLW0108  (it is looked up after the fork)
            "cancel_safe": lambda: connection.cancel_safe(),  # noqa: PLW0108  (likewise)
            "fileno": connection.fileno,
            "backend_pid": lambda: connection.info.backend_pid,
            "pgconn": lambda: connection.pgconn.exec_(b"COMMIT"),
        }

        def child() -> None:
            for use in uses.values():
                with pytest.raises(psycopg.InterfaceError, match="was borrowed before the fork"):
                    use()
            assert connection.closed
            assert "BAD" in repr(connection)
            connection.close()
            assert backend(router)

        with busy.lock:  # another thread may be using one
            assert in_child(child) == 0
        assert connection.execute("SELECT count(*) FROM mine").fetchone() == (0,)
        assert server_cursor.fetchone() == (1,)
        server_cursor.close()


@pytest.mark.parametrize(
    "scarce",
    [
        {"pool": {"max_size": 1, "timeout": PATIENCE}},
        {"max_connections": 2, "pool": {"timeout": PATIENCE}},
        {"tenancy": {"pooling": "shared", "max_connections": 1}, "pool": {"timeout": PATIENCE}},
    ],
    ids=["pool", "budget", "tenant"],
)
def test_a_fork_while_others_wait_for_a_tenants_connection_leaves_it_to_the_parent(
    postgres: Postgres, scarce: dict[str, Any]
) -> None:
    options = settings(
        primary=postgres.primary,
        **{"tenant_template": {"row": "app.tenant"}, "tenancy": {"pooling": "shared"}, **scarce},
    )
    with Router(options) as router, ThreadPoolExecutor(1) as executor:
        in_force, borrowed = inside(router), router.connection(tenant="acme")
        with borrowed as connection, ExitStack() as others:
            if "max_connections" in scarce:
                others.enter_context(router.connection(tenant="globex"))  # the other one that there may be
            mine = connection.info.backend_pid
            connection.execute("CREATE TEMPORARY TABLE mine (i int) ON COMMIT DROP")
            # To read for the same tenant takes another pool: only in its own pool it waits for this very connection.
            waiting = executor.submit(backend, router, tenant="acme", read_only="max_size" not in scarce["pool"])
            admissions = list(in_force.lanes.admissions.values())
            eventually(lambda: borrowed.pool.waiting or in_force.slots.waiting or any(one.held for one in admissions))

            def child() -> None:
                borrowed.__exit__(None, None, None)
                assert backend(router, tenant="acme") != mine
                assert backend(router, tenant="globex", read_only=True) != mine
                router.close()

            # What another thread may hold at the moment of the fork.
            locks: list[Any] = [borrowed.pool.lock, in_force.slots._guard, *(one._guard for one in admissions)]
            with ExitStack() as stack:
                for lock in locks:
                    stack.enter_context(lock)
                assert in_child(child) == 0
            assert connection.execute("SELECT count(*) FROM mine").fetchone() == (0,)
            assert not waiting.done()
        assert waiting.result()
        assert backend(router, tenant="acme")


def test_a_checkout_that_was_made_before_a_fork_is_refused_after_it(postgres: Postgres) -> None:
    with Router(settings(primary=postgres.primary, pool={"max_size": 1})) as router:
        mine = backend(router)
        checkout = router.connection()

        def child() -> None:
            with pytest.raises(RuntimeError, match="made before a fork"), checkout:
                pytest.fail("it had the parent's connection")
            assert backend(router) != mine

        assert in_child(child) == 0
        with checkout as connection:
            assert connection.info.backend_pid == mine


def test_a_child_that_only_exits_ends_no_session(postgres: Postgres) -> None:
    dsn = psycopg.conninfo.make_conninfo(postgres.primary, application_name="forked")
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'forked'"
    with Router(settings(primary=dsn, pool={"min_size": 3, "max_size": 3})) as router:
        backend(router)
        eventually(lambda: run(postgres.primary, sessions) == [(4,)])  # one of them looks at the server
        code = "import gc; router._in_force.pools = {}; gc.collect()"
        assert in_child(lambda: exec(code, {"router": router})) == 0  # noqa: S102  (drops every reference it can)
        assert run(postgres.primary, sessions) == [(4,)]
        assert [backend(router) for _ in range(3)]


def test_greenlets_that_take_the_place_of_threads_too_late_are_refused(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LockType:
        """A lock as gevent has it, as far as anybody can tell here."""

        __module__ = "gevent.thread"

    options = settings(primary=postgres.primary, tenants={"acme": {"row": "app.tenant"}}, tenancy={"pooling": "shared"})
    with Router(options, directory=lambda _: {"row": "app.tenant"}) as router:
        backend(router, tenant="acme")

        def child() -> None:
            monkeypatch.setattr(threading, "Lock", LockType)  # as gunicorn's worker does after its fork
            for tenant in ("acme", "globex"):
                for read_only in (False, True):
                    with pytest.raises(RuntimeError, match="gevent has patched threading after router"):
                        backend(router, tenant=tenant, read_only=read_only)
            router.close()

        assert in_child(child) == 0
        assert backend(router, tenant="acme")
