"""A line shared by owners; the next waiter is the first one whose owner is below its share, else the first one.

:func:`router.core.budget.next_in_line` defines which waiter that is, by looking at all of them. This class finds the
same one faster: the waiters of one owner that accept the same pool are in one queue, a heap has the first waiter of
each queue in order of arrival, and only waiters whose owners have their share are passed over.
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
"""The heap is rebuilt when it has more entries than twice the number of queues plus this."""


def insert(queue: OrderedDict[T, int], waiter: T, place: int) -> None:
    """Insert a waiter where its place in the order of arrival is: most often at the end, else from the nearer end.

    Args:
        queue: The waiters with their places, in order.
        waiter: The waiter.
        place: Its place.
    """
    if not queue or next(reversed(queue.values())) < place:  # quicker than the loop
        queue[waiter] = place
        return
    before, after = list[T](), list[T]()
    for (first, least), (last, greatest) in zip(queue.items(), reversed(queue.items()), strict=True):
        if greatest < place:
            queue[waiter] = place
            for one in reversed(after):
                queue.move_to_end(one)
            return
        if least > place:
            queue[waiter] = place
            for one in (waiter, *reversed(before)):
                queue.move_to_end(one, last=False)
            return
        before.append(first)
        after.append(last)
    queue[waiter] = place


class FairLine(Generic[T]):
    """The waiters, each with its owner, its place in the order of arrival, and what it accepts.

    A signal handler may raise an exception between any two steps. The steps are ordered so that no waiter is overlooked
    after that: a surplus entry of the heap is passed over, and wrong counts are cleared with the last queue.
    """

    def __init__(self) -> None:
        """Make an empty line."""
        self._queues: dict[Queue, OrderedDict[T, int]] = {}
        self._heads: list[tuple[int, int, Queue]] = []  # a heap; entries of waiters that were first before remain in it
        self._ties = count()
        self._owners = Counter[str]()
        self._accepting = Counter[object]()

    def number(self, accepts: object) -> int:
        """Count the waiters that accept something.

        Args:
            accepts: What they accept.

        Returns:
            The number of waiters.
        """
        return self._accepting[accepts]

    def add(self, waiter: T, place: int, owner: str, accepts: object) -> None:
        """Add a waiter.

        Args:
            waiter: The waiter.
            place: Its place in the order of arrival; lower places are served first.
            owner: Its owner.
            accepts: What it accepts.
        """
        key = (owner, accepts)
        queue = self._queues.get(key)
        if queue is None:
            if len(self._queues) == 1:  # the heap is not kept while there is only one queue
                self._heads = self._firsts()
            if self._queues:
                heappush(self._heads, (place, next(self._ties), key))
            self._queues[key] = OrderedDict([(waiter, place)])
        else:
            if len(self._queues) > 1 and place < _place(queue):
                heappush(self._heads, (place, next(self._ties), key))
            insert(queue, waiter, place)
        self._owners[owner] += 1
        self._accepting[accepts] += 1

    def remove(self, waiter: T, owner: str, accepts: object) -> None:
        """Remove a waiter; do nothing if it is not in the line.

        Args:
            waiter: The waiter.
            owner: Its owner.
            accepts: What it accepts.
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
        """Find the waiter to serve next.

        Args:
            accepted: What is available; a waiter is served if it accepts one of these.
            held: Returns how much each owner has, as for :func:`~router.core.budget.next_in_line`; ``None`` if that
                does not matter.

        Returns:
            The waiter; ``None`` if no waiter accepts any of it.
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
                if found is None or _place(found) != place:  # an entry of an earlier first waiter
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
