"""One cluster: the standings of its servers, and the pools and pool sets that follow them."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakSet

from router.core.events import ConnectionsCut
from router.core.health import UNKNOWN
from router.core.standing import Tier
from router.core.topology import Role
from router.core.view import NOTHING_KNOWN

if TYPE_CHECKING:
    from router._async.clusters import AsyncClusters
    from router._async.pool.node_pool import AsyncNodePool
    from router._async.pool_set import AsyncPoolSet
    from router.core.topology import Cluster, Node, Server
    from router.core.view import View

WAITING = 1.0
"""For so many seconds after a request waited for a server of a cluster, its servers are probed more often."""

FAST_INTERVAL = 0.1
"""Seconds between two probes of a server while a cluster on it has no primary, or a request waits for one of them."""

FAST_PROBE_WINDOW = 60.0
"""For so many seconds after a primary was lost, its cluster's servers are probed more often, even without requests."""


class AsyncCluster:
    """A cluster; there is one object for each value, as long as anything refers to it.

    Attributes:
        value: The nodes that are watched, and their policies.
        clusters: The clusters in use.
        servers: The servers of its nodes.
        kept: Whether it stays in use once a request has used it: the cluster of a version does.
        stays_in_use: Whether it is kept and its servers are watched, so that a request need not make sure of that.
        requests: How many requests look or wait for one of its servers now.
        pools: The pools to its nodes, open and draining. Only :class:`AsyncClusters` changes ``kept``, ``requests`` and
            ``pools``, under its guard; whether the cluster is in use follows from them.
        view: The standings of its servers; replaced as a whole, under the same guard.
        pool_sets: The pool sets that choose among its nodes, each with its line of requests.
        waiting_at: When a request last waited for one of its servers, on the monotonic clock.
    """

    __slots__ = (
        "__weakref__", "clusters", "kept", "pool_sets", "pools", "requests", "servers", "stays_in_use", "value", "view",
        "waiting_at",
    )  # fmt: skip

    def __init__(self, value: Cluster, clusters: AsyncClusters) -> None:
        """Make a cluster that is not in use and has no standings.

        Args:
            value: The nodes that are watched, and their policies.
            clusters: The clusters in use.
        """
        self.value = value
        self.clusters = clusters
        self.servers: tuple[Server, ...] = tuple(dict.fromkeys(node.server for node in value.nodes))
        self.kept = False
        self.stays_in_use = False
        self.requests = 0
        self.pools: tuple[AsyncNodePool, ...] = ()
        self.view: View = NOTHING_KNOWN
        self.pool_sets: WeakSet[AsyncPoolSet] = WeakSet()
        self.waiting_at = -WAITING

    @property
    def nodes(self) -> list[Node]:
        """The nodes that connections are opened to: its own, to watch them, and those of its pools."""
        return [*self.value.nodes, *(pool.node for pool in self.pools)]

    def suspect(self, server: Server, *, dying: bool = False) -> None:
        """Have a server probed now, because of an error on a connection of its pools.

        Args:
            server: The server.
            dying: As for :meth:`AsyncClusters.suspect`.
        """
        self.clusters.suspect(server, dying=dying)

    def note_waiting(self) -> None:
        """Note that a request waits for one of its servers, which are then probed more often for a while."""
        now = monotonic()
        first, self.waiting_at = now - self.waiting_at > WAITING, now
        if first:  # the watchers may be in a pause of full length
            for server in self.servers:
                self.clusters.probe_now(server)

    def is_urgent(self, now: float) -> bool:
        """Tell whether its servers are to be probed more often now.

        Args:
            now: The time, on the monotonic clock.

        Returns:
            Whether a request waits, or its primary was lost recently.
        """
        lost_at = None if self.view.leader is None else self.view.leader.lost_at
        return now < self.waiting_at + WAITING or (lost_at is not None and now < lost_at + FAST_PROBE_WINDOW)

    def invalidate(self) -> None:
        """Make its pool sets choose again before they serve the next request. Called under the guard."""
        for pool_set in list(self.pool_sets):
            pool_set.invalidate()

    def choose_again(self) -> None:
        """Make waiting requests with needs of their own choose again after an observation. Called under the guard."""
        for pool_set in list(self.pool_sets):
            pool_set.line.choose_again()

    def judge(self, pool: AsyncNodePool) -> None:
        """Set whether a pool's connections may be used now, and whether its reads count as reads on the primary.

        Args:
            pool: The pool.
        """
        # This also fences a frozen primary once another has taken over: it may still carry out a COMMIT that it was
        # sent, and that must not count as a success.
        server = pool.node.server
        standing = self.view.writing.get(server)
        pool.fenced_reason = "" if pool.read_only or standing is None or standing.tier is not None else standing.note
        role = self.clusters.health.get(server, UNKNOWN).role
        pool.counts.follow(on_primary=pool.read_only and role is Role.PRIMARY and len(self.value.nodes) > 1)

    async def follow(self, pool: AsyncNodePool, now: float) -> ConnectionsCut | None:
        """Cut a pool's connections if its server is fenced, or has been silent for too long.

        Args:
            pool: One of its pools.
            now: The time, on the monotonic clock.

        Returns:
            The event of connections that were cut; ``None`` if there were none.
        """
        server, reason = pool.node.server, pool.fenced_reason
        standing = (self.view.reading if pool.read_only else self.view.writing).get(server)
        if standing is None:  # it was not probed since it is in use
            return None
        if not reason:
            if standing.tier is not Tier.DOWN:
                return None
            state = self.clusters.health[server]
            # Count from when it was found down: before that, it may not have been asked, for example without a slot.
            silent = now - max(state.answered_at, state.since)
            if silent >= self.clusters.policy.cut_after:
                reason = f"the server has not answered for {silent:.0f} s"
        count = await pool.closer.drop(reason)
        return ConnectionsCut(pool.node, count, reason) if count else None
