"""What the user writes: typed settings from arguments, ``ROUTER_*`` variables, secrets and a file, as a topology."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache, lru_cache
from inspect import getdoc
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, cast, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    PlainValidator,
    SecretStr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema
from pydantic_settings import BaseSettings, InitSettingsSource, SettingsConfigDict

from router import _sources
from router._first_use import first_use
from router.core.errors import ConfigError, like_connection_string, masked, nearest
from router.core.names import Misnamed, names_of, rendered, texts_of
from router.core.policies import (
    DirectoryPolicy,
    Foreign,
    HealthPolicy,
    Hygiene,
    Pooling,
    PoolPolicy,
    ReadPolicy,
    TenantPolicy,
    TokenPolicy,
)
from router.core.resolve import twins
from router.core.topology import TENANT_PATTERN, Cluster, Home, Node, Pooler, Role, Secrets, Tenancy, Topology
from router.dsn import Dsn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic import GetJsonSchemaHandler, ModelWrapValidatorHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_settings import (
        DotEnvSettingsSource,
        EnvSettingsSource,
        PydanticBaseSettingsSource,
        SecretsSettingsSource,
    )


class _Table(BaseModel):
    """A table of settings, which reports every fault in it at once, in its final words and without its input."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        serialize_by_alias=True,
        defer_build=True,  # until settings are first read: whoever only imports the package does not wait for it
    )
    _as_string: ClassVar[str | None] = None  # what a plain string in its place stands for

    @classmethod
    def _prepared(cls, data: Any) -> Any:
        """``data`` as the table it stands for."""
        return asdict(data) if is_dataclass(data) and not isinstance(data, type) else data

    @classmethod
    def _faults(cls, data: Mapping[str, Any]) -> Iterator[_sources.Fault]:  # noqa: ARG003 (for subclasses)
        """What is wrong between the keys of ``data``, whose values need not be valid."""
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        data = cls._prepared(data)
        faults = list(cls._faults(data)) if isinstance(data, Mapping) else []
        try:
            made = handler(data)
        except ValidationError as error:
            faults = [(details["loc"], cls._in_words(details)) for details in error.errors(include_url=False)] + faults
        if faults:
            raise _error(cls.__name__, faults)
        return made

    @classmethod
    def _keys(cls) -> frozenset[str]:
        return frozenset(field.alias or name for name, field in cls.model_fields.items())

    @classmethod
    def _in_words(cls, details: Any) -> str:
        text: str
        match details["type"]:
            case "in_words":
                text = details["msg"]
            case "extra_forbidden":
                near = nearest(str(details["loc"][-1]), cls._keys())
                text = "unknown key" + (f"; did you mean {near}?" if near else "")
            case "missing":
                text = "is missing"
            case "model_type" | "dict_type":
                text = f"must be {f'{cls._as_string} or ' if cls._as_string else ''}a table"
            case "tuple_type":
                text = "must be a list"
            case "string_too_short":
                text = "is empty"
            case "value_error":
                text = str(details["ctx"]["error"])
            case kind:
                text = details["msg"].partition(", unable")[0].replace("Input should be", "must be")
                # Of all input only a number out of range is shown: that is no secret, anything else may be.
                text += f", not {details['input']}" if kind.startswith(("greater_than", "less_than")) else ""
        return text

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler, /
    ) -> JsonSchemaValue:
        found = handler.resolve_ref_schema(handler(schema))
        if cls._as_string:
            table = dict(found)
            found.clear()
            found["anyOf"] = [
                {"type": "string", "description": f"{cls._as_string[0].upper()}{cls._as_string[1:]}."},
                table,
            ]
        return found


def _error(title: str, faults: Iterable[_sources.Fault]) -> ValidationError:
    return ValidationError.from_exception_data(
        title,
        [
            InitErrorDetails(type=PydanticCustomError("in_words", "{text}", {"text": text}), loc=path, input=None)
            for path, text in faults
        ],
        hide_input=True,
    )


@cache
def _about(described: type) -> Mapping[str, str]:
    """What the ``Attributes:`` of a docstring say of each field; nothing where Python strips docstrings (-OO)."""
    _, _, attributes = (getdoc(described) or "").partition("Attributes:\n")
    found = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).replace("``", "`") for name, text in found}


