# Generated from router/_async/closing.py by tools/async_to_sync.py: do not edit.
"""Connections that are closed here: each goes on counting at its server until the process there has ended."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from socket import MSG_DONTWAIT
from time import monotonic
from typing import TYPE_CHECKING

from router._runtime.sockets import wait_end

if TYPE_CHECKING:
    from socket import socket

    from router.core.topology import Server

CLOSE_GRACE = 0.2
"""Seconds that a server process has to end when its connection is closed; it may be frozen."""


class Closing:
    """A connection that is closed here, and may still count at its server.

    Attributes:
        server: Where it was open.
    """

    __slots__ = ("_socket", "_until", "server")

    def __init__(self, end: socket, server: Server) -> None:
        """Keep its socket in sight.

        Args:
            end: Another descriptor of the socket.
            server: Where it leads to.
        """
        self.server = server
        self._socket = end
        self._until = monotonic() + CLOSE_GRACE

    def __del__(self) -> None:
        """Close the descriptor, if nothing has waited for its end."""
        self._socket.close()

    def has_ended(self) -> bool:
        """Tell whether the process has ended, or had the time to; once it is so, it must not be asked again."""
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

    def wait(self) -> None:
        """Wait until the process has ended, or had the time to; it must not be asked again."""
        with self._socket:
            wait_end(self._socket, self._until - monotonic())


class Closings:
    """Those that nothing waits for yet, by server, the oldest first."""

    def __init__(self) -> None:
        """Begin without any."""
        self._of: dict[Server, deque[Closing]] = {}

    def add(self, closing: Closing) -> None:
        """Take one in.

        Args:
            closing: What is closed by now.
        """
        others = self._of.setdefault(closing.server, deque())
        while others and others[0].has_ended():
            others.popleft()
        others.append(closing)

    def number(self, server: Server) -> int:
        """Tell how many may still count at a server.

        Args:
            server: The server.

        Returns:
            How many, at most.
        """
        return len(self._of.get(server, ()))

    def take(self, server: Server, room: int) -> Closing | None:
        """Find what has to have ended before one more connection is opened.

        Args:
            server: Where it is opened.
            room: How many there is room for, as far as this process counts them.

        Returns:
            The oldest; ``None`` if there is room for all of them and one more.
        """
        others = self._of.get(server)
        while others and room <= len(others):
            if not (oldest := others.popleft()).has_ended():
                return oldest
        return None

    def sweep(self) -> None:
        """Forget those that have ended."""
        for server, others in list(self._of.items()):
            while others and others[0].has_ended():
                others.popleft()
            if not others:
                del self._of[server]

    def clear(self) -> None:
        """Forget all."""
        self._of.clear()
