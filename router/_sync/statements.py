# Generated from router/_async/statements.py by tools/async_to_sync.py: do not edit.
"""Statements of their own, sent where PostgreSQL lets them run; and transactions that are run again."""

from __future__ import annotations

import logging
import re
from itertools import count
from random import random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from router._runtime.calls import call
from router._runtime.flags import Guard, sleep
from router._sync.pool.pooled import PooledConnection
from router._sync.pool.scripts import text_of
from router._sync.pool.session_state import session_of
from router.core.errors import Unavailable
from router.core.events import Repeated
from router.core.result import Result
from router.core.stale import is_spoilt, is_stale
from router.core.statement import can_be_repeated, needs_primary, without_comments
from router.core.traces import names_what_lasts

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection, Cursor
    from psycopg.abc import Params, Query
    from psycopg.rows import TupleRow

    from router._sync.checkout import Checkout
    from router._sync.in_force import InForce
    from router._sync.pool.node_pool import NodePool
    from router.core.topology import Node

    class Reading(Protocol):
        """Borrows a connection to read."""

        def __call__(self, *, avoid: Node | None) -> Checkout:
            """Borrow it, from another node than ``avoid`` if there is one."""


T = TypeVar("T")

ELSEWHERE = 2
"""How often a read is run again elsewhere: all replicas may die at the same time."""

REMEMBERED = 1000
"""How many statements that have to run on the primary are remembered; the one known longest goes first."""

CONFLICTS = ("40001", "40P01")
"""SQLSTATEs of transactions that were rolled back because of others: serialization failure, deadlock."""

PASSING = (*CONFLICTS, "57P01", "57P02", "57P03", "25006")
"""SQLSTATEs of failures that pass: also, a server that shuts down, crashed, starts, is a standby."""

BACKOFF = 0.02
"""Seconds until a transaction is run again, at most; twice as many each time."""

# Allowed on a standby, where they lock nobody out.
_ADVISORY_LOCK = re.compile(r"\bpg_(?:try_)?advisory_", re.IGNORECASE)

# Statements that leave nothing behind in their session, by the first word of what PostgreSQL calls them.
_TRACELESS = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "COPY", "NOTIFY", "EXPLAIN", "SHOW", "CALL"})


logger = logging.getLogger("router")


class _Unguarded(Exception):
    """The server is not known to refuse writes in the session that is to read."""


class Statements:
    """Runs statements of their own, and remembers which of them replicas refused."""

    def __init__(self, in_force: InForce) -> None:
        """Begin with nothing remembered.

        Args:
            in_force: What is in force: where it is counted what is run again.
        """
        self._in_force = in_force
        self._guard = Guard()  # guards _refused
        # Hashes, in the order of their coming: a text may be long. Two that collide cost a read of the primary's.
        self._refused: dict[int, None] = {}

    @property
    def remembered(self) -> int:
        """How many statements are remembered that have to run on the primary."""
        return len(self._refused)

    def abandon(self) -> None:
        """Forget, in the child of a fork, who may have held the guard in the parent."""
        self._guard = Guard()

    def _repeated(self, pool: NodePool, tenant: str | None, error: psycopg.Error) -> None:
        """Count what is run again, and tell of it: where it failed, whose it is, and how."""
        observers = self._in_force.observers
        self._in_force.pools.count("repeated", pool.cluster.name, read_only=pool.read_only)
        if observers.listens_to(Repeated):
            # Not its text, which may hold data.
            reason = type(error).__name__ + (f" ({error.sqlstate})" if error.sqlstate else "")
            observers.emit([Repeated(pool.cluster.name, tenant, pool.read_only, pool.node, reason)])

    def execute(
        self,
        query: Query,
        params: Params | None,
        reading: Reading,
        writing: Callable[[], Checkout],
    ) -> Result:
        """Run one statement: on a replica, unless PostgreSQL refuses to run it there.

        Args:
            query: The statement.
            params: The statement's parameters.
            reading: Borrows a connection to read.
            writing: Borrows one to write.

        Returns:
            The whole result.

        Raises:
            TypeError: ``query`` is not a statement.
            psycopg.Error: It failed.
        """
        text = without_comments(text_of(query))
        locks = _ADVISORY_LOCK.search(text) is not None
        dirty = locks or names_what_lasts(text)
        if locks or needs_primary(text):
            return self._write(query, text, params, writing, dirty=dirty)
        checkout = reading(avoid=None)
        # The same statement may write in one version and not in another.
        if (key := hash((checkout.version, text))) in self._refused:
            return self._write(query, text, params, writing, dirty=dirty)
        refused = False
        try:
            return self._read(query, params, reading, checkout, dirty=dirty)
        except (psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.FeatureNotSupported) as error:
            if is_stale(error):
                raise
            refused = not is_spoilt(error)
        except (psycopg.errors.ObjectNotInPrerequisiteState, _Unguarded):
            pass  # the first may be because the server is a standby, or because it is behind: that passes
        result = self._write(query, text, params, writing, dirty=dirty)
        if not refused:
            return result
        with self._guard:
            self._refused[key] = None
            while len(self._refused) > REMEMBERED:
                del self._refused[next(iter(self._refused))]
        return result

    def _read(
        self, query: Query, params: Params | None, reading: Reading, checkout: Checkout, *, dirty: bool
    ) -> Result:
        for attempt in count():
            avoid: Node | None = None
            with checkout as connection:
                if not session_of(connection).refuses_writes:
                    raise _Unguarded
                checkout.pool.retryable.add(session_of(connection))
                if dirty:
                    session_of(connection).dirty = True
                try:
                    return _result(connection, query, params)
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

    def _write(
        self,
        query: Query,
        text: str,
        params: Params | None,
        writing: Callable[[], Checkout],
        *,
        dirty: bool,
    ) -> Result:
        for attempt in count():
            with writing() as connection:
                if dirty:
                    session_of(connection).dirty = True
                try:
                    return _result(connection, query, params, text)
                except psycopg.Error as error:
                    if attempt or not is_stale(error) or not can_be_repeated(text):
                        raise
        raise AssertionError  # count() has no end

    def run(
        self,
        function: Callable[[Connection[TupleRow]], T],
        writing: Callable[[], Checkout],
        *,
        retries: int,
    ) -> T:
        """Run a function in a transaction, and again after a failure that passes.

        Args:
            function: Called with the connection.
            writing: Borrows a connection to write.
            retries: How often it is run again at most.

        Returns:
            What it returned.

        Raises:
            TransactionOutcomeUnknown: The connection died during COMMIT.
            psycopg.Error: What it failed with the last time.
        """
        for attempt in count():
            checkout = writing()
            pool: NodePool | None = None
            try:
                with checkout as connection:
                    pool, tenant = checkout.pool, checkout.tenant
                    return _in_transaction(connection, function, again=retries > 0)
            except Unavailable:
                raise
            except psycopg.Error as error:
                if pool is None:  # it did not begin
                    raise
                if attempt >= retries or not (_passes(connection, error) or is_stale(error)):
                    raise
                self._repeated(pool, tenant, error)
            sleep(BACKOFF * 2.0 ** min(attempt, 6) * random())
        raise AssertionError  # count() has no end


