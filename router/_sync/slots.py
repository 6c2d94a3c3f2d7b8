# Generated from router/_async/slots.py by tools/async_to_sync.py: do not edit.
"""The process's budget: never more connections than there may be, over all pools and probes."""

from __future__ import annotations

from collections import Counter, deque
from contextlib import suppress
from dataclasses import replace
from math import inf
from random import random
from socket import AF_INET, SOCK_STREAM, fromfd
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, Self
from weakref import ref

import psycopg
from psycopg import Connection
from psycopg.pq import ConnStatus

from router._runtime.flags import Flag, Guard
from router._sync.closing import Closing
from router.core.bounds import BudgetRequest
from router.core.budget import KEPT
from router.core.server_limit import raised, refused
from router.core.slot_lines import Budget

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg.pq.abc import PGconn

    from router._runtime.workers import Loop
    from router.core.budget import BudgetKey, Full, Idle, Limits, Login
    from router.core.server_limit import ServerLimit
    from router.core.topology import Server

PATIENCE = 0.02
"""Seconds for which a request waits for what comes back, where others wait, before an idle connection is closed."""

LOOK_AGAIN = 0.02
"""Seconds between two searches for an idle connection that has become old enough to be closed, at least."""

LONGEST = 1e8
"""Seconds; what threads and event loops can wait for has an end."""


class BudgetSpent(Exception):
    """Every connection that there may be is open, and none became free in time."""


class Evictable(Protocol):
    """What has idle connections that may be closed for others: a pool, or what watches a server."""

    @property
    def longest_idle(self) -> Idle | None:
        """The connection that has been idle longest, if there is one."""

    def evict_idle(self, beneficiary: SlotRequest) -> None:
        """Close that for a request; nothing happens if there is none by now."""


class SlotRequest(BudgetRequest):
    """A request for a slot, which waits until it is granted or withdrawn.

    Attributes:
        slot: The slot, once it is granted.
        withdrawn: Whether nothing waits for the connection any more.
        reserved: Whether a connection is being closed for it just now.
        flag: Set when it is granted or withdrawn.
    """

    __slots__ = ("flag", "reserved", "slot", "withdrawn")

    def __init__(self, key: BudgetKey, order: int = 0) -> None:
        """Make it; it does not wait yet.

        Args:
            key: For which pool.
            order: The number of a request that this one continues.
        """
        super().__init__(key, order)
        self.slot: Slot | None = None
        self.withdrawn = False
        self.reserved = False
        self.flag = Flag()


class Slot:
    """The right to have one connection open; as a context manager, around what opens it.

    Attributes:
        key: What the connection counts as.
        order: The number of the request that it was granted to.
        closing: A connection whose server process has to have ended before, where there is no room for both.
        limit: What was known of a limit of the server's own when it was granted.
        pgconn: The connection's libpq handle, which is the same for all of its borrowers, as long as it is there.
    """

    __slots__ = ("_slots", "closing", "key", "limit", "order", "pgconn")

    def __init__(self, slots: Slots, request: SlotRequest, closing: Closing | None, limit: ServerLimit | None) -> None:
        """Grant it.

        Args:
            slots: Where it is given back.
            request: What it is granted to.
            closing: A connection whose server process has to have ended before.
            limit: What is known of a limit of the server's own.
        """
        self._slots = slots
        self.key = request.key
        self.order = request.order
        self.closing = closing
        self.limit = limit
        self.pgconn: ref[Any] | None = None

    def __enter__(self) -> Self:
        """Open the connection in the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the slot back if that failed."""
        if self.pgconn is None:
            self._slots.release(self)

    def close(self, pgconn: PGconn, beneficiary: SlotRequest | None = None, *, in_use: bool = False) -> None:
        """Close the connection, and give the slot back.

        Args:
            pgconn: The connection's libpq handle.
            beneficiary: The request that it is closed for, if it is for one.
            in_use: Whether something still uses it: it was cut, and is left to that.
        """
        closing = None
        with suppress(OSError, psycopg.Error):  # it is closed already
            closing = Closing(fromfd(pgconn.socket, AF_INET, SOCK_STREAM), self.key.server)
        try:
            if not in_use:
                pgconn.finish()
        finally:
            self._slots.release(self, closing, beneficiary)

    def note_dropped(self) -> None:
        """Note that the connection was dropped and is closed: in any thread, at any moment."""
        self._slots.note_dropped(self)


