"""Who may open a connection, and which one is closed for that: each rule, and a process that lives by them alone.

What is expected is counted here in the plainest way, over all connections each time.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.core.bounds import BudgetRequest
from router.core.budget import KEPT, BudgetKey, Full, Idle, Limits, next_in_line, share
from router.core.slot_lines import Budget
from router.core.topology import Server
from tests.support import examples

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from router.core.budget import Login

ONE, TWO = Server("db1", 5432), Server("db2", 5432)
OWNERS = "abcde"
NOW = 100.0


# The decisions at one moment, of a budget that was built for it


def built(limits: Limits, taken: Iterable[BudgetKey], waiting: Iterable[BudgetKey]) -> Budget[BudgetRequest]:
    budget = Budget[BudgetRequest](limits)
    for key in taken:
        budget.add(key)
    for key in waiting:
        budget.wait(BudgetRequest(key))
    return budget


def full(limits: Limits, taken: Sequence[BudgetKey], key: BudgetKey) -> Full | None:
    return built(limits, taken, ()).full(key)


def grant(limits: Limits, taken: Sequence[BudgetKey], waiting: Sequence[BudgetKey]) -> int | None:
    return index_of(built(limits, taken, waiting).grant())


def to_close(
    limits: Limits, taken: Sequence[BudgetKey], waiting: Sequence[BudgetKey], idle: Sequence[Idle], now: float
) -> tuple[int, int] | None:
    budget = built(limits, taken, waiting)
    if budget.grant() is not None or (chosen := budget.to_close(idle, now)) is None:
        return None
    return chosen[0], chosen[1].order - 1


def preempted_by(
    limits: Limits, taken: Sequence[BudgetKey], waiting: Sequence[BudgetKey], key: BudgetKey
) -> int | None:
    budget = built(limits, taken, waiting)
    settle(budget)
    return index_of(budget.preempted_by(key))


def settle(budget: Budget[BudgetRequest]) -> None:
    """Have each request that has room open its connection."""
    while (request := budget.grant()) is not None:
        budget.leave(request)
        budget.add(request.key)


def index_of(request: BudgetRequest | None) -> int | None:
    return None if request is None else request.order - 1


# What is expected, counted plainly


def of(taken: Iterable[BudgetKey], owner: str, server: Server | None = None) -> int:
    return sum(key.owner == owner and server in {None, key.server} for key in taken)


def at(taken: Iterable[BudgetKey], server: Server) -> int:
    return sum(key.server == server for key in taken)


def fits(limits: Limits, taken: Sequence[BudgetKey], key: BudgetKey) -> bool:
    return (
        len(taken) < limits.process
        and (limits.server is None or at(taken, key.server) < limits.server)
        and (key.cap is None or of(taken, key.owner) < key.cap)
    )


def ready(limits: Limits, taken: Sequence[BudgetKey], waiting: Sequence[BudgetKey]) -> list[int]:
    """Those who have room, what is left under a cap being kept for those of the owner that came before."""
    return [
        index
        for index, key in enumerate(waiting)
        if fits(limits, taken, key)
        and (key.cap is None or of(taken, key.owner) + ahead(taken, waiting, index) < key.cap)
    ]


def ahead(taken: Sequence[BudgetKey], waiting: Sequence[BudgetKey], index: int) -> int:
    """How many of the same owner came before, for pools that have none."""
    return of((key for key in waiting[:index] if key not in taken), waiting[index].owner)


def is_below(limits: Limits, taken: Sequence[BudgetKey], waiting: Sequence[BudgetKey], key: BudgetKey) -> bool:
    everyone = [*taken, *waiting]
    fair = limits.process // len({one.owner for one in everyone})
    there = {one.owner for one in everyone if one.server == key.server}
    return of(taken, key.owner) < max(fair, 1) and (
        limits.server is None or of(taken, key.owner, key.server) < max(limits.server // len(there), 1)
    )


def without(taken: Sequence[BudgetKey], key: BudgetKey) -> list[BudgetKey]:
    rest = list(taken)
    rest.remove(key)
    return rest


# Processes at one moment


class Moment(NamedTuple):
    """What is open, who waits and what is idle."""

    limits: Limits
    taken: list[BudgetKey]
    waiting: list[BudgetKey]
    idle: list[Idle]


caps = st.fixed_dictionaries({owner: st.none() | st.integers(1, 3) for owner in OWNERS})
bounds = st.builds(Limits, st.integers(1, 8), st.none() | st.integers(1, 4))
many = settings(max_examples=examples(500))  # it takes some luck that two limits are reached and both matter


@st.composite
def pools_of(draw: st.DrawFn) -> list[BudgetKey]:
    cap = draw(caps)
    places = st.tuples(st.sampled_from([ONE, TWO]), st.sampled_from(OWNERS))
    return [BudgetKey(server, owner, cap[owner]) for server, owner in draw(st.lists(places, min_size=1, max_size=9))]


@st.composite
def moments(draw: st.DrawFn) -> Moment:
    limits, pools = draw(bounds), draw(pools_of())
    taken: list[BudgetKey] = []
    for key in draw(st.lists(st.sampled_from(pools), max_size=3)) + 2 * draw(st.permutations(pools)):
        if fits(limits, taken, key):
            taken.append(key)
    taken = taken[: draw(st.integers(0, 2 * len(taken)))]  # mostly all of them, so that limits are reached
    idle = [
        Idle(key, draw(st.sampled_from([NOW, NOW - KEPT / 2, NOW - KEPT, NOW - 5 * KEPT])), draw(st.booleans()))
        for key in draw(st.permutations(taken))[: draw(st.integers(0, len(taken)))]
    ]
    return Moment(limits, taken, draw(st.permutations(pools))[: draw(st.integers(0, 2 * len(pools)))], idle)


# What a decision costs


@pytest.mark.parametrize("owed", [True, False])
def test_a_decision_costs_the_same_however_many_are_open_and_wait(owed: bool) -> None:
    def calls(size: int) -> int:
        """How many functions are called until a connection has come back and another one was opened."""
        held = [BudgetKey(ONE, f"held {number}", None) for number in range(size)]
        waiting = [BudgetKey(ONE, f"waits {number}", None) for number in range(size)] if owed else held
        budget = built(Limits(2 * size, size), held, waiting)
        counted = 0

        def count_call(*_: object) -> None:
            nonlocal counted
            counted += 1

        before = sys.getprofile()
        sys.setprofile(count_call)
        try:
            request = budget.preempted_by(held[0])
            budget.remove(held[0])
            if request is not None:
                budget.leave(request)
                budget.add(request.key)
            budget.grant()
        finally:
            sys.setprofile(before)
        assert (request is not None) == owed
        return counted

    assert calls(1000) <= 1.2 * calls(10)


# The share, and the queue of a pool


@given(st.integers(1, 1000), st.sets(st.text(), max_size=50))
def test_shares_are_equal_as_large_as_they_can_be_and_at_least_one(limit: int, owners: set[str]) -> None:
    fair = share(limit, len(owners))
    assert fair * len(owners) <= limit or fair == 1
    assert (fair + 1) * max(len(owners), 1) > limit


@given(
    st.lists(st.sampled_from(OWNERS), min_size=1, max_size=12),
    st.dictionaries(st.sampled_from(OWNERS), st.integers(1, 5)),
)
def test_the_next_in_line_is_the_first_below_its_share_or_the_first(waiting: list[str], held: dict[str, int]) -> None:
    chosen = next_in_line(waiting, set(waiting), held)
    fair = share(sum(held.values()), len({*waiting, *held}))
    below = [index for index, owner in enumerate(waiting) if held.get(owner, 0) < fair]
    assert chosen == next(iter([*below, 0]))


def test_who_floods_a_queue_is_passed_over_by_who_has_less() -> None:
    waiting, crowd = ["acme"] * 5 + ["globex"], {"acme", "globex"}
    assert next_in_line(waiting, crowd, {"acme": 2}) == 5
    assert next_in_line(waiting, crowd, {"acme": 1}) == 5
    assert next_in_line(waiting, crowd, {"acme": 1, "globex": 3}) == 0
    assert next_in_line(waiting, crowd, {"acme": 2, "globex": 2}) == 0


# Who opens


@given(moments())
def test_room_is_what_all_three_limits_leave(moment: Moment) -> None:
    for key in moment.waiting:
        assert (full(moment.limits, moment.taken, key) is None) == fits(moment.limits, moment.taken, key)


@many
@given(moments())
def test_granted_is_the_first_with_room_those_below_their_share_before_all_others(moment: Moment) -> None:
    limits, taken, waiting, _ = moment
    may = ready(limits, taken, waiting)
    below = [index for index in may if is_below(limits, taken, waiting, waiting[index])]
    assert grant(limits, taken, waiting) == next(iter(below + may), None)


@given(moments())
def test_of_a_owner_on_a_server_whoever_came_first_opens_first(moment: Moment) -> None:
    limits, taken, waiting, _ = moment
    if (chosen := grant(limits, taken, waiting)) is not None:
        key = waiting[chosen]
        for earlier in waiting[:chosen]:
            if (earlier.owner, earlier.server) == (key.owner, key.server):
                assert not fits(limits, taken, earlier)


def test_a_place_under_a_cap_is_kept_while_the_server_is_full() -> None:
    limits, other, writer, reader = (
        Limits(9, 1),
        BudgetKey(ONE, "b", None),
        BudgetKey(ONE, "a", 1),
        BudgetKey(TWO, "a", 1),
    )
    assert grant(limits, [other], [writer, reader]) is None
    assert grant(limits, [other], [reader, writer]) == 0
    assert grant(limits, [], [writer, reader]) == 0


# Which idle connection is closed


def reached(moment: Moment, waiter: BudgetKey) -> str | None:
    """The narrowest limit that keeps ``waiter`` from opening."""
    limits, taken, waiting, _ = moment
    before = ahead(taken, waiting, waiting.index(waiter))
    if waiter.cap is not None and of(taken, waiter.owner) + before >= waiter.cap:
        return "owner"
    if limits.server is not None and at(taken, waiter.server) >= limits.server:
        return "server"
    return "process" if len(taken) >= limits.process else None


def helps(moment: Moment, waiter: BudgetKey, key: BudgetKey) -> bool:
    """Whether a connection of ``key`` less leaves room in that limit, and the pool does not just trade its own."""
    narrowest = reached(moment, waiter)
    same = {"owner": key.owner == waiter.owner, "server": key.server == waiter.server, "process": True}
    return key is not waiter and narrowest is not None and same[narrowest]


def is_owed(moment: Moment, waiter: BudgetKey, key: BudgetKey, *, in_use: bool) -> bool:
    """Whether ``key`` has more: more than one more, unless ``waiter`` has none at all."""
    taken, waiting = moment.taken, moment.waiting
    if key.owner == waiter.owner:
        theirs, own = taken.count(key), taken.count(waiter)
    else:
        server = waiter.server if reached(moment, waiter) == "server" else None
        theirs, own = of(taken, key.owner, server), of(taken, waiter.owner, server)
        own += ahead(taken, waiting, waiting.index(waiter)) if in_use else 0
    return theirs - own >= (2 if waiter in taken else 1)


def takes(moment: Moment, waiter: BudgetKey, one: Idle) -> bool:
    is_old = NOW - one.since >= KEPT
    return helps(moment, waiter, one.key) and (
        is_owed(moment, waiter, one.key, in_use=False) or (is_old and not (one.warm and waiter in moment.taken))
    )


def fair_order(moment: Moment, waiters: Sequence[BudgetKey]) -> list[BudgetKey]:
    """Those below their share first: of the server where that is full, of the process where it matters to somebody."""
    limits, taken, waiting, _ = moment

    def is_below_all(waiter: BudgetKey) -> bool:
        fair = max(limits.process // len({one.owner for one in [*taken, *waiting]}), 1)
        return of(taken, waiter.owner) + ahead(taken, waiting, waiting.index(waiter)) < fair

    def is_below_there(waiter: BudgetKey) -> bool:
        there = {one.owner for one in [*taken, *waiting] if one.server == waiter.server}
        return of(taken, waiter.owner, waiter.server) < max((limits.server or 0) // len(there), 1)

    pressing = any(reached(moment, waiter) == "process" and is_below_all(waiter) for waiter in waiters)
    first = [
        waiter
        for waiter in waiters
        if (
            is_below_there(waiter) and (not pressing or is_below_all(waiter))
            if limits.server is not None
            and at(taken, waiter.server) >= limits.server
            and (waiter.cap is None or of(taken, waiter.owner) < waiter.cap)
            else is_below_all(waiter)
        )
    ]
    return first + [waiter for waiter in waiters if waiter not in first]


@many
@given(moments())
def test_closed_is_the_least_recently_used_one_that_makes_room_for_the_first_in_the_fair_order(moment: Moment) -> None:
    limits, taken, waiting, idle = moment
    chosen = to_close(limits, taken, waiting, idle, NOW)
    if ready(limits, taken, waiting):
        assert chosen is None
        return
    useful = ((waiter, [one for one in idle if takes(moment, waiter, one)]) for waiter in fair_order(moment, waiting))
    waiter, found = next(((waiter, found) for waiter, found in useful if found), (None, []))
    if chosen is None:
        assert not found
        return
    place, index = chosen
    assert waiting[index] is waiter
    assert idle[place] in found
    assert (idle[place].warm, idle[place].since) == min((one.warm, one.since) for one in found)


def cold(key: BudgetKey, since: float) -> Idle:
    return Idle(key, since, warm=False)


def warm(key: BudgetKey, since: float) -> Idle:
    return Idle(key, since, warm=True)


A, B, C = BudgetKey(ONE, "a", None), BudgetKey(ONE, "b", None), BudgetKey(TWO, "c", None)
D = BudgetKey(ONE, "d", None)


@pytest.mark.parametrize(
    ("limits", "taken", "waiting", "idle", "closed"),
    [
        pytest.param(Limits(2, None), [A, B], [C], [cold(A, 5), cold(B, 4)], 1, id="the oldest"),
        pytest.param(Limits(2, None), [A, B], [C], [warm(A, 4), cold(B, 5)], 1, id="not a warm one"),
        pytest.param(Limits(1, None), [A], [C], [warm(A, NOW)], 0, id="a warm one if it must be"),
        pytest.param(Limits(1, None), [A], [C], [cold(A, NOW)], 0, id="a recent one for who has none"),
        pytest.param(Limits(2, None), [A, C], [C], [cold(A, NOW)], None, id="no recent one of an equal"),
        pytest.param(Limits(2, None), [A, C], [C], [cold(A, NOW - KEPT)], 0, id="an old one of an equal"),
        pytest.param(Limits(2, None), [A, C], [C], [warm(A, 5)], None, id="no warm one to grow"),
        pytest.param(Limits(2, None), [A, A], [A], [cold(A, 5)], None, id="none of its own"),
        pytest.param(Limits(9, 1), [C, A], [B], [cold(C, 5), cold(A, 6)], 1, id="one on that server"),
        pytest.param(Limits(2, None), [A], [C], [cold(A, 5)], None, id="none while there is room"),
        pytest.param(Limits(1, None), [A], [], [cold(A, 5)], None, id="none for nobody"),
        pytest.param(Limits(1, None), [A], [C], [], None, id="none is idle"),
    ],
)
def test_which_idle_connection_is_closed(
    limits: Limits, taken: list[BudgetKey], waiting: list[BudgetKey], idle: list[Idle], closed: int | None
) -> None:
    chosen = to_close(limits, taken, waiting, idle, NOW)
    assert chosen == (None if closed is None else (closed, 0))


def test_at_its_cap_a_owner_closes_its_own_only() -> None:
    writer, reader = BudgetKey(ONE, "a", 1), BudgetKey(TWO, "a", 1)
    idle = [cold(B, 1), cold(reader, NOW)]
    assert to_close(Limits(2, None), [B, reader], [writer], idle, NOW) == (1, 0)
    assert to_close(Limits(2, None), [B, reader], [writer], idle[:1], NOW) is None


def test_a_connection_that_was_closed_meanwhile_is_closed_for_nobody() -> None:
    waiting, gone = BudgetKey(ONE, "a", None), BudgetKey(ONE, "a", None)
    assert to_close(Limits(1, None), [B], [waiting], [cold(gone, 1)], NOW) is None
    assert to_close(Limits(1, None), [B], [waiting], [cold(gone, 1), cold(B, 2)], NOW) == (1, 0)
    assert preempted_by(Limits(1, None), [B], [waiting], gone) is None


# Which connection in use passes on


def settled(moment: Moment) -> Moment:
    """The moment after everybody who has room has taken it."""
    taken, waiting = list(moment.taken), list(moment.waiting)
    while (place := grant(moment.limits, taken, waiting)) is not None:
        taken.append(waiting.pop(place))
    return moment._replace(taken=taken, waiting=waiting)


@many
@given(moments())
def test_what_comes_back_passes_on_to_the_first_in_the_fair_order_who_is_owed_it(moment: Moment) -> None:
    later = settled(moment)
    for key in set(moment.taken):
        owed = [
            waiter for waiter in later.waiting if helps(later, waiter, key) and is_owed(later, waiter, key, in_use=True)
        ]
        chosen = preempted_by(moment.limits, moment.taken, moment.waiting, key)
        assert (None if chosen is None else moment.waiting[chosen]) is next(iter(fair_order(later, owed)), None)


@given(moments())
def test_no_connection_passes_on_to_who_has_as_many(moment: Moment) -> None:
    limits, taken, _, _ = settled(moment)
    for key in set(moment.taken):
        if (chosen := preempted_by(limits, moment.taken, moment.waiting, key)) is not None:
            waiter = moment.waiting[chosen]
            if key.owner == waiter.owner:
                assert taken.count(waiter) < taken.count(key)
            else:
                server = None if limits.server is None or at(taken, waiter.server) < limits.server else waiter.server
                assert of(taken, waiter.owner, server) < of(taken, key.owner, server)


@pytest.mark.parametrize(
    ("limits", "taken", "waiting", "index"),
    [
        pytest.param(Limits(4, None), [A, A, A, B], [B], 0, id="two fewer"),
        pytest.param(Limits(3, None), [A, A, B], [B], None, id="one fewer"),
        pytest.param(Limits(1, None), [A], [C], 0, id="none"),
        pytest.param(Limits(2, None), [A, B], [B], None, id="as many"),
        pytest.param(Limits(3, None), [A, B, B], [B], None, id="more"),
        pytest.param(Limits(3, None), [A, A, B], [A], None, id="its own pool"),
        pytest.param(Limits(3, 2), [A, A, C], [C], None, id="there is room for it"),
        pytest.param(Limits(4, 2), [A, C, C], [A], None, id="there is room for it on its server"),
        pytest.param(Limits(4, None), [A, A, C], [A, B, D], 2, id="there is room for one of two"),
        pytest.param(Limits(9, 2), [A, A, C, C], [BudgetKey(TWO, "d", None)], None, id="another server is full"),
        pytest.param(Limits(9, 2), [A, A, C, C], [C, B], 1, id="the server that is full"),
        pytest.param(Limits(9, 1), [A, C], [BudgetKey(ONE, "c", None)], 0, id="none there, one elsewhere"),
        pytest.param(Limits(2, None), [A, A], [BudgetKey(TWO, "a", None)], 0, id="another pool of its own"),
    ],
)
def test_when_a_connection_that_comes_back_passes_on(
    limits: Limits, taken: list[BudgetKey], waiting: list[BudgetKey], index: int | None
) -> None:
    assert preempted_by(limits, taken, waiting, A) == index


def test_of_a_full_server_those_come_first_who_have_few_there_unless_somebody_needs_any_connection_at_all() -> None:
    elsewhere, here = BudgetKey(TWO, "d", None), BudgetKey(ONE, "d", None)
    poor, anywhere = BudgetKey(ONE, "e", None), BudgetKey(TWO, "f", None)
    limits, taken = Limits(5, 3), [A, A, B, elsewhere, elsewhere]
    assert preempted_by(limits, taken, [here, poor], A) == 0
    assert preempted_by(limits, taken, [here, poor, anywhere], A) == 1
    assert preempted_by(limits, taken, [here, anywhere], A) == 1


def test_a_place_in_a_share_is_kept_for_the_pool_that_asked_first() -> None:
    first, second = BudgetKey(ONE, "d", None), BudgetKey(TWO, "d", None)
    limits, taken = Limits(3, 2), [A, B, C]
    assert preempted_by(limits, taken, [second], C) == 0
    assert preempted_by(limits, taken, [first, second], C) is None
    assert preempted_by(limits, taken, [first, second], A) == 0


def test_under_a_cap_pools_come_in_the_order_of_arrival_wherever_they_connect_to() -> None:
    here, there, elsewhere = (BudgetKey(server, "e", 1) for server in (ONE, ONE, TWO))
    limits, taken = Limits(6, 4), [A, A, A, here, C, BudgetKey(TWO, "d", None)]
    assert preempted_by(limits, taken, [elsewhere, there], here) == 0  # although its share of the process is used up
    assert preempted_by(limits, taken, [there, elsewhere], here) == 0


def test_of_a_full_server_pools_of_one_owner_come_in_the_order_of_arrival() -> None:
    one, two, three = (BudgetKey(ONE, "e", 2) for _ in range(3))
    assert preempted_by(Limits(6, 1), [one, C], [two, three], one) == 0  # a place below the cap is kept for the first


# A budget that was changed again and again decides as one that is built anew


class Changes(RuleBasedStateMachine):
    """Connections are opened and closed, requests come and go, the limits of logins are learnt and forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(1, None)
        self.budget = Budget[BudgetRequest](self.limits)
        self.pools: list[BudgetKey] = []
        self.taken: list[BudgetKey] = []
        self.waiting: list[BudgetRequest] = []
        self.learnt: dict[Login, int] = {}

    @initialize(limits=bounds, pools=pools_of())
    def start(self, limits: Limits, pools: list[BudgetKey]) -> None:
        self.limits, self.pools = limits, pools
        self.budget = Budget(limits)

    @rule(data=st.data())
    def a_connection_is_opened(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.pools))
        if self.budget.full(key) is None:
            self.budget.add(key)
            self.taken.append(key)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def a_connection_is_closed(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.taken))
        self.budget.remove(key)
        self.taken.remove(key)

    @rule(data=st.data())
    def a_request_comes(self, data: st.DataObject) -> None:
        request = BudgetRequest(data.draw(st.sampled_from(self.pools)))
        if all(other.key is not request.key for other in self.waiting):
            self.budget.wait(request)
            self.waiting.append(request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), returns=st.booleans())
    def a_request_leaves(self, data: st.DataObject, *, returns: bool) -> None:
        request = data.draw(st.sampled_from(self.waiting))
        self.budget.leave(request)
        if returns:
            self.budget.wait(request)  # where it stood before
        else:
            self.waiting.remove(request)

    @rule()
    def all_is_counted_anew(self) -> None:
        self.budget = self.budget.recounted(self.limits, self.taken, self.waiting)

    @rule(data=st.data(), limit=st.none() | st.integers(0, 3))
    def a_limit_of_a_login_is_learnt(self, data: st.DataObject, limit: int | None) -> None:
        login = data.draw(st.sampled_from(self.pools)).login
        self.budget.limit_login(login, limit)
        self.learnt = {known: most for known, most in self.learnt.items() if known != login}
        if limit is not None:
            self.learnt[login] = limit

    @invariant()
    def it_decides_as_one_that_is_built_anew(self) -> None:
        other = built(self.limits, self.taken, ())
        for login, limit in self.learnt.items():
            other.limit_login(login, limit)
        for request in self.waiting:
            other.wait(BudgetRequest(request.key, request.order))
        assert self.budget.total == len(self.taken)
        assert self.budget.held == Counter(self.taken)
        for key in self.pools:
            assert self.budget.full(key) is other.full(key)
            assert self.budget.room(key) == other.room(key)
        assert index_of(self.budget.grant()) == index_of(other.grant())
        if other.grant() is not None:
            return
        for key in set(self.taken):
            assert index_of(self.budget.preempted_by(key)) == index_of(other.preempted_by(key))
        idle = [Idle(key, NOW - number * KEPT / 2, warm=number == 1) for number, key in enumerate(set(self.taken))]
        chosen, expected = self.budget.to_close(idle, NOW), other.to_close(idle, NOW)
        assert (chosen is None) == (expected is None)
        if chosen is not None and expected is not None:
            assert (chosen[0], chosen[1].order) == (expected[0], expected[1].order)


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=50, stateful_step_count=30, phases=set(Phase) - {Phase.explain})


