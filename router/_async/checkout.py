"""What ``connection()`` returns: it borrows on entering a block and gives back on leaving it. This is the hot path."""

from __future__ import annotations

import logging
from itertools import count
from random import getrandbits
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from router import sql
from router._async.pools import original_of
from router.choose import PAIRS, pairs, rotation
from router.errors import TransactionOutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

    from router._async.pools import AsyncNodePool
    from router._async.slots import AsyncSlots
    from router.choose import Request
    from router.topology import Node, Target

    Note: TypeAlias = Callable[[Node, tuple[int, int] | None], None]

PAIRS_BITS = PAIRS.bit_length() - 1
A_LONG_TIME = 1e8
"""Seconds; what threads and event loops can wait for has an end, and ``inf`` is past it."""

EVIDENCE = ("57P01", "57P02", "57P03", "25006")
"""SQLSTATEs that may tell of the server: it shuts down, crashed, starts up, is a standby."""

logger = logging.getLogger("router")


class AsyncAcquire(Protocol):
    """The way to a connection when none is ready: the router's."""

    async def __call__(
        self, lane: AsyncLane, deadline: float, prefer: AsyncNodePool | None, request: Request | None
    ) -> tuple[AsyncNodePool, AsyncConnection[TupleRow]]:
        """Get a connection for a request, and the pool it is from; raises ``Unavailable``."""


class AsyncLane:
    """The pools over which requests for one key are spread; made anew when what is known of the servers changes.

    Attributes:
        target: What the key resolved to.
        read_only: Whether the requests only read.
        timeout: Their deadline if they name none, in seconds.
        pools: The pools of the best nodes; empty while none is known to be up.
        acquire: Gets a connection when the pool picked has none ready.
        slots: The process's budget.
    """

    __slots__ = ("_pairs", "_rotation", "_turns", "acquire", "pools", "read_only", "slots", "target", "timeout")

    def __init__(
        self,
        target: Target,
        pools: tuple[AsyncNodePool, ...],
        acquire: AsyncAcquire,
        slots: AsyncSlots,
        *,
        read_only: bool,
    ) -> None:
        """Prepare the choice between the pools.

        Args:
            target: What the key resolved to.
            pools: The pools of the best nodes.
            acquire: Gets a connection when the pool picked has none ready.
            slots: The process's budget.
            read_only: Whether the requests only read.
        """
        self.target = target
        self.read_only = read_only
        self.timeout = target.cluster.pool.timeout
        self.pools = pools
        self.acquire = acquire
        self.slots = slots
        weights = [pool.node.weight for pool in pools]
        balance = target.cluster.read.balance
        self._pairs: tuple[tuple[AsyncNodePool, AsyncNodePool, float, float], ...] = ()
        self._rotation: tuple[AsyncNodePool, ...] = ()
        self._turns = count()  # its next() is atomic
        if len(pools) > 1 and balance != "round_robin":
            drawn = ((one, one if balance == "random" else two) for one, two in pairs(weights))
            self._pairs = tuple((pools[one], pools[two], weights[one], weights[two]) for one, two in drawn)
        elif pools:
            self._rotation = tuple(pools[place] for place in rotation(weights))

    def pick(self) -> AsyncNodePool | None:
        """Pick the pool for the next request, as ``read.balance`` says.

        Returns:
            The pool, or ``None`` when no node is known to be up.
        """
        if self._pairs:
            one, two, weight_one, weight_two = self._pairs[getrandbits(PAIRS_BITS)]
            return one if len(one.borrowed) * weight_two <= len(two.borrowed) * weight_one else two
        if self._rotation:
            return self._rotation[next(self._turns) % len(self._rotation)]
        return None


