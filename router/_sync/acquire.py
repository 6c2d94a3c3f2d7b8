# Generated from router/_async/acquire.py by tools/async_to_sync.py: do not edit.
"""The way of a request for which no connection was ready, or that asks for more than its key says."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

import psycopg
from psycopg_pool import PoolClosed

from router._runtime.calls import shielded
from router._runtime.flags import check_locks, sleep
from router._sync.line import HasToAsk, Superseded, Unserved, Waiter
from router._sync.pool.session_state import borrower, session_of
from router._sync.unavailable import asked_for, tell_failed, unavailable, whom_for
from router.core.choose import choose
from router.core.errors import PoolExhausted, TooManyWaiting, Unavailable, UnknownTenant
from router.core.events import ReadOnPrimary
from router.core.health import UNKNOWN, node_state, observe
from router.core.observations import OtherProcess
from router.core.standing import Request, limits_lag, standings
from router.core.topology import Role

if TYPE_CHECKING:
    from typing import TypeAlias

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._sync.in_force import InForce
    from router._sync.lanes import Lane
    from router._sync.pool.node_pool import NodePool
    from router.core.choose import Route
    from router.core.health import State
    from router.core.topology import Node, Target

    Taken: TypeAlias = tuple[NodePool, Connection[TupleRow]]

SETTLE = 0.2
"""Seconds that the first requests of a version wait until all of its servers have been probed: the one that is slow to
answer may be the one that was promoted."""

WATCH_OVER = 0.5
"""Seconds between two looks of a request at what is known, should nothing wake it while no pool serves it."""

ASK_AGAIN = 0.02
"""Seconds until a replica that had not replayed what a read must see is asked again."""


def acquire(
    lane: Lane,
    deadline: float,
    picked: NodePool | None,
    request: Request | None,
    token: object = None,
    *,
    admitted: bool = True,
) -> tuple[Lane, NodePool, Connection[TupleRow]]:
    """Get a connection when none is ready, or a request asks for more than its key says.

    Args:
        lane: Where the request belongs.
        deadline: Until when, on the monotonic clock.
        picked: The pool that was picked, and has none ready.
        request: What it asks for; ``None`` for nothing but what the lane says.
        token: What it counts as in the lane's admission; the caller has that leave, whatever happens.
        admitted: Whether it is admitted already.

    Returns:
        The lane in force, if the topology or the tenant's home has changed meanwhile; the pool, and the connection.

    Raises:
        UnknownVersion: There is no such version any more.
        UnknownTenant: There is no such tenant any more.
        Unavailable: None could be had in time.
        RouterClosed: The router was closed.
        RuntimeError: The lane is from before a fork; or greenlets have taken the place of threads since.
        TokenRefused: What it must see is of another cluster or timeline, and ``tokens.foreign`` is ``refuse``.
    """
    check_locks()
    if lane.slots is not lane.in_force.slots:
        raise RuntimeError("this checkout was made before a fork: call connection() in the process that uses it")
    while True:
        try:
            return lane, *_acquire_over(lane, deadline, picked, request, token, admitted=admitted)
        except Superseded:
            lane = lane.in_force.lanes.successor(lane, deadline)


def _acquire_over(
    lane: Lane,
    deadline: float,
    picked: NodePool | None,
    request: Request | None,
    token: object,
    *,
    admitted: bool,
) -> Taken:
    if lane.pool_set.is_superseded:
        raise Superseded
    scope, admission = lane.target.scope, None if admitted else lane.admission
    waiter = Waiter(
        lane.pool_set.line,
        "" if scope is None else scope.tenant,
        has_needs=request is not None,
        admission=admission,
        token=token,
    )
    begun = monotonic()
    lane.in_force.begin_request(lane.pool_set.cluster)
    try:
        pool, connection = _acquire(lane, deadline, waiter, picked, request)
    except BaseException as error:
        _leave(waiter)
        if isinstance(error, Unavailable):
            tell_failed(lane, error)
        raise
    finally:
        lane.in_force.clusters.end_request(lane.pool_set.cluster)
    pool.note_waited(monotonic() - begun)
    if pool.notes_where:
        session_of(connection).borrowed_at = borrower()
    return pool, connection


def _acquire(lane: Lane, deadline: float, waiter: Waiter, picked: NodePool | None, request: Request | None) -> Taken:
    if request is None:
        try:
            return _acquire_any(lane, deadline, waiter, picked)
        except HasToAsk:
            request, waiter.has_needs = Request(lane.read_only), True
    return Choice(lane, deadline, waiter, request).acquire()


@shielded
def _leave(waiter: Waiter) -> None:
    """Leave the line, or give back what was handed over at the last moment."""
    if not waiter.line.leave(waiter):
        waiter.pool.give_back(waiter.connection)


def _acquire_any(lane: Lane, deadline: float, waiter: Waiter, picked: NodePool | None) -> Taken:
    """Get a connection of any of the lane's pools: one that is ready, unless others wait, or else in line."""
    pool_set, line, request = lane.pool_set, lane.pool_set.line, Request(lane.read_only)
    if not line.waiting and not waiter.is_held:
        if pool_set.is_stale:
            pool_set.refresh()
        ready = pool_set.take(lane.target.scope, picked)
        if ready is not None and _may_serve(lane.in_force, *ready, request):
            return ready
    while True:
        _join(lane, waiter)
        pool, connection = _wait_in_line(lane, deadline, waiter)
        if _is_usable(pool, connection) and _may_serve(lane.in_force, pool, connection, request):
            return pool, connection


