"""The models of the settings about nodes and versions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, SecretStr, WithJsonSchema

from router.core.errors import like_connection_string
from router.core.faults import Fault
from router.core.policies import PoolPolicy, ReadPolicy
from router.core.topology import Cluster, Node, Pooler, Role, Secrets
from router.settings.dsn import Dsn
from router.settings.table import Pool, Read, Table, about
from router.settings.words import MISPLACED

if TYPE_CHECKING:
    from collections.abc import Iterator


def _checked_key(key: str) -> str:
    if not key or key != key.strip() or not key.isprintable():
        raise ValueError(
            "is not a valid key: it needs at least one character, only printable ones, and no space around it"
        )
    if like_connection_string(key):
        raise ValueError(f"is not a key but {MISPLACED}")
    return key


def _as_dsn(value: object) -> Dsn:
    if isinstance(value, Dsn):
        return value
    if not isinstance(value, str):
        raise ValueError("must be a connection string")  # noqa: TRY004 (pydantic collects ValueError only)
    return Dsn.parse(value)


Key = Annotated[str, AfterValidator(_checked_key)]
_Dsn = Annotated[Dsn, PlainValidator(_as_dsn), WithJsonSchema({"type": "string"})]


class NodeSettings(Table):
    """A node: its connection string, and the settings that are not part of it."""

    dsn: _Dsn = Field(description="The connection string: a URI or libpq's `key=value` form, with any libpq parameter.")
    weight: float = Field(default=1.0, gt=0, description=about(Node).get("weight"))
    password: SecretStr | None = Field(
        default=None, description="The password; it overrides one in `dsn`. Without any, libpq looks for one."
    )
    password_file: Path | None = Field(default=None, description=about(Node).get("password_file"))
    pooler: Pooler | None = Field(
        default=None,
        description=f"{about(Node).get('pooler')} It may send each database to another server.",
    )

    _as_string = "a connection string"

    @classmethod
    def _prepared(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"dsn": data}
        if not isinstance(data, Mapping) or any(data.get(key) is not None for key in ("password", "password_file")):
            return data
        try:
            dsn = _as_dsn(data.get("dsn"))
        except ValueError:
            return data  # the field itself says why
        return {**data, "dsn": dsn, "password": dsn.password}

    @classmethod
    def _faults(cls, data: Mapping[str, Any]) -> Iterator[Fault]:
        if data.get("password") is not None and data.get("password_file") is not None:
            yield Fault(("password_file",), "cannot be combined with password: give one of them")

    def nodes(self, role: Role | None) -> Iterator[Node]:
        """Make one node for each host that the connection string names.

        Args:
            role: The role that the nodes are configured for; ``None`` when roles are discovered.

        Yields:
            The nodes, in their order.
        """
        values = dict(self.dsn.secrets)
        if self.password is not None:
            values["password"] = self.password.get_secret_value()
        secrets = Secrets(tuple(sorted(values.items())))
        for server, params in self.dsn.nodes:
            named = dict(params)
            database = (named.get("dbname") or named.get("user", "")) if self.pooler else ""
            yield Node(
                replace(server, database=database), params, role, self.weight, secrets, self.password_file, self.pooler
            )


def _without_role(node: NodeSettings) -> NodeSettings:
    if dict(node.dsn.nodes[0][1]).get("target_session_attrs", "any") != "any":
        raise ValueError(
            "has target_session_attrs: leave it out, because the router observes which server has which role"
        )
    return node


def _one_host(node: NodeSettings) -> NodeSettings:
    if (count := len(node.dsn.nodes)) > 1:
        raise ValueError(f"names {count} hosts, but only one is allowed here: put several hosts into `nodes`")
    return node


def _listed(value: object) -> object:
    """Make a list of nodes of one node, or of several URIs with white space between them."""
    if isinstance(value, str):
        return re.split(r"\s+(?=postgres(?:ql)?://)", value.strip())
    return [value] if isinstance(value, (Mapping, NodeSettings)) else value


SERVERS = ("primary", "replicas", "nodes")
"""The keys that name servers."""

PLACES = ("schema", "database", "user", "role", "row", *SERVERS)
"""The keys that may separate a tenant from others."""

_Listed = BeforeValidator(_listed, json_schema_input_type=NodeSettings | list[NodeSettings])
_OneNode = Annotated[NodeSettings, AfterValidator(_one_host), AfterValidator(_without_role)]
_Replicas = Annotated[tuple[_OneNode, ...], _Listed]
_Nodes = Annotated[tuple[Annotated[NodeSettings, AfterValidator(_without_role)], ...], _Listed]


def as_servers(data: Any) -> Any:
    """Expand a plain string to the table of servers that it is short for.

    Args:
        data: The value in the settings.

    Returns:
        The table; anything else that was given is returned as it is.
    """
    return {"nodes": data} if isinstance(data, str) else data


class Servers(Table):
    """A table that names servers: `primary` and `replicas`, or `nodes`; a plain string is short for `nodes`."""

    primary: _OneNode | None = Field(default=None, description="The node that takes writes.")
    replicas: _Replicas = Field(default=(), description="The nodes that follow the primary and take reads.")
    nodes: _Nodes = Field(
        default=(),
        description="Nodes with discovered roles, instead of `primary` and `replicas`; each may name several hosts.",
    )

    _as_string = "a connection string (of nodes whose roles are discovered)"

    @classmethod
    def _prepared(cls, data: Any) -> Any:
        return as_servers(data)

    @classmethod
    def _faults(cls, data: Mapping[str, Any]) -> Iterator[Fault]:
        primary, replicas, nodes = (data.get(key) for key in ("primary", "replicas", "nodes"))
        if nodes and (primary or replicas):
            text = "cannot be combined with primary or replicas: use those if the roles are fixed, else nodes alone"
            yield Fault(("nodes",), text)

    def _nodes(self) -> Iterator[Node]:
        if self.primary is not None:
            yield from self.primary.nodes(Role.PRIMARY)
        for listed, role in ((self.replicas, Role.REPLICA), (self.nodes, None)):
            for settings in listed:
                yield from settings.nodes(role)


class VersionSettings(Servers):
    """A version: `primary` and `replicas`, or `nodes`; a plain string is short for `nodes`."""

    pool: Pool = Field(default=PoolPolicy(), description="The keys of `[pool]` that this version overrides.")
    read: Read = Field(default=ReadPolicy(), description="The keys of `[read]` that this version overrides.")

    def cluster(self, name: str) -> Cluster:
        """Make the version's cluster.

        Args:
            name: The version's key.

        Returns:
            The cluster: its nodes and policies.
        """
        return Cluster(name, tuple(self._nodes()), self.pool, self.read)
