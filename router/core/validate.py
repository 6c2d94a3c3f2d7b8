"""The faults of a topology as a whole, whether it comes from files, from arguments or from a directory's answer.

The code that reads the values checks each value by itself. This module checks what they mean together: names that stand
for nothing, limits that cannot be met, tenants that would share their data.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from router.core.duplicates import duplicates
from router.core.errors import nearest
from router.core.faults import Fault, quoted
from router.core.names import OWN_SERVERS, InvalidName, names_of, rendered
from router.core.policy_faults import health_faults, pool_faults, tenancy_faults
from router.core.topology import Role

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from router.core.faults import KeyPath
    from router.core.policies import PoolPolicy
    from router.core.topology import Cluster, Home, Tenancy, Topology

_NO_PLACES = frozenset({"version", "pooling", "hygiene", "max_connections", "min_size"})
"""The keys of a tenant that do not say where it lives; any other key, a misspelt one included, may say it."""


def faults(topology: Topology, *, directory: bool = False, unread: Collection[KeyPath] = ()) -> list[Fault]:
    """Find all faults of a topology that lie in several of its values together.

    Args:
        topology: The topology; its aliases may name each other.
        directory: Whether a directory says where the tenants live that are not listed.
        unread: The paths of values that could not be read. Nothing that depends on them is checked.

    Returns:
        The faults, in the order of the settings.
    """
    scope = _Scope.of(topology, _Unread(unread))
    found = list(_all_faults(topology, scope, directory=directory))
    if not found and not unread:
        found += duplicates(resolved(topology), directory=directory)
    return found


def resolved(topology: Topology) -> Topology:
    """Make each alias name a version directly.

    Args:
        topology: A topology without faults, whose aliases may name each other.

    Returns:
        The topology with each alias resolved to its version.
    """
    aliases = {alias: _trail(alias, topology.aliases)[-1] for alias in topology.aliases}
    return topology._replace(aliases=MappingProxyType(aliases))


class _Unread:
    """The keys that could not be read."""

    def __init__(self, paths: Collection[KeyPath] = ()) -> None:
        self._paths = frozenset(paths)
        self._keys: dict[KeyPath, set[str | int]] = {}
        for path in paths:
            for depth, key in enumerate(path):
                self._keys.setdefault(path[:depth], set()).add(key)

    def whole(self, *path: str | int) -> bool:
        """Whether the value itself could not be read."""
        return path in self._paths

    def under(self, *path: str | int) -> frozenset[str | int]:
        """The keys of a table whose values, or parts of them, could not be read."""
        return frozenset(self._keys.get(path, ()))


class _Scope(NamedTuple):
    """The values that other values are checked against.

    Attributes:
        versions: The keys of all versions, except those that could not be read at all.
        names: The keys of all versions and aliases, unreadable ones included; ``None`` if not all keys are known.
        aliases: What each alias names.
        pools: The pool policy of each version whose policy could be read.
        unread: The keys that could not be read.
    """

    versions: Collection[str]
    names: Collection[str] | None
    aliases: Mapping[str, str]
    pools: Mapping[str, PoolPolicy]
    unread: _Unread

    @classmethod
    def of(cls, topology: Topology, unread: _Unread) -> _Scope:
        versions = [*topology.versions, *map(str, unread.under("versions"))]
        aliases = [*topology.aliases, *map(str, unread.under("aliases"))]
        complete = versions and not (unread.whole("versions") or unread.whole("aliases"))
        pools = {
            key: cluster.pool
            for key, cluster in topology.versions.items()
            if "pool" not in unread.under("versions", key)
        }
        names = dict.fromkeys([*versions, *aliases]) if complete else None
        return cls(topology.versions.keys(), names, topology.aliases, pools, unread)

    def version(self, name: str) -> str:
        """The version that a name stands for, if it stands for one."""
        return _trail(name, self.aliases)[-1]

    def lived_in(self, home: Home) -> list[str]:
        """The versions that a tenant lives in."""
        return sorted({self.version(name) for name in home.versions or self.versions} & set(self.versions))

    def unknown(self, path: KeyPath, name: str | None) -> Iterator[Fault]:
        """The fault that a name is unknown, if it is."""
        if name is not None and self.names is not None and name not in self.names:
            near = nearest(name, self.names)
            hint = f"did you mean {quoted(near)}?" if near else f"known: {', '.join(map(quoted, self.names))}"
            yield Fault(path, f"names no version or alias; {hint}")


def _all_faults(topology: Topology, scope: _Scope, *, directory: bool) -> Iterator[Fault]:
    unread = scope.unread
    if not (scope.versions or unread.under("versions") or unread.whole("versions")):
        yield Fault(("versions",), "no version is given")
    yield from scope.unknown(("default_version",), topology.default_version)
    if "health" not in unread.under():
        yield from _under(("health",), health_faults(topology.health))
    for key, cluster in topology.versions.items():
        yield from _under(("versions", key), _version_faults(key, cluster, unread.under("versions", key)))
    for alias, name in topology.aliases.items():
        yield from _alias_faults(scope, alias, name)
    if (tenancy := topology.tenancy) is not None:
        yield from _under(("tenancy",), tenancy_faults(tenancy.policy))
        yield from _under(("directory",), _directory_faults(topology, scope, tenancy.directory.version))
        known = not (unread.whole("tenancy") or "pattern" in unread.under("tenancy"))
        pattern = re.compile(tenancy.pattern) if known else None
        for tenant, home in tenancy.homes.items():
            path: KeyPath = ("tenants", tenant)
            if pattern is not None and not pattern.fullmatch(tenant):
                yield Fault(path, f"is not a valid tenant key: it must match {tenancy.pattern} (tenancy.pattern)")
            yield from _under(path, _tenant_faults(scope, tenant, home, unread.under(*path)))
            yield from _under(path, _policy_faults(home, tenancy, unread.under(*path)))
        if tenancy.template is not None:
            path = ("tenant_template",)
            yield from _under(path, _home_faults(scope, tenancy.template, unread.under(*path)))
            yield from _under(path, _policy_faults(tenancy.template, tenancy, unread.under(*path)))
            if not (directory or unread.whole("directory") or unread.under(*path) - _NO_PLACES):
                yield from _under(path, _template_faults(tenancy.template))


def _under(path: KeyPath, found: Iterable[Fault]) -> Iterator[Fault]:
    return (Fault((*path, *fault.path), fault.text) for fault in found)


# ------------------------------------------------------------------------------------------------ versions and aliases


def _version_faults(key: str, cluster: Cluster, unread: frozenset[str | int]) -> Iterator[Fault]:
    if key.startswith(f"{OWN_SERVERS} "):
        yield Fault((), "begins like the names of tenants' own servers: give it another key")
    if _without_primary(cluster) and not unread - {"replicas", "pool", "read"}:  # a misspelt key may be the reason
        yield Fault((), "needs `primary`, or `nodes` if the roles are to be discovered")
    yield from _repeated(cluster)
    if "pool" not in unread:
        yield from _under(("pool",), pool_faults(cluster.pool))
        yield from _under(("pool",), _hygiene_faults(cluster))


def _hygiene_faults(cluster: Cluster) -> Iterator[Fault]:
    pooler = next((node for node in cluster.nodes if node.pooler == "transaction"), None)
    if pooler is not None and cluster.pool.hygiene != "transaction":
        yield Fault(
            ("hygiene",),
            f'is "{cluster.pool.hygiene}", but {pooler} is a transaction pooler, which keeps no session that could be '
            'reset: set "transaction" for this version',
        )


def _without_primary(cluster: Cluster) -> bool:
    return all(node.role is Role.REPLICA for node in cluster.nodes)


def _repeated(cluster: Cluster) -> Iterator[Fault]:
    servers = [node.server for node in cluster.nodes]
    for server in dict.fromkeys(server for server in servers if servers.count(server) > 1):
        yield Fault((), f"lists {server} twice")


def _alias_faults(scope: _Scope, alias: str, name: str) -> Iterator[Fault]:
    path = ("aliases", alias)
    if alias in scope.versions or alias in scope.unread.under("versions"):
        yield Fault(path, "is also the key of a version: one of them needs another")
        return
    yield from scope.unknown(path, name)
    trail = _trail(alias, scope.aliases)
    if trail[-1] == alias == min(trail):  # each circle is told once
        yield Fault(path, f"leads back to itself: {' → '.join(map(quoted, trail))}")


def _trail(alias: str, aliases: Mapping[str, str]) -> list[str]:
    """``alias`` and each name that it leads to, down to a version; in a circle, down to the first repeated name."""
    trail = [alias]
    while (name := aliases.get(trail[-1])) is not None:
        trail.append(name)
        if name in trail[:-1]:
            break
    return trail


# ------------------------------------------------------------------------------------------------------------- tenants


def tenant_faults(topology: Topology, tenant: str, home: Home) -> list[Fault]:
    """Find the faults of one tenant's home.

    Args:
        topology: A topology without faults.
        tenant: The tenant's key.
        home: Where the tenant lives.

    Returns:
        The faults; their paths are keys of ``[tenants.NAME]``.
    """
    scope = _Scope.of(topology, _Unread())
    return [*_tenant_faults(scope, tenant, home, frozenset()), *tenancy_faults(home.policy)]


def _tenant_faults(scope: _Scope, tenant: str, home: Home, unread: frozenset[str | int]) -> Iterator[Fault]:
    apart = home.cluster or home.database or home.user or home.schema or home.role or home.row
    if not apart and not unread - _NO_PLACES:
        yield Fault(
            (),
            "has nothing that separates it from other tenants: it needs a database, user, schema, role "
            "or row, or servers "
            "of its own (primary or nodes)",
        )
    yield from _home_faults(scope, home, unread)
    try:
        for version in scope.lived_in(home):
            rendered(home, tenant, version)
    except InvalidName as error:
        yield Fault((), str(error))


def _template_faults(template: Home) -> Iterator[Fault]:
    if not is_apart(template):
        yield Fault((), "has no {tenant} anywhere, and no row: all tenants would share one place")


def _policy_faults(home: Home, tenancy: Tenancy, unread: frozenset[str | int]) -> Iterator[Fault]:
    """The faults of a tenant's policy; a policy that all tenants share is reported once, under ``tenancy``."""
    if home.policy != tenancy.policy and not unread & {"pooling", "max_connections", "min_size"}:
        yield from tenancy_faults(home.policy)


