"""How the nodes of a cluster relate: which one is the primary, which are fenced, and how far a replica is behind."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from router.core.health import UNKNOWN, Health, NodeUse, State, same_system
from router.core.topology import Node, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from router.core.topology import Cluster


class Lag(NamedTuple):
    """How far a replica is behind its primary.

    Attributes:
        bytes: The lag in bytes of WAL; ``None`` while the primary's position is not known.
        seconds: How long ago the primary was at the replica's position; ``None`` while that is not known.
    """

    bytes: int | None
    seconds: float | None


def foreign(health: Health, cluster: Cluster) -> Mapping[Node, str]:
    """Find the nodes that belong to another system than their cluster: they hold other data, whatever their role.

    The cluster's system is that of the configured primary, once that has been probed. Until then, and where no primary
    is configured, it is the system that more than half of the probed nodes report. If no system has that majority, all
    probed nodes count as foreign.

    Args:
        health: What is known.
        cluster: The cluster.

    Returns:
        The reason for each such node.
    """
    known = {node: system for node in cluster.nodes if (system := health.get(node.server, UNKNOWN).system)}
    configured = configured_primary(cluster)
    if configured is not None and configured in known:
        system, owner = known[configured], f"{configured.server} ({known[configured]}), the configured primary"
    elif (most := _majority(known.values(), len(known))) is not None:
        system, owner = most, f"most of the version's nodes ({most})"
    else:
        listing = ", ".join(f"{node.server} ({system})" for node, system in known.items())
        advice = "wait for the configured primary" if configured else "name one as `primary` in the settings"
        reason = f"is of one of several systems, and none has a majority of the nodes seen: {listing}; {advice}"
        return dict.fromkeys(known, reason)
    return {
        node: f"is of another system ({own}) than {owner}: its data are not the version's"
        for node, own in known.items()
        if own != system
    }


def _majority(systems: Iterable[int], of: int) -> int | None:
    """Find the system that more than half of ``of`` nodes report; ``None`` if there is none."""
    [(system, votes)] = Counter(systems).most_common(1) or [(0, 0)]
    return system if 2 * votes > of else None


def undecided(health: Health, cluster: Cluster) -> bool:
    """Tell whether the cluster's system may be decided by a node that has not been probed yet.

    Args:
        health: What is known.
        cluster: The cluster.

    Returns:
        Whether another probe may decide it.
    """
    if (configured := configured_primary(cluster)) is not None:
        return not _was_tried(health, configured)
    untried = [node for node in cluster.nodes if not _was_tried(health, node)]
    known = [system for node in cluster.nodes if (system := health.get(node.server, UNKNOWN).system)]
    return bool(untried) and _majority(known, len(known) + len(untried)) is None


def configured_primary(cluster: Cluster) -> Node | None:
    """Find the node that the settings name as the primary.

    Args:
        cluster: The cluster.

    Returns:
        The node; ``None`` where roles are discovered.
    """
    return next((node for node in cluster.nodes if node.role is Role.PRIMARY), None)


def _was_tried(health: Health, node: Node) -> bool:
    """Tell whether a node's server has been probed, with or without success."""
    known = health.get(node.server, UNKNOWN)
    refused = (key for key in health if isinstance(key, (Node, NodeUse)))
    return known.up is not None or known.role is not None or any(key.server == node.server for key in refused)


def fenced(health: Health, cluster: Cluster) -> Mapping[Node, str]:
    """Find the nodes that must not be used: foreign nodes, and primaries that are not the cluster's primary.

    Each promotion begins a higher timeline, so the primary on the highest one is the cluster's. Timelines compare only
    within one system. If several primaries are left, the configured one is taken, else the one that has been a primary
    for longest.

    Args:
        health: What is known.
        cluster: The cluster.

    Returns:
        The reason for each such node.
    """
    reasons = dict(foreign(health, cluster))
    states = [(node, health.get(node.server, UNKNOWN)) for node in cluster.nodes if node not in reasons]
    configured = configured_primary(cluster)
    candidates = []
    for node, state in states:
        if state.role is not Role.PRIMARY:
            continue
        later = next((other for other in states if other[1].timeline > state.timeline > 0), None)
        if later is not None:
            reasons[node] = (
                f"fenced: it is a primary on timeline {state.timeline}, "
                f"and {later[0].server} is on the later timeline {later[1].timeline}"
            )
        elif why := _not_promoted(health, configured, node, states):
            reasons[node] = f"fenced: it is a primary, is configured as a replica, and {why}"
        elif state.up:
            candidates.append((node is not configured, state.primary_since, node))
    if len(candidates) > 1:
        *_, first = min(candidates, key=lambda candidate: candidate[:2])
        for *_, node in candidates:
            if node is not first:
                reasons[node] = f"fenced: it is a primary, and so is {first.server}, which was seen first"
    return reasons


