"""The pairs where asyncio and threads differ: the async shell uses the first of each, the generated one the second."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from contextvars import Context, copy_context
from functools import wraps
from inspect import isawaitable
from types import coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeAlias, TypeVar
from weakref import WeakSet, ref

import psycopg

from router.errors import RouterClosed

T = TypeVar("T")
P = ParamSpec("P")

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
    from types import TracebackType

    from psycopg import AsyncConnection, Connection
    from psycopg.rows import TupleRow

    from router.topology import Node

    AFunction: TypeAlias = Callable[P, Awaitable[T]]
    Function: TypeAlias = Callable[P, T]
    APassword: TypeAlias = Callable[[Node], str | Awaitable[str]]
    Password: TypeAlias = Callable[[Node], str]
    AConfigure: TypeAlias = Callable[[AsyncConnection[TupleRow]], Awaitable[None] | None]
    Configure: TypeAlias = Callable[[Connection[TupleRow]], None]

    Said: TypeAlias = Mapping[str, Any] | None
    ASource: TypeAlias = Callable[[str], Said | Awaitable[Said]] | "ALooksUp"
    Source: TypeAlias = Callable[[str], Said] | "LooksUp"

    ALoop: TypeAlias = asyncio.AbstractEventLoop | None
    Loop: TypeAlias = None

    AWorker: TypeAlias = asyncio.Task[None]
    Worker: TypeAlias = threading.Thread


logger = logging.getLogger("router")


class Isolated:
    """Keeps what one step of many raises from the others: an exception is logged, and goes no further."""

    __slots__ = ("_args", "_what")

    def __init__(self, what: str, *args: object) -> None:
        """Prepare it.

        Args:
            what: What could not be done, for the log.
            *args: What goes into it.
        """
        self._what = what
        self._args = args

    def __enter__(self) -> None:
        """Begin the step."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Log an exception."""
        if not isinstance(error, Exception):  # a cancellation, say
            return False
        with suppress(Exception):  # a filter of the application's may fail, too
            logger.error(self._what, *self._args, exc_info=error)
        return True


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


class AGuard:
    """Keeps a section to one at a time: for asyncio nothing is needed where nothing is awaited."""

    def __enter__(self) -> Self:
        """Enter the section."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave it."""


Guard = threading.Lock

asleep = asyncio.sleep
sleep = time.sleep

arunning_loop = asyncio.get_running_loop  # for threads, the call becomes None


def aclaimed(loop: ALoop) -> ALoop:
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
    gone = "which is closed" if loop.is_closed() else "and this is another one"
    raise RuntimeError(
        f"an AsyncRouter belongs to the event loop in which it is first used, {gone}: "
        "make one in each asyncio.run(), or use router.aio, which keeps one for each loop"
    )


def agone(loop: ALoop) -> bool:
    """Tell whether nothing of a router can run any more.

    Args:
        loop: The event loop that it belongs to.

    Returns:
        Whether that is closed.
    """
    return loop is not None and loop.is_closed()


def gone(loop: Loop) -> bool:
    """Tell whether nothing of a router can run any more.

    Args:
        loop: ``None``.

    Returns:
        Whether it is not so: threads run as long as the process.
    """
    return loop is not None


def claimed(loop: Loop) -> Loop:
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


