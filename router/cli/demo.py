"""``router demo``: PostgreSQL 16 and 18 side by side, and the writers and readers of one service routed across both.

Meanwhile the servers of one of them have accidents: see ``_accidents.py``.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from secrets import token_urlsafe
from time import monotonic, sleep
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live

from router import Router, RouterSettings
from router.cli._accidents import Accidents
from router.cli._common import FAILED, AsJson, print_json
from router.cli._screen import InPlace, console, in_terminal
from router.cli._service import RELEASES, SERVER_VIEW, Load, Release, Source
from router.cli._summary import (
    Kept,
    Writes,
    live_view,
    print_kept,
    print_summary,
    progress_line,
    served_table,
    summary_as_json,
)
from router.testing import PostgresCluster

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import TextIO


def demo(
    *,
    seconds: Annotated[float, typer.Option(min=0.5, help="How long it runs, at least.")] = 20.0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers running, with settings to use them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the main job on servers of its own: nothing to configure.

    It starts PostgreSQL 16 as v1 (a primary and a standby) and PostgreSQL 18 as v2 (a primary and two standbys), with
    different schemas; one router then serves writers and readers of both, at an easy pace. Meanwhile a standby of v2 is
    killed, then its primary, and the other standby promoted; later the killed servers come back. It ends by itself, or
    by Ctrl-C, with a summary: how long writes waited, and whether any was lost. It removes everything. Fails if a
    request failed, other than a write in flight on the primary that was killed, or a write was lost.

    \b
    router demo --seconds 5
    router demo --keep
    """  # noqa: D301  (\b keeps the lines as they are)
    progress = sys.stderr if as_json else sys.stdout
    _forget_the_environment()
    with ExitStack() as stack:
        clusters = _start(stack, progress)
        config = _write_settings(clusters)
        with Router(RouterSettings.load(config, _env_file=None)) as router:
            for release, cluster in zip(RELEASES, clusters, strict=True):
                with router.connection(version=release.version) as connection:
                    connection.execute(SERVER_VIEW)
                    connection.execute(release.schema)
                cluster.wait_replayed()
            accidents = next(
                Accidents(release.version, cluster)
                for release, cluster in zip(RELEASES, clusters, strict=True)
                if release.has_accidents
            )
            load = Load(router, accidents, RELEASES)
            with load.running(), accidents.happening(seconds), suppress(KeyboardInterrupt):
                _watch(load, accidents, seconds, progress, moving=in_terminal() and not as_json)
        writes = _judge(load, accidents, clusters)
        kept = None
        if keep:
            accidents.bring_back()  # Ctrl-C may have left some of them down
            kept = _keep(clusters, config)
    if as_json:
        print_json(summary_as_json(load, accidents, writes, kept))
    else:
        print_summary(load, accidents, writes)
        if kept:
            print_kept(kept)
    if load.failures or writes.lost:
        raise typer.Exit(FAILED)


def _forget_the_environment() -> None:
    """Leave the demonstration alone with its own servers: no variable of the user's is meant for these."""
    for name in list(os.environ):
        if name.upper().startswith(("ROUTER_", "PG")):
            del os.environ[name]


def _start(stack: ExitStack, progress: TextIO) -> Sequence[PostgresCluster]:
    password = token_urlsafe()

    def start(release: Release) -> PostgresCluster:
        begun = monotonic()
        cluster = PostgresCluster(
            release.postgres, release.standbys, synchronous=release.has_accidents, password=password
        )
        took = monotonic() - begun
        print(f"PostgreSQL {release.postgres} runs as {release.version}, after {took:.1f} s", file=progress)
        return cluster

    parts = (f"PostgreSQL {release.postgres} (standbys: {release.standbys})" for release in RELEASES)
    print(f"starting {' and '.join(parts)} ...", file=progress, flush=True)
    with ThreadPoolExecutor() as starters:
        return [stack.enter_context(cluster) for cluster in starters.map(start, RELEASES)]


def _write_settings(clusters: Sequence[PostgresCluster]) -> Path:
    """Write the settings file; it stays with the last cluster, closed to other users, and goes with it."""
    directory = clusters[-1].directory
    secret = directory / "password"
    secret.write_text(clusters[-1].password or "", encoding="utf-8")

    def node(port: int) -> str:
        dsn = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        return f"{{ dsn = {json.dumps(dsn)}, password_file = {json.dumps(str(secret))} }}"

    lines = ['default_version = "v2"']
    for release, cluster in zip(RELEASES, clusters, strict=True):
        lines += ["", f"[versions.{release.version}]"]
        if release.has_accidents:
            lines += ["nodes = [", *(f"    {node(server.port)}," for server in cluster.servers), "]"]
        else:
            lines += [f"primary = {node(cluster.primary.port)}", "replicas = ["]
            lines += [*(f"    {node(standby.port)}," for standby in cluster.standbys), "]"]
    config = directory / "router.toml"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return config


def _judge(load: Load, accidents: Accidents, clusters: Sequence[PostgresCluster]) -> Writes:
    """Look for every acknowledged write, and for the time in which there was none."""
    exposed = [written for written in load.written if written.version == accidents.version]
    before = [written.at for written in exposed if written.port == accidents.primary]
    after = [written.at for written in exposed if written.port != accidents.primary]
    lost = 0
    for release, cluster in zip(RELEASES, clusters, strict=True):
        # By their ids, since a write in flight may have made it: counting rows, it would make up for one that is lost.
        # An id that was given twice is of two writes, the first of them lost.
        there = {number for (number,) in cluster.primary.execute("SELECT id FROM customer")}
        acknowledged = [written.id for written in load.written if written.version == release.version]
        lost += len(acknowledged) - len(there.intersection(acknowledged))
    if not (before and after):
        return Writes(None, None, lost)
    # It accepts them a moment before promoting it is seen to be over.
    return Writes(min(after) - max(before), max(min(after) - accidents.promoted_at, 0.0), lost)


def _watch(load: Load, accidents: Accidents, seconds: float, progress: TextIO, *, moving: bool) -> None:
    """Show what is served, and the accidents: a table that moves, or a line a second.

    It lasts until the time is over, and the accidents as well: coming back takes its time.
    """
    begun = last = monotonic()
    before: dict[Source, int] = {}
    told = 0
    with ExitStack() as stack:
        screen = console()
        live = stack.enter_context(Live(console=screen, auto_refresh=False, transient=True)) if moving else None
        while (left := begun + seconds - last) > 0 or not accidents.over():
            if left > 0:
                sleep(min(1.0, left))
            else:
                accidents.over(timeout=1.0)
            now = monotonic()
            rows = load.measure(now - last, before)
            before = {row.source: row.requests for row in rows}
            last = now
            happened = accidents.happened.copy()
            if live:
                view = live_view(
                    load, happened, served_table(rows, "requests/s", screen), left=max(begun + seconds - now, 0.0)
                )
                live.update(InPlace(view), refresh=True)
            else:
                print(*happened[told:], progress_line(load, rows, now - begun), sep="\n", file=progress, flush=True)
            told = len(happened)


def _keep(clusters: Sequence[PostgresCluster], config: Path) -> Kept:
    toml = config.read_text(encoding="utf-8")
    return Kept(str(config), f"kill {' '.join(str(cluster.keep()) for cluster in clusters)}", toml)
