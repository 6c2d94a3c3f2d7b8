"""How one connection is opened: password, role, budget, and what is learnt from the attempt."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from router._async.pool.connection import AsyncNodeConnection, AsyncPooledConnection
from router._async.pool.scripts import NOT_THERE, TooLate, send, why_not_there
from router._runtime.calls import aconsult
from router._runtime.login import LOCAL_ERRORS, LoginFailed
from router._runtime.names import Names
from router.core import sql
from router.core.errors import RouterClosed, masked
from router.core.health import REFUSES_WRITES
from router.core.observations import AttemptFailed, Connected, OtherProcess, PoolerFound, ProbeResult, read_failure
from router.core.standing import role_mismatch
from router.core.topology import Role
from router.settings.dsn import KEEPALIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from psycopg.rows import TupleRow

    from router._async.clusters import AsyncClusters
    from router._async.slots import AsyncSlot, AsyncSlots
    from router._runtime.calls import AConfigure, AFunction, APassword
    from router.core.topology import Cluster, Node, Server

READ_ONLY = "-c default_transaction_read_only=on"
SNAPSHOT = "-c default_transaction_isolation=repeatable\\ read"

logger = logging.getLogger("router")


class WrongRole(psycopg.OperationalError):
    """The server turned out to have a role that this connection must not have."""


class ServerFull(psycopg.OperationalError):
    """The server takes no further connection."""


class LoginRefused(psycopg.OperationalError):
    """The server refused the login of a connection that requests can do without."""


class NotItsOwn(psycopg.OperationalError):
    """The session is not the one that it has to be for a tenant."""


class Unable(psycopg.OperationalError):
    """This process could not get as far as to ask a server: that says nothing of the server."""

    def __init__(self, error: Exception) -> None:
        """Say what was wanting.

        Args:
            error: What was raised.
        """
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        super().__init__(f"this process cannot connect: {type(error).__name__}: {text}")


class NoPassword(psycopg.OperationalError):
    """The password that the settings or the user's callable should give could not be had."""


class Session(NamedTuple):
    """What a server shows of a session.

    Attributes:
        began: When it began, in the server's words.
        age: How old it is, in seconds; ``None`` if the server does not tell.
        rests_since: Since when it waits for its client to send something; empty if it does not.
    """

    began: bytes
    age: float | None
    rests_since: bytes


