"""Finds the events that an observation causes, by comparing the health before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from router.core.health import UNKNOWN, NodeUse
from router.core.replication import fenced, foreign, left_behind, primary_of, undecided
from router.core.server_events import (
    FailedOver,
    Fenced,
    LeftBehind,
    LoginRefused,
    OtherSystem,
    ReadsFellBack,
    ReadsReturned,
    RoleChanged,
    ServerBanned,
    ServerDown,
    ServerUp,
    SeveralServers,
    UndeclaredPooler,
    WritesRefused,
)
from router.core.standing import Tier
from router.core.topology import Node, Server

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from router.core.events import Event
    from router.core.health import Health, State
    from router.core.standing import Standing
    from router.core.topology import Cluster


def changes(before: Health, after: Health, clusters: Iterable[Cluster], *, now: float) -> Iterator[Event]:
    """Find the events that an observation causes.

    Args:
        before: The health before.
        after: The health after.
        clusters: The clusters in use.
        now: The caller's clock, in seconds.

    Yields:
        The events.
    """
    for key, state in after.items():
        was = before.get(key, UNKNOWN)
        if isinstance(key, Server):
            yield from _of_server(key, was, state, now)
        elif was.up is not False:
            node, read_only = key if isinstance(key, NodeUse) else (key, None)
            yield LoginRefused(node, state.reason, read_only)
    for cluster in clusters:
        known = {(type(event), event.node) for event in _of_cluster(before, cluster)}
        yield from (event for event in _of_cluster(after, cluster) if (type(event), event.node) not in known)


def _of_cluster(health: Health, cluster: Cluster) -> Iterator[OtherSystem | Fenced | LeftBehind]:
    """Find the conflicts between the nodes of a cluster, among those that were probed since the primary became one."""
    if undecided(health, cluster):
        return
    out, others = fenced(health, cluster), foreign(health, cluster)
    primary = primary_of(health, cluster, out)
    leader = UNKNOWN if primary is None else health[primary.server]
    since = leader.led_since if leader.led_timeline else leader.primary_since
    for node in cluster.nodes:
        state = health.get(node.server, UNKNOWN)
        if not state.up or (state.led_timeline < leader.led_timeline and state.position_at < since):
            continue  # in a failover, the new primary may be probed a moment before the old one is found down
        if node in others:
            yield OtherSystem(cluster.name, node, others[node])
        elif node in out:
            yield Fenced(cluster.name, node, out[node])
        elif left_behind(health, node, primary):
            yield LeftBehind(cluster.name, node, state.timeline)


def _of_server(server: Server, known: State, state: State, now: float) -> Iterator[Event]:
    if state.up and not known.up:
        yield ServerUp(server, state.role, state.server_version)
        if now < state.banned_until and state.failures > 1:
            yield ServerBanned(server, state.failures, state.banned_until - now)
    if state.up is False and known.up is not False:
        yield ServerDown(server, state.reason)
    if known.role and state.role and known.role is not state.role:
        yield RoleChanged(server, state.role, state.timeline)
    if state.undeclared_pooler and not known.undeclared_pooler:
        yield UndeclaredPooler(server)
    if state.several_servers and not known.several_servers:
        yield SeveralServers(server)
    if state.up and known.refuses_writes != state.refuses_writes:
        yield WritesRefused(server, state.refuses_writes)


def track_fallback(
    version: str, standings: Mapping[Node, Standing], *, fell_back: bool
) -> tuple[bool, ReadsFellBack | ReadsReturned | None]:
    """Tell whether the primary serves the reads of a version because no other node can.

    Args:
        version: The version's key.
        standings: The standings of its nodes for reading.
        fell_back: Whether the primary did before.

    Returns:
        Whether it does now, and the event if that has changed.
    """
    tiers = {standing.tier for standing in standings.values()}
    if Tier.BEST in tiers:
        return False, ReadsReturned(version) if fell_back else None
    primary = next((node for node, standing in standings.items() if standing.tier is Tier.FALLBACK), None)
    if fell_back or primary is None or len(standings) == 1 or Tier.UNPROBED in tiers:
        return fell_back, None
    reason = "; ".join(f"{node}: {standing.note}" for node, standing in standings.items() if node != primary)
    return True, ReadsFellBack(version, primary, reason)


class LastPrimary(NamedTuple):
    """The primary that a version had last.

    Attributes:
        node: The primary.
        lost_at: Since when there is no primary, on the caller's clock; ``None`` while this one can be written to.
    """

    node: Node
    lost_at: float | None = None


def track_primary(
    version: str, last: LastPrimary | None, node: Node | None, *, now: float
) -> tuple[LastPrimary | None, FailedOver | None]:
    """Tell which node is the primary of a version, and whether it has failed over.

    Args:
        version: The version's key.
        last: The primary that it had last; ``None`` before the first one.
        node: The node that can be written to now; ``None`` for none.
        now: The caller's clock, in seconds.

    Returns:
        The current or last primary, and the event of a failover if there was one.
    """
    if node is None:
        return last and (last if last.lost_at is not None else LastPrimary(last.node, now)), None
    if last is None or last.node == node:
        return LastPrimary(node), None
    lost_at = now if last.lost_at is None else last.lost_at
    return LastPrimary(node), FailedOver(version, last.node, node, now - lost_at)
