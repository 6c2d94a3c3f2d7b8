# Generated from router/_async/pool/waiter.py by tools/async_to_sync.py: do not edit.
"""A request that waits for a connection of a pool."""

# ruff: noqa: SLF001  (as node_pool.py, and for the same reason)

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg_pool import PoolTimeout

from router._runtime.flags import Flag, Guard
from router._sync.pool.session_state import session_of

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._sync.pool.node_pool import NodePool


class Place:
    """The place of a request in the line for a connection, in the way of psycopg_pool's ``WaitingClient``.

    Nobody who hands a connection over has to wait for the request to take it, and from then on it counts as borrowed.

    Attributes:
        tenant: Whom the request is for; empty where that does not matter.
        connection: The one handed over.
        error: Why there will be none.
    """

    __slots__ = ("_flag", "_guard", "_pool", "connection", "error", "tenant")

    def __init__(self, pool: NodePool, tenant: str) -> None:
        """Make the place; it is not in the line yet.

        Args:
            pool: Whose line it is.
            tenant: Whom the request is for.
        """
        self.tenant = tenant
        self.connection: Connection[TupleRow] | None = None
        self.error: BaseException | None = None
        self._pool = pool
        self._flag = Flag()
        self._guard = Guard()  # guards connection and error: the first of them that is set counts

    def wait(self, timeout: float) -> Connection[TupleRow]:
        """Wait for a connection.

        Args:
            timeout: The most to wait, in seconds.

        Returns:
            The connection.

        Raises:
            PoolTimeout: There was none in time.
            Reroute: Another node may be better by now.
            PoolClosed: The pool was closed.
        """
        try:
            if not self._flag.wait_for(timeout):
                self.fail(PoolTimeout(f"the pool {self._pool.name!r} had no connection within {timeout:.3g} s"))
        except BaseException as error:
            self.fail(error)
            raise
        if self.connection is None:
            assert self.error is not None  # noqa: S101  (one of the two is set by now)
            raise self.error
        return self.connection

    def set(self, connection: Connection[TupleRow]) -> bool:
        """Hand a connection over.

        Args:
            connection: The connection.

        Returns:
            Whether the request still waited.
        """
        with self._guard:
            if self.connection is not None or self.error is not None:
                return False
            session_of(connection).tenant = self.tenant
            connection._pool = self._pool
            self._pool.borrowed.add(session_of(connection))
            self.connection = connection
        self._flag.set()
        self._pool.withdraw()
        return True

    def fail(self, error: BaseException) -> bool:
        """Say that there will be none.

        Args:
            error: Why.

        Returns:
            Whether the request still waited.
        """
        with self._guard:
            if self.connection is not None or self.error is not None:
                return False
            self.error = error
        self._flag.set()
        return True
