"""What is wrong with a value, in our words: each fault of pydantic in its final form, without the value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router.core.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Collection

NO_VERSION = (
    "no version is given: `router init` writes a router.toml to start from (ROUTER_CONFIG or --config "
    "names another file); "
    "or set ROUTER_VERSIONS__NAME__PRIMARY, or DATABASE_URL, to a URI of PostgreSQL"
)
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
