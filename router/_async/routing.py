"""From key to connection when none is ready, and what is learnt on the way."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import starmap
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from router._async.checkout import AsyncLane
from router._async.knowledge import AsyncKnowledge
from router._async.pool.node_pool import Reroute
from router._async.pool.opener import AsyncOpener
from router._async.pool.registry import AsyncPools
from router._async.pool.session_state import session_of
from router._async.slots import AsyncGate, AsyncSlots
from router._runtime.calls import Isolated
from router._runtime.flags import AFlag, AGuard, acheck_locks, asleep
from router._runtime.sockets import cut
from router._runtime.workers import ajoin, asettled, aspawn
from router.core.budget import Claim, Full, Limits, full
from router.core.choose import choose
from router.core.consistency import UNSURE, later
from router.core.errors import (
    NoPrimary,
    NoReplica,
    PoolExhausted,
    RouterClosed,
    TokenRefused,
    TooManyWaiting,
    Unavailable,
    UnknownTenant,
)
from router.core.events import ReadOnPrimary, Repeated, RequestFailed
from router.core.health import UNKNOWN, Use, login_of, observe, same_system, state_of
from router.core.observations import Elsewhere
from router.core.replication import primary_of, undecided
from router.core.resolve import check_key, resolve
from router.core.standing import Request, limits_lag, standings
from router.core.topology import Node, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

    from router._async.directory import AsyncDirectory
    from router._async.pool.node_pool import AsyncNodePool
    from router._runtime.calls import AConfigure, APassword
    from router._runtime.workers import AWorker
    from router.core.choose import Route
    from router.core.consistency import Position
    from router.core.events import Observer
    from router.core.health import State
    from router.core.observations import Seen
    from router.core.topology import Cluster, Server, Target, Topology

    Key: TypeAlias = str | tuple[str | None, str] | None  # a version, or a version and a tenant
    Like: TypeAlias = tuple[str, tuple[Node, ...], bool]  # a cluster's name and nodes, and whether it is for reading

FULL = 1e9
"""The load of a pool that has none to lend or open now: more than any other's."""

GRACE = 1.0
"""Seconds that background work gets to end, although the time given for closing has passed."""

SETTLE = 0.2
"""Seconds that the first requests of a version wait until all of its servers have been looked at: the one that is slow
to answer may be the one that was promoted."""

ASK_AGAIN = 0.02
"""Seconds until a replica that had not replayed what a read must see is asked again."""

HOUSEKEEPING = 1.0
"""Seconds between two rounds in which what nobody uses any more is closed."""

REMEMBERED = 20_000
"""How many keys are remembered with what was worked out for them: where a template makes tenants, anybody may name any.
With more than that, all are worked out anew."""

VISITED = 64
"""How many tenants' own servers are watched although no pool is open there: those that were asked for last."""

logger = logging.getLogger("router")


class NotKnownYet(Exception):
    """Where a tenant lives has to be asked first."""


