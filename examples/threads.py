"""A pool of worker threads and a queue of jobs, over the process-wide router: any module just imports `router`.

It starts a cluster of its own; in a service, the process-wide router reads its settings from the environment.
"""

from __future__ import annotations

from contextlib import ExitStack
from queue import Queue
from threading import Thread
from time import monotonic, sleep

import router
from router.testing import PostgresCluster

WORKERS, JOBS = 8, 200


def work(jobs: Queue[int | None]) -> None:
    """Do jobs until there is a None: read from a replica what to do, and write the result to the primary."""
    while (job := jobs.get()) is not None:
        with router.connection(version="v1", read_only=True) as conn:
            result = conn.execute("SELECT %s::int * 2", [job]).fetchone()
        # Don't borrow one connection inside another's block: all workers could wait for their second one.
        with router.connection(version="v1") as conn:
            conn.execute("INSERT INTO result VALUES (%s, %s)", [job, result[0] if result else None])


def count(deadline: float) -> int:
    """Count the results on a replica, once it has them all: it is a moment behind the primary."""
    while True:
        with router.connection(version="v1", read_only=True) as conn:
            found = conn.execute("SELECT count(*) FROM result").fetchone()
        # A replica is a moment behind.
        if found == (JOBS,) or monotonic() > deadline:
            return found[0] if found else 0
        sleep(0.01)


with ExitStack() as stack:
    cluster = stack.enter_context(PostgresCluster(standbys=2))
    router.configure(router.RouterSettings(versions={"v1": cluster.version_settings()}, pool={"max_size": 4}))
    stack.callback(router.close)

    with router.connection(version="v1") as conn:
        conn.execute("CREATE TABLE result (job int PRIMARY KEY, result int)")
    jobs: Queue[int | None] = Queue()
    for job in [*range(JOBS), *[None] * WORKERS]:
        jobs.put(job)
    threads = [Thread(target=work, args=[jobs]) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{count(monotonic() + 10.0)} of {JOBS} jobs done by {WORKERS} threads")
    print(router.stats())  # more threads than connections: some had to wait, none failed
    with router.connection(version="v1") as conn:
        conn.execute("DROP TABLE result")
