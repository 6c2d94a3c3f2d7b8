"""What ``router check`` finds wrong: in the settings, in what the servers say of themselves, and between the two."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from router._sync.pool.scripts import cursor_of
from router.cli._missing import missing
from router.cli._probe import observe_all, probe_all
from router.core import sql
from router.core.health import REFUSES_WRITES
from router.core.names import counted
from router.core.observations import ProbeResult
from router.core.policies import HealthPolicy, PoolPolicy
from router.core.replication import fenced, foreign
from router.core.resolve import resolve, versions_of
from router.core.topology import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from psycopg.rows import TupleRow

    from router import RouterSettings
    from router.cli._probe import Probe
    from router.core.topology import Cluster, Node, Server, Topology


class Facts(NamedTuple):
    """What a server says of itself.

    Attributes:
        connections: How many this login may have open, by the limits of the server, the role and the database.
        position_bytes: Where its WAL ends, or how far a replica has replayed it.
        paused: Whether a replica's replay is paused.
        receiver: The status of a replica's WAL receiver, as far as we may know it; ``None`` when none runs.
    """

    connections: int
    position_bytes: int | None
    paused: bool
    receiver: str | None


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that was found out.

    Attributes:
        versions: What the versions are made of.
        tenants: The servers of their own that listed tenants have.
        processes: How many processes use the configuration.
        probes: What was seen of each node.
        may_open: The most connections that they all may open on each server.
        problems: What is wrong, and what to do.
        warnings: What may be wrong, or will be, and what to do.
    """

    versions: Sequence[Cluster]
    tenants: Sequence[Cluster]
    processes: int
    probes: Mapping[Node, Probe[Facts]]
    may_open: Mapping[Server, int]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


_TRIES = 4
"""How many connections have to show whether an address leads to several servers: two may be alike by chance."""

_BY_DEFAULT = "These limits are the defaults: once one of them is set, or with --processes, this is an error"


def find(
    settings: RouterSettings, topology: Topology, only: Cluster | None, processes: int | None, timeout: float
) -> Findings:
    """Ask every server, and find out what is wrong.

    Args:
        settings: The settings.
        topology: What they say.
        only: The version to check; ``None`` for all.
        processes: How many processes will use them; ``None`` where that was not said.
        timeout: The most to wait for the servers, in seconds.

    Returns:
        What was found.
    """
    versions, tenants = list(topology.versions.values()) if only is None else [only], _of_tenants(topology, only)
    clusters = [*versions, *tenants]
    probes = probe_all({node: cluster for cluster in clusters for node in cluster.nodes}, _ask, timeout)
    everywhere = [*topology.versions.values(), *_of_tenants(topology)]
    may_open = {server: count * (processes or 1) for server, count in _may_open(topology, everywhere).items()}
    problems = [problem for cluster in clusters for problem in _problems(cluster, probes)]
    problems += missing(topology, probes, timeout)
    pooled = list(_pooled(clusters, probes))
    warnings = [*_several_servers(clusters, probes, timeout), *_of_environment()]
    (warnings if topology.tenancy is None else problems).extend(pooled)
    too_many = list(_too_many_connections(probes, may_open, processes or 1))
    if processes is None and not _are_chosen(settings, topology):
        warnings += [f"{problem}. {_BY_DEFAULT}" for problem in too_many]
    else:
        problems += too_many
    return Findings(versions, tenants, processes or 1, probes, may_open, tuple(problems), tuple(warnings))


def _are_chosen(settings: RouterSettings, topology: Topology) -> bool:
    """Whether the limits that say how many connections there may be were set, and are not the defaults."""
    if settings.model_fields_set & {"max_connections", "max_connections_per_server"}:
        return True
    sizes = {cluster.pool.max_size for cluster in topology.versions.values()}
    return topology.tenancy is None and sizes != {PoolPolicy().max_size}


def _of_tenants(topology: Topology, only: Cluster | None = None) -> list[Cluster]:
    """The servers of their own that listed tenants have, each once; those in one version, if only that is meant."""
    found: dict[tuple[Node, ...], Cluster] = {}
    for tenant, home in topology.tenancy.homes.items() if topology.tenancy else ():
        if home.cluster is not None:
            lived_in = [key for key in versions_of(topology, home) if only is None or key == only.name]
            targets = (resolve(topology, version, tenant) for version in lived_in)
            for cluster in (target.watched or target.cluster for target in targets):
                found.setdefault(cluster.nodes, cluster)
    return list(found.values())


def _ask(connection: psycopg.Connection[TupleRow], _: Node) -> Facts:
    [facts] = cursor_of(connection).execute(sql.SERVER_FACTS)
    return Facts(**facts)


def _identity(connection: psycopg.Connection[TupleRow], _: Node) -> tuple[str, ...]:
    [identity] = cursor_of(connection).execute(sql.SERVER_IDENTITY)
    return tuple(identity.values())


def _pooled(clusters: Iterable[Cluster], probes: Mapping[Node, Probe[Facts]]) -> Iterator[str]:
    for cluster in clusters:
        for node in cluster.nodes:
            if isinstance(seen := probes[node].seen, ProbeResult) and seen.undeclared_pooler:
                yield (
                    f'{cluster.name}: {node} is a pooler, such as PgBouncer: say so by pooler = "transaction" or '
                    '"session" of the node, or tenants may be mixed up there'
                )


