"""When a pool lends no idle connection, because all of them may be about to end."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from router._runtime.calls import ashielded

if TYPE_CHECKING:
    from router._async.pool.node_pool import AsyncNodePool

QUARANTINE_COOLDOWN = 1.0
"""Seconds after a quarantine in which there is no other one."""


class AsyncQuarantine:
    """The quarantine of one pool's idle connections.

    Attributes:
        begun_at: When they were last put in quarantine, on the monotonic clock.
    """

    def __init__(self, pool: AsyncNodePool) -> None:
        """Begin without one.

        Args:
            pool: The pool.
        """
        self.begun_at = 0.0
        self._pool = pool
        self._not_before = 0.0

    def begin(self) -> None:
        """Lend no idle connection until :meth:`end`; not again at once, for sessions may go on ending."""
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
            if pool.draining:  # last: begin_draining() takes no lock, and sets this first
                pool.withhold()
                return
        await pool.hand_over()
        async with pool.lock:  # guards kept, waiting, closed, growing
            pool.grow_for_waiting()  # what they waited for has been closed meanwhile
