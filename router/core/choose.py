"""Which node serves a request, and which one next if that fails: pure functions over frozen values."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import accumulate, groupby
from math import gcd, lcm
from operator import itemgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from router.core.consistency import UNSURE
from router.core.health import (
    REFUSES_WRITES,
    SEVERAL,
    UNKNOWN,
    fenced,
    lag_of,
    left_behind,
    login_of,
    primary_of,
    role_of,
    same_system,
    state_of,
)
from router.core.topology import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from router.core.consistency import Position
    from router.core.health import Health, Lag, State
    from router.core.topology import Cluster, Node, ReadPolicy, Target


class Tier(IntEnum):
    """How good a node is for a request, best first; nobody borrows from those after ``BANNED`` before that changes."""

    BEST = 0
    FALLBACK = 1
    STALE = 2
    BANNED = 3
    UNSEEN = 4
    REFUSES_WRITES = 5
    DOWN = 6
    REFUSED = 7


_NOT_NOW = (Tier.UNSEEN, Tier.REFUSES_WRITES, Tier.DOWN, Tier.REFUSED)

PAIRS = 256
"""How many draws :func:`pairs` lays out: enough to tell weights of 1 and 100 apart, few enough to be made at once."""


class Request(NamedTuple):
    """What a request asks for.

    Attributes:
        read_only: Whether it only reads.
        max_lag: The most seconds that a replica may be behind; ``None`` takes ``read.max_lag``.
        after: What it must see: everything up to this position.
        avoid: A node that has just failed it.
    """

    read_only: bool
    max_lag: float | None = None
    after: Position | None = None
    avoid: Node | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Route:
    """Where a request goes: the nodes to try in order, and why each other node was left out.

    Attributes:
        target: What the request resolved to.
        read_only: Whether it only reads.
        nodes: The nodes to try, best first.
        best: How many of them, from the first, are known to be up and equally good; 0 while none is.
        ready: How many of them, from the first, are known to be up; the others have to come back first.
        ask: Those of them that have to be asked whether they have replayed what the request must see.
        pending: Whether a node that is missing now may still come, so that waiting makes sense.
        notes: For each node to try, what speaks for it.
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
        """Show the route as a person reads it: one line a node."""
        requested, version = self.target.requested, self.target.version
        alias = "" if requested in ("", version) else f" (alias {requested})"
        lines = [f"Route to {version}{alias} for {'reading' if self.read_only else 'writing'}"]
        lines += [f"  {place}. {node}  {self.notes[node]}" for place, node in enumerate(self.nodes, 1)]
        lines += [f"  -  {node}  left out: {reason}" for node, reason in self.refused.items()]
        if not self.nodes:
            lines.append("  no node can serve it now")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Standing:
    """What one node is worth to a request.

    Attributes:
        tier: How good it is; ``None`` when it must not serve.
        ask: Whether it must be asked first if it has replayed what the request must see.
        note: Why, in words; two standings that differ only in this are equal.
        undeclared_pooler: Whether a pooler answers there of which the settings say nothing.
    """

    tier: Tier | None
    ask: bool = False
    note: str = field(default="", compare=False)
    undeclared_pooler: bool = False


def choose(
    target: Target,
    health: Health,
    request: Request,
    *,
    now: float,
    turn: float,
    load: Callable[[Node], float] = lambda _: 0.0,
    prefer: Node | None = None,
) -> Route:
    """Choose the nodes for a request.

    Reads go to fresh replicas, then to the primary when ``read.fallback`` is ``primary``, then to stale replicas when
    ``read.allow_stale`` is set. Writes go to the primary. A node that failed lately comes after all others.

    Args:
        target: What the request resolved to.
        health: What is known of the servers.
        request: What it asks for.
        now: The caller's clock, in seconds.
        turn: From 0 to 1, at random or in rotation: breaks ties.
        load: How busy a node is now.
        prefer: A node to put first if it is among the best.

    Returns:
        The route.
    """
    found = _standings(target.cluster, health, request, now=now)
    if target.in_session:
        found = [(node, _for_session(standing)) for node, standing in found]
    ranks = sorted(
        (standing.tier, standing.ask, load(node) / node.weight, place)
        for place, (node, standing) in enumerate(found)
        if standing.tier is not None
    )
    order: list[int] = []
    for _, tied in groupby(ranks, key=itemgetter(0, 1, 2)):
        # Drawn among the tied alone: a node left out or of another tier would pass its share on to its neighbour.
        places = [rank[3] for rank in tied]
        start = draw(cumulate([found[place][0].weight for place in places]), turn) if len(places) > 1 else 0
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


