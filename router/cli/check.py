"""``router check``."""

from __future__ import annotations

from typing import Annotated

import typer

from router.cli._common import FAILED, AsJson, Config, load, print_json
from router.cli._findings import find
from router.cli._report import findings_as_json, print_findings
from router.core.resolve import resolve


def check(
    *,
    version: Annotated[
        str | None, typer.Option("--version", metavar="KEY", help="A version or an alias.", show_default="all")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many processes will use this configuration.", show_default="1")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="The most to wait for the servers, in seconds.")] = 5.0,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Check the settings, and every server of the versions and of listed tenants that have their own.

    `router tenants` also asks the servers of tenants in the directory's table.

    Is each node reachable, and a primary or replica as configured? Do replicas follow the primary? Are the database,
    schema and role of each listed tenant there? Does each server allow as many connections as this configuration may
    open there, whichever node is the primary? It fails if anything is wrong, and says what to do. It warns of several
    servers behind one address, of a pooler that the settings do not declare, and of default limits that are higher
    than the server allows.

    \b
    router check --config config/router.toml --processes 4
    """  # noqa: D301  (\b keeps the lines as they are)
    settings = load(config)
    topology = settings.topology()
    only = None if version is None else resolve(topology, version).cluster
    findings = find(settings, topology, only, processes, timeout)
    if as_json:
        print_json(findings_as_json(findings))
    else:
        print_findings(findings)
    if findings.problems:
        raise typer.Exit(FAILED)
