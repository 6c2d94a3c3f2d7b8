"""What is known of each server, and how an observation changes it: pure functions over frozen values.

A :class:`State` is kept for each server. For a node there is one only while its login is refused (wrong password, no
such database): it is out of use then although its server is fine. What concerns sessions for reading or for writing
only, such as a startup option that is refused, is kept by :class:`Use`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from router.core.consistency import settled
from router.core.observations import Connected, Elsewhere, Failed, Looked, PoolerFound, Seen, Unseen
from router.core.topology import Node, Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.core.policies import HealthPolicy
    from router.core.topology import Server


REFUSES_WRITES = "default_transaction_read_only is on"
SEVERAL = "several servers answer at this address"

TRAIL = 128
"""How many of its latest positions are kept of a primary: two minutes' worth, at a look a second."""


@dataclass(frozen=True, slots=True)
class State:
    """What is known of one server, or of one node's login.

    Two states are equal when they make no difference to where requests may go, but for lag: what every look changes
    does not count. All times are on the caller's clock.

    Attributes:
        up: Whether it answered the last look; ``None`` while nobody has looked.
        role: The role it reported last; kept while it is down.
        server_version: As libpq counts: 160004 is 16.4; 0 while unknown.
        system: PostgreSQL's system identifier, the same on all copies of a cluster; 0 while unknown.
        timeline: The WAL timeline it was on when seen last; kept while it is down, 0 while unknown.
        failures: How often it went down without staying up for ``health.ban_max`` in between.
        banned_until: Until when it is used only if there is no other; for a login, when it is tried again.
        reason: Why it is down, or could not be looked at.
        lacks: Of a refused login, what is not there: the ``dbname``, ``user``, ``role`` or ``schema``; empty for none.
        undeclared_pooler: Whether a pooler answers there of which the settings say nothing.
        refuses_writes: Whether its sessions for writing refuse writes now, by ``default_transaction_read_only``.
        several: Whether several servers answer there, so that what follows is true of one of them only.
        since: When it last went up or down.
        primary_since: When it was first seen as the primary that it has been since.
        led: The highest timeline on which it was ever seen as a primary of that system; 0 while it never was.
        led_since: When it was first seen so.
        heard_at: When it last answered anything.
        known_until: When what follows is too old to count as known.
        position: Where its WAL ends, or how far a replica has replayed it; 0 while unknown.
        position_at: When that was asked.
        trail: Of a primary, the latest moments and positions, oldest first; kept while it is down.
        replay_age: Seconds since the commit that a replica replayed last, by the servers' clocks.
        latency: Seconds that the last look took.
        process: Which run of which server answered it; empty while that is not known.
        former: Which one answered before that, if the server was not down in between.
        other: Which one else a connection led to since; empty for none.
        other_at: When that was.
    """

    up: bool | None = None
    role: Role | None = None
    server_version: int = 0
    system: int = 0
    timeline: int = 0
    failures: int = 0
    banned_until: float = 0.0
    reason: str = ""
    lacks: str = ""
    undeclared_pooler: bool = False
    refuses_writes: bool = False
    several: bool = False
    since: float = field(default=0.0, compare=False)
    primary_since: float = field(default=0.0, compare=False)
    led: int = 0
    led_since: float = field(default=0.0, compare=False)
    heard_at: float = field(default=0.0, compare=False)
    known_until: float = field(default=0.0, compare=False)
    position: int = field(default=0, compare=False)
    position_at: float = field(default=0.0, compare=False)
    trail: tuple[tuple[float, int], ...] = field(default=(), compare=False, repr=False)
    replay_age: float | None = field(default=None, compare=False)
    latency: float = field(default=0.0, compare=False)
    process: str = field(default="", compare=False)
    former: str = field(default="", compare=False)
    other: str = field(default="", compare=False)
    other_at: float = field(default=0.0, compare=False)


UNKNOWN = State()


