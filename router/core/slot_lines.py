"""Who may open a connection next, and which one is closed for that, by the rules of ``budget.py``.

A :class:`Budget` counts connections as they come and go, and keeps the requests that wait in lines of those that have
the same numbers: a decision looks at the first of each line, however many connections are open and requests wait.
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
    """What is open and who waits, within the limits.

    Attributes:
        held: How many connections each pool has, open or being opened; pools that have none are left out.
    """

    def __init__(self, limits: Limits) -> None:
        """Begin with nothing.

        Args:
            limits: How many there may be.
        """
        self.held: dict[BudgetKey, int] = {}
        self._limit_of_server = limits.server
        self._process = Bound(Full.PROCESS, limits.process)
        self._servers: dict[Server, Bound] = {}
        self._logins: dict[Login, Bound] = {}
        self._numbers = count(1)
        self._requests: dict[int, R] = {}
        self._of_owner: dict[str, list[R]] = {}  # in the order of arrival
        self._lent_again: set[BudgetKey] = set()  # the pools from which nothing is owed, as long as nothing changes

    def anew(self, limits: Limits, held: Iterable[BudgetKey], waiting: Iterable[R]) -> Budget[R]:
        """Count anew; the limits of logins and the order of arrival stay.

        Args:
            limits: How many there may be.
            held: The pools of all connections, each as often as it has any.
            waiting: The requests that wait.

        Returns:
            A budget of these.
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
        """Have a request wait: in the order of arrival, or where it stood before.

        Args:
            request: The request.
        """
        request.order = request.order or next(self._numbers)
        self._requests[request.order] = request
        insort(self._of_owner.setdefault(request.key.owner, []), request, key=_ORDER)
        self._count(request.key, 0, 1)

    def leave(self, request: R) -> None:
        """Have a request wait no longer.

        Args:
            request: The request, which waits.
        """
        del self._requests[request.order]
        requests = self._of_owner[request.key.owner]
        requests.remove(request)
        if not requests:
            del self._of_owner[request.key.owner]
        self._stand(request, None, None)
        self._count(request.key, 0, -1)

    def limit_login(self, login: Login, limit: int | None) -> None:
        """Set the limit of a login.

        Args:
            login: The server, and the user at it.
            limit: How many connections there may be; ``None`` for no limit of its own.
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
        if len(chain) > 1 and not (server := chain[-2]).crowd and not server.inner and server.full_as is Full.SERVER:
            del self._servers[key.server]
            self._process.inner.discard(server)
        self._arrange(key.owner)
        self._lent_again.clear()

    def _chain(self, login: Login, *, make: bool = False) -> tuple[Bound, ...]:
        """The bounds that a login lies in, from the narrowest on."""
        if (bound := self._logins.get(login)) is not None:
            return bound.chain
        if self._limit_of_server is None:
            return self._process.chain
        if (bound := self._servers.get(login[0])) is None and make:
            bound = self._servers[login[0]] = Bound(Full.SERVER, self._limit_of_server, self._process)
        return self._process.chain if bound is None else bound.chain

    def _arrange(self, owner: str) -> None:
        """Put each request of an owner into the line of those that have the same numbers; an owner has few."""
        ahead, total = 0, self._process.held.get(owner, 0)
        for request in self._of_owner.get(owner, ()):
            key, some, bound = request.key, request.key in self.held, self._chain(request.key.login)[0]
            request.ahead = ahead
            # A cap and a share are for those of an owner that came first, even if their server is full now. Else, its
            # other pools would use them up again and again, and those would never be served.
            if key.cap is not None and total + ahead >= key.cap:
                self._stand(request, None, None)
            else:
                held = tuple(bound.held.get(owner, 0) for bound in bound.chain)
                self._stand(request, bound, Mark(ahead, some, held))
            ahead += not some

    def _stand(self, request: BudgetRequest, bound: Bound | None, mark: Mark | None) -> None:
        """Move a request to a line; to none if it waits no longer, or its owner has all that it may."""
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

    # What follows

    def full(self, key: BudgetKey) -> Full | None:
        """Tell what keeps one more connection from being opened, nothing else waiting for it.

        Args:
            key: Of the pool that wants one more.

        Returns:
            The narrowest limit that is reached; ``None`` when there is room.
        """
        if key.cap is not None and self._process.held.get(key.owner, 0) >= key.cap:
            return Full.OWNER
        return next((bound.full_as for bound in self._chain(key.login) if bound.full), None)

    def room(self, key: BudgetKey) -> int:
        """Tell how many more connections may be opened, as far as nothing else waits for them.

        Args:
            key: Of the pool that wants them.

        Returns:
            How many.
        """
        room = min(bound.limit - bound.total for bound in self._chain(key.login))
        if self._limit_of_server is not None and key.server not in self._servers:  # none is open there
            room = min(room, self._limit_of_server)
        return room if key.cap is None else min(room, key.cap - self._process.held.get(key.owner, 0))

    def grant(self) -> R | None:
        """Choose what may open a connection now: the first in the fair order that has room.

        The fair order is that of arrival, those before all others whose owner has less than its share, of the process's
        connections and of the server's. A cap is filled in the order of arrival, too: what is left
        below it is kept for a pool without a connection while its server is full.

        Returns:
            The request, which waits; ``None`` when none may.
        """
        if self._process.full:
            return None
        lines = self._process.open_lines()
        best = min(((_is_at_share(bound, mark), line[0]) for bound, mark, line in lines), default=None)
        return None if best is None else self._requests[best[1]]

    def to_close(self, idle: Sequence[Idle], now: float) -> tuple[int, R] | None:
        """Choose an idle connection to close for a request: the least recently used one that makes room.

        Requests are looked at in the fair order, see :meth:`grant`. Any idle connection is closed for an owner that has
        fewer (two fewer, once the pool that asks has one); for others, one that has been idle for ``KEPT`` seconds. A
        pool's ``min_size`` is touched only if nothing else helps, and for others only if the pool that asks has none.

        Once it is closed, the slot is for the request that it was closed for, if that has room then: an owner at its
        cap may find its server full, too. No request may have room already.

        Args:
            idle: The idle connections.
            now: The time on the clock of ``Idle.since``.

        Returns:
            The index in ``idle`` of the one to close, and the request; ``None`` when none would help.
        """
        process, best = self._process, None
        pressing = process.full and any(
            mark.held[-1] + mark.ahead < process.fair for _, mark, _ in process.open_lines()
        )
        for index, one in enumerate(idle):
            offer = Offer(in_use=False, rested=one.since <= now - KEPT, warm=one.warm)
            for candidate in self._candidates(one.key, offer):
                found = candidate.rank(pressing=pressing), one.warm, one.since, index
                best = found if best is None else min(best, found)
        return None if best is None else (best[-1], self._requests[best[0][1]])

    def preempted_by(self, key: BudgetKey) -> R | None:
        """Choose for what a connection that comes back is closed, when otherwise its pool would lend it again at once.

        It is closed for the first in the fair order, see :meth:`grant`, to which that gives room, and whose owner has
        at least two fewer, or fewer if the pool that waits has none. Within one owner, its pools are compared likewise.
        Where a login or server is full, what counts is how many each owner has there. So connections move towards those
        that have fewer, and back and forth only between pools that would have none.

        Once it is closed, the slot is for that one, if it has room then: an owner at its cap may find its server full,
        too. No request may have room already.

        Args:
            key: Of the pool of the one that comes back, which still counts.

        Returns:
            The request; ``None`` when the connection may be lent again.
        """
        if key in self._lent_again:
            return None
        found = list(self._candidates(key, Offer(in_use=True, rested=False, warm=False)))
        if not found:
            self._lent_again.add(key)
            return None
        pressing = any(candidate.presses for candidate in found)
        return self._requests[min(candidate.rank(pressing=pressing) for candidate in found)[1]]

    def _candidates(self, key: BudgetKey, offer: Offer) -> Iterator[Candidate]:
        """Find the requests that a connection is closed for: of each line the first."""
        process, chain, owner = self._process, self._chain(key.login), key.owner
        for request in self._of_owner.get(owner, ()):  # these compare by pool
            full, number = self._narrowest_full(request.key), self.held.get(request.key, 0)
            capped = request.mark is None
            if request.key is key or not (capped or full in chain):
                continue  # a pool gains nothing by opening one connection in exchange for another
            if offer.serves(self.held[key], number, 0, some=number > 0):
                scarce = process if full is None or self.full(request.key) is Full.OWNER else full
                yield Candidate.of(request.order, owner, request.ahead, scarce, process, presses=not capped)
        for full in chain:
            for bound, mark, line in full.open_lines() if full.full else ():
                number = mark.held[len(bound.chain) - len(full.chain)]
                if offer.serves(full.held[owner], number, mark.ahead, some=mark.some):
                    other = next((one for order in line if (one := self._requests[order]).key.owner != owner), None)
                    if other is not None:
                        yield Candidate.of(other.order, other.key.owner, mark.ahead, full, process, presses=True)

    def _narrowest_full(self, key: BudgetKey) -> Bound | None:
        return next((bound for bound in self._chain(key.login) if bound.full), None)


def _is_at_share(bound: Bound, mark: Mark) -> bool:
    """Whether the owner of the requests in a line has its share somewhere."""
    return any(map(ge, mark.held, (outer.fair for outer in bound.chain)))
