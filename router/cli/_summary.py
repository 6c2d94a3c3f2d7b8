"""What ``router demo`` shows: what is served meanwhile, and a summary at the end."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rich.console import Group
from rich.text import Text

from router.cli._accidents import Accident, Accidents
from router.cli._screen import Column, console, table
from router.cli._service import Load, Measured
from router.core.names import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table


class Writes(NamedTuple):
    """What became of the writes during the accidents.

    Attributes:
        gap: Seconds from the last that the killed primary acknowledged to the first that its successor did; ``None`` if
            there was no such write.
        gap_after_promotion: How many of them had passed since the successor accepted writes.
        lost: How many were acknowledged and are in no table.
    """

    gap: float | None
    gap_after_promotion: float | None
    lost: int


def live_view(load: Load, happened: Sequence[Accident], shown: Table, *, left: float) -> Group:
    """Lay out what a terminal shows meanwhile."""
    failed = len(load.failures)
    lines = (Text(str(accident)) for accident in happened)
    return Group(shown, *lines, Text(f"{left:.0f} s left, {failed} failed", style="red" if failed else "green"))


def progress_line(load: Load, rows: Sequence[Measured], elapsed: float) -> str:
    """Write the line that is printed each second where there is no terminal."""
    parts = []
    for (version, postgres, use), own in groupby(rows, lambda row: row.source[:3]):
        served = [row for row in own if row.rate]
        nodes = ", ".join(f"{row.source.role} :{row.source.port} {row.rate:.0f}/s" for row in served) or "none"
        p99 = max((row.p99 for row in served), default=0.0)
        parts.append(f"{version} on {postgres}, {use}: {nodes}, p99 {p99 * 1000:.1f} ms")
    return f"{elapsed:3.0f} s  {' | '.join(parts)} | {len(load.failures)} failed"


def served_table(rows: Sequence[Measured], heading: Literal["requests", "requests/s"], screen: Console) -> Table:
    """Lay out what each server has served."""
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


def print_summary(load: Load, accidents: Accidents, writes: Writes) -> None:
    """Print what was served, what happened, and what became of the writes."""
    screen = console()
    rows = load.measure(load.seconds)
    screen.print()
    screen.print(served_table(rows, "requests", screen))
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
        screen.print(f"- {counted(count, 'time')}: {failure}", style="red", soft_wrap=True)
    screen.print(
        f"{total:,} requests served in {load.seconds:.1f} s ({total / load.seconds:,.0f}/s), "
        f"{failed} {'others ' if load.in_flight else ''}failed",
        style="bold red" if failed else "bold green",
    )


class Kept(NamedTuple):
    """Servers that go on running: where their settings are, what stops them, and the settings themselves."""

    config: str
    stop: str
    toml: str


def print_kept(kept: Kept) -> None:
    """Print how to use the servers that go on running."""
    print(f"\nThe servers go on running. Their settings, {kept.config}:\n\n{kept.toml}")
    program = sys.argv[0] if sys.argv[0].endswith("/router") else "router"
    print(f"Use them:   export ROUTER_CONFIG={kept.config}")
    print(f"            {program} check")
    print(f"            {program} psql --version v2 --read-only")
    print(f"Stop them:  {kept.stop}")


def summary_as_json(load: Load, accidents: Accidents, writes: Writes, kept: Kept | None) -> dict[str, Any]:
    """Write the summary as JSON takes it."""
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
