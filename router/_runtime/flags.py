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
    """A flag that can be waited for with a timeout, as ``threading.Event``'s ``wait`` can."""

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
    """The same for threads."""

    def wait_for(self, timeout: float) -> bool:
        """Wait until the flag is set.

        Args:
            timeout: The most to wait, in seconds.

        Returns:
            Whether it was set in time.
        """
        return self.wait(timeout)


class AWakeup:
    """Wakes the one task that waits for it; what wakes it before counts for the next wait."""

    __slots__ = ("_is_set", "_waiting")

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Wake the task, or have it not wait the next time."""
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
    """The same for a thread: a lock that is released to wake it, which costs far less than an event."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = Guard()
        self._lock.acquire()

    def set(self) -> None:
        """Wake the thread, or have it not wait the next time."""
        try:  # noqa: SIM105  (each hand-over comes by here)
            self._lock.release()
        except RuntimeError:
            pass  # it is released already

    def wait_for(self, timeout: float) -> None:
        """Wait to be woken.

        Args:
            timeout: The most to wait, in seconds.
        """
        self._lock.acquire(timeout=max(0.0, min(timeout, threading.TIMEOUT_MAX)))


class AGuard:
    """Keeps a section to one at a time: for asyncio nothing is needed where nothing is awaited."""

    def __enter__(self) -> Self:
        """Enter the section."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave it."""


ALock, Lock = asyncio.Lock, threading.Lock  # a psycopg connection's
APoolLock, PoolLock = asyncio.Lock, threading.RLock  # that of a pool of psycopg_pool's


def acheck_locks() -> None:
    """Do nothing: tasks have no locks."""


def check_locks() -> None:
    """Fail where greenlets have taken the place of threads since this was imported.

    The locks of psycopg_pool and of this package would be real ones: a greenlet that waits for one stops all of them,
    and so the one that holds it while a thread is started, say.

    Raises:
        RuntimeError: It is so.
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
    """Tell whether nobody holds a lock: nobody takes it before something is awaited.

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
    # No asyncio.timeout(), which cancels the task that began to wait: ashielded() goes on in another.
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
"""Take a lock if nobody holds it; whether it is held now."""


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
