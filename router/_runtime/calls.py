"""How the functions that an application gives to a router are called, and what is called to its end or kept apart."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import wraps
from inspect import isawaitable
from types import coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeAlias, TypeVar
from weakref import ref

from router.core.errors import RouterClosed

T = TypeVar("T")
P = ParamSpec("P")

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
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
    Answer: TypeAlias = Mapping[str, Any] | None
    ASource: TypeAlias = Callable[[str], Answer | Awaitable[Answer]] | "ALookup"
    Source: TypeAlias = Callable[[str], Answer] | "Lookup"

    class ALookup(Protocol):
        """An object that finds where a tenant lives."""

        def lookup(self, tenant: str, /) -> Answer | Awaitable[Answer]:
            """Find it; ``None`` if there is no such tenant."""

    class Lookup(Protocol):
        """The same for threads."""

        def lookup(self, tenant: str, /) -> Answer:
            """Find it; ``None`` if there is no such tenant."""


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


def ashielded(function: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, Coroutine[Any, Any, None]]:
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


def shielded(function: Callable[P, None]) -> Callable[P, None]:
    """Leave a function as it is: a thread is not cancelled.

    Args:
        function: What has to be finished.

    Returns:
        The same function.
    """
    return function


class WeakCall:
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
