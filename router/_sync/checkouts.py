# Generated from router/_async/checkouts.py by tools/async_to_sync.py: do not edit.
"""Chooses the checkout of a request: by its arguments, the blocks in force, and whether its tenant's pool is shared."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from router._runtime.flags import check_locks
from router._runtime.workers import bind_loop
from router._sync.checkout import Checkout, TrackedCheckout
from router._sync.lane_table import DirectoryLookupNeeded
from router._sync.tenant_checkout import LookupCheckout, ScopedCheckout
from router.context import named
from router.core.consistency import UNSURE, Position, without_page_header
from router.core.errors import TokenRefused, UnknownTenant, at_least_zero
from router.core.health import UNKNOWN
from router.core.policies import PoolPolicy
from router.core.standing import Request
from router.sessions import current_session, parsed

if TYPE_CHECKING:
    from collections.abc import Callable

    from router._sync.in_force import InForce
    from router.ambient import Ambient
    from router.core.choose import Route
    from router.core.topology import Node, Target
    from router.sessions import Session

LOOKUP_TIMEOUT = PoolPolicy().timeout
"""Seconds to look up where a tenant lives and to get a connection, for a request that names no timeout."""


class Checkouts:
    """Makes the checkouts of one router."""

    __slots__ = ("_ambient", "_in_force")

    def __init__(self, in_force: InForce, ambient: Ambient) -> None:
        """Keep what checkouts depend on.

        Args:
            in_force: What is in force.
            ambient: The owner of the blocks around a request.
        """
        self._in_force = in_force
        self._ambient = ambient

    def make(
        self,
        *,
        version: str | None,
        tenant: str | None,
        read_only: bool = False,
        max_lag: float | None = None,
        after: str | None = None,
        timeout: float | None,
        avoid: Node | None = None,
        begin: bool = True,
        detached: bool = False,
    ) -> Checkout:
        """Make the checkout for a request that names more than a known key.

        Args:
            version: As for ``connection()``.
            tenant: As for ``connection()``.
            read_only: As for ``connection()``.
            max_lag: As for ``connection()``.
            after: As for ``connection()``.
            timeout: As for ``connection()``.
            avoid: For a read, a node that it uses only if there is no other.
            begin: Whether a tenant's block that writes begins its transaction in the round trip that sets the session.
            detached: Whether the connection is borrowed without a block.

        Returns:
            The checkout.

        Raises:
            RouterError: As for ``connection()``.
            ValueError: As for ``connection()``.
        """
        _check(read_only, max_lag)
        tenant, version = named(self._ambient, tenant, version)
        try:
            lane = self._in_force.lanes.find(version, tenant, read_only=read_only)
        except DirectoryLookupNeeded:
            again = partial(
                self.make,
                version=version,
                tenant=tenant,
                read_only=read_only,
                max_lag=max_lag,
                after=after,
                avoid=avoid,
                begin=begin,
                detached=detached,
            )
            return LookupCheckout(
                partial(self._find, str(tenant), again),
                LOOKUP_TIMEOUT if timeout is None else at_least_zero("timeout", timeout),
            )
        session, note, request = current_session(self._ambient), None, None
        if not read_only:
            if session is not None and not detached:
                note = partial(self.note_written, session, lane.target.version)
        else:
            position = self._must_see(lane.target, session, after)
            if position is not None or max_lag is not None or avoid is not None:
                request = Request(read_only, max_lag, position, avoid)
        if lane.target.scope is not None:
            return ScopedCheckout(lane, timeout, request=request, note=note, begin=begin)
        if note is None and request is None and not detached:
            return Checkout(lane, timeout)
        return TrackedCheckout(lane, timeout, request=request, note=note)

    def _find(self, tenant: str, again: Callable[..., Checkout], deadline: float) -> Checkout:
        """Look up where a tenant lives, and make the checkout for the time that is left."""
        checkout: Checkout | None = None
        self.bind_loop()
        check_locks()
        directory = self._in_force.directory
        while directory is not None and (checkout is None or isinstance(checkout, LookupCheckout)):
            directory.find(tenant, deadline)
            checkout = again(timeout=max(deadline - monotonic(), 0.0))  # the home may have changed again meanwhile
        assert checkout is not None  # noqa: S101  (a lookup checkout is made only if there is a directory)
        return checkout

    def _must_see(self, target: Target, session: Session | None, after: str | None) -> Position | None:
        """Return the position that a read has to see: that of its session's writes, and that of a token.

        Args:
            target: The target of the read.
            session: The session in force; ``None`` for none.
            after: The token; ``None`` or empty for none.

        Returns:
            The later of the two positions; ``None`` for none.

        Raises:
            TokenRefused: A token is foreign, and ``tokens.foreign`` is ``refuse``.
        """
        policy, version = self._in_force.topology.tokens, target.version
        positions = [] if session is None else session.positions(version)
        if after:
            token = parsed(after, policy)
            handed_on = token.of(version)
            if handed_on is not None:
                positions.append(handed_on)
            elif token and policy.foreign == "refuse":
                raise TokenRefused(f"the token has no position of version {version!r}")
        return self._in_force.routes.must_see(target, positions)

    def note_written(self, session: Session, version: str, node: Node, written: tuple[int, int] | None) -> None:
        """Note in a session what was written, so that its reads see it.

        Args:
            session: The session.
            version: The version's key.
            node: The node that was written to.
            written: The position and timeline of the end of the WAL after the commit; ``None`` if they are not known.
        """
        known = self._in_force.clusters.health.get(node.server, UNKNOWN)
        position, timeline = (UNSURE, known.timeline) if written is None else written
        session.wrote(version, Position(known.system, timeline, without_page_header(position)))

    def route(
        self, *, version: str | None, tenant: str | None, read_only: bool, max_lag: float | None, after: str | None
    ) -> Route:
        """Choose the nodes for a request, without borrowing a connection.

        Args:
            version: As for ``explain()``.
            tenant: As for ``explain()``.
            read_only: As for ``explain()``.
            max_lag: As for ``explain()``.
            after: As for ``explain()``.

        Returns:
            The route.

        Raises:
            RouterError: As for ``explain()``.
            ValueError: As for ``explain()``.
        """
        _check(read_only, max_lag)
        tenant, version = named(self._ambient, tenant, version)
        try:
            target = self._in_force.lanes.target(version, tenant)
        except DirectoryLookupNeeded:
            raise UnknownTenant(tenant, "the directory has not been asked for it yet") from None
        position = self._must_see(target, current_session(self._ambient), after) if read_only else None
        return self._in_force.routes.choose(target, Request(read_only, max_lag, position))

    def bind_loop(self) -> None:
        """Bind the router to the running event loop, if it is not bound yet.

        Raises:
            RuntimeError: The router belongs to another loop.
        """
        slots = self._in_force.slots
        if slots.loop is not None:
            slots.loop = bind_loop(slots.loop)


def _check(read_only: object, max_lag: object) -> None:
    if read_only is not True and read_only is not False:
        raise ValueError(f"read_only is {read_only!r}: it must be True or False")
    if max_lag is not None:
        at_least_zero("max_lag", max_lag)
