"""A function that is waited for only for a limited time, in a pair for tasks and for threads."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from router._runtime.workers import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from router._runtime.calls import AFunction, Function, T


SLICE = 0.1
"""The longest single wait for a limited function, in seconds. If a wait took longer, because the event loop was blocked
or another thread had the GIL, only this much of it counts against the timeout."""

LATE = 0.05
"""The last seconds of the timeout of a limited function, waited for on their own: in them the function can read what
arrived while this process did not run."""


class ALimited:
    """Runs one function at a time, and waits for it for a limited time, counting only time in which this process runs.

    A function that takes longer is abandoned, not cancelled: to cancel a query psycopg waits for the server, which may
    never answer.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._timeout = self._left = 0.0

    def restart(self) -> None:
        """Give the function that runs all of its time once more."""
        self._left = self._timeout - LATE

    async def run(self, function: AFunction[[], T], timeout: float, too_late: AFunction[[T], None]) -> T:
        """Run a function.

        Args:
            function: The function.
            timeout: The most to wait for it, including the wait for an abandoned function before it, in seconds.
            too_late: Called with the result if it comes after the timeout, or together with a cancellation.

        Returns:
            The function's result.

        Raises:
            TimeoutError: The function took longer.
        """
        self._timeout = timeout
        self.restart()
        if self._task is not None and not await self._ends(self._task):
            raise TimeoutError
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                value = await function()
            except Exception as error:  # noqa: BLE001  (it is raised where the function is waited for)
                if not outcome.done():
                    outcome.set_exception(error)
                return
            if outcome.done():
                await too_late(value)
            else:
                outcome.set_result(value)

        self._task = asyncio.create_task(work())
        try:
            if await self._ends(outcome):
                return outcome.result()
            raise TimeoutError
        except asyncio.CancelledError:
            if outcome.done() and not outcome.cancelled() and outcome.exception() is None:
                await too_late(outcome.result())
            raise
        finally:
            if not outcome.cancel() and not outcome.cancelled():
                outcome.exception()  # read here so that asyncio does not log it: nothing else waits for the outcome

    async def _ends(self, future: asyncio.Future[Any]) -> bool:
        while True:
            is_last, begun = self._left <= 0.0, time.monotonic()
            if (await asyncio.wait({future}, timeout=LATE if is_last else min(self._left, SLICE)))[0]:
                return True
            if is_last:
                return False
            self._left -= min(time.monotonic() - begun, SLICE)


class Limited:
    """Runs one function at a time in a thread, and waits for it for a limited time, as :class:`ALimited` does."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._timeout = self._left = 0.0

    def restart(self) -> None:
        """Give the function that runs all of its time once more."""
        self._left = self._timeout - LATE

    def run(self, function: Function[[], T], timeout: float, too_late: Function[[T], None]) -> T:
        """Run a function.

        Args:
            function: The function.
            timeout: The most to wait for it, including the wait for an abandoned function before it, in seconds.
            too_late: Called with the result if it comes after the timeout.

        Returns:
            The function's result.

        Raises:
            TimeoutError: The function took longer.
            RuntimeError: No thread can be started.
        """
        self._timeout = timeout
        self.restart()
        if self._thread is not None and not self._ends(partial(_has_ended, self._thread)):
            raise TimeoutError
        outcome: Future[T] = Future()

        def work() -> None:
            try:
                value = function()
            except Exception as error:  # noqa: BLE001  (it is raised where the function is waited for)
                with suppress(InvalidStateError):
                    outcome.set_exception(error)
                return
            try:
                outcome.set_result(value)
            except InvalidStateError:
                too_late(value)

        self._thread = spawn(work, f"{threading.current_thread().name} now")
        if self._ends(partial(_is_done, outcome)) or not outcome.cancel():  # it came at the last moment
            return outcome.result()
        raise TimeoutError

    def _ends(self, ended: Callable[[float], bool]) -> bool:
        while True:
            is_last, begun = self._left <= 0.0, time.monotonic()
            if ended(LATE if is_last else min(self._left, SLICE)):
                return True
            if is_last:
                return False
            self._left -= min(time.monotonic() - begun, SLICE)


def _has_ended(thread: threading.Thread, timeout: float) -> bool:
    thread.join(timeout)
    return not thread.is_alive()


def _is_done(future: Future[Any], timeout: float) -> bool:
    return bool(wait({future}, timeout).done)
