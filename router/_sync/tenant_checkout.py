# Generated from router/_async/tenant_checkout.py by tools/async_to_sync.py: do not edit.
"""The checkouts for a tenant that shares its pool, and for one that the directory has to be asked about first."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

import psycopg

from router._runtime.workers import bind_loop
from router._sync.acquire import acquire
from router._sync.checkout import A_LONG_TIME, Checkout, TrackedCheckout
from router._sync.ending import observe_outcome
from router._sync.pool.scripts import TooLate
from router._sync.pool.session_state import session_of
from router._sync.pool.shared_pool import enter
from router.core.errors import UnknownTenant

if TYPE_CHECKING:
    from types import TracebackType

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router._runtime.calls import Function
    from router._sync.ending import Note
    from router._sync.lane import Lane
    from router._sync.pool.node_pool import NodePool
    from router.core.standing import Request


class ScopedCheckout(TrackedCheckout):
    """A checkout for a tenant whose connection may have served another tenant: its session is set to this one first."""

    __slots__ = ("_begin",)

    def __init__(
        self,
        lane: Lane,
        timeout: float | None,
        *,
        request: Request | None = None,
        note: Note | None = None,
        begin: bool = True,
    ) -> None:
        """Prepare to borrow; nothing happens before the block is entered.

        Args:
            lane: The lane to borrow from.
            timeout: The request's timeout, in seconds; ``None`` takes the lane's.
            request: The needs of the request; ``None`` for any of the lane's pools.
            note: As for :class:`TrackedCheckout`.
            begin: Whether a block that writes begins its transaction at once, in the round trip that sets the session.
        """
        super().__init__(lane, timeout, request=request, note=note)
        self._begin = begin and lane.target.shared and not lane.read_only

    def __enter__(self) -> Connection[TupleRow]:
        """Borrow the connection, and set its session to the tenant.

        Returns:
            The connection.

        Raises:
            Unavailable: No connection could be had within the deadline.
            UnknownTenant: The tenant's schema does not exist.
            RouterClosed: The router was closed.
            RuntimeError: The block of this object has been entered already.
        """
        if self._connection is not None:
            raise RuntimeError("this checkout is in use: call connection() once for each block")
        lane, deadline = self._lane, monotonic() + min(self._timeout, A_LONG_TIME)
        if lane.slots.loop is not None:
            lane.slots.loop = bind_loop(lane.slots.loop)
        if (admission := lane.admission) is None:
            return self._enter(lane, deadline)
        token = object()
        try:
            connection = self._enter(lane, deadline, token, admitted=admission.enter(token))
            self._pool.sessions.admitted[session_of(connection)] = admission, token
        except BaseException:
            admission.leave(token)
            raise
        return connection

    def _enter(
        self, lane: Lane, deadline: float, token: object = None, *, admitted: bool = True
    ) -> Connection[TupleRow]:
        scope = lane.target.scope
        assert scope is not None  # noqa: S101  (without a scope a plain checkout is made)
        pool = lane.pick() if self._request is None and admitted else None
        connection = None if pool is None else pool.take_for(scope)
        while True:
            if pool is None or connection is None:
                lane, pool, connection = acquire(lane, deadline, pool, self._request, token, admitted=admitted)
                self._lane, scope = lane, lane.target.scope
                assert scope is not None  # noqa: S101  (a lane that supersedes this one has a scope, too)
                admitted = True
            pool.sessions.retryable.add(session_of(connection))
            try:
                enter(connection, scope, deadline, begin=self._begin)
            except BaseException as error:
                if not self._give_back_unset(lane, pool, connection, error):
                    raise
                connection = None
                continue
            pool.sessions.retryable.discard(session_of(connection))
            session_of(connection).target = lane.target
            self._pool, self._connection = pool, connection
            return connection

    def _give_back_unset(
        self, lane: Lane, pool: NodePool, connection: Connection[TupleRow], error: BaseException
    ) -> bool:
        """Return a connection that could not be set to the tenant, and tell whether another connection may work."""
        # An earlier borrower may have changed a used session so that every reset fails. A fresh session has no such
        # excuse: the next one would fail in the same way.
        used = session_of(connection).scope is not None
        again = isinstance(error, psycopg.Error) and (used or connection.broken or isinstance(error, TooLate))
        observe_outcome(pool, connection, error)
        if isinstance(error, TooLate):
            pool.watched.suspect(pool.node.server)
        if isinstance(error, UnknownTenant):
            lane.in_force.lanes.unlist(lane)
        else:
            connection.close()
        pool.release(connection)
        return again

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the transaction and return the connection, as any checkout does."""
        connection, entry = self._connection, None
        try:
            # This comes before the connection is returned: after that, another request may have it. If the connection
            # was closed, the admission has been left already.
            if connection is not None:
                entry = self._pool.sessions.admitted.pop(session_of(connection), None)
            super().__exit__(kind, error, traceback)
        finally:
            if entry is not None and not self._pool.inherited:
                entry[0].leave(entry[1])


class LookupCheckout(Checkout):
    """A checkout for a tenant that the directory has to be asked about first."""

    __slots__ = ("_checkout", "_find")

    def __init__(self, find: Function[[float], Checkout], timeout: float) -> None:  # it has no lane yet
        """Prepare to borrow; nothing happens before the block is entered.

        Args:
            find: Asks the directory until a deadline, on the monotonic clock, and makes the actual checkout.
            timeout: The request's timeout, in seconds.
        """
        self._find = find
        self._timeout = timeout
        self._connection = None
        self._checkout: Checkout | None = None

    @property
    def pool(self) -> NodePool:
        """The pool of the connection, inside the block."""
        return self._found().pool

    @property
    def version(self) -> str:
        """The version of the request; empty while it is not known."""
        return "" if self._checkout is None else self._checkout.version

    @property
    def tenant(self) -> str | None:
        """The tenant of the request, inside the block."""
        return self._found().tenant

    def __enter__(self) -> Connection[TupleRow]:
        """Look up where the tenant lives, and borrow the connection.

        Returns:
            The connection.

        Raises:
            UnknownTenant: There is no such tenant.
            DirectoryUnavailable: The directory does not answer.
            Unavailable: No connection could be had within the deadline.
            RouterClosed: The router was closed.
            RuntimeError: The block of this object has been entered already.
        """
        if self._checkout is not None:
            raise RuntimeError("this checkout is in use: call connection() once for each block")
        checkout = self._find(monotonic() + min(self._timeout, A_LONG_TIME))
        connection = checkout.__enter__()
        self._checkout = checkout
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the transaction and return the connection, as any checkout does."""
        checkout, self._checkout = self._found(), None
        checkout.__exit__(kind, error, traceback)

    def detach(self) -> TrackedCheckout:
        """Detach the borrowed connection from the block: it is returned by the checkout's ``release()`` instead.

        Returns:
            The checkout that returns it.
        """
        checkout, self._checkout = self._found(), None
        assert isinstance(checkout, TrackedCheckout)  # noqa: S101  (``find`` was told to make one)
        return checkout.detach()

    def _found(self) -> Checkout:
        if self._checkout is None:
            raise RuntimeError("the block of this checkout was not entered")
        return self._checkout
