"""The routers behind ``router.aio``: one for each event loop, made at its first use there and closed with the loop."""

from __future__ import annotations

import asyncio
import atexit
import os
from contextlib import suppress
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from router._async.router import AsyncRouter
from router.core.errors import at_least_zero

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from router._runtime.calls import AConfigure, APassword, ASource
    from router.core.events import Observer
    from router.settings import RouterSettings


class _Kept(NamedTuple):
    router: AsyncRouter
    life: AsyncGenerator[None, None]  # ending it closes the router; its loop does so in shutdown_asyncgens()


_make: Callable[[], AsyncRouter] = AsyncRouter
routers: dict[asyncio.AbstractEventLoop, _Kept] = {}
_guard = Lock()  # guards both

LAST = 1.0
"""Seconds to wait until borrowed connections are returned when a loop ends."""


def configure(
    settings: RouterSettings | None = None,
    *,
    password: APassword | None = None,
    configure: AConfigure | None = None,
    directory: ASource | None = None,
    observers: Sequence[Observer] = (),
) -> None:
    """Set the arguments of the routers of all loops; routers that are in use are closed by their loops.

    Args:
        settings: The versions and tenants to route to; ``None`` reads the environment.
        password: As for :class:`AsyncRouter`.
        configure: As for :class:`AsyncRouter`.
        directory: As for :class:`AsyncRouter`.
        observers: As for :class:`AsyncRouter`.

    Raises:
        ConfigError: The settings are wrong; the routers in use stay.
    """
    make = partial(
        AsyncRouter, settings, password=password, configure=configure, directory=directory, observers=observers
    )
    make()
    _replace(make)


def here() -> AsyncRouter:
    """Return the router of the running loop; the first call makes it.

    Returns:
        The router.

    Raises:
        RuntimeError: No event loop is running.
    """
    loop = asyncio.get_running_loop()
    kept = routers.get(loop)
    return _first(loop) if kept is None else kept.router


async def close(timeout: float = 5.0) -> int:
    """Close the router of the running loop; the next use makes a new one.

    Args:
        timeout: The most seconds to wait until borrowed connections are returned.

    Returns:
        How many borrowed connections were cut because they were not returned in time.

    Raises:
        ValueError: ``timeout`` is negative or not a number; nothing is closed.
    """
    at_least_zero("timeout", timeout)
    with _guard:
        kept = routers.pop(asyncio.get_running_loop(), None)
    if kept is None:
        return 0
    return await _end(kept, timeout)


def _replace(make: Callable[[], AsyncRouter]) -> None:
    """Set the function that makes routers from now on; routers that are in use are closed by their loops."""
    global _make  # noqa: PLW0603  (there is one for the process)
    with _guard:
        _make = make
        old = dict(routers)
        routers.clear()
    for loop, kept in old.items():
        if loop.is_running():  # a loop that is not running closes its router when it is run again
            asyncio.run_coroutine_threadsafe(_end(kept), loop)


def _first(loop: asyncio.AbstractEventLoop) -> AsyncRouter:
    """Make the router of the running loop, and forget the routers of loops that are closed.

    No other task of the loop can run meanwhile.
    """
    _forget_closed()
    with _guard:
        router = _make()
        life = _until_the_loop_ends(router)
        routers[loop] = _Kept(router, life)
    with suppress(StopIteration):  # starts the generator, awaiting nothing; the loop closes it at its end
        life.__anext__().__await__().send(None)
    return router


async def _until_the_loop_ends(router: AsyncRouter) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        with _guard:
            loop = asyncio.get_running_loop()
            if loop in routers and routers[loop].router is router:
                del routers[loop]
        await router.close(LAST)


async def _end(kept: _Kept, timeout: float = 5.0) -> int:
    cut_off = await kept.router.close(timeout)
    await kept.life.aclose()
    return cut_off


def _forget_closed() -> None:
    with _guard:
        gone = [routers.pop(loop) for loop in list(routers) if loop.is_closed()]
    for kept in gone:
        kept.router._in_force.discard()  # noqa: SLF001  (as close() would, if there were a loop to call it in)


def _after_fork() -> None:
    global _guard  # noqa: PLW0603  (another thread of the parent may have held it)
    _guard = Lock()


atexit.register(_forget_closed)
os.register_at_fork(after_in_child=_after_fork)
