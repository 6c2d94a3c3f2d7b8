"""Events for observers and the log, as frozen values: their base class, and the events of pools and requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeAlias

from router.core.names import counted
from router.core.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.core.topology import Node


# The levels of the logging module, which the core does not import.
DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40


class Event(Value):
    """Something that happened; ``str()`` describes it in one line, without secrets.

    Attributes:
        level: The level at which it is logged.
    """

    level: ClassVar[int] = INFO


class ConnectionsCut(Event):
    """The router cut borrowed connections; their queries fail.

    Attributes:
        node: The node of the connections.
        count: How many were cut.
        reason: Why.
    """

    node: Node
    count: int
    reason: str
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        return f"cut {counted(self.count, 'borrowed connection')} to {self.node}: {self.reason}"


class PoolOpened(Event):
    """A pool is used for the first time.

    Attributes:
        version: The version that the pool is for.
        node: The node that it connects to.
        read_only: Whether it is for reading.
        tenant: The tenant that it belongs to; ``None`` if it does not belong to one tenant.
    """

    version: str
    node: Node
    read_only: bool
    tenant: str | None = None
    level: ClassVar[int] = DEBUG

    def __str__(self) -> str:
        return f"{_subject(self)}: opened the pool to {_use(self)} {self.node}"


class PoolClosed(Event):
    """A pool was closed.

    Attributes:
        version: The version that the pool was for.
        node: The node that it connected to.
        read_only: Whether it was for reading.
        tenant: The tenant that it belonged to; ``None`` if it did not belong to one tenant.
    """

    version: str
    node: Node
    read_only: bool
    tenant: str | None = None
    level: ClassVar[int] = DEBUG

    def __str__(self) -> str:
        return f"{_subject(self)}: closed the pool to {_use(self)} {self.node}"


class RequestFailed(Event):
    """A request got no connection.

    This event, :class:`Repeated` and :class:`ReadOnPrimary` can be as frequent as requests; ``stats().totals`` counts
    them. Their level is DEBUG, since the caller of the request sees the outcome anyway.

    Attributes:
        version: The version that the request was for.
        tenant: The tenant that it was for; ``None`` for none.
        read_only: Whether it was a read.
        error: The error that was raised: ``PoolExhausted``, ``TooManyWaiting``, ``NoPrimary`` or ``NoReplica``.
        reason: Why.
    """

    version: str
    tenant: str | None
    read_only: bool
    error: str
    reason: str
    level: ClassVar[int] = DEBUG

    def __str__(self) -> str:
        what = "read" if self.read_only else "write"
        return f"{_subject(self)}: a request to {what} failed with {self.error}: {self.reason}"


class Repeated(Event):
    """A transaction of ``run()``, or a read of ``execute()``, had a transient failure, and is run again.

    Attributes:
        version: The version that it is for.
        tenant: The tenant that it is for; ``None`` for none.
        read_only: Whether it is a read.
        node: The node where it failed.
        reason: The error.
    """

    version: str
    tenant: str | None
    read_only: bool
    node: Node
    reason: str
    level: ClassVar[int] = DEBUG

    def __str__(self) -> str:
        what = "a read" if self.read_only else "a transaction"
        return f"{_subject(self)}: {what} that failed on {self.node} is run again: {self.reason}"


class ReadOnPrimary(Event):
    """A read goes to the primary, because no replica has replayed the required position yet.

    Attributes:
        version: The version that the read is for.
        tenant: The tenant that it is for; ``None`` for none.
        node: The primary.
    """

    version: str
    tenant: str | None
    node: Node
    level: ClassVar[int] = DEBUG

    def __str__(self) -> str:
        return (
            f"{_subject(self)}: a read goes to the primary {self.node}: no replica has replayed the required position"
        )


def _subject(event: PoolOpened | PoolClosed | RequestFailed | Repeated | ReadOnPrimary) -> str:
    return event.version if event.tenant is None else f"{event.version}, tenant {event.tenant}"


def _use(event: PoolOpened | PoolClosed) -> str:
    return "read from" if event.read_only else "write to"


Observer: TypeAlias = "Callable[[Event], object]"
