"""Who is next in a line that owners share: the first whose owner is below its share, else the first, and quickly so.

:func:`router.core.budget.next_in_line` says who that is, by looking at everybody. Here the same is found without: those
of one owner who accept the same are in a queue of their own, a heap has the first of each queue in order of arrival,
and of it are looked at only those whose owners have their share.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from router.core.budget import at_share

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

T = TypeVar("T")
Queue: TypeAlias = tuple[str, object]

SLACK = 64
"""So many entries more than twice the queues may lie in the heap before it is made anew."""


class FairLine(Generic[T]):
    """Those that wait, each for an owner, with its place in the order of arrival, and with what it accepts.

    An exception may come between any two steps, out of a signal handler. The order of the steps is such that nobody who
    waits is overlooked after that: an entry too many is passed over, and counts that are wrong end with the last queue.
    """

    def __init__(self) -> None:
        """Begin with nobody."""
        self._queues: dict[Queue, OrderedDict[T, int]] = {}
        self._heads: list[tuple[int, int, Queue]] = []  # a heap; entries of those that were first once are left
        self._ties = count()
        self._owners = Counter[str]()
        self._accepting = Counter[object]()

    def number(self, accepts: object) -> int:
        """Count those that accept something.

        Args:
            accepts: What.

        Returns:
            How many there are.
        """
        return self._accepting[accepts]

    def add(self, waiter: T, place: int, owner: str, accepts: object) -> None:
        """Have one wait.

        Args:
            waiter: The one.
            place: Its place in the order of arrival; lower ones are served before.
            owner: Whose it is.
            accepts: What it can be served with.
        """
        key = (owner, accepts)
        queue = self._queues.get(key)
        if queue is None:
            if len(self._queues) == 1:  # as long as there is one queue only, the heap is not kept
                self._heads = self._firsts()
            if self._queues:
                heappush(self._heads, (place, next(self._ties), key))
            self._queues[key] = OrderedDict([(waiter, place)])
        elif place < _place(queue):
            if len(self._queues) > 1:
                heappush(self._heads, (place, next(self._ties), key))
            queue[waiter] = place
            queue.move_to_end(waiter, last=False)
        else:
            queue[waiter] = place
        self._owners[owner] += 1
        self._accepting[accepts] += 1

    def remove(self, waiter: T, owner: str, accepts: object) -> None:
        """Have one wait no more; nothing happens if it does not.

        Args:
            waiter: The one.
            owner: Whose it is.
            accepts: What it can be served with.
        """
        key = (owner, accepts)
        queue = self._queues.get(key)
        if queue is None or waiter not in queue:
            return
        if len(queue) == 1:
            del self._queues[key]
        else:
            if len(self._queues) > 1 and next(iter(queue)) is waiter:
                rest = iter(queue.values())
                next(rest)
                heappush(self._heads, (next(rest), next(self._ties), key))
            del queue[waiter]
        self._owners[owner] -= 1
        self._accepting[accepts] -= 1
        if not self._owners[owner]:
            del self._owners[owner]
        if not self._queues:
            self._owners.clear()
            self._accepting.clear()
            self._heads.clear()
        elif len(self._heads) > 2 * len(self._queues) + SLACK:
            self._heads = self._firsts()

    def first(self, accepted: Collection[object], held: Callable[[], Mapping[str, int]] | None) -> T | None:
        """Find the one that is served next.

        Args:
            accepted: What there is to serve it with, as those that wait may accept it.
            held: Tells how much each owner has, as for :func:`~router.core.budget.next_in_line`; ``None`` where that
                does not matter.

        Returns:
            The one; ``None`` if nobody accepts that.
        """
        if len(self._queues) == 1:
            [((_, accepts), queue)] = self._queues.items()
            return next(iter(queue)) if accepts in accepted else None
        served = frozenset[str]() if held is None or len(self._owners) == 1 else at_share(self._owners, held())
        passed: list[tuple[int, int, Queue]] = []
        otherwise: T | None = None
        try:
            while self._heads:
                place, _, key = entry = self._heads[0]
                found = self._queues.get(key)
                if found is None or _place(found) != place:  # it was first once
                    heappop(self._heads)
                    continue
                if key[1] in accepted:
                    if key[0] not in served:
                        return next(iter(found))
                    otherwise = next(iter(found)) if otherwise is None else otherwise
                passed.append(entry)
                heappop(self._heads)
        finally:
            for entry in passed:
                heappush(self._heads, entry)
        return otherwise

    def _firsts(self) -> list[tuple[int, int, Queue]]:
        heads = [(_place(queue), next(self._ties), key) for key, queue in self._queues.items()]
        heapify(heads)
        return heads


def _place(queue: OrderedDict[T, int]) -> int:
    return next(iter(queue.values()))
