"""``router demo``: PostgreSQL 16 and 18 side by side, and the writers and readers of one service routed across both.

Meanwhile the servers of one of them have accidents: see ``_accidents.py``.
"""

from __future__ import annotations

import json
import os
import sys
from array import array
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from random import randint
from secrets import token_urlsafe
from threading import Event, Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import psycopg
import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from router import NoPrimary, PoolExhausted, Router, RouterSettings
from router.cli._accidents import Accident, Accidents
from router.cli._common import FAILED, AsJson, print_json
from router.cli._screen import Column, InPlace, console, in_terminal, table
from router.testing import PostgresCluster

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import LiteralString, TextIO

    from rich.console import Console
    from rich.table import Table

WRITERS = 2  # threads a version
READERS = 4
PAUSE = 0.01  # seconds between two requests of a thread: a demonstration, not a benchmark
CUSTOMERS = 1000  # that both schemas begin with

# Each answer says which server gave it: what is counted below is the servers' own word.
_SERVER: LiteralString = """
    CREATE VIEW server (port, version, is_standby) AS
    SELECT current_setting('port')::int, current_setting('server_version'), pg_is_in_recovery()
"""


@dataclass(frozen=True, slots=True)
class _Release:
    """One version of the service's database; the schemas differ, so does the SQL.

    Attributes:
        version: Its key.
        postgres: PostgreSQL's major version.
        standbys: How many.
        schema: Makes its table, and fills it.
        write: Adds a customer, given first and last name, and returns the id and the full name.
        read: Reads a customer's full name, given the id.
        has_accidents: Whether the accidents happen to it: then its primary changes, so its roles are discovered, and
            its standbys replicate synchronously.
    """

    version: str
    postgres: int
    standbys: int
    schema: LiteralString
    write: LiteralString
    read: LiteralString
    has_accidents: bool = False


_RELEASES = (
    _Release(
        "v1",
        postgres=16,
        standbys=1,
        schema="""
            CREATE TABLE customer (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, name text NOT NULL);
            INSERT INTO customer (name) SELECT 'Customer ' || n FROM generate_series(1, 1000) AS n
        """,
        write="""
            WITH added AS (INSERT INTO customer (name) VALUES (concat_ws(' ', %s::text, %s::text)) RETURNING *)
            SELECT id, name, server.* FROM added, server
        """,
        read="SELECT name, server.* FROM customer, server WHERE id = %s",
    ),
    _Release(
        "v2",
        postgres=18,
        standbys=2,
        schema="""
            CREATE TABLE customer (
                id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, first_name text NOT NULL, last_name text NOT NULL
            );
            INSERT INTO customer (first_name, last_name) SELECT 'Customer', n FROM generate_series(1, 1000) AS n
        """,
        write="""
            WITH added AS (INSERT INTO customer (first_name, last_name) VALUES (%s, %s) RETURNING *)
            SELECT id, concat_ws(' ', first_name, last_name), server.* FROM added, server
        """,
        read="SELECT concat_ws(' ', first_name, last_name), server.* FROM customer, server WHERE id = %s",
        has_accidents=True,
    ),
)


class _Source(NamedTuple):
    """What a request was, and who served it by its own word."""

    version: str
    postgres: str
    use: str
    port: int
    standby: bool

    @property
    def role(self) -> str:
        return "standby" if self.standby else "primary"


class _Written(NamedTuple):
    """A write that was acknowledged: the customer's id, the primary's port, and when, on the monotonic clock."""

    version: str
    id: int
    port: int
    at: float


class _Failure(NamedTuple):
    """A request that failed."""

    version: str
    use: str
    problem: str

    def __str__(self) -> str:
        return f"{self.version} {self.use}: {self.problem}"


class _Measured(NamedTuple):
    """What one source served in a time; latencies in seconds."""

    source: _Source
    requests: int
    rate: float
    p50: float
    p99: float


