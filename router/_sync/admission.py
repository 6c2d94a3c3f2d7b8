# Generated from router/_async/admission.py by tools/async_to_sync.py: do not edit.
"""A lane's admission: how many of its requests may be served at a time."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from router._runtime.flags import Guard

if TYPE_CHECKING:
    from router._sync.waiter import Waiter


class Admission:
    """A tenant's own limit: the most of its requests that are served at a time, over all of its lanes.

    Requests beyond it keep their places in the line of their pool set, and are admitted in order of arrival before they
    are served. An admitted request is counted by a token, so that leaving twice, for example after an interruption, has
    no effect.
    """

    def __init__(self, limit: int) -> None:
        """Start without requests.

        Args:
            limit: How many requests are served at a time.
        """
        self._guard = Guard()  # guards all below; taken before a line's, never after
        self._limit = limit
        self._admitted: set[object] = set()
        self._held: OrderedDict[Waiter, None] = OrderedDict()

    @property
    def limit(self) -> int:
        """How many requests are served at a time; if it is lowered, admitted requests stay, and others wait."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        with self._guard:
            self._limit = limit
            self._admit()

    @property
    def admitted(self) -> int:
        """How many requests are admitted."""
        return len(self._admitted)

    @property
    def held(self) -> int:
        """How many requests wait to be admitted."""
        return len(self._held)

    def enter(self, token: object) -> bool:
        """Admit a request at once, if there is room and none waits to be admitted.

        Args:
            token: Identifies the request; :meth:`leave` has to be called with it in any case.

        Returns:
            Whether it is admitted.
        """
        with self._guard:
            if self._held or len(self._admitted) >= self._limit:
                return False
            self._admitted.add(token)
            return True

    def leave(self, token: object) -> None:
        """Stop counting a request, and admit the one that has waited longest instead.

        Args:
            token: Identifies the request.
        """
        with self._guard:
            self._admitted.discard(token)
            self._admit()

    def hold(self, waiter: Waiter) -> None:
        """Add a request in line to those that wait to be admitted.

        Args:
            waiter: The request.
        """
        with self._guard:
            self._held[waiter] = None
            self._admit()

    def withdraw(self, waiter: Waiter) -> None:
        """Remove a request from those that wait to be admitted.

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
