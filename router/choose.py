"""Which node serves a request, and which one next if that fails: pure functions over frozen values."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, groupby
from math import gcd, lcm
from types import MappingProxyType
from typing import TYPE_CHECKING

from router.health import role_of, state_of
from router.topology import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from router.health import Health
    from router.topology import Cluster, Node, Target

# The tiers of nodes, best first.
_UP, _UNTRIED, _FALLBACK, _FALLBACK_UNTRIED, _DOWN = range(5)
_KNOWN_UP = (_UP, _FALLBACK)

PAIRS = 256
"""How many draws :func:`pairs` lays out: enough to tell weights of 1 and 100 apart, few enough to be made at once."""


@dataclass(frozen=True, slots=True, repr=False)
class Route:
    """Where a request goes: the nodes to try in order, and why each other node was left out.

    Attributes:
        target: What the request resolved to.
        read_only: Whether it only reads.
        nodes: The nodes to try, best first.
        best: How many of them, from the first, are known to be up and equally good; 0 while none is.
        notes: For each node to try, what speaks for it.
        refused: For each node left out, the reason.
    """

    target: Target
    read_only: bool
    nodes: tuple[Node, ...]
    best: int
    notes: Mapping[Node, str]
    refused: Mapping[Node, str]

    def __repr__(self) -> str:
        """Show the route as a person reads it: one line a node."""
        requested, version = self.target.requested, self.target.version
        alias = "" if requested == version else f" (alias {requested})"
        lines = [f"Route to {version}{alias} for {'reading' if self.read_only else 'writing'}"]
        lines += [f"  {place}. {node}  {self.notes[node]}" for place, node in enumerate(self.nodes, 1)]
        lines += [f"  -  {node}  left out: {reason}" for node, reason in self.refused.items()]
        if not self.nodes:
            lines.append("  no node can serve it now")
        return "\n".join(lines)


def choose(
    target: Target,
    health: Health,
    *,
    read_only: bool,
    turn: float,
    load: Callable[[Node], float] = lambda _: 0.0,
    prefer: Node | None = None,
) -> Route:
    """Choose the nodes for a request.

    Reads go to replicas known to be up, then to nodes nobody has tried yet, then to the primary when ``read.fallback``
    is ``primary``. Writes go to the primary. A node that is down comes last: it is better tried than given up on.

    Args:
        target: What the request resolved to.
        health: What is known of the servers.
        read_only: Whether the request only reads.
        turn: From 0 to 1, at random or in rotation: breaks ties.
        load: How busy a node is now.
        prefer: A node to put first if it is among the best.

    Returns:
        The route.
    """
    tiers: dict[Node, int] = {}
    notes: dict[Node, str] = {}
    refused: dict[Node, str] = {}
    for node in target.cluster.nodes:
        up, role = state_of(health, node).up, role_of(health, node)
        if reason := objection(target.cluster, role, read_only=read_only):
            refused[node] = reason
            continue
        wanted = role is (Role.REPLICA if read_only else Role.PRIMARY)
        if up is False:
            tiers[node] = _DOWN
            notes[node] = f"{role or 'role unknown'}, down: {state_of(health, node).reason}"
        elif up is None:
            tiers[node] = _UNTRIED if wanted or role is None else _FALLBACK_UNTRIED
            notes[node] = f"{role or 'role unknown'}, not tried yet"
        else:
            tiers[node] = _UP if wanted else _FALLBACK
            notes[node] = f"{role}, up"
    ranks = {node: (tier, load(node) / node.weight) for node, tier in tiers.items()}
    order: list[Node] = []
    for _, tied in groupby(sorted(ranks, key=ranks.__getitem__), key=ranks.__getitem__):
        # Drawn among the tied alone: a node left out or of another tier would pass its share on to its neighbour.
        nodes = list(tied)
        start = draw(cumulate([node.weight for node in nodes]), turn)
        order += nodes[start:] + nodes[:start]
    order.sort(key=lambda node: (tiers[node], node != prefer))
    best = sum(tiers[node] == tiers[order[0]] for node in order) if order and tiers[order[0]] in _KNOWN_UP else 0
    return Route(target, read_only, tuple(order), best, MappingProxyType(notes), MappingProxyType(refused))


def objection(cluster: Cluster, role: Role | None, *, read_only: bool) -> str | None:
    """Say why a node must not serve a use, whatever else is known of it.

    Args:
        cluster: The node's cluster.
        role: The node's role; ``None`` while it is not known.
        read_only: Whether the use only reads.

    Returns:
        The reason, or ``None`` if there is none.
    """
    if read_only:
        if role is Role.PRIMARY and cluster.read.fallback != "primary":
            return f"is the primary, and read.fallback is {cluster.read.fallback!r}"
    elif role is Role.REPLICA:
        return "is a replica"
    return None


def cumulate(weights: Sequence[float]) -> tuple[float, ...]:
    """Add weights up, for :func:`draw` and :func:`draw_two`.

    Args:
        weights: One positive weight a place.

    Returns:
        The running totals.
    """
    return tuple(accumulate(weights))


def draw(totals: Sequence[float], turn: float) -> int:
    """Draw one place, each as likely as its weight.

    Args:
        totals: From :func:`cumulate`.
        turn: A random number, at least 0 and less than 1.

    Returns:
        The place, from 0.
    """
    return min(bisect_right(totals, turn * totals[-1]), len(totals) - 1)


def draw_two(totals: Sequence[float], turn: float) -> tuple[int, int]:
    """Draw two different places, for the power of two choices (Mitzenmacher, 2001); one random number is enough.

    Args:
        totals: From :func:`cumulate`, of at least two weights.
        turn: A random number, at least 0 and less than 1.

    Returns:
        The places, from 0.
    """
    point = turn * totals[-1]
    last = len(totals) - 1
    one = min(bisect_right(totals, point), last)
    if last == 1:
        return one, 1 - one
    below = totals[one - 1] if one else 0.0
    weight = totals[one] - below
    # Where the point fell in its interval is itself uniform: it draws from the line with that interval cut out.
    point = (point - below) / weight * (totals[-1] - weight)
    if point >= below:
        point += weight
    two = min(bisect_right(totals, point), last)
    if two == one:  # rounding at an edge of the interval cut out
        two = one - 1 if one else 1
    return one, two


def pairs(weights: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """Lay out :data:`PAIRS` draws of two different places, so that a random index is all that a draw takes.

    Args:
        weights: One positive weight a place; at least two.

    Returns:
        Pairs of places; the first is as frequent as its weight, the second among the others likewise.
    """
    totals = cumulate(weights)
    return tuple(draw_two(totals, (k + 0.5) / PAIRS) for k in range(PAIRS))


def rotation(weights: Sequence[float]) -> tuple[int, ...]:
    """Lay out one round of a weighted round-robin, each place spread evenly over the round.

    Args:
        weights: One positive weight a place; the largest gets at most 120 turns a round, each at least one.

    Returns:
        The places in the order of their turns.
    """
    most = max(weights)
    turns = [max(round(weight / most * 120), 1) for weight in weights]  # 120 has many divisors: common ratios are exact
    divisor = gcd(*turns)
    turns = [n // divisor for n in turns]
    round_length = lcm(*turns)
    # Each place starts at a moment of its own: places with equal turns must not all come in one run. In whole numbers,
    # since moments that are the same must compare so.
    spread = sorted(
        ((2 * len(turns) * k + 2 * place + 1) * (round_length // n), place)
        for place, n in enumerate(turns)
        for k in range(n)
    )
    return tuple(place for _, place in spread)
