"""What an observation changes: states, bans, fences, lag; and what is read from libpq's words for a failed attempt."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router.core.health import (
    HISTORY,
    REFUSES_WRITES,
    UNKNOWN,
    NodeUse,
    State,
    login_failure,
    node_state,
    observe,
    restrictions_of,
    role_of,
    same_system,
)
from router.core.observations import AttemptFailed, Connected, OtherProcess, PoolerFound, ProbeResult, read_failure
from router.core.policies import HealthPolicy
from router.core.replication import Lag, fenced, foreign, lag_of, primary_of, undecided
from router.core.topology import Cluster, Node, Role, Server
from tests.support import examples

if TYPE_CHECKING:
    from router.core.health import Health
    from router.core.observations import Observation

PRIMARY, REPLICA = Role.PRIMARY, Role.REPLICA
POLICY = HealthPolicy(interval=1.0, timeout=0.5, ban=0.5, ban_max=15.0)
SYSTEM = 7_000_000_000_000_000_001

NEAR, FAR = Server("near", 5432), Server("far", 5432)
NODE = Node(NEAR, (("dbname", "app"),), REPLICA)
SIBLING = Node(NEAR, (("dbname", "other"),))
DISTANT = Node(FAR, (("dbname", "app"),))
NODES = (NODE, SIBLING, DISTANT)

REFUSED = AttemptFailed(NODE, "Connection refused", answered=False)
BAD_LOGIN = AttemptFailed(NODE, "FATAL: no such role", answered=True)


def looked(
    node: Node,
    role: Role,
    position: int = 1000,
    timeline: int = 1,
    *,
    system: int = SYSTEM,
    age: float | None = None,
    latency: float = 0.0,
) -> ProbeResult:
    return ProbeResult(node, role, 180001, position, timeline, system, age, latency)


UP = looked(NODE, PRIMARY)


def after(*seen: Observation, now: float = 100.0, jitter: float = 0.0, health: Health | None = None) -> Health:
    """What is known once all of this was seen, at one moment."""
    known: Health = {} if health is None else health
    for one in seen:
        known = observe(known, one, now=now, jitter=jitter, policy=POLICY)
    return known


def over_time(*moments: tuple[float, Observation]) -> Health:
    """What is known once each of this was seen at its moment."""
    known: Health = {}
    for now, seen in moments:
        known = after(seen, now=now, health=known)
    return known


# What counts for a node


def test_of_what_nobody_looked_at_nothing_is_known() -> None:
    assert node_state({}, NODE) == UNKNOWN == State(up=None, role=None, server_version=0, failures=0, reason="")
    assert [role_of({}, node) for node in NODES] == [REPLICA, None, None]


def test_a_look_tells_of_every_node_of_the_server() -> None:
    health = after(looked(NODE, PRIMARY, 4711, 3))
    state = health[NEAR]
    assert list(health) == [NEAR]
    assert (state.up, state.role, state.server_version) == (True, PRIMARY, 180001)
    assert (state.position, state.timeline, state.system) == (4711, 3, SYSTEM)
    assert [node_state(health, node).up for node in NODES] == [True, True, None]
    assert [role_of(health, node) for node in NODES] == [PRIMARY, PRIMARY, None]


def test_a_look_clears_what_went_wrong_before_but_not_how_often() -> None:
    health = after(REFUSED, BAD_LOGIN, REFUSED, UP)
    assert list(health) == [NEAR]
    assert (health[NEAR].up, health[NEAR].reason, health[NEAR].failures) == (True, "", 2)


def test_only_a_look_over_a_new_connection_finds_that_a_pooler_is_gone() -> None:
    def after(health: Health, *seen: Observation) -> bool:
        for one in seen:
            health = observe(health, one, now=1.0, jitter=0.0, policy=POLICY)
        return health[NEAR].undeclared_pooler

    found, held = PoolerFound(NODE), looked(NODE, PRIMARY)
    new = held._replace(undeclared_pooler=False)
    assert [after({}, *seen) for seen in ((held,), (found,), (found, held), (found, REFUSED), (found, new))] == [
        False, True, True, True, False,
    ]  # fmt: skip
    assert after({}, held._replace(undeclared_pooler=True), held)


def test_a_look_that_changes_nothing_that_matters_gives_equal_knowledge() -> None:
    once = after(UP)
    again = after(looked(NODE, PRIMARY, 2000, latency=0.2), now=101.0, health=once)
    assert again == once
    assert (again[NEAR].answered_at, again[NEAR].position_at, again[NEAR].position) == (101.0, 100.8, 2000)


@pytest.mark.parametrize(
    "other",
    [looked(NODE, REPLICA), looked(NODE, PRIMARY, timeline=2), looked(NODE, PRIMARY, system=SYSTEM + 1), REFUSED],
)
def test_what_may_change_where_requests_go_makes_a_difference(other: Observation) -> None:
    assert after(UP, other) != after(UP)


def test_a_look_that_a_later_one_has_overtaken_tells_nothing_of_the_server() -> None:
    promoted = after(looked(NODE, PRIMARY, 1100, 2, latency=0.1), now=100.2)
    late = after(looked(NODE, REPLICA, 1000, 1, latency=0.9), now=100.5, health=promoted)
    assert late[NEAR] is promoted[NEAR]
    assert NODE not in after(looked(NODE, REPLICA, latency=0.9), now=100.5, health=after(BAD_LOGIN, health=promoted))


def test_a_failed_server_is_down_for_each_of_its_nodes_and_for_no_other_server() -> None:
    health = after(looked(DISTANT, REPLICA), UP, REFUSED)
    assert [node_state(health, node).up for node in NODES] == [False, False, True]
    assert node_state(health, SIBLING).reason == "Connection refused"


def test_what_a_server_was_is_kept_while_it_is_down_but_not_how_far() -> None:
    up = after(looked(NODE, PRIMARY, 5000, 4))
    known, down = up[NEAR], after(REFUSED, now=101.0, health=up)[NEAR]
    assert (down.role, down.timeline, down.system, down.history) == (PRIMARY, 4, SYSTEM, known.history)
    assert (down.position, down.answered_at) == (0, 100.0)


def test_a_refused_login_is_out_of_use_alone() -> None:
    health = after(UP, BAD_LOGIN)
    assert [node_state(health, node).up for node in NODES] == [False, True, None]
    assert node_state(health, NODE).reason == "FATAL: no such role"
    assert role_of(health, NODE) is PRIMARY


@pytest.mark.parametrize("seen", [looked(SIBLING, PRIMARY), Connected(SIBLING, PRIMARY)])
def test_nobody_vouches_for_a_login_that_is_refused_to_another(seen: Observation) -> None:
    assert node_state(after(UP, BAD_LOGIN, seen), NODE).reason == "FATAL: no such role"


@pytest.mark.parametrize("seen", [looked(NODE, REPLICA), Connected(NODE, REPLICA)])
def test_a_login_that_worked_is_in_use_again(seen: Observation) -> None:
    assert NODE not in after(UP, BAD_LOGIN, seen)


@pytest.mark.parametrize("before", [[], [UP], [UP, REFUSED]])
def test_a_connection_tells_of_its_login_only(before: list[Observation]) -> None:
    assert after(*before, Connected(NODE, REPLICA)) == after(*before)


@pytest.mark.parametrize("before", [[], [BAD_LOGIN], [UP]])
def test_a_server_that_refuses_a_login_is_not_down_until_a_look_says_so(before: list[Observation]) -> None:
    health = after(*before, REFUSED, BAD_LOGIN)
    assert [node_state(health, node).up for node in (NODE, SIBLING)] == [False, None]
    assert health[NEAR].role is (PRIMARY if UP in before else None)


def test_a_login_that_is_refused_says_nothing_of_a_server_that_is_up_or_was_never_looked_at() -> None:
    assert NEAR not in after(BAD_LOGIN)
    assert after(UP, BAD_LOGIN)[NEAR] == after(UP)[NEAR]


def test_of_a_node_whose_login_was_refused_what_its_server_says_counts_while_that_is_down() -> None:
    health = after(REFUSED, now=101.0, health=after(UP, BAD_LOGIN))
    assert node_state(health, NODE).reason == "Connection refused"
    assert node_state(after(looked(SIBLING, PRIMARY), now=102.0, health=health), NODE).reason == "FATAL: no such role"


@pytest.mark.parametrize("read_only", [True, False])
def test_a_login_refused_for_one_use_is_kept_for_that_use_until_such_a_session_is_there(read_only: bool) -> None:
    refused = BAD_LOGIN._replace(read_only=read_only)
    health = after(UP, refused)
    assert [node_state(health, NODE, read_only=use).up for use in (read_only, not read_only)] == [False, True]
    assert node_state(health, NODE).up is True
    assert login_failure(health, NODE, read_only=read_only) == health[NodeUse(NODE, read_only)]
    for other in (UP, Connected(NODE, PRIMARY), Connected(NODE, PRIMARY, not read_only), looked(SIBLING, PRIMARY)):
        assert after(other, health=health)[NodeUse(NODE, read_only)] == health[NodeUse(NODE, read_only)]
    assert list(after(Connected(NODE, PRIMARY, read_only), health=health)) == [NEAR]
    # What a look's login is refused is refused to all, and once it is not, each use is tried again.
    both = after(BAD_LOGIN, health=health)
    assert [node_state(both, NODE, read_only=use).up for use in (True, False, None)] == [False] * 3
    assert list(after(UP, health=both)) == [NEAR]


def test_what_refuses_writes_by_a_setting_is_tried_again_soon_however_often_it_did() -> None:
    health, now = after(UP), 100.0
    for _ in range(9):
        seen = AttemptFailed(NODE, "on", answered=True, read_only=False, refuses_writes=True)
        health = after(seen, now=now, health=health)
        assert health[NodeUse(NODE, read_only=False)].banned_until - now == POLICY.ban
        now = health[NodeUse(NODE, read_only=False)].banned_until
    assert restrictions_of(health, NODE) == "cannot be written to: on"
    assert restrictions_of(after(UP._replace(refuses_writes=True)), NODE) == f"cannot be written to: {REFUSES_WRITES}"
    assert not after(looked(NODE, REPLICA)._replace(refuses_writes=True))[NEAR].refuses_writes


def test_a_primary_is_one_since_it_was_first_seen_so_without_a_break() -> None:
    health = over_time((10.0, UP), (11.0, UP))
    assert health[NEAR].primary_since == 10.0
    for between in (REFUSED, looked(NODE, REPLICA)):
        assert after(UP, now=13.0, health=after(between, now=12.0, health=health))[NEAR].primary_since == 13.0


ONE, TWO, THREE = (looked(NODE, REPLICA)._replace(process=run) for run in "123")


@pytest.mark.parametrize(
    ("seen", "several_servers"),
    [
        ([ONE, ONE], False),
        # a server that was restarted, or an address that leads elsewhere by now
        ([ONE, TWO, TWO, THREE], False),
        ([ONE, OtherProcess(NODE, "2"), TWO, TWO], False),
        ([ONE, REFUSED, TWO], False),
        ([ONE, REFUSED, TWO, REFUSED, ONE], False),
        ([ONE, TWO, REFUSED, ONE], False),
        # what answered before still does
        ([ONE, TWO, ONE], True),
        ([ONE, OtherProcess(NODE, "2"), ONE], True),
        ([ONE, OtherProcess(NODE, "2"), ONE._replace(latency=0.5)], False),  # asked before that
        ([ONE, TWO, ONE, ONE, REFUSED, TWO, TWO], True),  # and it stays so
        ([UP, UP], False),  # which it does not tell
        ([UP, ONE, UP], False),
    ],
)
def test_several_servers_answer_where_one_that_answered_before_another_does_so_again(
    seen: list[Observation], several_servers: bool
) -> None:
    health = over_time(*((n / 4, one) for n, one in enumerate(seen, 1)))
    assert health[NEAR].several_servers is several_servers
    assert ("several servers answer" in restrictions_of(health, NODE)) is several_servers


def test_a_system_identifier_that_is_not_known_may_be_any() -> None:
    assert [same_system(*pair) for pair in [(1, 1), (1, 0), (0, 1), (0, 0), (1, 2)]] == [True] * 4 + [False]


# Bans


def lives(times: int, *, up_for: float, jitter: float = 0.0) -> list[tuple[int, float]]:
    """After each going down of a server that comes back at once: how often, and for how long it is avoided."""
    now, health, found = 100.0, after(UP), list[tuple[int, float]]()
    for _ in range(times):
        now += up_for
        health = after(REFUSED, now=now, jitter=jitter, health=health)
        found.append((health[NEAR].failures, health[NEAR].banned_until - now))
        health = after(UP, now=now, health=health)
        assert health[NEAR].banned_until - now == found[-1][1], "coming back ends no ban"
    return found


def test_each_going_down_doubles_the_ban_up_to_the_most() -> None:
    assert lives(8, up_for=1.0) == [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 15.0), (7, 15.0), (8, 15.0)]


def test_bans_begin_anew_for_a_server_that_was_up_for_the_longest_of_them() -> None:
    assert lives(3, up_for=15.0) == [(1, 0.5)] * 3
    assert lives(3, up_for=14.9) == [(1, 0.5), (2, 1.0), (3, 2.0)]


def test_a_server_that_stays_up_is_forgiven_by_a_look() -> None:
    health = after(UP, now=101.0, health=after(UP, REFUSED))
    assert [after(UP, now=now, health=health)[NEAR].failures for now in (115.9, 116.0)] == [1, 0]
    assert after(UP, now=116.0, health=health)[NEAR].banned_until == 0.0


def test_a_server_that_flaps_for_weeks_is_avoided_for_the_longest_ban() -> None:
    assert lives(2000, up_for=1.0)[-1] == (2000, 15.0)


@given(st.floats(0.0, 1.0))
def test_chance_shortens_a_ban_by_a_quarter_at_most(jitter: float) -> None:
    whole, drawn = (lives(7, up_for=1.0, jitter=part) for part in (0.0, jitter))
    assert [ban for _, ban in drawn] == pytest.approx([ban * (1.0 - jitter / 4) for _, ban in whole])


def test_a_ban_is_never_longer_than_the_most_even_at_first() -> None:
    health = observe({}, REFUSED, now=0.0, jitter=0.0, policy=HealthPolicy(ban=20.0, ban_max=3.0))
    assert health[NEAR].banned_until == 3.0


def test_a_server_that_stays_down_goes_down_once_however_often_that_is_seen() -> None:
    once = after(REFUSED, health=after(UP, now=99.0))
    again = after(AttemptFailed(NODE, "no answer", answered=False), now=500.0, jitter=1.0, health=once)
    assert again[NEAR] == replace(once[NEAR], reason="no answer")
    assert again[NEAR].since == 100.0


def test_a_login_refused_again_and_again_is_left_alone_for_longer_each_time() -> None:
    health, now, pauses = after(BAD_LOGIN), 100.0, list[float]()
    for _ in range(7):
        pauses.append(health[NODE].banned_until - now)
        now = health[NODE].banned_until
        health = after(BAD_LOGIN, now=now, health=health)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]


def test_what_several_saw_at_once_of_a_login_counts_once() -> None:
    once = after(BAD_LOGIN)
    assert after(BAD_LOGIN, now=100.49, jitter=0.5, health=once) == once
    assert after(BAD_LOGIN, now=100.5, health=once)[NODE].failures == 2


class Observing(RuleBasedStateMachine):
    """Random observations, and a clock, against a plain account of what has been seen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.health: Health = {}
        self.down: dict[Server | Node, int] = {}  # how often what is down went down without a long rest
        self.went_up: dict[Server, float] = {}
        self.history: dict[Server, int] = {}

    def see(self, seen: Observation, *touched: Server | Node, jitter: float = 0.0) -> None:
        before = MappingProxyType(self.health)
        copy = dict(before)
        self.health = observe(before, seen, now=self.now, jitter=jitter, policy=POLICY)
        assert before == copy
        for known in (before, self.health):
            assert all(self.health.get(key) is before.get(key) for key in known if key not in touched)

    def rested(self, server: Server) -> bool:
        return server in self.went_up and self.now - self.went_up[server] >= POLICY.ban_max

    @rule(seconds=st.floats(0.0, 20.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(node=st.sampled_from(NODES), role=st.sampled_from(Role), position=st.integers(1, 9), tl=st.integers(1, 3))
    def it_answers_a_look(self, node: Node, role: Role, position: int, tl: int) -> None:
        self.see(looked(node, role, position, tl), node, node.server)
        self.down.pop(node, None)
        self.down.pop(node.server, None)
        if self.rested(node.server):
            self.history.pop(node.server, None)
        self.went_up.setdefault(node.server, self.now)
        state = node_state(self.health, node)
        assert (state.up, state.role, state.position, state.timeline) == (True, role, position, tl)
        assert (state.answered_at, state.since) == (self.now, self.went_up[node.server])

    @rule(node=st.sampled_from(NODES), role=st.sampled_from(Role))
    def a_connection_is_opened(self, node: Node, role: Role) -> None:
        self.see(Connected(node, role), node)
        self.down.pop(node, None)

    @rule(node=st.sampled_from(NODES), jitter=st.floats(0.0, 1.0))
    def the_server_fails(self, node: Node, jitter: float) -> None:
        server = node.server
        if server not in self.down:
            count = self.down[server] = 1 if self.rested(server) else self.history.get(server, 0) + 1
            self.history[server] = count
            self.went_up.pop(server, None)
            self.see(AttemptFailed(node, "gone", answered=False), server, jitter=jitter)
            longest = min(POLICY.ban * 2.0 ** (count - 1), POLICY.ban_max)
            assert 0.75 * longest - 1e-9 <= self.health[server].banned_until - self.now <= longest + 1e-9
        else:
            known = self.health[server]
            self.see(AttemptFailed(node, "gone", answered=False), server, jitter=jitter)
            assert self.health[server] == known

    @rule(node=st.sampled_from(NODES), jitter=st.floats(0.0, 1.0))
    def the_login_is_refused(self, node: Node, jitter: float) -> None:
        server, known = node.server, self.health.get(node, UNKNOWN)
        was_down = self.down.pop(server, None) is not None
        self.see(AttemptFailed(node, "refused", answered=True), node, *([server] if was_down else []), jitter=jitter)
        assert server not in self.health or self.health[server].up is (None if was_down else self.health[server].up)
        if node in self.down and self.now < known.banned_until:
            assert self.health[node] == known
        else:
            self.down[node] = self.down.get(node, 0) + 1

    @invariant()
    def exactly_what_failed_and_has_not_answered_since_is_down(self) -> None:
        assert {key: state.failures for key, state in self.health.items() if state.up is False} == self.down

    @invariant()
    def a_login_is_only_kept_while_it_is_refused(self) -> None:
        assert all(state.up is False for key, state in self.health.items() if isinstance(key, Node))

    @invariant()
    def what_is_up_has_a_role_and_nothing_to_complain_of(self) -> None:
        for state in self.health.values():
            assert (state.reason != "") == (state.up is False)
            assert state.up is not True or (state.role is not None and state.position and state.timeline)

    @invariant()
    def only_a_primary_leaves_a_trail_and_it_only_goes_up(self) -> None:
        for state in self.health.values():
            assert not state.history or state.role is PRIMARY
            assert list(state.history) == sorted(state.history)
            positions = [position for _, position in state.history]
            assert positions == sorted(positions)
            assert all(positions.count(position) <= 2 for position in positions)
            assert len(positions) <= HISTORY


TestObserving = Observing.TestCase
TestObserving.settings = settings(deadline=None, max_examples=examples(60), stateful_step_count=30)


# Who is the primary

A, B, C = (Node(Server(host, 5432), (("dbname", "app"),)) for host in "abc")
CLUSTER = Cluster("v", (A, B, C))


def claimants(health: Health) -> tuple[Node | None, list[Node]]:
    """The primary, and who is fenced."""
    return primary_of(health, CLUSTER), list(fenced(health, CLUSTER))


@pytest.mark.parametrize(
    ("seen", "primary", "out"),
    [
        ([], None, []),
        ([looked(B, REPLICA)], None, []),
        ([looked(A, PRIMARY)], A, []),
        ([looked(A, PRIMARY), looked(B, REPLICA)], A, []),
        # the higher timeline wins, whoever was seen first
        ([looked(A, PRIMARY), looked(B, PRIMARY, timeline=2)], B, [A]),
        ([looked(B, PRIMARY, timeline=2), looked(A, PRIMARY)], B, [A]),
        ([looked(A, PRIMARY, timeline=3), looked(B, PRIMARY, timeline=2), looked(C, PRIMARY)], A, [B, C]),
        # … also while its server is down, and when only a replica has followed it
        ([looked(B, PRIMARY, timeline=2), AttemptFailed(B, "gone", answered=False), looked(A, PRIMARY)], B, [A]),
        ([looked(A, PRIMARY), looked(C, REPLICA, timeline=2)], None, [A]),
        ([looked(C, REPLICA, timeline=2), AttemptFailed(C, "gone", answered=False), looked(A, PRIMARY)], None, [A]),
        # on the same timeline, and where it does not tell, the one seen first
        ([looked(B, PRIMARY), looked(A, PRIMARY)], A, [B]),  # at the same moment: the order of the settings
        ([looked(A, PRIMARY, timeline=0), looked(B, REPLICA, timeline=2)], A, []),
        ([looked(A, PRIMARY, timeline=0), looked(B, PRIMARY, timeline=2)], A, [B]),
        # a system that is not known is not another one
        ([looked(A, PRIMARY), looked(B, PRIMARY, timeline=2, system=0)], B, [A]),
        # what is down claims nothing, but is the primary as long as nobody else is
        ([looked(A, PRIMARY), AttemptFailed(A, "gone", answered=False)], A, []),
        ([looked(A, PRIMARY), AttemptFailed(A, "gone", answered=False), looked(B, PRIMARY)], B, []),
        # demoted, or built anew as a copy of the old primary: its old timeline is forgotten
        ([looked(A, PRIMARY), looked(B, PRIMARY, timeline=2), looked(A, REPLICA, timeline=2)], B, []),
        ([looked(A, PRIMARY), looked(B, PRIMARY, timeline=2), looked(B, REPLICA)], A, []),
    ],
)
def test_who_is_the_primary_and_who_is_fenced(seen: list[Observation], primary: Node | None, out: list[Node]) -> None:
    assert claimants(after(*seen)) == (primary, out)


def test_on_one_timeline_the_primary_seen_first_stays_until_it_goes_down() -> None:
    health = over_time((1.0, looked(B, PRIMARY)), (2.0, looked(A, PRIMARY)), (3.0, looked(B, PRIMARY)))
    assert claimants(health) == (B, [A])
    assert fenced(health, CLUSTER)[A] == "fenced: it is a primary, and so is b:5432, which was seen first"
    health = after(AttemptFailed(B, "gone", answered=False), now=4.0, health=health)
    assert claimants(health) == (A, [])
    assert claimants(after(looked(B, PRIMARY), now=5.0, health=health)) == (A, [B])


def test_of_a_fence_by_timeline_both_timelines_are_told() -> None:
    health = after(looked(A, PRIMARY), looked(B, PRIMARY, timeline=3))
    assert fenced(health, CLUSTER) == {
        A: "fenced: it is a primary on timeline 1, and b:5432 is on the later timeline 3"
    }


def test_who_is_out_by_its_timeline_keeps_nobody_else_out() -> None:
    # B fences A by its timeline. A was there before C, C before B: were A to count, nobody could be written to.
    health = over_time(
        (1.0, looked(A, PRIMARY)), (2.0, looked(C, PRIMARY, timeline=0)), (3.0, looked(B, PRIMARY, timeline=2))
    )
    assert claimants(health) == (C, [A, B])


systems = st.lists(
    st.tuples(st.sampled_from(CLUSTER.nodes), st.sampled_from(Role), st.integers(0, 3), st.sampled_from([0, 8, 9])),
    max_size=8,
)


def seen_in_turn(looks: list[tuple[Node, Role, int, int]], nodes: tuple[Node, ...] = CLUSTER.nodes) -> Health:
    """What is known once servers were looked at one after the other, by whatever nodes."""
    return over_time(
        *((float(n), looked(node, role, 1, tl, system=ident)) for n, (node, role, tl, ident) in enumerate(looks))
    )


@given(systems)
def test_of_primaries_that_are_up_one_is_left_unless_a_later_timeline_was_seen(
    looks: list[tuple[Node, Role, int, int]],
) -> None:
    health = seen_in_turn(looks)
    states = {node: health[node.server] for node in CLUSTER.nodes if node.server in health}
    idents = [state.system for state in states.values() if state.system]
    majority = next((ident for ident in idents if 2 * idents.count(ident) > len(idents)), 0)
    out = [node for node, state in states.items() if state.system not in {0, majority}]
    assert list(foreign(health, CLUSTER)) == out
    primaries = [node for node, state in states.items() if state.role is PRIMARY and node not in out]
    overtaken = [
        node
        for node in primaries
        if (timeline := states[node].timeline)
        and any(rival.timeline > timeline for other, rival in states.items() if other not in out)
    ]
    left = [node for node in primaries if node not in fenced(health, CLUSTER)]
    assert len(left) == (len(primaries) > len(overtaken))
    assert primary_of(health, CLUSTER) == (left[0] if left else None)


# Of several systems

P, R, S = (replace(node, role=role) for node, role in zip((A, B, C), (PRIMARY, REPLICA, REPLICA), strict=True))
HINTED = Cluster("v", (P, R, S))
OTHER = SYSTEM + 1
GONE = AttemptFailed(P, "gone", answered=False)


def hinted(*seen: Observation) -> tuple[Node | None, list[Node], list[Node]]:
    """The primary, who is out, and who of them is so for its system, once all of this was seen, a second apart."""
    health = over_time(*((float(n), one) for n, one in enumerate(seen)))
    return primary_of(health, HINTED), list(fenced(health, HINTED)), list(foreign(health, HINTED))


@pytest.mark.parametrize(
    ("seen", "primary", "out"),
    [
        # the configured primary's system counts, in whatever order they are seen, be it up or down
        ([looked(P, PRIMARY), looked(R, PRIMARY, system=OTHER)], P, [R]),
        ([looked(R, PRIMARY, system=OTHER), looked(P, PRIMARY)], P, [R]),
        ([looked(P, PRIMARY), looked(R, PRIMARY, timeline=9, system=OTHER), GONE], P, [R]),
        ([looked(P, PRIMARY), looked(R, REPLICA, system=OTHER), looked(S, REPLICA, system=OTHER)], P, [R, S]),
        ([looked(P, REPLICA), looked(R, PRIMARY, timeline=9, system=OTHER)], None, [R]),
        # it stays the primary when it comes back as another system
        ([looked(P, PRIMARY), looked(R, REPLICA), GONE, looked(P, PRIMARY, system=OTHER)], P, [R]),
        ([looked(P, PRIMARY, timeline=5), looked(P, PRIMARY, system=OTHER), looked(R, PRIMARY, timeline=6)], P, [R]),
        # as long as it was not seen, most of the others count; none has a majority of two
        ([GONE, looked(R, REPLICA), looked(S, REPLICA, system=OTHER)], None, [R, S]),
        ([looked(R, PRIMARY, timeline=2), looked(S, REPLICA, timeline=2, system=OTHER), GONE], None, [R, S]),
        ([looked(R, REPLICA), looked(S, REPLICA, system=OTHER), looked(P, PRIMARY, system=0)], P, [R, S]),
        # a system that is not known may be any
        ([looked(P, PRIMARY, system=0), looked(R, REPLICA, system=OTHER)], P, []),
        ([looked(P, PRIMARY), looked(R, REPLICA, system=0)], P, []),
    ],
)
def test_who_is_of_another_system_is_out(seen: list[Observation], primary: Node | None, out: list[Node]) -> None:
    assert hinted(*seen) == (primary, out, out)


@pytest.mark.parametrize(
    ("seen", "primary", "out"),
    [
        # a promotion begins a later timeline than any that the configured primary was ever seen on, up or down
        ([looked(P, PRIMARY), looked(R, PRIMARY, timeline=2)], R, [P]),
        ([looked(P, PRIMARY), GONE, looked(R, PRIMARY, timeline=2)], R, [P]),
        ([looked(P, PRIMARY, timeline=4), GONE, looked(R, PRIMARY, timeline=4)], P, [R]),
        ([looked(P, PRIMARY), GONE, looked(R, PRIMARY)], P, [R]),
        ([looked(R, PRIMARY), looked(P, PRIMARY)], P, [R]),
        ([looked(R, PRIMARY), looked(P, PRIMARY), GONE], P, [R]),
        ([looked(R, PRIMARY, timeline=0), looked(P, PRIMARY), GONE], P, [R]),
        # … as a primary: when it follows the new one, it is on that one's timeline
        ([looked(P, PRIMARY), looked(R, PRIMARY, timeline=2), looked(P, REPLICA, timeline=2)], R, []),
        ([looked(P, REPLICA, timeline=2), looked(R, PRIMARY, timeline=2)], R, []),
        # a later failover, and a copy of the primary after one
        ([looked(P, PRIMARY), looked(R, PRIMARY, timeline=2), looked(S, PRIMARY, timeline=3)], S, [P, R]),
        ([looked(P, PRIMARY), looked(R, PRIMARY, timeline=2), looked(S, PRIMARY, timeline=2)], R, [P, S]),
        (
            [
                looked(P, PRIMARY),
                looked(R, PRIMARY, timeline=2),
                looked(S, PRIMARY, timeline=2),
                AttemptFailed(R, "gone", answered=False),
                looked(R, PRIMARY, timeline=2),
            ],
            R,
            [P, S],
        ),
        # what was promoted while the configured primary was away for as long as anybody looks
        ([GONE, looked(R, PRIMARY, timeline=2)], R, []),
        ([GONE, looked(R, PRIMARY, timeline=2), looked(S, REPLICA, timeline=1)], R, []),
        ([AttemptFailed(P, "no such role", answered=True), looked(R, PRIMARY, timeline=2)], R, []),
        ([GONE, looked(R, PRIMARY)], None, [R]),
        ([GONE, looked(R, PRIMARY, timeline=0)], None, [R]),
        # nobody has tried the configured primary yet
        ([looked(R, PRIMARY, timeline=2)], None, [R]),
        # settings that have the roles the wrong way round
        ([looked(P, REPLICA), looked(R, PRIMARY)], R, []),
        ([looked(P, REPLICA), looked(R, PRIMARY), looked(S, PRIMARY)], R, [S]),
    ],
)
def test_a_configured_replica_is_the_primary_only_once_it_was_promoted(
    seen: list[Observation], primary: Node | None, out: list[Node]
) -> None:
    assert hinted(*seen) == (primary, out, [])


@given(st.permutations([looked(P, PRIMARY), looked(R, PRIMARY, timeline=3, system=OTHER)]), st.booleans())
def test_it_does_not_matter_who_of_two_systems_answers_first(seen: list[ProbeResult], away: bool) -> None:
    assert hinted(*seen, *[GONE] * away) == (P, [R], [R])


@given(systems, st.integers(0, 8), st.sampled_from([0, SYSTEM, OTHER]))
def test_nothing_that_was_not_promoted_from_the_configured_primary_is_ever_the_primary(
    looks: list[tuple[Node, Role, int, int]], when: int, system: int
) -> None:
    """Whatever is seen of the others: not of another system, nor on a timeline that it was on as a primary."""
    theirs = [(node, role, tl, ident) for node, role, tl, ident in looks if node is not A]
    mine = [(A, role, tl, system) for node, role, tl, _ in looks if node is A]
    health = seen_in_turn([*theirs[:when], *mine, *theirs[when:]])
    led = max((tl for _, role, tl, _ in mine if role is PRIMARY), default=0)
    primary = primary_of(health, HINTED)
    if primary is not None and primary is not P:
        state = health[primary.server]
        assert same_system(state.system, system) or not mine
        assert state.timeline > led or not (led or state.timeline)


def test_where_no_primary_is_configured_most_nodes_decide_or_else_nobody() -> None:
    looks = [looked(A, PRIMARY), looked(B, PRIMARY, timeline=3, system=OTHER), looked(C, REPLICA)]
    assert claimants(after(looks[0])) == (A, [])
    assert claimants(after(*looks[:2])) == (None, [A, B])
    assert claimants(after(*looks)) == (A, [B])
    assert claimants(after(*looks, AttemptFailed(C, "gone", answered=False))) == (A, [B])
    reason = (
        "is of one of several systems, and none has a majority of the nodes seen: "
        f"a:5432 ({SYSTEM}), b:5432 ({OTHER}); name one as `primary` in the settings"
    )
    assert foreign(after(*looks[:2]), CLUSTER) == {A: reason, B: reason}


@pytest.mark.parametrize(
    ("cluster", "seen", "expected"),
    [
        (HINTED, [], True),
        (HINTED, [looked(R, REPLICA)], True),
        (HINTED, [looked(R, REPLICA), GONE], False),
        (HINTED, [looked(R, REPLICA), AttemptFailed(P, "no such role", answered=True)], False),
        (HINTED, [looked(P, PRIMARY)], False),
        (CLUSTER, [looked(A, PRIMARY)], True),
        (CLUSTER, [looked(A, PRIMARY), looked(B, REPLICA)], False),  # the third cannot outvote them
        (CLUSTER, [looked(A, PRIMARY), looked(B, REPLICA, system=OTHER)], True),
        (CLUSTER, [looked(A, PRIMARY), looked(B, REPLICA, system=0)], True),
        (CLUSTER, [looked(A, PRIMARY), AttemptFailed(B, "gone", answered=False)], True),
        (CLUSTER, [looked(A, PRIMARY), *(AttemptFailed(node, "gone", answered=False) for node in (B, C))], False),
        (Cluster("v", (A,)), [looked(A, PRIMARY)], False),
    ],
)
def test_what_nobody_has_looked_at_may_decide_of_which_system_a_cluster_is(
    cluster: Cluster, seen: list[Observation], expected: bool
) -> None:
    assert undecided(after(*seen), cluster) is expected


# How far a replica is behind


def lag(health: Health, now: float) -> Lag | None:
    return lag_of(health, B, primary_of(health, CLUSTER), now=now)


def writing(*positions: int, start: float = 0.0) -> list[tuple[float, Observation]]:
    """Looks at the primary, one a second."""
    return [(start + n, looked(A, PRIMARY, position)) for n, position in enumerate(positions)]


@pytest.mark.parametrize(
    ("position", "age", "expected"),
    [
        (400, None, Lag(0, 0.0)),
        (450, None, Lag(0, 0.0)),  # looked at later than the primary
        (399, None, Lag(1, 1.5)),  # where the primary was one look before the last, at 2.0
        (300, None, Lag(100, 1.5)),
        (150, None, Lag(250, 3.5)),
        (99, None, Lag(301, None)),  # from before anybody looked
        (99, 60.0, Lag(301, 60.0)),
        (300, 0.9, Lag(100, 0.9)),  # between two looks, the clocks tell
        (300, 70.0, Lag(100, 1.5)),  # as if nobody had written for long
        (300, 0.1, Lag(100, 0.5)),  # at 3.0 the primary was further: the replica's clock is behind
        (300, -9.0, Lag(100, 0.5)),
        (99, -9.0, Lag(301, 3.5)),
    ],
)
def test_a_replica_is_as_old_as_the_primary_was_when_it_was_there(
    position: int, age: float | None, expected: Lag
) -> None:
    health = over_time(*writing(100, 200, 300, 400), (3.5, looked(B, REPLICA, position, age=age)))
    assert lag(health, 3.5) == expected


def test_a_replica_of_an_idle_primary_is_not_behind_however_long_nobody_writes() -> None:
    health = over_time(*writing(*[500] * 600), (599.5, looked(B, REPLICA, 500, age=600.0)))
    assert lag(health, 600.0) == Lag(0, 0.0)
    assert health[A.server].history == ((0.0, 500), (599.0, 500))
    # nor is it for longer than since the first look that found more
    health = after(looked(A, PRIMARY, 600), now=600.0, health=health)
    assert lag(health, 600.0) == Lag(100, 0.5)


def test_an_idle_primary_whose_last_record_filled_a_page_is_not_ahead_of_its_replicas() -> None:
    for header in (24, 40):
        health = over_time((1.0, looked(A, PRIMARY, 8192 * 5 + header)), (1.5, looked(B, REPLICA, 8192 * 5)))
        assert lag(health, 1.5) == Lag(0, 0.0)


@pytest.mark.parametrize("skew", [0.0, -30.0])
def test_a_replica_that_lacks_the_last_write_is_behind_since_that_was_seen(skew: float) -> None:
    health = over_time(*writing(*[100] * 5, *[200] * 60), (64.5, looked(B, REPLICA, 100, age=64.5 + skew)))
    behind = lag(health, 64.5)
    assert behind is not None
    assert behind.bytes == 100
    assert behind.seconds == (59.5 if skew else 60.5)


def test_a_replica_that_receives_nothing_is_further_behind_with_each_look() -> None:
    health, found = over_time(*writing(100, 200)), list[float | None]()
    for n in range(2, 300):
        health = after(looked(A, PRIMARY, 100 * (n + 1)), now=float(n), health=health)
        # On a broken receiver, received and replayed are the same: that must not count.
        health = after(looked(B, REPLICA, 200, age=n - 0.9), now=n + 0.1, health=health)
        behind = lag(health, n + 0.1)
        assert behind is not None
        found.append(behind.seconds)
    assert found == pytest.approx([n - 0.9 for n in range(2, 300)])


def test_what_a_crash_of_the_primary_lost_is_no_longer_waited_for() -> None:
    health = over_time(
        *writing(100, 200, 300),
        (2.5, AttemptFailed(A, "gone", answered=False)),
        (3.0, looked(A, PRIMARY, 250)),
        (3.5, looked(B, REPLICA, 250)),
    )
    assert lag(health, 3.5) == Lag(0, 0.0)
    assert health[A.server].history == ((0.0, 100), (1.0, 200), (3.0, 250))


def test_the_trail_is_of_one_timeline_and_one_system() -> None:
    health = over_time(*writing(100, 200), (2.0, looked(A, PRIMARY, 300, 2)))
    assert health[A.server].history == ((2.0, 300),)
    health = after(looked(A, PRIMARY, 400, 2, system=9), now=3.0, health=health)
    assert health[A.server].history == ((3.0, 400),)


def test_of_a_trail_the_latest_are_kept() -> None:
    history = over_time(*writing(*range(1, 1000)))[A.server].history
    assert [position for _, position in history] == list(range(1000 - HISTORY, 1000))


def test_a_slow_look_shows_what_was_when_it_began() -> None:
    health = over_time((1.0, looked(A, PRIMARY, 100, latency=0.4)), (2.0, looked(A, PRIMARY, 200)))
    health = after(looked(B, REPLICA, 100, latency=0.3), now=2.5, health=health)
    behind = lag(health, 2.5)
    assert behind is not None
    assert behind.seconds == pytest.approx(2.2 - 0.6)


@pytest.mark.parametrize(
    "seen",
    [
        [],
        [(1.0, looked(A, PRIMARY))],
        [(1.0, looked(B, REPLICA))],
        [(1.0, looked(A, PRIMARY)), (1.0, looked(B, REPLICA)), (1.5, AttemptFailed(B, "gone", answered=False))],
        [(1.0, looked(A, PRIMARY, timeline=2)), (1.0, looked(B, REPLICA, timeline=1))],
        [(1.0, looked(A, PRIMARY)), (1.0, looked(B, REPLICA, system=9))],
        [(1.0, looked(A, PRIMARY)), (1.0, looked(B, REPLICA)), (1.1, looked(C, REPLICA, timeline=2))],
        [(1.0, looked(A, PRIMARY)), (1.0, looked(B, REPLICA, 0))],
    ],
    ids=["nothing", "no replica", "no primary", "down", "timeline", "system", "fenced primary", "no position"],
)
def test_how_far_behind_is_not_known_where_positions_are_not_or_do_not_compare(
    seen: list[tuple[float, Observation]],
) -> None:
    assert lag(over_time(*seen), 2.0) is None


@pytest.mark.parametrize("unknown", [{"timeline": 0}, {"system": 0}])
def test_a_timeline_or_system_that_may_not_be_asked_for_is_not_another_one(unknown: dict[str, int]) -> None:
    health = after(looked(A, PRIMARY), looked(B, REPLICA)._replace(**unknown))  # type: ignore[arg-type]
    assert lag(health, 100.0) == Lag(0, 0.0)


def test_what_nobody_has_looked_at_lately_is_not_known() -> None:
    health = over_time(*writing(100), (0.0, looked(B, REPLICA, 90, age=2.0)))
    horizon = 2 * POLICY.interval + POLICY.timeout
    assert lag(health, horizon) == Lag(10, 2.0)
    assert lag(health, horizon + 0.01) is None
    fresh_replica = after(looked(B, REPLICA, 90, age=4.0), now=2.0, health=health)
    assert lag(fresh_replica, horizon + 0.01) == Lag(None, 4.0)
    assert lag(after(looked(B, REPLICA, 100), now=2.0, health=health), horizon + 0.01) == Lag(None, horizon + 0.01)


def test_what_a_slow_look_found_is_as_old_as_when_it_began() -> None:
    health = after(looked(A, PRIMARY), looked(B, REPLICA, latency=0.5))
    assert lag(health, 102.0) == Lag(0, 0.0)
    assert lag(health, 102.01) is None


def test_when_the_primary_is_down_how_many_bytes_are_missing_is_not_known_and_seconds_grow() -> None:
    stopped = over_time(*writing(100, 200, 300), (2.5, AttemptFailed(A, "gone", answered=False)))
    for now in (3.0, 30.0):
        assert lag(after(looked(B, REPLICA, 300), now=now, health=stopped), now) == Lag(None, now - 2.0)
        behind = after(looked(B, REPLICA, 200, age=now - 1.0), now=now, health=stopped)
        assert lag(behind, now) == Lag(None, now - 1.0)


# What libpq says

AT = 'connection failed: connection to server at "db1.internal" (10.0.0.7), port 5432 failed: '
ON_SOCKET = 'connection is bad: connection to server on socket "/run/pg/.s.PGSQL.5432" failed: '
# libpq speaks the language of the process if that has called setlocale().
IN_GERMAN = "connection failed: Verbindung zum Server auf »10.0.0.7«, Port 5432 fehlgeschlagen: "
IN_FRENCH = "connection failed: la connexion au serveur sur « 10.0.0.7 », port 5432 a échoué : "
SEVERAL = "Multiple connection attempts failed. All failures were:\n- host: 'db', port: '5432', hostaddr: "


@pytest.mark.parametrize("where", [AT, ON_SOCKET])
@pytest.mark.parametrize(
    "said",
    [
        "Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?",
        "No such file or directory\n\tIs the server running locally and accepting connections on that socket?",
        "server closed the connection unexpectedly\n\tThis probably means the server terminated abnormally\n\t…",
        f"Connection refused\n\tIs the server running on …?\n{SEVERAL}'::1': {AT}FATAL:  no such role",
        "SSL error: unexpected eof while reading",
        f"SSL error: unexpected eof while reading\n{AT.partition(': ')[2]}server closed the connection unexpectedly",
        "server does not support SSL, but SSL was required",
        'authentication method requirement "scram-sha-256" failed: server did not complete authentication',
        "expected authentication request from server, but received H",
    ],
)
def test_a_server_that_cannot_be_used_is_told_by_what_is_wrong(where: str, said: str) -> None:
    reason = said.partition("\n")[0].replace(":  ", ": ")
    assert read_failure(NODE, where + said) == AttemptFailed(NODE, reason, answered=False)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("", "failed to resolve host 'nowhere.invalid': [Errno -2] Name or service not known"),
        ("", "connection timeout expired"),
        ("connection is bad: ", "GSSAPI encryption required but no credential cache"),
        ("connection is bad: ", 'definition of service "app" not found'),
    ],
)
def test_what_went_wrong_before_any_server_was_met_is_told_as_it_is(before: str, reason: str) -> None:
    message = before + reason
    observed = [read_failure(NODE, text) for text in (message, f"{message}\n{SEVERAL}'::1': {AT}FATAL:  no such role")]
    assert observed == [AttemptFailed(NODE, reason, answered=False)] * 2