# A process that lives by these rules


ROUNDS = 3
"""How often, for each pool and each request in the longest queue, all connections come back before all are served.

The most seen is 1.4, in 20,000 processes.
"""


@dataclass(eq=False)
class Pool:
    """A pool: its queue of requests, and what it has open."""

    key: BudgetKey
    max_size: int
    min_size: int
    queue: deque[int] = field(default_factory=deque)
    idle: list[float] = field(default_factory=list)  # since when, the one used last at the end
    borrowed: int = 0
    opening: int = 0

    @property
    def size(self) -> int:
        return len(self.idle) + self.borrowed + self.opening


class Process:
    """Pools within limits; like psycopg_pool, each opens one connection at a time, while requests wait for one."""

    def __init__(self, limits: Limits, pools: list[Pool]) -> None:
        self.limits = limits
        self.pools = pools
        self.waiting: list[Pool] = []
        self.slots = 0  # taken, counted one by one as they come and go
        self.now = NOW
        self.requests = count()
        self.served: list[int] = []
        self.closed = 0
        self.flooded = False

    def __repr__(self) -> str:
        return f"{self.limits}, {self.pools}"

    @property
    def taken(self) -> list[BudgetKey]:
        return [pool.key for pool in self.pools for _ in range(pool.size)]

    @property
    def keys(self) -> list[BudgetKey]:
        return [pool.key for pool in self.waiting]

    def ask(self, pool: Pool) -> int:
        request = next(self.requests)
        if pool.idle:
            pool.idle.pop()
            pool.borrowed += 1
            self.served.append(request)
        else:
            pool.queue.append(request)
        self.settle()
        return request

    def serve(self, pool: Pool) -> None:
        """Hand a connection that is free to the first in the queue of its pool."""
        if pool.queue:
            pool.borrowed += 1
            self.served.append(pool.queue.popleft())
            if self.flooded:
                pool.queue.append(next(self.requests))
        else:
            pool.idle.append(self.now)

    def opened(self, pool: Pool) -> None:
        pool.opening -= 1
        self.serve(pool)
        self.settle()

    def failed(self, pool: Pool) -> None:
        pool.opening -= 1
        self.slots -= 1
        self.settle()

    def returned(self, pool: Pool) -> None:
        winner = None
        if pool.queue:
            winner = preempted_by(self.limits, self.taken, self.keys, pool.key)
        if winner is not None:
            self.judge(pool, self.waiting[winner])
            pool.borrowed -= 1
            self.close_for(self.waiting[winner])
        else:
            pool.borrowed -= 1
            self.serve(pool)
        self.settle()

    def judge(self, pool: Pool, winner: Pool) -> None:
        """See that no connection moves to who has as many, and that it helps."""
        taken, limits = self.taken, self.limits
        assert winner is not pool
        assert self.waiting.index(winner) not in ready(limits, taken, self.keys)
        if winner.key.owner == pool.key.owner:
            assert winner.size < pool.size
            return
        server = None
        if limits.server is not None and at(taken, winner.key.server) >= limits.server:
            server = winner.key.server
        assert of(taken, winner.key.owner, server) < of(taken, pool.key.owner, server)

    def lost(self, pool: Pool, *, idle: bool) -> None:
        if idle:
            pool.idle.pop(0)
        else:
            pool.borrowed -= 1
        self.slots -= 1
        self.settle()

    def timed_out(self, pool: Pool, place: int) -> None:
        del pool.queue[place]
        self.settle()

    def open(self, pool: Pool) -> None:
        self.waiting.remove(pool)
        pool.opening += 1
        self.slots += 1

    def close_for(self, winner: Pool) -> None:
        self.slots -= 1
        self.closed += 1
        if full(self.limits, self.taken, winner.key) is None:
            self.open(winner)

    def settle(self) -> None:
        """Do what the rules say until they say nothing more."""
        for pool in self.pools:
            wants = bool(pool.queue) and not pool.opening and pool.size < pool.max_size
            if wants and pool not in self.waiting:
                self.waiting.append(pool)
            if not wants and pool in self.waiting:
                self.waiting.remove(pool)
        while True:
            taken, keys = self.taken, self.keys
            if (index := grant(self.limits, taken, keys)) is not None:
                self.fair(index)
                self.open(self.waiting[index])
                continue
            idle = [
                (pool, Idle(pool.key, since, warm=pool.size <= pool.min_size))
                for pool in self.pools
                for since in pool.idle
            ]
            choice = to_close(self.limits, taken, keys, [one for _, one in idle], self.now)
            if choice is None:
                return
            pool, one = idle[choice[0]]
            pool.idle.remove(one.since)
            self.close_for(self.waiting[choice[1]])

    def fair(self, index: int) -> None:
        """See that whoever opens is not below its share while one that is, and has room, waits; nor out of order."""
        taken, keys = self.taken, self.keys
        chosen = keys[index]
        below = is_below(self.limits, taken, keys, chosen)
        for place in ready(self.limits, taken, keys):
            other_below = is_below(self.limits, taken, keys, keys[place])
            assert below or not other_below, "passed over, although below its share"
            if place < index:
                assert below
                assert not other_below, "out of order"

    def check(self) -> None:
        taken, limits = self.taken, self.limits
        assert self.slots == len(taken) <= limits.process
        for key in taken:
            assert limits.server is None or at(taken, key.server) <= limits.server
            assert key.cap is None or of(taken, key.owner) <= key.cap
        for pool in self.pools:
            assert pool.size <= pool.max_size
            assert pool.opening <= 1
            assert not (pool.queue and pool.idle)
            assert self.waiting.count(pool) <= 1
        assert not ready(limits, taken, self.keys), "a slot is free, and whoever could use it waits"

    def turn(self) -> None:
        """Let every attempt to connect succeed, and every borrowed connection come back once."""
        for pool in self.pools:
            if pool.opening:
                self.opened(pool)
        for pool in self.pools:
            for _ in range(pool.borrowed):
                self.returned(pool)
        self.check()

    def drain(self) -> None:
        """Serve all who wait, while nobody new asks."""
        pending = {request for pool in self.pools for request in pool.queue}
        for _ in range(2 * len(self.pools) * (len(pending) + 1)):
            self.now += KEPT
            self.turn()
        assert pending <= set(self.served)
        assert not self.waiting

    def flood(self) -> None:
        """Serve all who wait, while each one served is followed by another one, in every pool."""
        for pool in self.pools:
            if not pool.idle:
                pool.queue.append(next(self.requests))
        self.flooded = True
        self.settle()
        pending = {request for pool in self.pools for request in pool.queue}
        longest = max(len(pool.queue) for pool in self.pools)
        for _ in range(ROUNDS * len(self.pools) * (longest + 1)):
            if pending <= set(self.served):
                break
            self.turn()
        assert pending <= set(self.served)
        self.flooded = False


