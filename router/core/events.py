"""What happens, as frozen values: told to observers, and logged."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, fields
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias

from router.core.choose import Tier
from router.core.health import (
    REFUSES_WRITES,
    SEVERAL,
    UNKNOWN,
    Use,
    fenced,
    foreign,
    left_behind,
    primary_of,
    undecided,
)
from router.core.topology import Node, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from router.core.choose import Standing
    from router.core.health import Health, State
    from router.core.topology import Cluster, Role

# The levels of logging, which the core has no business with.
DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40


@dataclass(slots=True, repr=False, eq=False)
class Event:
    """Something that happened; ``str()`` says it in a line, without secrets.

    Attributes:
        level: How it is logged.
    """

    level: ClassVar[int] = INFO

    # Written once: made anew for each event, these would be most of what importing this module costs.

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, name):  # which has been set by __init__()
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def _values(self) -> dict[str, object]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._values().items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Event) and type(self) is type(other) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), *self._values().values()))


@dataclass(slots=True, repr=False, eq=False)
class ServerUp(Event):
    """A server answers, for the first time or again.

    Attributes:
        server: The server.
        role: What it says it is.
        server_version: As libpq counts.
    """

    server: Server
    role: Role | None
    server_version: int

    def __str__(self) -> str:
        return f"{self.server} is up: {self.role}, PostgreSQL {self.server_version // 10000}"


@dataclass(slots=True, repr=False, eq=False)
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


@dataclass(slots=True, repr=False, eq=False)
class LoginRefused(Event):
    """A server is well, and a node on it cannot be used: its login is refused, or cannot be tried.

    Attributes:
        node: The node.
        reason: Why.
        read_only: Whether it is so for reading, or for writing; ``None`` for both.
    """

    node: Node
    reason: str
    read_only: bool | None = None
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        whose = dict(self.node.params).get("application_name")  # a tenant's, say
        use = "" if self.read_only is None else " for reading" if self.read_only else " for writing"
        return f"{self.node}{f' ({whose})' if whose else ''} cannot be logged in to{use}: {self.reason}"


@dataclass(slots=True, repr=False, eq=False)
class SeveralServers(Event):
    """Several servers answer at one address: what is seen of one is true of the connections to that one only.

    Attributes:
        server: The address.
    """

    server: Server
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        return (
            f"{self.server}: {SEVERAL}; reads that have to be fresh ask over each connection, or go to the primary: "
            "give each server an address of its own"
        )


@dataclass(slots=True, repr=False, eq=False)
class WritesRefused(Event):
    """A primary refuses writes by a setting, ``default_transaction_read_only``, so that they wait; or no longer does.

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


@dataclass(slots=True, repr=False, eq=False)
class UndeclaredPooler(Event):
    """A pooler answers for a server, and the settings do not say so: tenants kept apart by sessions are refused there.

    Attributes:
        server: The server.
    """

    server: Server
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        return (
            f"{self.server} is a pooler that the settings do not declare: tenants that share it, or are kept apart by "
            'a schema, role or setting, are refused there until pooler = "transaction" or "session" is set on the node'
        )


@dataclass(slots=True, repr=False, eq=False)
class ServerBanned(Event):
    """A server is back, and used only if there is no other for a while, because it failed before.

    Attributes:
        server: The server.
        failures: How often it went down without staying up for ``health.ban_max`` in between.
        seconds: For how long.
    """

    server: Server
    failures: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.server} is avoided for {self.seconds:.1f} s more: it went down {self.failures} times lately"


@dataclass(slots=True, repr=False, eq=False)
class RoleChanged(Event):
    """A server has another role than before.

    Attributes:
        server: The server.
        role: What it says it is now.
        timeline: The timeline it is on; 0 while unknown.
    """

    server: Server
    role: Role
    timeline: int
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        on = f", on timeline {self.timeline}" if self.timeline else ""
        return f"{self.server} is a {self.role} now{on}"


