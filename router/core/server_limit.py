"""What a server's "too many connections" shows, and when it is asked for one more again."""

from __future__ import annotations

from router.core.value import Value

LEAST_PAUSE, MOST_PAUSE = 1.0, 60.0
"""Seconds between two attempts to have more connections than a server took: doubled each time it refuses."""

LEAST_PAUSE_WITHOUT = 0.1
"""The same where this process has none there at all, so that requests wait for one; up to ``LEAST_PAUSE``."""


class ServerLimit(Value):
    """What a server has refused one login, whatever that hangs on: the role's limit, or all that the server takes.

    Attributes:
        most: How many connections this process had there with that login.
        reason: What the server said; empty once one more was had than before.
        pause: Seconds from then until the next attempt, without jitter.
        retry_at: When that may be, on the caller's clock.
    """

    most: int
    reason: str
    pause: float
    retry_at: float

    def __str__(self) -> str:
        """Say it of the server, in an error."""
        known = f"; it took {self.most} of this process" if self.most else ""
        return f"takes no further connection: {self.reason}{known}"


def raised(most: int, *, now: float) -> ServerLimit:
    """Work out what follows once one more was had than when the server refused it: another is tried at once.

    One at a time: if all that wait were to try, a server with room for one would refuse the others.

    Args:
        most: How many connections this process has there with that login.
        now: The time on the caller's clock.

    Returns:
        What is known now.
    """
    return ServerLimit(most, "", 0.0, now)


def refused(known: ServerLimit | None, most: int, reason: str, *, now: float, jitter: float) -> ServerLimit:
    """Work out what one more refusal shows.

    Args:
        known: What was known before; ``None`` for nothing.
        most: How many connections this process has there with that login.
        reason: What the server said.
        now: The time on the caller's clock.
        jitter: From 0 to 1, at random: so that processes that share a limit do not ask together.

    Returns:
        What is known now.
    """
    longer = 2.0 * known.pause if known is not None else 0.0
    least, longest = (LEAST_PAUSE, MOST_PAUSE) if most else (LEAST_PAUSE_WITHOUT, LEAST_PAUSE)
    pause = min(max(longer, least), longest)
    return ServerLimit(most, reason, pause, now + pause * (0.9 + 0.2 * jitter))
