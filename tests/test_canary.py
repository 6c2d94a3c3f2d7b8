"""A connection string in the wrong place: no error of the settings, no repr of what they made, shows its password."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from router import ConfigError, Router, RouterSettings, UnknownTenant, UnknownVersion
from tests.support import one_of_each

if TYPE_CHECKING:
    from collections.abc import Callable

CANARY = "hunter2canary"
FORMS = [
    f"postgresql://app:{CANARY}@db1/app",
    f"postgresql+psycopg://app:{CANARY}@db1/app",
    f"postgres://db1/app?user=app&password={CANARY}",
    f"host=db1 user=app password={CANARY}",
    f"app:{CANARY}@db1/app",
]
V1: dict[str, Any] = {"versions": {"v1": {"primary": "host=db1"}}}

# Tables, in each of which it becomes a key, and keys, each of which gets it for its value.
TABLES = (
    "", "versions", "versions.v1", "versions.v1.primary", "versions.v1.pool", "versions.v1.read", "aliases", "tenants",
    "tenants.acme", "tenant_template", "tenancy", "directory", "tokens", "health", "pool", "read",
)  # fmt: skip
KEYS = (
    "default_version", "max_connections", "versions", "versions.v1.pool", "versions.v1.primary.weight",
    "versions.v1.primary.pooler", "versions.v1.read.balance", "aliases", "aliases.live", "pool", "pool.max_size",
    "read", "health", "tokens", "tokens.foreign", "tenancy", "tenancy.pattern", "tenancy.pooling", "directory",
    "directory.version", "directory.table", "tenants", "tenants.acme.version", "tenants.acme.database",
    "tenants.acme.user", "tenants.acme.schema", "tenants.acme.role", "tenants.acme.row", "tenant_template.schema",
)  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.upper().startswith(("ROUTER_", "PG"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def shown(call: Callable[..., object], *arguments: Any, **values: Any) -> str:
    """Everything that a call lets see: its result, or its error with all that hangs on it."""
    try:
        found = call(*arguments, **values)
    except (ConfigError, UnknownVersion, UnknownTenant) as error:
        return "".join(traceback.format_exception(error)) + repr(error) + repr(error.args)
    return f"{found!r} {found}"


def nested(path: str, value: Any, into: dict[str, Any]) -> dict[str, Any]:
    """A copy of a table with one value more."""
    if not path:
        return {**into, **value} if isinstance(value, dict) else value
    key, _, below = path.partition(".")
    table = into.get(key)
    return {**into, key: nested(below, value, table if isinstance(table, dict) else {})}


@pytest.mark.parametrize("dsn", one_of_each(FORMS))
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("value", ["v1", {"primary": "host=db1"}, None], ids=["text", "table", "nothing"])
def test_as_a_key(table: str, dsn: str, value: Any) -> None:
    values = nested(table, {dsn: value}, V1)
    assert CANARY not in shown(RouterSettings, **values)
    for name, text in (("r.json", json.dumps(values)), ("r.yaml", yaml.safe_dump(values))):
        Path(name).write_text(text, encoding="utf-8")
        assert CANARY not in shown(RouterSettings.load, name)


@pytest.mark.parametrize("dsn", one_of_each(FORMS))
@pytest.mark.parametrize("key", KEYS)
def test_as_a_value(key: str, dsn: str) -> None:
    # A second tenant, whose key does not match the pattern.
    values = nested("tenants", {"acme": {"schema": "a"}, "!": {"schema": "b"}}, V1) if key.startswith("ten") else V1
    assert CANARY not in shown(RouterSettings, **nested(key, dsn, values))


@pytest.mark.parametrize("dsn", [FORMS[0], FORMS[3]])
@pytest.mark.parametrize("key", ["default_version", "versions.v1.primary", "aliases.live", "tenants.acme", "pool"])
def test_in_a_variable(key: str, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"ROUTER_{key.upper().replace('.', '__')}"
    for line in ("{}={}", "{}:{}", "{}{}", "{}__{}=1", "{} {}", "'{}{}'=1", '{}="{}', "{}={} {}"):
        Path("r.env").write_text(line.replace("{}", name, 1).replace("{}", dsn), encoding="utf-8")
        assert CANARY not in shown(RouterSettings, _env_file="r.env", **V1)
    for variable in (name, f"{name}__{dsn.replace('=', '-')}"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, dsn)
            assert CANARY not in shown(RouterSettings, **V1)


@pytest.mark.parametrize("dsn", FORMS)
@pytest.mark.parametrize("variable", ["ROUTER_CONFIG", "ROUTER_SECRETS_DIR", "ROUTER_ENV_FILE"])
def test_as_a_path(variable: str, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (dsn, f"{dsn}.toml"):
        assert CANARY not in shown(RouterSettings.load, path)
        assert CANARY not in shown(RouterSettings, _secrets_dir=path, **V1)
        monkeypatch.setenv(variable, path)
        assert CANARY not in shown(RouterSettings, **V1)


@pytest.mark.parametrize("dsn", FORMS)
@pytest.mark.parametrize(
    "text",
    [
        '[versions."{}"]\n[versions."{}"]\n',
        '"{}".x = 1\n["{}"]\n',
        'a = {"{}" = 1, "{}" = 2}',
        'versions = {v1 = "host=db1"}\n[versions."{}"]',
        '[[versions."{}"]]\n[versions."{}"]',
        "{}",
        "a = {}",
        'a = "{}',
        "[{}]",
    ],
)
def test_in_a_file_that_is_no_toml(text: str, dsn: str) -> None:
    Path("r.toml").write_text(text.replace("{}", dsn), encoding="utf-8")
    assert CANARY not in shown(RouterSettings.load, "r.toml")


@pytest.mark.parametrize(
    "text",
    [
        "versions: {v1: {primary: postgresql://app:a,%s,b@db1/app}}",  # YAML takes the commas for its own
        "versions: {v1: postgresql://app:a,%s,b@db1/app}",
        "versions: {v1: [postgresql://app:a,%s,b@db1/app]}",
        "versions:\n  v1: postgresql://app: %s@db1/app",
        "versions:\n  v1: postgresql://app:a %s: b@db1/app",
        "versions:\n  postgresql://app:%s@db1/app:",
        "versions: &%s\n  v1: *%s",
        "versions: !!%s x",
    ],
)
def test_in_a_file_that_yaml_reads_otherwise(text: str) -> None:
    Path("r.yaml").write_text(text.replace("%s", CANARY), encoding="utf-8")
    assert CANARY not in shown(RouterSettings.load, "r.yaml")


@pytest.mark.parametrize("dsn", FORMS)
def test_in_a_request(dsn: str) -> None:
    with Router(RouterSettings(**nested("tenants", {"acme": {"schema": "a"}}, V1))) as router:
        for call in (router.connection, router.explain, router.use):
            assert CANARY not in shown(call, version=dsn)
            assert CANARY not in shown(call, tenant=dsn)
        assert CANARY not in shown(router.each, lambda _, __: None, tenants=dsn)
        assert CANARY not in shown(router.each, lambda _, __: None, version=dsn)


def test_what_it_is_and_where_it_goes_is_said() -> None:
    dsn = FORMS[0]
    with pytest.raises(ConfigError) as caught:
        RouterSettings(versions={dsn: "host=db1"}, aliases={"live": dsn}, default_version=dsn)
    what = "is not a key but a connection string, which goes into `primary` or `nodes`"
    assert sorted(caught.value.problems) == [
        f"argument: aliases.live: {what}",
        f"argument: default_version: {what}",
        f'argument: versions."…": {what}',
    ]
    with pytest.raises(ConfigError) as caught:
        RouterSettings.load(dsn)
    goes_into = "ROUTER_VERSIONS__NAME__PRIMARY"
    assert caught.value.problems == (
        f"ROUTER_CONFIG (or --config): is not a path but a connection string, which goes into {goes_into}",
    )
