# Generated from router/_async/eviction.py by tools/async_to_sync.py: do not edit.
"""Idle connections are closed, so that others may be opened in their place."""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from router.core.budget import KEPT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router._sync.slot import SlotRequest
    from router._sync.slots import Slots
    from router.core.budget import Idle

    class Evictable(Protocol):
        """What has idle connections that may be closed for others: a pool, or what watches a server."""

        @property
        def longest_idle(self) -> Idle | None:
            """The connection that has been idle longest, if there is one."""

        def evict_idle(self, beneficiary: SlotRequest) -> None:
            """Close that for a request; nothing happens if there is none by now."""


LOOK_AGAIN = 0.02
"""Seconds between two searches for an idle connection that has become old enough to be closed, at least."""


class Eviction:
    """Closes idle connections for requests that wait for a slot.

    Attributes:
        sources: What has idle connections; those of the first are closed before any of the second.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self.sources: tuple[Iterable[Evictable], ...] = ()
        self._look_again_at = inf  # when one that is idle now may be closed for those that have as many

    def make_room(self, slots: Slots) -> None:
        """Close idle connections for requests, as long as there are any for them.

        Args:
            slots: What they wait for.
        """
        while (chosen := self._choose(slots)) is not None:
            source, request = chosen
            try:
                source.evict_idle(request)
            finally:
                slots.restore(request)

    def evict_again(self, slots: Slots) -> None:
        """Close one if any may have become old enough since that was tried last; called when a connection comes back.

        Args:
            slots: What requests wait for.
        """
        now = monotonic()
        if now >= self._look_again_at:
            self.make_room(slots)
        else:
            self._look_again_at = min(self._look_again_at, now + KEPT)

    def _choose(self, slots: Slots) -> tuple[Evictable, SlotRequest] | None:
        now, rested_at = monotonic(), inf
        for source in self.sources:
            found = [(has, one) for has in source if (one := has.longest_idle) is not None]
            rested_at = min([rested_at, *(at for _, one in found if (at := one.since + KEPT) > now)])
            chosen = slots.reserve([one for _, one in found])
            if chosen is not None:
                index, request = chosen
                return found[index][0], request
        self._look_again_at = max(rested_at, now + LOOK_AGAIN)
        return None
