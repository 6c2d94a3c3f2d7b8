"""What ``import router`` costs, beside importing the two packages it stands on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bench.figures import Bar, Figure, ratio

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 21
BAR = Bar("at most", 1.3)
UNIT = "times importing psycopg_pool and pydantic_settings"
ROOT = Path(__file__).resolve().parent.parent


def measure() -> Iterator[Figure]:
    """Take the CPU time, which a busy machine disturbs less, of interpreters that import one or the other, in turns.

    All modules come from bytecode written beforehand, as pip leaves them when it installs a package.

    Yields:
        The median of the ratios, and the ratio of the shortest times.
    """
    # With its public names: those are looked up when they are first used.
    ours, theirs = "from router import *", "import psycopg_pool, pydantic_settings"
    times: dict[str, list[float]] = {ours: [], theirs: []}
    with TemporaryDirectory() as bytecode:
        for statement in times:
            _cpu_time(statement, bytecode)  # writes it
        for turn in range(ROUNDS):
            for statement in sorted(times, reverse=turn % 2 == 0):
                times[statement].append(_cpu_time(statement, bytecode))
    yield ratio("import router", times[ours], times[theirs], UNIT, bar=BAR)
    yield Figure(f"import router: the shortest of {ROUNDS}", min(times[ours]) / min(times[theirs]), UNIT)


def _cpu_time(statement: str, bytecode: str) -> float:
    """Return the seconds from the start of an interpreter to the end of its import."""
    code = f"{statement}; import time; print(time.process_time())"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": bytecode}
    return float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True))