def _wait_in_line(lane: Lane, deadline: float, waiter: Waiter) -> Taken:
    pool_set, line = lane.pool_set, waiter.line
    while not waiter.is_done:
        pool_set.work(waiter)
        left = deadline - monotonic()
        if not waiter.is_done and left > 0:
            waiter.wait(min(left, pool_set.patience(waiter)))
        elif line.leave(waiter):
            break
    if (connection := waiter.connection) is not None:
        pool, waiter.connection = waiter.pool, None
        return pool, connection
    if waiter.error is not None and not isinstance(waiter.error, Unserved):
        raise waiter.error
    raise _why_none(lane, waiter, late=waiter.error is None)


def _why_none(lane: Lane, waiter: Waiter, *, late: bool) -> Unavailable | UnknownTenant:
    in_force, target, pool_set = lane.in_force, lane.target, lane.pool_set
    if waiter.is_held and lane.admission is not None:
        return PoolExhausted(
            f"no connection {whom_for(target)} in time: it uses all {lane.admission.limit} that it may "
            "(tenancy.max_connections)",
            **asked_for(target),
        )
    route = pool_set.current_route(fresh=late)
    if late and not pool_set.pools and pool_set.lacks_room:
        return _no_room(lane)
    error = unavailable(in_force, replace(route, target=target), Request(lane.read_only), late=late)
    if isinstance(error, UnknownTenant):
        in_force.lanes.drop(lane)
    return error


def _no_room(lane: Lane) -> PoolExhausted:
    full = f"all {lane.in_force.topology.max_pools} pools are in use (max_pools)"
    return PoolExhausted(f"no connection {whom_for(lane.target)} in time: {full}", **asked_for(lane.target))


def _join(lane: Lane, waiter: Waiter) -> None:
    """Get in line, unless too many wait."""
    line, most = waiter.line, lane.target.cluster.pool.max_waiting
    pools = line.pools if waiter.accepts is None else (waiter.accepts,)
    if most and pools and not waiter.is_held and waiter.number < 0:
        waiting = line.waiting if waiter.accepts is None else line.number(waiter.accepts)
        if waiting >= sum(most + pool.kept_back for pool in pools):
            full = f"{most} requests wait for one to {pools[0].node} already (pool.max_waiting)"
            raise TooManyWaiting(f"no connection {whom_for(lane.target)}: {full}", **asked_for(lane.target))
    line.join(waiter)


def _is_usable(pool: NodePool, connection: Connection[TupleRow]) -> bool:
    """Whether a connection that was handed over may be used; else give it back."""
    if not pool.barred:
        return True
    connection.close()
    pool.give_back(connection)
    return False


