# Generated from router/_async/line.py by tools/async_to_sync.py: do not edit.
"""Requests that wait, in order: the one line of a cluster and use; fair between tenants that share connections."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from router._runtime.flags import Guard, Wakeup
from router.core.budget import at_share

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._sync.admission import Admission

MANY_STALE = 64
"""So many entries more than there are queues may lie in a line's heap before it is made anew."""


class Unserved(Exception):
    """Nothing can serve those that wait, and nothing will by itself."""


class Superseded(Exception):
    """Requests for the same key use another lane by now, since the topology or a tenant's home has changed."""


class HasToAsk(Exception):
    """Which replica may serve a request has to be asked of them: each request asks for itself."""


class Lends(Protocol):
    """What hands connections over: a pool."""

    _waiting: PoolLine

    def note_lent(self, connection: Connection[TupleRow], tenant: str) -> None:
        """Take a connection for borrowed by a request of a tenant."""

    def holders(self) -> list[str]:
        """List the tenants of the connections that are out, one for each."""

    def withdraw(self) -> None:
        """Have no connection opened if no request waits for one any more."""


class Serves(Protocol):
    """Whose line it is: a pool set."""

    def invalidate(self) -> None:
        """Choose anew before the next request is served."""


class Waiter:
    """A request that waits.

    Attributes:
        line: Where it waits.
        tenant: Whom it is for; empty where that does not matter.
        has_needs: Whether it asks for more than its lane says, and chooses for itself.
        number: Its place in the order of arrival; it keeps it as long as it waits, however often it is woken.
        admission: Its lane's; ``None`` where any number may be served.
        token: What it counts as there.
        accepts: Of one that has needs, the pool that it chose; ``None`` for none.
        is_held: Whether its lane's admission does not let it be served yet.
        pool: Where the connection is from that was handed over.
        connection: The one handed over.
        error: Why there will be none.
    """

    __slots__ = (
        "_wakeup", "accepts", "admission", "connection", "error", "has_needs", "is_held", "line", "number", "pool",
        "tenant", "token",
    )  # fmt: skip

    def __init__(
        self,
        line: Line,
        tenant: str = "",
        *,
        has_needs: bool = False,
        admission: Admission | None = None,
        token: object = None,
    ) -> None:
        """Make the waiter; it is not in the line yet.

        Args:
            line: Where it is to wait.
            tenant: Whom the request is for.
            has_needs: Whether it chooses for itself.
            admission: Its lane's, if that has to admit it first.
            token: What it counts as there.
        """
        self.line = line
        self.tenant = tenant
        self.has_needs = has_needs
        self.admission = admission
        self.token = token
        self.number = -1
        self.accepts: Lends | None = None
        self.is_held = admission is not None
        self.pool: Any = None
        self.connection: Connection[TupleRow] | None = None
        self.error: BaseException | None = None
        self._wakeup = Wakeup()

    @property
    def is_done(self) -> bool:
        """Whether it has a connection, or will have none."""
        return self.connection is not None or self.error is not None

    def wake(self) -> bool:
        """Have the request look what there is to do; whether it still waits."""
        self._wakeup.set()
        return self.line.has(self)

    def wait(self, timeout: float) -> None:
        """Wait until the request is woken.

        Args:
            timeout: The most to wait, in seconds.
        """
        self._wakeup.wait_for(timeout)


class Offer:
    """A connection's way to a waiter, in the shape of psycopg_pool's ``WaitingClient``."""

    __slots__ = ("_pool", "_waiter")

    def __init__(self, pool: Lends, waiter: Waiter | None) -> None:
        self._pool = pool
        self._waiter = waiter

    def set(self, connection: Connection[TupleRow]) -> bool:
        """Hand a connection over.

        Args:
            connection: The connection.

        Returns:
            Whether the request still waited.
        """
        waiter = self._waiter
        return waiter is not None and waiter.line.hand_over(waiter, self._pool, connection)

    def took(self, connection: Connection[TupleRow]) -> bool:
        """Tell whether the request has a connection.

        Args:
            connection: The connection.

        Returns:
            Whether it was handed to it.
        """
        return self._waiter is not None and self._waiter.connection is connection


