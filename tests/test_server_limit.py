"""What a server that refuses connections shows, and when it is asked again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.core.server_limit import LEAST_PAUSE, LEAST_PAUSE_WITHOUT, MOST_PAUSE, ServerLimit, raised, refused


def pauses(most: int, times: int) -> list[float]:
    known, found = None, []
    for _ in range(times):
        known = refused(known, most, "full", now=0.0, jitter=0.5)
        assert known.retry_at == known.pause
        found.append(known.pause)
    return found


def test_the_pause_doubles_from_a_second_to_a_minute() -> None:
    assert pauses(3, 8) == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_once_one_more_was_had_another_is_tried_at_once_and_the_pause_begins_anew() -> None:
    known = raised(4, now=3.0)
    assert (known.most, known.reason, known.retry_at) == (4, "", 3.0)
    assert refused(known, 4, "full", now=3.1, jitter=0.5).pause == LEAST_PAUSE


def test_it_is_short_where_there_is_no_connection_at_all() -> None:
    assert pauses(0, 6) == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


@given(st.integers(0, 3), st.floats(0.0, 1.0), st.floats(0.01, 60.0), st.integers(0, 3))
def test_jitter_and_bounds(most: int, jitter: float, pause: float, before: int) -> None:
    known = refused(ServerLimit(before, "full", pause, 0.0), most, "still full", now=100.0, jitter=jitter)
    assert (LEAST_PAUSE if most else LEAST_PAUSE_WITHOUT) <= known.pause <= (MOST_PAUSE if most else LEAST_PAUSE)
    assert 0.9 * known.pause <= known.retry_at - 100.0 + 1e-9
    assert known.retry_at - 100.0 <= 1.1 * known.pause + 1e-9
    assert (known.most, known.reason) == (most, "still full")


def test_an_error_says_what_the_server_said_and_what_was_had() -> None:
    said = "accepts no further connection: too many"
    assert str(ServerLimit(3, "too many", 1.0, 0.0)) == f"{said}; it accepted 3 connections from this process"
    assert str(ServerLimit(1, "too many", 1.0, 0.0)) == f"{said}; it accepted 1 connection from this process"
    assert str(ServerLimit(0, "too many", 1.0, 0.0)) == said
