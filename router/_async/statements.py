"""Runs single statements, on a replica where PostgreSQL allows it, and transactions, again after passing failures."""

from __future__ import annotations

import logging
import re
from itertools import count
from random import random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from router._async.pool.hygiene import end_trace
from router._async.pool.pooled import AsyncPooledConnection
from router._async.pool.scripts import text_of
from router._async.pool.session_state import session_of
from router._runtime.calls import acall
from router._runtime.flags import AGuard, asleep
from router.core.errors import Unavailable
from router.core.events import Repeated
from router.core.result import Result
from router.core.stale import is_spoilt, is_stale
from router.core.statement import can_be_repeated, needs_primary, without_comments

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from psycopg import AsyncConnection
    from psycopg.abc import Params, Query
    from psycopg.rows import TupleRow

    from router._async.checkout import AsyncCheckout
    from router._async.in_force import AsyncInForce
    from router._async.pool.node_pool import AsyncNodePool
    from router.core.topology import Node

    class AsyncReading(Protocol):
        """Borrows a connection to read."""

        def __call__(self, *, avoid: Node | None) -> AsyncCheckout:
            """Borrow a connection, from another node than ``avoid`` if there is one."""


T = TypeVar("T")

ELSEWHERE = 2
"""How often a read is run again on another connection; more than once, since all replicas may die at the same time."""

REMEMBERED = 1000
"""The most statements for the primary that are remembered; beyond that the oldest one is removed."""

CONFLICTS = ("40001", "40P01")
"""SQLSTATEs of transactions that were rolled back because of other transactions: serialization failure, deadlock."""

PASSING = (*CONFLICTS, "57P01", "57P02", "57P03", "25006")
"""SQLSTATEs of failures that pass: conflicts, and a server that shuts down, has crashed, starts up or is a standby."""

BACKOFF = 0.02
"""The most seconds until a transaction is run again for the first time; the time doubles with each repetition."""

# A standby allows advisory locks, but there they exclude no session of another server.
_ADVISORY_LOCK = re.compile(r"\bpg_(?:try_)?advisory_", re.IGNORECASE)


logger = logging.getLogger("router")


class _Unguarded(Exception):
    """The session that was borrowed to read is not known to refuse writes."""


class AsyncStatements:
    """Runs single statements, and remembers which of them the replicas refuse."""

    def __init__(self, in_force: AsyncInForce) -> None:
        """Begin with no remembered statements.

        Args:
            in_force: What is in force in the router; repetitions are counted there.
        """
        self._in_force = in_force
        self._guard = AGuard()  # guards _refused
        # The hashes of refused statements, oldest first: a text may be long. A collision only sends a read to the
        # primary.
        self._refused: dict[int, None] = {}

    @property
    def remembered(self) -> int:
        """How many statements are remembered as ones that have to run on the primary."""
        return len(self._refused)

    def abandon(self) -> None:
        """Replace the guard, in the child of a fork: a thread of the parent may have held it."""
        self._guard = AGuard()

    def _repeated(self, pool: AsyncNodePool, tenant: str | None, error: psycopg.Error) -> None:
        """Count a repetition, and emit an event with the node, the tenant and the kind of failure."""
        observers = self._in_force.observers
        self._in_force.pools.count("repeated", pool.cluster.name, read_only=pool.read_only)
        if observers.listens_to(Repeated):
            # Without the error's text, which may hold data.
            reason = type(error).__name__ + (f" ({error.sqlstate})" if error.sqlstate else "")
            observers.emit([Repeated(pool.cluster.name, tenant, pool.read_only, pool.node, reason)])

    async def execute(
        self,
        query: Query,
        params: Params | None,
        reading: AsyncReading,
        writing: Callable[[], AsyncCheckout],
    ) -> Result:
        """Run one statement: on a replica, unless PostgreSQL refuses to run it there.

        Args:
            query: The statement.
            params: The statement's parameters.
            reading: Borrows a connection to read.
            writing: Borrows a connection to write.

        Returns:
            The whole result.

        Raises:
            TypeError: ``query`` is not a statement.
            psycopg.Error: The statement failed.
        """
        text = without_comments(text_of(query))
        if _ADVISORY_LOCK.search(text) is not None or needs_primary(text):
            return await self._write(query, text, params, writing)
        checkout = reading(avoid=None)
        # The version is part of the key: the same statement may write in one version and not in another.
        if (key := hash((checkout.version, text))) in self._refused:
            return await self._write(query, text, params, writing)
        refused = False
        try:
            return await self._read(query, params, reading, checkout, text)
        except (psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.FeatureNotSupported) as error:
            if is_stale(error):
                raise
            refused = not is_spoilt(error)
        except (psycopg.errors.ObjectNotInPrerequisiteState, _Unguarded):
            pass  # not remembered: the statement may be refused only because the server is behind, which passes
        result = await self._write(query, text, params, writing)
        if not refused:
            return result
        with self._guard:
            self._refused[key] = None
            while len(self._refused) > REMEMBERED:
                del self._refused[next(iter(self._refused))]
        return result

    async def _read(
        self, query: Query, params: Params | None, reading: AsyncReading, checkout: AsyncCheckout, text: str
    ) -> Result:
        for attempt in count():
            avoid: Node | None = None
            async with checkout as connection:
                if not session_of(connection).refuses_writes:
                    raise _Unguarded
                checkout.pool.sessions.retryable.add(session_of(connection))
                try:
                    return await _result(connection, query, params, text, reads=True)
                except psycopg.OperationalError as error:
                    if attempt >= ELSEWHERE or not _passes(connection, error):
                        raise
                    self._repeated(checkout.pool, checkout.tenant, error)
                    avoid = checkout.pool.node
                except psycopg.Error as error:
                    if attempt >= (1 if is_stale(error) else ELSEWHERE if is_spoilt(error) else 0):
                        raise
                    self._repeated(checkout.pool, checkout.tenant, error)
            checkout = reading(avoid=avoid)
        raise AssertionError  # count() has no end

    async def _write(
        self,
        query: Query,
        text: str,
        params: Params | None,
        writing: Callable[[], AsyncCheckout],
    ) -> Result:
        for attempt in count():
            async with writing() as connection:
                try:
                    return await _result(connection, query, params, text)
                except psycopg.Error as error:
                    if attempt or not is_stale(error) or not can_be_repeated(text):
                        raise
        raise AssertionError  # count() has no end

    async def run(
        self,
        function: Callable[[AsyncConnection[TupleRow]], Awaitable[T]],
        writing: Callable[[], AsyncCheckout],
        *,
        retries: int,
    ) -> T:
        """Run a function in a transaction, and again after a failure that passes.

        Args:
            function: The function, called with the connection.
            writing: Borrows a connection to write.
            retries: How often it is run again, at most.

        Returns:
            The function's result.

        Raises:
            TransactionOutcomeUnknown: The connection died during COMMIT.
            psycopg.Error: The error of the last attempt.
        """
        for attempt in count():
            checkout = writing()
            pool: AsyncNodePool | None = None
            try:
                async with checkout as connection:
                    pool, tenant = checkout.pool, checkout.tenant
                    return await _in_transaction(connection, function, again=retries > 0)
            except Unavailable:
                raise
            except psycopg.Error as error:
                if pool is None:  # the block was not entered
                    raise
                if attempt >= retries or not (_passes(connection, error) or is_stale(error)):
                    raise
                self._repeated(pool, tenant, error)
            await asleep(BACKOFF * 2.0 ** min(attempt, 6) * random())
        raise AssertionError  # count() has no end