class Use(NamedTuple):
    """A node as requests use it: sessions for reading begin with other options than those for writing.

    Attributes:
        node: The node.
        read_only: Whether it is for reading.
    """

    node: Node
    read_only: bool

    @property
    def server(self) -> Server:
        """The server that the node is on."""
        return self.node.server


Health: TypeAlias = "Mapping[Server | Node | Use, State]"


def state_of(health: Health, node: Node, *, read_only: bool | None = None) -> State:
    """Return what counts for a node: its server's state if that is down, else the refusal of its login if there is one.

    Args:
        health: What is known.
        node: The node asked about.
        read_only: What it is to be used for; ``None`` for a look.

    Returns:
        Its state; :data:`UNKNOWN` when nobody has looked at it.
    """
    server = health.get(node.server, UNKNOWN)
    return server if server.up is False else login_of(health, node, read_only=read_only) or server


def login_of(health: Health, node: Node, *, read_only: bool | None) -> State | None:
    """Return what is known of a node's login while that is refused, for a use or for any.

    Args:
        health: What is known.
        node: The node asked about.
        read_only: What it is to be used for; ``None`` for a look.

    Returns:
        Its state; ``None`` if it is not refused, as far as is known.
    """
    refused = health.get(node)
    return refused if refused is not None or read_only is None else health.get(Use(node, read_only))


def hindrance(health: Health, node: Node) -> str:
    """Say what a node that is up cannot be used for.

    Args:
        health: What is known.
        node: The node asked about.

    Returns:
        What, and why; empty if there is nothing.
    """
    uses = {"read from": Use(node, read_only=True), "written to": Use(node, read_only=False)}
    found = {what: health[use].reason for what, use in uses.items() if use in health}
    if health.get(node.server, UNKNOWN).refuses_writes:
        found["written to"] = REFUSES_WRITES
    hindered = [f"cannot be {what}: {why}" for what, why in found.items()]
    return "; ".join([*hindered, *[SEVERAL] * health.get(node.server, UNKNOWN).several])


def role_of(health: Health, node: Node) -> Role | None:
    """Return the role a node has: the one its server reported, else the configured one.

    Args:
        health: What is known.
        node: The node asked about.

    Returns:
        The role, or ``None`` when it is neither configured nor known yet.
    """
    return health.get(node.server, UNKNOWN).role or node.role


def observe(health: Health, seen: Seen, *, now: float, jitter: float, policy: HealthPolicy) -> Health:
    """Return what is known after an observation.

    Args:
        health: What was known before.
        seen: What was observed.
        now: The caller's clock, in seconds.
        jitter: From 0 to 1, at random: spreads the bans of many processes over a quarter of their length.
        policy: How servers are watched.

    Returns:
        What is known now; equal to ``health`` when it makes no difference to where requests may go, but for lag.
    """
    server = health.get(seen.node.server, UNKNOWN)
    if isinstance(seen, Elsewhere):
        return {**health, seen.node.server: replace(server, other=seen.process, other_at=now)}
    if isinstance(seen, PoolerFound):
        return {**health, seen.node.server: replace(server, undeclared_pooler=True)}
    if isinstance(seen, Unseen):
        return health if server.up is not None else {**health, seen.node.server: replace(server, reason=seen.reason)}
    if isinstance(seen, Failed):
        login = seen.node if seen.read_only is None else Use(seen.node, seen.read_only)
        key = login if seen.answered else seen.node.server
        state = _failed(health.get(key, UNKNOWN), seen, now=now, jitter=jitter, policy=policy)
        if seen.answered and server.up is False:  # it lives; whether it is well, a look has to find out
            health = {**health, seen.node.server: replace(server, up=None, reason="", since=now, heard_at=now)}
        return {**health, key: state}
    fine: set[Server | Node | Use] = {seen.node}
    if isinstance(seen, Looked) and seen.node in health:  # what was refused to the uses may have had the same cause
        fine |= {Use(seen.node, read_only=True), Use(seen.node, read_only=False)}
    elif isinstance(seen, Connected) and seen.read_only is not None:
        fine.add(Use(seen.node, seen.read_only))
    known = {key: state for key, state in health.items() if key not in fine}
    if isinstance(seen, Connected) or now - seen.latency < server.position_at:  # a look that a later one has overtaken
        return known
    return {**known, seen.node.server: _looked(server, seen, now, policy)}


