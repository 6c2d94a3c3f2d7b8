"""Looks at every server in use, once an interval: each over a connection of its own, none waiting for another."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from math import inf
from random import random
from time import monotonic
from typing import TYPE_CHECKING

import psycopg
from psycopg import AsyncConnection

from router._async.pool.opener import Unable
from router._async.silence import AsyncSilence
from router._async.slots import BudgetSpent
from router._runtime.calls import Isolated
from router._runtime.flags import AFlag, AGuard, asleep
from router._runtime.limited import ALimited
from router._runtime.sockets import aping, cut
from router._runtime.workers import ajoin, aspawn, untraced
from router.core.budget import Claim, Idle, to_close
from router.core.health import UNKNOWN, NodeUse
from router.core.observations import AttemptFailed, NotProbed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from psycopg.rows import TupleRow

    from router._async.pool.node_pool import AsyncNodePool
    from router._async.pool.opener import AsyncOpener
    from router._async.silence import Silent
    from router._runtime.calls import AFunction
    from router._runtime.workers import AWorker
    from router.core.budget import Limits
    from router.core.health import Health
    from router.core.observations import Observation, ProbeResult
    from router.core.policies import HealthPolicy
    from router.core.topology import Cluster, Node, Server

logger = logging.getLogger("router")

PAUSE = 0.01
"""Seconds between two looks at a server at least, however much evidence comes in."""

PATIENCE = 0.5
"""How much of a look's timeout it may wait for a slot of the budget: that it gets none says nothing of the server."""


class AsyncMonitor:
    """One watcher for each server in use.

    Each has a task or thread of its own, so that a server that does not answer delays no other.

    Attributes:
        opener: Opens the connections.
        policy: How servers are watched.
        health: Gives what is known now.
        report: Told what each look shows.
        looked: Told when a look has ended, and when it began.
        pause: Tells how many seconds to wait before the next look at a server, before jitter.
        pools: Gives the pools that are open.
        silent: Cuts connections that hear nothing.
    """

    def __init__(
        self,
        opener: AsyncOpener,
        policy: HealthPolicy,
        *,
        health: Callable[[], Health],
        report: AFunction[[Observation], None],
        looked: AFunction[[Server, float], None],
        pause: Callable[[Server], float],
        pools: Callable[[], Iterable[AsyncNodePool]],
        silent: AFunction[[list[Silent]], None],
    ) -> None:
        """Make the monitor; nothing runs yet.

        Args:
            opener: Opens the connections.
            policy: How servers are watched.
            health: Gives what is known now.
            report: Told what each look shows.
            looked: Told when a look has ended, and when it began.
            pause: Tells how long to wait before the next look at a server.
            pools: Gives the pools that are open.
            silent: Cuts connections that hear nothing.
        """
        self.opener = opener
        self.policy = policy
        self.health = health
        self.report = report
        self.looked = looked
        self.pause = pause
        self.pools = pools
        self.silent = silent
        self._guard = AGuard()  # guards the replacing of _watchers and of each watcher's nodes
        self._watchers: dict[Server, AsyncWatcher] = {}
        self._closed = False

    def watch(self, cluster: Cluster) -> None:
        """Watch the servers of a cluster from now on.

        Args:
            cluster: The cluster.
        """
        with self._guard:
            for node in cluster.nodes:
                watcher = self._watchers.get(node.server)
                if watcher is not None:
                    watcher.nodes = {**watcher.nodes, node: cluster}
                elif not self._closed:
                    self._watchers = {**self._watchers, node.server: AsyncWatcher(self, node, cluster)}

    def unwatch(self, name: str) -> None:
        """Watch the servers of a cluster no longer, unless others are there, too.

        Args:
            name: The cluster's name.
        """
        with self._guard:
            for watcher in self._watchers.values():
                watcher.nodes = {node: cluster for node, cluster in watcher.nodes.items() if cluster.name != name}
                if not watcher.nodes:
                    watcher.stop()
            self._watchers = {server: watcher for server, watcher in self._watchers.items() if watcher.nodes}

    def hurry(self, server: Server) -> None:
        """Look at a server now: something has happened that may tell of it.

        Args:
            server: The server; nothing happens if it is not watched.
        """
        if (watcher := self._watchers.get(server)) is not None:
            watcher.hurry.set()

    async def make_room(self, limits: Limits, taken: list[Claim], waiting: list[Claim]) -> int | None:
        """Close one connection that is held for the next look, for one of those who wait; that look opens another.

        Args:
            limits: How many there may be.
            taken: Those that there are.
            waiting: Those who wait, in order of arrival.

        Returns:
            The place of the one for whom it was closed; ``None`` when there was none to close.
        """
        found = [watcher for watcher in self._watchers.values() if watcher.holds]
        chosen = to_close(limits, taken, waiting, [Idle(watcher.claim, -inf, warm=False) for watcher in found], 0.0)
        if chosen is None:
            return None
        place, index = chosen
        return index if await found[place].make_way() else None

    def abandon(self) -> None:
        """Have those watchers end that a fork has copied, as it does greenlets: their connections are the parent's."""
        for watcher in self._watchers.values():
            watcher.abandon()

    async def close(self, timeout: float) -> None:
        """Stop every watcher.

        Args:
            timeout: The most to wait for looks that are under way, in seconds.
        """
        deadline = monotonic() + timeout
        with self._guard:
            self._closed = True
            watchers = list(self._watchers.values())
        for watcher in watchers:
            watcher.stop()
        for watcher in watchers:
            with Isolated("could not stop looking at %s", watcher.claim.server):
                await ajoin(watcher.worker, max(deadline - monotonic(), 0.0))
                await watcher.let_go()


