"""The checkout that ``connection()`` returns: it borrows a connection for a block, then returns it. The hot path."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from router._async.acquire import acquire
from router._async.ending import end
from router._runtime.calls import Isolated
from router._runtime.workers import abind_loop, arunning_loop
from router.core.errors import at_least_zero

if TYPE_CHECKING:
    from types import TracebackType

    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

    from router._async.ending import Note
    from router._async.lane import AsyncLane
    from router._async.pool.node_pool import AsyncNodePool
    from router.core.standing import Request

A_LONG_TIME = 1e8
"""The longest wait in seconds: threads and event loops do not accept ``inf``."""


class AsyncCheckout:
    """One borrowed connection, as a context manager; made by ``AsyncRouter.connection()``."""

    __slots__ = ("_connection", "_lane", "_pool", "_timeout")

    _request: Request | None = None  # a subclass sets this and the next; here they cost nothing
    _note: Note | None = None

    def __init__(self, lane: AsyncLane, timeout: float | None) -> None:
        """Prepare to borrow; nothing happens before the block is entered.

        Args:
            lane: The lane to borrow from.
            timeout: The request's timeout, in seconds; ``None`` takes the lane's.
        """
        self._lane = lane
        self._timeout = lane.timeout if timeout is None else at_least_zero("timeout", timeout)
        self._connection: AsyncConnection[TupleRow] | None = None

    @property
    def pool(self) -> AsyncNodePool:
        """The pool of the connection, inside the block."""
        return self._pool

    @property
    def version(self) -> str:
        """The version of the request; empty while it is not known."""
        return self._lane.target.version

    @property
    def tenant(self) -> str | None:
        """The tenant of the request, inside the block; ``None`` if it is for no tenant."""
        return self._lane.target.tenant

    async def __aenter__(self) -> AsyncConnection[TupleRow]:
        """Borrow the connection.

        Returns:
            The connection.

        Raises:
            Unavailable: No connection could be had within the deadline.
            RouterClosed: The router was closed.
            RuntimeError: The block of this object has been entered already.
        """
        if self._connection is not None:
            raise RuntimeError("this checkout is in use: call connection() once for each block")
        lane = self._lane
        if lane.slots.loop is not arunning_loop():
            lane.slots.loop = abind_loop(lane.slots.loop)
        pool = lane.pick() if self._request is None else None
        if pool is not None and (connection := await pool.take()) is not None:
            self._pool = pool
        else:
            deadline = monotonic() + min(self._timeout, A_LONG_TIME)
            lane, self._pool, connection = await acquire(lane, deadline, pool, self._request)
            self._lane = lane
        connection.__dict__["_router"].target = lane.target
        self._connection = connection
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the transaction and return the connection: commit on success, roll back on an error.

        If the block was cancelled or interrupted, the connection is closed: an answer for it, or the cancellation of a
        query, may still be on its way.

        Raises:
            TransactionOutcomeUnknown: The connection died during COMMIT.
            psycopg.OperationalError: The connection died before it, although the block saw no error.
            psycopg.ProgrammingError: Something is left half way, or still uses the connection, so that the transaction
                was rolled back.
        """
        connection = self._connection
        if connection is None:
            raise RuntimeError("the block of this checkout was not entered")
        pool, self._connection = self._pool, None
        try:
            if kind is not None or connection.pgconn.transaction_status or self._note is not None:
                await end(connection, pool, error, self._note)
        finally:
            if not pool.inherited:  # otherwise its slots are inherited, too, and belong to the parent process
                slots, beneficiary = self._lane.slots, None
                if slots.waiting and not connection.closed:  # else it makes room anyway, or has done so
                    with Isolated("could not tell for which request a connection to %s makes room", pool.node):
                        beneficiary = slots.preempt(pool.budget_key)
                if beneficiary is None:
                    await pool.release(connection)
                else:
                    await pool.closer.close_for(connection, beneficiary)
                if slots.waiting:
                    with Isolated("could not look for a connection that may be closed for others"):
                        await slots.eviction.evict_again(slots)
                if self._lane.in_force.pools.waiting and not pool.in_use:
                    self._lane.in_force.pools.note_unused()


class AsyncTrackedCheckout(AsyncCheckout):
    """A checkout that belongs to a session, or has needs beyond those of its lane."""

    __slots__ = ("_note", "_request")

    def __init__(
        self,
        lane: AsyncLane,
        timeout: float | None,
        *,
        request: Request | None,
        note: Note | None,
    ) -> None:
        """Prepare to borrow; nothing happens before the block is entered.

        Args:
            lane: The lane to borrow from.
            timeout: The request's timeout, in seconds; ``None`` takes the lane's.
            request: The needs of the request; ``None`` for any of the lane's pools.
            note: Called after a commit with the node, and the position and timeline where its WAL ends, or ``None`` if
                these could not be read; ``None`` to call nothing.
        """
        super().__init__(lane, timeout)
        self._request = request
        self._note = note

    def detach(self) -> AsyncTrackedCheckout:
        """Detach the borrowed connection from the block: it is returned by :meth:`release` instead.

        Returns:
            The checkout to call :meth:`release` on; it does not reference the connection.
        """
        self._connection = None
        return self

    async def release(
        self, connection: AsyncConnection[TupleRow], error: BaseException | None, note: Note | None
    ) -> None:
        """End the transaction, and return a connection that was detached.

        Args:
            connection: The connection.
            error: The error for which the transaction is rolled back; ``None`` if none is open.
            note: As for the checkout itself.
        """
        self._connection, self._note = connection, note
        await self.__aexit__(None if error is None else type(error), error, None)
