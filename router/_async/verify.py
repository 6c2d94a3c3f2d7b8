"""Checks that the server of a connection has replayed as far as a request demands."""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

import psycopg

from router._async.pool.session_state import session_of
from router._runtime.flags import asleep
from router.core.health import UNKNOWN, observe
from router.core.observations import OtherProcess
from router.core.standing import limits_lag, standings
from router.core.topology import Role

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

    from router._async.in_force import AsyncInForce
    from router._async.pool.node_pool import AsyncNodePool
    from router.core.health import State
    from router.core.observations import ProbeResult
    from router.core.standing import Request

ASK_AGAIN = 0.02
"""Seconds until a replica that had not replayed far enough for a read is asked again."""


async def may_serve(
    in_force: AsyncInForce, pool: AsyncNodePool, connection: AsyncConnection[TupleRow], request: Request
) -> bool:
    """Tell whether the server of a connection has replayed as far as a request demands; if not, return the connection.

    What the last probe found may not hold for a connection that was opened after it. The server may have been restarted
    in between: then a standby replays again from an earlier position, or a standby now has the primary's address. And
    where several servers answer at one address, the probe found out about one of them only.
    """
    session, after = session_of(connection), request.after
    state = in_force.clusters.health.get(pool.node.server, UNKNOWN)
    is_primary = state.role is Role.PRIMARY
    here = session.process == state.process or (pool.node.pooler is not None and not state.several_servers)
    if after is None and ((here and not state.several_servers) or not limits_lag(pool.cluster, request)):
        return True
    if is_primary and connection.pgconn.parameter_status(b"in_hot_standby") == b"off":
        return True
    known = here and _is_fit(in_force, pool, request, state)
    if known and (after is None or session.opened_at < state.position_at):
        return True
    # Only one request at a time asks a replica, and its answer serves all. An answer about a primary, or one that holds
    # for this connection only, cannot serve others.
    alone = here and not known and not is_primary
    if await _ask(in_force, pool, connection, request, state, alone=alone):
        return True
    await pool.release(connection)
    if state.several_servers:
        await asleep(ASK_AGAIN)
    return False


async def _ask(
    in_force: AsyncInForce,
    pool: AsyncNodePool,
    connection: AsyncConnection[TupleRow],
    request: Request,
    state: State,
    *,
    alone: bool,
) -> bool:
    """Ask over a connection whether its server has replayed far enough, and report the answer for all requests.

    If the query fails, the connection is closed: an earlier borrower may have changed its session.
    """
    server = pool.node.server
    if alone:
        with in_force.guard:
            others_ask = server in in_force.asked
            in_force.asked.add(server)
        if others_ask:  # their answer will serve this request as well
            return False
    try:
        seen = await probe(in_force, pool, connection)
        here = seen.process == state.process or not state.several_servers
        await in_force.clusters.report(seen if here else OtherProcess(pool.node, seen.process))
    except psycopg.Error:
        pool.watched.suspect(server)
        await connection.close()
        return False
    except BaseException:
        await connection.close()
        await pool.release(connection)
        raise
    finally:
        if alone:
            in_force.asked.discard(server)
    session_of(connection).process = seen.process
    after = request.after
    if after is None or not here:
        # The answer is judged by itself: what is known so far may be of another server.
        found = observe({}, seen, now=monotonic(), jitter=0.0, policy=in_force.topology.health)
        return _is_fit(in_force, pool, request, found[server])
    if seen.role is Role.PRIMARY:
        return state.role is Role.PRIMARY and seen.timeline >= after.timeline
    return after.reached(seen.timeline, seen.position)


async def probe(in_force: AsyncInForce, pool: AsyncNodePool, connection: AsyncConnection[TupleRow]) -> ProbeResult:
    """Ask over a borrowed connection what its server is and how far it is.

    Args:
        in_force: What is in force.
        pool: Where the connection is from.
        connection: The connection, idle.

    Returns:
        What it says.

    Raises:
        psycopg.Error: It does not say.
    """
    session = session_of(connection)
    pool.sessions.retryable.add(session)
    seen = await in_force.opener.queries.probe(connection, pool.node)
    pool.sessions.retryable.discard(session)
    return seen


def _is_fit(in_force: AsyncInForce, pool: AsyncNodePool, request: Request, state: State) -> bool:
    """Whether a server in this state may serve a read without being asked first."""
    health = {**in_force.clusters.health, pool.node.server: replace(state, several_servers=False)}
    standing = standings(pool.cluster, health, request, now=monotonic())[pool.node]
    return standing.tier is not None and not standing.ask
