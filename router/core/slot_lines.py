"""Decides which pool may open a connection next, and which connection is closed for it, by the rules of ``budget.py``.

A :class:`Budget` counts connections as they are opened and closed, and keeps waiting requests with the same numbers in
one line. A decision looks only at the first request of each line, however many connections are open and requests wait.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import count
from operator import attrgetter, ge
from typing import TYPE_CHECKING, Generic, TypeVar

from router.core.bounds import Bound, BudgetRequest, Candidate, Mark, Offer, change
from router.core.budget import KEPT, Full

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from router.core.budget import BudgetKey, Idle, Limits, Login
    from router.core.topology import Server

R = TypeVar("R", bound=BudgetRequest)
_ORDER = attrgetter("order")


class Budget(Generic[R]):
    """The connections that are open and the requests that wait, within the limits.

    Attributes:
        held: How many connections each pool has, open or being opened; pools that have none are left out.
    """

    def __init__(self, limits: Limits) -> None:
        """Make an empty budget.

        Args:
            limits: The limits.
        """
        self.held: dict[BudgetKey, int] = {}
        self._limit_of_server = limits.server
        self._process = Bound(Full.PROCESS, limits.process)
        self._servers: dict[Server, Bound] = {}
        self._logins: dict[Login, Bound] = {}
        self._numbers = count(1)
        self._requests: dict[int, R] = {}
        self._of_owner: dict[str, list[R]] = {}  # in the order of arrival
        self._lent_again: set[BudgetKey] = set()  # pools that need not close what is returned, until something changes

    def recounted(self, limits: Limits, held: Iterable[BudgetKey], waiting: Iterable[R]) -> Budget[R]:
        """Make a budget that is counted again; it keeps the limits of logins and the order of arrival.

        Args:
            limits: The limits.
            held: The key of each connection's pool, once for each connection.
            waiting: The requests that wait.

        Returns:
            The new budget.
        """
        other = Budget[R](limits)
        other._numbers = self._numbers
        for key in held:
            other.add(key)
        for login, bound in self._logins.items():
            other.limit_login(login, bound.limit)
        for request in waiting:
            request.bound = request.mark = None
            other.wait(request)
        return other

    @property
    def total(self) -> int:
        """How many connections are open or being opened."""
        return self._process.total

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._requests)

    # What changes

    def add(self, key: BudgetKey) -> None:
        """Count one more connection.

        Args:
            key: Its pool.
        """
        self._count(key, 1, 0)

    def remove(self, key: BudgetKey) -> None:
        """Count one connection less.

        Args:
            key: Its pool.
        """
        self._count(key, -1, 0)

    def wait(self, request: R) -> None:
        """Let a request wait: at the end of the order of arrival, or at its earlier number.

        Args:
            request: The request.
        """
        request.order = request.order or next(self._numbers)
        self._requests[request.order] = request
        insort(self._of_owner.setdefault(request.key.owner, []), request, key=_ORDER)
        self._count(request.key, 0, 1)

    def leave(self, request: R) -> None:
        """Remove a request that waits.

        Args:
            request: The request, which waits.
        """
        del self._requests[request.order]
        requests = self._of_owner[request.key.owner]
        requests.remove(request)
        if not requests:
            del self._of_owner[request.key.owner]
        self._move(request, None, None)
        self._count(request.key, 0, -1)

    def limit_login(self, login: Login, limit: int | None) -> None:
        """Set the limit of a login.

        Args:
            login: The server, and the user at it.
            limit: The most connections; ``None`` for no limit.
        """
        bound = self._logins.get(login)
        if bound is not None and limit is not None:
            bound.limit = limit
            self._lent_again.clear()
            return
        if bound is None and limit is None:
            return
        held = [(key, number) for key, number in self.held.items() if key.login == login]
        waiting = [request for request in self._requests.values() if request.key.login == login]
        if bound is not None:
            del self._logins[login]
            bound.chain[1].inner.discard(bound)
        elif limit is not None:
            bound = Bound(Full.LOGIN, limit, self._chain(login, make=True)[0])
            self._logins[login] = bound
            for key, number in held:
                bound.count(key, number, 0)
            for request in waiting:
                bound.count(request.key, 0, 1)
        for owner in {request.key.owner for request in waiting}:
            self._arrange(owner)
        self._lent_again.clear()

    def _count(self, key: BudgetKey, held: int, waiting: int) -> None:
        change(self.held, key, held)
        chain = self._chain(key.login, make=True)
        for bound in chain:
            bound.count(key, held, waiting)
        if len(chain) > 1 and not (server := chain[-2]).demand and not server.inner and server.full_as is Full.SERVER:
            del self._servers[key.server]
            self._process.inner.discard(server)
        self._arrange(key.owner)
        self._lent_again.clear()

    def _chain(self, login: Login, *, make: bool = False) -> tuple[Bound, ...]:
        """Return the bounds that a login lies in, from the narrowest on."""
        if (bound := self._logins.get(login)) is not None:
            return bound.chain
        if self._limit_of_server is None:
            return self._process.chain
        if (bound := self._servers.get(login[0])) is None and make:
            bound = self._servers[login[0]] = Bound(Full.SERVER, self._limit_of_server, self._process)
        return self._process.chain if bound is None else bound.chain

    def _arrange(self, owner: str) -> None:
        """Put each request of an owner into the line of requests with the same numbers; an owner has few requests."""
        ahead, total = 0, self._process.held.get(owner, 0)
        for request in self._of_owner.get(owner, ()):
            key, some, bound = request.key, request.key in self.held, self._chain(request.key.login)[0]
            request.ahead = ahead
            # An owner's cap and share are for its earliest requests, even if their server is full now. Otherwise its
            # other pools would use them up again and again, and those requests would never be served.
            if key.cap is not None and total + ahead >= key.cap:
                self._move(request, None, None)
            else:
                held = tuple(bound.held.get(owner, 0) for bound in bound.chain)
                self._move(request, bound, Mark(ahead, some, held))
            ahead += not some

    def _move(self, request: BudgetRequest, bound: Bound | None, mark: Mark | None) -> None:
        """Move a request to a line; to no line if it no longer waits, or its owner is at its cap."""
        if request.bound is bound and request.mark == mark:
            return
        if request.bound is not None and request.mark is not None:
            line = request.bound.lines[request.mark]
            del line[bisect_left(line, request.order)]
            if not line:
                del request.bound.lines[request.mark]
        if bound is not None and mark is not None:
            insort(bound.lines.setdefault(mark, []), request.order)
        request.bound, request.mark = bound, mark

    # Decisions

    def full(self, key: BudgetKey) -> Full | None:
        """Tell which limit prevents one more connection, requests that wait not considered.

        Args:
            key: The key of the pool that needs one more.

        Returns:
            The narrowest limit that is reached; ``None`` when there is room.
        """
        if key.cap is not None and self._process.held.get(key.owner, 0) >= key.cap:
            return Full.OWNER
        return next((bound.full_as for bound in self._chain(key.login) if bound.full), None)

    def room(self, key: BudgetKey) -> int:
        """Tell how many more connections may be opened, requests that wait not considered.

        Args:
            key: The key of the pool that needs them.

        Returns:
            The number.
        """
        room = min(bound.limit - bound.total for bound in self._chain(key.login))
        if self._limit_of_server is not None and key.server not in self._servers:  # none is open there
            room = min(room, self._limit_of_server)
        return room if key.cap is None else min(room, key.cap - self._process.held.get(key.owner, 0))

    def grant(self) -> R | None:
        """Choose the request that may open a connection now: the first in the fair order that has room.

        The fair order is the order of arrival, but requests come first whose owner is below its share of the process's
        connections and of the server's. A cap is filled in the order of arrival, too: the slots below it are kept for a
        pool without a connection while its server is full.

        Returns:
            The request, which waits; ``None`` if no request may.
        """
        if self._process.full:
            return None
        lines = self._process.open_lines()
        best = min(((_is_at_share(bound, mark), line[0]) for bound, mark, line in lines), default=None)
        return None if best is None else self._requests[best[1]]

    def to_close(self, idle: Sequence[Idle], now: float) -> tuple[int, R] | None:
        """Choose an idle connection to close for a request: the least recently used one that makes room.

        Requests are considered in the fair order, see :meth:`grant`. Any idle connection may be closed for an owner
        that has fewer connections (two fewer, if the pool that asks has one); for another owner, only a connection that
        has been idle for ``KEPT`` seconds. A pool's ``min_size`` is reduced only if nothing else makes room, and for an
        owner that does not have fewer only if the pool that asks has no connection.

        Once the connection is closed, its slot is for the request that it was closed for, if that has room then: for an
        owner at its cap, the server may be full, too. The caller makes sure that no request has room already.

        Args:
            idle: The idle connections.
            now: The time on the clock of ``Idle.since``.

        Returns:
            The index in ``idle`` of the connection to close, and the request; ``None`` if closing none would help.
        """
        process, best = self._process, None
        any_urgent = process.full and any(
            mark.held[-1] + mark.ahead < process.fair for _, mark, _ in process.open_lines()
        )
        for index, one in enumerate(idle):
            offer = Offer(in_use=False, idle_long=one.since <= now - KEPT, warm=one.warm)
            for candidate in self._candidates(one.key, offer):
                found = candidate.rank(any_urgent=any_urgent), one.warm, one.since, index
                best = found if best is None else min(best, found)
        return None if best is None else (best[-1], self._requests[best[0][1]])

    def preempted_by(self, key: BudgetKey) -> R | None:
        """Choose the request for which to close a connection that is returned, instead of lending it again at once.

        It is closed for the first request in the fair order, see :meth:`grant`, that would have room then, and whose
        owner has at least two connections fewer, or one fewer if the pool that waits has none. The pools of one owner
        are compared with each other in the same way. Where a login or server is full, the connections there count. So
        connections move to owners that have fewer, and alternate only between pools that would otherwise have none.

        Once the connection is closed, its slot is for that request, if it has room then: for an owner at its cap, the
        server may be full, too. The caller makes sure that no request has room already.

        Args:
            key: The key of the pool of the connection that is returned, which still counts.

        Returns:
            The request; ``None`` if the connection may be lent again.
        """
        if key in self._lent_again:
            return None
        found = list(self._candidates(key, Offer(in_use=True, idle_long=False, warm=False)))
        if not found:
            self._lent_again.add(key)
            return None
        any_urgent = any(candidate.urgent for candidate in found)
        return self._requests[min(candidate.rank(any_urgent=any_urgent) for candidate in found)[1]]

    def _candidates(self, key: BudgetKey, offer: Offer) -> Iterator[Candidate]:
        """Find the requests that a connection may be closed for: the first one of each line."""
        if key not in self.held:  # it was closed meanwhile, by another thread
            return
        process, chain, owner = self._process, self._chain(key.login), key.owner
        for request in self._of_owner.get(owner, ()):  # pools of the same owner are compared with each other
            full, number = self._narrowest_full(request.key), self.held.get(request.key, 0)
            capped = request.mark is None
            if request.key is key or not (capped or full in chain):
                continue  # exchanging one connection of a pool for another gains nothing
            if offer.serves(self.held[key], number, 0, some=number > 0):
                scarce = process if full is None or self.full(request.key) is Full.OWNER else full
                yield Candidate.of(request.order, owner, request.ahead, scarce, process, urgent=not capped)
        for full in chain:
            for bound, mark, line in full.open_lines() if full.full else ():
                number = mark.held[len(bound.chain) - len(full.chain)]
                if offer.serves(full.held[owner], number, mark.ahead, some=mark.some):
                    other = next((one for order in line if (one := self._requests[order]).key.owner != owner), None)
                    if other is not None:
                        yield Candidate.of(other.order, other.key.owner, mark.ahead, full, process, urgent=True)

    def _narrowest_full(self, key: BudgetKey) -> Bound | None:
        return next((bound for bound in self._chain(key.login) if bound.full), None)


def _is_at_share(bound: Bound, mark: Mark) -> bool:
    """Whether the owner of the requests in a line has its share in some bound."""
    return any(map(ge, mark.held, (outer.fair for outer in bound.chain)))
