"""What the settings say, as frozen values: servers, nodes, clusters, and the whole topology.

Nothing here does I/O or reads a clock. Settings make a :class:`Topology`; everything that decides reads one.

What users are given is a dataclass, such as :class:`Node` and the policies in their settings. What the router keeps to
itself is a ``NamedTuple``, which takes ``import router`` a quarter of the time to make.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Balance = Literal["least_busy", "round_robin", "random"]
Fallback = Literal["primary", "wait", "error"]
Foreign = Literal["ignore", "refuse"]
Pooler = Literal["session", "transaction"]
Pooling = Literal["dedicated", "shared"]
Hygiene = Literal["transaction", "full"]


class Role(StrEnum):
    """What a server is to its cluster."""

    PRIMARY = "primary"
    REPLICA = "replica"


@dataclass(frozen=True, slots=True, order=True)
class Server:
    """One PostgreSQL process, the unit of health.

    Attributes:
        host: Its host, or a socket's directory.
        port: Its port.
        database: Behind a pooler, the database: others there may be those of other servers. Else empty.
    """

    host: str
    port: int
    database: str = ""

    def __str__(self) -> str:
        where = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return f"{where}/{self.database}" if self.database else where


class Secrets:
    """libpq parameters that nobody may see: never shown, and no copy, pickle or ``asdict()`` has them.

    Attributes:
        values: The parameters, such as ``password``, in alphabetical order.
    """

    __slots__ = ("values",)  # no dataclass: those are taken apart by whoever writes events or stats to a log

    def __init__(self, values: tuple[tuple[str, str], ...] = ()) -> None:
        self.values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secrets) and self.values == other.values

    def __hash__(self) -> int:
        return hash(self.values)

    def __repr__(self) -> str:
        return "Secrets()"

    def __reduce__(self) -> tuple[type[Secrets], tuple[()]]:
        """Leave them behind."""
        return Secrets, ()


NO_SECRETS = Secrets()


@dataclass(frozen=True, slots=True)
class Node:
    """What a pool connects to: a server, a database and a user, with every libpq parameter as written.

    Attributes:
        server: Where it runs.
        params: libpq parameters in alphabetical order, ``host`` and ``port`` included, nothing secret.
        role: The role it is configured for; ``None`` when roles are discovered.
        weight: Its share of reads, relative to the other nodes of its cluster.
        secrets: The parameters that are secret; without a password libpq looks for one (``.pgpass``, …).
        password_file: A file whose first line is the password, read anew for each connection.
        pooler: What kind of pooler stands there, if one does: one whose client keeps its server process for a
            ``session``, or for a ``transaction`` only.
    """

    server: Server
    params: tuple[tuple[str, str], ...]
    role: Role | None = None
    weight: float = 1.0
    secrets: Secrets = NO_SECRETS
    password_file: Path | None = None
    pooler: Pooler | None = None

    def __str__(self) -> str:
        params = dict(self.params)
        user, dbname = params.get("user", ""), params.get("dbname", "")
        server = replace(self.server, database="")
        return f"{user + '@' if user else ''}{server}{'/' + dbname if dbname else ''}"


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """How each pool of a cluster behaves; durations in seconds.

    Attributes:
        min_size: Connections kept open once the pool is in use.
        max_size: The most connections the pool opens.
        timeout: One deadline, in seconds, for choosing a node, connecting and waiting together.
        connect_timeout: The most seconds that one attempt to connect may take; libpq knows whole ones, at least 2.
        max_waiting: Requests that may wait for a connection before further ones are refused; 0 for no limit.
        max_idle: Connections over ``min_size`` unused for this many seconds are closed.
        max_lifetime: A connection older than this many seconds is replaced when it is next returned.
        max_unused: A pool from which nobody has borrowed for this many seconds is closed.
    """

    min_size: int = 0
    max_size: int = 10
    timeout: float = 5.0
    connect_timeout: int = 2
    max_waiting: int = 0
    max_idle: float = 600.0
    max_lifetime: float = 3600.0
    max_unused: float = 600.0


@dataclass(frozen=True, slots=True)
class ReadPolicy:
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


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """How servers are watched; durations in seconds.

    Attributes:
        interval: How many seconds pass between two looks at a server, give or take a tenth; 0.1 while a version
            has no primary.
        timeout: How many seconds a server has to answer a look, connecting included, before it counts as down.
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


@dataclass(frozen=True, slots=True)
class TokenPolicy:
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


