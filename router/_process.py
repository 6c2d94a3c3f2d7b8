"""The process-wide router behind ``router.connection()``: made from the environment at first use, closed at exit."""

from __future__ import annotations

import atexit
import os
from threading import Lock
from typing import TYPE_CHECKING

from router._sync.router import Router
from router.core.errors import at_least_zero

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router._runtime.calls import Configure, Password, Source
    from router.core.events import Observer
    from router.settings import RouterSettings

_current: Router | None = None  # replaced whole
_guard = Lock()  # guards the replacing of _current


def here() -> Router:
    """Return the process-wide router; the first call makes it.

    Returns:
        The router.

    Raises:
        ConfigError: This is the first call, and the settings in the environment are wrong.
    """
    return _current or _first()


def configure(
    settings: RouterSettings | None = None,
    *,
    password: Password | None = None,
    configure: Configure | None = None,
    directory: Source | None = None,
    observers: Sequence[Observer] = (),
) -> None:
    """Set the process-wide router, and close the one that was in use.

    Args:
        settings: The versions and tenants to route to; ``None`` reads the environment.
        password: As for :class:`Router`.
        configure: As for :class:`Router`.
        directory: As for :class:`Router`.
        observers: As for :class:`Router`.

    Raises:
        ConfigError: The settings are wrong; the router in use stays.
    """
    new = Router(settings, password=password, configure=configure, directory=directory, observers=observers)
    _replace(new)


def close(timeout: float = 5.0) -> int:
    """Close the process-wide router; the next use makes a new one from the environment.

    Args:
        timeout: The most seconds to wait until borrowed connections are returned.

    Returns:
        How many borrowed connections were cut because they were not returned in time.

    Raises:
        ValueError: ``timeout`` is negative or not a number; nothing is closed.
    """
    at_least_zero("timeout", timeout)
    return _replace(None, timeout)


def _first() -> Router:
    global _current  # noqa: PLW0603  (there is one for the process)
    with _guard:
        if _current is None:
            _current = Router()
        return _current


def _replace(new: Router | None, timeout: float = 5.0) -> int:
    global _current
    with _guard:
        old, _current = _current, new
    return 0 if old is None else old.close(timeout)


def _after_fork() -> None:
    global _guard  # noqa: PLW0603  (another thread of the parent may have held it)
    _guard = Lock()


atexit.register(close, 1.0)
os.register_at_fork(after_in_child=_after_fork)
