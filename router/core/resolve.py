"""Resolves the version and tenant that a request names to a target: pure."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from router.core.errors import UnknownTenant, UnknownVersion
from router.core.names import InvalidName, option, quoted, rendered, texts_of
from router.core.topology import Cluster, Home, Node, Scope, Target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.core.topology import Topology


APPLICATION = "router"
"""The first part of a tenant's ``application_name``, before its key, if the connection string has none."""


def resolve(topology: Topology, version: str | None, tenant: str | None = None, home: Home | None = None) -> Target:
    """Resolve a version or alias, or a tenant in one.

    Args:
        topology: The topology.
        version: The version or alias; ``None`` takes the tenant's first version, or ``default_version``.
        tenant: The tenant; ``None`` for none.
        home: The tenant's home by a directory; ``None`` takes the home in the settings.

    Returns:
        The target.

    Raises:
        UnknownVersion: No version or alias has this key, or none was named and there is no default.
        UnknownTenant: There is no such tenant, or it does not live in that version; or neither a tenant nor a version
            was named although there are tenants.
    """
    if tenant is not None:
        return _of_tenant(topology, version, tenant, home or home_of(topology, tenant))
    if topology.tenancy is not None and version is None:
        raise UnknownTenant(
            None,
            "no tenant was named, and no use() is in force here: name a tenant, or name the version to "
            "work without one",
        )
    return Target(*_cluster(topology, version))


def home_of(topology: Topology, tenant: str) -> Home:
    """Return the home of a tenant by the settings.

    Args:
        topology: The topology.
        tenant: The tenant's key.

    Returns:
        The home.

    Raises:
        UnknownTenant: There is no such tenant, or the value is not a valid key.
    """
    tenancy = topology.tenancy
    if tenancy is None:
        raise UnknownTenant(tenant, "the settings have no tenants")
    check_key(tenancy.pattern, tenant)
    home = tenancy.homes.get(tenant, tenancy.template)
    if home is None:
        raise UnknownTenant(tenant, known=tenancy.homes)
    return home


def check_key(pattern: str, tenant: object) -> None:
    """Check that a value is a valid key of a tenant, before the key is used to make a name.

    Args:
        pattern: The pattern of keys.
        tenant: The value that a request named.

    Raises:
        UnknownTenant: The value is not a valid key.
    """
    # Whatever the pattern is, a key is not empty and holds nothing that cannot be sent, such as NUL or lone surrogates.
    if not (isinstance(tenant, str) and tenant and tenant.isprintable() and _compiled(pattern).fullmatch(tenant)):
        kind = "" if isinstance(tenant, str) else f"is a str, not {type(tenant).__name__}, and "
        raise UnknownTenant(tenant, f"a key {kind}matches {pattern} (tenancy.pattern)")


@lru_cache(maxsize=8)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _cluster(topology: Topology, version: str | None) -> tuple[str, Cluster]:
    requested = topology.default_version if version is None else version
    if requested is not None:
        cluster = topology.versions.get(topology.aliases.get(requested, requested))
        if cluster is not None:
            return requested, cluster
    raise UnknownVersion(requested, sorted({*topology.versions, *topology.aliases}))


def _of_tenant(topology: Topology, version: str | None, tenant: str, home: Home) -> Target:
    requested, base = _base(topology, version, tenant, home)
    try:
        written, home = home, rendered(home, tenant, base.name)
        _keep_off(topology, written, home)
    except InvalidName as error:
        raise UnknownTenant(tenant, str(error), version=version) from None
    if home.cluster is not None:
        base = home.cluster._replace(name=f"tenant {tenant}" + (f" in {base.name}" if requested else ""))
    settings: list[tuple[str, str]] = []
    path = ", ".join(map(quoted, home.schema))
    if path:
        settings.append(("search_path", path))
    if home.role:
        settings.append(("role", home.role))
    if home.row:
        settings.append((home.row, tenant))
    shared = home.policy.pooling == "shared" or any(node.pooler == "transaction" for node in base.nodes)
    options = () if shared else tuple(settings)
    application = f"{dict(base.nodes[0].params).get('application_name', APPLICATION)}/{tenant}"
    if shared:
        settings.append(("application_name", application))
    scope = None
    if shared or home.policy.hygiene == "full":
        scope = Scope(tenant, tuple(settings) if shared else (), home.policy.hygiene)
    cluster = base
    own = {"dbname": home.database, "user": home.user, "application_name": "" if shared else application}
    if options or any(own.values()):
        cluster = cluster._replace(nodes=tuple(_for_tenant(node, own, options) for node in base.nodes))
    if home.policy.min_size and not shared:
        cluster = cluster._replace(pool=replace(base.pool, min_size=home.policy.min_size))
    return Target(requested, cluster, tenant, scope, shared, options, home.policy, base)


