"""What tests do to the inside of a router: the only file of theirs that reaches into one.

What there is to be seen of it is in ``router._snapshot()``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.core.plan import plan

if TYPE_CHECKING:
    from router import AsyncRouter
    from router._async.in_force import AsyncInForce
    from router.core.topology import Topology


def inside(router: AsyncRouter) -> AsyncInForce:
    """Everything of it that changes, for tests that replace a part, hold a lock, or watch what outlives the router."""
    return router._in_force


async def apply(router: AsyncRouter, after: Topology) -> None:
    """Put another topology in force."""
    in_force = inside(router)
    await in_force.apply(plan(in_force.topology, after))


def invalidate(router: AsyncRouter) -> None:
    """Have the pools chosen anew, as after a change of what is known."""
    for pool_set in inside(router).lanes.pool_sets:
        pool_set.invalidate()


async def close_idle(router: AsyncRouter) -> None:
    """Close every connection that is idle."""
    for pool in list(inside(router).pools):
        while pool.idle:
            await pool.evict_idle()
