"""The counters of a pool."""

from __future__ import annotations


class Counts:
    """The counters of a pool, which may outlive the pool.

    Attributes:
        taken: Requests that found an idle connection.
        queued: Requests that were handed a connection in line.
        waited: How long requests that found no idle connection took to get one, in seconds.
        opened: Attempts to connect; psycopg_pool's own statistics also count attempts that were never made.
        failed: How many of the attempts failed.
    """

    __slots__ = ("_on_primary", "failed", "opened", "queued", "taken", "waited")

    def __init__(self) -> None:
        """Begin with all counts at 0."""
        self.opened = self.failed = self.taken = self.queued = 0
        self.waited = 0.0
        # The earlier requests on the primary, and, if the primary serves requests now, the number of requests when it
        # began to. Both are replaced at once, so that the resulting count never decreases.
        self._on_primary: tuple[int, int | None] = 0, None

    def follow(self, *, on_primary: bool) -> None:
        """Begin or end counting requests as served by the primary.

        Args:
            on_primary: Whether the primary serves reads from now on.
        """
        (earlier, since), requests = self._on_primary, self.taken + self.queued
        if on_primary and since is None:
            self._on_primary = earlier, requests
        elif not on_primary and since is not None:
            self._on_primary = earlier + requests - since, None

    def measured(self) -> dict[str, int]:
        """Return the current counters by their names in the totals; the waiting time is in milliseconds."""
        earlier, since = self._on_primary
        return {
            "requests": (requests := self.taken + self.queued),
            "queued": self.queued,
            "wait_ms": int(1000.0 * self.waited),
            "opened": self.opened,
            "failed": self.failed,
            "on_primary": earlier if since is None else earlier + requests - since,
        }
