# Generated from router/_async/line.py by tools/async_to_sync.py: do not edit.
"""The line of the requests that wait for one cluster and use; it is fair between tenants that share connections."""

from __future__ import annotations

from collections import Counter, OrderedDict
from itertools import count
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from router._runtime.flags import Guard
from router.core.fair_line import FairLine, insert

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._sync.waiter import Lender, LineOwner, Waiter


class Line:
    """The requests that wait for the connections of one pool set, in order of arrival, each woken by itself.

    How joining, handing over and leaving interleave (with threads; a task is not interrupted where nothing is awaited):

    - A request joins the line *before* it looks for an idle connection, and looks with the pool's lock held. A block
      that returns a connection looks into the line with that lock held, and makes the connection idle under the same
      lock. So one of the two sees the other in any order. It is enough that the first in line looks: after that, no
      connection becomes idle while a request waits. If it leaves before it has looked, the next request has to look.
    - ``hand_over()`` finds the next waiter, gives it the connection and removes it from the line in one section. So an
      interruption before that, for example by a signal, removes no waiter.
    - ``leave()`` and ``hand_over()`` exclude each other: a request that times out has either left the line, and gets
      no connection, or was handed one before, which it has to return. So no connection is lost.
    - A pool's mark is set before a waiter can be found, and removed after the last one left. ``hand_over()`` removes a
      mark that an interruption left. A surplus mark costs a search; without a mark, a waiter would be passed over.

    Attributes:
        owner: The pool set.
        pools: The pools that serve the requests without needs of their own.
        unserved: Whether no pool serves the line, so that its first waiter has to choose again, see :meth:`leads`.
        news: How many observations have been made that may matter to requests with needs of their own.
    """

    def __init__(self, owner: LineOwner, *, is_shared: bool) -> None:
        """Make an empty line.

        Args:
            owner: The pool set.
            is_shared: Whether tenants share its connections, so that each gets its share.
        """
        self.owner = owner
        self.pools: tuple[Any, ...] = ()
        self.unserved = True
        self.news = 0
        self._is_shared = is_shared
        self._guard = Guard()  # guards all of this, and the waiters' fields
        self._numbers = count()
        self._plain: OrderedDict[Waiter, int] = OrderedDict()  # without needs of their own; their numbers
        self._needy: OrderedDict[Waiter, None] = OrderedDict()  # with needs of their own
        self._held: OrderedDict[Waiter, None] = OrderedDict()  # those that are not admitted yet, of both
        self._untold: OrderedDict[Waiter, None] = OrderedDict()  # of _needy, those that have to choose again
        self._served: FairLine[Waiter] = FairLine()  # if not in the order of _plain; `None` is any of `pools`

    def __len__(self) -> int:
        """Count all waiting requests."""
        return len(self._plain) + len(self._needy) + len(self._held)

    @property
    def waiting(self) -> int:
        """How many requests wait that any of the pools may serve."""
        return len(self._plain)

    def tenants(self) -> set[str]:
        """List the tenants of the waiting requests that any of the pools may serve."""
        return {waiter.tenant for waiter in [*self._plain]}

    def number(self, pool: Lender) -> int:
        """Count the waiting requests that a pool may serve.

        Args:
            pool: The pool.

        Returns:
            How many there are.
        """
        own = self._served.number(pool) if self._needy else 0
        return own + len(self._plain) if pool in self.pools else own

    def is_full(self, waiter: Waiter, most: int) -> bool:
        """Tell whether too many requests wait for another one to join.

        Args:
            waiter: The request.
            most: How many may wait for one pool; 0 for any number.

        Returns:
            Whether too many wait. A request that has its number already, or is not admitted yet, may always join.
        """
        if not most or waiter.is_held or waiter.number >= 0:
            return False
        pools = self.pools if waiter.accepts is None else (waiter.accepts,)
        if not pools:
            return False
        waiting = self.waiting if waiter.accepts is None else self.number(waiter.accepts)
        return bool(waiting >= sum(most + pool.kept_back for pool in pools))

    def join(self, waiter: Waiter) -> None:
        """Put a request in line, or back in the place that it had before.

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
        """Let a request be served, now that its lane's admission has admitted it.

        Args:
            waiter: The request.
        """
        with self._guard:
            waiter.is_held = False
            if self._held.pop(waiter, waiter) is None:
                self._enter(waiter)
        waiter.wake()

    def accept(self, waiter: Waiter, pool: Lender | None) -> None:
        """Note which pool a request with needs of its own has chosen.

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
        """Remove a request from the line.

        Args:
            waiter: The request.

        Returns:
            Whether it has no connection; ``False`` if it was handed one before.
        """
        if waiter.admission is not None:
            waiter.admission.withdraw(waiter)
        with self._guard:
            self._remove(waiter)
            if waiter.has_work and self._plain:
                following = next(iter(self._plain))
                following.has_work = True
                following.wake()
            return waiter.connection is None

    def has(self, waiter: Waiter) -> bool:
        """Tell whether a request is in line.

        Args:
            waiter: The request.

        Returns:
            Whether it does.
        """
        return waiter in self._plain or waiter in self._needy or waiter in self._held

    def leads(self, waiter: Waiter) -> bool:
        """Tell whether a request is the first of its kind, with or without needs: it does the work that is due for all.

        Args:
            waiter: The request.

        Returns:
            Whether it is.
        """
        with self._guard:
            return next(iter(self._needy if waiter.has_needs else self._plain), None) is waiter

    def serves(self, pools: tuple[Lender, ...]) -> None:
        """Make this the line that pools hand connections to.

        Args:
            pools: The pools.
        """
        for pool in pools:
            pool.waiting.line = self

    def serve_from(self, pools: tuple[Lender, ...]) -> None:
        """Serve the requests without needs of their own from these pools from now on.

        Args:
            pools: The pools.
        """
        with self._guard:
            before, self.pools = self.pools, pools
            self.unserved = not pools
            self.serves(pools)
            for pool in {*before, *pools}:
                self._mark(pool)

    def hand_over(self, pool: Lender, connection: Connection[TupleRow], to: list[Any]) -> Waiter | None:
        """Hand a connection to the first request whose tenant has less than its share, or else to the first.

        Args:
            pool: The pool of the connection, which counts as borrowed from then on.
            connection: The connection.
            to: A list of one item, which is set to the request, so that it is known even after an interruption.

        Returns:
            The request; ``None`` if none waits for this pool.
        """
        with self._guard:
            waiter = self._find(pool)
            while waiter is not None and (waiter.pool is not None or not self.has(waiter)):
                self._remove(waiter)  # an interruption has left it, or a part of its entries
                waiter = self._find(pool)
            if waiter is None:
                self._mark(pool, waits=False)
                return None
            pool.note_lent(connection, waiter.tenant)
            to[0], waiter.pool, waiter.connection = waiter, pool, connection  # no interruption comes in between
            try:
                self._remove(waiter)
            finally:
                waiter.wake()
        return waiter

    def fail(self, error: BaseException, *, only_plain: bool = False) -> None:
        """Make waiting requests fail: they get no connection.

        Args:
            error: The reason, for which each raises an error of its own.
            only_plain: Whether requests with needs of their own go on waiting.
        """
        with self._guard:
            failed = [*self._plain] if only_plain else [*self._plain, *self._needy, *self._held]
            for waiter in failed:
                waiter.error = error
                self._remove(waiter)
        for waiter in failed:
            waiter.wake()

    def wake_first(self) -> bool:
        """Wake the first request without needs of its own; return whether there is one."""
        with self._guard:
            waiter = next(iter(self._plain), None)
        if waiter is not None:
            waiter.wake()
        return waiter is not None

    def choose_again(self) -> None:
        """Have the requests with needs of their own choose again, one after the other, after an observation."""
        with self._guard:
            self.news += 1
            self._untold = self._needy.copy()
            waiter = next(iter(self._untold), None)
        if waiter is not None:
            waiter.wake()

    def pass_on(self, waiter: Waiter, news: int) -> None:
        """Wake the next request that has to choose again.

        Args:
            waiter: The request that has chosen again.
            news: The value of :attr:`news` when it chose.
        """
        with self._guard:
            if news == self.news:
                self._untold.pop(waiter, None)
            following = next(iter(self._untold), None)
        if following is not None:
            following.wake()

    # Under the guard

    def _enter(self, waiter: Waiter) -> None:
        if waiter.has_needs:
            self._needy[waiter] = None
            if waiter.accepts is not None:
                self._enqueue(waiter)
            return
        for pool in self.pools:
            if not pool.waiting:
                self._mark(pool, waits=True)
        if self._is_shared:
            self._served.add(waiter, waiter.number, waiter.tenant, None)
            self._plain[waiter] = waiter.number
        else:
            insert(self._plain, waiter, waiter.number)
        waiter.has_work = next(iter(self._plain)) is waiter

    def _enqueue(self, waiter: Waiter) -> None:
        """Let a request with needs of its own be served from the pool that it accepts."""
        self.serves((waiter.accepts,))
        self._mark(waiter.accepts, waits=True)
        self._served.add(waiter, waiter.number, waiter.tenant, waiter.accepts)

    def _dequeue(self, waiter: Waiter) -> None:
        self._served.remove(waiter, waiter.tenant, waiter.accepts)
        if waiter.accepts is not None:
            self._mark(waiter.accepts)

    def _remove(self, waiter: Waiter) -> None:
        led = self.unserved and next(iter(self._plain), None) is waiter
        if waiter in self._plain:
            del self._plain[waiter]
            if self._is_shared:
                self._dequeue(waiter)
            if not self._plain:
                for pool in self.pools:
                    self._mark(pool)
            if led and self._plain:
                next(iter(self._plain)).wake()
            return
        self._needy.pop(waiter, None)
        self._held.pop(waiter, None)
        self._dequeue(waiter)
        if self._untold.pop(waiter, waiter) is None and self._untold:  # it will not call pass_on()
            next(iter(self._untold)).wake()

    def _mark(self, pool: Lender, *, waits: bool | None = None) -> None:
        if pool.waiting.line is self:
            pool.waiting.mark(waits=self.number(pool) > 0 if waits is None else waits)

    def _find(self, pool: Lender) -> Waiter | None:
        any_pool = pool in self.pools
        if self._is_shared:
            return self._served.first((pool, None) if any_pool else (pool,), lambda: self._held_by(pool))
        plain = next(iter(self._plain), None) if any_pool else None
        needy = self._served.first((pool,), None) if self._needy else None
        if plain is None or needy is None:
            return plain or needy
        return min(plain, needy, key=attrgetter("number"))

    def _held_by(self, pool: Lender) -> Counter[str]:
        """Count the connections of each tenant, including those that are being returned."""
        return Counter(holder for one in {*self.pools, pool} for holder in one.holders())
