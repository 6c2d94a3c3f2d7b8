# Generated from router/_async/server_in_use.py by tools/async_to_sync.py: do not edit.
"""A server that clusters in use have nodes on: the object that its watcher works for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router._runtime.flags import Flag

if TYPE_CHECKING:
    from router._sync.cluster import SyncCluster
    from router._sync.pool.node_pool import NodePool
    from router.core.topology import Cluster, Node, Server


class ServerInUse:
    """A server that clusters in use have nodes on.

    Attributes:
        server: The server.
        clusters: The clusters in use that have nodes on it; the tuple is replaced, not changed.
        probe_now: A flag that is set to have the server probed at once.
        quarantined: Whether pools may be in quarantine until a probe has ended.
    """

    __slots__ = ("clusters", "probe_now", "quarantined", "server")

    def __init__(self, server: Server) -> None:
        self.server = server
        self.clusters: tuple[SyncCluster, ...] = ()
        self.probe_now = Flag()
        self.quarantined = False

    @property
    def nodes(self) -> dict[Node, Cluster]:
        """The nodes on it, each with its cluster."""
        return {
            node: cluster.value
            for cluster in self.clusters
            for node in cluster.value.nodes
            if node.server == self.server
        }

    @property
    def pools(self) -> list[NodePool]:
        """The pools to it, open and draining."""
        return [pool for cluster in self.clusters for pool in cluster.pools if pool.node.server == self.server]
