"""The inside of psycopg_pool's pools, which keep idle connections, open connections, and close surplus ones.

Only the router's own pool and the objects that it is made of refer to psycopg_pool's pool: its public methods lend,
resize and drain in ways that the router does not count.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from router._async.pool.inside.imports import AddConnection, MaintenanceTask
from router._runtime.flags import APoolLock

if TYPE_CHECKING:
    from collections import deque

    from router.core.policies import PoolPolicy

    class AsyncOpens(Protocol):
        """Opens the connections of a pool.

        Attributes:
            due_at: The earliest time of the next attempt, on the monotonic clock.
        """

        due_at: float

        async def open_connection(self) -> AsyncConnection[TupleRow]:
            """Open one more connection."""

    class AsyncKnowsSessions(Protocol):
        """Knows the sessions of a pool."""

        def note_opened(self, connection: AsyncConnection[TupleRow], expires_at: float) -> None:
            """Note until when a connection may be lent, on the monotonic clock."""

        def note_closing(self, connection: AsyncConnection[TupleRow]) -> None:
            """Note that a connection is being closed, and is not counted any more."""

    class AsyncPoolOwner(Protocol):
        """The router's own pool, as psycopg_pool's pool uses it.

        Attributes:
            fewest_idle: The least number of idle connections since the pool last checked whether to shrink; roughly.
        """

        fewest_idle: int

        @property
        def opening(self) -> AsyncOpens:
            """Opens its connections."""

        @property
        def sessions(self) -> AsyncKnowsSessions:
            """Its sessions."""

        def grow_for_waiting(self) -> None:
            """Open one more connection if requests wait for it; under the lock."""


OVERDUE = 2
"""An attempt that has not begun after this many rounds of housekeeping is queued again: the first time it was lost."""

TOLD = 1.0
"""Seconds after which the worker is told once more to try again, if it has not done so."""


class _Name(str):
    """The name of a pool of the router in psycopg_pool's log records, which it marks."""

    __slots__ = ()