def _not_promoted(
    health: Health, configured: Node | None, node: Node, states: Sequence[tuple[Node, State]]
) -> str | None:
    """Return why a primary that is configured as a replica cannot have been promoted; ``None`` if it may have been."""
    if configured is None or node is configured:
        return None
    own, known = health[node.server], health.get(configured.server, UNKNOWN)
    if not _was_tried(health, configured):
        return f"{configured.server}, the configured primary, has not been probed yet"
    swapped = known.role is Role.REPLICA and not known.led_timeline  # the settings have swapped the two roles
    if own.timeline <= 1 and not swapped:
        return "was never promoted: it is on timeline 1" if own.timeline else "its timeline is not known"
    for other, state in states:
        was_first = other is configured or state.led_since < own.led_since
        if other is not node and was_first and 0 < own.timeline <= state.led_timeline:
            return f"was not promoted: {other.server} was a primary on timeline {state.led_timeline} before"
    return None


def primary_of(health: Health, cluster: Cluster, out: Mapping[Node, str] | None = None) -> Node | None:
    """Find the node that is the cluster's primary as far as is known, whether it is up or down.

    Args:
        health: What is known.
        cluster: The cluster.
        out: The result of :func:`fenced`, if the caller has it already.

    Returns:
        The node; ``None`` if no node has reported to be a primary, or each that has is fenced.
    """
    out = fenced(health, cluster) if out is None else out
    seen = [node for node in cluster.nodes if node not in out and health.get(node.server, UNKNOWN).role is Role.PRIMARY]
    return max(seen, key=lambda node: (health[node.server].up is True, health[node.server].primary_since), default=None)


def left_behind(health: Health, node: Node, primary: Node | None) -> bool:
    """Tell whether a replica has not followed the primary to its new timeline after a promotion, so gets no new data.

    Args:
        health: What is known.
        node: The replica.
        primary: The primary, from :func:`primary_of`.

    Returns:
        Whether its timeline is lower than that of a primary that is up.
    """
    own = health.get(node.server, UNKNOWN)
    source = UNKNOWN if primary is None else health.get(primary.server, UNKNOWN)
    follows = own.role is Role.REPLICA and same_system(own.system, source.system)
    return follows and source.up is True and 0 < own.timeline < source.timeline


def lag_of(health: Health, node: Node, primary: Node | None, *, now: float) -> Lag | None:
    """Tell how far a replica was behind at its last probe.

    The age of the last replayed commit, by the servers' clocks, grows while nothing is written. So the replica's
    position is compared with the positions that the primary had at its probes: the replica is as far behind as the
    last of them that it has reached is old.

    Args:
        health: What is known.
        node: The replica.
        primary: The primary, from :func:`primary_of`.
        now: The caller's clock, in seconds.

    Returns:
        The lag; ``None`` if too little is known of either server, or what is known is too old. A replica whose lag is
        not known does not count as fresh.
    """
    own = health.get(node.server, UNKNOWN)
    source = UNKNOWN if primary is None else health.get(primary.server, UNKNOWN)
    diverged = own.timeline and source.timeline and own.timeline != source.timeline
    diverged = diverged or not same_system(own.system, source.system)
    if not own.position or now > own.known_until or not source.history or diverged:
        return None
    current = source.up is True and now <= source.known_until
    latest_at, latest = source.history[-1]
    if own.position >= latest:
        return Lag(0 if current else None, 0.0 if current else now - latest_at)
    reached = bisect_right(source.history, own.position, key=itemgetter(1))
    ages = [] if own.replay_age is None else [own.replay_age]
    if reached:
        ages.append(own.position_at - source.history[reached - 1][0])
    # At that time the primary had already passed the replica's position, whatever the servers' clocks say.
    least = max(own.position_at - source.history[reached][0], 0.0)
    return Lag(latest - own.position if current else None, max(min(ages), least) if ages else None)
