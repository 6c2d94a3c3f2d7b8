"""Looking at nodes directly, all at the same time, the way the router itself connects."""

from __future__ import annotations

from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import islice
from threading import Thread
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg

from router._sync.pool.opener import Opener
from router._sync.slots import Slots
from router.core.budget import Limits
from router.core.health import observe
from router.core.observations import AttemptFailed, ProbeResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from psycopg.rows import TupleRow

    from router.core.health import Health
    from router.core.policies import HealthPolicy
    from router.core.topology import Cluster, Node

T = TypeVar("T")

AT_ONCE = 64
"""How many nodes are looked at at the same time: there may be thousands, when tenants have their own."""


@dataclass(frozen=True, slots=True)
class Look(Generic[T]):
    """What one look at a node showed.

    Attributes:
        seen: What the server says it is, or how the attempt to connect failed.
        answer: What was asked; ``None`` if there is no connection to ask, or the question failed.
        error: Why the question failed.
    """

    seen: ProbeResult | AttemptFailed
    answer: T | None = None
    error: str = ""


class Looker(Generic[T]):
    """Looks at nodes, each time over new connections.

    A node that never answers holds one thread and one connection, however often it is to be looked at.
    """

    def __init__(self, nodes: Mapping[Node, Cluster], ask: Callable[[psycopg.Connection[TupleRow], Node], T]) -> None:
        """Look at nobody yet.

        Args:
            nodes: The nodes, each with the cluster it serves.
            ask: Asks one node, over a connection in autocommit.
        """
        self._nodes = nodes
        self._ask = ask
        self._late: dict[Node, Future[Look[T]]] = {}

    def look(self, timeout: float) -> dict[Node, Look[T]]:
        """Connect to every node for reading, and ask each the same; none waits for another.

        Args:
            timeout: The most to wait for them all, in seconds.

        Returns:
            What was seen of each node, in their order.
        """
        late = {node: look for node, look in self._late.items() if not look.done()}
        looks = {node: self._start(node, cluster) for node, cluster in self._nodes.items() if node not in late}
        done = wait(looks.values(), timeout).done
        self._late = late | {node: look for node, look in looks.items() if look not in done}
        silent = f"no answer within {timeout:g} s"
        return {
            node: Look(AttemptFailed(node, silent, answered=False)) if node in self._late else looks[node].result()
            for node in self._nodes
        }

    def _start(self, node: Node, cluster: Cluster) -> Future[Look[T]]:
        look: Future[Look[T]] = Future()
        # A server that hangs may never let go of its thread: it must not keep the process.
        Thread(target=lambda: look.set_result(_look(node, cluster, self._ask)), daemon=True).start()
        return look


def look_at(
    nodes: Mapping[Node, Cluster], ask: Callable[[psycopg.Connection[TupleRow], Node], T], timeout: float
) -> dict[Node, Look[T]]:
    """Look once at however many nodes, :data:`AT_ONCE` at a time.

    Args:
        nodes: The nodes, each with the cluster it serves.
        ask: As for :class:`Looker`.
        timeout: The most to wait for those that are looked at together, in seconds.

    Returns:
        What was seen of each node, in their order.
    """
    looks: dict[Node, Look[T]] = {}
    left = iter(nodes.items())
    while batch := dict(islice(left, AT_ONCE)):
        looks |= Looker(batch, ask).look(timeout)
    return looks


def learn(health: Health, looks: Iterable[Look[Any]], *, now: float, policy: HealthPolicy) -> Health:
    """Say what is known after a round of looks, which counts as one moment.

    So which of two primaries was seen first does not hang on whose thread was faster: it is the first one configured.

    Args:
        health: What was known before.
        looks: What was seen of each node, in their order.
        now: When the round began, in seconds.
        policy: How servers are watched.

    Returns:
        What is known now.
    """
    for look in looks:
        seen = look.seen._replace(latency=0.0) if isinstance(look.seen, ProbeResult) else look.seen
        health = observe(health, seen, now=now, jitter=0.0, policy=policy)
    return health


def _look(node: Node, cluster: Cluster, ask: Callable[[psycopg.Connection[TupleRow], Node], T]) -> Look[T]:
    opener = Opener(
        Slots(Limits(1, None), lambda *_: None), lambda _: None, lambda _: None, password=None, configure=None
    )
    try:
        connection, _ = opener.connect(node, cluster, [], autocommit=True)  # as sessions for writing begin
    except Exception as error:  # noqa: BLE001  (a host name that cannot be encoded, say; nobody else would report it)
        return Look(opener.failure(node, error))
    try:
        seen = opener.look(connection, node, new=True)
        if connection.pgconn.parameter_status(b"default_transaction_read_only") == b"on":  # for this role, say
            seen = seen._replace(refuses_writes=True)
        try:
            return Look(seen, ask(connection, node))
        except psycopg.Error as error:
            return Look(seen, error=str(error).partition("\n")[0])
    except psycopg.Error as error:
        return Look(opener.failure(node, error))
    finally:
        connection.close()
