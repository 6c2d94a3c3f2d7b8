"""One tenant sends more than can be served, and the others hardly notice: whoever has least is next."""

from __future__ import annotations

import time
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pytest

from router import AsyncRouter
from router._async.line import AsyncLine
from router._runtime.flags import AFlag, asleep
from tests.support import PATIENCE, aall_of, aeventually, new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from router._async.waiter import AsyncWaiter
    from tests.conftest import Postgres

OTHERS = 20
FLOOD = 100  # times what each of the others sends
EVERY = 0.2  # seconds between two requests of one of them
WORK = 0.02  # seconds that a request takes on the server: connections are scarce, and not this process's time
SECONDS = 2.0
CONNECTIONS = 4


def all_told(router: AsyncRouter, flood: str, served: list[str]) -> bool:
    """Whether every request that has a connection, or a slot for one of its tenant's own, stands in `served`."""
    snapshot = router._snapshot()
    if (slots := snapshot.slots.get(f"tenant {flood}")) is not None:
        return slots == served.count(flood)
    return sum(pool.borrowed for pool in snapshot.pools) == len(served)


@pytest.mark.parametrize(
    ("pooling", "scarce", "most"),
    [
        ("shared", {"pool": {"max_size": CONNECTIONS, "timeout": PATIENCE}}, CONNECTIONS),
        # One of them may look at the server.
        ("shared", {"pool": {"max_size": 40, "timeout": PATIENCE}, "max_connections": CONNECTIONS}, CONNECTIONS - 1),
        ("dedicated", {"max_connections": CONNECTIONS}, CONNECTIONS - 1),
    ],
)
async def test_what_a_flood_gives_back_goes_to_those_who_have_none(
    postgres: Postgres, pooling: str, scarce: dict[str, Any], most: int
) -> None:
    flood, *others = (new_name() for _ in range(CONNECTIONS))
    options = settings(
        primary=postgres.primary,
        tenancy={"pooling": pooling},
        tenant_template={"row": "app.tenant"},
        **{"pool": {"timeout": PATIENCE}, **scarce},
    )
    served: list[str] = []
    some, all_ = AFlag(), AFlag()  # until when they keep their connections
    async with AsyncRouter(options) as router:

        async def send(tenant: str, until: AFlag, when: Callable[[], Awaitable[bool]]) -> None:
            await aeventually(when)
            async with router.connection(tenant=tenant, read_only=True):
                served.append(tenant)
                await until.wait_for(PATIENCE)

        async def waiting() -> set[str]:
            if pooling == "dedicated":
                return {owner.removeprefix("tenant ") for owner in router._snapshot().slots_waiting}
            return {tenant for pool_set in router._snapshot().pool_sets for tenant in pool_set.waiting_for}

        async def at_once() -> bool:
            return True

        async def begun() -> bool:
            return flood in served

        async def flooded() -> bool:
            return served.count(flood) >= most and flood in await waiting()

        async def others_wait() -> bool:
            return (await waiting()).union(served) >= set(others) and all_told(router, flood, served)

        async def others_are_served() -> bool:
            return set(served) >= set(others)

        async def watch() -> None:
            await aeventually(others_wait)
            before = served.count(flood)
            some.set()  # the flood keeps one: it never has less than they
            await aeventually(others_are_served)
            assert served.count(flood) == before
            all_.set()

        await aall_of(
            watch,
            partial(send, flood, all_, at_once),
            *[partial(send, flood, some, begun)] * (3 * CONNECTIONS),
            *(partial(send, tenant, all_, flooded) for tenant in others),
        )
    assert served.count(flood) == 3 * CONNECTIONS + 1


@pytest.mark.parametrize(
    ("pooling", "scarce"),
    [
        ("shared", {"pool": {"max_size": CONNECTIONS, "timeout": PATIENCE}}),
        ("dedicated", {"max_connections": OTHERS + 2}),
    ],
)
async def test_a_flood_of_one_tenant_starves_nobody(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, pooling: str, scarce: dict[str, Any]
) -> None:
    flood, *others = (new_name() for _ in range(OTHERS + 1))
    for tenant in (flood, *others):
        run(postgres.primary, f"CREATE SCHEMA {tenant}; CREATE TABLE {tenant}.me AS SELECT '{tenant}' AS name")
    options = settings(
        primary=postgres.primary,
        tenancy={"pooling": pooling},
        tenants={tenant: {"version": "v1", "schema": tenant} for tenant in (flood, *others)},
        **{"pool": {"timeout": PATIENCE}, **scarce},
    )
    served = dict.fromkeys((flood, *others), 0)
    waited: dict[bool, list[float]] = {True: [], False: []}  # seconds for a connection: the flood, and the others
    join, hand_over = AsyncLine.join, AsyncLine.hand_over
    handed: list[str] = []  # whom each connection went to that somebody waited for
    arrived: dict[AsyncWaiter, int] = {}
    ahead: list[int] = []  # for each request of the others, how many more of the flood's than of others' went first

    def arrive(line: AsyncLine, waiter: AsyncWaiter) -> None:
        arrived[waiter] = len(handed)
        join(line, waiter)

    def serve(line: AsyncLine, *how: Any) -> AsyncWaiter | None:
        waiter = hand_over(line, *how)
        if waiter is not None:
            if waiter.tenant != flood:
                ahead.append(sum(1 if other == flood else -1 for other in handed[arrived[waiter] :]))
            handed.append(waiter.tenant)
        return waiter

    monkeypatch.setattr(AsyncLine, "join", arrive)
    monkeypatch.setattr(AsyncLine, "hand_over", serve)
    async with AsyncRouter(options) as router:

        async def connect(tenant: str) -> None:
            async with router.connection(tenant=tenant, read_only=True):
                pass

        await aall_of(*(partial(connect, tenant) for tenant in others))
        started = time.monotonic()

        async def send(tenant: str, phase: float) -> None:
            due = started + phase * EVERY
            while due < started + SECONDS:
                await asleep(max(due - time.monotonic(), 0.0))
                begun = time.monotonic()
                async with router.connection(tenant=tenant, read_only=True) as connection:
                    waited[tenant == flood].append(time.monotonic() - begun)
                    cursor = await connection.execute("SELECT name, pg_sleep(%s) FROM me", [WORK])
                    assert await cursor.fetchone() == (tenant, "")
                served[tenant] += 1
                due = max(due + EVERY, time.monotonic())

        await aall_of(
            *(partial(send, tenant, place / OTHERS) for place, tenant in enumerate(others)),
            *(partial(send, flood, place / FLOOD) for place in range(FLOOD)),
        )
    # Against the flood's own waiting, which a busy machine makes longer, too.
    assert fmean(waited[False]) < 0.1 * fmean(waited[True])
    assert OTHERS < served[flood] / SECONDS < 0.9 * FLOOD / EVERY  # it was served, and it was a flood
    if pooling == "shared":  # else it is served on, while a connection is opened for somebody else
        assert len(ahead) > OTHERS
        assert max(ahead) <= 1  # what it gives back goes to somebody else
