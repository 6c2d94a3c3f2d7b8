"""How pools, reads, health checks, tokens and tenants behave, as the settings say it: frozen values.

Durations are in seconds. What users are given is a :class:`Value`; what the router keeps to itself is a ``NamedTuple``.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal, NamedTuple

from router.core.value import Value

Balance = Literal["least_busy", "round_robin", "random"]
Fallback = Literal["primary", "wait", "error"]
Foreign = Literal["ignore", "refuse"]
Pooling = Literal["dedicated", "shared"]
Hygiene = Literal["transaction", "full"]


class PoolPolicy(Value):
    """How each pool of a cluster behaves; durations in seconds.

    Attributes:
        min_size: Connections kept open once the pool is in use.
        max_size: The most connections the pool opens.
        timeout: One deadline, in seconds, for choosing a node, connecting and waiting together.
        connect_timeout: The most seconds that one attempt to connect may take; libpq knows whole ones, at least 2.
        max_waiting: Requests that may wait for a connection before further ones are refused; 0 for no limit.
        max_idle: Connections over ``min_size`` unused for this many seconds are closed.
        max_lifetime: A connection older than this many seconds is replaced when it is next returned.
        max_unused: A pool from which nothing has been borrowed for this many seconds is closed.
    """

    min_size: int = 0
    max_size: int = 10
    timeout: float = 5.0
    connect_timeout: int = 2
    max_waiting: int = 0
    max_idle: float = 600.0
    max_lifetime: float = 3600.0
    max_unused: float = 600.0


class ReadPolicy(Value):
    """How reads are spread over a cluster's nodes; durations in seconds.

    Attributes:
        balance: Which replica is taken: ``least_busy`` (the less busy of two drawn at random), ``round_robin``
            or ``random``.
        fallback: When no replica can serve: ``primary`` reads there, ``wait`` waits within the deadline, ``error``
            fails.
        autocommit: ``True`` costs one round trip a query; ``False`` gives each block one snapshot (REPEATABLE READ).
        max_lag: The most seconds that a replica may be behind the primary, as last seen; left out, any lag will do.
        max_lag_bytes: The most bytes of WAL that a replica may be behind the primary, as last seen.
        allow_stale: Whether a replica that is further behind may serve when nothing better can.
        catch_up: How many seconds a read that is to see certain writes waits for a replica that has them, before the
            primary serves it.
    """

    balance: Balance = "least_busy"
    fallback: Fallback = "primary"
    autocommit: bool = True
    max_lag: float | None = None
    max_lag_bytes: int | None = None
    allow_stale: bool = False
    catch_up: float = 0.0


class HealthPolicy(Value):
    """How servers are watched; durations in seconds.

    Attributes:
        interval: How many seconds pass between two probes of a server, give or take a tenth; 0.1 while a version
            has no primary.
        timeout: How many seconds a server has to answer a probe, connecting included, before it counts as down.
        cut_after: A query that runs on a server which has not answered for this many seconds is cut.
        ban: How many seconds a server that failed is used only if there is no other, although it is back; it doubles
            with each failure, until the server has been up for `ban_max`. A login that is refused is tried again so.
        ban_max: The most seconds that time grows to.
    """

    interval: float = 1.0
    timeout: float = 1.0
    cut_after: float = 30.0
    ban: float = 0.5
    ban_max: float = 15.0


class TokenPolicy(Value):
    """How the tokens of sessions are made and read.

    Attributes:
        key: What tokens are signed with, at least 16 characters; left out, they are not signed.
        foreign: What becomes of a token that is damaged, or of another cluster, timeline or key: ``ignore`` reads as
            if there were none, ``refuse`` raises ``TokenRefused``.
    """

    key: bytes | None = field(default=None, repr=False)
    foreign: Foreign = "ignore"


class TenantPolicy(NamedTuple):
    """How a tenant is kept apart from the others.

    Attributes:
        pooling: ``dedicated`` gives a tenant pools of its own, whose sessions are its own from the start; ``shared``
            has the tenants of one database share a pool, whose sessions pass from one to another, all reset.
        hygiene: What is reset between two borrowers of the same tenant: ``transaction`` that alone, ``full`` the whole
            session, for one round trip more. Between two tenants it is always everything.
        max_connections: The most connections that one tenant may use in this process; left out, there is only its
            share when others need some, too.
        min_size: Connections kept open for a tenant once it is in use; needs ``dedicated``.
    """

    pooling: Pooling = "dedicated"
    hygiene: Hygiene = "transaction"
    max_connections: int | None = None
    min_size: int = 0


class DirectoryPolicy(Value):
    """Where it is asked at run time who is a tenant and where it lives, and how long an answer counts.

    Attributes:
        version: The version on whose primary the table of tenants is; left out, a directory is given in Python.
        table: The table, as SQL writes it; ``router tenants --sql`` prints how to make one.
        ttl: How many seconds an answer counts before it is asked for again, in the background.
        unknown_ttl: How many seconds a tenant that was not there counts as unknown.
    """

    version: str | None = None
    table: str = "router_tenant"
    ttl: float = 300.0
    unknown_ttl: float = 1.0
