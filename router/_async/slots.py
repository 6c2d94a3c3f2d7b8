"""The process's budget: never more connections than it may have, over all pools and looks; and a tenant's own limit."""

from __future__ import annotations

import select
from collections import deque
from contextlib import suppress
from socket import AF_INET, SOCK_STREAM, fromfd
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

import psycopg

from router._runtime.calls import Isolated
from router._runtime.flags import AFlag, AGuard, asleep
from router.core.budget import full, grant, yields_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import AsyncConnection

    from router._runtime.calls import AFunction
    from router._runtime.workers import ALoop
    from router.core.budget import Claim, Limits


CALM = 0.02
"""Seconds for which nobody looks again who could make room for those who wait, if nobody could: it costs more than a
request should pay for."""


PARTING = 0.2
"""Seconds that a server process has to end when its connection is closed; it may be frozen."""


class BudgetSpent(Exception):
    """Every connection that the process may hold is open, and none became free in time."""


class AsyncTurn:
    """An opener that waits for its slot.

    Attributes:
        claim: For whom.
        wanted: Tells whether anybody still waits for what it opens.
        granted: Whether the slot is its own.
        flag: Set when it is worth looking again.
    """

    __slots__ = ("claim", "flag", "granted", "wanted")

    def __init__(self, claim: Claim, wanted: Callable[[], bool]) -> None:
        self.claim = claim
        self.wanted = wanted
        self.granted = False
        self.flag = AFlag()


class _Leaver:
    """A connection closed to make room: its server goes on counting it until the process there has ended.

    Attributes:
        claim: What it counted as.
        gone: Whether that process was found to have ended, or had the time to.
    """

    __slots__ = ("_socket", "_until", "claim", "gone")

    def __init__(self, connection: AsyncConnection[Any], claim: Claim) -> None:
        self.claim = claim
        self.gone = False
        self._socket = fromfd(connection.pgconn.socket, AF_INET, SOCK_STREAM)  # another descriptor, for poll() alone
        self._until = monotonic() + PARTING

    def look(self) -> None:
        """See whether it is gone; one at a time."""
        if not self.gone:
            poll = select.poll()
            poll.register(self._socket, select.POLLRDHUP)
            if poll.poll(0) or monotonic() >= self._until:
                self.leave()

    def leave(self) -> None:
        """Take it for gone."""
        self.gone = True
        self._socket.close()


