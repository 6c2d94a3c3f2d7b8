"""What is known of each server, and how an observation changes it: pure functions over frozen values.

A :class:`State` is kept for each server. For a node there is one only while its login is refused (wrong password, no
such database): it is out of use then although its server is fine. What concerns sessions for reading or for writing
only, such as a startup option that is refused, is kept by :class:`Use`.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from router.core.consistency import settled
from router.core.topology import Node, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from router.core.topology import Cluster, HealthPolicy, Server

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


class Looked(NamedTuple):
    """A server answered a look.

    Attributes:
        node: The node whose login was used.
        role: What the server says it is.
        server_version: As libpq counts.
        position: Where its WAL ends, or how far a replica has replayed it, in bytes.
        timeline: The timeline of that position; 0 where we may not ask.
        system: Its system identifier; 0 where we may not ask.
        replay_age: Of a replica, seconds since the commit that it replayed last, by the servers' clocks.
        latency: Seconds that the look took.
        undeclared_pooler: Whether a pooler answers of which the settings say nothing; ``None`` when that is not news.
        refuses_writes: Whether ``default_transaction_read_only`` is on for the whole server.
        process: Which run of which server answers; empty where that is not known.
    """

    node: Node
    role: Role
    server_version: int
    position: int
    timeline: int = 0
    system: int = 0
    replay_age: float | None = None
    latency: float = 0.0
    undeclared_pooler: bool | None = None
    refuses_writes: bool = False
    process: str = ""


class Connected(NamedTuple):
    """A connection to a node was opened: its login is fine.

    Attributes:
        node: The node.
        role: What its server says it is; what counts is what a look finds.
        read_only: Whether it is for reading; ``None`` where it is for neither use.
    """

    node: Node
    role: Role
    read_only: bool | None = None


class Failed(NamedTuple):
    """A look at a node, or an attempt to connect to it, failed.

    Attributes:
        node: The node.
        reason: Why, in one line without secrets.
        answered: ``True`` when the server refused this login only; ``False`` when it cannot be used at all.
        full: Whether it refused it only because there are too many connections: that passes.
        lacks: What is not there: the ``dbname``, ``user``, ``role`` or ``schema``; empty for none.
        read_only: Whether it was to be for reading; ``None`` for a look.
        refuses_writes: Whether it was to be for writing, and refuses writes by ``default_transaction_read_only``.
    """

    node: Node
    reason: str
    answered: bool
    full: bool = False
    lacks: str = ""
    read_only: bool | None = None
    refuses_writes: bool = False


class Elsewhere(NamedTuple):
    """A connection to a node leads to another server than the last look did, or to the same one after a restart.

    Attributes:
        node: The node.
        process: Which run of which server it leads to.
    """

    node: Node
    process: str


class PoolerFound(NamedTuple):
    """A connection to a node was opened, and a pooler answers there of which the settings say nothing.

    Attributes:
        node: The node.
    """

    node: Node


class Unseen(NamedTuple):
    """This process could not look at a server: that says nothing of the server.

    Attributes:
        node: The node.
        reason: What it could not do.
    """

    node: Node
    reason: str


Seen: TypeAlias = Looked | Connected | Failed | Elsewhere | PoolerFound | Unseen


class Lag(NamedTuple):
    """How far a replica is behind its primary.

    Attributes:
        bytes: Of WAL; ``None`` while it is not known where the primary is.
        seconds: How long ago the primary was where the replica is; ``None`` while that is not known.
    """

    bytes: int | None
    seconds: float | None


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
    ends = bisect_left(trail, position, key=_position) + 1, bisect_right(trail, position, key=_position)
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


def _position(moment: tuple[float, int]) -> int:
    return moment[1]


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


def foreign(health: Health, cluster: Cluster) -> Mapping[Node, str]:
    """Find the nodes that are of another system than their cluster: they hold other data, whatever their role.

    The cluster's system is that of the configured primary, once it was seen. Until then, and where no primary is
    configured, it is the one that most of the nodes seen are of; if there is none, all of them count as foreign.

    Args:
        health: What is known.
        cluster: The nodes to compare.

    Returns:
        For each such node, the reason.
    """
    known = {node: system for node in cluster.nodes if (system := health.get(node.server, UNKNOWN).system)}
    appointed = configured_primary(cluster)
    if appointed is not None and appointed in known:
        system, whose = known[appointed], f"{appointed.server} ({known[appointed]}), the configured primary"
    elif (most := _majority(known.values(), len(known))) is not None:
        system, whose = most, f"most of the version's nodes ({most})"
    else:
        listing = ", ".join(f"{node.server} ({system})" for node, system in known.items())
        advice = "wait for the configured primary" if appointed else "name one as `primary` in the settings"
        reason = f"is of one of several systems, and none has a majority of the nodes seen: {listing}; {advice}"
        return dict.fromkeys(known, reason)
    return {
        node: f"is of another system ({own}) than {whose}: its data are not the version's"
        for node, own in known.items()
        if own != system
    }


def _majority(systems: Iterable[int], of: int) -> int | None:
    """The system that more than half of so many nodes are of."""
    [(system, votes)] = Counter(systems).most_common(1) or [(0, 0)]
    return system if 2 * votes > of else None


def undecided(health: Health, cluster: Cluster) -> bool:
    """Tell whether a node that nobody has looked at yet may show which system the cluster is of.

    Args:
        health: What is known.
        cluster: The cluster.

    Returns:
        Whether it may.
    """
    if (appointed := configured_primary(cluster)) is not None:
        return not _was_tried(health, appointed)
    untried = [node for node in cluster.nodes if not _was_tried(health, node)]
    known = [system for node in cluster.nodes if (system := health.get(node.server, UNKNOWN).system)]
    return bool(untried) and _majority(known, len(known) + len(untried)) is None


def configured_primary(cluster: Cluster) -> Node | None:
    """Find the node that the settings name as the primary.

    Args:
        cluster: The cluster.

    Returns:
        The node; ``None`` where roles are discovered.
    """
    return next((node for node in cluster.nodes if node.role is Role.PRIMARY), None)


def _was_tried(health: Health, node: Node) -> bool:
    """Whether anybody has looked at a node's server, be it in vain."""
    known = health.get(node.server, UNKNOWN)
    refused = (key for key in health if isinstance(key, (Node, Use)))
    return known.up is not None or known.role is not None or any(key.server == node.server for key in refused)


