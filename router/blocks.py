"""The methods that the sync and the async router share: ``use()``, ``session()``, and what is in force."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.ambient import Ambient, Carried, Current
    from router.context import Use
    from router.core.topology import Topology
    from router.sessions import Session


class Blocks:
    """The methods of a router that do no I/O: they make blocks, and report what the blocks have put in force."""

    _ambient: Ambient

    @property
    def _topology(self) -> Topology:
        """The topology in force."""
        raise NotImplementedError

    def session(self, token: str | None = None) -> Session:
        """Make the reads of this task or thread see its own writes, for the length of a block.

        Args:
            token: The token of an earlier session, whose writes are to be seen, too; ``None`` or empty for none.

        Returns:
            A plain context manager (not async) that gives the :class:`Session`; its ``token`` can be passed on.

        Raises:
            TokenRefused: The token is foreign, and ``tokens.foreign`` is ``refuse``.
        """
        return self._ambient.session(self._topology, token)

    def use(self, *, tenant: str | None = None, version: str | None = None, lock: bool = False) -> Use:
        """Name the tenant and the version for the requests of this task or thread, for the length of a block.

        Child tasks that are started inside inherit the block for as long as it lasts. In a child task that outlives it,
        neither this block nor those around it are in force: a request there names its own tenant, or fails. Threads and
        executors inherit nothing.

        Args:
            tenant: The tenant; ``None`` leaves it to the block around this one.
            version: The version, or an alias of it; ``None`` leaves it to the block around this one.
            lock: Whether it is an error to name another tenant inside.

        Returns:
            A plain context manager (not async).

        Raises:
            UnknownTenant: ``tenant`` is not a tenant's key; or neither tenant nor version nor lock was given.
            TenantLocked: When the block is entered: a block around it is locked to another tenant.
        """
        return self._ambient.use(self._topology, tenant, version, lock=lock)

    def current(self) -> Current:
        """Return what is in force for the requests of this task or thread.

        Returns:
            Tenant, version and session, as begun by :meth:`use`, :meth:`session` and :meth:`carried` here, on any
            router with these settings.

        Raises:
            RuntimeError: A session or a locked ``use()`` is open here but not in force, because its generator is
                suspended.
        """
        return self._ambient.current()

    def carry(self) -> dict[str, str]:
        """Return what is in force here as strings, for a job or for the headers of a request to another service.

        Returns:
            Names, which are valid names of headers, and values in ASCII, without secrets: the tenant, the version,
            whether the tenant is locked, and the session's token. Empty if nothing is in force.

        Raises:
            RuntimeError: As for :meth:`current`.
        """
        return self._ambient.carry()

    def carried(self, mapping: Mapping[str, str]) -> Carried:
        """Put in force what :meth:`carry` returned elsewhere, for the length of a block.

        Args:
            mapping: What :meth:`carry` returned; other entries, such as further headers of a request, are ignored. Only
                the token in it is signed, if ``tokens.key`` is set: accept it from your own services only.

        Returns:
            A plain context manager (not async); its ``session`` continues the session that was carried.

        Raises:
            UnknownTenant: The tenant in it is not a tenant's key.
            UnknownVersion: The version in it is not one of these settings.
            TokenRefused: Its token is foreign, and ``tokens.foreign`` is ``refuse``.
            TenantLocked: When the block is entered: a block around it is locked to another tenant.
            TypeError: One of the values is not a string.
        """
        return self._ambient.carried(self._topology, mapping)
