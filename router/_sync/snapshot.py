# Generated from router/_async/snapshot.py by tools/async_to_sync.py: do not edit.
"""One moment's view of a router."""

from __future__ import annotations

from collections import Counter
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from router.core.health import node_state, restrictions_of, role_of
from router.core.measures import DrainingPoolStats, NodeStats, Stats, TenantPoolStats, VersionStats
from router.core.replication import fenced, lag_of, primary_of
from router.core.topology import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router._sync.in_force import InForce
    from router.core.health import Health
    from router.core.measures import PoolStats
    from router.core.topology import Cluster, Node, Server


class PoolView(NamedTuple):
    """One pool, for tests.

    Attributes:
        node: What it connects to.
        read_only: Whether it is for reading.
        tenant: Whose it is; ``None`` for a version's, and for one that tenants share.
        draining: Whether it lends nothing any more.
        quarantined: Whether its idle connections are not lent now.
        fenced_reason: Why its connections may not be used now; empty if they may.
        idle: How many connections are ready.
        borrowed: How many are borrowed.
        sessions: How many are open.
    """

    node: Node
    read_only: bool
    tenant: str | None
    draining: bool
    quarantined: bool
    fenced_reason: str
    idle: int
    borrowed: int
    sessions: int


class Snapshot(NamedTuple):
    """What a router has inside at one moment, for tests: so that these need not know where it is kept.

    Attributes:
        pools: The pools, open and draining.
        clusters: The clusters in use, by value.
        servers: The servers in use.
        watched: Those of them that a watcher probes.
        health: What is known of servers and of refused logins.
        lanes: How many lanes there are, for reading and for writing.
        waiting: How many requests wait in the lines of pool sets.
        slots: How many connections each owner has, or has under way.
        slots_waiting: How many requests for a slot wait.
        admitted: How many requests are admitted by the limits of tenants.
    """

    pools: tuple[PoolView, ...]
    clusters: tuple[Cluster, ...]
    servers: frozenset[Server]
    watched: frozenset[Server]
    health: Health
    lanes: tuple[int, int]
    waiting: int
    slots: Mapping[str, int]
    slots_waiting: int
    admitted: int


def snapshot(in_force: InForce) -> Snapshot:
    """Say what a router has inside, for tests.

    Args:
        in_force: Everything of it that changes.

    Returns:
        A frozen view.
    """
    slots = Counter[str]()
    for key, number in in_force.slots.held.items():
        slots[key.owner] += number
    return Snapshot(
        pools=tuple(
            PoolView(
                pool.node,
                pool.read_only,
                pool.tenant,
                pool.draining,
                pool.quarantined,
                pool.fenced_reason,
                len(pool.idle),
                len(pool.borrowed),
                len(pool.session_states()),
            )
            for pool in in_force.pools
        ),
        clusters=tuple(cluster.value for cluster in in_force.clusters),
        servers=frozenset(in_force.clusters.servers),
        watched=frozenset(server for server, watcher in in_force.monitor.watchers.items() if watcher.is_needed),
        health=MappingProxyType(dict(in_force.clusters.health)),
        lanes=(len(in_force.lanes.readers), len(in_force.lanes.writers)),
        waiting=sum(pool_set.line.waiting for pool_set in in_force.lanes.pool_sets),
        slots=MappingProxyType(dict(slots)),
        slots_waiting=len(in_force.slots.waiting),
        admitted=sum(admission.admitted for admission in in_force.lanes.admissions),
    )


def stats(in_force: InForce) -> Stats:
    """Count what a router has.

    Args:
        in_force: Everything of it that changes.

    Returns:
        What ``Router.stats()`` returns.
    """
    pools = list(in_force.pools)
    draining = [pool for pool in pools if pool.draining]  # looked at once: a pool may begin to drain at any moment
    open_pools = [pool for pool in pools if pool not in draining]
    in_use = Counter(owner for pool in pools for owner in pool.holders())
    versions = [
        VersionStats(
            name,
            _nodes(
                in_force,
                cluster,
                {
                    (pool.node, pool.read_only): pool.stats()
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
            TenantPoolStats(pool.cluster.name, pool.tenant, pool.node, pool.read_only, pool.stats())
            for pool in open_pools
            if pool.tenant is not None or pool.shared
        ),
        tenants=MappingProxyType(dict(in_use.most_common())),
        directory=None if in_force.directory is None else in_force.directory.stats(),
        totals=in_force.pools.totals(),
        draining=tuple(
            DrainingPoolStats(pool.cluster.name, pool.tenant, pool.node, pool.read_only, pool.stats())
            for pool in draining
            if pool.borrowed
        ),
    )


def _nodes(in_force: InForce, cluster: Cluster, pools: Mapping[tuple[Node, bool], PoolStats]) -> tuple[NodeStats, ...]:
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
                state="unknown" if state.up is None else "up" if state.up else "down",
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