def _table_of(policy: Any, *, ascending: tuple[str, str] | None = None, **limits: dict[str, Any]) -> GetPydanticSchema:
    """Reads a table into one of topology's policies, which alone says its fields, types, defaults and meanings."""
    types = get_type_hints(policy)
    keys: dict[str, Any] = {
        field.name: (
            types[field.name],
            Field(field.default, description=_about(policy).get(field.name), **limits.get(field.name, {})),
        )
        for field in fields(policy)
    }
    order = {"ascending": _ascending(*ascending)} if ascending else {}
    model = create_model(
        policy.__name__,
        __base__=_Table,
        __doc__=(policy.__doc__ or "").partition("\n")[0],
        __validators__=order,
        **keys,
    )
    return GetPydanticSchema(
        lambda _, handler: core_schema.no_info_after_validator_function(
            lambda table: policy(**dict(table)),
            handler.generate_schema(model),
            serialization=core_schema.plain_serializer_function_ser_schema(asdict),
        )
    )


def _ascending(low: str, high: str) -> Any:
    def check(value: float, info: ValidationInfo) -> float:
        if (least := info.data.get(low, value)) > value:
            raise ValueError(f"must be at least {low}, which is {least}; it is {value}")
        return value

    return field_validator(high)(check)


_SECONDS = {"gt": 0}
_Pool = Annotated[
    PoolPolicy,
    _table_of(
        PoolPolicy,
        ascending=("min_size", "max_size"),
        min_size={"ge": 0},
        max_size={"ge": 1},
        timeout=_SECONDS,
        connect_timeout={"ge": 2},
        max_waiting={"ge": 0},
        max_idle=_SECONDS,
        max_lifetime=_SECONDS,
        max_unused=_SECONDS,
    ),
]
_Read = Annotated[
    ReadPolicy,
    _table_of(ReadPolicy, max_lag={"ge": 0}, max_lag_bytes={"ge": 0}, catch_up={"ge": 0}),
]
_Health = Annotated[
    HealthPolicy,
    _table_of(
        HealthPolicy,
        ascending=("ban", "ban_max"),
        interval=_SECONDS,
        timeout=_SECONDS,
        cut_after=_SECONDS,
        ban=_SECONDS,
        ban_max=_SECONDS,
    ),
]
_Directory = Annotated[
    DirectoryPolicy,
    _table_of(DirectoryPolicy, table={"min_length": 1}, ttl=_SECONDS, unknown_ttl={"ge": 0}),
]


_MISPLACED = "a connection string, which goes into `primary` or `nodes`"


def _checked_key(key: str) -> str:
    if not key or key != key.strip() or not key.isprintable():
        raise ValueError("is no key: one has at least one character, none that cannot be printed, no space around it")
    if like_connection_string(key):
        raise ValueError(f"is no key but {_MISPLACED}")
    return key


def _parsed(value: object) -> Dsn:
    if isinstance(value, Dsn):
        return value
    if not isinstance(value, str):
        raise ValueError("must be a connection string")  # noqa: TRY004 (pydantic collects ValueError only)
    return Dsn.parse(value)


_Key = Annotated[str, AfterValidator(_checked_key)]
_Dsn = Annotated[Dsn, PlainValidator(_parsed), WithJsonSchema({"type": "string"})]


