"""From the keys that a request names to what serves it: pure."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from router.errors import UnknownTenant, UnknownVersion
from router.topology import Cluster, Home, Node, Scope, Target

if TYPE_CHECKING:
    from router.topology import Topology

NAME_BYTES = 63
"""How many bytes of a name PostgreSQL looks at; it cuts the rest off, and two tenants might become one."""

_PLACEHOLDER = re.compile(r"\{(tenant|version)\}")
_NO_SCHEMA = re.compile(r"pg_|information_schema$|\$user$")  # what means something of its own in search_path
_NO_ROLE = ("none", "public")


def resolve(topology: Topology, version: str | None, tenant: str | None = None, home: Home | None = None) -> Target:
    """Resolve a version or alias, or a tenant in one.

    Args:
        topology: What is configured.
        version: The key; ``None`` takes the tenant's first version, or ``default_version``.
        tenant: The tenant; ``None`` for none.
        home: Where a directory says that it lives; ``None`` to go by the settings.

    Returns:
        The target.

    Raises:
        UnknownVersion: No version or alias has this key, or none was named and there is no default.
        UnknownTenant: There is no such tenant, it does not live in that version, or none was named although there are
            tenants and no version was named, either.
    """
    if tenant is not None:
        return _of_tenant(topology, version, tenant, home or home_of(topology, tenant))
    if topology.tenancy is not None and version is None:
        raise UnknownTenant(None, "no tenant was named: name one, or name the version to do without")
    return Target(*_cluster(topology, version))


def home_of(topology: Topology, tenant: str) -> Home:
    """Say where the settings have a tenant live.

    Args:
        topology: What is configured.
        tenant: The key.

    Returns:
        Its home.

    Raises:
        UnknownTenant: There is no such tenant, or what was named is no key.
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
    """Make sure that something is a tenant's key, before anything is made of it.

    Args:
        pattern: What a key looks like.
        tenant: What a request named.

    Raises:
        UnknownTenant: It does not look so.
    """
    if not isinstance(tenant, str) or not _compiled(pattern).fullmatch(tenant) or "\0" in tenant:
        raise UnknownTenant(tenant, f"a key looks like {pattern} (tenancy.pattern)")


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
    keys = {"tenant": tenant, "version": base.name}
    if home.cluster is not None:
        base = _rendered(home.cluster, keys, f"tenant {tenant}" + (f" in {requested}" if requested else ""))
    name = _named(tenant, base.name)
    database, user = name("database", home.database), name("user", home.user)
    settings: list[tuple[str, str]] = []
    if home.schema:
        schemas = [name("schema", schema) for schema in home.schema]
        settings.append(("search_path", ", ".join(map(quoted, schemas))))
    if home.role:
        settings.append(("role", name("role", home.role)))
    if home.row:
        settings.append((home.row, tenant))
    shared = home.policy.pooling == "shared" or any(node.pooler == "transaction" for node in base.nodes)
    options = () if shared else tuple(settings)
    scope = None
    if shared or home.policy.hygiene == "full":
        scope = Scope(tenant, tuple(settings) if shared else (), home.policy.hygiene)
    cluster = base
    if database or user or options:
        cluster = replace(cluster, nodes=tuple(_for_tenant(node, database, user, options) for node in base.nodes))
    if home.policy.min_size:
        cluster = replace(cluster, pool=replace(base.pool, min_size=home.policy.min_size))
    return Target(requested, cluster, tenant, scope, shared, home.policy, base)


def _base(topology: Topology, version: str | None, tenant: str, home: Home) -> tuple[str, Cluster]:
    """The version that a request for a tenant is for; with servers of its own, it need not be in any."""
    own = home.cluster
    if own is not None and not home.versions:
        if version is None and not _names_version(own):
            return "", own
        if version is not None and not _names_version(own):
            raise UnknownTenant(
                tenant, f"it has servers of its own, and lives in no version {version!r}", version=version
            )
    requested, base = _cluster(topology, home.versions[0] if version is None and home.versions else version)
    if home.versions and base.name not in {topology.aliases.get(key, key) for key in home.versions}:
        lives = " and ".join(map(repr, home.versions))
        raise UnknownTenant(tenant, f"it lives in {lives}, not in {requested!r}", version=version)
    return requested, base


def _names_version(cluster: Cluster) -> bool:
    return any("{version}" in value for node in cluster.nodes for _, value in node.params)


def _rendered(cluster: Cluster, keys: dict[str, str], name: str) -> Cluster:
    """Servers of a tenant's own, with the keys in their connection strings; each value is its own, nothing to quote."""

    def node(node: Node) -> Node:
        params = tuple((name, _render(value, keys)) for name, value in node.params)
        server = replace(
            node.server, host=_render(node.server.host, keys), database=_render(node.server.database, keys)
        )
        return node if params == node.params else replace(node, server=server, params=params)

    return replace(cluster, name=name, nodes=tuple(map(node, cluster.nodes)))


def _render(text: str, keys: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: keys[match[1]], text)


def _named(tenant: str, version: str) -> _Named:
    return _Named(tenant, {"tenant": tenant, "version": version})


class _Named:
    """Makes names of templates, and sees that PostgreSQL takes them for what they are."""

    def __init__(self, tenant: str, keys: dict[str, str]) -> None:
        self._tenant = tenant
        self._keys = keys

    def __call__(self, kind: str, template: str) -> str:
        name = _render(template, self._keys)
        if len(name.encode(errors="replace")) > NAME_BYTES:
            raise UnknownTenant(self._tenant, f"the name of its {kind} is longer than {NAME_BYTES} bytes")
        if (kind == "schema" and _NO_SCHEMA.match(name)) or (kind in ("role", "user") and name in _NO_ROLE):
            raise UnknownTenant(self._tenant, f"{name!r} means something else to PostgreSQL than a {kind}")
        return name


def quoted(name: str) -> str:
    """Quote a name, by PostgreSQL's rules.

    Args:
        name: The name of a schema, say.

    Returns:
        The name as it stands in SQL, and in ``search_path``.
    """
    return '"' + name.replace('"', '""') + '"'


def option(name: str, value: str) -> str:
    """Write a setting as a startup option.

    Args:
        name: The setting.
        value: Its value.

    Returns:
        What goes into libpq's ``options``, where white space and backslashes are escaped.
    """
    return "-c " + re.sub(r"([\s\\])", r"\\\1", f"{name}={value}")


def _for_tenant(node: Node, database: str, user: str, settings: tuple[tuple[str, str], ...]) -> Node:
    params = dict(node.params)
    if database:
        params["dbname"] = database
    if user:
        params["user"] = user
    if settings:
        params["options"] = " ".join(filter(None, (params.get("options"), *(option(*setting) for setting in settings))))
    return replace(node, params=tuple(sorted(params.items())))
