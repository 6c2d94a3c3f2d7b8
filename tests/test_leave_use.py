"""With threads, a cluster that is left by one of them and used by another at the same moment is watched afterwards."""

from __future__ import annotations

import sys
from contextlib import suppress
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING

from router import Router, Unavailable
from tests.support import settings

if TYPE_CHECKING:
    import pytest

    from router.testing import PostgresCluster

SECONDS = 2.0


def test_tenants_whose_servers_are_left_and_used_all_the_time_are_served(
    cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router._sync.clusters.RECENT", 1)
    hosts = {"acme": cluster.primary.host, "globex": "localhost", "initech": str(cluster.directory)}
    tenants = {tenant: {"primary": cluster.dsn(host=host)} for tenant, host in hosts.items()}
    options = settings(versions={"v1": cluster.dsn()}, tenants=tenants, max_pools=2, pool={"timeout": 1.0})
    end = monotonic() + SECONDS

    def work(place: int) -> None:
        keys = list(tenants)
        while monotonic() < end:
            place += 1
            with suppress(Unavailable), router.connection(tenant=keys[place % 3]):
                pass

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with Router(options) as router:
            threads = [Thread(target=work, args=(place,)) for place in range(9)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for tenant in tenants:
                with router.connection(tenant=tenant, timeout=5.0) as connection:
                    connection.execute("SELECT 1")
    finally:
        sys.setswitchinterval(interval)
