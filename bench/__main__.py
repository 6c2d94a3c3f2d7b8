"""What routing costs: ratios measured in one run, and counts. Times say more about the machine, but for a failover's.

A row is a function that yields figures; to add one, name it in ``ROWS``.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from bench import checkout, contention, failover, imports, limited, round_trips, strays, tenants, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bench.figures import Figure

ROWS: dict[str, Callable[[], Iterable[Figure]]] = {
    "round_trips": round_trips.measure,
    "checkout": checkout.measure,
    "contention": contention.measure,
    "import": imports.measure,
    "failover": failover.measure,
    "waiting": waiting.measure,
    "limited": limited.measure,
    "tenants": tenants.measure,
    "strays": strays.measure,
}
APART = ("tenants", "strays")
"""Measured only when named: each takes minutes."""

NOT_YET = {"contention"}
"""What ``--check`` does not ask of yet: the bars show how far it is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure rows and print their figures.

    Args:
        arguments: The command line; ``None`` takes this process's.

    Returns:
        The exit code: 1 when a figure does not hold its bar and ``--check`` was given, else 0.
    """
    parser = argparse.ArgumentParser(
        "python -m bench", description="What routing costs: ratios, counts, and the pause of a failover."
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"rows to measure, of {', '.join(ROWS)}; default all but {', '.join(APART)}",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--check", action="store_true", help="exit 1 when a figure does not hold its bar")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in ROWS]:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    figures: list[tuple[str, Figure]] = []
    for row in options.names or [row for row in ROWS if row not in APART]:
        for figure in ROWS[row]():
            figures.append((row, figure))
            if not options.json:
                print(_line(row, figure), flush=True)
    if options.json:
        print(json.dumps([{"row": row, **asdict(figure), "holds": figure.holds} for row, figure in figures], indent=2))
    return int(options.check and not all(figure.holds for row, figure in figures if row not in NOT_YET))


def _line(row: str, figure: Figure) -> str:
    spread = "" if figure.spread is None else "{:.2f}-{:.2f}".format(*figure.spread)
    bar = "" if figure.bar is None else f"{figure.bar}: {'holds' if figure.holds else 'DOES NOT HOLD'}"
    value = f"{figure.value:.2f}".removesuffix(".00")
    return f"{row:12} {figure.what:38} {value:>6} {spread:>11}  {bar:22} {figure.unit}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
