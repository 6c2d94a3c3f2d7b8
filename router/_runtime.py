"""The pairs where asyncio and threads differ: the async shell uses the first of each, the generated one the second."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import sys
import threading
import time
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from functools import partial, wraps
from inspect import isawaitable
from types import coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeAlias, TypeVar
from weakref import WeakSet, ref

import psycopg

from router.core.errors import RouterClosed

T = TypeVar("T")
P = ParamSpec("P")

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
    from types import TracebackType

    from psycopg import AsyncConnection, Connection
    from psycopg.rows import TupleRow

    from router.core.topology import Node

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
        ``False``: threads run as long as the process.
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


async def ais_free(lock: asyncio.Lock, timeout: float) -> bool:
    """Wait until nobody holds a lock.

    Args:
        lock: The lock.
        timeout: The most to wait, in seconds.

    Returns:
        Whether it was free in time.
    """
    # No asyncio.timeout(), which cancels the task that began to wait: auncancelled() goes on in another.
    taking = asyncio.ensure_future(lock.acquire())
    try:
        await asyncio.wait({taking}, timeout=timeout)
    finally:
        if not (late := taking.cancel()):
            lock.release()
    return not late


def is_free(lock: threading.Lock, timeout: float) -> bool:
    """Wait until nobody holds a lock.

    Args:
        lock: The lock.
        timeout: The most to wait, in seconds.

    Returns:
        Whether it was free in time.
    """
    if not lock.acquire(timeout=timeout):
        return False
    lock.release()
    return True


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
    """Have OpenTelemetry, where the application uses it, record nothing of a block: each look would be a trace.

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


SLICE = 0.1
"""Seconds for which a limited function is waited for at once: of a wait that took longer, because the event loop was
blocked or another thread had the GIL, only so much counts."""

LATE = 0.05
"""Seconds of its time that a limited function gets after the rest of it, for reading what came while nothing ran."""


class ALimited:
    """Runs one function at a time, and waits for it for a limited time only, in which this process runs.

    What takes longer is left to itself: to cancel a query, psycopg waits for the server, which may never answer.
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
            function: What to run.
            timeout: The most to wait for it, and before that for one that was left to itself, in seconds.
            too_late: Takes what the function returned, should that come after the timeout.

        Returns:
            What it returned.

        Raises:
            TimeoutError: It took longer.
        """
        self._timeout = timeout
        self.restart()
        if self._task is not None and not await self._ends(self._task):
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
            if await self._ends(outcome):
                return outcome.result()
            raise TimeoutError
        finally:
            if not outcome.cancel() and not outcome.cancelled():
                outcome.exception()  # nobody waits for it any more: it counts as seen

    async def _ends(self, future: asyncio.Future[Any]) -> bool:
        while True:
            is_last, begun = self._left <= 0.0, time.monotonic()
            if (await asyncio.wait({future}, timeout=LATE if is_last else min(self._left, SLICE)))[0]:
                return True
            if is_last:
                return False
            self._left -= min(time.monotonic() - begun, SLICE)


