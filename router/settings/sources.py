"""All sources of the settings merged key by key, each value with the source it came from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from router.core.errors import nearest
from router.core.faults import dotted, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from router.core.faults import Fault, KeyPath

PREFIX = "ROUTER_"
DELIMITER = "__"
RESERVED = frozenset({"config", "env_file", "secrets_dir", "tenant"})  # variables of the router that are no settings

_KEYED = ("versions", "aliases", "tenants")  # tables whose keys the user chooses
_NAMED = 3  # how many variables of another program an error names
# Kubernetes sets these in every container for a Service called "router", or "router-" and anything:
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_OF_SERVICE = re.compile(
    r"(\w+_)?(service_host|service_port(_\w+)?|port_\d+_(tcp|udp|sctp)(_(proto|port|addr))?)=.*|(\w+_)?port=\w+://.*",
    re.DOTALL,
)


class Variable(NamedTuple):
    """A setting written flat, as in the environment.

    Attributes:
        name: Its name, prefix included, in any case.
        text: Its value.
        source: What to call it in an error.
    """

    name: str
    text: str
    source: str

    @property
    def key(self) -> str:
        """The name without its prefix, in lower case; empty if it is not the router's to read."""
        key = self.name.lower()
        return key.removeprefix(PREFIX.lower()) if key.startswith(PREFIX.lower()) else ""


def _of_service(variable: Variable) -> bool:
    return _OF_SERVICE.fullmatch(f"{variable.key}={variable.text}") is not None


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
        self._without: dict[str, str] = {}
        self._tree: dict[str, Any] = {}
        self._spelt: dict[str, dict[str, set[str]]] = {section: {} for section in _KEYED}

    def add_table(self, table: Mapping[Any, Any], source: str) -> None:
        """Merge a nested table over what is there.

        Args:
            table: Nested mappings; anything else is a value.
            source: What to call it in an error.
        """
        self._merge(self._tree, table, source, ())

    def may_be_foreign(self, source: str, without: str) -> None:
        """Note that a source was found, not named: what it says may be meant for another program.

        Args:
            source: What it is called in errors.
            without: What its errors add: how to do without it.
        """
        self._without[source] = without

    def add_variables(self, variables: Iterable[Variable], keys_above: Mapping[str, Any]) -> None:
        """Merge flat variables over what is there; among them, the more deeply nested name is the stronger.

        Args:
            variables: Those that are not the router's are passed over.
            keys_above: A table from a stronger source: its version, alias and tenant keys can be named here too.
        """
        for section in _KEYED:
            if isinstance(above := keys_above.get(section), Mapping):
                self._spell(section, above)
        own = self._own(variables)
        for variable in sorted(own, key=lambda variable: (variable.key.count(DELIMITER), variable.key)):
            try:
                path = self._path(variable.key)
                value = _decoded(path, variable.text)
            except ValueError as error:
                self.problems.append(f"{variable.source}: {error}")
                continue
            for key in reversed(path):
                value = {key: value}
            self.add_table(value, variable.source)

    def _own(self, variables: Iterable[Variable]) -> list[Variable]:
        """Those that are settings, or are meant to be; what is wrong with the names of others is noted."""
        own: list[Variable] = []
        foreign: dict[str, list[str]] = {}
        for variable in variables:
            section = variable.key.partition(DELIMITER)[0]
            if (
                not variable.key
                or variable.key in RESERVED
                or (section not in self._sections and _of_service(variable))
            ):
                continue
            if not re.fullmatch(r"[\w.-]+", variable.name):  # what else stands there may be the value
                source = variable.source.replace(variable.name, "…")
                self.problems.append(f"{source}: a name has letters, digits, _, . and - only: is a = missing?")
            elif variable.source in self._without and not (
                section in self._sections or nearest(section, self._sections)
            ):
                foreign.setdefault(variable.source, []).append(variable.name)
            else:
                own.append(variable)
        for source, names in foreign.items():
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            what = "is no setting" if len(names) == 1 else "are no settings"
            listed = f"{', '.join(names[:_NAMED])}{more} {what} of psycopg-router"
            self.problems.append(self.line(source, listed))
        return own

    def values(self) -> dict[str, Any]:
        """The merged settings, as plain nested dicts."""
        return _plain(self._tree)

    def lines(self, faults: Sequence[Fault]) -> Iterator[str]:
        """Each fault with the source and the keys it is in.

        Args:
            faults: What is wrong with :meth:`values`.

        Yields:
            One line a fault.
        """
        told = set(faults)
        for path, text in faults:
            place = path[:-1] if path[-1:] == ("[key]",) else path
            inner, steps = self._walk(place)
            inherited = steps < len(place) and (place[2:], text) in told  # by a version, from [pool] or [read]
            if not inherited:
                source = next(_sources(inner), "settings")
                if isinstance(inner, _Leaf) and inner.value is None and source.lower().endswith((".yaml", ".yml")):
                    # In `{primary: postgresql://app:a,b@db/app}` YAML takes what is after the comma for a key.
                    place = (*place[:-1], "=")  # which is not shown
                line = f"{dotted(place)}: {text}"
                # A source that names keys further down is meant for us.
                yield self.line(source, line) if len(place) <= 1 else f"{source}: {line}"

    def line(self, source: str, problem: str) -> str:
        """Say what is wrong with a source, and how to do without it if it may be another program's.

        Args:
            source: What it is called.
            problem: What is wrong.

        Returns:
            One line.
        """
        without = self._without.get(source)
        return f"{source}: {problem}{f'; {without}' if without else ''}"

    def _walk(self, path: KeyPath) -> tuple[Any, int]:
        """The innermost part of the tree on the way to ``path``, and how many steps it took."""
        place: Any = self._tree
        for steps, key in enumerate(path):
            if not isinstance(place, dict) or key not in place:
                return place, steps
            place = place[key]
        return place, len(path)

    def _merge(self, tree: dict[str, Any], table: Mapping[Any, Any], source: str, above: tuple[str, ...]) -> None:
        if len(above) == 1 and above[0] in _KEYED:
            self._spell(above[0], table)
        for key, value in table.items():
            if not isinstance(key, str):
                self.problems.append(f"{source}: {dotted(above)}: a key here is no text: put it in quotes")
                continue
            path = (*above, key)
            below = tree.get(key)
            if isinstance(value, Mapping) and (value or isinstance(below, dict)):
                if not isinstance(below, dict):
                    tree[key] = _opened(below, path)
                self._merge(tree[key], value, source, path)
            elif isinstance(value, str) and isinstance(below, dict) and (short := shorthand(path)):
                _renew(below, short, _Leaf(value, source))
            else:
                tree[key] = _Leaf(value, source)

    def _spell(self, section: str, keys: Iterable[Any]) -> None:
        """Note how the keys of a table are written in a variable's name."""
        spelt = self._spelt[section]
        for key in keys:
            if isinstance(key, str) and key:
                spelt.setdefault(spelling(key), set()).add(key)

    def _path(self, name: str) -> tuple[str, ...]:
        """The keys that a variable's name stands for; one that the user chose is found by its spelling."""
        section, _, below = name.partition(DELIMITER)
        if section not in _KEYED or not below:
            return tuple(name.split(DELIMITER))
        ends = (end for end in range(len(below), 0, -1) if end == len(below) or below.startswith(DELIMITER, end))
        for spelt in (below[:end] for end in ends):
            if keys := self._spelt[section].get(spelt):
                if len(keys) > 1 and spelt not in keys:
                    both = " and ".join(map(quoted, sorted(keys)))
                    raise ValueError(f"{section}: the name stands for {both} alike: set it as JSON in {section}")
                rest = below[len(spelt) + len(DELIMITER) :]
                return (section, spelt if spelt in keys else min(keys), *(rest.split(DELIMITER) if rest else ()))
        return (section, *below.split(DELIMITER))


