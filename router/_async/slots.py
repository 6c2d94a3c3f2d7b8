"""The process's budget: all pools and probes together never have more connections than the limits allow."""

from __future__ import annotations

from collections import Counter, deque
from math import inf
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

from psycopg.pq import ConnStatus

from router._async.closing import AsyncClosings
from router._async.eviction import AsyncEviction
from router._async.slot import AsyncSlot, AsyncSlotRequest, BudgetSpent
from router._runtime.flags import AGuard
from router.core.server_limit import ServerLimits
from router.core.slot_lines import Budget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import AsyncConnection

    from router._async.closing import AsyncClosing
    from router._runtime.workers import ALoop
    from router.core.budget import BudgetKey, Full, Idle, Limits, Login

PATIENCE = 0.02
"""Seconds that a request waits for a returned connection, if other requests wait too, before an idle one is closed."""

LONGEST = 1e8
"""The longest wait in seconds that threads and event loops accept."""


class AsyncSlots:
    """The slots, one for each open connection: taken before it is opened, and returned when it is closed.

    A slot that is returned is granted at once to the request that is next by ``slot_lines.py``. If no slot is free, a
    connection is closed for a request: the request closes an idle one, or a borrower closes the one that it returns.

    Attributes:
        limits: The limits.
        waiting: The requests that wait; code that returns a connection checks this.
        loop: The event loop that the whole router belongs to; ``None`` before its first use.
        eviction: Closes idle connections for requests.
        server_limits: The servers' own limits, as far as they are known.
        dropped: Slots whose connections were dropped without being closed; added to in any thread, at any moment.
        closed: Whether no slot is granted any more.
    """

    def __init__(self, limits: Limits) -> None:
        """Begin with every slot free.

        Args:
            limits: The limits.
        """
        self.limits = limits
        self.waiting: dict[AsyncSlotRequest, None] = {}
        self.loop: ALoop = None
        self.eviction = AsyncEviction()
        self.server_limits = ServerLimits()
        self.dropped: deque[AsyncSlot] = deque()
        self._guard = AGuard()  # guards everything below, changes of `waiting`, and the attributes of requests
        self._budget = Budget[AsyncSlotRequest](limits)
        self._slots: set[AsyncSlot] = set()  # the granted slots
        self._closings = AsyncClosings()
        self._reserved: list[AsyncSlotRequest] = []  # requests that were reserved at the last sweep
        self.closed = False

    def allow(self, limits: Limits) -> None:
        """Change the limits; surplus connections stay open, and are not replaced when they are closed.

        Args:
            limits: The new limits.
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
        """How many connections each pool has, open or being opened."""
        with self._guard:
            return dict(self._budget.held)

    def full(self, key: BudgetKey) -> Full | None:
        """Tell which limit keeps a pool from opening one more connection.

        Args:
            key: The key of the pool.

        Returns:
            The narrowest limit that is reached; ``None`` if there is room.
        """
        with self._guard:
            return self._budget.full(key)

    async def take(self, request: AsyncSlotRequest, timeout: float) -> AsyncSlot:
        """Take a slot for a connection about to be opened.

        Args:
            request: The request. If it is withdrawn already, it gets a free slot, but does not wait for one.
            timeout: The most to wait, in seconds.

        Returns:
            The slot.

        Raises:
            BudgetSpent: No slot became free in time, or the request was withdrawn.
        """
        deadline, login = monotonic() + timeout, request.key.login
        try:
            with self._guard:
                self._budget.wait(request)
                self.waiting[request] = None
                self._settle(login)
            # If other requests wait, a connection may be returned soon, and an idle one may be needed again at once.
            if len(self.waiting) > 1:
                await request.flag.wait_for(min(timeout, PATIENCE))
            if request.slot is None and not request.withdrawn:
                await self.eviction.make_room(self)
            while request.slot is None:
                now, limit = monotonic(), self.server_limits.get(login)
                if request.withdrawn or self.closed or now >= deadline:
                    raise BudgetSpent
                retry_at = limit.retry_at if limit is not None and limit.retry_at > now else inf
                if not await request.flag.wait_for(min(min(deadline, retry_at) - now, LONGEST)):
                    with self._guard:
                        self._settle(login)
            if request.slot.closing is not None:
                await request.slot.closing.wait()
                request.slot.closing = None
        except BaseException:
            self.withdraw(request)
            if request.slot is not None:
                self.release(request.slot)
            raise
        return request.slot

    def withdraw(self, request: AsyncSlotRequest) -> None:
        """Withdraw a request, if it still waits.

        Args:
            request: The request.
        """
        with self._guard:
            again, request.withdrawn = request.withdrawn, True
            if request in self.waiting:
                if again:  # the first call was interrupted
                    self._recount()
                if not request.reserved:
                    self._budget.leave(request)
                del self.waiting[request]
                self._hand_over()
        request.flag.set()

    def fill(self, slot: AsyncSlot, connection: AsyncConnection[Any]) -> None:
        """Note that the connection of a slot was opened.

        Args:
            slot: The slot, which is returned when the connection is closed or garbage-collected.
            connection: The connection.
        """
        slot.pgconn = ref(connection.pgconn, lambda _: slot.note_dropped())
        with self._guard:
            login = slot.key.login
            if self.server_limits.get(login) is not None:
                self.server_limits.reach(login, slot.limit, self._open_at(login), now=monotonic())
                self._settle(login)

    def release(
        self, slot: AsyncSlot, closing: AsyncClosing | None = None, beneficiary: AsyncSlotRequest | None = None
    ) -> None:
        """Take a slot back, and grant it to the next request.

        Args:
            slot: The slot; nothing happens if it was returned before.
            closing: Its closing connection, if the server process may not have ended.
            beneficiary: The request that the connection was closed for, if any.
        """
        with self._guard:
            self._release(slot)
            if closing is not None and not self.closed:
                self._closings.add(closing)
            self._serve(beneficiary)
            self._hand_over()

    def refuse(self, slot: AsyncSlot, reason: str) -> None:
        """Take a slot back because the server refused its connection, and note the server's own limit.

        Args:
            slot: The slot.
            reason: The server's message.
        """
        login = slot.key.login
        with self._guard:
            self._release(slot)
            # Connections that are closed here may still have counted at the server.
            closing = sum(other.closing is not None and other.key.login == login for other in self._slots)
            most = self._open_at(login) + closing + self._closings.number(login[0])
            self.server_limits.refuse(login, slot.limit, most, reason, now=monotonic(), jitter=random())
            self._settle(login)

    def preempt(self, key: BudgetKey) -> AsyncSlotRequest | None:
        """Choose the request for which a returned connection has to be closed.

        Args:
            key: The key of the connection's pool.

        Returns:
            The request, to be passed on when the connection is closed; ``None`` if the connection may be lent again.
        """
        with self._guard:
            request = self._budget.preempted_by(key)
            if request is not None:
                self._reserve(request)
            return request

    def restore(self, request: AsyncSlotRequest) -> None:
        """Put a request back in line for which a connection should have been closed, unless that has been done.

        Args:
            request: The request.
        """
        with self._guard:
            self._serve(request)
            self._hand_over()

    def reserve(self, idle: Sequence[Idle]) -> tuple[int, AsyncSlotRequest] | None:
        """Choose an idle connection to be closed for a request; meanwhile no other connection is closed for it.

        Args:
            idle: The idle connections.

        Returns:
            The index of the connection, and the request, to be passed on when it is closed; ``None`` for none.
        """
        with self._guard:
            chosen = self._budget.to_close(idle, monotonic())
            if chosen is not None:
                self._reserve(chosen[1])
            return chosen

    async def sweep(self) -> None:
        """Do what no event triggers: free the slots of dropped connections, and try full servers again."""
        with self._guard:
            for slot in list(self._slots):
                if slot.pgconn is not None and ((pgconn := slot.pgconn()) is None or pgconn.status == ConnStatus.BAD):
                    self._release(slot)
            self._recount()
            self._settle(*self.server_limits)
            self._settle(*self.server_limits.forget({request.key.login for request in self.waiting}))
            for request in self._reserved:  # reserved for a whole interval: what closes a connection was interrupted
                self._serve(request)
            self._reserved = [request for request in self.waiting if request.reserved]
            self._closings.sweep()
        if self.waiting:
            await self.eviction.make_room(self)

    def close(self) -> None:
        """End the wait of every request, and grant no more slots."""
        with self._guard:
            self.closed = True
            self._closings.clear()
            waiting = list(self.waiting)
        for request in waiting:
            request.flag.set()

    def discard(self) -> None:
        """Close all connections, once no task or thread that uses them can run any more."""
        self.close()
        for slot in list(self._slots):
            if slot.pgconn is not None and (pgconn := slot.pgconn()) is not None:
                pgconn.finish()

    # All methods below are called under the guard.

    def _recount(self) -> None:
        """Count again if an update was interrupted: a signal handler may raise an exception at any moment."""
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
        """Grant every request for which there is room now."""
        while self.dropped:
            self._release(self.dropped.popleft())
        for login in logins:
            self._budget.limit_login(login, self.server_limits.limit(login, now=monotonic()))
        self._hand_over()

    def _hand_over(self) -> None:
        while (request := self._budget.grant()) is not None:
            self._budget.leave(request)
            self._grant(request)

    def _reserve(self, request: AsyncSlotRequest) -> None:
        """Take a request out of the budget's line while a connection is closed for it, so that no second one is."""
        request.reserved = True
        self._budget.leave(request)

    def _serve(self, request: AsyncSlotRequest | None) -> None:
        """Grant a slot to a request for which a connection was closed; if there is no room, it waits on."""
        if request is None or not request.reserved:
            return
        request.reserved = False
        if request.withdrawn:
            return
        if self._budget.full(request.key) is None:
            self._grant(request)
        else:
            self._budget.wait(request)

    def _grant(self, request: AsyncSlotRequest) -> None:
        key = request.key
        closing = self._closings.take(key.server, self._budget.room(key))
        # If this is interrupted from here on, `_recount()` completes it.
        request.slot = AsyncSlot(self, request, closing, self.server_limits.get(key.login))
        self._budget.add(key)
        self._note_granted(request, request.slot)

    def _note_granted(self, request: AsyncSlotRequest, slot: AsyncSlot) -> None:
        self._slots.add(slot)
        request.flag.set()
        del self.waiting[request]

    def _release(self, slot: AsyncSlot) -> None:
        if slot in self._slots:
            self._slots.discard(slot)
            slot.pgconn = None
            self._budget.remove(slot.key)

    def _open_at(self, login: Login) -> int:
        """How many connections are open with a login, without those that are being opened."""
        return sum(slot.pgconn is not None and slot.key.login == login for slot in self._slots)