class AsyncRouting:
    """Everything of one router that changes: what is known, the pools, and the lanes that were worked out from both.

    Attributes:
        topology: What is configured.
        closed: Whether the router was closed.
        dropped: Whether nobody has the router any more, and it was not closed.
        directory: Says where tenants live that the settings do not list; ``None`` for nobody.
        known: What is known of the servers.
        pools: Those that are open.
        readers: The lanes for reading, by what requests name.
        writers: Those for writing.
        slots: The process's budget.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        password: APassword | None,
        configure: AConfigure | None,
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
        self.dropped = False
        self.directory: AsyncDirectory | None = None
        self._callables = (password, configure)
        self._observers = tuple(observers)
        self._start()

    def _start(self) -> None:
        password, configure = self._callables
        # Replaced whole, never edited: a reader needs no guard. All are worked out from what is known and configured.
        self.readers: dict[Key, AsyncLane] = {}
        self.writers: dict[Key, AsyncLane] = {}
        self._bases: dict[Like, AsyncLane] = {}  # what the lanes of tenants have in common
        self._targets: dict[Key, Target] = {}
        self._forgotten = 0  # how often forget() was called
        self._gates: WeakValueDictionary[str, AsyncGate] = WeakValueDictionary()  # a lane keeps its own
        self._guard = AGuard()  # guards the replacing of all of these, and what begins with the first request
        self._visited: dict[str, None] = {}  # tenants' own clusters that were asked for last, the latest at the end
        self._asked: set[Server] = set()  # those that a request asks now
        self._closing = AFlag()
        self._housekeeper: AWorker | None = None
        limits = Limits(self.topology.max_connections, self.topology.max_connections_per_server)
        self.slots = AsyncSlots(limits, self._make_room)
        opener = AsyncOpener(
            self.slots,
            self._report,
            self._suspect,
            password=password,
            configure=configure,
        )
        self.known = AsyncKnowledge(
            self.topology.health, opener, self._observers, pools=lambda: self.pools, moved=self._start_lanes_anew
        )
        self.pools = AsyncPools(
            self.topology.max_pools,
            self.topology.versions,
            opener,
            self.known.suspect,
            judge=self.known.judge,
            gone=self._gone,
            tell=self.known.tell,
        )

    async def _report(self, seen: Seen) -> None:
        await self.known.report(seen)

    def _suspect(self, server: Server) -> None:
        self.known.suspect(server)

    def _start_lanes_anew(self) -> None:
        self.readers, self.writers, self._bases = {}, {}, {}

    # From key to connection

    def lane(self, version: str | None, tenant: str | None = None, *, read_only: bool) -> AsyncLane:
        """Work out the lane for a key.

        Args:
            version: The version, or an alias of it; ``None`` takes the tenant's, or the default.
            tenant: The tenant; ``None`` for none.
            read_only: Whether it is for reading.

        Returns:
            The lane, which serves the key until something changes.

        Raises:
            UnknownVersion: There is no such version.
            UnknownTenant: There is no such tenant, or it does not live there.
            NotKnownYet: Where the tenant lives has to be asked.
            RouterClosed: The router was closed.
        """
        if len(self.readers if read_only else self.writers) >= REMEMBERED:
            with self._guard:
                self._start_lanes_anew()
        lanes, bases, forgotten = self.readers if read_only else self.writers, self._bases, self._forgotten
        key: Key = version if tenant is None else (version, tenant)
        target = self.target(version, tenant)
        if not target.shared:
            lane = self._lane_over(target, read_only=read_only)
            if tenant is not None:
                for pool in lane.pools:
                    pool.keys.add(key)
                    pool.outdated |= pool.policy != target.policy
        else:
            like = (target.cluster.name, target.cluster.nodes, read_only)
            base = bases.get(like)
            if base is None:
                base = bases[like] = self._lane_over(target, read_only=read_only)
            lane = base.of(target, self._gate(target))
        lane.key = key
        # If servers changed since `lanes` was looked up, it is no longer in use, and neither is this lane.
        lanes[key] = lane
        if self._forgotten != forgotten:
            lanes.pop(key, None)
        return lane

    def _lane_over(self, target: Target, *, read_only: bool) -> AsyncLane:
        # A login of a tenant's that is refused makes no difference to the lane: acquire() leaves it out for a while.
        route = self.choose(target, Request(read_only), logins=target.tenant is None)
        best = [node for node in route.nodes[: route.best] if node not in route.ask]
        pools = [self.pools.open_at_once(target, node, read_only=read_only) for node in best]
        there = tuple(pool for pool in pools if pool is not None)
        return AsyncLane(
            target, there, self.acquire, self.slots, read_only=read_only, unlist=self.unlist, failed=self._failed
        )

    def target(self, version: str | None, tenant: str | None) -> Target:
        """Resolve what a request names, by the settings and by what the directory has said.

        Args:
            version: The version, or an alias of it; ``None`` takes the tenant's, or the default.
            tenant: The tenant; ``None`` for none.

        Returns:
            The target.

        Raises:
            UnknownVersion: There is no such version.
            UnknownTenant: There is no such tenant, or it does not live there.
            NotKnownYet: Where the tenant lives has to be asked.
        """
        if tenant is None:
            return resolve(self.topology, version)
        key: Key = (version, tenant)
        if len(self._targets) >= REMEMBERED:
            self._targets = {}
        targets, forgotten = self._targets, self._forgotten
        target = targets.get(key) if isinstance(tenant, str) else None
        if target is None:
            home, tenancy = None, self.topology.tenancy
            if self.directory is not None and tenancy is not None:
                check_key(tenancy.pattern, tenant)
                if tenant not in tenancy.homes and (home := self.directory.known(tenant)) is None:
                    raise NotKnownYet
            target = targets[key] = resolve(self.topology, version, tenant, home)
            if self._forgotten != forgotten:  # it may be from before
                targets.pop(key, None)
        return target

    def forget(self, tenant: str | None) -> None:
        """Work out anew where a tenant lives, from its next request on.

        Args:
            tenant: The tenant; ``None`` for all of them.
        """
        with self._guard:
            self._forgotten += 1  # first: who has looked before stores nothing after this, or before what follows
            if tenant is None:
                self._targets, self._bases, self.readers, self.writers = {}, {}, {}, {}
                return
            for version in (None, *self.topology.versions, *self.topology.aliases):
                for known in (self._targets, self.readers, self.writers):
                    known.pop((version, tenant), None)

    def unlist(self, lane: AsyncLane) -> None:
        """Keep nothing of a tenant that turned out not to be there: anybody may ask for anything.

        Args:
            lane: Its lane.
        """
        for known in (self._targets, self.readers, self.writers):
            known.pop(lane.key, None)

    async def _drop(self, lane: AsyncLane) -> None:
        """Close the pools that were opened for a tenant that turned out not to be there."""
        self.unlist(lane)
        for pool in list(self.pools):
            if pool.tenant == lane.target.tenant and not pool.in_use and not pool.idle:
                await self.pools.retire(pool)

    def _gate(self, target: Target) -> AsyncGate | None:
        tenant, most = target.tenant, target.policy.max_connections
        if tenant is None or most is None:
            return None
        with self._guard:
            gate = self._gates.get(tenant)
            if gate is None:
                gate = self._gates[tenant] = AsyncGate(most)
            elif gate.limit != most:
                gate.limit = most
            return gate

    def choose(self, target: Target, request: Request, *, prefer: Node | None = None, logins: bool = True) -> Route:
        """Choose the nodes for a request, by what is known now.

        Args:
            target: What it resolved to.
            request: What it asks for.
            prefer: A node to put first if it is among the best.
            logins: Whether it matters that a login is refused.

        Returns:
            The route.

        Raises:
            RouterClosed: The router was closed.
        """
        if self.closed:
            raise RouterClosed("the router is closed")
        pools = self.pools

        def load(node: Node) -> float:
            pool = pools.get(target, node, read_only=request.read_only)
            return 0.0 if pool is None else pool.load + FULL * pool.full

        health, now = self.known.health, monotonic()
        if target.watched is not None and target.watched is not target.cluster:
            # Nobody but requests tries a tenant's own logins: one that was refused is tried again when it is time.
            refused = [
                login
                for node in target.cluster.nodes
                for login in (node, Use(node, request.read_only))
                if login in health
            ]
            again = {login for login in refused if not logins or now >= health[login].banned_until}
            health = {key: state for key, state in health.items() if key not in again} if again else health
            if target.watched.name not in self.topology.versions:  # servers of its own: looks log in as it does
                pairs = zip(target.cluster.nodes, target.watched.nodes, strict=True)
                theirs = {node: login_of(health, seen, read_only=request.read_only) for node, seen in pairs}
                health = {**{node: login for node, login in theirs.items() if login is not None}, **health}
        return choose(target, health, request, now=now, turn=random(), load=load, prefer=prefer)

    async def acquire(
        self, lane: AsyncLane, deadline: float, prefer: AsyncNodePool | None, request: Request | None
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
        acheck_locks()
        if lane.slots is not self.slots:
            raise RuntimeError("this checkout was made before a fork: call connection() in the process that uses it")
        # The lane's only pool, or one that can grow: nothing better to choose as long as the lane is in use. Not at the
        # very first, when a server that nobody has looked at yet may turn out to be better; nor when it is too late.
        direct = request is None and monotonic() < deadline
        if direct and prefer is not None and not prefer.closed and (len(lane.pools) == 1 or not prefer.full):
            with suppress(Reroute, TooManyRequests, PoolTimeout, PoolClosed):  # then look closer
                return prefer, await prefer.borrow(deadline - monotonic(), lane.target.scope)
        try:
            return await self._acquire_best(lane, deadline, prefer, request)
        except Unavailable as error:
            self._failed(lane, error)
            raise

    async def _acquire_best(
        self, lane: AsyncLane, deadline: float, prefer: AsyncNodePool | None, request: Request | None
    ) -> tuple[AsyncNodePool, AsyncConnection[TupleRow]]:
        target, cluster, since = lane.target, lane.target.cluster, monotonic()
        request, patience = request or Request(lane.read_only), ASK_AGAIN
        while True:
            self._use(target.watched or cluster)
            changed = self.known.changed  # taken before what is known is looked at: no change after that goes unnoticed
            preferred = None if prefer is None or prefer.full else prefer.node
            route = self.choose(target, request, prefer=preferred)
            node, now = self._next(route, since), monotonic()
            if node is None and (after := self.must_see(target, [request.after])) != request.after:
                request = request._replace(after=after)  # the first look has shown that it is foreign
                continue
            may_catch_up = bool(route.ask) and now < since + cluster.read.catch_up
            if now >= deadline or (node is None and not route.pending and not may_catch_up):
                error = self._unavailable(route, request, late=now >= deadline)
                if isinstance(error, UnknownTenant):
                    await self._drop(lane)
                raise error
            if node is None or (node in route.ask and node.server in self._asked):
                await self._wait(changed, cluster, deadline - now, pause=ASK_AGAIN if route.ask else deadline - now)
                continue
            try:
                pool, connection = await self._borrow(target, node, deadline, read_only=request.read_only)
            except Reroute:
                # What it was for may be on its way. If nothing comes, the server refuses: the next attempt can wait.
                await changed.wait_for(min(patience, deadline - monotonic()))
                patience = min(2.0 * patience, 0.5)
                continue
            except (PoolTimeout, PoolClosed):
                continue  # choose again, or find that there is no time left
            if await self._may_serve(pool, connection, request):
                if pool not in lane.pools and node in route.nodes[: route.best] and (request.after or not route.ask):
                    self._renew(lane)
                self._served(target, request, node)
                return pool, connection
            # Where several servers answer, the next connection may lead to the same one.
            request = request._replace(
                avoid=node if self.known.health.get(node.server, UNKNOWN).several else request.avoid
            )

    async def _borrow(
        self, target: Target, node: Node, deadline: float, *, read_only: bool
    ) -> tuple[AsyncNodePool, AsyncConnection[TupleRow]]:
        whom, asked = _whom(target), _asked(target)
        pool = await self.pools.open(target, node, read_only=read_only, timeout=deadline - monotonic())
        if pool is None:
            full = f"all {self.topology.max_pools} pools are in use (max_pools)"
            raise PoolExhausted(f"no connection {whom} in time: {full}", **asked)
        try:
            return pool, await pool.borrow(deadline - monotonic(), target.scope)
        except TooManyRequests as error:
            full = f"{pool.max_waiting} requests wait for one to {node} already (pool.max_waiting)"
            raise TooManyWaiting(f"no connection {whom}: {full}", **asked) from error
        finally:
            pool.expected.pop()

    def _failed(self, lane: AsyncLane, error: Unavailable) -> None:
        """Count a request that got no connection, and tell of it."""
        target, read_only, name = lane.target, lane.read_only, type(error).__name__
        what = "exhausted" if isinstance(error, PoolExhausted) else "unavailable"
        self.pools.count(what, target.cluster.name, read_only=read_only)
        if self.known.heard(RequestFailed):
            reason = str(error).replace("\n  -", ";")
            self.known.tell([RequestFailed(target.cluster.name, target.tenant, read_only, name, reason)])

    def _served(self, target: Target, request: Request, node: Node) -> None:
        """Count a read that the primary serves only because of what it must see, and tell of it."""
        if request.after is None or self.known.health.get(node.server, UNKNOWN).role is not Role.PRIMARY:
            return
        # Not what checks first whether the router was closed: the connection has been borrowed.
        otherwise = choose(target, self.known.health, request._replace(after=None), now=monotonic(), turn=0.0)
        if otherwise.nodes[:1] == (node,):
            return
        self.pools.count("for_token", target.cluster.name, read_only=True)
        if self.known.heard(ReadOnPrimary):
            self.known.tell([ReadOnPrimary(target.cluster.name, target.tenant, node)])

    def repeated(self, pool: AsyncNodePool, tenant: str | None, error: psycopg.Error) -> None:
        """Count what is run again, and tell of it.

        Args:
            pool: Where it failed.
            tenant: Whose it is, if it is a tenant's.
            error: How it failed.
        """
        self.pools.count("repeated", pool.cluster.name, read_only=pool.read_only)
        if self.known.heard(Repeated):
            # Not its text, which may hold data.
            reason = type(error).__name__ + (f" ({error.sqlstate})" if error.sqlstate else "")
            self.known.tell([Repeated(pool.cluster.name, tenant, pool.read_only, pool.node, reason)])

    def _renew(self, lane: AsyncLane) -> None:
        """Have a lane worked out anew: one of its pools was opened after it was made."""
        cluster = lane.target.cluster
        (self.readers if lane.read_only else self.writers).pop(lane.key, None)
        self._bases.pop((cluster.name, cluster.nodes, lane.read_only), None)

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
        primary = primary_of(self.known.health, target.cluster) if asked else None
        known = UNKNOWN if primary is None else self.known.health.get(primary.server, UNKNOWN)
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
        asked_at = max(state_of(self.known.health, node).position_at for node in route.ask)
        if asked_at < since:
            return best
        sure = next((node for node in route.nodes[: route.ready] if node not in route.ask), None)
        now = monotonic()
        if sure is not None and now >= since + route.target.cluster.read.catch_up:
            return sure
        return best if now >= asked_at + ASK_AGAIN else None

    def _unsettled(self, route: Route) -> bool:
        """Whether a server that nobody has looked at yet may change what is best."""
        if route.read_only and self.known.health.get(route.nodes[0].server, UNKNOWN).role is not Role.PRIMARY:
            return undecided(self.known.health, route.target.cluster)
        return any(state_of(self.known.health, node).up is None for node in route.target.cluster.nodes)

    async def _wait(self, changed: AFlag, cluster: Cluster, left: float, *, pause: float) -> None:
        self.known.wants(cluster)
        await changed.wait_for(min(left, pause, SETTLE))

    async def _may_serve(self, pool: AsyncNodePool, connection: AsyncConnection[TupleRow], request: Request) -> bool:
        """Make sure that where this connection leads to is as far as a request asks for; else give it back.

        What is known of a server is from before a connection that was opened later: it may have been restarted in
        between, and a standby begins anew at an earlier position, or stands now where the primary was. And where
        several servers answer, it is known of the one that the last look led to.
        """
        original, after = session_of(connection), request.after
        state = self.known.health.get(pool.node.server, UNKNOWN)
        is_primary = state.role is Role.PRIMARY
        here = original.process == state.process or (pool.node.pooler is not None and not state.several)
        if after is None and ((here and not state.several) or not limits_lag(pool.cluster, request)):
            return True
        if is_primary and connection.pgconn.parameter_status(b"in_hot_standby") == b"off":
            return True
        known = here and self._is_fit(pool, request, state)
        if known and (after is None or original.opened_at < state.position_at):
            return True
        # What is known of a primary is no answer to another request, nor what is true of this connection only.
        alone = here and not known and not is_primary
        if await self._ask_over(pool, connection, request, state, alone=alone):
            return True
        await pool.give_back(connection)
        if state.several:
            await asleep(ASK_AGAIN)
        return False

    async def _ask_over(
        self,
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
            with self._guard:
                others_ask = server in self._asked
                self._asked.add(server)
            if others_ask:  # the answer is for all
                return False
        try:
            seen = await pool.look(connection)
            here = seen.process == state.process or not state.several
            await self.known.report(seen if here else Elsewhere(pool.node, seen.process))
        except psycopg.Error:
            pool.suspect(server)
            await connection.close()
            return False
        except BaseException:
            await connection.close()
            await pool.give_back(connection)
            raise
        finally:
            if alone:
                self._asked.discard(server)
        session_of(connection).process = seen.process
        after = request.after
        if after is None or not here:
            # Not after what is known: that may be of another server.
            found = observe({}, seen, now=monotonic(), jitter=0.0, policy=self.topology.health)
            return self._is_fit(pool, request, found[server])
        if seen.role is Role.PRIMARY:
            return state.role is Role.PRIMARY and seen.timeline >= after.timeline
        return after.reached(seen.timeline, seen.position)

    def _is_fit(self, pool: AsyncNodePool, request: Request, state: State) -> bool:
        """Whether a server in such a state may serve a read, without having to be asked."""
        health = {**self.known.health, pool.node.server: replace(state, several=False)}
        standing = standings(pool.cluster, health, request, now=monotonic())[pool.node]
        return standing.tier is not None and not standing.ask

    def _use(self, cluster: Cluster) -> None:
        self.known.use(cluster)
        if cluster.name not in self.topology.versions:
            self._visit(cluster.name)
        if self._housekeeper is None:
            with self._guard:
                if self._housekeeper is None and not self.closed:
                    self._housekeeper = aspawn(self._keep_house, "router keeps house")

    def _visit(self, name: str) -> None:
        """Watch a tenant's own servers before any pool is open there, in place of those asked for longest ago."""
        with self._guard:
            self._visited.pop(name, None)
            self._visited[name] = None
            if len(self._visited) <= VISITED:
                return
            oldest = next(iter(self._visited))
            del self._visited[oldest]
        if not any(pool.cluster.name == oldest for pool in self.pools):
            self.known.leave(oldest)

    @property
    def begun(self) -> bool:
        """Whether there is something to close."""
        return self._housekeeper is not None and not self.closed

    async def _keep_house(self) -> None:
        try:
            while not await self._closing.wait_for(HOUSEKEEPING):
                await self._keep_house_once()
                if self.dropped and await self._ended():
                    return
        finally:
            if self.dropped and not self.closed:  # its event loop ends
                self.discard()

    async def _ended(self) -> bool:
        """Close it all once nobody has a connection any more; whether that is done."""
        if self.directory is not None:  # which has one
            await self.directory.close(GRACE)
        if any(pool.in_use for pool in self.pools):
            return False
        self._housekeeper = None  # else it would wait for itself
        await self.close(GRACE)
        return True

    async def _keep_house_once(self) -> None:
        with Isolated("could not close what is not used"):
            await self.pools.sweep()
        with Isolated("could not find out which connections have ended"):
            self.slots.sweep()
        with Isolated("could not ask the directory again"):
            if self.directory is not None:
                self.directory.tick(monotonic())

    def _gone(self, pool: AsyncNodePool) -> None:
        """Forget what was worked out with a pool; and the servers of a tenant's own, when it was their last pool."""
        lanes = self.readers if pool.read_only else self.writers
        if pool.tenant is None:
            self._start_lanes_anew()
        for key in list(pool.keys):
            lanes.pop(key, None)
        if pool.tenant is not None and not any(other.node == pool.node for other in self.pools):
            self.known.forget_login(pool.node)
        name = pool.cluster.name
        if name not in self.topology.versions and not any(other.cluster.name == name for other in self.pools):
            self.known.leave(name)

    def _unavailable(self, route: Route, request: Request, *, late: bool) -> Unavailable | UnknownTenant:
        target = route.target
        asked, whom = _asked(target), _whom(target)
        in_time = f"no connection {whom} in time"
        health, read_only = self.known.health, request.read_only
        down = [node for node in target.cluster.nodes if state_of(health, node, read_only=read_only).up is False]
        silent, ready = {}, route.nodes[: route.ready]
        for node in ready or (target.cluster.nodes if late and not down else ()):
            pool = self.pools.get(target, node, read_only=route.read_only)
            claim = Claim(node.server, "", None) if pool is None else pool.claim  # without a pool: for a look at it
            if pool is not None and pool.refusal:
                why = f"{node} {pool.refusal}"
            elif pool is not None and pool.grown and not pool.doubted:
                most = _holding_most([pool]) if pool.shared else ""
                why = f"all {pool.max_size} to {node} are in use (pool.max_size){most}"
            elif not late or not (why := self._spent(claim)):
                if node in ready:
                    asking = node in route.ask
                    silent[node] = "has not replayed yet what is to be seen" if asking else "gave no connection in time"
                continue
            return PoolExhausted(f"{in_time}: {why}", **asked)
        refused = {**route.refused, **route.notes, **silent}
        nodes = list(target.cluster.nodes)
        if target.watched is not None and target.watched.name not in self.topology.versions:
            nodes += target.watched.nodes
        logins = {node: login for node in nodes if (login := login_of(health, node, read_only=read_only)) is not None}
        if target.tenant is not None and logins and all(starmap(self._is_missing, logins.items())):
            return UnknownTenant(target.tenant, next(iter(logins.values())).reason, version=target.requested)
        kind, use = (NoReplica, "read from") if request.read_only else (NoPrimary, "written to")
        return kind(
            f"no node {_whom(target, 'of')} can be {use} now",
            attempts=len(down) + len(silent),
            refused=refused,
            **asked,
        )

    def _spent(self, claim: Claim) -> str:
        """Say which limit keeps one more connection from being opened, and who has most of it; empty if none does."""
        limits = self.slots.limits
        match full(limits, self.slots.taken, claim):
            case Full.HOLDER:
                return f"{claim.holder} has all {claim.cap} that it may (tenancy.max_connections)"
            case Full.SERVER:
                most = _holding_most(pool for pool in self.pools if pool.node.server == claim.server)
                return f"all {limits.server} to {claim.server} are open (max_connections_per_server){most}"
            case Full.PROCESS:
                return f"all {limits.process} of the process are open (max_connections){_holding_most(self.pools)}"
            case None if any(turn.claim is claim for turn in list(self.slots.waiting)):
                return "others came first for those of the process (max_connections)"  # and go on coming
            case None:
                return ""

    def _is_missing(self, node: Node, refused: State) -> bool:
        """Whether a login failed because something of the tenant's own is not there."""
        if refused.lacks not in {"dbname", "user"}:
            return bool(refused.lacks)
        name = dict(node.params).get(refused.lacks)
        return not any(
            name == dict(other.params).get(refused.lacks)
            for cluster in self.topology.versions.values()
            for other in cluster.nodes
        )

    async def _make_room(self, taken: list[Claim], waiting: list[Claim]) -> int | None:
        limits = self.slots.limits
        index = await self.pools.make_room(limits, taken, waiting)
        return await self.known.monitor.make_room(limits, taken, waiting) if index is None else index

    # The end

    async def close(self, timeout: float) -> int:
        """Close every pool; no further request is served.

        Args:
            timeout: The most to wait for borrowed connections to come back, in seconds.

        Returns:
            How many borrowed connections were cut because they did not come back in time.
        """
        deadline = monotonic() + timeout
        with self._guard:
            self.closed = True
            self._start_lanes_anew()
        pools = self.pools.close()
        self._closing.set()
        self.known.changed.set()
        with Isolated("could not close the directory of tenants"):
            if self.directory is not None:
                await self.directory.close(GRACE)
        self.slots.close()
        cut_off = await _emptied(pools, deadline)
        deadline = max(deadline, monotonic() + GRACE)
        with Isolated("could not stop looking at the servers"):
            await self.known.monitor.close(max(deadline - monotonic(), 0.0))
        for pool in pools:
            with Isolated("could not close the pool to %s", pool.node):
                if not pool.closed:
                    await pool.drop("")  # which psycopg_pool comes to only if its workers end as they should
                    await asettled(pool.close, max(deadline - monotonic(), 0.1))
            self.pools.forget(pool)
        if self._housekeeper is not None:
            await ajoin(self._housekeeper, max(deadline - monotonic(), 0.0))
        return cut_off

    def discard(self) -> int:
        """Close every connection at once, when nothing that uses them can run any more.

        Returns:
            How many of them were borrowed.
        """
        self.closed = True
        self._start_lanes_anew()
        pools = self.pools.close()
        borrowed = sum(len(pool.borrowed) for pool in pools)
        self.slots.discard()
        for pool in pools:
            pool.abandon()
        return borrowed

    def abandon(self) -> None:
        """Start anew in the child of a fork: what is open is the parent's, and is neither used nor closed here."""
        for pool in self.pools:
            pool.abandon()
        self.known.monitor.abandon()
        self._inherited = self.known  # what it holds is not to be closed by being forgotten
        self._start()


