"""What ``connection()`` returns: it borrows on entering a block and gives back on leaving it. This is the hot path."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus

from router._async.acquire import acquire
from router._async.pool.commit import commit
from router._async.pool.connection import AsyncNodeConnection
from router._async.pool.inside.connection import in_pipeline
from router._async.pool.node_pool import USERS
from router._async.pool.scripts import TooLate, send
from router._async.pool.session_state import session_of, was_given_up
from router._async.pool.shared_pool import enter
from router._runtime.calls import Isolated
from router._runtime.workers import abind_loop, arunning_loop
from router.core import sql
from router.core.errors import TransactionOutcomeUnknown, UnknownTenant

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

    from router._async.lanes import AsyncLane
    from router._async.pool.node_pool import AsyncNodePool
    from router._runtime.calls import AFunction
    from router.core.standing import Request
    from router.core.topology import Node

    Note: TypeAlias = Callable[[Node, tuple[int, int] | None], None]

A_LONG_TIME = 1e8
"""Seconds; what threads and event loops can wait for has an end, and ``inf`` is past it."""

GOES_DOWN = ("57P01", "57P02", "57P03")
"""SQLSTATEs that may tell that the server shuts down, crashed, starts up."""

UNDECIDED = (TransactionStatus.INTRANS, TransactionStatus.ACTIVE)
"""The states in which a transaction may still be committed: the second is that of a pipeline."""

HALF_WAY = "with a copy() or a query left half way"

READ_ONLY = "25006"
"""The SQLSTATE that may tell that it is a standby."""

logger = logging.getLogger("router")


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

    @property
    def version(self) -> str:
        """The version it is for; empty as long as that is not known."""
        return self._lane.target.version

    @property
    def tenant(self) -> str | None:
        """Whom it is for, inside the block; ``None`` when that is no tenant."""
        return self._lane.target.tenant

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
        """End the transaction and give the connection back: commit on success, roll back on an error.

        A connection whose block was cancelled or interrupted is closed: an answer, or the cancellation of a query, may
        still be on its way to it.

        Raises:
            TransactionOutcomeUnknown: The connection died during COMMIT.
            psycopg.OperationalError: The connection died before it, although the block saw no error.
        """
        connection = self._connection
        if connection is None:
            raise RuntimeError("the block of this checkout was not entered")
        pool, self._connection = self._pool, None
        try:
            if kind is not None or connection.pgconn.transaction_status or self._note is not None:
                await self._end(connection, pool, error)
        finally:
            if not pool.inherited:  # else its slots are, too
                slots, beneficiary = self._lane.slots, None
                if slots.waiting:
                    with Isolated("could not tell for which request a connection to %s makes room", pool.node):
                        beneficiary = slots.preempt(pool.budget_key)
                if beneficiary is None:
                    await pool.release(connection)
                else:
                    await pool.close_for(connection, beneficiary)
                if slots.waiting:
                    with Isolated("could not look for a connection that may be closed for others"):
                        await slots.eviction.evict_again(slots)
                if self._lane.in_force.pools.waiting and not pool.in_use:
                    self._lane.in_force.pools.note_unused()

    async def _end(
        self, connection: AsyncConnection[TupleRow], pool: AsyncNodePool, error: BaseException | None
    ) -> None:
        if pool.inherited:
            return
        tell(pool, connection, error)
        if error is not None and (reason := session_of(connection).cut_because):
            error.add_note(f"the router cut this connection: {reason}")
        written: tuple[int, int] | None = None
        idle = connection.pgconn.transaction_status == TransactionStatus.IDLE
        try:
            if error is not None and not isinstance(error, (Exception, GeneratorExit)):
                if await pool.wait_unused(connection, wait=False):
                    await connection.close()
            elif not await pool.wait_unused(connection):
                if error is None and not pool.read_only and not idle:
                    raise psycopg.ProgrammingError(
                        f"the block has ended, but something still uses its connection, {USERS}: "
                        "its transaction is rolled back"
                    )
            elif error is None:
                written = await (_end_reading if pool.read_only else self._commit)(connection, pool)
            elif not connection.closed:
                written = await self._roll_back(connection, pool, error)
        finally:
            if self._note is not None:  # a block that fails may have committed by itself before
                with Isolated("could not note what was written to %s", pool.node):
                    self._note(pool.node, written)

    async def _roll_back(
        self, connection: AsyncConnection[TupleRow], pool: AsyncNodePool, error: Exception | GeneratorExit
    ) -> tuple[int, int] | None:
        written = None
        try:
            await connection.rollback()
            written = None if self._note is None else await read_position(connection)
        except psycopg.Error as problem:  # the block's own error matters more; release() closes it
            tell(pool, connection, problem)
            logger.warning("could not roll back on a connection of the pool %r: %s", pool.name, problem)
        if not pool.read_only and isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            await connection.close()  # it may be on a standby by now
        return written

    async def _commit(self, connection: AsyncConnection[TupleRow], pool: AsyncNodePool) -> tuple[int, int] | None:
        if connection.broken:
            if isinstance(connection, AsyncNodeConnection) and connection.unknown is not None:
                raise connection.unknown  # which the block has swallowed
            raise psycopg.OperationalError("the connection was lost before COMMIT: the transaction was rolled back")
        if connection.closed:  # by the block
            return None
        status = connection.pgconn.transaction_status
        if status == TransactionStatus.ACTIVE and not in_pipeline(connection):
            await connection.close()
            raise psycopg.ProgrammingError(f"the block has ended {HALF_WAY}: its transaction is rolled back")
        if status == TransactionStatus.INERROR:
            logger.warning(
                "a block on %s has ended without an error, but its transaction is rolled back: a statement had failed, "
                "or a stream() or copy() was left half way",
                pool.node,
            )
        try:
            if self._note is not None:
                return await read_position(connection)
            await connection.commit()
        except psycopg.OperationalError as error:
            if not connection.broken:
                raise
            tell(pool, connection, error)
            if status == TransactionStatus.IDLE:
                return None  # all that was written is committed; only how far that went is not known
            raise
        return None


async def _end_reading(connection: AsyncConnection[TupleRow], pool: AsyncNodePool) -> None:
    if connection.pgconn.transaction_status == TransactionStatus.ACTIVE:  # release() closes it
        if not in_pipeline(connection):
            logger.warning("a block on %s has ended %s: its connection is closed", pool.node, HALF_WAY)
    elif not connection.closed:
        try:
            await connection.commit()
        except psycopg.Error as error:
            tell(pool, connection, error)
            raise


def tell(pool: AsyncNodePool, connection: AsyncConnection[TupleRow], error: BaseException | None) -> None:
    """Tell what a block, or the end of one, has shown of its server.

    Args:
        pool: Where the connection is from.
        connection: The connection.
        error: What was raised; ``None`` for nothing.
    """
    if isinstance(error, TransactionOutcomeUnknown):
        error = error.__cause__
    sqlstate, broken = getattr(error, "sqlstate", None), connection.broken
    # That a session for reading refuses a write says nothing of its server.
    if broken or sqlstate in GOES_DOWN or (sqlstate == READ_ONLY and not pool.read_only):
        # A session that ended for a reason of its own, a timeout, has another SQLSTATE.
        lost = broken and not was_given_up(connection)
        pool.watched.suspect(pool.node.server, dying=lost and (sqlstate is None or sqlstate in GOES_DOWN))


async def read_position(connection: AsyncConnection[TupleRow]) -> tuple[int, int] | None:
    """Commit if there is something to commit, and ask in the same round trip how far that went.

    Args:
        connection: The connection.

    Returns:
        The position and timeline where the WAL ends; ``None`` if that could not be learnt.

    Raises:
        psycopg.Error: It could not be committed.
    """
    status = connection.pgconn.transaction_status
    if status in UNDECIDED or in_pipeline(connection):
        rows = await commit(connection, sql.WRITTEN.encode())
    else:
        if status != TransactionStatus.IDLE:
            await connection.rollback()
        rows = await send(connection, sql.WRITTEN.encode())
    for position, timeline in rows:
        return int(position or 0), int(timeline or 0)
    return None


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

    def detach(self) -> AsyncTrackedCheckout:
        """Have a borrowed connection go its own way, without a block.

        Returns:
            What :meth:`release` has to be called on; it does not refer to the connection.
        """
        self._connection = None
        return self

    async def release(
        self, connection: AsyncConnection[TupleRow], error: BaseException | None, note: Note | None
    ) -> None:
        """End the transaction and give back a connection that went its own way.

        Args:
            connection: The connection.
            error: Why the transaction is rolled back; ``None`` if none is open.
            note: As for the checkout itself.
        """
        self._connection, self._note = connection, note
        await self.__aexit__(None if error is None else type(error), error, None)


class AsyncScopedCheckout(AsyncTrackedCheckout):
    """A checkout of a tenant's whose connection may have served another one, or has to be reset."""

    __slots__ = ("_begin",)

    def __init__(
        self,
        lane: AsyncLane,
        timeout: float | None,
        *,
        request: Request | None = None,
        note: Note | None = None,
        begin: bool = True,
    ) -> None:
        """Prepare to borrow; nothing happens before the block is entered.

        Args:
            lane: Where to borrow from.
            timeout: The request's deadline, in seconds; ``None`` takes the lane's.
            request: What it asks for; ``None`` for any of the lane's pools.
            note: As for :class:`AsyncTrackedCheckout`.
            begin: Whether a block that writes begins its transaction at once, in the round trip that sets the session.
        """
        super().__init__(lane, timeout, request=request, note=note)
        self._begin = begin and lane.target.shared and not lane.read_only

    async def __aenter__(self) -> AsyncConnection[TupleRow]:
        """Borrow the connection, and make it the tenant's.

        Returns:
            The connection.

        Raises:
            Unavailable: None could be had within the deadline.
            UnknownTenant: The tenant's schema is not there.
            RouterClosed: The router was closed.
            RuntimeError: The block of this very object has been entered already.
        """
        if self._connection is not None:
            raise RuntimeError("this checkout is in use: call connection() once for each block")
        lane, deadline = self._lane, monotonic() + min(self._timeout, A_LONG_TIME)
        if lane.slots.loop is not arunning_loop():
            lane.slots.loop = abind_loop(lane.slots.loop)
        if (admission := lane.admission) is None:
            return await self._enter(lane, deadline)
        token = object()
        try:
            connection = await self._enter(lane, deadline, token, admitted=admission.enter(token))
            self._pool.admitted[session_of(connection)] = admission, token
        except BaseException:
            admission.leave(token)
            raise
        return connection

    async def _enter(
        self, lane: AsyncLane, deadline: float, token: object = None, *, admitted: bool = True
    ) -> AsyncConnection[TupleRow]:
        scope = lane.target.scope
        assert scope is not None  # noqa: S101  (else it were a plain checkout)
        pool = lane.pick() if self._request is None and admitted else None
        connection = None if pool is None else await pool.take_for(scope)
        while True:
            if pool is None or connection is None:
                lane, pool, connection = await acquire(lane, deadline, pool, self._request, token, admitted=admitted)
                self._lane, scope = lane, lane.target.scope
                assert scope is not None  # noqa: S101  (a successor has one, too)
                admitted = True
            pool.retryable.add(session_of(connection))
            try:
                await enter(connection, scope, deadline, begin=self._begin)
            except BaseException as error:
                # Whoever had it before may have spoilt it for every reset; a fresh one is as it will be the next time.
                used = session_of(connection).scope is not None
                again = isinstance(error, psycopg.Error) and (used or connection.broken or isinstance(error, TooLate))
                tell(pool, connection, error)
                if isinstance(error, TooLate):
                    pool.watched.suspect(pool.node.server)
                if isinstance(error, UnknownTenant):
                    lane.in_force.lanes.unlist(lane)
                else:
                    await connection.close()
                await pool.release(connection)
                if not again:
                    raise
                connection = None
                continue
            pool.retryable.discard(session_of(connection))
            session_of(connection).target = lane.target
            self._pool, self._connection = pool, connection
            return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the transaction and give the connection back, as any checkout does."""
        connection, entry = self._connection, None
        try:
            if connection is not None:  # given back, it may be another's; closed, its place is free already
                entry = self._pool.admitted.pop(session_of(connection), None)
            await super().__aexit__(kind, error, traceback)
        finally:
            if entry is not None and not self._pool.inherited:
                entry[0].leave(entry[1])


class AsyncLookupCheckout(AsyncCheckout):
    """A checkout of a tenant's of whom it has to be asked first where it lives."""

    __slots__ = ("_checkout", "_find")

    def __init__(self, find: AFunction[[float], AsyncCheckout], timeout: float) -> None:  # it has no lane yet
        """Prepare to borrow; nothing happens before the block is entered.

        Args:
            find: Asks until a deadline, on the monotonic clock, and makes the checkout.
            timeout: The request's deadline, in seconds.
        """
        self._find = find
        self._timeout = timeout
        self._connection = None
        self._checkout: AsyncCheckout | None = None

    @property
    def pool(self) -> AsyncNodePool:
        """Where the connection is from, inside the block."""
        return self._found().pool

    @property
    def version(self) -> str:
        """The version it is for; empty as long as that is not known."""
        return "" if self._checkout is None else self._checkout.version

    @property
    def tenant(self) -> str | None:
        """Whom it is for, inside the block."""
        return self._found().tenant

    async def __aenter__(self) -> AsyncConnection[TupleRow]:
        """Find out where the tenant lives, and borrow the connection.

        Returns:
            The connection.

        Raises:
            UnknownTenant: There is no such tenant.
            DirectoryUnavailable: It cannot be found out.
            Unavailable: No connection could be had within the deadline.
            RouterClosed: The router was closed.
            RuntimeError: The block of this very object has been entered already.
        """
        if self._checkout is not None:
            raise RuntimeError("this checkout is in use: call connection() once for each block")
        checkout = await self._find(monotonic() + min(self._timeout, A_LONG_TIME))
        connection = await checkout.__aenter__()
        self._checkout = checkout
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the transaction and give the connection back, as any checkout does."""
        checkout, self._checkout = self._found(), None
        await checkout.__aexit__(kind, error, traceback)

    def detach(self) -> AsyncTrackedCheckout:
        """Have a borrowed connection go its own way, without a block.

        Returns:
            What has to give it back.
        """
        checkout, self._checkout = self._found(), None
        assert isinstance(checkout, AsyncTrackedCheckout)  # noqa: S101  (it was asked for one)
        return checkout.detach()

    def _found(self) -> AsyncCheckout:
        if self._checkout is None:
            raise RuntimeError("the block of this checkout was not entered")
        return self._checkout
