"""Waiting until a router has all its connections."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from router import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from router import AsyncRouter, Router

PATIENCE = 20.0


def warm(router: Router | AsyncRouter, borrow: Callable[[], object]) -> None:
    """Borrow until every node has a connection ready in the pool it serves from: pools open at first use.

    Args:
        router: The router.
        borrow: Borrows a connection to read and one to write, and gives them back.

    Raises:
        TimeoutError: A node has none after a while.
    """
    deadline = monotonic() + PATIENCE
    while True:
        borrow()
        nodes = [node for version in router.stats().versions for node in version.nodes]
        serving = [node.write if node.role is Role.PRIMARY else node.read for node in nodes]
        if all(pool is not None and pool.idle for pool in serving):
            return
        if monotonic() > deadline:
            raise TimeoutError(f"not every node has a connection after {PATIENCE} s\n{router.stats()}")
