"""Settings written flat, as variables are: which of them are ours, and the keys that their names stand for."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from router.core.faults import dotted, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

ENV_FILE = ".env"
WITHOUT_ENV_FILE = (
    "if this file belongs to another program, leave it out: "
    "ROUTER_ENV_FILE=/dev/null, or RouterSettings(_env_file=None)"
)

PREFIX = "ROUTER_"
DELIMITER = "__"

RESERVED = frozenset({"config", "env_file", "secrets_dir", "tenant"})
"""The variables of the router that are no settings, by their key."""

KEYED = ("versions", "aliases", "tenants")
"""The tables whose keys the user chooses."""

# Kubernetes sets these in every container for a Service called "router", or "router-" and anything:
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_OF_SERVICE = r"(?s)(\w+_)?(service_host|service_port(_\w+)?|port_\d+_(tcp|udp|sctp)(_(proto|port|addr))?)=.*|(\w+_)?port=\w+://.*"


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
        """The name without its prefix, in lower case; empty if the variable is not the router's."""
        key = self.name.lower()
        return key.removeprefix(PREFIX.lower()) if key.startswith(PREFIX.lower()) else ""

    @property
    def section(self) -> str:
        """The key of the top level that the name begins with."""
        return self.key.partition(DELIMITER)[0]

    @property
    def depth(self) -> int:
        """How many keys the name has below its section."""
        return self.key.count(DELIMITER)

    def of_service(self) -> bool:
        """Tell whether it looks like one that Kubernetes sets for a Service."""
        return re.fullmatch(_OF_SERVICE, f"{self.key}={self.text}") is not None


def variables(found: Mapping[str, str | None], source: Callable[[str], str]) -> list[Variable]:
    """List the variables that have a value.

    Args:
        found: Names and values.
        source: Makes from a name what to call it in an error.

    Returns:
        One for each.
    """
    return [Variable(name, text, source(name)) for name, text in found.items() if text]


class Spellings:
    """How the keys that the user chose are written in a variable: in lower case, ``_`` for all but a-z and 0-9."""

    def __init__(self) -> None:
        """Know no key yet."""
        self._keys: dict[str, dict[str, set[str]]] = {section: {} for section in KEYED}

    def learn(self, section: str, keys: Iterable[Any]) -> None:
        """Note the keys of a table.

        Args:
            section: The table.
            keys: Its keys; those that are no text are left out.
        """
        for key in keys:
            if isinstance(key, str) and key:
                self._keys[section].setdefault(re.sub(r"[^a-z0-9]", "_", key.lower()), set()).add(key)

    def path(self, name: str) -> tuple[str, ...]:
        """Find the keys that a variable's name stands for.

        Args:
            name: The name, without its prefix, in lower case.

        Returns:
            The keys, from the top level down: those that are noted, as they are; the longest counts.

        Raises:
            ValueError: The name stands for two keys alike.
        """
        section, _, below = name.partition(DELIMITER)
        if section not in KEYED or not below:
            return tuple(name.split(DELIMITER))
        ends = (end for end in range(len(below), 0, -1) if end == len(below) or below.startswith(DELIMITER, end))
        for spelt in (below[:end] for end in ends):
            if keys := self._keys[section].get(spelt):
                if len(keys) > 1 and spelt not in keys:
                    both = " and ".join(map(quoted, sorted(keys)))
                    raise ValueError(f"{section}: the name stands for {both} alike: set it as JSON in {section}")
                rest = below[len(spelt) + len(DELIMITER) :]
                return (section, spelt if spelt in keys else min(keys), *(rest.split(DELIMITER) if rest else ()))
        return (section, *below.split(DELIMITER))


def decoded(path: tuple[str, ...], text: str) -> Any:
    """Read a variable's value: JSON where a table or a list may stand and the text begins as one, not as ``{tenant}``.

    Args:
        path: The keys that its name stands for.
        text: The value.

    Returns:
        The table or list, or else the text.

    Raises:
        ValueError: It is not valid JSON; the message shows nothing of it.
    """
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
