"""The settings as frozen values: servers, nodes, clusters, tenants, and the whole topology.

Nothing here does I/O or reads a clock. The settings make a :class:`Topology`; every decision reads one.
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
    """The role of a server in its cluster."""

    PRIMARY = "primary"
    REPLICA = "replica"


@dataclass(frozen=True, slots=True)
class Server:
    """One PostgreSQL process, the unit of health.

    Attributes:
        host: Its host, or the directory of its socket.
        port: Its port.
        database: Behind a pooler, the database, because the pooler may send other databases to other servers; else
            empty.
    """

    host: str
    port: int
    database: str = ""

    def __str__(self) -> str:
        where = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return f"{where}/{self.database}" if self.database else where


class Secrets:
    """Secret libpq parameters: they are never shown, and no copy, pickle or ``asdict()`` contains them.

    Attributes:
        values: The parameters, such as ``password``, in alphabetical order.
    """

    __slots__ = ("values",)  # not a dataclass: observers take dataclasses apart to write events or stats to a log

    def __init__(self, values: tuple[tuple[str, str], ...] = ()) -> None:
        self.values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secrets) and self.values == other.values

    def __hash__(self) -> int:
        return hash(self.values)

    def __repr__(self) -> str:
        return "Secrets()"

    def __reduce__(self) -> tuple[type[Secrets], tuple[()]]:
        """Leave the secrets out of copies and pickles."""
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
        secrets: The secret parameters; without a password, libpq looks for one (``.pgpass``, …).
        password_file: A file whose first line is the password; it is read again for each connection.
        pooler: The kind of pooler at this address, if there is one: its clients keep a server process for a
            ``session``, or only for a ``transaction``.
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
    """The nodes that hold the same data: one primary and any number of replicas.

    Attributes:
        name: The key of the version, or a name for a tenant's own servers.
        nodes: All its nodes, in the order of the settings.
        pool: How its pools behave.
        read: How its reads are spread.
    """

    name: str
    nodes: tuple[Node, ...]
    pool: PoolPolicy = PoolPolicy()
    read: ReadPolicy = ReadPolicy()


class Home(NamedTuple):
    """Where a tenant lives, by the settings or by a directory; ``{tenant}`` and ``{version}`` stand for the keys.

    Attributes:
        versions: The versions or aliases that it lives in, first the one for requests that name no version; empty for
            every version.
        cluster: Servers of its own; ``None`` when it lives on the servers of a version.
        database: Its database; empty for the node's.
        user: Its login role; empty for the node's.
        schema: Its ``search_path``, one schema after the other; empty for the database's.
        role: The role that its sessions are set to; empty for the login role.
        row: The setting that holds its key, for policies of row-level security; empty for none.
        policy: How it is separated from other tenants.
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
    """The state that a shared session is set to before a tenant gets it.

    Attributes:
        tenant: The tenant.
        settings: Names and values of PostgreSQL's settings, in the order in which they are set.
        hygiene: What is reset between two borrowers of this tenant.
    """

    tenant: str
    settings: tuple[tuple[str, str], ...] = ()
    hygiene: Hygiene = "transaction"


class Target(NamedTuple):
    """What a request's version and tenant resolve to.

    Attributes:
        requested: The key of the version that the request named, or of the default.
        cluster: The nodes that serve the request, with the connection parameters of its tenant.
        tenant: The tenant, if the request is for one.
        scope: The state that a connection is set to when it is borrowed; ``None`` if the session has it from the start.
        shared: Whether its pools are shared by tenants.
        startup: The startup options of a tenant's sessions: names and values of PostgreSQL's settings.
        policy: How the tenant is separated from other tenants.
        watched: The cluster that is watched for it; ``None`` if that is ``cluster``.
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
        """The key of the version that serves it, which ``requested`` may name by an alias."""
        return self.cluster.name

    @property
    def in_session(self) -> bool:
        """Whether the session separates the tenant: then it has to stay the same from one BEGIN to the next."""
        return self.shared or bool(self.startup)


TENANT_PATTERN = "[a-z0-9][a-z0-9_-]{0,47}"
"""The regular expression for a tenant's key, unless the settings give another; no two such keys are easily confused."""


class Tenancy(NamedTuple):
    """The settings of all tenants.

    Attributes:
        homes: Where each listed tenant lives.
        template: Where any other tenant lives; with a directory, the values that its answers leave out. ``None`` if
            there is no template.
        pattern: The regular expression that a tenant's key has to match; any other key is an unknown tenant.
        policy: How tenants are separated, unless their home says otherwise.
        directory: Where tenants that are not listed are looked up, and how.
    """

    homes: Mapping[str, Home] = MappingProxyType({})
    template: Home | None = None
    pattern: str = TENANT_PATTERN
    policy: TenantPolicy = TenantPolicy()
    directory: DirectoryPolicy = DirectoryPolicy()


class Topology(NamedTuple):
    """All settings, as one frozen value.

    Attributes:
        versions: Every version's cluster, by key.
        aliases: Other names for versions; each names a key of ``versions``.
        default_version: The version or alias for requests that name none; ``None`` makes such requests an error.
        max_connections: The most connections that this process holds, over all pools.
        max_connections_per_server: The most of them to one server; left out, only ``max_connections`` limits them.
        max_pools: The most pools that are open at the same time; each takes two threads, or tasks.
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
