"""The directory of tenants: asks at run time where a tenant lives, keeps what it hears, and hears of changes."""

from __future__ import annotations

import logging
import os
import socket
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from inspect import signature
from random import choice, random
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import psycopg

from router._async.pool.opener import is_undeclared
from router._async.pool.scripts import cursor_of, send
from router._async.pool.session_state import session_of
from router._runtime.calls import Isolated, WeakCall, acall, aconsult
from router._runtime.flags import AFlag, AGuard
from router._runtime.sockets import cut
from router._runtime.workers import acan_spawn, ajoin, aspawn
from router.core import sql
from router.core.directory import Answers, describe_failure
from router.core.errors import DirectoryUnavailable, RouterClosed, RouterError, UnknownTenant

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

    from router._async.checkout import AsyncCheckout
    from router._async.pool.node_pool import AsyncNodePool
    from router._runtime.calls import AFunction, ASource
    from router._runtime.workers import AWorker
    from router.core.directory import DirectoryStats
    from router.core.policies import DirectoryPolicy
    from router.core.topology import Home
    from router.settings import RouterSettings

ASKING = 4
"""How many tenants are asked for at the same time at most."""

RETRY = (0.01, 1.0)
"""Seconds until one tries again to hear of changes: at first, and at most."""

SILENCE = 10
"""Seconds of silence after which the kernel makes sure that a listener's connection has another end: nothing is sent
over it, and gateways forget, without a word, what is silent for minutes."""

T = TypeVar("T")

logger = logging.getLogger("router")


class AsyncHomes(Protocol):
    """What uses the homes of tenants, and what was worked out from them: the router's."""

    def forget(self, tenant: str | None) -> None:
        """Work out anew where a tenant lives, from its next request on.

        Args:
            tenant: The tenant; ``None`` for all of them.
        """

    async def follow_tenant(self, tenant: str, home: Home | None) -> None:
        """Do what follows from a tenant's move.

        Args:
            tenant: The tenant.
            home: Where it lives now; ``None`` for nowhere.
        """


class _Question:
    """One tenant that is being asked for, by however many.

    Attributes:
        tenant: The key.
        waiting: How many wait for the answer.
        overtaken: Whether a change was heard of since it was asked: the answer may be from before that.
        answered: Set when there is an answer, or none is to be had.
        unknown: Whether the answer is that there is no such tenant.
        moved: Whether it lived elsewhere before.
        reason: Why there is no answer.
    """

    __slots__ = ("answered", "moved", "overtaken", "reason", "tenant", "unknown", "waiting")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.waiting = 0
        self.overtaken = False
        self.answered = AFlag()
        self.unknown = self.moved = False
        self.reason = ""


