"""The right to have one connection open, and the request for one."""

from __future__ import annotations

from contextlib import suppress
from socket import AF_INET, SOCK_STREAM, fromfd
from typing import TYPE_CHECKING, Any, Self

import psycopg

from router._async.closing import AsyncClosing
from router._runtime.flags import AFlag
from router.core.bounds import BudgetRequest

if TYPE_CHECKING:
    from weakref import ref

    from psycopg.pq.abc import PGconn

    from router._async.slots import AsyncSlots
    from router.core.budget import BudgetKey
    from router.core.server_limit import ServerLimit


class BudgetSpent(Exception):
    """The process's budget has no free slot, and none became free in time."""


class AsyncSlotRequest(BudgetRequest):
    """A request for a slot, which waits until it is granted or withdrawn.

    Attributes:
        slot: The slot, once it is granted.
        withdrawn: Whether nothing waits for the connection any more.
        reserved: Whether a connection is being closed for it now.
        flag: Set when it is granted or withdrawn.
    """

    __slots__ = ("flag", "reserved", "slot", "withdrawn")

    def __init__(self, key: BudgetKey, order: int = 0) -> None:
        """Make a request, which does not wait yet.

        Args:
            key: The key of the pool that asks.
            order: The number of a request that this one continues.
        """
        super().__init__(key, order)
        self.slot: AsyncSlot | None = None
        self.withdrawn = False
        self.reserved = False
        self.flag = AFlag()


class AsyncSlot:
    """The right to have one connection open; as a context manager, it surrounds the code that opens the connection.

    Attributes:
        key: The key of the pool that the connection counts for.
        order: The number of the request that it was granted to.
        closing: A closing connection whose server process has to end first, since there is no room for both.
        limit: The server's own limit, as known when the slot was granted.
        pgconn: A weak reference to the connection's libpq handle, which stays the same for all borrowers.
    """

    __slots__ = ("_slots", "closing", "key", "limit", "order", "pgconn")

    def __init__(
        self, slots: AsyncSlots, request: AsyncSlotRequest, closing: AsyncClosing | None, limit: ServerLimit | None
    ) -> None:
        """Make a slot for a request.

        Args:
            slots: The slots that it is returned to.
            request: The request that it is granted to.
            closing: A closing connection whose server process has to end first.
            limit: The server's own limit, as known now.
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
        """Return the slot if no connection was opened."""
        if self.pgconn is None:
            self._slots.release(self)

    async def close(self, pgconn: PGconn, beneficiary: AsyncSlotRequest | None = None, *, in_use: bool = False) -> None:
        """Close the connection, and return the slot.

        Args:
            pgconn: The connection's libpq handle.
            beneficiary: The request that it is closed for, if any.
            in_use: Whether a thread or task still uses the connection: it was cut, and is freed when that use ends.
        """
        closing = None
        with suppress(OSError, psycopg.Error):  # the connection is closed already
            closing = AsyncClosing(fromfd(pgconn.socket, AF_INET, SOCK_STREAM), self.key.server)
        try:
            if not in_use:
                pgconn.finish()
        finally:
            self._slots.release(self, closing, beneficiary)

    def note_dropped(self) -> None:
        """Note that the connection was dropped, which closes it. This may run in any thread, at any moment."""
        self._slots.dropped.append(self)  # the only safe operation here: the garbage collector may be the caller