@st.composite
def processes(draw: st.DrawFn) -> Process:
    sizes = st.integers(1, 6)
    return Process(
        draw(bounds),
        [Pool(key, size := draw(sizes), min(size, draw(st.integers(0, 1)))) for key in draw(pools_of())],
    )


class Processes(RuleBasedStateMachine):
    """Requests come and go, connections are opened, fail, are lost; the limits and the fairness hold all along."""

    process: Process

    @initialize(process=processes())
    def start(self, process: Process) -> None:
        self.process = process

    def some(self, data: st.DataObject, pools: Sequence[Pool]) -> Pool:
        return data.draw(st.sampled_from(pools))

    @rule(data=st.data(), number=st.integers(1, 4))
    def requests_come(self, data: st.DataObject, number: int) -> None:
        pool = self.some(data, self.process.pools)
        for _ in range(number):
            self.process.ask(pool)

    @property
    def opening(self) -> list[Pool]:
        return [pool for pool in self.process.pools if pool.opening]

    @property
    def borrowed(self) -> list[Pool]:
        return [pool for pool in self.process.pools if pool.borrowed]

    @property
    def idle(self) -> list[Pool]:
        return [pool for pool in self.process.pools if pool.idle]

    @property
    def queued(self) -> list[Pool]:
        return [pool for pool in self.process.pools if pool.queue]

    @precondition(lambda self: self.opening)
    @rule(data=st.data(), succeeds=st.sampled_from([True, True, True, False]))
    def an_attempt_to_connect_ends(self, data: st.DataObject, succeeds: bool) -> None:
        pool = self.some(data, self.opening)
        (self.process.opened if succeeds else self.process.failed)(pool)

    @precondition(lambda self: self.borrowed)
    @rule(data=st.data())
    def a_connection_comes_back(self, data: st.DataObject) -> None:
        self.process.returned(self.some(data, self.borrowed))

    @precondition(lambda self: self.borrowed)
    @rule(data=st.data())
    def a_borrowed_connection_is_lost(self, data: st.DataObject) -> None:
        self.process.lost(self.some(data, self.borrowed), idle=False)

    @precondition(lambda self: self.idle)
    @rule(data=st.data())
    def an_idle_connection_is_lost(self, data: st.DataObject) -> None:
        self.process.lost(self.some(data, self.idle), idle=True)

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def a_request_times_out(self, data: st.DataObject) -> None:
        pool = self.some(data, self.queued)
        self.process.timed_out(pool, data.draw(st.integers(0, len(pool.queue) - 1)))

    @rule(seconds=st.sampled_from([KEPT / 4, KEPT, 10 * KEPT]))
    def time_passes(self, seconds: float) -> None:
        self.process.now += seconds
        self.process.settle()

    @invariant()
    def the_limits_hold_and_no_slot_is_lost(self) -> None:
        if hasattr(self, "process"):
            self.process.check()

    @invariant()
    def nobody_who_has_none_waits_for_what_is_idle(self) -> None:
        if not hasattr(self, "process"):
            return
        process = self.process
        taken, keys = process.taken, process.keys
        for pool in process.pools:
            if pool.idle:
                helped = ready(process.limits, without(taken, pool.key), keys)
                assert all(of(taken, keys[index].owner) for index in helped)

    def teardown(self) -> None:
        if hasattr(self, "process"):
            self.process.flood()
            self.process.drain()


