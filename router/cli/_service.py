"""The service that ``router demo`` shows: writers and readers of two versions of its database, through one router."""

from __future__ import annotations

from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from random import randint
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from router import NoPrimary, PoolExhausted, Router
from router.cli._accidents import Accidents

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import LiteralString


WRITERS = 2  # threads a version
READERS = 4
PAUSE = 0.01  # seconds between two requests of a thread: a demonstration, not a benchmark
CUSTOMERS = 1000  # that both schemas begin with

# Each answer says which server gave it: what is counted below is the servers' own word.
SERVER_VIEW: LiteralString = """
    CREATE VIEW server (port, version, is_standby) AS
    SELECT current_setting('port')::int, current_setting('server_version'), pg_is_in_recovery()
"""


@dataclass(frozen=True, slots=True)
class Release:
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


RELEASES = (
    Release(
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
    Release(
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


class Source(NamedTuple):
    """What a request was, and which server says that it served it."""

    version: str
    postgres: str
    use: str
    port: int
    standby: bool

    @property
    def role(self) -> str:
        """Its role in words."""
        return "standby" if self.standby else "primary"


class Written(NamedTuple):
    """A write that was acknowledged: the customer's id, the primary's port, and when, on the monotonic clock."""

    version: str
    id: int
    port: int
    at: float


class Failure(NamedTuple):
    """A request that failed."""

    version: str
    use: str
    problem: str

    def __str__(self) -> str:
        return f"{self.version} {self.use}: {self.problem}"


class Measured(NamedTuple):
    """What one source served in a time; latencies in seconds."""

    source: Source
    requests: int
    rate: float
    p50: float
    p99: float


class Load:
    """The service: threads that write to and read from both versions through one router.

    Attributes:
        served: The latency of every request that was served, in seconds, by the server.
        written: Every write that was acknowledged.
        in_flight: Writes that failed because they were in flight on the primary when it was killed.
        failures: What else failed.
        seconds: How long it ran.
    """

    def __init__(self, router: Router, accidents: Accidents, releases: Sequence[Release]) -> None:
        """Prepare it.

        Args:
            router: Serves it.
            accidents: What happens to the servers meanwhile.
            releases: The versions of the service.
        """
        self.served: dict[Source, array[float]] = {}
        self.written: list[Written] = []
        self.in_flight: list[Failure] = []
        self.failures: list[Failure] = []
        self.seconds = 0.0
        self._router = router
        self._accidents = accidents
        self._releases = releases
        self._stop = Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run it for the length of a block; requests under way at the end are finished."""
        threads = [
            Thread(target=self._work, args=(release, use))
            for release in self._releases
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

    def _work(self, release: Release, use: str) -> None:
        serve = self._write if use == "write" else self._read
        was_in_flight = False  # once is all that a thread can be
        while not self._stop.wait(PAUSE):
            begun = monotonic()
            try:
                port, postgres, standby = serve(release)
            except Exception as error:  # noqa: BLE001  (that is what it counts)
                failure = Failure(release.version, use, f"{type(error).__name__}: {error}")
                if not was_in_flight and use == "write" and self._was_in_flight(release, begun, error):
                    was_in_flight = True
                    self.in_flight.append(failure)
                else:
                    self.failures.append(failure)
                continue
            latency = monotonic() - begun
            # Both calls are atomic: threads share the array of a source.
            self.served.setdefault(Source(release.version, postgres, use, port, standby), array("d")).append(latency)

    def _was_in_flight(self, release: Release, begun: float, error: Exception) -> bool:
        """Whether the primary was killed under a write: one that never got a connection is no such write."""
        return (
            release.version == self._accidents.version
            and begun < self._accidents.dead_at
            and isinstance(error, psycopg.OperationalError)
            and not isinstance(error, (NoPrimary, PoolExhausted))
        )

    def _write(self, release: Release) -> tuple[int, str, bool]:
        with self._router.connection(version=release.version) as connection:
            row = connection.execute(release.write, ("Ada", "Lovelace")).fetchone()
        number, *answer = row or (0,)
        port, postgres, standby = _checked(answer, "Ada Lovelace")
        self.written.append(Written(release.version, number, port, monotonic()))
        return port, postgres, standby

    def _read(self, release: Release) -> tuple[int, str, bool]:
        number = randint(1, CUSTOMERS)
        row = self._router.execute(release.read, (number,), version=release.version).first
        return _checked(row, f"Customer {number}")

    def measure(self, seconds: float, since: Mapping[Source, int] | None = None) -> list[Measured]:
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
            rows.append(Measured(source, total, len(latencies) / seconds, *_percentiles(latencies)))
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
