# Generated from router/_async/slots.py by tools/async_to_sync.py: do not edit.
"""The process's budget: never more connections than there may be, over all pools and probes."""

from __future__ import annotations

from collections import Counter, deque
from math import inf
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

from psycopg.pq import ConnStatus

from router._runtime.flags import Guard
from router._sync.closing import Closings
from router._sync.eviction import Eviction
from router._sync.slot import BudgetSpent, Slot, SlotRequest
from router.core.server_limit import ServerLimits
from router.core.slot_lines import Budget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection

    from router._runtime.workers import Loop
    from router._sync.closing import Closing
    from router.core.budget import BudgetKey, Full, Idle, Limits, Login

PATIENCE = 0.02
"""Seconds for which a request waits for what comes back, where others wait, before an idle connection is closed."""

LONGEST = 1e8
"""Seconds; what threads and event loops can wait for has an end."""


class Slots:
    """A slot for each open connection: it is taken before the connection is opened, and given back when it is closed.

    Whatever gives a slot back hands it at once to the request that is next by ``slot_lines.py``. Where none is free, a
    connection is closed for a request: an idle one by what asks, or one that comes back by what returns it.

    Attributes:
        limits: How many there may be.
        waiting: The requests that wait; whatever returns a connection looks here.
        loop: The event loop that all of the router belongs to; ``None`` before its first use.
        eviction: Closes idle connections for requests.
        server_limits: What servers have shown of limits of their own.
        dropped: The slots whose connection was dropped without being closed: noted in any thread, at any moment.
        closed: Whether none is granted any more.
    """

    def __init__(self, limits: Limits) -> None:
        """Start with every slot free.

        Args:
            limits: How many there may be.
        """
        self.limits = limits
        self.waiting: dict[SlotRequest, None] = {}
        self.loop: Loop = None
        self.eviction = Eviction()
        self.server_limits = ServerLimits()
        self.dropped: deque[Slot] = deque()
        self._guard = Guard()  # guards all below, the changes of `waiting`, and those of what a request says
        self._budget = Budget[SlotRequest](limits)
        self._slots: set[Slot] = set()  # all that are granted
        self._closings = Closings()
        self._reserved: list[SlotRequest] = []  # those for which a connection was being closed at the last sweep
        self.closed = False

    def allow(self, limits: Limits) -> None:
        """Go by other limits from now on; connections that are too many then are not replaced when they are closed.

        Args:
            limits: How many there may be.
        """
        with self._guard:
            self.limits = limits
            self._count_anew()
            self._hand_over()

    @property
    def total(self) -> int:
        """How many connections are open or being opened."""
        return self._budget.total

    @property
    def held(self) -> dict[BudgetKey, int]:
        """How many of them each pool has."""
        with self._guard:
            return dict(self._budget.held)

    def full(self, key: BudgetKey) -> Full | None:
        """Tell what keeps one more connection from being opened.

        Args:
            key: Of the pool that wants one more.

        Returns:
            The narrowest limit that is reached; ``None`` when there is room.
        """
        with self._guard:
            return self._budget.full(key)

    def take(self, request: SlotRequest, timeout: float) -> Slot:
        """Take a slot for a connection about to be opened.

        Args:
            request: The request. One that is withdrawn already gets what is free, and does not wait.
            timeout: The most to wait, in seconds.

        Returns:
            The slot.

        Raises:
            BudgetSpent: None became free in time, or the request was withdrawn.
        """
        deadline, login = monotonic() + timeout, request.key.login
        try:
            with self._guard:
                self._budget.wait(request)
                self.waiting[request] = None
                self._settle(login)
            # Where others wait, too, a connection may come back soon; an idle one may be wanted again at once.
            if len(self.waiting) > 1:
                request.flag.wait_for(min(timeout, PATIENCE))
            if request.slot is None and not request.withdrawn:
                self.eviction.make_room(self)
            while request.slot is None:
                now, limit = monotonic(), self.server_limits.get(login)
                if request.withdrawn or self.closed or now >= deadline:
                    raise BudgetSpent
                retry_at = limit.retry_at if limit is not None and limit.retry_at > now else inf
                if not request.flag.wait_for(min(min(deadline, retry_at) - now, LONGEST)):
                    with self._guard:
                        self._settle(login)
            if request.slot.closing is not None:
                request.slot.closing.wait()
                request.slot.closing = None
        except BaseException:
            self.withdraw(request)
            if request.slot is not None:
                self.release(request.slot)
            raise
        return request.slot

    def withdraw(self, request: SlotRequest) -> None:
        """Have a request wait no longer, if it still does.

        Args:
            request: The request.
        """
        with self._guard:
            again, request.withdrawn = request.withdrawn, True
            if request in self.waiting:
                if again:  # the first time, it was interrupted
                    self._recount()
                if not request.reserved:
                    self._budget.leave(request)
                del self.waiting[request]
                self._hand_over()
        request.flag.set()

    def fill(self, slot: Slot, connection: Connection[Any]) -> None:
        """Note that the connection was opened that a slot was taken for.

        Args:
            slot: The slot, which is given back when the connection is closed or collected.
            connection: The connection.
        """
        slot.pgconn = ref(connection.pgconn, lambda _: slot.note_dropped())
        with self._guard:
            login = slot.key.login
            if self.server_limits.get(login) is not None:
                self.server_limits.reach(login, slot.limit, self._open_at(login), now=monotonic())
                self._settle(login)

    def release(self, slot: Slot, closing: Closing | None = None, beneficiary: SlotRequest | None = None) -> None:
        """Take a slot back, and hand it over.

        Args:
            slot: The slot; nothing happens if it was given back before.
            closing: Its connection, whose server process may not have ended.
            beneficiary: The request that it was closed for, if it was for one.
        """
        with self._guard:
            self._release(slot)
            if closing is not None and not self.closed:
                self._closings.add(closing)
            self._serve(beneficiary)
            self._hand_over()

    def refuse(self, slot: Slot, reason: str) -> None:
        """Take a slot back for which the server had no room: there is a limit of its own.

        Args:
            slot: The slot.
            reason: What the server said.
        """
        login = slot.key.login
        with self._guard:
            self._release(slot)
            # Those that are closed here may have counted there.
            closing = sum(other.closing is not None and other.key.login == login for other in self._slots)
            most = self._open_at(login) + closing + self._closings.number(login[0])
            self.server_limits.refuse(login, slot.limit, most, reason, now=monotonic(), jitter=random())
            self._settle(login)

    def preempt(self, key: BudgetKey) -> SlotRequest | None:
        """Tell for which request a connection that has come back is to be closed.

        Args:
            key: Of the pool of the connection.

        Returns:
            The request, to be named where the connection is closed; ``None`` when it may be lent again.
        """
        with self._guard:
            request = self._budget.preempted_by(key)
            if request is not None:
                self._reserve(request)
            return request

    def restore(self, request: SlotRequest) -> None:
        """Have a request wait on for which a connection was to be closed, unless that was done.

        Args:
            request: The request.
        """
        with self._guard:
            self._serve(request)
            self._hand_over()

    def reserve(self, idle: Sequence[Idle]) -> tuple[int, SlotRequest] | None:
        """Choose an idle connection to be closed for a request; no other is closed for that meanwhile.

        Args:
            idle: Those that there are.

        Returns:
            The index of the connection, and the request, to be named where it is closed; ``None`` for none.
        """
        with self._guard:
            chosen = self._budget.to_close(idle, monotonic())
            if chosen is not None:
                self._reserve(chosen[1])
            return chosen

    def sweep(self) -> None:
        """Do what nothing reports: free the slots of dropped connections, and try servers again that were full."""
        with self._guard:
            for slot in list(self._slots):
                if slot.pgconn is not None and ((pgconn := slot.pgconn()) is None or pgconn.status == ConnStatus.BAD):
                    self._release(slot)
            self._recount()
            self._settle(*self.server_limits)
            self._settle(*self.server_limits.forget({request.key.login for request in self.waiting}))
            for request in self._reserved:  # if it still is, what was to close a connection for it was interrupted
                self._serve(request)
            self._reserved = [request for request in self.waiting if request.reserved]
            self._closings.sweep()
        if self.waiting:
            self.eviction.make_room(self)

    def close(self) -> None:
        """Let no request wait any longer."""
        with self._guard:
            self.closed = True
            self._closings.clear()
            waiting = list(self.waiting)
        for request in waiting:
            request.flag.set()

    def discard(self) -> None:
        """Close all connections, when nothing that uses them can run any more."""
        self.close()
        for slot in list(self._slots):
            if slot.pgconn is not None and (pgconn := slot.pgconn()) is not None:
                pgconn.finish()

    # All that follows is called under the guard

    def _recount(self) -> None:
        """Count anew if a count was interrupted: an exception may come out of a signal handler at any moment."""
        for request in list(self.waiting):
            if request.slot is not None:
                self._note_granted(request, request.slot)
        waiting = sum(not request.reserved for request in self.waiting)
        if self._budget.held != Counter(slot.key for slot in self._slots) or self._budget.waiting != waiting:
            self._count_anew()

    def _count_anew(self) -> None:
        waiting = [request for request in self.waiting if not request.reserved]
        self._budget = self._budget.recounted(self.limits, (slot.key for slot in self._slots), waiting)

    def _settle(self, *logins: Login) -> None:
        """Grant whatever there is room for by now."""
        while self.dropped:
            self._release(self.dropped.popleft())
        for login in logins:
            self._budget.limit_login(login, self.server_limits.limit(login, now=monotonic()))
        self._hand_over()

    def _hand_over(self) -> None:
        while (request := self._budget.grant()) is not None:
            self._budget.leave(request)
            self._grant(request)

    def _reserve(self, request: SlotRequest) -> None:
        """Keep a request out of sight while a connection is closed for it: no other is."""
        request.reserved = True
        self._budget.leave(request)

    def _serve(self, request: SlotRequest | None) -> None:
        """Grant a request for which a connection was closed its slot; if it has no room, it waits on."""
        if request is None or not request.reserved:
            return
        request.reserved = False
        if request.withdrawn:
            return
        if self._budget.full(request.key) is None:
            self._grant(request)
        else:
            self._budget.wait(request)

    def _grant(self, request: SlotRequest) -> None:
        key = request.key
        closing = self._closings.take(key.server, self._budget.room(key))
        # What is interrupted from here on is completed by `_recount()`.
        request.slot = Slot(self, request, closing, self.server_limits.get(key.login))
        self._budget.add(key)
        self._note_granted(request, request.slot)

    def _note_granted(self, request: SlotRequest, slot: Slot) -> None:
        self._slots.add(slot)
        request.flag.set()
        del self.waiting[request]

    def _release(self, slot: Slot) -> None:
        if slot in self._slots:
            self._slots.discard(slot)
            slot.pgconn = None
            self._budget.remove(slot.key)

    def _open_at(self, login: Login) -> int:
        """How many connections are open with a login; those that are being opened are left out."""
        return sum(slot.pgconn is not None and slot.key.login == login for slot in self._slots)
