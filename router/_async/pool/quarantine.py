"""The quarantine of a pool: it lends no idle connection while their sessions may be about to end."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from router._runtime.calls import ashielded

if TYPE_CHECKING:
    from router._async.pool.node_pool import AsyncNodePool

QUARANTINE_COOLDOWN = 1.0
"""Seconds from the end of a quarantine until the next one may begin."""


class AsyncQuarantine:
    """The quarantine of one pool's idle connections.

    Attributes:
        begun_at: When the last quarantine began, on the monotonic clock.
    """

    def __init__(self, pool: AsyncNodePool) -> None:
        """Start without a quarantine.

        Args:
            pool: The pool.
        """
        self.begun_at = 0.0
        self._pool = pool
        self._not_before = 0.0

    def begin(self) -> None:
        """Stop lending idle connections until :meth:`end`; not within the cooldown, as sessions may go on ending."""
        pool, now = self._pool, monotonic()
        if not pool.quarantined and not pool.draining and now >= self._not_before:
            self.begun_at = now
            pool.withhold()

    @ashielded
    async def end(self) -> None:
        """Lend idle connections again, first to the requests that wait."""
        pool = self._pool
        async with pool.lock:  # guards kept, waiting
            self._not_before = monotonic() + QUARANTINE_COOLDOWN
            pool.idle = pool.kept
            if pool.draining:  # checked last: begin_draining() takes no lock, and sets this before it withholds
                pool.withhold()
                return
        await pool.hand_over()
        async with pool.lock:  # guards kept, waiting, closed, growing
            pool.grow_for_waiting()  # the connections that requests waited for may have been closed meanwhile
