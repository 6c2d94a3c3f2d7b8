"""Where settings come from, in order: a file, secrets, ``.env``, the environment, arguments.

pydantic-settings reads the environment and ``.env``. The rest it cannot do for us, for it takes one source after the
other, from the strongest to the weakest, and each for itself:

- A variable's name is matched with the keys that the user chose in weaker sources (``2026_11`` is ``2026-11``).
- A connection string and the table it is short for merge, and a password goes with the connection string beside it.
- Each fault names the source of its value, all faults are told at once, and none shows a value: its readers of TOML,
  YAML, JSON and secrets stop at the first problem, pass over a file that is missing, and quote what they read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from router.settings.files import read_file, secret_files
from router.settings.variables import variables

if TYPE_CHECKING:
    from pydantic_settings import (
        DotEnvSettingsSource,
        EnvSettingsSource,
        PydanticBaseSettingsSource,
        SecretsSettingsSource,
    )

    from router.settings.layers import Layers

"""What errors in ``.env`` add."""

FILE = "router.toml"
"""The file that is read if none is named, as `router init` writes it."""

WITHOUT_FILE = (
    "if this file belongs to another program, leave it out: "
    "ROUTER_CONFIG names another file, RouterSettings(_config_file=None) reads none"
)
"""What errors in that file add."""

URL = "DATABASE_URL"
"""What hosting platforms, and `router each`, call the one database that there is."""


def read(
    layers: Layers,
    arguments: dict[str, Any],
    *,
    file: Path | bool | None,
    environment: PydanticBaseSettingsSource,
    dotenv: PydanticBaseSettingsSource,
    secrets: PydanticBaseSettingsSource,
) -> None:
    """Read all sources, from the weakest to the strongest.

    Args:
        layers: What to merge them into.
        arguments: Those of the constructor that are settings.
        file: The file to read; ``None`` for none, ``True`` for the one that ``ROUTER_CONFIG`` names, or else
            ``router.toml`` if it is there.
        environment: pydantic-settings' source of the environment.
        dotenv: Its source of ``.env``, or of the file named instead.
        secrets: Its source of secrets, which may name directories.

    Raises:
        ConfigError: The file or a directory of secrets cannot be read.
    """
    env_file = str(cast("DotEnvSettingsSource", dotenv).env_file)
    written = variables(cast("DotEnvSettingsSource", dotenv).env_vars, lambda _: env_file)
    exported = variables(cast("EnvSettingsSource", environment).env_vars, lambda name: f"environment variable {name}")
    named = {variable.key: Path(variable.text) for variable in (*written, *exported)}
    if file is True:
        file = named.get("config")
        if file is None and Path(FILE).is_file():
            file = Path(FILE)
            layers.may_be_foreign(FILE, WITHOUT_FILE)
    if file:
        layers.add_table(read_file(Path(file)), str(file))
    directories = cast("SecretsSettingsSource", secrets).secrets_dir or named.get("secrets_dir") or ()
    for directory in (directories,) if isinstance(directories, (str, Path)) else directories:
        layers.add_variables(secret_files(Path(directory)), arguments)
    layers.add_variables(written, arguments)
    layers.add_variables(exported, arguments)
    layers.add_table(arguments, "argument")
    urls = [variable for variable in (*exported, *written) if variable.name == URL and _is_postgres(variable.text)]
    if urls and not layers.values().get("versions"):
        layers.add_table({"versions": {"default": urls[0].text}}, urls[0].source)


def _is_postgres(url: str) -> bool:
    return re.match(r"postgres(ql)?[+:]", url) is not None
