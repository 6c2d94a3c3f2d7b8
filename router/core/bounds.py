"""The parts of a :class:`Budget`: the limits of connections, and the lines of requests for one more."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from router.core.budget import share

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.core.budget import BudgetKey, Full

T = TypeVar("T")


class BudgetRequest:
    """A request to open one more connection.

    Attributes:
        key: The key of the pool that asks.
        order: Its number in the order of arrival; 0 before it has waited.
    """

    __slots__ = ("ahead", "bound", "key", "mark", "order")

    def __init__(self, key: BudgetKey, order: int = 0) -> None:
        """Make a request, which does not wait yet.

        Args:
            key: The key of the pool that asks.
            order: The number of a request that this one continues.
        """
        self.key = key
        self.order = order
        # The line that it waits in, and how many earlier requests of its owner are for pools without a connection.
        self.bound: Bound | None = None
        self.mark: Mark | None = None
        self.ahead = 0


class Mark(NamedTuple):
    """The numbers that all requests in one line have in common.

    Attributes:
        ahead: How many earlier requests of the same owner are for pools without a connection.
        some: Whether the pool has a connection.
        held: How many connections the owner has in each bound, from the narrowest on.
    """

    ahead: int
    some: bool
    held: tuple[int, ...]


class Bound:
    """A limit, and what counts against it: for a login, a server or the process, each within the next.

    Attributes:
        full_as: The limit that is reached when this bound is full.
        limit: The most connections.
        chain: This bound, and the wider bounds that it lies in.
        inner: The narrower bounds that lie in it.
        total: How many connections there are.
        held: How many connections each owner has.
        demand: How many connections each owner has, plus how many of its requests wait.
        lines: The numbers of the requests, in order, for which this is the narrowest bound.
    """

    __slots__ = ("chain", "demand", "full_as", "held", "inner", "limit", "lines", "total")

    def __init__(self, full_as: Full, limit: int, outer: Bound | None = None) -> None:
        """Make an empty bound.

        Args:
            full_as: The limit that is reached when this bound is full.
            limit: The most connections.
            outer: The wider bound that it lies in.
        """
        self.full_as = full_as
        self.limit = limit
        self.chain: tuple[Bound, ...] = (self, *(outer.chain if outer is not None else ()))
        self.inner: set[Bound] = set()
        self.total = 0
        self.held: dict[str, int] = {}
        self.demand: dict[str, int] = {}
        self.lines: dict[Mark, list[int]] = {}
        if outer is not None:
            outer.inner.add(self)

    @property
    def full(self) -> bool:
        """Whether it has no room left."""
        return self.total >= self.limit

    @property
    def fair(self) -> int:
        """The fair share of each owner."""
        return share(self.limit, len(self.demand))

    def count(self, key: BudgetKey, held: int, waiting: int) -> None:
        """Add to the counts of a pool's connections and requests.

        Args:
            key: The key of the pool.
            held: How many connections to add; negative to subtract.
            waiting: How many requests to add; negative to subtract.
        """
        self.total += held
        change(self.held, key.owner, held)
        change(self.demand, key.owner, held + waiting)

    def open_lines(self) -> Iterator[tuple[Bound, Mark, list[int]]]:
        """List the lines of requests for which no narrower bound than this one is full."""
        for mark, line in self.lines.items():
            yield self, mark, line
        for bound in self.inner:
            if not bound.full:
                yield from bound.open_lines()


class Offer(NamedTuple):
    """A connection that may be closed for a request.

    Attributes:
        in_use: Whether it is being returned now.
        idle_long: Whether it has been idle for at least ``KEPT`` seconds.
        warm: Whether its pool needs it for its ``min_size``.
    """

    in_use: bool
    idle_long: bool
    warm: bool

    def serves(self, theirs: int, own: int, ahead: int, *, some: bool) -> bool:
        """Tell whether to close it for a request that would have room then.

        If its owner has two more connections than the request's owner, closing it makes the numbers more equal. If it
        has one more, the two only swap: that is done only for a pool without a connection, which no connection that is
        returned elsewhere could serve.

        Args:
            theirs: How many connections the owner or pool of this connection has.
            own: How many the owner or pool of the request has.
            ahead: How many earlier requests of the request's owner are for pools without a connection.
            some: Whether the request's pool has a connection.

        Returns:
            Whether to close it.
        """
        if self.idle_long and not (self.warm and some):
            return True
        return theirs > own + some + (ahead if self.in_use else 0)


class Candidate(NamedTuple):
    """A request that a connection may be closed for.

    Attributes:
        order: Its number in the order of arrival.
        urgent: Whether any connection of the process would make room, and its owner is below its share of the process.
        at_share: Whether its owner has its share of the bound that is full.
        at_share_of_process: Whether its owner has its share of the process.
    """

    order: int
    urgent: bool
    at_share: bool
    at_share_of_process: bool

    @classmethod
    def of(cls, order: int, owner: str, ahead: int, full: Bound, process: Bound, *, urgent: bool) -> Self:
        """Make a candidate, comparing its owner with its shares.

        Args:
            order: The request's number.
            owner: The request's owner.
            ahead: How many earlier requests of that owner are for pools without a connection.
            full: The bound that has no room for it.
            process: The bound of the process.
            urgent: Whether it can be urgent: a request whose owner is at its cap cannot.

        Returns:
            The candidate.
        """
        has_share = process.held.get(owner, 0) + ahead >= process.fair
        at_share = has_share if full is process else full.held.get(owner, 0) >= full.fair
        return cls(order, urgent and full is process and not has_share, at_share, has_share)

    def rank(self, *, any_urgent: bool) -> tuple[bool, int]:
        """Rank it in the fair order.

        Where a login or server is full, its connections are the scarce ones, and the shares of it count. The shares of
        the process count as well, but only while some request is urgent.

        Args:
            any_urgent: Whether some request is urgent.

        Returns:
            The sort key; the candidate with the lowest one is served first.
        """
        return self.at_share or (any_urgent and self.at_share_of_process), self.order


def change(counts: dict[T, int], what: T, by: int) -> None:
    """Change one of several counts, and remove it if it becomes 0.

    Args:
        counts: The counts.
        what: The key of the count.
        by: How many to add; negative to subtract.
    """
    number = counts.get(what, 0) + by
    if number:
        counts[what] = number
    else:
        counts.pop(what, None)