class PoolLine(deque[None]):
    """What a pool sees of the line: psycopg_pool takes it for the deque of waiting clients that it made itself.

    It holds one entry as long as a request waits that may be served from this pool, and none otherwise: whether there
    is one has to be told as quickly as of any deque.

    Attributes:
        line: The line; ``None`` as long as the pool is in no pool set.
    """

    def __init__(self, pool: Lends) -> None:
        super().__init__()
        self.line: Line | None = None
        self._pool = pool

    def popleft(self) -> Offer:  # type: ignore[override]
        """Find the request to be served next; it leaves the line when it is handed a connection, and not before."""
        return Offer(self._pool, None if self.line is None else self.line.first(self._pool))

    def number(self) -> int:
        """Count the requests that may be served from this pool."""
        return 0 if self.line is None else self.line.number(self._pool)

    def mark(self, *, waits: bool) -> None:
        """Note whether a request waits that may be served from this pool; under the line's guard, before the slots'.

        Args:
            waits: Whether one does.
        """
        if not waits:
            super().clear()
            self._pool.withdraw()
        elif not self:
            super().append(None)

    def clear(self) -> None:
        """Do nothing: a pool that closes sends nobody away, for the line may be served by others."""

    def __iter__(self) -> Iterator[None]:
        """Go through nobody, likewise."""
        return iter(())


