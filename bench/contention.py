"""Reads a second when many requests share few connections: beside the bare ``psycopg_pool``, in turns.

Both have ten connections to the same standby, open from the start, in autocommit, on which the server refuses writes.
A request borrows one, sends an indexed SELECT, fetches its row and gives the connection back; then the next begins.
"""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from itertools import count
from random import sample
from statistics import median, quantiles
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

from psycopg_pool import AsyncConnectionPool, ConnectionPool

from bench.figures import Bar, Figure, ratio
from router import AsyncRouter, Router, RouterSettings
from router.testing import PostgresCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from psycopg import AsyncConnection, Connection

    Borrow: TypeAlias = Callable[[], AbstractContextManager[Connection[Any]]]
    AsyncBorrow: TypeAlias = Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]]

THREADS = (8, 32, 128)
TASKS = (8, 64, 512)
CONNECTIONS = 10
ROUNDS = 25  # of each contender, after one that warms up
SERIES = 4  # at most: while a bar does not hold, as many rounds again are added, for the machine may be busy
SECONDS = 0.1  # that a round lasts
SERVED, SLOWEST = Bar("at least", 0.95), Bar("at most", 1.2)

POOL: dict[str, Any] = {"min_size": CONNECTIONS, "max_size": CONNECTIONS, "timeout": 30.0}
READ: dict[str, Any] = {"autocommit": True, "options": "-c default_transaction_read_only=on"}
SELECT = "SELECT name FROM item WHERE id = %s"


@dataclass(slots=True)
class Tally:
    """What one contender did, a figure for each round.

    Attributes:
        rates: Requests served a second.
        slowest: Seconds within which 99 of 100 requests were served.
    """

    rates: list[float] = field(default_factory=list)
    slowest: list[float] = field(default_factory=list)

    def note(self, waits: list[float], seconds: float) -> None:
        """Take note of a round.

        Args:
            waits: Seconds that each request took.
            seconds: What all of them took together.
        """
        self.rates.append(len(waits) / seconds)
        self.slowest.append(quantiles(waits, n=100)[98])


def measure() -> Iterator[Figure]:
    """Have more and more threads read, then tasks.

    Yields:
        For each number of them, the router's reads a second and its 99th percentile as ratios to the bare pool's.
    """
    with PostgresCluster(standbys=1) as cluster:
        cluster.primary.execute("CREATE TABLE item (id int PRIMARY KEY, name text)")
        cluster.primary.execute("INSERT INTO item SELECT id, 'name ' || id FROM generate_series(0, 999) AS id")
        cluster.wait_replayed()
        for name, tallies in (_in_threads(cluster) | asyncio.run(_in_tasks(cluster))).items():
            yield from compare(name, tallies)


def compare(name: str, tallies: Mapping[str, Tally]) -> list[Figure]:
    """Turn what was counted into figures.

    Args:
        name: How many of what sent the requests.
        tallies: The rounds of ``router`` and of ``pool``.

    Returns:
        Both ratios, round by round.
    """
    ours, bare = tallies["router"], tallies["pool"]
    unit = f"times {median(bare.slowest) * 1000:.1f} ms"
    return [
        ratio(f"{name}: reads a second", ours.rates, bare.rates, f"times {median(bare.rates):.0f}", bar=SERVED),
        ratio(f"{name}: 99th percentile", ours.slowest, bare.slowest, unit, bar=SLOWEST),
    ]


def _settings(cluster: PostgresCluster) -> RouterSettings:
    return RouterSettings(versions={"v1": cluster.version_settings()}, pool=POOL)


def _turns(tallies: Mapping[str, Tally]) -> Iterator[tuple[int, str]]:
    """Yield the number of each round with each contender, in an order drawn anew each round."""
    gc.collect()
    gc.freeze()
    for number in range(ROUNDS * SERIES + 1):
        if number > ROUNDS and number % ROUNDS == 1 and all(figure.holds for figure in compare("", tallies)):
            break
        for whose in sample(list(tallies), len(tallies)):
            yield number, whose
    gc.unfreeze()


def _in_threads(cluster: PostgresCluster) -> dict[str, dict[str, Tally]]:
    with ExitStack() as stack:
        router = stack.enter_context(Router(_settings(cluster)))
        pool = stack.enter_context(ConnectionPool(cluster.standbys[0].dsn(), kwargs=READ, open=True, **POOL))
        executor = stack.enter_context(ThreadPoolExecutor(max(THREADS)))
        borrowing: dict[str, Borrow] = {
            "router": lambda: router.connection(version="v1", read_only=True),
            "pool": pool.connection,
        }
        tallies = {f"{threads} threads": {whose: Tally() for whose in borrowing} for threads in THREADS}
        for threads, tally in zip(THREADS, tallies.values(), strict=True):
            for number, whose in _turns(tally):
                begun = monotonic()
                work, end = borrowing[whose], begun + SECONDS
                working = [executor.submit(_read, work, worker, end) for worker in range(threads)]
                waits = [wait for each in working for wait in each.result()]
                if number:
                    tally[whose].note(waits, monotonic() - begun)
    return tallies


def _read(borrow: Borrow, worker: int, end: float) -> list[float]:
    """Send one request after the other, one at least; return the seconds each took."""
    waits: list[float] = []
    for number in count(worker):
        begun = monotonic()
        if waits and begun >= end:
            break
        with borrow() as connection:
            connection.execute(SELECT, [number % 1000]).fetchone()
        waits.append(monotonic() - begun)
    return waits


async def _in_tasks(cluster: PostgresCluster) -> dict[str, dict[str, Tally]]:
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(AsyncRouter(_settings(cluster)))
        pool = await stack.enter_async_context(
            AsyncConnectionPool(cluster.standbys[0].dsn(), kwargs=READ, open=False, **POOL)
        )
        borrowing: dict[str, AsyncBorrow] = {
            "router": lambda: router.connection(version="v1", read_only=True),
            "pool": pool.connection,
        }
        tallies = {f"{tasks} tasks": {whose: Tally() for whose in borrowing} for tasks in TASKS}
        for tasks, tally in zip(TASKS, tallies.values(), strict=True):
            for number, whose in _turns(tally):
                begun = monotonic()
                work, end = borrowing[whose], begun + SECONDS
                waits = await asyncio.gather(*(_aread(work, worker, end) for worker in range(tasks)))
                if number:
                    tally[whose].note([wait for each in waits for wait in each], monotonic() - begun)
    return tallies


async def _aread(borrow: AsyncBorrow, worker: int, end: float) -> list[float]:
    waits: list[float] = []
    for number in count(worker):
        begun = monotonic()
        if waits and begun >= end:
            break
        async with borrow() as connection:
            await (await connection.execute(SELECT, [number % 1000])).fetchone()
        waits.append(monotonic() - begun)
    return waits
