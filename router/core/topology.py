"""What the settings say, as frozen values: servers, nodes, clusters, tenants, and the whole topology.

Nothing here does I/O or reads a clock. Settings make a :class:`Topology`; everything that decides reads one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

from router.core.policies import (
    DirectoryPolicy,
    HealthPolicy,
    Hygiene,
    PoolPolicy,
    ReadPolicy,
    TenantPolicy,
    TokenPolicy,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


Pooler = Literal["session", "transaction"]


class Role(StrEnum):
    """What a server is to its cluster."""

    PRIMARY = "primary"
    REPLICA = "replica"


@dataclass(frozen=True, slots=True)
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
    """libpq parameters that must not be seen: never shown, and no copy, pickle or ``asdict()`` has them.

    Attributes:
        values: The parameters, such as ``password``, in alphabetical order.
    """

    __slots__ = ("values",)  # no dataclass: observers take those apart to write events or stats to a log

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
"""What a tenant's key looks like, unless the settings say otherwise; no two such keys look alike."""


class Tenancy(NamedTuple):
    """Everything that is configured about tenants.

    Attributes:
        homes: Where each tenant lives that is listed.
        template: Where any other lives; with a directory, what that leaves open. ``None`` for nowhere.
        pattern: What a key matches, as a regular expression; all others are unknown.
        policy: How tenants are kept apart, unless their home says otherwise.
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