TestBudget = Processes.TestCase
# Without Phase.explain, which traces every line and would take longer than all else.
TestBudget.settings = settings(max_examples=examples(200), stateful_step_count=40, phases=set(Phase) - {Phase.explain})


# A flood


OTHERS = 20


def crowd(limits: Limits, size: int) -> tuple[Process, Pool, list[Pool]]:
    """One owner whose 100 requests wait at any moment, and others that ask now and then."""
    flood, *others = (Pool(BudgetKey(ONE, f"t{number}", None), size, 0) for number in range(1 + OTHERS))
    process = Process(limits, [flood, *others])
    for _ in range(100):
        process.ask(flood)
    return process, flood, others


@settings(max_examples=examples(50))
@given(st.integers(1, 30), st.lists(st.integers(0, OTHERS - 1), min_size=1, max_size=60), st.data())
def test_a_flood_delays_each_other_owner_by_a_few_returns_only(
    limit: int, asking: list[int], data: st.DataObject
) -> None:
    process, flood, others = crowd(Limits(limit, None), limit)
    for asks in asking:
        if others[asks].borrowed:
            process.returned(others[asks])  # one request after the other
        request = process.ask(others[asks])
        before = sum(bool(pool.queue) for pool in others)  # each of them may be served first
        for returns in range(2 * before + 1):
            while opening := [pool for pool in process.pools if pool.opening]:
                process.opened(opening[0])
            while len(flood.queue) < 100:
                process.ask(flood)
            if request in process.served:
                break
            assert returns < 2 * before
            process.returned(data.draw(st.sampled_from([pool for pool in process.pools if pool.borrowed])))
        process.check()


