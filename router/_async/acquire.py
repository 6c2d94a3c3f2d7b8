"""Gets a connection for a request for which none was ready, or that has needs of its own."""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from router._async.choice import AsyncChoice
from router._async.pool.session_state import borrower, session_of
from router._async.unavailable import no_room, tell_failed, too_many_waiting, unavailable, within_its_limit
from router._async.verify import may_serve
from router._async.waiter import AsyncWaiter, ReplicaQueryNeeded, Superseded, Unserved
from router._runtime.flags import acheck_locks
from router.core.errors import Unavailable, UnknownTenant
from router.core.standing import Request

if TYPE_CHECKING:
    from typing import TypeAlias

    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

    from router._async.lane import AsyncLane
    from router._async.pool.node_pool import AsyncNodePool

    Taken: TypeAlias = tuple[AsyncNodePool, AsyncConnection[TupleRow]]


async def acquire(
    lane: AsyncLane,
    deadline: float,
    picked: AsyncNodePool | None,
    request: Request | None,
    token: object = None,
    *,
    admitted: bool = True,
) -> tuple[AsyncLane, AsyncNodePool, AsyncConnection[TupleRow]]:
    """Get a connection when none is ready, or when a request has needs of its own.

    Args:
        lane: The lane of the request.
        deadline: Until when, on the monotonic clock.
        picked: The pool that was picked, and has no connection ready.
        request: Its needs; ``None`` if it has none of its own.
        token: Identifies the request in the lane's admission; the caller has it leave there in any case.
        admitted: Whether it is admitted already.

    Returns:
        The lane in force, if the topology or the tenant's home has changed meanwhile; the pool, and the connection.

    Raises:
        UnknownVersion: The version does not exist any more.
        UnknownTenant: The tenant does not exist any more.
        Unavailable: No connection was available in time.
        RouterClosed: The router was closed.
        RuntimeError: The lane is from before a fork; or greenlets have replaced threads since.
        TokenRefused: The position to see is of another cluster or timeline, and ``tokens.foreign`` is ``refuse``.
    """
    acheck_locks()
    if lane.slots is not lane.in_force.slots:
        raise RuntimeError("this checkout was made before a fork: call connection() in the process that uses it")
    while True:
        try:
            return lane, *await _acquire_over(lane, deadline, picked, request, token, admitted=admitted)
        except Superseded:
            lane = await lane.in_force.lanes.successor(lane, deadline)


async def _acquire_over(
    lane: AsyncLane,
    deadline: float,
    picked: AsyncNodePool | None,
    request: Request | None,
    token: object,
    *,
    admitted: bool,
) -> Taken:
    if lane.pool_set.is_superseded:
        raise Superseded
    scope, admission = lane.target.scope, None if admitted else lane.admission
    waiter = AsyncWaiter(
        lane.pool_set.line,
        "" if scope is None else scope.tenant,
        has_needs=request is not None,
        admission=admission,
        token=token,
    )
    begun = monotonic()
    cluster = lane.pool_set.cluster
    in_use = cluster.stays_in_use
    if not in_use:
        lane.in_force.begin_request(cluster)
    try:
        if request is None:
            try:
                pool, connection = await _acquire_any(lane, deadline, waiter, picked)
            except ReplicaQueryNeeded:
                request, waiter.has_needs, waiter.error = Request(lane.read_only), True, None
        if request is not None:
            pool, connection = await AsyncChoice(lane, deadline, waiter, request).acquire()
    except BaseException as error:
        await waiter.leave()
        if isinstance(error, Unavailable):
            tell_failed(lane, error)
        raise
    finally:
        if not in_use:
            lane.in_force.clusters.end_request(cluster)
    waited = monotonic() - begun
    pool.counts.waited += waited  # with no call in between, threads do not overwrite each other's
    if pool.notes_borrower:
        session_of(connection).borrowed_at = borrower()
    return pool, connection


async def _acquire_any(lane: AsyncLane, deadline: float, waiter: AsyncWaiter, picked: AsyncNodePool | None) -> Taken:
    """Get a connection of any of the lane's pools: one that is ready, unless other requests wait; otherwise in line."""
    pool_set, line, most_waiting = lane.pool_set, waiter.line, lane.target.cluster.pool.max_waiting
    if not line.waiting and not waiter.is_held:
        if pool_set.is_stale:
            pool_set.refresh()
        ready = await pool_set.take(lane.target.scope, picked)
        if ready is not None and await _may_serve(lane, *ready):
            return ready
    while True:
        if most_waiting and line.is_full(waiter, most_waiting):
            raise too_many_waiting(lane, waiter)
        line.join(waiter)
        pool, connection = await _wait_in_line(lane, deadline, waiter)
        if (not pool.fenced_reason or await pool.is_usable(connection)) and await _may_serve(lane, pool, connection):
            return pool, connection


async def _wait_in_line(lane: AsyncLane, deadline: float, waiter: AsyncWaiter) -> Taken:
    pool_set, works = lane.pool_set, waiter.has_work or lane.pool_set.has_work
    while True:
        if works:
            waiter.has_work = True  # if this request is interrupted before it is done, the next in line does it
            await pool_set.work(waiter)
            waiter.has_work = False
        if waiter.connection is not None or waiter.error is not None:
            break
        if (left := deadline - monotonic()) > 0:
            await waiter.wait(left if pool_set.pools else min(left, pool_set.patience(waiter)))
        elif waiter.line.leave(waiter):
            break
        works = waiter.connection is None and waiter.error is None
    if (connection := waiter.connection) is not None:
        pool, waiter.connection = waiter.pool, None
        return pool, connection
    if waiter.error is not None and not isinstance(waiter.error, Unserved):
        raise waiter.error
    raise await _why_none(lane, waiter, late=waiter.error is None)


async def _may_serve(lane: AsyncLane, pool: AsyncNodePool, connection: AsyncConnection[TupleRow]) -> bool:
    """Whether a connection's server is within the limit on lag, if there is one; else the connection is returned."""
    return not lane.pool_set.limits_lag or await may_serve(lane.in_force, pool, connection, Request(lane.read_only))


async def _why_none(lane: AsyncLane, waiter: AsyncWaiter, *, late: bool) -> Unavailable | UnknownTenant:
    if waiter.is_held:
        return within_its_limit(lane)
    pool_set = lane.pool_set
    route = pool_set.current_route(fresh=late)
    if late and pool_set.lacks_room:
        return no_room(lane)
    error = unavailable(lane.in_force, replace(route, target=lane.target), Request(lane.read_only), late=late)
    if isinstance(error, UnknownTenant):
        await lane.in_force.lanes.drop(lane)
    return error
