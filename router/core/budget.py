"""Who may open a connection next, and which one is closed for that: pure functions over what is open and who waits.

Three limits hold at every moment: of the process, of a server, and of a *holder*, which is a tenant, or a version for
the pools that its tenants share. No connection is set aside for anybody: while there is room, whoever asks gets one.
When there is none, they move from holders that have more to holders that have fewer: an idle one is closed, or one that
comes back is not lent again. So everybody tends to the same number, as far as each wants that many (max-min fairness).

Nobody starves while connections come back. A pool that has none cannot be served by what comes back to others; so it
gets one from any holder that has more than its own, even one more, and from the other pools of its own holder. Of those
who may have a connection, the first is served whose holder is below its share; and within a holder, the first place
below a cap or a share is kept for the pool without a connection that asked first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from router.core.topology import Server

KEPT = 1.0
"""Seconds that an idle connection is kept from those who have as many as its holder: it may be wanted again at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """Whose connections those of one pool are; one object a pool, for all its connections and whoever opens more.

    Two claims are never equal, whatever they say: of two pools of one holder, to read and to write, neither can stand
    in for the other.

    Attributes:
        server: Where the pool connects to.
        holder: Whose it is, in words: ``tenant acme``; or a version, when tenants share the pool or none uses it.
        cap: The most connections of that holder, over all its pools; ``None`` for no limit of its own.
    """

    server: Server
    holder: str
    cap: int | None


class Limits(NamedTuple):
    """How many connections there may be.

    Attributes:
        process: In the process.
        server: To one server; ``None`` for no limit of its own.
    """

    process: int
    server: int | None


class Idle(NamedTuple):
    """A connection that nobody has borrowed.

    Attributes:
        claim: Its pool's.
        since: When it came back, on the caller's clock.
        warm: Whether its pool is to keep it: without it, there would be fewer than ``min_size``.
    """

    claim: Claim
    since: float
    warm: bool


class Full(Enum):
    """What has no room left, from the narrowest on: more room there is more room in those after it, too."""

    HOLDER = auto()
    SERVER = auto()
    PROCESS = auto()


