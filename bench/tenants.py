"""Ten thousand tenants: what serving them costs, beside what is written without a router; and a flood of one of them.

The traffic is the same for everyone, request by request, in rounds that take turns. Which tenant a request is for
follows Zipf's law (the one of rank n comes 1/n times as often as the first). A request in five writes, so that
transactions and the pools for writing are part of it, and yet most requests are short reads, as in most services. A
read is one SELECT, a write one UPDATE in a transaction of its own, on one of eight rows, so that few wait for each
other's locks. Each answer names the tenant whose row it is.

The contenders:

- the router, as it comes, ``max_connections = 50``. Schemas are shared pooling's, databases have pools of their own.
- the plain pool: one ``psycopg_pool`` of 50 connections, as it comes: each block is a transaction. Whoever borrows one
  sends ``SET search_path`` first. Nothing is reset on return. It cannot reach into other databases.
- autocommit: the same with its connections in autocommit, and ``BEGIN`` and ``COMMIT`` around a write only: the least
  that gives right answers, as long as nobody leaves anything in a session. Without a bar: it does not do the same.
- SQLAlchemy: one engine a tenant, made at its first request, pools as they come, ``search_path`` by a startup option.
  Such pools know of no common cap, so the server sets one, by the role's ``CONNECTION LIMIT``: three times the others'.
  What comes after that fails, and says so.

The flood: twenty tenants each send a request every so often, and then another one sends fifty times as many, more than
can be served. What a request does is sleep on the server, so that connections are scarce, and not this process's CPU.
"""

# ruff: noqa: S608  (the statements are put together from constants)

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import AsyncExitStack, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count, islice
from random import Random, random, sample
from statistics import median, quantiles
from threading import Lock
from threading import enumerate as all_threads
from time import monotonic, process_time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from unittest.mock import patch

from psycopg import AsyncConnection, Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from bench.figures import Bar, Figure, ratio
from router import AsyncRouter, Router, RouterSettings
from router.testing import PostgresCluster

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    Homes: TypeAlias = Mapping[str, Mapping[str, str]]  # by tenant, as in the settings
    Ask: TypeAlias = Callable[["Request"], str]  # returns the tenant that the row is of
    AsyncAsk: TypeAlias = Callable[["Request"], Awaitable[str]]

TENANTS = 10_000
DATABASES = 200
CAP = 50
CLOSING = 5  # connections that the server may still count after they are closed
THREADS = 32
TASKS = 256
ROUNDS = 24  # of each contender, after one that warms up: the machine may be noisy, so many pairs of short rounds
SECONDS = 0.5  # that a round lasts
WRITES = 0.2  # of all requests
POOL: dict[str, Any] = {"max_size": CAP, "timeout": 10.0}

OTHERS = 20  # tenants beside the flood
FLOOD = 50  # times what each of them sends
EVERY = 0.2  # seconds between two requests of one of them
WORK = 0.02  # seconds that a request takes on the server
FLOODS = 4  # each with as long a time without before it
FLOOD_SECONDS = 2.5
SCARCE: dict[str, dict[str, Any]] = {
    "shared": {"pool": {"max_size": 6}},
    "dedicated": {"max_connections": OTHERS + 4},  # one each, and a few more
}

SELECT = "SELECT tenant FROM item WHERE id = %s"
UPDATE = "UPDATE item SET hits = hits + 1 WHERE id = %s RETURNING tenant"
SLEEP = "SELECT tenant, pg_sleep(%s) FROM item WHERE id = 1"
ITEMS = 8

