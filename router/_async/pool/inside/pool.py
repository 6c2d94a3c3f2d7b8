"""The inside of psycopg_pool's pools: it keeps what is idle, opens connections, and closes those that are too many.

Nobody outside of the router's own pool has a reference to it: psycopg_pool's public methods lend, resize and drain in
ways that the router's bookkeeping does not know of.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from router._async.pool.inside.imports import AddConnection, MaintenanceTask
from router._runtime.flags import APoolLock

if TYPE_CHECKING:
    from collections import deque

    from router.core.policies import PoolPolicy

    class AsyncPoolOwner(Protocol):
        """The router's own pool, as psycopg_pool's pool asks it.

        Attributes:
            fewest_idle: How few were idle since the pool was last to shrink; roughly will do.
        """

        fewest_idle: int

        async def open_connection(self) -> AsyncConnection[TupleRow]:
            """Open one more connection."""

        def may_try(self) -> bool:
            """Tell whether another attempt to connect is due."""

        async def try_later(self) -> None:
            """Try again to open a connection, when it is time and if a request waits then."""

        async def try_again(self) -> None:
            """Open one more connection if a request waits for it."""

        def note_opened(self, connection: AsyncConnection[TupleRow], expires_at: float) -> None:
            """Note until when a connection may be lent, on the monotonic clock."""

        def note_closing(self, connection: AsyncConnection[TupleRow]) -> None:
            """Note that a connection is closed that is not counted any more."""


OVERDUE = 2
"""In so many rounds of housekeeping the worker begins with what it is told to do, if it was told at all."""


class _Name(str):
    """The name of a pool of the router's, as psycopg_pool logs it."""

    __slots__ = ()


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of psycopg_pool says what the router does not say: its warnings about these pools do not."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    return record.levelno != logging.WARNING or not any(
        isinstance(argument, _Name) or "_router" in getattr(argument, "__dict__", ()) for argument in arguments
    )


logging.getLogger("psycopg.pool").addFilter(_is_news)


class _Opened(AsyncConnection[TupleRow]):
    """What the pool is told to connect with; what it gets is a connection opened by the router."""

    @classmethod  # with less than psycopg's: the pool gives it what it is told to
    async def connect(cls, _: str = "", *, owner: AsyncPoolOwner) -> AsyncConnection[TupleRow]:  # type: ignore[override]
        return await owner.open_connection()


class AsyncDriverPool(AsyncConnectionPool[AsyncConnection[TupleRow]]):
    """psycopg_pool's pool, with a name for each thing that is done with its inside.

    Attributes:
        lock: Guards all of it; what is taken from ``kept`` needs none, for ``popleft()`` is atomic.
        kept: The idle connections, the one that has been idle longest first.
    """

    def __init__(self, owner: AsyncPoolOwner, name: str, policy: PoolPolicy, waiting: deque[Any]) -> None:
        """Make the pool; nothing is opened yet.

        Args:
            owner: Whose it is.
            name: How it is called.
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
            reconnect_timeout=0.0,  # psycopg_pool's own retries last minutes; here the monitor looks for a lost server
            reconnect_failed=lambda _: owner.try_later(),
            num_workers=1,
        )
        self._owner = owner
        # An async pool has none before open(), and what happens to its server meanwhile does not wait for that.
        self.lock = self._lock = APoolLock()
        self._waiting = waiting
        self.kept = self._pool
        self._adding: set[_Adding] = set()  # attempts to open one, from when they are decided on until they have ended

    @property
    def size(self) -> int:
        """How many connections it has, borrowed ones and those being opened included."""
        return self._nconns

    @property
    def is_growing(self) -> bool:
        """Whether it is opening one more."""
        return self._growing

    @property
    def may_grow(self) -> bool:
        """Whether it may be told to open one more."""
        return self._closed or not (self._growing or self._nconns >= self._max_size)

    @property
    def adding(self) -> int:
        """How many connections are being opened, or are to be."""
        return len(self._adding)

    # All these under the lock

    def grow(self) -> None:
        """Open one more connection, unless it has all that it may have or is opening one."""
        self._maybe_grow_pool()

    def _maybe_grow_pool(self) -> None:
        if self._owner.may_try():
            super()._maybe_grow_pool()

    def add_one(self) -> None:
        """Open one more connection, whether it is opening one or not."""
        self._nconns += 1
        self.replace_one()

    def replace_one(self) -> None:
        """Open a connection in the place of one that is no more."""
        self.run_task(AddConnection(self))

    def count_out(self) -> None:
        """Have one connection less."""
        self._nconns -= 1

    def recount(self, opened: int) -> None:
        """Put right what an exception may have interrupted.

        Args:
            opened: How many connections have been opened and not been counted out.
        """
        self._nconns = min(self._nconns, opened + len(self._adding))
        if self._growing and not any(adding.growing for adding in self._adding):
            self._growing = False
        for adding in list(self._adding):
            adding.queue_again(self)

    async def undo_open(self) -> None:
        """Be as before ``open()``, which failed half-way: without a worker, no request would ever be served."""
        if not self._closed:
            await self._signal_stop_worker()
            self._closed, self._opened, self._growing = True, False, False  # what is counted is opened next time
            self._adding.clear()

    # The end of these

    def abandon(self) -> object:
        """Leave it all to the parent process, after a fork.

        Returns:
            What has to be kept: what is dropped would be closed.
        """
        inherited, self._pool = self._pool, self._pool.__class__()
        self.kept = self._pool
        self._closed = True  # its threads are not here: __del__ must not look for them
        return inherited

    async def try_again_in(self, delay: float) -> None:
        """Have the owner try again to open a connection.

        Args:
            delay: In how many seconds.
        """
        await self.schedule_task(_TryAgain(self), delay)

    def run_task(self, task: MaintenanceTask) -> None:
        """Have the worker do something.

        Args:
            task: What.
        """
        super().run_task(self._kept_in_mind(task))

    async def schedule_task(self, task: MaintenanceTask, delay: float) -> None:
        """Have the worker do something later.

        Args:
            task: What.
            delay: In how many seconds.
        """
        await super().schedule_task(self._kept_in_mind(task), delay)

    def _kept_in_mind(self, task: MaintenanceTask) -> MaintenanceTask:
        if type(task) is AddConnection:
            task = _Adding(self, task.attempt, task.growing)
        if isinstance(task, _Adding):
            self._adding.add(task)
        return task

    async def _shrink_pool(self) -> None:
        self._nconns_min = self._owner.fewest_idle
        await super()._shrink_pool()
        self._owner.fewest_idle = self._nconns_min

    # psycopg_pool's is for whatever class of connections it is told to open.
    def _set_connection_expiry_date(self, conn: AsyncConnection[TupleRow]) -> None:  # type: ignore[override]
        super()._set_connection_expiry_date(conn)
        self._owner.note_opened(conn, conn._expire_at)  # noqa: SLF001

    async def _close_connection(self, conn: AsyncConnection[TupleRow]) -> None:
        self._owner.note_closing(conn)
        await super()._close_connection(conn)


class _Adding(AddConnection):
    """An attempt to open a connection, which a pool knows of until it has ended."""

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
        """Get in the worker's queue again if nothing has begun for long: whatever was to do it was interrupted."""
        self._rounds += 1
        if self._rounds == OVERDUE and not self._begun:
            pool.run_task(self)


class _TryAgain(MaintenanceTask):
    """Has a pool open a connection after a pause."""

    async def _run(self, pool: AsyncConnectionPool[Any]) -> None:
        await pool._owner.try_again()  # type: ignore[attr-defined]  # noqa: SLF001
