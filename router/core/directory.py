"""What a directory of tenants has answered, and for how long each answer counts: pure."""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush, nsmallest
from itertools import count
from math import inf
from traceback import extract_tb
from typing import TYPE_CHECKING

from router.core.errors import RouterError
from router.core.measures import DirectoryStats

if TYPE_CHECKING:
    from router.core.policies import DirectoryPolicy
    from router.core.topology import Home

KNOWN_MAX = 50_000
"""How many answers are kept at most: with more, those go that were unused for longest, a tenth at a time."""

UNKNOWN_MAX = 10_000
"""How many unknown keys are remembered at most: asking for ever new ones costs no more memory than that."""

UNUSED_TTLS = 10.0
"""After so many times ``ttl`` without being asked for, an answer is dropped."""

SPREAD = 0.1
"""The part of ``ttl`` by which an answer may end early, so that not all that is learnt at once is asked for at once."""


class _Answer:
    """Where one tenant lives.

    Attributes:
        home: The home.
        due: When it is to be asked for again, on the caller's clock.
        used: When it was last used.
        changed: Whether it must be asked for again before it is used, because a change was heard of.
        unconfirmed: Whether that failed.
        reported: Whether :meth:`Answers.tick` has reported that it is due.
    """

    __slots__ = ("changed", "due", "home", "reported", "unconfirmed", "used")

    def __init__(self, home: Home, due: float, used: float) -> None:
        self.home = home
        self.due = due
        self.used = used
        self.changed = False
        self.unconfirmed = False
        self.reported = False


