"""The standings of a cluster's servers, computed once for each change."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from router.core.changes import track_fallback, track_primary
from router.core.standing import Request, Tier, standings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.core.changes import LastPrimary
    from router.core.events import Event
    from router.core.health import Health
    from router.core.standing import Standing
    from router.core.topology import Cluster, Server

    Standings: TypeAlias = Mapping[Server, Standing]


class View(NamedTuple):
    """The standings of a cluster's servers; by server, because tenants have nodes of their own on the same servers.

    Attributes:
        reading: The standing of each server for requests that read.
        writing: The standing of each server for requests that write.
        leader: The primary, or the last primary; ``None`` before the first one was observed.
        fell_back: Whether the primary serves reads because no other node can.
    """

    reading: Standings
    writing: Standings
    leader: LastPrimary | None
    fell_back: bool


NOTHING_KNOWN = View(MappingProxyType({}), MappingProxyType({}), None, fell_back=False)


def recompute(cluster: Cluster, health: Health, before: View, *, now: float) -> tuple[View, list[Event]]:
    """Compute the standings of a cluster's servers.

    Args:
        cluster: The cluster that is watched.
        health: The health of the servers.
        before: The standings before.
        now: The caller's clock, in seconds.

    Returns:
        The standings now, and the events that follow from the difference.
    """
    reading, writing = (standings(cluster, health, Request(read_only), now=now) for read_only in (True, False))
    primary = next((node for node, standing in writing.items() if standing.tier is Tier.BEST), None)
    leader, failover = track_primary(cluster.name, before.leader, primary, now=now)
    fell_back, reads = track_fallback(cluster.name, reading, fell_back=before.fell_back)
    view = View(
        {node.server: standing for node, standing in reading.items()},
        {node.server: standing for node, standing in writing.items()},
        leader,
        fell_back=fell_back,
    )
    return view, [event for event in (failover, reads) if event is not None]


def makes_a_difference(before: View, after: View) -> bool:
    """Tell whether requests may go to other nodes than before.

    Args:
        before: The standings before.
        after: The standings now.

    Returns:
        Whether the standing of any server has changed.
    """
    return (before.reading, before.writing) != (after.reading, after.writing)
