"""How a pool opens its connections: one at a time, within the budget, and after a pause if the last attempt failed."""

from __future__ import annotations

import logging
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

import psycopg

from router._async.pool.login import ServerFull, Unable
from router._async.pool.opener import LoginRefused
from router._async.slot import AsyncSlotRequest, BudgetSpent

if TYPE_CHECKING:
    from router._async.pool.connection import AsyncNodeConnection
    from router._async.pool.node_pool import AsyncNodePool
    from router._async.pool.opener import AsyncOpener
    from router.core.topology import Target

TRY_AGAIN = (0.02, 0.5)
"""Seconds between a failed attempt to connect and the next one: the first pause, which doubles, and the longest."""

logger = logging.getLogger("router")


class AsyncOpening:
    """The attempts of one pool to open a connection, which the pool's only worker makes.

    Attributes:
        due_at: The earliest time of the next attempt, on the monotonic clock.
        refusal: Why the last attempt was refused; empty if it was not.
        request: The request for a slot of the budget; ``None`` while there is none.
    """

    def __init__(self, pool: AsyncNodePool, target: Target, opener: AsyncOpener) -> None:
        """Begin before the first attempt.

        Args:
            pool: The pool.
            target: The target that it serves.
            opener: Opens each connection.
        """
        self.due_at = 0.0
        self.refusal = ""
        self.request: AsyncSlotRequest | None = None
        self._pool = pool
        self._opener = opener
        self._patience = 0.0  # the last pause, in seconds
        self._startup = target.startup if target.in_session else None

    def is_due(self) -> bool:
        """Tell whether another attempt may be made."""
        return monotonic() >= self.due_at

    def _put_off(self, first: float, most: float) -> None:
        """Delay the next attempt, by twice the last pause within these limits."""
        self._patience = min(max(2.0 * self._patience, first), most)
        self.due_at = monotonic() + self._patience

    async def open(self) -> AsyncNodeConnection:
        """Open one more connection, for the pool's worker; if that fails, the next attempt comes after a pause.

        Returns:
            The connection.

        Raises:
            psycopg.OperationalError: The connection could not be opened.
        """
        if not self.is_due():  # psycopg_pool repeats a failed attempt once, immediately
            raise psycopg.OperationalError("not tried again yet")
        request = AsyncSlotRequest(self._pool.budget_key)
        try:
            while (connection := await self._open_within(request)) is None:
                request = AsyncSlotRequest(self._pool.budget_key, request.order)
        except (BudgetSpent, ServerFull):  # and no request waits for the connection
            self._put_off(TRY_AGAIN[0], TRY_AGAIN[0])
            raise
        except (LoginRefused, Unable) as error:
            if not self.refusal:
                logger.warning("%s %s", self._pool.node, str(error))  # text: a record that is kept then keeps no frames
            self.refusal = str(error)
            self._put_off(*TRY_AGAIN)
            raise
        except Exception:
            self._put_off(*TRY_AGAIN)
            if self._pool.waiting and (line := self._pool.line) is not None:  # its requests may need another pool
                line.owner.invalidate()
                line.choose_again()
            raise
        finally:
            self.request = None
        self.refusal = ""
        self.due_at = self._patience = 0.0
        return connection

    async def _open_within(self, request: AsyncSlotRequest) -> AsyncNodeConnection | None:
        """Open one more connection within the budget; ``None`` if there was no slot, but requests still wait for it."""
        slots = self._opener.slots
        # In this order, so that no request for a slot outlives its need. A waiter leaves the line first, and then looks
        # for a request to withdraw. If it misses the one set here, withdraw() below sees that no waiter is left.
        self.request = request
        self._pool.withdraw()
        try:
            slot = await slots.take(request, inf)
        except BudgetSpent:
            if not self._pool.waiting or slots.closed:
                raise
            return None
        self._pool.counts.opened += 1  # no lock: only the pool's worker changes it
        try:
            with slot:
                return await self._opener.open(
                    self._pool.node,
                    self._pool.cluster,
                    slot,
                    read_only=self._pool.read_only,
                    startup=self._startup,
                    optional=self._pool.size > 1,  # the size includes this connection
                )
        except ServerFull:
            self._pool.counts.failed += 1
            if not self._pool.waiting:
                raise
            return None
        except Exception:
            self._pool.counts.failed += 1
            raise