class AsyncCheckout:
    """One borrowed connection, as a context manager; made by ``AsyncRouter.connection()``."""

    __slots__ = ("_connection", "_lane", "_pool", "_timeout")

    _request: Request | None = None  # set by a subclass, so that here they cost nothing
    _note: Note | None = None

    def __init__(self, lane: AsyncLane, timeout: float | None) -> None:
        """Prepare to borrow; nothing happens before the block is entered.

        Args:
            lane: Where to borrow from.
            timeout: The request's deadline, in seconds; ``None`` takes the lane's.
        """
        self._lane = lane
        self._timeout = lane.timeout if timeout is None else timeout
        self._connection: AsyncConnection[TupleRow] | None = None

    @property
    def pool(self) -> AsyncNodePool:
        """Where the connection is from, inside the block."""
        return self._pool

    def outcome_unknown(self, death: str) -> TransactionOutcomeUnknown:
        """Say that the connection died when it mattered.

        Args:
            death: When it died, and what is not known therefore.

        Returns:
            The error, to be raised.
        """
        return TransactionOutcomeUnknown(
            f"the connection to {self._pool.node} died {death} is not known; "
            "look on the primary for what it wrote before you repeat it",
            version=self._lane.target.requested,
        )

    async def __aenter__(self) -> AsyncConnection[TupleRow]:
        """Borrow the connection.

        Returns:
            The connection.

        Raises:
            Unavailable: None could be had within the deadline.
            RouterClosed: The router was closed.
            RuntimeError: The block of this very object has been entered already.
        """
        if self._connection is not None:
            raise RuntimeError("this checkout is in use: call connection() once for each block")
        lane = self._lane
        pool = lane.pick() if self._request is None else None
        if pool is not None and (connection := await pool.take()) is not None:
            self._pool = pool
            self._connection = connection
            return connection
        deadline = monotonic() + min(self._timeout, A_LONG_TIME)
        self._pool, self._connection = await lane.acquire(lane, deadline, pool, self._request)
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the transaction and give the connection back: commit on success, roll back on an error.

        A connection whose block was cancelled or interrupted is closed: an answer, or the cancellation of a query, may
        still be on its way to it.

        Raises:
            TransactionOutcomeUnknown: The connection died during COMMIT.
            psycopg.OperationalError: The connection died before it, although the block saw no error.
        """
        connection, pool = self._connection, self._pool
        if connection is None:
            raise RuntimeError("the block of this checkout was not entered")
        self._connection = None
        if kind is not None or connection.pgconn.transaction_status or self._note is not None:
            try:
                await self._end(connection, pool, error)
            except BaseException:
                await pool.give_back(connection)
                raise
        await pool.give_back(connection)
        if (slots := self._lane.slots).waiting:
            slots.wake()

    async def _end(
        self, connection: AsyncConnection[TupleRow], pool: AsyncNodePool, error: BaseException | None
    ) -> None:
        if pool.inherited:
            return
        sqlstate = getattr(error, "sqlstate", None)
        # That a session for reading refuses a write says nothing of its server.
        if connection.broken or (sqlstate in EVIDENCE and not (pool.read_only and sqlstate == "25006")):
            pool.suspect(pool.node.server)
        if error is not None and (reason := original_of(connection).cut_because):
            error.add_note(f"the router cut this connection: {reason}")
        written: tuple[int, int] | None = None
        try:
            if error is None:
                written = await self._commit(connection, pool)
            elif not isinstance(error, (Exception, GeneratorExit)):
                await connection.close()
            elif not connection.closed:
                try:
                    await connection.rollback()
                    written = None if self._note is None else await _written(connection)
                except psycopg.Error as problem:  # the block's own error matters more; give_back() closes it
                    logger.warning("could not roll back on a connection of the pool %r: %s", pool.name, problem)
                if not pool.read_only and isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
                    await connection.close()  # it may be on a standby by now
        finally:
            if self._note is not None:  # a block that fails may have committed by itself before
                self._note(pool.node, written)

    async def _commit(self, connection: AsyncConnection[TupleRow], pool: AsyncNodePool) -> tuple[int, int] | None:
        if pool.read_only:
            if not connection.closed:
                await connection.commit()
            return None
        if connection.broken:
            raise psycopg.OperationalError("the connection was lost before COMMIT: the transaction was rolled back")
        if connection.closed:  # by the block
            return None
        status = connection.pgconn.transaction_status
        committing = status == TransactionStatus.INTRANS
        try:
            if self._note is not None:
                return await _written(connection)
            await connection.commit()
        except psycopg.OperationalError as error:
            if not connection.broken:
                raise
            pool.suspect(pool.node.server)
            if status == TransactionStatus.IDLE:
                return None  # all that was written is committed; only how far that went is not known
            if not committing:
                raise
            raise self.outcome_unknown("during COMMIT: whether the transaction is committed") from error
        return None


async def _written(connection: AsyncConnection[TupleRow]) -> tuple[int, int]:
    """Commit if there is something to commit, and ask in the same round trip how far that went."""
    status = connection.pgconn.transaction_status
    if status != TransactionStatus.INTRANS:
        await connection.rollback()
        await connection.set_autocommit(True)
    async with connection.cursor(row_factory=tuple_row) as cursor:
        if status == TransactionStatus.INTRANS:
            await cursor.execute(sql.COMMIT_AND_WRITTEN)
            cursor.nextset()
        else:
            await cursor.execute(sql.WRITTEN)
        ((position, timeline),) = await cursor.fetchall()
    return position, timeline


class AsyncTrackedCheckout(AsyncCheckout):
    """A checkout that belongs to a session, or asks for more than a key can say."""

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
            lane: Where to borrow from.
            timeout: The request's deadline, in seconds; ``None`` takes the lane's.
            request: What it asks for; ``None`` for any of the lane's pools.
            note: Told the node, and the position and timeline where its WAL ends after what the block committed, or
                ``None`` if that could not be learnt; ``None`` to tell nobody.
        """
        super().__init__(lane, timeout)
        self._request = request
        self._note = note
