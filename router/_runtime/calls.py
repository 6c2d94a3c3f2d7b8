"""Calls of the functions that an application gives to a router, and calls that are isolated or shielded."""

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
            """Find where the tenant lives; ``None`` if there is no such tenant."""

    class Lookup(Protocol):
        """An object that finds where a tenant lives, for threads."""

        def lookup(self, tenant: str, /) -> Answer:
            """Find where the tenant lives; ``None`` if there is no such tenant."""


logger = logging.getLogger("router")


class Isolated:
    """Isolates one of several steps: an exception in it is logged and not raised, so that the other steps run."""

    __slots__ = ("_args", "_what")

    def __init__(self, what: str, *args: object) -> None:
        """Prepare the step.

        Args:
            what: The message for the log, which says what could not be done.
            *args: The arguments of the message.
        """
        self._what = what
        self._args = args

    def __enter__(self) -> None:
        """Begin the step."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Log an exception."""
        if not isinstance(error, Exception):  # a cancellation, for example
            return False
        with suppress(Exception):  # a logging filter of the application may fail, too
            logger.error(self._what, *self._args, exc_info=error)
        return True


async def acall(function: Callable[..., T | Awaitable[T]], *args: object) -> T:
    """Call an application's function, plain or async.

    Args:
        function: The function.
        *args: Its arguments.

    Returns:
        The function's result, awaited if it is awaitable.
    """
    result = function(*args)
    if isawaitable(result):
        return await result
    return result


def call(function: Callable[..., T], *args: object) -> T:
    """Call an application's function.

    Args:
        function: The function.
        *args: Its arguments.

    Returns:
        The function's result.
    """
    return function(*args)


async def aconsult(function: Callable[..., T | Awaitable[T]], *args: object) -> T:
    """Call an application's function, plain or async, from a task of the router.

    If the function waits for something that is cancelled, that is an error like any other: it must not end the router's
    task.

    Args:
        function: The function.
        *args: Its arguments.

    Returns:
        The function's result, awaited if it is awaitable.
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
    """Continue a coroutine that has already yielded ``awaited``."""
    yield awaited
    yield from work.__await__()


def ashielded(function: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, Coroutine[Any, Any, None]]:
    """Make a function run to its end even if its caller is cancelled; the cancellation is raised afterwards.

    Usually the function does not suspend, and costs one ``send``; it gets a task of its own only if it suspends.

    Args:
        function: The function that has to finish.

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
    """Return a function as it is: a thread is not cancelled.

    Args:
        function: The function that has to finish.

    Returns:
        The same function.
    """
    return function


class WeakCall:
    """Calls a function that only its owner references.

    A function that an application gives to a router often references the router. Python keeps the router's threads and
    tasks alive, and everything that they reference: with a strong reference here a dropped router would never be freed.
    """

    __slots__ = ("_given", "_quiet")

    def __init__(self, function: Callable[..., Any], keep: list[object], *, quiet: bool = False) -> None:
        """Prepare the call.

        Args:
            function: The function.
            keep: The owner's list of strong references, to which the function is added.
            quiet: Whether a call does nothing once the owner is gone, instead of raising.
        """
        given = _Kept(function)
        keep.append(given)
        self._given = ref(given)
        self._quiet = quiet

    def __call__(self, *args: object) -> Any:
        """Call the function.

        Args:
            *args: Its arguments.

        Returns:
            The function's result.

        Raises:
            RouterClosed: The owner is gone.
        """
        if (given := self._given()) is not None:
            return given.function(*args)
        if not self._quiet:
            raise RouterClosed("the router was dropped")
        return None


class _Kept:
    """Holds a callable of any kind, so that it can be referenced weakly."""

    __slots__ = ("__weakref__", "function")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
