# Generated from router/_async/checkout.py by tools/async_to_sync.py: do not edit.
"""What ``connection()`` returns: it borrows on entering a block and gives back on leaving it. This is the hot path."""

from __future__ import annotations

import logging
from itertools import count
from random import getrandbits
from time import monotonic
from typing import TYPE_CHECKING, Protocol

import psycopg

from router.choose import PAIRS, pairs, rotation

if TYPE_CHECKING:
    from types import TracebackType

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._sync.pools import NodePool
    from router._sync.slots import Slots
    from router.topology import Target

PAIRS_BITS = PAIRS.bit_length() - 1
A_LONG_TIME = 1e8
"""Seconds; what threads and event loops can wait for has an end, and ``inf`` is past it."""

logger = logging.getLogger("router")


class Acquire(Protocol):
    """The way to a connection when none is ready: the router's."""

    def __call__(self, lane: Lane, deadline: float, prefer: NodePool | None) -> tuple[NodePool, Connection[TupleRow]]:
        """Get a connection for a request, and the pool it is from; raises ``Unavailable``."""


class Lane:
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
        pools: tuple[NodePool, ...],
        acquire: Acquire,
        slots: Slots,
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
        self._pairs: tuple[tuple[NodePool, NodePool, float, float], ...] = ()
        self._rotation: tuple[NodePool, ...] = ()
        self._turns = count()  # its next() is atomic
        if len(pools) > 1 and balance != "round_robin":
            drawn = ((one, one if balance == "random" else two) for one, two in pairs(weights))
            self._pairs = tuple((pools[one], pools[two], weights[one], weights[two]) for one, two in drawn)
        elif pools:
            self._rotation = tuple(pools[place] for place in rotation(weights))

    def pick(self) -> NodePool | None:
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


class Checkout:
    """One borrowed connection, as a context manager; made by ``Router.connection()``."""

    __slots__ = ("_connection", "_lane", "_pool", "_timeout")

    def __init__(self, lane: Lane, timeout: float | None) -> None:
        """Prepare to borrow; nothing happens before the block is entered.

        Args:
            lane: Where to borrow from.
            timeout: The request's deadline, in seconds; ``None`` takes the lane's.
        """
        self._lane = lane
        self._timeout = lane.timeout if timeout is None else timeout
        self._connection: Connection[TupleRow] | None = None

    def __enter__(self) -> Connection[TupleRow]:
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
        pool = lane.pick()
        if pool is not None and (connection := pool.take()) is not None:
            self._pool = pool
            self._connection = connection
            return connection
        deadline = monotonic() + min(self._timeout, A_LONG_TIME)
        self._pool, self._connection = lane.acquire(lane, deadline, pool)
        return self._connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the transaction and give the connection back: commit on success, roll back on an error.

        A connection whose block was cancelled or interrupted is closed: an answer, or the cancellation of a query, may
        still be on its way to it.
        """
        connection, pool = self._connection, self._pool
        if connection is None:
            raise RuntimeError("the block of this checkout was not entered")
        self._connection = None
        if kind is not None or connection.pgconn.transaction_status:
            try:
                _end_transaction(connection, pool, kind)
            except BaseException:
                pool.give_back(connection)
                raise
        pool.give_back(connection)
        if (slots := self._lane.slots).waiting:
            slots.wake()


def _end_transaction(connection: Connection[TupleRow], pool: NodePool, kind: type[BaseException] | None) -> None:
    if connection.closed or pool.inherited:
        return
    if kind is None:
        connection.commit()
    elif not issubclass(kind, (Exception, GeneratorExit)):
        connection.close()
    elif connection.pgconn.transaction_status:
        try:
            connection.rollback()
        except psycopg.Error as problem:  # the block's own error matters more; give_back() closes the connection
            logger.warning("could not roll back on a connection of the pool %r: %s", pool.name, problem)
