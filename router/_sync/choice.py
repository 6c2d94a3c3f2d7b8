# Generated from router/_async/choice.py by tools/async_to_sync.py: do not edit.
"""A request with needs beyond those of its lane (a position, a limit on lag, a node to avoid) chooses its own node."""

from __future__ import annotations

from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from psycopg_pool import PoolClosed

from router._sync.unavailable import no_room, too_many_waiting, unavailable, within_its_limit
from router._sync.verify import ASK_AGAIN, may_serve
from router._sync.waiter import Superseded
from router.core.choose import choose
from router.core.errors import UnknownTenant
from router.core.events import ReadOnPrimary
from router.core.health import UNKNOWN, node_state
from router.core.topology import Role

if TYPE_CHECKING:
    from typing import TypeAlias

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._sync.in_force import InForce
    from router._sync.lane import Lane
    from router._sync.pool.node_pool import NodePool
    from router._sync.waiter import Waiter
    from router.core.choose import Route
    from router.core.health import State
    from router.core.standing import Request
    from router.core.topology import Node, Target

    Taken: TypeAlias = tuple[NodePool, Connection[TupleRow]]

SETTLE = 0.2
"""The most seconds that the first requests of a version wait until all of its servers have been probed: the server that
answers slowly may be the one that was promoted."""

CHOOSE_AGAIN = 0.5
"""Seconds after which a request that no pool serves chooses again, if nothing has woken it."""


class Choice:
    """The choice of a request with needs: it chooses its node, and again whenever more is known of the cluster."""

    def __init__(self, lane: Lane, deadline: float, waiter: Waiter, request: Request) -> None:
        """Prepare the choice.

        Args:
            lane: The lane of the request.
            deadline: The deadline, on the monotonic clock.
            waiter: The waiter of the request, which is not in line yet.
            request: The needs of the request.
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
            The pool and its connection.

        Raises:
            Unavailable: No connection could be had in time.
            RouterClosed: The router was closed.
            TokenRefused: The token is of another cluster or timeline, and ``tokens.foreign`` is ``refuse``.
        """
        self._admitted()
        while True:
            news = self._waiter.line.news  # read before the choice: the request sees that anything changed after it
            route = self._choose()
            pool = self._open(route)
            taken = self._take(pool) or self._wait(route, pool, news)
            if taken is not None and may_serve(self._in_force, taken[0], taken[1], self._request):
                try:
                    self._waiter.leave()
                except BaseException:
                    taken[0].release(taken[1])
                    raise
                _served(self._in_force, self._target, self._request, taken[0].node)
                return taken
            if taken is not None and _state(self._in_force, taken[0].node).several_servers:
                # The next connection to this address may reach the same server again.
                self._request = self._request._replace(avoid=taken[0].node)

    def _admitted(self) -> None:
        """Wait until the lane's admission lets the request be served."""
        waiter = self._waiter
        if waiter.is_held:
            waiter.line.join(waiter)
        while waiter.is_held and waiter.error is None:
            if monotonic() >= self._deadline:
                raise within_its_limit(self._lane)
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
            self._request = self._request._replace(after=own)  # the first probe has shown that the token is foreign

    def _open(self, route: Route) -> NodePool | None:
        """Open the pool to borrow from next; ``None`` if the request should wait."""
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
                raise no_room(self._lane)
            error = unavailable(self._in_force, route, self._request, late=late)
            if isinstance(error, UnknownTenant):
                self._in_force.lanes.drop(self._lane)
            raise error
        return pool

    def _take(self, pool: NodePool | None) -> Taken | None:
        """Borrow an idle connection, unless other requests wait for that pool."""
        if pool is None or pool.load > len(pool.borrowed) or not pool.idle:
            return None
        scope = self._target.scope
        connection = pool.take() if scope is None else pool.take_for(scope)
        return None if connection is None else (pool, connection)

    def _wait(self, route: Route, pool: NodePool | None, news: int) -> Taken | None:
        """Wait in line for a connection of the chosen pool, or for a change of what is known."""
        waiter, line, until = self._waiter, self._waiter.line, self._deadline
        if line.has(waiter):
            line.accept(waiter, pool)
        else:
            waiter.accepts = pool
            if line.is_full(waiter, self._target.cluster.pool.max_waiting):
                raise too_many_waiting(self._lane, waiter)
            line.join(waiter)
        if pool is not None:
            pool.hand_over()
            with suppress(PoolClosed):
                pool.grow()
        elif self._lacks_room:
            if self._in_force.pools.find_room(waiter):
                return None
        else:
            until = self._choose_again_at(route)
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
        return (pool, connection) if pool.is_usable(connection) else None

    def _choose_again_at(self, route: Route) -> float:
        """When to choose again if nothing changes; the first request in line asks a replica again."""
        self._lane.pool_set.cluster.note_waiting()
        now, asks = monotonic(), bool(route.ask) and self._waiter.line.leads(self._waiter)
        moments = (self._since + SETTLE, self._since + self._target.cluster.read.catch_up)
        return min([now + (ASK_AGAIN if asks else CHOOSE_AGAIN), *(moment for moment in moments if moment > now)])


def _served(in_force: InForce, target: Target, request: Request, node: Node) -> None:
    """Count a read that the primary serves only because of the position it must see, and emit an event."""
    if request.after is None or in_force.clusters.health.get(node.server, UNKNOWN).role is not Role.PRIMARY:
        return
    # Not `routes.choose()`, which raises if the router was closed: the connection has been borrowed already.
    otherwise = choose(target, in_force.clusters.health, request._replace(after=None), now=monotonic(), tie_break=0.0)
    if otherwise.nodes[:1] == (node,):
        return
    in_force.pools.count("for_token", target.cluster.name, read_only=True)
    if in_force.observers.listens_to(ReadOnPrimary):
        in_force.observers.emit([ReadOnPrimary(target.cluster.name, target.tenant, node)])


def _next(in_force: InForce, route: Route, since: float) -> Node | None:
    """The node to borrow from next; ``None`` if the request should wait."""
    if not route.ready or (in_force.routes.is_unsettled(route) and monotonic() < since + SETTLE):
        return None
    best = route.nodes[0]
    if best not in route.ask:
        return best
    asked_at = max(node_state(in_force.clusters.health, node).position_at for node in route.ask)
    if asked_at < since:
        return best
    certain = next((node for node in route.nodes[: route.ready] if node not in route.ask), None)
    now = monotonic()
    if certain is not None and now >= since + route.target.cluster.read.catch_up:
        return certain
    return best if now >= asked_at + ASK_AGAIN else None


def _state(in_force: InForce, node: Node) -> State:
    return in_force.clusters.health.get(node.server, UNKNOWN)
