"""What is known of each server, and how an observation changes it: pure functions over frozen values.

Each server has a :class:`State`. A node has one only while its login is refused (wrong password, no such database):
then the node cannot be used although its server is fine. A failure that concerns only sessions for reading or only
sessions for writing, such as a refused startup option, is kept under a :class:`NodeUse`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from router.core.consistency import without_page_header
from router.core.observations import (
    AttemptFailed,
    Connected,
    NotProbed,
    Observation,
    OtherProcess,
    PoolerFound,
    ProbeResult,
)
from router.core.topology import Node, Role
from router.core.value import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.core.policies import HealthPolicy
    from router.core.topology import Server


REFUSES_WRITES = "default_transaction_read_only is on"
SEVERAL_SERVERS = "several servers answer at this address"

HISTORY = 128
"""How many of a primary's latest positions are kept: those of two minutes, at one probe a second."""


class State(Value):
    """What is known of one server, or of one node's login.

    Two states are equal if the same requests may go there, apart from lag: values that change with every probe are not
    compared. All times are on the caller's clock.

    Attributes:
        up: Whether the server answered the last probe; ``None`` before the first probe.
        role: The role that it reported last; kept while it is down.
        server_version: As libpq counts: 160004 is 16.4; 0 while unknown.
        system: PostgreSQL's system identifier, the same on all copies of a cluster; 0 while unknown.
        timeline: The WAL timeline that it reported last; kept while it is down, 0 while unknown.
        failures: How often it went down without staying up for ``health.ban_max`` in between.
        banned_until: Until then it is used only if no other server can be; a refused login is tried again then.
        reason: Why it is down, or could not be probed.
        missing: What a refused login needs that does not exist: ``dbname``, ``user``, ``role`` or ``schema``; or empty.
        undeclared_pooler: Whether a pooler answers at this address that the settings do not declare.
        refuses_writes: Whether its sessions for writing refuse writes now, by ``default_transaction_read_only``.
        several_servers: Whether several servers answer at this address; the values below then describe one of them.
        since: When it last went up or down.
        primary_since: Since when it has been the primary, as far as was observed.
        led_timeline: The highest timeline on which it was ever observed as a primary of that system; 0 for never.
        led_since: When it was first observed as a primary on that timeline.
        answered_at: When it last answered anything.
        known_until: When the values below become too old to be used.
        position: Where its WAL ends, or how far a replica has replayed it; 0 while unknown.
        position_at: When the position was asked for.
        history: Of a primary, the latest times and positions, oldest first; kept while it is down.
        replay_age: Seconds since the commit that a replica replayed last, by the servers' clocks.
        latency: Seconds that the last probe took.
        process: The server process, by its start time, that answered the last probe; empty while unknown.
        former_process: The process that answered before it, if the server was not down in between.
        other_process: A different process that a later connection reached; empty for none.
        other_process_at: When that connection was opened.
    """

    up: bool | None = None
    role: Role | None = None
    server_version: int = 0
    system: int = 0
    timeline: int = 0
    failures: int = 0
    banned_until: float = 0.0
    reason: str = ""
    missing: str = ""
    undeclared_pooler: bool = False
    refuses_writes: bool = False
    several_servers: bool = False
    since: float = field(default=0.0, compare=False)
    primary_since: float = field(default=0.0, compare=False)
    led_timeline: int = 0
    led_since: float = field(default=0.0, compare=False)
    answered_at: float = field(default=0.0, compare=False)
    known_until: float = field(default=0.0, compare=False)
    position: int = field(default=0, compare=False)
    position_at: float = field(default=0.0, compare=False)
    history: tuple[tuple[float, int], ...] = field(default=(), compare=False, repr=False)
    replay_age: float | None = field(default=None, compare=False)
    latency: float = field(default=0.0, compare=False)
    process: str = field(default="", compare=False)
    former_process: str = field(default="", compare=False)
    other_process: str = field(default="", compare=False)
    other_process_at: float = field(default=0.0, compare=False)


UNKNOWN = State()


class NodeUse(NamedTuple):
    """A node and what it is used for: sessions for reading begin with other options than sessions for writing.

    Attributes:
        node: The node.
        read_only: Whether it is used for reading.
    """

    node: Node
    read_only: bool

    @property
    def server(self) -> Server:
        """The server that the node is on."""
        return self.node.server