class Slots:
    """A slot for each open connection: it is taken before the connection is opened, and given back when it is closed.

    Whatever gives a slot back hands it at once to the request that is next by ``slot_lines.py``. Where none is free, a
    connection is closed for a request: an idle one by what asks, or one that comes back by what returns it.

    Attributes:
        limits: How many there may be.
        waiting: The requests that wait; whatever returns a connection looks here.
        loop: The event loop that all of the router belongs to; ``None`` before its first use.
        sources: What has idle connections; those of the first are closed before any of the second.
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
        self.sources: tuple[Iterable[Evictable], ...] = ()
        self._guard = Guard()  # guards all below, the changes of `waiting`, and those of what a request says
        self._budget = Budget[SlotRequest](limits)
        self._slots: set[Slot] = set()  # all that are granted
        self._collected: deque[Slot] = deque()  # those whose connection was dropped without being closed
        self._closing: dict[Server, deque[Closing]] = {}  # those that no slot waits for, the oldest first
        self._server_limits: dict[Login, ServerLimit] = {}
        self.closed = False
        self._look_again_at = inf  # when one that is idle now may be closed for those that have as many

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

    def server_limit(self, key: BudgetKey) -> ServerLimit | None:
        """Tell what the server has shown of a limit of its own.

        Args:
            key: Of a pool.

        Returns:
            That; ``None`` if it has refused none, or one more was had since.
        """
        limit = self._server_limits.get(key.login)
        return limit if limit is not None and limit.reason else None

    # Taking one

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
                self._make_room()
            while request.slot is None:
                now, limit = monotonic(), self._server_limits.get(login)
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
        slot.pgconn = ref(connection.pgconn, lambda _: self.note_dropped(slot))
        with self._guard:
            known = self._server_limits.get(slot.key.login)
            if known is None or (most := self._open_at(slot.key.login)) <= known.most:
                return
            # One that was under way when the server refused another says only that there was room before.
            known = raised(most, now=monotonic()) if slot.limit is known else replace(known, most=most)
            self._server_limits[slot.key.login] = known
            self._budget.limit_login(slot.key.login, most)
            self._settle(slot.key.login)

    # Giving it back

    def note_dropped(self, slot: Slot) -> None:
        """Note that a connection was dropped and is closed: in any thread, at any moment.

        Args:
            slot: Its slot.
        """
        self._collected.append(slot)  # nothing else must be touched

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
                others = self._closing.setdefault(closing.server, deque())
                while others and others[0].has_ended():
                    others.popleft()
                others.append(closing)
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
            known = self._server_limits.get(login)
            # Those that are closed here may have counted there.
            closing = sum(other.closing is not None and other.key.login == login for other in self._slots)
            most = self._open_at(login) + closing + len(self._closing.get(login[0], ()))
            if slot.limit is known:
                known = refused(known, most, reason, now=monotonic(), jitter=random())
            elif known is not None:  # another attempt that was under way has shown it already
                known = replace(known, most=most, reason=reason)
            if known is not None:
                self._server_limits[login] = known
                self._budget.limit_login(login, most)
            self._hand_over()

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

    def look_again(self) -> None:
        """Close an idle connection for a request, if one may have become old enough since that was tried last.

        Called when a connection has come back.
        """
        now = monotonic()
        if now >= self._look_again_at:
            self._make_room()
        else:
            self._look_again_at = min(self._look_again_at, now + KEPT)

    def sweep(self) -> None:
        """Do what nothing reports: free the slots of dropped connections, and try servers again that were full."""
        with self._guard:
            for slot in list(self._slots):
                if slot.pgconn is not None and ((pgconn := slot.pgconn()) is None or pgconn.status == ConnStatus.BAD):
                    self._release(slot)
            self._recount()
            self._settle(*self._server_limits)
            waiting_logins = {request.key.login for request in self.waiting}
            for login, limit in list(self._server_limits.items()):
                if not limit.reason and login not in waiting_logins:  # it is not known to be limited any more
                    del self._server_limits[login]
                    self._budget.limit_login(login, None)
            for server, closing in list(self._closing.items()):
                while closing and closing[0].has_ended():
                    closing.popleft()
                if not closing:
                    del self._closing[server]
        if self.waiting:
            self._make_room()

    def close(self) -> None:
        """Let no request wait any longer."""
        with self._guard:
            self.closed = True
            self._closing.clear()
            waiting = list(self.waiting)
        for request in waiting:
            request.flag.set()

    def discard(self) -> None:
        """Close all connections, when nothing that uses them can run any more."""
        self.close()
        for slot in list(self._slots):
            if slot.pgconn is not None and (pgconn := slot.pgconn()) is not None:
                pgconn.finish()

    # All that follows is called under the guard, but for `_make_room()`

    def _make_room(self) -> None:
        """Close idle connections for requests that wait, as long as there are any for them."""
        while True:
            with self._guard:
                chosen = self._choose_idle()
            if chosen is None:
                return
            source, request = chosen
            try:
                source.evict_idle(request)
            finally:
                self.restore(request)

    def _choose_idle(self) -> tuple[Evictable, SlotRequest] | None:
        now, rested_at = monotonic(), inf
        for source in self.sources:
            found = [(has, one) for has in source if (one := has.longest_idle) is not None]
            rested_at = min([rested_at, *(at for _, one in found if (at := one.since + KEPT) > now)])
            chosen = self._budget.to_close([one for _, one in found], now)
            if chosen is not None:
                index, request = chosen
                self._reserve(request)
                return found[index][0], request
        self._look_again_at = max(rested_at, now + LOOK_AGAIN)
        return None

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
        self._budget = self._budget.anew(self.limits, (slot.key for slot in self._slots), waiting)

    def _settle(self, *logins: Login) -> None:
        """Grant whatever there is room for by now."""
        while self._collected:
            self._release(self._collected.popleft())
        for login in logins:
            limit = self._server_limits.get(login)
            if limit is not None and monotonic() >= limit.retry_at:
                self._budget.limit_login(login, limit.most + 1)
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
        key, room = request.key, self._budget.room(request.key)
        closing, found = self._closing.get(key.server, ()), None
        # Where there is no room for both, what was closed here has to have ended at the server.
        while closing and room <= len(closing):
            if not (oldest := closing.popleft()).has_ended():
                found = oldest
                break
        # What is interrupted from here on is completed by `_recount()`.
        request.slot = Slot(self, request, found, self._server_limits.get(key.login))
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