def standings(cluster: Cluster, health: Health, request: Request, *, now: float) -> Mapping[Node, Standing]:
    """Say of each node of a cluster what it is worth to a request.

    Args:
        cluster: The cluster.
        health: What is known of the servers.
        request: What the request asks for.
        now: The caller's clock, in seconds.

    Returns:
        The standings, in the order of the nodes; equal as long as nothing changed that matters.
    """
    return dict(_standings(cluster, health, request, now=now))


def _standings(cluster: Cluster, health: Health, request: Request, *, now: float) -> list[tuple[Node, Standing]]:
    out, policy = fenced(health, cluster), cluster.read
    limited = request.read_only and _limits(policy, request.max_lag) != (None, None)
    primary = primary_of(health, cluster, out) if request.read_only else None
    found = []
    for node in cluster.nodes:
        state, role = state_of(health, node, read_only=request.read_only), role_of(health, node)
        is_down = health.get(node.server, UNKNOWN).up is False
        seen = None if state.up is None else role  # until somebody has looked, the role is what the settings say
        if reason := out.get(node) or objection(cluster, seen, read_only=request.read_only):
            standing = Standing(None, note=reason)
        elif state.up is None:
            why = f": {state.reason}" if state.reason else ""
            standing = Standing(Tier.UNSEEN, note=f"{role or 'role unknown'}, not looked at yet{why}")
        elif not request.read_only and state.refuses_writes and not is_down:
            standing = Standing(Tier.REFUSES_WRITES, note=f"{role}, up, refuses writes: {REFUSES_WRITES}")
        elif not state.up:
            tier, wrong = (Tier.DOWN, "down") if is_down else (Tier.REFUSED, "login refused")
            standing = Standing(tier, note=f"{role or 'role unknown'}, {wrong}: {state.reason}")
        elif not request.read_only:
            standing = Standing(Tier.BEST, note=f"{role}, up")
        else:
            lag = lag_of(health, node, primary, now=now) if limited else None
            banned = now < state.banned_until or node == request.avoid
            behind = left_behind(health, node, primary)
            standing = _to_read(policy, state, lag, request, behind=behind, banned=banned)
        if health.get(node.server, UNKNOWN).undeclared_pooler:
            standing = replace(standing, undeclared_pooler=True)
        found.append((node, standing))
    return found


UNDECLARED_POOLER = (
    "a pooler answers there that the settings do not declare, and it may mix up the sessions of tenants: "
    'set pooler = "transaction" on the node, or "session" if that is what it keeps'
)


def _for_session(standing: Standing) -> Standing:
    """What a node is worth to a tenant who is kept apart by the session."""
    if not standing.undeclared_pooler or standing.tier in (None, Tier.DOWN):
        return standing
    return replace(standing, tier=Tier.REFUSED, ask=False, note=UNDECLARED_POOLER)


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