@pytest.mark.parametrize(
    "said",
    [
        'FATAL:  password authentication failed for user "app"',
        'FATAL:  role "app" does not exist',
        'FATAL:  role "app" is not permitted to log in',
        'FATAL:  database "app" does not exist',
        'FATAL:  database "app" is not currently accepting connections',
        'FATAL:  permission denied for database "app"\nDETAIL:  User does not have CONNECT privilege.',
        "FATAL:  sorry, too many clients already",
        'FATAL:  too many connections for role "app"',
        'FATAL:  no pg_hba.conf entry for host "10.0.0.9", user "app", database "app", no encryption',
        'FATAL:  unrecognized configuration parameter "nope"',
        "FATAL:  server login has been failing, cached error: connect failed (server_login_retry)",  # PgBouncer
        'ÖLÜMCÜL (FATAL):  "app" rolü mevcut değil',
        "SCHWERWIEGEND:  Passwort-Authentifizierung für Benutzer »app« fehlgeschlagen",
        "FATAL:  la base de données « app » n'existe pas",
        '致命错误:  用户 "app" Password 认证失败',
    ],
)
def test_a_refused_login_is_told_by_the_servers_words_in_any_language(said: str) -> None:
    reason = said.partition("\n")[0].replace(":  ", ": ").removeprefix("ÖLÜMCÜL ")
    expected = AttemptFailed(NODE, reason, answered=True)
    assert [read_failure(NODE, where + said) for where in (AT, ON_SOCKET, IN_GERMAN, IN_FRENCH, "")] == [expected] * 5


