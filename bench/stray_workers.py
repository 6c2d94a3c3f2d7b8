"""One process of the row ``strays``: threads or tasks that borrow, keep what they had, and use it after the block.

It is started by ``bench.strays`` and writes what happened so far, as JSON, again and again.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import sys
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field, fields
from inspect import isawaitable
from queue import SimpleQueue
from random import Random
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus

from router import AsyncRouter, Router, RouterSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Use: TypeAlias = Callable[["Kept"], object]

WORKERS = 6
SIZE = 3  # connections of each pool
KEPT = 8  # blocks of which a worker keeps what it had
STRAYS = 2  # uses of it after each block
WRITES = 0.25  # of all blocks
NESTED = 0.05  # of all blocks have a transaction and a pipeline of their own
RACES = 0.01  # of all blocks meet a use when they end
CANCELS = 0.5  # of those are a cancel
USES = 20  # of a helper, at most
REPORTS = 0.5  # seconds from one to the next
ENOUGH = 100  # failed blocks: the workers go on no longer

TENANTS = ("t1", "t2")
READ = "SELECT current_schema(), body FROM note LIMIT 1"
WRITE = "INSERT INTO note SELECT 'of ' || current_schema() RETURNING current_schema(), body"
STRAY = "INSERT INTO note VALUES ('stray')"
FAILED = psycopg.Transaction.Status.FAILED  # what one becomes that is left when its session is closed


@dataclass(slots=True)
class Tally:
    """What happened in one process.

    Attributes:
        checkouts: How many blocks there were.
        strays: How many uses there were after a block.
        not_refused: How many of them did not raise :exc:`psycopg.InterfaceError`, by what was used and what it did.
        foreign_rows: How many blocks or helpers were answered with another tenant's rows.
        failed: How many blocks failed, by error; not those that a helper disturbed.
        disturbed: How many blocks failed that a helper was at.
        not_idle: How many blocks began in a transaction.
        same_object: How many blocks were given an object of an earlier block.
        committed: Rows found in the tables at the end that must not be there.
        died: How the process ended, where it was not as it should.
        seconds: How long it took.
    """

    checkouts: int = 0
    strays: int = 0
    not_refused: Counter[str] = field(default_factory=Counter)
    foreign_rows: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    disturbed: Counter[str] = field(default_factory=Counter)
    not_idle: int = 0
    same_object: int = 0
    committed: Counter[str] = field(default_factory=Counter)
    died: str = ""
    seconds: float = 0.0

    @property
    def problems(self) -> dict[str, object]:
        """What must not have happened, and did."""
        harmless = {"checkouts", "strays", "disturbed", "seconds"}
        return {what: found for what, found in self._values() if found and what not in harmless}

    def to_json(self) -> str:
        """Write it in one line."""
        return json.dumps(dict(self._values()))

    @classmethod
    def from_json(cls, line: str) -> Tally:
        """Read it."""
        told: dict[str, Any] = json.loads(line)
        values: dict[str, Any] = {
            name: Counter(value) if isinstance(value, dict) else value for name, value in told.items()
        }
        return cls(**values)

    def _values(self) -> Iterator[tuple[str, Any]]:
        return ((each.name, getattr(self, each.name)) for each in fields(self))


class Block(NamedTuple):
    """One block to come.

    Attributes:
        tenant: Whose it is.
        writes: Whether it writes.
        is_nested: Whether it has a transaction and a pipeline of its own.
        race: Whether a helper uses the connection until that raises.
        cancels: Whether it cancels what runs there instead, once.
    """

    tenant: str
    writes: bool
    is_nested: bool
    race: bool
    cancels: bool

    @property
    def statement(self) -> str:
        """What it sends."""
        return WRITE if self.writes else READ


class Kept(NamedTuple):
    """What a worker keeps of a block.

    Attributes:
        connection: Its connection.
        cursor: Its cursor.
        unentered: What would begin a transaction, and a pipeline, each good for one use.
        transaction: A transaction that was committed, of this block or an earlier one.
        pipeline: A pipeline that was left, likewise.
    """

    connection: Any
    cursor: Any
    unentered: list[Any]
    transaction: Any
    pipeline: Any


def uses(
    enter: Callable[[Any], object], leave: Callable[[Any], object], following: Callable[[Any], object]
) -> dict[str, Use]:
    """Return ways to use what was kept, by name, each of which has to raise.

    Args:
        enter: Enters a context manager.
        leave: Leaves it, without an exception.
        following: Takes the first value of an iterator.
    """
    return {
        "read": lambda kept: kept.connection.execute(READ),
        "write": lambda kept: kept.connection.execute(STRAY),
        "prepared write": lambda kept: kept.connection.execute(STRAY, prepare=True),
        "write by a new cursor": lambda kept: kept.connection.cursor().execute(STRAY),
        "read by a new server-side cursor": lambda kept: kept.connection.cursor("stray").execute(READ),
        "commit": lambda kept: kept.connection.commit(),
        "rollback": lambda kept: kept.connection.rollback(),
        "cancel": lambda kept: kept.connection.cancel(),
        "cancel_safe": lambda kept: kept.connection.cancel_safe(timeout=5.0),
        "enter": lambda kept: enter(kept.connection),
        "begin": lambda kept: enter(kept.connection.transaction()),
        "pipe": lambda kept: enter(kept.connection.pipeline()),
        "unentered": lambda kept: enter((kept.unentered or [kept.connection.transaction()]).pop()),
        "notifies": lambda kept: following(kept.connection.notifies(timeout=0)),
        "autocommit": lambda kept: kept.connection.set_autocommit(True),
        "two-phase": lambda kept: kept.connection.tpc_begin("stray"),
        "cursor: read": lambda kept: kept.cursor.execute(READ),
        "cursor: write": lambda kept: kept.cursor.execute(STRAY),
        "cursor: write many": lambda kept: kept.cursor.executemany("INSERT INTO note VALUES (%s)", [["stray"]] * 2),
        "cursor: copy": lambda kept: enter(kept.cursor.copy("COPY note FROM STDIN")),
        "cursor: stream": lambda kept: following(kept.cursor.stream(READ)),
        "transaction: leave": lambda kept: leave(kept.transaction),
        "pipeline: enter": lambda kept: enter(kept.pipeline),
        "pipeline: leave": lambda kept: leave(kept.pipeline),
        "pipeline: sync": lambda kept: kept.pipeline.sync(),
    }


class Worker:
    """Borrows again and again, keeps what it had, and uses it: all but the waiting."""

    def __init__(self, number: int, pooling: str, tally: Tally, ways: Iterable[str]) -> None:
        """Make one.

        Args:
            number: Its number, from which its random choices follow.
            pooling: How connections serve tenants.
            tally: What is counted, together with the other workers of the process.
            ways: The names of the ways to use what was kept.
        """
        self._random = Random(number)
        self._tally = tally
        self._ways = list(ways)
        self._begins = pooling == "shared"
        self._kept: deque[Kept] = deque(maxlen=KEPT)
        self._left: tuple[Any, ...] = ()

    def blocks(self, checkouts: int) -> Iterator[Block]:
        """Yield the blocks to come, for the tenants in turns, and count each when it is over."""
        for number in range(checkouts):
            if self._tally.failed.total() > ENOUGH:
                return
            writes, nested, race = (self._random.random() < part for part in (WRITES, NESTED, RACES))
            cancels = race and self._random.random() < CANCELS
            yield Block(TENANTS[number % 2], writes, nested or not number, race, cancels)
            self._tally.checkouts += 1

    def look_at(self, block: Block, connection: Any) -> None:
        """Look at what a block was given: on a shared pool, the router itself begins a transaction that writes."""
        begun = connection.info.transaction_status is not TransactionStatus.IDLE
        self._tally.not_idle += begun and not (self._begins and block.writes)
        self._tally.same_object += any(connection is kept.connection for kept in self._kept)

    def compare(self, block: Block, rows: list[Any]) -> None:
        """Look at what a block was answered."""
        self._tally.foreign_rows += rows != [(block.tenant, f"of {block.tenant}")]

    def keep(self, connection: Any, cursor: Any, left: tuple[Any, ...]) -> None:
        """Keep what a block had."""
        self._left = left or self._left
        self._kept.append(Kept(connection, cursor, [connection.transaction(), connection.pipeline()], *self._left))

    def failed(self, block: Block, error: Exception) -> None:
        """Take note of a block that failed."""
        counted = self._tally.disturbed if block.race else self._tally.failed
        counted[f"{type(error).__name__}: {error}"[:80]] += 1

    def strays(self) -> Iterator[tuple[str, Kept]]:
        """Yield what to use after a block, and how."""
        for _ in range(STRAYS if self._kept else 0):
            yield self._random.choice(self._ways), self._random.choice(self._kept)
            self._tally.strays += 1

    def strayed(self, way: str, kept: Kept, error: Exception | None) -> None:
        """Take note of what became of a use after a block."""
        if isinstance(error, psycopg.InterfaceError):
            return
        # Where psycopg looks at the session before the connection, it may find a reason of its own to touch neither.
        if way == "cursor: stream" and isinstance(error, psycopg.ProgrammingError) and "pipeline mode" in str(error):
            return
        if (
            way == "transaction: leave" and error is None and kept.transaction.status == "failed"
        ):  # the session is closed
            return
        what = "carried out" if error is None else f"{type(error).__name__}: {error}"[:80]
        self._tally.not_refused[f"{way}: {what}"] += 1


def _settings(pooling: str, dsn: str) -> RouterSettings:
    return RouterSettings.model_validate(
        {
            "versions": {"v1": dsn},
            "tenant_template": {"version": "v1", "schema": "{tenant}"},
            "tenancy": {"pooling": pooling},
            "pool": {"max_size": SIZE, "timeout": 10.0},
        }
    )


# Threads


def in_threads(pooling: str, dsn: str, checkouts: int, tally: Tally) -> None:
    """Have threads borrow and stray.

    Args:
        pooling: How connections serve tenants.
        dsn: The database.
        checkouts: How many blocks there are to be.
        tally: What is counted; it is written again and again.
    """
    ways = uses(lambda manager: manager.__enter__(), lambda manager: manager.__exit__(None, None, None), next)
    races: SimpleQueue[tuple[Block, Any] | None] = SimpleQueue()
    with Router(_settings(pooling, dsn)) as router:

        def work(number: int) -> None:
            worker = Worker(number, pooling, tally, ways)
            for block in worker.blocks(checkouts // WORKERS):
                try:
                    _borrow(router, worker, block, races)
                except Exception as error:  # noqa: BLE001 (whatever the caller sees)
                    worker.failed(block, error)
                for way, kept in worker.strays():
                    raised: Exception | None = None
                    try:
                        ways[way](kept)
                    except Exception as error:  # noqa: BLE001 (likewise)
                        raised = error
                    worker.strayed(way, kept, raised)

        threads = [Thread(target=work, args=(number,), daemon=True) for number in range(WORKERS)]
        helper = Thread(target=_race, args=(races, tally), daemon=True)
        for thread in (*threads, helper):
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(REPORTS)
                print(tally.to_json(), flush=True)
        races.put(None)
        helper.join()


def _borrow(router: Router, worker: Worker, block: Block, races: SimpleQueue[tuple[Block, Any] | None]) -> None:
    with router.connection(tenant=block.tenant, read_only=not block.writes) as connection:
        worker.look_at(block, connection)
        if block.race:
            races.put((block, connection))
        cursor = connection.cursor()
        worker.compare(block, cursor.execute(block.statement).fetchall())
        left: tuple[Any, ...] = ()
        if block.is_nested:
            with connection.transaction() as transaction, connection.pipeline() as pipeline:
                left = transaction, pipeline
        worker.keep(connection, cursor, left)


def _race(races: SimpleQueue[tuple[Block, Any] | None], tally: Tally) -> None:
    while race := races.get():
        block, connection = race
        with suppress(psycopg.Error):
            if block.cancels:
                connection.cancel_safe()
                continue
            for _ in range(USES):
                rows = connection.execute(block.statement).fetchall()
                tally.foreign_rows += rows != [(block.tenant, f"of {block.tenant}")]


# Tasks


async def in_tasks(pooling: str, dsn: str, checkouts: int, tally: Tally) -> None:
    """Have tasks borrow and stray; see :func:`in_threads`."""
    ways = uses(lambda manager: manager.__aenter__(), lambda manager: manager.__aexit__(None, None, None), anext)
    races: set[asyncio.Task[None]] = set()
    async with AsyncRouter(_settings(pooling, dsn)) as router:

        async def work(number: int) -> None:
            worker = Worker(number, pooling, tally, ways)
            for block in worker.blocks(checkouts // WORKERS):
                try:
                    await _aborrow(router, worker, block, races, tally)
                except Exception as error:  # noqa: BLE001 (whatever the caller sees)
                    worker.failed(block, error)
                for way, kept in worker.strays():
                    raised: Exception | None = None
                    try:
                        if isawaitable(used := ways[way](kept)):
                            await used
                    except Exception as error:  # noqa: BLE001 (likewise)
                        raised = error
                    worker.strayed(way, kept, raised)

        working = {asyncio.create_task(work(number)) for number in range(WORKERS)}
        while working:
            ended, working = await asyncio.wait(working, timeout=REPORTS)
            print(tally.to_json(), flush=True)
            for task in ended:
                task.result()
        await asyncio.gather(*races)


async def _aborrow(
    router: AsyncRouter, worker: Worker, block: Block, races: set[asyncio.Task[None]], tally: Tally
) -> None:
    async with router.connection(tenant=block.tenant, read_only=not block.writes) as connection:
        worker.look_at(block, connection)
        if block.race:
            races.add(helper := asyncio.create_task(_arace(block, connection, tally)))
            helper.add_done_callback(races.discard)
        cursor = connection.cursor()
        worker.compare(block, await (await cursor.execute(block.statement)).fetchall())
        left: tuple[Any, ...] = ()
        if block.is_nested:
            async with connection.transaction() as transaction, connection.pipeline() as pipeline:
                left = transaction, pipeline
        worker.keep(connection, cursor, left)


async def _arace(block: Block, connection: Any, tally: Tally) -> None:
    with suppress(psycopg.Error):
        if block.cancels:
            await connection.cancel_safe()
            return
        for _ in range(USES):
            rows = await (await connection.execute(block.statement)).fetchall()
            tally.foreign_rows += rows != [(block.tenant, f"of {block.tenant}")]


def main(kind: str, pooling: str, checkouts: str, dsn: str) -> None:
    """Make the checkouts of one mode.

    Args:
        kind: ``threads`` or ``tasks``.
        pooling: How connections serve tenants.
        checkouts: How many.
        dsn: The database.
    """
    faulthandler.enable()
    tally = Tally()
    if kind == "threads":
        in_threads(pooling, dsn, int(checkouts), tally)
    else:
        asyncio.run(in_tasks(pooling, dsn, int(checkouts), tally))
    print(tally.to_json(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
