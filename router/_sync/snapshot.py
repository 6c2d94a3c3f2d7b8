# Generated from router/_async/snapshot.py by tools/async_to_sync.py: do not edit.
"""One moment's view of the inside of a router, for tests."""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router._sync.in_force import InForce
    from router._sync.pool.node_pool import NodePool
    from router._sync.pool_set import PoolSet
    from router._sync.statements import Statements
    from router.core.choose import Route
    from router.core.health import Health
    from router.core.topology import Cluster, Node, Server


class PoolView(NamedTuple):
    """One pool, for tests.

    Attributes:
        node: What it connects to.
        read_only: Whether it is for reading.
        tenant: Whose it is; ``None`` for a version's, and for one that tenants share.
        identity: The same for the same pool.
        opened: Whether it is open; one that is not may have been made only.
        draining: Whether it lends nothing any more.
        quarantined: Whether its idle connections are not lent now.
        quarantined_at: When that began the last time, on the monotonic clock; 0 for never.
        fenced_reason: Why its connections may not be used now; empty if they may.
        at_max_size: Whether it may open no further connection.
        growing: Whether it opens connections for those that wait.
        opening: How many it opens, or is to open.
        idle: How many connections are ready.
        idle_closed: How many of those are closed all the same.
        borrowed: How many are borrowed.
        sessions: How many are open.
        counted: How many psycopg_pool counts.
        waiting: How many requests wait that it may serve.
    """

    node: Node
    read_only: bool
    tenant: str | None
    identity: int
    opened: bool
    draining: bool
    quarantined: bool
    quarantined_at: float
    fenced_reason: str
    at_max_size: bool
    growing: bool
    opening: int
    idle: int
    idle_closed: int
    borrowed: int
    sessions: int
    counted: int
    waiting: int


class PoolSetView(NamedTuple):
    """What the lanes of one cluster and use share, for tests.

    Attributes:
        cluster: The cluster's name.
        read_only: Whether it is for reading.
        is_stale: Whether the pools have to be chosen anew.
        pools: How many pools were chosen.
        route: What was chosen last.
        waiting: How many requests are in its line, those included that are not admitted yet.
        waiting_for: The tenants for whom requests wait that may be served.
    """

    cluster: str
    read_only: bool
    is_stale: bool
    pools: int
    route: Route | None
    waiting: int
    waiting_for: frozenset[str]


class AdmissionView(NamedTuple):
    """The limit of one tenant, for tests.

    Attributes:
        admitted: How many of its requests are served.
        held: How many wait to be admitted.
    """

    admitted: int
    held: int


class DirectoryView(NamedTuple):
    """The directory of tenants, for tests.

    Attributes:
        questions: For how many tenants it asks, or is to ask.
        idle_workers: How many of its workers do not run.
    """

    questions: int
    idle_workers: int


class Snapshot(NamedTuple):
    """What a router has inside at one moment, for tests: so that these need not know where it is kept.

    Attributes:
        closed: Whether it was closed.
        pools: The pools, open and draining.
        pool_sets: What lanes share.
        clusters: The clusters in use, by value.
        servers: The servers in use, and in how many seconds each is probed again.
        watched: Those of them that a watcher probes.
        health: What is known of servers and of refused logins.
        readers: The lanes for reading, by key: something that is the same for the same lane.
        writers: Those for writing.
        targets: The keys of which it is remembered what they resolve to.
        admissions: The limits of tenants in use.
        slots: How many connections each owner has, or has under way.
        slots_waiting: The owners for which requests wait for a slot, in order of arrival.
        pools_waiting: How many requests wait until there may be one pool more.
        counted: Of how many pools, open or gone, counters are kept.
        directory: The directory; ``None`` if there is none.
        passwords: Of how many nodes the password is remembered.
        statements: How many statements are remembered that have to run on the primary.
    """

    closed: bool
    pools: tuple[PoolView, ...]
    pool_sets: tuple[PoolSetView, ...]
    clusters: tuple[Cluster, ...]
    servers: Mapping[Server, float]
    watched: frozenset[Server]
    health: Health
    readers: Mapping[object, int]
    writers: Mapping[object, int]
    targets: frozenset[object]
    admissions: Mapping[str, AdmissionView]
    slots: Mapping[str, int]
    slots_waiting: tuple[str, ...]
    pools_waiting: int
    counted: int
    directory: DirectoryView | None
    passwords: int
    statements: int

    @property
    def waiting(self) -> int:
        """How many requests wait in the lines of pool sets."""
        return sum(pool_set.waiting for pool_set in self.pool_sets)

    @property
    def admitted(self) -> int:
        """How many requests are admitted by the limits of tenants."""
        return sum(admission.admitted for admission in self.admissions.values())


def snapshot(in_force: InForce, statements: Statements) -> Snapshot:
    """Say what a router has inside, for tests.

    Args:
        in_force: Everything of it that changes.
        statements: Runs its statements.

    Returns:
        A frozen view.
    """
    slots = Counter[str]()
    for key, number in in_force.slots.held.items():
        slots[key.owner] += number
    clusters, lanes, directory = in_force.clusters, in_force.lanes, in_force.directory
    return Snapshot(
        closed=in_force.closed,
        pools=tuple(map(_pool_view, in_force.pools)),
        pool_sets=tuple(map(_pool_set_view, lanes.pool_sets)),
        clusters=tuple(cluster.value for cluster in clusters),
        servers=MappingProxyType({server: clusters.pause(there) for server, there in [*clusters.servers.items()]}),
        watched=frozenset(server for server, watcher in in_force.monitor.watchers.items() if watcher.is_needed),
        health=MappingProxyType(dict(clusters.health)),
        readers=MappingProxyType({key: id(lane) for key, lane in [*lanes.readers.items()]}),
        writers=MappingProxyType({key: id(lane) for key, lane in [*lanes.writers.items()]}),
        targets=frozenset(lanes.targets),
        admissions=MappingProxyType(
            {tenant: AdmissionView(one.admitted, one.held) for tenant, one in lanes.admissions.items()}
        ),
        slots=MappingProxyType(dict(slots)),
        slots_waiting=tuple(request.key.owner for request in [*in_force.slots.waiting]),
        pools_waiting=len(in_force.pools.waiting),
        counted=in_force.pools.counted,
        directory=None if directory is None else DirectoryView(len(directory.questions), len(directory.idle_workers)),
        passwords=in_force.opener.login.remembered,
        statements=statements.remembered,
    )


def _pool_view(pool: NodePool) -> PoolView:
    idle, measured = [*pool.idle], pool.stats()
    return PoolView(
        node=pool.node,
        read_only=pool.read_only,
        tenant=pool.tenant,
        identity=id(pool),
        opened=not pool.closed,
        draining=pool.draining,
        quarantined=pool.quarantined,
        quarantined_at=pool.quarantined_at,
        fenced_reason=pool.fenced_reason,
        at_max_size=pool.at_max_size,
        growing=pool.is_growing,
        opening=pool.opening,
        idle=len(idle),
        idle_closed=sum(connection.closed for connection in idle),
        borrowed=len(pool.borrowed),
        sessions=len(pool.session_states()),
        counted=measured.size,
        waiting=measured.waiting,
    )


def _pool_set_view(pool_set: PoolSet) -> PoolSetView:
    return PoolSetView(
        cluster=pool_set.cluster.value.name,
        read_only=pool_set.read_only,
        is_stale=pool_set.is_stale,
        pools=len(pool_set.pools),
        route=pool_set.route,
        waiting=len(pool_set.line),
        waiting_for=frozenset(pool_set.line.tenants()),
    )
