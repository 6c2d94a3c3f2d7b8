"""A line that owners share finds the same one next as the function that looks at everybody."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.budget import next_in_line
from router.core.fair_line import SLACK, FairLine, insert
from tests.support import examples


class Waiter(NamedTuple):
    """One that waits: its place in the order of arrival, whose it is, what it accepts."""

    place: int
    owner: str
    accepts: str | None


owners = st.sampled_from("abc")
waiters = st.lists(st.tuples(owners, st.sampled_from([None, "one", "two"])), max_size=12)
holders = st.dictionaries(owners, st.integers(1, 4))


@settings(max_examples=examples(500))
@given(waiters, holders, st.data())
def test_the_next_is_the_one_that_looking_at_everybody_finds(
    those: list[tuple[str, str | None]], held: dict[str, int], data: st.DataObject
) -> None:
    line = FairLine[Waiter]()
    everybody = [Waiter(place, owner, accepts) for place, (owner, accepts) in enumerate(those)]
    for waiter in data.draw(st.permutations(everybody)):  # some come again, to the place that they had
        line.add(waiter, *waiter)
    while everybody:
        accepted = data.draw(st.sampled_from([(None,), ("one",), (None, "two")]))
        crowd = {waiter.owner for waiter in everybody}
        fit = [waiter for waiter in everybody if waiter.accepts in accepted]
        expected = fit[next_in_line([waiter.owner for waiter in fit], crowd, held)] if fit else None
        assert line.first(accepted, lambda: held) == expected
        for accepts in (None, "one", "two"):
            assert line.number(accepts) == sum(waiter.accepts == accepts for waiter in everybody)
        assert line._owners == Counter(waiter.owner for waiter in everybody)
        leaves = data.draw(st.sampled_from(everybody)) if expected is None or data.draw(st.booleans()) else expected
        everybody.remove(leaves)
        line.remove(leaves, leaves.owner, leaves.accepts)
    assert line.first((None, "one", "two"), lambda: held) is None
    assert (line._queues, line._heads, line._owners, line._accepting) == ({}, [], Counter(), Counter())


@given(st.lists(st.integers(0, 20), unique=True))
def test_one_that_comes_again_is_inserted_in_its_place(places: list[int]) -> None:
    queue: OrderedDict[str, int] = OrderedDict()
    for place in places:
        insert(queue, str(place), place)
    assert list(queue.items()) == [(str(place), place) for place in sorted(places)]


def test_what_it_keeps_does_not_grow_with_those_that_have_left() -> None:
    line = FairLine[Waiter]()
    stays = Waiter(0, "a", None)
    line.add(stays, *stays)
    for place in range(1, 1000):
        both = [Waiter(place, "b", None), Waiter(place + 1000, "b", None)]
        for waiter in both:
            line.add(waiter, *waiter)
        for waiter in both:
            line.remove(waiter, waiter.owner, waiter.accepts)
    assert len(line._heads) <= 2 + SLACK + 2
    assert line.first((None,), dict) is stays


def test_one_that_does_not_wait_is_removed_without_effect() -> None:
    line = FairLine[Waiter]()
    one, other = Waiter(0, "a", None), Waiter(1, "a", None)
    line.add(one, *one)
    line.remove(other, other.owner, other.accepts)
    line.remove(other, "b", None)
    assert line.first((None,), None) is one
    assert line.number(None) == 1
