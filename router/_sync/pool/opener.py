# Generated from router/_async/pool/opener.py by tools/async_to_sync.py: do not edit.
"""Opens connections: sets the session up, checks it, and reports what each attempt shows of the server."""

from __future__ import annotations

import logging
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

import psycopg
from psycopg import Connection

from router._runtime.calls import consult
from router._sync.pool.login import Login, ServerFull, Unable, failure
from router._sync.pool.pooled import PooledConnection
from router._sync.pool.scripts import NOT_THERE, TooLate, why_not_there
from router._sync.pool.server_queries import ServerQueries, ask, is_undeclared, process_of, role_of
from router.core import sql
from router.core.errors import RouterClosed
from router.core.health import REFUSES_WRITES
from router.core.observations import AttemptFailed, Connected, OtherProcess, PoolerFound, was_cancelled
from router.core.standing import role_mismatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.rows import TupleRow

    from router._runtime.calls import Configure, Password
    from router._sync.clusters import Clusters
    from router._sync.pool.connection import NodeConnection
    from router._sync.slot import Slot
    from router._sync.slots import Slots
    from router.core.topology import Cluster, Node, Role

READ_ONLY = "-c default_transaction_read_only=on"
SNAPSHOT = "-c default_transaction_isolation=repeatable\\ read"

logger = logging.getLogger("router")


class WrongRole(psycopg.OperationalError):
    """The server turned out to have a role that this connection must not have."""


class LoginRefused(psycopg.OperationalError):
    """The server refused the login of an optional connection: the pool has others."""


class NotItsOwn(psycopg.OperationalError):
    """The session cannot be used for the tenant, because it did not begin with the tenant's settings."""


