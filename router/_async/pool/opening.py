"""How a pool opens its connections: one at a time, within the budget, and after a pause if the last attempt failed."""

from __future__ import annotations

import logging
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

import psycopg
from psycopg_pool import PoolClosed

from router._async.pool.hygiene import hygiene_of, note_traces
from router._async.pool.login import ServerFull, Unable
from router._async.pool.opener import LoginRefused
from router._async.pool.session_state import SessionState
from router._async.slot import AsyncSlotRequest, BudgetSpent
from router._runtime.calls import ashielded

if TYPE_CHECKING:
    from router._async.pool.connection import AsyncNodeConnection
    from router._async.pool.inside.pool import AsyncDriverPool
    from router._async.pool.node_pool import AsyncNodePool
    from router._async.pool.opener import AsyncOpener

TRY_AGAIN = (0.02, 0.5)
"""Seconds between a failed attempt to connect and the next one: the first pause, which doubles, and the longest."""

CLOSE_GRACE = 5.0
"""Seconds that an attempt to open a connection gets to end when its pool closes."""

logger = logging.getLogger("router")


class AsyncOpening:
    """Opens the connections of one pool; the pool's only worker makes the attempts.

    Attributes:
        due_at: The earliest time of the next attempt, on the monotonic clock.
        refusal: Why the last attempt was refused; empty if it was not refused.
        request: The pending request for a slot of the budget; ``None`` if none is pending.
    """

    def __init__(self, pool: AsyncNodePool, driver: AsyncDriverPool, opener: AsyncOpener) -> None:
        """Make the opening of a pool; no attempt is made yet.

        Args:
            pool: The pool.
            driver: psycopg_pool's pool, which counts the connections and has the worker.
            opener: Opens each connection.
        """
        self.due_at = 0.0
        self.refusal = ""
        self.request: AsyncSlotRequest | None = None
        self._pool = pool
        self._driver = driver
        self._opener = opener
        self._hygiene = hygiene_of(pool.target)
        self._patience = 0.0  # the last pause, in seconds
        self._startup = pool.target.startup if pool.target.in_session else None

    async def start(self) -> None:
        """Open the pool: it opens its ``min_size`` connections, and may grow from then on.

        Raises:
            PoolClosed: The pool was closed.
        """
        if self._pool.draining:
            raise PoolClosed(f"the pool {self._pool.name!r} is closed")
        try:
            await self._driver.open()
        except psycopg.OperationalError as error:  # the pool was closed meanwhile
            raise PoolClosed(str(error)) from error
        except BaseException:
            await self._undo_start()
            raise
        if self._pool.draining:
            await self.stop(CLOSE_GRACE)

    @ashielded
    async def _undo_start(self) -> None:
        async with self._pool.lock:
            await self._driver.undo_open()

    async def stop(self, timeout: float) -> None:
        """Stop opening connections, and close the idle ones.

        Args:
            timeout: The most seconds to wait for an attempt that is under way.
        """
        await self._driver.close(timeout)

    async def warm_up(self) -> None:
        """Open one more connection if there may be one, though no request waits: the next request finds it idle.

        Raises:
            PoolClosed: The pool was closed.
        """
        pool = self._pool
        if pool.quarantined or pool.draining or not pool.may_grow:
            return
        if pool.closed:
            await self.start()
        async with pool.lock:  # guards closed, growing
            if not pool.closed:
                self._driver.grow()

    async def keep_warm(self) -> None:
        """Open one connection if fewer than ``min_size`` are open: some may have been closed for other pools."""
        pool = self._pool
        if pool.size < pool.min_size:
            async with pool.lock:  # guards the size
                if not pool.closed and not pool.draining and pool.size < pool.min_size:
                    self._driver.add_one()

    def _put_off(self, first: float, most: float) -> None:
        """Delay the next attempt by twice the last pause, within these limits."""
        self._patience = min(max(2.0 * self._patience, first), most)
        self.due_at = monotonic() + self._patience

    async def open_connection(self) -> AsyncNodeConnection:
        """Open one more connection, in the pool's worker; after a failure, the next attempt is made after a pause.

        Returns:
            The connection.

        Raises:
            psycopg.OperationalError: The connection could not be opened.
        """
        pool, connection = self._pool, await self._attempt()
        try:
            note_traces(connection, self._hygiene)
            session = SessionState(connection, pool)
            if pool.read_only:
                session.process = await self._opener.recognize(connection, pool.node, pool.cluster)
            pool.sessions.add(session)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _attempt(self) -> AsyncNodeConnection:
        """Open one more connection; if that fails, note when the next attempt is due, and why."""
        if monotonic() < self.due_at:  # psycopg_pool repeats a failed attempt once, immediately
            raise psycopg.OperationalError("not tried again yet")
        request = AsyncSlotRequest(self._pool.budget_key)
        try:
            while (connection := await self._open_within(request)) is None:
                request = AsyncSlotRequest(self._pool.budget_key, request.order)
        except (BudgetSpent, ServerFull):  # raised only if no request waits for the connection
            self._put_off(TRY_AGAIN[0], TRY_AGAIN[0])
            raise
        except (LoginRefused, Unable) as error:
            if not self.refusal:
                logger.warning("%s %s", self._pool.node, str(error))  # text: a kept record refers to no frames
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
        """Open one more connection within the budget; ``None`` if no slot was free while requests still wait."""
        slots = self._opener.slots
        # In this order, so that no slot request remains when no waiter is left. A waiter first leaves the line, then
        # withdraws the slot request. If it misses the one set here, withdraw() below sees that no waiter is left.
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
