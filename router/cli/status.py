"""``router status``."""

from __future__ import annotations

import json
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from time import monotonic, sleep
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import psycopg
import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from router._sync.pool.scripts import cursor_of
from router.cli._common import FAILED, AsJson, Config, load, print_json
from router.cli._probe import Prober, observe_all
from router.cli._screen import Column, InPlace, console, in_terminal, listed, table
from router.core import sql
from router.core.health import REFUSES_WRITES, node_state, role_of
from router.core.names import counted
from router.core.observations import ProbeResult
from router.core.replication import fenced, foreign, lag_of, primary_of
from router.core.resolve import resolve
from router.core.standing import fresh
from router.core.topology import Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from psycopg.rows import TupleRow
    from rich.console import Console

    from router.cli._probe import Probe
    from router.core.health import Health
    from router.core.policies import HealthPolicy
    from router.core.replication import Lag
    from router.core.topology import Cluster, Node


class _Activity(NamedTuple):
    """Connections of a node's user to its database, over all processes."""

    in_use: int
    idle: int
    waiting: int


class _Status(NamedTuple):
    """One node of a version.

    Attributes:
        node: The node.
        role: Its role as last seen, else as configured; ``None`` when neither is known.
        state: What it can be used for.
        lag: Of a replica, how far it is behind; ``None`` while that is not known.
        activity: Its connections; ``None`` when they could not be counted.
        latency: Seconds that the probe took, connecting not included; ``None`` if it failed.
        problems: What is wrong.
    """

    node: Node
    role: Role | None
    state: Literal["up", "down", "login refused", "fenced", "other system", "read-only"]
    lag: Lag | None = None
    activity: _Activity | None = None
    latency: float | None = None
    problems: tuple[str, ...] = ()


class _Version(NamedTuple):
    """One version.

    Attributes:
        name: Its key.
        primary: The node that can be written to; ``None`` when there is none.
        nodes: Its nodes, as configured.
    """

    name: str
    primary: Node | None
    nodes: tuple[_Status, ...]

    @property
    def ok(self) -> bool:
        return self.primary is not None and all(status.state == "up" for status in self.nodes)


