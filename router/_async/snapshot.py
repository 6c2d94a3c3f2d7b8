"""A snapshot of the internal state of a router, for tests."""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router._async.in_force import AsyncInForce
    from router._async.pool.node_pool import AsyncNodePool
    from router._async.pool_set import AsyncPoolSet
    from router._async.statements import AsyncStatements
    from router.core.choose import Route
    from router.core.health import Health
    from router.core.topology import Cluster, Node, Server


class PoolView(NamedTuple):
    """One pool, for tests.

    Attributes:
        node: The node that it connects to.
        read_only: Whether it is for reading.
        tenant: The tenant; ``None`` for a pool of a version, and for one that tenants share.
        identity: A number that identifies the pool.
        opened: Whether it is open; a pool that is not may just have been made.
        draining: Whether it is draining.
        quarantined: Whether its idle connections are quarantined, so that it does not lend them.
        quarantined_at: When the last quarantine began, on the monotonic clock; 0 for never.
        fenced_reason: Why its connections may not be used now; empty if they may.
        at_max_size: Whether it may open no further connection.
        growing: Whether it opens connections for requests that wait.
        opening: How many connections are being opened or scheduled to be opened.
        idle: How many connections are idle.
        idle_closed: How many of the idle connections are closed.
        borrowed: How many connections are borrowed.
        sessions: How many sessions are open.
        counted: How many connections psycopg_pool counts.
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
    """A pool set, which the lanes of one cluster and use share, for tests.

    Attributes:
        cluster: The cluster's name.
        read_only: Whether it is for reading.
        is_stale: Whether its pools have to be chosen again.
        pools: How many pools are chosen.
        route: The last choice.
        waiting: How many requests are in its line, including those that are not admitted yet.
        waiting_for: The tenants whose requests in the line may be served.
    """

    cluster: str
    read_only: bool
    is_stale: bool
    pools: int
    route: Route | None
    waiting: int
    waiting_for: frozenset[str]


class AdmissionView(NamedTuple):
    """The admission of one tenant, for tests.

    Attributes:
        admitted: How many of its requests are admitted.
        held: How many of its requests wait to be admitted.
    """

    admitted: int
    held: int


class DirectoryView(NamedTuple):
    """The directory of tenants, for tests.

    Attributes:
        questions: For how many tenants a question is being asked or scheduled.
        idle_workers: How many of its workers are idle.
    """

    questions: int
    idle_workers: int


class Snapshot(NamedTuple):
    """The internal state of a router at one moment: tests read it here, and need not know where the router keeps it.

    Attributes:
        closed: Whether the router was closed.
        pools: The pools, open and draining.
        pool_sets: The pool sets.
        clusters: The clusters in use, by value.
        servers: The servers in use, and the seconds to wait before the next probe of each.
        watched: The servers that a watcher probes.
        health: What is known of servers and of refused logins.
        readers: For each key, a number that identifies its lane for reading.
        writers: For each key, a number that identifies its lane for writing.
        targets: The keys whose targets are remembered.
        admissions: The admissions of tenants in use.
        slots: How many slots each owner has, for open connections and those being opened.
        slots_waiting: The owners of the requests that wait for a slot, in order of arrival.
        pools_waiting: How many requests wait for room for one more pool.
        counted: For how many pools, open or gone, counters are kept.
        directory: The directory; ``None`` if there is none.
        passwords: For how many nodes a password is remembered.
        statements: How many statements are remembered as ones that have to run on the primary.
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


def snapshot(in_force: AsyncInForce, statements: AsyncStatements) -> Snapshot:
    """Take a snapshot of a router, for tests.

    Args:
        in_force: What is in force in the router.
        statements: Runs its statements.

    Returns:
        The snapshot.
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


def _pool_view(pool: AsyncNodePool) -> PoolView:
    idle = [*pool.idle]
    return PoolView(
        node=pool.node,
        read_only=pool.read_only,
        tenant=pool.tenant,
        identity=id(pool),
        opened=not pool.closed,
        draining=pool.draining,
        quarantined=pool.quarantined,
        quarantined_at=pool.quarantine.begun_at,
        fenced_reason=pool.fenced_reason,
        at_max_size=pool.at_max_size,
        growing=pool.is_growing,
        opening=pool.adding,
        idle=len(idle),
        idle_closed=sum(connection.closed for connection in idle),
        borrowed=len(pool.borrowed),
        sessions=len(pool.sessions.listed()),
        counted=pool.size,
        waiting=pool.waiting.number(),
    )


def _pool_set_view(pool_set: AsyncPoolSet) -> PoolSetView:
    return PoolSetView(
        cluster=pool_set.cluster.value.name,
        read_only=pool_set.read_only,
        is_stale=pool_set.is_stale,
        pools=len(pool_set.pools),
        route=pool_set.route,
        waiting=len(pool_set.line),
        waiting_for=frozenset(pool_set.line.tenants()),
    )
