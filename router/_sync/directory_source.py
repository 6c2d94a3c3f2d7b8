# Generated from router/_async/directory_source.py by tools/async_to_sync.py: do not edit.
"""Where it is asked where a tenant lives, and whether that works."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from inspect import signature
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from router._runtime.calls import WeakCall, call, consult
from router._runtime.flags import Guard
from router.core.directory import describe_failure
from router.core.errors import RouterClosed
from router.core.value import Value

if TYPE_CHECKING:
    from router._runtime.calls import Source
    from router._sync.directory_table import Borrows, SqlSource
    from router.core.topology import Home
    from router.settings import RouterSettings

    class Homes(Borrows, Protocol):
        """What uses the homes of tenants, and what was worked out from them: the router's."""

        def forget(self, tenant: str | None) -> None:
            """Work out anew where a tenant lives, from its next request on.

            Args:
                tenant: The tenant; ``None`` for all of them.
            """

        def follow_tenant(self, tenant: str, home: Home | None) -> None:
            """Do what follows from a tenant's move.

            Args:
                tenant: The tenant.
                home: Where it lives now; ``None`` for nowhere.
            """


logger = logging.getLogger("router")


class Said(Value):
    """What came of asking for one tenant.

    Attributes:
        home: Where it lives; ``None`` for nowhere, or where that is not known.
        reason: Why that is not known; empty where it is.
        is_answer: Whether there was an answer.
        works_again: Whether asking had failed before.
    """

    home: Home | None
    reason: str = ""
    is_answer: bool = True
    works_again: bool = False


class TenantSource:
    """Says where tenants live: a callable of the user's, or a table.

    Attributes:
        lists: Whether it can list the tenants.
        failing: Since when it fails, on the monotonic clock, and why; ``None`` while it works.
    """

    def __init__(self, source: Source | SqlSource | None, settings: RouterSettings, keep: list[object] | None) -> None:
        """Begin with none asked.

        Args:
            source: A callable that takes a tenant's key, or an object with such a ``lookup()``, and with ``tenants()``
                if it can list them. It must come to an end by itself.
            settings: Those that make a home of a key and what the source says.
            keep: Where a source is kept that is the user's, which is called by weak references; ``None`` for another.

        Raises:
            TypeError: The source cannot be called with a key.
        """
        self._lookup = _lookup_of(source)
        self._tenants = getattr(source, "tenants", None)
        if keep is not None:
            self._lookup = WeakCall(self._lookup, keep)
            self._tenants = None if self._tenants is None else WeakCall(self._tenants, keep)
        self.lists = self._tenants is not None
        self.failing: tuple[float, str] | None = None
        self._settings = settings
        self._guard = Guard()  # guards failing

    def ask(self, tenant: str) -> Said:
        """Ask once.

        Args:
            tenant: The tenant's key.

        Returns:
            What came of it.
        """
        try:
            said = consult(self._lookup, tenant)
        except Exception as error:  # noqa: BLE001  (it is the user's)
            return Said(None, self._fails(error), is_answer=False)
        works_again = self._works()
        if said is None:
            return Said(None, works_again=works_again)
        if not isinstance(said, Mapping):
            return Said(None, f"lookup() returned a {type(said).__name__}, not a mapping", works_again=works_again)
        try:
            return Said(self._settings.home(tenant, said), works_again=works_again)
        except Exception as error:  # noqa: BLE001  (one tenant's fault must not end the asking for others)
            wrong = f"the directory's answer is wrong: {describe_failure(error)}"
            return Said(None, wrong, works_again=works_again)

    def tenants(self) -> list[str]:
        """List the tenants, if it can.

        Returns:
            Their keys; empty if it cannot.
        """
        return [] if self._tenants is None else list(call(self._tenants))

    def _fails(self, error: Exception) -> str:
        """Take note that it fails; why."""
        reason = f"the directory could not be read: {describe_failure(error)}"
        if not isinstance(error, RouterClosed):
            with self._guard:
                first = self.failing is None
                self.failing = (monotonic() if self.failing is None else self.failing[0], reason)
            if first:
                logger.warning("%s; tenants that are known continue to work", reason)
        return reason

    def _works(self) -> bool:
        """Take note that it works; whether it failed before."""
        with self._guard:
            failed, self.failing = self.failing is not None, None
        if failed:
            logger.info("the directory of tenants can be read again")
        return failed


def _lookup_of(source: Any) -> Any:
    lookup = getattr(source, "lookup", source)
    try:
        signature(lookup).bind("")
    except TypeError:
        name = getattr(lookup, "__qualname__", type(lookup).__name__)
        raise TypeError(
            f"{name} is not a directory: it must be a callable that takes a tenant's key and nothing "
            "else, or an object "
            "with such a lookup()"
        ) from None
    except ValueError:  # it is built in, and does not say what it takes
        pass
    return lookup