def is_apart(home: Home) -> bool:
    """Tell whether a home separates the tenants that have it.

    Args:
        home: A home that several tenants may have.

    Returns:
        Whether something in it depends on the tenant's key.
    """
    return bool(home.row) or any("{tenant}" in name for name in names_of(home))


def _home_faults(scope: _Scope, home: Home, unread: frozenset[str | int]) -> Iterator[Fault]:
    """The faults of a home, of one tenant or of many."""
    for name in home.versions:
        yield from scope.unknown(("version",), name)
    if (own := home.cluster) is not None:
        if _without_primary(own) and not unread & {"primary", "nodes"}:
            yield Fault(
                ("replicas",),
                "is given without primary: add it, or list the servers as nodes if their roles are unknown",
            )
        yield from _repeated(own)
        for key in ("database", "user"):
            if getattr(home, key):
                yield Fault(
                    (key,), "cannot be combined with servers of its own: write it in their connection strings instead"
                )
    yield from _min_size_faults(scope, home, unread)


def _min_size_faults(scope: _Scope, home: Home, unread: frozenset[str | int]) -> Iterator[Fault]:
    if home.cluster is not None:
        pools = [] if "pool" in scope.unread.under() else [home.cluster.pool]
    else:
        pools = [scope.pools[version] for version in scope.lived_in(home) if version in scope.pools]
    most = next((pool.max_size for pool in pools if home.policy.min_size > pool.max_size), None)
    if most is not None and "min_size" not in unread:
        yield Fault((), f"min_size is {home.policy.min_size}, more than pool.max_size, which is {most}")


def _directory_faults(topology: Topology, scope: _Scope, version: str | None) -> Iterator[Fault]:
    """The faults of the directory: one connection listens to the table all the time, and another has to be left."""
    if version is None:
        return
    yield from scope.unknown(("version",), version)
    pool = scope.pools.get(scope.version(version))
    limits = {
        "max_connections": topology.max_connections,
        "max_connections_per_server": topology.max_connections_per_server,
        "max_pools": topology.max_pools,
        "pool.max_size of that version": None if pool is None else pool.max_size,
    }
    for name, limit in limits.items():
        if limit is not None and limit < 2:  # noqa: PLR2004 (one that listens, one that serves)
            yield Fault((), f"needs a connection of its own to listen, and {name} is {limit}: it must be at least 2")
