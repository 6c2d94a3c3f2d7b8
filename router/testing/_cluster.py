"""A primary with streaming standbys."""

# ruff: noqa: SLF001  (a cluster and its servers are one unit)

from __future__ import annotations

import signal
import sys
import weakref
import zlib
from typing import TYPE_CHECKING, Any, Literal, Self

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
from router.testing._server import PostgresServer
from router.testing._setup import HOST, INITDB, USER, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from router.testing._setup import Setting


class PostgresCluster:
    """A real primary with streaming standbys, which run when the constructor returns; a context manager.

    The servers listen on 127.0.0.1 and on sockets in the cluster's directory. The database and the superuser are both
    called ``postgres``. However this process ends, the servers are killed and their directory is removed (but see
    :meth:`keep`). Durability is switched off, so use it for tests and demonstrations only.

    Without a password *every* account of this machine may connect as superuser, and so act as the account that the
    servers run as: set a password on a machine that you share.

    Args:
        version: PostgreSQL's major version, 16 or 18.
        standbys: How many standbys follow the primary.
        synchronous: Whether a commit waits until one standby has it on disk.
        settings: PostgreSQL settings for every server, such as ``{"max_connections": 20}``.
        password: A password for ``postgres``; connections over TCP then require it (SCRAM).

    Attributes:
        version: The major version.
        synchronous: Whether a commit waits for a standby.
        settings: The PostgreSQL settings of every server.
        directory: The directory with the sockets, and a directory for each server.
        servers: All servers, in the order in which they were made, whatever their roles are now.
        primary: The first server, or the one that was promoted last.

    Raises:
        ClusterError: The cluster cannot be started; the message says why, and what to do.
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
        # The finalizer runs also at interpreter exit, and when nothing references the cluster any more.
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
        """The first server, or the one that was promoted last."""
        return self._primary

    @property
    def standbys(self) -> tuple[PostgresServer, ...]:
        """The servers that are standbys, or will be when they are started, in the order in which they were made."""
        return tuple(server for server in self.servers if server.is_standby)

    def dsn(self, dbname: str = "postgres", user: str = USER, **params: object) -> str:
        """Return a connection URI for the primary; see :meth:`PostgresServer.dsn`."""
        return self.primary.dsn(dbname, user, **params)

    def version_settings(self) -> dict[str, Any]:
        """Return the cluster as a version for the router's settings: ``primary`` and ``replicas``, as URIs."""
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
            The id of the process that owns them: ``kill <id>`` stops all servers and removes their directory.
        """
        self._keeper.keep()
        return self._keeper.pid

    def close(self) -> None:
        """Kill the servers and remove the directory, unless :meth:`keep` was called; a second call does nothing."""
        self._finalizer()

    def _start(self, cache: Path) -> None:
        template = self._template(cache)
        method = "trust" if self.password is None else "scram-sha-256"
        self._keeper.write(
            self.directory / "pg_hba.conf",
            f"local all all trust\nlocal replication all trust\n"  # other accounts cannot enter the directory
            f"host all all {HOST}/32 {method}\nhost replication all {HOST}/32 {method}\n",
        )
        copies = []
        for server in self.servers:
            server._configure()  # this makes the server's directory
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
        """Return a data directory that initdb made: servers that are copies of one directory can follow each other."""

        def build(tree: Path) -> None:
            new = self.directory / "new"
            self._run("initdb", "-D", new, *INITDB)
            copy_foreign(new, tree)
            self._keeper.remove(new)

        options = zlib.crc32(" ".join(INITDB).encode())
        return cached(cache, f"data-{wheel_version()}-{self.version}-{options:08x}", build)

    def _set_password(self, password: str) -> None:
        """Set the password of ``postgres``; only its SCRAM verifier is sent, so no log shows the password."""
        import psycopg

        with psycopg.connect(
            host=str(self.directory), port=self.primary.port, user=USER, dbname="postgres", autocommit=True, options=""
        ) as connection:
            stored = connection.pgconn.encrypt_password(password.encode(), USER.encode(), b"scram-sha-256")
            connection.execute(
                psycopg.sql.SQL("ALTER ROLE {} PASSWORD {}").format(psycopg.sql.Identifier(USER), stored.decode())
            )

    def _run(self, program: str, *arguments: object) -> None:
        log = self.directory / f"{program}.log"
        self._finish(program, self._keeper.spawn([self._programs / program, *map(str, arguments)], log), log)

    def _finish(self, program: str, pid: int, log: Path) -> None:
        def output() -> str:
            return log.read_text(encoding="utf-8", errors="replace")[-2000:]

        try:
            wait_until(lambda: self._keeper.poll(pid) is not None, lambda: f"{program} does not end:\n{output()}")
        except BaseException:
            self._keeper.signal(pid, signal.SIGKILL)
            raise
        if self._keeper.poll(pid) != 0:
            raise ClusterError(f"{program} failed:\n{output()}")
