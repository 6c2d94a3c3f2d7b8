"""What the commands share: their options, how settings are read, how errors are shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeAlias

import typer

from router import RouterSettings
from router.core.errors import ConfigError, like_connection_string

FAILED = 1
BAD_USAGE = 2

Config: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="PATH", help="Settings: TOML, YAML or JSON.", show_default="ROUTER_CONFIG or router.toml"
    ),
]
Version: TypeAlias = Annotated[
    str | None,
    typer.Option("--version", metavar="KEY", help="A version or an alias.", show_default="default_version"),
]
Tenant: TypeAlias = Annotated[
    str | None, typer.Option("--tenant", metavar="KEY", help="A tenant.", show_default="none")
]
ReadOnly: TypeAlias = Annotated[bool, typer.Option("--read-only", help="For reading; without it, for writing.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def load(config: Path | None) -> RouterSettings:
    """Read the settings: a file with the environment on top, or what the environment says.

    Args:
        config: The file; ``None`` leaves it to ``ROUTER_CONFIG``, or ``router.toml`` in the working directory.

    Returns:
        The settings.

    Raises:
        ConfigError: Something is wrong with them.
    """
    return RouterSettings() if config is None else RouterSettings.load(config)


def fail(message: object, code: int = FAILED) -> NoReturn:
    """Say what is wrong, and end the command.

    Args:
        message: What is wrong, and what to do.
        code: The exit code.

    Raises:
        typer.Exit: Always.
    """
    show_error(message)
    raise typer.Exit(code)


def show_error(error: object) -> None:
    """Show what is wrong: in lines on stderr, or with --json as JSON on stdout, where a result would stand.

    Args:
        error: An exception, or what is wrong in words.
    """
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]  # what is after it is a command's
    if "--json" in own:
        problems = error.problems if isinstance(error, ConfigError) else (str(error),)
        print_json({"ok": False, "problems": [concealed(problem) for problem in problems]})
    else:
        print(concealed(error), file=sys.stderr)


def concealed(message: object) -> str:
    """Hide arguments that look like connection strings.

    Args:
        message: An error, which may quote the arguments, or paths made of them.

    Returns:
        The error without them.
    """
    text = str(message)
    for argument in sys.argv[1:]:
        for part in (argument, argument.partition("=")[2]):
            if like_connection_string(part):
                for form in (part, str(Path(part)), repr(part)[1:-1]):
                    text = text.replace(form, "…")
    return text


def print_json(value: Any) -> None:
    """Print one JSON value on stdout.

    Args:
        value: The value.
    """
    print(json.dumps(value, indent=2, ensure_ascii=False))
