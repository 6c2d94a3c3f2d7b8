"""Resets the routers of a process in the child of a ``fork()``."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

from router._runtime.calls import Isolated


class _Forkable(Protocol):
    def _abandon(self) -> None: ...


_inherited_by_fork: WeakSet[_Forkable] = WeakSet()


def survive_fork(router: _Forkable) -> None:
    """Make a router drop, in the child of a ``fork()``, the connections and tasks that belong to the parent.

    Args:
        router: The router; its ``_abandon()`` is called in the child before other code runs there.
    """
    _inherited_by_fork.add(router)


def _after_fork() -> None:
    for router in list(_inherited_by_fork):
        with Isolated("could not reset the router in the child of a fork"):
            router._abandon()  # noqa: SLF001  (no part of the public face)


os.register_at_fork(after_in_child=_after_fork)
