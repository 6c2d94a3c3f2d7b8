# Generated from router/_async/routes.py by tools/async_to_sync.py: do not edit.
"""Chooses nodes for requests, by what is known now."""

from __future__ import annotations

from random import random
from time import monotonic
from typing import TYPE_CHECKING

from router.core.choose import choose
from router.core.consistency import UNSURE, later
from router.core.errors import RouterClosed, TokenRefused
from router.core.health import UNKNOWN, NodeUse, login_failure, node_state, same_system
from router.core.replication import primary_of, undecided
from router.core.topology import Role

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router._sync.in_force import InForce
    from router.core.choose import Route
    from router.core.consistency import Position
    from router.core.standing import Request
    from router.core.topology import Node, Target

FULL = 1e9
"""The load of a pool that has none to lend or open now: more than any other's."""


class Routes:
    """Chooses nodes by the topology in force, the health of the servers, and the load of the pools."""

    def __init__(self, in_force: InForce) -> None:
        """Keep what the choice depends on.

        Args:
            in_force: What is in force.
        """
        self._in_force = in_force

    def choose(self, target: Target, request: Request, *, logins: bool = True, by_load: bool = True) -> Route:
        """Choose the nodes for a request, by what is known now.

        Args:
            target: The target of the request.
            request: The needs of the request.
            logins: Whether nodes with a refused login are left out.
            by_load: Whether less busy nodes come first.

        Returns:
            The route.

        Raises:
            RouterClosed: The router was closed.
        """
        if self._in_force.closed:
            raise RouterClosed("the router is closed")
        pools = self._in_force.pools.serving(target, read_only=request.read_only) if by_load else {}

        def load(node: Node) -> float:
            pool = pools.get(node)
            return 0.0 if pool is None else pool.load + FULL * pool.full

        health, now = self._in_force.clusters.health, monotonic()
        if target.watched is not None and target.watched is not target.cluster:
            # Only requests try a tenant's own logins: a refused one is tried again when its pause has passed.
            refused = [
                login
                for node in target.cluster.nodes
                for login in (node, NodeUse(node, request.read_only))
                if login in health
            ]
            again = {login for login in refused if not logins or now >= health[login].banned_until}
            health = {key: state for key, state in health.items() if key not in again} if again else health
            if (
                target.watched.name not in self._in_force.topology.versions
            ):  # servers of its own: probes use the tenant's login
                pairs = zip(target.cluster.nodes, target.watched.nodes, strict=True)
                theirs = {node: login_failure(health, seen, read_only=request.read_only) for node, seen in pairs}
                health = {**{node: login for node, login in theirs.items() if login is not None}, **health}
        return choose(target, health, request, now=now, tie_break=random(), load=load)

    def must_see(self, target: Target, positions: Iterable[Position | None]) -> Position | None:
        """Return the latest of the positions that a read must see, without those that are foreign to its cluster.

        Args:
            target: The target of the read.
            positions: The positions that it is to see.

        Returns:
            The latest of them; ``None`` if there is none.

        Raises:
            TokenRefused: A position is foreign, and ``tokens.foreign`` is ``refuse``.
        """
        asked = [position for position in positions if position is not None]
        primary = primary_of(self._in_force.clusters.health, target.cluster) if asked else None
        known = UNKNOWN if primary is None else self._in_force.clusters.health.get(primary.server, UNKNOWN)
        seen: Position | None = None
        for position in asked:
            foreign = not same_system(known.system, position.system)
            past = position.lsn == UNSURE or position.timeline < known.timeline
            if self._in_force.topology.tokens.foreign == "refuse":
                if foreign:
                    raise TokenRefused(
                        f"the token was made for another cluster than the one that version {target.version!r} has now"
                    )
                if position.timeline < known.timeline:
                    raise TokenRefused(
                        f"the token is from before a failover: it is of timeline {position.timeline}, "
                        f"and version {target.version!r} is on timeline {known.timeline}"
                    )
            if foreign or (past and target.cluster.read.fallback != "primary"):
                continue  # only the primary could serve it, and must not
            seen = later(seen, position)
        return seen

    def is_unsettled(self, route: Route) -> bool:
        """Tell whether the first probe of some server may change which nodes are best.

        Args:
            route: The route by what is known now.

        Returns:
            Whether it may.
        """
        health = self._in_force.clusters.health
        if route.read_only and health.get(route.nodes[0].server, UNKNOWN).role is not Role.PRIMARY:
            return undecided(health, route.target.cluster)
        return any(node_state(health, node).up is None for node in route.target.cluster.nodes)

    def is_login_refused(self, target: Target, *, read_only: bool) -> bool:
        """Tell whether a login of a tenant's own was refused.

        Args:
            target: The target of its requests.
            read_only: Whether they only read.

        Returns:
            Whether a login was refused at any of its nodes.
        """
        health = self._in_force.clusters.health
        return target.watched is not target.cluster and any(
            node in health or NodeUse(node, read_only) in health for node in target.cluster.nodes
        )
