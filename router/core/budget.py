"""The connections that there may be: what limits them, whose they are, and what each of those who share may count on.

Limits hold at every moment: of the process, of a server, of a login once its server has refused one more, and of an
*owner*, which is a tenant, or a version for the pools that its tenants share. No connection is set aside for anybody:
while there is room, a request gets one. When there is none, they move from owners that have more to owners that have
fewer: an idle one is closed, or one that comes back is not lent again. So all tend to the same number, as far as each
wants that many (max-min fairness).

Nobody starves while connections come back. A pool that has none cannot be served by what comes back to others; so it
gets one from any owner that has more than its own, even one more, and from the other pools of its own owner. Of those
that may have a connection, the first is served whose owner is below its share; and within an owner, the first place
below a cap or a share is kept for the pool without a connection that asked first.

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
"""Seconds that an idle connection is kept from those who have as many as its owner: it may be wanted again at once."""


@dataclass(frozen=True, slots=True, eq=False)
class BudgetKey:
    """Whose connections those of one pool are; one object a pool, for all its connections and for opening more.

    Two keys are never equal, whatever they say: of two pools of one owner, to read and to write, neither can stand in
    for the other.

    Attributes:
        server: Where the pool connects to.
        owner: Whose it is, in words: ``tenant acme``; or a version, when tenants share the pool or none uses it.
        cap: The most connections of that owner, over all its pools; ``None`` for no limit of its own.
        user: What the pool logs in as.
    """

    server: Server
    owner: str
    cap: int | None
    user: str = ""

    @property
    def login(self) -> Login:
        """What a server's own limit for a role holds for."""
        return self.server, self.user


def budget_key(node: Node, owner: str, cap: int | None = None) -> BudgetKey:
    """Make the key of a pool, or of what else opens connections.

    Args:
        node: What it connects to.
        owner: Whose its connections are.
        cap: The most connections of that owner.

    Returns:
        The key.
    """
    return BudgetKey(node.server, owner, cap, dict(node.params).get("user", ""))


class Limits(NamedTuple):
    """How many connections there may be.

    Attributes:
        process: In the process.
        server: To one server; ``None`` for no limit of its own.
    """

    process: int
    server: int | None


class Idle(NamedTuple):
    """A connection that nobody has borrowed.

    Attributes:
        key: Its pool's.
        since: When it came back, on the caller's clock.
        warm: Whether its pool is to keep it: without it, there would be fewer than ``min_size``.
    """

    key: BudgetKey
    since: float
    warm: bool


class Full(Enum):
    """What has no room left, from the narrowest on: more room there is more room in those after it, too."""

    OWNER = auto()
    LOGIN = auto()
    SERVER = auto()
    PROCESS = auto()


def share(limit: int, owners: int) -> int:
    """Return how many connections each owner may count on, whatever the others ask for.

    Args:
        limit: How many there are.
        owners: How many have some or wait for some.

    Returns:
        An equal part of them, at least 1.
    """
    return max(limit // max(owners, 1), 1)


def next_in_line(waiting: Iterable[str], crowd: Collection[str], held: Mapping[str, int]) -> int:
    """Choose who is served next: the first whose owner is below its share, see :func:`at_share`, else the first.

    Args:
        waiting: The owners that wait, once for each request, in order of arrival.
        crowd: The same, each once.
        held: How many connections each owner has, the one that has just come back still counted as its last one's:
            else, whoever gives one back would have one fewer than all others. Owners that have none are left out.

    Returns:
        The place in ``waiting``.
    """
    served = at_share(crowd, held)
    return next((index for index, owner in enumerate(waiting) if owner not in served), 0)


def at_share(crowd: Collection[str], held: Mapping[str, int]) -> frozenset[str]:
    """Tell which owners have their share of the connections of a pool, or more, so that others are served first.

    What they share is what there is: how many there may be, a pool whose budget is spent never gets.

    Args:
        crowd: The owners that wait, each once.
        held: How many connections each owner has, as for :func:`next_in_line`.

    Returns:
        Those owners.
    """
    fair = share(sum(held.values()), len(crowd) + sum(owner not in crowd for owner in held))
    return frozenset(owner for owner, number in held.items() if number >= fair)