class AsyncSlots:
    """A slot for each open connection; whoever wants to open one takes a slot first.

    Nobody tells when a connection closes (a pool may shrink, a server may die), so slots are counted anew by looking at
    the connections themselves, but only when all seem taken. ``budget.py`` says who is next, and who makes room.

    Attributes:
        limits: How many there may be.
        waiting: Openers in order of arrival; whoever returns a connection looks here.
        loop: The event loop that all of the router belongs to; ``None`` before its first use.
    """

    def __init__(self, limits: Limits, make_room: AFunction[[list[Claim], list[Claim]], int | None]) -> None:
        """Start with every slot free.

        Args:
            limits: How many there may be.
            make_room: Given what is taken and who waits, closes an idle connection; returns the place of the one among
                those who wait for whom it did, or ``None`` if it found nothing to close.
        """
        self.limits = limits
        self.waiting: list[AsyncTurn] = []
        self.loop: ALoop = None
        self._make_room = make_room
        self._guard = AGuard()  # guards all below, and the changes of `waiting`
        self._opening: list[Claim] = []
        self._open: list[tuple[ref[AsyncConnection[Any]], Claim]] = []
        self._leavers: list[_Leaver] = []
        self._closed = False
        self._no_room_until = 0.0
        self._nothing_owed_until = 0.0

    @property
    def taken(self) -> list[Claim]:
        """The claims of all connections that are open or being opened now."""
        with self._guard:
            return self._count()

    async def take(self, claim: Claim, timeout: float, wanted: Callable[[], bool] = lambda: True) -> None:
        """Take a slot for a connection about to be opened.

        Args:
            claim: For whom.
            timeout: The most to wait for one, in seconds.
            wanted: Tells whether anybody still waits for the connection.

        Raises:
            BudgetSpent: None became free in time, or nobody wants it any more.
        """
        deadline, turn = monotonic() + timeout, AsyncTurn(claim, wanted)
        with self._guard:
            self.waiting.append(turn)
            self._no_room_until = self._nothing_owed_until = 0.0
        try:
            while True:
                turn.flag.clear()  # before anything is looked at: no change after that goes unnoticed
                self._grant()
                # One makes room for all: who gets it is not for them to say. What nobody waits for gets what is free.
                while not turn.granted and wanted() and self.waiting[:1] == [turn] and await self._has_made_room():
                    pass
                if turn.granted:
                    break
                now = monotonic()
                if now >= deadline or self._closed or not wanted():
                    raise BudgetSpent
                # Pools close connections without a word when they shrink or expire: look again now and then.
                patience = CALM if now < self._no_room_until else 0.1
                await turn.flag.wait_for(min(deadline - now, patience))
            if self._leavers:
                self.wake()  # the next one makes room meanwhile
                await self._see_off(claim)
        except BaseException:
            with self._guard:
                if turn.granted:
                    self._opening.remove(claim)
                else:
                    self.waiting.remove(turn)
            raise
        finally:
            with Isolated("could not tell those who wait for a connection of the process to look again"):
                self.wake()

    def wake(self, first: AsyncTurn | None = None) -> None:
        """Give slots to those who wait, as far as there are any; else have one of them look for room.

        Args:
            first: For whom room was made.
        """
        if first is not None:
            self._grant(first)
        elif monotonic() < self._no_room_until:
            return
        try:
            self.waiting[0].flag.set()
        except IndexError:
            return

    def yields_to(self, claim: Claim) -> AsyncTurn | None:
        """Tell for whom a connection that was just returned must be closed.

        Args:
            claim: Whose connection it is.

        Returns:
            The opener, to be named to :meth:`wake` then; ``None`` when the connection may be lent again.
        """
        now = monotonic()
        if now < self._nothing_owed_until:
            return None
        with self._guard:
            waiting = [turn for turn in self.waiting if turn.wanted()]
            index = yields_to(self.limits, self._count(), [turn.claim for turn in waiting], claim)
            if index is None:
                self._nothing_owed_until = now + CALM
                return None
            return waiting[index]

    async def _has_made_room(self) -> bool:
        if monotonic() < self._no_room_until:
            return False
        with self._guard:
            waiting, taken = [turn for turn in self.waiting if turn.wanted()], self._count()
        index = await self._make_room(taken, [turn.claim for turn in waiting])
        if index is None:
            self._no_room_until = monotonic() + CALM
            return False
        self._grant(waiting[index])
        return True

    def _grant(self, first: AsyncTurn | None = None) -> None:
        with self._guard:
            while self.waiting:
                count = self._count()
                if first is not None and first in self.waiting and full(self.limits, count, first.claim) is None:
                    index = self.waiting.index(first)
                elif (found := grant(self.limits, count, [turn.claim for turn in self.waiting])) is not None:
                    index = found
                else:
                    return
                turn = self.waiting.pop(index)
                self._opening.append(turn.claim)
                turn.granted = True
                turn.flag.set()

    async def _see_off(self, claim: Claim) -> None:
        """Wait until there is room at the server, too, beside those who had left when the slot was granted."""
        with self._guard:
            others, leavers = self._count(), [one for one in self._leavers if one.claim.server == claim.server]
            others.remove(claim)
        pause = 0.0005
        while True:
            self.sweep()
            leavers = [leaver for leaver in leavers if not leaver.gone]
            if not leavers or full(self.limits, [*others, *(leaver.claim for leaver in leavers)], claim) is None:
                return
            await asleep(pause)
            pause = min(2 * pause, 0.005)

    def sweep(self) -> None:
        """Forget the closed connections whose server processes have ended."""
        with self._guard:
            for leaver in self._leavers:
                with Isolated("could not find out whether a session at %s has ended", leaver.claim.server):
                    leaver.look()
            self._leavers = [leaver for leaver in self._leavers if not leaver.gone]

    def leave(self, connection: AsyncConnection[Any], claim: Claim) -> None:
        """Note that a connection is about to be closed, so that another may be opened in its place.

        Args:
            connection: The connection; who gets its slot waits until its server process has ended.
            claim: What it counts as.
        """
        with self._guard, suppress(OSError, psycopg.Error):  # it is closed already
            self._open = [slot for slot in self._open if slot[0]() is not connection]
            if not self._closed:
                self._leavers.append(_Leaver(connection, claim))

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._guard:
            self._closed = True
            for leaver in self._leavers:
                leaver.leave()
        for turn in list(self.waiting):
            turn.flag.set()

    def discard(self) -> None:
        """Close all connections, which nobody uses any more."""
        self.close()
        for slot, _ in self._open:
            if (connection := slot()) is not None:
                connection.pgconn.finish()

    def fill(self, connection: AsyncConnection[Any], claim: Claim) -> None:
        """Put the connection that was opened into the slot taken for it.

        Args:
            connection: The open connection; its slot is free again once it is closed.
            claim: For whom the slot was taken.
        """
        with self._guard:
            self._opening.remove(claim)
            self._open.append((ref(connection), claim))

    def give_up(self, claim: Claim) -> None:
        """Give back the slot of a connection that could not be opened.

        Args:
            claim: For whom the slot was taken.
        """
        with self._guard:
            self._opening.remove(claim)
        self.wake()

    def _count(self) -> list[Claim]:
        self._open = [slot for slot in self._open if (open_ := slot[0]()) is not None and not open_.closed]
        return self._opening + [claim for _, claim in self._open]


class AsyncGate:
    """Lets so many requests of a tenant in at a time; the others wait in order of arrival."""

    def __init__(self, limit: int) -> None:
        """Let nobody in yet.

        Args:
            limit: How many are in at most.
        """
        self._guard = AGuard()  # guards all below
        self._limit = limit
        self._inside = 0
        self._waiting: deque[AFlag] = deque()

    @property
    def limit(self) -> int:
        """How many are in at most; when it is lowered, those who are in stay, and nobody else comes in before."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        with self._guard:
            self._limit = limit
            self._let_in()

    async def enter(self, timeout: float) -> bool:
        """Go in.

        Args:
            timeout: The most to wait, in seconds.

        Returns:
            Whether there was room in time; if so, :meth:`leave` has to be called.
        """
        with self._guard:
            if self._inside < self._limit:
                self._inside += 1
                return True
            turn = AFlag()
            self._waiting.append(turn)
        try:
            await turn.wait_for(timeout)
        except BaseException:
            if not self._withdraw(turn):
                self.leave()
            raise
        return not self._withdraw(turn)

    def leave(self) -> None:
        """Leave; the one who has waited longest goes in instead."""
        with self._guard:
            self._inside -= 1
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._inside < self._limit:
            self._inside += 1
            self._waiting.popleft().set()

    def _withdraw(self, turn: AFlag) -> bool:
        """Stop waiting; whether it was for nothing."""
        with self._guard:
            if turn.is_set():
                return False
            self._waiting.remove(turn)
            return True
