"""The frozen values that ``stats()`` returns: the state of a router at one moment."""

from __future__ import annotations

from dataclasses import field
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from router.core.names import counted
from router.core.value import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.core.topology import Node, Role


SHOWN = 10
"""How many tenants the ``repr`` of the stats names."""


class PoolStats(Value):
    """One pool: a node's connections for reading, or for writing.

    Attributes:
        size: Connections that are open or being opened.
        max_size: The most connections that the pool opens.
        idle: Connections ready to be borrowed.
        in_use: Connections that are borrowed now.
        waiting: Requests that wait for a connection now.
        requests: Requests for a connection since the pool was opened.
        queued: How many of the requests had to wait.
        wait_seconds: How long those waited, all together.
        opened: Attempts to connect.
        failed: How many of the attempts failed.
        server_limit: How many connections this process had with this login when the server last refused one more;
            ``None`` if it has never refused one, or has accepted more connections since.
    """

    size: int
    max_size: int
    idle: int
    in_use: int
    waiting: int
    requests: int
    queued: int
    wait_seconds: float
    opened: int
    failed: int
    server_limit: int | None = None


class NodeStats(Value):
    """One node of a version.

    Attributes:
        node: The node.
        role: Its role as observed, else as configured; ``None`` when neither is known.
        state: ``up``, ``down``, ``login refused`` if the server answers but refuses the node's login, or ``unknown``
            before the first probe.
        reason: Why it is down or fenced, or refuses the login.
        server_version: As libpq counts: 160004 is 16.4; 0 while unknown.
        timeline: The WAL timeline that it is on; 0 while unknown.
        lag: Of a replica, how many seconds it is behind the primary; ``None`` while that is not known.
        lag_bytes: The lag in bytes of WAL; ``None`` while that is not known.
        latency: Seconds that its last probe took.
        failures: How often it went down without staying up for ``health.ban_max`` in between.
        read: Its pool for reading, once opened.
        write: Its pool for writing, once opened.
    """

    node: Node
    role: Role | None
    state: Literal["up", "down", "login refused", "unknown"]
    reason: str
    server_version: int
    timeline: int
    lag: float | None
    lag_bytes: int | None
    latency: float
    failures: int
    read: PoolStats | None
    write: PoolStats | None


class VersionStats(Value):
    """One version.

    Attributes:
        version: Its key.
        nodes: Its nodes, as configured.
    """

    version: str
    nodes: tuple[NodeStats, ...]


class TenantPoolStats(Value):
    """A pool of one tenant, or a pool that the tenants of a database share.

    Attributes:
        version: The version, or the name of the tenant's own cluster.
        tenant: The tenant; ``None`` if tenants share the pool.
        node: The node that the pool connects to.
        read_only: Whether the pool is for reading.
        pool: The pool.
    """

    version: str
    tenant: str | None
    node: Node
    read_only: bool
    pool: PoolStats


class DrainingPoolStats(Value):
    """A pool that lends no more connections, and is closed when its last connection has been returned.

    Attributes:
        version: The version, or the name of a tenant's own cluster.
        tenant: The tenant; ``None`` for a pool of a version, and for one that tenants share.
        node: The node that the pool connects to.
        read_only: Whether the pool is for reading.
        pool: The pool.
    """

    version: str
    tenant: str | None
    node: Node
    read_only: bool
    pool: PoolStats


class Totals(Value):
    """Counters of one version and one use since the router was made; they never decrease.

    They outlive the pools that they were counted for. In the child of a fork they begin again at 0.

    Attributes:
        version: The version, pools of its tenants included; ``None`` for all clusters of tenants' own together.
        read_only: Whether the requests were for reading.
        requests: Requests to a pool for a connection.
        queued: How many of the requests had to wait.
        wait_seconds: How long those waited, all together.
        opened: Attempts to connect.
        failed: How many of the attempts failed.
        exhausted: Requests that failed with ``PoolExhausted`` or ``TooManyWaiting``.
        unavailable: Requests that failed with ``NoPrimary`` or ``NoReplica``.
        repeated: Transactions that ``run()`` ran again, and reads that ``execute()`` ran again on another connection.
        on_primary: How many requests for reading went to the primary although the cluster has other nodes.
        for_token: How many of those a replica would have served if it had replayed the position that they had to see.
    """

    version: str | None
    read_only: bool
    requests: int = 0
    queued: int = 0
    wait_seconds: float = 0.0
    opened: int = 0
    failed: int = 0
    exhausted: int = 0
    unavailable: int = 0
    repeated: int = 0
    on_primary: int = 0
    for_token: int = 0


