"""Frozen values of the settings that say how pools, reads, health checks, tokens and tenants behave.

Durations are in seconds. A class that users see is a :class:`Value`; a class for the router alone is a ``NamedTuple``.
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
PoolHygiene = Literal["transaction", "full", "auto"]


class PoolPolicy(Value):
    """How each pool of a cluster behaves; durations in seconds.

    Attributes:
        min_size: Connections kept open once the pool is in use.
        max_size: The most connections the pool opens.
        timeout: One deadline, in seconds, for choosing a node, connecting and waiting together.
        connect_timeout: The most seconds that one attempt to connect may take; libpq knows whole ones, at least 2.
        max_waiting: How many requests may wait for a connection; further ones are refused at once. 0 means no limit.
        max_idle: The pool closes connections beyond ``min_size`` that were unused for this many seconds.
        max_lifetime: A connection older than this many seconds is replaced when it is next returned.
        max_unused: A pool is closed if nothing was borrowed from it for this many seconds.
        hygiene: What is reset when a version's connection is given back: ``transaction`` ends the transaction and
            resets nothing, ``full`` resets the whole session, for one round trip more, and ``auto`` does so after a
            block that may have left something in the session, as far as its statements show: what functions and
            triggers do inside is not seen. Tenants have ``tenancy.hygiene``.
    """

    min_size: int = 0
    max_size: int = 10
    timeout: float = 5.0
    connect_timeout: int = 2
    max_waiting: int = 0
    max_idle: float = 600.0
    max_lifetime: float = 3600.0
    max_unused: float = 600.0
    hygiene: PoolHygiene = "transaction"


class ReadPolicy(Value):
    """How reads are spread over a cluster's nodes; durations in seconds.

    Attributes:
        balance: How a replica is chosen: ``least_busy`` (the less busy of two drawn at random), ``round_robin``
            or ``random``.
        fallback: What happens when no replica can serve a read: ``primary`` reads from the primary, ``wait`` waits for
            a replica within the deadline, ``error`` fails at once.
        autocommit: ``True`` takes one round trip for each query; ``False`` gives each block one snapshot (REPEATABLE
            READ).
        max_lag: The most seconds that a replica may have been behind the primary at the last probe; left out, any lag
            is accepted.
        max_lag_bytes: The most bytes of WAL that a replica may have been behind the primary at the last probe; left
            out, any number is accepted.
        allow_stale: Whether a replica that is further behind may serve reads when no other node can.
        catch_up: How many seconds a read that must see certain writes waits for a replica that has them, before the
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
        interval: Seconds between two probes of a server, plus or minus a tenth; 0.1 while a version has no primary.
        timeout: How many seconds a server has to answer a probe, connecting included, before it counts as down.
        cut_after: When a server has not answered for this many seconds, the router cuts the queries that run on it.
        ban: For how many seconds a server that failed and is back is used only if there is no other. The time doubles
            with each failure, until the server has been up for `ban_max`. A refused login is tried again after the
            same pauses.
        ban_max: The most seconds that this time grows to.
    """

    interval: float = 1.0
    timeout: float = 1.0
    cut_after: float = 30.0
    ban: float = 0.5
    ban_max: float = 15.0


class TokenPolicy(Value):
    """How the tokens of sessions are made and read.

    Attributes:
        key: The key that signs tokens, at least 16 characters; left out, tokens are not signed.
        foreign: What happens with a token that is damaged, or belongs to another cluster, timeline or key: ``ignore``
            reads as if there were none, ``refuse`` raises ``TokenRefused``.
    """

    key: bytes | None = field(default=None, repr=False)
    foreign: Foreign = "ignore"


class TenantPolicy(NamedTuple):
    """How a tenant is separated from the others.

    Attributes:
        pooling: ``dedicated`` gives each tenant pools of its own, whose sessions start with its settings; with
            ``shared``, the tenants of one database share a pool, and a session is reset when it changes tenants.
        hygiene: What is reset between two borrowers of the same tenant: ``transaction`` that alone, ``full`` the whole
            session, for one round trip more. Between two tenants it is always everything.
        max_connections: The most connections that one tenant may use in this process; left out, it is limited to its
            fair share only while others need connections, too.
        min_size: Connections kept open for a tenant once it is in use; this needs ``dedicated``.
    """

    pooling: Pooling = "dedicated"
    hygiene: Hygiene = "transaction"
    max_connections: int | None = None
    min_size: int = 0


class DirectoryPolicy(Value):
    """Where the router looks up tenants at run time, and how long an answer is valid.

    Attributes:
        version: The version whose primary has the table of tenants; left out, the directory is given in Python.
        table: The table's name in SQL; ``router tenants --sql`` prints the statements that create the table.
        ttl: How many seconds an answer is valid before the router asks again, in the background.
        unknown_ttl: How many seconds a tenant that was not found counts as unknown.
    """

    version: str | None = None
    table: str = "router_tenant"
    ttl: float = 300.0
    unknown_ttl: float = 1.0
