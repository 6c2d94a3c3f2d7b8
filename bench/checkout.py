"""What it costs to borrow a connection and give it back: against psycopg_pool itself, and against others that pool."""

# ruff: noqa: PLW0108  (all pay for a lambda, since the router has to: it is told the version)

from __future__ import annotations

import asyncio
import gc
import sys
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, ExitStack
from functools import partial
from importlib.util import find_spec
from random import sample
from time import process_time
from typing import TYPE_CHECKING, Any, TypeAlias

from hasql.driver.psycopg3 import PoolManager
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import create_engine

from bench.figures import Bar, Figure, ratio
from bench.warm import warm
from router import AsyncRouter, Router, RouterSettings
from router.testing import PostgresCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Contender: TypeAlias = tuple[str, str]  # what for, and whose
    Batch: TypeAlias = Callable[[], float]  # makes BATCH checkouts; returns the seconds of CPU they took

ROUNDS = 300
OTHERS = 60  # rounds in which those take part that are there to compare with
BATCH = 200
BAR = Bar("at most", 0.85)
UNIT = "times psycopg_pool's"

# The same for everyone: sessions to read are in autocommit and refuse writes, and a pool keeps a connection or more.
READ: dict[str, Any] = {"autocommit": True, "options": "-c default_transaction_read_only=on"}
SIZE: dict[str, Any] = {"min_size": 1, "max_size": 10}


def measure() -> Iterator[Figure]:
    """Time batches of checkouts of everyone in turns, in an order drawn anew each round.

    There is one borrower, each connection is open already, and no query runs: nothing waits. So what counts is the CPU
    time of the process, all its threads together, which a busy machine disturbs less than the time on the clock.

    Yields:
        For each kind of checkout, the median of its ratios to psycopg_pool's, round by round.
    """
    with ExitStack() as stack:
        cluster = stack.enter_context(PostgresCluster(standbys=2))
        runner = stack.enter_context(asyncio.Runner())
        times = _time(_sync(cluster, stack) | _async(cluster, stack, runner))
    for (use, whose), series in sorted(times.items()):
        if whose != "psycopg_pool":
            bar = BAR if whose == "router" else None
            yield ratio(f"{use}: {whose}", series, times[use, "psycopg_pool"][: len(series)], UNIT, bar=bar)


def _time(batches: Mapping[Contender, Batch]) -> dict[Contender, list[float]]:
    times: dict[Contender, list[float]] = {contender: [] for contender in batches}
    for batch in batches.values():
        batch()
    gc.collect()
    gc.disable()
    try:
        for number in range(ROUNDS):
            taking_part = [each for each in batches if number < OTHERS or each[1] in {"router", "psycopg_pool"}]
            for contender in sample(taking_part, len(taking_part)):
                times[contender].append(batches[contender]())
    finally:
        gc.enable()
    return times


def _sync(cluster: PostgresCluster, stack: ExitStack) -> dict[Contender, Batch]:
    def batch(take: Callable[[], AbstractContextManager[object]]) -> float:
        start = process_time()
        for _ in range(BATCH):
            with take():
                pass
        return process_time() - start

    primary, replica = cluster.primary.dsn(), cluster.standbys[0].dsn()
    router = stack.enter_context(Router(RouterSettings(versions={"v1": cluster.version_settings()}, pool=SIZE)))
    reading = stack.enter_context(ConnectionPool(replica, kwargs=READ, open=True, **SIZE))
    writing = stack.enter_context(ConnectionPool(primary, open=True, **SIZE))
    reading.wait()
    writing.wait()
    engine_reading = create_engine(_sqlalchemy(replica), connect_args=READ, isolation_level="AUTOCOMMIT")
    engine_writing = create_engine(_sqlalchemy(primary))
    stack.callback(engine_reading.dispose)
    stack.callback(engine_writing.dispose)
    batches: dict[Contender, Batch] = {
        ("sync read", "router"): partial(batch, lambda: router.connection(version="v1", read_only=True)),
        ("sync read", "psycopg_pool"): partial(batch, lambda: reading.connection()),
        ("sync read", "SQLAlchemy"): partial(batch, lambda: engine_reading.connect()),
        ("sync write", "router"): partial(batch, lambda: router.connection(version="v1")),
        ("sync write", "psycopg_pool"): partial(batch, lambda: writing.connection()),
        ("sync write", "SQLAlchemy"): partial(batch, lambda: engine_writing.connect()),
    }
    warm(router, lambda: (batches["sync read", "router"](), batches["sync write", "router"]()))
    return batches


def _async(cluster: PostgresCluster, stack: ExitStack, runner: asyncio.Runner) -> dict[Contender, Batch]:
    async def timed(take: Callable[[], AbstractAsyncContextManager[object]]) -> float:
        start = process_time()
        for _ in range(BATCH):
            async with take():
                pass
        return process_time() - start

    def batch(take: Callable[[], AbstractAsyncContextManager[object]]) -> float:
        return runner.run(timed(take))

    primary, replica = cluster.primary.dsn(), cluster.standbys[0].dsn()
    router = AsyncRouter(RouterSettings(versions={"v1": cluster.version_settings()}, pool=SIZE))
    opened = AsyncExitStack()
    opened.push_async_callback(router.close)
    stack.callback(lambda: runner.run(opened.aclose()))

    async def prepare() -> dict[Contender, Batch]:
        reading = await opened.enter_async_context(AsyncConnectionPool(replica, kwargs=READ, open=False, **SIZE))
        writing = await opened.enter_async_context(AsyncConnectionPool(primary, open=False, **SIZE))
        await reading.wait()
        await writing.wait()
        # Without the option that refuses writes: it would take the primary for a replica.
        servers = ",".join(f"{server.host}:{server.port}" for server in cluster.servers)
        hasql = PoolManager(  # type: ignore[no-untyped-call]
            f"postgresql://postgres@{servers}/postgres", pool_factory_kwargs={"kwargs": {"autocommit": True}, **SIZE}
        )
        opened.push_async_callback(hasql.close)
        await hasql.ready()
        batches: dict[Contender, Batch] = {
            ("async read", "router"): partial(batch, lambda: router.connection(version="v1", read_only=True)),
            ("async read", "psycopg_pool"): partial(batch, lambda: reading.connection()),
            ("async read", "hasql"): partial(batch, lambda: hasql.acquire_replica()),
            ("async write", "router"): partial(batch, lambda: router.connection(version="v1")),
            ("async write", "psycopg_pool"): partial(batch, lambda: writing.connection()),
        }
        if find_spec("greenlet"):
            from sqlalchemy.ext.asyncio import create_async_engine

            engine_reading = create_async_engine(_sqlalchemy(replica), connect_args=READ, isolation_level="AUTOCOMMIT")
            engine_writing = create_async_engine(_sqlalchemy(primary))
            opened.push_async_callback(engine_reading.dispose)
            opened.push_async_callback(engine_writing.dispose)
            batches["async read", "SQLAlchemy"] = partial(batch, lambda: engine_reading.connect())
            batches["async write", "SQLAlchemy"] = partial(batch, lambda: engine_writing.connect())
        else:
            print("checkout: without SQLAlchemy's async engine, as greenlet is not installed", file=sys.stderr)
        return batches

    batches = runner.run(prepare())
    warm(router, lambda: (batches["async read", "router"](), batches["async write", "router"]()))
    return batches


def _sqlalchemy(dsn: str) -> str:
    return dsn.replace("postgresql://", "postgresql+psycopg://", 1)
