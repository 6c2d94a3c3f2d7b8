"""``router check``."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import psycopg
import typer
from rich.text import Text

from router._sync.pool.scripts import cursor_of
from router.cli._common import FAILED, AsJson, Config, load, print_json
from router.cli._look import learn, look_at
from router.cli._missing import missing
from router.cli._screen import Column, console, listed, table
from router.core import sql
from router.core.health import REFUSES_WRITES
from router.core.observations import ProbeResult
from router.core.policies import HealthPolicy, PoolPolicy
from router.core.replication import fenced, foreign
from router.core.resolve import resolve, versions_of
from router.core.topology import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from psycopg.rows import TupleRow

    from router import RouterSettings
    from router.cli._look import Look
    from router.core.topology import Cluster, Node, Server, Topology


class _Facts(NamedTuple):
    """What a server says of itself.

    Attributes:
        connections: How many ordinary users may have open.
        position_bytes: Where its WAL ends, or how far a replica has replayed it.
        paused: Whether a replica's replay is paused.
        receiver: The status of a replica's WAL receiver, as far as we may know it; ``None`` when none runs.
    """

    connections: int
    position_bytes: int | None
    paused: bool
    receiver: str | None


@dataclass(frozen=True, slots=True)
class _Report:
    """Everything that was found out.

    Attributes:
        versions: What the versions are made of.
        tenants: The servers of their own that listed tenants have.
        processes: How many processes use the configuration.
        looks: What was seen of each node.
        may_open: The most connections that they all may open on each server.
        problems: What is wrong, and what to do.
        warnings: What may be wrong, or will be, and what to do.
    """

    versions: Sequence[Cluster]
    tenants: Sequence[Cluster]
    processes: int
    looks: Mapping[Node, Look[_Facts]]
    may_open: Mapping[Server, int]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


_TRIES = 4
"""How many connections have to show whether an address leads to several servers: two may be alike by chance."""


def check(
    *,
    version: Annotated[
        str | None, typer.Option("--version", metavar="KEY", help="A version or an alias.", show_default="all")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many processes will use this configuration.", show_default="1")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="The most to wait for the servers, in seconds.")] = 5.0,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Check the settings, and every server of the versions and of listed tenants that have their own.

    `router tenants` also asks those that the directory's table names.

    Is each node reachable, and a primary or replica as configured? Do replicas follow the primary? Are the database,
    schema and role of each listed tenant there? Does each server allow as many connections as this configuration may
    open there, whichever node is the primary? Fails if anything is wrong, and says what to do. It warns of what the
    settings do not say: several servers behind one address, a pooler, default limits that are more than the server
    allows.

    \b
    router check --config config/router.toml --processes 4
    """  # noqa: D301  (\b keeps the lines as they are)
    settings = load(config)
    topology = settings.topology()
    only = None if version is None else resolve(topology, version).cluster
    versions, tenants = list(topology.versions.values()) if only is None else [only], _of_tenants(topology, only)
    clusters = [*versions, *tenants]
    looks = look_at({node: cluster for cluster in clusters for node in cluster.nodes}, _ask, timeout)
    everybody = [*topology.versions.values(), *_of_tenants(topology)]
    may_open = {server: count * (processes or 1) for server, count in _may_open(topology, everybody).items()}
    problems = [problem for cluster in clusters for problem in _problems(cluster, looks)]
    problems += missing(topology, looks, timeout)
    pooled = list(_pooled(clusters, looks))
    warnings = [*_several_servers(clusters, looks, timeout), *_of_environment()]
    (warnings if topology.tenancy is None else problems).extend(pooled)
    too_many = list(_too_many_connections(looks, may_open, processes or 1))
    if processes is None and not _are_chosen(settings, topology):
        warnings += [f"{problem}. {_BY_DEFAULT}" for problem in too_many]
    else:
        problems += too_many
    report = _Report(versions, tenants, processes or 1, looks, may_open, tuple(problems), tuple(warnings))
    if as_json:
        print_json(_as_json(report))
    else:
        _print(report)
    if problems:
        raise typer.Exit(FAILED)


_BY_DEFAULT = "These limits are the defaults: once one of them is set, or with --processes, this is an error"


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


def _ask(connection: psycopg.Connection[TupleRow], _: Node) -> _Facts:
    [facts] = cursor_of(connection).execute(sql.SERVER_FACTS)
    return _Facts(**facts)


def _identity(connection: psycopg.Connection[TupleRow], _: Node) -> tuple[str, ...]:
    [identity] = cursor_of(connection).execute(sql.SERVER_IDENTITY)
    return tuple(identity.values())


def _pooled(clusters: Iterable[Cluster], looks: Mapping[Node, Look[_Facts]]) -> Iterator[str]:
    for cluster in clusters:
        for node in cluster.nodes:
            if isinstance(seen := looks[node].seen, ProbeResult) and seen.undeclared_pooler:
                yield (
                    f'{cluster.name}: {node} is a pooler, such as PgBouncer: say so by pooler = "transaction" or '
                    '"session" of the node, or tenants may be mixed up there'
                )


def _several_servers(clusters: Iterable[Cluster], looks: Mapping[Node, Look[_Facts]], timeout: float) -> Iterator[str]:
    """Which addresses lead to more than one server, as far as a few connections to each can show."""
    up = {node: cluster for cluster in clusters for node in cluster.nodes if looks[node].answer}
    rounds = [look_at(up, _identity, timeout) for _ in range(_TRIES)]
    for node, cluster in up.items():
        if len({look.answer for seen in rounds if (look := seen[node]).answer}) > 1:
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
    # And one that looks at the server.
    return {server: min(count + 1, limit) for server, count in most.items()}


