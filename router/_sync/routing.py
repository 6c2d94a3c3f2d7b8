# Generated from router/_async/routing.py by tools/async_to_sync.py: do not edit.
"""From key to connection when none is ready, and what is learnt on the way."""

from __future__ import annotations

import logging
from dataclasses import replace
from random import random
from time import monotonic
from typing import TYPE_CHECKING

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from router._runtime import Flag, Guard, cut, settled, sleep
from router._sync.checkout import Lane
from router._sync.monitor import Monitor
from router._sync.opener import Opener
from router._sync.pools import NodePool, Reroute, original_of
from router._sync.slots import Slots
from router.choose import Request, Tier, choose, standings
from router.consistency import UNSURE, later
from router.errors import NoPrimary, NoReplica, PoolExhausted, RouterClosed, TokenRefused, TooManyWaiting, Unavailable
from router.events import ConnectionsCut, Event, PoolOpened, changes, succeed
from router.events import PoolClosed as PoolWasClosed
from router.health import UNKNOWN, Connected, Failed, observe, primary_of, same_system, state_of
from router.resolve import resolve
from router.topology import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._runtime import Configure, Password
    from router.choose import Route, Standing
    from router.consistency import Position
    from router.events import Leader, Observer
    from router.health import Health, Seen
    from router.topology import Cluster, Node, Server, Target, Topology

FULL = 1e9
"""The load of a pool that has no connection left to open: more than any other's."""

GRACE = 1.0
"""Seconds that background work gets to end, although the time given for closing has passed."""

SETTLE = 0.2
"""Seconds that the first requests of a version wait until all of its servers have been looked at: the one that is slow
to answer may be the one that was promoted."""

HURRIED = 0.1
"""Seconds between two looks while a version has no primary, or a request waits for a server."""

MISSED = 60.0
"""For so many seconds after a primary was lost there are hurried looks, even if nobody waits."""

ASK_AGAIN = 0.02
"""Seconds until a replica that had not replayed what a read must see is asked again."""

logger = logging.getLogger("router")