def test_a_flood_takes_no_connection_that_was_used_just_now() -> None:
    process, flood, others = crowd(Limits(30, None), 30)
    for other in others:
        process.ask(other)
    while any(other.queue for other in others):
        process.turn()
    for _ in range(200):
        process.now += KEPT / 40  # each of the others asks twice in KEPT
        for other in others:
            assert other.size == 1
            if other.borrowed:
                process.returned(other)
        process.turn()
        process.ask(flood)
        other = others.pop(0)
        process.ask(other)
        others.append(other)
        assert not other.queue
    assert flood.size == 10


@given(st.integers(1, 30), st.lists(st.integers(0, OTHERS - 1), min_size=1, max_size=60), st.data())
def test_a_flood_of_a_shared_pool_delays_each_other_tenant_by_a_few_returns_only(
    limit: int, asking: list[int], data: st.DataObject
) -> None:
    held = Counter({"flood": limit})
    queue = ["flood"] * 100

    def comes_back(owner: str) -> str:
        index = next_in_line(queue, set(queue), +held)
        held[owner] -= 1
        served = queue.pop(index)
        held[served] += 1
        queue.extend(["flood"] * (100 - queue.count("flood")))
        return served

    for number in asking:
        tenant = f"t{number}"
        if held[tenant]:  # one request after the other
            comes_back(tenant)
        queue.append(tenant)
        served = [comes_back(data.draw(st.sampled_from(sorted((+held).elements())))) for _ in range(2)]
        assert tenant in served, "nobody else waits but the flood, and that may have none"


@given(st.lists(st.integers(1, 6), min_size=2, max_size=6), st.integers(0, 10), st.data())
def test_where_every_pool_has_one_connections_settle_and_move_no_more(
    sizes: list[int], spare: int, data: st.DataObject
) -> None:
    pools = [Pool(BudgetKey(ONE, OWNERS[number % 5], None), size, 0) for number, size in enumerate(sizes)]
    process = Process(Limits(len(pools) + spare, None), pools)
    for pool in data.draw(st.permutations(pools)):
        for _ in range(8):
            process.ask(pool)
    process.flooded = True
    for _ in range(20 * len(pools)):
        process.turn()
    closed, before = process.closed, [pool.size for pool in pools]
    for _ in range(20):
        process.turn()
    assert process.closed == closed
    assert [pool.size for pool in pools] == before
    assert min(before) > 0