class AsyncDirectory:
    """What is known of tenants, kept up to date: however many ask for one at once, its source is asked once.

    Attributes:
        policy: How long an answer counts.
        lists: Whether its source can list the tenants.
    """

    def __init__(
        self,
        source: ASource,
        settings: RouterSettings,
        policy: DirectoryPolicy,
        homes: AsyncHomes,
        *,
        keep: list[object],
    ) -> None:
        """Begin with nothing known; nothing is asked yet.

        Args:
            source: Says where a tenant lives: a callable that takes its key, or an object with such a ``lookup()``, and
                with ``tenants()`` if it can list them. It must come to an end by itself.
            settings: Those that make a home of a key and what the source says.
            policy: How long an answer counts.
            homes: Told when a tenant's home is to be used no longer.
            keep: Where a source is kept that is the user's.

        Raises:
            TypeError: The source cannot be called with a key.
        """
        self.policy = policy
        self._table = source if isinstance(source, AsyncSqlSource) else None  # others are not the router's to close
        self._lookup = _lookup_of(source)
        self._tenants = getattr(source, "tenants", None)
        if self._table is None:
            self._lookup = WeakCall(self._lookup, keep)
            self._tenants = None if self._tenants is None else WeakCall(self._tenants, keep)
        self.lists = self._tenants is not None
        self._settings = settings
        self._homes = homes
        self._guard = AGuard()  # guards all below
        self._answers = Answers(policy)
        self._questions: dict[str, _Question] = {}
        self._urgent: OrderedDict[str, _Question] = OrderedDict()  # not asked yet, and somebody waits for these
        self._other: OrderedDict[str, _Question] = OrderedDict()  # not asked yet, and nobody waits
        self._at_rest = set(range(ASKING))  # the numbers of workers that do not run
        self._workers: dict[int, AWorker] = {}
        self._failing: tuple[float, str] | None = None  # since when, and why
        self._short = ""  # why no worker runs, if none could be started
        self._closed = False

    def known(self, tenant: str) -> Home | None:
        """Tell where a tenant lives, without asking anybody; what is out of date is asked for in the background.

        Args:
            tenant: Its key.

        Returns:
            Its home; ``None`` if it must be asked for first.
        """
        with self._guard:
            home, due = self._answers.use(tenant, monotonic())
            if due and not self._closed:
                self._ask(tenant, self._other)
        return home

    def confirmed(self, tenant: str) -> tuple[bool, Home | None]:
        """Tell where a tenant lives that has pools of its own, which counts as a use of it, without asking anybody.

        Args:
            tenant: Its key.

        Returns:
            Whether it is known, and its home, ``None`` if there is no such tenant. What is not known or out of date is
            asked for in the background.
        """
        if (home := self.known(tenant)) is not None:
            return True, home
        with self._guard:
            if self._answers.is_unknown(tenant, monotonic()):
                return True, None
            if not self._closed:
                self._ask(tenant, self._other)
        return False, None

    async def find(self, tenant: str, deadline: float) -> Home:
        """Find out where a tenant lives.

        Args:
            tenant: Its key.
            deadline: Until when to wait, on the monotonic clock.

        Returns:
            Its home. If a change was heard of and cannot be asked for, that is what was known before.

        Raises:
            UnknownTenant: There is no such tenant.
            DirectoryUnavailable: That cannot be asked, or not in time, and nothing is known of it.
            RouterClosed: The router was closed.
        """
        while (home := self.known(tenant)) is None:
            with self._guard:
                if self._closed:
                    raise RouterClosed("the router is closed")
                now = monotonic()
                if self._answers.is_unknown(tenant, now):
                    raise UnknownTenant(tenant, known=self._answers.tenants)
                question = self._ask(tenant, self._urgent)
                question.waiting += 1
                patience = max(deadline - now, 0.0)
                if self._answers.has(tenant):
                    patience /= 2.0  # the rest is for getting a connection, with what was known before
            try:
                answered = await question.answered.wait_for(patience)
            finally:
                with self._guard:
                    question.waiting -= 1
                    if not question.waiting and self._urgent.get(tenant) is question:
                        del self._urgent[tenant], self._questions[tenant]
            reason = question.reason if answered else self._late(patience)
            with self._guard:
                if question.unknown:
                    raise UnknownTenant(tenant, known=self._answers.tenants)
                if reason and not self._closed and not self._answers.mark_unconfirmed(tenant, monotonic()):
                    raise DirectoryUnavailable(tenant, reason)
            # It is known now, unless a change has been heard of again.
        return home

    def _late(self, patience: float) -> str:
        return f"the directory has not said so within {patience:.3g} s{self._short}"

    def changed(self, tenant: str | None) -> None:
        """Take note of a change that was heard of.

        Args:
            tenant: Its key: it is asked for before it is used again. ``None`` if it may be any: each is asked for when
                it is next used, and what is known goes on working meanwhile.
        """
        with self._guard:
            if tenant is None:
                self._answers.mark_all_changed()
                overtaken = list(self._questions.values())
            else:
                self._answers.mark_changed(tenant)
                overtaken = [self._questions[tenant]] if tenant in self._questions else []
            for question in overtaken:
                question.overtaken = True
        self._homes.forget(tenant)

    def tick(self, now: float) -> None:
        """Do what time brings: to be called about once a second.

        Args:
            now: The time, on the monotonic clock.
        """
        with self._guard:
            due = self._answers.tick(now)
            with Isolated("could not ask for tenants"):
                if not self._closed:
                    if unconfirmed := self._answers.unconfirmed:
                        self._ask(choice(unconfirmed), self._other)  # to see whether that works again
                    self._staff()
        for tenant in due:
            with Isolated("could not forget where tenant %r lives", tenant):
                self._homes.forget(tenant)

    def stats(self) -> DirectoryStats:
        """Return one moment's view of it."""
        with self._guard:
            now = monotonic()
            stats = self._answers.stats(now)
            if self._failing is None:
                return stats
            since, reason = self._failing
            return replace(stats, failing_for=now - since, reason=reason)

    async def tenants(self) -> list[str]:
        """List the tenants, if the source can.

        Returns:
            Their keys; empty if it cannot.
        """
        return [] if self._tenants is None else list(await acall(self._tenants))

    async def close(self, timeout: float) -> None:
        """Ask nothing any more, nor hear of changes; those who wait for an answer get none.

        Args:
            timeout: The most to wait for what is being asked, in seconds.
        """
        deadline = monotonic() + timeout
        with self._guard:
            self._closed = True
            self._urgent.clear()
            self._other.clear()
            questions, workers = list(self._questions.values()), list(self._workers.values())
        for question in questions:
            question.answered.set()  # which finds the directory closed
        if self._table is not None:
            await self._table.close(max(deadline - monotonic(), 0.0))
        for worker in workers:
            await ajoin(worker, max(deadline - monotonic(), 0.0))

    # Asking: under the guard

    def _ask(self, tenant: str, queue: OrderedDict[str, _Question]) -> _Question:
        """Have a tenant asked for, unless that is under way."""
        question = self._questions.get(tenant)
        if question is None:
            question = self._questions[tenant] = queue[tenant] = _Question(tenant)
        elif queue is self._urgent and self._other.pop(tenant, None) is not None:
            queue[tenant] = question
        self._staff()
        return question

    def _staff(self) -> None:
        """Have someone ask what is to be asked; if that cannot be done here, a later call will."""
        if (self._urgent or self._other) and self._at_rest and acan_spawn():
            number = self._at_rest.pop()
            try:
                self._workers[number] = aspawn(self._work, f"router asks for tenants {number}", number)
                self._short = ""
            except RuntimeError as error:  # no thread can be started now; those that run go on
                self._short = f", and nobody could be sent to ask: {error}" if len(self._at_rest) == ASKING - 1 else ""
                self._at_rest.add(number)

    def _next(self) -> _Question | None:
        queue = self._urgent or self._other
        if not queue:
            return None
        _, question = queue.popitem(last=False)
        question.overtaken = False
        return question

    # Asking: the workers

    async def _work(self, number: int) -> None:
        with Isolated("could not go on asking for tenants"):
            try:
                while True:
                    with self._guard:
                        if (question := self._next()) is None:
                            self._at_rest.add(number)
                            return
                    with Isolated("could not ask for tenant %r", question.tenant):
                        try:
                            await self._answer(question)
                        except BaseException as error:
                            self._leave_open(question, error)
                            raise
            except BaseException:  # it was cancelled, say
                with self._guard:
                    self._at_rest.add(number)
                raise

    async def _answer(self, question: _Question) -> None:
        said = await self._ask_source(question.tenant)
        while not self._settle(question, said):
            said = await self._ask_source(question.tenant)
        if question.moved:
            await self._homes.follow_tenant(question.tenant, said[0])

    def _leave_open(self, question: _Question, error: BaseException) -> None:
        """Say to those who wait that there will be no answer."""
        with self._guard:
            self._questions.pop(question.tenant, None)
            if isinstance(error, Exception):  # the answer may be kept, and not all done that follows from it
                question.reason = f"the router failed: {type(error).__name__}"
                self._answers.drop(question.tenant)
            else:
                question.reason = "asking for it was cancelled"
                self._answers.mark_unconfirmed(question.tenant, monotonic())
        question.answered.set()

    async def _ask_source(self, tenant: str) -> tuple[Home | None, str, bool]:
        """Ask once: for the home, or why there is none, and whether there was an answer."""
        try:
            said = await aconsult(self._lookup, tenant)
        except Exception as error:  # noqa: BLE001  (it is the user's)
            return None, self._fails(error), False
        self._works()
        if said is None:
            return None, "", True
        if not isinstance(said, Mapping):
            return None, f"lookup() gave a {type(said).__name__}, not a mapping", True
        try:
            return self._settings.home(tenant, said), "", True
        except Exception as error:  # noqa: BLE001  (one tenant's fault must not end the asking for others)
            return None, f"what the directory says is wrong: {describe_failure(error)}", True

    def _fails(self, error: Exception) -> str:
        """Take note that the source fails; why."""
        reason = f"the directory fails: {describe_failure(error)}"
        if not isinstance(error, RouterClosed):
            with self._guard:
                first = self._failing is None
                self._failing = (monotonic() if self._failing is None else self._failing[0], reason)
            if first:
                logger.warning("%s; what is known of tenants goes on working", reason)
        return reason

    def _works(self) -> None:
        with self._guard:
            if self._failing is None:
                return
            self._failing = None
            self._answers.recover()
        logger.info("the directory of tenants works again")

    def _settle(self, question: _Question, said: tuple[Home | None, str, bool]) -> bool:
        """Take what came of asking; whether it counts: if a change was heard of meanwhile, it is to be asked again."""
        tenant = question.tenant
        home, reason, answered = said
        with self._guard:
            if question.overtaken and self._failing is None and not self._closed:
                question.overtaken = False
                return False
            del self._questions[tenant]
            if not answered:
                self._answers.mark_unconfirmed(tenant, monotonic())
            elif reason:  # where it lived is not where it lives
                question.moved = self._answers.drop(tenant)
            else:
                question.moved = self._answers.keep(tenant, home, monotonic(), random())
        if question.moved:
            self._homes.forget(tenant)
            if reason:
                logger.warning("tenant %r is served no longer: %s", tenant, reason)
        question.unknown = home is None and not reason
        question.reason = reason
        question.answered.set()
        return True


