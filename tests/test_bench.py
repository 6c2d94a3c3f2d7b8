"""The benchmark counts what it says and knows when a bar does not hold; what it times, ``make bench`` itself checks."""

from __future__ import annotations

import json
import re

import pytest

from bench.__main__ import ROWS, main
from bench.figures import Bar, Figure, ratio

FIGURES = (
    Figure("one", 1, "round trips", bar=Bar("exactly", 1)),
    Figure("dear", 0.95, "times the other's", bar=Bar("at most", 0.9), spread=(0.9, 1.0)),
    Figure("for comparison", 3, "round trips"),
)


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> str:
    """A row of which one figure does not hold its bar."""
    monkeypatch.setitem(ROWS, "row", lambda: FIGURES)
    return "row"


def test_round_trips_are_what_is_promised(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["round_trips", "--json", "--check"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {figure["what"]: figure["value"] for figure in figures} == {
        "router: one indexed SELECT, read_only": 1,
        "router: a write of one statement": 3,
        "psycopg_pool: one indexed SELECT": 3,
        "psycopg_pool: a write of one statement": 3,
    }


def test_the_exit_code_says_whether_the_bars_hold_only_when_asked(
    row: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([row]) == 0
    assert main([row, "--check"]) == 1
    monkeypatch.setitem(ROWS, row, lambda: FIGURES[::2])
    assert main([row, "--check"]) == 0


def test_the_bar_stands_beside_the_figure(row: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([row])
    one, dear, comparison = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"row +one +1 +exactly 1: holds +round trips", one)
    assert re.fullmatch(r"row +dear +0\.95 +0\.90-1\.00 +at most 0\.9: DOES NOT HOLD +times the other's", dear)
    assert re.fullmatch(r"row +for comparison +3 +round trips", comparison)


def test_json_has_every_figure(row: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([row, "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert [(figure["row"], figure["what"], figure["holds"]) for figure in figures] == [
        ("row", "one", True),
        ("row", "dear", False),
        ("row", "for comparison", True),
    ]
    assert figures[1]["bar"] == {"relation": "at most", "limit": 0.9}


def test_an_unknown_row_is_named_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["chekout"])
    assert ended.value.code == 2
    assert "no row chekout; there are round_trips, checkout, import" in capsys.readouterr().err


def test_a_ratio_is_the_same_on_a_machine_that_changes_its_pace() -> None:
    theirs = [1.0, 10.0, 0.1, 5.0, 2.0, 0.3, 3.0]  # seconds
    ours = [0.8 * seconds for seconds in theirs]
    ours[0] = 100.0  # something else ran
    figure = ratio("ours", ours, theirs, "times theirs")
    assert figure.value == pytest.approx(0.8)
    assert figure.spread == pytest.approx((0.8, 0.8))


def test_bars() -> None:
    assert Bar("at most", 0.9).holds(0.9)
    assert not Bar("at most", 0.9).holds(0.91)
    assert Bar("exactly", 3).holds(3)
    assert not Bar("exactly", 3).holds(2)
