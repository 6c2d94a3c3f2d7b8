"""Every exception the router raises.

::

    RouterError
      ConfigError (ValueError)                  every problem at once, each with its source and key
      UnknownVersion (LookupError)              names the nearest known keys
      UnknownTenant (LookupError)               likewise; nothing has been opened
      TenantLocked                              another tenant was named inside use(…, lock=True)
      DirectoryUnavailable                      the directory could not say where a tenant lives
      RouterClosed
      Unavailable (psycopg.OperationalError)    .version .tenant .attempts .refused
        NoPrimary                               no node can be written to
        NoReplica                               no node may be read from
        PoolExhausted                           nodes are fine, the pool or the budget is full
          TooManyWaiting                        refused at once, because too many requests wait already
        TransactionOutcomeUnknown               the connection died while a COMMIT was in flight
      TokenRefused (ValueError)                 a token that is damaged, or of another cluster or key

No connection string or password is part of any message.
"""

from __future__ import annotations

import re
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from router.core.topology import Node


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Find the known name that is most similar to a name.

    Args:
        name: The name that was given.
        known: The known names.
        cutoff: How similar they must be, from 0 to 1.

    Returns:
        The nearest name; ``None`` if none is similar.
    """
    from difflib import get_close_matches  # imported here, because only errors need it and it takes time to import

    return next(iter(get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


_CONNECTION_STRING = r"(?is)\w\w:/|\A[^:]*:[^@]*@|(?:pas|pwd|secret|user|host|dbname|service)\w*\s*="

SEARCHED = 1000
"""How many characters of a text are searched for a connection string: a key may be of any length."""


def like_connection_string(text: str) -> bool:
    """Tell whether a text looks like a connection string, or a part of one that may have a password.

    Args:
        text: The text, such as a key.

    Returns:
        Whether it does; if so, no error may show it.
    """
    return re.search(_CONNECTION_STRING, text[:SEARCHED]) is not None


def masked(text: str) -> str:
    """Hide a text that looks like a connection string.

    Args:
        text: The text that an error is to show.

    Returns:
        The text, or ``…``.
    """
    return "…" if like_connection_string(text) else text


class RouterError(Exception):
    """The base of every error that the router itself raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the error by its message and attributes, which differ from the arguments of ``__init__``."""
        return _made_anew, (type(self), self.args), self.__dict__


def _made_anew(kind: type[RouterError], args: tuple[Any, ...]) -> RouterError:
    return kind.__new__(kind, *args)


class ConfigError(RouterError, ValueError):
    """The settings are wrong; the error lists all problems.

    Attributes:
        problems: One line for each problem: its file or environment variable, its key, and what is wrong.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{count} problem{'' if count == 1 else 's'} in the settings:"
        super().__init__("\n  - ".join((head, *self.problems)))


class UnknownVersion(RouterError, LookupError):
    """No version or alias has this key.

    Attributes:
        version: The key that was asked for; ``None`` when none was named and there is no ``default_version``.
        known: The known keys.
    """

    def __init__(self, version: str | None, known: Iterable[str]) -> None:
        self.version = version
        self.known = tuple(known)
        if version is None:
            message = "no version was named and the settings have no default_version"
        else:
            message = f"unknown version {masked(version)!r}"
            if near := nearest(version, self.known):
                message += f" (did you mean {near!r}?)"
        super().__init__(f"{message}; known: {', '.join(self.known) or 'none'}")


SHOWN = 60
"""How many characters of an unknown key an error shows."""

COMPARED = 200
"""The most known tenants that an unknown one is compared with."""


class UnknownTenant(RouterError, LookupError):
    """No tenant has this key, or the tenant does not live in the version that was named.

    Attributes:
        tenant: The key that was named; ``None`` if none was named.
        version: The version that was named with it; ``None`` if none was named.
    """

    def __init__(
        self, tenant: object, reason: str = "", *, version: str | None = None, known: Iterable[str] = ()
    ) -> None:
        self.tenant = tenant
        self.version = version
        if tenant is None:
            super().__init__(reason)
            return
        shown = repr(masked(tenant)[: SHOWN + 1] if isinstance(tenant, str) else tenant)
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
        message = f"unknown tenant {shown}"
        if reason:
            message += f": {reason}"
        elif isinstance(tenant, str):
            alike = (key for key in known if key[:1] == tenant[:1] and abs(len(key) - len(tenant)) <= 2)  # noqa: PLR2004
            if near := nearest(tenant[:SHOWN], islice(alike, COMPARED)):
                message += f"; did you mean {near!r}?"
        super().__init__(message)


class TenantLocked(RouterError):
    """Another tenant was named inside ``use(tenant=…, lock=True)``."""


class DirectoryUnavailable(RouterError):
    """The directory could not say where a tenant lives, and no earlier answer is known.

    Attributes:
        tenant: The tenant.
    """

    def __init__(self, tenant: str, reason: str) -> None:
        self.tenant = tenant
        super().__init__(f"where tenant {tenant!r} lives is not known: {reason}")


class RouterClosed(RouterError):
    """The router was closed, or closed while this request waited."""


class Unavailable(RouterError, psycopg.OperationalError):
    """No connection was available within the deadline.

    Attributes:
        version: The version that the request named, or the default.
        tenant: The tenant of the request; ``None`` for none.
        attempts: How many nodes were tried for this request, and failed.
    """

    def __init__(
        self,
        message: str,
        *,
        version: str,
        tenant: str | None = None,
        attempts: int = 0,
        refused: Mapping[Node, str] = MappingProxyType({}),
    ) -> None:
        self.version = version
        self.tenant = tenant
        self.attempts = attempts
        self._refused = dict(refused)
        lines = [message, *(f"{node}: {reason}" for node, reason in refused.items())]
        super().__init__("\n  - ".join(lines))

    @property
    def refused(self) -> Mapping[Node, str]:
        """For each node, the reason why it was left out, or its failure."""
        return MappingProxyType(self._refused)


def at_least_zero(name: str, value: Any) -> Any:
    """Return an argument that has to be a number, 0 or more; otherwise it would fail later, or never.

    Args:
        name: The name of the argument.
        value: Its value.

    Returns:
        The value.

    Raises:
        ValueError: It is negative, not a number (``nan``), or no number at all.
    """
    try:
        if value >= 0:
            return value
    except TypeError:
        pass
    raise ValueError(f"{name} is {value!r}: it must be a number, 0 or more")


class NoPrimary(Unavailable):
    """No node of the version can be written to now."""


class NoReplica(Unavailable):
    """No node of the version may serve reads now; ``read.fallback`` tells whether the primary may."""


class PoolExhausted(Unavailable):
    """Every connection that may be opened is in use; the nodes themselves are fine."""


class TooManyWaiting(PoolExhausted):
    """The request was refused at once, because ``pool.max_waiting`` requests wait for a connection already."""


class TransactionOutcomeUnknown(Unavailable):
    """The connection died during COMMIT, or during a statement in autocommit: only the data tells whether it was done.

    PREPARE TRANSACTION and COMMIT PREPARED are treated in the same way, however they were sent. The error of psycopg is
    its ``__cause__``.
    """


class TokenRefused(RouterError, ValueError):
    """A token cannot be used for this cluster: it is damaged, or was made for another cluster, timeline or key."""
