"""Route each request to the right PostgreSQL: the version it names, the primary for writes, replicas for reads.

::

    from router import Router, RouterSettings

    with Router(RouterSettings()) as router:
        with router.connection(version="v2") as conn: ...                    # the primary, one transaction
        with router.connection(version="v2", read_only=True) as conn: ...    # a replica; it refuses writes

    import router                                # the same through a process-wide router, set from the environment
    with router.connection(version="v2") as conn: ...
    async with router.aio.connection(version="v2") as conn: ...     # and one for each event loop
"""

from __future__ import annotations

import logging  # noqa: F401  (first: its lock is taken in a fork, too, and importing the rest needs it)
from importlib import import_module
from typing import TYPE_CHECKING

from router._first_use import first_use

if TYPE_CHECKING:
    from router import aio as aio
    from router._async.router import AsyncRouter
    from router._default import close, configure, connection, each, execute, explain, run, session, stats, use
    from router._sync.router import Router
    from router.choose import Route
    from router.context import Use
    from router.directory import DirectoryStats
    from router.errors import (
        ConfigError,
        DirectoryUnavailable,
        NoPrimary,
        NoReplica,
        PoolExhausted,
        RouterClosed,
        RouterError,
        TenantLocked,
        TokenRefused,
        TooManyWaiting,
        TransactionOutcomeUnknown,
        Unavailable,
        UnknownTenant,
        UnknownVersion,
    )
    from router.measures import NodeStats, PoolStats, Stats, TenantPoolStats, VersionStats
    from router.outcomes import Outcomes
    from router.result import Result
    from router.sessions import Session
    from router.settings import RouterSettings, TenantSettings
    from router.topology import Node, Role, Server

__all__ = [
    "AsyncRouter",
    "ConfigError",
    "DirectoryStats",
    "DirectoryUnavailable",
    "NoPrimary",
    "NoReplica",
    "Node",
    "NodeStats",
    "Outcomes",
    "PoolExhausted",
    "PoolStats",
    "Result",
    "Role",
    "Route",
    "Router",
    "RouterClosed",
    "RouterError",
    "RouterSettings",
    "Server",
    "Session",
    "Stats",
    "TenantLocked",
    "TenantPoolStats",
    "TenantSettings",
    "TokenRefused",
    "TooManyWaiting",
    "TransactionOutcomeUnknown",
    "Unavailable",
    "UnknownTenant",
    "UnknownVersion",
    "Use",
    "VersionStats",
    "close",
    "configure",
    "connection",
    "each",
    "execute",
    "explain",
    "run",
    "session",
    "stats",
    "use",
]

# Where these are. They are looked up when first used: every pytest run of whoever has this package installed imports
# `router` for its fixtures, and must not pay for psycopg and pydantic.
_HOMES = (
    "errors",
    "topology",
    "choose",
    "measures",
    "directory",
    "result",
    "outcomes",
    "context",
    "sessions",
    "settings",
    "_sync.router",
    "_async.router",
    "_default",
)

if not TYPE_CHECKING:  # a type checker would take it to mean that any name is there

    def __getattr__(name: str) -> object:
        if name in __all__ or name == "aio":  # not for a module that one of those imports from here: it has other locks
            with first_use:
                if name == "aio":
                    return import_module("router.aio")
                for home in _HOMES:
                    found = getattr(import_module(f"router.{home}"), name, None)
                    if found is not None and found.__module__ == f"router.{home}":  # else it is only imported there
                        globals()[name] = found
                        return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, "aio"})
