"""The benchmark counts what it says and knows when a bar does not hold; what it times, ``make bench`` itself checks."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING

import psycopg
import pytest

from bench import failover, tenants
from bench.__main__ import APART, ROWS, main
from bench.failover import Tally
from bench.figures import Bar, Figure, ratio
from bench.tenants import Held, Request

if TYPE_CHECKING:
    from router.testing import PostgresCluster

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
        "router: tenant's SELECT, dedicated": 1,
        "router: tenant's write + token, dedicated": 3,
        "router: tenant's SELECT, shared": 1,
        "router: tenant's write + token, shared": 3,
        "router: tenant's SELECT, other's before": 2,
        "router: tenant's write + token, other's before": 3,
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
    assert "no row chekout; there are round_trips, checkout, contention, import" in capsys.readouterr().err


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
    assert Bar("at least", 0.9).holds(0.9)
    assert not Bar("at least", 0.9).holds(0.89)
    assert Bar("exactly", 3).holds(3)
    assert not Bar("exactly", 3).holds(2)


def test_a_failover_is_counted_from_the_promotion_on_the_promoted_server() -> None:
    old, promoted = 5431, 5432
    quick = Tally(
        written=[(9.0, 0, old), (10.5, 2, promoted), (10.6, 3, promoted)],
        write_errors=Counter(AdminShutdown=1),
        reads=9,
        slowest_read=0.2,
    )
    never = Tally(written=[(9.1, 0, old), (10.9, 1, old)], read_errors=Counter(PoolTimeout=2, TimeoutError=1))
    kept = [("router", 0), ("router", 2), ("router", 3), ("hasql", 0), ("nobody", 0)]
    figures = failover.compare({"router": quick, "hasql": never}, promoted, 10.25, kept)
    assert [(figure.what, figure.value, figure.unit, str(figure.bar), figure.holds) for figure in figures] == [
        ("write gap: router", 0.25, "s", "at most 0.5", True),
        ("write gap: hasql", failover.BOUND, "s, and no write by then", "None", True),
        ("reads failed: router", 0, "of 9", "exactly 0", True),
        ("reads failed: hasql", 3, "of 3, 2 PoolTimeout, 1 TimeoutError", "None", True),
        ("slowest read: router", 0.2, "s", "None", True),
        ("slowest read: hasql", 0.0, "s", "None", True),
        ("writes failed: router", 1, "of 4, 1 AdminShutdown", "None", True),
        ("writes failed: hasql", 0, "of 2", "None", True),
        ("acknowledged writes lost: router", 0, "of 3", "exactly 0", True),
        ("acknowledged writes lost: hasql", 1, "of 2", "exactly 0", False),
    ]


def test_a_router_that_never_writes_again_and_fails_reads_does_not_hold_its_bars() -> None:
    never = Tally(written=[(9.1, 0, 5431)], read_errors=Counter(NoReplica=1))
    figures = failover.compare({"router": never}, 5432, 10.25, [("router", 0)])
    assert [figure.what for figure in figures if not figure.holds] == ["write gap: router", "reads failed: router"]


def test_what_takes_minutes_is_measured_only_when_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ROWS:
        monkeypatch.setitem(ROWS, name, lambda: FIGURES[:1])
    main(["--json"])
    assert [figure["row"] for figure in json.loads(capsys.readouterr().out)] == [*ROWS][: -len(APART)]
    main([*APART, "--json"])
    assert [figure["row"] for figure in json.loads(capsys.readouterr().out)] == [*APART]


async def test_connections_are_counted_where_psycopg_opens_them(cluster: PostgresCluster) -> None:
    held, dsn = Held(), cluster.dsn()
    with held.counting():
        with psycopg.Connection.connect(dsn), psycopg.Connection.connect(dsn):
            pass
        async with await psycopg.AsyncConnection.connect(dsn):
            with psycopg.Connection.connect(dsn):
                with pytest.raises(psycopg.OperationalError, match="does not exist"):  # it counts while it is tried
                    psycopg.Connection.connect(cluster.dsn("nowhere"))
                assert held.most == {"postgres": 3}
                with psycopg.Connection.connect(dsn):
                    pass
    assert held.most == {"postgres": 3}
    psycopg.Connection.connect(dsn).close()
    assert held.most == {"postgres": 3}


def test_a_cap_that_breaks_a_request_that_fails_and_a_slow_router_do_not_hold_their_bars() -> None:
    waits = [0.001] * 99
    good = tenants.Tally(rates=[90.0, 180.0, 45.0], waits=waits, held=50, seen=55, samples=9, threads=7)
    plain = tenants.Tally(rates=[100.0, 200.0, 50.0], waits=waits, errors=["PoolTimeout"], held=60, seen=60)
    assert [
        figure.what for figure in tenants.compare("all", {"router": good, "plain": plain}) if not figure.holds
    ] == []
    bad = tenants.Tally(
        rates=[80.0, 170.0, 44.0], waits=waits, errors=["PoolExhausted"], strangers=[Request("t1", 1, writes=False)],
        held=51, seen=56,
    )  # fmt: skip
    assert [figure.what for figure in tenants.compare("all", {"router": bad, "plain": plain}) if not figure.holds] == [
        "all, served: router",
        "all, failed: router",
        "all, another tenant's row: all",
        "all, held: router",
        "all, pg_stat_activity: router",
    ]


def test_of_those_beside_a_flood_the_slowest_counts() -> None:
    calm = {"t1": [0.01] * 100, "t2": [0.02] * 100}
    flooded = {"t1": [0.02] * 100, "t2": [0.02] * 100}
    others, flood = tenants.compare_flood("shared", calm, flooded, 1000)
    assert others.value == pytest.approx(2.0)
    assert others.holds
    assert flood.value == pytest.approx(10.0)
    others, _ = tenants.compare_flood("shared", calm, flooded | {"t2": [0.02] * 90 + [0.07] * 10}, 1000)
    assert others.value == pytest.approx(3.5)
    assert not others.holds
