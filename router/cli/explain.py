"""``router explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli._common import BAD_USAGE, FAILED, AsJson, Config, ReadOnly, Tenant, Version, fail, load, print_json
from router.cli._probe import Prober, observe_all
from router.cli._tenants import home_as_json, in_words, named
from router.core.choose import choose
from router.core.errors import ConfigError
from router.core.health import node_state, role_of
from router.core.names import rendered
from router.core.resolve import resolve
from router.core.standing import Request

if TYPE_CHECKING:
    from router.core.choose import Route
    from router.core.health import Health
    from router.core.topology import Home, Target


def explain(
    *,
    version: Version = None,
    tenant: Tenant = None,
    read_only: ReadOnly = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Connect to no server: show what a router that has just started knows.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="The most to wait for the nodes, in seconds.")] = 5.0,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Say where a request would go now, and why.

    It connects to the version's nodes first, so that roles and states are real. Where several nodes are equally good,
    the router spreads requests over them as read.balance says. Fails if no node can serve the request.

    Of a tenant it tries database and login, but does not check whether its schema is there, nor, if pooling is shared,
    its role: `router psql --tenant` finds out.

    \b
    router explain --version v2 --read-only
    router explain --version live --offline
    router explain --tenant acme
    """  # noqa: D301  (\b keeps the lines as they are)
    settings = load(config)
    topology = settings.topology()
    home: Home | None = None
    if tenant is not None:
        tenancy = topology.tenancy
        if offline and tenancy and tenancy.directory.version is not None and tenant not in tenancy.homes:
            fail(f"only the directory knows where tenant {tenant!r} lives: leave --offline out", BAD_USAGE)
        found = named(settings, topology, [tenant])[tenant]
        if isinstance(found, ConfigError):
            raise found
        home = found
    target = resolve(topology, version, tenant, home)
    health: Health = {}
    if not offline:
        nodes = dict.fromkeys(target.cluster.nodes, target.cluster)
        probes = Prober(nodes, lambda *_: None).probe(timeout)
        health = observe_all(health, probes.values(), now=0.0, policy=topology.health)
    route = choose(target, health, Request(read_only), now=0.0, tie_break=0.0)
    if home is not None and tenant is not None:
        home = rendered(home, tenant, topology.aliases.get(target.requested, target.requested))
    if as_json:
        print_json(_as_json(route, health, home))
    else:
        print(route)
        if home is not None:
            print(f"  tenant {tenant}: {in_words(home)}; {_pooling(target)}")
        if route.best > 1:
            print(f"  the first {route.best} are equally good: {target.cluster.read.balance} (read.balance)")
    if not (offline or route.best) or not route.nodes:
        raise typer.Exit(FAILED)


def _pooling(target: Target) -> str:
    return "shared" if target.shared else "dedicated"


def _as_json(route: Route, health: Health, home: Home | None) -> dict[str, Any]:
    nodes = [*route.nodes, *route.refused]
    return {
        "requested": route.target.requested,
        "version": route.target.version,
        "tenant": route.target.tenant,
        "lives_in": home and {**home_as_json(home), "pooling": _pooling(route.target)},
        "read_only": route.read_only,
        "best": route.best,
        "nodes": [
            {
                "node": str(node),
                "role": role_of(health, node),
                "up": node_state(health, node).up,
                "note": route.notes.get(node),
                "refused": route.refused.get(node),
            }
            for node in nodes
        ],
    }
