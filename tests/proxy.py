"""A TCP proxy that fails on demand, and counts round trips at the socket."""

from __future__ import annotations

import select
import socket
import struct
import threading
from contextlib import suppress
from itertools import cycle
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.testing import PostgresServer
    from tests.pooler import PgBouncer, Pooler

# What a client says before it hangs up; no answer follows.
_TERMINATE = b"X\0\0\0\4"


class Proxy:
    """Stands between clients and one server; a context manager. A fault holds for connections open now and later ones.

    Args:
        target_host: The server's address.
        target_port: The server's port.

    Attributes:
        host: The proxy's own address.
        port: The proxy's own port.
        accepted: How many connections were accepted.
        cuts: How many connections were cut by :meth:`cut_after` and :meth:`cut_on`.
        round_trips: How often a client spoke after the server had. Set it to 0 once connected, or connecting counts.
            A burst of messages that one answer follows is one. A client's farewell is none.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self._targets = cycle([(target_host, target_port)])
        # Guards everything below; told of every change.
        self._changed = threading.Condition()
        self._deaf = False
        self._delay = 0.0
        self._both_ways = False
        self._bytes_left: int | None = None
        self._cut_on: Callable[[bytes], bool] | None = None
        self._cut_before = False
        self._hidden = b""
        self._words: str | None = None
        self._refusal: tuple[str, str] | None = None
        self._listener: socket.socket | None = None
        self._live: set[socket.socket] = set()
        self._forgotten: set[int] = set()
        self._forget_on = b""
        self._threads: list[threading.Thread] = []
        self.host, self.port = "127.0.0.1", 0
        self.accepted = self.cuts = self.round_trips = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        self.stop()
        return False

    def start(self) -> None:
        """Listen, on the same port again after :meth:`stop`."""
        with self._changed:
            self._listener = socket.create_server((self.host, self.port), backlog=100)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # takes no more than it passes on
            self.port = self._listener.getsockname()[1]
        self._run(self._accept, self._listener)

    def stop(self) -> None:
        """Refuse connections and cut those there are, until :meth:`start`."""
        with self._changed:
            listener, self._listener = self._listener, None
            if listener is not None:
                _hang_up(listener)  # wakes accept(), which close() would not
                listener.close()
            for connection in self._live:
                _hang_up(connection)
            self._changed.notify_all()
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()

    def lead_to(self, *servers: PostgresServer | Pooler | PgBouncer) -> None:
        """Lead connections that are opened from now on elsewhere: to one server after the other, round and round."""
        self._set(_targets=cycle([(server.host, server.port) for server in servers]))

    def forward(self) -> None:
        """End every fault but :meth:`stop`; what was held back goes on its way."""
        self._set(_deaf=False, _delay=0.0, _bytes_left=None, _cut_on=None, _refusal=None, _forget_on=b"")

    def deaf(self) -> None:
        """Accept connections and pass nothing on, in either direction."""
        self._set(_deaf=True)

    def forget(self, *ports: int) -> None:
        """Take what is sent over these connections, by the client's port, and lose it; nobody is told of an end."""
        with self._changed:
            self._forgotten.update(ports)

    def forget_on(self, said: bytes) -> None:
        """Forget, likewise, each connection on which a client says this from now on, until :meth:`forward`."""
        self._set(_forget_on=said)

    def slow(self, seconds: float, *, both_ways: bool = False) -> None:
        """Hold back each piece of an answer for this long, or of what a client says, too."""
        self._set(_delay=seconds, _both_ways=both_ways)

    def cut_after(self, n_bytes: int) -> None:
        """Cut the connection, once, on which the answers from now on reach this length; these bytes still arrive."""
        self._set(_bytes_left=n_bytes)

    def cut_on(self, said: bytes | Callable[[bytes], bool], *, before: bool = False) -> None:
        """Cut the connection, once, on which a client says this.

        Args:
            said: What its message contains, such as ``b"COMMIT"``, or tells that of a message.
            before: Whether the server must not hear it; else it acts on it, and the answer is lost.
        """
        says = (lambda message: said in message) if isinstance(said, bytes) else said
        self._set(_cut_on=says, _cut_before=before)

    def hide(self, parameter: bytes) -> None:
        """Have servers not tell a parameter, as those do not that are older than it."""
        self._set(_hidden=parameter)

    def translate(self, words: str) -> None:
        """Put other words where servers say what went wrong, as those do that speak another language."""
        self._set(_words=words)

    def refuse(self, sqlstate: str, words: str) -> None:
        """Refuse each login as a server does that starts up, shuts down or is full, in whatever language."""
        self._set(_refusal=(sqlstate, words))

    def _set(self, **faults: object) -> None:
        with self._changed:
            vars(self).update(faults)
            self._changed.notify_all()

    def _run(self, function: Callable[[socket.socket], None], connection: socket.socket) -> None:
        thread = threading.Thread(target=function, args=(connection,), daemon=True)
        with self._changed:  # stop() joins a thread only after it was started
            thread.start()
            self._threads.append(thread)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                with self._changed:
                    if self._listener is not listener:
                        client.close()
                        return
                    self.accepted += 1
                    self._live.add(client)
                    self._run(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        try:
            self._wait(client)
            if self._refusal is not None:
                _refuse(client, *self._refusal)
                return
            with self._changed:
                target = next(self._targets)
            server = socket.create_connection(target)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._relay(client, server)
        except OSError:
            pass  # either side hung up
        finally:
            with self._changed:
                self._live.discard(client)
            client.close()
            if server is not None:
                # Let it read what it was sent: closing over an unread answer could take that back.
                _hang_up(server, socket.SHUT_WR)
                server.settimeout(5.0)  # a frozen one does not hang up
                with suppress(OSError):
                    while server.recv(65536):
                        pass
                server.close()

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        answered, port = True, client.getpeername()[1]
        while True:
            for source in select.select([client, server], [], [])[0]:
                data = source.recv(65536)
                if port in self._forgotten or (self._forget_on and self._forget_on in data):
                    data = _lose(client, server)
                if not data:
                    return
                if source is client:
                    with self._changed:
                        self.round_trips += answered and data != _TERMINATE
                    answered = False
                    self._wait(client, self._delay * self._both_ways)
                    cut = self._cut_on is not None and self._cut_on(data)
                    if not (cut and self._cut_before):
                        server.sendall(data)
                    if cut:
                        self._cut_on = None
                        self.cuts += 1
                        return
                else:
                    answered = True
                    self._wait(client, self._delay)
                    data = self._altered(data)
                    if self._bytes_left is not None and self._bytes_left <= len(data):
                        client.sendall(data[: self._bytes_left])
                        self._bytes_left = None
                        self.cuts += 1
                        return
                    if self._bytes_left is not None:
                        self._bytes_left -= len(data)
                    client.sendall(data)

    def _altered(self, data: bytes) -> bytes:
        if self._hidden:
            data = data.replace(self._hidden, self._hidden.upper())
        return data if self._words is None else _translated(data, self._words)

    def _wait(self, client: socket.socket, delay: float = 0.0) -> None:
        """Hold what was read while the fault lasts; raise OSError when the proxy was stopped meanwhile."""
        with self._changed:
            if delay:
                self._changed.wait_for(lambda: self._listener is None or self._delay != delay, delay)
            self._changed.wait_for(lambda: self._listener is None or not self._deaf)
            if self._listener is None:
                raise OSError


def _lose(client: socket.socket, server: socket.socket) -> bytes:
    """Take what either side says until the client hangs up; nothing is left to pass on."""
    sources = [client, server]
    while client in sources:
        for source in select.select(sources, [], [])[0]:
            if not source.recv(65536):
                sources.remove(source)
    return b""


def _refuse(client: socket.socket, sqlstate: str, words: str) -> None:
    while client.recv(8)[4:] in {b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30"}:
        client.sendall(b"N")  # neither TLS nor GSSAPI
    client.recv(8192)
    said = f"SFATAL\0VFATAL\0C{sqlstate}\0M{words}\0Fpostmaster.c\0L1\0RProcessStartupPacket\0\0".encode()
    client.sendall(b"E" + struct.pack(">I", len(said) + 4) + said)


def _translated(data: bytes, words: str) -> bytes:
    """Put other words into each error among whole messages of a server."""
    out, rest = b"", data
    while len(rest) > 5:
        length = 1 + int.from_bytes(rest[1:5], "big")
        message, rest = rest[:length], rest[length:]
        if message[:1] == b"E":
            fields = [b"M" + words.encode() if field[:1] == b"M" else field for field in message[5:].split(b"\0")]
            body = b"\0".join(fields)
            message = b"E" + struct.pack(">I", len(body) + 4) + body
        out += message
    return out + rest


def _hang_up(connection: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    with suppress(OSError):
        connection.shutdown(how)
