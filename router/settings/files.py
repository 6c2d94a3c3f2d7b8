"""The files that settings are read from: TOML, YAML and JSON, and directories of secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from router.core.errors import ConfigError, like_connection_string
from router.settings.variables import PREFIX, Variable

if TYPE_CHECKING:
    from pathlib import Path


def secret_files(directory: Path) -> list[Variable]:
    """Read a directory of secrets: one file a variable, named as in the environment; other files are left alone.

    Args:
        directory: Where Docker or Kubernetes mounts secrets.

    Returns:
        The variables, without the line break that ends a file.

    Raises:
        ConfigError: The directory or one of its files cannot be read.
    """
    _no_connection_string(directory, "ROUTER_SECRETS_DIR (or _secrets_dir=)")
    try:
        files = [
            path for path in sorted(directory.iterdir()) if path.name.upper().startswith(PREFIX) and path.is_file()
        ]
    except OSError as error:
        raise ConfigError([f"{directory}: the secrets directory cannot be read: {error.strerror}"]) from None
    return [Variable(path.name, _text(path).rstrip("\r\n"), f"secrets file {path}") for path in files]


def read_file(path: Path) -> Mapping[Any, Any]:
    """Read a settings file, as TOML, YAML or JSON by its suffix.

    Args:
        path: The file.

    Returns:
        Its top-level table.

    Raises:
        ConfigError: It cannot be read, or is not what its suffix says; file and line are named, no content.
    """
    _no_connection_string(path, "ROUTER_CONFIG (or --config)")
    suffix = path.suffix.lower()
    if suffix == ".toml":
        found = _toml(path)
    elif suffix in {".yaml", ".yml"}:
        found = _yaml(path)
    elif suffix == ".json":
        found = _json(path)
    else:
        raise ConfigError([f"{path}: the suffix must be .toml, .yaml, .yml or .json"])
    if not isinstance(found, Mapping):
        raise ConfigError([f"{path}: the top level must be a table of keys and values"])
    return found


def _no_connection_string(path: Path, named_by: str) -> None:
    """Show no password as the name of a file that is not there."""
    if like_connection_string(str(path)) and not path.exists():
        raise ConfigError(
            [f"{named_by}: is not a path but a connection string, which goes into ROUTER_VERSIONS__NAME__PRIMARY"]
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problem = f"{path}: cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        problem = f"{path}: is not UTF-8 text"
    raise ConfigError([problem])


def _toml(path: Path) -> Any:
    import tomllib

    text = _text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).rpartition(" (at ")
        what = re.sub(r"""\(.*\)|(["']).{3,}\1""", "…", what)  # a key, which may be a connection string
        problem = f"is not valid TOML: {what}", where.rstrip(")")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, tables without end
        problem = f"is not valid TOML ({type(error).__name__})", ""
    raise _bad_syntax(path, *problem)


def _json(path: Path) -> Any:
    text = _text(path)
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"is not valid JSON: {error.msg}", f"line {error.lineno}, column {error.colno}"
    except (ValueError, RecursionError) as error:
        problem = f"is not valid JSON ({type(error).__name__})", ""
    else:
        if isinstance(found, dict):
            found.pop("$schema", None)  # the only way to name it to an editor
        return found
    raise _bad_syntax(path, *problem)


def _yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigError([f"{path}: YAML needs PyYAML: pip install 'psycopg-router[yaml]'"]) from None
    text = _text(path)
    try:
        found = yaml.safe_load(text) or {}
        json.dumps(found, default=str, skipkeys=True)  # raises for an alias inside itself
    except yaml.YAMLError as error:
        # Its own words quote from the file: "found undefined alias 'hunter2'".
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    except (ValueError, RecursionError):  # a date that there is not, an alias inside itself
        where = ""
    else:
        return found
    raise _bad_syntax(path, "is not valid YAML (a value with special characters needs quotes)", where)


def _bad_syntax(path: Path, what: str, where: str) -> ConfigError:
    return ConfigError([f"{path}: {where + ': ' if where else ''}{what}"])
