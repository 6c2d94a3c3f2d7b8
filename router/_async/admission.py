"""A lane's admission: how many of its requests may be served at a time."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from router._runtime.flags import AGuard

if TYPE_CHECKING:
    from router._async.waiter import AsyncWaiter


class AsyncAdmission:
    """A tenant's own limit: so many of its requests are served at a time, over all of its lanes.

    Those beyond it wait in the line of their pool set, in their place, and are not served before they are admitted: in
    order of arrival. What is admitted is counted by a token, so that to leave twice, or after an interruption, does no
    harm.
    """

    def __init__(self, limit: int) -> None:
        """Admit nobody yet.

        Args:
            limit: How many are served at a time.
        """
        self._guard = AGuard()  # guards all below; taken before a line's, never after
        self._limit = limit
        self._admitted: set[object] = set()
        self._held: OrderedDict[AsyncWaiter, None] = OrderedDict()

    @property
    def limit(self) -> int:
        """How many are served at a time; when it is lowered, those admitted stay, and nobody else is before."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        with self._guard:
            self._limit = limit
            self._admit()

    @property
    def admitted(self) -> int:
        """How many are being served."""
        return len(self._admitted)

    @property
    def held(self) -> int:
        """How many wait to be admitted."""
        return len(self._held)

    def enter(self, token: object) -> bool:
        """Have a request served at once, if nobody waits before it.

        Args:
            token: What it counts as; :meth:`leave` is to be called with it, whatever happens.

        Returns:
            Whether it is admitted.
        """
        with self._guard:
            if self._held or len(self._admitted) >= self._limit:
                return False
            self._admitted.add(token)
            return True

    def leave(self, token: object) -> None:
        """Count a request no more; the one that has waited longest is admitted instead.

        Args:
            token: What it counted as.
        """
        with self._guard:
            self._admitted.discard(token)
            self._admit()

    def hold(self, waiter: AsyncWaiter) -> None:
        """Admit a request in line when it is its turn.

        Args:
            waiter: The request.
        """
        with self._guard:
            self._held[waiter] = None
            self._admit()

    def withdraw(self, waiter: AsyncWaiter) -> None:
        """Have a request wait no more.

        Args:
            waiter: The request.
        """
        with self._guard:
            self._held.pop(waiter, None)

    def _admit(self) -> None:
        while self._held and len(self._admitted) < self._limit:
            waiter = next(iter(self._held))
            self._admitted.add(waiter.token)
            del self._held[waiter]
            waiter.line.admit(waiter)