class NodeSettings(_Table):
    """A node: its connection string, and what is said apart from it."""

    dsn: _Dsn = Field(description="Connection string: a URI or libpq's `key=value` form, with any libpq parameter.")
    weight: float = Field(default=1.0, gt=0, description=_about(Node).get("weight"))
    password: SecretStr | None = Field(
        default=None, description="The password; stronger than one in `dsn`. Without any, libpq looks for one."
    )
    password_file: Path | None = Field(default=None, description=_about(Node).get("password_file"))
    pooler: Pooler | None = Field(
        default=None,
        description=f"{_about(Node).get('pooler')} The servers behind it may differ by database.",
    )

    _as_string = "a connection string"

    @classmethod
    def _prepared(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"dsn": data}
        if not isinstance(data, Mapping) or any(data.get(key) is not None for key in ("password", "password_file")):
            return data
        try:
            dsn = _parsed(data.get("dsn"))
        except ValueError:
            return data  # the field itself says why
        return {**data, "dsn": dsn, "password": dsn.password}

    @classmethod
    def _faults(cls, data: Mapping[str, Any]) -> Iterator[_sources.Fault]:
        if data.get("password") is not None and data.get("password_file") is not None:
            yield ("password_file",), "stands beside password: only one of them can be it"

    def nodes(self, role: Role | None) -> Iterator[Node]:
        """One node for each host that the connection string names.

        Args:
            role: What the nodes are configured for; ``None`` when that is discovered.

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


def _any_role(node: NodeSettings) -> NodeSettings:
    if dict(node.dsn.nodes[0][1]).get("target_session_attrs", "any") != "any":
        raise ValueError(
            "has target_session_attrs: leave it out, the router itself observes which server has which role"
        )
    return node


def _one_host(node: NodeSettings) -> NodeSettings:
    if (count := len(node.dsn.nodes)) > 1:
        raise ValueError(
            f"names {count} hosts, and has one role: several hosts go into `nodes`, their roles discovered"
        )
    return node


def _listed(value: object) -> object:
    """A list of nodes: one node is a list too, and so are several URIs with white space between them."""
    if isinstance(value, str):
        return re.split(r"\s+(?=postgres(?:ql)?://)", value.strip())
    return [value] if isinstance(value, (Mapping, NodeSettings)) else value


SERVERS = ("primary", "replicas", "nodes")
"""The keys under which servers stand."""

PLACES = ("schema", "database", "user", "role", "row", *SERVERS)
"""The keys that may keep a tenant apart from others."""

_Listed = BeforeValidator(_listed, json_schema_input_type=NodeSettings | list[NodeSettings])


class _Servers(_Table):
    """What has servers: `primary` and `replicas`, or `nodes`; a plain string is short for `nodes`."""

    primary: Annotated[NodeSettings, AfterValidator(_one_host), AfterValidator(_any_role)] | None = Field(
        default=None, description="The node that takes writes."
    )
    replicas: Annotated[
        tuple[Annotated[NodeSettings, AfterValidator(_one_host), AfterValidator(_any_role)], ...], _Listed
    ] = Field(default=(), description="The nodes that follow the primary and take reads.")
    nodes: Annotated[tuple[Annotated[NodeSettings, AfterValidator(_any_role)], ...], _Listed] = Field(
        default=(), description="Instead of both: nodes whose roles are discovered. Each may name several hosts."
    )

    _as_string = "a connection string (of nodes whose roles are discovered)"

    @classmethod
    def _prepared(cls, data: Any) -> Any:
        return {"nodes": data} if isinstance(data, str) else data

    @classmethod
    def _faults(cls, data: Mapping[str, Any]) -> Iterator[_sources.Fault]:
        primary, replicas, nodes = (data.get(key) for key in ("primary", "replicas", "nodes"))
        if nodes and (primary or replicas):
            yield ("nodes",), "stands beside primary or replicas: use those if the roles are fixed, else nodes alone"

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen = set()
        for node in self._nodes():
            if node.server in seen:
                raise ValueError(f"lists {node.server} twice")
            seen.add(node.server)
        return self

    def _nodes(self) -> Iterator[Node]:
        if self.primary is not None:
            yield from self.primary.nodes(Role.PRIMARY)
        for listed, role in ((self.replicas, Role.REPLICA), (self.nodes, None)):
            for settings in listed:
                yield from settings.nodes(role)


class VersionSettings(_Servers):
    """A version: `primary` and `replicas`, or `nodes`; a plain string is short for `nodes`."""

    pool: _Pool = Field(default=PoolPolicy(), description="Keys of `[pool]` that differ for this version.")
    read: _Read = Field(default=ReadPolicy(), description="Keys of `[read]` that differ for this version.")

    @classmethod
    def _faults(cls, data: Mapping[str, Any]) -> Iterator[_sources.Fault]:
        yield from super()._faults(data)
        if not (data.get("primary") or data.get("nodes")) and data.keys() <= cls._keys():  # a misspelt key explains it
            yield (), "needs `primary`, or `nodes` if the roles are to be discovered"

    def cluster(self, name: str) -> Cluster:
        """What the version is made of.

        Args:
            name: The version's key.

        Returns:
            Its nodes and policies.
        """
        return Cluster(name, tuple(self._nodes()), self.pool, self.read)


class TenancySettings(_Table):
    """What holds for all tenants; each may differ in how it is kept apart."""

    pattern: str = Field(default=TENANT_PATTERN, description=_about(Tenancy).get("pattern"))
    pooling: Pooling = Field(default=TenantPolicy().pooling, description=_about(TenantPolicy).get("pooling"))
    hygiene: Hygiene = Field(default=TenantPolicy().hygiene, description=_about(TenantPolicy).get("hygiene"))
    max_connections: int | None = Field(
        default=TenantPolicy().max_connections, ge=1, description=_about(TenantPolicy).get("max_connections")
    )
    min_size: int = Field(default=TenantPolicy().min_size, ge=0, description=_about(TenantPolicy).get("min_size"))

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, OverflowError) as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        if like_connection_string(pattern.replace("(?:", "(")):
            raise ValueError(f"is no regular expression but {_MISPLACED}")
        return pattern

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for problem in _at_odds(self.policy()):
            raise ValueError(problem)
        return self

    def policy(self) -> TenantPolicy:
        """The same as one of topology's policies."""
        return _policy(self.pooling, self.hygiene, self.max_connections, self.min_size)


