"""Flags, locks and pauses, in pairs: the async shell uses the first of each, the generated one the second."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from math import inf
from operator import methodcaller
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable


class AFlag(asyncio.Event):
    """A flag with a wait that takes a timeout, like that of ``threading.Event``."""

    async def wait_for(self, timeout: float) -> bool:
        """Wait until the flag is set.

        Args:
            timeout: The most to wait, in seconds.

        Returns:
            Whether it was set in time.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.wait()
        return self.is_set()


class Flag(threading.Event):
    """A flag with a wait that takes a timeout, for threads."""

    def wait_for(self, timeout: float) -> bool:
        """Wait until the flag is set.

        Args:
            timeout: The most to wait, in seconds.

        Returns:
            Whether it was set in time.
        """
        return self.wait(timeout)


class AWakeup:
    """Wakes the one task that waits for it; if none waits, the next wait returns at once."""

    __slots__ = ("_is_set", "_waiting")

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Wake the task, or let its next wait return at once."""
        self._is_set = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def wait_for(self, timeout: float) -> None:
        """Wait to be woken.

        Args:
            timeout: The most to wait, in seconds.
        """
        if not self._is_set and timeout > 0:
            loop = asyncio.get_running_loop()
            self._waiting = waiting = loop.create_future()
            timer = loop.call_later(timeout, _expire, waiting) if timeout != inf else None
            try:
                await waiting
            finally:
                self._waiting = None
                if timer is not None:
                    timer.cancel()
        self._is_set = False


def _expire(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


Guard = threading.Lock


class Wakeup:
    """Wakes the one thread that waits for it by releasing a lock, which costs far less than an event."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = Guard()
        self._lock.acquire()

    def set(self) -> None:
        """Wake the thread, or let its next wait return at once."""
        try:  # noqa: SIM105  (every hand-over of a connection calls this)
            self._lock.release()
        except RuntimeError:
            pass  # the lock is released already

    def wait_for(self, timeout: float) -> None:
        """Wait to be woken.

        Args:
            timeout: The most to wait, in seconds.
        """
        self._lock.acquire(timeout=min(timeout, threading.TIMEOUT_MAX) if timeout > 0 else 0.0)


class AGuard:
    """Guards a section: in asyncio no lock is needed for a section that awaits nothing."""

    def __enter__(self) -> Self:
        """Enter the section."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave the section."""


ALock, Lock = asyncio.Lock, threading.Lock  # the type of the lock of a psycopg connection
APoolLock, PoolLock = asyncio.Lock, threading.RLock  # the type of the lock of a pool of psycopg_pool


def acheck_locks() -> None:
    """Do nothing: greenlets do not replace tasks."""


def check_locks() -> None:
    """Fail if greenlets have replaced threads since this module was imported.

    The locks of psycopg_pool and of this package would be real thread locks then. A greenlet that waits for one stops
    all greenlets of its thread, and with them the one that holds the lock.

    Raises:
        RuntimeError: gevent or eventlet has patched ``threading`` since.
    """
    if threading.Lock is not Guard and (by := threading.Lock.__module__.partition(".")[0]) in ("gevent", "eventlet"):
        raise RuntimeError(
            f"{by} has patched threading after router and psycopg were imported, and greenlets would wait for each "
            "other for ever: patch first, before anything else is imported (with gunicorn --preload, at the top of its "
            "configuration file), or import the application in the workers only"
        )


asleep = asyncio.sleep
sleep = time.sleep


def atry_lock(lock: asyncio.Lock) -> bool:
    """Tell whether a lock is free; it is not taken, since no other task can take it before something is awaited.

    Args:
        lock: The lock.

    Returns:
        Whether it is free.
    """
    return not lock.locked()


async def atake_lock(lock: asyncio.Lock, timeout: float) -> bool:
    """Take a lock.

    Args:
        lock: The lock.
        timeout: The most to wait, in seconds.

    Returns:
        Whether it was free in time, and is held now.
    """
    # Not asyncio.timeout(): it would cancel the task that began to wait, but ashielded() continues in another task.
    taking = asyncio.ensure_future(lock.acquire())
    try:
        await asyncio.wait({taking}, timeout=timeout)
    except BaseException:
        if not taking.cancel():
            lock.release()
        raise
    return not taking.cancel()


def afree_lock(lock: asyncio.Lock) -> None:
    """Release a lock after :func:`atry_lock`, which does not take it, or :func:`atake_lock`, which does.

    Args:
        lock: The lock.
    """
    if lock.locked():
        lock.release()


try_lock: Callable[[threading.Lock], bool] = methodcaller("acquire", blocking=False)
"""Take a lock if it is free; returns whether it was."""


def take_lock(lock: threading.Lock, timeout: float) -> bool:
    """Take a lock.

    Args:
        lock: The lock.
        timeout: The most to wait, in seconds.

    Returns:
        Whether it was free in time, and is held now.
    """
    return lock.acquire(timeout=timeout)


free_lock: Callable[[threading.Lock], None] = methodcaller("release")
"""Release a lock."""