@dataclass(slots=True, repr=False, eq=False)
class Fenced(Event):
    """A node says it is primary, and is used no more, because another one has taken over: see to it.

    Attributes:
        version: The version whose node it is.
        node: The node.
        reason: How that is known.
    """

    version: str
    node: Node
    reason: str
    level: ClassVar[int] = ERROR

    def __str__(self) -> str:
        return f"{self.version}: {self.node} is {self.reason}"


@dataclass(slots=True, repr=False, eq=False)
class OtherSystem(Event):
    """A node is of another system than its version, so that it holds other data, and is used no more: see to it.

    Attributes:
        version: The version whose node it is.
        node: The node.
        reason: How that is known.
    """

    version: str
    node: Node
    reason: str
    level: ClassVar[int] = ERROR

    def __str__(self) -> str:
        return f"{self.version}: {self.node} {self.reason}"


@dataclass(slots=True, repr=False, eq=False)
class LeftBehind(Event):
    """A replica has not followed the new primary; until it does, it is read from only if there is no other.

    Attributes:
        version: The version whose node it is.
        node: The replica.
        timeline: The timeline it is on.
    """

    version: str
    node: Node
    timeline: int
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        return f"{self.version}: {self.node} is still on timeline {self.timeline}, and does not follow the new primary"


@dataclass(slots=True, repr=False, eq=False)
class FailedOver(Event):
    """A version has another primary than before.

    Attributes:
        version: The version.
        old: The primary that was.
        new: The primary that is.
        seconds: How long there was none, as far as was seen.
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


@dataclass(slots=True, repr=False, eq=False)
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


@dataclass(slots=True, repr=False, eq=False)
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
        return f"{_whose(self)}: opened the pool to {_use(self)} {self.node}"


@dataclass(slots=True, repr=False, eq=False)
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
        return f"{_whose(self)}: closed the pool to {_use(self)} {self.node}"


@dataclass(slots=True, repr=False, eq=False)
class RequestFailed(Event):
    """A request got no connection.

    This event, :class:`Repeated` and :class:`ReadOnPrimary` come as often as requests do; ``stats().totals`` counts
    them. They are told at the level DEBUG, since the request that suffers is told, too.

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
        return f"{_whose(self)}: a request to {what} failed with {self.error}: {self.reason}"


@dataclass(slots=True, repr=False, eq=False)
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
        return f"{_whose(self)}: {what} that failed on {self.node} is run again: {self.reason}"


@dataclass(slots=True, repr=False, eq=False)
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
        return f"{_whose(self)}: a read goes to the primary {self.node}: no replica has what it must see"


@dataclass(slots=True, repr=False, eq=False)
class ReadsFellBack(Event):
    """From now on the primary serves the reads of a version, because none of its other nodes can.

    Attributes:
        version: The version.
        node: The primary.
        reason: Why not the others.
    """

    version: str
    node: Node
    reason: str
    level: ClassVar[int] = WARNING

    def __str__(self) -> str:
        return f"{self.version}: reads go to the primary {self.node} now: {self.reason}"


@dataclass(slots=True, repr=False, eq=False)
class ReadsReturned(Event):
    """Replicas serve the reads of a version again.

    Attributes:
        version: The version.
    """

    version: str

    def __str__(self) -> str:
        return f"{self.version}: reads go to replicas again"


def _whose(event: PoolOpened | PoolClosed | RequestFailed | Repeated | ReadOnPrimary) -> str:
    return event.version if event.tenant is None else f"{event.version}, tenant {event.tenant}"


def _use(event: PoolOpened | PoolClosed) -> str:
    return "read from" if event.read_only else "write to"


Observer: TypeAlias = "Callable[[Event], object]"


