"""A pool for one node, to read or to write: it lends the connections that ``psycopg_pool`` opens and keeps."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from router._async.pool.closer import AsyncCloser
from router._async.pool.connection import end_session
from router._async.pool.counts import Counts
from router._async.pool.inside.connection import LENT_BY
from router._async.pool.inside.pool import AsyncDriverPool
from router._async.pool.opening import AsyncOpening
from router._async.pool.quarantine import AsyncQuarantine
from router._async.pool.release import AsyncRelease
from router._async.pool.session_state import borrower, session_of, shows_resource_warnings
from router._async.pool.sessions import AsyncPoolSessions
from router._async.waiter import AsyncPoolLine
from router._runtime.calls import ashielded
from router.core.budget import Full, Idle, budget_key

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

    from router._async.cluster import AsyncCluster
    from router._async.line import AsyncLine
    from router._async.pool.opener import AsyncOpener
    from router._async.pool.session_state import SessionState
    from router._async.slot import AsyncSlotRequest
    from router.core.topology import Node, Scope, Target


class AsyncNodePool:
    """The connections of one node for one use.

    Attributes:
        name: Its name in the log.
        min_size: How many connections it keeps open.
        max_size: How many connections it may have.
        node: What it connects to.
        target: The target that it serves.
        cluster: The cluster that the node serves, with the connection parameters of the tenant, if there is one.
        watched: The cluster as it is watched: the object that has the pool in its list and decides what is cut.
        read_only: Whether its sessions refuse writes.
        tenant: The tenant whose pool it is; ``None`` for the pool of a version, and for one that tenants share.
        shared: Whether tenants share it.
        budget_key: The key under which each of its connections is counted in the budget.
        waiting: The part of the line that this pool may serve.
        lock: Guards ``kept``, the number of connections, and handing them to the line. :meth:`take` takes no lock.
        kept: Its idle connections, the one that has been idle longest first.
        idle: The connections that may be borrowed: those in ``kept``, or none while the pool is in quarantine.
        fewest_idle: The fewest connections that were idle since it last shrank; an approximate number is enough.
        sessions: Its sessions.
        borrowed: The sessions that are borrowed.
        notes_borrower: Whether to note where each connection is borrowed. Since that is slow, it is only done if a
            ``ResourceWarning`` would be shown, or once a connection was dropped.
        inherited: Whether it belongs to the parent of a fork: its connections may be neither used nor closed here.
        fenced_reason: Why no request may use its connections now; empty while they may. It is set before the closer
            looks at the borrowed sessions: a request that borrows at that moment sees this, or is seen there.
        behind: Whether an observation of its server has not been applied to it yet.
        draining: Whether it lends no connection any more; it is removed when its last connection is returned.
        counts: How many connections it has lent, opened and failed to open.
        opening: Opens its connections.
        closer: Closes its connections.
        release: Takes a borrowed connection back.
        quarantine: Keeps idle connections from being lent for a while.
    """

    def __init__(
        self,
        node: Node,
        target: Target,
        watched: AsyncCluster,
        opener: AsyncOpener,
        *,
        read_only: bool,
    ) -> None:
        """Make the pool; no connection is opened yet.

        Args:
            node: What to connect to.
            target: The target that it serves.
            watched: The cluster that it serves, as it is watched.
            opener: Opens each connection.
            read_only: Whether sessions refuse writes.
        """
        cluster = target.cluster
        policy = cluster.pool
        self.tenant = None if target.shared else target.tenant
        self.shared = target.shared
        whose = f"{cluster.name}{' tenants' if self.shared else f' {self.tenant}' if self.tenant else ''}"
        self.name = f"{whose} {node} {'read' if read_only else 'write'}"
        self.min_size, self.max_size = policy.min_size, policy.max_size
        self.node = node
        self.target = target
        self.cluster = cluster
        self.watched = watched
        self.read_only = read_only
        cap = None if self.tenant is None else target.policy.max_connections
        self.budget_key = budget_key(node, f"tenant {self.tenant}" if self.tenant else cluster.name, cap)
        self.waiting = AsyncPoolLine(self)
        self._driver = AsyncDriverPool(self, self.name, policy, self.waiting)
        self.lock = self._driver.lock
        self.kept = self.idle = self._driver.kept
        self.fewest_idle = policy.min_size
        self.sessions = AsyncPoolSessions(self, self._driver)
        self.borrowed = self.sessions.borrowed
        self.notes_borrower = shows_resource_warnings()
        self.inherited = False
        self.fenced_reason = ""
        self.behind = False
        self.draining = False
        self.counts = Counts()
        self._opener = opener
        self.opening = AsyncOpening(self, self._driver, opener)
        self.closer = AsyncCloser(self, self.sessions, opener.slots)
        # Bound here for the hot path: a method that delegates would cost one more call for each block.
        self.release = AsyncRelease(self, self.sessions, self.closer).release
        self.quarantine = AsyncQuarantine(self)
        self._used_at = monotonic()  # when a request last needed a connection that was not ready

    @property
    def closed(self) -> bool:
        """Whether it has not been opened yet, or was closed."""
        return self._driver.closed

    @property
    def size(self) -> int:
        """How many connections it has, borrowed ones and those being opened included."""
        return self._driver.size

    @property
    def in_use(self) -> bool:
        """Whether one of its connections is borrowed, or a request waits for one."""
        return bool(self.borrowed or self.waiting)

    @property
    def used_at(self) -> float:
        """When it was last used, on the monotonic clock."""
        try:
            return max(session_of(self.kept[-1]).idle_since, self._used_at)
        except IndexError:
            return self._used_at

    @property
    def longest_idle(self) -> Idle | None:
        """The connection that has been idle longest, as the budget sees it."""
        try:
            since = session_of(self.kept[0]).idle_since
        except IndexError:
            return None
        return Idle(self.budget_key, since, warm=self.size <= self.min_size)

    def holders(self) -> list[str]:
        """List the tenants of the borrowed connections, one entry for each connection; empty for a version's pool."""
        return [] if self.tenant is None else [self.tenant] * len(self.borrowed)

    @property
    def load(self) -> int:
        """How many requests have a connection of it, or wait for one."""
        return len(self.borrowed) + self.waiting.number()

    @property
    def quarantined(self) -> bool:
        """Whether no idle connection is lent, because all their sessions may be about to end."""
        return self.idle is not self.kept and not self.draining

    @property
    def full(self) -> bool:
        """Whether it has no connection to lend and may open none, or lends none because it is in quarantine."""
        if self.quarantined or len(self.borrowed) >= self.max_size:
            return True
        return not self.kept and self._opener.slots.full(self.budget_key) is Full.LOGIN

    @property
    def at_max_size(self) -> bool:
        """Whether it has as many connections as it may have."""
        return self.size >= self.max_size

    @property
    def line(self) -> AsyncLine | None:
        """The line in which requests wait for its connections; ``None`` while it is in no pool set."""
        return self.waiting.line

    @property
    def kept_back(self) -> int:
        """How many idle connections it does not lend now, since they are in quarantine."""
        return len(self.kept) if self.quarantined else 0

    @property
    def may_grow(self) -> bool:
        """Whether it may open one more connection; a pool that is not open yet may, which opens the pool."""
        return self._driver.may_grow

    @property
    def is_growing(self) -> bool:
        """Whether it is opening one more connection."""
        return self._driver.is_growing

    @property
    def adding(self) -> int:
        """How many connections are being opened, or are due to be."""
        return self._driver.adding

    async def take(self) -> AsyncConnection[TupleRow] | None:
        """Borrow an idle connection: what ``getconn()`` does if there is one, and the hot path.

        Returns:
            The connection, or ``None`` when none is ready.
        """
        idle = self.idle
        while idle:
            try:
                connection = idle.popleft()  # atomic
            except IndexError:
                break
            if (left := len(idle)) < self.fewest_idle:
                self.fewest_idle = left
            session: SessionState = connection._router  # type: ignore[attr-defined]  # noqa: SLF001  (the router's own)
            if (session.pgconn.transaction_status or monotonic() >= session.fresh_until) and not await session.lives():
                async with self.lock:  # guards the size
                    self.sessions.count_out(session)
                continue
            self.counts.taken += 1
            session.attributes[LENT_BY] = self
            self.borrowed.add(session)
            if self.notes_borrower:
                session.borrowed_at = borrower()
            if self.fenced_reason and not await self.is_usable(connection):
                return None
            return connection
        return None

    async def take_for(self, scope: Scope) -> AsyncConnection[TupleRow] | None:
        """Borrow an idle connection, preferably the one that the tenant had last.

        Args:
            scope: The tenant that it is for.

        Returns:
            The connection, or ``None`` when none is ready.
        """
        del scope  # all connections serve the same tenant here
        return await self.take()

    def note_lent(self, connection: AsyncConnection[TupleRow], tenant: str) -> None:
        """Count a connection as borrowed by a request that waited.

        Args:
            connection: The connection.
            tenant: The tenant that the request is for; empty where that does not matter.
        """
        session: SessionState = connection._router  # type: ignore[attr-defined]  # noqa: SLF001  (the router's own)
        session.tenant = tenant
        session.attributes[LENT_BY] = self
        self.borrowed.add(session)
        self.counts.queued += 1

    async def is_usable(self, connection: AsyncConnection[TupleRow]) -> bool:
        """Tell whether a connection that was handed over may be used; if it may not, close and release it.

        Args:
            connection: The connection.

        Returns:
            Whether it may be used: its server may have been fenced after it was handed over.
        """
        if not self.fenced_reason:
            return True
        await connection.close()
        await self.release(connection)
        return False

    @ashielded
    async def hand_over(self) -> None:
        """Hand idle connections to the requests that wait."""
        if self.closed or self.draining:
            return
        async with self.lock:  # guards kept, waiting; taken even if none seems idle, see AsyncLine
            lent: list[AsyncConnection[TupleRow]] = []
            idle = self.idle  # a quarantine replaces it
            with suppress(IndexError):  # take() may remove the last one: it takes no lock
                while idle and len(lent) < self.waiting.number():
                    lent.append(idle.popleft())
            self.borrowed.update(map(session_of, lent))
        for connection in lent:
            connection.__dict__[LENT_BY] = self
            await self.release(connection)

    async def grow(self) -> None:
        """Open one more connection for the requests that wait; at first use, open the pool.

        Raises:
            PoolClosed: The pool was closed.
        """
        self._used_at = monotonic()
        if self.closed or self.draining:
            await self.opening.start()
        if self.sessions.lost:
            await self.closer.reclaim()
        async with self.lock:  # guards kept, waiting, closed, growing
            self.grow_for_waiting()
        await self._driver.try_later()

    def grow_for_waiting(self) -> None:
        """Open one more connection if more requests wait than idle connections are kept; under the lock."""
        if not self.closed and not self.draining and self.waiting and self.waiting.number() > len(self.kept):
            self._driver.grow()

    def withdraw(self) -> None:
        """Cancel the opening of a connection if no request waits for one any more."""
        if not self.waiting and (request := self.opening.request) is not None:
            self._opener.slots.withdraw(request)

    def begin_draining(self) -> None:
        """Stop lending connections, also to requests that still use an old lane; the caller also stops the pool."""
        self.draining = True  # first: a connection that is returned from now on does not become idle
        self.withhold()

    def withhold(self) -> None:
        """Stop lending the idle connections."""
        self.idle = deque()

    def end_draining(self) -> None:
        """Remove the pool from its cluster if it drains and has no session left; called when a session has ended."""
        # Its sessions are asked as well: one taken at this very moment is neither idle nor noted as borrowed.
        if self.draining and self.closed and not self.borrowed and all(one.closed for one in self.sessions.listed()):
            self.watched.clusters.remove(self)

    async def evict_idle(self, beneficiary: AsyncSlotRequest | None = None) -> None:
        """Close the connection that has been idle longest, if one is idle, so that another pool may open one.

        Args:
            beneficiary: The slot request that it is closed for; ``None`` if there is none.
        """
        if (connection := await self.sessions.pop_idle()) is not None:
            await end_session(session_of(connection), beneficiary)

    def abandon(self) -> None:
        """Leave all connections to the parent process, in the child of a fork."""
        self.inherited = True
        self._inherited_idle = self._driver.abandon()
        self.kept = self.idle = self._driver.kept
