"""What a router does itself with connections: one statement, a transaction that is repeated, work for each tenant."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from router._async.each import each, tenants_of
from router.blocks import Blocks
from router.context import named
from router.core.errors import UnknownTenant
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
    """The methods of a router that borrow connections for as long as they run."""

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
        """Run one statement by itself, wherever PostgreSQL lets it run.

        A statement that begins with what writes (INSERT, COPY … FROM, CREATE and the like, comments aside), or that
        administers a server, goes to the primary. Any other that is new to the router goes to a replica, in a session
        that refuses writes; if the server refuses it, it runs on the primary, now and from then on. It is committed at
        once. What it leaves in its session (``SET``, ``LISTEN``, a temporary table, an advisory lock) ends with it.

        Args:
            query: The statement; from Python 3.14 on also as a template string, without parameters of its own.
            params: Its parameters.
            version: As for :meth:`connection`.
            tenant: As for :meth:`connection`.
            max_lag: As for :meth:`connection`, should it read.
            after: As for :meth:`connection`, should it read.
            timeout: Seconds for getting a connection; ``None`` takes ``pool.timeout``.

        Returns:
            The whole result.

        Raises:
            UnknownVersion: As for :meth:`connection`.
            UnknownTenant: As for :meth:`connection`.
            Unavailable: No connection could be had in time.
            TransactionOutcomeUnknown: The connection died while the statement ran on the primary. (A read whose
                connection dies is run again elsewhere.)
            TypeError: It is no statement.
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
        """Run a function in a transaction on the primary, and again if that fails for a reason that passes.

        Such reasons are a serialization failure, a deadlock, and a connection that is lost before COMMIT.

        Args:
            function: Called with the connection; it may be called several times, and must leave no trace elsewhere. It
                cannot commit by itself; ``connection.transaction()`` inside it is a savepoint.
            version: As for :meth:`connection`.
            tenant: As for :meth:`connection`.
            retries: How often it is run again at most.
            timeout: Seconds for getting a connection, each time; ``None`` takes ``pool.timeout``.

        Returns:
            What the function returned.

        Raises:
            TransactionOutcomeUnknown: The connection died during COMMIT: it is not run again.
            Unavailable: No connection could be had in time.
            psycopg.Error: What it failed with the last time.
        """
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
        """Call a function for each tenant, with a connection that writes: one transaction a tenant.

        What fails for one tenant is rolled back and reported, and the others go on. Requests that the function makes
        itself are the tenant's, too, as in :meth:`use`. It does not matter whether all find room in the budget: who
        finds none waits until it is their turn.

        Args:
            function: Called with the connection and the tenant's key.
            tenants: Keys; or a pattern as for ``router each --tenants``, such as ``"acme,eu-*"``; ``None`` for all that
                the settings and the directory list.
            version: As for :meth:`connection`. Of tenants that are not named by their keys, those who live there.
            jobs: For how many tenants at the same time.
            stop_on_error: Whether no further tenant is begun once one has failed.

        Returns:
            What the function returned or failed with, by tenant.

        Raises:
            UnknownVersion: There is no such version.
            UnknownTenant: The pattern stands for nobody, the directory cannot list its tenants, or what was named is no
                tenant's key; nothing has been done.
            TenantLocked: A ``use(…, lock=True)`` around it is for another tenant; nothing has been done.
            ValueError: ``jobs`` is less than 1.
        """
        if jobs < 1:
            raise ValueError(f"jobs is {jobs}: it must be at least 1")
        self._checkouts.bind_loop()
        _, version = named(self._ambient, None, version)
        keys = await tenants_of(self._in_force, tenants, version)
        for key in keys:
            try:
                with self.use(tenant=key):  # one that is not to be named here is refused before anything is done
                    pass
            except UnknownTenant:  # of those that a list has, each fails by itself
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