SERVER: dict[str, str | int | bool] = {
    "max_connections": 500,
    "shared_buffers": "256MB",
    "autovacuum": False,  # it would be at work in one contender's round, and not in another's
    "checkpoint_timeout": "1h",  # likewise
    "max_wal_size": "4GB",
}
ROLES = """
CREATE ROLE router LOGIN; CREATE ROLE plain LOGIN; CREATE ROLE autocommit LOGIN;
CREATE ROLE sqlalchemy LOGIN CONNECTION LIMIT 150;
GRANT pg_read_all_data, pg_write_all_data TO router, plain, autocommit, sqlalchemy
"""
TABLE = "item (id int, tenant varchar(63), hits int)"  # a key, or a longer text, would be two more relations
SCHEMAS = f"""
DO $$ BEGIN
    FOR number IN 0..{TENANTS - 1} LOOP
        EXECUTE format('CREATE SCHEMA t%s CREATE TABLE {TABLE}', number);
        PERFORM set_config('search_path', 't' || number, true);
        INSERT INTO item SELECT id, current_schema, 0 FROM generate_series(1, {ITEMS}) AS id;
        IF number % 100 = 99 THEN COMMIT; END IF;  -- the locks of a transaction are limited
    END LOOP;
END $$
"""
# It samples by itself, since this process is too busy to keep a pace. Who is about to log in counts as the one asked
# for: nobody else is connecting then.
SAMPLED = """
CREATE FUNCTION sampled(whose name, seconds float8, OUT most int, OUT samples int) LANGUAGE plpgsql AS $$
DECLARE
    until timestamptz := clock_timestamp() + seconds * interval '1 s';
    seen int;
BEGIN
    most := 0; samples := 0;
    WHILE clock_timestamp() < until LOOP
        PERFORM pg_stat_clear_snapshot();
        SELECT count(*) INTO seen FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND (usename = whose OR usename IS NULL);
        most := greatest(most, seen); samples := samples + 1;
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$
"""


class Request(NamedTuple):
    """One request of the traffic.

    Attributes:
        tenant: Whose it is.
        item: The row that it is about.
        writes: Whether it writes.
    """

    tenant: str
    item: int
    writes: bool

    @property
    def statement(self) -> str:
        """What it sends."""
        return UPDATE if self.writes else SELECT


@dataclass(slots=True)
class Tally:
    """What one contender did.

    Attributes:
        rates: Requests served a second, one figure a round, but for the first round.
        waits: Seconds that each request took which was served.
        errors: The name of the error of each that was not.
        strangers: Those that were answered with another tenant's row.
        held: The most connections that the process had at once.
        seen: The most that the server showed at once.
        samples: How often it was looked.
        threads: The most threads in the background.
    """

    rates: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    strangers: list[Request] = field(default_factory=list)
    held: int = 0
    seen: int = 0
    samples: int = 0
    threads: int = 0


