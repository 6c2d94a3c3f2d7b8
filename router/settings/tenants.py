"""Tenants, as they are written: what holds for all, and what for one."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from router.core.errors import like_connection_string
from router.core.names import texts_of
from router.core.policies import Hygiene, Pooling, PoolPolicy, ReadPolicy, TenantPolicy
from router.core.topology import TENANT_PATTERN, Cluster, Home, Tenancy
from router.settings.servers import SERVERS, Key, NodeSettings, Servers
from router.settings.table import Table, about
from router.settings.words import MISPLACED, Fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class TenancySettings(Table):
    """What holds for all tenants; each may differ in how it is kept apart."""

    pattern: str = Field(default=TENANT_PATTERN, description=about(Tenancy).get("pattern"))
    pooling: Pooling = Field(default=TenantPolicy().pooling, description=about(TenantPolicy).get("pooling"))
    hygiene: Hygiene = Field(default=TenantPolicy().hygiene, description=about(TenantPolicy).get("hygiene"))
    max_connections: int | None = Field(
        default=TenantPolicy().max_connections, ge=1, description=about(TenantPolicy).get("max_connections")
    )
    min_size: int = Field(default=TenantPolicy().min_size, ge=0, description=about(TenantPolicy).get("min_size"))

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, OverflowError) as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        if like_connection_string(pattern.replace("(?:", "(")):
            raise ValueError(f"is no regular expression but {MISPLACED}")
        return pattern

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for problem in at_odds(self.policy()):
            raise ValueError(problem)
        return self

    def policy(self) -> TenantPolicy:
        """The same as one of topology's policies."""
        return _policy(self.pooling, self.hygiene, self.max_connections, self.min_size)


@lru_cache
def _policy(pooling: Pooling, hygiene: Hygiene, max_connections: int | None, min_size: int) -> TenantPolicy:
    """One object for all tenants that are kept apart alike: there may be thousands."""
    return TenantPolicy(pooling, hygiene, max_connections, min_size)


def at_odds(policy: TenantPolicy) -> Iterator[str]:
    """Find what cannot be met together.

    Args:
        policy: How a tenant is kept apart.

    Yields:
        What is wrong.
    """
    if policy.min_size and policy.pooling == "shared":
        yield 'min_size keeps connections open for one tenant alone, which needs pooling = "dedicated"'
    if policy.max_connections is not None and policy.min_size > policy.max_connections:
        yield f"min_size is {policy.min_size}, more than max_connections, which is {policy.max_connections}"


GENERAL = TenancySettings()
_PLACEHOLDERS = {"{tenant}", "{version}"}


def _holds_only_ours(text: str) -> str:
    if strange := sorted(set(re.findall(r"\{[^{}]*\}", text)) - _PLACEHOLDERS):
        raise ValueError(f"has a placeholder that is neither {{tenant}} nor {{version}}: {strange[0]}")
    return text


def _checked_name(name: str) -> str:
    if not name:
        raise ValueError("is empty: leave it out")
    if "\0" in name:
        raise ValueError("holds a NUL character, which no name does")
    if like_connection_string(name):
        raise ValueError(f"is no name but {MISPLACED}")
    return _holds_only_ours(name)


def _checked_row(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w$]*(\.[A-Za-z_][\w$]*)+", name, re.ASCII):
        raise ValueError("must be the name of a setting with a dot in it, such as app.tenant")
    return name


def _one_or_more(value: object) -> object:
    match value:
        case None:
            return ()
        case str():
            return (value,)
        case list() | tuple():
            return value
    raise ValueError("must be a string or a list")


_Name = Annotated[str, AfterValidator(_checked_name)]
_OneOrMore = BeforeValidator(_one_or_more, json_schema_input_type=str | list[str])


class TenantSettings(Servers):
    """A tenant: where it lives, and how it is kept apart; a plain string is short for `nodes`."""

    version: Annotated[tuple[Key, ...], _OneOrMore] = Field(
        default=(),
        description="The version or alias it lives in, or a list, first the one for requests that name none; left out, "
        "it lives in every version.",
    )
    database: _Name | None = Field(default=None, description="Its database there; left out, the node's.")
    user: _Name | None = Field(default=None, description="Its login role there; left out, the node's.")
    schema_: Annotated[tuple[_Name, ...], _OneOrMore] = Field(
        default=(), alias="schema", description="Its schema, or a list that is its `search_path`."
    )
    role: _Name | None = Field(default=None, description="The role that its sessions are set to.")
    row: Annotated[str, AfterValidator(_checked_row)] | None = Field(
        default=None,
        description="The setting, such as `app.tenant`, that holds its key, for policies of row-level security.",
    )
    pooling: Pooling | None = Field(default=None, description="As `tenancy.pooling`.")
    hygiene: Hygiene | None = Field(default=None, description="As `tenancy.hygiene`.")
    max_connections: int | None = Field(default=None, ge=1, description="As `tenancy.max_connections`.")
    min_size: int | None = Field(default=None, ge=0, description="As `tenancy.min_size`.")

    @classmethod
    def _faults(cls, data: Mapping[str, Any]) -> Iterator[Fault]:
        yield from super()._faults(data)
        if data.get("replicas") and not (data.get("primary") or data.get("nodes")):
            yield ("replicas",), "stands without primary: add that, or list them as nodes if the roles are unknown"
        if any(map(data.get, SERVERS)):
            for key in ("database", "user"):
                if data.get(key) is not None:
                    yield (key,), "stands beside servers of its own: write it in their connection strings instead"

    @field_validator(*SERVERS)
    @classmethod
    def _placeholders(cls, servers: Any) -> Any:
        for settings in (servers,) if isinstance(servers, NodeSettings) else servers or ():
            for node in settings.nodes(None):
                for text in texts_of(node):
                    _holds_only_ours(text)
                if any(ours in secret for _, secret in node.secrets.values for ours in _PLACEHOLDERS):
                    raise ValueError(
                        "has {tenant} or {version} in its password, or another secret, where it stays as it is: give "
                        "each tenant a password_file, or its line in .pgpass"
                    )
        return servers

    def _written(self) -> dict[str, Any]:
        """The keys that are set, as they are written, with their values."""
        found = {name: getattr(self, name) for name in self.model_fields_set}
        return {
            (type(self).model_fields[name].alias or name): value for name, value in found.items() if value is not None
        }

    def home(self, cluster: str, tenancy: TenancySettings, pool: PoolPolicy, read: ReadPolicy) -> Home:
        """Where the tenant lives.

        Args:
            cluster: What to call servers of its own.
            tenancy: What holds for all tenants.
            pool: How pools on servers of its own behave.
            read: How reads are spread there.

        Returns:
            Its home, placeholders and all.
        """
        nodes = tuple(self._nodes())
        policy = _policy(
            self.pooling or tenancy.pooling,
            self.hygiene or tenancy.hygiene,
            tenancy.max_connections if self.max_connections is None else self.max_connections,
            tenancy.min_size if self.min_size is None else self.min_size,
        )
        return Home(
            self.version,
            Cluster(cluster, nodes, pool, read) if nodes else None,
            self.database or "",
            self.user or "",
            self.schema_,
            self.role or "",
            self.row or "",
            policy,
        )


TENANT_KEYS = TenantSettings._keys()  # noqa: SLF001 (of this module)
"""What may be said of a tenant: the keys of ``[tenants.NAME]``, and of what a directory answers."""
