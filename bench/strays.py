"""References that outlive their block, used while the session serves somebody else: nobody else must notice.

Six workers borrow in turns for two tenants, from pools of three connections. Of every block they keep the connection, a
cursor, a transaction and a pipeline, and use some of what they have kept while others have the session. Now and then
a helper uses a connection from before its block ends until it raises, or cancels what runs there, so that the end of
the block meets a use.

Every use after the end of the block has to raise :exc:`psycopg.InterfaceError`. No block is answered with another
tenant's rows, fails or begins in a transaction, and nothing that came after a block is ever committed. Each mode, with
threads or tasks, on shared or dedicated pools, is a process of its own, so that one that crashes or hangs is seen.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryFile
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING

from bench.figures import Bar, Figure
from bench.stray_workers import TENANTS, Tally
from router.testing import PostgresCluster

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Sequence

CHECKOUTS = 1_000_000
KINDS = ("threads", "tasks")
POOLINGS = ("shared", "dedicated")
AT_ONCE = 2  # processes
HANGS = 30.0  # seconds without a checkout
ROOT = Path(__file__).resolve().parent.parent
WRONG = "SELECT body FROM {0}.note WHERE body <> 'of {0}'"


def measure() -> Iterator[Figure]:
    """Make a million checkouts, a quarter in each mode.

    Yields:
        What happened in each.
    """
    with PostgresCluster(version=18, standbys=0) as cluster:
        for name, tally in run(cluster, CHECKOUTS).items():
            yield from compare(name, tally)


def compare(name: str, tally: Tally) -> Iterator[Figure]:
    """Turn what was counted into figures.

    Args:
        name: The mode.
        tally: What happened in it.

    Yields:
        The figures.
    """
    none = Bar("exactly", 0)
    blocks, rate = f"of {tally.checkouts} blocks", tally.checkouts / max(tally.seconds, 0.001)
    yield Figure(f"{name}: checkouts", tally.checkouts, f"in {tally.seconds:.0f} s, {rate:.0f} a second")
    unit = f"of {tally.strays}{_named(tally.not_refused)}"
    yield Figure(f"{name}: stray uses not refused", tally.not_refused.total(), unit, bar=none)
    yield Figure(f"{name}: another tenant's rows", tally.foreign_rows, blocks, bar=none)
    yield Figure(f"{name}: stray rows committed", tally.committed.total(), f"rows{_named(tally.committed)}", bar=none)
    yield Figure(f"{name}: failed", tally.failed.total(), f"{blocks}{_named(tally.failed)}", bar=none)
    yield Figure(f"{name}: begun in a transaction", tally.not_idle, blocks, bar=none)
    yield Figure(f"{name}: an earlier block's object", tally.same_object, blocks, bar=none)
    yield Figure(f"{name}: crashed or hung", int(bool(tally.died)), tally.died.partition("\n")[0], bar=none)


def _named(counted: Counter[str]) -> str:
    return "".join(f", {times} {what}" for what, times in counted.most_common(5))


# The processes


def run(cluster: PostgresCluster, checkouts: int, modes: Sequence[tuple[str, str]] = ()) -> dict[str, Tally]:
    """Have processes borrow, and stray.

    Args:
        cluster: Where; each process has a database of its own.
        checkouts: How many, over all processes.
        modes: Which processes: of threads or tasks, with shared or dedicated pools; all when empty.

    Returns:
        What happened in each.
    """
    modes = modes or list(product(KINDS, POOLINGS))
    with ThreadPoolExecutor(AT_ONCE) as executor:
        running = {
            f"{kind}, {pooling}": executor.submit(_run, cluster, kind, pooling, checkouts // len(modes))
            for kind, pooling in modes
        }
        return {name: future.result() for name, future in running.items()}


def _run(cluster: PostgresCluster, kind: str, pooling: str, checkouts: int) -> Tally:
    database = f"strays_{kind}_{pooling}"
    cluster.primary.execute(f"CREATE DATABASE {database}")
    for tenant in TENANTS:
        cluster.primary.execute(f"CREATE SCHEMA {tenant} CREATE TABLE note (body text)", dbname=database)
        cluster.primary.execute(f"INSERT INTO {tenant}.note SELECT 'of {tenant}'", dbname=database)
    command = [sys.executable, "-m", "bench.stray_workers", kind, pooling, str(checkouts), cluster.dsn(database)]
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        tally = _watched(process, f"{kind}, {pooling}")
        if process.returncode:
            errors.seek(0)
            tally.died += f"exit status {process.returncode}\n{errors.read()[-10_000:]}"
    for tenant in TENANTS:
        tally.committed.update(body for (body,) in cluster.primary.execute(WRONG.format(tenant), dbname=database))
    cluster.primary.execute(f"DROP DATABASE {database} WITH (FORCE)")
    return tally


def _watched(process: subprocess.Popen[str], name: str) -> Tally:
    """Return the last report of a process, which is aborted when no checkout is reported for a while."""
    reports: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in process.stdout or ():
            reports.put(line)

    reader = Thread(target=read)
    reader.start()
    tally, begun, advanced, hangs = Tally(), monotonic(), monotonic(), ""
    while reader.is_alive() or not reports.empty():
        with suppress(Empty):
            before, tally = tally.checkouts, Tally.from_json(reports.get(timeout=0.1))
            advanced = monotonic() if tally.checkouts != before else advanced
            if sys.stderr.isatty():
                print(f"{name}: {tally.checkouts} checkouts, {tally.problems}", file=sys.stderr)
        if not hangs and monotonic() > advanced + HANGS:
            hangs = f"no checkout for {HANGS:g} s, "
            process.send_signal(signal.SIGABRT)  # it says where
    process.wait()
    tally.died, tally.seconds = hangs, monotonic() - begun
    return tally


def main() -> int:
    """Make as many checkouts as the command line says; return 1 when something happened that must not."""
    parser = argparse.ArgumentParser("python -m bench.strays", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkouts", nargs="?", type=int, default=CHECKOUTS, help=f"how many; default {CHECKOUTS}")
    options = parser.parse_args()
    with PostgresCluster(version=18, standbys=0) as cluster:
        tallies = run(cluster, options.checkouts)
    for name, tally in tallies.items():
        done = f"{tally.checkouts} checkouts in {tally.seconds:.0f} s, {tally.strays} stray uses"
        print(f"{name}: {done}: {tally.problems or 'holds'}")
    return int(any(tally.problems for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
