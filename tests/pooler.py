"""A pooler: what PgBouncer is to its clients, as far as they can tell; and PgBouncer itself."""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Mode: TypeAlias = Literal["session", "transaction", "statement"]

_PROTOCOL = 196608
_CANCEL = 80877102
_ENCRYPTIONS = (80877103, 80877104)  # TLS, GSSAPI
_ANSWERED_BY_READY = b"QSF"  # Query, Sync, FunctionCall
_READY = b"Z\0\0\0\5"
_KEY = b"K\0\0\0\x0c"
_KEY_DATA = re.compile(_KEY + b".{8}", re.DOTALL)


class Pooler:
    """Lends one server process a database and user, for a transaction at a time; a context manager.

    Startup options are ignored, nothing is reset between clients, and each is told another number of its process.

    Args:
        target_host: The server's address.
        target_port: The server's port.
        mode: For what a client has a server process; for a session, each has one of its own.

    Attributes:
        host: Its own address.
        port: Its own port.
    """

    def __init__(self, target_host: str, target_port: int, mode: Mode = "transaction") -> None:
        self._target = (target_host, target_port)
        self._mode = mode
        self._clients = count(1)
        self._guard = threading.Lock()  # guards _servers
        self._servers: dict[tuple[object, ...], _Server] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.host, self.port = self._listener.getsockname()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for server in self._servers.values():
            server.close()
        return False

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, EOFError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = _Stream(client)
            code, body = stream.startup()
            while code in _ENCRYPTIONS:
                client.sendall(b"N")
                code, body = stream.startup()
            if code == _CANCEL:
                return
            words = body.split(b"\0")
            params = dict(zip(words[::2], words[1::2], strict=False))
            login = (params[b"user"], params.get(b"database", params[b"user"]))
            number = next(self._clients)
            key = login if self._mode == "transaction" else (*login, number)
            with self._guard:
                if key not in self._servers:
                    self._servers[key] = _Server(self._target, login)
                server = self._servers[key]
            client.sendall(_KEY_DATA.sub(_KEY + struct.pack("!ii", -number, number), server.welcome, count=1))
            while True:
                said = list(stream.messages())
                if said[0][:1] == b"X":
                    return
                with server.lent:
                    server.serve(client, stream, said)


class _Stream:
    """Messages out of a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._read = b""

    def startup(self) -> tuple[int, bytes]:
        length, code = struct.unpack("!ii", self._take(8))
        return code, self._take(length - 8)

    def message(self) -> bytes:
        head = self._take(5)
        return head + self._take(int.from_bytes(head[1:]) - 4)

    def messages(self) -> Iterator[bytes]:
        """The next one, and what has come with it."""
        yield self.message()
        while len(self._read) > 4 and len(self._read) > int.from_bytes(self._read[1:5]):
            yield self.message()

    def _take(self, size: int) -> bytes:
        while len(self._read) < size:
            data = self._connection.recv(65536)
            if not data:
                raise EOFError
            self._read += data
        taken, self._read = self._read[:size], self._read[size:]
        return taken


class _Server:
    """One server process, and who has it now."""

    def __init__(self, target: tuple[str, int], login: tuple[bytes, bytes]) -> None:
        self.lent = threading.Lock()
        self._connection = socket.create_connection(target)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = _Stream(self._connection)
        user, database = login
        params = b"\0".join((b"user", user, b"database", database, b"", b""))
        self._connection.sendall(struct.pack("!ii", len(params) + 8, _PROTOCOL) + params)
        self.welcome = b""
        while not self.welcome.endswith(_READY + b"I"):
            self.welcome += self._stream.message()

    def serve(self, client: socket.socket, stream: _Stream, said: list[bytes]) -> None:
        """Let a client have it until its transaction is over."""
        owed, over = 0, False
        try:
            while not over:
                for word in said:
                    if word[:1] == b"X":
                        raise EOFError
                    self._connection.sendall(word)
                    owed += word[:1] in _ANSWERED_BY_READY
                ready, _, _ = select.select([client, self._connection], [], [])
                said = list(stream.messages()) if client in ready else []
                for answer in self._stream.messages() if self._connection in ready else ():
                    owed -= answer[:5] == _READY  # before it is passed on: the client may be gone
                    client.sendall(answer)
                    over = over or (answer == _READY + b"I" and not owed and not said)
        except (OSError, EOFError):
            # The client is gone in the middle of it.
            query = b"ROLLBACK\0"
            self._connection.sendall(b"S\0\0\0\4" + b"Q" + struct.pack("!i", len(query) + 4) + query)
            owed += 2
            while owed:
                owed -= self._stream.message()[:5] == _READY
            raise

    def close(self) -> None:
        self._connection.close()


class PgBouncer:
    """The program, as it is installed; a context manager. It, too, has one server process a database and user.

    Args:
        target_host: The server's address.
        target_port: The server's port.
        users: Who may log in.
        mode: For what a client has a server process; for a session, each has one of its own.

    Attributes:
        host: Its own address.
        port: Its own port.
    """

    def __init__(self, target_host: str, target_port: int, users: Iterable[str], mode: Mode = "transaction") -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.host, self.port = free.getsockname()
        self._home = Path(tempfile.mkdtemp(prefix="pgbouncer"))
        self._home.chmod(0o755)  # PgBouncer does not run as root
        (self._home / "users").write_text("".join(f'"{user}" ""\n' for user in users))
        (self._home / "ini").write_text(f"""
[databases]
* = host={target_host} port={target_port}
[pgbouncer]
listen_addr = {self.host}
listen_port = {self.port}
unix_socket_dir =
auth_type = trust
auth_file = {self._home / "users"}
pool_mode = {mode}
default_pool_size = {50 if mode == "session" else 1}
ignore_startup_parameters = extra_float_digits, options
""")

    def __enter__(self) -> Self:
        program = shutil.which("pgbouncer")
        assert program is not None, "--pooler=pgbouncer, and none is installed"
        as_somebody = ["-u", "nobody"] if os.geteuid() == 0 else []
        self._process = subprocess.Popen([program, "-q", *as_somebody, str(self._home / "ini")])

        def listens() -> bool:
            with suppress(OSError), socket.create_connection((self.host, self.port)):
                return True
            return False

        eventually(listens)
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._home)
        return False
