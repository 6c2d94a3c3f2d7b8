"""A lane: what all requests for one key use until something changes."""

from __future__ import annotations

from copy import copy
from itertools import count
from random import getrandbits
from typing import TYPE_CHECKING, Any

from router._async.checkout import AsyncCheckout, AsyncScopedCheckout
from router.core.balance import PAIRS, pairs, rotation

if TYPE_CHECKING:
    from router._async.pool.node_pool import AsyncNodePool
    from router._async.routing import AsyncRouting
    from router._async.slots import AsyncGate
    from router.core.topology import Target

PAIRS_BITS = PAIRS.bit_length() - 1


class AsyncLane:
    """The pools over which requests for one key are spread; made anew when what is known of the servers changes.

    Attributes:
        target: What the key resolved to.
        cluster: The cluster that it is on.
        read_only: Whether the requests only read.
        timeout: Their deadline if they name none, in seconds.
        pools: The pools of the best nodes; empty while none is known to be up.
        routing: Everything of its router that changes.
        slots: The process's budget.
        checkout: What borrows from it.
        gate: Lets so many requests of a tenant in at a time; ``None`` for any number.
        key: What the requests name.
    """

    __slots__ = (
        "__weakref__", "_pairs", "_rotation", "_turns", "checkout", "cluster", "gate", "key", "pools", "read_only",
        "routing", "slots", "target", "timeout",
    )  # fmt: skip

    def __init__(
        self,
        target: Target,
        pools: tuple[AsyncNodePool, ...],
        routing: AsyncRouting,
        *,
        read_only: bool,
    ) -> None:
        """Prepare the choice between the pools.

        Args:
            target: What the key resolved to.
            pools: The pools of the best nodes.
            routing: Everything of its router that changes.
            read_only: Whether the requests only read.
        """
        self.target = target
        self.cluster = routing.clusters.of(target.watched or target.cluster)
        self.read_only = read_only
        self.timeout = target.cluster.pool.timeout
        self.pools = pools
        self.routing = routing
        self.slots = routing.slots
        self.checkout: type[AsyncCheckout] = AsyncCheckout if target.scope is None else AsyncScopedCheckout
        self.gate: AsyncGate | None = None
        self.key: Any = None
        weights = [pool.node.weight for pool in pools]
        balance = target.cluster.read.balance
        self._pairs: tuple[tuple[AsyncNodePool, AsyncNodePool, float, float], ...] = ()
        self._rotation: tuple[AsyncNodePool, ...] = ()
        self._turns = count()  # its next() is atomic
        if len(pools) > 1 and balance != "round_robin":
            drawn = ((one, one if balance == "random" else two) for one, two in pairs(weights))
            self._pairs = tuple((pools[one], pools[two], weights[one], weights[two]) for one, two in drawn)
        elif pools:
            self._rotation = tuple(pools[place] for place in rotation(weights))

    def of(self, target: Target, gate: AsyncGate | None) -> AsyncLane:
        """Make the lane of another tenant that uses the same pools.

        Args:
            target: What its key resolved to.
            gate: Lets so many of its requests in at a time.

        Returns:
            The lane; it has the choice between the pools in common with this one.
        """
        other = copy(self)
        other.target = target
        other.gate = gate
        return other

    def invalidate(self) -> None:
        """Have it worked out anew by the next request: one of its nodes is worth something else than before."""
        self.routing.renew(self)

    def pick(self) -> AsyncNodePool | None:
        """Pick the pool for the next request, as ``read.balance`` says.

        Returns:
            The pool, or ``None`` when no node is known to be up.
        """
        if self._pairs:
            one, two, weight_one, weight_two = self._pairs[getrandbits(PAIRS_BITS)]
            return one if len(one.borrowed) * weight_two <= len(two.borrowed) * weight_one else two
        if self._rotation:
            return self._rotation[next(self._turns) % len(self._rotation)]
        return None
