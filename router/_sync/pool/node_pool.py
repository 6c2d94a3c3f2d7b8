# Generated from router/_async/pool/node_pool.py by tools/async_to_sync.py: do not edit.
"""A pool for one node, to read or to write: it lends what ``psycopg_pool`` opens and keeps for it."""

from __future__ import annotations

import logging
import warnings
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

import psycopg
from psycopg_pool import PoolClosed

from router._runtime.calls import Isolated, shielded
from router._runtime.flags import free_lock, sleep, take_lock, try_lock
from router._runtime.sockets import cut
from router._sync.pool.connection import FRESH, end_session
from router._sync.pool.counts import Counts
from router._sync.pool.hygiene import hygiene_of, note_traces, reset
from router._sync.pool.inside.connection import LENT_BY, NOTIFY_HANDLERS, OPEN_TRANSACTIONS
from router._sync.pool.inside.pool import DriverPool
from router._sync.pool.opening import Opening
from router._sync.pool.session_state import SessionState, borrower, session_of, shows_resource_warnings
from router._sync.waiter import PoolLine
from router.core.budget import Full, Idle, budget_key
from router.core.measures import PoolStats

if TYPE_CHECKING:
    from collections.abc import Collection

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._sync.admission import Admission
    from router._sync.cluster import SyncCluster
    from router._sync.line import Line
    from router._sync.pool.connection import NodeConnection
    from router._sync.pool.opener import Opener
    from router._sync.slot import SlotRequest
    from router.core.observations import ProbeResult
    from router.core.topology import Node, Scope, Target


USERS = "a stream() or notifies() that was left half way, or another task or thread"
"""What may still use a connection when its block has ended."""

USE_GRACE = 1.0
"""Seconds that whatever still uses a connection when its block has ended has to let go of it."""

CLOSE_GRACE = 5.0
"""Seconds that an attempt to open a connection gets to end when its pool closes."""

QUARANTINE_COOLDOWN = 1.0
"""Seconds after a quarantine in which there is no other one."""

TOLD = 1.0
"""Seconds after which the worker is told once more, if it has not done what it was told to do."""

logger = logging.getLogger("router")


