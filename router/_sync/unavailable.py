# Generated from router/_async/unavailable.py by tools/async_to_sync.py: do not edit.
"""Why a request got no connection, in words."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import starmap
from typing import TYPE_CHECKING, Any

from router.core.budget import Full, budget_key
from router.core.errors import NoPrimary, NoReplica, PoolExhausted, TooManyWaiting, Unavailable, UnknownTenant
from router.core.events import RequestFailed
from router.core.health import login_failure, node_state
from router.core.names import all_are, counted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router._sync.in_force import InForce
    from router._sync.lane import Lane
    from router._sync.pool.node_pool import NodePool
    from router._sync.waiter import Waiter
    from router.core.budget import BudgetKey
    from router.core.choose import Route
    from router.core.health import State
    from router.core.standing import Request
    from router.core.topology import Node, Target


def unavailable(in_force: InForce, route: Route, request: Request, *, late: bool) -> Unavailable | UnknownTenant:
    target = route.target
    asked, whom = asked_for(target), whom_for(target)
    in_time = f"no connection {whom} in time"
    health, read_only = in_force.clusters.health, request.read_only
    down = [node for node in target.cluster.nodes if node_state(health, node, read_only=read_only).up is False]
    silent, ready = {}, route.nodes[: route.ready]
    for node in ready or (target.cluster.nodes if late and not down else ()):
        pool = in_force.pools.get(target, node, read_only=route.read_only)
        key = budget_key(node, "") if pool is None else pool.budget_key  # without a pool: for a probe of it
        if pool is not None and (refusal := _refusal(in_force, pool)):
            why = f"{node} {refusal}"
        elif pool is not None and pool.at_max_size and not pool.quarantined:
            most = _holding_most([pool]) if pool.shared else ""
            why = all_are(pool.max_size, f"connection to {node}", f"in use (pool.max_size){most}")
        elif not late or not (why := _spent(in_force, key)):
            if node in ready:
                asking = node in route.ask
                silent[node] = "has not yet replayed the required position" if asking else "gave no connection in time"
            continue
        return PoolExhausted(f"{in_time}: {why}", **asked)
    refused = {**route.refused, **route.notes, **silent}
    nodes = list(target.cluster.nodes)
    if target.watched is not None and target.watched.name not in in_force.topology.versions:
        nodes += target.watched.nodes
    logins = {node: login for node in nodes if (login := login_failure(health, node, read_only=read_only)) is not None}
    if target.tenant is not None and logins and all(starmap(partial(_is_missing, in_force), logins.items())):
        return UnknownTenant(target.tenant, next(iter(logins.values())).reason, version=target.requested)
    kind, use = (NoReplica, "read from") if request.read_only else (NoPrimary, "written to")
    return kind(
        f"no node {whom_for(target, 'of')} can be {use} now",
        attempts=len(down) + len(silent),
        refused=refused,
        **asked,
    )


def no_room(lane: Lane) -> PoolExhausted:
    """Say that other pools are in use.

    Args:
        lane: Where the request belongs.

    Returns:
        The error.
    """
    full = all_are(lane.in_force.topology.max_pools, "pool", "in use (max_pools)")
    return PoolExhausted(f"no connection {whom_for(lane.target)} in time: {full}", **asked_for(lane.target))


def too_many_waiting(lane: Lane, waiter: Waiter) -> TooManyWaiting:
    """Say that the line is full.

    Args:
        lane: Where the request belongs.
        waiter: The request.

    Returns:
        The error.
    """
    target, [first, *_] = lane.target, waiter.line.pools if waiter.accepts is None else [waiter.accepts]
    most = target.cluster.pool.max_waiting
    wait = f"{counted(most, 'request')} already {'waits' if most == 1 else 'wait'}"
    full = f"{wait} for a connection to {first.node} (pool.max_waiting)"
    return TooManyWaiting(f"no connection {whom_for(target)}: {full}", **asked_for(target))


def within_its_limit(lane: Lane) -> PoolExhausted:
    """Say that a tenant uses all that it may.

    Args:
        lane: Where its request belongs.

    Returns:
        The error.
    """
    most = 0 if lane.admission is None else lane.admission.limit
    connections = "the one connection" if most == 1 else f"all {most} connections"
    full = f"it uses {connections} that it may have (tenancy.max_connections)"
    return PoolExhausted(f"no connection {whom_for(lane.target)} in time: {full}", **asked_for(lane.target))


def _spent(in_force: InForce, key: BudgetKey) -> str:
    """Say which limit keeps one more connection from being opened, and what holds most of it; empty if none does."""
    limits = in_force.slots.limits
    match in_force.slots.full(key):
        case Full.OWNER:
            connections = "the one connection" if key.cap == 1 else f"all {key.cap} connections"
            return f"{key.owner} has {connections} that it may have (tenancy.max_connections)"
        case Full.LOGIN if (limit := in_force.slots.server_limits.refusing(key.login)) is not None:
            return f"{key.server} {limit}"
        case Full.SERVER:
            most = _holding_most(pool for pool in in_force.pools if pool.node.server == key.server)
            return all_are(limits.server, f"connection to {key.server}", f"open (max_connections_per_server){most}")
        case Full.PROCESS:
            most = _holding_most(in_force.pools)
            return all_are(limits.process, "connection of this process", f"open (max_connections){most}")
        case None if any(request.key is key for request in list(in_force.slots.waiting)):
            return "other requests were served first within max_connections"  # and go on coming
        case _:
            return ""


def _is_missing(in_force: InForce, node: Node, refused: State) -> bool:
    """Whether a login failed because something of the tenant's own is not there."""
    if refused.missing not in {"dbname", "user"}:
        return bool(refused.missing)
    name = dict(node.params).get(refused.missing)
    return not any(
        name == dict(other.params).get(refused.missing)
        for cluster in in_force.topology.versions.values()
        for other in cluster.nodes
    )