class Limited:
    """The same for threads."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._timeout = self._left = 0.0

    def restart(self) -> None:
        """Give the function that runs all of its time once more."""
        self._left = self._timeout - LATE

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
            except Exception as error:  # noqa: BLE001  (it is raised to whoever waits)
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


KNOWN = 0.25
"""Seconds that a host name has to be resolved, if its addresses are known from before: after that, those are used."""


class Names:
    """The addresses of hosts, asked for in threads of its own: the event loop's executor may be full for long.

    What was known last is used when a name cannot be resolved for a moment: that says nothing of the server.
    """

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._guard = threading.Lock()  # guards both
        self._known: dict[str, list[str]] = {}
        self._asked: dict[str, Future[list[str]]] = {}

    async def aaddresses(self, host: str, timeout: float) -> list[str]:
        """Find the addresses of a host.

        Args:
            host: Its name.
            timeout: The most to wait, in seconds.

        Returns:
            Its addresses, in the order in which to try them.

        Raises:
            OSError: It cannot be resolved, or not in time.
            RuntimeError: No thread can be started.
        """
        known = self._known.get(host)
        try:
            future = asyncio.wrap_future(self._ask(host))
            future.add_done_callback(_see)
            try:
                await asyncio.wait({future}, timeout=timeout if known is None else min(KNOWN, timeout))
                return _outcome(host, future, timeout)
            finally:
                future.cancel()
        except (OSError, RuntimeError):
            if known is None:
                raise
            return known

    def addresses(self, host: str, timeout: float) -> list[str]:
        """Find the addresses of a host.

        Args:
            host: Its name.
            timeout: The most to wait, in seconds.

        Returns:
            Its addresses, in the order in which to try them.

        Raises:
            OSError: It cannot be resolved, or not in time.
            RuntimeError: No thread can be started.
        """
        known = self._known.get(host)
        try:
            future = self._ask(host)
            wait({future}, timeout if known is None else min(KNOWN, timeout))
            return _outcome(host, future, timeout)
        except (OSError, RuntimeError):
            if known is None:
                raise
            return known

    def _ask(self, host: str) -> Future[list[str]]:
        with self._guard:
            future = self._asked.get(host)
            if future is None:
                future = Future()
                future.set_running_or_notify_cancel()
                spawn(self._resolve, f"router resolves {host}", host, future)
                self._asked[host] = future
        return future

    def _resolve(self, host: str, future: Future[list[str]]) -> None:
        found, failure = list[str](), None
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            found = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
        except Exception as error:  # noqa: BLE001  (whatever it is, nobody may wait for this thread for ever)
            failure = OSError(f"the host name {host!r} cannot be resolved: {getattr(error, 'strerror', None) or error}")
        with self._guard:
            del self._asked[host]
            if failure is None:
                self._known[host] = found
        if failure is None:
            future.set_result(found)
        else:
            future.set_exception(failure)


def _see(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def _outcome(host: str, future: Future[list[str]] | asyncio.Future[list[str]], timeout: float) -> list[str]:
    if not future.done():
        raise TimeoutError(f"the host name {host!r} was not resolved within {timeout:g} s")
    return future.result()


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


async def aknock(addresses: Sequence[str], port: int, timeout: float) -> bool:
    """See whether a PostgreSQL server, or a pooler, reacts at all, without a session: it is asked whether it takes TLS.

    Args:
        addresses: Its addresses, or the directory of its socket.
        port: Its port.
        timeout: The most to wait, in seconds; whoever waits for less takes it for silent before.

    Returns:
        Whether it does; true as well if this process can ask at none of them.
    """
    asked = False
    for address in addresses:
        try:
            async with asyncio.timeout(timeout):
                if address.startswith("/"):
                    reader, writer = await asyncio.open_unix_connection(f"{address}/.s.PGSQL.{port}")
                else:
                    reader, writer = await asyncio.open_connection(address, port)
                try:
                    writer.write(_ASKS_FOR_TLS)
                    await reader.read(1)
                finally:
                    writer.close()
        except (ConnectionError, FileNotFoundError, TimeoutError):
            asked = True
        except OSError:  # this process cannot, without IPv6 say
            pass
        else:
            return True
    return not asked


def knock(addresses: Sequence[str], port: int, timeout: float) -> bool:
    """See whether a PostgreSQL server, or a pooler, reacts at all, without a session: it is asked whether it takes TLS.

    Args:
        addresses: Its addresses, or the directory of its socket.
        port: Its port.
        timeout: The most to wait for each step, in seconds; whoever waits for less takes it for silent before.

    Returns:
        Whether it does; true as well if this process can ask at none of them.
    """
    asked = False
    for address in addresses:
        try:
            if address.startswith("/"):
                door = socket.socket(socket.AF_UNIX)
                door.settimeout(timeout)
                with door:
                    door.connect(f"{address}/.s.PGSQL.{port}")
                    door.sendall(_ASKS_FOR_TLS)
                    door.recv(1)
            else:
                with socket.create_connection((address, port), timeout) as door:
                    door.sendall(_ASKS_FOR_TLS)
                    door.recv(1)
        except (ConnectionError, FileNotFoundError, TimeoutError):
            asked = True
        except OSError:  # this process cannot, without IPv6 say
            pass
        else:
            return True
    return not asked


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


def quiet_for(connection: AsyncConnection[Any] | Connection[Any]) -> float:
    """Tell for how long nothing has been sent or received over a connection, not even a part of a message.

    Args:
        connection: The connection.

    Returns:
        That, in seconds; 0 where the system does not tell: it does so on Linux, for TCP.
    """
    if sys.platform == "linux":
        with (
            suppress(OSError, psycopg.OperationalError),
            socket.socket(fileno=os.dup(connection.pgconn.socket)) as duplicate,
        ):
            told = duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            sent, received = _TCP_INFO.unpack(told)
            return float(min(sent, received)) / 1000.0
    return 0.0


_TCP_INFO = struct.Struct("44x I 4x I")  # of the kernel's: milliseconds since data was sent, and since it was received


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
