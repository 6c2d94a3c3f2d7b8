"""Closing connections: a connection closed here still counts at its server until the server process has ended."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from socket import MSG_DONTWAIT
from time import monotonic
from typing import TYPE_CHECKING

from router._runtime.sockets import await_end

if TYPE_CHECKING:
    from socket import socket

    from router.core.topology import Server

CLOSE_GRACE = 0.2
"""Seconds that a server process is given to end once its connection is closed; the server may be frozen."""


class AsyncClosing:
    """A connection that is closed here, and may still count at its server.

    Attributes:
        server: The server.
    """

    __slots__ = ("_socket", "_until", "server")

    def __init__(self, end: socket, server: Server) -> None:
        """Watch the socket of a connection.

        Args:
            end: A duplicate of the socket's descriptor.
            server: The server that it is connected to.
        """
        self.server = server
        self._socket = end
        self._until = monotonic() + CLOSE_GRACE

    def __del__(self) -> None:
        """Close the descriptor, if no wait has closed it."""
        self._socket.close()

    def has_ended(self) -> bool:
        """Tell whether the server process has ended, or its time is up; after a true answer it must not be called."""
        ended = monotonic() >= self._until
        with suppress(BlockingIOError):
            try:
                while not ended:
                    ended = not self._socket.recv(4096, MSG_DONTWAIT)
            except ConnectionError:
                ended = True
        if ended:
            self._socket.close()
        return ended

    async def wait(self) -> None:
        """Wait until the server process has ended, or its time is up; must not be called again."""
        with self._socket:
            await await_end(self._socket, self._until - monotonic())


class AsyncClosings:
    """The closing connections that no request waits for, by server, the oldest first."""

    def __init__(self) -> None:
        """Begin without closing connections."""
        self._of: dict[Server, deque[AsyncClosing]] = {}

    def add(self, closing: AsyncClosing) -> None:
        """Add a closing connection.

        Args:
            closing: The closing connection.
        """
        others = self._of.setdefault(closing.server, deque())
        while others and others[0].has_ended():
            others.popleft()
        others.append(closing)

    def number(self, server: Server) -> int:
        """Tell how many closing connections may still count at a server.

        Args:
            server: The server.

        Returns:
            The number, at most.
        """
        return len(self._of.get(server, ()))

    def take(self, server: Server, room: int) -> AsyncClosing | None:
        """Remove the closing connection that has to end before one more connection is opened.

        Args:
            server: The server.
            room: How many more connections the server has room for, as far as this process counts them.

        Returns:
            The oldest one; ``None`` if there is room for all closing connections and one more.
        """
        others = self._of.get(server)
        while others and room <= len(others):
            if not (oldest := others.popleft()).has_ended():
                return oldest
        return None

    def sweep(self) -> None:
        """Remove the connections whose server processes have ended."""
        for server, others in list(self._of.items()):
            while others and others[0].has_ended():
                others.popleft()
            if not others:
                del self._of[server]

    def clear(self) -> None:
        """Remove all."""
        self._of.clear()