def variables(found: Mapping[str, str | None], source: Callable[[str], str]) -> list[Variable]:
    """The variables in ``found`` that have a value.

    Args:
        found: Names and values.
        source: Makes from a name what to call it in an error.

    Returns:
        One for each.
    """
    return [Variable(name, text, source(name)) for name, text in found.items() if text]


def spelling(key: str) -> str:
    """How a user's key is written in a variable's name: lower case, ``_`` for all but letters and digits."""
    return re.sub(r"[^a-z0-9]", "_", key.lower())


def shorthand(path: tuple[str, ...]) -> str | None:
    """The key of a table that a plain string stands for, where the table may be written as a string."""
    match path:
        case ("versions" | "tenants", _) | ("tenant_template",):
            return "nodes"
        case ("versions" | "tenants", _, "primary" | "replicas" | "nodes"):
            return "dsn"
        case ("tenant_template", "primary" | "replicas" | "nodes"):
            return "dsn"
    return None


def _opened(leaf: _Leaf | None, path: tuple[str, ...]) -> dict[str, Any]:
    """The table to merge into where a weaker source has none: it keeps what a string there stands for."""
    key = shorthand(path)
    return {key: leaf} if leaf is not None and key is not None and isinstance(leaf.value, str) else {}


def _renew(table: dict[str, Any], key: str, leaf: _Leaf) -> None:
    """Put what a plain string stands for into a weaker source's table; what is not about the nodes stays."""
    if key == "nodes":
        gone = {"primary", "replicas"}
    else:  # a password goes with the connection string it stood beside: it is not for another server
        beside = getattr(table.get("dsn"), "source", None)
        gone = {part for part in ("password", "password_file") if getattr(table.get(part), "source", "") == beside}
    for part in gone & table.keys():
        del table[part]
    table[key] = leaf


def _plain(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: below.value if isinstance(below, _Leaf) else _plain(below) for key, below in tree.items()}


def _sources(place: Any) -> Iterator[str]:
    if isinstance(place, _Leaf):
        yield place.source
    else:
        for below in place.values():
            yield from _sources(below)


def _decoded(path: tuple[str, ...], text: str) -> Any:
    """A variable's value: JSON where a table or a list belongs and the text begins as one, not as ``{tenant}``."""
    match path:
        case (_,) | ("versions" | "tenants", _) | ("versions" | "tenants", _, _) | ("tenant_template", _):
            may_nest = re.match(r"\s*[\[{](?!\w+\})", text) is not None
        case _:
            may_nest = False
    if not may_nest:
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{dotted(path)}: is not valid JSON: {error.msg}, column {error.pos + 1}") from None
