"""The first use of the package may come late, from any thread, and in the middle of a fork."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support import PATIENCE

if TYPE_CHECKING:
    from tests.conftest import Postgres

pytestmark = pytest.mark.docker

AFTER_THE_MAIN_THREAD = """
import router
import asyncio, os, sys, threading

def connection():
    with router.connection(version="v1", read_only=True) as conn:
        conn.execute("SELECT 1")

def each():
    outcomes = router.each(lambda connection, _: connection.execute("SELECT 1"), tenants=["one", "two"])
    assert not outcomes.errors, outcomes

def aio():
    async def main():
        async with router.aio.connection(version="v1") as conn:
            await conn.execute("SELECT 1")
    asyncio.run(main())

def work():
    threading.main_thread().join()
    globals()[sys.argv[1]]()
    os.write(1, b"done\\n")

for _ in range(4):
    threading.Thread(target=work).start()
"""

IN_A_FORK = """
import router
import os, signal, sys, threading, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            importing.set()
            time.sleep(0.3)  # so that the fork finds it being imported

def request():
    with router.connection(version="v1") as conn:
        conn.execute("SELECT 1")

importing = threading.Event()
sys.meta_path.insert(0, Slow())
first = threading.Thread(target=request)
first.start()
assert importing.wait(float(sys.argv[2]))
pid = os.fork()
if pid == 0:
    signal.alarm(int(float(sys.argv[2])))
    request()
    os._exit(0)
first.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0)
"""

LOOPS_THAT_END = """
import asyncio, os
os.environ["ROUTER_HEALTH__INTERVAL"] = "0.02"
import router

async def main(steps):
    async with router.aio.connection(version="v1") as conn:
        await conn.execute("SELECT 1")
    for step in range(steps):
        await asyncio.sleep(0.0002 * (steps % 3))

for steps in range(40):
    asyncio.run(main(steps))
"""


def python(script: str, postgres: Postgres, *arguments: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ROUTER_", "PG"))}
    environment = {
        "ROUTER_VERSIONS__V1__PRIMARY": postgres.primary,
        "ROUTER_TENANT_TEMPLATE__ROW": "app.tenant",
        "ROUTER_DEFAULT_VERSION": "v1",
    }
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", script, *arguments]
    result = subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, check=False, timeout=3 * PATIENCE
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize("use", ["connection", "each", "aio"])
def test_after_the_main_thread_has_ended(postgres: Postgres, use: str) -> None:
    assert python(AFTER_THE_MAIN_THREAD, postgres, use) == 4 * "done\n"


@pytest.mark.parametrize("module", ["psycopg_pool", "pydantic", "router._runtime", "router._default"])
def test_in_a_fork_while_another_thread_imports(postgres: Postgres, module: str) -> None:
    python(IN_A_FORK, postgres, module, str(PATIENCE))


def test_a_loop_that_ends_at_whatever_moment_leaves_no_connection_open(postgres: Postgres) -> None:
    python(LOOPS_THAT_END, postgres)  # psycopg warns of one, and warnings are errors there
