# Generated from router/_async/pool/login.py by tools/async_to_sync.py: do not edit.
"""Begins sessions: within the budget, with the node's password, at one of its server's addresses."""

from __future__ import annotations

import logging
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import make_conninfo

from router._runtime.calls import consult
from router._runtime.login import LOCAL_ERRORS, LoginFailed
from router._runtime.names import Names
from router._sync.pool.connection import NodeConnection
from router._sync.pool.pooled import PooledConnection
from router.core.errors import RouterClosed, masked
from router.core.observations import AttemptFailed, read_failure
from router.settings.dsn import KEEPALIVE

if TYPE_CHECKING:
    from collections.abc import Callable

    from router._runtime.calls import Function, Password
    from router._sync.clusters import Clusters
    from router._sync.slot import Slot
    from router._sync.slots import Slots
    from router.core.topology import Cluster, Node, Server

logger = logging.getLogger("router")


class ServerFull(psycopg.OperationalError):
    """The server accepts no further connection."""


class Unable(psycopg.OperationalError):
    """This process failed before it could ask the server: that says nothing about the server."""

    def __init__(self, error: Exception) -> None:
        """Make the error with the reason.

        Args:
            error: The error that was raised.
        """
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        super().__init__(f"this process cannot connect: {type(error).__name__}: {text}")


class NoPassword(psycopg.OperationalError):
    """The settings or the application's callable could not provide the password."""


class Login:
    """Begins sessions; remembers the passwords that the application's callable returned, and the addresses of hosts."""

    def __init__(self, slots: Slots, password: Password | None) -> None:
        """Begin with no passwords and addresses.

        Args:
            slots: The process's budget.
            password: Called for a node's password; its answer is remembered until a server rejects it.
        """
        self._slots = slots
        self._ask = password
        self._answers: dict[Node, str] = {}
        self._names = Names()

    @property
    def remembered(self) -> int:
        """The number of nodes whose password is remembered."""
        return len(self._answers)

    def forget_unused(self, clusters: Clusters) -> None:
        """Forget the passwords of nodes that are not in use any more.

        Args:
            clusters: The clusters in use.
        """
        if self._answers:
            used = {node for cluster in clusters for node in cluster.nodes}
            for node in self._answers.keys() - used:
                self._answers.pop(node, None)

    def begin(
        self,
        node: Node,
        cluster: Cluster,
        options: list[str],
        slot: Slot,
        *,
        autocommit: bool,
        within: float | None = None,
        asks: Callable[[], None] = lambda: None,
    ) -> NodeConnection:
        """Begin a session.

        Args:
            node: The node to connect to.
            cluster: The cluster of the node, for its policies.
            options: Startup options, added to the node's own.
            slot: The connection's slot of the budget.
            autocommit: Whether the connection is in autocommit.
            within: The most seconds until the host's name is resolved; ``None`` takes ``pool.connect_timeout``.
            asks: Called when password and addresses are known, just before the server is asked.

        Returns:
            The connection.

        Raises:
            ServerFull: The server has no room.
            Unable: This process could not ask the server.
            psycopg.OperationalError: The connection could not be opened.
        """
        kind: type[NodeConnection] = NodeConnection
        if node.pooler == "transaction":  # a transaction pooler keeps no sessions, so no startup options either
            kind, options = PooledConnection, []
        try:
            params = _params(node, cluster, options)
            within = float(cluster.pool.connect_timeout) if within is None else within
            connection = self._log_in(node, kind, params, within, autocommit=autocommit, asks=asks)
            connection.slot = slot  # from here on, closing the connection returns the slot
        except LoginFailed as error:
            seen = failure(node, error)
            if not seen.server_full:
                raise
            self._slots.refuse(slot, seen.reason)
            raise ServerFull(f"accepts no further connection: {seen.reason}") from None
        except psycopg.Error:
            raise
        except Exception as error:
            raise Unable(error) from error
        try:
            self._slots.fill(slot, connection)
        except BaseException:
            connection.close()
            raise
        if node.pooler == "transaction":
            connection.prepare_threshold = None
        return connection

    def _log_in(
        self,
        node: Node,
        kind: type[NodeConnection],
        params: dict[str, str],
        within: float,
        *,
        autocommit: bool,
        asks: Callable[[], None],
    ) -> NodeConnection:
        kept = self._answers.get(node)
        session: dict[str, Any] = {"autocommit": autocommit}
        if (password := self._password(node)) is not None:
            session["password"] = password
        places = self._places(node.server.host, within)
        asks()
        try:
            return _connect_to(kind, places, params, session)
        except psycopg.OperationalError as error:
            # libpq may give no SQLSTATE here (it would be 28P01), but it knows that the password was sent.
            if error.pgconn is None or not error.pgconn.used_password:
                raise
            if self._answers.get(node) == password:  # otherwise another attempt has fetched a new password meanwhile
                self._answers.pop(node, None)
            if kept is None:
                raise
        return self._log_in(node, kind, params, within, autocommit=autocommit, asks=asks)

    def addresses(self, server: Server, timeout: float) -> list[str]:
        """Find the addresses of a server.

        Args:
            server: The server.
            timeout: The most seconds to wait until its name is resolved.

        Returns:
            Its addresses, or the directory of its socket.

        Raises:
            Unable: The name cannot be resolved, or not in time.
        """
        if _is_address(server.host):
            return [server.host]
        try:
            return self._names.addresses(server.host, timeout)
        except (OSError, RuntimeError) as error:
            raise Unable(error) from error

    def _places(self, host: str, within: float) -> list[dict[str, str]]:
        """List libpq's parameters for each address to try, in order, so that libpq resolves no name."""
        if _is_address(host):
            return [{}]
        return [{"hostaddr": address} for address in self._names.addresses(host, within)]

    def _password(self, node: Node) -> str | None:
        if self._ask is not None:
            if node not in self._answers:
                try:
                    self._answers[node] = consult(self._ask, node)
                except RouterClosed:  # the router was dropped, and the callable with it: the callable did not fail
                    raise
                except Exception:
                    logger.exception("the router's password callable failed for %s", node)
                    raise NoPassword("the password callable failed; its error is in the log") from None
            return self._answers[node]
        if node.password_file is not None:
            try:
                return node.password_file.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
            except (OSError, UnicodeDecodeError) as error:
                if isinstance(error, OSError) and error.errno in LOCAL_ERRORS:
                    raise
                why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                # A file name without a directory may be the password itself, so it is not shown.
                named = f" {masked(str(node.password_file))}" if node.password_file.is_absolute() else ""
                raise NoPassword(f"its password_file{named} cannot be read: {why}") from None
        return None


