"""What limits connections, and the lines in which requests for one more stand: what a :class:`Budget` is made of."""

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
        key: For which pool.
        order: Its number in the order of arrival; 0 before it has waited.
    """

    __slots__ = ("ahead", "bound", "key", "mark", "order")

    def __init__(self, key: BudgetKey, order: int = 0) -> None:
        """Make it; it does not wait yet.

        Args:
            key: For which pool.
            order: The number of a request that this one continues.
        """
        self.key = key
        self.order = order
        # The line that it stands in, and how many requests of its owner, for pools that have none, came before.
        self.bound: Bound | None = None
        self.mark: Mark | None = None
        self.ahead = 0


class Mark(NamedTuple):
    """What the requests in one line have in common.

    Attributes:
        ahead: How many requests of the same owner, for pools that have none, came before.
        some: Whether the pool has a connection.
        held: How many connections the owner has, in each bound from the narrowest on.
    """

    ahead: int
    some: bool
    held: tuple[int, ...]


class Bound:
    """A limit and what counts against it: of a login, a server or the process, each within the next.

    Attributes:
        full_as: What it is called when it is full.
        limit: How many connections there may be.
        chain: Itself, and those that it lies in.
        inner: Those that lie in it.
        total: How many connections there are.
        held: How many each owner has.
        crowd: Those, and how many requests of each owner wait.
        lines: The numbers of the requests, in order, for which no bound is narrower.
    """

    __slots__ = ("chain", "crowd", "full_as", "held", "inner", "limit", "lines", "total")

    def __init__(self, full_as: Full, limit: int, outer: Bound | None = None) -> None:
        """Begin with nothing.

        Args:
            full_as: What it is called when it is full.
            limit: How many connections there may be.
            outer: What it lies in.
        """
        self.full_as = full_as
        self.limit = limit
        self.chain: tuple[Bound, ...] = (self, *(outer.chain if outer is not None else ()))
        self.inner: set[Bound] = set()
        self.total = 0
        self.held: dict[str, int] = {}
        self.crowd: dict[str, int] = {}
        self.lines: dict[Mark, list[int]] = {}
        if outer is not None:
            outer.inner.add(self)

    @property
    def full(self) -> bool:
        """Whether it has no room left."""
        return self.total >= self.limit

    @property
    def fair(self) -> int:
        """How many connections each owner may count on."""
        return share(self.limit, len(self.crowd))

    def count(self, key: BudgetKey, held: int, waiting: int) -> None:
        """Count connections and requests of a pool, or those that are no more.

        Args:
            key: The pool.
            held: How many connections more.
            waiting: How many requests more.
        """
        self.total += held
        change(self.held, key.owner, held)
        change(self.crowd, key.owner, held + waiting)

    def open_lines(self) -> Iterator[tuple[Bound, Mark, list[int]]]:
        """List the lines of the requests for which nothing narrower than this bound is full."""
        for mark, line in self.lines.items():
            yield self, mark, line
        for bound in self.inner:
            if not bound.full:
                yield from bound.open_lines()


class Offer(NamedTuple):
    """A connection that may be closed for a request.

    Attributes:
        in_use: Whether it comes back just now.
        rested: Whether it has been idle for long.
        warm: Whether its pool is to keep it.
    """

    in_use: bool
    rested: bool
    warm: bool

    def serves(self, theirs: int, own: int, ahead: int, *, some: bool) -> bool:
        """Tell whether it is closed for a request to which that gives room.

        Two apart, they come closer. One apart, they swap: only for a pool that has none, which nothing that
        comes back could serve otherwise.

        Args:
            theirs: How many connections its owner or pool has.
            own: How many that of the request has.
            ahead: How many requests of that owner, for pools that have none, come before.
            some: Whether the request's pool has any.

        Returns:
            Whether it is.
        """
        if self.rested and not (self.warm and some):
            return True
        return theirs > own + some + (ahead if self.in_use else 0)


class Candidate(NamedTuple):
    """A request that a connection may be closed for.

    Attributes:
        order: Its number.
        presses: Whether any connection of the process would do, and its owner has less than its share of those.
        at_share: Whether its owner has its share of what is full.
        at_share_of_process: Whether it has its share of the process.
    """

    order: int
    presses: bool
    at_share: bool
    at_share_of_process: bool

    @classmethod
    def of(cls, order: int, owner: str, ahead: int, full: Bound, process: Bound, *, presses: bool) -> Self:
        """Compare an owner with its shares.

        Args:
            order: The request's number.
            owner: Whose it is.
            ahead: How many requests of that owner, for pools that have none, come before.
            full: What has no room for it.
            process: The bound of the process.
            presses: Whether it may press at all.

        Returns:
            The candidate.
        """
        has_share = process.held.get(owner, 0) + ahead >= process.fair
        at_share = has_share if full is process else full.held.get(owner, 0) >= full.fair
        return cls(order, presses and full is process and not has_share, at_share, has_share)

    def rank(self, *, pressing: bool) -> tuple[bool, int]:
        """Rank it in the fair order.

        Where a login or server is full, its connections are what is scarce, and the shares of it count. Those of the
        process count beside them only while a request that is below such a share waits for nothing else.

        Args:
            pressing: Whether one does.

        Returns:
            What orders the candidates, the first one first.
        """
        return self.at_share or (pressing and self.at_share_of_process), self.order


def change(counts: dict[T, int], what: T, by: int) -> None:
    """Change one of several counts; what is counted no more is left out.

    Args:
        counts: The counts.
        what: What is counted.
        by: How many more.
    """
    number = counts.get(what, 0) + by
    if number:
        counts[what] = number
    else:
        counts.pop(what, None)
