"""Looks for nodes that are not known to be up, so that no request has to find out that one is back."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from router._runtime import AEvent, AGuard, ajoin, aspawn
from router.health import state_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from router._runtime import AFunction, AWorker
    from router.health import Health
    from router.topology import Cluster, Node

logger = logging.getLogger("router")


PAUSE = 0.05
"""Seconds between two attempts at a node at least, however many requests ask for one."""


class AsyncMonitor:
    """One watcher for each node that is down or that nobody has tried yet; it ends as soon as the node is up.

    Each has a task or thread of its own, so that a server that does not answer delays no other.
    """

    def __init__(self, health: Callable[[], Health], probe: AFunction[[Node, Cluster], None]) -> None:
        """Make the monitor; nothing runs yet.

        Args:
            health: Gives what is known now.
            probe: Tries a node once, and reports what it sees.
        """
        self._health = health
        self._probe = probe
        self._closed = AEvent()
        self._guard = AGuard()  # guards _watchers
        self._watchers: dict[Node, tuple[AWorker, AEvent]] = {}

    def watch(self, node: Node, cluster: Cluster, *, now: bool = False) -> None:
        """Watch a node until it is up.

        Args:
            node: The node.
            cluster: The cluster it serves.
            now: Whether to try it at once, although it failed lately.
        """
        with self._guard:
            if node not in self._watchers and not self._closed.is_set():
                hurry = AEvent()
                worker = aspawn(self._watch, f"router watches {node}", node, cluster, hurry)
                self._watchers[node] = worker, hurry
            elif now and node in self._watchers:
                self._watchers[node][1].set()

    async def close(self, timeout: float) -> None:
        """Stop every watcher.

        Args:
            timeout: The most to wait for attempts that are under way, in seconds.
        """
        deadline = monotonic() + timeout
        self._closed.set()
        with self._guard:
            watchers = list(self._watchers.values())
        for _, hurry in watchers:
            hurry.set()
        for worker, _ in watchers:
            await ajoin(worker, max(deadline - monotonic(), 0.0))

    async def _watch(self, node: Node, cluster: Cluster, hurry: AEvent) -> None:
        while not self._closed.is_set():
            with self._guard:
                state = state_of(self._health(), node)
                if state.up:
                    # In one step with reading the state: a failure seen from now on starts a watcher anew.
                    del self._watchers[node]
                    return
            pause = state.retry_at - monotonic() if state.up is False else 0.0
            if pause > 0.0:
                await hurry.wait_for(pause)
            hurry.clear()
            try:
                await self._probe(node, cluster)
            except Exception:
                logger.exception("could not look for %s", node)
            await self._closed.wait_for(PAUSE)
