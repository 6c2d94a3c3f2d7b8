"""What changes from one topology to the next: pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from router.core.errors import UnknownTenant, UnknownVersion
from router.core.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.core.topology import Cluster, Home, Target, Topology


class Plan(NamedTuple):
    """The way from the topology in force to the next one.

    Attributes:
        before: The topology in force.
        after: The next one.
        added: The versions that come.
        removed: The versions that go.
        changed: The versions that stay by name, with other nodes or policies: other clusters.
        redirected: The aliases that stand for another version, or for none, or are new; and those whose version has
            changed. ``""`` for the default.
        tenants: The listed tenants whose homes change, come or go.
        rules: Whether what holds for tenants that are not listed changes.
        limits: Whether the limits for connections and pools change.
    """

    before: Topology
    after: Topology
    added: frozenset[str]
    removed: frozenset[str]
    changed: frozenset[str]
    redirected: frozenset[str]
    tenants: frozenset[str]
    rules: bool
    limits: bool

    @property
    def is_empty(self) -> bool:
        """Whether nothing changes."""
        return self.before == self.after


def plan(before: Topology, after: Topology) -> Plan:
    """Find what changes.

    Args:
        before: The topology in force.
        after: The next one.

    Returns:
        The way from one to the other.
    """
    was, now = _homes(before), _homes(after)
    return Plan(
        before,
        after,
        added=frozenset(after.versions.keys() - before.versions.keys()),
        removed=frozenset(before.versions.keys() - after.versions.keys()),
        changed=frozenset(
            name for name, cluster in after.versions.items() if before.versions.get(name, cluster) != cluster
        ),
        redirected=frozenset(
            name
            for name in before.aliases.keys() | after.aliases.keys() | {""}
            if _cluster(before, name) != _cluster(after, name)
        ),
        tenants=frozenset(tenant for tenant in was.keys() | now.keys() if was.get(tenant) != now.get(tenant)),
        rules=_rules(before) != _rules(after),
        limits=_limits(before) != _limits(after),
    )


def serves(topology: Topology, target: Target, home: Home | None, *, listed: bool) -> bool:
    """Tell whether requests would still go where they went: to the same nodes, kept apart in the same way.

    Args:
        topology: The topology in force.
        target: What a request resolved to.
        home: Where its tenant lives by what the directory says; ``None`` for nowhere, or where that is not asked.
        listed: Whether the topology alone says where its tenant lives.

    Returns:
        Whether they would.
    """
    watched = target.watched or target.cluster
    if target.tenant is None or (target.shared and target.cluster.nodes == watched.nodes):  # other tenants use it, too
        return topology.versions.get(watched.name) == watched
    if home is None and not listed:
        return False
    try:
        now = resolve(topology, target.requested or None, target.tenant, home)
    except (UnknownTenant, UnknownVersion):
        return False
    return (now.cluster, now.shared) == (target.cluster, target.shared) and (
        target.shared or now.policy == target.policy
    )


def _cluster(topology: Topology, alias: str) -> Cluster | None:
    name = alias or topology.default_version or ""
    return topology.versions.get(topology.aliases.get(name, name))


def _homes(topology: Topology) -> Mapping[str, Home]:
    return {} if topology.tenancy is None else topology.tenancy.homes


def _rules(topology: Topology) -> object:
    return None if topology.tenancy is None else topology.tenancy._replace(homes={})


def _limits(topology: Topology) -> object:
    return topology.max_connections, topology.max_connections_per_server, topology.max_pools
