"""What a failover costs those who write and read: with this router and with hasql, side by side.

Both serve the same load from the same three servers, at the same time in one process: what disturbs one disturbs the
other. Both are told three addresses and no roles. A read is one round trip for both, a write three, and nobody tries
again: who fails goes on with the next one.

Both are as they come, but for one thing: hasql's connections are in autocommit, as the router's for reading are, and
its writers open the transaction that the router opens by itself. As they come means that hasql looks at each server
every second (``refresh_delay``) and waits at most 1 s for a connection (``acquire_timeout``), and the router 5 s
(``pool.timeout``). That favours hasql's write gap: its writers wait in the pool of the dead server until the timeout,
so with 5 s the gap is mostly 3 to 4 s. hasql knows the role of each server (``ready()``) before the load begins.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from random import random
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg
from hasql.driver.psycopg3 import PoolManager

from bench.figures import Bar, Figure
from router import AsyncRouter, RouterSettings
from router.testing import PostgresCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

    from router.testing import PostgresServer

    Borrow: TypeAlias = Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]]

WRITERS = 4  # each contender's, as READERS
READERS = 8
PAUSE = 0.01  # seconds from one to the next, so that the servers are waited for, and not this process
WARM = 100  # writes and reads each contender has done before the primary dies
NOTICED = 1.0  # seconds until a standby is promoted, and up to 1 s more: who looks every second has no lucky phase
AFTER = 3.0  # seconds that the load goes on when both write again
BOUND = 15.0  # seconds from the promotion to the end of the load, in any case
PATIENCE = 20.0  # seconds for what must come before that

TABLE = "CREATE TABLE written (whose text, number int, PRIMARY KEY (whose, number))"
INSERT = "INSERT INTO written VALUES (%s, %s) RETURNING inet_server_port()"
SELECT = "SELECT number FROM written WHERE whose = %s LIMIT 1"


@dataclass(slots=True)
class Tally:
    """What the callers of one contender have seen.

    Attributes:
        written: Each row whose writing was acknowledged: when, its number, and the port of the server.
        write_errors: How many writes failed with which error.
        reads: How many reads were answered.
        read_errors: How many reads failed with which error.
        slowest_read: Seconds that the slowest read since the primary died took, whatever its end.
    """

    written: list[tuple[float, int, int]] = field(default_factory=list)
    write_errors: Counter[str] = field(default_factory=Counter)
    reads: int = 0
    read_errors: Counter[str] = field(default_factory=Counter)
    slowest_read: float = 0.0

    def first_write(self, port: int) -> float | None:
        """Return when the first write was acknowledged by the server at a port; ``None`` before."""
        return next((when for when, _, at in self.written if at == port), None)


def measure() -> Iterator[Figure]:
    """Kill the primary under load, promote the standby that has received most, and go on until both write again.

    Yields:
        Each figure for the one, then for the other.
    """
    for name in ("hasql", "psycopg", "router"):
        logging.getLogger(name).addHandler(logging.NullHandler())  # no news: a server is dead
    with PostgresCluster(version=18, standbys=2, synchronous=True) as cluster:
        tallies, promotion = asyncio.run(_fail_over(cluster))
        promoted = cluster.primary
        kept = promoted.execute("SELECT whose, number FROM written")
    yield from compare(tallies, promoted.port, promotion, kept)


def compare(
    tallies: Mapping[str, Tally], port: int, promotion: float, kept: Iterable[tuple[Any, ...]]
) -> Iterator[Figure]:
    """Turn what was seen into figures.

    Args:
        tallies: What each contender's callers have seen; the bars are for ``router``.
        port: The promoted server's.
        promotion: When that server accepted a write.
        kept: The rows found on it at the end: (contender, number).

    Yields:
        Each figure for every contender.
    """
    gap_bar, none = Bar("at most", 0.5), Bar("exactly", 0)
    rows = set(kept)
    for whose, tally in tallies.items():
        first = tally.first_write(port)
        gap, unit = (BOUND, "s, and no write by then") if first is None else (max(0.0, first - promotion), "s")
        yield Figure(f"write gap: {whose}", gap, unit, bar=gap_bar if whose == "router" else None)
    for whose, tally in tallies.items():
        errors, total = tally.read_errors, tally.reads
        yield Figure(f"reads failed: {whose}", *_failed(errors, total), bar=none if whose == "router" else None)
    for whose, tally in tallies.items():
        yield Figure(f"slowest read: {whose}", tally.slowest_read, "s")
    for whose, tally in tallies.items():
        yield Figure(f"writes failed: {whose}", *_failed(tally.write_errors, len(tally.written)))
    for whose, tally in tallies.items():
        lost = {(whose, number) for _, number, _ in tally.written} - rows
        # For hasql, too: were one missing, the wrong standby was promoted.
        yield Figure(f"acknowledged writes lost: {whose}", len(lost), f"of {len(tally.written)}", bar=none)


def _failed(errors: Counter[str], succeeded: int) -> tuple[int, str]:
    named = "".join(f", {times} {error}" for error, times in errors.most_common())
    return errors.total(), f"of {succeeded + errors.total()}{named}"


async def _fail_over(cluster: PostgresCluster) -> tuple[dict[str, Tally], float]:
    """Return what was seen, and when the promoted server accepted a write."""
    cluster.primary.execute(TABLE)
    cluster.wait_replayed()
    async with AsyncExitStack() as contenders:
        borrowing = {
            "router": await contenders.enter_async_context(_router(cluster)),
            "hasql": await contenders.enter_async_context(_hasql(cluster)),
        }
        tallies = {whose: Tally() for whose in borrowing}
        ended = asyncio.Event()
        tasks = []
        for whose, (reading, writing) in borrowing.items():
            numbers, tally = count(), tallies[whose]
            tasks += [asyncio.create_task(_write(whose, writing, tally, numbers, ended)) for _ in range(WRITERS)]
            tasks += [asyncio.create_task(_read(whose, reading, tally, ended)) for _ in range(READERS)]
        try:
            return tallies, await _accident(cluster, tallies)
        finally:
            ended.set()  # for those whose cancellation is lost, in asyncio.wait_for() before Python 3.12
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def _accident(cluster: PostgresCluster, tallies: Mapping[str, Tally]) -> float:
    """Let it happen under the load; return when the promoted server accepted a write."""

    def warm() -> bool:
        return all(min(len(tally.written), tally.reads) >= WARM for tally in tallies.values())

    if not await _until(warm, monotonic() + PATIENCE):
        raise TimeoutError(f"not everyone works after {PATIENCE} s, before anything happened: {tallies}")
    for tally in tallies.values():
        tally.slowest_read = 0.0
    await asyncio.to_thread(cluster.primary.kill)
    await asyncio.sleep(NOTICED + random())
    promoted = await asyncio.to_thread(lambda: max(cluster.standbys, key=_received))
    promotion, _ = await asyncio.gather(
        asyncio.to_thread(_first_write, promoted.dsn()), asyncio.to_thread(promoted.promote)
    )
    await _until(lambda: all(tally.first_write(promoted.port) for tally in tallies.values()), promotion + BOUND - AFTER)
    await asyncio.sleep(AFTER)
    return promotion


async def _until(condition: Callable[[], bool], deadline: float) -> bool:
    while not (met := condition()) and monotonic() < deadline:  # noqa: ASYNC110 (the counting sets no event)
        await asyncio.sleep(0.01)
    return met


def _received(standby: PostgresServer) -> int:
    ((position,),) = standby.execute("SELECT (pg_last_wal_receive_lsn() - '0/0')::bigint")
    return int(position)


def _first_write(dsn: str) -> float:
    """Write as soon as the server lets a plain connection, which it has from before; return when it did."""
    deadline = monotonic() + PATIENCE
    with psycopg.connect(dsn, autocommit=True) as connection:
        while True:
            try:
                connection.execute(INSERT, ["nobody", 0])
            except psycopg.errors.ReadOnlySqlTransaction:
                if monotonic() > deadline:
                    raise
                sleep(0.002)
            else:
                return monotonic()


async def _write(whose: str, borrow: Borrow, tally: Tally, numbers: Iterator[int], ended: asyncio.Event) -> None:
    while not ended.is_set():
        number = next(numbers)
        try:
            async with borrow() as connection:
                ((port,),) = await (await connection.execute(INSERT, [whose, number])).fetchall()
        except Exception as error:  # noqa: BLE001 (whatever the caller sees)
            tally.write_errors[type(error).__name__] += 1
        else:
            tally.written.append((monotonic(), number, port))
        await asyncio.sleep(PAUSE)


async def _read(whose: str, borrow: Borrow, tally: Tally, ended: asyncio.Event) -> None:
    while not ended.is_set():
        start = monotonic()
        try:
            async with borrow() as connection:
                await (await connection.execute(SELECT, [whose])).fetchall()
        except Exception as error:  # noqa: BLE001 (whatever the caller sees)
            tally.read_errors[type(error).__name__] += 1
        else:
            tally.reads += 1
        finally:  # one that hangs until the end counts too
            tally.slowest_read = max(tally.slowest_read, monotonic() - start)
        await asyncio.sleep(PAUSE)


@asynccontextmanager
async def _router(cluster: PostgresCluster) -> AsyncIterator[tuple[Borrow, Borrow]]:
    settings = RouterSettings(versions={"v1": {"nodes": [server.dsn() for server in cluster.servers]}})
    async with AsyncRouter(settings) as router:
        yield lambda: router.connection(version="v1", read_only=True), lambda: router.connection(version="v1")


@asynccontextmanager
async def _hasql(cluster: PostgresCluster) -> AsyncIterator[tuple[Borrow, Borrow]]:
    @asynccontextmanager
    async def writing() -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with hasql.acquire_master() as connection, connection.transaction():
            yield connection

    servers = ",".join(f"{server.host}:{server.port}" for server in cluster.servers)
    hasql = PoolManager(  # type: ignore[no-untyped-call]  # hasql's own
        f"postgresql://postgres@{servers}/postgres", pool_factory_kwargs={"kwargs": {"autocommit": True}}
    )
    async with hasql:  # waits until it is ready
        yield hasql.acquire_replica, writing
