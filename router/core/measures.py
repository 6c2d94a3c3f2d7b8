"""What ``stats()`` returns: frozen values, one moment's view."""

from __future__ import annotations

from dataclasses import field
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from router.core.value import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.core.topology import Node, Role


SHOWN = 10
"""How many tenants the ``repr`` of the stats names."""


class PoolStats(Value):
    """One pool: a node's connections for reading, or for writing.

    Attributes:
        size: Connections open or being opened.
        max_size: The most it opens.
        idle: Connections ready to be borrowed.
        in_use: Connections borrowed now.
        waiting: Requests waiting for a connection now.
        requests: Connections asked for since the pool was opened.
        queued: How many of those had to wait.
        wait_seconds: How long those waited, all together.
        opened: Attempts to connect.
        failed: How many of those failed.
        server_limit: How many connections this process had with this login when the server last refused one more;
            ``None`` if it has refused none, or one more was had since.
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
        state: ``up``, ``down``, or ``unknown`` before the first probe. A node whose login is refused is ``down``, too.
        reason: Why it is down, or not believed.
        server_version: As libpq counts: 160004 is 16.4; 0 while unknown.
        timeline: The WAL timeline it is on; 0 while unknown.
        lag: Of a replica, how many seconds it is behind the primary; ``None`` while that is not known.
        lag_bytes: The same in bytes of WAL.
        latency: Seconds that the last probe of it took.
        failures: How often it went down without staying up for ``health.ban_max`` in between.
        read: Its pool for reading, once opened.
        write: Its pool for writing, once opened.
    """

    node: Node
    role: Role | None
    state: Literal["up", "down", "unknown"]
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
    """One pool of a tenant's, or one that the tenants of a database share.

    Attributes:
        version: The version, or the name of the tenant's own servers.
        tenant: Whose it is; ``None`` when tenants share it.
        node: What it connects to.
        read_only: Whether it is for reading.
        pool: The pool.
    """

    version: str
    tenant: str | None
    node: Node
    read_only: bool
    pool: PoolStats


class DrainingPoolStats(Value):
    """One pool that lends nothing any more, and goes when its last connection is back.

    Attributes:
        version: The version, or the name of a tenant's own servers.
        tenant: Whose it is; ``None`` for a version's, and for one that tenants share.
        node: What it connects to.
        read_only: Whether it is for reading.
        pool: The pool.
    """

    version: str
    tenant: str | None
    node: Node
    read_only: bool
    pool: PoolStats


class Totals(Value):
    """What has been counted of one version for one use since the router was made: these only grow.

    They outlive the pools that they come from. In the child of a fork they begin again at 0.

    Attributes:
        version: The version, pools of its tenants included; ``None`` for all servers of tenants' own together.
        read_only: Whether they are for reading.
        requests: Connections asked of the pools.
        queued: How many of those had to wait.
        wait_seconds: How long those waited, all together.
        opened: Attempts to connect.
        failed: How many of those failed.
        exhausted: Requests that failed with ``PoolExhausted``, or ``TooManyWaiting``.
        unavailable: Requests that failed with ``NoPrimary`` or ``NoReplica``.
        repeated: Transactions that ``run()`` ran again, and reads that ``execute()`` ran again on another connection.
        on_primary: How many of the requests to read the primary was asked to serve, although there are other nodes.
        for_token: How many of those a replica would have served if it had replayed what they had to see.
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
    """The directory of tenants.

    Attributes:
        known: Tenants whose home is known.
        unknown: Keys remembered as those of no tenant.
        unconfirmed: How many of the known could not be confirmed when that was last tried, or not yet since a change
            was heard of.
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
        words = [f"{self.known} tenants known", f"{self.unknown} keys of no tenant"]
        if self.unconfirmed:
            words.append(f"{self.unconfirmed} known tenants not confirmed")
        if self.failing_for is not None:
            words.append(f"failing for {self.failing_for:.0f} s: {self.reason}")
        return ", ".join(words)


class Stats(Value):
    """The whole router.

    Attributes:
        connections: Connections the process holds through this router, those being opened included.
        max_connections: The most it may hold.
        versions: Every version, as configured.
        tenant_pools: The open pools of tenants.
        draining: The pools of versions and tenants that lend nothing any more, but have connections that are borrowed.
        tenants: For each tenant that uses connections now, how many; the largest number first.
        directory: How the directory of tenants does; ``None`` where there is none.
        totals: What has been counted, by version and use.
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
        """Show it as a person reads it: one line a node."""
        lines = [f"Stats: {self.connections} of at most {self.max_connections} connections"]
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
                f"  tenants: {len(self.tenant_pools)} pools, {used} in use by {len(self.tenants)} tenants, "
                f"{idle} idle, {waiting} waiting"
            )
            lines += [f"    {tenant}  {count} in use" for tenant, count in islice(self.tenants.items(), SHOWN)]
        if self.draining:
            used = sum(pool.pool.in_use for pool in self.draining)
            lines.append(f"  draining: {len(self.draining)} pools, {used} in use")
            for pool in self.draining[:SHOWN]:
                use = "read" if pool.read_only else "write"
                lines.append(f"    {pool.node}  {pool.tenant or pool.version}, {use}: {pool.pool.in_use} in use")
        if self.directory is not None:
            lines.append(f"  directory: {self.directory.described()}")
        return "\n".join(lines)
