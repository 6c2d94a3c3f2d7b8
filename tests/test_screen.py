"""What people see on a terminal: nothing is folded, what is wrong comes first, a moving view keeps head and end."""

from __future__ import annotations

import json
import os
import re
import sys
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from rich.text import Text

from router.cli._screen import Column, InPlace, listed, table
from tests.support import one_of_each
from tests.terminal import on_terminal

if TYPE_CHECKING:
    from router.testing import PostgresCluster

COLUMNS = (
    Column("version", share=0.2),
    Column("node", share=0.42),
    Column("role"),
    Column("lag s", number=True, rank=1),
    Column("idle", number=True, rank=3),
    Column("waiting", number=True, rank=2),
)
SHORT = ("v1", "app@db1:5432/app", "primary", "0.1", "3", "0")
LONG = (
    "2026-11-green",
    "app@orders-1.abcdefghijkl.eu-central-1.rds.amazonaws.com:5432/app",
    "replica",
    "9.9",
    "1",
    "0",
)


def printed(console: Console, *shown: object) -> list[str]:
    console.print(*shown, sep="\n")
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def terminal(width: int, height: int = 24) -> Console:
    return Console(file=StringIO(), force_terminal=True, color_system=None, width=width, height=height)


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (120, ["version", "node", "role", "lag s", "idle", "waiting"]),
        (72, ["version", "node", "role", "lag s", "waiting"]),
        (60, ["version", "node", "role", "lag s"]),
        (40, ["version", "node", "role"]),
    ],
)
def test_columns_are_left_out_by_their_rank_and_no_cell_is_folded(width: int, headings: list[str]) -> None:
    heading, _, *rows = printed(terminal(width), table(COLUMNS, [SHORT, LONG], screen := terminal(width)))
    assert screen.width == width
    assert re.split(r" {2,}", heading) == headings
    assert all(len(row) <= width for row in rows)
    assert len(rows) == 2
    assert re.match(r"v1 +app@db1:5432/app +primary", rows[0])
    _, node, role, *_ = rows[1].split()
    assert (node[:10], node[-4:], role) == ("app@orders", "/app", "replica")


def test_what_is_left_beside_the_columns_goes_to_those_that_were_shortened() -> None:
    narrow, wide = (printed(terminal(width), table(COLUMNS, [LONG], terminal(width)))[-1] for width in (100, 200))
    assert "…" in narrow
    assert LONG[1] in wide
    assert len(narrow) >= 95


def test_elsewhere_than_on_a_terminal_everything_is_there() -> None:
    console = Console(file=StringIO(), width=100_000)
    heading, *rows = printed(console, table(COLUMNS, [SHORT, LONG], console), listed(["x " * 600], "red", console))
    assert re.split(r" {2,}", heading) == [column.heading for column in COLUMNS]
    assert rows[1].split() == list(LONG)
    assert rows[2:] == [f"- {'x ' * 600}".rstrip()]


def test_a_list_is_wrapped_between_words() -> None:
    screen = terminal(30)
    lines = printed(screen, listed(["v1: app@db1:5432/app is down: Connection refused", "short"], "red", screen))
    assert lines == ["- v1: app@db1:5432/app is", "  down: Connection refused", "- short"]


@pytest.mark.parametrize(("count", "height"), [(100, 24), (30, 10), (24, 24), (10, 24)])
def test_a_view_in_its_place_keeps_head_and_end(count: int, height: int) -> None:
    lines = printed(terminal(80, height), InPlace(Text("\n".join(f"line {number}" for number in range(count)))))
    assert (lines[0], lines[-1]) == ("line 0", f"line {count - 1}")
    assert len(lines) == min(count, height - 1)
    left_out = count - len(lines) + 1 if count >= height else 0
    assert [line for line in lines if line.startswith("…")] == (
        [f"… {left_out} more line{'' if left_out == 1 else 's'}, for which the terminal is too low"] if left_out else []
    )


def in_terminal(command: str, width: int, height: int) -> list[str]:
    """What a command leaves on a terminal of a certain size, colours aside."""
    environment = {name: text for name, text in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    environment |= {"PYTHONPATH": str(Path(__file__).parent.parent), "TERM": "xterm-256color"}
    arguments = [sys.executable, "-m", "router.cli", *command.split()]
    _, shown = on_terminal(arguments, environment, size=(width, height))
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r", "").splitlines()


@pytest.mark.parametrize("command", ["status", "check"])
@pytest.mark.parametrize(("width", "height"), one_of_each([(80, 24), (120, 40)]))
def test_a_command_on_a_terminal(
    command: str, width: int, height: int, cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = "postgresql://app@127.0.0.1:1/a_database_with_quite_a_long_name"
    nodes = [server.dsn() for server in cluster.servers]
    monkeypatch.setenv("ROUTER_VERSIONS", json.dumps({"2026-11-30": {"nodes": nodes}, "v2": {"primary": far}}))
    lines = in_terminal(command, width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) < height
    (at,) = (index for index, line in enumerate(lines) if line.startswith("version "))
    wrong = "\n".join(lines[:at])
    assert "- v2: app@127.0.0.1:1/a_database_with_quite_a_long_name" in wrong
    assert "refused" in wrong
    for server in cluster.servers:
        assert sum(f"postgres@127.0.0.1:{server.port}/postgres" in line for line in lines[at:]) == 1
    assert re.search(r"\d problems?$", lines[-1])


def test_what_is_wrong_with_tenants_is_wrapped_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_VERSIONS", json.dumps({"v1": {"primary": "postgresql://app@127.0.0.1:1/app"}}))
    monkeypatch.setenv("ROUTER_TENANTS", json.dumps({"acme": {"schema": "acme"}}))
    _, _, *wrong, total = in_terminal("tenants", 32, 24)
    assert [line.rstrip() for line in wrong] == ["- 127.0.0.1:1 cannot be asked:", "  Connection refused"]
    assert total == "1 tenant"