def _looked(known: State, seen: Looked, now: float, policy: HealthPolicy) -> State:
    is_primary, asked_at = seen.role is Role.PRIMARY, now - seen.latency
    went_on = is_primary and known.up is True and known.role is Role.PRIMARY
    steady = _steady(known, now, policy)
    position = settled(seen.position) if is_primary else seen.position
    trail = known.trail if (known.system, known.timeline) == (seen.system, seen.timeline) else ()
    led, led_since = (known.led, known.led_since) if same_system(known.system, seen.system) else (0, now)
    if is_primary and seen.timeline > led:
        led, led_since = seen.timeline, now
    # What has restarted answers as what it was no more.
    again = seen.process == known.process
    stayed = again and known.other not in {"", seen.process} and asked_at >= known.other_at
    returned = not again and seen.process == known.former and known.up is True
    several = known.several or (bool(seen.process) and (stayed or returned))
    # Of a position, the first moment and the last: nobody wrote in between. It may also have gone back: a crash loses
    # what had not been flushed.
    ends = bisect_left(trail, position, key=itemgetter(1)) + 1, bisect_right(trail, position, key=itemgetter(1))
    trail = trail[: min(ends)][1 - TRAIL :]
    return State(
        up=True,
        role=seen.role,
        server_version=seen.server_version,
        system=seen.system,
        timeline=seen.timeline,
        failures=0 if steady else known.failures,
        banned_until=0.0 if steady else known.banned_until,
        refuses_writes=is_primary and seen.refuses_writes,
        several=several,
        since=known.since if known.up else now,
        primary_since=known.primary_since if went_on else now,
        led=led,
        led_since=led_since,
        heard_at=now,
        known_until=asked_at + 2.0 * policy.interval + policy.timeout,
        position=position,
        position_at=asked_at,
        trail=(*trail, (asked_at, position)) if is_primary else (),
        replay_age=seen.replay_age,
        latency=seen.latency,
        process=seen.process,
        former=known.former if again else known.process if known.up else "",  # one may replace another that died
        other=known.other if again else "",
        other_at=known.other_at,
        undeclared_pooler=known.undeclared_pooler if seen.undeclared_pooler is None else seen.undeclared_pooler,
    )


def _steady(known: State, now: float, policy: HealthPolicy) -> bool:
    """Whether it has been up for so long that its earlier failures no longer count."""
    return known.up is True and now - known.since >= policy.ban_max


def _failed(known: State, seen: Failed, *, now: float, jitter: float, policy: HealthPolicy) -> State:
    if known.up is False and (now < known.banned_until or not seen.answered):
        # Several saw the same failure, or it goes on: it counts once.
        return replace(known, reason=seen.reason, lacks=seen.lacks, refuses_writes=seen.refuses_writes)
    failures = 0 if _steady(known, now, policy) else known.failures
    doublings = 0 if seen.refuses_writes else min(failures, 32)  # what waits for it is to be served at once
    ban = min(policy.ban * 2.0**doublings, policy.ban_max) * (1.0 - 0.25 * jitter)
    return replace(
        known,
        up=False,
        failures=failures + 1,
        banned_until=now + ban,
        reason=seen.reason,
        lacks=seen.lacks,
        refuses_writes=seen.refuses_writes,
        since=now,
        position=0,
        replay_age=None,
    )


def same_system(one: int, other: int) -> bool:
    """Tell whether two system identifiers may be of one cluster: one that is not known yet is not another one.

    Args:
        one: A system identifier; 0 while unknown.
        other: Another.

    Returns:
        Whether they may.
    """
    return one == other or not (one and other)