async def _in_transaction(
    connection: AsyncConnection[TupleRow],
    function: Callable[[AsyncConnection[TupleRow]], Awaitable[T]],
    *,
    again: bool,
) -> T:
    """Call a function in a transaction; and again in the same session if its plans were stale after a migration."""
    try:
        # Inside transaction() the function cannot commit by itself: a repetition would write the same data twice.
        async with connection.transaction():
            result: T = await acall(function, connection)
            if connection.pgconn.transaction_status == TransactionStatus.INERROR:
                logger.warning(
                    "a function has returned to run(), but a statement had failed: its transaction is rolled back"
                )
            return result
    except psycopg.Error as error:
        if not again or not is_stale(error) or connection.closed:
            raise
    return await _in_transaction(connection, function, again=False)


def _passes(connection: AsyncConnection[Any], error: psycopg.Error) -> bool:
    return connection.broken or error.sqlstate in PASSING


async def _result(
    connection: AsyncConnection[TupleRow], query: Query, params: Params | None, text: str, *, reads: bool = False
) -> Result:
    """Run a statement; and again in the same session if its plan was stale after a migration.

    Args:
        connection: The connection.
        query: The statement.
        params: Its parameters.
        text: Its text, without comments.
        reads: Whether the session refuses writes, so that nothing can be left in the database when it fails.

    Returns:
        The result.
    """
    # Behind a transaction pooler the tenant's settings last for a transaction only: there the statement runs in one,
    # which is committed with the block.
    if not connection.autocommit and not (isinstance(connection, AsyncPooledConnection) and connection.begin_suffix):
        await connection.set_autocommit(True)
    has_run = True
    try:
        async with connection.cursor(row_factory=tuple_row) as cursor:
            statement: Any = query  # psycopg itself raises if a template string comes with parameters
            try:
                await cursor.execute(statement, params)
            except psycopg.Error as error:
                if not is_stale(error) or connection.pgconn.transaction_status:
                    raise
                if not reads and not can_be_repeated(text):
                    raise
                await cursor.execute(statement, params)  # psycopg has dropped its prepared statements by now
            return Result(
                rows=await cursor.fetchall() if cursor.description is not None else [],
                columns=tuple(column.name for column in cursor.description or ()),
                rowcount=cursor.rowcount,
                status=cursor.statusmessage or "",
            )
    except psycopg.errors.ReadOnlySqlTransaction:
        has_run = False
        raise
    finally:
        if has_run:  # also if it has failed: what a statement prepares or locks is kept then, too
            end_trace(connection, text)
