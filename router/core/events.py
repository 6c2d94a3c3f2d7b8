"""What happens, as frozen values for observers and the log: the base of all, and what happens to pools and requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeAlias

from router.core.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.core.topology import Node


# The levels of logging, which the core has no business with.
DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40


class Event(Value):
    """Something that happened; ``str()`` says it in a line, without secrets.

    Attributes:
        level: How it is logged.
    """

    level: ClassVar[int] = INFO


class ConnectionsCut(Event):
    """Borrowed connections were cut; their queries fail.

    Attributes:
        node: Where they went.
        count: How many.
        reason: Why.
    """

    node: Node
    count: int
    reason: str
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        return f"cut {self.count} borrowed connections to {self.node}: {self.reason}"


class PoolOpened(Event):
    """A pool is used for the first time.

    Attributes:
        version: The version it is for.
        node: What it connects to.
        read_only: Whether it is for reading.
        tenant: Whose it is, if it is one tenant's.
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
        version: The version it was for.
        node: What it connected to.
        read_only: Whether it was for reading.
        tenant: Whose it was, if it was one tenant's.
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

    This event, :class:`Repeated` and :class:`ReadOnPrimary` come as often as requests do; ``stats().totals`` counts
    them. Their level is DEBUG, since the caller of the request learns of it anyway.

    Attributes:
        version: The version it was for.
        tenant: The tenant it was for, if it was for one.
        read_only: Whether it was to read.
        error: What was raised: ``PoolExhausted``, ``TooManyWaiting``, ``NoPrimary`` or ``NoReplica``.
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
    """A transaction of ``run()``, or a read of ``execute()``, failed for a reason that passes, and is run again.

    Attributes:
        version: The version it is for.
        tenant: The tenant it is for, if it is for one.
        read_only: Whether it reads.
        node: Where it failed.
        reason: How.
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
    """A read goes to the primary, because no replica has replayed yet what it must see.

    Attributes:
        version: The version it is for.
        tenant: The tenant it is for, if it is for one.
        node: The primary.
    """

    version: str
    tenant: str | None
    node: Node
    level: ClassVar[int] = DEBUG

    def __str__(self) -> str:
        return f"{_subject(self)}: a read goes to the primary {self.node}: no replica has what it must see"


def _subject(event: PoolOpened | PoolClosed | RequestFailed | Repeated | ReadOnPrimary) -> str:
    return event.version if event.tenant is None else f"{event.version}, tenant {event.tenant}"


def _use(event: PoolOpened | PoolClosed) -> str:
    return "read from" if event.read_only else "write to"


Observer: TypeAlias = "Callable[[Event], object]"
