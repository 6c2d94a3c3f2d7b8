"""All sources of the settings merged key by key, each value with the source it came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from router.core.errors import nearest
from router.core.faults import dotted
from router.settings.variables import KEYED, RESERVED, Spellings, Variable, decoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from router.core.faults import Fault, KeyPath

_NAMED = 3  # how many variables of another program an error names


class _Leaf(NamedTuple):
    value: Any
    source: str


class Layers:
    """All sources in one tree, added from the weakest to the strongest.

    Attributes:
        problems: What could not be read, in words; the rest is merged all the same.
    """

    def __init__(self, sections: Iterable[str]) -> None:
        """Hold nothing yet.

        Args:
            sections: The keys of the top level.
        """
        self.problems: list[str] = []
        self._sections = frozenset(sections)
        self._hints: dict[str, str] = {}
        self._tree: dict[str, Any] = {}
        self._spellings = Spellings()

    def may_be_foreign(self, source: str, hint: str) -> None:
        """Note that a source was found, not named: it may belong to another program.

        Args:
            source: What it is called in errors.
            hint: What its errors add: how to do without it.
        """
        self._hints[source] = hint

    def add_table(self, table: Mapping[Any, Any], source: str) -> None:
        """Merge a nested table over what is there.

        Args:
            table: Nested mappings; anything else is a value.
            source: What to call it in an error.
        """
        self._merge(self._tree, table, source, ())

    def add_variables(self, variables: Iterable[Variable], keys_above: Mapping[str, Any]) -> None:
        """Merge flat variables over what is there; among them, the more deeply nested name is the stronger.

        Args:
            variables: Those that are not the router's are passed over.
            keys_above: A table from a stronger source: its version, alias and tenant keys can be named here too.
        """
        for section in KEYED:
            if isinstance(above := keys_above.get(section), Mapping):
                self._spellings.learn(section, above)
        for variable in sorted(self._own(variables), key=lambda variable: (variable.depth, variable.key)):
            try:
                path = self._spellings.path(variable.key)
                value = decoded(path, variable.text)
            except ValueError as error:
                self.problems.append(f"{variable.source}: {error}")
                continue
            for key in reversed(path):
                value = {key: value}
            self.add_table(value, variable.source)

    def values(self) -> dict[str, Any]:
        """Return the merged settings, as plain nested dicts."""
        return _plain(self._tree)

    def lines(self, faults: Sequence[Fault]) -> Iterator[str]:
        """Say in which source each fault is.

        Args:
            faults: What is wrong with :meth:`values`.

        Yields:
            One line a fault: its source, its keys, and what is wrong.
        """
        known = set(faults)
        for fault in faults:
            path = fault.path[:-1] if fault.path[-1:] == ("[key]",) else fault.path  # pydantic's mark of a key
            inner, depth = self._innermost(path)
            if depth < len(path) and fault._replace(path=path[2:]) in known:
                continue  # a version inherited it from [pool] or [read], where it is reported
            source = next(_sources(inner), "settings")
            if isinstance(inner, _Leaf) and inner.value is None and source.lower().endswith((".yaml", ".yml")):
                # In `{primary: postgresql://app:a,b@db/app}` YAML takes what is after the comma for a key.
                path = (*path[:-1], "=")  # which is not shown
            line = f"{dotted(path)}: {fault.text}"
            # A source that names keys further down is meant for us.
            yield self.line(source, line) if len(path) <= 1 else f"{source}: {line}"

    def line(self, source: str, problem: str) -> str:
        """Say what is wrong with a source, and how to do without it if it may be another program's.

        Args:
            source: What it is called.
            problem: What is wrong.

        Returns:
            One line.
        """
        hint = self._hints.get(source)
        return f"{source}: {problem}{f'; {hint}' if hint else ''}"

    def _own(self, variables: Iterable[Variable]) -> list[Variable]:
        """The variables that are settings, or are meant to be; what is wrong with the names of others is noted."""
        own: list[Variable] = []
        foreign: dict[str, list[str]] = {}
        for variable in variables:
            is_section = variable.section in self._sections
            if not variable.key or variable.key in RESERVED or (not is_section and variable.of_service()):
                continue
            if not re.fullmatch(r"[\w.-]+", variable.name):  # what else stands there may be the value
                source = variable.source.replace(variable.name, "…")
                self.problems.append(f"{source}: a name has letters, digits, _, . and - only: is a = missing?")
            elif variable.source in self._hints and not (is_section or nearest(variable.section, self._sections)):
                foreign.setdefault(variable.source, []).append(variable.name)
            else:
                own.append(variable)
        for source, names in foreign.items():
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            what = "is no setting" if len(names) == 1 else "are no settings"
            listed = f"{', '.join(names[:_NAMED])}{more} {what} of psycopg-router"
            self.problems.append(self.line(source, listed))
        return own

    def _innermost(self, path: KeyPath) -> tuple[Any, int]:
        """The innermost part of the tree on the way along ``path``, and how many keys lead to it."""
        part: Any = self._tree
        for depth, key in enumerate(path):
            if not isinstance(part, dict) or key not in part:
                return part, depth
            part = part[key]
        return part, len(path)

    def _merge(self, tree: dict[str, Any], table: Mapping[Any, Any], source: str, above: tuple[str, ...]) -> None:
        if len(above) == 1 and above[0] in KEYED:
            self._spellings.learn(above[0], table)
        for key, value in table.items():
            if not isinstance(key, str):
                self.problems.append(f"{source}: {dotted(above)}: a key here is no text: put it in quotes")
                continue
            path = (*above, key)
            below = tree.get(key)
            if isinstance(value, Mapping) and (value or isinstance(below, dict)):
                if not isinstance(below, dict):
                    tree[key] = _spelt_out(below, path)
                self._merge(tree[key], value, source, path)
            elif isinstance(value, str) and isinstance(below, dict) and (short_for := _short_for(path)):
                _replace_servers(below, short_for, _Leaf(value, source))
            else:
                tree[key] = _Leaf(value, source)


def _short_for(path: tuple[str, ...]) -> str | None:
    """The key of a table that a plain string stands for, where the table may be written as a string."""
    match path:
        case ("versions" | "tenants", _) | ("tenant_template",):
            return "nodes"
        case ("versions" | "tenants", _, "primary" | "replicas" | "nodes"):
            return "dsn"
        case ("tenant_template", "primary" | "replicas" | "nodes"):
            return "dsn"
    return None


def _spelt_out(leaf: _Leaf | None, path: tuple[str, ...]) -> dict[str, Any]:
    """The table to merge into where a weaker source has none: it keeps what a string there stands for."""
    key = _short_for(path)
    return {key: leaf} if leaf is not None and key is not None and isinstance(leaf.value, str) else {}


def _replace_servers(table: dict[str, Any], key: str, leaf: _Leaf) -> None:
    """Put what a plain string stands for into a weaker source's table; what is not about the servers stays."""
    if key == "nodes":
        replaced = {"primary", "replicas"}
    else:  # a password goes with the connection string it stood beside: it is not for another server
        beside = getattr(table.get("dsn"), "source", None)
        replaced = {part for part in ("password", "password_file") if getattr(table.get(part), "source", "") == beside}
    for part in replaced & table.keys():
        del table[part]
    table[key] = leaf


def _plain(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: below.value if isinstance(below, _Leaf) else _plain(below) for key, below in tree.items()}


def _sources(part: Any) -> Iterator[str]:
    if isinstance(part, _Leaf):
        yield part.source
    else:
        for below in part.values():
            yield from _sources(below)