def fenced(health: Health, cluster: Cluster) -> Mapping[Node, str]:
    """Find the nodes that must not be used whatever they say: foreign ones, and primaries that are not the cluster's.

    Timelines tell: each promotion begins a higher one. They compare within one system only; where they do not tell,
    the configured primary counts, or else the primary seen first.

    Args:
        health: What is known.
        cluster: The nodes to compare.

    Returns:
        For each such node, the reason.
    """
    reasons = dict(foreign(health, cluster))
    states = [(node, health.get(node.server, UNKNOWN)) for node in cluster.nodes if node not in reasons]
    appointed = configured_primary(cluster)
    heirs = []
    for node, state in states:
        if state.role is not Role.PRIMARY:
            continue
        later = next((rival for rival in states if rival[1].timeline > state.timeline > 0), None)
        if later is not None:
            reasons[node] = (
                f"fenced: it is a primary on timeline {state.timeline}, "
                f"and {later[0].server} is on the later {later[1].timeline}"
            )
        elif (
            appointed is not None and node is not appointed and (why := _not_promoted(health, appointed, node, states))
        ):
            reasons[node] = f"fenced: it is a primary, is configured as a replica, and {why}"
        elif state.up:
            heirs.append((node is not appointed, state.primary_since, node))
    if len(heirs) > 1:
        *_, first = min(heirs, key=lambda heir: heir[:2])
        for *_, node in heirs:
            if node is not first:
                reasons[node] = f"fenced: it is a primary, and so is {first.server}, which was seen first"
    return reasons


def _not_promoted(health: Health, appointed: Node, node: Node, states: Sequence[tuple[Node, State]]) -> str | None:
    """Say why a primary that is configured as a replica has not taken over from another one, if it has not."""
    own, known = health[node.server], health.get(appointed.server, UNKNOWN)
    if not _was_tried(health, appointed):
        return f"nobody has looked at {appointed.server} yet, the configured primary"
    swapped = known.role is Role.REPLICA and not known.led  # the settings have the roles the wrong way round
    if own.timeline <= 1 and not swapped:
        return "was never promoted: it is on timeline 1" if own.timeline else "its timeline is not known"
    for other, rival in states:
        first = other is appointed or rival.led_since < own.led_since
        if other is not node and first and 0 < own.timeline <= rival.led:
            return f"was not promoted: {other.server} was a primary on timeline {rival.led} before"
    return None


def same_system(one: int, other: int) -> bool:
    """Tell whether two system identifiers may be of one cluster: one that is not known yet is not another one.

    Args:
        one: A system identifier; 0 while unknown.
        other: Another.

    Returns:
        Whether they may.
    """
    return one == other or not (one and other)


def primary_of(health: Health, cluster: Cluster, out: Mapping[Node, str] | None = None) -> Node | None:
    """Find the node that is the cluster's primary as far as is known, be it up or down.

    Args:
        health: What is known.
        cluster: The cluster.
        out: From :func:`fenced`, where that is at hand.

    Returns:
        The node; ``None`` when no node has been seen as primary, or none that has may be believed.
    """
    out = fenced(health, cluster) if out is None else out
    seen = [node for node in cluster.nodes if node not in out and health.get(node.server, UNKNOWN).role is Role.PRIMARY]
    return max(seen, key=lambda node: (health[node.server].up is True, health[node.server].primary_since), default=None)


