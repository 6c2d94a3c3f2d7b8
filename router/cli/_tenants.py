"""The tenants that there are: those of the settings, and those in the directory's table."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg

from router import Router
from router._sync.pool.scripts import cursor_of
from router.core import sql
from router.core.errors import ConfigError, RouterError, UnknownTenant
from router.core.outcomes import needs_list, selected
from router.core.resolve import check_key, home_of, lives_in, resolve
from router.core.topology import Home
from router.settings import TENANT_KEYS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router import RouterSettings
    from router.core.topology import Tenancy, Topology

UNLISTED = (
    "note: tenants that only [tenant_template] describes are not among them: name their keys (a,b,c), or keep them in "
    "the table of [directory]"
)

Homes: TypeAlias = dict[str, Home | ConfigError]
"""Where each tenant lives, or what is wrong with what the directory says of it."""


def meant(settings: RouterSettings, topology: Topology, pattern: str, version: str | None) -> Homes:
    """Find the tenants that a pattern stands for.

    Args:
        settings: The settings.
        topology: What they describe.
        pattern: As for :func:`router.core.outcomes.selected`.
        version: Of those who are not named by their keys, only those who live in this version; ``None`` for all.

    Returns:
        The tenants, in the order of the pattern's parts, of the settings, and of the directory.

    Raises:
        UnknownVersion: There is no such version.
        UnknownTenant: The pattern matches no tenant.
        RouterError: The directory's table cannot be read.
    """
    if version is not None:
        resolve(topology, version)
    if not needs_list(pattern):
        return named(settings, topology, selected(pattern, ()))
    tenancy = _tenancy(topology)
    if tenancy.template is not None and tenancy.directory.version is None:
        print(UNLISTED, file=sys.stderr)
    listed: Homes = {**_asked(settings, tenancy, None), **tenancy.homes}
    living = [
        key
        for key in dict.fromkeys([*tenancy.homes, *listed])
        if version is None or isinstance(home := listed[key], ConfigError) or lives_in(topology, version, home)
    ]
    keys = selected(pattern, living)
    others = named(settings, topology, [key for key in keys if key not in listed])
    return {key: listed.get(key) or others[key] for key in keys}


def named(settings: RouterSettings, topology: Topology, keys: Sequence[str]) -> Homes:
    """Find the tenants with certain keys, be they listed or not.

    Args:
        settings: The settings.
        topology: What they describe.
        keys: The keys.

    Returns:
        The tenants.

    Raises:
        UnknownTenant: One is not there.
        RouterError: The directory's table cannot be read.
    """
    tenancy = _tenancy(topology)
    for key in keys:
        check_key(tenancy.pattern, key)
    if tenancy.directory.version is None:
        return {key: home_of(topology, key) for key in keys}
    said = _asked(settings, tenancy, [key for key in keys if key not in tenancy.homes])
    found: Homes = {key: home for key in keys if (home := tenancy.homes.get(key) or said.get(key))}
    for key in keys:
        if key not in found:
            raise UnknownTenant(key, known=tenancy.homes)
    return found


def in_words(home: Home) -> str:
    """Say where a tenant lives.

    Args:
        home: Its home, without placeholders.

    Returns:
        What keeps it apart, such as ``database app, schema acme``.
    """
    parts = {kind: ", ".join(value) if isinstance(value, list) else value for kind, value in home_as_json(home).items()}
    return ", ".join(f"{kind} {value}" for kind, value in parts.items() if value)


def home_as_json(home: Home) -> dict[str, Any]:
    """Say where a tenant lives, for programs.

    Args:
        home: Its home, without placeholders.

    Returns:
        What keeps it apart; ``None`` or empty for what does not.
    """
    return {
        "servers": [] if home.cluster is None else [str(node.server) for node in home.cluster.nodes],
        "database": home.database or None,
        "user": home.user or None,
        "schema": list(home.schema),
        "role": home.role or None,
        "row": home.row or None,
    }


def _tenancy(topology: Topology) -> Tenancy:
    if topology.tenancy is None:
        raise UnknownTenant(None, "the settings have no tenants: add [tenants.KEY], [tenant_template] or [directory]")
    return topology.tenancy


def _asked(settings: RouterSettings, tenancy: Tenancy, keys: Sequence[str] | None) -> Homes:
    """What the directory's table says, of some or of all."""
    directory = tenancy.directory
    if directory.version is None or (keys is not None and not keys):
        return {}
    with Router(settings) as router, router.connection(version=directory.version) as connection:
        cursor = cursor_of(connection)
        try:
            if keys is None:
                rows = cursor.execute(sql.homes_of(directory.table).encode()).fetchall()
            else:
                one = sql.tenant_of(directory.table).encode()
                rows = [row for key in keys for row in cursor.execute(one, [key])]
        except psycopg.ProgrammingError as error:
            raise RouterError(
                f"the table {directory.table} cannot be read: {error.diag.message_primary}; "
                "`router tenants --sql` prints how to make it"
            ) from None
    found: Homes = {}
    for row in rows:
        key = str(row["tenant"])  # as requests name it, whatever type the column has
        try:
            check_key(tenancy.pattern, key)
            found[key] = _home(settings, key, row)
        except UnknownTenant as error:
            found[repr(key)] = ConfigError([f"directory: {error}"])  # nothing of it for the terminal to obey
    return found


def _home(settings: RouterSettings, key: str, row: dict[str, Any]) -> Home | ConfigError:
    said = {key: row[key] for key in TENANT_KEYS & row.keys() if row[key] is not None}
    try:
        return settings.home(key, said)
    except ConfigError as error:
        return error
