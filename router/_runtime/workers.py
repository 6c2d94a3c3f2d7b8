"""Tasks and threads, in pairs: what runs in the background, several times at once, or in one event loop only."""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import contextmanager
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from router._runtime.calls import P

    ALoop: TypeAlias = asyncio.AbstractEventLoop | None
    Loop: TypeAlias = None
    AWorker: TypeAlias = asyncio.Task[None]
    Worker: TypeAlias = threading.Thread


arunning_loop = asyncio.get_running_loop  # for threads, the call becomes None


def abind_loop(loop: ALoop) -> ALoop:
    """Take the running event loop for the one that a router belongs to.

    Args:
        loop: The one that it belongs to already; ``None`` if it has not been used.

    Returns:
        The running one.

    Raises:
        RuntimeError: It belongs to another one.
    """
    if loop is None:
        return arunning_loop()
    why = "which is closed" if loop.is_closed() else "and this is another one"
    raise RuntimeError(
        f"an AsyncRouter belongs to the event loop in which it is first used, {why}: "
        "make one in each asyncio.run(), or use router.aio, which keeps one for each loop"
    )


def aloop_closed(loop: ALoop) -> bool:
    """Tell whether nothing of a router can run any more.

    Args:
        loop: The event loop that it belongs to.

    Returns:
        Whether that is closed.
    """
    return loop is not None and loop.is_closed()


def loop_closed(loop: Loop) -> bool:
    """Tell whether nothing of a router can run any more.

    Args:
        loop: ``None``.

    Returns:
        ``False``: threads run as long as the process.
    """
    return loop is not None


def bind_loop(loop: Loop) -> Loop:
    """Let any thread use a router.

    Args:
        loop: ``None``.

    Returns:
        The same.
    """
    return loop


def aspawn(function: Callable[P, Coroutine[Any, Any, None]], name: str, *args: P.args, **kwargs: P.kwargs) -> AWorker:
    """Run a function in the background, where no context variable of the caller's is set.

    Args:
        function: What to run; it must end by itself when told to.
        name: The task's name.
        *args: What to call it with.
        **kwargs: What to call it with.

    Returns:
        The task.
    """
    return asyncio.create_task(function(*args, **kwargs), name=name, context=Context())


def spawn(function: Callable[P, None], name: str, *args: P.args, **kwargs: P.kwargs) -> Worker:
    """Run a function in a daemon thread, where no context variable of the caller's is set.

    Args:
        function: What to run; it must end by itself when told to.
        name: The thread's name.
        *args: What to call it with.
        **kwargs: What to call it with.

    Returns:
        The thread.
    """
    thread = threading.Thread(target=Context().run, name=name, args=(function, *args), kwargs=kwargs, daemon=True)
    thread.start()
    return thread


@contextmanager
def untraced() -> Generator[None]:
    """Have OpenTelemetry, where the application uses it, record nothing of a block: each probe would be a trace.

    Yields:
        Nothing.
    """
    context = sys.modules.get("opentelemetry.context")
    if context is None or not hasattr(context, "detach"):  # it may also be in the middle of being imported
        yield
        return
    # What `opentelemetry.instrumentation.utils` sets, which may not be there: the key of today, and that of before.
    keys = {"suppress_instrumentation", getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")}
    tokens = [context.attach(context.set_value(key, value=True)) for key in keys]
    try:
        yield
    finally:
        for token in reversed(tokens):
            context.detach(token)


def acan_spawn() -> bool:
    """Tell whether there is an event loop here, for :func:`aspawn`."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def can_spawn() -> bool:
    """Tell that :func:`spawn` works anywhere."""
    return True


async def ajoin(task: AWorker, timeout: float) -> None:
    """Wait for what :func:`aspawn` started to end; cancel it after the timeout.

    Args:
        task: The task.
        timeout: The most to wait, in seconds.
    """
    if not task.done() and not (await asyncio.wait({task}, timeout=timeout))[0]:
        task.cancel()
        await asyncio.wait({task})


async def await_quietly(function: Callable[P, Coroutine[Any, Any, None]], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a function that waits for tasks of its own; if those were cancelled, it ends early, and that is no error.

    Args:
        function: What to call.
        *args: What to call it with.
        **kwargs: What to call it with.
    """
    task = asyncio.ensure_future(function(*args, **kwargs))
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


def wait_quietly(function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a function.

    Args:
        function: What to call.
        *args: What to call it with.
        **kwargs: What to call it with.
    """
    function(*args, **kwargs)


def join(thread: Worker, timeout: float) -> None:
    """Wait for what :func:`spawn` started to end.

    Args:
        thread: The thread.
        timeout: The most to wait, in seconds.
    """
    if thread is not threading.current_thread():  # an observer may close the router
        thread.join(timeout)


async def aconcurrently(
    function: Callable[[], Coroutine[Any, Any, None]], count: int, stop: Callable[[], None]
) -> None:
    """Call a function several times at once, in tasks that have the context variables of this one.

    Should one fail, or this one be cancelled, all are cancelled.

    Args:
        function: What to call.
        count: How often.
        stop: Called when they are to end.
    """
    tasks = [asyncio.create_task(function()) for _ in range(count)]
    try:
        await asyncio.gather(*tasks)
    finally:
        stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def concurrently(function: Callable[[], None], count: int, stop: Callable[[], None]) -> None:
    """Call a function several times at once, in threads that have the context variables of this one.

    Should one fail, or this one be interrupted, all are told to end, and waited for.

    Args:
        function: What to call; it must end by itself when told to.
        count: How often.
        stop: Called when they are to end.
    """
    failed: list[BaseException] = []

    def work() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001  (it is raised to the caller)
            failed.append(error)
            stop()

    # No executor: once the main thread has ended, none takes work, nor can the module be imported.
    threads = [
        threading.Thread(target=copy_context().run, args=[work], name=f"router at once {number}", daemon=False)
        for number in range(count)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        stop()
        raise
    finally:
        for thread in threads:
            if thread.ident is not None:  # it was started
                thread.join()
    if failed:
        raise failed[0]