class AsyncOpener:
    """Opens connections to nodes, and reports what each attempt shows.

    Attributes:
        slots: The process's budget.
    """

    def __init__(
        self,
        slots: AsyncSlots,
        clusters: AsyncClusters,
        *,
        password: APassword | None,
        configure: AConfigure | None,
    ) -> None:
        """Keep what every attempt needs.

        Args:
            slots: The process's budget.
            clusters: Told what each attempt shows.
            password: Asked for a node's password; its answer is kept until a server turns it down.
            configure: Called with each new connection that requests will use.
        """
        self.slots = slots
        self._clusters = clusters
        self._ask = password
        self._configure = configure
        self._answers: dict[Node, str] = {}
        self._names = Names()
        self._without_control: set[Server] = set()  # where the control file is not for us

    async def open(
        self,
        node: Node,
        cluster: Cluster,
        slot: AsyncSlot,
        *,
        read_only: bool,
        startup: tuple[tuple[str, str], ...] | None,
        optional: bool,
    ) -> AsyncNodeConnection:
        """Open a connection for requests.

        Args:
            node: Where to.
            cluster: The cluster it serves, for its policies.
            slot: Its slot of the budget.
            read_only: Whether its session refuses writes.
            startup: The settings with which a session of a tenant's has to begin; ``None`` where the session does not
                matter, since it is nobody's or its user or database is what keeps the tenant apart.
            optional: Whether requests can do without it: a refusal of the login is then raised, and not reported.

        Returns:
            The connection, configured.

        Raises:
            ServerFull: The server has no room.
            LoginRefused: The server refused the login of an optional connection.
            WrongRole: The server's role is not fit for this use.
            NotItsOwn: The session is not one that can be a tenant's.
            psycopg.OperationalError: It could not be opened.
        """
        autocommit = read_only and cluster.read.autocommit and node.pooler != "transaction"
        options = [READ_ONLY] if read_only else []
        if read_only and not autocommit:
            options.append(SNAPSHOT)
        connection, role, refuses_writes = await self._open(
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
                await self._clusters.report(Connected(node, role, read_only))
                raise WrongRole(reason)
            if refuses_writes and not read_only:
                await self._clusters.report(
                    AttemptFailed(node, REFUSES_WRITES, answered=True, read_only=read_only, refuses_writes=True)
                )
                raise WrongRole(REFUSES_WRITES)
            if isinstance(connection, AsyncPooledConnection):
                await connection.set_read_only(read_only or None)
                if read_only and not cluster.read.autocommit:
                    await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
            if startup is not None and node.pooler != "transaction":
                await self._check_session(connection, node, cluster, startup, read_only=read_only)
            if self._configure is not None:
                await self._run_configure(self._configure, connection, node, read_only=read_only)
            await self._clusters.report(Connected(node, role, read_only))
        except BaseException:
            await connection.close()
            raise
        return connection

    def forget_unused(self) -> None:
        """Forget the passwords of nodes that nothing connects to any more."""
        if self._answers:
            used = {node for cluster in self._clusters for node in cluster.nodes}
            for node in self._answers.keys() - used:
                self._answers.pop(node, None)

    async def connect_to_look(
        self, node: Node, cluster: Cluster, slot: AsyncSlot, *, timeout: float, asks: Callable[[], None]
    ) -> AsyncConnection[TupleRow]:
        """Open a connection for looking at a server; nothing is reported.

        Args:
            node: Whose login to use.
            cluster: The cluster it serves, for its policies.
            slot: Its slot of the budget.
            timeout: The most seconds that whoever looks waits for the server.
            asks: Called when this process has all it needs, and the server is asked.

        Returns:
            The connection, in autocommit.

        Raises:
            ServerFull: The server has no room.
            Unable: This process could not ask the server.
            psycopg.OperationalError: It could not be opened.
        """
        least = ceil(2.0 * timeout)  # only where this process did not run for long does that end first
        cluster = cluster._replace(pool=replace(cluster.pool, connect_timeout=max(cluster.pool.connect_timeout, least)))
        connection = await self._connect(node, cluster, [], slot, autocommit=True, within=0.5 * timeout, asks=asks)
        connection.prepare_threshold = None  # behind a pooler, the next look may have another server process
        return connection

    async def look(self, connection: AsyncConnection[TupleRow], node: Node, *, new: bool = False) -> ProbeResult:
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
            [(standby, position, timeline, system, replay_age, refuses, pid, process)] = await send(
                connection, query.encode()
            )
        except psycopg.errors.InsufficientPrivilege:
            if query is sql.PROBE_WITHOUT_CONTROL:
                raise
            self._without_control.add(node.server)
            return await self.look(connection, node, new=new)
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

    async def sessions(self, connection: AsyncConnection[TupleRow], pids: Sequence[int]) -> dict[int, Session]:
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
            for pid, began, age, since in await send(connection, sql.sessions(pids).encode())
        }

    async def terminate(self, connection: AsyncConnection[TupleRow], pid: int, began: bytes) -> None:
        """Have a server end a session that its client cannot end any more.

        Args:
            connection: To the server, in autocommit.
            pid: The session's process.
            began: When that began, in the server's words.

        Raises:
            psycopg.Error: It refuses, say.
        """
        await send(connection, sql.terminate(pid, began.decode()).encode())

    async def recognize(self, connection: AsyncConnection[TupleRow], node: Node, cluster: Cluster) -> str:
        """Ask which server a connection leads to, and report it: one address may lead to several. One round trip.

        Args:
            connection: The connection, idle.
            node: What it was opened for.
            cluster: The cluster it serves, for its policies.

        Returns:
            Which run of which server it is; empty behind a pooler, where the next transaction may have another one.

        Raises:
            psycopg.Error: It does not say.
        """
        if node.pooler is not None:
            return ""
        [(process,)] = await _told(connection, f"SELECT {sql.PROCESS}", cluster)
        found = process.decode() if process else ""
        await self._clusters.report(OtherProcess(node, found))
        return found

    async def connect(
        self,
        node: Node,
        cluster: Cluster,
        slot: AsyncSlot,
    ) -> tuple[AsyncConnection[TupleRow], Role]:
        """Open a connection to a node of whatever role, in autocommit, and report how that went.

        Args:
            node: Where to.
            cluster: The cluster it serves, for its policies.
            slot: Its slot of the budget.

        Returns:
            The connection, and the role of its server.

        Raises:
            ServerFull: The server has no room.
            Unable: This process could not ask the server.
            psycopg.OperationalError: It could not be opened.
        """
        connection, role, _ = await self._open(node, cluster, [], slot, autocommit=True, optional=False, read_only=None)
        try:
            await self._clusters.report(Connected(node, role))
        except BaseException:
            await connection.close()
            raise
        return connection, role

    async def _open(
        self,
        node: Node,
        cluster: Cluster,
        options: list[str],
        slot: AsyncSlot,
        *,
        autocommit: bool,
        optional: bool,
        read_only: bool | None,
    ) -> tuple[AsyncNodeConnection, Role, bool]:
        """Open a connection, and report it if that fails; the role of its server, and whether it refuses writes."""
        try:
            connection = await self._connect(node, cluster, options, slot, autocommit=autocommit)
            try:
                role, refuses_writes = await _role(connection, cluster)
            except BaseException:
                await connection.close()
                raise
        except (ServerFull, Unable):
            raise
        except (psycopg.errors.ConnectionTimeout, TooLate):
            self._clusters.suspect(node.server)  # it may also be that this process did not run: a look finds out
            raise
        except Exception as error:
            seen = self.failure(node, error)._replace(read_only=read_only)
            if seen.answered and optional:
                raise LoginRefused(f"takes no further connection: {seen.reason}") from None
            await self._clusters.report(seen)
            raise
        return connection, role, refuses_writes

    @staticmethod
    def failure(node: Node, error: Exception) -> AttemptFailed:
        """Say what a failed attempt to connect shows.

        Args:
            node: What it was an attempt at.
            error: How it failed.

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
        return AttemptFailed(node, type(error).__name__, answered=True)  # its text may hold anything

    async def _connect(
        self,
        node: Node,
        cluster: Cluster,
        options: list[str],
        slot: AsyncSlot,
        *,
        autocommit: bool,
        within: float | None = None,
        asks: Callable[[], None] = lambda: None,
    ) -> AsyncNodeConnection:
        kind: type[AsyncNodeConnection] = AsyncNodeConnection
        if node.pooler == "transaction":  # which knows nothing of sessions, nor of what they begin with
            kind, options = AsyncPooledConnection, []
        try:
            params = _params(node, cluster, options)
            within = float(cluster.pool.connect_timeout) if within is None else within
            connection = await self._log_in(node, kind, params, within, autocommit=autocommit, asks=asks)
            connection.slot = slot  # from here on, whatever closes it gives the slot back
        except LoginFailed as error:
            seen = self.failure(node, error)
            if not seen.server_full:
                raise
            self.slots.refuse(slot, seen.reason)
            raise ServerFull(f"takes no further connection: {seen.reason}") from None
        except psycopg.Error:
            raise
        except Exception as error:
            raise Unable(error) from error
        try:
            self.slots.fill(slot, connection)
        except BaseException:
            await connection.close()
            raise
        if node.pooler == "transaction":
            connection.prepare_threshold = None
        return connection

    async def _log_in(
        self,
        node: Node,
        kind: type[AsyncNodeConnection],
        params: dict[str, str],
        within: float,
        *,
        autocommit: bool,
        asks: Callable[[], None],
    ) -> AsyncNodeConnection:
        kept = self._answers.get(node)
        session: dict[str, Any] = {"autocommit": autocommit}
        if (password := await self._password(node)) is not None:
            session["password"] = password
        places = await self._places(node.server.host, within)
        asks()
        try:
            return await _connect_to(kind, places, params, session)
        except psycopg.OperationalError as error:
            # libpq gives no SQLSTATE here (28P01 is what it would be), but it knows that the password was sent.
            if error.pgconn is None or not error.pgconn.used_password:
                raise
            if self._answers.get(node) == password:  # else another attempt has asked anew meanwhile
                self._answers.pop(node, None)
            if kept is None:
                raise
        return await self._log_in(node, kind, params, within, autocommit=autocommit, asks=asks)

    async def addresses(self, server: Server, timeout: float) -> list[str]:
        """Find the addresses of a server.

        Args:
            server: The server.
            timeout: The most seconds to wait until its name is resolved.

        Returns:
            Its addresses, or the directory of its socket.

        Raises:
            Unable: Its name cannot be resolved, or not in time.
        """
        if _is_address(server.host):
            return [server.host]
        try:
            return await self._names.aaddresses(server.host, timeout)
        except (OSError, RuntimeError) as error:
            raise Unable(error) from error

    async def _places(self, host: str, within: float) -> list[dict[str, str]]:
        """Say in libpq's words where to connect to, one after the other, with no name left to be resolved."""
        if _is_address(host):
            return [{}]
        return [{"hostaddr": address} for address in await self._names.aaddresses(host, within)]

    async def _password(self, node: Node) -> str | None:
        if self._ask is not None:
            if node not in self._answers:
                try:
                    self._answers[node] = await aconsult(self._ask, node)
                except RouterClosed:  # dropped meanwhile: the callable is gone, and did not fail
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
                # A name without a directory may be the password itself.
                named = f" {masked(str(node.password_file))}" if node.password_file.is_absolute() else ""
                raise NoPassword(f"its password_file{named} cannot be read: {why}") from None
        return None

    async def _check_session(
        self,
        connection: AsyncConnection[TupleRow],
        node: Node,
        cluster: Cluster,
        startup: tuple[tuple[str, str], ...],
        *,
        read_only: bool,
    ) -> None:
        """Make sure that a session can be a tenant's, and is the one's that it begins as."""
        try:
            [(pid, begun, *_)] = await _told(connection, sql.session(startup), cluster)
        except NOT_THERE as error:
            why = why_not_there(error)
            await self._clusters.report(AttemptFailed(node, why, answered=True, missing="schema", read_only=read_only))
            raise
        if is_undeclared(connection, node, pid):
            await self._clusters.report(PoolerFound(node))
            raise NotItsOwn("a pooler answers there that the settings do not declare")
        if begun != b"t":
            names = ", ".join(name for name, _ in startup)
            reason = (
                f"a pooler there drops the startup options that make a session the tenant's ({names}): have it pass "
                'on `options`, or set pooling = "shared"'
            )
            await self._clusters.report(AttemptFailed(node, reason, answered=True, read_only=read_only))
            raise NotItsOwn(reason)

    async def _run_configure(
        self, configure: AConfigure, connection: AsyncConnection[TupleRow], node: Node, *, read_only: bool
    ) -> None:
        try:
            await aconsult(configure, connection)
            if connection.pgconn.transaction_status:
                await connection.commit()
        except RouterClosed:  # dropped meanwhile: the callable is gone, and did not fail
            raise
        except Exception:
            logger.exception("the router's configure callable failed for a connection to %s", node)
            why = "the configure callable failed; its error is in the log"
            await self._clusters.report(AttemptFailed(node, why, answered=True, read_only=read_only))
            raise


