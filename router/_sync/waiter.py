# Generated from router/_async/waiter.py by tools/async_to_sync.py: do not edit.
"""A request that waits, and how it is handed a connection, with the interfaces that psycopg_pool expects."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, Self

from router._runtime.calls import shielded
from router._runtime.flags import Wakeup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._sync.admission import Admission
    from router._sync.line import Line

    class Lender(Protocol):
        """A pool, as the line sees it: it hands connections over."""

        waiting: PoolLine

        def note_lent(self, connection: Connection[TupleRow], tenant: str) -> None:
            """Count a connection as borrowed by a request of a tenant."""

        @property
        def kept_back(self) -> int:
            """How many connections it has that it does not lend now."""

        def holders(self) -> list[str]:
            """List the tenants of the borrowed connections, one entry for each connection."""

        def withdraw(self) -> None:
            """Cancel the opening of connections if no request waits for one any more."""

    class LineOwner(Protocol):
        """A pool set, as its line sees it."""

        def invalidate(self) -> None:
            """Have pools chosen again before the next request is served."""


class Unserved(Exception):
    """No pool can serve the waiting requests, and none will be able to until something changes."""


class Superseded(Exception):
    """The lane was replaced, since the topology or the tenant's home changed: the request has to use the new lane."""


class ReplicaQueryNeeded(Exception):
    """Each request has to ask the replicas itself whether they have replayed the position that it requires."""


class Waiter(Wakeup):
    """A request that waits in a line.

    Attributes:
        line: The line.
        tenant: The tenant that it is for; empty where that does not matter.
        has_needs: Whether it has needs beyond those of its lane, such as a position, and so chooses its pool itself.
        number: Its number in the order of arrival, which it keeps when it joins again; -1 before it first joins.
        admission: The admission of its lane; ``None`` if any number of requests may be served.
        token: Identifies it in the admission.
        accepts: The pool that a request with needs has chosen; ``None`` for none.
        is_held: Whether it has not been admitted yet.
        has_work: Whether it still has to do the work that is due for all requests in the line.
        pool: The pool of the connection that was handed over.
        connection: The connection that was handed over; ``None`` until then.
        error: Why it will get no connection; ``None`` for no error.
    """

    __slots__ = (
        "accepts", "admission", "connection", "error", "has_needs", "has_work", "is_held", "line", "number", "pool",
        "tenant", "token",
    )  # fmt: skip

    wake, wait = Wakeup.set, Wakeup.wait_for

    def __init__(
        self,
        line: Line,
        tenant: str = "",
        *,
        has_needs: bool = False,
        admission: Admission | None = None,
        token: object = None,
    ) -> None:
        """Make the waiter; it is not in the line yet.

        Args:
            line: The line.
            tenant: The tenant that the request is for.
            has_needs: Whether it chooses its pool itself.
            admission: The admission of its lane; ``None`` if it need not be admitted first.
            token: Identifies it in the admission.
        """
        super().__init__()
        self.line = line
        self.tenant = tenant
        self.has_needs = has_needs
        self.admission = admission
        self.token = token
        self.number = -1
        self.accepts: Any = None
        self.is_held = admission is not None
        self.has_work = False
        self.pool: Any = None
        self.connection: Connection[TupleRow] | None = None
        self.error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        """Whether it has a connection, or will get none."""
        return self.connection is not None or self.error is not None

    def wake_for_room(self) -> bool:
        """Wake the request because a pool may have room now; returns whether the request still waits."""
        self.wake()
        return self.line.has(self)

    @shielded
    def leave(self) -> None:
        """Leave the line, or return the connection that was handed over at the last moment."""
        if not self.line.leave(self):
            # Cleared first: an interrupted leave() is called again, and must return the connection only once.
            connection, self.connection = self.connection, None
            self.pool.release(connection)


class PoolLine(deque[None]):
    """The line as a pool sees it: it replaces the deque of waiting clients that psycopg_pool makes.

    It holds one entry while a request waits that this pool may serve, and none otherwise, so that the check for waiting
    requests is as fast as for any deque.

    Attributes:
        line: The line; ``None`` while the pool is in no pool set.
    """

    def __init__(self, pool: Lender) -> None:
        super().__init__()
        self.line: Line | None = None
        self._pool = pool

    def popleft(self) -> Self:  # type: ignore[override]  # psycopg_pool only calls set() on what this returns
        """Return the line itself: a request leaves it when it is handed a connection."""
        return self

    def set(self, connection: Connection[TupleRow]) -> bool:
        """Hand a connection to the next request, as psycopg_pool does with its ``WaitingClient``.

        Args:
            connection: The connection.

        Returns:
            Whether a request waited.
        """
        return self.line is not None and self.line.hand_over(self._pool, connection, [None]) is not None

    def number(self) -> int:
        """Count the requests that this pool may serve."""
        return 0 if self.line is None else self.line.number(self._pool)

    def mark(self, *, waits: bool) -> None:
        """Note whether a request waits that this pool may serve.

        Called under the line's guard, which is taken before the guard of the slots.

        Args:
            waits: Whether one waits.
        """
        if not waits:
            super().clear()
            self._pool.withdraw()
        elif not self:
            super().append(None)

    def clear(self) -> None:
        """Do nothing: when a pool closes, other pools may serve the requests in line."""

    def __iter__(self) -> Iterator[None]:
        """Iterate over nothing: a pool that closes must not reach the requests in line."""
        return iter(())