def demo(
    *,
    seconds: Annotated[float, typer.Option(min=0.5, help="How long it runs, at least.")] = 20.0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers running, with settings to use them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the main job on servers of its own: nothing to install or configure.

    It starts PostgreSQL 16 as v1 (a primary and a standby) and PostgreSQL 18 as v2 (a primary and two standbys), with
    different schemas; one router then serves writers and readers of both, at an easy pace. Meanwhile a standby of v2 is
    killed, then its primary, and the other standby promoted; later the killed servers come back. It ends by itself, or
    by Ctrl-C, with a summary: how long writes waited, and whether any was lost. It removes everything. Fails if a
    request failed, other than a write in flight on the primary that was killed, or a write was lost.

    \b
    router demo --seconds 5
    router demo --keep
    """  # noqa: D301  (\b keeps the lines as they are)
    progress = sys.stderr if as_json else sys.stdout
    _forget_the_environment()
    with ExitStack() as stack:
        clusters = _start(stack, progress)
        config = _write_settings(clusters)
        with Router(RouterSettings.load(config, _env_file=None)) as router:
            for release, cluster in zip(_RELEASES, clusters, strict=True):
                with router.connection(version=release.version) as connection:
                    connection.execute(_SERVER)
                    connection.execute(release.schema)
                cluster.wait_replayed()
            accidents = next(
                Accidents(release.version, cluster)
                for release, cluster in zip(_RELEASES, clusters, strict=True)
                if release.has_accidents
            )
            load = _Load(router, accidents)
            with load.running(), accidents.happening(seconds), suppress(KeyboardInterrupt):
                _watch(load, accidents, seconds, progress, moving=in_terminal() and not as_json)
        writes = _judge(load, accidents, clusters)
        kept = None
        if keep:
            accidents.bring_back()  # Ctrl-C may have left some of them down
            kept = _keep(clusters, config)
    if as_json:
        print_json(_as_json(load, accidents, writes, kept))
    else:
        _print_summary(load, accidents, writes)
        if kept:
            _print_kept(kept)
    if load.failures or writes.lost:
        raise typer.Exit(FAILED)


def _forget_the_environment() -> None:
    """Leave the demonstration alone with its own servers: no variable of the user's is meant for these."""
    for name in list(os.environ):
        if name.upper().startswith(("ROUTER_", "PG")):
            del os.environ[name]


def _start(stack: ExitStack, progress: TextIO) -> Sequence[PostgresCluster]:
    password = token_urlsafe()

    def start(release: _Release) -> PostgresCluster:
        begun = monotonic()
        cluster = PostgresCluster(
            release.postgres, release.standbys, synchronous=release.has_accidents, password=password
        )
        took = monotonic() - begun
        print(f"PostgreSQL {release.postgres} runs as {release.version}, after {took:.1f} s", file=progress)
        return cluster

    parts = (f"PostgreSQL {release.postgres} (standbys: {release.standbys})" for release in _RELEASES)
    print(f"starting {' and '.join(parts)} ...", file=progress, flush=True)
    with ThreadPoolExecutor() as starters:
        return [stack.enter_context(cluster) for cluster in starters.map(start, _RELEASES)]


def _write_settings(clusters: Sequence[PostgresCluster]) -> Path:
    """Write the settings file; it stays with the last cluster, closed to other users, and goes with it."""
    directory = clusters[-1].directory
    secret = directory / "password"
    secret.write_text(clusters[-1].password or "", encoding="utf-8")

    def node(port: int) -> str:
        dsn = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        return f"{{ dsn = {json.dumps(dsn)}, password_file = {json.dumps(str(secret))} }}"

    lines = ['default_version = "v2"']
    for release, cluster in zip(_RELEASES, clusters, strict=True):
        lines += ["", f"[versions.{release.version}]"]
        if release.has_accidents:
            lines += ["nodes = [", *(f"    {node(server.port)}," for server in cluster.servers), "]"]
        else:
            lines += [f"primary = {node(cluster.primary.port)}", "replicas = ["]
            lines += [*(f"    {node(standby.port)}," for standby in cluster.standbys), "]"]
    config = directory / "router.toml"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return config


class _Load:
    """The service: threads that write to and read from both versions through one router.

    Attributes:
        served: The latency of every request that was served, in seconds, by who served it.
        written: Every write that was acknowledged.
        in_flight: What the writes were told that were in flight on the primary when it was killed, and failed.
        failures: What else failed.
        seconds: How long it ran.
    """

    def __init__(self, router: Router, accidents: Accidents) -> None:
        self.served: dict[_Source, array[float]] = {}
        self.written: list[_Written] = []
        self.in_flight: list[_Failure] = []
        self.failures: list[_Failure] = []
        self.seconds = 0.0
        self._router = router
        self._accidents = accidents
        self._stop = Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run it for the length of a block; requests under way at the end are finished."""
        threads = [
            Thread(target=self._work, args=(release, use))
            for release in _RELEASES
            for use, count in (("write", WRITERS), ("read", READERS))
            for _ in range(count)
        ]
        begun = monotonic()
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
            self.seconds = monotonic() - begun

    def _work(self, release: _Release, use: str) -> None:
        serve = self._write if use == "write" else self._read
        was_in_flight = False  # once is all that a thread can be
        while not self._stop.wait(PAUSE):
            begun = monotonic()
            try:
                port, postgres, standby = serve(release)
            except Exception as error:  # noqa: BLE001  (that is what it counts)
                failure = _Failure(release.version, use, f"{type(error).__name__}: {error}")
                if not was_in_flight and use == "write" and self._was_in_flight(release, begun, error):
                    was_in_flight = True
                    self.in_flight.append(failure)
                else:
                    self.failures.append(failure)
                continue
            latency = monotonic() - begun
            # Both calls are atomic: threads share the array of a source.
            self.served.setdefault(_Source(release.version, postgres, use, port, standby), array("d")).append(latency)

    def _was_in_flight(self, release: _Release, begun: float, error: Exception) -> bool:
        """Whether the primary was killed under a write: one that never got a connection is no such write."""
        return (
            release.version == self._accidents.version
            and begun < self._accidents.dead_at
            and isinstance(error, psycopg.OperationalError)
            and not isinstance(error, (NoPrimary, PoolExhausted))
        )

    def _write(self, release: _Release) -> tuple[int, str, bool]:
        with self._router.connection(version=release.version) as connection:
            row = connection.execute(release.write, ("Ada", "Lovelace")).fetchone()
        number, *answer = row or (0,)
        port, postgres, standby = _checked(answer, "Ada Lovelace")
        self.written.append(_Written(release.version, number, port, monotonic()))
        return port, postgres, standby

    def _read(self, release: _Release) -> tuple[int, str, bool]:
        number = randint(1, CUSTOMERS)
        row = self._router.execute(release.read, (number,), version=release.version).first
        return _checked(row, f"Customer {number}")

    def measure(self, seconds: float, since: Mapping[_Source, int] | None = None) -> list[_Measured]:
        """Measure what was served.

        Args:
            seconds: In how long.
            since: How many requests of each source to leave out, because they were before.

        Returns:
            One row a source, in order.
        """
        served = self.served.copy()
        rows = []
        for source in sorted(served, key=lambda source: (source[:2], source.use != "write", source[3:])):
            total = len(served[source])
            latencies = served[source][(since or {}).get(source, 0) : total]
            rows.append(_Measured(source, total, len(latencies) / seconds, *_percentiles(latencies)))
        return rows


def _checked(row: Sequence[Any] | None, expected: str) -> tuple[int, str, bool]:
    name, port, postgres, standby = row or (None, 0, "", False)
    if name != expected:
        raise ValueError(f"the answer is {name!r}, not {expected!r}")
    return port, postgres, standby


def _percentiles(latencies: Sequence[float]) -> tuple[float, float]:
    """The 50th and 99th percentile; 0 of nothing."""
    if not latencies:
        return 0.0, 0.0
    ordered = sorted(latencies)
    return ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]


class _Writes(NamedTuple):
    """How the writes came through the accidents.

    Attributes:
        gap: Seconds from the last that the killed primary acknowledged to the first that its successor did; ``None`` if
            there was no such write.
        gap_after_promotion: How many of them had passed since the successor accepted writes.
        lost: How many were acknowledged and are in no table.
    """

    gap: float | None
    gap_after_promotion: float | None
    lost: int


def _judge(load: _Load, accidents: Accidents, clusters: Sequence[PostgresCluster]) -> _Writes:
    """Look for every acknowledged write, and for the time in which there was none."""
    exposed = [written for written in load.written if written.version == accidents.version]
    before = [written.at for written in exposed if written.port == accidents.primary]
    after = [written.at for written in exposed if written.port != accidents.primary]
    lost = 0
    for release, cluster in zip(_RELEASES, clusters, strict=True):
        # By their ids, since a write in flight may have made it: counting rows, it would make up for one that is lost.
        # An id that was given twice is of two writes, the first of them lost.
        there = {number for (number,) in cluster.primary.execute("SELECT id FROM customer")}
        acknowledged = [written.id for written in load.written if written.version == release.version]
        lost += len(acknowledged) - len(there.intersection(acknowledged))
    if not (before and after):
        return _Writes(None, None, lost)
    # It accepts them a moment before promoting it is seen to be over.
    return _Writes(min(after) - max(before), max(min(after) - accidents.promoted_at, 0.0), lost)


def _watch(load: _Load, accidents: Accidents, seconds: float, progress: TextIO, *, moving: bool) -> None:
    """Show what is served, and the accidents: a table that moves, or a line a second.

    It lasts until the time is over, and the accidents as well: coming back takes its time.
    """
    begun = last = monotonic()
    before: dict[_Source, int] = {}
    told = 0
    with ExitStack() as stack:
        screen = console()
        live = stack.enter_context(Live(console=screen, auto_refresh=False, transient=True)) if moving else None
        while (left := begun + seconds - last) > 0 or not accidents.over():
            if left > 0:
                sleep(min(1.0, left))
            else:
                accidents.over(timeout=1.0)
            now = monotonic()
            rows = load.measure(now - last, before)
            before = {row.source: row.requests for row in rows}
            last = now
            happened = accidents.happened.copy()
            if live:
                view = _view(load, happened, _table(rows, "requests/s", screen), left=max(begun + seconds - now, 0.0))
                live.update(InPlace(view), refresh=True)
            else:
                print(*happened[told:], _line(load, rows, now - begun), sep="\n", file=progress, flush=True)
            told = len(happened)


def _view(load: _Load, happened: Sequence[Accident], shown: Table, *, left: float) -> Group:
    failed = len(load.failures)
    lines = (Text(str(accident)) for accident in happened)
    return Group(shown, *lines, Text(f"{left:.0f} s left, {failed} failed", style="red" if failed else "green"))


def _line(load: _Load, rows: Sequence[_Measured], elapsed: float) -> str:
    parts = []
    for (version, postgres, use), own in groupby(rows, lambda row: row.source[:3]):
        served = [row for row in own if row.rate]
        nodes = ", ".join(f"{row.source.role} :{row.source.port} {row.rate:.0f}/s" for row in served) or "none"
        p99 = max((row.p99 for row in served), default=0.0)
        parts.append(f"{version} on {postgres}, {use}: {nodes}, p99 {p99 * 1000:.1f} ms")
    return f"{elapsed:3.0f} s  {' | '.join(parts)} | {len(load.failures)} failed"


def _table(rows: Sequence[_Measured], heading: Literal["requests", "requests/s"], screen: Console) -> Table:
    columns = (
        Column("version"),
        Column("use"),
        Column("node"),
        Column("role"),
        Column("PostgreSQL", rank=2),
        Column(heading, number=True),
        Column("p50 ms", number=True, rank=1),
        Column("p99 ms", number=True),
    )
    cells = []
    for row in rows:
        source, latencies = row.source, (f"{latency * 1000:.2f}" for latency in (row.p50, row.p99))
        count = f"{row.requests if heading == 'requests' else row.rate:,.0f}"
        node = f"127.0.0.1:{source.port}"
        cells.append([source.version, source.use, node, source.role, source.postgres, count, *latencies])
    return table(columns, cells, screen)


def _print_summary(load: _Load, accidents: Accidents, writes: _Writes) -> None:
    screen = console()
    rows = load.measure(load.seconds)
    screen.print()
    screen.print(_table(rows, "requests", screen))
    for accident in accidents.happened:
        screen.print(str(accident), soft_wrap=True)
    if writes.gap is not None:
        screen.print(
            f"{accidents.version}'s writes waited {writes.gap:.2f} s for their new primary, "
            f"{writes.gap_after_promotion:.2f} s of it after its promotion"
        )
    if load.in_flight:
        screen.print(
            f"{len(load.in_flight)} of {accidents.version}'s writes failed in flight on the killed primary, "
            "as their callers were told"
        )
    failed_reads = sum(failure.use == "read" for failure in load.failures)
    reads = sum(row.requests for row in rows if row.source.use == "read") + failed_reads
    screen.print(
        f"{writes.lost:,} of {len(load.written):,} acknowledged writes were lost, "
        f"{failed_reads:,} of {reads:,} reads failed",
        style="bold red" if writes.lost or failed_reads else "bold green",
    )
    total, failed = sum(row.requests for row in rows), len(load.failures)
    for failure, count in Counter(map(str, load.failures)).most_common(5):
        screen.print(f"- {count} times: {failure}", style="red", soft_wrap=True)
    screen.print(
        f"{total:,} requests served in {load.seconds:.1f} s ({total / load.seconds:,.0f}/s), "
        f"{failed} {'others ' if load.in_flight else ''}failed",
        style="bold red" if failed else "bold green",
    )


class _Kept(NamedTuple):
    config: str
    stop: str
    toml: str


def _keep(clusters: Sequence[PostgresCluster], config: Path) -> _Kept:
    toml = config.read_text(encoding="utf-8")
    return _Kept(str(config), f"kill {' '.join(str(cluster.keep()) for cluster in clusters)}", toml)


def _print_kept(kept: _Kept) -> None:
    print(f"\nThe servers go on running. Their settings, {kept.config}:\n\n{kept.toml}")
    program = sys.argv[0] if sys.argv[0].endswith("/router") else "router"
    print(f"Use them:   export ROUTER_CONFIG={kept.config}")
    print(f"            {program} check")
    print(f"            {program} psql --version v2 --read-only")
    print(f"Stop them:  {kept.stop}")


def _as_json(load: _Load, accidents: Accidents, writes: _Writes, kept: _Kept | None) -> dict[str, Any]:
    rows = load.measure(load.seconds)
    return {
        "seconds": load.seconds,
        "requests": sum(row.requests for row in rows),
        "failed": len(load.failures),
        "failures": dict(Counter(map(str, load.failures))),
        "accidents": [accident._asdict() for accident in accidents.happened],
        "writes_gap_seconds": writes.gap,
        "writes_gap_after_promotion_seconds": writes.gap_after_promotion,
        "writes_in_flight_failed": len(load.in_flight),
        "writes_acknowledged": len(load.written),
        "writes_lost": writes.lost,
        "served": [
            {
                "version": row.source.version,
                "use": row.source.use,
                "host": "127.0.0.1",
                "port": row.source.port,
                "role": row.source.role,
                "server_version": row.source.postgres,
                "requests": row.requests,
                "p50_seconds": row.p50,
                "p99_seconds": row.p99,
            }
            for row in rows
        ],
        "kept": kept and {"config": kept.config, "stop": kept.stop},
    }
