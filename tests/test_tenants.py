"""What both shells have in common about tenants, and what one of them only: hostile keys, threads, cancellation."""

from __future__ import annotations

import asyncio
import random
import re
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router import AsyncRouter, PoolExhausted, Router, UnknownTenant
from router.core.topology import TENANT_PATTERN
from tests.support import PATIENCE, aeventually, eventually, new_name, run, settings, together

if TYPE_CHECKING:
    from router.testing import PostgresCluster

NOWHERE = settings(
    primary="postgresql://app@127.0.0.1:1/app",
    tenants={"acme": {"schema": "acme"}},
    tenant_template={"row": "app.tenant"},
)

NO_KEYS = st.one_of(
    st.text().filter(lambda text: not re.fullmatch(TENANT_PATTERN, text)),
    st.from_regex(TENANT_PATTERN, fullmatch=True).map(lambda key: f"{key}\n"),
    st.binary(),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.lists(st.text()),
    st.tuples(st.text(), st.text()),
    st.dictionaries(st.text(), st.text()),
)


# Hostile keys


@given(NO_KEYS)
@example('"; DROP TABLE me; --')
@example("'; DROP TABLE me; --")
@example("../other")
@example("%s")
@example("{tenant}")
@example("a" * 10_000)
@example("acme\0")
@example("acme ")
@example("ACME")
@example("аcme")  # noqa: RUF001 (the first letter is a Cyrillic one)
@example("a\u200bcme")
@example("\ud800")
@example("")
@example(("v1", "acme"))  # as lanes are looked up
def test_what_is_no_key_is_unknown_before_anything_is_opened(key: Any) -> None:
    for router in (Router(NOWHERE), AsyncRouter(NOWHERE)):
        for ask in (
            partial(router.connection, tenant=key),
            partial(router.connection, tenant=key, read_only=True),
            partial(router.connection, tenant=key, version="v1"),
            partial(router.connection, tenant=key, max_lag=1.0, read_only=True),
            partial(router.use, tenant=key),
            partial(router.explain, tenant=key),
        ):
            with pytest.raises(UnknownTenant) as raised:
                ask()
            assert raised.value.tenant is key
            assert len(str(raised.value)) < 300
            assert str(raised.value).isprintable()
        found = router._snapshot()
        assert (found.readers, found.writers, found.targets, found.pools) == ({}, {}, frozenset(), ())
        stats = router.stats()
        assert (stats.connections, stats.tenant_pools) == (0, ())
    for statement in ("execute", "run"):
        with pytest.raises(UnknownTenant):
            getattr(Router(NOWHERE), statement)("SELECT 1", tenant=key)
        with pytest.raises(UnknownTenant):
            getattr(AsyncRouter(NOWHERE), statement)("SELECT 1", tenant=key).send(None)


def test_none_is_no_tenant() -> None:
    router = Router(NOWHERE)
    for ask in (router.connection, router.explain, partial(router.execute, "SELECT 1"), partial(router.run, id)):
        with pytest.raises(UnknownTenant, match="no tenant was named"):
            ask(tenant=None)
    assert router.explain(tenant=None, version="v1").target.tenant is None
    assert router.stats().connections == 0


def test_a_key_that_is_nearly_one_is_told_the_right_one() -> None:
    router = Router(settings(primary="postgresql://app@127.0.0.1:1/app", tenants={"acme": {"schema": "acme"}}))
    with pytest.raises(UnknownTenant, match="unknown tenant 'acne'; did you mean 'acme'"):
        router.connection(tenant="acne")


# Threads


def test_threads_are_bounded_by_the_pools_not_by_the_tenants(cluster: PostgresCluster) -> None:
    options = settings(
        primary=cluster.dsn(), tenant_template={"row": "app.tenant"}, max_pools=4, pool={"timeout": PATIENCE}
    )
    before = threading.active_count()
    with Router(options) as router:
        turns = iter(range(120))

        def work() -> None:
            for turn in turns:
                with router.connection(tenant=f"k{turn % 30}", read_only=turn % 2 == 0) as connection:
                    connection.execute("SELECT 1")

        together(work, 4)
        assert len(router.stats().tenant_pools) == 4
        # Two a pool, the server's watcher and its look, one that keeps house; a pool just closed takes a moment to end.
        eventually(lambda: threading.active_count() - before <= 2 * 4 + 3)
    eventually(lambda: threading.active_count() <= before)


# Leaving what was never entered


def test_a_block_that_was_not_entered_gives_no_place_back(cluster: PostgresCluster) -> None:
    tenancy = {"pooling": "shared", "max_connections": 1}
    with Router(settings(primary=cluster.dsn(), tenant_template={"row": "app.tenant"}, tenancy=tenancy)) as router:
        with pytest.raises(RuntimeError, match="not entered"):
            router.connection(tenant="acme").__exit__(None, None, None)
        with router.connection(tenant="acme"), pytest.raises(PoolExhausted):
            router.connection(tenant="acme", timeout=0.1).__enter__()


# Cancellation


@pytest.mark.parametrize("read_only", [False, True])
async def test_tasks_cancelled_while_a_connection_changes_hands_leave_the_pool_whole(
    cluster: PostgresCluster, read_only: bool
) -> None:
    size, keys = 2, [new_name() for _ in range(3)]
    for key in keys:
        run(cluster.dsn(), f"CREATE SCHEMA {key}", f"CREATE TABLE {key}.me AS SELECT '{key}' AS name")
    options = settings(
        primary=cluster.dsn(),
        tenant_template={"schema": "{tenant}"},
        tenancy={"pooling": "shared", "max_connections": 2},
        pool={"max_size": size},
    )
    async with AsyncRouter(options) as router:

        async def borrow(key: str) -> None:
            async with router.connection(tenant=key, read_only=read_only, timeout=PATIENCE) as connection:
                cursor = await connection.execute("SELECT name FROM me")
                assert await cursor.fetchall() == [(key,)]

        await borrow(keys[0])
        chance, cancelled, turn = random.Random(4), 0, 0
        while cancelled < 150:
            tasks = []
            for _ in range(3 * size):
                turn += 1
                tasks.append(asyncio.create_task(borrow(keys[turn % 3])))
                await asyncio.sleep(chance.choice([0, 0, 0.0003, 0.0006]))
            for task in tasks:
                await asyncio.sleep(chance.choice([0, 0, 0.0003, 0.0006]))
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
                cancelled += outcome is not None
            with suppress(asyncio.CancelledError):
                await borrow(keys[turn % 3])

        async def whole() -> bool:
            [pool] = router.stats().tenant_pools
            return (pool.pool.in_use, pool.pool.waiting) == (0, 0) and pool.pool.idle == pool.pool.size

        await aeventually(whole)
        assert [admission.admitted for admission in router._snapshot().admissions.values()] == [0, 0, 0]
        async with (
            router.connection(tenant=keys[0], read_only=read_only, timeout=PATIENCE),
            router.connection(tenant=keys[0], read_only=read_only, timeout=PATIENCE),
        ):
            pass
        for key in keys:
            await borrow(key)