def _several_servers(clusters: Iterable[Cluster], probes: Mapping[Node, Probe[Facts]], timeout: float) -> Iterator[str]:
    """Which addresses lead to more than one server, as far as a few connections to each can show."""
    up = {node: cluster for cluster in clusters for node in cluster.nodes if probes[node].answer}
    rounds = [probe_all(up, _identity, timeout) for _ in range(_TRIES)]
    for node, cluster in up.items():
        if len({probe.answer for seen in rounds if (probe := seen[node]).answer}) > 1:
            yield (
                f"{cluster.name}: several servers answer at {node}, and what is known of one need not hold for another "
                "(lag, sessions that read their own writes): list each server by an address of its own"
            )


def _of_environment() -> Iterator[str]:
    if os.environ.get("PGTARGETSESSIONATTRS", "any") != "any":
        yield (
            "PGTARGETSESSIONATTRS is set, which says to other programs which servers to take: the router finds out by "
            "itself, take it out of its environment"
        )


def _may_open(topology: Topology, clusters: Iterable[Cluster]) -> dict[Server, int]:
    """The most connections that one process opens on each server; roles that are discovered may be any."""
    most: defaultdict[Server, int] = defaultdict(int)
    pools: dict[tuple[Node, bool], int] = {}
    for cluster in clusters:
        for node in cluster.nodes:
            if node.role is not Role.REPLICA:
                pools[node, False] = cluster.pool.max_size
            if node.role is not Role.PRIMARY or cluster.read.fallback == "primary":
                pools[node, True] = cluster.pool.max_size
    for (node, _), size in pools.items():
        most[node.server] += size
    limit = min(filter(None, (topology.max_connections, topology.max_connections_per_server)))
    if topology.tenancy is not None:  # whose pools are as many as it takes
        return dict.fromkeys(most, limit)
    # One more is the connection of the probes.
    return {server: min(count + 1, limit) for server, count in most.items()}


def _problems(cluster: Cluster, probes: Mapping[Node, Probe[Facts]]) -> Iterator[str]:
    primaries = []
    for node in cluster.nodes:
        seen = probes[node].seen
        if isinstance(seen, ProbeResult):
            if seen.role is Role.PRIMARY:
                primaries.append(node)
                if seen.refuses_writes:
                    yield (
                        f"{cluster.name}: {node} cannot be written to: {REFUSES_WRITES} for the server, its database "
                        "or its role, and writes wait until it is off"
                    )
            for problem in _problems_of_node(node, seen.role, probes[node]):
                yield f"{cluster.name}: {node} {problem}"
        elif seen.answered:
            yield (
                f"{cluster.name}: {node} refuses the login: {seen.reason}; correct user, password or database, "
                "or the server's pg_hba.conf"
            )
        else:
            yield f"{cluster.name}: {node} cannot be reached: {seen.reason}; start the server, or correct its address"
    if cluster.nodes[0].role is None and len(primaries) != 1:
        if primaries:
            yield (
                f"{cluster.name}: {len(primaries)} nodes are primaries, each with writes of its own: "
                f"{', '.join(map(str, primaries))}: stop all but one, and let them rejoin it as replicas"
            )
        else:
            yield f"{cluster.name}: no node is a primary that answers: promote a replica, or add the primary to `nodes`"
    yield from _problems_between(cluster, probes)


def _problems_between(cluster: Cluster, probes: Mapping[Node, Probe[Facts]]) -> Iterator[str]:
    """Whom the router leaves out because of what the others say."""
    known = observe_all({}, (probes[node] for node in cluster.nodes), now=0.0, policy=HealthPolicy())
    if others := foreign(known, cluster):
        systems = {node: known[node.server].system for node in cluster.nodes if node.server in known}
        listing = ", ".join(f"{node} ({system})" for node, system in systems.items() if system)
        whom = ", ".join(map(str, others))
        yield (
            f"{cluster.name}: its nodes are no copies of one another, by their system identifiers: {listing}; "
            f"the router leaves out {whom}: correct the addresses, or make them copies"
        )
    for node, reason in fenced(known, cluster).items():
        if node not in others and cluster.nodes[0].role is not None:
            yield f"{cluster.name}: {node} is {reason}: correct the settings, or make it a replica"


def _problems_of_node(node: Node, role: Role, found: Probe[Facts]) -> Iterator[str]:
    if node.role is not None and node.role is not role:
        yield (
            f"is configured as {node.role} and is a {role}: correct the settings, or list the version's nodes under "
            "`nodes`, where roles are discovered"
        )
    if found.answer is None:
        yield f"could not be asked: {found.error}"
        return
    if found.answer.paused:
        yield "has paused replay, its data grow old: SELECT pg_wal_replay_resume()"
    # Where replay has no position, as on hosted servers with storage of their own, there is no receiver to miss.
    if role is Role.REPLICA and found.answer.receiver is None and found.answer.position_bytes is not None:
        yield "receives nothing from its primary: see its log, and its primary_conninfo"


def _too_many_connections(
    probes: Mapping[Node, Probe[Facts]], may_open: Mapping[Server, int], processes: int
) -> Iterator[str]:
    allowed = {node.server: found.answer.connections for node, found in probes.items() if found.answer}
    for server, most in may_open.items():
        if server in allowed and most > allowed[server]:
            yield (
                f"{server} allows {counted(allowed[server], 'connection')}, and this configuration may open "
                f"{most} ({processes} x {most // processes}): lower max_connections, "
                "max_connections_per_server or pool.max_size, or raise the limit of the server, role or database"
            )