Health: TypeAlias = "Mapping[Server | Node | NodeUse, State]"


def node_state(health: Health, node: Node, *, read_only: bool | None = None) -> State:
    """Return the state that decides about a node: its server's if that is down, else its login's if that is refused.

    Args:
        health: What is known.
        node: The node.
        read_only: Whether it would be used for reading; ``None`` for a probe.

    Returns:
        The state; :data:`UNKNOWN` before the first probe.
    """
    server = health.get(node.server, UNKNOWN)
    return server if server.up is False else login_failure(health, node, read_only=read_only) or server


def login_failure(health: Health, node: Node, *, read_only: bool | None) -> State | None:
    """Return the state of a node's login if the login is refused, for one use or for any.

    Args:
        health: What is known.
        node: The node.
        read_only: Whether it would be used for reading; ``None`` for a probe.

    Returns:
        The state; ``None`` if the login is not refused, as far as is known.
    """
    refused = health.get(node)
    return refused if refused is not None or read_only is None else health.get(NodeUse(node, read_only))


def restrictions_of(health: Health, node: Node) -> str:
    """Describe what a node that is up cannot be used for now.

    Args:
        health: What is known.
        node: The node.

    Returns:
        Each restriction with its reason, in one line; empty if there is none.
    """
    uses = {"read from": NodeUse(node, read_only=True), "written to": NodeUse(node, read_only=False)}
    found = {what: health[use].reason for what, use in uses.items() if use in health}
    if health.get(node.server, UNKNOWN).refuses_writes:
        found["written to"] = REFUSES_WRITES
    hindered = [f"cannot be {what}: {why}" for what, why in found.items()]
    return "; ".join([*hindered, *[SEVERAL_SERVERS] * health.get(node.server, UNKNOWN).several_servers])


def role_of(health: Health, node: Node) -> Role | None:
    """Return the role of a node: the one that its server reported, else the configured one.

    Args:
        health: What is known.
        node: The node.

    Returns:
        The role, or ``None`` when it is neither configured nor known yet.
    """
    return health.get(node.server, UNKNOWN).role or node.role


def observe(health: Health, seen: Observation, *, now: float, jitter: float, policy: HealthPolicy) -> Health:
    """Return what is known after an observation.

    Args:
        health: What was known before.
        seen: What was observed.
        now: The caller's clock, in seconds.
        jitter: A random number from 0 to 1, which spreads the bans of many processes over a quarter of their length.
        policy: How servers are watched.

    Returns:
        What is known now; equal to ``health`` if the same requests may go to the same servers, apart from lag.
    """
    server = health.get(seen.node.server, UNKNOWN)
    if isinstance(seen, OtherProcess):
        return {**health, seen.node.server: replace(server, other_process=seen.process, other_process_at=now)}
    if isinstance(seen, PoolerFound):
        return {**health, seen.node.server: replace(server, undeclared_pooler=True)}
    if isinstance(seen, NotProbed):
        return health if server.up is not None else {**health, seen.node.server: replace(server, reason=seen.reason)}
    if isinstance(seen, AttemptFailed):
        login = seen.node if seen.read_only is None else NodeUse(seen.node, seen.read_only)
        key = login if seen.answered else seen.node.server
        state = _after_failure(health.get(key, UNKNOWN), seen, now=now, jitter=jitter, policy=policy)
        if seen.answered and server.up is False:  # the server runs; a probe has to find out whether it can be used
            health = {**health, seen.node.server: replace(server, up=None, reason="", since=now, answered_at=now)}
        return {**health, key: state}
    known = _without_refusals(health, seen)
    is_older = isinstance(seen, ProbeResult) and now - seen.latency < server.position_at  # a later probe came first
    if isinstance(seen, Connected) or is_older:
        return known
    return {**known, seen.node.server: _after_probe(server, seen, now, policy)}


def _without_refusals(health: Health, seen: ProbeResult | Connected) -> dict[Server | Node | NodeUse, State]:
    """Remove the refused logins that are outdated because a login has worked."""
    fine: set[Server | Node | NodeUse] = {seen.node}
    if isinstance(seen, Connected):
        fine |= set() if seen.read_only is None else {NodeUse(seen.node, seen.read_only)}
    elif seen.node in health:  # the logins for either use may have been refused for the same cause
        fine |= {NodeUse(seen.node, read_only=True), NodeUse(seen.node, read_only=False)}
    return {key: state for key, state in health.items() if key not in fine}


