"""One server of a cluster: how it starts and ends, its role, and its faults."""

# ruff: noqa: SLF001  (a cluster and its servers are one unit)

from __future__ import annotations

import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from router.testing._keeper import ClusterError
from router.testing._setup import HOST, PATIENCE, SETTINGS, USER, free_port, literal, wait_until

if TYPE_CHECKING:
    from router.testing._cluster import PostgresCluster
    from router.testing._setup import Setting

CANCELLED = "due to conflict with recovery"
"""The message of a standby whose recovery cancels a login: psycopg has no SQLSTATE for it; here it is in English."""


class PostgresServer:
    """One server of a :class:`PostgresCluster`, which makes its servers.

    Each method returns once the server is in the described state, and raises :class:`ClusterError` if that takes too
    long.

    Attributes:
        name: ``server1`` and so on, which never changes; a standby's ``application_name`` in ``pg_stat_replication``.
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
        self.host = HOST
        self.port = free_port()
        self.data_dir = home / "data"
        self.log = home / "log"
        self._config = home / "postgresql.conf"

    def __repr__(self) -> str:
        return f"<PostgresServer {self.name} {self.host}:{self.port} {'standby' if self.is_standby else 'primary'}>"

    def dsn(self, dbname: str = "postgres", user: str = USER, **params: object) -> str:
        """Return a connection URI for this server.

        Args:
            dbname: The database.
            user: The role; for ``postgres`` the cluster's password, if it has one, is part of the URI.
            params: Further libpq parameters; ``host=cluster.directory`` connects through the socket.
        """
        host = str(params.pop("host", self.host))
        port = params.pop("port", self.port)
        password = params.pop("password", self._cluster.password if user == USER else None)
        login = quote(user, safe="") + ("" if password is None else f":{quote(str(password), safe='')}")
        query = f"?{urlencode(params, quote_via=quote)}" if params else ""
        return f"postgresql://{login}@{quote(host, safe='')}:{port}/{quote(dbname, safe='')}{query}"

    def execute(self, query: str, params: Any = None, *, dbname: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as superuser, over a connection of its own, commit it at once, and return its rows.

        A standby cancels statements and logins that conflict with its recovery; such a statement is run again.

        Args:
            query: The statement.
            params: Its parameters.
            dbname: The database to run it in.
        """
        import psycopg  # not at the top: a pytest plugin loads this module in every run

        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._execute(query, params, dbname)
            except psycopg.OperationalError as error:
                conflicts = isinstance(error, psycopg.errors.SerializationFailure) or CANCELLED in str(error)
                if not (conflicts and self.is_standby) or time.monotonic() > deadline:
                    raise
            time.sleep(0.005)

    def _execute(self, query: str, params: Any, dbname: str) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(
            host=str(self._cluster.directory),
            port=self.port,
            user=USER,
            dbname=dbname,
            autocommit=True,
            connect_timeout=10,
            options="",
        ) as connection:
            cursor = connection.execute(query.encode(), params)
            return cursor.fetchall() if cursor.description else []

    @property
    def running(self) -> bool:
        """Whether its postmaster lives, frozen or not."""
        return self._pid is not None and not self._keeper.closed and self._keeper.poll(self._pid) is None

    @property
    def is_standby(self) -> bool:
        """Whether it is a standby, or will be when it is started."""
        return (self.data_dir / "standby.signal").exists()

    def start(self) -> None:
        """Start the server again, in the role that it had; do nothing if it runs."""
        if not self.running:
            self._spawn()
            self._wait_started()

    def stop(self) -> None:
        """Shut the server down as an administrator does (``fast``: sessions end with 57P01), if it runs."""
        if self._pid is not None and self.running:
            pid = self._pid
            self.thaw()
            self._keeper.signal(pid, signal.SIGINT)
            wait_until(
                lambda: self._keeper.poll(pid) is not None,
                lambda: f"{self.name} does not shut down; a frozen standby can keep its primary from it. Use kill().",
            )

    def kill(self) -> None:
        """Kill every process of the server (``SIGKILL``), as in a crash; do nothing if it is stopped."""
        if self._pid is not None:
            # The postmaster is killed first, and by its id: it may not have changed to its data directory yet.
            self._keeper.signal(self._pid, signal.SIGKILL)
        self._keeper.kill(self.data_dir)

    def freeze(self) -> None:
        """Stop every process of the server (``SIGSTOP``): as if it hung, it accepts connections and never answers."""
        self._keeper.freeze(self.data_dir)

    def thaw(self) -> None:
        """End :meth:`freeze`."""
        self._keeper.thaw(self.data_dir)

    def promote(self) -> None:
        """Make this standby the primary; it accepts writes when this returns.

        Until their :meth:`rejoin`, the other standbys still follow the old primary, and an old primary that runs still
        accepts writes. In a synchronous cluster commits wait for no standby until one has rejoined.
        """
        self._require_standby()
        self.execute("SELECT pg_promote(wait => false)")
        self._until_true("SELECT NOT pg_is_in_recovery()", "is not promoted")
        self._cluster._primary = self

    def pause_replay(self) -> None:
        """Pause replay: this standby receives WAL but does not apply it, until :meth:`resume_replay`."""
        self._require_standby()
        self.execute("SELECT pg_wal_replay_pause()")
        self._until_true("SELECT pg_get_wal_replay_pause_state() = 'paused'", "does not pause")

    def resume_replay(self) -> None:
        """End :meth:`pause_replay`."""
        self._require_standby()
        self.execute("SELECT pg_wal_replay_resume()")

    def lag(self, seconds: float) -> None:
        """Make this standby apply each commit this long after the primary made it; 0 ends the delay.

        Args:
            seconds: The delay, to the millisecond.
        """
        self._require_standby()
        self._configure(recovery_min_apply_delay=round(seconds * 1000))
        self._reload()

    def rejoin(self, primary: PostgresServer) -> None:
        """Make this server a standby of ``primary`` with a fresh copy of its data, in whatever state it is.

        Data that only this server had are lost.

        Args:
            primary: Another server, which runs and is no standby.
        """
        if primary is self or primary.is_standby or not primary.running:
            raise ClusterError(
                f"{self.name} cannot follow {primary.name}: it must be another server, a running primary"
            )
        self.kill()
        self._keeper.remove(self.data_dir)
        self._cluster._run(
            "pg_basebackup",
            *("-h", self._cluster.directory, "-p", primary.port, "-U", USER, "-D", self.data_dir),
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
                f"{key} = {literal(value)}\n"
                for key, value in {
                    **SETTINGS,
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
        """Make the server read its configuration again.

        A new session shows that the postmaster has read it. By then the postmaster has also signalled its children,
        which read it before their next record or request.
        """
        if self._pid is not None:
            (before,) = self.execute("SELECT pg_conf_load_time()")
            self._keeper.signal(self._pid, signal.SIGHUP)
            wait_until(
                lambda: self.execute("SELECT pg_conf_load_time()") != [before],
                lambda: f"{self.name} does not read its configuration again",
            )

    def _follow(self, primary: PostgresServer) -> None:
        self._keeper.write(self.data_dir / "standby.signal", "")
        self._settings["primary_conninfo"] = (
            f"host={self._cluster.directory} port={primary.port} user={USER} application_name={self.name}"
        )

    def _spawn(self) -> None:
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._pid = self._keeper.spawn(
            [self._cluster._programs / "postgres", "-D", self.data_dir, "-c", f"config_file={self._config}"], self.log
        )

    def _wait_started(self, *, may_move: bool = False) -> None:
        """Wait until the server accepts connections; if its port was taken and it ``may_move``, try other ports."""

        def has_ended_starting() -> bool:
            return self._ready() or not self.running

        while True:
            try:
                wait_until(
                    has_ended_starting, lambda: f"{self.name} does not start; the end of its log:\n{self._log_tail()}"
                )
            except BaseException:
                self.kill()
                raise
            if self.running:
                return
            taken = "could not create any TCP/IP sockets" in self._log_tail()
            if not (taken and may_move):
                raise ClusterError(f"{self.name} does not start; the end of its log:\n{self._log_tail()}")
            self.port = free_port()
            self._configure()
            self._spawn()

    def _ready(self) -> bool:
        """Tell whether the postmaster accepts sessions, by its lock file, as ``pg_ctl`` does."""
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
        wait_until(
            lambda: primary.execute(
                "SELECT pid FROM pg_stat_replication WHERE application_name = %s AND state = 'streaming'", [self.name]
            ),
            lambda: f"{self.name} does not stream from {primary.name}; the end of its log:\n{self._log_tail()}",
        )

    def _wait_for_standbys(self) -> None:
        """Make commits wait for a standby from now on."""
        if "synchronous_standby_names" not in self._settings:
            self._configure(synchronous_standby_names="ANY 1 (*)")
            self._reload()
            # The checkpointer switches the waiting on when it reads the configuration, which it does before this.
            self.execute("CHECKPOINT")

    def _flushed(self) -> str:
        """Return the WAL position up to which every commit so far is flushed, asynchronous ones included."""
        # A flushed commit flushes all earlier ones. The insert position would be wrong: at the end of a page it points
        # after the next page's header, a position that the standbys of an idle primary never report.
        self.execute(
            "BEGIN; SET LOCAL synchronous_commit = local; SELECT pg_logical_emit_message(true, 'flush', ''); COMMIT"
        )
        ((position,),) = self.execute("SELECT pg_current_wal_flush_lsn()::text")
        return str(position)

    def _wait_applied(self, position: str) -> None:
        wait_until(
            lambda: self.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [position]) == [(True,)],
            lambda: f"{self.name} does not replay up to {position}; is its replay paused, or its primary another?",
        )

    def _until_true(self, query: str, problem: str) -> None:
        wait_until(
            lambda: self.execute(query) == [(True,)],
            lambda: f"{self.name} {problem}; the end of its log:\n{self._log_tail()}",
        )

    def _require_standby(self) -> None:
        if not self.is_standby:
            raise ClusterError(f"{self.name} is not a standby")
