# Generated from router/_async/pool/opening.py by tools/async_to_sync.py: do not edit.
"""How a pool opens its connections: one at a time, within the budget, and after a pause if the last attempt failed."""

from __future__ import annotations

import logging
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

import psycopg
from psycopg_pool import PoolClosed

from router._runtime.calls import shielded
from router._sync.pool.hygiene import hygiene_of, note_traces
from router._sync.pool.login import ServerFull, Unable
from router._sync.pool.opener import LoginRefused
from router._sync.pool.session_state import SessionState
from router._sync.slot import BudgetSpent, SlotRequest

if TYPE_CHECKING:
    from router._sync.pool.connection import NodeConnection
    from router._sync.pool.inside.pool import DriverPool
    from router._sync.pool.node_pool import NodePool
    from router._sync.pool.opener import Opener

TRY_AGAIN = (0.02, 0.5)
"""Seconds between a failed attempt to connect and the next one: the first pause, which doubles, and the longest."""

CLOSE_GRACE = 5.0
"""Seconds that an attempt to open a connection gets to end when its pool closes."""

logger = logging.getLogger("router")


class Opening:
    """Opens the connections of one pool; the pool's only worker makes the attempts.

    Attributes:
        due_at: The earliest time of the next attempt, on the monotonic clock.
        refusal: Why the last attempt was refused; empty if it was not refused.
        request: The pending request for a slot of the budget; ``None`` if none is pending.
    """

    def __init__(self, pool: NodePool, driver: DriverPool, opener: Opener) -> None:
        """Make the opening of a pool; no attempt is made yet.

        Args:
            pool: The pool.
            driver: psycopg_pool's pool, which counts the connections and has the worker.
            opener: Opens each connection.
        """
        self.due_at = 0.0
        self.refusal = ""
        self.request: SlotRequest | None = None
        self._pool = pool
        self._driver = driver
        self._opener = opener
        self._hygiene = hygiene_of(pool.target)
        self._patience = 0.0  # the last pause, in seconds
        self._startup = pool.target.startup if pool.target.in_session else None

    def start(self) -> None:
        """Open the pool: it opens its ``min_size`` connections, and may grow from then on.

        Raises:
            PoolClosed: The pool was closed.
        """
        if self._pool.draining:
            raise PoolClosed(f"the pool {self._pool.name!r} is closed")
        try:
            self._driver.open()
        except psycopg.OperationalError as error:  # the pool was closed meanwhile
            raise PoolClosed(str(error)) from error
        except BaseException:
            self._undo_start()
            raise
        if self._pool.draining:
            self.stop(CLOSE_GRACE)

    @shielded
    def _undo_start(self) -> None:
        with self._pool.lock:
            self._driver.undo_open()

    def stop(self, timeout: float) -> None:
        """Stop opening connections, and close the idle ones.

        Args:
            timeout: The most seconds to wait for an attempt that is under way.
        """
        self._driver.close(timeout)

    def warm_up(self) -> None:
        """Open one more connection if there may be one, though no request waits: the next request finds it idle.

        Raises:
            PoolClosed: The pool was closed.
        """
        pool = self._pool
        if pool.quarantined or pool.draining or not pool.may_grow:
            return
        if pool.closed:
            self.start()
        with pool.lock:  # guards closed, growing
            if not pool.closed:
                self._driver.grow()

    def keep_warm(self) -> None:
        """Open one connection if fewer than ``min_size`` are open: some may have been closed for other pools."""
        pool = self._pool
        if pool.size < pool.min_size:
            with pool.lock:  # guards the size
                if not pool.closed and not pool.draining and pool.size < pool.min_size:
                    self._driver.add_one()

    def _put_off(self, first: float, most: float) -> None:
        """Delay the next attempt by twice the last pause, within these limits."""
        self._patience = min(max(2.0 * self._patience, first), most)
        self.due_at = monotonic() + self._patience

    def open_connection(self) -> NodeConnection:
        """Open one more connection, in the pool's worker; after a failure, the next attempt is made after a pause.

        Returns:
            The connection.

        Raises:
            psycopg.OperationalError: The connection could not be opened.
        """
        pool, connection = self._pool, self._attempt()
        try:
            note_traces(connection, self._hygiene)
            session = SessionState(connection, pool)
            if pool.read_only:
                session.process = self._opener.recognize(connection, pool.node, pool.cluster)
            pool.sessions.add(session)
        except BaseException:
            connection.close()
            raise
        return connection

    def _attempt(self) -> NodeConnection:
        """Open one more connection; if that fails, note when the next attempt is due, and why."""
        if monotonic() < self.due_at:  # psycopg_pool repeats a failed attempt once, immediately
            raise psycopg.OperationalError("not tried again yet")
        request = SlotRequest(self._pool.budget_key)
        try:
            while (connection := self._open_within(request)) is None:
                request = SlotRequest(self._pool.budget_key, request.order)
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

    def _open_within(self, request: SlotRequest) -> NodeConnection | None:
        """Open one more connection within the budget; ``None`` if no slot was free while requests still wait."""
        slots = self._opener.slots
        # In this order, so that no slot request remains when no waiter is left. A waiter first leaves the line, then
        # withdraws the slot request. If it misses the one set here, withdraw() below sees that no waiter is left.
        self.request = request
        self._pool.withdraw()
        try:
            slot = slots.take(request, inf)
        except BudgetSpent:
            if not self._pool.waiting or slots.closed:
                raise
            return None
        self._pool.counts.opened += 1  # no lock: only the pool's worker changes it
        try:
            with slot:
                return self._opener.open(
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
