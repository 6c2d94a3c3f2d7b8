"""A connection that is closed here goes on counting at its server until the process there has ended."""

from __future__ import annotations

from contextlib import suppress
from socket import MSG_DONTWAIT
from time import monotonic
from typing import TYPE_CHECKING

from router._runtime.sockets import await_end

if TYPE_CHECKING:
    from socket import socket

    from router.core.topology import Server

CLOSE_GRACE = 0.2
"""Seconds that a server process has to end when its connection is closed; it may be frozen."""


class AsyncClosing:
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

    async def wait(self) -> None:
        """Wait until the process has ended, or had the time to; it must not be asked again."""
        with self._socket:
            await await_end(self._socket, self._until - monotonic())
