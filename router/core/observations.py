"""Observations of a server: the answer of a probe, a connection that was opened, an attempt that failed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from router.core.topology import Node, Role


class ProbeResult(NamedTuple):
    """A server answered a probe.

    Attributes:
        node: The node whose login was used.
        role: The role that the server reports.
        server_version: In libpq's format: 160004 is 16.4.
        position: The end of its WAL, or how far a replica has replayed it, in bytes.
        timeline: The timeline of that position; 0 where the login may not ask.
        system: Its system identifier; 0 where the login may not ask.
        replay_age: Of a replica, seconds since the commit that it replayed last, by the servers' clocks.
        latency: Seconds that the probe took.
        undeclared_pooler: Whether a pooler answers that the settings do not declare; ``None`` if the probe cannot tell.
        refuses_writes: Whether ``default_transaction_read_only`` is on for the whole server.
        process: The server process that answers, one value for each start of a server; empty if it is not known.
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
        role: The role that its server reports; for routing, only the role that a probe finds counts.
        read_only: Whether it is for reading; ``None`` if it is for neither use.
    """

    node: Node
    role: Role
    read_only: bool | None = None


class AttemptFailed(NamedTuple):
    """A probe of a node, or an attempt to connect to it, failed.

    Attributes:
        node: The node.
        reason: Why, in one line without secrets.
        answered: ``True`` when the server refused this login only; ``False`` when it cannot be used at all.
        server_full: Whether the server refused it only because it has too many connections, which is temporary.
        missing: What the login needs and does not exist: ``dbname``, ``user``, ``role`` or ``schema``; or empty.
        read_only: Whether the attempt was for reading; ``None`` for a probe.
        refuses_writes: Whether it was for writing, and its session refuses writes by ``default_transaction_read_only``.
    """

    node: Node
    reason: str
    answered: bool
    server_full: bool = False
    missing: str = ""
    read_only: bool | None = None
    refuses_writes: bool = False


class OtherProcess(NamedTuple):
    """A connection to a node leads to another server than the last probe did, or to the same one after a restart.

    Attributes:
        node: The node.
        process: The server process that it leads to.
    """

    node: Node
    process: str


class PoolerFound(NamedTuple):
    """A connection to a node was opened, and a pooler answers there that the settings do not declare.

    Attributes:
        node: The node.
    """

    node: Node


class NotProbed(NamedTuple):
    """This process could not probe a server, which tells nothing about the server.

    Attributes:
        node: The node.
        reason: What this process could not do.
    """

    node: Node
    reason: str


Observation: TypeAlias = ProbeResult | Connected | AttemptFailed | OtherProcess | PoolerFound | NotProbed


# Each pattern is compiled at its first use, and kept by `re`: importing the router need not wait for them.

# libpq puts "SEVERITY:  ", with two spaces, before what a server said, in any language, and never before its own texts.
_FROM_SERVER = r"(?<!\S)\S+:  .*"
_WHERE = r"connection (?:failed|is bad): (?:connection to server .*? failed: )?"
_NO_PASSWORD = "fe_sendauth: no password supplied"  # noqa: S105  (libpq's own words, in every language)
_NOT_ACCEPTING = frozenset({"57P01", "57P02", "57P03"})  # shutting down, crashed, starting up or in recovery
_ROLLED_BACK = "40"  # the class of serialization failures and deadlocks
_TOO_MANY_CONNECTIONS = "53300"  # the server, the database or the role has all the connections that it may have
# PgBouncer speaks English only, and gives this no SQLSTATE of its own.
_POOLER_IS_FULL = "no more connections allowed"
_ROLE_OPTION = r"(?:^|\s)-c role=((?:\\.|[^\s\\])+)"


def read_failure(node: Node, message: str, sqlstate: str | None = None, routine: str = "") -> AttemptFailed:
    """Make an observation of a failed attempt to connect.

    Args:
        node: The node that was tried.
        message: The text of the ``psycopg.OperationalError``, in any language.
        sqlstate: The server's SQLSTATE; ``None`` if it sent none.
        routine: The function in PostgreSQL's source that reported the error; empty if the server did not tell.

    Returns:
        The observation, with a shortened reason.
    """
    line = message.strip().partition("\n")[0]
    if match := re.search(_FROM_SERVER, line):
        return AttemptFailed(
            node,
            match[0].replace(":  ", ": ", 1),
            answered=sqlstate not in _NOT_ACCEPTING,
            server_full=sqlstate == _TOO_MANY_CONNECTIONS or _POOLER_IS_FULL in line,
            missing=_missing(node, line, sqlstate, routine),
        )
    return AttemptFailed(node, re.sub(_WHERE, "", line, count=1), answered=line.endswith(_NO_PASSWORD))


def was_cancelled(sqlstate: str | None) -> bool:
    """Tell whether a server cancelled an attempt or a probe because it conflicted with something else there.

    A standby does that while it replays WAL. It tells nothing about the login: the next attempt may succeed.

    Args:
        sqlstate: The SQLSTATE of the error; ``None`` for none.

    Returns:
        Whether it did: the SQLSTATE is of PostgreSQL's class for transactions that were rolled back.
    """
    return sqlstate is not None and sqlstate.startswith(_ROLLED_BACK)


def _missing(node: Node, line: str, sqlstate: str | None, routine: str) -> str:
    """Return what a login needs and does not exist; empty for nothing."""
    match sqlstate, routine:
        case "3D000", _:
            return "dbname"
        case "28000", "InitializeSessionUserId":  # elsewhere it is about pg_hba.conf
            return "user"
        case (
            "22023" | "42501",
            "call_string_check_hook",
        ):  # a startup option names what is not there, or not for this user
            role = re.search(_ROLE_OPTION, dict(node.params).get("options", ""))
            if role is not None and re.sub(r"\\(.)", r"\1", role[1]) in line:
                return "role"
    return ""