class Answers:
    """All that is known of tenants. It is not safe for threads: its owner calls it under a lock."""

    __slots__ = ("_known", "_numbers", "_order", "_policy", "_unknown")

    def __init__(self, policy: DirectoryPolicy) -> None:
        """Begin with nothing known.

        Args:
            policy: How long an answer counts.
        """
        self._policy = policy
        self._known: dict[str, _Answer] = {}
        self._unknown: OrderedDict[str, float] = OrderedDict()  # until when; the oldest first
        self._numbers = count()
        # When each answer is to be checked next, the soonest first; an answer that was replaced since is skipped.
        self._order: list[tuple[float, int, str, _Answer]] = []

    def use(self, tenant: str, now: float) -> tuple[Home | None, bool]:
        """Tell where a tenant lives.

        Args:
            tenant: Its key.
            now: The time.

        Returns:
            Its home, ``None`` when it must be asked for first; and whether to ask for it anew while it is used.
        """
        answer = self._known.get(tenant)
        if answer is None or answer.changed:
            return None, False
        answer.used = now
        return answer.home, now >= answer.due

    def peek(self, tenant: str) -> Home | None:
        """Tell where a tenant lived when that was last asked, which does not count as a use.

        Args:
            tenant: Its key.

        Returns:
            Its home; ``None`` if none is known.
        """
        answer = self._known.get(tenant)
        return None if answer is None else answer.home

    @property
    def unknown(self) -> int:
        """How many keys are remembered that are no tenant's, in date or not."""
        return len(self._unknown)

    def is_unknown(self, tenant: str, now: float) -> bool:
        """Tell whether there was no such tenant a moment ago.

        Args:
            tenant: The key.
            now: The time.

        Returns:
            Whether that still counts.
        """
        return now < self._unknown.get(tenant, -inf)

    def has(self, tenant: str) -> bool:
        """Tell whether a home is known to fall back on, even one that is out of date.

        Args:
            tenant: The key.

        Returns:
            Whether there is one.
        """
        return tenant in self._known

    @property
    def tenants(self) -> list[str]:
        """The tenants whose homes are known."""
        return list(self._known)

    @property
    def unconfirmed(self) -> list[str]:
        """Those whose homes could not be confirmed."""
        return [tenant for tenant, answer in self._known.items() if answer.unconfirmed]

    def mark_changed(self, tenant: str) -> None:
        """Note that a tenant has changed: it is asked for before it is used again.

        Args:
            tenant: Its key.
        """
        self._unknown.pop(tenant, None)
        if (answer := self._known.get(tenant)) is not None:
            answer.changed = True

    def mark_all_changed(self) -> None:
        """Note that any tenant may have changed: each is asked for when it is next used, which need not wait for it."""
        self._unknown.clear()
        self.recover(everyone=True)

    def recover(self, *, everyone: bool = False) -> None:
        """Have those asked for again that could not be confirmed.

        Args:
            everyone: Whether all others are, too.
        """
        for answer in self._known.values():
            if everyone or answer.unconfirmed:
                answer.due, answer.reported = -inf, False
        self._order = [(answer.due, next(self._numbers), tenant, answer) for tenant, answer in self._known.items()]
        heapify(self._order)

    def keep(self, tenant: str, home: Home | None, now: float, jitter: float) -> bool:
        """Note what the directory says.

        Args:
            tenant: The key.
            home: Where it lives; ``None`` if there is no such tenant.
            now: The time.
            jitter: A random number, from 0 to 1.

        Returns:
            Whether something else was known before.
        """
        before = self._known.get(tenant)
        self._unknown.pop(tenant, None)
        if home is None:
            self._known.pop(tenant, None)
            self._forget_unknown(now, leave=UNKNOWN_MAX - 1)
            self._unknown[tenant] = now + self._policy.unknown_ttl
            return before is not None
        due = now + self._policy.ttl * (1.0 - SPREAD * jitter)
        answer = self._known[tenant] = _Answer(home, due, now if before is None else before.used)
        self._schedule(tenant, answer, due)
        return before is not None and before.home != home

    def drop(self, tenant: str) -> bool:
        """Note that the answer for a tenant cannot be used, and that an earlier one does not count any more.

        Args:
            tenant: The key.

        Returns:
            Whether anything was known of it.
        """
        return self._known.pop(tenant, None) is not None

    def mark_unconfirmed(self, tenant: str, now: float) -> bool:
        """Note that a tenant's home could not be confirmed: what is known of it goes on counting.

        Args:
            tenant: The key.
            now: The time.

        Returns:
            Whether anything is known of it.
        """
        answer = self._known.get(tenant)
        if answer is None:
            return False
        answer.changed, answer.unconfirmed = False, True
        answer.due, answer.reported = now + self._policy.ttl, False
        return True

    def tick(self, now: float) -> list[str]:
        """Drop what is not used any more, and find what is to be asked for again.

        Args:
            now: The time.

        Returns:
            The tenants that have become due since this was last called, or are too many.
        """
        self._forget_unknown(now, leave=UNKNOWN_MAX)
        due, again, kept = [], list[tuple[str, _Answer, float]](), UNUSED_TTLS * self._policy.ttl
        while self._order and self._order[0][0] <= now:
            _, _, tenant, answer = heappop(self._order)
            if self._known.get(tenant) is not answer:
                continue
            # One that could not be confirmed may be in use all the time: such use does not reach this object.
            if answer.used < now - kept and not answer.unconfirmed:
                del self._known[tenant]
                continue
            if now >= answer.due and not answer.reported:
                answer.reported = True
                due.append(tenant)
            last = now + self._policy.ttl if answer.unconfirmed else answer.used + kept
            again.append((tenant, answer, last if answer.reported else answer.due))
        for tenant, answer, when in again:
            self._schedule(tenant, answer, when)
        return due + self._evict()

    def _schedule(self, tenant: str, answer: _Answer, when: float) -> None:
        heappush(self._order, (when, next(self._numbers), tenant, answer))

    def _evict(self) -> list[str]:
        if len(self._known) <= KNOWN_MAX:
            return []
        sure = [tenant for tenant, answer in self._known.items() if not answer.unconfirmed]
        most = len(self._known) - KNOWN_MAX + KNOWN_MAX // 10
        evicted = nsmallest(most, sure, key=lambda tenant: self._known[tenant].used)
        for tenant in evicted:
            del self._known[tenant]
        return evicted

    def stats(self, now: float) -> DirectoryStats:
        """Count.

        Args:
            now: The time.

        Returns:
            The numbers, as far as they are known here.
        """
        return DirectoryStats(
            known=len(self._known),
            unknown=sum(now < until for until in self._unknown.values()),
            unconfirmed=sum(answer.unconfirmed or answer.changed for answer in self._known.values()),
        )

    def _forget_unknown(self, now: float, *, leave: int) -> None:
        while self._unknown:
            oldest, until = next(iter(self._unknown.items()))
            if now < until and len(self._unknown) <= leave:
                return
            del self._unknown[oldest]


def describe_failure(error: Exception) -> str:
    """Say how asking a directory failed, with nothing of what others write, which may hold a connection string.

    Args:
        error: What it failed with.

    Returns:
        The message of an error of the router's own; of any other, its type, and where it was raised.
    """
    if isinstance(error, RouterError):
        return str(error)
    sqlstate = getattr(error, "sqlstate", None)
    *_, where = extract_tb(error.__traceback__) or [None]
    file = where and f" in {where.filename.rpartition('/')[2]}, line {where.lineno}"
    return f"{type(error).__name__}{f' ({sqlstate})' if sqlstate else ''}{file or ''}"
