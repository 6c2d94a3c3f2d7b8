"""A primary with streaming standbys, and what can happen to them."""

# ruff: noqa: SLF001 - the two classes are one unit

from __future__ import annotations

import secrets
import signal
import socket
import sys
import time
import weakref
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import quote, urlencode

from router.testing._binaries import (
    account,
    cache_directory,
    cached,
    copy_foreign,
    data_directory,
    programs,
    wheel_version,
)
from router.testing._keeper import ClusterError, Keeper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Setting = str | int | float | bool

_HOST = "127.0.0.1"
_USER = "postgres"
_INITDB = (
    *("-U", _USER, "-A", "trust", "--encoding=UTF8", "--locale=C", "--wal-segsize=1", "--no-sync"),
    # A standby refuses to start with less than its data directory was last used with: so begin with the least there is.
    *("-c", "max_connections=4", "-c", "max_worker_processes=0", "-c", "max_wal_senders=0"),
    *("-c", "max_locks_per_transaction=10"),
    *("-c", "dynamic_shared_memory_type=mmap"),  # see below; initdb may be killed, too
)
_SETTINGS: dict[str, Setting] = {
    "fsync": False,
    "shared_buffers": "16MB",
    # In the data directory instead of /dev/shm: removed with it, and containers have 64 MB there.
    "dynamic_shared_memory_type": "mmap",
    # A standby that was away finds what it missed, without a slot that no failover would carry over.
    "wal_keep_size": "512MB",
    "max_wal_size": "256MB",
    "wal_retrieve_retry_interval": "100ms",
    "wal_receiver_status_interval": 1,
    "log_line_prefix": "%m [%p] ",
}
_PATIENCE = 30.0