def _refusal(in_force: InForce, pool: NodePool) -> str:
    """Say why a pool can have no connection more now; empty if nothing but its own size is in the way."""
    limit = in_force.slots.server_limits.refusing(pool.budget_key.login)
    if limit is None or in_force.slots.full(pool.budget_key) is not Full.LOGIN:
        return pool.opening.refusal
    return str(limit)


def _holding_most(pools: Iterable[NodePool]) -> str:
    """Say which version or tenant has most connections borrowed; empty if none is borrowed."""
    holders = Counter[str]()
    for pool in pools:
        if pool.shared or pool.tenant:
            holders.update(f"tenant {tenant}" for tenant in pool.holders())
        else:
            holders[pool.cluster.name] += len(pool.borrowed)
    most = [(holder, counted(number, "connection")) for holder, number in holders.most_common(1) if number]
    return "".join(f"; {holder} holds {connections}" for holder, connections in most)


def tell_failed(lane: Lane, error: Unavailable) -> None:
    """Count a request that got no connection, and tell of it."""
    in_force, target, read_only, name = lane.in_force, lane.target, lane.read_only, type(error).__name__
    what = "exhausted" if isinstance(error, PoolExhausted) else "unavailable"
    in_force.pools.count(what, target.cluster.name, read_only=read_only)
    if in_force.observers.listens_to(RequestFailed):
        reason = str(error).replace("\n  -", ";")
        in_force.observers.emit([RequestFailed(target.cluster.name, target.tenant, read_only, name, reason)])


def asked_for(target: Target) -> dict[str, Any]:
    return {"version": target.requested, "tenant": target.tenant}


def whom_for(target: Target, preposition: str = "for") -> str:
    """Whom a request is for, in an error."""
    if target.tenant is None:
        return f"{preposition} version {target.requested!r}"
    return f"{preposition} tenant {target.tenant!r}" + (f" in version {target.requested!r}" if target.requested else "")
