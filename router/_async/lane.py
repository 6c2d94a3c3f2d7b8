"""A lane: what all requests for one key share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router._async.checkout import AsyncCheckout
from router._async.tenant_checkout import AsyncScopedCheckout

if TYPE_CHECKING:
    from router._async.admission import AsyncAdmission
    from router._async.pool_set import AsyncPoolSet
    from router.core.topology import Target


class AsyncLane:
    """What all requests for one key share until the topology or a tenant's home changes.

    Attributes:
        target: The target of the key.
        read_only: Whether the requests only read.
        timeout: The timeout of requests that name none, in seconds.
        pool_set: The pool set, shared with all lanes for the same servers and use.
        pick: The method of the pool set.
        admission: Limits how many requests of a tenant are served at a time; ``None`` for no limit.
        in_force: What is in force in its router.
        slots: The process's budget.
        checkout: The class of checkout that borrows from it.
        key: The version, or version and tenant, that the requests name.
    """

    __slots__ = (
        "admission", "checkout", "in_force", "key", "pick", "pool_set", "read_only", "slots", "target", "timeout",
    )  # fmt: skip

    def __init__(self, target: Target, pool_set: AsyncPoolSet, admission: AsyncAdmission | None, key: Any) -> None:
        """Make the lane.

        Args:
            target: The target of the key.
            pool_set: The pool set.
            admission: Limits how many of its requests are served at a time; ``None`` for no limit.
            key: The version, or version and tenant, that the requests name.
        """
        self.target = target
        self.read_only = pool_set.read_only
        self.timeout = target.cluster.pool.timeout
        self.pool_set = pool_set
        self.pick = pool_set.pick
        self.admission = admission
        self.in_force = pool_set.in_force
        self.slots = pool_set.in_force.slots
        self.checkout: type[AsyncCheckout] = AsyncCheckout if target.scope is None else AsyncScopedCheckout
        self.key = key
