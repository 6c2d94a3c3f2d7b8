"""The difference between two topologies: pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from router.core.errors import UnknownTenant, UnknownVersion
from router.core.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.core.topology import Cluster, Home, Target, Topology


class Plan(NamedTuple):
    """The change from the topology in force to the next one.

    Attributes:
        before: The topology in force.
        after: The next topology.
        added: The versions that are new.
        removed: The versions that are gone.
        changed: The versions that keep their names but have other nodes or policies, so that they are other clusters.
        redirected: The aliases that are new or gone, or stand for another version, or whose version has changed;
            ``""`` stands for the default version.
        tenants: The listed tenants that are new or gone, or have another home.
        rules: Whether the rules for tenants that are not listed change.
        limits: Whether the limits of connections and pools change.
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
    """Compare two topologies.

    Args:
        before: The topology in force.
        after: The next topology.

    Returns:
        What changes from one to the other.
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
    """Tell whether a target is still right: the same nodes, and the tenant separated in the same way.

    Args:
        topology: The topology in force.
        target: What a request resolved to before.
        home: The home of the target's tenant by the directory; ``None`` if the directory has none or is not asked.
        listed: Whether the topology alone says where the tenant lives.

    Returns:
        Whether the same request would still resolve to that target.
    """
    watched = target.watched or target.cluster
    if target.tenant is None or (target.shared and target.cluster.nodes == watched.nodes):  # tenants share its pools
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
