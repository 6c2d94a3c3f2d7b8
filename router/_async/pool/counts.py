"""What a pool has counted."""

from __future__ import annotations


class Counts:
    """What a pool has counted; it may outlive the pool.

    Attributes:
        taken: Requests that found a connection ready.
        queued: Requests that were handed one in line.
        waited: For how long requests have looked and waited for one that was not ready, in seconds.
        opened: Attempts to connect; those that psycopg_pool only meant to make are among its own.
        failed: How many of those failed.
    """

    __slots__ = ("_on_primary", "failed", "opened", "queued", "taken", "waited")

    def __init__(self) -> None:
        """Begin with all counts at 0."""
        self.opened = self.failed = self.taken = self.queued = 0
        self.waited = 0.0
        # The requests on the primary before, and the number of the request from which on the primary serves them, if it
        # does. Both are replaced at once, so that their sum never goes down.
        self._on_primary: tuple[int, int | None] = 0, None

    def follow(self, *, on_primary: bool) -> None:
        """Count requests apart from now on while it is the primary that serves reads.

        Args:
            on_primary: Whether it is.
        """
        (earlier, since), requests = self._on_primary, self.taken + self.queued
        if on_primary and since is None:
            self._on_primary = earlier, requests
        elif not on_primary and since is not None:
            self._on_primary = earlier + requests - since, None

    def measured(self) -> dict[str, int]:
        """Return the counters of now, by their names in the totals; the time that was waited in milliseconds."""
        earlier, since = self._on_primary
        return {
            "requests": (requests := self.taken + self.queued),
            "queued": self.queued,
            "wait_ms": int(1000.0 * self.waited),
            "opened": self.opened,
            "failed": self.failed,
            "on_primary": earlier if since is None else earlier + requests - since,
        }
