"""Writes what is made from the settings' models: the JSON schema for editors, and the table in docs/settings.md.

Usage: python tools/generate.py [--check]

With --check nothing is written; the exit code says whether the files are up to date.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from router.settings import RouterSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "config" / "router.schema.json"
EXAMPLE, PACKAGED = ROOT / "config/router.toml", ROOT / "router/cli/router.toml"  # `router init` writes the latter
PAGE = ROOT / "docs" / "settings.md"

BEGIN = "<!-- keys: written by tools/generate.py -->\n"
END = "<!-- end of keys -->\n"

Json = dict[str, Any]


class Row(NamedTuple):
    """One key of the settings.

    Attributes:
        key: Its path in a file; ``NAME`` stands for what the user chooses.
        kind: What its value is.
        default: Its default as TOML; empty when it has none that is one value.
        meaning: Its description.
    """

    key: str
    kind: str
    default: str
    meaning: str

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "ROUTER_" + self.key.replace(".", "__").upper()


def options(part: Json, schema: Json) -> list[Json]:
    """What ``part`` of a schema may be, but null: references resolved, alternatives side by side."""
    if "$ref" in part:
        return options(schema["$defs"][part["$ref"].removeprefix("#/$defs/")], schema)
    if "anyOf" in part:
        return [option for one in part["anyOf"] for option in options(one, schema)]
    return [part] if part["type"] != "null" else []


def kind(part: Json) -> str:
    """What a value is, in words: ``integer ≥ 1``."""
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    words = {"object": "table", "array": "list", "boolean": "true or false"}
    word = str(part.get("format", words.get(part["type"], part["type"])))
    bounds = {"minimum": "≥", "exclusiveMinimum": ">"}
    return word + "".join(f" {sign} {part[bound]}" for bound, sign in bounds.items() if bound in part)


def rows(schema: Json) -> list[Row]:
    """Every key, in the order of the models.

    Args:
        schema: Of the settings.

    Returns:
        One row a key; the keys of a table that stands in several places are listed at the first.
    """
    seen: list[Json] = []

    def walk(part: Json, path: str) -> Iterator[Row]:
        for table in options(part, schema):
            if table["type"] != "object" or table in seen:
                continue
            seen.append(table)
            inner = {key: below for key, below in table.get("properties", {}).items() if key != "$schema"}
            if table.get("additionalProperties"):
                inner["NAME"] = table["additionalProperties"]
            for key, below in inner.items():
                found = options(below, schema)
                default = below.get("default")
                yield Row(
                    path + key,
                    " or ".join(dict.fromkeys(map(kind, found))),
                    "" if default is None or isinstance(default, (dict, list)) else json.dumps(default),
                    below.get("description") or found[-1]["description"],
                )
                yield from walk(below, f"{path}{key}.")

    return list(walk(schema, ""))


def table(schema: Json) -> str:
    """The keys as a table in Markdown."""
    lines = ["| key | variable | type | default | meaning |", "|---|---|---|---|---|"]
    lines += [
        f"| `{row.key}` | `{row.variable}` | {row.kind} | {f'`{row.default}`' if row.default else ''} | {row.meaning} |"
        for row in rows(schema)
    ]
    return "\n".join(lines) + "\n"


def wanted() -> dict[Path, str]:
    """What each generated file should hold."""
    schema = RouterSettings.model_json_schema()
    page = PAGE.read_text(encoding="utf-8")
    between = re.compile(f"(?<={re.escape(BEGIN)}).*?(?={re.escape(END)})", re.DOTALL)
    return {
        SCHEMA: json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        PAGE: between.sub(lambda _: table(schema), page, count=1),
        PACKAGED: EXAMPLE.read_text(encoding="utf-8"),
    }


def main(arguments: list[str]) -> int:
    """Write or check every generated file.

    Args:
        arguments: Empty, or ``["--check"]``.

    Returns:
        The exit code: 0 when all is well, 1 when ``--check`` found a file out of date, 2 for another argument.
    """
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    stale = {
        path: text for path, text in wanted().items() if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    for path, text in stale.items():
        if arguments:
            print(f"{path.relative_to(ROOT)}: out of date; run `make generate`")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return bool(arguments and stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