@lru_cache
def _policy(pooling: Pooling, hygiene: Hygiene, max_connections: int | None, min_size: int) -> TenantPolicy:
    """One object for all tenants that are kept apart alike: there may be thousands."""
    return TenantPolicy(pooling, hygiene, max_connections, min_size)


def _at_odds(policy: TenantPolicy) -> Iterator[str]:
    if policy.min_size and policy.pooling == "shared":
        yield 'min_size keeps connections open for one tenant alone, which needs pooling = "dedicated"'
    if policy.max_connections is not None and policy.min_size > policy.max_connections:
        yield f"min_size is {policy.min_size}, more than max_connections, which is {policy.max_connections}"


_GENERAL = TenancySettings()
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
        raise ValueError(f"is no name but {_MISPLACED}")
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


class TenantSettings(_Servers):
    """A tenant: where it lives, and how it is kept apart; a plain string is short for `nodes`."""

    version: Annotated[tuple[_Key, ...], _OneOrMore] = Field(
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
    def _faults(cls, data: Mapping[str, Any]) -> Iterator[_sources.Fault]:
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


KEY_LENGTH = 16
"""The fewest characters of a key that signs tokens."""


def _long_enough(key: SecretStr) -> SecretStr:
    if len(key) < KEY_LENGTH:
        raise ValueError(f"must have at least {KEY_LENGTH} characters")
    return key


class TokenSettings(_Table):
    """How the tokens of sessions are made and read."""

    key: Annotated[SecretStr, AfterValidator(_long_enough)] | None = Field(
        default=None, description=_about(TokenPolicy).get("key")
    )
    foreign: Foreign = Field(default="ignore", description=_about(TokenPolicy).get("foreign"))

    def policy(self) -> TokenPolicy:
        """The same as one of topology's policies."""
        return TokenPolicy(None if self.key is None else self.key.get_secret_value().encode(), self.foreign)


def _schema_root(schema: dict[str, Any]) -> None:
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["description"] = "A settings file of psycopg-router."
    schema["properties"] = {
        "$schema": {"type": "string", "description": "This schema, for editors."},
        **schema["properties"],
    }


_FILE = "router.toml"  # as `router init` writes it
_WITHOUT_FILE = (
    "if this file belongs to another program, do without it: "
    "ROUTER_CONFIG names another file, RouterSettings(_config_file=None) reads none"
)
_URL = "DATABASE_URL"  # what hosting platforms, and `router each`, call the one database that there is


def _is_ours(url: str) -> bool:
    return re.match(r"postgres(ql)?[+:]", url) is not None


_ENV_FILE = ".env"
_WITHOUT_ENV_FILE = (
    "if this file belongs to another program, do without it: "
    "ROUTER_ENV_FILE=/dev/null, or RouterSettings(_env_file=None)"
)


class RouterSettings(BaseSettings, _Table):
    """All settings of a router.

    Sources, strongest first: arguments, ``ROUTER_*`` environment variables, ``.env``, a directory of secrets
    (``ROUTER_SECRETS_DIR``), the file named by ``ROUTER_CONFIG`` or else ``router.toml`` in the working directory. If
    none of them has a version, ``DATABASE_URL`` is one, ``default``. ``docs/settings.md`` lists every key.

    Raises:
        ConfigError: Something is wrong with the settings; every problem is listed.
    """

    model_config = SettingsConfigDict(
        case_sensitive=True,  # names reach us as written, for errors; `_sources` compares them in lower case
        env_prefix=_sources.PREFIX,
        env_file=_ENV_FILE,
        env_file_encoding="utf-8-sig",  # some editors begin a file with a byte order mark
        env_ignore_empty=True,
        title="Settings of psycopg-router",
        json_schema_extra=_schema_root,
    )

    default_version: _Key | None = Field(
        default=None,
        description="The version or alias for requests that name none; left out, it is the only version that there is, "
        "and with several those requests are an error.",
    )
    max_connections: int = Field(default=200, ge=1, description=_about(Topology).get("max_connections"))
    max_connections_per_server: int | None = Field(
        default=None, ge=1, description=_about(Topology).get("max_connections_per_server")
    )
    max_pools: int = Field(default=100, ge=1, description=_about(Topology).get("max_pools"))
    pool: _Pool = Field(default=PoolPolicy(), description="How every pool behaves; a version may differ.")
    read: _Read = Field(default=ReadPolicy(), description="How reads are spread; a version may differ.")
    health: _Health = Field(default=HealthPolicy(), description=_about(Topology).get("health"))
    tokens: TokenSettings = Field(default=TokenSettings(), description=_about(Topology).get("tokens"))
    versions: dict[_Key, VersionSettings] = Field(default={}, description="Every version, by key; at least one.")
    aliases: dict[_Key, Annotated[_Key, Field(description="A version, or another alias.")]] = Field(
        default={}, description="Other names for versions."
    )
    tenancy: TenancySettings | None = Field(default=None, description="What holds for all tenants.")
    directory: _Directory | None = Field(
        default=None, description=(getdoc(DirectoryPolicy) or "").partition("\n")[0] or None
    )
    tenants: dict[_Key, TenantSettings] = Field(default={}, description="Tenants, by key.")
    tenant_template: TenantSettings | None = Field(
        default=None,
        description="Where tenants live that are not listed; with `[directory]`, what its answers leave open.",
    )

    def __init__(self, **values: Any) -> None:
        with first_use:
            TenantSettings.model_rebuild()
            type(self).model_rebuild()
        layers = _sources.Layers(type(self).model_fields)
        faults: list[_sources.Fault] = []
        env_file = values.setdefault(
            "_env_file", os.environ.get("ROUTER_ENV_FILE") or self.model_config.get("env_file")
        )
        if env_file == _ENV_FILE:
            layers.may_be_foreign(_ENV_FILE, _WITHOUT_ENV_FILE)
        try:
            super().__init__(**values, _layers=layers)
        except ValidationError as error:
            faults = [(details["loc"], details["msg"]) for details in error.errors(include_url=False)]
        except OSError as error:  # the other files are read by `_sources`
            layers.problems.append(layers.line(masked(str(env_file)), f"cannot be read: {error.strerror}"))
        except UnicodeDecodeError:
            layers.problems.append(layers.line(masked(str(env_file)), "is not UTF-8 text"))
        if faults or layers.problems:  # outside of `except`: the error must not carry pydantic's, which has the input
            raise ConfigError([*layers.problems, *layers.lines(faults)])

    @classmethod
    def load(cls, path: str | os.PathLike[str], **values: Any) -> Self:
        """Read a file, with the other sources on top of it.

        Args:
            path: A TOML, YAML or JSON file, by its suffix; ``ROUTER_CONFIG`` and ``router.toml`` are not looked at.
            **values: Arguments of the constructor.

        Returns:
            The settings.

        Raises:
            ConfigError: The file cannot be read, or something is wrong with the settings.
        """
        return cls(**values, _config_file=Path(path))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let pydantic-settings read its sources, and merge what they hold into one."""
        arguments = dict(init_settings())
        layers: _sources.Layers = arguments.pop("_layers")
        load_file: bool | Path | None = arguments.pop("_config_file", True)
        environment = cast("EnvSettingsSource", env_settings).env_vars
        dotenv = cast("DotEnvSettingsSource", dotenv_settings)
        written = _sources.variables(dotenv.env_vars, lambda _: str(dotenv.env_file))
        exported = _sources.variables(environment, lambda name: f"environment variable {name}")
        named = {variable.key: Path(variable.text) for variable in (*written, *exported)}
        file = named.get("config") if load_file is True else load_file
        if load_file is True and file is None and Path(_FILE).is_file():
            file = Path(_FILE)
            layers.may_be_foreign(_FILE, _WITHOUT_FILE)
        if file:
            layers.add_table(_sources.read_file(file), str(file))
        directories = cast("SecretsSettingsSource", file_secret_settings).secrets_dir or named.get("secrets_dir") or ()
        for directory in (directories,) if isinstance(directories, (str, Path)) else directories:
            layers.add_variables(_sources.secret_files(Path(directory)), arguments)
        layers.add_variables(written, arguments)
        layers.add_variables(exported, arguments)
        layers.add_table(arguments, "argument")
        urls = [variable for variable in (*exported, *written) if variable.name == _URL and _is_ours(variable.text)]
        if urls and not layers.values().get("versions"):
            layers.add_table({"versions": {"default": urls[0].text}}, urls[0].source)
        return (InitSettingsSource(settings_cls, init_kwargs=layers.values()),)

    @classmethod
    def _settings_log_debug(cls, states: dict[str, dict[str, Any]]) -> None:
        """Log nothing: pydantic-settings would log every value, and with them the passwords."""

    @classmethod
    def _prepared(cls, data: Any) -> Any:
        versions = data.get("versions")
        if not isinstance(versions, Mapping):
            return data
        return {**data, "versions": {key: cls._inheriting(version, data) for key, version in versions.items()}}

    @staticmethod
    def _inheriting(version: Any, data: Mapping[str, Any]) -> Any:
        """``version`` with the keys of ``[pool]`` and ``[read]`` that it does not set itself."""
        version = VersionSettings._prepared(version)  # noqa: SLF001 (of this module)
        if not isinstance(version, Mapping):
            return version
        inherited = {}
        for section in ("pool", "read"):
            general, own = (_Table._prepared(table.get(section, {})) for table in (data, version))  # noqa: SLF001
            if isinstance(general, Mapping) and isinstance(own, Mapping):
                inherited[section] = {**general, **own}
        return {**version, **inherited}

    @classmethod
    def _faults(cls, data: Mapping[str, Any]) -> Iterator[_sources.Fault]:
        versions, aliases = data.get("versions") or {}, data.get("aliases") or {}
        if not versions:
            yield (
                ("versions",),
                (
                    "there is none: `router init` writes a router.toml to start from (ROUTER_CONFIG or --config names "
                    "another file); or set ROUTER_VERSIONS__NAME__PRIMARY, or DATABASE_URL"
                ),
            )
        if not versions or not isinstance(versions, Mapping) or not isinstance(aliases, Mapping):
            return
        for key in versions:
            if isinstance(key, str) and key.startswith(f"{_OWN} "):
                yield ("versions", key), "begins as the names of tenants' own servers do: give it another key"
        yield from cls._alias_faults(versions, aliases)
        known = [*versions, *aliases]
        for path, name in cls._versions_named(data):
            told = path[0] != "directory" and isinstance(name, str) and like_connection_string(name)  # as no key
            if isinstance(name, str) and name not in known and not told:
                yield path, _unknown(name, known)

    @staticmethod
    def _alias_faults(versions: Mapping[str, Any], aliases: Mapping[str, Any]) -> Iterator[_sources.Fault]:
        known = [*versions, *aliases]
        named = {alias: name for alias, name in aliases.items() if isinstance(name, str)}
        for alias, name in named.items():
            if alias in versions:
                yield ("aliases", alias), "is the key of a version too: one of them needs another"
            elif name not in known and not like_connection_string(name):
                yield ("aliases", alias), _unknown(name, known)
            elif (trail := _trail(alias, named))[-1] == alias == min(trail):
                yield (
                    ("aliases", alias),
                    f"leads back to itself: {' → '.join(map(_sources.quoted, trail))}",
                )

    @staticmethod
    def _versions_named(data: Mapping[str, Any]) -> Iterator[tuple[_sources.KeyPath, Any]]:
        """Where a version or an alias is named, and which; of tables whose values need not be valid."""
        yield ("default_version",), data.get("default_version")
        directory = _Table._prepared(data.get("directory"))  # noqa: SLF001 (of this module)
        if isinstance(directory, Mapping):
            yield ("directory", "version"), directory.get("version")
        listed = data.get("tenants")
        tables = [(("tenants", key), table) for key, table in listed.items()] if isinstance(listed, Mapping) else []
        for path, table in (*tables, (("tenant_template",), data.get("tenant_template"))):
            named = table.get("version") if isinstance(table, Mapping) else getattr(table, "version", None)
            for name in named if isinstance(named, (list, tuple)) else (named,):
                yield (*path, "version"), name

    @field_validator("directory")
    @classmethod
    def _may_listen(cls, directory: DirectoryPolicy | None, info: ValidationInfo) -> DirectoryPolicy | None:
        """One connection listens to the table for as long as the router lives; another one is to be left."""
        if directory is not None and like_connection_string(directory.table):
            raise ValueError(f"its table is {_MISPLACED}")
        if directory is None or directory.version is None:
            return directory
        data = info.data
        version = data.get("versions", {}).get(_trail(directory.version, data.get("aliases", {}))[-1])
        limits = {key: data.get(key) for key in ("max_connections", "max_connections_per_server", "max_pools")}
        limits["pool.max_size of that version"] = None if version is None else version.pool.max_size
        for name, limit in limits.items():
            if limit is not None and limit < 2:  # noqa: PLR2004 (one that listens, one that serves)
                raise ValueError(f"listens over a connection of its own, and {name} is {limit}: give it at least 2")
        return directory

    @field_validator("tenants", mode="wrap")
    @classmethod
    def _listed_apart(cls, tenants: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """Validate one after the other: what is wrong with one hides nothing of the next."""
        if not isinstance(tenants, Mapping):
            return handler(tenants)
        made: dict[str, TenantSettings] = {}
        faults: list[_sources.Fault] = []
        for key, table in tenants.items():
            try:
                made |= handler({key: table})
            except ValidationError as error:
                faults += [(details["loc"], cls._in_words(details)) for details in error.errors(include_url=False)]
            else:
                faults += [((key,), text) for text in _listing_faults(key, made[key], info.data)]
        if faults:
            raise _error(cls.__name__, faults)
        return made

    @field_validator("tenant_template")
    @classmethod
    def _others_apart(cls, template: TenantSettings | None, info: ValidationInfo) -> TenantSettings | None:
        if template is not None:
            home = _home("", template, info.data)
            for problem in _pool_faults(home, info.data):
                raise ValueError(problem)
            # A directory may say the rest; one that is invalid is not in the data.
            if info.data.get("directory", True) is None and not home.row and not _names_tenant(home):
                raise ValueError("has no {tenant} anywhere, and no row: all tenants would be one")
        return template

    @model_validator(mode="after")
    def _each_alone(self) -> Self:
        faults: list[_sources.Fault] = []
        # With a directory, only that knows of whom else the template is.
        for tenant, other in twins(self.topology(), by_template=self.directory is None).items():
            text = f"lives where tenant {other!r} does: the two would be one. Give one of them another home"
            if other not in self.tenants:
                text = f"lives where tenant_template has {other!r}: the two would be one. Move it, or list both"
            faults.append((("tenants", tenant), text))
        if faults:
            raise _error(type(self).__name__, faults)
        return self

    def home(self, tenant: str, answer: Mapping[str, Any] | TenantSettings) -> Home:
        """Read what a directory answered.

        Args:
            tenant: The key that it was asked for.
            answer: The keys of ``[tenants.NAME]``; what is left out or ``None`` is as in ``[tenant_template]``, but
                for where that has tenants live, if servers of its own are named.

        Returns:
            Where the tenant lives.

        Raises:
            ConfigError: Something is wrong with the answer; every problem is listed.
        """
        faults: list[_sources.Fault]
        said = answer._written() if isinstance(answer, TenantSettings) else answer  # noqa: SLF001 (of this module)
        said = TenantSettings._prepared(said)  # noqa: SLF001
        try:
            settings = TenantSettings.model_validate(self._over_template(said))
        except ValidationError as error:
            faults = [(details["loc"], details["msg"]) for details in error.errors(include_url=False)]
        else:
            known = [*self.versions, *self.aliases]
            faults = [(("version",), _unknown(name, known)) for name in settings.version if name not in known]
            faults += [((), text) for text in _shared_faults(tenant, settings, dict(self))]
        if faults:  # outside of `except`, as in the constructor
            raise ConfigError(
                ": ".join(["directory", f"tenant {tenant!r}", *([_sources.dotted(path)] if path else []), text])
                for path, text in faults
            )
        home = _home(tenant, settings, dict(self))
        # What an answer names, it names on purpose; what the template does is alike for all but for {tenant}.
        if not any(map(said.get, PLACES)) and not home.row and not _names_tenant(home):
            places = ", ".join(PLACES)
            text = f"nothing says where it lives: give one of {places}, or a template with {{tenant}}"
            raise ConfigError([f"directory: tenant {tenant!r}: {text}"])
        return home

    def _over_template(self, answer: Any) -> Any:
        if not isinstance(answer, Mapping):
            return answer  # which is a fault
        said = {key: value for key, value in answer.items() if value is not None}
        left_open = {} if self.tenant_template is None else self.tenant_template._written()  # noqa: SLF001
        if any(map(said.get, SERVERS)):
            left_open = {key: value for key, value in left_open.items() if key not in (*SERVERS, "database", "user")}
        return {**left_open, **said}

    def topology(self) -> Topology:
        """What the settings describe.

        Returns:
            The topology: policies merged, aliases resolved to versions, one node for each host.
        """
        return Topology(
            versions=MappingProxyType({key: version.cluster(key) for key, version in self.versions.items()}),
            aliases=MappingProxyType({alias: _trail(alias, self.aliases)[-1] for alias in self.aliases}),
            default_version=self.default_version or (next(iter(self.versions)) if len(self.versions) == 1 else None),
            max_connections=self.max_connections,
            max_connections_per_server=self.max_connections_per_server,
            max_pools=self.max_pools,
            health=self.health,
            tokens=self.tokens.policy(),
            tenancy=self._tenancy(),
        )

    def _tenancy(self) -> Tenancy | None:
        if not self.tenants and self.tenant_template is None and self.tenancy is None and self.directory is None:
            return None
        data = dict(self)
        general = _tenancy_in(data)
        return Tenancy(
            homes=MappingProxyType({key: _home(key, tenant, data) for key, tenant in self.tenants.items()}),
            template=None if self.tenant_template is None else _home("", self.tenant_template, data),
            pattern=general.pattern,
            policy=general.policy(),
            directory=self.directory or DirectoryPolicy(),
        )


_OWN = "tenant"
"""How the names of tenants' own servers begin."""


def _tenancy_in(data: Mapping[str, Any]) -> TenancySettings:
    return data.get("tenancy") or _GENERAL


def _home(tenant: str, settings: TenantSettings, data: Mapping[str, Any]) -> Home:
    """Where a tenant lives, by its settings and those that hold for all; what is invalid of these is not there."""
    pool, read = data.get("pool", PoolPolicy()), data.get("read", ReadPolicy())
    return settings.home(f"{_OWN} {tenant}".rstrip(), _tenancy_in(data), pool, read)


def _names_tenant(home: Home) -> bool:
    return any("{tenant}" in name for name in names_of(home))


def _listing_faults(tenant: str, settings: TenantSettings, data: Mapping[str, Any]) -> Iterator[str]:
    pattern = _tenancy_in(data).pattern
    if not re.fullmatch(pattern, tenant):
        yield f"is no tenant's key: one looks like {pattern} (tenancy.pattern)"
    yield from _shared_faults(tenant, settings, data)


def _shared_faults(tenant: str, settings: TenantSettings, data: Mapping[str, Any]) -> Iterator[str]:
    """Why a tenant would share another's data, or cannot have the pools it is to have."""
    home = _home(tenant, settings, data)
    if not (home.cluster or home.database or home.user or home.schema or home.role or home.row):
        yield (
            "has nothing that keeps it apart from others: it needs a database, user, schema, role or row, or servers "
            "of its own (primary or nodes)"
        )
    yield from _pool_faults(home, data)
    try:
        for version in sorted(_lived_in(home, data)):
            rendered(home, tenant, version)
    except Misnamed as error:
        yield str(error)


def _pool_faults(home: Home, data: Mapping[str, Any]) -> Iterator[str]:
    yield from _at_odds(home.policy)
    for version in sorted(_lived_in(home, data)):
        pool = home.cluster.pool if home.cluster else data["versions"][version].pool
        if home.policy.min_size > pool.max_size:
            yield f"min_size is {home.policy.min_size}, more than pool.max_size, which is {pool.max_size}"
            break


def _lived_in(home: Home, data: Mapping[str, Any]) -> set[str]:
    versions: Mapping[str, VersionSettings] = data.get("versions", {})
    aliases: Mapping[str, str] = data.get("aliases", {})
    return {_trail(name, aliases)[-1] for name in home.versions or versions} & versions.keys()


def _trail(alias: str, aliases: Mapping[str, str]) -> list[str]:
    """``alias`` and what it leads to, down to a version; in a circle, to the first that comes again."""
    trail = [alias]
    while (name := aliases.get(trail[-1])) is not None:
        trail.append(name)
        if name in trail[:-1]:
            break
    return trail


def _unknown(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    hint = f"did you mean {_sources.quoted(near)}?" if near else f"known: {', '.join(map(_sources.quoted, known))}"
    return f"names no version or alias; {hint}"
