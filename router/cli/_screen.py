"""How results are shown: tables that fit a terminal, what is wrong before them, and views that stay in their place."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from rich import box
from rich.console import Console, Group
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from router.core.names import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import ConsoleOptions, RenderableType, RenderResult

Cell: TypeAlias = "str | Text"


class Column(NamedTuple):
    """One column of a table.

    Attributes:
        heading: What stands above it.
        number: Whether there are numbers below, which are set flush right.
        rank: The higher, the sooner it is left out where the terminal is too narrow; what has 0 stays.
        share: How much of the terminal's width it may take before others are left out; its cells may be shortened.
    """

    heading: str
    number: bool = False
    rank: int = 0
    share: float = 0.0


def in_terminal() -> bool:
    """Whether a person sees stdout, on a terminal that can do more than print lines."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def console() -> Console:
    """Make what prints on stdout: styled on a terminal (``NO_COLOR`` is honoured), plain and unwrapped elsewhere.

    Returns:
        The console; it takes every text literally.
    """
    terminal = in_terminal()
    return Console(
        force_terminal=terminal, width=None if terminal else 100_000, markup=False, emoji=False, highlight=False
    )


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], screen: Console) -> Table:
    """Make a table that fits: no cell is folded, columns are left out by their rank, long cells lose their middle.

    Args:
        columns: The columns.
        rows: The cells, one for each column.
        screen: Where it will be shown; if that is no terminal, everything is.

    Returns:
        The table.
    """
    if not screen.is_terminal:
        return _drawn(columns, rows, {}, None)
    limits = {column: int(screen.width * column.share) for column in columns if column.share}
    shown = list(columns)
    while (made := _drawn(columns, rows, limits, box.SIMPLE_HEAD, shown)) and (room := _room(made, screen)) < 0:
        least = max(shown, key=lambda column: column.rank)
        if not least.rank:
            break
        shown.remove(least)
    for column in (column for column in shown if column in limits):
        wanted = max((len(_text(row[columns.index(column)])) for row in rows), default=0)
        given = min(room, max(wanted - limits[column], 0)) if room > 0 else 0
        limits[column] += given
        room -= given
    return _drawn(columns, rows, limits, box.SIMPLE_HEAD, shown)


def _drawn(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    limits: dict[Column, int],
    lines: box.Box | None,
    shown: Sequence[Column] | None = None,
) -> Table:
    made = Table(box=lines, pad_edge=False, header_style="bold", show_edge=False, collapse_padding=lines is not None)
    left = [(index, column) for index, column in enumerate(columns) if shown is None or column in shown]
    for _, column in left:
        made.add_column(column.heading, justify="right" if column.number else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(_shortened(row[index], limits.get(column)) for index, column in left))
    return made


def _room(made: Table, screen: Console) -> int:
    """How many characters are left beside a table, or missing."""
    wide = screen.options.update(width=10_000)
    return screen.width - Measurement.get(screen, wide, made).maximum


def _text(cell: Cell) -> str:
    return cell.plain if isinstance(cell, Text) else cell


def _shortened(cell: Cell, limit: int | None) -> Cell:
    """A cell without its middle, where it is too long: names tell their differences at the beginning, or at the end."""
    text = _text(cell)
    if limit is None or len(text) <= limit:
        return cell
    head = max(limit - 1, 0) * 2 // 3
    tail = max(limit - 1, 0) - head
    return f"{text[:head]}…{text[len(text) - tail :]}"


def listed(lines: Iterable[str], style: str, screen: Console) -> RenderableType:
    """Make a list of what is wrong, wrapped between words; elsewhere than on a terminal, a line each.

    Args:
        lines: The lines.
        style: Their colour.
        screen: Where it will be shown.

    Returns:
        What to print.
    """
    if not screen.is_terminal:
        return Group(*(Text(f"- {line}", no_wrap=True, overflow="ignore") for line in lines))
    made = Table.grid(padding=(0, 1, 0, 0))
    made.add_column(no_wrap=True, style=style)
    made.add_column(overflow="fold", style=style)
    for line in lines:
        made.add_row("-", line)
    return made


class InPlace:
    """A view that stays in its place: what is more than fits is left out of its middle; its head and its end are seen.

    Args:
        view: The whole of it.
    """

    def __init__(self, view: RenderableType) -> None:
        self._view = view

    def __rich_console__(self, screen: Console, options: ConsoleOptions) -> RenderResult:
        """Print as many lines as there is room for."""
        lines = screen.render_lines(self._view, options.update(height=None), pad=False)
        room = screen.height - 1
        if len(lines) > room:
            head, tail = room // 2, room - room // 2 - 1
            note = [Segment(f"… {counted(len(lines) - head - tail, 'more line')}, for which the terminal is too low")]
            lines = [*lines[:head], note, *lines[len(lines) - tail :]]
        for line in lines:
            yield from line
            yield Segment.line()
