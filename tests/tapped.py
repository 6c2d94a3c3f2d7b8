"""The tests' cluster behind proxies that keep what clients say."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from router.testing import PostgresCluster

_LOOK = b"clock_timestamp"


@dataclass(frozen=True)
class Tapped:
    """The servers behind proxies, and what clients say there but to connect or to take their leave."""

    cluster: PostgresCluster
    primary: Proxy
    standbys: tuple[Proxy, ...]
    heard: dict[Proxy, list[bytes]]

    def version(self) -> dict[str, Any]:
        behind = zip(self.cluster.servers, (self.primary, *self.standbys), strict=True)
        primary, *replicas = (server.dsn(port=proxy.port) for server, proxy in behind)
        return {"primary": primary, "replicas": replicas}

    def trips(self, *, looks: bool = False) -> tuple[int, int]:
        """How many round trips went to the primary, and to the standbys, since this was last asked.

        Args:
            looks: Whether to count those that ask what a server is and how far it is.
        """
        to_primary, to_standbys = (
            sum(looks or _LOOK not in message for proxy in proxies for message in self.heard[proxy])
            for proxies in ([self.primary], self.standbys)
        )
        for said in self.heard.values():
            said.clear()
        return to_primary, to_standbys

    def cut(self, *proxies: Proxy, on: str, before: bool = False, times: int = 1) -> None:
        """Cut whoever says this, at whichever of the proxies it is, so many times."""
        left = [None] * times

        def says(message: bytes) -> bool:
            return on.encode() in message and bool(left) and left.pop() is None

        for proxy in proxies:
            self._listen(proxy, says, before=before)

    def _listen(self, proxy: Proxy, says: Callable[[bytes], bool], *, before: bool = False) -> None:
        def hear(message: bytes) -> bool:
            if message[:1] not in b"\0X":
                self.heard[proxy].append(message)
            return says(message)

        proxy.cut_on(hear, before=before)

    def __post_init__(self) -> None:
        for proxy in self.heard:
            self._listen(proxy, lambda _: False)


@contextmanager
def tap(cluster: PostgresCluster) -> Iterator[Tapped]:
    """Put proxies in front of a cluster's servers."""
    with ExitStack() as stack:
        proxies = [stack.enter_context(Proxy(server.host, server.port)) for server in cluster.servers]
        yield Tapped(cluster, proxies[0], tuple(proxies[1:]), {proxy: [] for proxy in proxies})
