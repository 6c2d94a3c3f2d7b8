"""Tasks and threads, in pairs: background workers, concurrent calls, and the event loop that a router belongs to."""

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


arunning_loop = asyncio.get_running_loop  # in the generated shell the call becomes None


def abind_loop(loop: ALoop) -> ALoop:
    """Bind a router that has not been used to the running event loop.

    Args:
        loop: The event loop that the router belongs to already; ``None`` if it has not been used.

    Returns:
        The running event loop.

    Raises:
        RuntimeError: The router belongs to another event loop.
    """
    if loop is None:
        return arunning_loop()
    why = "which is closed" if loop.is_closed() else "and this is another one"
    raise RuntimeError(
        f"an AsyncRouter belongs to the event loop in which it is first used, {why}: "
        "make one in each asyncio.run(), or use router.aio, which keeps one for each loop"
    )


def aloop_closed(loop: ALoop) -> bool:
    """Tell whether the event loop of a router is closed, so that nothing of the router can run any more.

    Args:
        loop: The event loop that the router belongs to; ``None`` for none.

    Returns:
        Whether it is closed.
    """
    return loop is not None and loop.is_closed()


def loop_closed(loop: Loop) -> bool:
    """Tell that threads of a router can run.

    Args:
        loop: ``None``.

    Returns:
        ``False``: threads run as long as the process.
    """
    return loop is not None


def bind_loop(loop: Loop) -> Loop:
    """Do nothing: any thread may use a router.

    Args:
        loop: ``None``.

    Returns:
        ``None``.
    """
    return loop


def aspawn(function: Callable[P, Coroutine[Any, Any, None]], name: str, *args: P.args, **kwargs: P.kwargs) -> AWorker:
    """Run a function in a task of its own, without the caller's context variables.

    Args:
        function: The function; it must end by itself when told to.
        name: The task's name.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Returns:
        The task.
    """
    return asyncio.create_task(function(*args, **kwargs), name=name, context=Context())


def spawn(function: Callable[P, None], name: str, *args: P.args, **kwargs: P.kwargs) -> Worker:
    """Run a function in a daemon thread, without the caller's context variables.

    Args:
        function: The function; it must end by itself when told to.
        name: The thread's name.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Returns:
        The thread.
    """
    thread = threading.Thread(target=Context().run, name=name, args=(function, *args), kwargs=kwargs, daemon=True)
    thread.start()
    return thread


@contextmanager
def untraced() -> Generator[None]:
    """Stop OpenTelemetry, if the application uses it, from tracing a block: otherwise each probe would be a trace.

    Yields:
        Nothing.
    """
    context = sys.modules.get("opentelemetry.context")
    if context is None or not hasattr(context, "detach"):  # not imported, or not completely yet
        yield
        return
    # The keys that `opentelemetry.instrumentation.utils` sets, today's and the former one; it may not be installed.
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
    """Wait for a task of :func:`aspawn` to end, and cancel it after the timeout.

    Args:
        task: The task.
        timeout: The most to wait, in seconds.
    """
    if not task.done() and not (await asyncio.wait({task}, timeout=timeout))[0]:
        task.cancel()
        await asyncio.wait({task})


async def await_quietly(function: Callable[P, Coroutine[Any, Any, None]], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a function that waits for tasks of its own; if those are cancelled, the call ends early without an error.

    Args:
        function: The function.
        *args: Its arguments.
        **kwargs: Its keyword arguments.
    """
    task = asyncio.ensure_future(function(*args, **kwargs))
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


def wait_quietly(function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a function.

    Args:
        function: The function.
        *args: Its arguments.
        **kwargs: Its keyword arguments.
    """
    function(*args, **kwargs)


def join(thread: Worker, timeout: float) -> None:
    """Wait for a thread of :func:`spawn` to end.

    Args:
        thread: The thread.
        timeout: The most to wait, in seconds.
    """
    if thread is not threading.current_thread():  # an observer, called in this thread, may close the router
        thread.join(timeout)


async def aconcurrently(
    function: Callable[[], Coroutine[Any, Any, None]], count: int, stop: Callable[[], None]
) -> None:
    """Call a function several times at once, in tasks with the context variables of the calling task.

    If a call fails, or the calling task is cancelled, all calls are cancelled.

    Args:
        function: The function.
        count: The number of calls.
        stop: Called when the calls have to end.
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
    """Call a function several times at once, in threads with the context variables of the calling thread.

    If a call fails, or the calling thread is interrupted, all calls are told to end and waited for.

    Args:
        function: The function; it must end by itself when told to.
        count: The number of calls.
        stop: Called when the calls have to end.
    """
    failed: list[BaseException] = []
    begun: list[threading.Thread] = []
    over = threading.Event()

    def work() -> None:
        begun.append(threading.current_thread())
        if over.is_set():
            return
        try:
            function()
        except BaseException as error:  # noqa: BLE001  (it is raised to the caller)
            failed.append(error)
            stop()

    # Not an executor: once the main thread has ended, no executor accepts work, and its module cannot be imported.
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
        # An interrupted start() does not tell whether its thread runs, or will. But a thread notes that it has begun
        # before it looks whether the call is over: so either it is joined here, or it calls nothing.
        over.set()
        for thread in begun:
            thread.join()
    if failed:
        raise failed[0]
