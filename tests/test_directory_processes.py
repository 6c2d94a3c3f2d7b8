"""A tenant that is added to the directory's table is served at once, one that is removed refused, in every process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import psycopg
import pytest

from router.core import sql

if TYPE_CHECKING:
    from router.testing import PostgresCluster
    from router.testing._plugin import MakeCluster

PROMPT = 0.1  # seconds
ROUNDS = 10

# Told "served" or "refused", it tries until that is so, and says when it was.
PROCESS = """
import sys, time
from router import Router, UnknownTenant

with Router() as router:
    for wanted in map(str.strip, sys.stdin):
        found = None
        while found != wanted:
            try:
                with router.connection(tenant="acme") as connection:
                    name = connection.execute("SELECT name FROM me").fetchone()
                found = "served" if name == ("acme",) else f"served {name}"
            except UnknownTenant:
                found = "refused"
        print(time.time(), flush=True)
"""


@pytest.fixture(scope="module")
def control(make_postgres_cluster: MakeCluster) -> PostgresCluster:
    pg = make_postgres_cluster(version=18, standbys=1)
    with psycopg.connect(pg.dsn(), autocommit=True) as connection:
        connection.execute(sql.tenants_table("router_tenant"))
        connection.execute("CREATE SCHEMA acme; CREATE TABLE acme.me (name text); INSERT INTO acme.me VALUES ('acme')")
    return pg


@pytest.mark.slow  # it is a bound on real time, for two processes at once
@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
def test_two_processes_hear_of_a_tenant_that_comes_or_goes(control: PostgresCluster, pooling: str) -> None:
    settings = {
        "ROUTER_VERSIONS__V1__PRIMARY": control.dsn(),
        "ROUTER_DIRECTORY__VERSION": "v1",
        "ROUTER_TENANCY__POOLING": pooling,
    }
    changes = {
        "served": "INSERT INTO router_tenant (tenant, version, schema) VALUES ('acme', '{v1}', '{acme}')",
        "refused": "DELETE FROM router_tenant",
    }
    late: list[tuple[str, float]] = []
    with ExitStack() as stack, psycopg.connect(control.dsn(), autocommit=True) as connection:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-W", "error", "-c", PROCESS],
                    env={**os.environ, **settings},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(2)
        ]

        def tell(wanted: str) -> None:
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(f"{wanted}\n")
                process.stdin.flush()

        def when() -> list[float]:
            return [float(process.stdout.readline()) for process in processes if process.stdout is not None]

        tell("refused")  # they are there, and listen
        when()
        for _ in range(ROUNDS):
            for wanted, change in changes.items():
                connection.execute(change)
                committed = time.time()
                tell(wanted)
                late += [(wanted, at - committed) for at in when()]
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(20) == 0
    assert len(late) == 2 * ROUNDS * len(changes)
    assert max(seconds for _, seconds in late) < PROMPT, sorted(late, key=lambda one: one[1])[-5:]
