"""Collects the values that ``Router.stats()`` returns."""

from __future__ import annotations

from collections import Counter
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from router.core.health import UNKNOWN, node_state, restrictions_of, role_of
from router.core.measures import DrainingPoolStats, NodeStats, PoolStats, Stats, TenantPoolStats, VersionStats
from router.core.replication import fenced, lag_of, primary_of
from router.core.topology import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router._async.in_force import AsyncInForce
    from router._async.pool.node_pool import AsyncNodePool
    from router.core.health import State
    from router.core.topology import Cluster, Node


def stats(in_force: AsyncInForce) -> Stats:
    """Collect the stats of a router.

    Args:
        in_force: What is in force in the router.

    Returns:
        The stats.
    """
    pools = list(in_force.pools)
    draining = [pool for pool in pools if pool.draining]  # read once: a pool may begin to drain at any moment
    open_pools = [pool for pool in pools if pool not in draining]
    in_use = Counter(owner for pool in pools for owner in pool.holders())
    versions = [
        VersionStats(
            name,
            _nodes(
                in_force,
                cluster,
                {
                    (pool.node, pool.read_only): _measured(in_force, pool)
                    for pool in open_pools
                    if pool.cluster.name == name and pool.tenant is None and not pool.shared
                },
            ),
        )
        for name, cluster in in_force.topology.versions.items()
    ]
    return Stats(
        connections=in_force.slots.total,
        max_connections=in_force.topology.max_connections,
        versions=tuple(versions),
        tenant_pools=tuple(
            TenantPoolStats(pool.cluster.name, pool.tenant, pool.node, pool.read_only, _measured(in_force, pool))
            for pool in open_pools
            if pool.tenant is not None or pool.shared
        ),
        tenants=MappingProxyType(dict(in_use.most_common())),
        directory=None if in_force.directory is None else in_force.directory.stats(),
        totals=in_force.pools.totals(),
        draining=tuple(
            DrainingPoolStats(pool.cluster.name, pool.tenant, pool.node, pool.read_only, _measured(in_force, pool))
            for pool in draining
            if pool.borrowed
        ),
    )


def _measured(in_force: AsyncInForce, pool: AsyncNodePool) -> PoolStats:
    """Count what a pool has, at one moment."""
    counted = pool.counts.measured()
    limit = in_force.slots.server_limits.refusing(pool.budget_key.login)
    return PoolStats(
        size=pool.size,
        max_size=pool.max_size,
        idle=len(pool.kept),
        in_use=len(pool.borrowed),
        waiting=pool.waiting.number(),
        requests=counted["requests"],
        queued=counted["queued"],
        wait_seconds=counted["wait_ms"] / 1000.0,
        opened=counted["opened"],
        failed=counted["failed"],
        server_limit=None if limit is None else limit.most,
    )


def _nodes(
    in_force: AsyncInForce, cluster: Cluster, pools: Mapping[tuple[Node, bool], PoolStats]
) -> tuple[NodeStats, ...]:
    health, now = in_force.clusters.health, monotonic()
    out = fenced(health, cluster)
    primary = primary_of(health, cluster, out)
    nodes = []
    for node in cluster.nodes:
        state, role = node_state(health, node), role_of(health, node)
        lag = lag_of(health, node, primary, now=now) if state.up and role is Role.REPLICA else None
        nodes.append(
            NodeStats(
                node=node,
                role=role,
                state=_word(state, health.get(node.server, UNKNOWN)),
                reason=state.reason or out.get(node) or restrictions_of(health, node),
                server_version=state.server_version,
                timeline=state.timeline,
                lag=None if lag is None else lag.seconds,
                lag_bytes=None if lag is None else lag.bytes,
                latency=state.latency,
                failures=state.failures,
                read=pools.get((node, True)),
                write=pools.get((node, False)),
            )
        )
    return tuple(nodes)


def _word(node: State, server: State) -> Literal["up", "down", "login refused", "unknown"]:
    """Tell the state of a node; the server may be up although it refuses the node's login."""
    if node.up is None:
        return "unknown"
    if node.up:
        return "up"
    return "down" if server.up is False else "login refused"
