# Generated from tests/_async/internals.py by tools/async_to_sync.py: do not edit.
"""What tests do to the inside of a router: the only file of theirs that reaches into one.

What there is to be seen of it is in ``router._snapshot()``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.core.plan import plan

if TYPE_CHECKING:
    from router import Router
    from router._sync.in_force import InForce
    from router.core.topology import Topology


def inside(router: Router) -> InForce:
    """Everything of it that changes, for tests that replace a part, hold a lock, or watch what outlives the router."""
    return router._in_force


def apply(router: Router, after: Topology) -> None:
    """Put another topology in force."""
    in_force = inside(router)
    in_force.apply(plan(in_force.topology, after))


def invalidate(router: Router) -> None:
    """Have the pools chosen anew, as after a change of what is known."""
    for pool_set in inside(router).lanes.pool_sets:
        pool_set.invalidate()


def close_idle(router: Router) -> None:
    """Close every connection that is idle."""
    for pool in list(inside(router).pools):
        while pool.idle:
            pool.evict_idle()
