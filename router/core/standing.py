"""The standing of each node of a cluster for a request: how well it can serve the request, and why."""

from __future__ import annotations

from dataclasses import field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from router.core.consistency import UNSURE
from router.core.health import REFUSES_WRITES, SEVERAL_SERVERS, UNKNOWN, node_state, role_of, same_system
from router.core.replication import fenced, lag_of, left_behind, primary_of
from router.core.topology import Role
from router.core.value import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.core.consistency import Position
    from router.core.health import Health, State
    from router.core.policies import ReadPolicy
    from router.core.replication import Lag
    from router.core.topology import Cluster, Node


class Tier(IntEnum):
    """How well a node can serve a request, best first; after ``BANNED``, a node serves none until it changes."""

    BEST = 0
    FALLBACK = 1
    STALE = 2
    BANNED = 3
    UNPROBED = 4
    REFUSES_WRITES = 5
    DOWN = 6
    LOGIN_FAILED = 7


class Request(NamedTuple):
    """The needs of a request.

    Attributes:
        read_only: Whether it only reads.
        max_lag: The most seconds that a replica may be behind; ``None`` takes ``read.max_lag``.
        after: The position up to which it must see everything; ``None`` for none.
        avoid: A node that has just failed for it; it is used only if there is no other.
    """

    read_only: bool
    max_lag: float | None = None
    after: Position | None = None
    avoid: Node | None = None


class Standing(Value):
    """The standing of one node for a request.

    Attributes:
        tier: How well it can serve the request; ``None`` if it must not serve it.
        ask: Whether it must be asked first if it has replayed the required position.
        note: The reason, as a text; standings that differ only in this are equal.
        undeclared_pooler: Whether a pooler answers there that the settings do not declare.
    """

    tier: Tier | None
    ask: bool = False
    note: str = field(default="", compare=False)
    undeclared_pooler: bool = False


def standings(cluster: Cluster, health: Health, request: Request, *, now: float) -> Mapping[Node, Standing]:
    """Compute the standing of each node of a cluster for a request.

    Args:
        cluster: The cluster.
        health: The health of the servers.
        request: The needs of the request.
        now: The caller's clock, in seconds.

    Returns:
        The standings, in the order of the nodes; they are equal if no change matters to the request.
    """
    out, policy = fenced(health, cluster), cluster.read
    limited = limits_lag(cluster, request)
    primary = primary_of(health, cluster, out) if request.read_only else None
    found = {}
    for node in cluster.nodes:
        state, role = node_state(health, node, read_only=request.read_only), role_of(health, node)
        is_down = health.get(node.server, UNKNOWN).up is False
        seen = None if state.up is None else role  # before the first probe, the role is only what the settings say
        if reason := out.get(node) or role_mismatch(cluster, seen, read_only=request.read_only):
            standing = Standing(None, note=reason)
        elif state.up is None:
            why = f": {state.reason}" if state.reason else ""
            standing = Standing(Tier.UNPROBED, note=f"{role or 'role unknown'}, not probed yet{why}")
        elif not request.read_only and state.refuses_writes and not is_down:
            standing = Standing(Tier.REFUSES_WRITES, note=f"{role}, up, refuses writes: {REFUSES_WRITES}")
        elif not state.up:
            tier, wrong = (Tier.DOWN, "down") if is_down else (Tier.LOGIN_FAILED, "login refused")
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
        found[node] = standing
    return found


UNDECLARED_POOLER = (
    "a pooler answers there that the settings do not declare, and it may mix up the sessions of tenants: "
    'set pooler = "transaction" on the node, or "session" if that is what it keeps'
)


def for_session(standing: Standing) -> Standing:
    """Return the standing of a node for a tenant that is separated from others by its session.

    Args:
        standing: The standing of the node for other requests.

    Returns:
        Its standing for such a tenant.
    """
    if not standing.undeclared_pooler or standing.tier in (None, Tier.DOWN):
        return standing
    return replace(standing, tier=Tier.LOGIN_FAILED, ask=False, note=UNDECLARED_POOLER)


