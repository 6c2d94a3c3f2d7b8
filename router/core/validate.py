"""What is wrong with a topology as a whole, however it came about: from files, arguments, or a directory's answer.

That each value by itself is valid is for the reader of those to see to. Here it is judged what values mean together:
names that lead nowhere, limits that cannot be met, tenants that would share their data.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from router.core.duplicates import duplicates
from router.core.errors import nearest
from router.core.faults import Fault, quoted
from router.core.names import InvalidName, names_of, rendered
from router.core.topology import Role

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from router.core.faults import KeyPath
    from router.core.policies import HealthPolicy, PoolPolicy, TenantPolicy
    from router.core.topology import Cluster, Home, Tenancy, Topology

OWN_SERVERS = "tenant"
"""How the name of a cluster begins that is a tenant's own; the tenant's key follows."""


def faults(topology: Topology, *, directory: bool = False, unread: Collection[KeyPath] = ()) -> list[Fault]:
    """Find everything that is wrong in what the values of a topology mean together.

    Args:
        topology: The topology; its aliases may name each other.
        directory: Whether a directory says where the tenants live that are not listed.
        unread: Where something stands that could not be read. What depends on it is not judged.

    Returns:
        The faults, in the order of the settings.
    """
    incomplete = {path[:length] for path in unread for length in range(1, len(path) + 1)}
    names = _Names.of(topology, unread, incomplete)
    found = [
        fault for fault in _of_all(topology, names, incomplete, directory=directory) if fault.path not in incomplete
    ]
    if not found and not unread:
        found += duplicates(resolved(topology), directory=directory)
    return found


def resolved(topology: Topology) -> Topology:
    """Have each alias name a version.

    Args:
        topology: A topology without faults, whose aliases may name each other.

    Returns:
        The same topology.
    """
    aliases = {alias: _trail(alias, topology.aliases)[-1] for alias in topology.aliases}
    return topology._replace(aliases=MappingProxyType(aliases))


class _Names(NamedTuple):
    """The names that there are, and what they stand for.

    Attributes:
        versions: The clusters of all versions that could be read.
        aliases: What each alias names.
        known: The keys of all versions and aliases, those that could not be read included.
        complete: Whether there are no others.
    """

    versions: Mapping[str, Cluster]
    aliases: Mapping[str, str]
    known: Collection[str]
    complete: bool

    @classmethod
    def of(cls, topology: Topology, unread: Collection[KeyPath] = (), incomplete: Collection[KeyPath] = ()) -> _Names:
        versions = {key: each for key, each in topology.versions.items() if ("versions", key) not in incomplete}
        tables = {"versions", "aliases"}
        known = [
            *topology.versions,
            *topology.aliases,
            *(str(path[1]) for path in unread if path[0] in tables and path[1:]),
        ]
        complete = not any(path[0] in tables and not path[1:] for path in unread)
        return cls(versions, topology.aliases, dict.fromkeys(known), complete)

    def version(self, name: str) -> str:
        """The version that a name stands for, if it stands for one."""
        return _trail(name, self.aliases)[-1]

    def lived_in(self, home: Home) -> list[str]:
        """The versions that a tenant lives in."""
        return sorted({self.version(name) for name in home.versions or self.versions} & self.versions.keys())

    def unknown(self, path: KeyPath, name: str | None) -> Iterator[Fault]:
        """The fault that a name is not known."""
        if name is not None and self.complete and name not in self.known:
            near = nearest(name, self.known)
            hint = f"did you mean {quoted(near)}?" if near else f"known: {', '.join(map(quoted, self.known))}"
            yield Fault(path, f"names no version or alias; {hint}")


def _of_all(topology: Topology, names: _Names, incomplete: Collection[KeyPath], *, directory: bool) -> Iterator[Fault]:
    if not names.known:
        yield Fault(("versions",), "there is none")
        return
    yield from names.unknown(("default_version",), topology.default_version)
    yield from _under(("health",), health_faults(topology.health))
    for key, cluster in names.versions.items():
        yield from _under(("versions", key), _version_faults(key, cluster))
    for alias, name in topology.aliases.items():
        yield from _alias_faults(names, alias, name)
    if (tenancy := topology.tenancy) is not None:
        yield from _under(("tenancy",), tenancy_faults(tenancy.policy))
        yield from _under(("directory",), _directory_faults(topology, names, tenancy.directory.version))
        pattern = None if ("tenancy",) in incomplete else re.compile(tenancy.pattern)
        for tenant, home in tenancy.homes.items():
            yield from _under(("tenants", tenant), _listed_faults(names, tenancy, tenant, home, pattern))
        if tenancy.template is not None:
            yield from _under(
                ("tenant_template",), _template_faults(names, tenancy, tenancy.template, directory=directory)
            )


def _under(path: KeyPath, found: Iterable[Fault]) -> Iterator[Fault]:
    return (Fault((*path, *fault.path), fault.text) for fault in found)


# ------------------------------------------------------------------------------------------------------------ policies


def pool_faults(policy: PoolPolicy) -> Iterator[Fault]:
    """Find limits of a pool that cannot be met together.

    Args:
        policy: How the pool behaves.

    Yields:
        The faults, by the policy's keys.
    """
    yield from _at_least("max_size", policy.max_size, "min_size", policy.min_size)


def health_faults(policy: HealthPolicy) -> Iterator[Fault]:
    """Find durations of health checks that cannot be met together.

    Args:
        policy: How servers are watched.

    Yields:
        The faults, by the policy's keys.
    """
    yield from _at_least("ban_max", policy.ban_max, "ban", policy.ban)


def tenancy_faults(policy: TenantPolicy) -> Iterator[Fault]:
    """Find what is said of a tenant's connections and cannot be met together.

    Args:
        policy: How the tenant is kept apart.

    Yields:
        The faults.
    """
    if policy.min_size and policy.pooling == "shared":
        yield Fault((), 'min_size keeps connections open for one tenant alone, which needs pooling = "dedicated"')
    if policy.max_connections is not None and policy.min_size > policy.max_connections:
        yield Fault((), f"min_size is {policy.min_size}, more than max_connections, which is {policy.max_connections}")


def _at_least(key: str, value: float, low: str, least: float) -> Iterator[Fault]:
    if value < least:
        yield Fault((key,), f"must be at least {low}, which is {least}; it is {value}")


# ------------------------------------------------------------------------------------------------ versions and aliases


def _version_faults(key: str, cluster: Cluster) -> Iterator[Fault]:
    if key.startswith(f"{OWN_SERVERS} "):
        yield Fault((), "begins as the names of tenants' own servers do: give it another key")
    if _without_primary(cluster):
        yield Fault((), "needs `primary`, or `nodes` if the roles are to be discovered")
    yield from _repeated(cluster)
    yield from _under(("pool",), pool_faults(cluster.pool))


def _without_primary(cluster: Cluster) -> bool:
    return all(node.role is Role.REPLICA for node in cluster.nodes)


def _repeated(cluster: Cluster) -> Iterator[Fault]:
    servers = [node.server for node in cluster.nodes]
    for server in dict.fromkeys(server for server in servers if servers.count(server) > 1):
        yield Fault((), f"lists {server} twice")


def _alias_faults(names: _Names, alias: str, name: str) -> Iterator[Fault]:
    path = ("aliases", alias)
    if alias in names.versions:
        yield Fault(path, "is the key of a version too: one of them needs another")
        return
    yield from names.unknown(path, name)
    trail = _trail(alias, names.aliases)
    if trail[-1] == alias == min(trail):  # each circle is told once
        yield Fault(path, f"leads back to itself: {' → '.join(map(quoted, trail))}")


def _trail(alias: str, aliases: Mapping[str, str]) -> list[str]:
    """``alias`` and what it leads to, down to a version; in a circle, to the first that comes again."""
    trail = [alias]
    while (name := aliases.get(trail[-1])) is not None:
        trail.append(name)
        if name in trail[:-1]:
            break
    return trail


# ------------------------------------------------------------------------------------------------------------- tenants


def tenant_faults(topology: Topology, tenant: str, home: Home) -> list[Fault]:
    """Find what is wrong with where one tenant lives.

    Args:
        topology: A topology without faults.
        tenant: The tenant's key.
        home: Where it lives.

    Returns:
        The faults, by the keys of ``[tenants.NAME]``.
    """
    return [*_tenant_faults(_Names.of(topology), tenant, home), *tenancy_faults(home.policy)]


def _tenant_faults(names: _Names, tenant: str, home: Home) -> Iterator[Fault]:
    if not (home.cluster or home.database or home.user or home.schema or home.role or home.row):
        yield Fault(
            (),
            "has nothing that keeps it apart from others: it needs a database, user, schema, role or row, or servers "
            "of its own (primary or nodes)",
        )
    yield from _home_faults(names, home)
    try:
        for version in names.lived_in(home):
            rendered(home, tenant, version)
    except InvalidName as error:
        yield Fault((), str(error))


def is_apart(home: Home) -> bool:
    """Tell whether a home is another one for each tenant.

    Args:
        home: Where several tenants may live.

    Returns:
        Whether something in it depends on the tenant's key.
    """
    return bool(home.row) or any("{tenant}" in name for name in names_of(home))


def _listed_faults(
    names: _Names, tenancy: Tenancy, tenant: str, home: Home, pattern: re.Pattern[str] | None
) -> Iterator[Fault]:
    if pattern is not None and not pattern.fullmatch(tenant):
        yield Fault((), f"is no tenant's key: one looks like {tenancy.pattern} (tenancy.pattern)")
    yield from _tenant_faults(names, tenant, home)
    if home.policy != tenancy.policy:  # else the fault is told there
        yield from tenancy_faults(home.policy)


def _template_faults(names: _Names, tenancy: Tenancy, template: Home, *, directory: bool) -> Iterator[Fault]:
    yield from _home_faults(names, template)
    if template.policy != tenancy.policy:
        yield from tenancy_faults(template.policy)
    if not directory and not is_apart(template):
        yield Fault((), "has no {tenant} anywhere, and no row: all tenants would be one")


def _home_faults(names: _Names, home: Home) -> Iterator[Fault]:
    """What is wrong with a home, of one tenant or of many."""
    for name in home.versions:
        yield from names.unknown(("version",), name)
    if (own := home.cluster) is not None:
        if _without_primary(own):
            yield Fault(
                ("replicas",), "stands without primary: add that, or list them as nodes if the roles are unknown"
            )
        yield from _repeated(own)
        for key in ("database", "user"):
            if getattr(home, key):
                yield Fault((key,), "stands beside servers of its own: write it in their connection strings instead")
    pools = [own.pool] if own is not None else [names.versions[version].pool for version in names.lived_in(home)]
    for most in [pool.max_size for pool in pools if home.policy.min_size > pool.max_size][:1]:
        yield Fault((), f"min_size is {home.policy.min_size}, more than pool.max_size, which is {most}")


def _directory_faults(topology: Topology, names: _Names, version: str | None) -> Iterator[Fault]:
    """One connection listens to the table for as long as the router lives; at least one has to be left to serve."""
    if version is None:
        return
    yield from names.unknown(("version",), version)
    cluster = names.versions.get(names.version(version))
    limits = {
        "max_connections": topology.max_connections,
        "max_connections_per_server": topology.max_connections_per_server,
        "max_pools": topology.max_pools,
        "pool.max_size of that version": None if cluster is None else cluster.pool.max_size,
    }
    for name, limit in limits.items():
        if limit is not None and limit < 2:  # noqa: PLR2004 (one that listens, one that serves)
            yield Fault((), f"listens over a connection of its own, and {name} is {limit}: give it at least 2")