class Opener:
    """Opens connections to nodes, and reports what each attempt shows.

    Attributes:
        slots: The process's budget.
        login: Begins the sessions.
        queries: The router's queries to servers.
    """

    def __init__(
        self,
        slots: Slots,
        clusters: Clusters,
        *,
        password: Password | None,
        configure: Configure | None,
    ) -> None:
        """Make the opener.

        Args:
            slots: The process's budget.
            clusters: The clusters in use, which are told what each attempt shows.
            password: Called for a node's password; its answer is remembered until a server rejects it.
            configure: Called with each new connection that requests will use.
        """
        self.slots = slots
        self._clusters = clusters
        self.login = Login(slots, password)
        self.queries = ServerQueries()
        self._configure = configure

    def open(
        self,
        node: Node,
        cluster: Cluster,
        slot: Slot,
        *,
        read_only: bool,
        startup: tuple[tuple[str, str], ...] | None,
        optional: bool,
    ) -> NodeConnection:
        """Open a connection for requests.

        Args:
            node: The node to connect to.
            cluster: The cluster of the node, for its policies.
            slot: The connection's slot of the budget.
            read_only: Whether its session refuses writes.
            startup: The settings that a tenant's session has to begin with; ``None`` where it needs none, because it is
                for no tenant, or the tenant is separated by its user or database.
            optional: Whether the pool has other connections: a refused login is then raised, but not reported.

        Returns:
            The connection, configured.

        Raises:
            ServerFull: The server has no room.
            LoginRefused: The server refused the login of an optional connection.
            WrongRole: The server's role does not fit this use.
            NotItsOwn: The session cannot be used for the tenant.
            psycopg.OperationalError: The connection could not be opened.
        """
        autocommit = read_only and cluster.read.autocommit and node.pooler != "transaction"
        options = [READ_ONLY] if read_only else []
        if read_only and not autocommit:
            options.append(SNAPSHOT)
        connection, role, refuses_writes = self._open(
            node,
            cluster,
            options,
            slot,
            autocommit=autocommit,
            optional=optional,
            read_only=read_only,
        )
        try:
            if (reason := role_mismatch(cluster, role, read_only=read_only)) is not None:
                self._clusters.report(Connected(node, role, read_only))
                raise WrongRole(reason)
            if refuses_writes and not read_only:
                self._clusters.report(
                    AttemptFailed(node, REFUSES_WRITES, answered=True, read_only=read_only, refuses_writes=True)
                )
                raise WrongRole(REFUSES_WRITES)
            if isinstance(connection, PooledConnection):
                connection.set_read_only(read_only or None)
                if read_only and not cluster.read.autocommit:
                    connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
            if startup is not None and node.pooler != "transaction":
                self._check_session(connection, node, cluster, startup, read_only=read_only)
            if self._configure is not None:
                self._run_configure(self._configure, connection, node, read_only=read_only)
            self._clusters.report(Connected(node, role, read_only))
        except BaseException:
            connection.close()
            raise
        return connection

    def connect_to_probe(
        self, node: Node, cluster: Cluster, slot: Slot, *, timeout: float, asks: Callable[[], None]
    ) -> Connection[TupleRow]:
        """Open a connection for probes of a server; nothing is reported.

        Args:
            node: The node whose login is used.
            cluster: The cluster of the node, for its policies.
            slot: The connection's slot of the budget.
            timeout: The most seconds that the probe waits for the server.
            asks: Called when password and addresses are known, just before the server is asked.

        Returns:
            The connection, in autocommit.

        Raises:
            ServerFull: The server has no room.
            Unable: This process could not ask the server.
            psycopg.OperationalError: The connection could not be opened.
        """
        # Longer than the probe's own timeout: this one ends first only if this process did not run for a long time.
        least = ceil(2.0 * timeout)
        cluster = cluster._replace(pool=replace(cluster.pool, connect_timeout=max(cluster.pool.connect_timeout, least)))
        connection = self.login.begin(node, cluster, [], slot, autocommit=True, within=0.5 * timeout, asks=asks)
        connection.prepare_threshold = None  # behind a pooler, the next probe may get another server process
        return connection

    def recognize(self, connection: Connection[TupleRow], node: Node, cluster: Cluster) -> str:
        """Ask which server a connection leads to, and report it, since one address may lead to several servers.

        This takes one round trip.

        Args:
            connection: The connection, idle.
            node: The node that it was opened for.
            cluster: The cluster of the node, for its policies.

        Returns:
            The server's process, by its start time; empty behind a pooler, where the next transaction may get another
            server.

        Raises:
            psycopg.Error: The query failed.
        """
        if node.pooler is not None:
            return ""
        found = process_of(connection, cluster)
        self._clusters.report(OtherProcess(node, found))
        return found

    def connect(
        self,
        node: Node,
        cluster: Cluster,
        slot: Slot,
    ) -> tuple[Connection[TupleRow], Role]:
        """Open a connection to a node of any role, in autocommit, and report the result.

        Args:
            node: The node to connect to.
            cluster: The cluster of the node, for its policies.
            slot: The connection's slot of the budget.

        Returns:
            The connection, and the role of its server.

        Raises:
            ServerFull: The server has no room.
            Unable: This process could not ask the server.
            psycopg.OperationalError: The connection could not be opened.
        """
        connection, role, _ = self._open(node, cluster, [], slot, autocommit=True, optional=False, read_only=None)
        try:
            self._clusters.report(Connected(node, role))
        except BaseException:
            connection.close()
            raise
        return connection, role

    def _open(
        self,
        node: Node,
        cluster: Cluster,
        options: list[str],
        slot: Slot,
        *,
        autocommit: bool,
        optional: bool,
        read_only: bool | None,
    ) -> tuple[NodeConnection, Role, bool]:
        """Open a connection, or report the failure; return it, its server's role, and whether it refuses writes."""
        try:
            connection = self.login.begin(node, cluster, options, slot, autocommit=autocommit)
            try:
                role, refuses_writes = role_of(connection, cluster)
            except BaseException:
                connection.close()
                raise
        except (ServerFull, Unable):
            raise
        except (psycopg.errors.ConnectionTimeout, TooLate):
            self._clusters.suspect(node.server)  # this process may not have run for a while: a probe finds out
            raise
        except Exception as error:
            if was_cancelled(getattr(error, "sqlstate", None)):
                raise
            seen = failure(node, error)._replace(read_only=read_only)
            if seen.answered and optional:
                raise LoginRefused(f"accepts no further connection: {seen.reason}") from None
            self._clusters.report(seen)
            raise
        return connection, role, refuses_writes

    def _check_session(
        self,
        connection: Connection[TupleRow],
        node: Node,
        cluster: Cluster,
        startup: tuple[tuple[str, str], ...],
        *,
        read_only: bool,
    ) -> None:
        """Check that a session began with the tenant's settings, and that no undeclared pooler shares it."""
        try:
            [(pid, begun, *_)] = ask(connection, sql.session(startup), cluster)
        except NOT_THERE as error:
            why = why_not_there(error)
            self._clusters.report(AttemptFailed(node, why, answered=True, missing="schema", read_only=read_only))
            raise
        if is_undeclared(connection, node, pid):
            self._clusters.report(PoolerFound(node))
            raise NotItsOwn("a pooler answers there that the settings do not declare")
        if begun != b"t":
            names = ", ".join(name for name, _ in startup)
            reason = (
                f"a pooler there drops the startup options that make a session the tenant's ({names}): have it pass "
                'on `options`, or set pooling = "shared"'
            )
            self._clusters.report(AttemptFailed(node, reason, answered=True, read_only=read_only))
            raise NotItsOwn(reason)

    def _run_configure(
        self, configure: Configure, connection: Connection[TupleRow], node: Node, *, read_only: bool
    ) -> None:
        try:
            consult(configure, connection)
            if connection.pgconn.transaction_status:
                connection.commit()
        except RouterClosed:  # the router was dropped, and the callable with it: the callable did not fail
            raise
        except Exception:
            logger.exception("the router's configure callable failed for a connection to %s", node)
            why = "the configure callable failed; its error is in the log"
            self._clusters.report(AttemptFailed(node, why, answered=True, read_only=read_only))
            raise