class Held:
    """Counts the connections of this process where psycopg opens them, whoever asks for them.

    A connection counts from before its attempt begins until it is closed. Since the number rises only when an attempt
    begins, it is enough to count then: the highest number is exact.

    Attributes:
        most: The highest number for each role that logged in.
    """

    def __init__(self) -> None:
        self.most: Counter[str] = Counter()
        self._lock = Lock()  # guards all of these
        self._opening: Counter[str] = Counter()
        self._open: defaultdict[str, list[Connection[Any] | AsyncConnection[Any]]] = defaultdict(list)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is opened inside the block."""
        connect, aconnect = Connection.connect.__func__, AsyncConnection.connect.__func__  # type: ignore[attr-defined]

        def counted(cls: type[Connection[Any]], /, conninfo: str = "", **session: Any) -> Connection[Any]:
            whose = self._begin(conninfo)
            opened: Connection[Any] | None = None
            try:
                opened = connect(cls, conninfo, **session)
            finally:
                self._end(whose, opened)
            return opened

        async def acounted(
            cls: type[AsyncConnection[Any]], /, conninfo: str = "", **session: Any
        ) -> AsyncConnection[Any]:
            whose = self._begin(conninfo)
            opened: AsyncConnection[Any] | None = None
            try:
                opened = await aconnect(cls, conninfo, **session)
            finally:
                self._end(whose, opened)
            return opened

        with (
            patch.object(Connection, "connect", classmethod(counted)),
            patch.object(AsyncConnection, "connect", classmethod(acounted)),
        ):
            yield

    def _begin(self, conninfo: str) -> str:
        whose = str(conninfo_to_dict(conninfo)["user"])
        with self._lock:
            self._opening[whose] += 1
            self._open[whose] = [connection for connection in self._open[whose] if not connection.closed]
            self.most[whose] = max(self.most[whose], self._opening[whose] + len(self._open[whose]))
        return whose

    def _end(self, whose: str, opened: Connection[Any] | AsyncConnection[Any] | None) -> None:
        with self._lock:
            self._opening[whose] -= 1
            if opened is not None:
                self._open[whose].append(opened)


class Round:
    """One contender's turn."""

    def __init__(self, number: int, traffic: Sequence[Request], workers: int, tally: Tally) -> None:
        """Begin it now.

        Args:
            number: Its number; everyone's round of the same number has the same requests.
            traffic: All requests that there are; it goes round and round.
            workers: How many send them.
            tally: What is counted.
        """
        self._places = [Random(number * workers + worker).randrange(len(traffic)) for worker in range(workers)]
        self._traffic = traffic
        self._tally = tally
        self._before = len(tally.waits)
        self._counts = number > 0
        self._begun = monotonic()

    def requests(self, worker: int) -> Iterator[Request]:
        """Yield what a worker is to send, until the time is up."""
        for place in count(self._places[worker]):
            if monotonic() >= self._begun + SECONDS:
                return
            yield self._traffic[place % len(self._traffic)]

    def served(self, request: Request, tenant: str, begun: float) -> None:
        """Take note of an answer."""
        self._tally.waits.append(monotonic() - begun)
        if tenant != request.tenant:
            self._tally.strangers.append(request)

    def failed(self, error: Exception) -> None:
        """Take note of an error."""
        self._tally.errors.append(type(error).__name__)

    def end(self) -> None:
        """Take note of how many were served in the time that it took."""
        if self._counts:
            self._tally.rates.append((len(self._tally.waits) - self._before) / (monotonic() - self._begun))


def measure() -> Iterator[Figure]:
    """Serve the traffic in every way, then see to the flood.

    Yields:
        What a known tenant costs; the figures of each kind of traffic; those of each flood.
    """
    with ExitStack() as stack:
        cluster = stack.enter_context(PostgresCluster(version=18, standbys=0, settings=SERVER))
        begun = monotonic()
        _create(cluster)
        yield Figure(f"made {TENANTS} schemas, {DATABASES} databases", monotonic() - begun, "s")
        yield from _known(cluster)
        held = Held()
        stack.enter_context(held.counting())
        for kind, tallies in (
            (f"{THREADS} threads", _in_threads(cluster, held, _schemas())),
            (f"{TASKS} tasks", asyncio.run(_in_tasks(cluster, held, _schemas()))),
            ("databases", _in_threads(cluster, held, _databases())),
        ):
            yield from compare(kind, tallies)
        for pooling, scarce in SCARCE.items():
            yield from compare_flood(pooling, *asyncio.run(_flood(cluster, pooling, scarce)))


