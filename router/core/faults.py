"""A fault of the settings as a value, and how the keys that lead to it are written."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

KeyPath = tuple[str | int, ...]


class Fault(NamedTuple):
    """One thing that is wrong.

    Attributes:
        path: The keys that lead to it, from the top level of the settings down.
        text: What is wrong there; nothing secret.
    """

    path: KeyPath
    text: str


def dotted(path: KeyPath) -> str:
    """Write a key's path as TOML does, with an index in brackets.

    Args:
        path: The keys, from the top level down.

    Returns:
        Such as ``versions."2026-11".replicas[0]``.
    """
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{quoted(key)}"
    return text.removeprefix(".") or "the top level"


def quoted(key: str) -> str:
    """Write a key as TOML does, unless it looks like a connection string in the wrong place.

    Args:
        key: The key.

    Returns:
        The key, in quotes where it needs them.
    """
    if re.search(r"://|[@=]", key):
        return '"…"'
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
