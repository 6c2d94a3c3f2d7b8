"""The way of a request for which no connection was ready, or that asks for more than its key says."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from router._async.pool.node_pool import Reroute
from router._async.pool.session_state import session_of
from router._async.unavailable import asked_for, unavailable, whom_for
from router._runtime.flags import AFlag, acheck_locks, asleep
from router.core.choose import choose
from router.core.errors import PoolExhausted, TooManyWaiting, Unavailable, UnknownTenant
from router.core.events import ReadOnPrimary
from router.core.health import UNKNOWN, node_state, observe
from router.core.observations import OtherProcess
from router.core.replication import undecided
from router.core.standing import Request, limits_lag, standings
from router.core.topology import Role

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

    from router._async.cluster import AsyncCluster
    from router._async.lanes import AsyncLane
    from router._async.pool.node_pool import AsyncNodePool
    from router._async.routing import AsyncRouting
    from router.core.choose import Route
    from router.core.health import State
    from router.core.topology import Node, Target

SETTLE = 0.2
"""Seconds that the first requests of a version wait until all of its servers have been looked at: the one that is slow
to answer may be the one that was promoted."""

ASK_AGAIN = 0.02
"""Seconds until a replica that had not replayed what a read must see is asked again."""


async def acquire(
    lane: AsyncLane, deadline: float, prefer: AsyncNodePool | None, request: Request | None
) -> tuple[AsyncNodePool, AsyncConnection[TupleRow]]:
    """Get a connection when none is ready, or a request asks for more than its key says.

    Args:
        lane: Where the request belongs.
        deadline: Until when, on the monotonic clock.
        prefer: The pool that was picked.
        request: What it asks for; ``None`` for nothing but what the lane says.

    Returns:
        The connection, and the pool it is from.

    Raises:
        Unavailable: None could be had in time.
        RouterClosed: The router was closed.
        RuntimeError: The lane is from before a fork; or greenlets have taken the place of threads since.
        TokenRefused: What it must see is of another cluster or timeline, and ``tokens.foreign`` is ``refuse``.
    """
    routing = lane.routing
    acheck_locks()
    if lane.slots is not routing.slots:
        raise RuntimeError("this checkout was made before a fork: call connection() in the process that uses it")
    # The lane's only pool, or one that can grow: nothing better to choose as long as the lane is in use. Not at the
    # very first, when a server that nobody has looked at yet may turn out to be better; nor when it is too late.
    direct = request is None and monotonic() < deadline
    if direct and prefer is not None and not prefer.closed and (len(lane.pools) == 1 or not prefer.full):
        with suppress(Reroute, TooManyRequests, PoolTimeout, PoolClosed):  # then look closer
            return prefer, await prefer.borrow(deadline - monotonic(), lane.target.scope)
    routing.begin_request(lane.cluster)
    try:
        return await _acquire_best(routing, lane, deadline, prefer, request)
    except Unavailable as error:
        routing.failed(lane, error)
        raise
    finally:
        routing.clusters.end_request(lane.cluster)


async def _acquire_best(
    routing: AsyncRouting, lane: AsyncLane, deadline: float, prefer: AsyncNodePool | None, request: Request | None
) -> tuple[AsyncNodePool, AsyncConnection[TupleRow]]:
    target, since = lane.target, monotonic()
    request, patience = request or Request(lane.read_only), ASK_AGAIN
    while True:
        changed = lane.cluster.changed  # taken before what is known is looked at: no change after that goes unnoticed
        preferred = None if prefer is None or prefer.full else prefer.node
        route = routing.choose(target, request, prefer=preferred)
        node, now = _next(routing, route, since), monotonic()
        if node is None and (after := routing.must_see(target, [request.after])) != request.after:
            request = request._replace(after=after)  # the first look has shown that it is foreign
            continue
        may_catch_up = bool(route.ask) and now < since + target.cluster.read.catch_up
        if now >= deadline or (node is None and not route.pending and not may_catch_up):
            error = unavailable(routing, route, request, late=now >= deadline)
            if isinstance(error, UnknownTenant):
                await routing.drop(lane)
            raise error
        if node is None or (node in route.ask and node.server in routing.asked):
            await _wait(lane.cluster, changed, deadline - now, pause=ASK_AGAIN if route.ask else deadline - now)
            continue
        try:
            pool, connection = await _borrow(routing, target, node, deadline, read_only=request.read_only)
        except Reroute:
            # What it was for may be on its way. If nothing comes, the server refuses: the next attempt can wait.
            await changed.wait_for(min(patience, deadline - monotonic()))
            patience = min(2.0 * patience, 0.5)
            continue
        except (PoolTimeout, PoolClosed):
            continue  # choose again, or find that there is no time left
        if await _may_serve(routing, pool, connection, request):
            if pool not in lane.pools and node in route.nodes[: route.best] and (request.after or not route.ask):
                routing.renew(lane)
            _served(routing, target, request, node)
            return pool, connection
        # Where several servers answer, the next connection may lead to the same one.
        request = request._replace(
            avoid=node if routing.clusters.health.get(node.server, UNKNOWN).several_servers else request.avoid
        )


async def _borrow(
    routing: AsyncRouting, target: Target, node: Node, deadline: float, *, read_only: bool
) -> tuple[AsyncNodePool, AsyncConnection[TupleRow]]:
    whom, asked = whom_for(target), asked_for(target)
    pool = await routing.pools.open(target, node, read_only=read_only, timeout=deadline - monotonic())
    if pool is None:
        full = f"all {routing.topology.max_pools} pools are in use (max_pools)"
        raise PoolExhausted(f"no connection {whom} in time: {full}", **asked)
    try:
        return pool, await pool.borrow(deadline - monotonic(), target.scope)
    except TooManyRequests as error:
        full = f"{pool.max_waiting} requests wait for one to {node} already (pool.max_waiting)"
        raise TooManyWaiting(f"no connection {whom}: {full}", **asked) from error
    finally:
        pool.expected.pop()


def _served(routing: AsyncRouting, target: Target, request: Request, node: Node) -> None:
    """Count a read that the primary serves only because of what it must see, and tell of it."""
    if request.after is None or routing.clusters.health.get(node.server, UNKNOWN).role is not Role.PRIMARY:
        return
    # Not what checks first whether the router was closed: the connection has been borrowed.
    otherwise = choose(target, routing.clusters.health, request._replace(after=None), now=monotonic(), tie_break=0.0)
    if otherwise.nodes[:1] == (node,):
        return
    routing.pools.count("for_token", target.cluster.name, read_only=True)
    if routing.observers.hear_of(ReadOnPrimary):
        routing.observers.tell([ReadOnPrimary(target.cluster.name, target.tenant, node)])


def _next(routing: AsyncRouting, route: Route, since: float) -> Node | None:
    """The node to borrow from next; ``None`` when it is better to wait."""
    if not route.ready or (_unsettled(routing, route) and monotonic() < since + SETTLE):
        return None
    best = route.nodes[0]
    if best not in route.ask:
        return best
    asked_at = max(node_state(routing.clusters.health, node).position_at for node in route.ask)
    if asked_at < since:
        return best
    sure = next((node for node in route.nodes[: route.ready] if node not in route.ask), None)
    now = monotonic()
    if sure is not None and now >= since + route.target.cluster.read.catch_up:
        return sure
    return best if now >= asked_at + ASK_AGAIN else None


def _unsettled(routing: AsyncRouting, route: Route) -> bool:
    """Whether a server that nobody has looked at yet may change what is best."""
    if route.read_only and routing.clusters.health.get(route.nodes[0].server, UNKNOWN).role is not Role.PRIMARY:
        return undecided(routing.clusters.health, route.target.cluster)
    return any(node_state(routing.clusters.health, node).up is None for node in route.target.cluster.nodes)


async def _wait(cluster: AsyncCluster, changed: AFlag, left: float, *, pause: float) -> None:
    cluster.note_waiting()
    await changed.wait_for(min(left, pause, SETTLE))


async def _may_serve(
    routing: AsyncRouting, pool: AsyncNodePool, connection: AsyncConnection[TupleRow], request: Request
) -> bool:
    """Make sure that where this connection leads to is as far as a request asks for; else give it back.

    What is known of a server is from before a connection that was opened later: it may have been restarted in
    between, and a standby begins anew at an earlier position, or stands now where the primary was. And where
    several servers answer, it is known of the one that the last look led to.
    """
    original, after = session_of(connection), request.after
    state = routing.clusters.health.get(pool.node.server, UNKNOWN)
    is_primary = state.role is Role.PRIMARY
    here = original.process == state.process or (pool.node.pooler is not None and not state.several_servers)
    if after is None and ((here and not state.several_servers) or not limits_lag(pool.cluster, request)):
        return True
    if is_primary and connection.pgconn.parameter_status(b"in_hot_standby") == b"off":
        return True
    known = here and _is_fit(routing, pool, request, state)
    if known and (after is None or original.opened_at < state.position_at):
        return True
    # What is known of a primary is no answer to another request, nor what is true of this connection only.
    alone = here and not known and not is_primary
    if await _ask_over(routing, pool, connection, request, state, alone=alone):
        return True
    await pool.give_back(connection)
    if state.several_servers:
        await asleep(ASK_AGAIN)
    return False


async def _ask_over(
    routing: AsyncRouting,
    pool: AsyncNodePool,
    connection: AsyncConnection[TupleRow],
    request: Request,
    state: State,
    *,
    alone: bool,
) -> bool:
    """Ask over a connection whether its server is as far as a request asks for; the answer is for all if it may be.

    Where that fails, the connection is closed: whoever had it before may have spoilt it.
    """
    server = pool.node.server
    if alone:
        with routing.guard:
            others_ask = server in routing.asked
            routing.asked.add(server)
        if others_ask:  # the answer is for all
            return False
    try:
        seen = await pool.look(connection)
        here = seen.process == state.process or not state.several_servers
        await routing.clusters.report(seen if here else OtherProcess(pool.node, seen.process))
    except psycopg.Error:
        pool.watched.suspect(server)
        await connection.close()
        return False
    except BaseException:
        await connection.close()
        await pool.give_back(connection)
        raise
    finally:
        if alone:
            routing.asked.discard(server)
    session_of(connection).process = seen.process
    after = request.after
    if after is None or not here:
        # Not after what is known: that may be of another server.
        found = observe({}, seen, now=monotonic(), jitter=0.0, policy=routing.topology.health)
        return _is_fit(routing, pool, request, found[server])
    if seen.role is Role.PRIMARY:
        return state.role is Role.PRIMARY and seen.timeline >= after.timeline
    return after.reached(seen.timeline, seen.position)


def _is_fit(routing: AsyncRouting, pool: AsyncNodePool, request: Request, state: State) -> bool:
    """Whether a server in such a state may serve a read, without having to be asked."""
    health = {**routing.clusters.health, pool.node.server: replace(state, several_servers=False)}
    standing = standings(pool.cluster, health, request, now=monotonic())[pool.node]
    return standing.tier is not None and not standing.ask
