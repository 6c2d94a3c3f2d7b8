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
    from router._default import (
        acquire,
        carried,
        carry,
        close,
        configure,
        connection,
        current,
        each,
        execute,
        explain,
        run,
        session,
        stats,
        use,
    )
    from router._sync.router import Router
    from router.ambient import Carried, Current
    from router.context import Use
    from router.core.choose import Route
    from router.core.errors import (
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
    from router.core.measures import (
        DirectoryStats,
        DrainingPoolStats,
        NodeStats,
        PoolStats,
        Stats,
        TenantPoolStats,
        VersionStats,
    )
    from router.core.outcomes import Outcomes
    from router.core.result import Result
    from router.core.topology import Node, Role, Server
    from router.sessions import Session
    from router.settings import RouterSettings, TenantSettings

__all__ = [
    "AsyncRouter",
    "Carried",
    "ConfigError",
    "Current",
    "DirectoryStats",
    "DirectoryUnavailable",
    "DrainingPoolStats",
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
    "acquire",
    "carried",
    "carry",
    "close",
    "configure",
    "connection",
    "current",
    "each",
    "execute",
    "explain",
    "run",
    "session",
    "stats",
    "use",
]

# The modules of these names. A name is imported at its first use, and with it only its own module: every pytest run in
# an environment with this package imports `router` for its fixtures, and must not pay for psycopg and pydantic; nor
# must `AsyncRouter` pay for `Router`.
_HOMES = {
    "core.errors": [
        "ConfigError",
        "DirectoryUnavailable",
        "NoPrimary",
        "NoReplica",
        "PoolExhausted",
        "RouterClosed",
        "RouterError",
        "TenantLocked",
        "TokenRefused",
        "TooManyWaiting",
        "TransactionOutcomeUnknown",
        "Unavailable",
        "UnknownTenant",
        "UnknownVersion",
    ],
    "core.topology": ["Node", "Role", "Server"],
    "core.choose": ["Route"],
    "core.measures": [
        "DirectoryStats",
        "DrainingPoolStats",
        "NodeStats",
        "PoolStats",
        "Stats",
        "TenantPoolStats",
        "VersionStats",
    ],
    "core.result": ["Result"],
    "core.outcomes": ["Outcomes"],
    "context": ["Use"],
    "sessions": ["Session"],
    "ambient": ["Carried", "Current"],
    "settings.models": ["RouterSettings"],
    "settings.tenants": ["TenantSettings"],
    "_sync.router": ["Router"],
    "_async.router": ["AsyncRouter"],
    "_process": ["close", "configure"],
    "_default": [
        "acquire",
        "carried",
        "carry",
        "connection",
        "current",
        "each",
        "execute",
        "explain",
        "run",
        "session",
        "stats",
        "use",
    ],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:  # a type checker would conclude that any name exists

    def __getattr__(name: str) -> object:
        home = "aio" if name == "aio" else _HOME_OF.get(name)
        if home is not None:  # a module has import locks of its own, and must not be imported under this one
            with first_use:
                module = import_module(f"router.{home}")
                if name == "aio":
                    return module
                globals()[name] = found = getattr(module, name)
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, "aio"})
