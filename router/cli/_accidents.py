"""What happens to the servers of one version while ``router demo`` runs."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from math import inf
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.testing import PostgresCluster


class Accident(NamedTuple):
    """One that is over: when, in seconds from the beginning, and what it was."""

    seconds: float
    what: str

    def __str__(self) -> str:
        return f"{self.seconds:3.0f} s  {self.what}"


class Accidents:
    """A standby is killed; then the primary, and another standby promoted; then the killed ones come back as standbys.

    Args:
        version: The version that its cluster runs as.
        cluster: A synchronous one with two standbys, so that no acknowledged write is lost.

    Attributes:
        version: As given.
        primary: The port of the primary that is killed.
        happened: The accidents so far.
        dead_at: When that primary was dead, on the monotonic clock; ``-inf`` until it is killed, ``inf`` meanwhile. So
            what was begun earlier than this may have been in flight on it.
        promoted_at: When its successor accepted writes, on the monotonic clock; ``inf`` until then.
    """

    def __init__(self, version: str, cluster: PostgresCluster) -> None:
        self.version = version
        self.primary = cluster.primary.port
        self.happened: list[Accident] = []
        self.dead_at = -inf
        self.promoted_at = inf
        self._cluster = cluster
        self._stop = Event()
        self._worker: Future[None] = Future()

    @contextmanager
    def happening(self, seconds: float) -> Iterator[None]:
        """Let them happen during a block, in a thread; one that has begun by the end of the block is finished first.

        Args:
            seconds: The time to spread them over.

        Raises:
            ClusterError: A server did not do as it was told.
        """
        with ThreadPoolExecutor(1) as executor:
            self._worker = executor.submit(self._happen, seconds)
            try:
                yield
            finally:
                self._stop.set()
        self._worker.result()

    def over(self, timeout: float = 0.0) -> bool:
        """Wait until all of them have happened, and say whether they have.

        Args:
            timeout: The most to wait, in seconds.
        """
        return not wait([self._worker], timeout).not_done

    def bring_back(self) -> str:
        """Let the servers that were killed come back as standbys, and say which.

        Raises:
            ClusterError: One did not.
        """
        killed = [server for server in self._cluster.servers if not server.running]
        for server in killed:
            server.rejoin(self._cluster.primary)
        return f"{self.version}'s killed servers are back as standbys: {', '.join(f':{one.port}' for one in killed)}"

    def _happen(self, seconds: float) -> None:
        begun = monotonic()
        for part, accident in ((0.3, self._kill_standby), (0.55, self._fail_over), (0.75, self.bring_back)):
            if self._stop.wait(begun + part * seconds - monotonic()):
                return
            what = accident()
            self.happened.append(Accident(monotonic() - begun, what))

    def _kill_standby(self) -> str:
        standby = self._cluster.standbys[0]
        standby.kill()
        return f"kill -9: {self.version}'s standby :{standby.port}"

    def _fail_over(self) -> str:
        primary = self._cluster.primary
        successor = next(standby for standby in self._cluster.standbys if standby.running)
        # The standby killed before may have been the only one to acknowledge some of the writes.
        successor.wait_replayed()
        self.dead_at = inf
        primary.kill()
        self.dead_at = monotonic()
        successor.promote()
        self.promoted_at = monotonic()
        return f"kill -9: {self.version}'s primary :{primary.port}; standby :{successor.port} promoted"
