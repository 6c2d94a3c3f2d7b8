"""What ``import router`` costs beside the imports of its own dependencies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Bar, Figure, ratio

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 21
BAR = Bar("at most", 1.3)
UNIT = "x importing psycopg_pool and pydantic_settings"
ROOT = Path(__file__).resolve().parent.parent


def measure() -> Iterator[Figure]:
    """Time the import in new processes, in turns with that of ``psycopg_pool`` and ``pydantic_settings``.

    The interpreter's own start, the same for both, is left out: with it the ratio would be nearer to 1.

    Yields:
        The median ratio, and the ratio of the shortest times.
    """
    ours, theirs = "import router", "import psycopg_pool, pydantic_settings"
    times: dict[str, list[float]] = {ours: [], theirs: []}
    for statement in times:
        _time(statement)  # writes the bytecode that is not there yet
    for turn in range(ROUNDS):
        for statement in sorted(times, reverse=turn % 2 == 0):
            times[statement].append(_time(statement))
    shortest = min(times[ours]) / min(times[theirs])
    yield ratio(f"{ours}: median of {ROUNDS}", times[ours], times[theirs], UNIT, bar=BAR)
    yield Figure(f"{ours}: the shortest of {ROUNDS}", shortest, UNIT)


def _time(statement: str) -> float:
    code = f"from time import perf_counter as now; start = now(); {statement}; print(now() - start)"
    return float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True))
