"""Which pools are open: each opens at first use, and is closed when nobody has used it for long, or for another one."""

from __future__ import annotations

from collections import Counter, deque
from time import monotonic
from typing import TYPE_CHECKING
from weakref import ref

from router._async.pool.node_pool import AsyncNodePool
from router._async.pool.shared_pool import AsyncSharedPool
from router._runtime.calls import Isolated, ashielded
from router._runtime.flags import AFlag, AGuard
from router._runtime.workers import await_quietly
from router.core.budget import to_close
from router.core.errors import RouterClosed
from router.core.events import PoolClosed, PoolOpened
from router.core.measures import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeAlias

    from router._async.pool.node_pool import Counts, Suspect
    from router._async.pool.opener import AsyncOpener
    from router.core.budget import Claim, Limits
    from router.core.events import Event
    from router.core.topology import Node, Target

    Use: TypeAlias = tuple[str | None, bool]  # a version, none for tenants' own servers; whether it is for reading
    Key: TypeAlias = tuple[str, Node, bool, bool]

LOOK_AGAIN = 0.01
"""Seconds until one who waits for a pool to become unused looks again."""


class AsyncPools:
    """The open pools, by what they are for.

    Attributes:
        closed: Whether none may be opened any more.
    """

    def __init__(
        self,
        most: int,
        versions: Iterable[str],
        opener: AsyncOpener,
        suspect: Suspect,
        *,
        judge: Callable[[AsyncNodePool], None],
        gone: Callable[[AsyncNodePool], None],
        tell: Callable[[Iterable[Event]], None],
    ) -> None:
        """Begin without any.

        Args:
            most: How many may be open.
            versions: The versions whose requests are counted apart.
            opener: Opens their connections.
            suspect: Has a server looked at.
            judge: Tells a pool what is known of its node.
            gone: Told of each pool that is no longer there.
            tell: Told what happens.
        """
        self.closed = False
        self._most = most
        self._opener = opener
        self._suspect = suspect
        self._judge = judge
        self._gone = gone
        self._tell = tell
        self._guard = AGuard()  # guards the replacing of _pools, _totals, _counts
        self._pools: dict[Key, AsyncNodePool] = {}
        uses: list[Use] = [(version, read_only) for version in versions for read_only in (True, False)]
        self._totals = {use: Counter[str]() for use in uses}
        self._counts: list[tuple[ref[AsyncNodePool], Use, Counts]] = []  # of pools that are there, open or not
        self._turns: deque[AFlag] = deque()  # those who wait for a pool to become unused, in order of arrival

    def __iter__(self) -> Iterator[AsyncNodePool]:
        return iter(self._pools.values())

    def get(self, target: Target, node: Node, *, read_only: bool) -> AsyncNodePool | None:
        """Find a pool.

        Args:
            target: What it serves.
            node: What it connects to.
            read_only: Whether it is for reading.

        Returns:
            The pool; ``None`` when it is not open.
        """
        return self._pools.get((target.cluster.name, node, read_only, target.shared))

    def open_at_once(self, target: Target, node: Node, *, read_only: bool) -> AsyncNodePool | None:
        """Find a pool, or open it if there may be one more.

        Args:
            target: What it serves.
            node: What it connects to.
            read_only: Whether it is for reading.

        Returns:
            The pool; ``None`` when others have to be closed first.

        Raises:
            RouterClosed: The router was closed.
        """
        pool = self.get(target, node, read_only=read_only)
        if pool is not None:
            return pool
        with self._guard:
            if self.closed:
                raise RouterClosed("the router is closed")
            if (pool := self.get(target, node, read_only=read_only)) is not None or len(self._pools) >= self._most:
                return pool
            kind = AsyncSharedPool if target.shared else AsyncNodePool
            pool = kind(node, target, self._opener, self._suspect, read_only=read_only)
            self._pools = {**self._pools, (target.cluster.name, node, read_only, target.shared): pool}
            self._counts.append((ref(pool), self._use(pool.cluster.name, read_only=read_only), pool.counts))
            self._judge(pool)  # once it is there: what is learnt from now on, it is told
        self._tell([PoolOpened(pool.cluster.name, node, read_only, pool.tenant)])
        return pool

    async def open(self, target: Target, node: Node, *, read_only: bool, timeout: float) -> AsyncNodePool | None:
        """Find a pool for a request, or open it; if there are too many, the one unused for longest makes room.

        The request is expected there, and has to be struck off once it has borrowed: until then nobody closes the pool.

        Args:
            target: What it serves.
            node: What it connects to.
            read_only: Whether it is for reading.
            timeout: The most to wait for one to become unused, in seconds.

        Returns:
            The pool; ``None`` when none became unused in time.

        Raises:
            RouterClosed: The router was closed.
        """
        if not self._turns and self._expects(pool := self.open_at_once(target, node, read_only=read_only)):
            return pool
        deadline, turn = monotonic() + timeout, AFlag()
        self._turns.append(turn)
        try:
            while not self._expects(pool := self.get(target, node, read_only=read_only)):
                remaining = deadline - monotonic()
                if self._turns[0] is turn:
                    if self._expects(pool := self.open_at_once(target, node, read_only=read_only)):
                        return pool
                    if not await self._close_one():
                        turn.clear()  # it was set when this one became first
                        await turn.wait_for(min(LOOK_AGAIN, max(remaining, 0.0)))
                else:
                    await turn.wait_for(max(remaining, 0.0))
                if remaining <= 0:
                    return None
            return pool
        finally:
            self._turns.remove(turn)
            if self._turns:
                self._turns[0].set()

    async def make_room(self, limits: Limits, taken: list[Claim], waiting: list[Claim]) -> int | None:
        """Close an idle connection for one of those who wait to open one.

        Args:
            limits: How many there may be.
            taken: Those that there are.
            waiting: Those who wait, in order of arrival.

        Returns:
            The place of the one for whom it was closed; ``None`` when there was none to close.
        """
        found = [(pool, idle) for pool in self if (idle := pool.longest_idle) is not None]
        chosen = to_close(limits, taken, waiting, [idle for _, idle in found], monotonic())
        if chosen is None:
            return None
        place, index = chosen
        await found[place][0].evict_idle()  # if it is gone meanwhile, whoever waits looks again
        return index

    async def sweep(self) -> None:
        """Close the pools that are outdated or unused for long, and open the connections that others are to keep."""
        now = monotonic()
        with self._guard:
            self._add_up()
        for pool in list(self):
            with Isolated("could not keep the pool to %s as it should be", pool.node):
                await pool.reclaim()
                await pool.keep_warm()
                unused = not pool.in_use and not pool.min_size and now - pool.used_at > pool.cluster.pool.max_unused
                if unused or pool.outdated:
                    await self.retire(pool)

    @ashielded
    async def retire(self, pool: AsyncNodePool) -> None:
        """Close a pool; whoever has one of its connections keeps it for the length of the block.

        Args:
            pool: The pool.
        """
        with self._guard:
            if pool.retired or pool.expected:
                return
            pool.retired = True
            self._forget(pool)
        with Isolated("could not forget what was worked out with the pool to %s", pool.node):
            self._gone(pool)
        with Isolated("could not empty the pool to %s", pool.node):
            await pool.drop("")
        with Isolated("could not close the pool to %s", pool.node):
            await await_quietly(pool.close, 1.0)
        self._tell([PoolClosed(pool.cluster.name, pool.node, pool.read_only, pool.tenant)])

    def forget(self, pool: AsyncNodePool) -> None:
        """Have a pool no more that was closed, and tell of it, unless that was done before.

        Args:
            pool: The pool.
        """
        with self._guard:
            known = self._forget(pool)
        if known:
            self._tell([PoolClosed(pool.cluster.name, pool.node, pool.read_only, pool.tenant)])

    def _forget(self, pool: AsyncNodePool) -> bool:
        """Have a pool no more; whether it was there. Under the guard."""
        left = {key: other for key, other in self._pools.items() if other is not pool}
        known, self._pools = len(left) < len(self._pools), left
        return known

    def count(self, what: str, version: str, *, read_only: bool) -> None:
        """Count something that happened to a request.

        Args:
            what: An attribute of :class:`~router.core.measures.Totals`.
            version: The version, or the name of a tenant's own servers.
            read_only: Whether it was to read.
        """
        with self._guard:
            self._totals.setdefault(self._use(version, read_only=read_only), Counter())[what] += 1

    def totals(self) -> tuple[Totals, ...]:
        """Return what has been counted, by version and use."""
        with self._guard:
            self._add_up()
            totals = {use: counted.copy() for use, counted in self._totals.items()}
            for _, use, counts in self._counts:
                totals.setdefault(use, Counter()).update(counts.measured())
        return tuple(
            Totals(version, read_only, wait_seconds=counted.pop("wait_ms", 0) / 1000.0, **counted)
            for (version, read_only), counted in totals.items()
        )

    def _add_up(self) -> None:
        """Add what pools that are no more have counted; one that is still used may count on. Under the guard."""
        there = []
        for entry in self._counts:
            pool, use, counts = entry
            if pool() is None:
                self._totals.setdefault(use, Counter()).update(counts.measured())
            else:
                there.append(entry)
        self._counts = there

    def _use(self, version: str, *, read_only: bool) -> Use:
        known = (version, read_only) in self._totals
        return version if known else None, read_only

    def close(self) -> list[AsyncNodePool]:
        """Open none any more.

        Returns:
            Those that are open; they are the caller's to close.
        """
        with self._guard:
            self.closed = True
            return list(self)

    def _expects(self, pool: AsyncNodePool | None) -> bool:
        """Have a pool expect a request; whether it does, for it may just have been closed."""
        with self._guard:
            if pool is None or pool.retired:
                return False
            pool.expected.append(None)
            return True

    async def _close_one(self) -> bool:
        unused = [pool for pool in self if not pool.in_use]
        pool = min(unused, key=lambda pool: (bool(pool.min_size), bool(pool.idle), pool.used_at), default=None)
        if pool is None:
            return False
        await self.retire(pool)
        return pool.retired
