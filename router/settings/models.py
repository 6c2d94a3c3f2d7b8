"""All settings of a router, and the topology that they describe."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from inspect import getdoc
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Self, cast

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, InitSettingsSource, SettingsConfigDict

from router._first_use import first_use
from router.core.errors import ConfigError, like_connection_string, masked
from router.core.names import InvalidName, names_of, rendered
from router.core.policies import DirectoryPolicy, Foreign, HealthPolicy, PoolPolicy, ReadPolicy, TokenPolicy
from router.core.resolve import same_homes
from router.core.topology import Home, Tenancy, Topology
from router.settings import files, sources
from router.settings.servers import PLACES, SERVERS, Key, VersionSettings
from router.settings.table import Directory, Health, Pool, Read, Table, about, validation_error
from router.settings.tenants import GENERAL, TenancySettings, TenantSettings, at_odds
from router.settings.words import MISPLACED, Fault, KeyPath, dotted, quoted, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_settings import (
        DotEnvSettingsSource,
        EnvSettingsSource,
        PydanticBaseSettingsSource,
        SecretsSettingsSource,
    )


KEY_LENGTH = 16
"""The fewest characters of a key that signs tokens."""


def _long_enough(key: SecretStr) -> SecretStr:
    if len(key) < KEY_LENGTH:
        raise ValueError(f"must have at least {KEY_LENGTH} characters")
    return key


class TokenSettings(Table):
    """How the tokens of sessions are made and read."""

    key: Annotated[SecretStr, AfterValidator(_long_enough)] | None = Field(
        default=None, description=about(TokenPolicy).get("key")
    )
    foreign: Foreign = Field(default="ignore", description=about(TokenPolicy).get("foreign"))

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


class RouterSettings(BaseSettings, Table):
    """All settings of a router.

    Sources, strongest first: arguments, ``ROUTER_*`` environment variables, ``.env``, a directory of secrets
    (``ROUTER_SECRETS_DIR``), the file named by ``ROUTER_CONFIG`` or else ``router.toml`` in the working directory. If
    none of them has a version, ``DATABASE_URL`` is one, ``default``. ``docs/settings.md`` lists every key.

    Raises:
        ConfigError: Something is wrong with the settings; every problem is listed.
    """

    model_config = SettingsConfigDict(
        case_sensitive=True,  # names reach us as written, for errors; `sources` compares them in lower case
        env_prefix=sources.PREFIX,
        env_file=_ENV_FILE,
        env_file_encoding="utf-8-sig",  # some editors begin a file with a byte order mark
        env_ignore_empty=True,
        title="Settings of psycopg-router",
        json_schema_extra=_schema_root,
    )

    default_version: Key | None = Field(
        default=None,
        description="The version or alias for requests that name none; left out, it is the only version that there is, "
        "and with several those requests are an error.",
    )
    max_connections: int = Field(default=200, ge=1, description=about(Topology).get("max_connections"))
    max_connections_per_server: int | None = Field(
        default=None, ge=1, description=about(Topology).get("max_connections_per_server")
    )
    max_pools: int = Field(default=100, ge=1, description=about(Topology).get("max_pools"))
    pool: Pool = Field(default=PoolPolicy(), description="How every pool behaves; a version may differ.")
    read: Read = Field(default=ReadPolicy(), description="How reads are spread; a version may differ.")
    health: Health = Field(default=HealthPolicy(), description=about(Topology).get("health"))
    tokens: TokenSettings = Field(default=TokenSettings(), description=about(Topology).get("tokens"))
    versions: dict[Key, VersionSettings] = Field(default={}, description="Every version, by key; at least one.")
    aliases: dict[Key, Annotated[Key, Field(description="A version, or another alias.")]] = Field(
        default={}, description="Other names for versions."
    )
    tenancy: TenancySettings | None = Field(default=None, description="What holds for all tenants.")
    directory: Directory | None = Field(
        default=None, description=(getdoc(DirectoryPolicy) or "").partition("\n")[0] or None
    )
    tenants: dict[Key, TenantSettings] = Field(default={}, description="Tenants, by key.")
    tenant_template: TenantSettings | None = Field(
        default=None,
        description="Where tenants live that are not listed; with `[directory]`, what its answers leave open.",
    )

    def __init__(self, **values: Any) -> None:
        with first_use:
            TenantSettings.model_rebuild()
            type(self).model_rebuild()
        layers = sources.Layers(type(self).model_fields)
        faults: list[Fault] = []
        env_file = values.setdefault(
            "_env_file", os.environ.get("ROUTER_ENV_FILE") or self.model_config.get("env_file")
        )
        if env_file == _ENV_FILE:
            layers.may_be_foreign(_ENV_FILE, _WITHOUT_ENV_FILE)
        try:
            super().__init__(**values, _layers=layers)
        except ValidationError as error:
            faults = [(details["loc"], details["msg"]) for details in error.errors(include_url=False)]
        except OSError as error:  # the other files are read by `files`
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
        layers: sources.Layers = arguments.pop("_layers")
        load_file: bool | Path | None = arguments.pop("_config_file", True)
        environment = cast("EnvSettingsSource", env_settings).env_vars
        dotenv = cast("DotEnvSettingsSource", dotenv_settings)
        written = sources.variables(dotenv.env_vars, lambda _: str(dotenv.env_file))
        exported = sources.variables(environment, lambda name: f"environment variable {name}")
        named = {variable.key: Path(variable.text) for variable in (*written, *exported)}
        file = named.get("config") if load_file is True else load_file
        if load_file is True and file is None and Path(_FILE).is_file():
            file = Path(_FILE)
            layers.may_be_foreign(_FILE, _WITHOUT_FILE)
        if file:
            layers.add_table(files.read_file(file), str(file))
        directories = cast("SecretsSettingsSource", file_secret_settings).secrets_dir or named.get("secrets_dir") or ()
        for directory in (directories,) if isinstance(directories, (str, Path)) else directories:
            layers.add_variables(files.secret_files(Path(directory)), arguments)
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
            general, own = (Table._prepared(table.get(section, {})) for table in (data, version))  # noqa: SLF001
            if isinstance(general, Mapping) and isinstance(own, Mapping):
                inherited[section] = {**general, **own}
        return {**version, **inherited}

    @classmethod
    def _faults(cls, data: Mapping[str, Any]) -> Iterator[Fault]:
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
                yield path, unknown(name, known)

    @staticmethod
    def _alias_faults(versions: Mapping[str, Any], aliases: Mapping[str, Any]) -> Iterator[Fault]:
        known = [*versions, *aliases]
        named = {alias: name for alias, name in aliases.items() if isinstance(name, str)}
        for alias, name in named.items():
            if alias in versions:
                yield ("aliases", alias), "is the key of a version too: one of them needs another"
            elif name not in known and not like_connection_string(name):
                yield ("aliases", alias), unknown(name, known)
            elif (trail := _trail(alias, named))[-1] == alias == min(trail):
                yield (
                    ("aliases", alias),
                    f"leads back to itself: {' → '.join(map(quoted, trail))}",
                )

    @staticmethod
    def _versions_named(data: Mapping[str, Any]) -> Iterator[tuple[KeyPath, Any]]:
        """Where a version or an alias is named, and which; of tables whose values need not be valid."""
        yield ("default_version",), data.get("default_version")
        directory = Table._prepared(data.get("directory"))  # noqa: SLF001 (of this module)
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
            raise ValueError(f"its table is {MISPLACED}")
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
        faults: list[Fault] = []
        for key, table in tenants.items():
            try:
                made |= handler({key: table})
            except ValidationError as error:
                faults += [(details["loc"], cls._in_words(details)) for details in error.errors(include_url=False)]
            else:
                faults += [((key,), text) for text in _listing_faults(key, made[key], info.data)]
        if faults:
            raise validation_error(cls.__name__, faults)
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
        faults: list[Fault] = []
        # With a directory, only that knows of whom else the template is.
        for tenant, other in same_homes(self.topology(), by_template=self.directory is None).items():
            text = f"lives where tenant {other!r} does: the two would be one. Give one of them another home"
            if other not in self.tenants:
                text = f"lives where tenant_template has {other!r}: the two would be one. Move it, or list both"
            faults.append((("tenants", tenant), text))
        if faults:
            raise validation_error(type(self).__name__, faults)
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
        faults: list[Fault]
        said = answer._written() if isinstance(answer, TenantSettings) else answer  # noqa: SLF001 (of this module)
        said = TenantSettings._prepared(said)  # noqa: SLF001
        try:
            settings = TenantSettings.model_validate(self._over_template(said))
        except ValidationError as error:
            faults = [(details["loc"], details["msg"]) for details in error.errors(include_url=False)]
        else:
            known = [*self.versions, *self.aliases]
            faults = [(("version",), unknown(name, known)) for name in settings.version if name not in known]
            faults += [((), text) for text in _shared_faults(tenant, settings, dict(self))]
        if faults:  # outside of `except`, as in the constructor
            raise ConfigError(
                ": ".join(["directory", f"tenant {tenant!r}", *([dotted(path)] if path else []), text])
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
    return data.get("tenancy") or GENERAL


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
    except InvalidName as error:
        yield str(error)


def _pool_faults(home: Home, data: Mapping[str, Any]) -> Iterator[str]:
    yield from at_odds(home.policy)
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
