"""Resolves host names in threads that belong to the router."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import Future, wait
from typing import Any

from router._runtime.workers import spawn

KNOWN_TIMEOUT = 0.25
"""The most seconds to resolve a host name whose addresses are known; after that the known addresses are used."""


class Names:
    """Resolves host names in threads of its own, since the event loop's executor may be full for a long time.

    If a name cannot be resolved for a moment, the addresses known last are used: such a failure says nothing about the
    server.
    """

    def __init__(self) -> None:
        """Begin with no known addresses."""
        self._guard = threading.Lock()  # guards both dictionaries
        self._known: dict[str, list[str]] = {}
        self._asked: dict[str, Future[list[str]]] = {}

    async def aaddresses(self, host: str, timeout: float) -> list[str]:
        """Find the addresses of a host.

        Args:
            host: Its name.
            timeout: The most to wait, in seconds.

        Returns:
            Its addresses, in the order in which to try them.

        Raises:
            OSError: It cannot be resolved, or not in time.
            RuntimeError: No thread can be started.
        """
        known = self._known.get(host)
        try:
            future = asyncio.wrap_future(self._ask(host))
            future.add_done_callback(_see)
            try:
                await asyncio.wait({future}, timeout=timeout if known is None else min(KNOWN_TIMEOUT, timeout))
                return _outcome(host, future, timeout)
            finally:
                future.cancel()
        except (OSError, RuntimeError):
            if known is None:
                raise
            return known

    def addresses(self, host: str, timeout: float) -> list[str]:
        """Find the addresses of a host.

        Args:
            host: Its name.
            timeout: The most to wait, in seconds.

        Returns:
            Its addresses, in the order in which to try them.

        Raises:
            OSError: It cannot be resolved, or not in time.
            RuntimeError: No thread can be started.
        """
        known = self._known.get(host)
        try:
            future = self._ask(host)
            wait({future}, timeout if known is None else min(KNOWN_TIMEOUT, timeout))
            return _outcome(host, future, timeout)
        except (OSError, RuntimeError):
            if known is None:
                raise
            return known

    def _ask(self, host: str) -> Future[list[str]]:
        with self._guard:
            future = self._asked.get(host)
            if future is None:
                future = Future()
                future.set_running_or_notify_cancel()
                spawn(self._resolve, f"router resolves {host}", host, future)
                self._asked[host] = future
        return future

    def _resolve(self, host: str, future: Future[list[str]]) -> None:
        found, failure = list[str](), None
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            found = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
        except Exception as error:  # noqa: BLE001  (after any error: no request may wait for this thread for ever)
            failure = OSError(f"the host name {host!r} cannot be resolved: {getattr(error, 'strerror', None) or error}")
        with self._guard:
            del self._asked[host]
            if failure is None:
                self._known[host] = found
        if failure is None:
            future.set_result(found)
        else:
            future.set_exception(failure)


def _see(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def _outcome(host: str, future: Future[list[str]] | asyncio.Future[list[str]], timeout: float) -> list[str]:
    if not future.done():
        raise TimeoutError(f"the host name {host!r} was not resolved within {timeout:g} s")
    return future.result()
