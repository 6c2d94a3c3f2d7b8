"""Every fault of the settings in words: where it stands, and what is wrong there; never what somebody wrote there."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from router.core.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

KeyPath = tuple[str | int, ...]
Fault = tuple[KeyPath, str]  # where it is, and what is wrong there

MISPLACED = "a connection string, which goes into `primary` or `nodes`"


def in_words(details: Any, keys: Collection[str], as_string: str | None) -> str:
    """Say what pydantic found.

    Args:
        details: One of the errors of its ``ValidationError``.
        keys: Those that the table has.
        as_string: What a plain string in the table's place stands for; ``None`` if it may not be one.

    Returns:
        The fault's text.
    """
    text: str
    match details["type"]:
        case "in_words":
            text = details["msg"]
        case "extra_forbidden":
            near = nearest(str(details["loc"][-1]), keys)
            text = "unknown key" + (f"; did you mean {near}?" if near else "")
        case "missing":
            text = "is missing"
        case "model_type" | "dict_type":
            text = f"must be {f'{as_string} or ' if as_string else ''}a table"
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


def unknown(name: str, known: Iterable[str]) -> str:
    """Say that a name is that of no version, and which it may have been meant to be.

    Args:
        name: What was written.
        known: The keys of all versions and aliases.

    Returns:
        The fault's text.
    """
    near = nearest(name, known)
    hint = f"did you mean {quoted(near)}?" if near else f"known: {', '.join(map(quoted, known))}"
    return f"names no version or alias; {hint}"


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
