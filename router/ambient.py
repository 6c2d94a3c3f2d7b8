"""What is in force for a task or thread: as one value, and as strings for jobs and other services."""

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
"""The keys of the mapping that :meth:`Ambient.carry` returns; they are valid names of HTTP headers."""


class Current(NamedTuple):
    """What is in force for the requests of a task or thread.

    Attributes:
        tenant: The tenant; ``None`` for none.
        version: The version that was named; ``None`` if that is left to the tenant or to ``default_version``.
        session: The session; ``None`` outside of a session.
        locked: Whether a request may name no other tenant here.
    """

    tenant: str | None
    version: str | None
    session: Session | None
    locked: bool


class Carried:
    """A plain context manager (not async), made by ``carried()``, for blocks that were in force elsewhere.

    Attributes:
        session: The session inside, which continues the session that was carried; ``None`` if there was none.
    """

    __slots__ = ("_use", "session")

    def __init__(self, use: Use | None, session: Session | None) -> None:
        """Prepare the block.

        Args:
            use: The block that names tenant and version; ``None`` for none.
            session: The session that makes reads see what was written; ``None`` for none.
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
        """Begin the block without a ``with``, until :meth:`exit`, like ``use()`` and ``session()``.

        Returns:
            The block itself.

        Raises:
            RuntimeError: The block has begun already.
            TenantLocked: A block around it is locked to another tenant.
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
        """End the block that :meth:`enter` began; do nothing if it has ended."""
        self._end(self.session, self._use)

    @staticmethod
    def _end(*of: Use | Session | None) -> None:
        for block in of:
            if block is not None:
                block.exit()


class Ambient:
    """The owner of blocks: all routers with the same settings, sync and async, share one.

    Attributes:
        made_for: The topology of the settings; another one may be in force by now.
    """

    __slots__ = ("__weakref__", "made_for")

    def __init__(self, made_for: Topology) -> None:
        """Make the owner; use :func:`ambient_of` to find an existing one.

        Args:
            made_for: The topology of the settings.
        """
        self.made_for = made_for

    def use(self, topology: Topology, tenant: str | None, version: str | None, *, lock: bool) -> Use:
        """Prepare a block that names tenant and version.

        Args:
            topology: The topology in force.
            tenant: The tenant; ``None`` leaves it to the block around this one.
            version: The version, or an alias of it; ``None`` leaves it to the block around this one.
            lock: Whether it is an error to name another tenant inside.

        Returns:
            The block.

        Raises:
            UnknownTenant: ``tenant`` is not a tenant's key; or neither tenant nor version nor lock was given.
        """
        # A block that names nothing would silently leave requests to the tenant of the block around it.
        if tenant is None and version is None and not lock:
            raise UnknownTenant(None, "use() names neither a tenant nor a version: name one, or leave the block out")
        if tenant is not None:
            if topology.tenancy is None:
                raise UnknownTenant(tenant, "the settings have no tenants")
            check_key(topology.tenancy.pattern, tenant)
        return Use(self, tenant, version, lock=lock)

    def session(self, topology: Topology, token: str | None) -> Session:
        """Prepare a session.

        Args:
            topology: The topology in force.
            token: The token of an earlier session; ``None`` or empty for none.

        Returns:
            The session.

        Raises:
            TokenRefused: The token is foreign, and ``tokens.foreign`` is ``refuse``.
        """
        return Session(self, topology.tokens, token)

    def current(self) -> Current:
        """Return what is in force here.

        Returns:
            Tenant, version and session.

        Raises:
            RuntimeError: A session or a locked ``use()`` is open here but not in force, because its generator is
                suspended.
        """
        tenant, version = named(self, None, None)
        return Current(tenant, version, current_session(self), locked=locked_to(self) is not None)

    def carry(self) -> dict[str, str]:
        """Return what is in force here as strings.

        Returns:
            Names and values for headers or a job, in ASCII and without secrets; empty if nothing is in force.
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
        """Prepare a block that puts in force what was carried.

        Args:
            topology: The topology in force.
            mapping: What :meth:`carry` returned; other entries, such as further headers of a request, are ignored, and
                so is the case of the names.

        Returns:
            The block.

        Raises:
            UnknownTenant: The tenant in it is not a tenant's key.
            UnknownVersion: The version in it is not one of these settings.
            TokenRefused: Its token is foreign, and ``tokens.foreign`` is ``refuse``.
            TypeError: One of the values is not a string.
        """
        found = {
            name.lower(): value for name, value in mapping.items() if name.lower() in (TENANT, VERSION, LOCKED, TOKEN)
        }
        for name, value in found.items():
            if not isinstance(value, str):
                raise TypeError(f"{name} is {type(value).__name__}, not a string as carry() returns it")
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
    """Find the owner of the blocks of all routers with these settings.

    Args:
        topology: The topology of the settings.

    Returns:
        The owner, the same one for all equal topologies.
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
