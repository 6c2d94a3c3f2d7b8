# Generated from router/_async/slot.py by tools/async_to_sync.py: do not edit.
"""The right to have one connection open, and the request for one."""

from __future__ import annotations

from contextlib import suppress
from socket import AF_INET, SOCK_STREAM, fromfd
from typing import TYPE_CHECKING, Any, Self

import psycopg

from router._runtime.flags import Flag
from router._sync.closing import Closing
from router.core.bounds import BudgetRequest

if TYPE_CHECKING:
    from weakref import ref

    from psycopg.pq.abc import PGconn

    from router._sync.slots import Slots
    from router.core.budget import BudgetKey
    from router.core.server_limit import ServerLimit


class BudgetSpent(Exception):
    """Every connection that there may be is open, and none became free in time."""


class SlotRequest(BudgetRequest):
    """A request for a slot, which waits until it is granted or withdrawn.

    Attributes:
        slot: The slot, once it is granted.
        withdrawn: Whether nothing waits for the connection any more.
        reserved: Whether a connection is being closed for it just now.
        flag: Set when it is granted or withdrawn.
    """

    __slots__ = ("flag", "reserved", "slot", "withdrawn")

    def __init__(self, key: BudgetKey, order: int = 0) -> None:
        """Make it; it does not wait yet.

        Args:
            key: For which pool.
            order: The number of a request that this one continues.
        """
        super().__init__(key, order)
        self.slot: Slot | None = None
        self.withdrawn = False
        self.reserved = False
        self.flag = Flag()


class Slot:
    """The right to have one connection open; as a context manager, around what opens it.

    Attributes:
        key: What the connection counts as.
        order: The number of the request that it was granted to.
        closing: A connection whose server process has to have ended before, where there is no room for both.
        limit: What was known of a limit of the server's own when it was granted.
        pgconn: The connection's libpq handle, which is the same for all of its borrowers, as long as it is there.
    """

    __slots__ = ("_slots", "closing", "key", "limit", "order", "pgconn")

    def __init__(self, slots: Slots, request: SlotRequest, closing: Closing | None, limit: ServerLimit | None) -> None:
        """Grant it.

        Args:
            slots: Where it is given back.
            request: What it is granted to.
            closing: A connection whose server process has to have ended before.
            limit: What is known of a limit of the server's own.
        """
        self._slots = slots
        self.key = request.key
        self.order = request.order
        self.closing = closing
        self.limit = limit
        self.pgconn: ref[Any] | None = None

    def __enter__(self) -> Self:
        """Open the connection in the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the slot back if that failed."""
        if self.pgconn is None:
            self._slots.release(self)

    def close(self, pgconn: PGconn, beneficiary: SlotRequest | None = None, *, in_use: bool = False) -> None:
        """Close the connection, and give the slot back.

        Args:
            pgconn: The connection's libpq handle.
            beneficiary: The request that it is closed for, if it is for one.
            in_use: Whether something still uses it: it was cut, and is left to that.
        """
        closing = None
        with suppress(OSError, psycopg.Error):  # it is closed already
            closing = Closing(fromfd(pgconn.socket, AF_INET, SOCK_STREAM), self.key.server)
        try:
            if not in_use:
                pgconn.finish()
        finally:
            self._slots.release(self, closing, beneficiary)

    def note_dropped(self) -> None:
        """Note that the connection was dropped and is closed: in any thread, at any moment."""
        self._slots.dropped.append(self)  # nothing else must be touched
