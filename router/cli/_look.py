"""Looking at nodes directly, all at the same time, the way the router itself connects."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Generic, TypeVar

import psycopg

from router._sync.opener import READ_ONLY, Opener
from router._sync.slots import Slots
from router.health import Failed, Looked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from psycopg.rows import TupleRow

    from router.topology import Cluster, Node

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Look(Generic[T]):
    """What one look at a node showed.

    Attributes:
        seen: What the server says it is, or how the attempt to connect failed.
        answer: What was asked; ``None`` if there is no connection to ask, or the question failed.
        error: Why the question failed.
    """

    seen: Looked | Failed
    answer: T | None = None
    error: str = ""


def look(
    nodes: Mapping[Node, Cluster], ask: Callable[[psycopg.Connection[TupleRow]], T], *, timeout: float
) -> dict[Node, Look[T]]:
    """Connect to every node for reading, and ask each the same; none waits for another.

    Args:
        nodes: The nodes, each with the cluster it serves.
        ask: Asks one node, over a connection in autocommit.
        timeout: The most to wait for them all, in seconds.

    Returns:
        What was seen of each node, in their order.
    """
    looks: SimpleQueue[tuple[Node, Look[T]]] = SimpleQueue()

    def work(node: Node, cluster: Cluster) -> None:
        looks.put((node, _look(node, cluster, ask)))

    for node, cluster in nodes.items():
        # A server that hangs may never let go of its thread: it must not keep the process.
        Thread(target=work, args=(node, cluster), daemon=True).start()
    deadline = monotonic() + timeout
    done: dict[Node, Look[T]] = {}
    with suppress(Empty):
        while len(done) < len(nodes):
            node, found = looks.get(timeout=max(deadline - monotonic(), 0.0))
            done[node] = found
    silent = f"no answer within {timeout:g} s"
    return {node: done.get(node) or Look(Failed(node, silent, answered=False)) for node in nodes}


def _look(node: Node, cluster: Cluster, ask: Callable[[psycopg.Connection[TupleRow]], T]) -> Look[T]:
    opener = Opener(Slots(1, lambda: False), lambda _: None, password=None, configure=None)
    try:
        connection, _ = opener.connect(node, cluster, [READ_ONLY], autocommit=True)
    except Exception as error:  # noqa: BLE001  (a host name that cannot be encoded, say; nobody else would report it)
        return Look(opener.failure(node, error))
    try:
        seen = opener.look(connection, node)
        try:
            return Look(seen, ask(connection))
        except psycopg.Error as error:
            return Look(seen, error=str(error).partition("\n")[0])
    except psycopg.Error as error:
        return Look(opener.failure(node, error))
    finally:
        connection.close()
