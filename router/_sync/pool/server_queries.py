# Generated from router/_async/pool/server_queries.py by tools/async_to_sync.py: do not edit.
"""The router's own queries to servers: role and position, the server's process, and its sessions."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

import psycopg

from router._sync.pool.scripts import send
from router.core import sql
from router.core.observations import ProbeResult
from router.core.topology import Role
from router.core.value import Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router.core.topology import Cluster, Node, Server


class Session(Value):
    """A session as its server shows it.

    Attributes:
        began: When it began, as the server writes it.
        age: Its age in seconds; ``None`` if the server does not show it.
        rests_since: Since when it has waited for its client; empty if it does not wait.
    """

    began: bytes
    age: float | None
    rests_since: bytes


class ServerQueries:
    """The queries to servers, each of which takes one round trip."""

    def __init__(self) -> None:
        """Begin with no known servers."""
        self._without_control: set[Server] = set()  # servers where the login may not read the control file

    def probe(self, connection: Connection[TupleRow], node: Node, *, new: bool = False) -> ProbeResult:
        """Ask a server for its role and position, in one round trip.

        Args:
            connection: A connection to the server, in autocommit.
            node: The node that it was opened for.
            new: Whether the connection has just been opened, so that it shows whether a pooler answers now.

        Returns:
            The result of the probe.

        Raises:
            psycopg.Error: The query failed.
        """
        begun = monotonic()
        query = sql.PROBE_WITHOUT_CONTROL if node.server in self._without_control else sql.PROBE
        try:
            [(standby, position, timeline, system, replay_age, refuses, pid, process)] = send(
                connection, query.encode()
            )
        except psycopg.errors.InsufficientPrivilege:
            if query is sql.PROBE_WITHOUT_CONTROL:
                raise
            self._without_control.add(node.server)
            return self.probe(connection, node, new=new)
        pooled = is_undeclared(connection, node, pid)
        return ProbeResult(
            node,
            Role.REPLICA if standby == b"t" else Role.PRIMARY,
            connection.pgconn.server_version,
            position=int(position or 0),
            timeline=int(timeline or 0),
            system=int(system or 0) % 2**64,  # unsigned, in PostgreSQL's own tools
            replay_age=None if replay_age is None else float(replay_age),
            latency=monotonic() - begun,
            undeclared_pooler=pooled if pooled or new else None,
            refuses_writes=refuses == b"t",
            process=process.decode() if process else "",
        )

    def sessions(self, connection: Connection[TupleRow], pids: Sequence[int]) -> dict[int, Session]:
        """Ask a server for sessions by their process numbers, in one round trip.

        Args:
            connection: A connection to the server, in autocommit.
            pids: The process numbers.

        Returns:
            The sessions that exist, by process number.

        Raises:
            psycopg.Error: The query failed.
        """
        return {
            int(pid or 0): Session(began or b"", None if age is None else float(age), since or b"")
            for pid, began, age, since in send(connection, sql.sessions(pids).encode())
        }

    def terminate(self, connection: Connection[TupleRow], pid: int, began: bytes) -> None:
        """Make a server end a session that its client cannot end any more.

        Args:
            connection: A connection to the server, in autocommit.
            pid: The session's process number.
            began: When the session began, as the server writes it.

        Raises:
            psycopg.Error: The server refuses, for example.
        """
        send(connection, sql.terminate(pid, began.decode()).encode())


def is_undeclared(connection: Connection[TupleRow], node: Node, pid: bytes | None) -> bool:
    """Tell whether a pooler answers that the settings do not declare.

    A pooler gives its clients process numbers of its own; PgBouncer does so in every mode. A pooler cannot be asked for
    its mode, and the router would notice too late that a session belongs to another client by now.

    Args:
        connection: The connection.
        node: The node that it was opened for.
        pid: The process number that the server itself reports.

    Returns:
        Whether an undeclared pooler answers.
    """
    return node.pooler is None and str(connection.pgconn.backend_pid).encode() != pid


def process_of(connection: Connection[TupleRow], cluster: Cluster) -> str:
    """Ask which server process a connection leads to, in one round trip.

    Args:
        connection: The connection, idle.
        cluster: The cluster of its node, for its policies.

    Returns:
        The server's start time as text: two servers, or one before and after a restart, differ in it.

    Raises:
        psycopg.Error: The query failed.
    """
    [(process,)] = ask(connection, f"SELECT {sql.PROCESS}", cluster)
    return process.decode() if process else ""


def role_of(connection: Connection[TupleRow], cluster: Cluster) -> tuple[Role, bool]:
    """Tell the role of a server, and whether the session refuses writes by default.

    Args:
        connection: A connection to the server, just opened.
        cluster: The cluster of its node, for its policies.

    Returns:
        The role, and whether the session refuses writes.

    Raises:
        psycopg.Error: The query failed.
    """
    standby = connection.pgconn.parameter_status(b"in_hot_standby")
    refuses_writes = connection.pgconn.parameter_status(b"default_transaction_read_only")
    if standby is None or refuses_writes is None:  # PostgreSQL before 14, or a pooler that does not pass them on
        [(standby, refuses_writes)] = ask(connection, sql.ROLE, cluster)
    return Role.REPLICA if standby in {b"on", b"t"} else Role.PRIMARY, refuses_writes in {b"on", b"t"}


def ask(connection: Connection[TupleRow], question: str, cluster: Cluster) -> list[tuple[bytes | None, ...]]:
    """Run a query over a new connection, with a deadline: a pool opens one connection at a time, and must not hang.

    Args:
        connection: A connection to the server.
        question: The statement, in ASCII.
        cluster: The cluster of its node, for its policies.

    Returns:
        The rows.

    Raises:
        TooLate: There was no answer in time.
        psycopg.Error: The query failed.
    """
    return send(connection, question.encode(), monotonic() + cluster.pool.connect_timeout)
