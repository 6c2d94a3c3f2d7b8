"""One cluster in use: what its servers are worth to requests, who is concerned when that changes, and what follows."""

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
    from router._async.lanes import AsyncPoolSet
    from router._async.pool.node_pool import AsyncNodePool
    from router.core.topology import Cluster, Node, Server
    from router.core.view import View

WAITING = 1.0
"""For so many seconds after a request waited for a server of a cluster its servers are probed more often."""

FAST_INTERVAL = 0.1
"""Seconds between two probes of a server while a cluster on it has no primary, or a request waits for one of them."""

FAST_PROBE_WINDOW = 60.0
"""For so many seconds after a primary was lost its cluster's servers are probed more often, even if nobody waits."""


class AsyncCluster:
    """A cluster, as long as anything refers to it: there is one object for each value, whatever it is called.

    Attributes:
        value: The nodes, as they are watched, and their policies.
        clusters: All that are in use.
        servers: Those that its nodes are on.
        kept: Whether it stays in use once it was asked for: it is a version's.
        stays_in_use: Whether it is kept, and its servers are watched: a request need not see to that.
        requests: How many requests look or wait for one of its servers now.
        pools: The pools to its nodes, open and draining. This and the two before are changed by :class:`AsyncClusters`
            only, under its guard; whether the cluster is in use follows from them.
        view: What its servers are worth to requests; replaced under the same guard, and whole.
        pool_sets: What was worked out from that, and hears when it changes; and the requests that wait, which are told
            whatever is learnt of its servers.
        waiting_at: When a request last waited for one of its servers, on the monotonic clock.
    """

    __slots__ = (
        "__weakref__", "clusters", "kept", "pool_sets", "pools", "requests", "servers", "stays_in_use", "value", "view",
        "waiting_at",
    )  # fmt: skip

    def __init__(self, value: Cluster, clusters: AsyncClusters) -> None:
        """Begin with nothing known, and not in use.

        Args:
            value: The nodes, as they are watched, and their policies.
            clusters: All that are in use.
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
        """What connections are opened to: its nodes, for watching them, and those of its pools."""
        return [*self.value.nodes, *(pool.node for pool in self.pools)]

    def suspect(self, server: Server, *, dying: bool = False) -> None:
        """Have a server probed now: what its pools see.

        Args:
            server: The server.
            dying: As for :meth:`AsyncClusters.suspect`.
        """
        self.clusters.suspect(server, dying=dying)

    def note_waiting(self) -> None:
        """Take note that a request waits for one of its servers: they are probed more often for a while."""
        now = monotonic()
        first, self.waiting_at = now - self.waiting_at > WAITING, now
        if first:  # from a pause of full length
            for server in self.servers:
                self.clusters.probe_now(server)

    def is_urgent(self, now: float) -> bool:
        """Tell whether its servers are to be probed more often now.

        Args:
            now: The time, on the monotonic clock.

        Returns:
            Whether a request waits, or its primary was lost lately.
        """
        lost_at = None if self.view.leader is None else self.view.leader.lost_at
        return now < self.waiting_at + WAITING or (lost_at is not None and now < lost_at + FAST_PROBE_WINDOW)

    def invalidate(self) -> None:
        """Have everything worked out anew that was worked out from what its servers were worth. Under the guard."""
        for pool_set in list(self.pool_sets):
            pool_set.invalidate()

    def choose_again(self) -> None:
        """Have requests with needs of their own choose again: something was learnt of its servers. Under the guard."""
        for pool_set in list(self.pool_sets):
            pool_set.line.choose_again()

    def judge(self, pool: AsyncNodePool) -> None:
        """Tell a pool whether its connections may be used now, and who serves its reads.

        Args:
            pool: The pool.
        """
        # Of a frozen primary, too, once another has taken over: it may yet carry out a COMMIT that it was sent, and
        # nobody must take that for a success.
        server = pool.node.server
        standing = self.view.writing.get(server)
        pool.fenced_reason = "" if pool.read_only or standing is None or standing.tier is not None else standing.note
        role = self.clusters.health.get(server, UNKNOWN).role
        pool.counts.follow(on_primary=pool.read_only and role is Role.PRIMARY and len(self.value.nodes) > 1)

    async def follow(self, pool: AsyncNodePool, now: float) -> ConnectionsCut | None:
        """Have a pool do what follows from what its server is worth by now.

        Args:
            pool: One of its pools.
            now: The time, on the monotonic clock.

        Returns:
            What was cut; ``None`` for nothing.
        """
        server, reason = pool.node.server, pool.fenced_reason
        standing = (self.view.reading if pool.read_only else self.view.writing).get(server)
        if standing is None:  # nobody has probed it since it is in use
            return None
        if not reason:
            if standing.tier is not Tier.DOWN:
                return None
            state = self.clusters.health[server]
            # Not from before it was found down: nobody may have asked it for long, for want of a slot, say.
            silent = now - max(state.answered_at, state.since)
            if silent >= self.clusters.policy.cut_after:
                reason = f"the server has not answered for {silent:.0f} s"
        count = await pool.drop(reason)
        return ConnectionsCut(pool.node, count, reason) if count else None
