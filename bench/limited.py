"""Many clients share a server that takes fewer connections than the pool would open.

The login role may have four connections (``CONNECTION LIMIT``), as when many processes share ``max_connections``, and
the pool may open twenty. Sixty clients take turns; each query sleeps on the server. In order of arrival everyone would
wait well under a second, so nobody has to fail, nobody has to wait for long, and what the server refuses need not be
asked for again and again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

from bench.figures import Bar, Figure
from router import AsyncRouter, Router, RouterSettings
from router.testing import PostgresCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENTS = 60
LIMIT = 4  # connections that the server takes
WORK = 0.05  # seconds that a query takes
SECONDS = 5.0  # that the clients go on
POOL: dict[str, Any] = {"max_size": 20, "timeout": 3.0}
QUERY = f"SELECT pg_sleep({WORK})"
BEST = LIMIT / WORK  # queries a second that the server can answer


@dataclass(slots=True)
class Tally:
    """What became of the clients.

    Attributes:
        served: How often each was served.
        errors: How many requests failed with which error.
        refused: How many logins the server refused.
        seconds: How long it took.
    """

    served: list[int] = field(default_factory=lambda: [0] * CLIENTS)
    errors: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    seconds: float = 0.0


def measure() -> Iterator[Figure]:
    """Let tasks take turns, then threads.

    Yields:
        How evenly they were served, how many requests failed, and how many logins were refused.
    """
    for name in ("psycopg", "router"):
        logging.getLogger(name).addHandler(logging.NullHandler())  # no news: the server is full
    with PostgresCluster(version=18, standbys=0) as cluster:
        cluster.primary.execute(f"CREATE ROLE app LOGIN CONNECTION LIMIT {LIMIT}")
        for kind in ("tasks", "threads"):
            tally, before, begun = Tally(), _refused(cluster), monotonic()
            asyncio.run(_in_tasks(cluster, tally)) if kind == "tasks" else _in_threads(cluster, tally)
            tally.seconds, tally.refused = monotonic() - begun, _refused(cluster) - before
            yield from compare(f"{CLIENTS} {kind}", tally)


def compare(name: str, tally: Tally) -> Iterator[Figure]:
    """Turn what was counted into figures.

    Args:
        name: What the clients were.
        tally: What became of them.

    Yields:
        The figures.
    """
    least, most, total = min(tally.served), max(tally.served), sum(tally.served)
    named = "".join(f", {times} {error}" for error, times in tally.errors.most_common())
    yield Figure(
        f"{name}: most often by least often", most / max(least, 1), f"{least} to {most} times", bar=Bar("at most", 3)
    )
    yield Figure(f"{name}: never served", tally.served.count(0), f"of {CLIENTS}", bar=Bar("exactly", 0))
    failed = tally.errors.total()
    yield Figure(f"{name}: failed", failed, f"of {total + failed}{named}", bar=Bar("exactly", 0))
    refused = tally.refused / tally.seconds
    yield Figure(f"{name}: refused logins", refused, "a second", bar=Bar("at most", 3))
    unit = f"times the {BEST:g} a second that there can be"
    yield Figure(f"{name}: served", total / tally.seconds / BEST, unit, bar=Bar("at least", 0.6))


def _refused(cluster: PostgresCluster) -> int:
    return cluster.primary.log.read_text(encoding="utf-8").count("too many connections")


def _settings(cluster: PostgresCluster) -> RouterSettings:
    return RouterSettings(versions={"v1": cluster.dsn(user="app")}, default_version="v1", pool=POOL)


async def _in_tasks(cluster: PostgresCluster, tally: Tally) -> None:
    async with AsyncRouter(_settings(cluster)) as router:
        end = monotonic() + SECONDS

        async def client(number: int) -> None:
            while monotonic() < end:
                try:
                    async with router.connection() as connection:
                        await connection.execute(QUERY)
                    tally.served[number] += 1
                except Exception as error:  # noqa: BLE001 (whatever the caller sees)
                    tally.errors[type(error).__name__] += 1

        await asyncio.gather(*(client(number) for number in range(CLIENTS)))


def _in_threads(cluster: PostgresCluster, tally: Tally) -> None:
    with Router(_settings(cluster)) as router:
        end = monotonic() + SECONDS

        def client(number: int) -> None:
            while monotonic() < end:
                try:
                    with router.connection() as connection:
                        connection.execute(QUERY)
                    tally.served[number] += 1
                except Exception as error:  # noqa: BLE001 (whatever the caller sees)
                    tally.errors[type(error).__name__] += 1

        threads = [Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