def _problems(cluster: Cluster, looks: Mapping[Node, Look[_Facts]]) -> Iterator[str]:
    primaries = []
    for node in cluster.nodes:
        seen = looks[node].seen
        if isinstance(seen, ProbeResult):
            if seen.role is Role.PRIMARY:
                primaries.append(node)
                if seen.refuses_writes:
                    yield (
                        f"{cluster.name}: {node} cannot be written to: {REFUSES_WRITES} for the server, its database "
                        "or its role, and writes wait until it is off"
                    )
            for problem in _problems_of_node(node, seen.role, looks[node]):
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
    yield from _problems_between(cluster, looks)


def _problems_between(cluster: Cluster, looks: Mapping[Node, Look[_Facts]]) -> Iterator[str]:
    """Whom the router leaves out because of what the others say."""
    known = learn({}, (looks[node] for node in cluster.nodes), now=0.0, policy=HealthPolicy())
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


def _problems_of_node(node: Node, role: Role, found: Look[_Facts]) -> Iterator[str]:
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
    looks: Mapping[Node, Look[_Facts]], may_open: Mapping[Server, int], processes: int
) -> Iterator[str]:
    allowed = {node.server: found.answer.connections for node, found in looks.items() if found.answer}
    for server, most in may_open.items():
        if server in allowed and most > allowed[server]:
            yield (
                f"{server} allows {allowed[server]} connections, and this configuration may open {most} "
                f"({processes} x {most // processes}): lower max_connections, "
                "max_connections_per_server or pool.max_size, or raise max_connections of the server"
            )


def _behind_bytes(node: Node, cluster: Cluster, looks: Mapping[Node, Look[_Facts]]) -> int | None:
    """How far a replica is behind its primary; ``None`` when that is not known."""
    own = looks[node].answer
    primaries = [
        found.answer
        for other in cluster.nodes
        if (found := looks[other]).answer and isinstance(found.seen, ProbeResult) and found.seen.role is Role.PRIMARY
    ]
    if own is None or own.position_bytes is None or len(primaries) != 1 or primaries[0].position_bytes is None:
        return None
    # The replica may have been asked a moment after the primary.
    return max(primaries[0].position_bytes - own.position_bytes, 0)


def _release(number: int) -> str:
    return f"{number // 10000}.{number % 10000}"


_COLUMNS = (
    Column("version", share=0.2),
    Column("node", share=0.42),
    Column("role"),
    Column("PostgreSQL", rank=4),
    Column("replication", rank=3),
    Column("may open", number=True, rank=2),
    Column("allowed", number=True, rank=1),
)


def _print(report: _Report) -> None:
    screen = console()
    rows = []
    for cluster in (*report.versions, *report.tenants):
        for node in cluster.nodes:
            found, server = report.looks[node], node.server
            answer = found.answer
            if isinstance(found.seen, ProbeResult):
                state = [found.seen.role, _release(found.seen.server_version), _replication(node, cluster, report)]
            else:
                state = [f"{node.role or 'unknown'}, down", "", ""]
            allowed = str(answer.connections) if answer else ""
            rows.append([cluster.name, str(node), *state, str(report.may_open[server]), allowed])
    shown = table(_COLUMNS, rows, screen)
    totals, wrong = [], []
    for kind, colour, texts in (("problem", "red", report.problems), ("warning", "yellow", report.warnings)):
        if texts:
            wrong += [Text(f"{kind}s:", style=f"bold {colour}"), listed(texts, colour, screen)]
            totals.append(f"{len(texts)} {kind}{'' if len(texts) == 1 else 's'}")
    # On a terminal, what is wrong comes first; its number at the end says that there is something above.
    screen.print(*((*wrong, shown) if screen.is_terminal else (shown, *wrong)), sep="\n")
    if report.problems:
        screen.print(", ".join(totals), style="bold red")
    else:
        nodes = f"{len(report.looks)} node{'' if len(report.looks) == 1 else 's'}"
        screen.print(", ".join((f"all is fine ({nodes})", *totals)), style="green")


def _replication(node: Node, cluster: Cluster, report: _Report) -> str:
    found = report.looks[node]
    if not found.answer or not isinstance(found.seen, ProbeResult) or found.seen.role is Role.PRIMARY:
        return ""
    behind = _behind_bytes(node, cluster, report.looks)
    parts = ["paused" if found.answer.paused else found.answer.receiver or "no receiver"]
    if behind is not None:
        parts.append(f"{behind:,} bytes behind")
    return ", ".join(parts)


def _as_json(report: _Report) -> dict[str, Any]:
    return {
        "ok": not report.problems,
        "problems": report.problems,
        "warnings": report.warnings,
        "processes": report.processes,
        **{
            kind: {
                cluster.name: [_node_as_json(node, cluster, report) for node in cluster.nodes] for cluster in clusters
            }
            for kind, clusters in (("versions", report.versions), ("tenants", report.tenants))
        },
    }


def _node_as_json(node: Node, cluster: Cluster, report: _Report) -> dict[str, Any]:
    found = report.looks[node]
    up = found.seen if isinstance(found.seen, ProbeResult) else None
    answer = found.answer
    return {
        "node": str(node),
        "host": node.server.host,
        "port": node.server.port,
        "configured_role": node.role,
        "up": up is not None,
        "reason": None if isinstance(found.seen, ProbeResult) else found.seen.reason,
        "role": up and up.role,
        "server_version": up and _release(up.server_version),
        "wal_receiver": answer and answer.receiver,
        "replay_paused": answer and answer.paused,
        "behind_bytes": _behind_bytes(node, cluster, report.looks) if up and up.role is Role.REPLICA else None,
        "connections_may_open": report.may_open[node.server],
        "connections_allowed": answer and answer.connections,
    }