def left_behind(health: Health, node: Node, primary: Node | None) -> bool:
    """Tell whether a replica has not followed the primary over a promotion, so that it gets nothing new.

    Args:
        health: What is known.
        node: The replica.
        primary: The primary, from :func:`primary_of`.

    Returns:
        Whether its timeline is an earlier one than that of a primary that is up.
    """
    own = health.get(node.server, UNKNOWN)
    source = UNKNOWN if primary is None else health.get(primary.server, UNKNOWN)
    follows = own.role is Role.REPLICA and same_system(own.system, source.system)
    return follows and source.up is True and 0 < own.timeline < source.timeline


def lag_of(health: Health, node: Node, primary: Node | None, *, now: float) -> Lag | None:
    """Tell how far a replica is behind, as last seen.

    What the primary's clock and the replica's say of the last commit grows while nobody writes. So the replica's
    position is compared with those that the primary had at each look: it is as old as the last of them that it has
    reached.

    Args:
        health: What is known.
        node: The replica.
        primary: The primary, from :func:`primary_of`.
        now: The caller's clock, in seconds.

    Returns:
        The lag; ``None`` when what is known of either is too little or too old: unknown is not fresh.
    """
    own = health.get(node.server, UNKNOWN)
    source = UNKNOWN if primary is None else health.get(primary.server, UNKNOWN)
    diverged = own.timeline and source.timeline and own.timeline != source.timeline
    diverged = diverged or not same_system(own.system, source.system)
    if not own.position or now > own.known_until or not source.trail or diverged:
        return None
    current = source.up is True and now <= source.known_until
    latest_at, latest = source.trail[-1]
    if own.position >= latest:
        return Lag(0 if current else None, 0.0 if current else now - latest_at)
    reached = bisect_right(source.trail, own.position, key=_position)
    ages = [] if own.replay_age is None else [own.replay_age]
    if reached:
        ages.append(own.position_at - source.trail[reached - 1][0])
    # The primary was further by then, whatever the servers' clocks say.
    least = max(own.position_at - source.trail[reached][0], 0.0)
    return Lag(latest - own.position if current else None, max(min(ages), least) if ages else None)


# libpq puts "SEVERITY:  ", two spaces, before what a server said, in any language, and never before its own words.
_FROM_SERVER = re.compile(r"(?<!\S)\S+:  .*")
_WHERE = re.compile(r"connection (?:failed|is bad): (?:connection to server .*? failed: )?")
_NO_PASSWORD = "fe_sendauth: no password supplied"  # noqa: S105  (libpq's own words, in every language)
_NOT_ACCEPTING = frozenset({"57P01", "57P02", "57P03"})  # shutting down, crashed, starting up or in recovery
_FULL = "53300"  # the server, the database or the role has all the connections that it may have
_POOLER_IS_FULL = "no more connections allowed"  # PgBouncer speaks English only, and gives this no SQLSTATE of its own
_ROLE_OPTION = re.compile(r"(?:^|\s)-c role=((?:\\.|[^\s\\])+)")


def failed(node: Node, message: str, sqlstate: str | None = None, routine: str = "") -> Failed:
    """Read what is known of a failed attempt to connect.

    Args:
        node: The node that was tried.
        message: The text of the ``psycopg.OperationalError``, in any language.
        sqlstate: What the server refused it with; ``None`` if it said nothing.
        routine: Where in PostgreSQL's source; empty if it did not say.

    Returns:
        The observation, its reason shortened to what was wrong.
    """
    line = message.strip().partition("\n")[0]
    if match := _FROM_SERVER.search(line):
        return Failed(
            node,
            match[0].replace(":  ", ": ", 1),
            answered=sqlstate not in _NOT_ACCEPTING,
            full=sqlstate == _FULL or _POOLER_IS_FULL in line,
            lacks=_lacks(node, line, sqlstate, routine),
        )
    return Failed(node, _WHERE.sub("", line, count=1), answered=line.endswith(_NO_PASSWORD))


def _lacks(node: Node, line: str, sqlstate: str | None, routine: str) -> str:
    """What a login needs and is not there; empty for nothing."""
    match sqlstate, routine:
        case "3D000", _:
            return "dbname"
        case "28000", "InitializeSessionUserId":  # elsewhere it is about pg_hba.conf
            return "user"
        case (
            ("22023" | "42501"),
            "call_string_check_hook",
        ):  # of a startup option: not there, or not for this user
            role = _ROLE_OPTION.search(dict(node.params).get("options", ""))
            if role is not None and re.sub(r"\\(.)", r"\1", role[1]) in line:
                return "role"
    return ""
