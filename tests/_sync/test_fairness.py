# Generated from tests/_async/test_fairness.py by tools/async_to_sync.py: do not edit.
"""One tenant sends more than can be served, and the others hardly notice: whoever has least is next."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from router import Router
from router._runtime import sleep
from tests.support import all_of, new_name, run, settings

if TYPE_CHECKING:
    from tests.conftest import Postgres

OTHERS = 20
FLOOD = 100  # times what each of the others sends
EVERY = 0.2  # seconds between two requests of one of them
WORK = 0.02  # seconds that a request takes on the server: connections are scarce, and not this process's time
SECONDS = 4.0
CONNECTIONS = 4


@pytest.mark.parametrize(
    ("pooling", "scarce", "most"),
    [
        ("shared", {"pool": {"max_size": CONNECTIONS}}, CONNECTIONS),  # those that had been handed theirs already
        ("dedicated", {"max_connections": OTHERS + 2}, 15),  # while one is closed and another one opened
    ],
)
def test_a_flood_of_one_tenant_passes_nobody(
    postgres: Postgres, pooling: str, scarce: dict[str, Any], most: int
) -> None:
    flood, *others = (new_name() for _ in range(OTHERS + 1))
    for tenant in (flood, *others):
        run(postgres.primary, f"CREATE SCHEMA {tenant}; CREATE TABLE {tenant}.me AS SELECT '{tenant}' AS name")
    options = settings(
        primary=postgres.primary,
        tenancy={"pooling": pooling},
        tenants={tenant: {"version": "v1", "schema": tenant} for tenant in (flood, *others)},
        **{"pool": {"timeout": 20.0}, **scarce},
    )
    served = dict.fromkeys((flood, *others), 0)
    passed: list[int] = []
    with Router(options) as router:

        def connect(tenant: str) -> None:
            with router.connection(tenant=tenant, read_only=True):
                pass

        all_of(*(partial(connect, tenant) for tenant in others))
        started = time.monotonic()

        def send(tenant: str, phase: float) -> None:
            due = started + phase * EVERY
            while due < started + SECONDS:
                sleep(max(due - time.monotonic(), 0.0))
                before = served[flood]
                with router.connection(tenant=tenant, read_only=True) as connection:
                    if tenant != flood:
                        passed.append(served[flood] - before)
                    cursor = connection.execute("SELECT name, pg_sleep(%s) FROM me", [WORK])
                    assert cursor.fetchone() == (tenant, "")
                served[tenant] += 1
                due = max(due + EVERY, time.monotonic())

        all_of(
            *(partial(send, tenant, place / OTHERS) for place, tenant in enumerate(others)),
            *(partial(send, flood, place / FLOOD) for place in range(FLOOD)),
        )
    assert len(passed) >= 0.9 * OTHERS * SECONDS / EVERY
    assert OTHERS < served[flood] / SECONDS < 0.9 * FLOOD / EVERY  # it was served, and it was a flood
    assert max(passed) <= most
