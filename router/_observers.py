"""Passes events to the log, and to the observers that the user gave."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from router._runtime.calls import Isolated

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from router.core.events import Event, Observer

logger = logging.getLogger("router")


class Observers:
    """The log and the observers that receive events."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        """Keep them.

        Args:
            observers: Called with each event.
        """
        self._observers = tuple(observers)

    def listens_to(self, kind: type[Event]) -> bool:
        """Tell whether events of a kind are received at all: otherwise they need not be made.

        Args:
            kind: The kind.

        Returns:
            Whether there is an observer, or the log takes them.
        """
        return bool(self._observers) or logger.isEnabledFor(kind.level)

    def emit(self, events: Iterable[Event]) -> None:
        """Log events, and call the observers with them.

        Args:
            events: The events.
        """
        for event in events:
            with Isolated("an event could not be logged"):
                logger.log(event.level, "%s", event)
            for observer in self._observers:
                with Isolated("an observer failed"):
                    observer(event)