class _Count:
    """How many connections each pool, holder and server has, and how many a holder may count on."""

    __slots__ = ("fair", "fair_there", "limits", "of_holder", "of_holder_there", "of_pool", "of_server", "total")

    def __init__(self, limits: Limits, taken: Sequence[Claim], waiting: Sequence[Claim]) -> None:
        self.limits = limits
        self.total = len(taken)
        self.of_pool = Counter(taken)
        self.of_holder: defaultdict[str, int] = defaultdict(int)
        self.of_server: defaultdict[Server, int] = defaultdict(int)
        self.of_holder_there: defaultdict[tuple[Server, str], int] = defaultdict(int)
        for claim, number in self.of_pool.items():
            self.of_holder[claim.holder] += number
            if limits.server is not None:
                self.of_server[claim.server] += number
                self.of_holder_there[claim.server, claim.holder] += number
        pools = self.of_pool.keys() | set(waiting)
        self.fair = share(limits.process, len({pool.holder for pool in pools}))
        self.fair_there: dict[Server, int] = {}
        if limits.server is not None:
            crowds = Counter(server for server, _ in {(pool.server, pool.holder) for pool in pools})
            self.fair_there = {server: share(limits.server, crowd) for server, crowd in crowds.items()}

    def full(self, claim: Claim, ahead: int) -> Full | None:
        """Tell what keeps one more connection from being opened, ``ahead`` others of its holder coming before it."""
        if claim.cap is not None and self.of_holder.get(claim.holder, 0) + ahead >= claim.cap:
            return Full.HOLDER
        if self.is_full(claim.server):
            return Full.SERVER
        return Full.PROCESS if self.total >= self.limits.process else None

    def is_full(self, server: Server) -> bool:
        """Tell whether a server has all the connections it may have."""
        return self.limits.server is not None and self.of_server.get(server, 0) >= self.limits.server

    def is_below(self, claim: Claim, ahead: int) -> bool:
        """Tell whether its holder has less than its share of the process, ``ahead`` others of it coming before."""
        return self.of_holder.get(claim.holder, 0) + ahead < self.fair

    def is_below_there(self, claim: Claim) -> bool:
        """Tell whether its holder has less than its share of the server."""
        if self.limits.server is None:
            return True
        return self.of_holder_there.get((claim.server, claim.holder), 0) < self.fair_there[claim.server]

    def line(self, waiting: Sequence[Claim], claim: Claim | None = None) -> list[tuple[int, Full | None]]:
        """Order those who wait, the fairest choice first, each with what has no room for it.

        Where a server is full, its connections are what is scarce, and the shares of it count. Those of the process
        count beside them only while somebody who is below such a share waits for nothing else. The pools of a holder
        that has reached its cap are all compared by the same share: they come in the order of arrival.

        Args:
            waiting: Those who wait.
            claim: Only those whom a connection of this pool helps, and who are owed it; ``None`` for all.
        """
        ahead: defaultdict[str, int] = defaultdict(int)
        found = []
        for index, waiter in enumerate(waiting):
            # A cap and a share are for those of a holder that came first, even if their server is full now. Else, its
            # other pools would use them up again and again, and those would never have their turn.
            before = ahead[waiter.holder]
            full = self.full(waiter, before)
            if claim is None or (self.helps(claim, waiter, full) and self.owes(claim, waiter, full, before)):
                found.append((index, full, self.is_below(waiter, before)))
            ahead[waiter.holder] += not self.of_pool[waiter]
        pressing = any(below and full is Full.PROCESS for _, full, below in found)

        def is_last(place: tuple[int, Full | None, bool]) -> bool:
            index, _, below = place
            if self.full(waiting[index], 0) is Full.SERVER:
                return not self.is_below_there(waiting[index]) or (pressing and not below)
            return not below

        return [(index, full) for index, full, _ in sorted(found, key=is_last)]

    def helps(self, claim: Claim, waiter: Claim, full: Full | None) -> bool:
        """Tell whether a connection of ``claim`` less makes room for ``waiter`` in what is full."""
        if claim is waiter:  # a pool gains nothing by opening one connection in place of another
            return False
        if full is Full.HOLDER:
            return claim.holder == waiter.holder
        if full is Full.SERVER:
            return claim.server == waiter.server
        return full is Full.PROCESS

    def owes(self, claim: Claim, waiter: Claim, full: Full | None, ahead: int) -> bool:
        """Tell whether ``claim`` has so many more than ``waiter`` that it must part with one, even one in use.

        Two apart, they come closer. One apart, they change places: only for a pool that has none, which nothing that
        comes back could serve otherwise.
        """
        apart = 1 if self.of_pool[waiter] else 0
        if claim.holder == waiter.holder:
            return self.of_pool[claim] > self.of_pool[waiter] + apart
        if full is Full.SERVER:
            theirs = self.of_holder_there[claim.server, claim.holder]
            own = self.of_holder_there.get((waiter.server, waiter.holder), 0)
        else:
            theirs, own = self.of_holder[claim.holder], self.of_holder.get(waiter.holder, 0)
        return theirs > own + ahead + apart


