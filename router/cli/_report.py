"""What ``router check`` prints: a table of the nodes with what is wrong, or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from router.cli._screen import Column, console, listed, table
from router.core.names import counted
from router.core.observations import ProbeResult
from router.core.topology import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.cli._findings import Facts, Findings
    from router.cli._probe import Probe
    from router.core.topology import Cluster, Node


def _behind_bytes(node: Node, cluster: Cluster, probes: Mapping[Node, Probe[Facts]]) -> int | None:
    """How far a replica is behind its primary; ``None`` when that is not known."""
    own = probes[node].answer
    primaries = [
        found.answer
        for other in cluster.nodes
        if (found := probes[other]).answer and isinstance(found.seen, ProbeResult) and found.seen.role is Role.PRIMARY
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


def print_findings(findings: Findings) -> None:
    """Print what was found, for people.

    Args:
        findings: What was found.
    """
    screen = console()
    rows = []
    for cluster in (*findings.versions, *findings.tenants):
        for node in cluster.nodes:
            found, server = findings.probes[node], node.server
            answer = found.answer
            if isinstance(found.seen, ProbeResult):
                state = [found.seen.role, _release(found.seen.server_version), _replication(node, cluster, findings)]
            else:
                state = [f"{node.role or 'unknown'}, {'login refused' if found.seen.answered else 'down'}", "", ""]
            allowed = str(answer.connections) if answer else ""
            rows.append([cluster.name, str(node), *state, str(findings.may_open[server]), allowed])
    shown = table(_COLUMNS, rows, screen)
    totals, wrong = [], []
    for kind, colour, texts in (("problem", "red", findings.problems), ("warning", "yellow", findings.warnings)):
        if texts:
            wrong += [Text(f"{kind}s:", style=f"bold {colour}"), listed(texts, colour, screen)]
            totals.append(f"{len(texts)} {kind}{'' if len(texts) == 1 else 's'}")
    # On a terminal, what is wrong comes first; its number at the end says that there is something above.
    screen.print(*((*wrong, shown) if screen.is_terminal else (shown, *wrong)), sep="\n")
    if findings.problems:
        screen.print(", ".join(totals), style="bold red")
    else:
        nodes = counted(len(findings.probes), "node")
        screen.print(", ".join((f"all is fine ({nodes})", *totals)), style="green")


def _replication(node: Node, cluster: Cluster, findings: Findings) -> str:
    found = findings.probes[node]
    if not found.answer or not isinstance(found.seen, ProbeResult) or found.seen.role is Role.PRIMARY:
        return ""
    behind = _behind_bytes(node, cluster, findings.probes)
    parts = ["paused" if found.answer.paused else found.answer.receiver or "no receiver"]
    if behind is not None:
        parts.append(f"{behind:,} bytes behind")
    return ", ".join(parts)


def findings_as_json(findings: Findings) -> dict[str, Any]:
    """Write what was found as JSON takes it.

    Args:
        findings: What was found.

    Returns:
        The object.
    """
    return {
        "ok": not findings.problems,
        "problems": findings.problems,
        "warnings": findings.warnings,
        "processes": findings.processes,
        **{
            kind: {
                cluster.name: [_node_as_json(node, cluster, findings) for node in cluster.nodes] for cluster in clusters
            }
            for kind, clusters in (("versions", findings.versions), ("tenants", findings.tenants))
        },
    }


def _node_as_json(node: Node, cluster: Cluster, findings: Findings) -> dict[str, Any]:
    found = findings.probes[node]
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
        "behind_bytes": _behind_bytes(node, cluster, findings.probes) if up and up.role is Role.REPLICA else None,
        "connections_may_open": findings.may_open[node.server],
        "connections_allowed": answer and answer.connections,
    }
