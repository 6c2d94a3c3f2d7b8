# Generated from router/_async/pool/shared_pool.py by tools/async_to_sync.py: do not edit.
"""A pool that tenants share: how a connection passes from one tenant to the next, and is reset in between."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING

import psycopg

from router._sync.pool.hygiene import note_reset
from router._sync.pool.inside.connection import begin_of, prepared_of
from router._sync.pool.node_pool import NodePool
from router._sync.pool.pooled import PooledConnection
from router._sync.pool.scripts import NOT_THERE, send, why_not_there
from router._sync.pool.session_state import session_of
from router.core import sql
from router.core.errors import UnknownTenant

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import TupleRow

    from router.core.topology import Scope

LEAST = 0.5
"""The least seconds that a server is given to set a session, even after the request's deadline. Otherwise each request
that is served at the last moment would cost a connection, and connections would be closed faster than they are opened.
"""


class SharedPool(NodePool):
    """The pool of one node and use for all tenants of its database; ``line.py`` gives each tenant its share."""

    def holders(self) -> list[str]:
        """List the tenants of the borrowed connections, one entry for each connection."""
        return [session.tenant for session in list(self.borrowed)]

    def take_for(self, scope: Scope) -> Connection[TupleRow] | None:
        """Borrow an idle connection, preferably one that the same tenant had last.

        Args:
            scope: The tenant and its settings.

        Returns:
            The connection; ``None`` if no connection is idle.
        """
        idle, tenant = self.idle, scope.tenant
        for connection in list(idle):
            had = session_of(connection).scope
            if had is not None and had.tenant == tenant:
                with suppress(ValueError):  # another thread has taken it
                    idle.remove(connection)
                    idle.appendleft(connection)  # take() takes from the left
                break
        taken = self.take()
        if taken is not None:
            session_of(taken).tenant = tenant
        return taken


def enter(connection: Connection[TupleRow], scope: Scope, deadline: float, *, begin: bool) -> None:
    """Set a borrowed connection to a tenant: without a round trip if the same tenant had it last, else with one.

    Args:
        connection: The connection, idle.
        scope: The tenant and its settings.
        deadline: The deadline, on the monotonic clock; the server gets at least ``LEAST`` seconds.
        begin: Whether to begin the block's transaction in that round trip, or in one of its own if none is needed.

    Raises:
        UnknownTenant: The tenant's schema or role does not exist.
        TooLate: The server has not answered in time; the connection must not be used.
        psycopg.Error: The session could not be set; the connection must not be used.
    """
    session = session_of(connection)
    if isinstance(connection, PooledConnection):
        connection.begin_suffix = _begin_suffix(scope)
        session.scope = scope
        return
    # RESET ALL or DISCARD ALL in a block loses the tenant's settings. It shows in ``application_name``, which is one of
    # them: the server reports its changes.
    same = session.scope is scope or session.scope == scope
    same = same and connection.pgconn.parameter_status(b"application_name") == session.application_name
    script = b""
    if not same or scope.hygiene == "full":
        script = _script(scope, reset=session.scope is not None)
    text = script
    if begin:
        text = (b"BEGIN; " + script + b"; COMMIT; " if script else b"") + begin_of(connection)
    if text:
        deadline = max(deadline, monotonic() + LEAST)
        try:
            send(connection, text, deadline)
        except NOT_THERE as error:  # the session is unchanged, except that its prepared statements may be gone
            if begin:
                send(connection, b"ROLLBACK", deadline)
            prepared_of(connection).forget()
            raise UnknownTenant(scope.tenant, why_not_there(error)) from None
        except psycopg.Error as error:
            error.add_note(f"it was to be set for tenant {scope.tenant!r}")
            raise
    if script:
        note_reset(connection)
    session.scope = scope
    session.application_name = connection.pgconn.parameter_status(b"application_name")


@lru_cache(maxsize=1024)
def _script(scope: Scope, *, reset: bool) -> bytes:
    settings = sql.settings(scope.settings, local=False)
    found = ", ".join([sql.UNLOCK_ALL, *settings] if reset else settings)
    return "; ".join(filter(None, [sql.RESET_SESSION if reset else "", f"SELECT {found}" if found else ""])).encode()


@lru_cache(maxsize=1024)
def _begin_suffix(scope: Scope) -> bytes:
    found = ", ".join(sql.settings(scope.settings, local=True))
    return f"SELECT {found}".encode() if found else b""