def _lookup_of(source: Any) -> Any:
    lookup = getattr(source, "lookup", source)
    try:
        signature(lookup).bind("")
    except TypeError:
        name = getattr(lookup, "__qualname__", type(lookup).__name__)
        raise TypeError(
            f"{name} is no directory: it must be a callable that takes a tenant's key and nothing else, or an object "
            "with such a lookup()"
        ) from None
    except ValueError:  # it is built in, and does not say what it takes
        pass
    return lookup


class AsyncSqlSource:
    """A table of tenants, read on its primary; a connection of its own hears of its changes.

    Attributes:
        table: The table, as SQL writes it.
    """

    def __init__(
        self,
        borrow: Callable[[], AsyncCheckout],
        table: str,
        keys: Collection[str],
        changed: Callable[[str | None], None],
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            borrow: Borrows a connection to where the table can be written.
            table: The table, as SQL writes it.
            keys: The columns that say something; any others are none of the router's business.
            changed: Told the key of a tenant that changed; ``None`` when it may be any.
        """
        self.table = table
        self._borrow = borrow
        self._keys = frozenset(keys)
        self._changed = changed
        self._guard = AGuard()  # guards all below
        self._in_use: set[AsyncConnection[TupleRow]] = set()  # for cutting
        self._listener: AWorker | None = None
        self._pause = RETRY[0]
        self._closed = AFlag()

    async def lookup(self, tenant: str) -> Mapping[str, Any] | None:
        """Read where a tenant lives.

        Args:
            tenant: Its key.

        Returns:
            What its row says, but for what is NULL; ``None`` if none has this very key.

        Raises:
            RouterError: It cannot be read; the message says why.
        """
        with self._guard:
            if self._listener is None and not self._closed.is_set():
                self._listener = aspawn(self._listen, "router hears of tenants")
        for row in await self._fetch(sql.tenant_of(self.table), [tenant]):
            if str(row["tenant"]) == tenant:  # a collation or a type may find the row of another spelling
                return {key: row[key] for key in self._keys & row.keys() if row[key] is not None}
        return None

    async def tenants(self) -> list[str]:
        """Read the keys of all tenants.

        Returns:
            The keys, in order.

        Raises:
            RouterError: They cannot be read; the message says why.
        """
        return [str(row["tenant"]) for row in await self._fetch(sql.tenants_of(self.table))]

    async def close(self, timeout: float) -> None:
        """Hear of nothing any more, and cut short what is being read.

        Args:
            timeout: The most to wait for that, in seconds.
        """
        with self._guard:
            self._closed.set()
            listener = self._listener
            for connection in self._in_use:
                cut(connection)
        if listener is not None:
            await ajoin(listener, timeout)

    async def _fetch(self, query: str, params: Sequence[str] = ()) -> list[dict[str, Any]]:
        async def fetch(_: AsyncNodePool, connection: AsyncConnection[TupleRow]) -> list[dict[str, Any]]:
            async with cursor_of(connection) as cursor:
                # Not prepared: a prepared SELECT * fails once the table has one more column.
                await cursor.execute(query, params or None, prepare=False)
                return await cursor.fetchall()

        try:
            return await self._borrowed(fetch)
        except psycopg.Error as error:
            if self._closed.is_set():
                raise RouterClosed("the router is closed") from None
            raise RouterError(self._in_words(error)) from None

    async def _borrowed(self, use: AFunction[[AsyncNodePool, AsyncConnection[TupleRow]], T]) -> T:
        """Use a connection in autocommit, which is cut when its server is found down, or all is closed."""
        checkout = self._borrow()
        async with checkout as connection:
            with self._guard:
                if self._closed.is_set():
                    raise RouterClosed("the router is closed")
                self._in_use.add(connection)
            try:
                checkout.pool.expendable.add(session_of(connection))
                await connection.set_autocommit(True)
                return await use(checkout.pool, connection)
            finally:
                with self._guard:
                    self._in_use.discard(connection)

    def _in_words(self, error: psycopg.Error) -> str:
        if isinstance(error, RouterError):
            return str(error)
        what = error.diag.message_primary if isinstance(error, psycopg.ProgrammingError) else None
        return f"the table {self.table} cannot be read: {what or type(error).__name__}"

    def _why_deaf(self, error: psycopg.Error) -> str:
        """Say why the connection over which changes are heard of has ended, as the server says it."""
        if isinstance(error, RouterError) or not isinstance(error, psycopg.OperationalError):
            return self._in_words(error)
        return f"its connection was lost: {error.diag.message_primary or str(error).strip().partition(chr(10))[0]}"

    async def _listen(self) -> None:
        """Hear of changes until the end; whenever the connection is lost, over another."""
        while not self._closed.is_set():
            try:
                await self._borrowed(self._hear)
            except RouterClosed:
                return
            except psycopg.Error as error:
                if self._pause == RETRY[0] and not self._closed.is_set():
                    logger.warning("cannot hear of changes to tenants, and tries again: %s", self._why_deaf(error))
            except Exception:
                logger.exception("cannot hear of changes to tenants, and tries again")
            else:
                return
            self._pause = min(2.0 * self._pause, RETRY[1])
            await self._closed.wait_for(self._pause * (0.9 + 0.2 * random()))

    async def _hear(self, pool: AsyncNodePool, connection: AsyncConnection[TupleRow]) -> None:
        """Hear of changes until the connection is lost."""
        if pool.node.pooler == "transaction":
            logger.warning("%s is a transaction pooler: changes to tenants are seen when directory.ttl ends", pool.node)
            return
        [(pid, _)] = await send(connection, sql.session(()).encode())
        if is_undeclared(connection, pool.node, pid):
            logger.warning(
                "%s is a pooler that the settings do not declare: if it is one for transactions, changes to tenants "
                "are seen when directory.ttl ends",
                pool.node,
            )
        session_of(connection).spent = True
        _keep_alive(connection)
        said = list[str]()  # libpq takes for a notice why the server ends a session that waits

        def hear(notice: psycopg.errors.Diagnostic) -> None:
            if notice.severity_nonlocalized == "FATAL":
                said.append(notice.message_primary or "")

        connection.add_notice_handler(hear)
        await send(connection, sql.LISTEN_TO_TENANTS.encode())
        self._pause = RETRY[0]
        self._changed(None)  # whatever happened before, nobody heard
        try:
            async for notification in connection.notifies():
                self._changed(notification.payload or None)
        except psycopg.OperationalError as error:
            if said:
                raise psycopg.OperationalError(said[-1]) from error
            raise


def _keep_alive(connection: AsyncConnection[TupleRow]) -> None:
    """Have the kernel see to it that a connection over which nothing is sent has another end."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.pgconn.socket)) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            duplicate.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE)
            duplicate.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE)
            duplicate.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
