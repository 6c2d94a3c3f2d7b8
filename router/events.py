"""The events that observers are told of: see :class:`router.Router`, ``observers``."""

from __future__ import annotations

from router.core.events import (
    ConnectionsCut,
    Event,
    Observer,
    PoolClosed,
    PoolOpened,
    ReadOnPrimary,
    Repeated,
    RequestFailed,
)
from router.core.server_events import (
    FailedOver,
    Fenced,
    LeftBehind,
    LoginRefused,
    OtherSystem,
    ReadsFellBack,
    ReadsReturned,
    RoleChanged,
    ServerBanned,
    ServerDown,
    ServerUp,
    SeveralServers,
    UndeclaredPooler,
    WritesRefused,
)

__all__ = [
    "ConnectionsCut",
    "Event",
    "FailedOver",
    "Fenced",
    "LeftBehind",
    "LoginRefused",
    "Observer",
    "OtherSystem",
    "PoolClosed",
    "PoolOpened",
    "ReadOnPrimary",
    "ReadsFellBack",
    "ReadsReturned",
    "Repeated",
    "RequestFailed",
    "RoleChanged",
    "ServerBanned",
    "ServerDown",
    "ServerUp",
    "SeveralServers",
    "UndeclaredPooler",
    "WritesRefused",
]
