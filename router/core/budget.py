"""The budget of connections: its limits, the owners of connections, and the fair share of each owner.

Limits hold at every moment: for the process, for a server, for a login once its server has refused one more connection,
and for an *owner*, which is a tenant, or a version for the pools that its tenants share. No connection is reserved:
while there is room, any request gets one. When there is none, connections move from owners that have more to owners
that have fewer: an idle connection is closed, or a connection that is returned is closed instead of being lent again.
In this way all owners approach the same number, as far as each of them needs that many (max-min fairness).

No pool starves while connections are returned. Connections that are returned to other pools cannot serve a pool that
has none; so such a pool gets one from any owner that has more than its own owner, even by one, and from the other pools
of its own owner. Among the requests that may open a connection, the first one whose owner is below its share is served;
and within an owner, the first slot below its cap or share is kept for the pool without a connection that asked first.

``slot_lines.py`` decides by these rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from typing import TypeAlias

    from router.core.topology import Node, Server

    Login: TypeAlias = tuple[Server, str]  # a server, and the user at it

KEPT = 1.0
"""Seconds for which an idle connection is not closed for an owner that has as many: it may be needed again at once."""


@dataclass(frozen=True, slots=True, eq=False)
class BudgetKey:
    """The key by which the connections of one pool are counted; a pool has one key for all its connections.

    Two keys are never equal, even with the same values: an owner's pools for reading and for writing cannot replace
    each other.

    Attributes:
        server: The server that the pool connects to.
        owner: The owner, as a text: ``tenant acme``; or a version, if tenants share the pool or no tenant uses it.
        cap: The most connections of that owner, over all its pools; ``None`` for no limit.
        user: The user that the pool logs in as.
    """

    server: Server
    owner: str
    cap: int | None
    user: str = ""

    @property
    def login(self) -> Login:
        """The server and user, for which a server may have a limit of its own."""
        return self.server, self.user


def budget_key(node: Node, owner: str, cap: int | None = None) -> BudgetKey:
    """Make the key of a pool, or of something else that opens connections, such as a watcher.

    Args:
        node: The node that it connects to.
        owner: The owner of its connections.
        cap: The most connections of that owner.

    Returns:
        The key.
    """
    return BudgetKey(node.server, owner, cap, dict(node.params).get("user", ""))


class Limits(NamedTuple):
    """The limits of the settings.

    Attributes:
        process: The most connections of the process.
        server: The most connections to one server; ``None`` for no limit.
    """

    process: int
    server: int | None


class Idle(NamedTuple):
    """An idle connection.

    Attributes:
        key: The key of its pool.
        since: When it was returned, on the caller's clock.
        warm: Whether its pool needs it for its ``min_size``.
    """

    key: BudgetKey
    since: float
    warm: bool


class Full(Enum):
    """The limit that is reached, in order from the narrowest: each lies within the next."""

    OWNER = auto()
    LOGIN = auto()
    SERVER = auto()
    PROCESS = auto()


def share(limit: int, owners: int) -> int:
    """Return the fair share: how many connections each owner can count on, whatever the others request.

    Args:
        limit: How many connections there are.
        owners: How many owners have connections or wait for some.

    Returns:
        An equal part of the connections, at least 1.
    """
    return max(limit // max(owners, 1), 1)


def next_in_line(waiting: Iterable[str], demand: Collection[str], held: Mapping[str, int]) -> int:
    """Choose the request to serve next: the first whose owner is below its share (:func:`at_share`), else the first.

    Args:
        waiting: The owners of the waiting requests, in order of arrival, once for each request.
        demand: The same owners, each once.
        held: How many connections each owner has; owners that have none are left out. A connection that has just been
            returned still counts for the owner that returned it: otherwise that owner would always have one fewer.

    Returns:
        The index in ``waiting``.
    """
    served = at_share(demand, held)
    return next((index for index, owner in enumerate(waiting) if owner not in served), 0)


def at_share(demand: Collection[str], held: Mapping[str, int]) -> frozenset[str]:
    """Find the owners that have their share of a pool's connections, or more, so that others are served first.

    The share is a part of the connections that exist, because a pool may never reach its maximum size.

    Args:
        demand: The owners that wait, each once.
        held: How many connections each owner has, as for :func:`next_in_line`.

    Returns:
        Those owners.
    """
    fair = share(sum(held.values()), len(demand) + sum(owner not in demand for owner in held))
    return frozenset(owner for owner, number in held.items() if number >= fair)