async def asettled(function: Callable[P, Coroutine[Any, Any, None]], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a function that waits for tasks of its own; if somebody has cancelled those, it ends early and says nothing.

    Args:
        function: What to call.
        *args: What to call it with.
        **kwargs: What to call it with.
    """
    task = asyncio.ensure_future(function(*args, **kwargs))
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


def settled(function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
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


LATE = 0.05
"""Seconds of its time that a limited function gets after the rest of it, should the event loop have been blocked."""


class ALimited:
    """Runs one function at a time, and waits for it for a limited time only.

    What takes longer is left to itself: to cancel a query, psycopg waits for the server, which may never answer.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    async def run(self, function: AFunction[[], T], timeout: float, too_late: AFunction[[T], None]) -> T:
        """Run a function.

        Args:
            function: What to run.
            timeout: The most to wait for it, and before that for one that was left to itself, in seconds.
            too_late: Takes what the function returned, should that come after the timeout.

        Returns:
            What it returned.

        Raises:
            TimeoutError: It took longer.
        """
        deadline = time.monotonic() + timeout
        if self._task is not None and not (await asyncio.wait({self._task}, timeout=timeout))[0]:
            raise TimeoutError
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                value = await function()
            except Exception as error:  # noqa: BLE001  (it is raised to whoever waits)
                if not outcome.done():
                    outcome.set_exception(error)
                return
            if outcome.done():
                await too_late(value)
            else:
                outcome.set_result(value)

        self._task = asyncio.create_task(work())
        try:
            # The second time is for reading what came while the loop was blocked.
            for patience in (deadline - time.monotonic() - LATE, LATE):
                if (await asyncio.wait({outcome}, timeout=max(patience, 0.0)))[0]:
                    return outcome.result()
            raise TimeoutError
        finally:
            if not outcome.cancel() and not outcome.cancelled():
                outcome.exception()  # nobody waits for it any more: it counts as seen


class Limited:
    """The same for threads."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def run(self, function: Function[[], T], timeout: float, too_late: Function[[T], None]) -> T:
        """Run a function.

        Args:
            function: What to run.
            timeout: The most to wait for it, and before that for one that was left to itself, in seconds.
            too_late: Takes what the function returned, should that come after the timeout.

        Returns:
            What it returned.

        Raises:
            TimeoutError: It took longer.
        """
        deadline = time.monotonic() + timeout
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                raise TimeoutError
        outcome: Future[T] = Future()

        def work() -> None:
            try:
                value = function()
            except Exception as error:  # noqa: BLE001  (it is raised to whoever waits)
                with suppress(InvalidStateError):
                    outcome.set_exception(error)
                return
            try:
                outcome.set_result(value)
            except InvalidStateError:
                too_late(value)

        self._thread = spawn(work, f"{threading.current_thread().name} now")
        try:
            return outcome.result(max(deadline - time.monotonic(), 0.0))
        except TimeoutError:
            if outcome.cancel():
                raise
            return outcome.result()  # it came at the last moment


class ALooksUp(Protocol):
    """An object that says where a tenant lives."""

    def lookup(self, tenant: str, /) -> Said | Awaitable[Said]:
        """Say it; ``None`` if there is no such tenant."""


class LooksUp(Protocol):
    """The same for threads."""

    def lookup(self, tenant: str, /) -> Said:
        """Say it; ``None`` if there is no such tenant."""


async def acall(function: Callable[..., T | Awaitable[T]], *args: object) -> T:
    """Call a user's function, plain or async.

    Args:
        function: The function.
        *args: What to call it with.

    Returns:
        What it returned, awaited if need be.
    """
    result = function(*args)
    if isawaitable(result):
        return await result
    return result


def call(function: Callable[..., T], *args: object) -> T:
    """Call a user's function.

    Args:
        function: The function.
        *args: What to call it with.

    Returns:
        What it returned.
    """
    return function(*args)


async def aconsult(function: Callable[..., T | Awaitable[T]], *args: object) -> T:
    """Call a user's function, plain or async, from a task of the router's.

    If what the function waits for has been cancelled, that is an error like others: it must not end the router's task.

    Args:
        function: The function.
        *args: What to call it with.

    Returns:
        What it returned, awaited if need be.
    """
    try:
        return await acall(function, *args)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("what the function waited for was cancelled") from error


consult = call


@coroutine
def _resume(work: Coroutine[Any, Any, None], awaited: object) -> Generator[object, Any, None]:
    """Go on with a coroutine that has already yielded ``awaited``."""
    yield awaited
    yield from work.__await__()


def auncancelled(function: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, Coroutine[Any, Any, None]]:
    """Make a function run to its end even if its caller is cancelled; the cancellation is raised afterwards.

    The usual case, where nothing has to be waited for, costs one ``send``; only what suspends gets a task of its own.

    Args:
        function: What has to be finished.

    Returns:
        The function to call instead.
    """

    @wraps(function)
    async def finish(*args: P.args, **kwargs: P.kwargs) -> None:
        work = function(*args, **kwargs)
        try:
            awaited = work.send(None)
        except StopIteration:
            return
        task = asyncio.ensure_future(_finish(_resume(work, awaited)))
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                if task.cancelled():
                    raise
                cancelled = error
        task.result()
        if cancelled is not None:
            raise cancelled

    return finish


async def _finish(work: Awaitable[None]) -> None:
    await work


def uncancelled(function: Callable[P, None]) -> Callable[P, None]:
    """Leave a function as it is: a thread is not cancelled.

    Args:
        function: What has to be finished.

    Returns:
        The same function.
    """
    return function


class Loosely:
    """Calls what its owner keeps, and does not keep it: what users give a router often leads back to the router.

    The threads and tasks of a router are kept by Python itself, and so is all that they lead to.
    """

    __slots__ = ("_given", "_quiet")

    def __init__(self, function: Callable[..., Any], keep: list[object], *, quiet: bool = False) -> None:
        """Prepare the call.

        Args:
            function: What to call.
            keep: The owner's list of what is kept.
            quiet: Whether nothing is called, nor raised, once the owner is gone.
        """
        given = _Kept(function)
        keep.append(given)
        self._given = ref(given)
        self._quiet = quiet

    def __call__(self, *args: object) -> Any:
        """Call it.

        Args:
            *args: What with.

        Returns:
            What it returned.

        Raises:
            RouterClosed: Its owner is gone.
        """
        if (given := self._given()) is not None:
            return given.function(*args)
        if not self._quiet:
            raise RouterClosed("the router was dropped")
        return None


class _Kept:
    """What a weak reference can lead to, whatever kind of callable it is."""

    __slots__ = ("__weakref__", "function")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


_ASKS_FOR_TLS = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")  # as PostgreSQL's protocol has it


async def aknock(host: str, port: int, timeout: float) -> bool:
    """See whether a PostgreSQL server, or a pooler, reacts at all, without a session: it is asked whether it takes TLS.

    Args:
        host: Its host, or the directory of its socket.
        port: Its port.
        timeout: The most to wait, in seconds.

    Returns:
        Whether it does; true as well if that cannot be found out.
    """
    try:
        async with asyncio.timeout(timeout):
            if host.startswith("/"):
                reader, writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(_ASKS_FOR_TLS)
                await reader.read(1)
            finally:
                writer.close()
    except (TimeoutError, ConnectionError):
        return False
    except OSError:
        return True
    return True


def knock(host: str, port: int, timeout: float) -> bool:
    """See whether a PostgreSQL server, or a pooler, reacts at all, without a session: it is asked whether it takes TLS.

    Args:
        host: Its host, or the directory of its socket.
        port: Its port.
        timeout: The most to wait for each step, in seconds.

    Returns:
        Whether it does; true as well if that cannot be found out.
    """
    try:
        if host.startswith("/"):
            door = socket.socket(socket.AF_UNIX)
            door.settimeout(timeout)
            with door:
                door.connect(f"{host}/.s.PGSQL.{port}")
                door.sendall(_ASKS_FOR_TLS)
                door.recv(1)
        else:
            with socket.create_connection((host, port), timeout) as door:
                door.sendall(_ASKS_FOR_TLS)
                door.recv(1)
    except (TimeoutError, ConnectionError):
        return False
    except OSError:
        return True
    return True


def cut(connection: AsyncConnection[Any] | Connection[Any]) -> None:
    """Shut a connection's socket down, whoever is using it: their query fails with a lost connection.

    Closing it here instead would free memory that libpq is using in another thread or a suspended task.

    Args:
        connection: The connection to cut.
    """
    with (
        suppress(OSError, psycopg.OperationalError),  # it is closed already
        socket.socket(fileno=os.dup(connection.pgconn.socket)) as duplicate,
    ):
        duplicate.shutdown(socket.SHUT_RDWR)


class _Forkable(Protocol):
    def abandon(self) -> None: ...


_inherited_by_fork: WeakSet[_Forkable] = WeakSet()


def survive_fork(router: _Forkable) -> None:
    """Have a router drop, in the child of a ``fork()``, what belongs to the parent.

    Args:
        router: Its ``abandon()`` is called in the child, before anything else runs there.
    """
    _inherited_by_fork.add(router)


def _after_fork() -> None:
    for router in list(_inherited_by_fork):
        with Isolated("could not start anew in the child of a fork"):
            router.abandon()


os.register_at_fork(after_in_child=_after_fork)
