# Generated from router/_async/pool/inside/prepared.py by tools/async_to_sync.py: do not edit.
"""The inside of what psycopg has prepared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router._sync.pool.inside.imports import PrepareManager

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg._preparing import Key, Prepare
    from psycopg._queries import PostgresQuery


class PreparedStatements(PrepareManager):
    """What psycopg has prepared in a session; keeps the texts of what was sent, too.

    psycopg tells it of each statement between sending and waiting, but for those of ``copy()``, ``stream()`` and
    server-side cursors.

    Attributes:
        traces: Whether it has to be told what is sent, see :meth:`begin` and :meth:`note`.
    """

    traces = False

    def __init__(self, sent: set[bytes]) -> None:
        """Begin with nothing.

        Args:
            sent: Where to note the texts.
        """
        super().__init__()
        self._sent = sent

    def begin(self) -> None:
        """Note that something is about to be sent for a cursor."""

    def note(self, text: bytes) -> None:
        """Note that a statement was sent.

        Args:
            text: The statement.
        """

    def maybe_add_to_cache(self, query: PostgresQuery, prep: Prepare, name: bytes) -> Key | None:
        """Note what was sent, as psycopg asks whether to prepare it the next time."""
        self._sent.add(query.query)
        if self.traces:
            self.note(query.query)
        return PrepareManager.maybe_add_to_cache(self, query, prep, name)

    def forget(self) -> list[bytes]:
        """Keep nothing of what was prepared; the server need not be told if it has forgotten it, too.

        Returns:
            The names of what the server had prepared.
        """
        names = [*self._names.values()]
        self._counts.clear()
        self._names.clear()
        self._to_flush.clear()
        return names

    def deallocate_later(self, names: Iterable[bytes]) -> None:
        """Have the server forget what was prepared as soon as it listens again.

        Args:
            names: The names; others may have been prepared by then.
        """
        self._to_flush.extend(names)