class DirectoryStats(Value):
    """The state of the directory of tenants.

    Attributes:
        known: How many tenants have a known home.
        unknown: How many keys are remembered that belong to no tenant.
        unconfirmed: How many of the known homes are not confirmed: the last attempt failed, or a change was reported
            and the directory has not been asked since.
        failing_for: Seconds since the directory began to fail; ``None`` while it works.
        reason: Why it fails; empty while it works.
    """

    known: int
    unknown: int
    unconfirmed: int
    failing_for: float | None = None
    reason: str = ""

    def described(self) -> str:
        """Describe it in one line.

        Returns:
            The line.
        """
        words = [f"{counted(self.known, 'tenant')} known", f"{counted(self.unknown, 'key')} of no tenant"]
        if self.unconfirmed:
            words.append(f"{counted(self.unconfirmed, 'known tenant')} not confirmed")
        if self.failing_for is not None:
            words.append(f"failing for {self.failing_for:.0f} s: {self.reason}")
        return ", ".join(words)


class Stats(Value):
    """The whole router.

    Attributes:
        connections: Connections that the process holds through this router, those being opened included.
        max_connections: The most connections that it may hold.
        versions: Every version, as configured.
        tenant_pools: The open pools of tenants.
        draining: The pools of versions and tenants that lend no more connections, but have some that are borrowed.
        tenants: How many connections each tenant uses now, the largest number first; only tenants that use any.
        directory: The state of the directory of tenants; ``None`` if there is no directory.
        totals: The counters, by version and use.
    """

    connections: int
    max_connections: int
    versions: tuple[VersionStats, ...]
    tenant_pools: tuple[TenantPoolStats, ...] = ()
    tenants: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    directory: DirectoryStats | None = None
    totals: tuple[Totals, ...] = ()
    draining: tuple[DrainingPoolStats, ...] = ()

    def __repr__(self) -> str:
        """Show the numbers for people to read, with one line for each node."""
        lines = [f"Stats: {self.connections} of at most {counted(self.max_connections, 'connection')}"]
        for version in self.versions:
            lines.append(f"  {version.version}")
            for node in version.nodes:
                pools = [
                    f"{use} {pool.in_use} in use, {pool.idle} idle, {pool.waiting} waiting"
                    for use, pool in (("read:", node.read), ("write:", node.write))
                    if pool is not None
                ]
                state = f"{node.state} ({node.reason})" if node.reason else node.state
                if node.lag:
                    state = f"{state}, {node.lag:.1f} s behind"
                described = "; ".join((f"{node.role or 'role unknown'}, {state}", *pools))
                lines.append(f"    {node.node}  {described}")
        if self.tenant_pools:
            idle = sum(pool.pool.idle for pool in self.tenant_pools)
            waiting = sum(pool.pool.waiting for pool in self.tenant_pools)
            used = sum(self.tenants.values())
            lines.append(
                f"  tenants: {counted(len(self.tenant_pools), 'pool')}, {used} in use by "
                f"{counted(len(self.tenants), 'tenant')}, "
                f"{idle} idle, {waiting} waiting"
            )
            lines += [f"    {tenant}  {count} in use" for tenant, count in islice(self.tenants.items(), SHOWN)]
        if self.draining:
            used = sum(pool.pool.in_use for pool in self.draining)
            lines.append(f"  draining: {counted(len(self.draining), 'pool')}, {used} in use")
            for pool in self.draining[:SHOWN]:
                use = "read" if pool.read_only else "write"
                lines.append(f"    {pool.node}  {pool.tenant or pool.version}, {use}: {pool.pool.in_use} in use")
        if self.directory is not None:
            lines.append(f"  directory: {self.directory.described()}")
        return "\n".join(lines)