def _to_read(
    policy: ReadPolicy, state: State, lag: Lag | None, request: Request, *, behind: bool, banned: bool
) -> Standing:
    after, is_primary = request.after, state.role is Role.PRIMARY
    if after is not None and (reason := _cannot_tell(state, after)) is not None:
        return Standing(None, note=reason)
    note = f"{state.role}, up"
    ask = after is not None and not is_primary and (state.several or not after.reached(state.timeline, state.position))
    if is_primary:
        tier = Tier.FALLBACK
    elif state.several and _limits(policy, request.max_lag) != (None, None):
        tier, ask = Tier.BEST, True  # how far one of them is behind says nothing of the others
    elif fresh(policy, lag, request.max_lag):
        tier = Tier.STALE if behind else Tier.BEST
        note = f"{note}, left behind on timeline {state.timeline}" if behind else note
    elif policy.allow_stale:
        tier, note = Tier.STALE, f"{note}, stale: {_shown(lag)}"
    else:
        return Standing(None, note=f"is stale: {_shown(lag)}")
    if banned:
        tier, note = Tier.BANNED, f"{note}, failed lately"
    note = f"{note}, {SEVERAL}" if state.several else note
    return Standing(tier, ask, f"{note}, to be asked whether it has replayed what is to be seen" if ask else note)


def _cannot_tell(state: State, after: Position) -> str | None:
    """Why a node must not serve what is to be seen, however far it is."""
    is_primary = state.role is Role.PRIMARY
    if not same_system(after.system, state.system):
        return "is of another system than what is to be seen"
    # A primary has what was written on earlier timelines, as far as it survived. A replica on a later one may have
    # left the token's before or after that position: nobody can tell.
    if state.timeline < after.timeline if is_primary else state.timeline > after.timeline:
        return f"is on timeline {state.timeline}, what is to be seen on {after.timeline}"
    if not is_primary and after.lsn == UNSURE:
        return "how far it has to be is not known, since a COMMIT was not answered"
    if not is_primary and not state.timeline:
        return "does not tell its timeline (GRANT pg_read_all_stats)"
    return None


def fresh(policy: ReadPolicy, lag: Lag | None, max_lag: float | None = None) -> bool:
    """Say whether a replica is as fresh as it has to be; unknown is not fresh.

    Args:
        policy: The cluster's limits.
        lag: How far it is behind, as far as is known.
        max_lag: The request's own limit in seconds; ``None`` takes the policy's.

    Returns:
        Whether it is.
    """
    known = (None, None) if lag is None else (lag.seconds, lag.bytes)
    limits = _limits(policy, max_lag)
    return all(
        limit is None or (is_now is not None and is_now <= limit) for limit, is_now in zip(limits, known, strict=True)
    )


def limits_lag(cluster: Cluster, request: Request) -> bool:
    """Tell whether a request may be served only by what is not too far behind.

    Args:
        cluster: Where it goes.
        request: What it asks for.

    Returns:
        Whether it may.
    """
    return request.read_only and _limits(cluster.read, request.max_lag) != (None, None)


def _limits(policy: ReadPolicy, max_lag: float | None) -> tuple[float | None, int | None]:
    """The most seconds and the most bytes that a replica may be behind."""
    return policy.max_lag if max_lag is None else max_lag, policy.max_lag_bytes


def _shown(lag: Lag | None) -> str:
    if lag is None:
        return "how far behind is not known"
    seconds = "" if lag.seconds is None else f"{lag.seconds:.1f} s"
    size = "" if lag.bytes is None else f"{lag.bytes:,} bytes"
    return f"{' and '.join(filter(None, (seconds, size))) or 'how far is not known'} behind"


def _pending(cluster: Cluster, health: Health, found: Sequence[tuple[Node, Standing]], request: Request) -> bool:
    """Whether waiting makes sense: not where nothing is missing but a login that the server refuses."""
    tiers = {standing.tier for _, standing in found}
    if Tier.UNSEEN in tiers or Tier.REFUSES_WRITES in tiers:
        return True
    if request.read_only and cluster.read.fallback == "error":
        return False
    return Tier.REFUSED not in tiers or any(
        standing.ask
        or health.get(node.server, UNKNOWN).up is not True
        or _may_catch_up(health, node, standing, request)
        for node, standing in found
        if login_of(health, node, read_only=request.read_only) is None
    )


def _may_catch_up(health: Health, node: Node, standing: Standing, request: Request) -> bool:
    return request.read_only and standing.tier is None and role_of(health, node) is Role.REPLICA


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