class Choice:
    """A request with needs of its own: it chooses its node itself, and again whenever something is learnt."""

    def __init__(self, lane: Lane, deadline: float, waiter: Waiter, request: Request) -> None:
        """Prepare the choice.

        Args:
            lane: Where the request belongs.
            deadline: Until when, on the monotonic clock.
            waiter: The request, not in line yet.
            request: What it asks for.
        """
        self._lane = lane
        self._in_force = lane.in_force
        self._target = lane.target
        self._deadline = deadline
        self._waiter = waiter
        self._request = request
        self._since = monotonic()
        self._lacks_room = False

    def acquire(self) -> Taken:
        """Get a connection of the best node.

        Returns:
            The connection, and the pool it is from.

        Raises:
            Unavailable: None could be had in time.
            RouterClosed: The router was closed.
            TokenRefused: What it must see is of another cluster or timeline, and ``tokens.foreign`` is ``refuse``.
        """
        self._admitted()
        while True:
            news = self._waiter.line.news  # before anything is looked at: what is learnt after that is not missed
            route = self._choose()
            pool = self._open(route)
            taken = self._take(pool) or self._wait(route, pool, news)
            if taken is not None and _may_serve(self._in_force, taken[0], taken[1], self._request):
                _leave(self._waiter)
                _served(self._in_force, self._target, self._request, taken[0].node)
                return taken
            if taken is not None and _state(self._in_force, taken[0].node).several_servers:
                # The next connection may lead to the same one.
                self._request = self._request._replace(avoid=taken[0].node)

    def _admitted(self) -> None:
        """Wait until the lane's admission lets the request be served."""
        waiter = self._waiter
        if waiter.is_held:
            waiter.line.join(waiter)
        while waiter.is_held and waiter.error is None:
            if monotonic() >= self._deadline:
                raise _why_none(self._lane, waiter, late=True)
            waiter.wait(self._deadline - monotonic())
        if waiter.error is not None:
            raise waiter.error

    def _choose(self) -> Route:
        """Choose by what is known now."""
        while True:
            if self._lane.pool_set.is_superseded:
                raise Superseded
            route = self._in_force.routes.choose(self._target, self._request)
            after = self._request.after
            if route.ready or (own := self._in_force.routes.must_see(self._target, [after])) == after:
                return route
            self._request = self._request._replace(after=own)  # the first probe has shown that it is foreign

    def _open(self, route: Route) -> NodePool | None:
        """Open the pool to borrow from next; ``None`` when it is better to wait."""
        node, late = _next(self._in_force, route, self._since), monotonic() >= self._deadline
        pool, self._lacks_room = None, False
        if node is not None and not (node in route.ask and node.server in self._in_force.asked):
            pool = self._in_force.pools.open_at_once(
                self._target, node, read_only=self._request.read_only, wants=self._waiter
            )
            self._lacks_room = pool is None
        may_catch_up = bool(route.ask) and monotonic() < self._since + self._target.cluster.read.catch_up
        if late or (node is None and not route.pending and not may_catch_up):
            if self._lacks_room:
                raise _no_room(self._lane)
            error = unavailable(self._in_force, route, self._request, late=late)
            if isinstance(error, UnknownTenant):
                self._in_force.lanes.drop(self._lane)
            raise error
        return pool

    def _take(self, pool: NodePool | None) -> Taken | None:
        """Borrow a connection that is ready, unless others wait for one there."""
        if pool is None or pool.load > len(pool.borrowed) or not pool.idle:
            return None
        scope = self._target.scope
        connection = pool.take() if scope is None else pool.take_for(scope)
        return None if connection is None else (pool, connection)

    def _wait(self, route: Route, pool: NodePool | None, news: int) -> Taken | None:
        """Wait in line: for a connection of the pool that was chosen, or for something to be learnt."""
        waiter, line, until = self._waiter, self._waiter.line, self._deadline
        if line.has(waiter):
            line.accept(waiter, pool)
        else:
            waiter.accepts = pool
            _join(self._lane, waiter)
        if pool is not None:
            pool.hand_over()
            with suppress(PoolClosed):
                pool.grow()
        elif self._lacks_room:
            if self._in_force.pools.find_room(waiter):
                return None
        else:
            until = self._look_again_at(route)
        line.pass_on(waiter, news)
        while not waiter.is_done and news == line.news and (left := min(until, self._deadline) - monotonic()) > 0:
            waiter.wait(left)
            if self._lacks_room:
                break
        if waiter.error is not None:
            raise waiter.error
        if (connection := waiter.connection) is None:
            return None
        pool, waiter.connection = waiter.pool, None
        return (pool, connection) if _is_usable(pool, connection) else None

    def _look_again_at(self, route: Route) -> float:
        """When to choose again though nothing was learnt; the first in line asks a replica again."""
        self._lane.pool_set.cluster.note_waiting()
        now, asks = monotonic(), bool(route.ask) and self._waiter.line.is_first(self._waiter)
        moments = (self._since + SETTLE, self._since + self._target.cluster.read.catch_up)
        return min([now + (ASK_AGAIN if asks else WATCH_OVER), *(moment for moment in moments if moment > now)])


