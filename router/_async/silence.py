"""Finds silent connections: a gateway or proxy has forgotten a borrowed connection although its server is up.

Two samples of a server's sessions, taken over the connection of its probes, show it: the client has been waiting for an
answer, and nothing was sent or received over its connection, while its session was idle, or has ended. So a statement
that runs, waits for a lock or copies is not cut, however long it takes, nor is one that is on its way over a slow line,
nor a client that reads rows slowly.
"""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from psycopg.pq import TransactionStatus

from router._runtime.sockets import quiet_for
from router.core.value import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router._async.pool.node_pool import AsyncNodePool
    from router._async.pool.server_queries import Session
    from router._async.pool.session_state import SessionState
    from router._async.server_in_use import AsyncServerInUse

SAMPLE = 15.0
"""Seconds between two samples, and seconds without traffic after which a connection is sampled."""

LOGIN = 10.0
"""Seconds by which the ages of a session and of its connection may differ, because of the login and ``configure=``."""


class Silent(Value):
    """A silent connection.

    Attributes:
        pool: Its pool.
        state: The state of its session.
        pid: The server process of its session.
        began: When that process began, as the server reports it.
    """

    pool: AsyncNodePool
    state: SessionState
    pid: int
    began: bytes


class _Asked(NamedTuple):
    pool: AsyncNodePool
    state: SessionState
    pid: int
    waits: bool


class AsyncSilence:
    """The samples of one server's sessions."""

    def __init__(self, there: AsyncServerInUse) -> None:
        """Begin without a sample.

        Args:
            there: The server.
        """
        self._there = there
        self._due = self._sampled_at = -inf
        self._asked: list[_Asked] = []
        self._idle: dict[SessionState, bytes] = {}  # the sessions that were idle at the last sample, and since when

    def due(self) -> list[int]:
        """Begin a sample, if one is due.

        Returns:
            The server processes to ask about: those of connections without traffic whose client waits for an answer,
            and those of sessions that the server has not reported yet.
        """
        if (now := monotonic()) < self._due:
            return []
        self._due, self._asked = now + SAMPLE, []
        for pool in self._there.pools:
            if pool.node.pooler is not None or pool.inherited:
                continue
            for state in pool.sessions.listed():
                if not state.closed:
                    waits = _waits(state, SAMPLE)
                    if waits or state.began is None:
                        self._asked.append(_Asked(pool, state, state.pgconn.backend_pid, waits))
        if not self._asked:
            self._idle = {}
        return [asked.pid for asked in self._asked]

    def judge(self, shown: Mapping[int, Session], process: str) -> list[Silent]:
        """End a sample.

        Args:
            shown: The sessions of those processes, by process, as the server reports them.
            process: The server process that the watcher probes; empty if it is not known, and then no sample counts.

        Returns:
            The silent connections.
        """
        now, silent = monotonic(), list[Silent]()
        before, self._idle = self._idle, {}
        since, self._sampled_at = self._sampled_at, now
        for pool, state, pid, waits in self._asked if process else ():
            session = shown.get(pid)
            if state.began is None:
                _identify(state, session, process, now)
            # Otherwise it leads to another server behind that address, or to a pooler, which invents process numbers.
            if not waits or not state.began or state.process != process:
                continue
            idle_since = b"gone" if session is None or session.began != state.began else session.rests_since
            if not idle_since:
                continue
            self._idle[state] = idle_since
            if before.get(state) == idle_since and _waits(state, now - since):
                silent.append(Silent(pool, state, pid, state.began))
        return silent


def _waits(session: SessionState, seconds: float) -> bool:
    """Whether a client waits for an answer over a connection that had no traffic for so many seconds."""
    return (
        bool(session.uses)
        and session.pgconn.transaction_status == TransactionStatus.ACTIVE
        and quiet_for(session) >= seconds
    )


def _identify(state: SessionState, session: Session | None, process: str, now: float) -> None:
    """Note when a session began, if the session that the server has under its number is this one."""
    state.began = b""
    if session is None or session.age is None or state.process not in {"", process}:
        return
    if abs(session.age - (now - state.opened_at)) < LOGIN:
        state.began, state.process = session.began, process