def failure(node: Node, error: Exception) -> AttemptFailed:
    """Tell what a failed attempt to connect shows.

    Args:
        node: The node that the attempt was for.
        error: The error of the attempt.

    Returns:
        The observation.
    """
    if isinstance(error, Unable):
        return AttemptFailed(node, str(error), answered=False)
    if isinstance(error, NoPassword):
        return AttemptFailed(node, str(error), answered=True)
    if isinstance(error, LoginFailed):
        return read_failure(node, str(error), error.sqlstate, error.routine)
    if isinstance(error, psycopg.OperationalError):
        return read_failure(node, str(error))
    return AttemptFailed(node, type(error).__name__, answered=True)  # without its text, which may hold a secret


def _params(node: Node, cluster: Cluster, options: list[str]) -> dict[str, str]:
    params = {
        "connect_timeout": str(cluster.pool.connect_timeout),
        **KEEPALIVE,
        **dict(node.params + node.secrets.values),
        "target_session_attrs": "any",  # overrides the environment and service files: the router observes roles itself
    }
    if options:
        params["options"] = " ".join(filter(None, (params.get("options"), *options)))
    return params


def _connect_to(
    kind: type[NodeConnection],
    places: list[dict[str, str]],
    params: dict[str, str],
    session: dict[str, Any],
) -> NodeConnection:
    """Connect to the first address where a server accepts the login, or refuses it with a reason.

    An error of this process is raised only if no address gave another error: without IPv6, for example, it cannot
    connect to a server's IPv6 addresses.
    """
    connect: Function[..., NodeConnection] = kind.connect
    if getattr(connect, "__self__", kind) is not kind:
        # Once OpenTelemetry stops tracing psycopg, it leaves a ``connect`` bound to one class on all subclasses.
        connect = partial(connect.__func__, kind)  # type: ignore[attr-defined]
    failure: Exception | None = None
    for place in places:
        try:
            return connect(make_conninfo("", **{**params, **place}), **session)
        except LoginFailed as error:
            if error.sqlstate is not None:
                raise
            failure = error
        except psycopg.errors.ConnectionTimeout as error:
            failure = error
        except OSError as error:
            failure = failure or error
    assert failure is not None  # noqa: S101  (there is at least one address)
    raise failure


def _is_address(host: str) -> bool:
    """Whether a host needs no resolving: it is an IP address, or the directory of a socket."""
    if host.startswith(("/", "@")):
        return True
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
