"""What a server's "too many connections" shows, and when it is asked for one more again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from router.core.names import counted
from router.core.value import Value

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from router.core.budget import Login

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
        known = f"; it accepted {counted(self.most, 'connection')} from this process" if self.most else ""
        return f"accepts no further connection: {self.reason}{known}"


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


class ServerLimits:
    """What servers have shown of limits of their own, by login."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._known: dict[Login, ServerLimit] = {}

    def get(self, login: Login) -> ServerLimit | None:
        """Tell what is known.

        Args:
            login: The server, and the user at it.

        Returns:
            That; ``None`` for nothing.
        """
        return self._known.get(login)

    def refusing(self, login: Login) -> ServerLimit | None:
        """Tell what is known of a server that has refused a connection.

        Args:
            login: The server, and the user at it.

        Returns:
            That; ``None`` if it has refused none, or one more was had since.
        """
        known = self._known.get(login)
        return known if known is not None and known.reason else None

    def limit(self, login: Login, *, now: float) -> int | None:
        """Tell how many connections there may be now: one more than there were, when it is time to try.

        Args:
            login: The server, and the user at it.
            now: The time on the caller's clock.

        Returns:
            How many; ``None`` where no limit is known.
        """
        known = self._known.get(login)
        return None if known is None else known.most + (now >= known.retry_at)

    def refuse(
        self, login: Login, before: ServerLimit | None, most: int, reason: str, *, now: float, jitter: float
    ) -> None:
        """Note that a server has refused one more.

        Args:
            login: The server, and the user at it.
            before: What was known when the attempt began.
            most: How many connections this process has there with that login.
            reason: What the server said.
            now: The time on the caller's clock.
            jitter: As for :func:`refused`.
        """
        known = self._known.get(login)
        if before is known or known is None:
            self._known[login] = refused(known, most, reason, now=now, jitter=jitter)
        else:  # another attempt that was under way has shown it already
            self._known[login] = replace(known, most=most, reason=reason)

    def reach(self, login: Login, before: ServerLimit | None, most: int, *, now: float) -> None:
        """Note how many connections there are, once one more was had.

        Args:
            login: The server, and the user at it.
            before: What was known when the attempt began.
            most: How many there are.
            now: The time on the caller's clock.
        """
        known = self._known.get(login)
        if known is not None and most > known.most:
            # One that was under way when the server refused another says only that there was room before.
            self._known[login] = raised(most, now=now) if before is known else replace(known, most=most)

    def forget(self, waiting: Collection[Login]) -> Iterator[Login]:
        """Forget the limits that do not hold any more, and that nothing waits for.

        Args:
            waiting: Those for which requests wait.

        Yields:
            Those whose limit was forgotten.
        """
        for login, known in list(self._known.items()):
            if not known.reason and login not in waiting:
                del self._known[login]
                yield login

    def __iter__(self) -> Iterator[Login]:
        """Iterate over the logins for which a limit is known."""
        return iter(list(self._known))