class Line:
    """The requests that wait for the connections of one pool set, in order of arrival, each woken by itself.

    How hand-over, leaving and joining interleave (with threads; a task is not interrupted where nothing is awaited):

    - Who joins is in the line *before* it looks for an idle connection, and looks with the pool's lock held. Who gives
      a connection back looks into the line with that lock held, and makes it idle under the same lock. So one of the
      two sees the other, whichever comes first.
    - ``first()`` only finds the next request. It leaves the line in ``hand_over()``, in the section in which it gets
      the connection: whoever is interrupted between the two, by a signal say, takes nobody's place away.
    - ``leave()`` and ``hand_over()`` exclude each other: a request that gives up has left, and gets nothing any more,
      or it has a connection by then, and has to give that back. So neither is lost.
    - A pool's mark is set before a request can be found, and removed after the last one is gone; ``first()`` removes
      one that an interruption has left behind. A mark too many costs a look, one too few would cost a connection.

    Attributes:
        owner: The pool set.
        pools: From which those without needs of their own are served.
        unserved: Whether somebody has to watch over the line, since no pool serves it: the first, see :meth:`leads`.
        news: How often something was learnt that may matter to those with needs of their own.
    """

    def __init__(self, owner: Serves, *, is_shared: bool) -> None:
        """Begin with nobody.

        Args:
            owner: The pool set.
            is_shared: Whether tenants share its connections, each to get its share.
        """
        self.owner = owner
        self.pools: tuple[Any, ...] = ()
        self.unserved = True
        self.news = 0
        self._is_shared = is_shared
        self._guard = Guard()  # guards all of this, and what a waiter was handed
        self._numbers = count()
        self._ties = count()
        self._plain: OrderedDict[Waiter, None] = OrderedDict()  # those without needs of their own
        self._needy: OrderedDict[Waiter, None] = OrderedDict()  # those with
        self._held: OrderedDict[Waiter, None] = OrderedDict()  # those that are not admitted yet, of both
        self._untold: OrderedDict[Waiter, None] = OrderedDict()  # of _needy, those that have not heard the news
        # Those that may be served: by tenant, and by the pool they accept (none stands for any of `pools`).
        self._queues: dict[tuple[str, Lends | None], OrderedDict[Waiter, None]] = {}
        self._heads: list[tuple[int, int, tuple[str, Lends | None]]] = []  # a heap: the first of each queue
        self._tenants = Counter[str]()
        self._accepting = Counter[Lends | None]()

    def __len__(self) -> int:
        """Count all that wait."""
        return len(self._plain) + len(self._needy) + len(self._held)

    def __bool__(self) -> bool:
        """Tell whether anybody waits."""
        return bool(self._plain or self._needy or self._held)

    @property
    def waiting(self) -> int:
        """How many wait that any of the pools may serve."""
        return len(self._plain)

    def tenants(self) -> list[str]:
        """List the tenants of the requests that may be served."""
        with self._guard:
            return list(+self._tenants)

    def number(self, pool: Lends) -> int:
        """Count those that may be served from a pool.

        Args:
            pool: The pool.

        Returns:
            How many there are.
        """
        return self._accepting[pool] + (self._accepting[None] if pool in self.pools else 0)

    def join(self, waiter: Waiter) -> None:
        """Get in line, or again in the place that it had before.

        Args:
            waiter: The request.
        """
        with self._guard:
            waiter.connection = waiter.error = waiter.pool = None
            if waiter.number < 0:
                waiter.number = next(self._numbers)
            if not waiter.is_held:
                self._enter(waiter)
                return
            self._held[waiter] = None
        if waiter.admission is not None:
            waiter.admission.hold(waiter)

    def admit(self, waiter: Waiter) -> None:
        """Let a request be served that its lane's admission has held back.

        Args:
            waiter: The request.
        """
        with self._guard:
            waiter.is_held = False
            if self._held.pop(waiter, waiter) is None:
                self._enter(waiter)
        waiter.wake()

    def accept(self, waiter: Waiter, pool: Lends | None) -> None:
        """Say which pool a request with needs of its own has chosen.

        Args:
            waiter: The request.
            pool: The pool; ``None`` for none.
        """
        with self._guard:
            if waiter.is_done or waiter not in self._needy or waiter.accepts is pool:
                return
            self._dequeue(waiter)
            waiter.accepts = pool
            if pool is not None:
                self._enqueue(waiter)

    def leave(self, waiter: Waiter) -> bool:
        """Leave the line.

        Args:
            waiter: The request.

        Returns:
            Whether it has left; ``False`` if it was handed a connection before.
        """
        if waiter.admission is not None:
            waiter.admission.withdraw(waiter)
        with self._guard:
            self._remove(waiter)
            return waiter.connection is None

    def has(self, waiter: Waiter) -> bool:
        """Tell whether a request waits here.

        Args:
            waiter: The request.

        Returns:
            Whether it does.
        """
        return waiter in self._plain or waiter in self._needy or waiter in self._held

    def leads(self, waiter: Waiter) -> bool:
        """Tell whether a request is the one that does what all need to have done.

        Args:
            waiter: The request.

        Returns:
            Whether it is the first of those without needs of their own.
        """
        return next(iter(self._plain), None) is waiter

    def is_first(self, waiter: Waiter) -> bool:
        """Tell whether a request is the first of those with needs of their own.

        Args:
            waiter: The request.

        Returns:
            Whether it is.
        """
        return next(iter(self._needy), None) is waiter

    def serves(self, pools: tuple[Lends, ...]) -> None:
        """Have pools look here for those that wait.

        Args:
            pools: The pools.
        """
        for pool in pools:
            pool._waiting.line = self  # noqa: SLF001  (psycopg_pool gives it its name)

    def serve_from(self, pools: tuple[Lends, ...]) -> None:
        """Serve those without needs of their own from these pools from now on.

        Args:
            pools: The pools.
        """
        with self._guard:
            before, self.pools = self.pools, pools
            self.unserved = not pools
            self.serves(pools)
            for pool in {*before, *pools}:
                self._mark(pool)

    def first(self, pool: Lends) -> Waiter | None:
        """Find the request that is served next from a pool.

        Args:
            pool: The pool.

        Returns:
            The first whose tenant has less than its share, else the first; ``None`` if nobody waits for this pool.
        """
        with self._guard:
            found = self._find(pool)
            if found is None:
                self._mark(pool, waits=False)
            return found

    def hand_over(self, waiter: Waiter, pool: Lends, connection: Connection[TupleRow]) -> bool:
        """Hand a connection to a request; from now on it counts as borrowed.

        Args:
            waiter: The request.
            pool: Where the connection is from.
            connection: The connection.

        Returns:
            Whether the request still waited.
        """
        with self._guard:
            if waiter.is_done or (waiter not in self._plain and waiter not in self._needy):
                return False
            pool.note_lent(connection, waiter.tenant)
            waiter.pool = pool
            waiter.connection = connection
            self._remove(waiter)
        waiter.wake()
        return True

    def fail(self, error: BaseException, *, only_plain: bool = False) -> None:
        """Tell those that wait that there will be no connection.

        Args:
            error: Why; each raises one of its own for it.
            only_plain: Whether those with needs of their own go on waiting.
        """
        with self._guard:
            failed = [*self._plain] if only_plain else [*self._plain, *self._needy, *self._held]
            for waiter in failed:
                waiter.error = error
                self._remove(waiter)
        for waiter in failed:
            waiter.wake()

    def wake_first(self) -> bool:
        """Wake the request that does what all need to have done; whether there is one."""
        with self._guard:
            waiter = next(iter(self._plain), None)
        return waiter is not None and waiter.wake()

    def tell(self) -> None:
        """Have those with needs of their own choose again, one after the other, since something was learnt."""
        with self._guard:
            self.news += 1
            self._untold = self._needy.copy()
            waiter = next(iter(self._untold), None)
        if waiter is not None:
            waiter.wake()

    def pass_on(self, waiter: Waiter, news: int) -> None:
        """Wake the next one to choose again, now that this one has.

        Args:
            waiter: The one that has chosen.
            news: How much had been learnt when it did.
        """
        with self._guard:
            if news == self.news:
                self._untold.pop(waiter, None)
            following = next(iter(self._untold), None)
        if following is not None:
            following.wake()

    # Under the guard

    def _enter(self, waiter: Waiter) -> None:
        (self._needy if waiter.has_needs else self._plain)[waiter] = None
        if not waiter.has_needs or waiter.accepts is not None:
            self._enqueue(waiter)

    def _enqueue(self, waiter: Waiter) -> None:
        key = (waiter.tenant, waiter.accepts)
        queue = self._queues.get(key)
        accepted = self.pools if waiter.accepts is None else (waiter.accepts,)
        self.serves(accepted)
        for pool in accepted:
            self._mark(pool, waits=True)
        if queue is None:
            queue = self._queues[key] = OrderedDict()
        is_head = not queue or waiter.number < next(iter(queue)).number
        if is_head:
            heappush(self._heads, (waiter.number, next(self._ties), key))
        queue[waiter] = None
        if is_head:
            queue.move_to_end(waiter, last=False)
        self._tenants[waiter.tenant] += 1
        self._accepting[waiter.accepts] += 1

    def _dequeue(self, waiter: Waiter) -> None:
        key = (waiter.tenant, waiter.accepts)
        queue = self._queues.get(key)
        if queue is None or waiter not in queue:
            return
        if len(queue) == 1:
            del self._queues[key]
        else:
            if next(iter(queue)) is waiter:
                rest = iter(queue)
                next(rest)
                heappush(self._heads, (next(rest).number, next(self._ties), key))
            del queue[waiter]
        self._tenants[waiter.tenant] -= 1
        self._accepting[waiter.accepts] -= 1
        if not self._tenants[waiter.tenant]:
            del self._tenants[waiter.tenant]
        if not self._queues:  # what an interruption has left behind ends here
            self._tenants.clear()
            self._accepting.clear()
            self._heads.clear()
        elif len(self._heads) > 2 * len(self._queues) + MANY_STALE:
            self._heads = [(next(iter(q)).number, next(self._ties), key) for key, q in self._queues.items()]
            heapify(self._heads)
        for pool in self.pools if waiter.accepts is None else (waiter.accepts,):
            if not self.number(pool):
                self._mark(pool, waits=False)

    def _remove(self, waiter: Waiter) -> None:
        led = self.leads(waiter)
        self._dequeue(waiter)
        for members in (self._plain, self._needy, self._held):
            members.pop(waiter, None)
        if waiter in self._untold:  # it will not pass the news on
            del self._untold[waiter]
            if self._untold:
                next(iter(self._untold)).wake()
        if led and self.unserved and self._plain:
            next(iter(self._plain)).wake()

    def _mark(self, pool: Lends, *, waits: bool | None = None) -> None:
        if pool._waiting.line is self:  # noqa: SLF001
            pool._waiting.mark(waits=self.number(pool) > 0 if waits is None else waits)  # noqa: SLF001

    def _find(self, pool: Lends) -> Waiter | None:
        any_pool = pool in self.pools
        if len(self._queues) == 1:
            [((_, accepts), queue)] = self._queues.items()
            return next(iter(queue)) if accepts is pool or (accepts is None and any_pool) else None
        sated = self._sated(pool) if self._is_shared and len(self._tenants) > 1 else ()
        heads, otherwise = self._heads, None
        passed: list[tuple[int, int, tuple[str, Lends | None]]] = []
        try:
            while heads:
                number, _, key = heads[0]
                head = next(iter(self._queues.get(key, ())), None)
                if head is None or head.number != number:  # it is served, or has left
                    heappop(heads)
                    continue
                if key[1] is pool or (key[1] is None and any_pool):
                    if key[0] not in sated:
                        return head
                    otherwise = otherwise or head
                passed.append(heads[0])
                heappop(heads)
        finally:
            for entry in passed:
                heappush(heads, entry)
        return otherwise

    def _sated(self, pool: Lends) -> frozenset[str]:
        held = Counter(holder for one in {*self.pools, pool} for holder in one.holders())
        return at_share(self._tenants, held)
