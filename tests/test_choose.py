"""Which node serves a request: the order of the nodes, and the draws that spread requests over equal ones."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import groupby, pairwise, product
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from router.core.balance import PAIRS, cumulate, draw, draw_two, pairs, rotation
from router.core.choose import choose
from router.core.consistency import UNSURE, Position
from router.core.health import NodeUse, State, node_state, observe, role_of
from router.core.observations import AttemptFailed, ProbeResult
from router.core.policies import HealthPolicy, ReadPolicy
from router.core.replication import Lag
from router.core.standing import Request, Tier, fresh, role_mismatch, standings
from router.core.topology import Cluster, Node, Role, Secrets, Server, Target
from tests.support import examples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from router.core.choose import Route
    from router.core.health import Health
    from router.core.observations import Observation
    from router.core.policies import Fallback

# A machine as busy as CI's now and then stops for longer than hypothesis' deadline.
relaxed = settings(deadline=None)

PRIMARY, REPLICA = Role.PRIMARY, Role.REPLICA
FALLBACKS: tuple[Fallback, ...] = ("primary", "wait", "error")
READ, WRITE = Request(read_only=True), Request(read_only=False)
NOW = 100.0
SYSTEM = 7
POLICY = HealthPolicy(interval=1.0, timeout=0.5, ban=0.5, ban_max=15.0)


def make_node(host: str, role: Role | None = None, weight: float = 1.0) -> Node:
    return Node(Server(host, 5432), (("dbname", "app"), ("user", "app")), role, weight)


def make_target(*nodes: Node, requested: str = "v2", **read: Any) -> Target:
    return Target(requested, Cluster("v2", nodes, read=ReadPolicy(**read)))


def up(role: Role, *, banned_until: float = 0.0) -> State:
    """A server that was looked at just now; of primaries, the one seen last is fenced."""
    return State(
        up=True, role=role, server_version=180000, system=SYSTEM, timeline=1, known_until=NOW + 1.0, position=1000,
        position_at=NOW, answered_at=NOW, banned_until=banned_until, failures=int(banned_until > NOW),
        history=((NOW, 1000),) if role is PRIMARY else (), led_timeline=int(role is PRIMARY),
    )  # fmt: skip


def down(reason: str = "Connection refused", role: Role | None = None) -> State:
    return State(up=False, role=role, failures=1, banned_until=NOW + 10.0, reason=reason)


def hosts(nodes: Sequence[Node]) -> str:
    return " ".join(node.server.host for node in nodes)


def chosen(target: Target, health: Health, request: Request = READ, *, now: float = NOW, turn: float = 0.0) -> Route:
    return choose(target, health, request, now=now, tie_break=turn)


class Case(NamedTuple):
    """The arguments of one choice."""

    target: Target
    health: Health
    request: Request
    turn: float
    loads: Mapping[Node, float]
    prefer: Node | None

    def choose(self) -> Route:
        return choose(
            self.target,
            self.health,
            self.request,
            now=NOW,
            tie_break=self.turn,
            load=self.loads.__getitem__,
            prefer=self.prefer,
        )

    def standing(self, node: Node) -> str:  # noqa: PLR0911  (one a standing)
        """What a node is to this request: one of ``ORDER``, or forbidden."""
        state, role = node_state(self.health, node), role_of(self.health, node)
        if state.up is not None:
            if self.request.read_only and role is PRIMARY and self.target.cluster.read.fallback != "primary":
                return "forbidden"
            if not self.request.read_only and role is REPLICA:
                return "forbidden"
        if self.is_out(node):
            return "forbidden"
        if state.up is None:
            return "unseen"
        if state.up is False:
            return "down" if self.health.get(node.server, State()).up is False else "refused"
        if not self.request.read_only:
            return "up"
        if state.banned_until > NOW or node == self.request.avoid:
            return "banned"
        return "up" if role is REPLICA else "fallback"

    def is_out(self, node: Node) -> bool:
        """Whether it says it is primary, and is not the one; all are on the same timeline, seen at the same moment."""
        nodes, seen = self.target.cluster.nodes, {node: self.health.get(node.server, State()) for node in self.loads}
        configured = [node for node in nodes if node.role is PRIMARY]
        claims = [other for other in configured + list(nodes) if seen[other].up and seen[other].role is PRIMARY]
        if configured and seen[configured[0]].role is not REPLICA:
            return seen[node].role is PRIMARY and node is not configured[0]
        return node in claims and node is not claims[0]

    def standings(self, route: Route) -> list[str]:
        return [self.standing(node) for node in route.nodes]


ORDER = ["up", "fallback", "banned", "unseen", "down", "refused"]

weights = st.floats(0.01, 100.0)
servers_states = st.one_of(
    st.none(),
    st.just(State()),
    st.builds(up, st.sampled_from(Role), banned_until=st.sampled_from([0.0, NOW + 1.0])),
    st.builds(down, st.sampled_from(["a", "b"]), st.none() | st.sampled_from(Role)),
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 6))
    is_primary = draw(st.integers(0, count)) if draw(st.booleans()) else None  # or all roles are to be discovered
    roles = [None if is_primary is None else PRIMARY if n == is_primary else REPLICA for n in range(count)]
    nodes = [make_node(f"db{n}", role, draw(weights)) for n, role in enumerate(roles)]
    health: dict[Server | Node | NodeUse, State] = {}
    for node in nodes:
        if (state := draw(servers_states)) is not None:
            health[node.server] = state
        if draw(st.integers(0, 4)) == 0:
            health[node] = down("password authentication failed")
    some_node = st.sampled_from([None, make_node("elsewhere"), *nodes])
    return Case(
        make_target(*nodes, fallback=draw(st.sampled_from(FALLBACKS))),
        MappingProxyType(health),
        Request(draw(st.booleans()), avoid=draw(some_node)),
        draw(st.floats(0.0, 1.0)),
        MappingProxyType({node: float(draw(st.integers(0, 3))) for node in nodes}),
        draw(some_node),
    )


# The order of the nodes


@relaxed
@given(cases())
def test_every_node_is_tried_or_left_out_once(case: Case) -> None:
    route = case.choose()
    assert Counter([*route.nodes, *route.refused]) == Counter(case.target.cluster.nodes)
    assert set(route.notes) == set(route.nodes)
    assert all([*route.notes.values(), *route.refused.values()])


@relaxed
@given(cases())
def test_exactly_the_forbidden_are_left_out_however_bad_the_others_are(case: Case) -> None:
    route = case.choose()
    assert set(route.refused) == {node for node in case.target.cluster.nodes if case.standing(node) == "forbidden"}


@relaxed
@given(cases())
def test_better_nodes_come_first(case: Case) -> None:
    standings = case.standings(case.choose())
    assert standings == sorted(standings, key=ORDER.index)


@relaxed
@given(cases())
def test_best_counts_the_leading_nodes_known_to_be_up_and_equally_good(case: Case) -> None:
    route = case.choose()
    runs = [(standing, len(list(run))) for standing, run in groupby(case.standings(route))]
    assert route.best == (runs[0][1] if runs and runs[0][0] in {"up", "fallback", "banned"} else 0)


@relaxed
@given(cases())
def test_ready_counts_the_leading_nodes_known_to_be_up(case: Case) -> None:
    route = case.choose()
    assert [node_state(case.health, node).up is True for node in route.nodes] == [
        place < route.ready for place in range(len(route.nodes))
    ]


@relaxed
@given(cases())
def test_within_a_tier_the_least_busy_for_its_weight_comes_first(case: Case) -> None:
    route = case._replace(prefer=None).choose()
    ranks = [(ORDER.index(case.standing(node)), case.loads[node] / node.weight) for node in route.nodes]
    assert ranks == sorted(ranks)


@relaxed
@given(cases())
def test_preferring_a_node_moves_it_to_the_front_if_it_is_among_the_best_and_nothing_else(case: Case) -> None:
    route, plain = case.choose(), case._replace(prefer=None).choose()
    expected = list(plain.nodes)
    if case.prefer in expected[: plain.best]:
        expected.remove(case.prefer)
        expected.insert(0, case.prefer)
    assert list(route.nodes) == expected
    assert (route.best, route.notes, route.refused) == (plain.best, plain.notes, plain.refused)


@relaxed
@given(cases())
def test_equal_arguments_give_equal_routes(case: Case) -> None:
    before = (dict(case.health), dict(case.loads))
    first = case.choose()
    assert case._replace(health=dict(case.health)).choose() == first
    assert before == (case.health, case.loads)
    assert first.target is case.target
    assert first.read_only is case.request.read_only


CLUSTER = (make_node("p", PRIMARY), make_node("r1", REPLICA), make_node("r2", REPLICA), make_node("r3", REPLICA))
P, R1, R2, R3 = (node.server for node in CLUSTER)


@pytest.mark.parametrize(
    ("health", "reading", "writing", "best"),
    [
        ({}, "p r1 r2 r3", "p r1 r2 r3", (0, 0)),
        ({P: up(PRIMARY)}, "p r1 r2 r3", "p r1 r2 r3", (1, 1)),
        ({R2: up(REPLICA)}, "r2 p r1 r3", "p r1 r3", (1, 0)),
        ({P: up(PRIMARY), R2: up(REPLICA), R3: up(REPLICA)}, "r2 r3 p r1", "p r1", (2, 1)),
        ({R1: down()}, "p r2 r3 r1", "p r2 r3", (0, 0)),
        ({P: up(PRIMARY), R1: down(), R2: down(), R3: down()}, "p r1 r2 r3", "p", (1, 1)),
        ({P: down(), R1: down(), R2: down(), R3: down()}, "p r1 r2 r3", "p", (0, 0)),
        # after a failover, what the servers say counts, not what is configured
        ({P: up(REPLICA), R1: up(PRIMARY)}, "p r1 r2 r3", "r1 r2 r3", (1, 1)),
        ({P: down(role=PRIMARY), R1: replace(up(PRIMARY), timeline=2)}, "r1 r2 r3 p", "r1 r2 r3 p", (1, 1)),
        # but a replica that says it is primary has to have been promoted
        ({P: down(role=PRIMARY), R1: up(PRIMARY)}, "r2 r3 p", "r2 r3 p", (0, 0)),
        ({P: up(PRIMARY), R1: up(PRIMARY)}, "p r2 r3", "p r2 r3", (1, 1)),
        # what failed lately comes after all others that are up
        ({P: up(PRIMARY), R1: up(REPLICA, banned_until=NOW + 1.0), R2: up(REPLICA)}, "r2 p r1 r3", "p r3", (1, 1)),
        ({P: up(PRIMARY, banned_until=NOW + 1.0), R1: down()}, "p r2 r3 r1", "p r2 r3", (1, 1)),
        ({R1: up(REPLICA, banned_until=NOW), R2: up(REPLICA)}, "r1 r2 p r3", "p r3", (2, 0)),
        # only the login of one node is refused
        ({R1: up(REPLICA), R2: up(REPLICA), CLUSTER[1]: down("no such role")}, "r2 p r3 r1", "p r3", (1, 0)),
        ({P: up(PRIMARY), CLUSTER[0]: down("no such role"), R1: down()}, "r2 r3 r1 p", "r2 r3 p", (0, 0)),
    ],
)
def test_the_order_for_a_primary_and_three_replicas(
    health: Health, reading: str, writing: str, best: tuple[int, int]
) -> None:
    routes = [chosen(make_target(*CLUSTER), health, request) for request in (READ, WRITE)]
    assert [hosts(route.nodes) for route in routes] == [reading, writing]
    assert tuple(route.best for route in routes) == best


def test_tiers_are_in_the_order_of_what_is_best() -> None:
    assert [tier.name for tier in sorted(Tier)] == [
        "BEST", "FALLBACK", "STALE", "BANNED", "UNPROBED", "REFUSES_WRITES", "DOWN", "LOGIN_FAILED",
    ]  # fmt: skip


def test_nodes_of_unknown_role_are_tried_for_either_use_until_they_say_what_they_are() -> None:
    target = make_target(make_node("a"), make_node("b"), make_node("c"), fallback="error")
    a, _, c = (node.server for node in target.cluster.nodes)
    assert [hosts(chosen(target, {}, request).nodes) for request in (READ, WRITE)] == ["a b c", "a b c"]
    known: Health = {a: up(PRIMARY), c: up(REPLICA)}
    assert [hosts(chosen(target, known, request).nodes) for request in (READ, WRITE)] == ["c b", "a b"]


@pytest.mark.parametrize("fallback", ["wait", "error"])
def test_a_read_that_must_not_fall_back_is_told_why_the_primary_is_left_out(fallback: Fallback) -> None:
    route = chosen(make_target(*CLUSTER, fallback=fallback), {P: up(PRIMARY)})
    assert route.refused == {CLUSTER[0]: f"is the primary, and read.fallback is '{fallback}'"}
    assert hosts(route.nodes) == "r1 r2 r3"


@pytest.mark.parametrize(
    ("role", "read_only", "fallback", "expected"),
    [
        (PRIMARY, False, "error", None),
        (REPLICA, False, "primary", "is a replica"),
        (None, False, "primary", None),
        (REPLICA, True, "error", None),
        (None, True, "error", None),
        (PRIMARY, True, "primary", None),
        (PRIMARY, True, "wait", "is the primary, and read.fallback is 'wait'"),
    ],
)
def test_what_a_role_is_not_good_for(
    role: Role | None, read_only: bool, fallback: Fallback, expected: str | None
) -> None:
    assert role_mismatch(make_target(fallback=fallback).cluster, role, read_only=read_only) == expected


def test_a_refused_login_leaves_other_nodes_of_the_server_in_use() -> None:
    refused = make_node("db", REPLICA)
    other = Node(refused.server, (("dbname", "other"),), REPLICA)
    health: Health = {refused.server: up(REPLICA), refused: down("no such role")}
    assert [chosen(make_target(node), health).ready for node in (refused, other)] == [0, 1]


def test_what_an_undeclared_pooler_is_good_for() -> None:
    (primary, replica, other), cluster = CLUSTER[:3], make_target(*CLUSTER[:3])
    health: dict[Server | Node | NodeUse, State] = {
        node.server: up(PRIMARY if node is primary else REPLICA) for node in CLUSTER[:3]
    }
    health[replica.server] = replace(health[replica.server], undeclared_pooler=True)
    assert chosen(cluster, health).best == 2
    for session in (cluster._replace(shared=True), cluster._replace(startup=(("app.tenant", "acme"),))):
        route = chosen(session, health)
        assert (route.nodes[: route.ready], route.nodes[-1]) == ((other, primary), replica)
        assert 'set pooler = "transaction" on the node' in route.notes[replica]
        for node in (primary, other):
            health[node.server] = replace(health[node.server], undeclared_pooler=True)
        for request in (READ, WRITE):
            route = chosen(session, health, request)
            assert (route.ready, route.pending) == (0, False)  # nobody waits for what does not change
        for node in (primary, other):
            health[node.server] = replace(health[node.server], undeclared_pooler=False)


def test_where_no_node_is_allowed_the_route_says_so() -> None:
    route = chosen(make_target(CLUSTER[1]), {R1: up(REPLICA)}, WRITE, turn=0.5)
    assert (route.nodes, route.best) == ((), 0)
    assert repr(route).splitlines() == [
        "Route to v2 for writing",
        "  -  app@r1:5432/app  left out: is a replica",
        "  no node can serve it now",
    ]


def test_a_route_cannot_be_changed() -> None:
    route = chosen(make_target(*CLUSTER), {}, WRITE)
    for told in (route.notes, route.refused):
        with pytest.raises(TypeError, match="does not support item assignment"):
            told[CLUSTER[0]] = ""  # type: ignore[index]
    with pytest.raises(AttributeError):
        route.best = 9  # type: ignore[misc]


def test_standings_say_what_changes_them_and_nothing_else() -> None:
    cluster = make_target(*CLUSTER).cluster
    health: Health = {P: up(PRIMARY), R1: up(REPLICA, banned_until=NOW + 1.0), R2: down("a")}
    found = standings(cluster, health, READ, now=NOW)
    assert [standing.tier for standing in found.values()] == [Tier.FALLBACK, Tier.BANNED, Tier.DOWN, Tier.UNPROBED]
    assert list(found) == list(CLUSTER)
    assert standings(cluster, {**health, R2: down("b")}, READ, now=NOW) == found
    assert standings(cluster, health, READ, now=NOW + 1.0) != found


# Fenced


def test_a_fenced_node_serves_nothing() -> None:
    health: Health = {P: up(PRIMARY), R1: replace(up(PRIMARY), timeline=2), R2: replace(up(REPLICA), timeline=2)}
    reason = "fenced: it is a primary on timeline 1, and r1:5432 is on the later timeline 2"
    for request, order in [(READ, "r2 r1 r3"), (WRITE, "r1 r3")]:
        route = chosen(make_target(*CLUSTER), health, request)
        assert hosts(route.nodes) == order
        assert route.refused[CLUSTER[0]] == reason


def test_the_memory_of_a_timeline_survives_its_servers_going_down() -> None:
    target = make_target(*CLUSTER)
    health: Health = {P: up(PRIMARY), R1: replace(down(role=PRIMARY), timeline=2)}
    assert chosen(target, health, WRITE).ready == 0
    assert chosen(target, health, WRITE).pending


def test_a_primary_that_refuses_writes_is_waited_for_and_read_from() -> None:
    target = make_target(*CLUSTER[:2])
    by_server: Health = {P: replace(up(PRIMARY), refuses_writes=True), R1: up(REPLICA)}
    by_login: Health = {
        P: up(PRIMARY),
        R1: up(REPLICA),
        NodeUse(CLUSTER[0], read_only=False): replace(down("on"), refuses_writes=True),
    }
    for health in (by_server, by_login):
        route = chosen(target, health, WRITE)
        assert (hosts(route.nodes), route.ready, route.pending) == ("p", 0, True)
        assert route.notes[CLUSTER[0]] == "primary, up, refuses writes: default_transaction_read_only is on"
        assert hosts(chosen(target, {**health, R1: down()}).nodes) == "p r1"
    route = chosen(target, {**by_server, P: replace(down(role=PRIMARY), refuses_writes=True)}, WRITE)
    assert route.notes[CLUSTER[0]] == "primary, down: Connection refused"


@pytest.mark.parametrize("read_only", [True, False])
def test_a_login_that_is_refused_for_one_use_is_there_for_the_other(read_only: bool) -> None:
    target = make_target(CLUSTER[0])
    health: Health = {P: up(PRIMARY), NodeUse(CLUSTER[0], read_only): down("no such option")}
    one, other = (chosen(target, health, Request(use)) for use in (read_only, not read_only))
    assert (one.ready, one.pending, other.ready) == (0, False, 1)
    assert one.notes[CLUSTER[0]] == "primary, login refused: no such option"


@pytest.mark.parametrize("limits", [{"max_lag": 1.0}, {"max_lag_bytes": 1}, {}])
def test_where_several_servers_answer_what_has_to_be_fresh_is_asked_for(limits: dict[str, Any]) -> None:
    health: Health = {P: up(PRIMARY), R1: replace(up(REPLICA), several_servers=True), R2: up(REPLICA)}
    target = make_target(*CLUSTER[:3], **limits)
    route = chosen(target, health)
    assert (hosts(route.nodes), route.best) == (("r2 r1 p", 1) if limits else ("r1 r2 p", 2))
    assert hosts([*route.ask]) == ("r1" if limits else "")
    assert "several servers answer at this address" in route.notes[CLUSTER[1]]
    route = chosen(target, health, Request(read_only=True, after=Position(SYSTEM, 1, 1)))
    assert hosts([*route.ask]) == "r1"
    assert (
        hosts(chosen(target, {P: up(PRIMARY), R1: health[R1]}, Request(read_only=True, avoid=CLUSTER[1])).nodes)
        == "p r1 r2"
    )


def test_a_node_of_another_system_serves_nothing() -> None:
    health: Health = {
        P: up(PRIMARY),
        R1: replace(up(REPLICA), system=8),
        R2: replace(up(PRIMARY), timeline=9, system=8),
    }
    for request, order in [(READ, "p r3"), (WRITE, "p r3")]:
        route = chosen(make_target(*CLUSTER), health, request)
        assert hosts(route.nodes) == order
        reason = "is of another system (8) than p:5432 (7), the configured primary: its data are not the version's"
        assert [route.refused[node] for node in CLUSTER[1:3]] == [reason] * 2


# Lag


@pytest.mark.parametrize(
    ("limits", "max_lag", "lag", "expected"),
    [
        ({}, None, None, True),
        ({}, None, Lag(10**12, 9999.0), True),
        ({"max_lag": 2.0}, None, None, False),
        ({"max_lag": 2.0}, None, Lag(None, 2.0), True),
        ({"max_lag": 2.0}, None, Lag(0, None), False),
        ({"max_lag": 2.0}, None, Lag(5, 2.01), False),
        ({"max_lag": 2.0}, 3.0, Lag(5, 2.01), True),
        ({"max_lag": 2.0}, 0.0, Lag(0, 0.0), True),
        ({"max_lag": 2.0}, 0.0, Lag(5, 0.01), False),
        ({}, 1.0, Lag(5, 1.01), False),
        ({}, 1.0, None, False),
        ({"max_lag_bytes": 100}, None, Lag(100, None), True),
        ({"max_lag_bytes": 100}, None, Lag(101, 0.0), False),
        ({"max_lag_bytes": 100}, None, Lag(None, 0.0), False),
        ({"max_lag_bytes": 100}, None, None, False),
        ({"max_lag_bytes": 100}, 1.0, Lag(100, 1.01), False),
        ({"max_lag_bytes": 100, "max_lag": 1.0}, None, Lag(100, 1.0), True),
        ({"max_lag_bytes": 0}, None, Lag(0, None), True),
        ({"max_lag_bytes": 0}, None, Lag(1, 0.0), False),
    ],
)
def test_a_replica_is_fresh_within_each_limit_and_unknown_is_not_fresh(
    limits: dict[str, Any], max_lag: float | None, lag: Lag | None, expected: bool
) -> None:
    assert fresh(ReadPolicy(**limits), lag, max_lag) is expected


def behind(seconds: float, position: int) -> State:
    return replace(up(REPLICA), position=position, replay_age=seconds)


LAGGING: Health = {
    P: replace(up(PRIMARY), history=((NOW - 9.0, 500), (NOW - 3.0, 900), (NOW, 1000))),
    R1: behind(3.0, 900),
    R2: up(REPLICA),
    R3: behind(9.0, 500),
}


@pytest.mark.parametrize(
    ("policy", "max_lag", "order", "best", "left_out"),
    [
        ({}, None, "r1 r2 r3 p", 3, ""),
        ({"max_lag": 5.0}, None, "r1 r2 p", 2, "r3"),
        ({}, 5.0, "r1 r2 p", 2, "r3"),
        ({"max_lag": 5.0}, 1.0, "r2 p", 1, "r1 r3"),
        ({"max_lag": 5.0}, 10.0, "r1 r2 r3 p", 3, ""),
        ({"max_lag_bytes": 99}, None, "r2 p", 1, "r1 r3"),
        ({"max_lag_bytes": 100}, None, "r1 r2 p", 2, "r3"),
        ({"max_lag": 5.0, "max_lag_bytes": 99}, None, "r2 p", 1, "r1 r3"),
        ({"max_lag": 1.0, "allow_stale": True}, None, "r2 p r1 r3", 1, ""),
        ({"max_lag": 1.0, "allow_stale": True, "fallback": "wait"}, None, "r2 r1 r3", 1, "p"),
        ({"max_lag": 1.0, "fallback": "error"}, None, "r2", 1, "p r1 r3"),
    ],
)
def test_fresh_replicas_come_first_then_the_primary_then_stale_ones(
    policy: dict[str, Any], max_lag: float | None, order: str, best: int, left_out: str
) -> None:
    route = chosen(make_target(*CLUSTER, **policy), LAGGING, Request(read_only=True, max_lag=max_lag))
    assert (hosts(route.nodes), route.best, hosts(tuple(route.refused))) == (order, best, left_out)
    assert route.ready == len(route.nodes)


def test_what_is_stale_says_how_far() -> None:
    target = make_target(*CLUSTER, max_lag=1.0)
    assert list(chosen(target, LAGGING).refused.values()) == [
        "is stale: 3.0 s and 100 bytes behind",
        "is stale: 9.0 s and 500 bytes behind",
    ]
    unknown: Health = {R1: behind(7.0, 900)}
    assert chosen(target, unknown).refused[CLUSTER[1]] == "is stale: by how much is not known"
    stale = chosen(make_target(*CLUSTER, max_lag=1.0, allow_stale=True), LAGGING)
    assert stale.notes[CLUSTER[1]] == "replica, up, stale: 3.0 s and 100 bytes behind"


def test_a_write_does_not_care_for_lag() -> None:
    target = make_target(*CLUSTER, max_lag=1.0)
    assert chosen(target, LAGGING, Request(read_only=False, max_lag=0.0)) == chosen(target, LAGGING, WRITE)


def see(health: Health, *seen: Observation, now: float) -> Health:
    for one in seen:
        health = observe(health, one, now=now, jitter=0.0, policy=POLICY)
    return health


def looked(node: Node, role: Role, position: int, timeline: int = 1) -> ProbeResult:
    return ProbeResult(node, role, 180000, position, timeline, SYSTEM, None if role is PRIMARY else 0.0)


def test_a_replica_behind_its_max_lag_bytes_stays_stale_when_the_primary_is_stopped() -> None:
    target, (primary, replica) = make_target(*CLUSTER[:2], max_lag_bytes=50), CLUSTER[:2]
    health = see({}, looked(primary, PRIMARY, 1000), looked(replica, REPLICA, 900), now=1.0)
    assert chosen(target, health, now=1.0).nodes == (primary,)
    health = see(health, AttemptFailed(primary, "Connection refused", answered=False), now=1.5)
    for now in range(2, 1000):
        health = see(health, looked(replica, REPLICA, 900), now=float(now))
        route = chosen(target, health, now=float(now))
        assert (route.nodes, route.ready, route.pending) == ((primary,), 0, True)
    # It does not become fresh by being promoted, but the primary, until which nobody is.
    health = see(health, looked(replica, PRIMARY, 950, 2), now=1000.0)
    assert chosen(target, health, now=1000.0).nodes == (replica,)


def test_of_an_idle_primary_no_replica_is_ever_stale_but_one_that_is_not_looked_at_is() -> None:
    target, (primary, replica) = make_target(*CLUSTER[:2], max_lag=0.5, max_lag_bytes=0), CLUSTER[:2]
    health: Health = {}
    for now in range(500):
        health = see(health, looked(primary, PRIMARY, 1000), now=float(now))
        health = see(health, looked(replica, REPLICA, 1000), now=now + 0.9)
        assert chosen(target, health, now=now + 0.9).nodes == (replica, primary)
    assert chosen(target, health, now=499.9 + 2.6).nodes == (primary,)


# Reading what was written

AT_END = Position(SYSTEM, 1, 1000)


@pytest.mark.parametrize(
    ("after", "order", "best", "ask", "left_out"),
    [
        (Position(SYSTEM, 1, 500), "r1 r2 r3 p", 3, "", ""),
        (Position(SYSTEM, 1, 501), "r1 r2 r3 p", 2, "r3", ""),
        (Position(SYSTEM, 1, 901), "r2 r1 r3 p", 1, "r1 r3", ""),
        (AT_END, "r2 r1 r3 p", 1, "r1 r3", ""),
        (Position(SYSTEM, 1, 1001), "r1 r2 r3 p", 3, "r1 r2 r3", ""),  # written since the last look
        (Position(0, 1, 1000), "r2 r1 r3 p", 1, "r1 r3", ""),  # made before the system was known
        # of a later timeline: a replica may follow it, a primary cannot
        (Position(SYSTEM, 2, 1), "r1 r2 r3", 3, "r1 r2 r3", "p"),
        (Position(SYSTEM + 1, 1, 1), "", 0, "", "p r1 r2 r3"),
    ],
)
def test_a_replica_that_is_not_known_to_have_replayed_it_is_asked(
    after: Position, order: str, best: int, ask: str, left_out: str
) -> None:
    route = chosen(make_target(*CLUSTER), LAGGING, Request(read_only=True, after=after))
    assert (hosts(route.nodes), route.best, hosts(tuple(route.refused))) == (order, best, left_out)
    assert hosts([node for node in CLUSTER if node in route.ask]) == ask
    assert route.ready == len(route.nodes)


def test_what_was_written_before_a_failover_is_read_from_the_primary() -> None:
    health = {server: replace(state, timeline=2) for server, state in LAGGING.items()}
    route = chosen(make_target(*CLUSTER), health, Request(read_only=True, after=Position(SYSTEM, 1, 10)))
    assert (hosts(route.nodes), route.ask) == ("p", frozenset())
    assert set(route.refused.values()) == {"is on timeline 2, but the required position is on timeline 1"}


def test_of_another_system_nothing_is_compared() -> None:
    route = chosen(make_target(*CLUSTER[:2]), LAGGING, Request(read_only=True, after=Position(8, 1, 1)))
    assert set(route.refused.values()) == {"is of another system than the required position"}


def test_a_replica_that_does_not_tell_its_timeline_serves_only_who_has_nothing_to_see() -> None:
    health = {**LAGGING, R2: replace(up(REPLICA), timeline=0)}
    route = chosen(make_target(*CLUSTER), health, Request(read_only=True, after=AT_END))
    assert route.refused == {CLUSTER[2]: "does not report its timeline: GRANT pg_read_all_stats to its login"}
    assert CLUSTER[2] in chosen(make_target(*CLUSTER), health).nodes


def test_what_may_have_been_written_nobody_knows_where_is_read_from_the_primary() -> None:
    request = Request(read_only=True, after=Position(SYSTEM, 1, UNSURE))
    route = chosen(make_target(*CLUSTER), LAGGING, request)
    assert (hosts(route.nodes), route.ask, hosts(tuple(route.refused))) == ("p", frozenset(), "r1 r2 r3")


def test_to_be_fresh_and_to_have_replayed_it_are_both_asked_for() -> None:
    request = Request(read_only=True, max_lag=5.0, after=AT_END)
    route = chosen(make_target(*CLUSTER), LAGGING, request)
    assert (hosts(route.nodes), hosts(tuple(route.refused))) == ("r2 r1 p", "r3")
    route = chosen(make_target(*CLUSTER, allow_stale=True), LAGGING, request)
    assert hosts(route.nodes) == "r2 r1 p r3"
    assert (
        route.notes[CLUSTER[3]]
        == "replica, up, stale: 9.0 s and 500 bytes behind, will be asked whether it has replayed the required position"
    )


def test_one_that_failed_lately_is_asked_last() -> None:
    health = {**LAGGING, R1: replace(behind(3.0, 900), banned_until=NOW + 1.0)}
    route = chosen(make_target(*CLUSTER), health, Request(read_only=True, after=AT_END, avoid=CLUSTER[2]))
    assert hosts(route.nodes) == "r3 p r2 r1"
    assert route.best == 1
    assert (
        route.notes[CLUSTER[1]]
        == "replica, up, failed recently, will be asked whether it has replayed the required position"
    )


def test_a_write_has_nothing_to_see() -> None:
    target = make_target(*CLUSTER)
    assert chosen(target, LAGGING, Request(read_only=False, after=Position(9, 9, 9))) == chosen(target, LAGGING, WRITE)


@pytest.mark.parametrize(
    ("avoid", "order", "best"), [(None, "r1 r2 r3 p", 3), (1, "r2 r3 p r1", 2), (0, "r1 r2 r3 p", 3)]
)
def test_a_node_to_avoid_comes_last(avoid: int | None, order: str, best: int) -> None:
    node = None if avoid is None else CLUSTER[avoid]
    route = chosen(make_target(*CLUSTER), LAGGING, Request(read_only=True, avoid=node))
    assert (hosts(route.nodes), route.best, route.ready) == (order, best, 4)


def test_a_node_to_avoid_serves_where_there_is_no_other() -> None:
    target = make_target(CLUSTER[1])
    assert chosen(target, {R1: up(REPLICA)}, Request(read_only=True, avoid=CLUSTER[1])).ready == 1


# Whether to wait

LOGIN = down("no such role")


@pytest.mark.parametrize(
    ("health", "read", "write"),
    [
        # fallback: primary, wait, error
        ({}, (True, True, True), True),
        ({P: up(PRIMARY), R1: up(REPLICA)}, (True, True, False), True),
        ({P: down(), R1: down()}, (True, True, False), True),
        ({R1: down()}, (True, True, True), True),
        ({P: up(REPLICA), R1: up(REPLICA)}, (True, True, False), True),
        # nothing is missing but a login
        ({P: up(PRIMARY), R1: up(REPLICA), CLUSTER[0]: LOGIN, CLUSTER[1]: LOGIN}, (False, False, False), False),
        ({P: up(PRIMARY), R1: up(REPLICA), CLUSTER[0]: LOGIN}, (False, True, False), False),
        ({P: up(PRIMARY), R1: up(REPLICA), CLUSTER[1]: LOGIN}, (False, False, False), True),
        # … and a server that may come back, as what is missing
        ({P: up(PRIMARY), R1: down(role=REPLICA), CLUSTER[0]: LOGIN}, (True, True, False), True),
        ({P: down(role=PRIMARY), R1: up(REPLICA), CLUSTER[1]: LOGIN}, (True, True, False), True),
    ],
)
def test_waiting_makes_sense_unless_only_a_login_is_missing(
    health: Health, read: tuple[bool, bool, bool], write: bool
) -> None:
    nodes = CLUSTER[:2]
    assert tuple(chosen(make_target(*nodes, fallback=fallback), health).pending for fallback in FALLBACKS) == read
    assert chosen(make_target(*nodes), health, WRITE).pending is write


def test_a_replica_that_is_stale_may_catch_up_though_the_primarys_login_is_refused() -> None:
    health: Health = {P: LAGGING[P], R1: LAGGING[R1], CLUSTER[0]: LOGIN}
    route = chosen(make_target(*CLUSTER[:2], max_lag=1.0), health)
    assert (route.ready, route.pending) == (0, True)
    assert not chosen(make_target(*CLUSTER[:2], max_lag=1.0), health, WRITE).pending


def test_a_replica_that_was_asked_may_catch_up_though_the_others_login_is_refused() -> None:
    health: Health = {**LAGGING, CLUSTER[2]: LOGIN}
    target = make_target(*CLUSTER[:3], fallback="wait")
    route = chosen(target, health, Request(read_only=True, after=AT_END))
    assert (hosts(route.nodes), route.ready, route.pending) == ("r1 r2", 1, True)
    assert not chosen(target, health).pending


# Loads and ties

REPLICAS = tuple(make_node(host, REPLICA, weight) for host, weight in [("a", 1.0), ("b", 2.0), ("c", 5.0)])
ALL_UP: Health = {node.server: up(REPLICA) for node in REPLICAS}


@pytest.mark.parametrize(
    ("loads", "expected"),
    [((3, 2, 1), "c b a"), ((1, 3, 4), "c a b"), ((1, 1, 6), "b a c"), ((0, 1, 1), "a c b")],
)
def test_the_load_counts_relative_to_the_weight(loads: tuple[float, ...], expected: str) -> None:
    load = dict(zip(REPLICAS, loads, strict=True)).__getitem__
    for turn in (0.0, 0.3, 0.9):
        assert hosts(choose(make_target(*REPLICAS), ALL_UP, READ, now=NOW, tie_break=turn, load=load).nodes) == expected


OTHERS = (make_node("p", PRIMARY, 3.0), make_node("dead", REPLICA, 7.0), make_node("busy", REPLICA, 2.0))


@pytest.mark.parametrize("position", range(4))
def test_equal_loads_are_spread_by_weight_whoever_else_stands_between(position: int) -> None:
    target = make_target(*REPLICAS[:position], *OTHERS, *REPLICAS[position:])
    p, dead, busy = (node.server for node in OTHERS)
    known: Health = {**ALL_UP, p: up(PRIMARY), dead: down(), busy: up(REPLICA)}

    def load(node: Node) -> float:
        return float(node.server.host == "busy")

    first = Counter(
        choose(target, known, READ, now=NOW, tie_break=(k + 0.5) / 80, load=load).nodes[0] for k in range(80)
    )
    assert [first[node] for node in REPLICAS] == [10, 20, 50]


# Reading a route


def test_a_route_reads_as_one_line_a_node() -> None:
    health: Health = {
        P: up(PRIMARY),
        R1: down("Connection refused"),
        R2: up(REPLICA),
        R3: up(REPLICA),
        CLUSTER[3]: down('FATAL: role "app" does not exist'),
    }
    target = make_target(*CLUSTER, make_node("::1"), requested="live")
    assert repr(chosen(target, health)).splitlines() == [
        "Route to v2 (alias live) for reading",
        "  1. app@r2:5432/app  replica, up",
        "  2. app@p:5432/app  primary, up",
        "  3. app@[::1]:5432/app  role unknown, not probed yet",
        "  4. app@r1:5432/app  replica, down: Connection refused",
        '  5. app@r3:5432/app  replica, login refused: FATAL: role "app" does not exist',
    ]
    assert repr(chosen(make_target(*CLUSTER[:2]), health, WRITE)).splitlines() == [
        "Route to v2 for writing",
        "  1. app@p:5432/app  primary, up",
        "  -  app@r1:5432/app  left out: is a replica",
    ]


def test_a_route_shows_no_secret() -> None:
    params = (("dbname", "app"), ("user", "app"))
    nodes = [Node(Server(role, 5432), params, role, secrets=Secrets((("password", "hunter2"),))) for role in Role]
    for request in (READ, WRITE):
        route = chosen(make_target(*nodes), {}, request)
        assert "hunter" not in f"{route} {route!r} {route.nodes} {route.refused} {route.target}"


# Draws

shares = st.lists(st.integers(1, 9), min_size=2, max_size=8)
any_weights = st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=8)
turns = st.floats(0.0, 1.0, exclude_max=True)


@st.composite
def turns_at_an_edge(draw: st.DrawFn) -> tuple[list[float], float]:
    """Weights, and a turn as near as can be to where one place ends and the next one starts."""
    chosen = draw(any_weights)
    totals = cumulate(chosen)
    turn = draw(st.sampled_from(totals)) / totals[-1]
    return chosen, draw(st.sampled_from([turn, math.nextafter(turn, 0.0), math.nextafter(turn, 1.0)]))


@relaxed
@given(st.one_of(st.tuples(any_weights, turns), turns_at_an_edge()))
@example(([0.7, 0.7, 0.3, 2.0], math.nextafter(1.0, 0.0)))  # where both of draw_two's would round to the last place
@example(([1.0, 1.0, 1e-9], math.nextafter(1.0, 0.0)))
def test_any_draw_gives_places_and_draw_two_different_ones(given_: tuple[list[float], float]) -> None:
    chosen, turn = given_
    assume(turn < 1.0)
    totals, places = cumulate(chosen), range(len(chosen))
    one, two = draw_two(totals, turn)
    assert one in places
    assert two in places
    assert one != two
    assert draw(totals, turn) == one


@pytest.mark.parametrize(("turn", "place"), [(0.0, 0), (0.249, 0), (0.25, 1), (0.749, 1), (0.75, 2), (1.0, 2)])
def test_each_place_owns_the_turns_of_its_weight(turn: float, place: int) -> None:
    assert cumulate([1.0, 2.0, 1.0]) == (1.0, 3.0, 4.0)
    assert draw((1.0, 3.0, 4.0), turn) == place


@relaxed
@given(shares)
def test_each_place_is_drawn_as_often_as_its_weight_says(weights: list[int]) -> None:
    count = 10 * sum(weights)
    drawn = Counter(draw(cumulate(weights), (k + 0.5) / count) for k in range(count))
    assert [drawn[place] for place in range(len(weights))] == [10 * weight for weight in weights]


@settings(relaxed, max_examples=examples(40))
@given(shares)
def test_two_are_drawn_as_often_as_one_after_the_other_without_putting_back(weights: list[int]) -> None:
    count, total, totals = 5000, sum(weights), cumulate(weights)
    drawn = Counter(draw_two(totals, (k + 0.5) / count) for k in range(count))
    for one, two in product(range(len(weights)), repeat=2):
        likely = Fraction(one != two) * Fraction(weights[one], total) * Fraction(weights[two], total - weights[one])
        # The turns of one pair are one interval, and the grid meets an interval to within one point.
        assert abs(drawn[one, two] - likely * count) <= 1


@relaxed
@given(shares)
def test_pairs_are_different_places_the_first_as_often_as_its_weight_says(weights: list[int]) -> None:
    laid_out = pairs(weights)
    first = Counter(one for one, _ in laid_out)
    assert len(laid_out) == PAIRS
    assert all(one != two for one, two in laid_out)
    for place, weight in enumerate(weights):
        assert abs(first[place] - Fraction(PAIRS * weight, sum(weights))) <= 1


def test_a_random_byte_picks_one_of_the_pairs() -> None:
    assert PAIRS == 256


@pytest.mark.parametrize(
    ("weights", "seconds"),
    [([1, 1, 1], {(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)}), ([3, 1], {(0, 1), (1, 0)})],
)
def test_every_pair_occurs(weights: list[float], seconds: set[tuple[int, int]]) -> None:
    assert set(pairs(weights)) == seconds


def test_weights_of_1_and_100_are_told_apart() -> None:
    first = Counter(one for one, _ in pairs([1.0, 100.0]))
    assert 2 <= first[0] <= 3


@pytest.mark.parametrize("count", range(1, 9))
def test_equal_weights_take_turns_in_order(count: int) -> None:
    assert rotation([0.3] * count) == tuple(range(count))


@pytest.mark.parametrize(
    ("weights", "turns"),
    [
        ([1, 2], [1, 2]),
        ([1, 3, 1], [1, 3, 1]),
        ([0.5, 2], [1, 4]),
        ([10, 40, 10], [1, 4, 1]),
        ([2, 3], [2, 3]),
        ([3, 4, 5], [3, 4, 5]),
        ([7], [1]),
        ([1, 1000], [1, 120]),
        ([1e-308, 1e308], [1, 120]),
    ],
)
def test_a_round_has_turns_in_proportion(weights: list[float], turns: list[int]) -> None:
    counted = Counter(rotation(weights))
    assert [counted[place] for place in range(len(weights))] == turns


@relaxed
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8))
def test_every_place_gets_a_turn_and_a_round_has_an_end(weights: list[float]) -> None:
    counted = Counter(rotation(weights))
    assert set(counted) == set(range(len(weights)))
    assert max(counted.values()) <= 120


@relaxed
@given(shares)
def test_a_heavier_place_has_no_fewer_turns(weights: list[int]) -> None:
    counted = Counter(rotation(weights))
    for one, two in product(range(len(weights)), repeat=2):
        assert weights[one] > weights[two] or counted[one] <= counted[two]


@relaxed
@given(shares)
def test_no_place_waits_longer_than_it_takes_the_others_to_have_their_share(weights: list[int]) -> None:
    once = rotation(weights)
    counted = Counter(once)
    for place, own in counted.items():
        at = [k for k, turn in enumerate(once * 2) if turn == place]
        longest = max(later - sooner for sooner, later in pairwise(at))
        # Between two of its turns, every other place has its share of that time, rounded up.
        assert longest <= sum(math.ceil(other / own) for other in counted.values())


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1, 1, 3], "0 2 1 2 2"), ([1, 1, 4], "0 2 2 1 2 2"), ([1, 1, 1, 1, 1, 6], "0 5 1 5 2 5 3 5 4 5 5")],
)
def test_light_places_are_spread_between_the_turns_of_a_heavy_one(weights: list[float], expected: str) -> None:
    assert " ".join(map(str, rotation(weights))) == expected