class Routing:
    """Everything of one router that changes: what is known, the pools, and the lanes that were worked out from both.

    Attributes:
        topology: What is configured.
        closed: Whether the router was closed.
        health: What is known of the servers.
        pools: By version, node, and whether it only reads.
        readers: The lanes for reading, by the key that requests name.
        writers: Those for writing.
        slots: The process's budget.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        password: Password | None,
        configure: Configure | None,
        observers: Sequence[Observer],
    ) -> None:
        """Begin with nothing known and nothing open.

        Args:
            topology: What is configured.
            password: Gives the password of a node.
            configure: Called with each new connection.
            observers: Told of each event.
        """
        self.topology = topology
        self.closed = False
        self._callables = (password, configure)
        self._observers = tuple(observers)
        self._start()

    def _start(self) -> None:
        password, configure = self._callables
        # Replaced whole, never edited: a reader needs no guard. The lanes are what was worked out from the others.
        self.health: Health = {}
        self.pools: dict[tuple[str, Node, bool], NodePool] = {}
        self.readers: dict[str | None, Lane] = {}
        self.writers: dict[str | None, Lane] = {}
        self._in_use: dict[Server, tuple[Cluster, ...]] = {}
        self._standings: dict[str, tuple[Mapping[Node, Standing], Mapping[Node, Standing]]] = {}  # to read, to write
        self._watched: set[str] = set()  # the versions in use, once all their servers are watched
        self._leaders: dict[str, Leader | None] = {}
        self._changed = Flag()  # set, and replaced, with each thing that is learnt
        self._guard = Guard()  # guards the replacing of all of these
        self._wanted: dict[str, float] = {}  # when a request last waited for a server of a version
        self._asked: set[Server] = set()  # those that a request asks now
        self.slots = Slots(self.topology.max_connections, self._make_room)
        self._opener = Opener(self.slots, self.report, self._suspect, password=password, configure=configure)
        self._monitor = Monitor(
            self._opener, self.topology.health, health=lambda: self.health, report=self.report, pause=self._pause
        )

    # From key to connection

    def lane(self, version: str | None, *, read_only: bool) -> Lane:
        """Work out the lane for a key.

        Args:
            version: The version, or an alias of it; ``None`` takes the default.
            read_only: Whether it is for reading.

        Returns:
            The lane, which serves the key until something changes.

        Raises:
            UnknownVersion: There is no such version.
            RouterClosed: The router was closed.
        """
        lanes = self.readers if read_only else self.writers
        target = resolve(self.topology, version)
        route = self.choose(target, Request(read_only))
        pools = tuple(self._pool(node, target.cluster, read_only=read_only) for node in route.nodes[: route.best])
        lane = Lane(target, pools, self.acquire, self.slots, read_only=read_only)
        # If anything changed since `lanes` was looked up, it is no longer in use, and neither is this lane.
        lanes[version] = lane
        return lane

    def choose(self, target: Target, request: Request, *, prefer: Node | None = None) -> Route:
        """Choose the nodes for a request, by what is known now.

        Args:
            target: What it resolved to.
            request: What it asks for.
            prefer: A node to put first if it is among the best.

        Returns:
            The route.

        Raises:
            RouterClosed: The router was closed.
        """
        if self.closed:
            raise RouterClosed("the router is closed")
        pools = self.pools

        def load(node: Node) -> float:
            pool = pools.get((target.version, node, request.read_only))
            return 0.0 if pool is None else pool.load + FULL * pool.full

        return choose(target, self.health, request, now=monotonic(), turn=random(), load=load, prefer=prefer)

    def acquire(
        self, lane: Lane, deadline: float, prefer: NodePool | None, request: Request | None
    ) -> tuple[NodePool, Connection[TupleRow]]:
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
            TokenRefused: What it must see is of another cluster or timeline, and ``tokens.foreign`` is ``refuse``.
        """
        target, cluster, since = lane.target, lane.target.cluster, monotonic()
        request, patience = request or Request(lane.read_only), ASK_AGAIN
        self._use(cluster)
        while True:
            changed = self._changed  # taken before what is known is looked at: no change after that goes unnoticed
            preferred = None if prefer is None or prefer.full else prefer.node
            route = self.choose(target, request, prefer=preferred)
            node, now = self._next(route, since), monotonic()
            if node is None and (after := self.must_see(target, [request.after])) != request.after:
                request = replace(request, after=after)  # the first look has shown that it is foreign
                continue
            may_catch_up = bool(route.ask) and now < since + cluster.read.catch_up
            if now >= deadline or (node is None and not route.pending and not may_catch_up):
                raise self._unavailable(route, request, late=now >= deadline)
            if node is None or (node in route.ask and node.server in self._asked):
                self._wait(changed, cluster, deadline - now, pause=ASK_AGAIN if route.ask else deadline - now)
                continue
            pool = self._pool(node, cluster, read_only=request.read_only)
            try:
                connection = pool.borrow(deadline - now)
            except TooManyRequests as error:
                raise TooManyWaiting(
                    f"no connection for version {target.requested!r}: {pool.max_waiting} requests wait for one to "
                    f"{node} already (pool.max_waiting)",
                    version=target.requested,
                ) from error
            except Reroute:
                # What it was for may be on its way. If nothing comes, the server refuses: the next attempt can wait.
                changed.wait_for(min(patience, deadline - monotonic()))
                patience = min(2.0 * patience, 0.5)
                continue
            except (PoolTimeout, PoolClosed):
                continue  # choose again, or find that there is no time left
            if request.after is None or self._may_serve(pool, connection, request, ask=node in route.ask):
                return pool, connection

    def must_see(self, target: Target, positions: Iterable[Position | None]) -> Position | None:
        """Put together what a read must see, without what is foreign to its cluster by what is known now.

        Args:
            target: Where it reads.
            positions: What it is asked to see.

        Returns:
            The latest of them; ``None`` when there is none.

        Raises:
            TokenRefused: One is foreign, and ``tokens.foreign`` is ``refuse``.
        """
        asked = [position for position in positions if position is not None]
        primary = primary_of(self.health, target.cluster) if asked else None
        known = UNKNOWN if primary is None else self.health[primary.server]
        seen: Position | None = None
        for position in asked:
            foreign = not same_system(known.system, position.system)
            past = position.lsn == UNSURE or position.timeline < known.timeline
            if self.topology.tokens.foreign == "refuse":
                if foreign:
                    raise TokenRefused(f"the token was made for another cluster than version {target.version!r} is now")
                if position.timeline < known.timeline:
                    raise TokenRefused(
                        f"the token is from before a failover: it is of timeline {position.timeline}, "
                        f"and version {target.version!r} is on timeline {known.timeline}"
                    )
            if foreign or (past and target.cluster.read.fallback != "primary"):
                continue  # only the primary could serve it, and must not
            seen = later(seen, position)
        return seen

    def _next(self, route: Route, since: float) -> Node | None:
        """The node to borrow from next; ``None`` when it is better to wait."""
        if not route.ready or (self._unsettled(route) and monotonic() < since + SETTLE):
            return None
        best = route.nodes[0]
        if best not in route.ask:
            return best
        asked_at = max(state_of(self.health, node).position_at for node in route.ask)
        if asked_at < since:
            return best
        sure = next((node for node in route.nodes[: route.ready] if node not in route.ask), None)
        now = monotonic()
        if sure is not None and now >= since + route.target.cluster.read.catch_up:
            return sure
        return best if now >= asked_at + ASK_AGAIN else None

    def _unsettled(self, route: Route) -> bool:
        """Whether a server that nobody has looked at yet may change what is best."""
        if route.read_only and self.health[route.nodes[0].server].role is not Role.PRIMARY:
            return False
        return any(state_of(self.health, node).up is None for node in route.target.cluster.nodes)

    def _wait(self, changed: Flag, cluster: Cluster, left: float, *, pause: float) -> None:
        first = monotonic() - self._wanted.get(cluster.name, 0.0) > 1.0
        self._wanted[cluster.name] = monotonic()
        if first:  # from a pause of full length
            for node in cluster.nodes:
                self._monitor.hurry(node.server)
        changed.wait_for(min(left, pause, SETTLE))

    def _may_serve(self, pool: NodePool, connection: Connection[TupleRow], request: Request, *, ask: bool) -> bool:
        """Make sure that what a read must see has been replayed where this connection leads to; else give it back.

        What is known of a server is from before a connection that was opened later: it may have been restarted in
        between, and a standby begins anew at an earlier position, or stands now where the primary was.
        """
        state, after = self.health[pool.node.server], request.after
        is_primary = state.role is Role.PRIMARY
        if after is None or (is_primary and connection.pgconn.parameter_status(b"in_hot_standby") == b"off"):
            return True
        has_it = after.reached(state.timeline, state.position)
        if not ask and has_it and original_of(connection).opened_at < state.position_at:
            return True
        self._asked.add(pool.node.server)
        try:
            seen = pool.look(connection)
        except psycopg.Error:
            pool.suspect(pool.node.server)
            pool.give_back(connection)
            return False
        except BaseException:
            connection.close()
            pool.give_back(connection)
            raise
        finally:
            self._asked.discard(pool.node.server)
        self.report(seen)
        if seen.role is Role.PRIMARY:
            has_it = is_primary and seen.timeline >= after.timeline
        else:
            has_it = after.reached(seen.timeline, seen.position)
        if has_it:
            return True
        pool.give_back(connection)
        return False

    def _use(self, cluster: Cluster) -> None:
        """Have the servers of a cluster watched from now on."""
        if cluster.name in self._watched:
            return
        with self._guard:
            if cluster.name not in self._standings:
                for node in cluster.nodes:
                    self._in_use = {**self._in_use, node.server: (*self._in_use.get(node.server, ()), cluster)}
                self._standings = {**self._standings, cluster.name: ({}, {})}
        self._monitor.watch(cluster)
        self._watched.add(cluster.name)  # only now: should a watcher not start, the next request tries again

    def _pool(self, node: Node, cluster: Cluster, *, read_only: bool) -> NodePool:
        key = (cluster.name, node, read_only)
        pool = self.pools.get(key)
        if pool is None:
            with self._guard:
                if self.closed:
                    raise RouterClosed("the router is closed")
                pool = self.pools.get(key)
                if pool is not None:
                    return pool
                pool = NodePool(node, cluster, self._opener, self._suspect, read_only=read_only)
                pool.barred = self._objection(pool)
                self.pools = {**self.pools, key: pool}
            self._tell([PoolOpened(cluster.name, node, read_only)])
        return pool

    def _unavailable(self, route: Route, request: Request, *, late: bool) -> Unavailable:
        version = route.target.requested
        in_time = f"no connection for version {version!r} in time"
        down = [node for node in route.target.cluster.nodes if state_of(self.health, node).up is False]
        if late and self.slots.waiting and not down:
            full = f"{in_time}: all {self.slots.limit} of the process are open (max_connections)"
            return PoolExhausted(full, version=version)
        silent = {}
        for node in route.nodes[: route.ready]:
            pool = self.pools.get((route.target.version, node, route.read_only))
            if pool is not None and pool.grown and not pool.refusal:
                full = f"{in_time}: all {pool.max_size} to {node} are in use (pool.max_size)"
                return PoolExhausted(full, version=version)
            refusal = f": {pool.refusal}" if pool is not None and pool.refusal else ""
            silent[node] = (
                "has not replayed yet what is to be seen"
                if node in route.ask
                else f"gave no connection in time{refusal}"
            )
        kind, use = (NoReplica, "read from") if request.read_only else (NoPrimary, "written to")
        return kind(
            f"no node of version {version!r} can be {use} now",
            version=version,
            attempts=len(down) + len(silent),
            refused={**route.refused, **route.notes, **silent},
        )

    # What is learnt

    def report(self, seen: Seen) -> None:
        """Take note of what was observed, and do what follows from it.

        Args:
            seen: The observation.
        """
        server = seen.node.server
        if isinstance(seen, Connected):
            known = self.health.get(server, UNKNOWN)
            if known.role is not seen.role:
                self._monitor.hurry(server)
            if seen.node not in self.health:
                return
        now, events = monotonic(), list[Event]()
        with self._guard:
            before = self.health
            self.health = observe(before, seen, now=now, jitter=random(), policy=self.topology.health)
            clusters = self._in_use.get(server, ())
            events += changes(before, self.health, clusters, now=now)
            moved = [cluster for cluster in clusters if self._stand(cluster, events, now)]
            if moved:
                self.readers, self.writers = {}, {}
                for pool in self.pools.values():
                    if pool.cluster in moved:
                        pool.barred = self._objection(pool)
            changed, self._changed = self._changed, Flag()
        changed.set()
        if moved or isinstance(seen, Failed):  # before anybody is told: observers may be slow
            for pool in self.pools.values():
                if pool.cluster in clusters and (cut_off := self._follow(pool, now, moved=pool.cluster in moved)):
                    events.append(cut_off)
        self._tell(events)

    def _stand(self, cluster: Cluster, events: list[Event], now: float) -> bool:
        """Work out what the nodes of a cluster are worth now; whether that is new. Under the guard."""
        reading, writing = (standings(cluster, self.health, Request(read_only), now=now) for read_only in (True, False))
        known = self._standings.get(cluster.name)
        self._standings = {**self._standings, cluster.name: (reading, writing)}
        primary = next((node for node, standing in writing.items() if standing.tier is Tier.BEST), None)
        leader, failover = succeed(cluster.name, self._leaders.get(cluster.name), primary, now=now)
        self._leaders = {**self._leaders, cluster.name: leader}
        if failover is not None:
            events.append(failover)
        return known != (reading, writing)

    def _objection(self, pool: NodePool) -> str:
        """Why nobody may use the connections of a pool now; empty if they may. Under the guard."""
        # Of a frozen primary, too, once another has taken over: it may yet carry out a COMMIT that it was sent, and
        # nobody must take that for a success.
        standing = self._standings.get(pool.cluster.name, ({}, {}))[1].get(pool.node)
        return "" if pool.read_only or standing is None or standing.tier is not None else standing.note

    def _follow(self, pool: NodePool, now: float, *, moved: bool) -> ConnectionsCut | None:
        """Have a pool follow what its node is worth by now."""
        node, (reading, writing) = pool.node, self._standings[pool.cluster.name]
        standing, reason = (reading if pool.read_only else writing)[node], pool.barred
        if not reason:
            if standing.tier is not Tier.DOWN:
                if standing.tier is None or (moved and pool.full):  # those who wait may be served elsewhere
                    pool.reroute()
                return None
            state = self.health[node.server]
            # Not from before it was found down: nobody may have asked it for long, for want of a slot, say.
            silent = now - max(state.heard_at, state.since)
            if silent >= self.topology.health.cut_after:
                reason = f"the server has not answered for {silent:.0f} s"
        count = pool.drop(reason)
        return ConnectionsCut(node, count, reason) if count else None

    def _suspect(self, server: Server) -> None:
        """Have a server looked at, because of what a connection showed."""
        self._monitor.hurry(server)

    def _pause(self, server: Server) -> float:
        """How long to wait before the next look at a server."""
        now = monotonic()
        for cluster in self._in_use.get(server, ()):
            leader = self._leaders.get(cluster.name)
            lost_at = None if leader is None else leader.lost_at
            if (lost_at is not None and now < lost_at + MISSED) or now < self._wanted.get(cluster.name, -1.0) + 1.0:
                return min(HURRIED, self.topology.health.interval)
        return self.topology.health.interval

    def _tell(self, events: Iterable[Event]) -> None:
        for event in events:
            logger.log(event.level, "%s", event)
            for observer in self._observers:
                try:
                    observer(event)
                except Exception:
                    logger.exception("an observer failed")

    def _make_room(self) -> bool:
        pool = max(self.pools.values(), key=lambda pool: len(pool.idle), default=None)
        return (pool is not None and pool.evict_idle()) or self._monitor.give_up_one()

    # The end

    def close(self, timeout: float) -> int:
        """Close every pool; no further request is served.

        Args:
            timeout: The most to wait for borrowed connections to come back, in seconds.

        Returns:
            How many borrowed connections were cut because they did not come back in time.
        """
        deadline = monotonic() + timeout
        with self._guard:
            self.closed = True
            pools = list(self.pools.values())
            self.readers, self.writers = {}, {}
        self._changed.set()
        self.slots.close()
        for pool in pools:
            pool.retired = True
            pool.reroute()
        while any(pool.borrowed for pool in pools) and monotonic() < deadline:
            sleep(0.01)
        cut_off = 0
        for pool in pools:
            for connection in list(pool.borrowed):
                cut(connection)
                cut_off += 1
        if cut_off:
            logger.warning("closing the router cut %d connections that were still borrowed", cut_off)
        deadline = max(deadline, monotonic() + GRACE)
        self._monitor.close(max(deadline - monotonic(), 0.0))
        for pool in pools:
            if not pool.closed:
                pool.drop("")  # which psycopg_pool comes to only if its workers end as they should
                settled(pool.close, max(deadline - monotonic(), 0.1))
            self._tell([PoolWasClosed(pool.cluster.name, pool.node, pool.read_only)])
        return cut_off

    def abandon(self) -> None:
        """Start anew in the child of a fork: what is open is the parent's, and is neither used nor closed here."""
        for pool in self.pools.values():
            pool.abandon()
        self._inherited = self._monitor  # what it holds is not to be closed by being forgotten
        self._start()
