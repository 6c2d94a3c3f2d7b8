"""What is known of each server, and how an observation changes it: pure functions over frozen values.

A :class:`State` is kept for each server, and for a node only while its own login is refused (wrong password, no such
database): such a node is out of use although its server is fine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.topology import HealthPolicy, Node, Role, Server


@dataclass(frozen=True, slots=True)
class State:
    """What is known of one server, or of one node's login.

    Attributes:
        up: Whether it took the last connection; ``None`` while nobody has tried.
        role: The role it reported with its last connection; ``None`` once an attempt has failed.
        server_version: As libpq counts: 160004 is 16.4; 0 while unknown.
        failures: How many attempts in a row failed.
        retry_at: When it is tried again, on the caller's clock; only meaningful when it is down.
        reason: Why it is down.
        seen_at: When the last attempt ended, on the caller's clock; two states that differ only in this are equal.
    """

    up: bool | None = None
    role: Role | None = None
    server_version: int = 0
    failures: int = 0
    retry_at: float = 0.0
    reason: str = ""
    seen_at: float = field(default=0.0, compare=False)


UNKNOWN = State()

Health: TypeAlias = "Mapping[Server | Node, State]"


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection to the node was opened.

    Attributes:
        node: The node.
        role: What its server says it is.
        server_version: As libpq counts.
    """

    node: Node
    role: Role
    server_version: int


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt to connect to the node failed.

    Attributes:
        node: The node.
        reason: Why, in one line without secrets.
        answered: ``True`` when the server refused this login only; ``False`` when it cannot be used at all.
    """

    node: Node
    reason: str
    answered: bool


def state_of(health: Health, node: Node) -> State:
    """Return what counts for a node: its server's state if that is down, else the refusal of its login if there is one.

    Args:
        health: What is known.
        node: The node asked about.

    Returns:
        Its state; :data:`UNKNOWN` when nobody has tried it.
    """
    server = health.get(node.server, UNKNOWN)
    return server if server.up is False else health.get(node, server)


def role_of(health: Health, node: Node) -> Role | None:
    """Return the role a node has: the one its server reported, else the configured one.

    Args:
        health: What is known.
        node: The node asked about.

    Returns:
        The role, or ``None`` when it is neither configured nor known yet.
    """
    return health.get(node.server, UNKNOWN).role or node.role


def observe(health: Health, seen: Connected | Failed, *, now: float, jitter: float, policy: HealthPolicy) -> Health:
    """Return what is known after an observation.

    Args:
        health: What was known before.
        seen: What was observed.
        now: The caller's clock, in seconds.
        jitter: From 0 to 1, at random: spreads the retries of many processes over a quarter of the pause.
        policy: How long a failed node is left alone.

    Returns:
        What is known now; equal to ``health`` when that is what was known before.
    """
    if isinstance(seen, Connected):
        state = State(up=True, role=seen.role, server_version=seen.server_version, seen_at=now)
        return {key: known for key, known in health.items() if key != seen.node} | {seen.node.server: state}
    key = seen.node if seen.answered else seen.node.server
    known = health.get(key, UNKNOWN)
    if seen.answered and health.get(seen.node.server, UNKNOWN).up is False:
        health = {**health, seen.node.server: UNKNOWN}
    if known.up is False and now < known.retry_at:  # several saw the same failure: it counts once
        return {**health, key: replace(known, seen_at=now)}
    pause = min(policy.retry * 2.0 ** min(known.failures, 32), policy.retry_max) * (1.0 - 0.25 * jitter)
    failures = known.failures + 1
    state = State(up=False, failures=failures, retry_at=now + pause, reason=seen.reason, seen_at=now)
    return {**health, key: state}


# libpq puts "SEVERITY:  ", two spaces, before what a server said, in any language, and never before its own words.
_FROM_SERVER = re.compile(r"(?<!\S)\S+:  .*")
_WHERE = re.compile(r"connection (?:failed|is bad): (?:connection to server .*? failed: )?")
_NO_PASSWORD = "fe_sendauth: no password supplied"  # noqa: S105  (libpq's own words, in every language)
_NOT_ACCEPTING = re.compile(r"the database system is ")  # 57P03: starting up, shutting down, in recovery


def failed(node: Node, message: str) -> Failed:
    """Read what libpq says of a failed attempt to connect; it gives no SQLSTATE for these.

    Args:
        node: The node that was tried.
        message: The text of the ``psycopg.OperationalError``.

    Returns:
        The observation, its reason shortened to what was wrong.
    """
    line = message.strip().partition("\n")[0]
    if match := _FROM_SERVER.search(line):
        return Failed(node, match[0].replace(":  ", ": ", 1), answered=not _NOT_ACCEPTING.search(line))
    return Failed(node, _WHERE.sub("", line, count=1), answered=line.endswith(_NO_PASSWORD))
