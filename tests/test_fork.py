"""A router that was used before a ``fork()`` serves both processes, as under a prefork server."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING

import psycopg
import pytest

from router import Router
from tests.support import eventually, run, settings

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
        try:
            function()
        except BaseException:  # noqa: BLE001  (whatever it is, the child must not go on as a second pytest)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def backend(router: Router, *, read_only: bool = False) -> int:
    with router.connection(read_only=read_only) as connection:
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


def test_a_child_that_only_exits_ends_no_session(postgres: Postgres) -> None:
    dsn = psycopg.conninfo.make_conninfo(postgres.primary, application_name="forked")
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'forked'"
    with Router(settings(primary=dsn, pool={"min_size": 3, "max_size": 3})) as router:
        backend(router)
        eventually(lambda: run(postgres.primary, sessions) == [(4,)])  # one of them looks at the server
        code = "import gc; router._routing.pools = {}; gc.collect()"
        assert in_child(lambda: exec(code, {"router": router})) == 0  # noqa: S102  (drops every reference it can)
        assert run(postgres.primary, sessions) == [(4,)]
        assert [backend(router) for _ in range(3)]