def compare(kind: str, tallies: Mapping[str, Tally]) -> Iterator[Figure]:
    """Turn what was counted into figures.

    Args:
        kind: Which traffic it was.
        tallies: What each contender did; the bars are for ``router``.

    Yields:
        The figures of all contenders.
    """
    plain, none = tallies.get("plain"), Bar("exactly", 0)
    for whose, tally in tallies.items():
        if plain is not None and plain is not tally:
            bar = Bar("at least", 0.9) if whose == "router" else None
            yield ratio(f"{kind}, served: {whose}", tally.rates, plain.rates, "times the plain pool's", bar=bar)
    for whose, tally in tallies.items():
        percentiles = quantiles(tally.waits, n=100)
        times = f"p50 {percentiles[49] * 1000:.1f} ms, p99 {percentiles[98] * 1000:.1f} ms"
        yield Figure(f"{kind}: {whose}", round(median(tally.rates)), f"requests/s, {times}")
    for whose, tally in tallies.items():
        named = "".join(f", {times} {error}" for error, times in Counter(tally.errors).most_common())
        unit = f"of {len(tally.waits) + len(tally.errors)}{named}"
        yield Figure(f"{kind}, failed: {whose}", len(tally.errors), unit, bar=none if whose == "router" else None)
    strangers = sum(len(tally.strangers) for tally in tallies.values())  # of all: else they do not do the same
    yield Figure(f"{kind}, another tenant's row: all", strangers, "answers", bar=none)
    for whose, tally in tallies.items():
        ours = whose == "router"
        yield Figure(
            f"{kind}, held: {whose}", tally.held, "connections at once", bar=Bar("at most", CAP) if ours else None
        )
        bar, unit = Bar("at most", CAP + CLOSING) if ours else None, f"connections, the most of {tally.samples} samples"
        yield Figure(f"{kind}, pg_stat_activity: {whose}", tally.seen, unit, bar=bar)
    if tallies["router"].threads:
        yield Figure(f"{kind}, in the background: router", tallies["router"].threads, "threads")


def compare_flood(
    pooling: str, calm: Mapping[str, Sequence[float]], flooded: Mapping[str, Sequence[float]], served: int
) -> Iterator[Figure]:
    """Turn what was seen of a flood into figures.

    Args:
        pooling: How tenants were pooled.
        calm: Seconds that each request took, by tenant, while there was no flood.
        flooded: The same while there was one.
        served: How many requests of the flood itself were served.

    Yields:
        The worst of all tenants' ratios.
    """
    before, during = ({tenant: _p99(waits) for tenant, waits in all_.items()} for all_ in (calm, flooded))
    worst = max(before, key=lambda tenant: during[tenant] / before[tenant])
    times = f"times, p99 {during[worst] * 1000:.1f} ms after {before[worst] * 1000:.1f} ms"
    yield Figure(
        f"flood, {pooling}: slowest of {len(before)} others",
        during[worst] / before[worst],
        times,
        bar=Bar("at most", 3),
    )
    each = sum(map(len, flooded.values())) / len(flooded)
    yield Figure(f"flood, {pooling}: served of the flood", served / each, "times what each of the others sent")


def _p99(waits: Sequence[float]) -> float:
    return quantiles(waits, n=100, method="inclusive")[98]


def _create(cluster: PostgresCluster) -> None:
    cluster.primary.execute(ROLES)
    # Copied files, and before there are schemas: each copy waits for a checkpoint, and costs no WAL.
    cluster.primary.execute("CREATE DATABASE template")
    cluster.primary.execute(f"CREATE TABLE {TABLE}", dbname="template")
    cluster.primary.execute(f"INSERT INTO item SELECT id, '', 0 FROM generate_series(1, {ITEMS}) id", dbname="template")
    for database in _databases():
        cluster.primary.execute(f"CREATE DATABASE {database} TEMPLATE template STRATEGY file_copy")
        cluster.primary.execute("UPDATE item SET tenant = current_database()", dbname=database)
    cluster.primary.execute(SCHEMAS)
    cluster.primary.execute(SAMPLED)


def _schemas() -> Homes:
    return {f"t{number}": {"schema": f"t{number}"} for number in range(TENANTS)}


def _databases() -> Homes:
    return {f"d{number}": {"database": f"d{number}"} for number in range(DATABASES)}


def _are_schemas(homes: Homes) -> bool:
    return all("schema" in home for home in homes.values())


def _traffic(tenants: Sequence[str]) -> list[Request]:
    drawn = Random(4)
    ranked = drawn.choices(tenants, [1 / rank for rank in range(1, len(tenants) + 1)], k=50_000)
    return [Request(tenant, drawn.randint(1, ITEMS), drawn.random() < WRITES) for tenant in ranked]


