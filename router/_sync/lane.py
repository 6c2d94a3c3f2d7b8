# Generated from router/_async/lane.py by tools/async_to_sync.py: do not edit.
"""What all requests for one key use: a lane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router._sync.checkout import Checkout
from router._sync.tenant_checkout import ScopedCheckout

if TYPE_CHECKING:
    from router._sync.admission import Admission
    from router._sync.pool_set import PoolSet
    from router.core.topology import Target


class Lane:
    """What all requests for one key use until the topology or a tenant's home changes.

    Attributes:
        target: What the key resolved to.
        read_only: Whether the requests only read.
        timeout: Their deadline if they name none, in seconds.
        pool_set: The pools, with those that wait for them: shared with all lanes for the same servers and use.
        pick: That of the pool set.
        admission: Lets so many requests of a tenant be served at a time; ``None`` for any number.
        in_force: Everything of its router that changes.
        slots: The process's budget.
        checkout: What borrows from it.
        key: What the requests name.
    """

    __slots__ = (
        "admission", "checkout", "in_force", "key", "pick", "pool_set", "read_only", "slots", "target", "timeout",
    )  # fmt: skip

    def __init__(self, target: Target, pool_set: PoolSet, admission: Admission | None, key: Any) -> None:
        """Make the lane.

        Args:
            target: What the key resolved to.
            pool_set: The pools.
            admission: Lets so many of its requests be served at a time.
            key: What the requests name.
        """
        self.target = target
        self.read_only = pool_set.read_only
        self.timeout = target.cluster.pool.timeout
        self.pool_set = pool_set
        self.pick = pool_set.pick
        self.admission = admission
        self.in_force = pool_set.in_force
        self.slots = pool_set.in_force.slots
        self.checkout: type[Checkout] = Checkout if target.scope is None else ScopedCheckout
        self.key = key
