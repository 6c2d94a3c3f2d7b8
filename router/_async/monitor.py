"""The watchers, one for each server in use, so that none waits for another."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from router._async.watcher import AsyncWatcher
from router._runtime.calls import Isolated
from router._runtime.flags import AGuard
from router._runtime.workers import ajoin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router._async.cluster import AsyncCluster
    from router._async.clusters import AsyncClusters
    from router._async.pool.opener import AsyncOpener
    from router.core.topology import Server


class AsyncMonitor:
    """The watchers: each has a task or thread of its own, so that a server that does not answer delays no other.

    Attributes:
        watchers: The watchers, by server; the watcher of a server that is no longer in use ends by itself. The dict is
            replaced, not changed.
    """

    def __init__(self, clusters: AsyncClusters, opener: AsyncOpener) -> None:
        """Make the monitor; nothing runs yet.

        Args:
            clusters: The clusters in use.
            opener: Opens the connections.
        """
        self.watchers: dict[Server, AsyncWatcher] = {}
        self._clusters = clusters
        self._opener = opener
        self._guard = AGuard()  # guards the replacing of watchers
        self._closed = False

    def watch(self, cluster: AsyncCluster) -> None:
        """Make sure that the servers of a cluster are watched.

        Args:
            cluster: The cluster, which is in use.
        """
        for server in cluster.servers:
            there = self._clusters.servers.get(server)
            watcher = self.watchers.get(server)
            if there is not None and (watcher is None or watcher.there is not there):
                self._keep_up()
                return

    def _keep_up(self) -> None:
        """Start a watcher for each server in use, and stop all others."""
        with self._guard:
            there = self._clusters.servers
            watchers = {server: watcher for server, watcher in self.watchers.items() if watcher.is_needed}
            for server, watcher in self.watchers.items():
                if server not in watchers:
                    watcher.stop()
            self.watchers = watchers
            if not self._closed:
                for server in there.keys() - watchers.keys():
                    self.watchers = {**self.watchers, server: AsyncWatcher(there[server], self._clusters, self._opener)}

    def __iter__(self) -> Iterator[AsyncWatcher]:
        """Iterate over the watchers."""
        return iter(self.watchers.values())

    def abandon(self) -> None:
        """Stop the watchers in the child of a fork, which copies greenlets; the connections are the parent's."""
        for watcher in self.watchers.values():
            watcher.abandon()

    async def close(self, timeout: float) -> None:
        """Stop every watcher.

        Args:
            timeout: The most seconds to wait for probes in flight.
        """
        deadline = monotonic() + timeout
        with self._guard:
            self._closed = True
            watchers = list(self.watchers.values())
        for watcher in watchers:
            watcher.stop()
        for watcher in watchers:
            with Isolated("could not stop the watcher of %s", watcher.budget_key.server):
                await ajoin(watcher.worker, max(deadline - monotonic(), 0.0))
                await watcher.close_held()
