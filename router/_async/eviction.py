"""Closes idle connections to make room for requests that wait for a slot."""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from router.core.budget import KEPT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router._async.slot import AsyncSlotRequest
    from router._async.slots import AsyncSlots
    from router.core.budget import Idle

    class Evictable(Protocol):
        """A pool or watcher, which has idle connections that may be closed for requests of others."""

        @property
        def longest_idle(self) -> Idle | None:
            """The connection that has been idle longest; ``None`` if no connection is idle."""

        async def evict_idle(self, beneficiary: AsyncSlotRequest) -> None:
            """Close the connection that has been idle longest, for a request; do nothing if none is idle any more."""


SEARCH_AGAIN = 0.02
"""The least seconds between two searches for a connection that has been idle for long enough to be closed."""


class AsyncEviction:
    """Closes idle connections for requests that wait for a slot.

    Attributes:
        sources: Groups of pools and watchers with idle connections; the first group's are closed before the second's.
    """

    def __init__(self) -> None:
        """Begin without sources."""
        self.sources: tuple[Iterable[Evictable], ...] = ()
        # When a connection that is idle now may be closed even for owners that have as many connections.
        self._search_again_at = inf

    async def make_room(self, slots: AsyncSlots) -> None:
        """Close idle connections for requests until no connection may be closed for any request.

        Args:
            slots: The slots that the requests wait for.
        """
        while (chosen := self._choose(slots)) is not None:
            source, request = chosen
            try:
                await source.evict_idle(request)
            finally:
                slots.restore(request)

    async def evict_again(self, slots: AsyncSlots) -> None:
        """Search again if a connection may have been idle for long enough by now; called when one is returned.

        Args:
            slots: The slots that requests wait for.
        """
        now = monotonic()
        if now >= self._search_again_at:
            await self.make_room(slots)
        else:
            self._search_again_at = min(self._search_again_at, now + KEPT)

    def _choose(self, slots: AsyncSlots) -> tuple[Evictable, AsyncSlotRequest] | None:
        now, rested_at = monotonic(), inf
        for source in self.sources:
            found = [(has, one) for has in source if (one := has.longest_idle) is not None]
            rested_at = min([rested_at, *(at for _, one in found if (at := one.since + KEPT) > now)])
            chosen = slots.reserve([one for _, one in found])
            if chosen is not None:
                index, request = chosen
                return found[index][0], request
        self._search_again_at = max(rested_at, now + SEARCH_AGAIN)
        return None
