# Generated from tests/_async/test_totals.py by tools/async_to_sync.py: do not edit.
"""What a router has counted stays counted, whatever becomes of the pools; and what requests suffer is told."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest

from router import Router
from tests.support import eventually, settings, together

if TYPE_CHECKING:
    from router.measures import Totals
    from router.testing import PostgresCluster

ROW = {"tenant_template": {"row": "app.tenant"}}


def totals(router: Router, *, read_only: bool, version: str | None = "v1") -> Totals:
    [found] = [one for one in router.stats().totals if (one.version, one.read_only) == (version, read_only)]
    return found


def test_totals_outlive_the_pools_they_come_from(cluster: PostgresCluster) -> None:
    options = settings(primary=cluster.dsn(), max_pools=3, **ROW)
    with Router(options) as router:
        assert [(one.version, one.read_only, one.requests) for one in router.stats().totals] == [
            ("v1", True, 0),
            ("v1", False, 0),
        ]
        before = totals(router, read_only=True)
        for number in range(30):
            with router.connection(tenant=f"t{number // 3}", read_only=True) as connection:
                connection.execute("SELECT 1")
            now = totals(router, read_only=True)
            assert now.requests == number + 1
            assert (now.opened, now.queued) >= (before.opened, before.queued)
            before = now
        assert (before.opened, before.queued, before.failed) == (10, 10, 0)
        assert before.wait_seconds > 0.0
        assert totals(router, read_only=False).requests == 0
        assert len(router.stats().tenant_pools) <= 3


def test_totals_only_grow_while_pools_are_closed_in_the_middle_of_requests(cluster: PostgresCluster) -> None:
    options = settings(primary=cluster.dsn(), max_pools=2, **ROW)
    with Router(options) as router:
        turns, seen = iter(range(400)), [0]

        def work() -> None:
            for turn in turns:
                with router.connection(tenant=f"t{turn % 5}", read_only=True, timeout=20.0) as connection:
                    connection.execute("SELECT 1")
                found = router.stats().totals[0].requests
                assert found >= seen[0]
                seen[0] = found

        together(work, 4)
        assert totals(router, read_only=True).requests >= 400

        # Nothing is kept of pools that are gone but the sums.
        def added_up() -> bool:
            gc.collect()
            router.stats()
            return len(router._routing.pools._counts) <= 3

        eventually(added_up)
        assert totals(router, read_only=True).requests >= 400


def test_servers_of_tenants_own_are_counted_together(cluster: PostgresCluster) -> None:
    homes: dict[str, dict[str, Any]] = {
        f"t{number}": {"primary": cluster.dsn(), "row": "app.tenant"} for number in range(2)
    }
    with Router(settings(primary=cluster.dsn(), tenants=homes)) as router:
        for tenant in homes:
            with router.connection(tenant=tenant):
                pass
        assert totals(router, read_only=False, version=None).requests == 2
        assert totals(router, read_only=False).requests == 0


def test_attempts_to_connect_that_failed_are_counted(cluster: PostgresCluster) -> None:
    options = settings(primary=cluster.dsn(), tenant_template={"database": "{tenant}"})
    with Router(options) as router:
        for number in range(2):
            with pytest.raises(LookupError, match="does not exist"):
                with router.connection(tenant=f"nowhere{number}"):
                    pass
        found = totals(router, read_only=False)
        assert (found.opened, found.failed) == (2, 2)