class AsyncWatcher:
    """Looks at one server again and again.

    Attributes:
        claim: What its connections count as in the budget.
        nodes: The nodes on it that are in use, each with its cluster.
        hurry: Set for a look at once.
        closed: Whether it is to end.
        worker: Runs it.
    """

    def __init__(self, monitor: AsyncMonitor, node: Node, cluster: Cluster) -> None:
        """Start it.

        Args:
            monitor: Whose it is.
            node: The first node on the server.
            cluster: Its cluster.
        """
        self.claim = Claim(node.server, f"looks at {node.server}", None)
        self.nodes = {node: cluster}
        self.hurry = AFlag()
        self.closed = False
        self._monitor = monitor
        self._server = node.server
        self._silence = AsyncSilence(node.server, monitor.pools)
        self._limited = ALimited()
        self._tried = ALimited()
        self._guard = AGuard()  # guards _held
        self._held: tuple[Node, AsyncConnection[TupleRow]] | None = None  # between two looks only
        self._used: list[AsyncConnection[TupleRow]] = []  # by the look under way, for cutting it
        self._asks = False  # whether the look under way has got as far as to ask the server
        self._trouble = ""  # why this process could not look, if it could not
        self.worker: AWorker = aspawn(self._watch, f"router watches {node.server}")

    async def _watch(self) -> None:
        while not self.closed:
            self.hurry.clear()  # what comes from now on is newer than this look may be
            begun, pause = monotonic(), self._monitor.policy.interval
            with Isolated("could not look at %s", self._server):
                await self._look()
            with Isolated("could not do what follows from a look at %s", self._server):
                await self._monitor.looked(self._server, begun)
            with Isolated("could not find out which connections to %s hear nothing", self._server):
                await self._find_silent()
            with Isolated("could not try the refused logins at %s again", self._server):
                await self._try_logins()
            with Isolated("could not tell when to look at %s again", self._server):
                pause = self._monitor.pause(self._server)
            if await self.hurry.wait_for(pause * (0.9 + 0.2 * random())):
                await asleep(PAUSE)
        await self.let_go()

    async def _look(self) -> None:
        held = self._take()
        node = held[0] if held is not None else self._next_node()
        if node is None:
            return
        self._used = used = [] if held is None else [held[1]]
        try:
            seen = await self._ask(node, used)
        except BudgetSpent:  # the process may open no more connections: that says nothing of the server
            seen = await self._knock(node)
        except Exception:  # of this process, and no attempt is under way
            for connection in used:
                await connection.close()
            raise
        trouble = seen.reason if isinstance(seen, NotProbed) else ""
        if trouble and trouble != self._trouble:
            logger.warning("could not look at %s: %s", self._server, trouble)
        self._trouble = trouble
        if seen is not None and not self.closed:  # else it may have been cut for that
            await self._monitor.report(seen)

    async def _ask(self, node: Node, used: list[AsyncConnection[TupleRow]]) -> Observation | None:
        """Ask what the server is; ``None`` if there is no answer, and that says nothing."""
        timeout = self._monitor.policy.timeout
        try:
            looked, connection = await self._limited.run(partial(self._attempt, node, used), timeout, _too_late)
        except TimeoutError:
            self._used = []  # the look is over, should it go on nevertheless
            for connection in used:
                cut(connection)
            if self._asks:
                return AttemptFailed(node, f"no answer within {timeout:g} s", answered=False)
            return NotProbed(node, f"this process has not come to ask it within {timeout:g} s")
        except psycopg.errors.ConnectionTimeout:
            self.hurry.set()  # which comes first only where this process did not run
            return None
        except (Unable, OSError, RuntimeError, MemoryError) as error:
            for connection in used:
                await self._hold(node, connection)
            return NotProbed(node, str(error))
        except psycopg.Error as error:
            failure = self._monitor.opener.failure(node, error)
            return None if failure.server_full else failure  # it lives; the next look may get in
        await self._hold(node, connection)
        return looked

    async def _knock(self, node: Node) -> Observation | None:
        """See whether the server reacts at all: if it is frozen, connections to it would keep the budget for ever."""
        timeout, port = self._monitor.policy.timeout, self._server.port
        try:
            addresses = await self._monitor.opener.addresses(self._server, timeout)
            reacts = await self._limited.run(partial(aping, addresses, port, 2.0 * timeout), timeout, _never_mind)
        except TimeoutError:
            reacts = False
        except (Unable, RuntimeError) as error:
            return NotProbed(node, str(error))
        return None if reacts else AttemptFailed(node, f"no answer within {timeout:g} s", answered=False)

    async def _hold(self, node: Node, connection: AsyncConnection[TupleRow]) -> None:
        with self._guard:
            self._held = node, connection
        if self.closed:  # maybe after close() has looked what is held
            await self.let_go()

    async def _attempt(
        self, node: Node, used: list[AsyncConnection[TupleRow]]
    ) -> tuple[ProbeResult, AsyncConnection[TupleRow]]:
        with untraced():
            return await self._answer(node, used)

    async def _answer(
        self, node: Node, used: list[AsyncConnection[TupleRow]]
    ) -> tuple[ProbeResult, AsyncConnection[TupleRow]]:
        opener, timeout = self._monitor.opener, self._monitor.policy.timeout
        if used:
            self._asks = True
            try:
                return await opener.look(used[0], node), used[0]
            except psycopg.Error:
                await used.pop().close()
                if self._used is not used or self.closed:
                    raise
                # That backend is gone; the server need not be.
        self._asks = False
        connection = await opener.connect_to_look(
            node, self.nodes[node], self.claim, PATIENCE * timeout, timeout=timeout, asks=self._begin_to_ask
        )
        used.append(connection)
        try:
            return await opener.look(connection, node, new=True), connection
        except BaseException:
            await connection.close()
            raise

    async def _find_silent(self) -> None:
        """Find the connections that hear nothing, and have them cut; their sessions are ended, too."""
        if self._held is None or not (pids := self._silence.due()) or (held := self._take()) is None:
            return
        node, connection = held
        try:
            await self._limited.run(partial(self._ask_for, connection, pids), self._monitor.policy.timeout, _never_mind)
        except TimeoutError:
            cut(connection)
        except psycopg.Error as error:
            logger.debug("could not ask %s for sessions: %s", self._server, type(error).__name__)
        else:
            await self._hold(node, connection)

    async def _ask_for(self, connection: AsyncConnection[TupleRow], pids: list[int]) -> None:
        opener, process = self._monitor.opener, self._monitor.health().get(self._server, UNKNOWN).process
        try:
            with untraced():
                silent = self._silence.judge(await opener.sessions(connection, pids), process)
                if silent:
                    await self._monitor.silent(silent)
                for one in silent:
                    with suppress(psycopg.errors.InsufficientPrivilege):  # another login's: its client is helped anyway
                        await opener.terminate(connection, one.pid, one.began)
        except BaseException:
            await connection.close()
            raise

    def _begin_to_ask(self) -> None:
        """Give the server all of the time that a look has, however long it took to come to it."""
        self._asks = True
        self._limited.restart()

    def _next_node(self) -> Node | None:
        """The node whose login the next connection uses: one that is not refused, or may be tried again."""
        health, now = self._monitor.health(), monotonic()
        due = [node for node in self.nodes if now >= health.get(node, UNKNOWN).banned_until]
        return min(due, key=lambda node: health.get(node, UNKNOWN).failures, default=None)

    async def _try_logins(self) -> None:
        """Try again the logins that were refused, when it is time."""
        until = monotonic() + PATIENCE * self._monitor.policy.timeout
        opener = self._monitor.opener

        def wanted() -> bool:
            return monotonic() < until and not self.hurry.is_set()

        for node, cluster in self.nodes.items():
            if self._is_due(node):
                with Isolated("could not try to log in to %s", node), suppress(psycopg.Error, BudgetSpent), untraced():
                    connection, _ = await opener.connect(node, cluster, [], autocommit=True, wanted=wanted)
                    await connection.close()
            for read_only in (True, False):
                if self._is_due(NodeUse(node, read_only)):
                    use = partial(self._use, node, cluster, wanted, read_only=read_only)
                    with suppress(Exception):  # what failed was reported; the user's configure= may not even end
                        connection = await self._tried.run(use, self._monitor.policy.timeout, AsyncConnection.close)
                        await connection.close()

    async def _use(
        self, node: Node, cluster: Cluster, wanted: Callable[[], bool], *, read_only: bool
    ) -> AsyncConnection[TupleRow]:
        """Open a connection as a request would."""
        claim = Claim(node.server, cluster.name, None)
        with untraced():
            return await self._monitor.opener.open(
                node, cluster, claim, read_only=read_only, startup=None, spare=False, wanted=wanted
            )

    def _is_due(self, login: Node | NodeUse) -> bool:
        """Whether a login was refused, and may be tried again."""
        refused = self._monitor.health().get(login)
        return refused is not None and monotonic() >= refused.banned_until

    def _take(self) -> tuple[Node, AsyncConnection[TupleRow]] | None:
        with self._guard:
            held, self._held = self._held, None
        return held

    def stop(self) -> None:
        """Have it end; a look that waits for its server is cut short."""
        self.closed = True
        self.hurry.set()
        for connection in self._used:
            cut(connection)

    def abandon(self) -> None:
        """Have it end, and keep the connection that it holds unused and open."""
        self.closed = True
        self._inherited, self._held = self._held, None

    @property
    def holds(self) -> bool:
        """Whether it holds a connection for the next look."""
        return self._held is not None

    async def let_go(self) -> None:
        """Close the connection that is held for the next look, if there is one."""
        if (held := self._take()) is not None:
            await held[1].close()

    async def make_way(self) -> bool:
        """Close the connection that is held for the next look, so that another may be opened.

        Returns:
            Whether there was one.
        """
        if (held := self._take()) is None:
            return False
        await self._monitor.opener.make_way(held[1], self.claim)
        return True


async def _too_late(outcome: tuple[ProbeResult, AsyncConnection[TupleRow]]) -> None:
    await outcome[1].close()


async def _never_mind(_: object) -> None:
    pass