IN_ANY_LANGUAGE = ["FATAL:  the words", "SCHWERWIEGEND:  »die« Worte", "FATAL:  les « mots »", '致命错误:  "词"']


@pytest.mark.parametrize("said", IN_ANY_LANGUAGE)
@pytest.mark.parametrize("sqlstate", ["57P01", "57P02", "57P03"])
def test_a_server_that_starts_up_or_shuts_down_cannot_be_used_whatever_it_says(said: str, sqlstate: str) -> None:
    assert not read_failure(NODE, AT + said, sqlstate).answered


@pytest.mark.parametrize("said", IN_ANY_LANGUAGE)
@pytest.mark.parametrize(
    ("sqlstate", "routine", "server_full", "missing"),
    [
        ("53300", "ProcessStartupPacket", True, ""),
        ("53300", "InitializeSessionUserId", True, ""),
        ("3D000", "InitPostgres", False, "dbname"),
        ("28000", "InitializeSessionUserId", False, "user"),
        ("28000", "ClientAuthentication", False, ""),
        ("28P01", "auth_failed", False, ""),
        ("42501", "CheckMyDatabase", False, ""),
        ("22023", "call_string_check_hook", False, ""),  # of another option than the role
        (None, "", False, ""),
    ],
)
def test_why_a_login_is_refused_is_told_by_its_sqlstate(
    said: str, sqlstate: str | None, routine: str, server_full: bool, missing: str
) -> None:
    observed = read_failure(NODE, AT + said, sqlstate, routine)
    assert observed == AttemptFailed(
        NODE, said.replace(":  ", ": "), answered=True, server_full=server_full, missing=missing
    )


