"""Every exception the router raises.

::

    RouterError
      ConfigError (ValueError)                  every problem at once, each with its source and key
      UnknownVersion (LookupError)              names the nearest known keys
      UnknownTenant (LookupError)               likewise; nothing has been opened
      TenantLocked                              another tenant was named inside use(…, lock=True)
      DirectoryUnavailable                      where a tenant lives could not be asked, and is not known
      RouterClosed
      Unavailable (psycopg.OperationalError)    .version .tenant .attempts .refused
        NoPrimary                               no node can be written to
        NoReplica                               no node may be read from
        PoolExhausted                           nodes are fine, the pool or the budget is full
          TooManyWaiting                        refused at once: too many wait already
        TransactionOutcomeUnknown               the connection died when something that commits was under way
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
    """Find the known name that is most like the one that was written.

    Args:
        name: What was written.
        known: What there is.
        cutoff: How much alike they must be, from 0 to 1.

    Returns:
        The nearest one; ``None`` when none is near.
    """
    from difflib import get_close_matches  # only errors need it: it is a part of what importing the router costs

    return next(iter(get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


_CONNECTION_STRING = r"(?is)\w\w:/|\A[^:]*:[^@]*@|(?:pas|pwd|secret|user|host|dbname|service)\w*\s*="

SEARCHED = 1000
"""How much of a text is searched for a connection string, in characters: a key may be of any length."""


def like_connection_string(text: str) -> bool:
    """Tell whether a text looks like a connection string, or a part of one, with its password.

    Args:
        text: A key, say.

    Returns:
        Whether it does; then no error may show it.
    """
    return re.search(_CONNECTION_STRING, text[:SEARCHED]) is not None


def masked(text: str) -> str:
    """Hide what looks like a connection string.

    Args:
        text: What an error is to show.

    Returns:
        The text, or ``…``.
    """
    return "…" if like_connection_string(text) else text


class RouterError(Exception):
    """The base of every error that the router itself raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle it by its message and attributes, which are not what ``__init__`` takes."""
        return _made_anew, (type(self), self.args), self.__dict__


def _made_anew(kind: type[RouterError], args: tuple[Any, ...]) -> RouterError:
    return kind.__new__(kind, *args)


class ConfigError(RouterError, ValueError):
    """The settings are wrong; all problems are listed at once.

    Attributes:
        problems: One line a problem: where it stands (file or environment variable, and key), and what is wrong.
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
        known: The keys there are.
    """

    def __init__(self, version: str | None, known: Iterable[str]) -> None:
        self.version = version
        self.known = tuple(known)
        if version is None:
            message = "no version was named and the settings have no default_version"
        else:
            message = f"unknown version {masked(version)!r}"
            if near := nearest(version, self.known):
                message += f"; did you mean {near!r}?"
        super().__init__(f"{message}; known: {', '.join(self.known) or 'none'}")


SHOWN = 60
"""How much of an unknown key an error shows, in characters."""

COMPARED = 200
"""How many known tenants an unknown one is compared with, at most."""


class UnknownTenant(RouterError, LookupError):
    """No tenant has this key, or it does not live where it was asked for.

    Attributes:
        tenant: The key that was asked for; ``None`` when none was named.
        version: The version it was asked for in; ``None`` if none was named.
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
    """Another tenant was named inside of ``use(tenant=…, lock=True)``."""


class DirectoryUnavailable(RouterError):
    """The directory could not say where a tenant lives, and it is not known from before.

    Attributes:
        tenant: The tenant.
    """

    def __init__(self, tenant: str, reason: str) -> None:
        self.tenant = tenant
        super().__init__(f"where tenant {tenant!r} lives is not known: {reason}")


class RouterClosed(RouterError):
    """The router was closed, or closed while this request waited."""


class Unavailable(RouterError, psycopg.OperationalError):
    """No connection could be had within the deadline.

    Attributes:
        version: The version asked for.
        tenant: The tenant asked for, if any was.
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
        """For each node, why it was left out, or how it failed."""
        return MappingProxyType(self._refused)


class NoPrimary(Unavailable):
    """No node of the version can be written to now."""


class NoReplica(Unavailable):
    """No node of the version may be read from now, as ``read.fallback`` is set."""


class PoolExhausted(Unavailable):
    """Every connection that may be opened is in use; the nodes themselves are fine."""


class TooManyWaiting(PoolExhausted):
    """Refused at once: ``pool.max_waiting`` requests wait for a connection already."""


class TransactionOutcomeUnknown(Unavailable):
    """The connection died during COMMIT, or a statement in autocommit: only the data can tell whether that was done.

    So it is for PREPARE TRANSACTION and COMMIT PREPARED, by whatever way they are sent. What psycopg had to say is its
    ``__cause__``.
    """


class TokenRefused(RouterError, ValueError):
    """A token says nothing of this cluster: it is damaged, or was made for another cluster, timeline or key."""
