"""A server that takes fewer connections than there may be: a role's limit, or one that many processes share."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from router import AsyncRouter, PoolExhausted
from tests._async.internals import inside
from tests.support import aall_of, aeventually, aoutside, new_name, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.testing import PostgresCluster

REFUSED = "too many connections for role"


@pytest.fixture
def role(cluster: PostgresCluster) -> Iterator[str]:
    """A role that may have three connections."""
    name = new_name()
    cluster.primary.execute(f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 3")
    yield name
    cluster.primary.execute(f"DROP ROLE {name}")


def refused(cluster: PostgresCluster, role: str) -> int:
    """How many logins the server has refused the role."""
    return cluster.primary.log.read_text().count(f'{REFUSED} "{role}"')


async def work(router: AsyncRouter, served: Counter[Any], who: Any, until: float, **how: Any) -> None:
    """Send one request after the other."""
    while time.monotonic() < until:
        async with router.connection(**how) as connection:
            await connection.execute("SELECT pg_sleep(0.01)")
        served[who] += 1


async def test_all_clients_are_served_evenly_and_few_logins_are_refused(cluster: PostgresCluster, role: str) -> None:
    served: Counter[int] = Counter()
    async with AsyncRouter(settings(primary=cluster.dsn(user=role), pool={"max_size": 20, "timeout": 5})) as router:
        until = time.monotonic() + 2.0
        await aall_of(*(partial(work, router, served, number, until) for number in range(12)))
        [node] = router.stats().versions[0].nodes
        assert node.write is not None
        assert node.write.server_limit == 3
        assert node.state == "up"
    assert len(served) == 12
    assert max(served.values()) <= 3 * min(served.values())
    assert refused(cluster, role) <= 3


async def test_all_pools_of_a_login_keep_to_the_limit_and_each_gets_a_connection(
    cluster: PostgresCluster, role: str
) -> None:
    tenants = [f"t{number}" for number in range(5)]
    options = settings(
        primary=cluster.dsn(user=role),
        tenant_template={"version": "v1", "row": "app.tenant"},
        pool={"max_size": 5, "timeout": 10},
    )
    served: Counter[Any] = Counter()
    async with AsyncRouter(options) as router:
        until = time.monotonic() + 2.0
        uses: list[dict[str, Any]] = [
            {"tenant": tenant, "read_only": use} for tenant in tenants for use in (True, False)
        ]
        uses += [{"version": "v1", "read_only": use} for use in (True, False)]
        await aall_of(
            *(partial(work, router, served, tuple(how.items()), until, **how) for how in uses for _ in range(2)),
        )
    assert len(served) == len(uses)
    assert min(served.values()) >= 2
    assert refused(cluster, role) <= len(uses) + 3  # all begin at once, when the limit is not known


async def test_a_request_waits_while_others_hold_all_and_is_served_once_they_leave(
    cluster: PostgresCluster, role: str
) -> None:
    dsn = cluster.dsn(user=role)
    others: list[psycopg.Connection[Any]] = []

    def fill() -> None:
        with suppress(psycopg.OperationalError):
            while True:
                others.append(psycopg.connect(dsn))

    def leave() -> None:
        while others:
            others.pop().close()

    await aoutside(fill)
    async with AsyncRouter(settings(primary=dsn)) as router:
        try:
            with pytest.raises(PoolExhausted, match=f"accepts no further connection: FATAL: .*{REFUSED}"):
                async with router.connection(timeout=0.5):
                    pytest.fail("there was room")
            seen = refused(cluster, role)

            async def wait() -> None:
                async with router.connection(timeout=20) as connection:
                    await connection.execute("SELECT 1")

            async def make_room() -> None:
                async def refused_again() -> bool:
                    return refused(cluster, role) > seen

                await aeventually(refused_again)
                await aoutside(leave)

            began = time.monotonic()
            await aall_of(wait, make_room)
            assert time.monotonic() - began < 5.0
        finally:
            await aoutside(leave)


async def test_the_pool_grows_again_once_the_limit_is_lifted(
    cluster: PostgresCluster, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.core.server_limit.LEAST_PAUSE", 0.1)
    served: Counter[int] = Counter()
    async with AsyncRouter(settings(primary=cluster.dsn(user=role), pool={"max_size": 6, "timeout": 5})) as router:
        until = time.monotonic() + 0.5
        await aall_of(*(partial(work, router, served, number, until) for number in range(8)))
        [node] = router.stats().versions[0].nodes
        assert node.write is not None
        assert node.write.server_limit in {2, 3}  # it is asked often here, also while a session ends
        cluster.primary.execute(f"ALTER ROLE {role} CONNECTION LIMIT -1")
        at_max_size: list[bool] = []

        async def ask(number: int) -> None:
            while not at_max_size:
                await work(router, served, number, time.monotonic() + 0.05)

        async def watch() -> None:
            async def has_grown() -> bool:
                [node] = router.stats().versions[0].nodes
                return node.write is not None and node.write.in_use == 6 and node.write.server_limit is None

            try:
                await aeventually(has_grown)
            finally:
                at_max_size.append(True)

        await aall_of(watch, *(partial(ask, number) for number in range(8)))


async def test_a_limit_below_min_size_is_not_asked_for_more_again_and_again(
    cluster: PostgresCluster, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router._async.in_force.HOUSEKEEPING", 0.05)
    served: Counter[int] = Counter()
    options = settings(primary=cluster.dsn(user=role), pool={"min_size": 6, "max_size": 6, "timeout": 5})
    async with AsyncRouter(options) as router:
        until = time.monotonic() + 1.5
        await aall_of(*(partial(work, router, served, number, until) for number in range(2)))
        assert router.stats().versions[0].nodes[0].state == "up"
    assert len(served) == 2
    assert refused(cluster, role) <= 3


async def test_requests_that_wait_for_a_slot_do_nothing(
    cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings(
        primary=cluster.dsn(),
        max_connections=3,
        tenant_template={"version": "v1", "row": "app.tenant"},
        pool={"timeout": 20},
        health={"interval": 30},
    )
    async with AsyncRouter(options) as router:
        slots = inside(router).slots
        looked: list[float] = []
        settle = slots._settle

        def look(*logins: Any) -> None:
            looked.append(time.monotonic())
            settle(*logins)

        monkeypatch.setattr(slots, "_settle", look)
        served: list[str] = []
        held: list[bool] = []

        async def wait(tenant: str) -> None:
            async with router.connection(tenant=tenant):
                served.append(tenant)

        async def hold() -> None:
            async with router.connection(tenant="one"), router.connection(tenant="two"), router.connection(tenant="x"):
                held.append(True)

                async def all_wait() -> bool:
                    return len(slots.waiting) >= 20

                await aeventually(all_wait)
                began = time.monotonic()

                async def two_rounds_of_housekeeping() -> bool:
                    return sum(at > began + 0.1 for at in looked) >= 2

                await aeventually(two_rounds_of_housekeeping)
                assert sum(at > began + 0.1 for at in looked) <= 3

        async def begun() -> bool:
            return bool(held)

        async def wait_then(tenant: str) -> None:
            await aeventually(begun)
            await wait(tenant)

        await aall_of(hold, *(partial(wait_then, f"w{number}") for number in range(20)))
        assert len(served) == 20
