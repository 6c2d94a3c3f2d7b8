"""The models of the settings about tenants: ``[tenancy]``, ``[tenants.NAME]`` and ``[tenant_template]``."""

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
    """The settings of all tenants; a tenant may override how it is separated from others."""

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
    """Make one object for all tenants with the same policy, of which there may be thousands."""
    return TenantPolicy(pooling, hygiene, max_connections, min_size)


def policy_of(tenancy: TenancySettings | None) -> TenantPolicy:
    """Make the policy of tenants that set nothing themselves.

    Args:
        tenancy: The table ``[tenancy]``; ``None`` if the settings have none.

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
        raise ValueError("contains a NUL character, which no name may have")
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
    """A tenant: where it lives, and how it is separated from others; a plain string is short for `nodes`."""

    version: Annotated[tuple[Key, ...], _OneOrMore] = Field(
        default=(),
        description="The version or alias that it lives in, or a list of them; the first one serves requests that name "
        "no version. Left out, it lives in every version.",
    )
    database: _Name | None = Field(default=None, description="Its database there; left out, the node's database.")
    user: _Name | None = Field(default=None, description="Its login role there; left out, the node's user.")
    schema_: Annotated[tuple[_Name, ...], _OneOrMore] = Field(
        default=(), alias="schema", description="Its schema, or a list of schemas, which becomes its `search_path`."
    )
    role: _Name | None = Field(default=None, description="The role that its sessions are set to (`SET ROLE`).")
    row: Annotated[str, AfterValidator(_checked_row)] | None = Field(
        default=None,
        description="The setting that holds its key for policies of row-level security, such as `app.tenant`.",
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
                        "has {tenant} or {version} in its password or another secret, where it is not replaced: give "
                        "each tenant a password_file, or a line in .pgpass"
                    )
        return servers

    def home(self, cluster: str, general: TenantPolicy, pool: PoolPolicy, read: ReadPolicy) -> Home:
        """Make the tenant's home.

        Args:
            cluster: The name of the cluster, if it has servers of its own.
            general: The policy of tenants that set nothing themselves.
            pool: How pools on servers of its own behave.
            read: How reads are spread over servers of its own.

        Returns:
            The home, with its placeholders as written.
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
"""The keys of ``[tenants.NAME]``, and of a directory's answer."""


def as_written(tenant: Any) -> Any:
    """Return the keys that are set for a tenant.

    Args:
        tenant: Its settings, a mapping of their keys, or a connection string.

    Returns:
        The keys that are set, with their values; anything else that was given is returned as it is.
    """
    if isinstance(tenant, TenantSettings):
        return {
            _WRITTEN[name]: value for name in tenant.model_fields_set if (value := getattr(tenant, name)) is not None
        }
    return as_servers(tenant)


def over_template(answer: Any, template: TenantSettings | None) -> Any:
    """Complete a directory's answer with the values of the template.

    Args:
        answer: The keys of a tenant, as written.
        template: Has the values that the answer leaves out.

    Returns:
        The keys of both; anything else that was given is returned as it is.
    """
    if not isinstance(answer, Mapping):
        return answer
    said = {key: value for key, value in answer.items() if value is not None}
    general = {} if template is None else as_written(template)
    if any(map(said.get, SERVERS)):
        general = {key: value for key, value in general.items() if key not in (*SERVERS, "database", "user")}
    return {**general, **said}
