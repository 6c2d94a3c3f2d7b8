"""Tenants, as they are written: what holds for all, and what for one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from router.core.errors import like_connection_string
from router.core.names import texts_of
from router.core.policies import Hygiene, Pooling, PoolPolicy, ReadPolicy, TenantPolicy
from router.core.topology import TENANT_PATTERN, Cluster, Home, Tenancy
from router.settings.servers import SERVERS, Key, NodeSettings, Servers, as_servers
from router.settings.table import Table, about
from router.settings.words import MISPLACED


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
            raise ValueError(f"is not a regular expression but {MISPLACED}")
        return pattern


@lru_cache
def _policy(pooling: Pooling, hygiene: Hygiene, max_connections: int | None, min_size: int) -> TenantPolicy:
    """One object for all tenants that are kept apart alike: there may be thousands."""
    return TenantPolicy(pooling, hygiene, max_connections, min_size)


def policy_of(tenancy: TenancySettings | None) -> TenantPolicy:
    """Say how tenants are kept apart of whom nothing else is said.

    Args:
        tenancy: What holds for all; ``None`` where nothing is written of it.

    Returns:
        The policy.
    """
    if tenancy is None:
        return _policy(*TenantPolicy())
    return _policy(tenancy.pooling, tenancy.hygiene, tenancy.max_connections, tenancy.min_size)


_PLACEHOLDERS = {"{tenant}", "{version}"}


def _checked_placeholders(text: str) -> str:
    if strange := sorted(set(re.findall(r"\{[^{}]*\}", text)) - _PLACEHOLDERS):
        raise ValueError(f"has a placeholder that is neither {{tenant}} nor {{version}}: {strange[0]}")
    return text


def _checked_name(name: str) -> str:
    if not name:
        raise ValueError("is empty: leave it out")
    if "\0" in name:
        raise ValueError("holds a NUL character, which no name does")
    if like_connection_string(name):
        raise ValueError(f"is not a name but {MISPLACED}")
    return _checked_placeholders(name)


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

    @field_validator(*SERVERS)
    @classmethod
    def _placeholders(cls, servers: Any) -> Any:
        for settings in (servers,) if isinstance(servers, NodeSettings) else servers or ():
            for node in settings.nodes(None):
                for text in texts_of(node):
                    _checked_placeholders(text)
                if any(ours in secret for _, secret in node.secrets.values for ours in _PLACEHOLDERS):
                    raise ValueError(
                        "has {tenant} or {version} in its password, or another secret, where it stays as it is: give "
                        "each tenant a password_file, or its line in .pgpass"
                    )
        return servers

    def home(self, cluster: str, general: TenantPolicy, pool: PoolPolicy, read: ReadPolicy) -> Home:
        """Where the tenant lives.

        Args:
            cluster: What to call servers of its own.
            general: How tenants are kept apart of whom nothing else is said.
            pool: How pools on servers of its own behave.
            read: How reads are spread there.

        Returns:
            Its home, placeholders and all.
        """
        nodes = tuple(self._nodes())
        policy = _policy(
            self.pooling or general.pooling,
            self.hygiene or general.hygiene,
            general.max_connections if self.max_connections is None else self.max_connections,
            general.min_size if self.min_size is None else self.min_size,
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


_WRITTEN = {name: field.alias or name for name, field in TenantSettings.model_fields.items()}

TENANT_KEYS = frozenset(_WRITTEN.values())
"""What may be said of a tenant: the keys of ``[tenants.NAME]``, and of what a directory answers."""


def as_written(tenant: Any) -> Any:
    """Say what is written of a tenant.

    Args:
        tenant: Its settings, a mapping of their keys, or a connection string.

    Returns:
        The keys that are set, with their values; whatever else was given, as it is.
    """
    if isinstance(tenant, TenantSettings):
        return {
            _WRITTEN[name]: value for name in tenant.model_fields_set if (value := getattr(tenant, name)) is not None
        }
    return as_servers(tenant)


def over_template(answer: Any, template: TenantSettings | None) -> Any:
    """Complete what a directory answered by what holds for all its tenants.

    Args:
        answer: The keys of a tenant, as written.
        template: Says what the answer leaves open.

    Returns:
        The keys of both; whatever else was given, as it is.
    """
    if not isinstance(answer, Mapping):
        return answer
    said = {key: value for key, value in answer.items() if value is not None}
    general = {} if template is None else as_written(template)
    if any(map(said.get, SERVERS)):
        general = {key: value for key, value in general.items() if key not in (*SERVERS, "database", "user")}
    return {**general, **said}