class Cluster(NamedTuple):
    """The nodes that hold the same data: one primary, any number of replicas.

    Attributes:
        name: The version it is configured as.
        nodes: All its nodes, in the order of the settings.
        pool: How its pools behave.
        read: How its reads are spread.
    """

    name: str
    nodes: tuple[Node, ...]
    pool: PoolPolicy = PoolPolicy()
    read: ReadPolicy = ReadPolicy()


class Home(NamedTuple):
    """Where a tenant lives, as the settings or a directory say it; ``{tenant}`` and ``{version}`` stand for the keys.

    Attributes:
        versions: The versions or aliases that it lives in, first the one for requests that name none; empty for every
            version.
        cluster: Servers of its own; ``None`` when it lives on those of a version.
        database: Its database; empty for the node's.
        user: Its login role; empty for the node's.
        schema: Its ``search_path``, one schema after the other; empty for the database's.
        role: The role that its sessions are set to; empty for the login role.
        row: The setting that holds its key, for policies of row-level security; empty for none.
        policy: How it is kept apart.
    """

    versions: tuple[str, ...] = ()
    cluster: Cluster | None = None
    database: str = ""
    user: str = ""
    schema: tuple[str, ...] = ()
    role: str = ""
    row: str = ""
    policy: TenantPolicy = TenantPolicy()


class Scope(NamedTuple):
    """What a session is set to before a tenant gets it.

    Attributes:
        tenant: The tenant.
        settings: Names and values of PostgreSQL's settings, in the order of their setting.
        hygiene: What is reset between two of its borrowers.
    """

    tenant: str
    settings: tuple[tuple[str, str], ...] = ()
    hygiene: Hygiene = "transaction"


class Target(NamedTuple):
    """What a request resolved to.

    Attributes:
        requested: The key the request named, or the default's.
        cluster: The nodes that serve it, as they are connected to for it.
        tenant: The tenant, if it is for one.
        scope: What a connection is set to when it is borrowed; ``None`` where it is so from the start.
        shared: Whether its pools are shared by tenants.
        startup: What a tenant's sessions begin with, as startup options: names and values of PostgreSQL's settings.
        policy: How the tenant is kept apart.
        watched: The nodes as they are watched; ``None`` for those of ``cluster``.
    """

    requested: str
    cluster: Cluster
    tenant: str | None = None
    scope: Scope | None = None
    shared: bool = False
    startup: tuple[tuple[str, str], ...] = ()
    policy: TenantPolicy = TenantPolicy()
    watched: Cluster | None = None

    @property
    def version(self) -> str:
        """The version served: what ``requested`` stands for when it is an alias."""
        return self.cluster.name

    @property
    def in_session(self) -> bool:
        """Whether the session is what keeps the tenant apart: it has to stay the same from BEGIN to BEGIN."""
        return self.shared or bool(self.startup)


TENANT_PATTERN = "[a-z0-9][a-z0-9_-]{0,47}"
"""What a tenant's key looks like, unless the settings say otherwise; no two of these are alike to the eye."""


@dataclass(frozen=True, slots=True)
class DirectoryPolicy:
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


class Tenancy(NamedTuple):
    """Everything that is configured about tenants.

    Attributes:
        homes: Where each tenant lives that is listed.
        template: Where any other lives; with a directory, what that leaves open. ``None`` for nowhere.
        pattern: What a key looks like, as a regular expression; all others are unknown.
        policy: How those are kept apart of whom nothing else is said.
        directory: Where else it is asked, and how.
    """

    homes: Mapping[str, Home] = MappingProxyType({})
    template: Home | None = None
    pattern: str = TENANT_PATTERN
    policy: TenantPolicy = TenantPolicy()
    directory: DirectoryPolicy = DirectoryPolicy()


class Topology(NamedTuple):
    """Everything that is configured, as one frozen value.

    Attributes:
        versions: Every version's cluster, by key.
        aliases: Other names for versions; each names a key of ``versions``.
        default_version: The version or alias for requests that name none; ``None`` makes those an error.
        max_connections: The most connections this process holds, over all pools.
        max_connections_per_server: The most of them to one server; left out, there is no other limit.
        max_pools: The most pools that are open at the same time; each costs two threads, or tasks.
        health: How servers are watched.
        tokens: How the tokens of sessions are made and read.
        tenancy: The tenants; ``None`` when there are none.
    """

    versions: Mapping[str, Cluster]
    aliases: Mapping[str, str] = MappingProxyType({})
    default_version: str | None = None
    max_connections: int = 200
    max_connections_per_server: int | None = None
    max_pools: int = 100
    health: HealthPolicy = HealthPolicy()
    tokens: TokenPolicy = TokenPolicy()
    tenancy: Tenancy | None = None