def _after_probe(known: State, seen: ProbeResult, now: float, policy: HealthPolicy) -> State:
    is_primary, asked_at = seen.role is Role.PRIMARY, now - seen.latency
    went_on = is_primary and known.up is True and known.role is Role.PRIMARY
    steady = _steady(known, now, policy)
    position = without_page_header(seen.position) if is_primary else seen.position
    history = known.history if (known.system, known.timeline) == (seen.system, seen.timeline) else ()
    led_timeline, led_since = known.led_timeline, known.led_since
    if not same_system(known.system, seen.system):
        led_timeline, led_since = 0, now
    if is_primary and seen.timeline > led_timeline:
        led_timeline, led_since = seen.timeline, now
    # After a restart a server never reports its old process again. So if an old process answers once more, a second
    # server answers at this address.
    again = seen.process == known.process
    stayed = again and known.other_process not in {"", seen.process} and asked_at >= known.other_process_at
    returned = not again and seen.process == known.former_process and known.up is True
    replaced = known.process if known.up else ""  # a server that died may be replaced by another
    former_process = known.former_process if again else replaced
    several_servers = known.several_servers or (bool(seen.process) and (stayed or returned))
    # While nothing is written the position stays the same; of those entries the first and the last are kept. A
    # position may also go back, since a crash loses what had not been flushed.
    ends = bisect_left(history, position, key=itemgetter(1)) + 1, bisect_right(history, position, key=itemgetter(1))
    history = history[: min(ends)][1 - HISTORY :]
    return State(
        up=True,
        role=seen.role,
        server_version=seen.server_version,
        system=seen.system,
        timeline=seen.timeline,
        failures=0 if steady else known.failures,
        banned_until=0.0 if steady else known.banned_until,
        refuses_writes=is_primary and seen.refuses_writes,
        several_servers=several_servers,
        since=known.since if known.up else now,
        primary_since=known.primary_since if went_on else now,
        led_timeline=led_timeline,
        led_since=led_since,
        answered_at=now,
        known_until=asked_at + 2.0 * policy.interval + policy.timeout,
        position=position,
        position_at=asked_at,
        history=(*history, (asked_at, position)) if is_primary else (),
        replay_age=seen.replay_age,
        latency=seen.latency,
        process=seen.process,
        former_process=former_process,
        other_process=known.other_process if again else "",
        other_process_at=known.other_process_at,
        undeclared_pooler=known.undeclared_pooler if seen.undeclared_pooler is None else seen.undeclared_pooler,
    )


def _steady(known: State, now: float, policy: HealthPolicy) -> bool:
    """Tell whether the server has been up for so long that its earlier failures no longer count."""
    return known.up is True and now - known.since >= policy.ban_max


def _after_failure(known: State, seen: AttemptFailed, *, now: float, jitter: float, policy: HealthPolicy) -> State:
    if known.up is False and (now < known.banned_until or not seen.answered):
        # Several connections met the same failure, or the failure lasts: it counts once.
        return replace(known, reason=seen.reason, missing=seen.missing, refuses_writes=seen.refuses_writes)
    failures = 0 if _steady(known, now, policy) else known.failures
    # A server that refuses writes is tried often, since requests that wait for it should be served at once.
    doublings = 0 if seen.refuses_writes else min(failures, 32)
    ban = min(policy.ban * 2.0**doublings, policy.ban_max) * (1.0 - 0.25 * jitter)
    return replace(
        known,
        up=False,
        failures=failures + 1,
        banned_until=now + ban,
        reason=seen.reason,
        missing=seen.missing,
        refuses_writes=seen.refuses_writes,
        since=now,
        position=0,
        replay_age=None,
    )


def same_system(one: int, other: int) -> bool:
    """Tell whether two system identifiers may belong to one cluster: an unknown identifier may equal any other.

    Args:
        one: A system identifier; 0 while unknown.
        other: Another one.

    Returns:
        Whether they may be the same.
    """
    return one == other or not (one and other)
