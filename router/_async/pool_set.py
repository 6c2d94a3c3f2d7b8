"""What the lanes for one cluster and use have in common: the pools of the best nodes, and the line of requests."""

from __future__ import annotations

from itertools import count
from operator import attrgetter
from random import getrandbits
from time import monotonic
from typing import TYPE_CHECKING

from psycopg_pool import PoolClosed

from router._async.choice import CHOOSE_AGAIN, SETTLE
from router._async.line import AsyncLine
from router._async.waiter import ReplicaQueryNeeded, Superseded, Unserved
from router._runtime.calls import Isolated
from router._runtime.flags import AGuard
from router.core.balance import PAIRS, pairs, rotation
from router.core.standing import Request, limits_lag

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

    from router._async.in_force import AsyncInForce
    from router._async.pool.node_pool import AsyncNodePool
    from router._async.waiter import AsyncWaiter
    from router.core.choose import Route
    from router.core.topology import Node, Scope, Target

MOMENT = 0.05
"""Seconds for which a route that was chosen for an error also serves other errors: many requests may fail at once."""

MAY_GROW = attrgetter("may_grow")
PAIRS_BITS = PAIRS.bit_length() - 1


class AsyncPoolSet:
    """The pools of the best nodes of one cluster for one use, and the requests that wait for one of their connections.

    The standings of the servers decide which pools these are. A change of a standing only empties the spread; the next
    request, or the first in line, chooses once for all. How that interleaves with joining the line:

    - ``invalidate()`` counts a generation, empties the spread, and wakes the first in line, in this order.
    - ``refresh()`` notes the generation before it reads the standings, and stores the spread only if the generation is
      still the same; otherwise it chooses again. So no spread outlives a change that it does not include.
    - Of the requests in line, only the first one refreshes, and then serves all: requests that joined before the spread
      was stored are in line by then, and those that join later find it.
    - If it is interrupted before that, the spread stays stale, and when it leaves the line, it wakes the next one.

    Attributes:
        in_force: What is in force in its router.
        target: The target that it serves; if tenants share it, the target of one of them.
        cluster: The cluster of its pools.
        read_only: Whether its requests only read.
        pools: The pools of the best nodes; empty if none is up, or if a standing has changed.
        route: The route that was chosen last.
        limits_lag: Whether a limit on lag applies to its requests.
        line: The requests that wait.
        is_stale: Whether a standing has changed since the pools were chosen.
        lacks_room: Whether another pool has to be closed before one of its pools may be opened.
        is_superseded: Whether requests for the same keys use another pool set by now.
        has_to_ask: Whether replicas have to be asked for their position first, so that each request chooses for itself.
    """

    def __init__(self, in_force: AsyncInForce, target: Target, *, read_only: bool) -> None:
        """Make a pool set without pools.

        Args:
            in_force: What is in force in its router.
            target: The target that it serves.
            read_only: Whether its requests only read.
        """
        self.in_force = in_force
        self.target = target
        self.cluster = in_force.clusters.of(target.watched or target.cluster)
        self.read_only = read_only
        self.pools: tuple[AsyncNodePool, ...] = ()
        self.route: Route | None = None
        self.limits_lag = limits_lag(target.cluster, Request(read_only))
        self.line = AsyncLine(self, is_shared=target.shared)
        self.is_stale = True
        self.is_superseded = False
        self.has_to_ask = False
        self._guard = AGuard()  # guards the replacing of the spread, and _generation
        self._generation = 0
        self.lacks_room = False
        self._unserved = False  # whether waiting makes no sense
        self._first_at: float | None = None  # when the first request came that no pool has served since
        self._has_served = False
        self._opened: dict[Node, AsyncNodePool] = {}  # what was chosen last, as far as it is open
        self._routed_at = 0.0
        self._turns = count()  # its next() is atomic
        self._pairs: tuple[tuple[AsyncNodePool, AsyncNodePool, float, float], ...] = ()
        self._rotation: tuple[AsyncNodePool, ...] = ()

    def pick(self) -> AsyncNodePool | None:
        """Pick the pool for the next request by ``read.balance``.

        Returns:
            The pool; ``None`` if no node is known to be up.
        """
        if self._pairs:
            one, two, weight_one, weight_two = self._pairs[getrandbits(PAIRS_BITS)]
            return one if len(one.borrowed) * weight_two <= len(two.borrowed) * weight_one else two
        if rotation := self._rotation:
            return rotation[next(self._turns) % len(rotation)]
        return None

    def invalidate(self) -> None:
        """Make the next request, or the first in line, choose the pools again."""
        with self._guard:
            self._generation += 1
            self.is_stale = True
            self._opened = {node: pool for node, pool in self._opened.items() if not pool.draining}
            self._spread(())
        self.line.wake_first()

    def supersede(self) -> None:
        """Serve no request any more: requests that wait, or hold an old lane, look up their lanes again."""
        self.is_superseded = True  # first: no pool is opened from now on
        self.invalidate()
        self.line.fail(Superseded())

    def wake_for_room(self) -> bool:
        """Wake the first in line to look for room for a pool; return whether a request still waits for that."""
        return self.lacks_room and self.line.wake_first()

    def refresh(self) -> None:
        """Choose the pools.

        Raises:
            RouterClosed: The router was closed.
        """
        while True:
            generation = self._generation
            pools = self._choose()
            with self._guard:
                if generation == self._generation and not any(pool.draining for pool in pools):
                    self.is_stale = False
                    self._has_served |= bool(pools)
                    self._opened = {pool.node: pool for pool in pools}
                    self._spread(pools)
                    return

    def current_route(self, *, fresh: bool) -> Route:
        """Return the route of its requests, for an error.

        Args:
            fresh: Whether to choose again, unless that was done a moment ago.

        Returns:
            The route.
        """
        now = monotonic()
        if self.route is None or (fresh and now >= self._routed_at + MOMENT):
            self.route, self._routed_at = self.in_force.routes.choose(self.target, Request(self.read_only)), now
        return self.route

    def _choose(self) -> tuple[AsyncNodePool, ...]:
        in_force, target, read_only = self.in_force, self.target, self.read_only
        if self.is_superseded:
            raise Superseded
        # A login of a tenant's that is refused makes no difference to what is ready: see work().
        route = self.route = in_force.routes.choose(
            target, Request(read_only), logins=target.tenant is None, by_load=False
        )
        best = [node for node in route.nodes[: route.best] if node not in route.ask]
        self.has_to_ask = not best and bool(route.ask)
        self._unserved = not route.ready and not route.pending
        self.lacks_room = False
        if not best or (not self._has_served and self._settles(route)):
            return ()
        opened, open_at_once = self._opened, in_force.pools.open_at_once
        found = [opened.get(node) or open_at_once(target, node, read_only=read_only, wants=self) for node in best]
        pools = tuple(pool for pool in found if pool is not None)
        self.lacks_room = not pools
        # Before refresh() looks for draining pools: what drains a pool invalidates the pool set of the line it serves.
        self.line.serves(pools)
        return pools

    def _settles(self, route: Route) -> bool:
        """Whether to wait for the first probe of a server that may be better."""
        if not self.in_force.routes.is_unsettled(route):
            return False
        now = monotonic()
        if self._first_at is None:
            self._first_at = now
        return now < self._first_at + SETTLE

    def _spread(self, pools: tuple[AsyncNodePool, ...]) -> None:
        """Spread requests over these pools; under the guard."""
        if pools != self.pools:
            self.pools = pools
            weights = [pool.node.weight for pool in pools]
            balance = self.target.cluster.read.balance
            self._pairs, self._rotation = (), ()
            if len(pools) > 1 and balance != "round_robin":
                drawn = ((one, one if balance == "random" else two) for one, two in pairs(weights))
                self._pairs = tuple((pools[one], pools[two], weights[one], weights[two]) for one, two in drawn)
            elif pools:
                self._rotation = tuple(pools[place] for place in rotation(weights))
        self.line.serve_from(pools)

    async def take(
        self, scope: Scope | None, picked: AsyncNodePool | None
    ) -> tuple[AsyncNodePool, AsyncConnection[TupleRow]] | None:
        """Borrow a connection that is ready in any of the pools.

        Args:
            scope: The scope of the request's tenant; ``None`` if the pools are not shared.
            picked: The pool that was picked; it opens one more connection if the one taken is from another pool.

        Returns:
            The pool, and the connection; ``None`` if none is ready.
        """
        if picked not in self.pools:
            picked = self.pick()
        for pool in (picked, *self.pools):
            if pool is not None and pool.idle:
                if picked is not None and pool is not picked:
                    with Isolated("could not open a connection to %s", picked.node):
                        await picked.opening.warm_up()
                connection = await (pool.take() if scope is None else pool.take_for(scope))
                if connection is not None:
                    return pool, connection
        return None

    @property
    def has_work(self) -> bool:
        """Whether a request that joins the line may have to do more than to wait for a connection."""
        if self.is_stale or not self.pools or self.has_to_ask or self._unserved or self.target.tenant is not None:
            return True
        return True in map(MAY_GROW, self.pools)

    async def work(self, waiter: AsyncWaiter) -> None:
        """Do for the waiting requests what one of them has to do: choose pools, open connections, hand them over.

        Args:
            waiter: The request that does it.

        Raises:
            RouterClosed: The router was closed.
        """
        in_force = self.in_force
        if waiter.is_held:
            return
        if self.is_stale or not self.pools:
            if not self.line.leads(waiter):
                return  # the first in line does it, and serves all
            self.refresh()
        if self.lacks_room and await in_force.pools.find_room(self):
            self.refresh()
        refused = self.target.tenant is not None and self.in_force.routes.is_login_refused(
            self.target, read_only=self.read_only
        )
        if self.has_to_ask:
            self.line.fail(ReplicaQueryNeeded(), only_plain=True)
        elif self._unserved or (refused and not self._may_log_in()):
            self.line.fail(Unserved(), only_plain=True)
        elif not self.pools and not self.lacks_room:
            self.cluster.note_waiting()
        else:
            await self._serve()

    def _may_log_in(self) -> bool:
        """Whether a tenant's own login is only refused at some of the nodes, or may be tried again."""
        self.route = route = self.in_force.routes.choose(self.target, Request(self.read_only))
        return bool(route.ready) or route.pending

    async def _serve(self) -> None:
        pools = self.pools
        for pool in pools:
            await pool.hand_over()
        if growing := [pool for pool in pools if pool.may_grow]:
            lacking = self.line.waiting - sum(pool.is_growing for pool in pools)
            for pool in sorted(growing, key=_busy)[: max(lacking, 0)]:
                await self._grow(pool)

    async def _grow(self, pool: AsyncNodePool) -> None:
        try:
            await pool.grow()
        except BaseException as error:  # another request has to do it, or this one again
            closed = isinstance(error, PoolClosed)
            if closed:
                await self.in_force.pools.drain(pool)
            self.invalidate()
            if not closed:
                raise

    def patience(self, waiter: AsyncWaiter) -> float:
        """Return the seconds that a request may wait until it calls :meth:`work` again: no limit if a pool serves."""
        if self.pools or not self.line.leads(waiter):
            return float("inf")
        if self._first_at is not None and (left := self._first_at + SETTLE - monotonic()) > 0:
            return min(left, CHOOSE_AGAIN)
        return CHOOSE_AGAIN


def _busy(pool: AsyncNodePool) -> float:
    return len(pool.borrowed) / pool.node.weight