class PostgresServer:
    """One server of a :class:`PostgresCluster`, which makes them.

    Every method returns when what it says is the case, and raises :class:`ClusterError` when it does not become so.

    Attributes:
        name: ``server1`` and so on, for good; the standby's ``application_name`` in ``pg_stat_replication``.
        host: The address it listens on.
        port: The TCP port, and the socket's number.
        data_dir: Its data directory.
        log: The file that it logs to.
    """

    def __init__(self, cluster: PostgresCluster, name: str) -> None:
        self._cluster = cluster
        self._keeper = cluster._keeper
        self._settings: dict[str, Setting] = {}
        self._pid: int | None = None
        self._log_start = 0
        home = cluster.directory / name
        self.name = name
        self.host = _HOST
        self.port = _free_port()
        self.data_dir = home / "data"
        self.log = home / "log"
        self._config = home / "postgresql.conf"

    def __repr__(self) -> str:
        return f"<PostgresServer {self.name} {self.host}:{self.port} {'standby' if self.is_standby else 'primary'}>"

    def dsn(self, dbname: str = "postgres", user: str = _USER, **params: object) -> str:
        """Return a connection URI for it.

        Args:
            dbname: The database.
            user: The role; for ``postgres`` the cluster's password, if it has one, is part of the URI.
            params: Further libpq parameters; ``host=cluster.directory`` connects through the socket.
        """
        host = str(params.pop("host", self.host))
        port = params.pop("port", self.port)
        password = params.pop("password", self._cluster.password if user == _USER else None)
        login = quote(user, safe="") + ("" if password is None else f":{quote(str(password), safe='')}")
        query = f"?{urlencode(params, quote_via=quote)}" if params else ""
        return f"postgresql://{login}@{quote(host, safe='')}:{port}/{quote(dbname, safe='')}{query}"

    def execute(self, query: str, params: Any = None, *, dbname: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as superuser, over a connection of its own, committed at once, and return its rows.

        Args:
            query: The statement.
            params: Its parameters.
            dbname: The database to run it in.
        """
        import psycopg  # a pytest plugin loads this module: nothing heavy before use

        with psycopg.connect(
            host=str(self._cluster.directory),
            port=self.port,
            user=_USER,
            dbname=dbname,
            autocommit=True,
            connect_timeout=10,
            options="",
        ) as connection:
            cursor = connection.execute(query.encode(), params)
            return cursor.fetchall() if cursor.description else []

    @property
    def running(self) -> bool:
        """Whether its postmaster lives; a frozen one does."""
        return self._pid is not None and not self._keeper.closed and self._keeper.poll(self._pid) is None

    @property
    def is_standby(self) -> bool:
        """Whether it is a standby, or will be when it is started."""
        return (self.data_dir / "standby.signal").exists()

    def start(self) -> None:
        """Start it again, in the role it had; nothing when it runs."""
        if not self.running:
            self._spawn()
            self._wait_started()

    def stop(self) -> None:
        """Shut it down as an administrator does (``fast``: sessions end with 57P01); nothing when it is stopped."""
        if self._pid is not None and self.running:
            pid = self._pid
            self.thaw()
            self._keeper.signal(pid, signal.SIGINT)
            _until(
                lambda: self._keeper.poll(pid) is not None,
                lambda: f"{self.name} does not shut down; a frozen standby can keep its primary from it. Use kill().",
            )

    def kill(self) -> None:
        """Kill every process of it (``SIGKILL``), as when it crashes; nothing when it is stopped."""
        if self._pid is not None:
            self._keeper.signal(self._pid, signal.SIGKILL)  # first, and also before it works in its directory
        self._keeper.kill(self.data_dir)

    def freeze(self) -> None:
        """Stop every process of it (``SIGSTOP``): connections are accepted and never answered, as when it hangs."""
        self._keeper.freeze(self.data_dir)

    def thaw(self) -> None:
        """End :meth:`freeze`."""
        self._keeper.thaw(self.data_dir)

    def promote(self) -> None:
        """Make this standby the primary; it accepts writes when this returns.

        The others go on following the old primary, and an old primary that still runs goes on accepting writes, until
        their :meth:`rejoin`. A synchronous cluster waits for no standby until one has rejoined.
        """
        self._require_standby()
        self.execute("SELECT pg_promote(wait => false)")
        self._until_true("SELECT NOT pg_is_in_recovery()", "is not promoted")
        self._cluster._primary = self

    def pause_replay(self) -> None:
        """Let this standby receive and no longer apply, until :meth:`resume_replay`."""
        self._require_standby()
        self.execute("SELECT pg_wal_replay_pause()")
        self._until_true("SELECT pg_get_wal_replay_pause_state() = 'paused'", "does not pause")

    def resume_replay(self) -> None:
        """End :meth:`pause_replay`."""
        self._require_standby()
        self.execute("SELECT pg_wal_replay_resume()")

    def lag(self, seconds: float) -> None:
        """Let this standby apply each commit this much after the primary made it; 0 ends that.

        Args:
            seconds: The delay, to the millisecond.
        """
        self._require_standby()
        self._configure(recovery_min_apply_delay=round(seconds * 1000))
        self._reload()

    def rejoin(self, primary: PostgresServer) -> None:
        """Come back as a standby of ``primary`` with a fresh copy of its data, whatever this server went through.

        Args:
            primary: Another server, running and no standby. What only this one had is lost.
        """
        if primary is self or primary.is_standby or not primary.running:
            raise ClusterError(
                f"{self.name} cannot follow {primary.name}: it must be another server, a running primary"
            )
        self.kill()
        self._keeper.remove(self.data_dir)
        self._cluster._run(
            "pg_basebackup",
            *("-h", self._cluster.directory, "-p", primary.port, "-U", _USER, "-D", self.data_dir),
            *("--checkpoint=fast", "--no-sync", "--no-manifest"),
        )
        self._follow(primary)
        self._settings.pop("recovery_min_apply_delay", None)
        self._settings.pop("synchronous_standby_names", None)
        self._configure()
        self.start()
        self._wait_streaming(primary)
        if self._cluster.synchronous:
            primary._wait_for_standbys()

    def wait_replayed(self) -> None:
        """Wait until this standby has applied everything that the cluster's primary has committed."""
        self._require_standby()
        self._wait_applied(self._cluster.primary._flushed())

    def _configure(self, **settings: Setting) -> None:
        self._settings |= settings
        self._keeper.write(
            self._config,
            "".join(
                f"{key} = {_literal(value)}\n"
                for key, value in {
                    **_SETTINGS,
                    **self._cluster.settings,
                    **self._settings,
                    "cluster_name": self.name,
                    "listen_addresses": self.host,
                    "port": self.port,
                    "unix_socket_directories": str(self._cluster.directory),
                    "hba_file": str(self._cluster.directory / "pg_hba.conf"),
                }.items()
            ),
        )

    def _reload(self) -> None:
        """Have the configuration read again.

        A new session shows the postmaster's reading, and by then the postmaster has signalled its children: those act
        on it before the next record or request.
        """
        if self._pid is not None:
            (before,) = self.execute("SELECT pg_conf_load_time()")
            self._keeper.signal(self._pid, signal.SIGHUP)
            _until(
                lambda: self.execute("SELECT pg_conf_load_time()") != [before],
                lambda: f"{self.name} does not read its configuration again",
            )

    def _follow(self, primary: PostgresServer) -> None:
        self._keeper.write(self.data_dir / "standby.signal", "")
        self._settings["primary_conninfo"] = (
            f"host={self._cluster.directory} port={primary.port} user={_USER} application_name={self.name}"
        )

    def _spawn(self) -> None:
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._pid = self._keeper.spawn(
            [self._cluster._programs / "postgres", "-D", self.data_dir, "-c", f"config_file={self._config}"], self.log
        )

    def _wait_started(self, *, may_move: bool = False) -> None:
        """Wait until it accepts connections; if somebody took its port meanwhile and it ``may_move``, try others."""

        def settled() -> bool:
            return self._ready() or not self.running

        while True:
            try:
                _until(settled, lambda: f"{self.name} does not start; the end of its log:\n{self._log_tail()}")
            except BaseException:
                self.kill()
                raise
            if self.running:
                return
            taken = "could not create any TCP/IP sockets" in self._log_tail()
            if not (taken and may_move):
                raise ClusterError(f"{self.name} does not start; the end of its log:\n{self._log_tail()}")
            self.port = _free_port()
            self._configure()
            self._spawn()

    def _ready(self) -> bool:
        """Say whether the postmaster has noted, as pg_ctl reads it too, that sessions may come."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self._pid) and lines[7].strip() == "ready"  # noqa: PLR2004 - line 8 of 8

    def _log_tail(self) -> str:
        with suppress(FileNotFoundError), self.log.open(encoding="utf-8", errors="replace") as log:
            log.seek(self._log_start)
            return "".join(log.readlines()[-20:])
        return ""

    def _wait_streaming(self, primary: PostgresServer) -> None:
        _until(
            lambda: primary.execute(
                "SELECT pid FROM pg_stat_replication WHERE application_name = %s AND state = 'streaming'", [self.name]
            ),
            lambda: f"{self.name} does not stream from {primary.name}; the end of its log:\n{self._log_tail()}",
        )

    def _wait_for_standbys(self) -> None:
        """Let commits wait for a standby from now on."""
        if "synchronous_standby_names" not in self._settings:
            self._configure(synchronous_standby_names="ANY 1 (*)")
            self._reload()
            # The checkpointer is who switches the waiting on, when it reads the configuration: before it does this.
            self.execute("CHECKPOINT")

    def _flushed(self) -> str:
        """Return the WAL position that covers every commit so far, asynchronous ones too."""
        # A commit that is flushed flushes all before it. The insert position would not do: at a page's end it points
        # past the next page's header, where the standbys of an idle primary never come.
        self.execute(
            "BEGIN; SET LOCAL synchronous_commit = local; SELECT pg_logical_emit_message(true, 'flush', ''); COMMIT"
        )
        ((position,),) = self.execute("SELECT pg_current_wal_flush_lsn()::text")
        return str(position)

    def _wait_applied(self, position: str) -> None:
        _until(
            lambda: self.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [position]) == [(True,)],
            lambda: f"{self.name} does not replay up to {position}; is its replay paused, or its primary another?",
        )

    def _until_true(self, query: str, problem: str) -> None:
        _until(
            lambda: self.execute(query) == [(True,)],
            lambda: f"{self.name} {problem}; the end of its log:\n{self._log_tail()}",
        )

    def _require_standby(self) -> None:
        if not self.is_standby:
            raise ClusterError(f"{self.name} is not a standby")


class PostgresCluster:
    """A real primary with streaming standbys, running when this returns; a context manager.

    It listens on 127.0.0.1 and on a socket in its directory. The database and the superuser are both ``postgres``.
    However this process ends, the servers and their directory go with it (but see :meth:`keep`). Durability is switched
    off: fit for tests and demonstrations, and for nothing else.

    Without a password *every* account of this machine may connect as superuser, which amounts to acting as the account
    that the servers run as: give one on a machine that you share.

    Args:
        version: PostgreSQL's major version, 16 or 18.
        standbys: How many standbys follow the primary.
        synchronous: Whether a commit waits until one standby has it on disk.
        settings: PostgreSQL settings for every server, such as ``{"max_connections": 20}``.
        password: A password for ``postgres``, required over TCP from then on (SCRAM).

    Attributes:
        version: As given.
        synchronous: As given.
        settings: As given.
        directory: Where everything is: the sockets, and a directory a server.
        servers: All servers, in the order they were made, whatever their roles are now.
        primary: The first server, or the one promoted last.

    Raises:
        ClusterError: It cannot be started; the message says why, and what to do.
    """

    def __init__(
        self,
        version: int = 18,
        standbys: int = 1,
        *,
        synchronous: bool = False,
        settings: Mapping[str, Setting] | None = None,
        password: str | None = None,
    ) -> None:
        if sys.platform != "linux":
            raise ClusterError("router.testing runs on Linux; elsewhere, run it in a container")
        self.version = version
        self.synchronous = synchronous
        self.settings = dict(settings or {})
        self.password = password
        user = account()
        cache = cache_directory(user)
        self._programs = programs(version, cache, user)
        self._keeper = Keeper(data_directory(user), *user)
        # Also at interpreter exit, and when nothing refers to the cluster any more.
        self._finalizer = weakref.finalize(self, self._keeper.close)
        self.directory = self._keeper.directory
        try:
            self.servers = tuple(PostgresServer(self, f"server{number + 1}") for number in range(standbys + 1))
            self._primary = self.servers[0]
            self._start(cache)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        self.close()
        return False

    def __repr__(self) -> str:
        return f"<PostgresCluster {self.version} {', '.join(map(repr, self.servers))}>"

    @property
    def primary(self) -> PostgresServer:
        """The first server, or the one promoted last."""
        return self._primary

    @property
    def standbys(self) -> tuple[PostgresServer, ...]:
        """The servers that are standbys now, or will be when they are started, in the order they were made."""
        return tuple(server for server in self.servers if server.is_standby)

    def dsn(self, dbname: str = "postgres", user: str = _USER, **params: object) -> str:
        """Return a connection URI for the primary; see :meth:`PostgresServer.dsn`."""
        return self.primary.dsn(dbname, user, **params)

    def version_settings(self) -> dict[str, Any]:
        """Return what the router's settings take as one version: ``primary`` and ``replicas``, as connection URIs."""
        return {"primary": self.dsn(), "replicas": [standby.dsn() for standby in self.standbys]}

    def wait_replayed(self) -> None:
        """Wait until every running standby has applied everything that the primary has committed."""
        position = self.primary._flushed()
        for standby in self.standbys:
            if standby.running:
                standby._wait_applied(position)

    def keep(self) -> int:
        """Let the servers outlive this process and the ``with`` block.

        Returns:
            The id of the process that looks after them: ``kill <id>`` stops them all and removes their directory.
        """
        self._keeper.keep()
        return self._keeper.pid

    def close(self) -> None:
        """Kill the servers and remove the directory, unless kept; nothing the second time."""
        self._finalizer()

    def _start(self, cache: Path) -> None:
        template = self._template(cache)
        method = "trust" if self.password is None else "scram-sha-256"
        self._keeper.write(
            self.directory / "pg_hba.conf",
            f"local all all trust\nlocal replication all trust\n"  # the directory is closed to other accounts
            f"host all all {_HOST}/32 {method}\nhost replication all {_HOST}/32 {method}\n",
        )
        copies = []
        for server in self.servers:
            server._configure()  # makes its home
            copies.append(self._keeper.spawn(["cp", "-R", template, server.data_dir], server.log))
        primary, *standbys = self.servers
        self._finish("cp", copies[0], primary.log)
        primary._spawn()
        primary._wait_started(may_move=True)
        if self.password is not None:
            self._set_password(self.password)
        for server, copy in zip(standbys, copies[1:], strict=True):
            self._finish("cp", copy, server.log)
            server._follow(primary)
            server._configure()
            server._spawn()
        for server in standbys:
            server._wait_started(may_move=True)
        for server in standbys:
            server._wait_streaming(primary)
        self.wait_replayed()
        if self.synchronous:
            primary._wait_for_standbys()

    def _template(self, cache: Path) -> Path:
        """Return a data directory as initdb leaves it: copies of one are what lets a server follow another."""

        def build(tree: Path) -> None:
            new = self.directory / "new"
            self._run("initdb", "-D", new, *_INITDB)
            copy_foreign(new, tree)
            self._keeper.remove(new)

        options = zlib.crc32(" ".join(_INITDB).encode())
        return cached(cache, f"data-{wheel_version()}-{self.version}-{options:08x}", build)

    def _set_password(self, password: str) -> None:
        """Give ``postgres`` its password; the server sees only what SCRAM stores, so no log shows more."""
        import psycopg

        with psycopg.connect(
            host=str(self.directory), port=self.primary.port, user=_USER, dbname="postgres", autocommit=True, options=""
        ) as connection:
            stored = connection.pgconn.encrypt_password(password.encode(), _USER.encode(), b"scram-sha-256")
            connection.execute(
                psycopg.sql.SQL("ALTER ROLE {} PASSWORD {}").format(psycopg.sql.Identifier(_USER), stored.decode())
            )

    def _run(self, program: str, *arguments: object) -> None:
        log = self.directory / f"{program}.log"
        self._finish(program, self._keeper.spawn([self._programs / program, *map(str, arguments)], log), log)

    def _finish(self, program: str, pid: int, log: Path) -> None:
        def output() -> str:
            return log.read_text(encoding="utf-8", errors="replace")[-2000:]

        try:
            _until(lambda: self._keeper.poll(pid) is not None, lambda: f"{program} does not end:\n{output()}")
        except BaseException:
            self._keeper.signal(pid, signal.SIGKILL)
            raise
        if self._keeper.poll(pid) != 0:
            raise ClusterError(f"{program} failed:\n{output()}")


def _until(condition: Callable[[], object], problem: Callable[[], str]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(problem())
        time.sleep(0.005)


def _literal(value: Setting) -> str:
    text = ("on" if value else "off") if isinstance(value, bool) else str(value)
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def _free_port() -> int:
    """Return a port that nobody listens on now, outside the range that outgoing connections draw theirs from.

    Within that range, a connection somewhere could take the port of a server that is stopped for a moment.
    """
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="utf-8").split()[0])
    first, end = (10000, low) if low > 11000 else (10000, 65536)  # noqa: PLR2004 - enough to choose from
    while True:
        port = first + secrets.randbelow(end - first)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((_HOST, port))
            return port