def changes(before: Health, after: Health, clusters: Iterable[Cluster], *, now: float) -> Iterator[Event]:
    """Tell what an observation changed.

    Args:
        before: What was known.
        after: What is known.
        clusters: Those in use.
        now: The caller's clock, in seconds.

    Yields:
        The events.
    """
    for key, state in after.items():
        was = before.get(key, UNKNOWN)
        if isinstance(key, Server):
            yield from _of_server(key, was, state, now)
        elif was.up is not False:
            node, read_only = key if isinstance(key, Use) else (key, None)
            yield LoginRefused(node, state.reason, read_only)
    for cluster in clusters:
        known = {(type(event), event.node) for event in _of_cluster(before, cluster)}
        yield from (event for event in _of_cluster(after, cluster) if (type(event), event.node) not in known)


def _of_cluster(health: Health, cluster: Cluster) -> Iterator[OtherSystem | Fenced | LeftBehind]:
    """What is wrong between the nodes of a cluster, as far as each has been looked at since it became so."""
    if undecided(health, cluster):
        return
    out, others = fenced(health, cluster), foreign(health, cluster)
    primary = primary_of(health, cluster, out)
    leader = UNKNOWN if primary is None else health[primary.server]
    since = leader.led_since if leader.led else leader.primary_since
    for node in cluster.nodes:
        state = health.get(node.server, UNKNOWN)
        if not state.up or (state.led < leader.led and state.position_at < since):
            continue  # in a failover, the old primary is seen down a moment after the new one is seen
        if node in others:
            yield OtherSystem(cluster.name, node, others[node])
        elif node in out:
            yield Fenced(cluster.name, node, out[node])
        elif left_behind(health, node, primary):
            yield LeftBehind(cluster.name, node, state.timeline)


def _of_server(server: Server, known: State, state: State, now: float) -> Iterator[Event]:
    if state.up and not known.up:
        yield ServerUp(server, state.role, state.server_version)
        if now < state.banned_until and state.failures > 1:
            yield ServerBanned(server, state.failures, state.banned_until - now)
    if state.up is False and known.up is not False:
        yield ServerDown(server, state.reason)
    if known.role and state.role and known.role is not state.role:
        yield RoleChanged(server, state.role, state.timeline)
    if state.undeclared_pooler and not known.undeclared_pooler:
        yield UndeclaredPooler(server)
    if state.several and not known.several:
        yield SeveralServers(server)
    if state.up and known.refuses_writes != state.refuses_writes:
        yield WritesRefused(server, state.refuses_writes)


def fall_back(
    version: str, standings: Mapping[Node, Standing], *, fell_back: bool
) -> tuple[bool, ReadsFellBack | ReadsReturned | None]:
    """Follow whether the primary serves the reads of a version because no other node can.

    Args:
        version: The version's key.
        standings: What its nodes are worth for reading.
        fell_back: Whether it did.

    Returns:
        Whether it does, and the event if that is new.
    """
    tiers = {standing.tier for standing in standings.values()}
    if Tier.BEST in tiers:
        return False, ReadsReturned(version) if fell_back else None
    primary = next((node for node, standing in standings.items() if standing.tier is Tier.FALLBACK), None)
    if fell_back or primary is None or len(standings) == 1 or Tier.UNSEEN in tiers:
        return fell_back, None
    reason = "; ".join(f"{node}: {standing.note}" for node, standing in standings.items() if node != primary)
    return True, ReadsFellBack(version, primary, reason)


class Leader(NamedTuple):
    """The primary that a version had last.

    Attributes:
        node: It.
        lost_at: Since when there has been none, on the caller's clock; ``None`` while it is in office.
    """

    node: Node
    lost_at: float | None = None


def succeed(
    version: str, leader: Leader | None, node: Node | None, *, now: float
) -> tuple[Leader | None, FailedOver | None]:
    """Follow who is the primary of a version.

    Args:
        version: The version's key.
        leader: Who was.
        node: Who can be written to now; ``None`` for nobody.
        now: The caller's clock, in seconds.

    Returns:
        Who is, and the failover if this is one.
    """
    if node is None:
        return leader and (leader if leader.lost_at is not None else Leader(leader.node, now)), None
    if leader is None or leader.node == node:
        return Leader(node), None
    lost_at = now if leader.lost_at is None else leader.lost_at
    return Leader(node), FailedOver(version, leader.node, node, now - lost_at)