@pytest.mark.parametrize("sqlstate", ["22023", "42501"])
def test_a_role_that_a_session_is_to_be_set_to_and_that_is_not_there_is_told_by_its_name(sqlstate: str) -> None:
    node = Node(NEAR, (("options", r"-c a=b -c role=the\ one -c search_path=x"),))
    for said, missing in [("Rolle »the one« existiert nicht", "role"), ("ungültiger Wert für »a«", "")]:
        observed = read_failure(node, f"{AT}FATAL:  {said}", sqlstate, "call_string_check_hook")
        assert (observed.answered, observed.missing) == (True, missing)


def test_pgbouncer_says_in_english_that_it_is_full() -> None:
    assert read_failure(NODE, f"{AT}FATAL:  no more connections allowed (max_client_conn)", "08P01").server_full


def test_a_password_that_is_missing_is_a_matter_of_the_login() -> None:
    reason = "fe_sendauth: no password supplied"
    assert read_failure(NODE, AT + reason) == AttemptFailed(NODE, reason, answered=True)


def test_of_two_attempts_with_and_without_encryption_the_first_ones_reason_is_given() -> None:
    entry = 'FATAL:  no pg_hba.conf entry for host "10.0.0.9", user "app", database "app", '
    observed = read_failure(NODE, f"{AT}{entry}SSL encryption\n{AT.partition(': ')[2]}{entry}no encryption")
    assert observed == AttemptFailed(NODE, f"{entry}SSL encryption".replace(":  ", ": "), answered=True)


@given(st.text())
@example(" failed: \n")
def test_whatever_libpq_says_the_reason_is_one_line_of_it(text: str) -> None:
    observed = read_failure(NODE, f"{AT}x{text}")
    assert observed.node == NODE
    assert observed.reason
    assert "\n" not in observed.reason
    assert "connection failed" not in observed.reason
    assert "port 5432" not in observed.reason
