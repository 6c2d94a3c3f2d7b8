"""Probing nodes directly, all at the same time, the way the router itself connects."""

from __future__ import annotations

from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import islice
from threading import Thread
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg

from router._observers import Observers
from router._sync.clusters import Clusters
from router._sync.pool.login import failure
from router._sync.pool.opener import Opener
from router._sync.slot import SlotRequest
from router._sync.slots import Slots
from router.core.budget import Limits, budget_key
from router.core.health import observe
from router.core.observations import AttemptFailed, ProbeResult
from router.core.policies import HealthPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from psycopg.rows import TupleRow

    from router.core.health import Health
    from router.core.topology import Cluster, Node

T = TypeVar("T")

AT_ONCE = 64
"""How many nodes are probed at the same time: there may be thousands, when tenants have their own."""


@dataclass(frozen=True, slots=True)
class Probe(Generic[T]):
    """What one probe of a node showed.

    Attributes:
        seen: What the server says it is, or how the attempt to connect failed.
        answer: What was asked; ``None`` if there is no connection to ask, or the question failed.
        error: Why the question failed.
    """

    seen: ProbeResult | AttemptFailed
    answer: T | None = None
    error: str = ""


class Prober(Generic[T]):
    """Probes nodes, each time over new connections.

    A node that never answers holds one thread and one connection, however often it is to be probed.
    """

    def __init__(self, nodes: Mapping[Node, Cluster], ask: Callable[[psycopg.Connection[TupleRow], Node], T]) -> None:
        """Prepare it; nothing is probed yet.

        Args:
            nodes: The nodes, each with the cluster it serves.
            ask: Asks one node, over a connection in autocommit.
        """
        self._nodes = nodes
        self._ask = ask
        self._late: dict[Node, Future[Probe[T]]] = {}

    def probe(self, timeout: float) -> dict[Node, Probe[T]]:
        """Connect to every node for reading, and ask each the same; none waits for another.

        Args:
            timeout: The most to wait for them all, in seconds.

        Returns:
            What was seen of each node, in their order.
        """
        late = {node: probe for node, probe in self._late.items() if not probe.done()}
        probes = {node: self._start(node, cluster) for node, cluster in self._nodes.items() if node not in late}
        done = wait(probes.values(), timeout).done
        self._late = late | {node: probe for node, probe in probes.items() if probe not in done}
        silent = f"no answer within {timeout:g} s"
        return {
            node: Probe(AttemptFailed(node, silent, answered=False)) if node in self._late else probes[node].result()
            for node in self._nodes
        }

    def _start(self, node: Node, cluster: Cluster) -> Future[Probe[T]]:
        probe: Future[Probe[T]] = Future()
        # A server that hangs may hold its thread for ever: it must not keep the process.
        Thread(target=lambda: probe.set_result(_probe(node, cluster, self._ask)), daemon=True).start()
        return probe


def probe_all(
    nodes: Mapping[Node, Cluster], ask: Callable[[psycopg.Connection[TupleRow], Node], T], timeout: float
) -> dict[Node, Probe[T]]:
    """Probe any number of nodes once, :data:`AT_ONCE` at a time.

    Args:
        nodes: The nodes, each with the cluster it serves.
        ask: As for :class:`Prober`.
        timeout: The most to wait for those that are probed together, in seconds.

    Returns:
        What was seen of each node, in their order.
    """
    probes: dict[Node, Probe[T]] = {}
    left = iter(nodes.items())
    while batch := dict(islice(left, AT_ONCE)):
        probes |= Prober(batch, ask).probe(timeout)
    return probes


def observe_all(health: Health, probes: Iterable[Probe[Any]], *, now: float, policy: HealthPolicy) -> Health:
    """Say what is known after a round of probes, which counts as one moment.

    So which of two primaries was seen first does not depend on which thread was faster: it is the one configured first.

    Args:
        health: What was known before.
        probes: What was seen of each node, in their order.
        now: When the round began, in seconds.
        policy: How servers are watched.

    Returns:
        What is known now.
    """
    for probe in probes:
        seen = probe.seen._replace(latency=0.0) if isinstance(probe.seen, ProbeResult) else probe.seen
        health = observe(health, seen, now=now, jitter=0.0, policy=policy)
    return health


def _probe(node: Node, cluster: Cluster, ask: Callable[[psycopg.Connection[TupleRow], Node], T]) -> Probe[T]:
    slots = Slots(Limits(1, None))
    opener = Opener(slots, Clusters(HealthPolicy(), Observers()), password=None, configure=None)
    try:
        with opener.slots.take(SlotRequest(budget_key(node, "check")), 1.0) as slot:
            connection, _ = opener.connect(node, cluster, slot)  # as sessions for writing begin
    except Exception as error:  # noqa: BLE001  (a host name that cannot be encoded, say; it would be reported nowhere else)
        return Probe(failure(node, error))
    try:
        seen = opener.queries.probe(connection, node, new=True)
        if connection.pgconn.parameter_status(b"default_transaction_read_only") == b"on":  # for this role, say
            seen = seen._replace(refuses_writes=True)
        try:
            return Probe(seen, ask(connection, node))
        except psycopg.Error as error:
            return Probe(seen, error=str(error).partition("\n")[0])
    except psycopg.Error as error:
        return Probe(failure(node, error))
    finally:
        connection.close()