def role_mismatch(cluster: Cluster, role: Role | None, *, read_only: bool) -> str | None:
    """Return the reason why a node with a role must not serve reads, or writes.

    Args:
        cluster: The node's cluster.
        role: The node's role; ``None`` while it is not known.
        read_only: Whether it is to serve reads.

    Returns:
        The reason; ``None`` if the node may serve.
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
    """Compute the standing of a node that is up for a read."""
    after, is_primary = request.after, state.role is Role.PRIMARY
    if after is not None and (reason := _not_comparable(state, after)) is not None:
        return Standing(None, note=reason)
    note = f"{state.role}, up"
    reached = after is None or (not state.several_servers and after.reached(state.timeline, state.position))
    ask = not is_primary and not reached
    if is_primary:
        tier = Tier.FALLBACK
    elif state.several_servers and _limits(policy, request.max_lag) != (None, None):
        tier, ask = Tier.BEST, True  # the lag of one server does not tell the lag of the others
    elif fresh(policy, lag, request.max_lag):
        tier = Tier.STALE if behind else Tier.BEST
        note = f"{note}, left behind on timeline {state.timeline}" if behind else note
    elif policy.allow_stale:
        tier, note = Tier.STALE, f"{note}, stale: {_shown(lag)}"
    else:
        return Standing(None, note=f"is stale: {_shown(lag)}")
    if banned:
        tier, note = Tier.BANNED, f"{note}, failed recently"
    note = f"{note}, {SEVERAL_SERVERS}" if state.several_servers else note
    return Standing(tier, ask, f"{note}, will be asked whether it has replayed the required position" if ask else note)


def _not_comparable(state: State, after: Position) -> str | None:
    """Return the reason why a node cannot serve a required position, however far it has replayed."""
    is_primary = state.role is Role.PRIMARY
    if not same_system(after.system, state.system):
        return "is of another system than the required position"
    # A primary has everything that survived from earlier timelines. A replica on a later timeline may have left the
    # token's timeline before that position or after it: that cannot be told.
    if state.timeline < after.timeline if is_primary else state.timeline > after.timeline:
        return f"is on timeline {state.timeline}, but the required position is on timeline {after.timeline}"
    if not is_primary and after.lsn == UNSURE:
        return "the required position is not known, because a COMMIT was not answered"
    if not is_primary and not state.timeline:
        return "does not report its timeline: GRANT pg_read_all_stats to its login"
    return None


def fresh(policy: ReadPolicy, lag: Lag | None, max_lag: float | None = None) -> bool:
    """Tell whether a replica is within the limits on lag; an unknown lag is not.

    Args:
        policy: The cluster's limits.
        lag: How far it is behind; ``None`` while that is not known.
        max_lag: The request's own limit in seconds; ``None`` takes the policy's.

    Returns:
        Whether it is within the limits.
    """
    known = (None, None) if lag is None else (lag.seconds, lag.bytes)
    limits = _limits(policy, max_lag)
    return all(
        limit is None or (is_now is not None and is_now <= limit) for limit, is_now in zip(limits, known, strict=True)
    )


def limits_lag(cluster: Cluster, request: Request) -> bool:
    """Tell whether a limit on lag applies to a request.

    Args:
        cluster: The cluster that serves it.
        request: The needs of the request.

    Returns:
        Whether there is a limit.
    """
    return request.read_only and _limits(cluster.read, request.max_lag) != (None, None)


def _limits(policy: ReadPolicy, max_lag: float | None) -> tuple[float | None, int | None]:
    """Return the most seconds and the most bytes that a replica may be behind."""
    return policy.max_lag if max_lag is None else max_lag, policy.max_lag_bytes


def _shown(lag: Lag | None) -> str:
    if lag is None:
        return "by how much is not known"
    seconds = "" if lag.seconds is None else f"{lag.seconds:.1f} s"
    size = "" if lag.bytes is None else f"{lag.bytes:,} bytes"
    return f"{' and '.join(filter(None, (seconds, size))) or 'how far is not known'} behind"
