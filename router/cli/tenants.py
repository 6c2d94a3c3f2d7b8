"""``router tenants``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from router._sync.pool.scripts import cursor_of
from router.cli import _screen
from router.cli._common import FAILED, AsJson, Config, load, print_json
from router.cli._probe import probe_all
from router.cli._tenants import home_as_json, in_words, meant
from router.core import sql
from router.core.errors import ConfigError, RouterError
from router.core.names import counted, rendered
from router.core.observations import ProbeResult
from router.core.outcomes import ALL
from router.core.resolve import resolve
from router.core.topology import Home, Tenancy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import psycopg
    from psycopg.rows import TupleRow

    from router.core.topology import Cluster, Node, Server, Target, Topology


class _Alike(NamedTuple):
    """Sessions of a server with the same database, user and application name."""

    datname: str
    usename: str
    application_name: str
    sessions: int


class _Tenant(NamedTuple):
    """One tenant.

    Attributes:
        key: Its key.
        home: Where it lives, with the keys of its first version filled in; ``None`` if that is not known.
        targets: The targets of its requests, in each of its versions.
        problem: Why it is not known where it lives.
    """

    key: str
    home: Home | None = None
    targets: tuple[Target, ...] = ()
    problem: str = ""


def tenants(
    pattern: Annotated[str, typer.Argument(help="Which tenants, as for `router each --tenants`.")] = ALL,
    *,
    version: Annotated[
        str | None,
        typer.Option("--version", metavar="KEY", help="Only tenants that live in this version.", show_default="any"),
    ] = None,
    ddl: Annotated[
        bool, typer.Option("--sql", help="Print the SQL that creates the table of [directory], and list no tenants.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="The most to wait for the servers, in seconds.")] = 5.0,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """List the tenants: where each of them lives, and how many sessions it has now.

    It lists the tenants of the settings and of the directory's table; tenants of [tenant_template] can be named.
    Sessions are counted by the servers, over all processes: all sessions of a database or login that belongs to one
    tenant, and otherwise those that a router opened, whose application_name ends in the tenant's key. It fails if a
    server cannot be asked, or an answer of the directory is wrong.

    \b
    router tenants
    router tenants "eu-*,acme" --version v2 --json
    router tenants --sql | router psql --version v2
    """  # noqa: D301  (\b keeps the lines as they are)
    settings = load(config)
    topology = settings.topology()
    if ddl:
        tenancy = topology.tenancy or Tenancy()
        print(sql.tenants_table(tenancy.directory.table, tenancy.pattern), end="")
        return
    listed = [
        _tenant(topology, key, home, version) for key, home in meant(settings, topology, pattern, version).items()
    ]
    seen, silent = _ask(listed, timeout)
    sessions = _sessions(listed, seen)
    problems = [f"{server} cannot be asked: {reason}" for server, reason in silent.items()]
    problems += [f"{tenant.key}: {tenant.problem}" for tenant in listed if tenant.problem]
    if as_json:
        print_json(
            {
                "problems": problems,
                "tenants": [_as_json(tenant, count) for tenant, count in zip(listed, sessions, strict=True)],
            }
        )
    else:
        _print(listed, sessions, problems)
    if problems:
        raise typer.Exit(FAILED)


def _tenant(topology: Topology, key: str, home: Home | ConfigError, version: str | None) -> _Tenant:
    if isinstance(home, ConfigError):
        return _Tenant(key, problem="; ".join(home.problems))
    versions: Sequence[str | None] = (version,)
    if version is None:
        versions = home.versions or (tuple(topology.versions) if home.cluster is None else (None,))
    try:
        targets = tuple(resolve(topology, one, key, home) for one in versions)
    except RouterError as error:
        return _Tenant(key, problem=str(error))
    first = versions[0] or ""
    return _Tenant(key, rendered(home, key, topology.aliases.get(first, first)), targets)


def _ask(listed: Iterable[_Tenant], timeout: float) -> tuple[dict[Server, list[_Alike]], dict[Server, str]]:
    """Ask every server for its sessions, and say of those that do not tell them why."""
    places: dict[Server, tuple[Node, Cluster]] = {}
    for tenant in listed:
        for target in tenant.targets:
            cluster = target.watched or target.cluster
            for node in cluster.nodes:
                places.setdefault(node.server, (node, cluster))
    seen: dict[Server, list[_Alike]] = {}
    silent: dict[Server, str] = {}
    for node, probe in probe_all(dict(places.values()), _count, timeout).items():
        if probe.answer is not None:
            seen[node.server] = probe.answer
        else:
            silent[node.server] = probe.error if isinstance(probe.seen, ProbeResult) else probe.seen.reason
    return seen, silent


def _count(connection: psycopg.Connection[TupleRow], _: Node) -> list[_Alike]:
    return [_Alike(**row) for row in cursor_of(connection).execute(sql.SESSIONS)]


def _sessions(listed: Sequence[_Tenant], seen: Mapping[Server, Sequence[_Alike]]) -> list[int | None]:
    """Count the sessions of each tenant; ``None`` where none of its servers could be asked."""
    found: Counter[tuple[Server, str, str, str]] = Counter()  # by database, login and tenant; empty for any
    for server, kinds in seen.items():
        for kind in kinds:
            tenant = kind.application_name.rpartition("/")[2]
            for datname in ("", kind.datname):
                for usename, called in (("", ""), (kind.usename, ""), ("", tenant)):
                    found[server, datname, usename, called] += kind.sessions
    places = [_places(tenant) for tenant in listed]
    tenants_at = Counter(place for own in places for place in own)

    def count(tenant: _Tenant, place: tuple[Server, str, str]) -> int:
        server, datname, _ = place
        home = tenant.home
        alone = home is not None and tenants_at[place] == 1 and (home.user or home.database or home.cluster)
        return found[(*place, "")] if alone and datname else found[server, datname, "", tenant.key]

    return [
        sum(count(tenant, place) for place in own) if any(server in seen for server, _, _ in own) else None
        for tenant, own in zip(listed, places, strict=True)
    ]


def _places(tenant: _Tenant) -> set[tuple[Server, str, str]]:
    """The servers and databases where a tenant has its sessions, and the login if that is its own."""
    found = set()
    for target in tenant.targets:
        for node in target.cluster.nodes:
            params = dict(node.params)
            own = tenant.home.user if tenant.home else ""
            found.add((node.server, params.get("dbname") or params.get("user", ""), own))
    return found


def _print(listed: Sequence[_Tenant], sessions: Sequence[int | None], problems: Sequence[str]) -> None:
    rows = [("tenant", "version", "lives in", "pooling", "sessions")]
    for tenant, count in zip(listed, sessions, strict=True):
        pooling = "" if tenant.home is None else _pooling(tenant)
        shown = "" if count is None else str(count)
        place = "unknown" if tenant.home is None else in_words(tenant.home)
        rows.append((tenant.key, ", ".join(_versions(tenant)), place, pooling, shown))
    # rich would take seconds for ten thousand of them.
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for *row, last in rows:
        print(*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), last.rjust(widths[-1]), sep="  ")
    screen = _screen.console()
    if problems:
        screen.print(_screen.listed(problems, "red", screen))
    screen.print(counted(len(listed), "tenant"), style="bold")


def _versions(tenant: _Tenant) -> list[str]:
    return [target.requested for target in tenant.targets if target.requested]


def _pooling(tenant: _Tenant) -> str:
    return "shared" if any(target.shared for target in tenant.targets) else "dedicated"


def _as_json(tenant: _Tenant, count: int | None) -> dict[str, Any]:
    return {
        "tenant": tenant.key,
        "versions": _versions(tenant),
        **home_as_json(tenant.home or Home()),
        "pooling": tenant.home and _pooling(tenant),
        "sessions": count,
        "problem": tenant.problem or None,
    }