def _state(in_force: InForce, node: Node) -> State:
    return in_force.clusters.health.get(node.server, UNKNOWN)


def _served(in_force: InForce, target: Target, request: Request, node: Node) -> None:
    """Count a read that the primary serves only because of what it must see, and tell of it."""
    if request.after is None or in_force.clusters.health.get(node.server, UNKNOWN).role is not Role.PRIMARY:
        return
    # Not what checks first whether the router was closed: the connection has been borrowed.
    otherwise = choose(target, in_force.clusters.health, request._replace(after=None), now=monotonic(), tie_break=0.0)
    if otherwise.nodes[:1] == (node,):
        return
    in_force.pools.count("for_token", target.cluster.name, read_only=True)
    if in_force.observers.hear_of(ReadOnPrimary):
        in_force.observers.tell([ReadOnPrimary(target.cluster.name, target.tenant, node)])


def _next(in_force: InForce, route: Route, since: float) -> Node | None:
    """The node to borrow from next; ``None`` when it is better to wait."""
    if not route.ready or (in_force.routes.is_unsettled(route) and monotonic() < since + SETTLE):
        return None
    best = route.nodes[0]
    if best not in route.ask:
        return best
    asked_at = max(node_state(in_force.clusters.health, node).position_at for node in route.ask)
    if asked_at < since:
        return best
    sure = next((node for node in route.nodes[: route.ready] if node not in route.ask), None)
    now = monotonic()
    if sure is not None and now >= since + route.target.cluster.read.catch_up:
        return sure
    return best if now >= asked_at + ASK_AGAIN else None


def _may_serve(in_force: InForce, pool: NodePool, connection: Connection[TupleRow], request: Request) -> bool:
    """Make sure that where this connection leads to is as far as a request asks for; else give it back.

    What is known of a server is from before a connection that was opened later: it may have been restarted in
    between, and a standby begins anew at an earlier position, or stands now where the primary was. And where
    several servers answer, it is known of the one that the last look led to.
    """
    original, after = session_of(connection), request.after
    state = in_force.clusters.health.get(pool.node.server, UNKNOWN)
    is_primary = state.role is Role.PRIMARY
    here = original.process == state.process or (pool.node.pooler is not None and not state.several_servers)
    if after is None and ((here and not state.several_servers) or not limits_lag(pool.cluster, request)):
        return True
    if is_primary and connection.pgconn.parameter_status(b"in_hot_standby") == b"off":
        return True
    known = here and _is_fit(in_force, pool, request, state)
    if known and (after is None or original.opened_at < state.position_at):
        return True
    # What is known of a primary is no answer to another request, nor what is true of this connection only.
    alone = here and not known and not is_primary
    if _ask_over(in_force, pool, connection, request, state, alone=alone):
        return True
    pool.give_back(connection)
    if state.several_servers:
        sleep(ASK_AGAIN)
    return False


def _ask_over(
    in_force: InForce,
    pool: NodePool,
    connection: Connection[TupleRow],
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
        with in_force.guard:
            others_ask = server in in_force.asked
            in_force.asked.add(server)
        if others_ask:  # the answer is for all
            return False
    try:
        seen = pool.look(connection)
        here = seen.process == state.process or not state.several_servers
        in_force.clusters.report(seen if here else OtherProcess(pool.node, seen.process))
    except psycopg.Error:
        pool.watched.suspect(server)
        connection.close()
        return False
    except BaseException:
        connection.close()
        pool.give_back(connection)
        raise
    finally:
        if alone:
            in_force.asked.discard(server)
    session_of(connection).process = seen.process
    after = request.after
    if after is None or not here:
        # Not after what is known: that may be of another server.
        found = observe({}, seen, now=monotonic(), jitter=0.0, policy=in_force.topology.health)
        return _is_fit(in_force, pool, request, found[server])
    if seen.role is Role.PRIMARY:
        return state.role is Role.PRIMARY and seen.timeline >= after.timeline
    return after.reached(seen.timeline, seen.position)


def _is_fit(in_force: InForce, pool: NodePool, request: Request, state: State) -> bool:
    """Whether a server in such a state may serve a read, without having to be asked."""
    health = {**in_force.clusters.health, pool.node.server: replace(state, several_servers=False)}
    standing = standings(pool.cluster, health, request, now=monotonic())[pool.node]
    return standing.tier is not None and not standing.ask
