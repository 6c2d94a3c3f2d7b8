"""Tenants that would share their data, because their keys lead to the same place."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from router.core.errors import UnknownTenant
from router.core.faults import Fault
from router.core.names import names_of, rendered
from router.core.resolve import login, resolve, versions_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.core.topology import Home, Topology


def duplicates(topology: Topology, *, directory: bool) -> Iterator[Fault]:
    """Find listed tenants that live where another key leads, too: one listed before, or one that the template has.

    Args:
        topology: A topology without other faults.
        directory: Whether a directory says where the tenants live that are not listed.

    Yields:
        One fault for each of those tenants.
    """
    tenancy = topology.tenancy
    if tenancy is None:
        return
    template = None if directory else tenancy.template  # with a directory, that alone knows which keys there are
    patterns = {} if template is None else _keys_of(topology, template)
    first: dict[object, str] = {}  # by place, whichever version it is in: two may be in one database
    for tenant, home in tenancy.homes.items():
        places = {version: _place(topology, version, home, tenant) for version in versions_of(topology, home)}
        listed = [other for place in places.values() if (other := first.setdefault(place, tenant)) != tenant]
        templated = (
            key
            for version in places.keys() & patterns.keys()
            for key in _matching(patterns[version], version, home, tenant)
            if key not in tenancy.homes and template and _placed(topology, version, template, key) == places[version]
        )
        if listed:
            text = f"lives in the same place as tenant {listed[0]!r}: give one of them another home"
            yield Fault(("tenants", tenant), text)
        elif (key := next(templated, None)) is not None:
            text = f"lives in the same place that tenant_template gives {key!r}: move it, or list both"
            yield Fault(("tenants", tenant), text)


def _keys_of(topology: Topology, template: Home) -> dict[str | None, re.Pattern[str]]:
    """For each version, what a name looks like that the template makes of a tenant's key."""
    written = next((name for name in names_of(template) if "{tenant}" in name), None)
    if written is None:
        return {}
    patterns = {}
    for version in versions_of(topology, template):
        pattern = re.escape(written.replace("{version}", version or ""))
        pattern = pattern.replace(r"\{tenant\}", "(?P<key>.+)", 1).replace(r"\{tenant\}", "(?P=key)")
        patterns[version] = re.compile(pattern)
    return patterns


def _matching(pattern: re.Pattern[str], version: str | None, home: Home, tenant: str) -> list[str]:
    """The keys of which the template may make one of the names in a home."""
    names = names_of(rendered(home, tenant, version or ""))
    return sorted({match["key"] for name in names if (match := pattern.fullmatch(name))})


def _placed(topology: Topology, version: str | None, template: Home, key: str) -> object:
    """Where the template has a tenant live; ``None`` if the key is no tenant's."""
    with suppress(UnknownTenant):
        resolve(topology, version, key)
        return _place(topology, version, template, key)
    return None


def _place(topology: Topology, version: str | None, home: Home, tenant: str) -> object:
    """What keeps a tenant apart from others: two of whom it is the same are one."""
    there = rendered(home, tenant, version or "")
    cluster = there.cluster or topology.versions.get(version or "")
    nodes = frozenset(
        (node.server, there.database or login(node)[0], there.user or login(node)[1])
        for node in (cluster.nodes if cluster else ())
    )
    return nodes, there.schema, there.role, there.row and (there.row, tenant)