def status(
    *,
    version: Annotated[
        str | None, typer.Option("--version", metavar="KEY", help="A version or an alias.", show_default="all")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Probe again every health.interval, until Ctrl-C.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.1, help="The most to wait for the nodes, in seconds.", show_default="health.timeout"),
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Show each version's nodes: role, state, lag, connections, latency, and what is wrong.

    It connects to every node, with --watch again for each probe. It cannot see into the processes that use a router:
    connections are what the server counts for the node's user and database, over all processes. In use are those that
    run something or are in a transaction; waiting are those of them that wait for a lock. The latency is that of one
    query. A replica's lag in seconds is the most that it can be, the age of the last commit it replayed; --watch
    measures it from probe to probe. Fails if a node is not up, or a version has no primary that can be written to.

    \b
    router status --version v2
    router status --watch
    router status --watch --json >> status.jsonl     # one line a probe
    """  # noqa: D301  (\b keeps the lines as they are)
    topology = load(config).topology()
    clusters = tuple(topology.versions.values()) if version is None else (resolve(topology, version).cluster,)
    rounds = _rounds(clusters, topology.health, timeout or topology.health.timeout)
    if watch:
        with suppress(KeyboardInterrupt):
            _watch(rounds, as_json=as_json)
        return
    versions = next(rounds)
    if as_json:
        print_json(_as_json(versions))
    else:
        screen = console()
        screen.print(_view(versions, screen))
    if not all(found.ok for found in versions):
        raise typer.Exit(FAILED)


def _rounds(clusters: Sequence[Cluster], policy: HealthPolicy, timeout: float) -> Iterator[tuple[_Version, ...]]:
    """Probe every node once an interval, and remember what was seen."""
    prober = Prober({node: cluster for cluster in clusters for node in cluster.nodes}, _ask)
    health: Health = {}
    while True:
        now = monotonic()
        probes = prober.probe(timeout)
        health = observe_all(health, probes.values(), now=now, policy=policy)
        yield tuple(_version(cluster, health, probes, now) for cluster in clusters)
        sleep(max(now + policy.interval - monotonic(), 0.0))


def _ask(connection: psycopg.Connection[TupleRow], _: Node) -> _Activity:
    [activity] = cursor_of(connection).execute(sql.ACTIVITY)
    return _Activity(**activity)


def _version(cluster: Cluster, health: Health, probes: Mapping[Node, Probe[_Activity]], now: float) -> _Version:
    nodes = tuple(_status(node, cluster, health, probes[node], now) for node in cluster.nodes)
    primary = primary_of(health, cluster)
    can_write = any(status.node == primary and status.state == "up" for status in nodes)
    return _Version(cluster.name, primary if can_write else None, nodes)


def _status(node: Node, cluster: Cluster, health: Health, probe: Probe[_Activity], now: float) -> _Status:
    role, seen = role_of(health, node), probe.seen
    if not isinstance(seen, ProbeResult):
        if seen.answered:
            return _Status(node, role, "login refused", problems=(f"refuses the login: {seen.reason}",))
        return _Status(node, role, "down", problems=(f"is down: {seen.reason}",))
    lag = lag_of(health, node, primary_of(health, cluster), now=now) if role is Role.REPLICA else None
    state, policy = node_state(health, node), cluster.read
    use: Literal["up", "fenced", "other system", "read-only"] = "up"
    problems = list[str]()
    if (reason := foreign(health, cluster).get(node)) is not None:
        use, problems = "other system", [reason]
    elif (reason := fenced(health, cluster).get(node)) is not None:
        use, problems = "fenced", [f"is {reason}"]
    elif seen.refuses_writes and role is Role.PRIMARY:
        use, problems = "read-only", [f"cannot be written to: {REFUSES_WRITES}"]
    if node.role not in {None, role}:
        problems.append(f"is configured as {node.role} and is a {role}")
    if role is Role.REPLICA and not fresh(policy, lag):
        limits = {"read.max_lag": policy.max_lag, "read.max_lag_bytes": policy.max_lag_bytes}
        allowed = " and ".join(f"{key} is {limit:,}" for key, limit in limits.items() if limit is not None)
        problems.append(f"is stale: {allowed}")
    if (left := state.banned_until - now) > 0:
        problems.append(f"is avoided for {left:.1f} s more: it went down {counted(state.failures, 'time')} recently")
    if probe.answer is None:
        problems.append(f"does not tell its connections: {probe.error}")
    return _Status(node, role, use, lag, probe.answer, seen.latency, tuple(problems))


def _watch(rounds: Iterator[tuple[_Version, ...]], *, as_json: bool) -> None:
    """Show each round: in one place on a terminal, one after the other elsewhere."""
    screen = console()
    with Live(console=screen, auto_refresh=False) if in_terminal() and not as_json else nullcontext() as live:
        for versions in rounds:
            if as_json:
                print(json.dumps(_as_json(versions), ensure_ascii=False), flush=True)
                continue
            view = Group(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}", _view(versions, screen))
            screen.print(view) if live is None else live.update(InPlace(view), refresh=True)


_COLUMNS = (
    Column("version", share=0.2),
    Column("node", share=0.42),
    Column("role"),
    Column("state"),
    Column("lag s", number=True, rank=1),
    Column("lag bytes", number=True, rank=4),
    Column("in use", number=True, rank=2),
    Column("idle", number=True, rank=5),
    Column("waiting", number=True, rank=3),
    Column("probe ms", number=True, rank=6),
)


def _view(versions: Sequence[_Version], screen: Console) -> Group:
    rows: list[list[str | Text]] = []
    problems = []
    for found in versions:
        for status in found.nodes:
            rows.append(
                [
                    found.name,
                    str(status.node),
                    status.role or "unknown",
                    Text(status.state, style="green" if status.state == "up" else "red"),
                    *_shown_lag(status),
                    *(str(count) for count in status.activity or ("", "", "")),
                    "" if status.latency is None else f"{status.latency * 1000:.1f}",
                ]
            )
            problems += [f"{found.name}: {status.node} {problem}" for problem in status.problems]
        if found.primary is None:
            problems.append(f"{found.name} has no primary that can be written to")
    shown = table(_COLUMNS, rows, screen)
    if not problems:
        return Group(shown)
    wrong = listed(problems, "red", screen)
    if not screen.is_terminal:
        return Group(shown, wrong)
    # What is wrong comes first; its number at the end says that there is something above.
    total = counted(len(problems), "problem")
    return Group(wrong, shown, Text(total, style="bold red"))


def _shown_lag(status: _Status) -> tuple[str, str]:
    if status.role is not Role.REPLICA or status.state != "up":
        return "", ""
    seconds, size = (None, None) if status.lag is None else (status.lag.seconds, status.lag.bytes)
    return "unknown" if seconds is None else f"{seconds:.1f}", "unknown" if size is None else f"{size:,}"


def _as_json(versions: Sequence[_Version]) -> dict[str, Any]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "ok": all(found.ok for found in versions),
        "versions": {
            found.name: {
                "primary": None if found.primary is None else str(found.primary),
                "nodes": [_node_as_json(status) for status in found.nodes],
            }
            for found in versions
        },
    }


def _node_as_json(status: _Status) -> dict[str, Any]:
    lag, activity = status.lag, status.activity
    return {
        "node": str(status.node),
        "host": status.node.server.host,
        "port": status.node.server.port,
        "configured_role": status.node.role,
        "role": status.role,
        "state": status.state,
        "lag": lag and lag.seconds,
        "lag_bytes": lag and lag.bytes,
        "in_use": activity and activity.in_use,
        "idle": activity and activity.idle,
        "waiting": activity and activity.waiting,
        "latency": status.latency,
        "problems": status.problems,
    }
