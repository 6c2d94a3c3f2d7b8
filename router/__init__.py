"""Route each request to the right PostgreSQL: the version it names, the primary for writes, replicas for reads.

::

    from router import Router, RouterSettings

    with Router(RouterSettings()) as router:
        with router.connection(version="v2") as conn: ...                    # the primary, one transaction
        with router.connection(version="v2", read_only=True) as conn: ...    # a replica; it refuses writes

    import router                                # the same through a process-wide router, set from the environment
    with router.connection(version="v2") as conn: ...
"""

from router._async.router import AsyncRouter
from router._default import close, configure, connection, explain, stats
from router._sync.router import Router
from router.choose import Route
from router.errors import (
    ConfigError,
    NoPrimary,
    NoReplica,
    PoolExhausted,
    RouterClosed,
    RouterError,
    TooManyWaiting,
    Unavailable,
    UnknownVersion,
)
from router.measures import NodeStats, PoolStats, Stats, VersionStats
from router.settings import RouterSettings
from router.topology import Node, Role, Server

__all__ = [
    "AsyncRouter",
    "ConfigError",
    "NoPrimary",
    "NoReplica",
    "Node",
    "NodeStats",
    "PoolExhausted",
    "PoolStats",
    "Role",
    "Route",
    "Router",
    "RouterClosed",
    "RouterError",
    "RouterSettings",
    "Server",
    "Stats",
    "TooManyWaiting",
    "Unavailable",
    "UnknownVersion",
    "VersionStats",
    "close",
    "configure",
    "connection",
    "explain",
    "stats",
]
