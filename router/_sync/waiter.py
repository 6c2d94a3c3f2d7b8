# Generated from router/_async/waiter.py by tools/async_to_sync.py: do not edit.
"""A request that waits, and how a connection comes to it: in the shapes that psycopg_pool knows."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from router._runtime.calls import shielded
from router._runtime.flags import Wakeup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._sync.admission import Admission
    from router._sync.line import Line

    class Lends(Protocol):
        """What hands connections over: a pool."""

        waiting: PoolLine

        def note_lent(self, connection: Connection[TupleRow], tenant: str) -> None:
            """Take a connection for borrowed by a request of a tenant."""

        @property
        def kept_back(self) -> int:
            """How many connections it has that it does not lend now."""

        def holders(self) -> list[str]:
            """List the tenants of the connections that are out, one for each."""

        def withdraw(self) -> None:
            """Have no connection opened if no request waits for one any more."""

    class Serves(Protocol):
        """Whose line it is: a pool set."""

        def invalidate(self) -> None:
            """Choose anew before the next request is served."""


class Unserved(Exception):
    """Nothing can serve those that wait, and nothing will by itself."""


class Superseded(Exception):
    """Requests for the same key use another lane by now, since the topology or a tenant's home has changed."""


class HasToAsk(Exception):
    """Which replica may serve a request has to be asked of them: each request asks for itself."""


class Waiter:
    """A request that waits.

    Attributes:
        line: Where it waits.
        tenant: Whom it is for; empty where that does not matter.
        has_needs: Whether it asks for more than its lane says, and chooses for itself.
        number: Its place in the order of arrival; it keeps it as long as it waits, however often it is woken.
        admission: Its lane's; ``None`` where any number may be served.
        token: What it counts as there.
        accepts: Of one that has needs, the pool that it chose; ``None`` for none.
        is_held: Whether its lane's admission does not let it be served yet.
        has_work: Whether it has to do what all that wait need to have done, and has not done it yet.
        pool: Where the connection is from that was handed over.
        connection: The one handed over.
        error: Why there will be none.
        wakeup: Wakes it.
    """

    __slots__ = (
        "accepts", "admission", "connection", "error", "has_needs", "has_work", "is_held", "line", "number", "pool",
        "tenant", "token", "wakeup",
    )  # fmt: skip

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
            line: Where it is to wait.
            tenant: Whom the request is for.
            has_needs: Whether it chooses for itself.
            admission: Its lane's, if that has to admit it first.
            token: What it counts as there.
        """
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
        self.wakeup = Wakeup()

    @property
    def is_done(self) -> bool:
        """Whether it has a connection, or will have none."""
        return self.connection is not None or self.error is not None

    def wake(self) -> None:
        """Have the request look what there is to do."""
        self.wakeup.set()

    def wake_for_room(self) -> bool:
        """Have the request look for room for a pool; whether it still waits."""
        self.wakeup.set()
        return self.line.has(self)

    @shielded
    def leave(self) -> None:
        """Leave the line, or give back what was handed over at the last moment."""
        if not self.line.leave(self):
            connection, self.connection = self.connection, None  # once: it is called again if this is interrupted
            self.pool.release(connection)

    def wait(self, timeout: float) -> None:
        """Wait until the request is woken.

        Args:
            timeout: The most to wait, in seconds.
        """
        self.wakeup.wait_for(timeout)


class Offer:
    """A connection's way to the next in line, in the shape of psycopg_pool's ``WaitingClient``.

    Attributes:
        pool: Where the connection is from.
        taker: The request that it was handed to; ``None`` as long as it was not. That may have given it back by now.
    """

    __slots__ = ("_line", "pool", "taker")

    def __init__(self, line: Line | None, pool: Lends) -> None:
        self._line = line
        self.pool = pool
        self.taker: Waiter | None = None

    def set(self, connection: Connection[TupleRow]) -> bool:
        """Hand a connection over.

        Args:
            connection: The connection.

        Returns:
            Whether a request still waited.
        """
        return self._line is not None and self._line.hand_over(self, connection) is not None


class PoolLine(deque[None]):
    """What a pool sees of the line: psycopg_pool takes it for the deque of waiting clients that it made itself.

    It holds one entry as long as a request waits that may be served from this pool, and none otherwise: whether there
    is one has to be told as quickly as of any deque.

    Attributes:
        line: The line; ``None`` as long as the pool is in no pool set.
    """

    def __init__(self, pool: Lends) -> None:
        super().__init__()
        self.line: Line | None = None
        self._pool = pool

    def popleft(self) -> Offer:  # type: ignore[override]  # psycopg_pool uses what both have
        """Offer a connection to the next in line; that leaves the line when it is handed the connection."""
        return Offer(self.line, self._pool)

    def number(self) -> int:
        """Count the requests that may be served from this pool."""
        return 0 if self.line is None else self.line.number(self._pool)

    def mark(self, *, waits: bool) -> None:
        """Note whether a request waits that may be served from this pool; under the line's guard, before the slots'.

        Args:
            waits: Whether one does.
        """
        if not waits:
            super().clear()
            self._pool.withdraw()
        elif not self:
            super().append(None)

    def clear(self) -> None:
        """Do nothing: a pool that closes sends nobody away, for the line may be served by others."""

    def __iter__(self) -> Iterator[None]:
        """Go through nobody, likewise."""
        return iter(())
