# Generated from router/_async/monitor.py by tools/async_to_sync.py: do not edit.
"""The watchers, one for each server in use, so that none waits for another."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from router._runtime.calls import Isolated
from router._runtime.flags import Guard
from router._runtime.workers import join
from router._sync.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router._sync.cluster import SyncCluster
    from router._sync.clusters import Clusters
    from router._sync.pool.opener import Opener
    from router.core.topology import Server


class Monitor:
    """The watchers: each has a task or thread of its own, so that a server that does not answer delays no other.

    Attributes:
        watchers: The watchers, by server; the watcher of a server that is no longer in use ends by itself. The dict is
            replaced, not changed.
    """

    def __init__(self, clusters: Clusters, opener: Opener) -> None:
        """Make the monitor; nothing runs yet.

        Args:
            clusters: The clusters in use.
            opener: Opens the connections.
        """
        self.watchers: dict[Server, Watcher] = {}
        self._clusters = clusters
        self._opener = opener
        self._guard = Guard()  # guards the replacing of watchers
        self._closed = False

    def watch(self, cluster: SyncCluster) -> None:
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
                    self.watchers = {**self.watchers, server: Watcher(there[server], self._clusters, self._opener)}

    def __iter__(self) -> Iterator[Watcher]:
        """Iterate over the watchers."""
        return iter(self.watchers.values())

    def abandon(self) -> None:
        """Stop the watchers in the child of a fork, which copies greenlets; the connections are the parent's."""
        for watcher in self.watchers.values():
            watcher.abandon()

    def close(self, timeout: float) -> None:
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
                join(watcher.worker, max(deadline - monotonic(), 0.0))
                watcher.close_held()
