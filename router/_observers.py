"""Tells what happens: to the log, and to the observers that the user gave."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from router._runtime.calls import Isolated

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from router.core.events import Event, Observer

logger = logging.getLogger("router")


class Observers:
    """Whoever is told of events."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        """Keep them.

        Args:
            observers: Called with each event.
        """
        self._observers = tuple(observers)

    def listens_to(self, kind: type[Event]) -> bool:
        """Tell whether anybody is told of events of a kind: else they need not be made.

        Args:
            kind: The kind.

        Returns:
            Whether there is an observer, or the log takes them.
        """
        return bool(self._observers) or logger.isEnabledFor(kind.level)

    def emit(self, events: Iterable[Event]) -> None:
        """Log events, and tell the observers.

        Args:
            events: What happened.
        """
        for event in events:
            with Isolated("an event could not be logged"):
                logger.log(event.level, "%s", event)
            for observer in self._observers:
                with Isolated("an observer failed"):
                    observer(event)
