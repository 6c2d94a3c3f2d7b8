"""All settings of a router, and the topology that they describe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from inspect import getdoc
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, SettingsConfigDict

from router._first_use import first_use
from router.core.errors import ConfigError, masked
from router.core.faults import Fault, dotted
from router.core.names import OWN_SERVERS
from router.core.policies import DirectoryPolicy, HealthPolicy, PoolPolicy, ReadPolicy
from router.core.topology import TENANT_PATTERN, Home, Tenancy, Topology
from router.settings.servers import PLACES, Key, VersionSettings, as_servers
from router.settings.table import Directory, Health, Pool, Read, Table, about, apart, as_table, without
from router.settings.tenants import TenancySettings, TenantSettings, as_written, over_template, policy_of
from router.settings.tokens import TokenSettings
from router.settings.variables import ENV_FILE, PREFIX, WITHOUT_ENV_FILE
from router.settings.words import NO_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import ModelWrapValidatorHandler
    from pydantic_settings import PydanticBaseSettingsSource

    from router.settings.layers import Layers

READERS = ("router.core.validate", "router.settings.layers", "router.settings.sources")
"""What settings are read with: imported when the first are made, so that ``import router`` need not wait for it."""


def _schema_root(schema: dict[str, Any]) -> None:
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["description"] = "A settings file of psycopg-router."
    schema["properties"] = {
        "$schema": {"type": "string", "description": "This schema, for editors."},
        **schema["properties"],
    }


class RouterSettings(BaseSettings, Table):
    """All settings of a router.

    The sources are, strongest first: arguments, ``ROUTER_*`` environment variables, ``.env``, a directory of secrets
    (``ROUTER_SECRETS_DIR``), and the file named by ``ROUTER_CONFIG`` or else ``router.toml`` in the working directory.
    If none of them has a version, ``DATABASE_URL`` becomes the version ``default``. ``docs/settings.md`` lists every
    key.

    Raises:
        ConfigError: Something is wrong with the settings; the error lists every problem.
    """

    model_config = SettingsConfigDict(
        case_sensitive=True,  # names reach us as written, for errors; `variables` compares them in lower case
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        env_file_encoding="utf-8-sig",  # some editors begin a file with a byte order mark
        env_ignore_empty=True,
        title="Settings of psycopg-router",
        json_schema_extra=_schema_root,
    )

    default_version: Key | None = Field(
        default=None,
        description="The version or alias for requests that name none; left out, it is the only version, and if there "
        "are several, such requests are an error.",
    )
    max_connections: int = Field(default=200, ge=1, description=about(Topology).get("max_connections"))
    max_connections_per_server: int | None = Field(
        default=None, ge=1, description=about(Topology).get("max_connections_per_server")
    )
    max_pools: int = Field(default=100, ge=1, description=about(Topology).get("max_pools"))
    pool: Pool = Field(default=PoolPolicy(), description="How every pool behaves; a version may override it.")
    read: Read = Field(default=ReadPolicy(), description="How reads are spread; a version may override it.")
    health: Health = Field(default=HealthPolicy(), description=about(Topology).get("health"))
    tokens: TokenSettings = Field(default=TokenSettings.model_construct(), description=about(Topology).get("tokens"))
    versions: dict[Key, VersionSettings] = Field(
        default={}, description="All versions, by key; at least one is needed."
    )
    aliases: dict[Key, Annotated[Key, Field(description="A version, or another alias.")]] = Field(
        default={}, description="Other names for versions."
    )
    tenancy: TenancySettings | None = Field(default=None, description="The settings of all tenants.")
    directory: Directory | None = Field(
        default=None, description=(getdoc(DirectoryPolicy) or "").partition("\n")[0] or None
    )
    tenants: dict[Key, TenantSettings] = Field(default={}, description="Tenants, by key.")
    tenant_template: TenantSettings | None = Field(
        default=None,
        description="Where tenants live that are not listed; with `[directory]`, values that its answers leave out.",
    )

    def __init__(self, **values: Any) -> None:
        with first_use:
            TenantSettings.model_rebuild()
            type(self).model_rebuild()
            for name in READERS:
                import_module(name)
        from router.settings.layers import Layers

        layers = Layers(type(self).model_fields)
        faults: list[Fault] = []
        env_file = values.setdefault(
            "_env_file", os.environ.get("ROUTER_ENV_FILE") or self.model_config.get("env_file")
        )
        if env_file == ENV_FILE:
            layers.may_be_foreign(ENV_FILE, WITHOUT_ENV_FILE)
        try:
            super().__init__(**values, _layers=layers)
        except ValidationError as error:
            faults = [Fault(details["loc"], details["msg"]) for details in error.errors(include_url=False)]
        except OSError as error:  # the other files are read by `files`
            layers.problems.append(layers.line(masked(str(env_file)), f"cannot be read: {error.strerror}"))
        except UnicodeDecodeError:
            layers.problems.append(layers.line(masked(str(env_file)), "is not UTF-8 text"))
        if faults or layers.problems:  # outside of `except`: the error must not carry pydantic's, which has the input
            raise ConfigError([*layers.problems, *layers.lines(faults)])

    @classmethod
    def load(cls, path: str | os.PathLike[str], **values: Any) -> Self:
        """Read the settings from a file; the other sources override it.

        Args:
            path: A TOML, YAML or JSON file, by its suffix; ``ROUTER_CONFIG`` and ``router.toml`` are ignored.
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
        from router.settings import sources

        arguments = dict(init_settings())
        layers: Layers = arguments.pop("_layers")
        file: Path | bool | None = arguments.pop("_config_file", True)
        sources.read(
            layers,
            arguments,
            file=file,
            environment=env_settings,
            dotenv=dotenv_settings,
            secrets=file_secret_settings,
        )
        return (InitSettingsSource(settings_cls, init_kwargs=layers.values()),)

    @classmethod
    def _settings_log_debug(cls, states: dict[str, dict[str, Any]]) -> None:
        """Log nothing: pydantic-settings would log every value, and with them the passwords."""

    @classmethod
    def _prepared(cls, data: Any) -> Any:
        versions = data.get("versions") if isinstance(data, Mapping) else None
        if not isinstance(versions, Mapping):
            return data
        general = {section: as_table(data.get(section, {})) for section in ("pool", "read")}
        return {**data, "versions": {key: _inheriting(version, general) for key, version in versions.items()}}

    @classmethod
    def _faults(cls, data: Mapping[str, Any]) -> Iterator[Fault]:
        if not data.get("versions"):
            yield Fault(("versions",), NO_VERSION)

    @classmethod
    def _read(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> tuple[Self | None, list[Fault]]:
        """Read all that is readable, and validate that as a whole, too, so that no problem hides another."""
        made, faults = super()._read(data, handler)
        last = faults
        while made is None and (rest := without(data, [fault.path for fault in last])) != data:
            data = rest
            made, last = super()._read(data, handler)
            faults += apart(last, faults)
        if made is not None:
            from router.core import validate

            unread = [fault.path for fault in faults]
            described = cls._described(made)
            faults += validate.faults(described, directory=made.directory is not None, unread=unread)
        return made, faults

    def home(self, tenant: str, answer: Mapping[str, Any] | TenantSettings) -> Home:
        """Read a directory's answer.

        Args:
            tenant: The key that the directory was asked for.
            answer: The keys of ``[tenants.NAME]``. A key that is left out or ``None`` has its value from
                ``[tenant_template]``; if the answer names servers of its own, the template's database, user and servers
                do not apply.

        Returns:
            Where the tenant lives.

        Raises:
            ConfigError: Something is wrong with the answer; the error lists every problem.
        """
        from router.core import validate

        said = as_written(answer)
        home = None
        try:
            home = self._home(tenant, TenantSettings.model_validate(over_template(said, self.tenant_template)))
        except ValidationError as error:
            faults = [Fault(details["loc"], details["msg"]) for details in error.errors(include_url=False)]
        else:
            faults = validate.tenant_faults(self._versions(), tenant, home)
            # An answer names a place on purpose; a template gives all tenants the same one, unless it has {tenant}.
            if not (faults or any(map(said.get, PLACES)) or validate.is_apart(home)):
                places = ", ".join(PLACES)
                text = f"nothing says where it lives: give one of {places}, or a template with {{tenant}}"
                faults = [Fault((), text)]
        if home is None or faults:  # outside of `except`, as in the constructor
            raise ConfigError(
                ": ".join(["directory", f"tenant {tenant!r}", *([dotted(path)] if path else []), text])
                for path, text in faults
            )
        return home

    def topology(self) -> Topology:
        """Make the topology that the settings describe.

        Returns:
            The topology: policies merged, aliases resolved to versions, one node for each host.
        """
        from router.core import validate

        return validate.resolved(self._described())

    def _described(self) -> Topology:
        """Make the topology, with aliases as written."""
        return self._versions()._replace(
            default_version=self.default_version or (next(iter(self.versions)) if len(self.versions) == 1 else None),
            max_connections=self.max_connections,
            max_connections_per_server=self.max_connections_per_server,
            max_pools=self.max_pools,
            health=self.health,
            tokens=self.tokens.policy(),
            tenancy=self._tenancy(),
        )

    def _versions(self) -> Topology:
        """Make the part of the topology that has the versions."""
        clusters = {key: version.cluster(key) for key, version in self.versions.items()}
        return Topology(MappingProxyType(clusters), MappingProxyType(self.aliases))

    def _tenancy(self) -> Tenancy | None:
        if not self.tenants and self.tenant_template is None and self.tenancy is None and self.directory is None:
            return None
        return Tenancy(
            homes=MappingProxyType({key: self._home(key, tenant) for key, tenant in self.tenants.items()}),
            template=None if self.tenant_template is None else self._home("", self.tenant_template),
            pattern=TENANT_PATTERN if self.tenancy is None else self.tenancy.pattern,
            policy=policy_of(self.tenancy),
            directory=self.directory or DirectoryPolicy(),
        )

    def _home(self, tenant: str, settings: TenantSettings) -> Home:
        name = f"{OWN_SERVERS} {tenant}".rstrip()
        return settings.home(name, policy_of(self.tenancy), self.pool, self.read)


def _inheriting(version: Any, general: Mapping[str, Any]) -> Any:
    """``version`` with the keys of ``[pool]`` and ``[read]`` that it does not set itself."""
    version = as_servers(version)
    if not isinstance(version, Mapping):
        return version
    own = {section: as_table(version.get(section, {})) for section in general}
    merged = {
        section: {**table, **own[section]}
        for section, table in general.items()
        if isinstance(table, Mapping) and isinstance(own[section], Mapping)
    }
    return {**version, **merged}