def share(limit: int, holders: int) -> int:
    """Return how many connections each holder may count on, whatever the others ask for.

    Args:
        limit: How many there are.
        holders: How many have some or wait for some.

    Returns:
        An equal part of them, at least 1.
    """
    return max(limit // max(holders, 1), 1)


def full(limits: Limits, taken: Sequence[Claim], claim: Claim) -> Full | None:
    """Tell what keeps one more connection from being opened, nobody else waiting for it.

    Args:
        limits: How many there may be.
        taken: Those that are open or being opened.
        claim: Of the pool that wants one more.

    Returns:
        The narrowest limit that is reached; ``None`` when there is room.
    """
    return _Count(limits, taken, ()).full(claim, 0)


def next_in_line(waiting: Iterable[str], crowd: Collection[str], held: Mapping[str, int]) -> int:
    """Choose who is served next: the first whose holder is below its share, else the first.

    What they share is what there is: how many there may be, a pool whose budget is spent never gets.

    Args:
        waiting: The holders that wait, once for each request, in order of arrival.
        crowd: The same, each once.
        held: How many connections each holder has, the one that has just come back still counted as its last one's:
            else, whoever gives one back would have one fewer than all others. Holders that have none are left out.

    Returns:
        The place in ``waiting``.
    """
    fair = share(sum(held.values()), len(crowd) + sum(holder not in crowd for holder in held))
    sated = {holder for holder, number in held.items() if number >= fair}
    return next((index for index, holder in enumerate(waiting) if holder not in sated), 0)


def grant(limits: Limits, taken: Sequence[Claim], waiting: Sequence[Claim]) -> int | None:
    """Choose who may open a connection now: the first in the fair order that has room.

    The fair order is that of arrival, those before all others whose holder has less than its share, of the process's
    connections and of the server's. A cap is filled in the order of arrival, too: a pool without a connection keeps its
    place below it while its server is full.

    Args:
        limits: How many there may be.
        taken: Those that are open or being opened.
        waiting: Those who wait to open one, in order of arrival.

    Returns:
        The place in ``waiting``; ``None`` when nobody may.
    """
    if len(taken) >= limits.process:
        return None
    count = _Count(limits, taken, waiting)
    ahead: defaultdict[str, int] = defaultdict(int)
    first = None
    for index, claim in enumerate(waiting):
        if count.full(claim, ahead[claim.holder]) is None:
            if count.is_below(claim, 0) and count.is_below_there(claim):
                return index
            first = index if first is None else first
        ahead[claim.holder] += not count.of_pool[claim]
    return first


def to_close(
    limits: Limits, taken: Sequence[Claim], waiting: Sequence[Claim], idle: Sequence[Idle], now: float
) -> tuple[int, int] | None:
    """Choose an idle connection to close for somebody who waits: the least recently used one that makes room.

    Who waits is looked at in the fair order, see :func:`grant`. Any idle connection is closed for a holder that has
    fewer (two fewer, once the pool that asks has one); for others, one that has been idle for ``KEPT`` seconds. A
    pool's ``min_size`` is touched only if nothing else helps, and for others only if the pool that asks has none.

    Once it is closed, the slot is for the one it was closed for, if that has room then: a holder at its cap may find
    its server full, too.

    Args:
        limits: How many there may be.
        taken: Those that are open or being opened, the idle ones among them.
        waiting: Those who wait to open one, in order of arrival.
        idle: The idle connections.
        now: The time on the clock of ``Idle.since``.

    Returns:
        The place in ``idle`` of the one to close, and the place in ``waiting`` of the one it is closed for; ``None``
        when none would help, or somebody has room already.
    """
    if not idle or grant(limits, taken, waiting) is not None:
        return None
    count = _Count(limits, taken, waiting)
    order = sorted(range(len(idle)), key=lambda place: (idle[place].warm, idle[place].since))
    for index, full in count.line(waiting):
        waiter = waiting[index]
        for place in order:
            one = idle[place]
            if not count.helps(one.claim, waiter, full):
                continue
            rested = one.since <= now - KEPT and not (one.warm and count.of_pool[waiter])
            if rested or count.owes(one.claim, waiter, full, 0):
                return place, index
    return None


def yields_to(limits: Limits, taken: Sequence[Claim], waiting: Sequence[Claim], claim: Claim) -> int | None:
    """Choose for whom a connection that comes back is closed, when otherwise its pool would lend it again at once.

    It is closed for the first in the fair order, see :func:`grant`, to whom that gives room, and whose holder has at
    least two fewer, or fewer if the pool that waits has none. Within one holder, its pools are compared likewise. Where
    a server is full, what counts is how many each holder has there. So connections move towards those who have fewer,
    and back and forth only between pools that would have none.

    Once it is closed, the slot is for that one, if it has room then: a holder at its cap may find its server full, too.
    Those who have room already, and have not taken it yet, are served before.

    Args:
        limits: How many there may be.
        taken: Those that are open or being opened, the one that comes back among them.
        waiting: Those who wait to open one, in order of arrival.
        claim: Of the pool of the one that comes back.

    Returns:
        The place in ``waiting``; ``None`` when it may be lent again.
    """
    taken, places = list(taken), list(range(len(waiting)))
    while (found := grant(limits, taken, [waiting[place] for place in places])) is not None:
        taken.append(waiting[places.pop(found)])
    rest = [waiting[place] for place in places]
    line = _Count(limits, taken, rest).line(rest, claim)
    return places[line[0][0]] if line else None
