# Generated from router/_async/pool/server_queries.py by tools/async_to_sync.py: do not edit.
"""What the router asks servers for itself: what they are and how far, which run of which server, which sessions."""

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
    """What a server shows of a session.

    Attributes:
        began: When it began, in the server's words.
        age: How old it is, in seconds; ``None`` if the server does not tell.
        rests_since: Since when it waits for its client to send something; empty if it does not.
    """

    began: bytes
    age: float | None
    rests_since: bytes


class ServerQueries:
    """Asks servers; each question is one round trip."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._without_control: set[Server] = set()  # where the control file is not for us

    def probe(self, connection: Connection[TupleRow], node: Node, *, new: bool = False) -> ProbeResult:
        """Ask a server what it is and how far it is: one round trip.

        Args:
            connection: To the server, in autocommit.
            node: What it was opened for.
            new: Whether it was opened just now, and shows whether a pooler answers there by now.

        Returns:
            What it says.

        Raises:
            psycopg.Error: It does not say.
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
        """Ask a server which sessions it has: one round trip.

        Args:
            connection: To the server, in autocommit.
            pids: Of which processes.

        Returns:
            Those that there are.

        Raises:
            psycopg.Error: It does not say.
        """
        return {
            int(pid or 0): Session(began or b"", None if age is None else float(age), since or b"")
            for pid, began, age, since in send(connection, sql.sessions(pids).encode())
        }

    def terminate(self, connection: Connection[TupleRow], pid: int, began: bytes) -> None:
        """Have a server end a session that its client cannot end any more.

        Args:
            connection: To the server, in autocommit.
            pid: The session's process.
            began: When that began, in the server's words.

        Raises:
            psycopg.Error: It refuses, say.
        """
        send(connection, sql.terminate(pid, began.decode()).encode())


def is_undeclared(connection: Connection[TupleRow], node: Node, pid: bytes | None) -> bool:
    """Tell whether a pooler answers for a server, although the settings do not say so.

    A pooler gives its clients numbers of its own; PgBouncer does in every mode. Its mode cannot be asked, and it would
    be noticed too late that a session belongs to another client by now.

    Args:
        connection: The connection.
        node: What it was opened for.
        pid: The number of the server's process, as that says itself.

    Returns:
        Whether one does.
    """
    return node.pooler is None and str(connection.pgconn.backend_pid).encode() != pid


def process_of(connection: Connection[TupleRow], cluster: Cluster) -> str:
    """Ask which run of which server a connection leads to: one round trip.

    Args:
        connection: The connection, idle.
        cluster: The cluster it serves, for its policies.

    Returns:
        That, in words that compare.

    Raises:
        psycopg.Error: It does not say.
    """
    [(process,)] = ask(connection, f"SELECT {sql.PROCESS}", cluster)
    return process.decode() if process else ""


def role_of(connection: Connection[TupleRow], cluster: Cluster) -> tuple[Role, bool]:
    """Tell the role of a server, and whether the session refuses writes by default.

    Args:
        connection: To the server, just opened.
        cluster: The cluster it serves, for its policies.

    Returns:
        Both.

    Raises:
        psycopg.Error: It does not say.
    """
    standby = connection.pgconn.parameter_status(b"in_hot_standby")
    refuses_writes = connection.pgconn.parameter_status(b"default_transaction_read_only")
    if standby is None or refuses_writes is None:  # PostgreSQL before 14, or a pooler that does not pass them on
        [(standby, refuses_writes)] = ask(connection, sql.ROLE, cluster)
    return Role.REPLICA if standby in {b"on", b"t"} else Role.PRIMARY, refuses_writes in {b"on", b"t"}


def ask(connection: Connection[TupleRow], question: str, cluster: Cluster) -> list[tuple[bytes | None, ...]]:
    """Ask something over a new connection: a pool opens one at a time, and must not wait for ever.

    Args:
        connection: To the server.
        question: The statement, in ASCII.
        cluster: The cluster it serves, for its policies.

    Returns:
        The rows.

    Raises:
        TooLate: There was no answer in time.
        psycopg.Error: It failed.
    """
    return send(connection, question.encode(), monotonic() + cluster.pool.connect_timeout)
