"""A table of tenants: read on its primary, and listened to."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from random import random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import psycopg

from router._async.pool.scripts import cursor_of, send
from router._async.pool.server_queries import is_undeclared
from router._async.pool.session_state import session_of
from router._runtime.flags import AFlag, AGuard
from router._runtime.sockets import cut
from router._runtime.workers import ajoin, aspawn
from router.core import sql
from router.core.errors import RouterClosed, RouterError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

    from router._async.checkout import AsyncCheckout
    from router._async.pool.node_pool import AsyncNodePool
    from router._runtime.calls import AFunction
    from router._runtime.workers import AWorker
    from router.core.policies import DirectoryPolicy

    class AsyncBorrows(Protocol):
        """The part of a router that provides connections."""

        def borrow(self, version: str | None) -> AsyncCheckout:
            """Prepare to borrow a connection that writes.

            Args:
                version: The version; ``None`` for the default one.
            """

    class AsyncToldOfChanges(Protocol):
        """The directory, as the listener sees it."""

        def changed(self, tenant: str | None) -> None:
            """Note a change of tenants.

            Args:
                tenant: The key of the tenant that changed; ``None`` if any tenant may have changed.
            """


RETRY = (0.01, 1.0)
"""Seconds until the listener connects again after a failure: the first pause, and the longest."""

SILENCE = 10
"""Seconds of silence after which the kernel checks a listener's connection by a keepalive packet: nothing else is sent
over it, and gateways silently drop connections that are silent for minutes."""

T = TypeVar("T")

logger = logging.getLogger("router")


class AsyncSqlSource:
    """A table of tenants, read on its primary; a connection of its own hears of its changes.

    Attributes:
        table: The table, as SQL writes it.
    """

    def __init__(
        self,
        policy: DirectoryPolicy,
        keys: Collection[str],
        borrows: AsyncBorrows,
        told: AsyncToldOfChanges,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            policy: Says which table it is, and in which version's database.
            keys: The columns that say something; any others are none of the router's business.
            borrows: Gives connections to that version's primary.
            told: Told of changes.
        """
        self.table = policy.table
        self._version = policy.version
        self._borrows = borrows
        self._keys = frozenset(keys)
        self._told = told
        self._guard = AGuard()  # guards all below
        self._in_use: dict[AsyncConnection[TupleRow], AsyncNodePool] = {}  # for cutting
        self._listens: AsyncConnection[TupleRow] | None = None
        self._listener: AWorker | None = None
        self._pause = RETRY[0]
        self._closed = AFlag()

    async def lookup(self, tenant: str) -> Mapping[str, Any] | None:
        """Read where a tenant lives.

        Args:
            tenant: Its key.

        Returns:
            What its row says, but for what is NULL; ``None`` if none has this very key.

        Raises:
            RouterError: It cannot be read; the message says why.
        """
        with self._guard:
            if self._listener is None and not self._closed.is_set():
                self._listener = aspawn(self._listen, "router listens for tenants")
        for row in await self._fetch(sql.tenant_of(self.table), [tenant]):
            if str(row["tenant"]) == tenant:  # a collation or a type may find the row of another spelling
                return {key: row[key] for key in self._keys & row.keys() if row[key] is not None}
        return None

    async def tenants(self) -> list[str]:
        """Read the keys of all tenants.

        Returns:
            The keys, in order.

        Raises:
            RouterError: They cannot be read; the message says why.
        """
        return [str(row["tenant"]) for row in await self._fetch(sql.tenants_of(self.table))]

    async def close(self, timeout: float) -> None:
        """Hear of nothing any more, and cut short what is being read.

        Args:
            timeout: The most to wait for that, in seconds.
        """
        with self._guard:
            self._closed.set()
            listener = self._listener
            for connection in self._in_use:
                cut(connection)
        if listener is not None:
            await ajoin(listener, timeout)

    def leave_draining(self) -> None:
        """Listen over another connection if that which listens keeps a pool from being empty."""
        with self._guard:
            for connection, pool in self._in_use.items():
                if pool.draining and connection is self._listens:
                    cut(connection)

    async def _fetch(self, query: str, params: Sequence[str] = ()) -> list[dict[str, Any]]:
        async def fetch(_: AsyncNodePool, connection: AsyncConnection[TupleRow]) -> list[dict[str, Any]]:
            async with cursor_of(connection) as cursor:
                # Not prepared: a prepared SELECT * fails once the table has one more column.
                await cursor.execute(query, params or None, prepare=False)
                return await cursor.fetchall()

        try:
            return await self._borrowed(fetch)
        except psycopg.Error as error:
            if self._closed.is_set():
                raise RouterClosed("the router is closed") from None
            raise RouterError(self._in_words(error)) from None

    async def _borrowed(self, use: AFunction[[AsyncNodePool, AsyncConnection[TupleRow]], T]) -> T:
        """Use a connection in autocommit, which is cut when its server is found down, or all is closed."""
        checkout = self._borrows.borrow(self._version)
        async with checkout as connection:
            with self._guard:
                if self._closed.is_set():
                    raise RouterClosed("the router is closed")
                self._in_use[connection] = checkout.pool
            try:
                checkout.pool.sessions.retryable.add(session_of(connection))
                await connection.set_autocommit(True)
                return await use(checkout.pool, connection)
            finally:
                with self._guard:
                    self._in_use.pop(connection, None)

    def _in_words(self, error: psycopg.Error) -> str:
        if isinstance(error, RouterError):
            return str(error)
        what = error.diag.message_primary if isinstance(error, psycopg.ProgrammingError) else None
        return f"the table {self.table} cannot be read: {what or type(error).__name__}"

    def _why_deaf(self, error: psycopg.Error) -> str:
        """Say why the connection over which changes are heard of has ended, as the server says it."""
        if isinstance(error, RouterError) or not isinstance(error, psycopg.OperationalError):
            return self._in_words(error)
        return f"its connection was lost: {error.diag.message_primary or str(error).strip().partition(chr(10))[0]}"

    async def _listen(self) -> None:
        """Hear of changes until the end; whenever the connection is lost, over another."""
        while not self._closed.is_set():
            try:
                await self._borrowed(self._hear)
            except RouterClosed:
                return
            except psycopg.Error as error:
                if self._pause == RETRY[0] and not self._closed.is_set():
                    logger.warning(
                        "cannot listen for changes to tenants, and will try again: %s", self._why_deaf(error)
                    )
            except Exception:
                logger.exception("cannot listen for changes to tenants, and will try again")
            else:
                return
            self._pause = min(2.0 * self._pause, RETRY[1])
            await self._closed.wait_for(self._pause * (0.9 + 0.2 * random()))

    async def _hear(self, pool: AsyncNodePool, connection: AsyncConnection[TupleRow]) -> None:
        """Hear of changes until the connection is lost."""
        if pool.node.pooler == "transaction":
            logger.warning(
                "%s is a transaction pooler: changes to tenants take effect when directory.ttl has passed", pool.node
            )
            return
        [(pid, _)] = await send(connection, sql.session(()).encode())
        if is_undeclared(connection, pool.node, pid):
            logger.warning(
                "%s is a pooler that the settings do not declare: if it pools transactions, changes to tenants "
                "take effect when directory.ttl has passed",
                pool.node,
            )
        session_of(connection).dirty = True
        _keep_alive(connection)
        said = list[str]()  # libpq takes for a notice why the server ends a session that waits

        def hear(notice: psycopg.errors.Diagnostic) -> None:
            if notice.severity_nonlocalized == "FATAL":
                said.append(notice.message_primary or "")

        connection.add_notice_handler(hear)
        await send(connection, sql.LISTEN_TO_TENANTS.encode())
        self._pause = RETRY[0]
        self._listens = connection
        if pool.draining:  # since before this could be told so
            raise psycopg.OperationalError("its pool drains")
        self._told.changed(None)  # notifications from before the LISTEN are missing
        try:
            async for notification in connection.notifies():
                self._told.changed(notification.payload or None)
        except psycopg.OperationalError as error:
            if said:
                raise psycopg.OperationalError(said[-1]) from error
            raise


def _keep_alive(connection: AsyncConnection[TupleRow]) -> None:
    """Have the kernel see to it that a connection over which nothing is sent has another end."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.pgconn.socket)) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            duplicate.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE)
            duplicate.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE)
            duplicate.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
