"""Events of servers, and of the clusters that they form, as frozen values."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from router.core.events import ERROR, WARNING, Event
from router.core.health import REFUSES_WRITES, SEVERAL_SERVERS
from router.core.names import counted

if TYPE_CHECKING:
    from router.core.topology import Node, Role, Server


class ServerUp(Event):
    """A server answers, for the first time or again.

    Attributes:
        server: The server.
        role: The role that it reports.
        server_version: In libpq's format: 160004 is 16.4.
    """

    server: Server
    role: Role | None
    server_version: int

    def __str__(self) -> str:
        return f"{self.server} is up: {self.role}, PostgreSQL {self.server_version // 10000}"


class ServerDown(Event):
    """A server cannot be used.

    Attributes:
        server: The server.
        reason: Why.
    """

    server: Server
    reason: str
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        return f"{self.server} is down: {self.reason}"


class LoginRefused(Event):
    """A server is up, but a node on it cannot be used: its login is refused, or cannot be tried.

    Attributes:
        node: The node.
        reason: Why.
        read_only: Whether this concerns reading, or writing; ``None`` for both.
    """

    node: Node
    reason: str
    read_only: bool | None = None
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        application = dict(self.node.params).get("application_name")  # a tenant's, say
        use = "" if self.read_only is None else " for reading" if self.read_only else " for writing"
        return f"{self.node}{f' ({application})' if application else ''} cannot be logged in to{use}: {self.reason}"


class SeveralServers(Event):
    """Several servers answer at one address: an observation of one holds only for the connections to that one.

    Attributes:
        server: The address.
    """

    server: Server
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        return (
            f"{self.server}: {SEVERAL_SERVERS}; "
            "reads that have to be fresh ask on each connection, or go to the primary: "
            "give each server an address of its own"
        )


class WritesRefused(Event):
    """A primary refuses writes by ``default_transaction_read_only``, so that writes wait; or no longer refuses them.

    Attributes:
        server: The server.
        refused: Whether it refuses them now.
    """

    server: Server
    refused: bool
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        how = "refuses writes" if self.refused else "takes writes again"
        return f"{self.server} {how}: {REFUSES_WRITES if self.refused else 'default_transaction_read_only is off'}"


class UndeclaredPooler(Event):
    """A pooler that the settings do not declare answers for a server: tenants separated by sessions are refused there.

    Attributes:
        server: The server.
    """

    server: Server
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        return (
            f"{self.server} is a pooler that the settings do not declare: tenants that share it, or are separated by "
            'a schema, role or setting, are refused there until pooler = "transaction" or "session" is set on the node'
        )


class ServerBanned(Event):
    """A server is back, but for a while it is used only if there is no other, because it failed before.

    Attributes:
        server: The server.
        failures: How often it went down without staying up for ``health.ban_max`` in between.
        seconds: For how many more seconds.
    """

    server: Server
    failures: int
    seconds: float

    def __str__(self) -> str:
        went_down = f"it went down {counted(self.failures, 'time')} recently"
        return f"{self.server} is avoided for {self.seconds:.1f} s more: {went_down}"


class RoleChanged(Event):
    """A server has another role than before.

    Attributes:
        server: The server.
        role: The role that it reports now.
        timeline: The timeline that it is on; 0 while unknown.
    """

    server: Server
    role: Role
    timeline: int
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        on = f", on timeline {self.timeline}" if self.timeline else ""
        return f"{self.server} is a {self.role} now{on}"


class Fenced(Event):
    """A node reports that it is a primary, but another one has taken over; it is no longer used until that is mended.

    Attributes:
        version: The version of the node.
        node: The node.
        reason: The evidence.
    """

    version: str
    node: Node
    reason: str
    level: ClassVar[int] = ERROR

    def __str__(self) -> str:
        return f"{self.version}: {self.node} is {self.reason}"


class OtherSystem(Event):
    """A node belongs to another system than its version, so it has other data; it is not used until that is mended.

    Attributes:
        version: The version of the node.
        node: The node.
        reason: The evidence.
    """

    version: str
    node: Node
    reason: str
    level: ClassVar[int] = ERROR

    def __str__(self) -> str:
        return f"{self.version}: {self.node} {self.reason}"


class LeftBehind(Event):
    """A replica has not followed the new primary; until it does, it serves reads only if no other node can.

    Attributes:
        version: The version of the node.
        node: The replica.
        timeline: The timeline that it is on.
    """

    version: str
    node: Node
    timeline: int
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        return f"{self.version}: {self.node} is still on timeline {self.timeline}, and does not follow the new primary"


class FailedOver(Event):
    """A version has another primary than before.

    Attributes:
        version: The version.
        old: The former primary.
        new: The new primary.
        seconds: For how many seconds there was none, as observed.
    """

    version: str
    old: Node
    new: Node
    seconds: float
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        return (
            f"{self.version}: the primary is {self.new.server} now, no longer {self.old.server}; "
            f"there was none for {self.seconds:.2f} s"
        )


class ReadsFellBack(Event):
    """From now on the primary serves the reads of a version, because none of its other nodes can.

    Attributes:
        version: The version.
        node: The primary.
        reason: Why the other nodes cannot.
    """

    version: str
    node: Node
    reason: str
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        return f"{self.version}: reads go to the primary {self.node} now: {self.reason}"


class ReadsReturned(Event):
    """Replicas serve the reads of a version again.

    Attributes:
        version: The version.
    """

    version: str

    def __str__(self) -> str:
        return f"{self.version}: reads go to replicas again"