async def _emptied(pools: Sequence[AsyncNodePool], deadline: float) -> int:
    """Let nobody borrow any more, wait for what is out, and cut the rest; how many that was."""
    for pool in pools:
        pool.retired = True
        await pool.reroute()
    while any(pool.borrowed for pool in pools) and monotonic() < deadline:
        await asleep(0.01)
        for pool in pools:
            if pool.lost:
                await pool.reclaim()
    lent = [original.connection() for pool in pools for original in list(pool.borrowed)]
    cut_off = [connection for connection in lent if connection is not None]
    for connection in cut_off:
        cut(connection)
    if cut_off:
        logger.warning("closing the router cut %d connections that were still borrowed", len(cut_off))
    return len(cut_off)


def _holding_most(pools: Iterable[AsyncNodePool]) -> str:
    """Say who has most connections out; empty if nobody has any."""
    holders = Counter[str]()
    for pool in pools:
        if pool.shared or pool.tenant:
            holders.update(f"tenant {tenant}" for tenant in pool.holders())
        else:
            holders[pool.cluster.name] += len(pool.borrowed)
    return "".join(f"; {holder} holds {number} of them" for holder, number in holders.most_common(1) if number)


def _asked(target: Target) -> dict[str, Any]:
    return {"version": target.requested, "tenant": target.tenant}


def _whom(target: Target, preposition: str = "for") -> str:
    """Whom a request is for, in an error."""
    if target.tenant is None:
        return f"{preposition} version {target.requested!r}"
    return f"{preposition} tenant {target.tenant!r}" + (f" in version {target.requested!r}" if target.requested else "")
