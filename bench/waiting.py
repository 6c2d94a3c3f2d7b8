"""Thousands of requests wait for a server that is down, which then comes back: what waiting costs, who is served when.

The version has three nodes. One is the server, stopped before the first request and started again when all wait; the
other two stay dead. Tasks of the bare ``psycopg_pool``, which knows of the server alone, wait in the same way after it,
so that one sees what part of it is asyncio's and the machine's: their figures have no bar.

What blocks the event loop is seen by a task that wants to run every few milliseconds. The time that the loop's thread
was ready to run and the machine ran something else does not count, where the system tells it (Linux). What counts is
work in the loop, whether the router's or the requests' own, and waiting for other threads of this process.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from threading import Thread
from time import monotonic, process_time, sleep
from typing import TYPE_CHECKING, Any, TypeAlias

from psycopg_pool import AsyncConnectionPool

from bench.figures import Bar, Figure
from router import AsyncRouter, Router, RouterSettings
from router.testing import PostgresCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from psycopg import AsyncConnection

    Borrow: TypeAlias = Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]]
    Opened: TypeAlias = Callable[[PostgresCluster], AbstractAsyncContextManager[Borrow]]

TASKS = 5000
THREADS = 400
BATCH = 100  # tasks made in one turn of the loop: what they cost when they begin is the application's to spread
TIMEOUT = 25.0  # seconds that a request may take
SETTLED = 1.0  # seconds from the last request until it is measured what waiting costs
MEASURED = 1.5  # seconds that this is measured
BEAT = 0.005  # seconds between two looks at the loop
POOL: dict[str, Any] = {"max_size": 10}

FIRST = Bar("at most", 0.3)  # seconds
BLOCKED = Bar("at most", 100)  # milliseconds
CORE = Bar("at most", 20)  # per cent
NONE = Bar("exactly", 0)

PHASES = ("they begin", "they wait", "they are served")


@dataclass(slots=True)
class Tally:
    """What became of the requests of one contender.

    Attributes:
        served: When each that was served had its answer.
        errors: The name of the error of each other.
        cpu: The part of a core that the process took while all waited.
        up: When the server let somebody in.
        blocked: The longest time, in seconds, that the event loop did nothing else, in each phase.
    """

    served: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    cpu: float = 0.0
    up: float = 0.0
    blocked: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))


def measure() -> Iterator[Figure]:
    """Let tasks of the router wait, those of the bare pool, then threads of the router.

    Yields:
        What waiting cost, when the first and the last were served, how many failed, and how long the loop was blocked.
    """
    for name in ("psycopg", "router"):
        logging.getLogger(name).addHandler(logging.NullHandler())  # no news: a server is down
    with PostgresCluster(version=18, standbys=0) as cluster:
        yield from compare(f"{TASKS} tasks", asyncio.run(_in_tasks(cluster, _router)))
        yield from compare(f"{TASKS} tasks, bare pool", asyncio.run(_in_tasks(cluster, _pool)), bars=False)
        yield from compare(f"{THREADS} threads", _in_threads(cluster))


def compare(name: str, tally: Tally, *, bars: bool = True) -> Iterator[Figure]:
    """Turn what was seen into figures.

    Args:
        name: Who waited.
        tally: What became of them.
        bars: Whether the figures have bars.

    Yields:
        The figures.
    """
    served, requests = tally.served or [float("inf")], len(tally.served) + len(tally.errors)
    kinds = ", ".join(sorted(set(tally.errors)))
    figures = (
        (Figure(f"{name}: first served", max(0.0, min(served) - tally.up), "s after the server is up"), FIRST),
        (Figure(f"{name}: last served", max(served) - tally.up, "s after the server is up"), None),
        (Figure(f"{name}: failed", len(tally.errors), f"of {requests} {kinds}".rstrip()), NONE),
        (Figure(f"{name}: waiting", tally.cpu * 100, "% of a core"), CORE),
    )
    for figure, bar in figures:
        yield replace(figure, bar=bar if bars else None)
    if any(tally.blocked.values()):
        phases = ", ".join(f"{seconds * 1000:.0f} while {phase}" for phase, seconds in tally.blocked.items())
        longest = max(tally.blocked.values()) * 1000
        yield Figure(f"{name}: loop blocked", longest, f"ms: {phases}", bar=BLOCKED if bars else None)


# In tasks


async def _in_tasks(cluster: PostgresCluster, opened: Opened) -> Tally:
    tally = Tally()
    cluster.primary.stop()
    async with opened(cluster) as borrow:

        async def request() -> None:
            try:
                async with borrow() as connection:
                    await connection.execute("SELECT 1")
                tally.served.append(monotonic())
            except Exception as error:  # noqa: BLE001 (whatever the caller sees)
                tally.errors.append(type(error).__name__)

        gc.collect()
        gc.freeze()  # what was there before is not looked through while the loop is watched
        tasks = []
        async with _watched_loop(tally, "they begin"):
            for number in range(TASKS):
                tasks.append(asyncio.create_task(request()))
                if number % BATCH == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(SETTLED)
        async with _watched_loop(tally, "they wait"):
            used, since = process_time(), monotonic()
            await asyncio.sleep(MEASURED)
            tally.cpu = (process_time() - used) / (monotonic() - since)
        async with _watched_loop(tally, "they are served"):
            await asyncio.to_thread(cluster.primary.start)
            tally.up = monotonic()
            await asyncio.gather(*tasks)
        gc.unfreeze()
    return tally


@asynccontextmanager
async def _watched_loop(tally: Tally, phase: str) -> AsyncIterator[None]:
    """Note how long the loop does not come to a task that would run every few milliseconds."""

    async def watch() -> None:
        clock = _clock()
        while True:
            before = clock()
            await asyncio.sleep(BEAT)
            tally.blocked[phase] = max(tally.blocked[phase], clock() - before - BEAT)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)  # it has begun
    try:
        yield
    finally:
        await asyncio.sleep(BEAT)  # the last time is seen, too
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


def _clock() -> Callable[[], float]:
    """Return a clock of this thread, which stands still while the thread could run and the machine runs others."""
    try:
        accounts = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except FileNotFoundError:
        return monotonic
    return lambda: monotonic() - int(os.pread(accounts, 100, 0).split()[1]) / 1e9


@asynccontextmanager
async def _router(cluster: PostgresCluster) -> AsyncIterator[Borrow]:
    async with AsyncRouter(_settings(cluster)) as router:
        yield lambda: router.connection(timeout=TIMEOUT)


@asynccontextmanager
async def _pool(cluster: PostgresCluster) -> AsyncIterator[Borrow]:
    async with AsyncConnectionPool(cluster.dsn(), open=False, **POOL) as pool:
        yield lambda: pool.connection(timeout=TIMEOUT)


def _settings(cluster: PostgresCluster) -> RouterSettings:
    dead = [cluster.dsn(port=port) for port in (1, 2)]
    return RouterSettings(default_version="v1", versions={"v1": {"nodes": [cluster.dsn(), *dead]}}, pool=POOL)


# In threads


def _in_threads(cluster: PostgresCluster) -> Tally:
    tally = Tally()
    cluster.primary.stop()
    with Router(_settings(cluster)) as router:

        def request() -> None:
            try:
                with router.connection(timeout=TIMEOUT) as connection:
                    connection.execute("SELECT 1")
                tally.served.append(monotonic())
            except Exception as error:  # noqa: BLE001 (whatever the caller sees)
                tally.errors.append(type(error).__name__)

        threads = [Thread(target=request) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        sleep(SETTLED)
        used, since = process_time(), monotonic()
        sleep(MEASURED)
        tally.cpu = (process_time() - used) / (monotonic() - since)
        cluster.primary.start()
        tally.up = monotonic()
        for thread in threads:
            thread.join()
    return tally
