"""Work on many tenants: which they are, and what came of it: pure."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Generic, TypeVar

from router.core.errors import UnknownTenant, masked
from router.core.names import counted
from router.core.value import Value

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

T = TypeVar("T")

ALL = "all"
"""What stands for every tenant that is listed."""

SHOWN = 10
"""How many errors the ``repr`` of the outcomes shows."""


class Outcomes(Value, Generic[T]):
    """What came of a function that was called for each tenant; everything in the order of the tenants.

    Attributes:
        values: What it returned, by tenant: these are done, and committed.
        errors: What it failed with, by tenant, or why it could not be called.
        left: The tenants for whom it was not called, because an earlier one failed.
    """

    values: Mapping[str, T]
    errors: Mapping[str, Exception]
    left: tuple[str, ...] = ()

    def check(self) -> Mapping[str, T]:
        """Make sure that it was done for every tenant.

        Returns:
            What it returned, by tenant.

        Raises:
            ExceptionGroup: The errors, each with a note that names its tenant.
        """
        if not self.errors:
            return self.values
        for tenant, error in self.errors.items():
            if (note := f"for tenant {tenant!r}") not in getattr(error, "__notes__", ()):
                error.add_note(note)
        raise ExceptionGroup(self._counts(), list(self.errors.values()))

    def __repr__(self) -> str:
        """Show it as a person reads it: the numbers, and the first errors, one a line."""
        shown = list(self.errors.items())[:SHOWN]
        lines = [f"  {tenant}: {type(error).__name__}: {str(error).partition(chr(10))[0]}" for tenant, error in shown]
        more = [f"  and {len(self.errors) - len(shown)} more"] if len(shown) < len(self.errors) else []
        return "\n".join([f"Outcomes: {self._counts()}", *lines, *more])

    def _counts(self) -> str:
        left = f", {len(self.left)} left" if self.left else ""
        return f"{counted(len(self.values), 'tenant')} done, {len(self.errors)} failed{left}"


def needs_list(wanted: str) -> bool:
    """Tell whether a pattern stands for tenants that are listed, or only names keys.

    Args:
        wanted: As for :func:`selected`.

    Returns:
        Whether the tenants have to be listed for it.
    """
    return any(part == ALL or _is_glob(part) for part in _parts(wanted))


def selected(wanted: str, listed: Iterable[str]) -> list[str]:
    """Find the tenants that a pattern stands for.

    Args:
        wanted: ``all``, or keys and shell patterns (``*``, ``?``, ``[…]``) separated by commas. Patterns are for those
            that are listed; a key is taken as it is.
        listed: The tenants that are listed.

    Returns:
        Their keys, each once, in the order of the parts, and of the list.

    Raises:
        UnknownTenant: A pattern matches no tenant.
    """
    listed = list(listed)
    found: dict[str, None] = {}
    for part in _parts(wanted):
        if part == ALL:
            matching = listed
        elif _is_glob(part):
            matching = [tenant for tenant in listed if fnmatchcase(tenant, part)]
        else:
            matching = [part]
        if not matching and part != ALL:
            raise UnknownTenant(None, f"no tenant is listed that matches {masked(part)!r}")
        found.update(dict.fromkeys(matching))
    return list(found)


def _parts(wanted: str) -> list[str]:
    return [part.strip() for part in wanted.split(",")]


def _is_glob(part: str) -> bool:
    return re.search(r"[*?\[]", part) is not None
