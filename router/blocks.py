"""What both routers have in common, sync and async: the blocks that say for whom requests are, and what is in force."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.ambient import Ambient, Carried, Current
    from router.context import Use
    from router.core.topology import Topology
    from router.sessions import Session


class Blocks:
    """A router's methods that wait for nothing: its blocks, and what they have put in force."""

    _ambient: Ambient

    @property
    def _topology(self) -> Topology:
        """The topology in force."""
        raise NotImplementedError

    def session(self, token: str | None = None) -> Session:
        """Make the reads of this task or thread see what it writes, for the length of a block.

        Args:
            token: What an earlier session handed on, so that its writes are seen, too; ``None`` or empty for nothing.

        Returns:
            A context manager, plain and not async, that gives the :class:`Session`; its ``token`` is for handing on.

        Raises:
            TokenRefused: The token is a foreign one, and ``tokens.foreign`` is ``refuse``.
        """
        return self._ambient.session(self._topology, token)

    def use(self, *, tenant: str | None = None, version: str | None = None, lock: bool = False) -> Use:
        """Name the tenant and the version of the requests of this task or thread, for the length of a block.

        Child tasks begun inside it have it, too, and as long as it lasts: one that outlives it names its own tenant, or
        fails, whatever blocks are around, and nothing locks it. So it is in threads and executors from the start.

        Args:
            tenant: The tenant; ``None`` leaves that to the block around it.
            version: The version, or an alias of it; ``None`` leaves that to the block around it.
            lock: Whether naming another tenant inside is an error.

        Returns:
            A context manager, plain and not async.

        Raises:
            UnknownTenant: What was named is no tenant's key; or nothing was named, neither tenant nor version nor lock.
            TenantLocked: On entering the block: one around it is locked to another tenant.
        """
        return self._ambient.use(self._topology, tenant, version, lock=lock)

    def current(self) -> Current:
        """Tell what is in force for the requests of this task or thread.

        Returns:
            Tenant, version and session, as :meth:`use`, :meth:`session` and :meth:`carried` have begun them here for
            any router with these settings.

        Raises:
            RuntimeError: A session or a lock is open here and not in force, for its generator is suspended.
        """
        return self._ambient.current()

    def carry(self) -> dict[str, str]:
        """Write what is in force here as text, for a job or the headers of a request to another service.

        Returns:
            Names, which may be those of headers, and values in ASCII, without secrets: tenant, version, whether that is
            locked, and the token of the session. Empty for nothing.

        Raises:
            RuntimeError: As for :meth:`current`.
        """
        return self._ambient.carry()

    def carried(self, mapping: Mapping[str, str]) -> Carried:
        """Have what was carried in force, for the length of a block: the other end of :meth:`carry`.

        Args:
            mapping: What was carried, maybe among others, such as the headers of a request. It is not signed, but for
                the token where ``tokens.key`` is set: take it from your own services only.

        Returns:
            A context manager, plain and not async; its ``session`` is the one that goes on in it.

        Raises:
            UnknownTenant: It names what is no tenant's key.
            UnknownVersion: It names no version of these settings.
            TokenRefused: Its token is a foreign one, and ``tokens.foreign`` is ``refuse``.
            TenantLocked: On entering the block: one around it is locked to another tenant.
            TypeError: One of the values is no text.
        """
        return self._ambient.carried(self._topology, mapping)
