"""``router init``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from router.cli._common import BAD_USAGE, fail
from router.core.errors import like_connection_string


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("router.toml"),
    *,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")] = False,
) -> None:
    """Write a commented settings file to start from.

    \b
    router init
    router init config/router.toml
    """  # noqa: D301  (\b keeps the lines as they are)
    if path.suffix != ".toml" or like_connection_string(str(path)):
        fail(f"{path}: the starter file is TOML: give a name that ends in .toml", BAD_USAGE)
    text = files("router.cli").joinpath("router.toml").read_bytes()
    try:
        with path.open("wb" if force else "xb") as file:
            file.write(text)
    except FileExistsError:
        fail(f"{path} exists: nothing was written; --force overwrites it", BAD_USAGE)
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}")
    option = "" if path == Path("router.toml") else f" --config {path}"  # which is found
    print(f"wrote {path}: put your servers in, then run: router check{option}")
