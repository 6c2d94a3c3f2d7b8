"""The answers of a directory of tenants, and how long each of them is valid: pure."""

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
"""The most answers that are kept: beyond that the least recently used tenth is removed."""

UNKNOWN_MAX = 10_000
"""The most unknown keys that are remembered, which limits the memory that requests for ever new keys can cost."""

UNUSED_TTLS = 10.0
"""An answer is removed if it was not used for this many times ``ttl``."""

SPREAD = 0.1
"""The part of ``ttl`` by which an answer may expire early: answers that came together do not all expire together."""


class _Answer:
    """The directory's answer for one tenant.

    Attributes:
        home: Where the tenant lives.
        due: When the directory should be asked again, on the caller's clock.
        used: When the answer was last used.
        changed: Whether the directory must be asked again before the next use, because a change was reported.
        unconfirmed: Whether the last attempt to ask again failed.
        reported: Whether :meth:`Answers.tick` has reported the tenant as due.
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
    """The answers for all tenants. The class is not thread-safe: its owner calls it under a lock."""

    __slots__ = ("_known", "_numbers", "_order", "_policy", "_unknown")

    def __init__(self, policy: DirectoryPolicy) -> None:
        """Make an empty store.

        Args:
            policy: How long an answer is valid.
        """
        self._policy = policy
        self._known: dict[str, _Answer] = {}
        self._unknown: OrderedDict[str, float] = OrderedDict()  # when each key expires; the oldest key first
        self._numbers = count()
        # A heap of the times when answers are checked next; an answer that has been replaced since is skipped.
        self._order: list[tuple[float, int, str, _Answer]] = []

    def use(self, tenant: str, now: float) -> tuple[Home | None, bool]:
        """Use the answer for a tenant.

        Args:
            tenant: The tenant's key.
            now: The time.

        Returns:
            The tenant's home, ``None`` if the directory must be asked first; and whether the home is due, so that the
            directory should be asked again while this answer is used.
        """
        answer = self._known.get(tenant)
        if answer is None or answer.changed:
            return None, False
        answer.used = now
        return answer.home, now >= answer.due

    def peek(self, tenant: str) -> Home | None:
        """Return the last known home of a tenant, which does not count as a use.

        Args:
            tenant: The tenant's key.

        Returns:
            The home; ``None`` if none is known.
        """
        answer = self._known.get(tenant)
        return None if answer is None else answer.home

    @property
    def unknown(self) -> int:
        """How many keys are remembered that belong to no tenant, expired ones included."""
        return len(self._unknown)

    def is_unknown(self, tenant: str, now: float) -> bool:
        """Tell whether the directory has answered lately that there is no such tenant.

        Args:
            tenant: The key.
            now: The time.

        Returns:
            Whether there is such an answer that has not expired.
        """
        return now < self._unknown.get(tenant, -inf)

    def has(self, tenant: str) -> bool:
        """Tell whether any home of a tenant is known, even one that is out of date.

        Args:
            tenant: The key.

        Returns:
            Whether there is one to fall back on.
        """
        return tenant in self._known

    @property
    def tenants(self) -> list[str]:
        """The tenants whose homes are known."""
        return list(self._known)

    @property
    def unconfirmed(self) -> list[str]:
        """The tenants whose homes could not be confirmed."""
        return [tenant for tenant, answer in self._known.items() if answer.unconfirmed]

    def mark_changed(self, tenant: str) -> None:
        """Note that a tenant has changed: the directory is asked before the next use.

        Args:
            tenant: The tenant's key.
        """
        self._unknown.pop(tenant, None)
        if (answer := self._known.get(tenant)) is not None:
            answer.changed = True

    def mark_all_changed(self) -> None:
        """Note that any tenant may have changed: each is due at its next use, which does not wait for the answer."""
        self._unknown.clear()
        self.recover(everyone=True)

    def recover(self, *, everyone: bool = False) -> None:
        """Make the tenants due that could not be confirmed.

        Args:
            everyone: Whether to make all tenants due.
        """
        for answer in self._known.values():
            if everyone or answer.unconfirmed:
                answer.due, answer.reported = -inf, False
        self._order = [(answer.due, next(self._numbers), tenant, answer) for tenant, answer in self._known.items()]
        heapify(self._order)

    def keep(self, tenant: str, home: Home | None, now: float, jitter: float) -> bool:
        """Store an answer of the directory.

        Args:
            tenant: The key.
            home: Where the tenant lives; ``None`` if there is no such tenant.
            now: The time.
            jitter: A random number, from 0 to 1.

        Returns:
            Whether the answer replaces a different one.
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
        """Remove what is known of a tenant, because the directory's latest answer for it cannot be used.

        Args:
            tenant: The key.

        Returns:
            Whether a home was known.
        """
        return self._known.pop(tenant, None) is not None

    def mark_unconfirmed(self, tenant: str, now: float) -> bool:
        """Note that a tenant's home could not be confirmed: the known home stays in use.

        Args:
            tenant: The key.
            now: The time.

        Returns:
            Whether a home is known.
        """
        answer = self._known.get(tenant)
        if answer is None:
            return False
        answer.changed, answer.unconfirmed = False, True
        answer.due, answer.reported = now + self._policy.ttl, False
        return True

    def tick(self, now: float) -> list[str]:
        """Remove answers that are no longer used, and find the ones that are due.

        Args:
            now: The time.

        Returns:
            The tenants that have become due since the last call, and those removed because there were too many.
        """
        self._forget_unknown(now, leave=UNKNOWN_MAX)
        due, again, kept = [], list[tuple[str, _Answer, float]](), UNUSED_TTLS * self._policy.ttl
        while self._order and self._order[0][0] <= now:
            _, _, tenant, answer = heappop(self._order)
            if self._known.get(tenant) is not answer:
                continue
            # A tenant that could not be confirmed may be in use although ``used`` is old: requests may take its lane
            # without a call of :meth:`use`.
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
        """Count the answers.

        Args:
            now: The time.

        Returns:
            The counts; whether the directory fails is not known here.
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
    """Describe how a request to a directory failed, without text of other libraries, which may hold a secret.

    Args:
        error: The error.

    Returns:
        The message if it is an error of the router; else the error's type and where it was raised.
    """
    if isinstance(error, RouterError):
        return str(error)
    sqlstate = getattr(error, "sqlstate", None)
    *_, where = extract_tb(error.__traceback__) or [None]
    file = where and f" in {where.filename.rpartition('/')[2]}, line {where.lineno}"
    return f"{type(error).__name__}{f' ({sqlstate})' if sqlstate else ''}{file or ''}"
