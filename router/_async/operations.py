"""The operations of a router: one statement, a transaction that is repeated, work for each tenant."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from router.blocks import Blocks
from router.context import named
from router.core.errors import UnknownTenant, at_least_zero
from router.core.outcomes import needs_list

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import AsyncConnection
    from psycopg.abc import Params, Query
    from psycopg.rows import TupleRow

    from router._async.checkouts import AsyncCheckouts
    from router._async.in_force import AsyncInForce
    from router._async.statements import AsyncStatements
    from router._runtime.calls import AFunction
    from router.core.outcomes import Outcomes
    from router.core.result import Result

T = TypeVar("T")


class AsyncOperations(Blocks):
    """The methods of a router that borrow a connection and return it themselves."""

    _in_force: AsyncInForce
    _checkouts: AsyncCheckouts
    _statements: AsyncStatements

    async def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        version: str | None = None,
        tenant: str | None = None,
        max_lag: float | None = None,
        after: str | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Run one statement by itself: on a replica if PostgreSQL allows it there, else on the primary.

        A statement that begins with a word that writes (INSERT, COPY … FROM, CREATE and the like, comments ignored), or
        that administers a server, goes to the primary. The router sends any other statement to a replica, in a session
        that refuses writes. If the server refuses it, the router runs it on the primary, now and from then on. The
        statement is committed at once. What it leaves in its session (``SET``, ``LISTEN``, a temporary table, an
        advisory lock) ends with it.

        Args:
            query: The statement; from Python 3.14 on also as a template string, without parameters of its own.
            params: The statement's parameters.
            version: As for :meth:`connection`.
            tenant: As for :meth:`connection`.
            max_lag: As for :meth:`connection`, if the statement reads.
            after: As for :meth:`connection`, if the statement reads.
            timeout: Seconds to get a connection; ``None`` takes ``pool.timeout``.

        Returns:
            The whole result.

        Raises:
            UnknownVersion: As for :meth:`connection`.
            UnknownTenant: As for :meth:`connection`.
            Unavailable: No connection was available in time.
            TransactionOutcomeUnknown: The connection died while the statement ran on the primary. (A read whose
                connection dies is run again elsewhere.)
            TypeError: ``query`` is not a statement.
            ValueError: As for :meth:`connection`.
            psycopg.Error: PostgreSQL refused the statement.
        """
        checkout = partial(self._checkouts.make, version=version, tenant=tenant, timeout=timeout)
        reading = partial(checkout, read_only=True, max_lag=max_lag, after=after)
        writing = partial(checkout, begin=False)
        return await self._statements.execute(query, params, reading, writing)

    async def run(
        self,
        function: AFunction[[AsyncConnection[TupleRow]], T],
        *,
        version: str | None = None,
        tenant: str | None = None,
        retries: int = 3,
        timeout: float | None = None,
    ) -> T:
        """Run a function in a transaction on the primary, and run it again after a transient failure.

        Transient failures are a serialization failure, a deadlock, and a connection that is lost before COMMIT.

        Args:
            function: Called with the connection. It may be called several times, so it must have no effect outside the
                transaction. It cannot commit by itself; ``connection.transaction()`` inside it is a savepoint.
            version: As for :meth:`connection`.
            tenant: As for :meth:`connection`.
            retries: How often the function is run again at most.
            timeout: Seconds to get a connection, for each attempt; ``None`` takes ``pool.timeout``.

        Returns:
            What the function returned.

        Raises:
            TransactionOutcomeUnknown: The connection died during COMMIT; the function is not run again.
            Unavailable: No connection was available in time.
            ValueError: ``retries`` or ``timeout`` is negative or not a number.
            psycopg.Error: The error of the last attempt.
        """
        at_least_zero("retries", retries)
        writing = partial(self._checkouts.make, version=version, tenant=tenant, timeout=timeout, begin=False)
        return await self._statements.run(function, writing, retries=retries)

    async def each(
        self,
        function: AFunction[[AsyncConnection[TupleRow], str], T],
        *,
        tenants: str | Iterable[str] | None = None,
        version: str | None = None,
        jobs: int = 8,
        stop_on_error: bool = False,
    ) -> Outcomes[T]:
        """Call a function for each tenant, with a connection that writes: one transaction for each tenant.

        If the function fails for one tenant, that transaction is rolled back and the error is reported; the other
        tenants continue. Requests that the function itself makes are for the tenant, too, as in :meth:`use`. There may
        be more tenants than the budget has connections: a tenant waits until a connection is available.

        Args:
            function: Called with the connection and the tenant's key.
            tenants: Keys; or a pattern as for ``router each --tenants``, such as ``"acme,eu-*"``; ``None`` for all
                tenants that the settings and the directory list.
            version: As for :meth:`connection`. Tenants that a pattern matches are limited to those that live there.
            jobs: How many tenants are worked on at the same time.
            stop_on_error: Whether to begin no further tenant once one has failed.

        Returns:
            For each tenant, what the function returned, or the error.

        Raises:
            UnknownVersion: There is no such version.
            UnknownTenant: The pattern matches no tenant, the directory cannot list its tenants, or a name is not a
                tenant's key; nothing has been done.
            TenantLocked: A ``use(…, lock=True)`` around the call is for another tenant; nothing has been done.
            ValueError: ``jobs`` is less than 1.
        """
        from router._async.each import each, tenants_of

        if jobs < 1:
            raise ValueError(f"jobs is {jobs}: it must be at least 1")
        self._checkouts.bind_loop()
        _, version = named(self._ambient, None, version)
        keys = await tenants_of(self._in_force, tenants, version)
        for key in keys:
            try:
                with self.use(tenant=key):  # a tenant that may not be named here is refused before anything is done
                    pass
            except UnknownTenant:  # a tenant that came from a list or a pattern fails by itself
                if tenants is not None and not (isinstance(tenants, str) and needs_list(tenants)):
                    raise
        return await each(
            function,
            keys,
            within=lambda tenant: self.use(tenant=tenant, version=version),
            borrow=lambda tenant: self._checkouts.make(version=version, tenant=tenant, timeout=None),
            jobs=jobs,
            stop_on_error=stop_on_error,
        )
