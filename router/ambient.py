"""What is in force for a task or thread, as one value to look at, and as strings to hand to jobs and other services."""

from __future__ import annotations

import os
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import quote, unquote
from weakref import WeakSet

from router.context import Use, locked_to, named
from router.core.errors import UnknownTenant
from router.core.resolve import check_key, resolve
from router.sessions import Session, current_session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.core.topology import Topology

TENANT, VERSION, LOCKED, TOKEN = "router-tenant", "router-version", "router-locked", "router-token"
"""The keys of what :meth:`Ambient.carry` makes; they are names of HTTP headers as well."""


class Current(NamedTuple):
    """What is in force for the requests of a task or thread.

    Attributes:
        tenant: The tenant; ``None`` for none.
        version: The version that was named; ``None`` where that is left to the tenant or to ``default_version``.
        session: The session; ``None`` outside of any.
        locked: Whether no other tenant may be named here.
    """

    tenant: str | None
    version: str | None
    session: Session | None
    locked: bool


class Carried:
    """The blocks that were in force elsewhere; a context manager, plain and not async, made by ``carried()``.

    Attributes:
        session: The session in it, which begins where the one that was carried had got to; ``None`` if none was.
    """

    __slots__ = ("_use", "session")

    def __init__(self, use: Use | None, session: Session | None) -> None:
        """Prepare it.

        Args:
            use: Names tenant and version.
            session: Makes reads see what was written.
        """
        self._use = use
        self.session = session

    def __enter__(self) -> Self:
        """Begin the blocks."""
        if self._use is not None:
            self._use.__enter__()
        try:
            if self.session is not None:
                self.session.__enter__()
        except BaseException:
            self._end(self._use)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End them."""
        self._end(self.session, self._use)

    def enter(self) -> Self:
        """Begin it without a ``with``, until :meth:`exit`, as ``use()`` and ``session()`` can be.

        Returns:
            The block itself.

        Raises:
            RuntimeError: It has begun already.
            TenantLocked: One around it is locked to another tenant.
        """
        if self._use is not None:
            self._use.enter()
        try:
            if self.session is not None:
                self.session.enter()
        except BaseException:
            self._end(self._use)
            raise
        return self

    def exit(self) -> None:
        """End what :meth:`enter` began; nothing happens if it is over."""
        self._end(self.session, self._use)

    @staticmethod
    def _end(*of: Use | Session | None) -> None:
        for block in of:
            if block is not None:
                block.exit()


class Ambient:
    """What blocks belong to: they are for all routers with the same settings, sync and async.

    Attributes:
        made_for: What the settings say; another topology may be in force since.
    """

    __slots__ = ("__weakref__", "made_for")

    def __init__(self, made_for: Topology) -> None:
        """Make it; :func:`ambient_of` finds the one that there is.

        Args:
            made_for: What the settings say.
        """
        self.made_for = made_for

    def use(self, topology: Topology, tenant: str | None, version: str | None, *, lock: bool) -> Use:
        """Prepare a block that names tenant and version.

        Args:
            topology: What is in force.
            tenant: The tenant; ``None`` leaves that to the block around it.
            version: The version, or an alias of it; ``None`` leaves that to the block around it.
            lock: Whether naming another tenant inside is an error.

        Returns:
            The block.

        Raises:
            UnknownTenant: What was named is no tenant's key; or nothing was named, neither tenant nor version nor lock.
        """
        if tenant is None and version is None and not lock:  # else requests would be for whom the block around it names
            raise UnknownTenant(None, "use() names neither a tenant nor a version: name one, or leave the block out")
        if tenant is not None:
            if topology.tenancy is None:
                raise UnknownTenant(tenant, "the settings have no tenants")
            check_key(topology.tenancy.pattern, tenant)
        return Use(self, tenant, version, lock=lock)

    def session(self, topology: Topology, token: str | None) -> Session:
        """Prepare a session.

        Args:
            topology: What is in force.
            token: What an earlier one handed on; ``None`` or empty for nothing.

        Returns:
            The session.

        Raises:
            TokenRefused: The token is a foreign one, and ``tokens.foreign`` is ``refuse``.
        """
        return Session(self, topology.tokens, token)

    def current(self) -> Current:
        """Tell what is in force here.

        Returns:
            Tenant, version and session.

        Raises:
            RuntimeError: A session or a lock is open here and not in force, for its generator is suspended.
        """
        tenant, version = named(self, None, None)
        return Current(tenant, version, current_session(self), locked=locked_to(self) is not None)

    def carry(self) -> dict[str, str]:
        """Write what is in force here.

        Returns:
            Names and values for headers or a job: ASCII text, without secrets; empty for nothing.
        """
        tenant, version, session, locked = self.current()
        found = {
            TENANT: tenant and quote(tenant),
            VERSION: version and quote(version),
            LOCKED: "yes" if locked else None,
        }
        if session is not None:
            found[TOKEN] = session.whole_token()
        return {name: value for name, value in found.items() if value is not None}

    def carried(self, topology: Topology, mapping: Mapping[str, str]) -> Carried:
        """Prepare a block in which is in force what was carried.

        Args:
            topology: What is in force.
            mapping: What :meth:`carry` made, maybe among others, such as the headers of a request; upper and lower case
                are the same.

        Returns:
            The block.

        Raises:
            UnknownTenant: It names what is no tenant's key.
            UnknownVersion: It names no version of these settings.
            TokenRefused: Its token is a foreign one, and ``tokens.foreign`` is ``refuse``.
            TypeError: One of the values is no text.
        """
        found = {
            name.lower(): value for name, value in mapping.items() if name.lower() in (TENANT, VERSION, LOCKED, TOKEN)
        }
        for name, value in found.items():
            if not isinstance(value, str):
                raise TypeError(f"{name} is {type(value).__name__}, not text as carry() made it")
        tenant, version, token = found.get(TENANT), found.get(VERSION), found.get(TOKEN)
        locked = found.get(LOCKED) == "yes"
        if version is not None:
            resolve(topology, version := unquote(version))
        named_here = tenant is not None or version is not None or locked
        use = self.use(topology, tenant and unquote(tenant), version, lock=locked) if named_here else None
        return Carried(use, None if token is None else self.session(topology, token))


_ambients: WeakSet[Ambient] = WeakSet()
_guard = Lock()  # guards the changes of _ambients


def ambient_of(topology: Topology) -> Ambient:
    """Find what the blocks of routers with these settings belong to.

    Args:
        topology: What the settings say.

    Returns:
        The one of all that are the same.
    """
    with _guard:
        found = next((one for one in _ambients if one.made_for is topology or one.made_for == topology), None)
        if found is None:
            found = Ambient(topology)
            _ambients.add(found)
        return found


def _after_fork() -> None:
    global _guard  # noqa: PLW0603  (another thread of the parent may have held it)
    _guard = Lock()


os.register_at_fork(after_in_child=_after_fork)
