"""``router explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.choose import Request, choose
from router.cli._common import FAILED, AsJson, Config, ReadOnly, Version, load, print_json
from router.cli._look import Looker, learn
from router.health import role_of, state_of
from router.resolve import resolve

if TYPE_CHECKING:
    from router.choose import Route
    from router.health import Health


def explain(
    *,
    version: Version = None,
    read_only: ReadOnly = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Connect to nobody: show what a router that just started knows.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="The most to wait for the nodes, in seconds.")] = 5.0,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Say where a request would go now, and why.

    It connects to the version's nodes first, so that roles and states are real. Where several nodes are equally good,
    the router spreads requests over them as read.balance says. Fails if no node can serve the request.

    \b
    router explain --version v2 --read-only
    router explain --version live --offline
    """  # noqa: D301  (\b keeps the lines as they are)
    topology = load(config).topology()
    target = resolve(topology, version)
    health: Health = {}
    if not offline:
        nodes = dict.fromkeys(target.cluster.nodes, target.cluster)
        looks = Looker(nodes, lambda _: None).look(timeout)
        health = learn(health, looks.values(), now=0.0, policy=topology.health)
    route = choose(target, health, Request(read_only), now=0.0, turn=0.0)
    if as_json:
        print_json(_as_json(route, health))
    else:
        print(route)
        if route.best > 1:
            print(f"  the first {route.best} are equally good: {target.cluster.read.balance} (read.balance)")
    if not (offline or route.best) or not route.nodes:
        raise typer.Exit(FAILED)


def _as_json(route: Route, health: Health) -> dict[str, Any]:
    nodes = [*route.nodes, *route.refused]
    return {
        "requested": route.target.requested,
        "version": route.target.version,
        "read_only": route.read_only,
        "best": route.best,
        "nodes": [
            {
                "node": str(node),
                "role": role_of(health, node),
                "up": state_of(health, node).up,
                "note": route.notes.get(node),
                "refused": route.refused.get(node),
            }
            for node in nodes
        ],
    }
