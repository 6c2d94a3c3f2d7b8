# Generated from router/_async/slots.py by tools/async_to_sync.py: do not edit.
"""The process's budget: never more connections than ``max_connections``, over all pools and probes."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

from router._runtime import Flag, Guard

if TYPE_CHECKING:
    from psycopg import Connection

    from router._runtime import Function


class BudgetSpent(Exception):
    """Every connection that the process may hold is open, and none became free in time."""


class Slots:
    """A slot for each open connection; whoever wants to open one takes a slot first.

    Nobody tells when a connection closes (a pool may shrink, a server may die), so slots are counted anew by looking at
    the connections themselves, but only when all seem taken.
    """

    def __init__(self, limit: int, make_room: Function[[], bool]) -> None:
        """Start with every slot free.

        Args:
            limit: The most connections.
            make_room: Closes one idle connection somewhere; returns whether it found one.
        """
        self.limit = limit
        self.waiting: deque[Flag] = deque()  # openers in order of arrival; whoever returns a connection looks here
        self._make_room = make_room
        self._guard = Guard()  # guards _opening and _open
        self._opening = 0
        self._open: list[ref[Connection[Any]]] = []
        self._closed = False

    @property
    def taken(self) -> int:
        """How many connections are open or being opened now."""
        with self._guard:
            return self._opening + len(self._count())

    def take(self, timeout: float) -> None:
        """Take a slot for a connection about to be opened.

        Args:
            timeout: The most to wait for one, in seconds.

        Raises:
            BudgetSpent: None became free in time.
        """
        if not self.waiting and self._try_to_take():
            return
        deadline = monotonic() + timeout
        turn = Flag()
        self.waiting.append(turn)
        try:
            while True:
                first = self.waiting[0] is turn
                if first and (self._try_to_take() or (self._make_room() and self._try_to_take())):
                    return
                remaining = deadline - monotonic()
                if remaining <= 0 or self._closed:
                    raise BudgetSpent
                turn.clear()
                # Pools close connections without a word when they shrink or expire: look again now and then.
                turn.wait_for(min(remaining, 0.1))
        finally:
            self.waiting.remove(turn)
            self.wake()

    def wake(self) -> None:
        """Let the first waiting opener look again."""
        try:
            self.waiting[0].set()
        except IndexError:
            return

    def close(self) -> None:
        """Let nobody wait any longer."""
        self._closed = True
        for turn in list(self.waiting):
            turn.set()

    def fill(self, connection: Connection[Any]) -> None:
        """Put the connection that was opened into the slot taken for it.

        Args:
            connection: The open connection; its slot is free again once it is closed.
        """
        with self._guard:
            self._opening -= 1
            self._open.append(ref(connection))

    def give_up(self) -> None:
        """Give back the slot of a connection that could not be opened."""
        with self._guard:
            self._opening -= 1
        self.wake()

    def _try_to_take(self) -> bool:
        with self._guard:
            if self._opening + len(self._open) >= self.limit:
                self._open = self._count()
                if self._opening + len(self._open) >= self.limit:
                    return False
            self._opening += 1
            return True

    def _count(self) -> list[ref[Connection[Any]]]:
        return [slot for slot in self._open if (connection := slot()) is not None and not connection.closed]
