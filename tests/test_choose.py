"""Which node serves a request: the order of the nodes, and the draws that spread requests over equal ones."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import groupby, pairwise, product
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from router.choose import PAIRS, choose, cumulate, draw, draw_two, pairs, rotation
from router.health import State, role_of, state_of
from router.topology import Cluster, Node, ReadPolicy, Role, Secrets, Server, Target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from router.choose import Route
    from router.health import Health
    from router.topology import Fallback

# A machine as busy as CI's now and then stops for longer than hypothesis' deadline.
relaxed = settings(deadline=None)

PRIMARY, REPLICA = Role.PRIMARY, Role.REPLICA
FALLBACKS: tuple[Fallback, ...] = ("primary", "wait", "error")


def make_node(host: str, role: Role | None = None, weight: float = 1.0) -> Node:
    return Node(Server(host, 5432), (("dbname", "app"), ("user", "app")), role, weight)


def make_target(*nodes: Node, fallback: Fallback = "primary", requested: str = "v2") -> Target:
    return Target(requested, Cluster("v2", nodes, read=ReadPolicy(fallback=fallback)))


def up(role: Role) -> State:
    return State(up=True, role=role, server_version=180000)


def down(reason: str = "Connection refused") -> State:
    return State(up=False, failures=1, retry_at=10.0, reason=reason)


def hosts(nodes: Sequence[Node]) -> str:
    return " ".join(node.server.host for node in nodes)


class Case(NamedTuple):
    """The arguments of one choice."""

    target: Target
    health: Health
    read_only: bool
    turn: float
    loads: Mapping[Node, float]
    prefer: Node | None

    def choose(self) -> Route:
        return choose(
            self.target,
            self.health,
            read_only=self.read_only,
            turn=self.turn,
            load=self.loads.__getitem__,
            prefer=self.prefer,
        )

    def standing(self, node: Node) -> str:
        """What a node is to this request: one of ``ORDER``, or forbidden."""
        known, role = state_of(self.health, node).up, role_of(self.health, node)
        if self.read_only and role is PRIMARY and self.target.cluster.read.fallback != "primary":
            return "forbidden"
        if not self.read_only and role is REPLICA:
            return "forbidden"
        if known is False:
            return "down"
        fits = role is None or role is (REPLICA if self.read_only else PRIMARY)
        if known:
            return "up" if fits else "fallback"
        return "untried" if fits else "untried fallback"

    def standings(self, route: Route) -> list[str]:
        return [self.standing(node) for node in route.nodes]


ORDER = ["up", "untried", "fallback", "untried fallback", "down"]

weights = st.floats(0.01, 100.0)
servers_states = st.one_of(
    st.none(), st.just(State()), st.builds(up, st.sampled_from(Role)), st.builds(down, st.sampled_from(["a", "b"]))
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 6))
    roles = st.none() | st.sampled_from(Role)
    nodes = [make_node(f"db{n}", draw(roles), draw(weights)) for n in range(count)]
    health: dict[Server | Node, State] = {}
    for node in nodes:
        if (state := draw(servers_states)) is not None:
            health[node.server] = state
        if draw(st.integers(0, 4)) == 0:
            health[node] = down("password authentication failed")
    stranger = make_node("elsewhere")
    return Case(
        make_target(*nodes, fallback=draw(st.sampled_from(FALLBACKS))),
        MappingProxyType(health),
        draw(st.booleans()),
        draw(st.floats(0.0, 1.0)),
        MappingProxyType({node: float(draw(st.integers(0, 3))) for node in nodes}),
        draw(st.sampled_from([None, stranger, *nodes])),
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
    assert route.best == (runs[0][1] if runs and runs[0][0] in {"up", "fallback"} else 0)


@relaxed
@given(cases())
def test_within_a_tier_the_preferred_node_comes_first_then_the_least_busy_for_its_weight(case: Case) -> None:
    route = case.choose()
    ranks = [(ORDER.index(case.standing(n)), n != case.prefer, case.loads[n] / n.weight) for n in route.nodes]
    assert ranks == sorted(ranks)


@relaxed
@given(cases())
def test_preferring_a_node_moves_nothing_else(case: Case) -> None:
    route, plain = case.choose(), case._replace(prefer=None).choose()
    others = [node for node in plain.nodes if node != case.prefer]
    assert [node for node in route.nodes if node != case.prefer] == others
    assert (route.best, route.notes, route.refused) == (plain.best, plain.notes, plain.refused)


@relaxed
@given(cases())
def test_equal_arguments_give_equal_routes(case: Case) -> None:
    before = (dict(case.health), dict(case.loads))
    first = case.choose()
    assert case._replace(health=dict(case.health)).choose() == first
    assert before == (case.health, case.loads)
    assert first.target is case.target
    assert first.read_only is case.read_only


CLUSTER = (make_node("p", PRIMARY), make_node("r1", REPLICA), make_node("r2", REPLICA), make_node("r3", REPLICA))
P, R1, R2, R3 = (node.server for node in CLUSTER)


@pytest.mark.parametrize(
    ("health", "reading", "writing", "best"),
    [
        ({}, "r1 r2 r3 p", "p", (0, 0)),
        ({P: up(PRIMARY)}, "r1 r2 r3 p", "p", (0, 1)),
        ({R2: up(REPLICA)}, "r2 r1 r3 p", "p", (1, 0)),
        ({R2: up(REPLICA), R3: up(REPLICA)}, "r2 r3 r1 p", "p", (2, 0)),
        ({R1: down()}, "r2 r3 p r1", "p", (0, 0)),
        ({R1: down(), R2: down(), R3: down()}, "p r1 r2 r3", "p", (0, 0)),
        ({P: up(PRIMARY), R1: down(), R2: down(), R3: down()}, "p r1 r2 r3", "p", (1, 1)),
        ({P: down(), R1: down(), R2: down(), R3: down()}, "p r1 r2 r3", "p", (0, 0)),
        # after a failover, what the servers say counts, not what is configured
        ({P: up(REPLICA), R1: up(PRIMARY)}, "p r2 r3 r1", "r1", (1, 1)),
        ({P: down(), R1: up(PRIMARY)}, "r2 r3 r1 p", "r1 p", (0, 1)),
        ({P: up(PRIMARY), R1: up(PRIMARY)}, "r2 r3 p r1", "p r1", (0, 2)),
        # only the login of one node is refused
        ({R1: up(REPLICA), R2: up(REPLICA), CLUSTER[1]: down("no such role")}, "r2 r3 p r1", "p", (1, 0)),
    ],
)
def test_the_order_for_a_primary_and_three_replicas(
    health: Health, reading: str, writing: str, best: tuple[int, int]
) -> None:
    target = make_target(*CLUSTER)
    routes = [choose(target, health, read_only=read_only, turn=0.0) for read_only in (True, False)]
    assert [hosts(route.nodes) for route in routes] == [reading, writing]
    assert tuple(route.best for route in routes) == best


def test_nodes_of_unknown_role_are_tried_for_either_use_until_they_say_what_they_are() -> None:
    a, b, c = make_node("a"), make_node("b"), make_node("c")
    target = make_target(a, b, c, fallback="error")

    def order(health: Health, *, read_only: bool) -> str:
        return hosts(choose(target, health, read_only=read_only, turn=0.0).nodes)

    assert [order({}, read_only=read_only) for read_only in (True, False)] == ["a b c", "a b c"]
    known: Health = {a.server: up(PRIMARY), c.server: up(REPLICA)}
    assert [order(known, read_only=read_only) for read_only in (True, False)] == ["c b", "a b"]


@pytest.mark.parametrize("fallback", ["wait", "error"])
def test_a_read_that_must_not_fall_back_is_told_why_the_primary_is_left_out(fallback: Fallback) -> None:
    route = choose(make_target(*CLUSTER, fallback=fallback), {P: up(PRIMARY)}, read_only=True, turn=0.0)
    assert route.refused == {CLUSTER[0]: f"is the primary, and read.fallback is '{fallback}'"}
    assert hosts(route.nodes) == "r1 r2 r3"


def test_a_refused_login_leaves_other_nodes_of_the_server_in_use() -> None:
    refused = make_node("db", REPLICA)
    other = Node(refused.server, (("dbname", "other"),), REPLICA)
    health: Health = {refused.server: up(REPLICA), refused: down("no such role")}
    assert choose(make_target(refused), health, read_only=True, turn=0.0).best == 0
    assert choose(make_target(other), health, read_only=True, turn=0.0).best == 1


def test_where_no_node_is_allowed_the_route_says_so() -> None:
    route = choose(make_target(CLUSTER[1]), {R1: up(REPLICA)}, read_only=False, turn=0.5)
    assert (route.nodes, route.best) == ((), 0)
    assert repr(route).splitlines() == [
        "Route to v2 for writing",
        "  -  app@r1:5432/app  left out: is a replica",
        "  no node can serve it now",
    ]


def test_a_route_cannot_be_changed() -> None:
    route = choose(make_target(*CLUSTER), {}, read_only=False, turn=0.0)
    for told in (route.notes, route.refused):
        with pytest.raises(TypeError, match="does not support item assignment"):
            told[CLUSTER[0]] = ""  # type: ignore[index]
    with pytest.raises(AttributeError):
        route.best = 9  # type: ignore[misc]


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
        assert hosts(choose(make_target(*REPLICAS), ALL_UP, read_only=True, turn=turn, load=load).nodes) == expected


OTHERS = (make_node("p", PRIMARY, 3.0), make_node("dead", REPLICA, 7.0), make_node("busy", REPLICA, 2.0))


@pytest.mark.parametrize("health", [ALL_UP, {}], ids=["all up", "none tried"])
@pytest.mark.parametrize("position", range(4))
def test_equal_loads_are_spread_by_weight_whoever_else_stands_between(health: Health, position: int) -> None:
    target = make_target(*REPLICAS[:position], *OTHERS, *REPLICAS[position:])
    known: Health = {**health, OTHERS[1].server: down()}

    def load(node: Node) -> float:
        return float(node.server.host == "busy")

    first = Counter(choose(target, known, read_only=True, turn=(k + 0.5) / 80, load=load).nodes[0] for k in range(80))
    assert [first[node] for node in REPLICAS] == [10, 20, 50]


# Reading a route


def test_a_route_reads_as_one_line_a_node() -> None:
    health: Health = {
        P: up(PRIMARY),
        R1: down("Connection refused"),
        R2: up(REPLICA),
        CLUSTER[3]: down('FATAL: role "app" does not exist'),
    }
    target = make_target(*CLUSTER, make_node("::1"), requested="live")
    assert repr(choose(target, health, read_only=True, turn=0.0)).splitlines() == [
        "Route to v2 (alias live) for reading",
        "  1. app@r2:5432/app  replica, up",
        "  2. app@[::1]:5432/app  role unknown, not tried yet",
        "  3. app@p:5432/app  primary, up",
        "  4. app@r1:5432/app  replica, down: Connection refused",
        '  5. app@r3:5432/app  replica, down: FATAL: role "app" does not exist',
    ]
    assert repr(choose(make_target(*CLUSTER[:2]), health, read_only=False, turn=0.0)).splitlines() == [
        "Route to v2 for writing",
        "  1. app@p:5432/app  primary, up",
        "  -  app@r1:5432/app  left out: is a replica",
    ]


def test_a_route_shows_no_secret() -> None:
    params = (("dbname", "app"), ("user", "app"))
    nodes = [Node(Server(role, 5432), params, role, secrets=Secrets((("password", "hunter2"),))) for role in Role]
    for read_only in (True, False):
        route = choose(make_target(*nodes), {}, read_only=read_only, turn=0.0)
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


@settings(relaxed, max_examples=40)
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
