"""A cluster without a database: servers die, freeze, lag, are promoted and come back; what is chosen stays right.

The machine knows the truth. The core is told only what looks find, some of them late. The invariants compare what it
chooses with what the looks found, by an account of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.core.choose import choose
from router.core.consistency import Position
from router.core.health import observe
from router.core.observations import AttemptFailed, Connected, ProbeResult
from router.core.policies import HealthPolicy, ReadPolicy
from router.core.standing import Request, Tier, standings
from router.core.topology import Cluster, Node, Role, Server, Target
from tests.support import examples

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router.core.choose import Route
    from router.core.health import Health
    from router.core.observations import Observation

PRIMARY, REPLICA = Role.PRIMARY, Role.REPLICA
POLICY = HealthPolicy(interval=1.0, timeout=0.5, ban=4.0, ban_max=30.0)
HORIZON = 2 * POLICY.interval + POLICY.timeout
SYSTEM = 7
COUNT = 3
NODES = tuple(Node(Server(f"db{n}", 5432), (("dbname", "app"),)) for n in range(COUNT))
SIBLINGS = tuple(Node(node.server, (("dbname", "other"),)) for node in NODES)  # of another version

places = st.integers(0, COUNT - 1)


class Record(NamedTuple):
    """A piece of WAL: positions and timelines of two that differ may be the same."""

    serial: int
    timeline: int
    end: int
    at: float


@dataclass
class Machine:
    """What a server really is."""

    log: tuple[Record, ...]
    flushed: int  # how many records of the log a crash leaves
    role: Role
    follows: int
    state: Literal["well", "frozen", "gone"] = "well"
    refuses: bool = False  # the login of the node in NODES
    rebuilt: bool = False
    tells: bool = True  # everybody may ask a replica's timeline, and the system identifier
    skew: float = 0.0  # of its clock, against the primary's

    @property
    def timeline(self) -> int:
        return self.log[-1].timeline


@dataclass(frozen=True)
class Look:
    """What a look found, with the truth at that moment."""

    begun: float
    seen: Observation
    truth: Machine

    @property
    def timeline(self) -> int:
        return self.seen.timeline if isinstance(self.seen, ProbeResult) else 0


@dataclass
class Account:
    """What the looks have told, server by server."""

    looks: dict[int, list[Look]] = field(default_factory=dict)  # that were answered, none overtaken
    away: set[int] = field(default_factory=lambda: set(range(COUNT)))  # down, or nobody has looked since
    refused: set[int] = field(default_factory=set)
    tried: set[int] = field(default_factory=set)  # by a look, or a login
    hinted: bool = False  # the settings name the first one as the primary

    def last(self, place: int) -> Look:
        return self.looks[place][-1]

    def usable(self) -> list[int]:
        return [place for place in range(COUNT) if place not in self.away | self.refused]

    def primary(self) -> int | None:
        """Who said last that it is primary, unless anybody has said since that there is a later timeline."""
        if self.hinted and 0 not in self.tried:
            return None
        latest = max((self.last(place).timeline for place in self.looks), default=0)
        claims = [place for place in self.looks if self.last(place).truth.role is PRIMARY]
        return next((place for place in claims if self.last(place).timeline == latest), None)


class Model(RuleBasedStateMachine):
    """Three servers of one cluster."""

    nodes = NODES

    @initialize(
        fallback=st.sampled_from(["primary", "primary", "wait", "error"]),
        allow_stale=st.booleans(),
        max_lag=st.sampled_from([None, 0.0, 1.0, 4.0]),
        skews=st.lists(st.sampled_from([0.0, 0.0, -30.0, 3.0]), min_size=COUNT, max_size=COUNT),
        tells=st.lists(st.sampled_from([True, True, True, False]), min_size=COUNT, max_size=COUNT),
    )
    def begin(
        self,
        fallback: Literal["primary", "wait", "error"],
        allow_stale: bool,
        max_lag: float | None,
        skews: list[float],
        tells: list[bool],
    ) -> None:
        self.now = 100.0
        self.serial = 0
        self.timelines = 1
        first = (Record(0, 1, 64, self.now),)
        self.machines = [
            Machine(first, 1, REPLICA if place else PRIMARY, 0, skew=skews[place], tells=tells[place])
            for place in range(COUNT)
        ]
        policy = ReadPolicy(fallback=fallback, allow_stale=allow_stale, max_lag=max_lag)
        self.target = Target("v", Cluster("v", self.nodes, read=policy))
        self.read = policy
        self.health: Health = {}
        self.account = Account(hinted=self.nodes[0].role is not None)
        self.under_way: list[tuple[int, Node, Look]] = []
        self.tokens: list[Record] = []
        self.proved: dict[int, int] = {}  # the timeline on which each server was written to

    # The truth

    def append(self, machine: Machine, timeline: int, *, flushed: bool) -> Record:
        self.serial += 1
        record = Record(self.serial, timeline, machine.log[-1].end + 64, self.now)
        machine.log = (*machine.log, record)
        machine.flushed = len(machine.log) if flushed else machine.flushed
        return record

    def streams(self, machine: Machine) -> Machine | None:
        """The primary that a replica gets its WAL from."""
        source = self.machines[machine.follows]
        is_there = source.state == machine.state == "well" and source.role is PRIMARY
        return source if is_there and source.log[: len(machine.log)] == machine.log else None

    @rule(place=places, flushed=st.sampled_from([True, True, True, False]), count=st.integers(1, 3))
    def write(self, place: int, flushed: bool, count: int) -> None:
        machine = self.machines[place]
        if machine.state == "well" and machine.role is PRIMARY:
            for _ in range(count):
                record = self.append(machine, machine.timeline, flushed=flushed)
            if flushed:
                self.tokens.append(record)

    @rule(place=places, count=st.integers(1, 4))
    def replicate(self, place: int, count: int) -> None:
        machine = self.machines[place]
        if machine.role is REPLICA and (source := self.streams(machine)) is not None:
            machine.log = source.log[: max(min(len(machine.log) + count, source.flushed), len(machine.log))]
            machine.flushed = len(machine.log)

    def die(self, place: int) -> None:
        machine = self.machines[place]
        machine.state, machine.log = "gone", machine.log[: machine.flushed]

    @rule(place=places, dies=st.booleans())
    def die_or_freeze(self, place: int, dies: bool) -> None:
        if dies:
            self.die(place)
        elif self.machines[place].state == "well":
            self.machines[place].state = "frozen"

    @rule(place=places)
    def thaw_or_come_back(self, place: int) -> None:
        self.machines[place].state = "well"

    @rule()
    def all_recover(self) -> None:
        for machine in self.machines:
            machine.state, machine.refuses = "well", False

    @rule(place=places)
    def come_back_as_a_copy(self, place: int) -> None:
        machine = self.machines[place]
        primaries = [other for other in range(COUNT) if self.machines[other].role is PRIMARY and other != place]
        primaries = [other for other in primaries if self.machines[other].state == "well"]
        if machine.state == "gone" and primaries:
            machine.follows = max(primaries, key=lambda other: self.machines[other].timeline)
            source = self.machines[machine.follows]
            machine.log, machine.flushed = source.log[: source.flushed], source.flushed
            machine.role, machine.state, machine.rebuilt = REPLICA, "well", True

    @rule(place=places)
    def promote(self, place: int) -> None:
        machine = self.machines[place]
        if machine.state == "well" and machine.role is REPLICA:
            self.timelines += 1
            machine.role = PRIMARY
            self.append(machine, self.timelines, flushed=True)

    @rule(old=places, new=places, dies=st.booleans())
    def fail_over(self, old: int, new: int, dies: bool) -> None:
        """All of it at once, which the other rules would seldom come to."""
        if dies:
            self.die(old)
        self.promote(new)
        for place in set(range(COUNT)) - {old, new}:
            self.follow(place, new)
            self.replicate(place, 9)

    @rule(place=places, other=places)
    def follow(self, place: int, other: int) -> None:
        self.machines[place].follows = other

    @rule(place=places)
    def the_login_is_refused_or_no_longer(self, place: int) -> None:
        self.machines[place].refuses = not self.machines[place].refuses

    @rule(eighths=st.integers(1, 8) | st.integers(1, 80))  # exact in floating point
    def time_passes(self, eighths: int) -> None:
        self.now += eighths / 8

    # What is learnt

    def found(self, place: int, node: Node) -> Look:
        machine = self.machines[place]
        seen: Observation
        if machine.state != "well":
            seen = AttemptFailed(node, machine.state, answered=False)
        elif machine.refuses and node is self.nodes[place]:
            seen = AttemptFailed(node, "no such role", answered=True)
        else:
            source = self.streams(machine) if machine.role is REPLICA else None
            timeline = machine.timeline if source is None else source.timeline  # received is enough
            seen = ProbeResult(
                node,
                machine.role,
                180000,
                machine.log[-1].end,
                timeline if machine.tells or machine.role is PRIMARY else 0,
                SYSTEM if machine.tells else 0,
                replay_age=self.now - machine.log[-1].at + machine.skew if machine.role is REPLICA else None,
            )
        return Look(self.now, seen, replace(machine))

    def report(self, place: int, node: Node, look: Look) -> None:
        seen, account = look.seen, self.account
        account.tried.add(place)
        if isinstance(seen, ProbeResult):
            seen = seen._replace(latency=self.now - look.begun)
            if node is self.nodes[place]:
                account.refused.discard(place)
            if place not in account.looks or look.begun >= account.last(place).begun:
                account.looks.setdefault(place, []).append(look)
                account.away.discard(place)
                if look.truth.rebuilt:
                    self.proved.pop(place, None)
                    self.machines[place].rebuilt = False
        elif isinstance(seen, AttemptFailed) and seen.answered:
            account.refused.add(place)
        else:
            account.away.add(place)
        self.health = observe(self.health, seen, now=self.now, jitter=0.5, policy=POLICY)

    @rule(place=places, sibling=st.booleans())
    def look(self, place: int, sibling: bool) -> None:
        node = (SIBLINGS if sibling else self.nodes)[place]
        self.report(place, node, self.found(place, node))

    @rule(order=st.permutations(range(COUNT)))
    def look_at_all(self, order: list[int]) -> None:
        for place in order:
            self.look(place, sibling=False)
            self.now += 0.125

    @rule(
        order=st.permutations(range(COUNT)),
        counts=st.lists(st.sampled_from([0, 1, 9]), min_size=COUNT, max_size=COUNT),
        seconds=st.integers(1, 4),
    )
    def all_work(self, order: list[int], counts: list[int], seconds: int) -> None:
        """What goes on most of the time, which chance would seldom put together."""
        for _ in range(seconds):
            for place, count in enumerate(counts):
                self.write(place, flushed=True, count=1)
                self.replicate(place, count)
            self.look_at_all(order)
            self.now += 0.5

    @rule(place=places)
    def begin_a_look(self, place: int) -> None:
        self.under_way.append((place, SIBLINGS[place], self.found(place, SIBLINGS[place])))
        self.now += 0.125

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def end_a_look(self, data: st.DataObject) -> None:
        place, node, look = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        self.report(place, node, look)

    @rule(place=places)
    def connect(self, place: int) -> None:
        machine = self.machines[place]
        if machine.state == "well" and not machine.refuses:
            self.account.refused.discard(place)
            seen = Connected(self.nodes[place], machine.role)
            self.health = observe(self.health, seen, now=self.now, jitter=0.5, policy=POLICY)

    # What must hold

    def choose(self, request: Request) -> Route:
        return choose(self.target, self.health, request, now=self.now, tie_break=0.5)

    def reads(self) -> Iterable[Request]:
        yield Request(read_only=True)
        for max_lag in (0.0, 2.0, 6.0):
            yield Request(read_only=True, max_lag=max_lag)
        for node in self.nodes:
            yield Request(read_only=True, avoid=node)
        for token in self.tokens[-3:]:
            for system in (SYSTEM, 0):
                yield Request(read_only=True, after=Position(system, token.timeline, token.end))
            yield Request(read_only=True, max_lag=2.0, after=Position(SYSTEM, token.timeline, token.end))

    @invariant()
    def a_write_goes_to_the_primary_of_the_latest_timeline_or_nowhere(self) -> None:
        route, usable = self.choose(Request(read_only=False)), self.account.usable()
        chosen = [self.nodes.index(node) for node in route.nodes[: route.ready]]
        primary = self.account.primary()
        assert chosen == [place for place in usable if place == primary]
        for place in chosen:
            timeline = self.account.last(place).timeline
            assert timeline >= max(self.proved.values(), default=0), "a later timeline was left for an earlier one"
            self.proved[place] = timeline

    @invariant()
    def what_does_not_answer_or_was_overtaken_serves_no_read(self) -> None:
        fenced = {place for place in self.account.looks if self.is_overtaken(place)}
        for request in self.reads():
            route = self.choose(request)
            assert {self.nodes.index(node) for node in route.nodes[: route.ready]} <= set(
                self.account.usable()
            ) - fenced

    def is_overtaken(self, place: int) -> bool:
        return self.account.last(place).truth.role is PRIMARY and place != self.account.primary()

    @invariant()
    def what_may_serve_a_read_does(self) -> None:
        primary, usable = self.account.primary(), self.account.usable()
        for request in self.reads():
            route = self.choose(request)
            limit = self.read.max_lag if request.max_lag is None else request.max_lag
            able = [
                place
                for place in usable
                if self.account.last(place).truth.role is REPLICA
                and (request.after is None or request.after.timeline >= self.account.last(place).timeline > 0)
                and (limit is None or self.read.allow_stale or self.is_fresh(place))
            ]
            if primary in usable and self.read.fallback == "primary":
                after = request.after
                if after is None or after.timeline <= self.account.last(primary).timeline:
                    able.append(primary)
            assert {self.nodes[place] for place in able} <= set(route.nodes[: route.ready])

    def is_fresh(self, place: int) -> bool:
        """Whether looks a moment ago found a replica where its primary was."""
        primary = self.account.primary()
        if primary is None or primary in self.account.away:
            return False
        own, source = self.account.last(place), self.account.last(primary)
        lately = self.now - min(own.begun, source.begun) <= POLICY.interval
        return lately and own.timeline == source.timeline and own.truth.log[-1].end >= source.truth.log[-1].end

    @invariant()
    def a_fresh_replica_has_what_looks_found_longer_ago_than_it_may_lag(self) -> None:
        for request in self.reads():
            limit = self.read.max_lag if request.max_lag is None else request.max_lag
            if limit is None:
                continue
            for node, standing in standings(self.target.cluster, self.health, request, now=self.now).items():
                if standing.tier is Tier.BEST:
                    assert not self.lacks(self.nodes.index(node), limit)

    def lacks(self, place: int, limit: float) -> bool:
        """Whether a replica lacked, at its last look, what a look at the primary had found too long before."""
        primary, own = self.account.primary(), self.account.last(place)
        if primary is None or self.now - own.begun > HORIZON:
            return True
        source = self.account.looks[primary]
        unwatched = primary in self.account.away or self.now - source[-1].begun > HORIZON
        if unwatched and own.truth.log[-1].end >= source[-1].truth.log[-1].end:
            return self.now - source[-1].begun > limit  # it may have written since, whatever a look found
        if own.timeline == 0:
            return False  # it may have left the primary's path, and nobody is allowed to ask
        survived = set(source[-1].truth.log)
        found = {
            record
            for look in source
            if look.begun < own.begun - limit and look.timeline == source[-1].timeline
            for record in look.truth.log
        }
        return not found & survived <= set(own.truth.log)

    @invariant()
    def the_banned_and_the_stale_come_last(self) -> None:
        for request in self.reads():
            route = self.choose(request)
            limit = self.read.max_lag if request.max_lag is None else request.max_lag
            ready = [self.nodes.index(node) for node in route.nodes[: route.ready]]
            banned = [
                self.now < self.health[self.nodes[place].server].banned_until or self.nodes[place] == request.avoid
                for place in ready
            ]
            assert banned == sorted(banned)
            if limit is not None:
                others = [place for place, is_banned in zip(ready, banned, strict=True) if not is_banned]
                stale = [place != self.account.primary() and self.lacks(place, limit) for place in others]
                good = [place == self.account.primary() or self.is_fresh(place) for place in others]
                assert not any(one and True in good[place:] for place, one in enumerate(stale))
                assert self.read.allow_stale or True not in stale

    @invariant()
    def a_token_is_served_by_who_has_replayed_it(self) -> None:
        for token in self.tokens[-8:]:
            request = Request(read_only=True, after=Position(SYSTEM, token.timeline, token.end))
            route = self.choose(request)
            for node in route.nodes[: route.ready]:
                look = self.account.last(self.nodes.index(node))
                if node not in route.ask:
                    # A primary has it since it wrote it. A later one may lack it, and then it was lost in the failover.
                    is_primary = look.truth.role is PRIMARY and look.timeline >= token.timeline
                    assert is_primary or token in look.truth.log
                elif look.timeline == token.timeline:
                    assert token not in look.truth.log, "it need not be asked"


class Hinted(Model):
    """The same with the roles that the settings name: they make no difference to a failover."""

    nodes = tuple(replace(node, role=REPLICA if place else PRIMARY) for place, node in enumerate(NODES))


TestModel = Model.TestCase
TestHinted = Hinted.TestCase
# Without Phase.explain, which traces every line and would take longer than all else.
TestModel.settings = settings(
    deadline=None, max_examples=examples(110), stateful_step_count=40, phases=set(Phase) - {Phase.explain}
)
TestHinted.settings = settings(TestModel.settings, max_examples=examples(40))
