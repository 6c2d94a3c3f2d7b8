"""A transaction pooler: what PgBouncer is to its clients, as far as they can tell."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROTOCOL = 196608
_CANCEL = 80877102
_ENCRYPTIONS = (80877103, 80877104)  # TLS, GSSAPI
_ANSWERED_BY_READY = b"QSF"  # Query, Sync, FunctionCall


class Pooler:
    """Lends one server process a database and user, for a transaction at a time; a context manager.

    Startup options are ignored, nothing is reset between clients.

    Args:
        target_host: The server's address.
        target_port: The server's port.

    Attributes:
        host: Its own address.
        port: Its own port.
        transactions: How often it has lent a server process.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._guard = threading.Lock()  # guards _servers
        self._servers: dict[tuple[bytes, bytes], _Server] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.host, self.port = self._listener.getsockname()
        self.transactions = 0

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
            with self._guard:
                if login not in self._servers:
                    self._servers[login] = _Server(self._target, login)
                server = self._servers[login]
            client.sendall(server.welcome)
            while True:
                message = stream.message()
                if message[:1] == b"X":
                    return
                with server.lent:
                    self.transactions += 1
                    server.serve(client, stream, message)


class _Stream:
    """Messages out of a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._read = b""

    def startup(self) -> tuple[int, bytes]:
        length, code = struct.unpack("!ii", self._take(8))
        return code, self._take(length - 8)

    def message(self) -> bytes:
        kind = self._take(5)
        (length,) = struct.unpack("!i", kind[1:])
        return kind + self._take(length - 4)

    def ready(self) -> bool:
        """Whether a further message has come already, as far as is known without waiting."""
        return bool(self._read)

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
        self.welcome = b"".join(self._until_ready())

    def serve(self, client: socket.socket, stream: _Stream, message: bytes) -> None:
        """Let a client have it until its transaction is over."""
        owed, status = 0, b"I"
        try:
            while True:
                while True:  # what comes in one go is answered in one go
                    owed += message[:1] in _ANSWERED_BY_READY
                    self._connection.sendall(message)
                    if owed and not stream.ready():
                        break
                    message = stream.message()
                while owed:
                    answers = list(self._until_ready())
                    client.sendall(b"".join(answers))
                    owed, status = owed - 1, answers[-1][5:]
                if status == b"I":
                    return
                message = stream.message()
                if message[:1] == b"X":
                    raise EOFError
        except (OSError, EOFError):
            # The client is gone in the middle of it.
            for _ in range(owed):
                list(self._until_ready())
            query = b"ROLLBACK\0"
            self._connection.sendall(b"Q" + struct.pack("!i", len(query) + 4) + query)
            list(self._until_ready())
            raise

    def close(self) -> None:
        self._connection.close()

    def _until_ready(self) -> Iterator[bytes]:
        while True:
            message = self._stream.message()
            yield message
            if message[:1] == b"Z":
                return