def _in_transaction(
    connection: Connection[TupleRow],
    function: Callable[[Connection[TupleRow]], T],
    *,
    again: bool,
) -> T:
    """Call a function in a transaction; and again in the same session if that went by what a migration has changed."""
    try:
        # In transaction(), the function cannot commit by itself: what is repeated would be there twice.
        with connection.transaction():
            result: T = call(function, connection)
            if connection.pgconn.transaction_status == TransactionStatus.INERROR:
                logger.warning(
                    "a function has returned to run(), but a statement had failed: its transaction is rolled back"
                )
            return result
    except psycopg.Error as error:
        if not again or not is_stale(error) or connection.closed:
            raise
    return _in_transaction(connection, function, again=False)


def _passes(connection: Connection[Any], error: psycopg.Error) -> bool:
    return connection.broken or error.sqlstate in PASSING


def _result(connection: Connection[TupleRow], query: Query, params: Params | None, text: str = "SELECT") -> Result:
    """Run a statement; and again in the same session if that went by what a migration has changed.

    Args:
        connection: Where.
        query: The statement.
        params: Its parameters.
        text: Its text, where it may leave something behind when it fails.

    Returns:
        The result.
    """
    # Behind a transaction pooler, a tenant is itself in transactions only: there it is one, committed with the block.
    if not connection.autocommit and not (isinstance(connection, PooledConnection) and connection.begin_suffix):
        connection.set_autocommit(True)
    with connection.cursor(row_factory=tuple_row) as cursor:
        statement: Any = query  # a template string takes no parameters, as psycopg says itself
        try:
            cursor.execute(statement, params)
        except psycopg.Error as error:
            if not is_stale(error) or connection.pgconn.transaction_status or not can_be_repeated(text):
                raise
            cursor.execute(statement, params)  # what was prepared is forgotten by now
        result = Result(
            rows=cursor.fetchall() if cursor.description is not None else [],
            columns=tuple(column.name for column in cursor.description or ()),
            rowcount=cursor.rowcount,
            status=cursor.statusmessage or "",
        )
        if _leaves_something(cursor):
            session_of(connection).dirty = True
        return result


def _leaves_something(cursor: Cursor[Any]) -> bool:
    """Whether a statement, or one of several, may have changed its session; of those, the cursor is at the first."""
    while True:
        kind = (cursor.statusmessage or "").partition(" ")[0]
        # SELECT without a result is CREATE TABLE … AS: the table may be a temporary one.
        if kind not in _TRACELESS or (kind == "SELECT" and cursor.description is None):
            return True
        if not cursor.nextset():
            return False
