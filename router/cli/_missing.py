"""What is not there of where listed tenants live: a database, a login, a role, a schema."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from router._sync.pool.scripts import NOT_THERE, send, why_not_there
from router.cli._probe import probe_all
from router.core import sql
from router.core.errors import RouterError
from router.core.names import quoted, rendered
from router.core.observations import ProbeResult
from router.core.resolve import resolve, versions_of
from router.core.topology import Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import psycopg
    from psycopg.rows import TupleRow

    from router.cli._probe import Probe
    from router.core.topology import Cluster, Home, Node, Target, Topology

Settings: TypeAlias = tuple[tuple[str, str], ...]
"""The role and the search path that a session is set to."""


def missing(topology: Topology, probes: Mapping[Node, Probe[Any]], timeout: float) -> Iterator[str]:
    """Find what listed tenants need and is missing, as a request would find it, on one server of each.

    Args:
        topology: What is configured.
        probes: What was seen of the nodes of versions, and of tenants' own servers; what did not answer is left out.
        timeout: The most to wait for the nodes that are probed together, in seconds.

    Yields:
        What is wrong, a line a tenant and version.
    """
    wanted: defaultdict[Node, dict[str, Settings]] = defaultdict(dict)
    clusters: dict[Node, Cluster] = {}
    for tenant, home in topology.tenancy.homes.items() if topology.tenancy else ():
        for version in versions_of(topology, home):
            try:
                target = resolve(topology, version, tenant)
            except RouterError as error:
                yield f"tenant {tenant}: {error}"
                continue
            if (node := _node(target, probes)) is not None:
                whose = f"tenant {tenant}" + (f" in {target.requested}" if target.requested else "")
                wanted[node][whose] = _settings(rendered(home, tenant, version or ""))
                clusters[node] = target.cluster
    found = probe_all(clusters, lambda connection, node: _refused(connection, wanted[node]), timeout)
    for node, probe in found.items():
        if probe.answer is not None:
            for whose, reason in probe.answer.items():
                yield f"{whose}: {node}: {reason}: create or grant it, or correct the settings"
        else:
            reason = probe.error if isinstance(probe.seen, ProbeResult) else probe.seen.reason
            for whose in wanted[node]:
                yield f"{whose}: {node} cannot be used: {reason}: create what is not there, or correct the settings"


def _node(target: Target, probes: Mapping[Node, Probe[Any]]) -> Node | None:
    """Choose the node to ask, by the tenant's login: the primary if it answers, as replicas may be behind."""
    base = target.watched or target.cluster
    up = {
        index: seen.role
        for index, node in enumerate(base.nodes)
        if node in probes and isinstance(seen := probes[node].seen, ProbeResult)
    }
    if not up:
        return None
    index = min(up, key=lambda index: up[index] is not Role.PRIMARY)
    node, own = base.nodes[index], dict(target.cluster.nodes[index].params)
    params = dict(node.params) | {key: own[key] for key in ("dbname", "user") if key in own}
    return replace(node, params=tuple(sorted(params.items())))


def _settings(home: Home) -> Settings:
    path = ", ".join(map(quoted, home.schema))
    return (*((("role", home.role),) if home.role else ()), *((("search_path", path),) if path else ()))


def _refused(connection: psycopg.Connection[TupleRow], wanted: Mapping[str, Settings]) -> dict[str, str]:
    """Try what each session would be set to, and say why not."""
    refused = {}
    for whose, settings in wanted.items():
        if settings:
            try:
                send(connection, f"SELECT {', '.join(sql.settings(settings, local=True))}".encode())
            except NOT_THERE as error:
                refused[whose] = why_not_there(error)
    return refused