def _turns(contenders: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield the number of each round with each contender, in an order drawn anew each round."""
    names = list(contenders)
    for number in range(ROUNDS + 1):
        for whose in sample(names, len(names)):
            # What is there by now is not looked through again: thousands of engines would cost those who have none.
            gc.freeze()
            yield number, whose
    gc.unfreeze()


def _settings(cluster: PostgresCluster, homes: Homes, **others: Any) -> RouterSettings:
    pooling = "shared" if _are_schemas(homes) else "dedicated"
    tenants = {tenant: {"version": "v1", **home} for tenant, home in homes.items()}
    values: dict[str, Any] = {"max_connections": CAP, "pool": POOL, "tenancy": {"pooling": pooling}, **others}
    return RouterSettings(versions={"v1": {"primary": cluster.dsn(user="router")}}, tenants=tenants, **values)


def _look(cluster: PostgresCluster, whose: str, tally: Tally) -> None:
    """Have the server count for the length of a round."""
    [(most, samples)] = cluster.primary.execute("SELECT most, samples FROM sampled(%s, %s)", [whose, SECONDS])
    tally.seen = max(tally.seen, most)
    tally.samples += samples


def _own_dsn(cluster: PostgresCluster, home: Mapping[str, str]) -> str:
    """What SQLAlchemy connects to for a tenant."""
    options = {"options": f"-c search_path={home['schema']}"} if "schema" in home else {}
    return cluster.dsn(home.get("database", "postgres"), user="sqlalchemy", **options)


def _known(cluster: PostgresCluster) -> Iterator[Figure]:
    """Name every tenant for the first time, then again and again; and see what it takes to know them all."""
    homes = _schemas()
    with _opened(cluster, homes) as router:
        cold = _each_named(router, homes, read_only=True)
        low, middle, high = quantiles([_each_named(router, homes, read_only=True) for _ in range(21)], n=4)
    gc.collect()
    tracemalloc.start()
    with _opened(cluster, homes) as router:
        for read_only in (True, False):
            _each_named(router, homes, read_only=read_only)
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    yield Figure(f"{TENANTS} known tenants", size / 1e6, "MB: settings, to read, to write", bar=Bar("at most", 25))
    yield Figure("resolving a known one", middle, "µs", bar=Bar("at most", 2), spread=(low, high))
    yield Figure("resolving one for the first time", cold, "µs")


@contextmanager
def _opened(cluster: PostgresCluster, homes: Homes) -> Iterator[Router]:
    """A router which has opened what has to be."""
    with Router(_settings(cluster, homes)) as router:
        for read_only in (True, False):
            with router.connection(tenant=next(iter(homes)), read_only=read_only):
                pass
        yield router


def _each_named(router: Router, homes: Homes, *, read_only: bool) -> float:
    """Name each tenant once; how long one takes, in microseconds of CPU time."""
    begun = process_time()
    for tenant in homes:
        router.connection(tenant=tenant, read_only=read_only)
    return (process_time() - begun) / len(homes) * 1e6


# In threads


def _in_threads(cluster: PostgresCluster, held: Held, homes: Homes) -> dict[str, Tally]:
    held.most.clear()
    traffic = _traffic(list(homes))
    with ExitStack() as stack:
        asks = {"sqlalchemy": _sqlalchemy(cluster, homes, stack)}
        if _are_schemas(homes):
            asks["autocommit"] = _plain(cluster, stack, autocommit=True)
            asks["plain"] = _plain(cluster, stack)
        others = set(all_threads())
        asks["router"] = _router(cluster, homes, stack)
        executor = stack.enter_context(ThreadPoolExecutor(THREADS + 1, "bench"))
        tallies = {whose: Tally() for whose in reversed(asks)}
        for number, whose in _turns(asks):
            turn = Round(number, traffic, THREADS, tallies[whose])
            looking = executor.submit(_look, cluster, whose, tallies[whose])
            working = {executor.submit(_work, turn, worker, asks[whose]) for worker in range(THREADS)}
            while working:
                _, working = wait_for(working, timeout=0.05)
                own = [thread for thread in all_threads() if thread not in others and "bench" not in thread.name]
                tallies[whose].threads = max(tallies[whose].threads, len(own))
            turn.end()
            looking.result()
    for whose, tally in tallies.items():
        tally.held = held.most[whose]
    return tallies


def _work(turn: Round, worker: int, ask: Ask) -> None:
    for request in turn.requests(worker):
        begun = monotonic()
        try:
            tenant = ask(request)
        except Exception as error:  # noqa: BLE001 (whatever the caller sees)
            turn.failed(error)
        else:
            turn.served(request, tenant, begun)


def _router(cluster: PostgresCluster, homes: Homes, stack: ExitStack) -> Ask:
    router = stack.enter_context(Router(_settings(cluster, homes)))

    def ask(request: Request) -> str:
        with router.connection(tenant=request.tenant, read_only=not request.writes) as connection:
            return _tenant(connection.execute(request.statement, [request.item]).fetchone())

    return ask


def _plain(cluster: PostgresCluster, stack: ExitStack, *, autocommit: bool = False) -> Ask:
    dsn = cluster.dsn(user="autocommit" if autocommit else "plain")
    pool = stack.enter_context(ConnectionPool(dsn, kwargs={"autocommit": autocommit}, open=True, **POOL))

    def ask(request: Request) -> str:
        with pool.connection() as connection:
            connection.execute(f'SET search_path TO "{request.tenant}"'.encode())
            with connection.transaction() if autocommit and request.writes else nullcontext():
                return _tenant(connection.execute(request.statement, [request.item]).fetchone())

    return ask


def _sqlalchemy(cluster: PostgresCluster, homes: Homes, stack: ExitStack) -> Ask:
    engines: dict[str, tuple[Engine, Engine]] = {}

    def engines_of(tenant: str) -> tuple[Engine, Engine]:
        dsn = _own_dsn(cluster, homes[tenant])
        engine = create_engine("postgresql+psycopg://", creator=lambda: Connection.connect(dsn))
        stack.callback(engine.dispose)
        return engine, engine.execution_options(isolation_level="AUTOCOMMIT")

    def ask(request: Request) -> str:
        writing, reading = engines.get(request.tenant) or engines.setdefault(request.tenant, engines_of(request.tenant))
        with writing.begin() if request.writes else reading.connect() as connection:
            return str(connection.exec_driver_sql(request.statement, (request.item,)).scalar_one())

    return ask


def _tenant(row: tuple[Any, ...] | None) -> str:
    return "" if row is None else str(row[0])


# In tasks


async def _in_tasks(cluster: PostgresCluster, held: Held, homes: Homes) -> dict[str, Tally]:
    held.most.clear()
    traffic = _traffic(list(homes))
    async with AsyncExitStack() as stack:
        asks = {
            "router": await _async_router(cluster, homes, stack),
            "plain": await _async_plain(cluster, stack),
            "autocommit": await _async_plain(cluster, stack, autocommit=True),
            "sqlalchemy": _async_sqlalchemy(cluster, homes, stack),
        }
        tallies = {whose: Tally() for whose in asks}
        for number, whose in _turns(asks):
            looking = asyncio.create_task(asyncio.to_thread(_look, cluster, whose, tallies[whose]))
            turn = Round(number, traffic, TASKS, tallies[whose])
            await asyncio.gather(*(_async_work(turn, worker, asks[whose]) for worker in range(TASKS)))
            turn.end()
            await looking
    for whose, tally in tallies.items():
        tally.held = held.most[whose]
    return tallies


async def _async_work(turn: Round, worker: int, ask: AsyncAsk) -> None:
    for request in turn.requests(worker):
        begun = monotonic()
        try:
            tenant = await ask(request)
        except Exception as error:  # noqa: BLE001 (whatever the caller sees)
            turn.failed(error)
        else:
            turn.served(request, tenant, begun)


async def _async_router(cluster: PostgresCluster, homes: Homes, stack: AsyncExitStack) -> AsyncAsk:
    router = await stack.enter_async_context(AsyncRouter(_settings(cluster, homes)))

    async def ask(request: Request) -> str:
        async with router.connection(tenant=request.tenant, read_only=not request.writes) as connection:
            cursor = await connection.execute(request.statement, [request.item])
            return _tenant(await cursor.fetchone())

    return ask


async def _async_plain(cluster: PostgresCluster, stack: AsyncExitStack, *, autocommit: bool = False) -> AsyncAsk:
    dsn = cluster.dsn(user="autocommit" if autocommit else "plain")
    pool = AsyncConnectionPool(dsn, kwargs={"autocommit": autocommit}, open=False, **POOL)
    await stack.enter_async_context(pool)

    async def ask(request: Request) -> str:
        async with pool.connection() as connection:
            await connection.execute(f'SET search_path TO "{request.tenant}"'.encode())
            async with connection.transaction() if autocommit and request.writes else nullcontext():
                return _tenant(await (await connection.execute(request.statement, [request.item])).fetchone())

    return ask


def _async_sqlalchemy(cluster: PostgresCluster, homes: Homes, stack: AsyncExitStack) -> AsyncAsk:
    engines: dict[str, tuple[AsyncEngine, AsyncEngine]] = {}

    def engines_of(tenant: str) -> tuple[AsyncEngine, AsyncEngine]:
        dsn = _own_dsn(cluster, homes[tenant])
        engine = create_async_engine("postgresql+psycopg://", async_creator=lambda: AsyncConnection.connect(dsn))
        stack.push_async_callback(engine.dispose)
        return engine, engine.execution_options(isolation_level="AUTOCOMMIT")

    async def ask(request: Request) -> str:
        writing, reading = engines.get(request.tenant) or engines.setdefault(request.tenant, engines_of(request.tenant))
        async with writing.begin() if request.writes else reading.connect() as connection:
            result = await connection.exec_driver_sql(request.statement, (request.item,))
            return str(result.scalar_one())

    return ask


# The flood


async def _flood(
    cluster: PostgresCluster, pooling: str, scarce: Mapping[str, Any]
) -> tuple[dict[str, list[float]], dict[str, list[float]], int]:
    """Return how long the others' requests took, without a flood and with one; and how many of its own were served."""
    homes = dict(islice(_schemas().items(), OTHERS + 1))
    flood, *others = homes
    settings = _settings(cluster, homes, tenancy={"pooling": pooling}, **scarce)
    gc.collect()  # what the traffic has left, thousands of engines, would stop everyone for a while
    calm, flooded = ({tenant: list[float]() for tenant in others} for _ in range(2))
    drowning: list[float] = []
    async with AsyncRouter(settings) as router:

        async def send(tenant: str, waits: list[float], end: float) -> None:
            due = monotonic() + random() * EVERY
            while due < end:
                await asyncio.sleep(due - monotonic())
                begun = monotonic()
                async with router.connection(tenant=tenant, read_only=True) as connection:
                    row = await (await connection.execute(SLEEP, [WORK])).fetchone()
                waits.append(monotonic() - begun)
                if _tenant(row) != tenant:
                    raise AssertionError(f"{tenant} was answered with the row of {_tenant(row)}")
                due = max(due + EVERY, monotonic())

        async def all_send(waits: Mapping[str, list[float]], floods: int) -> None:
            end = monotonic() + FLOOD_SECONDS
            await asyncio.gather(
                *(send(tenant, waits[tenant], end) for tenant in others),
                *(send(flood, drowning, end) for _ in range(floods)),
            )

        await all_send({tenant: [] for tenant in others}, 0)
        for _ in range(FLOODS):
            await all_send(calm, 0)
            await all_send(flooded, FLOOD)
    return calm, flooded, len(drowning)
