"""What is wrong between the values of one policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.core.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.core.policies import HealthPolicy, PoolPolicy, TenantPolicy


def pool_faults(policy: PoolPolicy) -> Iterator[Fault]:
    """Find limits of a pool that cannot be met together.

    Args:
        policy: How the pool behaves.

    Yields:
        The faults, by the policy's keys.
    """
    yield from _at_least("max_size", policy.max_size, "min_size", policy.min_size)


def health_faults(policy: HealthPolicy) -> Iterator[Fault]:
    """Find durations of health checks that cannot be met together.

    Args:
        policy: How servers are watched.

    Yields:
        The faults, by the policy's keys.
    """
    yield from _at_least("ban_max", policy.ban_max, "ban", policy.ban)


def tenancy_faults(policy: TenantPolicy) -> Iterator[Fault]:
    """Find what is said of a tenant's connections and cannot be met together.

    Args:
        policy: How the tenant is kept apart.

    Yields:
        The faults.
    """
    if policy.min_size and policy.pooling == "shared":
        yield Fault((), 'min_size keeps connections open for one tenant alone, which needs pooling = "dedicated"')
    if policy.max_connections is not None and policy.min_size > policy.max_connections:
        yield Fault((), f"min_size is {policy.min_size}, more than max_connections, which is {policy.max_connections}")


def _at_least(key: str, value: float, low: str, least: float) -> Iterator[Fault]:
    if value < least:
        yield Fault((key,), f"must be at least {low}, which is {least}; it is {value}")