def _is_news(record: logging.LogRecord) -> bool:
    """Whether to keep a log record of psycopg_pool: its warnings about the router's pools only repeat the router's."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    return record.levelno != logging.WARNING or not any(
        isinstance(argument, _Name) or "_router" in getattr(argument, "__dict__", ()) for argument in arguments
    )


logging.getLogger("psycopg.pool").addFilter(_is_news)


class _Opened(AsyncConnection[TupleRow]):
    """The connection class that psycopg_pool is given: its ``connect()`` returns a connection opened by the router."""

    @classmethod  # with fewer parameters than psycopg's: the pool passes only the ones below
    async def connect(cls, _: str = "", *, owner: AsyncPoolOwner) -> AsyncConnection[TupleRow]:  # type: ignore[override]
        return await owner.opening.open_connection()


class AsyncDriverPool(AsyncConnectionPool[AsyncConnection[TupleRow]]):
    """psycopg_pool's pool, with a name for each operation on its inside.

    Attributes:
        lock: Guards the whole pool; taking a connection from ``kept`` needs no lock, since ``popleft()`` is atomic.
        kept: The idle connections, the longest idle one first.
    """

    def __init__(self, owner: AsyncPoolOwner, name: str, policy: PoolPolicy, waiting: deque[Any]) -> None:
        """Make the pool, which opens no connections yet.

        Args:
            owner: The router's own pool.
            name: The name of the pool.
            policy: How many connections it has, and for how long.
            waiting: The requests that wait for its connections.
        """
        super().__init__(
            connection_class=_Opened,
            kwargs={"owner": owner},
            open=False,
            name=_Name(name),
            min_size=policy.min_size,
            max_size=policy.max_size,
            timeout=policy.timeout,
            max_waiting=policy.max_waiting,
            max_idle=policy.max_idle,
            max_lifetime=policy.max_lifetime,
            reconnect_timeout=0.0,  # psycopg_pool's retries would last minutes; here the monitor probes a lost server
            reconnect_failed=lambda _: self.try_later(),
            num_workers=1,
        )
        self._owner = owner
        # psycopg_pool's async pool has no lock before open(), but the server may be fenced or found down before that.
        self.lock = self._lock = APoolLock()
        self._waiting = waiting
        self.kept = self._pool
        self._told_until = 0.0  # until then the worker is not told again to try; 0 if it was not told
        self._adding: set[_Adding] = set()  # attempts to open a connection, from the decision until they have ended

    @property
    def size(self) -> int:
        """The number of connections, including borrowed ones and those being opened."""
        return self._nconns

    @property
    def is_growing(self) -> bool:
        """Whether it is opening one more connection."""
        return self._growing

    @property
    def may_grow(self) -> bool:
        """Whether it may be told to open one more connection."""
        return self._closed or not (self._growing or self._nconns >= self._max_size)

    @property
    def adding(self) -> int:
        """How many connections are being opened or scheduled to be opened."""
        return len(self._adding)

    # The methods from here to the next such line are called under the lock.

    def grow(self) -> None:
        """Open one more connection, unless the pool is at its maximum or is opening one."""
        self._maybe_grow_pool()

    def _maybe_grow_pool(self) -> None:
        if monotonic() >= self._owner.opening.due_at:
            super()._maybe_grow_pool()

    def add_one(self) -> None:
        """Open one more connection, even if the pool is opening one already."""
        self._nconns += 1
        self.replace_one()

    def replace_one(self) -> None:
        """Open a connection in the place of one that is gone."""
        self.run_task(AddConnection(self))

    def count_out(self) -> None:
        """Count one connection less."""
        self._nconns -= 1

    def recount(self, opened: int) -> None:
        """Correct the counts and repeat lost attempts, in case an exception has interrupted an update.

        Args:
            opened: How many connections have been opened and not been counted out.
        """
        self._nconns = min(self._nconns, opened + len(self._adding))
        if self._growing and not any(adding.growing for adding in self._adding):
            self._growing = False
        for adding in list(self._adding):
            adding.queue_again(self)

    async def undo_open(self) -> None:
        """Undo an ``open()`` that failed half-way: a pool that is open without a worker would never serve a request."""
        self._told_until = 0.0
        if not self._closed:
            await self._signal_stop_worker()
            # The counted connections are opened by the next open().
            self._closed, self._opened, self._growing = True, False, False
            self._adding.clear()

    # The methods below are called without the lock.

    def abandon(self) -> object:
        """Leave all connections to the parent process, after a fork.

        Returns:
            The inherited connections. They have to be kept, since dropping them would close the parent's sessions.
        """
        inherited, self._pool = self._pool, self._pool.__class__()
        self.kept = self._pool
        self._closed = True  # the pool's threads do not exist in the child: __del__ must not try to stop them
        return inherited

    async def try_later(self) -> None:
        """Schedule another attempt to open a connection, for when it is due, if a request waits then."""
        now = monotonic()
        if self._waiting and now >= self._told_until and not self._growing and self._nconns < self._max_size:
            delay = max(self._owner.opening.due_at - now, 0.0)
            self._told_until = now + delay + TOLD  # not for good: an exception may come before the next line
            await self.schedule_task(_TryAgain(self), delay)

    async def try_again(self) -> None:
        """Open one more connection if a request waits for it."""
        self._told_until = 0.0
        async with self.lock:  # guards kept, waiting, closed, growing
            self._owner.grow_for_waiting()

    def run_task(self, task: MaintenanceTask) -> None:
        """Give the worker a task.

        Args:
            task: The task.
        """
        super().run_task(self._kept_in_mind(task))

    def run_again(self, adding: _Adding) -> None:
        """Give the worker an attempt once more; if it has ended a moment ago, nothing happens.

        Args:
            adding: The attempt.
        """
        super().run_task(adding)

    async def schedule_task(self, task: MaintenanceTask, delay: float) -> None:
        """Give the worker a task after a delay.

        Args:
            task: The task.
            delay: The delay in seconds.
        """
        await super().schedule_task(self._kept_in_mind(task), delay)

    def _kept_in_mind(self, task: MaintenanceTask) -> MaintenanceTask:
        if type(task) is not AddConnection:
            return task
        adding = _Adding(self, task.attempt, task.growing)
        self._adding.add(adding)
        return adding

    async def _shrink_pool(self) -> None:
        self._nconns_min = self._owner.fewest_idle
        await super()._shrink_pool()
        self._owner.fewest_idle = self._nconns_min

    # psycopg_pool's method is generic in the class of the connections.
    def _set_connection_expiry_date(self, conn: AsyncConnection[TupleRow]) -> None:  # type: ignore[override]
        super()._set_connection_expiry_date(conn)
        self._owner.sessions.note_opened(conn, conn._expire_at)  # noqa: SLF001

    async def _close_connection(self, conn: AsyncConnection[TupleRow]) -> None:
        self._owner.sessions.note_closing(conn)
        await super()._close_connection(conn)


class _Adding(AddConnection):
    """An attempt to open a connection, which the pool keeps track of until it has ended."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._begun = False
        self._rounds = 0

    async def _run(self, pool: AsyncConnectionPool[Any]) -> None:
        if self._begun:
            return
        self._begun = True
        try:
            await super()._run(pool)
        finally:
            pool._adding.discard(self)  # type: ignore[attr-defined]  # noqa: SLF001

    def queue_again(self, pool: AsyncDriverPool) -> None:
        """Queue the attempt again if it has not begun for long: the code that should have queued it was interrupted."""
        self._rounds += 1
        if self._rounds == OVERDUE and not self._begun:
            pool.run_again(self)


class _TryAgain(MaintenanceTask):
    """Makes a pool open a connection after a pause."""

    async def _run(self, pool: AsyncConnectionPool[Any]) -> None:
        await pool.try_again()  # type: ignore[attr-defined]