def is_undeclared(connection: AsyncConnection[TupleRow], node: Node, pid: bytes | None) -> bool:
    """Tell whether a pooler answers for a server, although the settings do not say so.

    A pooler hands out numbers of its own, PgBouncer in every mode. In which mode it is cannot be asked; that a session
    is somebody else's by now would show too late.

    Args:
        connection: The connection.
        node: What it was opened for.
        pid: The number of the server's process, as that says itself.

    Returns:
        Whether one does.
    """
    return node.pooler is None and str(connection.pgconn.backend_pid).encode() != pid


def _params(node: Node, cluster: Cluster, options: list[str]) -> dict[str, str]:
    params = {
        "connect_timeout": str(cluster.pool.connect_timeout),
        **KEEPALIVE,
        **dict(node.params + node.secrets.values),
        "target_session_attrs": "any",  # whatever the environment or a service file says: roles are observed
    }
    if options:
        params["options"] = " ".join(filter(None, (params.get("options"), *options)))
    return params


async def _connect_to(
    kind: type[AsyncNodeConnection],
    places: list[dict[str, str]],
    params: dict[str, str],
    session: dict[str, Any],
) -> AsyncNodeConnection:
    """Connect to the first of the addresses where a server takes the login, or says why not.

    What this process cannot do counts if nothing else is known of any: without IPv6 it can assign no address for the
    servers' IPv6 ones.
    """
    connect: AFunction[..., AsyncNodeConnection] = kind.connect
    if getattr(connect, "__self__", kind) is not kind:
        # What OpenTelemetry leaves behind once it no longer traces psycopg makes connections of that class alone.
        connect = partial(connect.__func__, kind)  # type: ignore[attr-defined]
    failure: Exception | None = None
    for place in places:
        try:
            return await connect(make_conninfo("", **{**params, **place}), **session)
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
    """Whether there is nothing to resolve: an IP address, or the directory of a socket."""
    if host.startswith(("/", "@")):
        return True
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def _told(
    connection: AsyncConnection[TupleRow], question: str, cluster: Cluster
) -> list[tuple[bytes | None, ...]]:
    """Ask a new connection something: a pool opens one at a time, and must not wait for ever."""
    return await send(connection, question.encode(), monotonic() + cluster.pool.connect_timeout)


async def _role(connection: AsyncConnection[TupleRow], cluster: Cluster) -> tuple[Role, bool]:
    """The role of a server, and whether the session refuses writes by default."""
    standby = connection.pgconn.parameter_status(b"in_hot_standby")
    refuses_writes = connection.pgconn.parameter_status(b"default_transaction_read_only")
    if standby is None or refuses_writes is None:  # PostgreSQL before 14, or a pooler that does not pass them on
        [(standby, refuses_writes)] = await _told(connection, sql.ROLE, cluster)
    return Role.REPLICA if standby in {b"on", b"t"} else Role.PRIMARY, refuses_writes in {b"on", b"t"}
