# Generated from router/_async/directory.py by tools/async_to_sync.py: do not edit.
"""The directory of tenants: looks up at run time where a tenant lives, keeps the answers, and receives changes."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import replace
from random import choice, random
from time import monotonic
from typing import TYPE_CHECKING

from router._runtime.calls import Isolated
from router._runtime.flags import Flag, Guard
from router._runtime.workers import can_spawn, join, spawn
from router._sync.directory_source import TenantSource
from router._sync.directory_table import SqlSource
from router.core.directory import Answers
from router.core.errors import DirectoryUnavailable, RouterClosed, UnknownTenant
from router.settings import TENANT_KEYS

if TYPE_CHECKING:
    from router._runtime.calls import Source
    from router._runtime.workers import Worker
    from router._sync.directory_source import Homes, Said
    from router.core.measures import DirectoryStats
    from router.core.policies import DirectoryPolicy
    from router.core.topology import Home
    from router.settings import RouterSettings

ASKING = 4
"""The most tenants that are looked up at the same time."""

logger = logging.getLogger("router")


class _Question:
    """One tenant that is being looked up, for any number of requests.

    Attributes:
        tenant: The key.
        waiting: How many requests wait for the answer.
        stale: Whether a change was received since the source was asked, so that the answer may be out of date.
        answered: A flag that is set when there is an answer, or when there will be none.
        unknown: Whether the answer is that there is no such tenant.
        moved: Whether the tenant lived elsewhere before.
        reason: Why there is no answer.
    """

    __slots__ = ("answered", "moved", "reason", "stale", "tenant", "unknown", "waiting")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.waiting = 0
        self.answered = Flag()
        self.stale = self.unknown = self.moved = False
        self.reason = ""


class Directory:
    """The homes of tenants, kept up to date; the source is asked once, however many requests name a tenant at once.

    Attributes:
        lists: Whether its source can list the tenants.
        table: The table that it asks; ``None`` if it asks a callable of the user's.
        questions: The tenants that are being looked up, or are in the queue.
        idle_workers: The numbers of workers that do not run.
    """

    def __init__(
        self,
        source: Source | None,
        settings: RouterSettings,
        policy: DirectoryPolicy,
        homes: Homes,
        *,
        keep: list[object],
    ) -> None:
        """Make a directory without answers; it asks nothing yet.

        Args:
            source: Tells where a tenant lives: as for :class:`TenantSource`; ``None`` for the table of the policy.
            settings: The settings, which make a home of a key and an answer.
            policy: How long an answer is valid, and which table is asked.
            homes: Is called when a tenant's home must no longer be used, and lends connections to the table.
            keep: The list that keeps the user's source alive.

        Raises:
            TypeError: The source cannot be called with a key.
        """
        self.table = SqlSource(policy, TENANT_KEYS, homes, self) if source is None else None
        self._source = TenantSource(source or self.table, settings, keep if self.table is None else None)
        self.lists = self._source.lists
        self._homes = homes
        self._guard = Guard()  # guards all below
        self._answers = Answers(policy)
        self.questions: dict[str, _Question] = {}
        self._urgent: OrderedDict[str, _Question] = OrderedDict()  # not asked yet, and a request waits
        self._other: OrderedDict[str, _Question] = OrderedDict()  # not asked yet, and no request waits
        self.idle_workers = set(range(ASKING))
        self._workers: dict[int, Worker] = {}
        self._short = ""  # why no worker runs, if none could be started
        self._closed = False

    def known(self, tenant: str) -> Home | None:
        """Return where a tenant lives without asking the source; an answer that is due is refreshed in the background.

        Args:
            tenant: Its key.

        Returns:
            Its home; ``None`` if the source must be asked first.
        """
        with self._guard:
            home, due = self._answers.use(tenant, monotonic())
            if due and not self._closed:
                self._ask(tenant, self._other)
        return home

    def confirm(self, tenant: str) -> None:
        """Look up in the background where a tenant lives that has pools of its own, if its answer is due.

        Args:
            tenant: Its key.
        """
        if self.known(tenant) is None:
            with self._guard:
                if not self._closed and not self._answers.is_unknown(tenant, monotonic()):
                    self._ask(tenant, self._other)

    def peek(self, tenant: str) -> tuple[bool, Home | None]:
        """Return where a tenant lives, without counting that as a use of it.

        Args:
            tenant: Its key.

        Returns:
            Whether the answer is known, and its home; ``None`` if there is no such tenant, or no answer.
        """
        with self._guard:
            home = self._answers.peek(tenant)
            return home is not None or self._answers.is_unknown(tenant, monotonic()), home

    def find(self, tenant: str, deadline: float) -> Home:
        """Look up where a tenant lives.

        Args:
            tenant: Its key.
            deadline: Until when to wait, on the monotonic clock.

        Returns:
            Its home. If a change was received and the source cannot be asked, this is the former answer.

        Raises:
            UnknownTenant: There is no such tenant.
            DirectoryUnavailable: The source did not answer, or not in time, and there is no former answer.
            RouterClosed: The router was closed.
        """
        while (home := self.known(tenant)) is None:
            with self._guard:
                if self._closed:
                    raise RouterClosed("the router is closed")
                if self._answers.use(tenant, now := monotonic())[0] is not None:  # the answer came a moment ago
                    continue
                if self._answers.is_unknown(tenant, now):
                    raise UnknownTenant(tenant, known=self._answers.tenants)
                question = self._ask(tenant, self._urgent)
                question.waiting += 1
                # With a former answer, half of the time is left for a connection.
                patience = max(deadline - now, 0.0) / (2.0 if self._answers.has(tenant) else 1.0)
            try:
                answered = question.answered.wait_for(patience)
            finally:
                with self._guard:
                    question.waiting -= 1
                    if not question.waiting and self._urgent.get(tenant) is question:
                        del self._urgent[tenant], self.questions[tenant]
            late = f"the directory did not answer within {patience:.3g} s{self._short}"
            reason = question.reason if answered else late
            with self._guard:
                if question.unknown:
                    raise UnknownTenant(tenant, known=self._answers.tenants)
                if reason and not self._closed and not self._answers.mark_unconfirmed(tenant, monotonic()):
                    raise DirectoryUnavailable(tenant, reason)
            # The answer is known now, unless another change was received.
        return home

    def changed(self, tenant: str | None) -> None:
        """Record a change that was received.

        Args:
            tenant: The key of the tenant that changed, which is looked up before it is used again. ``None`` if any may
                have changed: each is looked up at its next use, and the former answers are used meanwhile.
        """
        with self._guard:
            if tenant is None:
                self._answers.mark_all_changed()
                stale = list(self.questions.values())
            else:
                self._answers.mark_changed(tenant)
                stale = [self.questions[tenant]] if tenant in self.questions else []
            for question in stale:
                question.stale = True
        self._homes.forget(tenant)

    def tick(self, now: float) -> None:
        """Refresh answers that are due; called about once a second.

        Args:
            now: The time, on the monotonic clock.
        """
        with self._guard:
            due = self._answers.tick(now)
            with Isolated("could not look up tenants"):
                if not self._closed:
                    if unconfirmed := self._answers.unconfirmed:
                        self._ask(choice(unconfirmed), self._other)  # to find out whether the source works again
                    self._start_worker()
        for tenant in due:
            with Isolated("could not forget where tenant %r lives", tenant):
                self._homes.forget(tenant)

    def stats(self) -> DirectoryStats:
        """Return its state at this moment."""
        with self._guard:
            now = monotonic()
            stats = self._answers.stats(now)
            failing = self._source.failing
            return replace(stats, failing_for=now - failing[0], reason=failing[1]) if failing else stats

    def tenants(self) -> list[str]:
        """List the tenants, if the source can.

        Returns:
            Their keys; empty if it cannot.
        """
        return self._source.tenants()

    def close(self, timeout: float) -> None:
        """Stop asking and listening; requests that wait for an answer get none.

        Args:
            timeout: The most seconds to wait for questions in flight.
        """
        deadline = monotonic() + timeout
        with self._guard:
            self._closed = True
            self._urgent.clear()
            self._other.clear()
            questions, workers = list(self.questions.values()), list(self._workers.values())
        for question in questions:
            question.answered.set()  # the request then finds the directory closed
        if self.table is not None:
            self.table.close(max(deadline - monotonic(), 0.0))
        for worker in workers:
            join(worker, max(deadline - monotonic(), 0.0))

    # Asking: under the guard

    def _ask(self, tenant: str, queue: OrderedDict[str, _Question]) -> _Question:
        """Put a tenant into a queue to be looked up, unless it is there already."""
        question = self.questions.get(tenant)
        if question is None:
            question = self.questions[tenant] = queue[tenant] = _Question(tenant)
        elif queue is self._urgent and self._other.pop(tenant, None) is not None:
            queue[tenant] = question
        self._start_worker()
        return question

    def _start_worker(self) -> None:
        """Start a worker if there is something to ask; if that cannot be done here, a later call does it."""
        if (self._urgent or self._other) and self.idle_workers and can_spawn():
            number = self.idle_workers.pop()
            try:
                self._workers[number] = spawn(self._work, f"router looks up tenants {number}", number)
                self._short = ""
            except RuntimeError as error:  # no thread can be started now; those that run go on
                self.idle_workers.add(number)
                self._short = "" if len(self.idle_workers) < ASKING else f", and no worker could be started: {error}"

    def _next(self) -> _Question | None:
        queue = self._urgent or self._other
        if not queue:
            return None
        _, question = queue.popitem(last=False)
        question.stale = False
        return question

    # Asking: the workers

    def _work(self, number: int) -> None:
        with Isolated("could not continue to look up tenants"):
            try:
                while True:
                    with self._guard:
                        if (question := self._next()) is None:
                            self.idle_workers.add(number)
                            return
                    with Isolated("could not look up tenant %r", question.tenant):
                        try:
                            self._answer(question)
                        except BaseException as error:
                            self._leave_open(question, error)
                            raise
            except BaseException:  # for example a cancellation
                with self._guard:
                    self.idle_workers.add(number)
                raise

    def _answer(self, question: _Question) -> None:
        while not self._settle(question, said := self._source.ask(question.tenant)):
            pass
        if question.moved:
            self._homes.follow_tenant(question.tenant, said.home)

    def _leave_open(self, question: _Question, error: BaseException) -> None:
        """Tell the requests that wait that there will be no answer."""
        with self._guard:
            self.questions.pop(question.tenant, None)
            if isinstance(error, Exception):  # the answer may have been kept without all of its effects
                question.reason = f"the router failed: {type(error).__name__}"
                self._answers.drop(question.tenant)
            else:
                question.reason = "asking for it was cancelled"
                self._answers.mark_unconfirmed(question.tenant, monotonic())
        question.answered.set()

    def _settle(self, question: _Question, said: Said) -> bool:
        """Record an answer; return whether it counts: after a change that was received meanwhile, ask again."""
        tenant, home, reason = question.tenant, said.home, said.reason
        with self._guard:
            if said.works_again:
                self._answers.recover()
            if question.stale and self._source.failing is None and not self._closed:
                question.stale = False
                return False
            del self.questions[tenant]
            if not said.is_answer:
                self._answers.mark_unconfirmed(tenant, monotonic())
            elif reason:  # the former home must not be used any more
                question.moved = self._answers.drop(tenant)
            else:
                question.moved = self._answers.keep(tenant, home, monotonic(), random())
        if question.moved:
            self._homes.forget(tenant)
            if reason:
                logger.warning("tenant %r is no longer served: %s", tenant, reason)
        question.unknown = home is None and not reason
        question.reason = reason
        question.answered.set()
        return True
