"""Probes one server again and again, over a connection of its own."""

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

from router._async.pool.connection import end_session
from router._async.pool.login import ServerFull, Unable, failure
from router._async.silence import AsyncSilence
from router._async.slot import AsyncSlotRequest, BudgetSpent
from router._runtime.calls import Isolated
from router._runtime.flags import AGuard, asleep
from router._runtime.limited import ALimited
from router._runtime.sockets import aping, cut
from router._runtime.workers import aspawn, untraced
from router.core.budget import BudgetKey, Idle, budget_key
from router.core.health import UNKNOWN, NodeUse
from router.core.observations import AttemptFailed, NotProbed, was_cancelled

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from router._async.clusters import AsyncClusters
    from router._async.pool.opener import AsyncOpener
    from router._async.server_in_use import AsyncServerInUse
    from router._async.slot import AsyncSlot
    from router._runtime.workers import AWorker
    from router.core.observations import Observation, ProbeResult
    from router.core.topology import Cluster, Node

logger = logging.getLogger("router")

PAUSE = 0.01
"""The least seconds between two probes of a server, however many reports come in."""

PATIENCE = 0.5
"""The part of a probe's timeout that it may wait for a slot; getting none tells nothing about the server."""


class AsyncWatcher:
    """Probes one server again and again, as long as clusters in use have nodes on it.

    Attributes:
        there: The server.
        budget_key: The key by which its connection counts in the budget.
        closed: Whether it is to end.
        worker: The task or thread that runs it.
    """

    def __init__(self, there: AsyncServerInUse, clusters: AsyncClusters, opener: AsyncOpener) -> None:
        """Start watching.

        Args:
            there: The server.
            clusters: The clusters in use, which receive the result of each probe.
            opener: Opens the connections.
        """
        self.there = there
        self.budget_key = BudgetKey(there.server, f"probes of {there.server}", None)
        self.closed = False
        self._clusters = clusters
        self._opener = opener
        self._server = there.server
        self._silence = AsyncSilence(there)
        self._limited = ALimited()
        self._tried = ALimited()
        self._guard = AGuard()  # guards _held
        self._held: tuple[Node, AsyncConnection[TupleRow]] | None = None  # set between two probes only
        self._used: list[AsyncConnection[TupleRow]] = []  # the connections of the probe in flight, to cut them
        self._asks = False  # whether the probe in flight has sent its question to the server
        self._trouble = ""  # why this process could not probe; empty if it could
        self.worker: AWorker = aspawn(self._watch, f"router watches {there.server}")

    @property
    def is_needed(self) -> bool:
        """Whether the server is still in use, so that the watcher goes on."""
        return not self.closed and self._clusters.servers.get(self._server) is self.there

    async def _watch(self) -> None:
        while self.is_needed:
            self.there.probe_now.clear()  # a report from now on may be newer than this probe, and causes another one
            begun, pause = monotonic(), self._clusters.policy.interval
            with Isolated("could not probe %s", self._server):
                await self._probe()
            with Isolated("could not act on the probe's result of %s", self._server):
                await self._clusters.end_quarantine(self.there, begun)
            with Isolated("could not find silent connections to %s", self._server):
                await self._find_silent()
            with Isolated("could not try the refused logins on %s again", self._server):
                await self._try_logins()
            with Isolated("could not schedule the next probe of %s", self._server):
                pause = self._clusters.pause(self.there)
            if self.is_needed and await self.there.probe_now.wait_for(pause * (0.9 + 0.2 * random())):
                await asleep(PAUSE)
        await self.close_held()

    async def _probe(self) -> None:
        held = self._held
        if held is not None and held[0] not in self.there.nodes:  # the node's login is no longer used
            await self.close_held()
            held = None
        node = held[0] if held is not None else self._next_node()
        if node is None:
            return
        used: list[AsyncConnection[TupleRow]] = []
        self._used = used
        try:
            seen = await self._ask(node, used)
        except BudgetSpent:  # the process may open no more connections, which tells nothing about the server
            seen = await self._ping(node)
        except ServerFull:  # the server is alive; the next probe may get a connection
            seen = None
        except Exception:  # a failure of this process; no attempt is in flight
            for connection in used:
                await connection.close()
            raise
        finally:
            self._used = []  # stop() must not cut a socket whose number another connection may have by now
        trouble = seen.reason if isinstance(seen, NotProbed) else ""
        if trouble and trouble != self._trouble:
            logger.warning("could not probe %s: %s", self._server, trouble)
        self._trouble = trouble
        if seen is not None and not self.closed:  # a watcher that is closed may have cut its own probe
            await self._clusters.report(seen)

    async def _ask(self, node: Node, used: list[AsyncConnection[TupleRow]]) -> Observation | None:
        """Probe the server; ``None`` if the outcome tells nothing."""
        timeout = self._clusters.policy.timeout
        try:
            result, connection = await self._limited.run(partial(self._attempt, node, used), timeout, _too_late)
        except TimeoutError:
            self._used = []  # the probe has ended, although its attempt may continue
            for connection in used:
                cut(connection)
            if self._asks:
                return AttemptFailed(node, f"no answer within {timeout:g} s", answered=False)
            return NotProbed(node, f"this process did not get to ask it within {timeout:g} s")
        except (Unable, OSError, RuntimeError, MemoryError) as error:
            for connection in used:
                await self._hold(node, connection)
            return NotProbed(node, str(error))
        except psycopg.Error as error:
            if isinstance(error, ServerFull):
                raise
            # libpq's timeout comes before the probe's only if this process did not run.
            if isinstance(error, psycopg.errors.ConnectionTimeout) or was_cancelled(error.sqlstate):
                self.there.probe_now.set()
                return None
            return failure(node, error)
        await self._hold(node, connection)
        return result

    async def _ping(self, node: Node) -> Observation | None:
        """Find out whether the server reacts at all: connections to a frozen one would use up the budget."""
        timeout, port = self._clusters.policy.timeout, self._server.port
        try:
            addresses = await self._opener.login.addresses(self._server, timeout)
            reacts = await self._limited.run(partial(aping, addresses, port, 2.0 * timeout), timeout, _never_mind)
        except TimeoutError:
            reacts = False
        except (Unable, RuntimeError) as error:
            return NotProbed(node, str(error))
        return None if reacts else AttemptFailed(node, f"no answer within {timeout:g} s", answered=False)

    async def _hold(self, node: Node, connection: AsyncConnection[TupleRow]) -> None:
        with self._guard:
            self._held = node, connection
        if self.closed:  # close() may have looked at _held before
            await self.close_held()

    async def _attempt(
        self, node: Node, used: list[AsyncConnection[TupleRow]]
    ) -> tuple[ProbeResult, AsyncConnection[TupleRow]]:
        with untraced():
            return await self._answer(node, used)

    async def _answer(
        self, node: Node, used: list[AsyncConnection[TupleRow]]
    ) -> tuple[ProbeResult, AsyncConnection[TupleRow]]:
        opener, timeout = self._opener, self._clusters.policy.timeout
        if (held := self._take()) is not None:  # not before: a task may be cancelled before it has begun
            used.append(held[1])
            self._asks = True
            try:
                return await opener.queries.probe(used[0], node), used[0]
            except psycopg.Error:
                await used.pop().close()
                if self._used is not used or self.closed:
                    raise
                # Only that backend may have ended: try a new connection before reporting anything.
            except BaseException:  # a task is cancelled when its loop ends
                await used.pop().close()
                raise
        self._asks = False
        self.budget_key = budget_key(node, self.budget_key.owner)  # for the login that is used now
        with await opener.slots.take(AsyncSlotRequest(self.budget_key), PATIENCE * timeout) as slot:
            connection = await opener.connect_to_probe(
                node, self.there.nodes[node], slot, timeout=timeout, asks=self._begin_to_ask
            )
        used.append(connection)
        try:
            return await opener.queries.probe(connection, node, new=True), connection
        except BaseException:
            await connection.close()
            raise

    async def _find_silent(self) -> None:
        """Find silent connections, cut them, and end their sessions."""
        if (held := self._held) is None or not (pids := self._silence.due()):
            return
        used: list[AsyncConnection[TupleRow]] = []
        self._used = used
        try:
            connection = await self._limited.run(
                partial(self._ask_for, pids, used), self._clusters.policy.timeout, _close
            )
        except TimeoutError:
            for connection in used:
                cut(connection)
        except psycopg.Error as error:
            logger.debug("could not read the sessions of %s: %s", self._server, type(error).__name__)
        else:
            if connection is not None:
                await self._hold(held[0], connection)

    async def _ask_for(
        self, pids: list[int], used: list[AsyncConnection[TupleRow]]
    ) -> AsyncConnection[TupleRow] | None:
        opener, process = self._opener, self._clusters.health.get(self._server, UNKNOWN).process
        if (held := self._take()) is None:
            return None
        connection = held[1]
        used.append(connection)
        try:
            with untraced():
                silent = self._silence.judge(await opener.queries.sessions(connection, pids), process)
                if silent:
                    await self._clusters.cut_silent(silent)
                for one in silent:
                    with suppress(
                        psycopg.errors.InsufficientPrivilege
                    ):  # a session of another login; its client has its error anyway
                        await opener.queries.terminate(connection, one.pid, one.began)
        except BaseException:
            await connection.close()
            raise
        return connection

    def _begin_to_ask(self) -> None:
        """Start the probe's timeout again, so that the server has all of it from its first question on."""
        self._asks = True
        self._limited.restart()

    def _next_node(self) -> Node | None:
        """Choose the node whose login the next connection uses: one that is not refused, or may be tried again."""
        health, now = self._clusters.health, monotonic()
        due = [node for node in self.there.nodes if now >= health.get(node, UNKNOWN).banned_until]
        return min(due, key=lambda node: health.get(node, UNKNOWN).failures, default=None)

    async def _try_logins(self) -> None:
        """Try refused logins again whose pause has passed."""
        for node, cluster in self.there.nodes.items():
            if self._is_due(node):
                with Isolated("could not try to log in to %s", node), suppress(psycopg.Error, BudgetSpent), untraced():
                    with await self._take_slot(node, cluster) as slot:
                        connection, _ = await self._opener.connect(node, cluster, slot)
                    await connection.close()
            for read_only in (True, False):
                if self._is_due(NodeUse(node, read_only)):
                    use = partial(self._use, node, cluster, read_only=read_only)
                    with suppress(Exception):  # a failure was reported; the user's configure= may not return
                        connection = await self._tried.run(use, self._clusters.policy.timeout, AsyncConnection.close)
                        await connection.close()

    async def _use(self, node: Node, cluster: Cluster, *, read_only: bool) -> AsyncConnection[TupleRow]:
        """Open a connection as a request would."""
        with await self._take_slot(node, cluster) as slot, untraced():
            return await self._opener.open(node, cluster, slot, read_only=read_only, startup=None, optional=False)

    async def _take_slot(self, node: Node, cluster: Cluster) -> AsyncSlot:
        """Take a slot to try a login; do not wait for one if a probe is due at once."""
        patience = 0.0 if self.there.probe_now.is_set() else PATIENCE * self._clusters.policy.timeout
        return await self._opener.slots.take(AsyncSlotRequest(budget_key(node, cluster.name)), patience)

    def _is_due(self, login: Node | NodeUse) -> bool:
        """Whether a login was refused, and its pause has passed."""
        refused = self._clusters.health.get(login)
        return refused is not None and monotonic() >= refused.banned_until

    def _take(self) -> tuple[Node, AsyncConnection[TupleRow]] | None:
        with self._guard:
            held, self._held = self._held, None
        return held

    def stop(self) -> None:
        """Stop watching, and cut the probe in flight."""
        self.closed = True
        for connection in self._used:
            cut(connection)
        self.there.probe_now.set()  # last: the watcher that wakes up closes its connection

    def abandon(self) -> None:
        """Stop watching in the child of a fork; the parent's connection stays open, and is not used."""
        self.closed = True
        self._inherited, self._held = self._held, None

    @property
    def longest_idle(self) -> Idle | None:
        """The connection held for the next probe, for the budget, which closes it before any other idle one."""
        return None if self._held is None else Idle(self.budget_key, -inf, warm=False)

    async def close_held(self) -> None:
        """Close the connection that is held for the next probe, if there is one."""
        if (held := self._take()) is not None:
            await held[1].close()

    async def evict_idle(self, beneficiary: AsyncSlotRequest) -> None:
        """Close the connection that is held for the next probe, if there is one, so that another may be opened.

        Args:
            beneficiary: The request that the slot is for.
        """
        if (held := self._take()) is not None:
            await end_session(held[1], beneficiary)


async def _too_late(outcome: tuple[ProbeResult, AsyncConnection[TupleRow]]) -> None:
    await outcome[1].close()


async def _close(connection: AsyncConnection[TupleRow] | None) -> None:
    if connection is not None:
        await connection.close()


async def _never_mind(_: object) -> None:
    pass