def _base(topology: Topology, version: str | None, tenant: str, home: Home) -> tuple[str, Cluster]:
    """The version that a request for a tenant is for; a tenant with servers of its own may live in no version."""
    own = home.cluster
    if own is not None and not home.versions:
        names_version = _names_version(home, own)
        if version is None and not names_version:
            return "", own
        if version is not None and not names_version:
            raise UnknownTenant(
                tenant, f"it has servers of its own and lives in no version: leave {version!r} out", version=version
            )
    requested, base = _cluster(topology, home.versions[0] if version is None and home.versions else version)
    if not lives_in(topology, base.name, home):
        lives = " and ".join(map(repr, home.versions))
        raise UnknownTenant(tenant, f"it lives in {lives}, not in {requested!r}", version=version)
    return requested, base


def lives_in(topology: Topology, version: str, home: Home) -> bool:
    """Tell whether a tenant lives in a version.

    Args:
        topology: The topology.
        version: The version, or an alias of it.
        home: Where the tenant lives.

    Returns:
        Whether a request for the tenant may name that version.

    Raises:
        UnknownVersion: There is no such version.
    """
    _, base = _cluster(topology, version)
    if home.versions:
        return base.name in {topology.aliases.get(key, key) for key in home.versions}
    return home.cluster is None or _names_version(home, home.cluster)


def _names_version(home: Home, own: Cluster) -> bool:
    texts = [home.role, *home.schema, *(text for node in own.nodes for text in texts_of(node))]
    return any("{version}" in text for text in texts)


def versions_of(topology: Topology, home: Home) -> list[str | None]:
    """List the versions that a tenant lives in.

    Args:
        topology: The topology.
        home: Where the tenant lives.

    Returns:
        The keys, in the order of the settings; ``[None]`` if the tenant has servers of its own and lives in no version.
    """
    return [version for version in topology.versions if lives_in(topology, version, home)] or [None]


def _keep_off(topology: Topology, written: Home, home: Home) -> None:
    """Refuse a tenant's key that makes the name of a version's own database or login, which sees all tenants."""
    if home is written:
        return
    nodes = [node for cluster in topology.versions.values() for node in cluster.nodes]
    params = [dict(node.params) for node in nodes]
    logins = {one.get("user", "") for one in params}
    taken = {"role": logins, "user": logins, "database": {one.get("dbname") or one.get("user", "") for one in params}}
    for kind, names in taken.items():
        name = getattr(home, kind)
        if name != getattr(written, kind) and name in names:
            raise InvalidName(f"{name!r} is a version's own {kind}")
    if home.cluster is not None and written.cluster is not None:
        own = {(node.server, name) for node in nodes for name in login(node)}
        for before, node in zip(written.cluster.nodes, home.cluster.nodes, strict=True):
            for kind, was, name in zip(("database", "user"), login(before), login(node), strict=True):
                if (node.server, name) in own and (before.server, was) != (node.server, name):
                    raise InvalidName(f"{name!r} is a version's own {kind}")


def login(node: Node) -> tuple[str, str]:
    """Return the database and the user of a node.

    Args:
        node: The node.

    Returns:
        The database and the user.
    """
    params = dict(node.params)
    user = params.get("user", "")
    return params.get("dbname") or user, user


def _for_tenant(node: Node, own: Mapping[str, str], settings: tuple[tuple[str, str], ...]) -> Node:
    params = dict(node.params) | {param: value for param, value in own.items() if value}
    if settings:
        params["options"] = " ".join(filter(None, (params.get("options"), *(option(*setting) for setting in settings))))
    return replace(node, params=tuple(sorted(params.items())))