class NodePool:
    """The connections of one node for one use.

    Attributes:
        name: How it is called in the log.
        min_size: How many connections it keeps open.
        max_size: How many it may have.
        node: What it connects to.
        target: What it serves.
        cluster: The cluster the node serves, as it is connected to.
        watched: The same as it is watched, which has the pool follow what becomes known.
        read_only: Whether its sessions refuse writes.
        tenant: Whose it is; ``None`` for a version's, and for one that tenants share.
        shared: Whether tenants share it.
        budget_key: What each of its connections counts as in the budget.
        waiting: The requests that wait for its connections.
        lock: Guards what is kept and counted.
        kept: Its idle connections, the one that has been idle longest first.
        idle: Those that are ready to be borrowed: all that are kept, or none while the pool is in quarantine.
        fewest_idle: The fewest connections that were idle since it last shrank; an approximate number is enough.
        quarantined_at: When its connections were last put in quarantine, on the monotonic clock.
        borrowed: The sessions that are borrowed. There is no reference to their connection objects: one that its
            borrower drops is collected, and :meth:`reclaim` closes its session.
        lost: Whether a connection may have been dropped.
        admitted: For each connection that was lent within a tenant's limit, the admission, and what it counts as there.
        notes_borrower: Whether to note where each connection is borrowed. That is too slow to be done always: it is
            done if a ``ResourceWarning`` would be shown, and once a connection was dropped.
        retryable: The borrowed sessions whose query is run again elsewhere if they are cut.
        inherited: Whether it belongs to the parent of a fork: nothing of it may be used or closed here.
        fenced_reason: Why no request may use its connections now; empty while they may. It is set before :meth:`drop`
            looks at the borrowed sessions: a request that borrows at that moment sees this, or is seen there.
        behind: Whether it has not followed yet an observation of its server.
        draining: Whether it lends nothing any more; it is removed when its last connection is returned.
        counts: Its counts.
    """

    def __init__(
        self,
        node: Node,
        target: Target,
        watched: SyncCluster,
        opener: Opener,
        *,
        read_only: bool,
    ) -> None:
        """Make the pool; nothing is opened yet.

        Args:
            node: What to connect to.
            target: What it serves.
            watched: The cluster that it serves, as it is watched.
            opener: Opens each connection.
            read_only: Whether sessions refuse writes.
        """
        cluster = target.cluster
        policy = cluster.pool
        self.tenant = None if target.shared else target.tenant
        self.shared = target.shared
        whose = f"{cluster.name}{' tenants' if self.shared else f' {self.tenant}' if self.tenant else ''}"
        self.name = f"{whose} {node} {'read' if read_only else 'write'}"
        self.min_size, self.max_size = policy.min_size, policy.max_size
        self.node = node
        self.target = target
        self.cluster = cluster
        self.watched = watched
        self.read_only = read_only
        cap = None if self.tenant is None else target.policy.max_connections
        self.budget_key = budget_key(node, f"tenant {self.tenant}" if self.tenant else cluster.name, cap)
        self.waiting = PoolLine(self)
        self._driver = DriverPool(self, self.name, policy, self.waiting)
        self.lock = self._driver.lock
        self.kept = self.idle = self._driver.kept
        self.fewest_idle = policy.min_size
        self.quarantined_at = 0.0
        self.borrowed: set[SessionState] = set()
        self.lost = False
        self.admitted: dict[SessionState, tuple[Admission, object]] = {}  # its pop() is atomic
        self.notes_borrower = shows_resource_warnings()
        # Of all connections that have been opened and not been counted out; guarded by the lock. The pool's size is how
        # many these are, and how many are being opened, but for what an exception has interrupted.
        self._sessions: set[SessionState] = set()
        self.retryable: set[SessionState] = set()
        self.inherited = False
        self.fenced_reason = ""
        self.behind = False
        self.draining = False
        self.counts = Counts()
        self._opener = opener
        self._opening = Opening(self, target, opener)
        self._told_until = 0.0  # until when the worker has time to do so, if it is told to
        self._no_quarantine_until = 0.0
        self._hygiene = hygiene_of(target)
        self._used_at = monotonic()  # when a request last needed a connection that was not ready

    @property
    def closed(self) -> bool:
        """Whether it is not open yet, or is closed."""
        return self._driver.closed

    @property
    def size(self) -> int:
        """How many connections it has, borrowed ones and those being opened included."""
        return self._driver.size

    @property
    def in_use(self) -> bool:
        """Whether anybody has one of its connections, or waits for one."""
        return bool(self.borrowed or self.waiting)

    @property
    def used_at(self) -> float:
        """When it was last used, on the monotonic clock."""
        try:
            return max(session_of(self.kept[-1]).idle_since, self._used_at)
        except IndexError:
            return self._used_at

    @property
    def longest_idle(self) -> Idle | None:
        """Its connection that has been idle longest, as the budget looks at it."""
        try:
            since = session_of(self.kept[0]).idle_since
        except IndexError:
            return None
        return Idle(self.budget_key, since, warm=self.size <= self.min_size)

    def holders(self) -> list[str]:
        """List the tenants of the connections that are out, one for each; none when they are a version's."""
        return [] if self.tenant is None else [self.tenant] * len(self.borrowed)

    @property
    def load(self) -> int:
        """How many requests it serves or keeps waiting."""
        return len(self.borrowed) + self.waiting.number()

    @property
    def quarantined(self) -> bool:
        """Whether no idle connection is lent, because all of them may be about to end."""
        return self.idle is not self.kept and not self.draining

    @property
    def full(self) -> bool:
        """Whether it has none to lend, and may open no more, or had better not now."""
        if self.quarantined or len(self.borrowed) >= self.max_size:
            return True
        return not self.kept and self._opener.slots.full(self.budget_key) is Full.LOGIN

    @property
    def refusal(self) -> str:
        """Why there is not one more connection to be had now; empty if nothing but its own size is in the way."""
        limit = self._opener.slots.server_limits.refusing(self.budget_key.login)
        if limit is None or self._opener.slots.full(self.budget_key) is not Full.LOGIN:
            return self._opening.refusal
        return str(limit)

    @property
    def at_max_size(self) -> bool:
        """Whether it has opened all that it may."""
        return self.size >= self.max_size

    @property
    def line(self) -> Line | None:
        """Where requests wait for its connections; ``None`` if none has used it yet."""
        return self.waiting.line

    @property
    def kept_back(self) -> int:
        """How many connections it has that it does not lend now, since they are in quarantine."""
        return len(self.kept) if self.quarantined else 0

    @property
    def may_grow(self) -> bool:
        """Whether it may be told to open one more: one that was not opened itself yet counts those it is to keep."""
        return self._driver.may_grow

    @property
    def is_growing(self) -> bool:
        """Whether it is opening one more."""
        return self._driver.is_growing

    @property
    def opening(self) -> int:
        """How many connections are being opened, or are to be."""
        return self._driver.adding

    def take(self) -> Connection[TupleRow] | None:
        """Borrow a connection that is ready: the part of ``getconn()`` that this takes, and the hot path.

        Returns:
            The connection, or ``None`` when none is ready.
        """
        idle = self.idle
        while idle:
            try:
                connection = idle.popleft()  # which is atomic
            except IndexError:
                break
            if (left := len(idle)) < self.fewest_idle:
                self.fewest_idle = left
            session: SessionState = connection._router  # type: ignore[attr-defined]  # noqa: SLF001  (the router's own)
            if (session.pgconn.transaction_status or monotonic() >= session.fresh_until) and not self._lives(session):
                with self.lock:  # guards the size
                    self._count_out(session)
                continue
            self.counts.taken += 1
            session.attributes[LENT_BY] = self
            self.borrowed.add(session)
            if self.notes_borrower:
                session.borrowed_at = borrower()
            if self.fenced_reason:
                connection.close()
                self.release(connection)
                return None
            return connection
        return None

    def _lives(self, session: SessionState) -> bool:
        """Read what came to an idle session: a notification does no harm, its end means it is closed.

        Nobody asked anything: if there is something to read, it is most likely the end. Nobody has its connection
        object, so that no other thread or task is at its socket.
        """
        pgconn = session.pgconn
        try:
            while session.has_input(0):
                pgconn.consume_input()
            while not session.attributes[NOTIFY_HANDLERS] and pgconn.notifies() is not None:
                pass  # it was for an earlier borrower
        except psycopg.OperationalError:
            end_session(session)
            self.watched.suspect(self.node.server)
            return False
        if pgconn.transaction_status:  # something of libpq's was kept from a block
            logger.warning("a connection of the pool %r is closed: it was used while nobody had borrowed it", self.name)
            end_session(session)
            return False
        session.fresh_until = monotonic() + FRESH
        return True

    def take_for(self, scope: Scope) -> Connection[TupleRow] | None:
        """Borrow a connection that is ready, best one that the tenant had last.

        Args:
            scope: Whom it is for.

        Returns:
            The connection, or ``None`` when none is ready.
        """
        del scope  # all are the same tenant's here
        return self.take()

    def note_lent(self, connection: Connection[TupleRow], tenant: str) -> None:
        """Take a connection for borrowed by a request that waited.

        Args:
            connection: The connection.
            tenant: Whom the request is for; empty where that does not matter.
        """
        session: SessionState = connection._router  # type: ignore[attr-defined]  # noqa: SLF001  (the router's own)
        session.tenant = tenant
        session.attributes[LENT_BY] = self
        self.borrowed.add(session)
        self.counts.queued += 1

    def is_usable(self, connection: Connection[TupleRow]) -> bool:
        """Tell whether a connection that was handed over may be used; else it is closed and given back.

        Args:
            connection: The connection.

        Returns:
            Whether it may: what is known of its server may have changed while it was on its way.
        """
        if not self.fenced_reason:
            return True
        connection.close()
        self.release(connection)
        return False

    def hand_over(self) -> None:
        """Hand what is idle to those that wait."""
        if self.closed or self.draining:
            return
        with self.lock:  # guards kept, waiting; taken even if none seems idle, see Line
            lent: list[Connection[TupleRow]] = []
            idle = self.idle  # another one, once they are in quarantine
            with suppress(IndexError):  # take() needs no lock to have the last
                while idle and len(lent) < self.waiting.number():
                    lent.append(idle.popleft())
            self.borrowed.update(map(session_of, lent))
        for connection in lent:
            connection.__dict__[LENT_BY] = self
            self.release(connection)

    def grow(self) -> None:
        """Open one more connection for those that wait, and the pool, if this is its first use.

        Raises:
            PoolClosed: The pool was closed.
        """
        self._used_at = monotonic()
        if self.closed or self.draining:
            self._begin()
        if self.lost:
            self.reclaim()
        with self.lock:  # guards kept, waiting, closed, growing
            self._grow_for_waiting()
        self.try_later()

    def warm_up(self) -> None:
        """Open one more connection if it may have one, though nobody waits: the next request finds it here.

        Raises:
            PoolClosed: The pool was closed.
        """
        if self.quarantined or self.draining or not self.may_grow:
            return
        if self.closed:
            self._begin()
        with self.lock:  # guards closed, growing
            if not self.closed:
                self._driver.grow()

    def _grow_for_waiting(self) -> None:
        """Open one more if more wait than are kept back; under the lock."""
        if not self.closed and not self.draining and self.waiting and self.waiting.number() > len(self.kept):
            self._driver.grow()

    def may_try(self) -> bool:
        """Whether another attempt to connect is due."""
        return monotonic() >= self._opening.due_at

    def try_later(self) -> None:
        """Try again to open a connection, if a request waits then."""
        now = monotonic()
        if self.waiting and now >= self._told_until and not self.is_growing and not self.at_max_size:
            delay = max(self._opening.due_at - now, 0.0)
            self._told_until = now + delay + TOLD  # and not for good: an exception may come before the next line
            self._driver.try_again_in(delay)

    def try_again(self) -> None:
        """Open one more connection if a request waits for it."""
        self._told_until = 0.0
        with self.lock:  # guards kept, waiting, closed, growing
            self._grow_for_waiting()

    def _begin(self) -> None:
        if self.draining:
            raise PoolClosed(f"the pool {self.name!r} is closed")
        try:
            self._driver.open()
        except psycopg.OperationalError as error:  # it has been closed meanwhile
            raise PoolClosed(str(error)) from error
        except BaseException:
            self._undo_open()
            raise
        if self.draining:
            self.stop(CLOSE_GRACE)

    @shielded
    def _undo_open(self) -> None:
        with self.lock:
            self._driver.undo_open()
            self._told_until = 0.0

    def stop(self, timeout: float) -> None:
        """Open no connection any more, and close what is idle.

        Args:
            timeout: The most to wait for an attempt to open one, in seconds.
        """
        self._driver.close(timeout)

    def open_connection(self) -> NodeConnection:
        """Open one more connection, for psycopg_pool's worker; if that fails, it is tried again after a while.

        Returns:
            The connection.

        Raises:
            psycopg.OperationalError: It could not be opened.
        """
        connection = self._opening.open()
        try:
            note_traces(connection, self._hygiene)
            session = SessionState(connection, self)
            if self.read_only:
                session.process = self._opener.recognize(connection, self.node, self.cluster)
            self._sessions.add(session)
        except BaseException:
            connection.close()
            raise
        return connection

    def withdraw(self) -> None:
        """Have no connection opened if no request waits for one any more."""
        if not self.waiting and (request := self._opening.request) is not None:
            self._opener.slots.withdraw(request)

    def look(self, connection: Connection[TupleRow]) -> ProbeResult:
        """Ask over a borrowed connection what its server is and how far it is.

        Args:
            connection: The connection, idle.

        Returns:
            What it says.

        Raises:
            psycopg.Error: It does not say.
        """
        self.retryable.add(session_of(connection))
        seen = self._opener.queries.probe(connection, self.node)
        self.retryable.discard(session_of(connection))
        return seen

    def begin_draining(self) -> None:
        """Lend nothing any more, not even to requests that hold an old lane; the caller also stops the pool."""
        self.draining = True  # first: what comes back from now on does not become idle
        self.idle = deque()

    def end_draining(self) -> None:
        """Be forgotten if it drains and nothing of it is left: what comes back last calls this, and housekeeping."""
        # What is taken at this very moment is idle no more, and not noted as borrowed yet: so look at the sessions.
        if self.draining and self.closed and not self.borrowed and all(one.closed for one in list(self._sessions)):
            self.watched.clusters.remove(self)

    def quarantine(self) -> None:
        """Lend no idle connection until :meth:`end_quarantine`; not again at once, for sessions may go on ending."""
        now = monotonic()
        if not self.quarantined and not self.draining and now >= self._no_quarantine_until:
            self.quarantined_at = now
            self.idle = deque()

    @shielded
    def end_quarantine(self) -> None:
        """Lend idle connections again, first to those who wait."""
        with self.lock:  # guards kept, waiting
            self._no_quarantine_until = monotonic() + QUARANTINE_COOLDOWN
            self.idle = self.kept
            if self.draining:  # last: begin_draining() takes no lock, and sets this first
                self.idle = deque()
                return
        self.hand_over()
        with self.lock:  # guards kept, waiting, closed, growing
            self._grow_for_waiting()  # what they waited for has been closed meanwhile

    def evict_idle(self, beneficiary: SlotRequest | None = None) -> None:
        """Close the connection that has been idle longest, if there is one, so that another may be opened.

        Args:
            beneficiary: The request for that, if it is for one.
        """
        if (connection := self._pop_idle()) is not None:
            end_session(session_of(connection), beneficiary)

    def _pop_idle(self) -> Connection[TupleRow] | None:
        """Have the connection that has been idle longest no more."""
        if not self.kept:
            return None
        with self.lock:  # guards kept and the size
            try:
                connection = self.kept.popleft()
            except IndexError:  # take() needs no lock to have the last
                return None
            self._count_out(session_of(connection))
            return connection

    def _count_out(self, session: SessionState) -> None:
        """Count a connection no more, unless that was done before; under the lock."""
        if session in self._sessions:
            self._sessions.discard(session)
            self._driver.count_out()

    def note_opened(self, connection: Connection[TupleRow], expires_at: float) -> None:
        """Note until when a connection may be lent.

        Args:
            connection: The connection.
            expires_at: Until when, on the monotonic clock.
        """
        session_of(connection).expires_at = expires_at

    def session_states(self) -> list[SessionState]:
        """List what is kept of each of its connections."""
        return list(self._sessions)

    @shielded
    def reclaim(self) -> None:
        """Reclaim connections that their borrowers dropped or closed, or that were lost through an interruption.

        A signal handler may raise at any moment; so the counts are compared with the connections that exist.
        """
        self.lost = False
        self.withdraw()
        for session in list(self._sessions):
            borrowed = session in self.borrowed
            if session.dropped or (borrowed and session.closed):
                self._close_session(session)
                if session.dropped and borrowed:
                    self._warn_of_dropped(session)
        with self.lock:  # guards all of this
            if self.closed or self.draining:
                return
            self._driver.recount(len(self._sessions))
            self._grow_for_waiting()

    def _warn_of_dropped(self, session: SessionState) -> None:
        asked, at = session.target, session.borrowed_at
        whom = "" if asked is None else f" for {f'tenant {asked.tenant!r}' if asked.tenant else asked.version}"
        where = "; where is noted from now on" if at is None else f" in {at[0]}, line {at[1]}"
        what = f"a connection to {self.node} was borrowed{whom}{where}, and dropped without being given back or closed"
        self.notes_borrower = True
        logger.warning("%s", what)
        file, line = at or (__file__, 1)
        with Isolated("%s", what):  # warnings may be errors here
            warnings.warn_explicit(what, ResourceWarning, file, line)

    def _replace(self, session: SessionState) -> None:
        """Count a connection that was lent no more, unless that was done before, and have another one opened."""
        with self.lock:  # guards the size, _sessions
            self.borrowed.discard(session)
            self.retryable.discard(session)
            if (entry := self.admitted.pop(session, None)) is not None:
                entry[0].leave(entry[1])
            if session in self._sessions:
                self._sessions.discard(session)
                if self.closed or self.draining:
                    self._driver.count_out()
                else:
                    self._driver.replace_one()
        self.end_draining()

    @shielded
    def close_lent(self, connection: Connection[TupleRow]) -> None:
        """Close a connection that was lent, and have its place back: what its ``close()`` does.

        Args:
            connection: The connection.
        """
        if self.inherited:
            return
        session, use = session_of(connection), object()
        try:
            session.begin_use(connection, use)
        except psycopg.Error:  # its block has ended meanwhile, or it is being closed
            return
        try:
            session.is_closing = True  # first: what would begin to use it from now on fails, and the rest is seen here
            if len(session.uses) > 1:  # to close it would free memory that is in use: the end of its block does
                _cut_off([session], "it was closed while something used it")
                return
            connection.__dict__[LENT_BY] = None  # it is no longer lent: its close() closes it
            try:
                connection.close()
            finally:
                self._replace(session)
        finally:
            session.end_use(connection, use)

    def _close_session(self, session: SessionState) -> None:
        """Close a session whose connection object nobody may use any more, and have its place back."""
        try:
            end_session(session)
        finally:
            self._replace(session)

    def note_closing(self, connection: Connection[TupleRow]) -> None:
        """Note that a connection is closed that is not counted any more.

        Args:
            connection: The connection.
        """
        self._sessions.discard(session_of(connection))

    def keep_warm(self) -> None:
        """Open one of the connections that are to be kept open, if there are too few: some may have made room."""
        if self.size < self.min_size:
            with self.lock:  # guards the size
                if self.closed or self.draining or self.size >= self.min_size:
                    return
                self._driver.add_one()

    def empty(self) -> None:
        """Close what is idle."""
        while (connection := self._pop_idle()) is not None:
            with Isolated("could not close a connection to %s", self.node):
                connection.close()

    def drop(self, why_borrowed: str) -> int:
        """Part with the connections of a server that must not be used: nobody waits for them, none stays idle.

        Args:
            why_borrowed: Why those that are out are cut, too; if empty, only those whose query is run again are.

        Returns:
            How many of those that are out were cut, but for those whose query is run again.
        """
        self.empty()
        doomed = list(self.borrowed if why_borrowed else self.retryable)
        _cut_off(doomed, why_borrowed)
        return len(doomed) if why_borrowed else 0

    def drop_silent(self, silent: Collection[SessionState], reason: str) -> None:
        """Cut connections that hear nothing from a server that is well; those that are idle may hear nothing either.

        Args:
            silent: What is kept of them.
            reason: Why they are cut.
        """
        _cut_off(silent, reason)
        self.drop("")

    def wait_unused(self, connection: Connection[TupleRow], *, wait: bool = True) -> bool:
        """Wait for whatever still uses a connection whose block has ended, for a moment; else cut it off.

        What holds psycopg's lock is another task or thread, or the generator of a ``stream()`` or ``notifies()`` that
        was left half way: an asyncio one that nobody refers to any more ends by itself, one that is kept never does.

        Args:
            connection: The connection.
            wait: Whether to wait at all.

        Returns:
            Whether nothing uses it any more. Else it is cut, and must not even be closed: that would free memory which
            another thread may be using.
        """
        if not self._take_lock(connection, USE_GRACE if wait else 0.0):
            return False
        free_lock(connection.lock)
        return True

    def _take_lock(self, connection: Connection[TupleRow], timeout: float = USE_GRACE) -> bool:
        """Take the lock of a connection whose block has ended; if something uses it for too long, cut that off."""
        session = session_of(connection)
        if not session.uses and try_lock(connection.lock):
            return True
        if not session.cut_because:
            deadline = monotonic() + timeout
            if take_lock(connection.lock, timeout):
                unused = False
                try:
                    unused = _has_no_uses(session, deadline)
                finally:
                    if not unused:
                        free_lock(connection.lock)
                if unused:
                    return True
            session.cut_because = "its block had ended, but something still used it"
            logger.warning(
                "a connection of the pool %r is cut: its block has ended, but something still uses it, %s",
                self.name,
                USERS,
            )
            cut(session)
        return False

    @shielded
    def close_for(self, connection: Connection[TupleRow], beneficiary: SlotRequest | None = None) -> None:
        """Close a borrowed connection for good, so that another pool may open one; requests here wait for another.

        Args:
            connection: The connection.
            beneficiary: The request that it is closed for, if it is for one.
        """
        if self.inherited:
            return
        session, lock = session_of(connection), connection.lock
        try:
            with Isolated("could not close a connection to %s", self.node):
                free = self._take_lock(connection)
                session.over = True
                if free:
                    session.end(connection)
                    free_lock(lock)
                    free = not session.uses  # something may have begun at this very moment
                if not free:
                    cut(session)
                    session.forget()
                end_session(session, beneficiary, in_use=not free)
        finally:
            if beneficiary is not None:
                self._opener.slots.restore(beneficiary)
        with self.lock:  # guards the size, growing, waiting
            self.borrowed.discard(session)
            self.retryable.discard(session)
            self._count_out(session)
            self._grow_for_waiting()
        self.end_draining()

    @shielded
    def release(  # noqa: C901, PLR0912  (the hot path: a call in it costs more than the rest of a line)
        self, connection: Connection[TupleRow]
    ) -> None:
        """Take a borrowed connection back, such as it was when it was opened.

        Args:
            connection: The connection; it is closed here if it is in a transaction or in an unknown state.
        """
        if self.inherited:
            return
        session: SessionState = connection._router  # type: ignore[attr-defined]  # noqa: SLF001  (the router's own)
        pgconn, lock = session.pgconn, connection.lock
        offer, is_kept = None, False
        try:
            if not try_lock(lock) and not self._take_lock(connection):
                self.close_for(connection)
                return
            open_transactions = session.attributes[OPEN_TRANSACTIONS]  # of whose ends there may be some to come
            try:
                following = session.pass_on(connection)
            finally:
                free_lock(lock)
            # From here on, nothing that was kept from the block reaches the session but what has begun to.
            if session.uses:
                session.end(following)
                self.close_for(connection)
                return
            if pgconn.transaction_status or pgconn.pipeline_status or open_transactions or session.dirty:
                pass
            elif pgconn.parameter_status(b"in_hot_standby") != session.in_hot_standby:
                self.watched.suspect(self.node.server)  # it was promoted, say
            elif self._hygiene is not None and not reset(following):
                self._close_session(session)  # which was not lost in the block
                return
            elif pgconn.parameter_status(b"client_encoding") == session.client_encoding:  # psycopg goes by it
                pgconn.untrace()  # nothing tells whether it is traced
                if not pgconn.nonblocking:
                    pgconn.nonblocking = 1
                session.idle_since = now = monotonic()
                self.retryable.discard(session)
                if (
                    now < session.expires_at
                    and (not self.waiting or now < session.fresh_until or self._lives(session))  # as take() does
                ):
                    with self.lock:  # guards kept, waiting, closed
                        if not self.draining:
                            while self.waiting:  # until it is handed over, it still counts as borrowed
                                offer = self.waiting.popleft()
                                if offer.set(following):
                                    return
                            self.borrowed.discard(session)
                            is_kept = True  # first: once it is kept, another thread may have it
                            self.kept.append(following)
                            return
        except BaseException as error:
            if is_kept or (offer is not None and offer.taker is not None):  # an interruption, once that was done
                raise
            session.is_closing = True  # first: what would begin to use it from now on fails
            (self.close_for(connection) if session.uses else self._close_session(session))
            # Whatever this is, the block has had its own outcome by now; unless it comes from outside of all this.
            if not isinstance(error, Exception):
                raise
            logger.exception("a connection to %s was closed: it could not be given back", self.node)
        else:
            session.note_broken(connection)
            self._close_session(session)

    def abandon(self) -> None:
        """Leave it all to the parent process, after a fork."""
        self.inherited = True
        self._inherited_idle = self._driver.abandon()
        self.kept = self.idle = self._driver.kept

    def stats(self) -> PoolStats:
        """Return one moment's view of the pool."""
        counted = self.counts.measured()
        limit = self._opener.slots.server_limits.refusing(self.budget_key.login)
        return PoolStats(
            size=self.size,
            max_size=self.max_size,
            idle=len(self.kept),
            in_use=len(self.borrowed),
            waiting=self.waiting.number(),
            requests=counted["requests"],
            queued=counted["queued"],
            wait_seconds=counted["wait_ms"] / 1000.0,
            opened=counted["opened"],
            failed=counted["failed"],
            server_limit=None if limit is None else limit.most,
        )


def _has_no_uses(session: SessionState, deadline: float) -> bool:
    """Wait until nothing uses a session whose lock is held; a ``cancel()`` takes none, and may be in any thread."""
    while session.uses:
        if monotonic() >= deadline:
            return False
        sleep(0.002)
    return True


def _cut_off(doomed: Collection[SessionState], reason: str) -> None:
    for session in doomed:
        session.cut_because = reason
        session.dirty = True  # the block may end well, a moment before anything fails
        cut(session)
