# Generated from router/_async/silence.py by tools/async_to_sync.py: do not edit.
"""Finds the borrowed connections that hear nothing although their server is well: a gateway or proxy forgot them.

Two samples of a server's sessions, taken over the connection of its looks, show it: the client has been waiting for an
answer and nothing has been sent or received over its connection, while its session has been at rest, or is gone. So a
statement that runs, waits for a lock or copies is not cut however long that takes, nor an answer or a statement that is
still on its way over a slow line, nor who takes rows slowly.
"""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from psycopg.pq import TransactionStatus

from router._runtime.sockets import quiet_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router._sync.pool.node_pool import NodePool
    from router._sync.pool.server_queries import Session
    from router._sync.pool.session_state import SessionState
    from router._sync.server_in_use import ServerInUse

SAMPLE = 15.0
"""Seconds between two samples, and for which a connection has to have been quiet to be sampled at all."""

LOGIN = 10.0
"""Seconds by which the ages of a session and of its connection may differ: the login and ``configure=`` lie between."""


class Silent(NamedTuple):
    """A connection that hears nothing.

    Attributes:
        pool: Whose it is.
        original: What is kept of it.
        pid: The server process of its session.
        began: When that began, in the server's words.
    """

    pool: NodePool
    original: SessionState
    pid: int
    began: bytes


class _Asked(NamedTuple):
    pool: NodePool
    original: SessionState
    pid: int
    waits: bool


class Silence:
    """What the samples of one server's sessions have shown."""

    def __init__(self, there: ServerInUse) -> None:
        """Begin with nothing sampled.

        Args:
            there: The server.
        """
        self._there = there
        self._due = self._sampled_at = -inf
        self._asked: list[_Asked] = []
        self._at_rest: dict[SessionState, bytes] = {}  # whose session was at rest at the last sample, and since when

    def due(self) -> list[int]:
        """Begin a sample, if it is time for one.

        Returns:
            The server processes to ask about: those of connections that have been quiet for long while somebody waits,
            and those of sessions that the server has not shown yet.
        """
        if (now := monotonic()) < self._due:
            return []
        self._due, self._asked = now + SAMPLE, []
        for pool in self._there.pools:
            if pool.node.pooler is not None or pool.inherited:
                continue
            for original in pool.session_states():
                if not original.closed:
                    waits = _waits(original, SAMPLE)
                    if waits or original.began is None:
                        self._asked.append(_Asked(pool, original, original.pgconn.backend_pid, waits))
        if not self._asked:
            self._at_rest = {}
        return [asked.pid for asked in self._asked]

    def judge(self, shown: Mapping[int, Session], process: str) -> list[Silent]:
        """End a sample.

        Args:
            shown: The sessions that the server has of those processes.
            process: Which run of which server that is; empty if that is not known, and then nothing is.

        Returns:
            The connections that hear nothing.
        """
        now, silent = monotonic(), list[Silent]()
        before, self._at_rest = self._at_rest, {}
        since, self._sampled_at = self._sampled_at, now
        for pool, original, pid, waits in self._asked if process else ():
            session = shown.get(pid)
            if original.began is None:
                _identify(original, session, process, now)
            # Else it leads to another server behind that address, or to a pooler, which invents its numbers.
            if not waits or not original.began or original.process != process:
                continue
            rests_since = b"gone" if session is None or session.began != original.began else session.rests_since
            if not rests_since:
                continue
            self._at_rest[original] = rests_since
            if before.get(original) == rests_since and _waits(original, now - since):
                silent.append(Silent(pool, original, pid, original.began))
        return silent


def _waits(session: SessionState, seconds: float) -> bool:
    """Whether somebody waits for an answer over a connection that has been quiet for so long."""
    return (
        bool(session.uses)
        and session.pgconn.transaction_status == TransactionStatus.ACTIVE
        and quiet_for(session) >= seconds
    )


def _identify(original: SessionState, session: Session | None, process: str, now: float) -> None:
    """Note when a session began, if the one that the server has under its number is the connection's."""
    original.began = b""
    if session is None or session.age is None or original.process not in {"", process}:
        return
    if abs(session.age - (now - original.opened_at)) < LOGIN:
        original.began, original.process = session.began, process
