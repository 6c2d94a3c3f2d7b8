"""Chooses the nodes that serve a request, in the order in which to try them."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import TYPE_CHECKING

from router.core.balance import cumulate, draw
from router.core.health import UNKNOWN, login_failure, role_of
from router.core.standing import Request, Standing, Tier, for_session, standings
from router.core.topology import Role
from router.core.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from router.core.health import Health
    from router.core.topology import Cluster, Node, Target


_NOT_NOW = (Tier.UNPROBED, Tier.REFUSES_WRITES, Tier.DOWN, Tier.LOGIN_FAILED)


class Route(Value):
    """The nodes to try for a request, in order, and the reason why each other node was left out.

    Attributes:
        target: The target of the request.
        read_only: Whether it only reads.
        nodes: The nodes to try, best first.
        best: How many of them, from the first, are up and equally good; 0 if none is up.
        ready: How many of them, from the first, are up; the others have to come back first.
        ask: The nodes that have to be asked whether they have replayed the required position.
        pending: Whether a node may become available, so that waiting makes sense.
        notes: For each node to try, its state.
        refused: For each node left out, the reason.
    """

    target: Target
    read_only: bool
    nodes: tuple[Node, ...]
    best: int
    ready: int
    ask: frozenset[Node]
    pending: bool
    notes: Mapping[Node, str]
    refused: Mapping[Node, str]

    def __repr__(self) -> str:
        """Show the route for people: one line for each node."""
        requested, version = self.target.requested, self.target.version
        alias = "" if requested in ("", version) else f" (alias {requested})"
        lines = [f"Route to {version}{alias} for {'reading' if self.read_only else 'writing'}"]
        lines += [f"  {place}. {node}  {self.notes[node]}" for place, node in enumerate(self.nodes, 1)]
        lines += [f"  -  {node}  left out: {reason}" for node, reason in self.refused.items()]
        if not self.nodes:
            lines.append("  no node can serve it now")
        return "\n".join(lines)


def choose(
    target: Target,
    health: Health,
    request: Request,
    *,
    now: float,
    tie_break: float,
    load: Callable[[Node], float] = lambda _: 0.0,
    prefer: Node | None = None,
) -> Route:
    """Choose the nodes for a request.

    Reads go to fresh replicas, then to the primary when ``read.fallback`` is ``primary``, then to stale replicas when
    ``read.allow_stale`` is set. Writes go to the primary. A node that failed recently comes after all others.

    Args:
        target: The target of the request.
        health: The health of the servers.
        request: The needs of the request.
        now: The caller's clock, in seconds.
        tie_break: From 0 to 1, at random or in rotation; it decides which of several equally good nodes comes first.
        load: Returns how busy a node is now.
        prefer: A node to put first if it is among the best.

    Returns:
        The route.
    """
    found = list(standings(target.cluster, health, request, now=now).items())
    if target.in_session:
        found = [(node, for_session(standing)) for node, standing in found]
    ranks = sorted(
        (standing.tier, standing.ask, load(node) / node.weight, place)
        for place, (node, standing) in enumerate(found)
        if standing.tier is not None
    )
    order: list[int] = []
    for _, tied in groupby(ranks, key=itemgetter(0, 1, 2)):
        # Draw only among the tied nodes: a node of another tier would pass its share on to its neighbour.
        places = [rank[3] for rank in tied]
        start = draw(cumulate([found[place][0].weight for place in places]), tie_break) if len(places) > 1 else 0
        order += places[start:] + places[:start]
    ready = sum(rank[0] not in _NOT_NOW for rank in ranks)
    best = sum(rank[:2] == ranks[0][:2] for rank in ranks) if ready else 0
    if prefer is not None:
        order[:best] = sorted(order[:best], key=lambda place: found[place][0] != prefer)
    return Route(
        target,
        request.read_only,
        tuple(found[place][0] for place in order),
        best=best,
        ready=ready,
        ask=frozenset(node for node, standing in found if standing.ask),
        pending=_pending(target.cluster, health, found, request),
        notes=MappingProxyType({found[place][0]: found[place][1].note for place in order}),
        refused=MappingProxyType({node: standing.note for node, standing in found if standing.tier is None}),
    )


def _pending(cluster: Cluster, health: Health, found: Sequence[tuple[Node, Standing]], request: Request) -> bool:
    """Tell whether waiting makes sense: it does not if refused logins are the only obstacle."""
    tiers = {standing.tier for _, standing in found}
    if Tier.UNPROBED in tiers or Tier.REFUSES_WRITES in tiers:
        return True
    if request.read_only and cluster.read.fallback == "error":
        return False
    return Tier.LOGIN_FAILED not in tiers or any(
        standing.ask
        or health.get(node.server, UNKNOWN).up is not True
        or _may_catch_up(health, node, standing, request)
        for node, standing in found
        if login_failure(health, node, read_only=request.read_only) is None
    )


def _may_catch_up(health: Health, node: Node, standing: Standing, request: Request) -> bool:
    return request.read_only and standing.tier is None and role_of(health, node) is Role.REPLICA
