"""The inside of psycopg's prepared statements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router._async.pool.inside.imports import PrepareManager

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg._preparing import Key, Prepare
    from psycopg._queries import PostgresQuery


class PreparedStatements(PrepareManager):
    """The prepared statements of a session; it also notes the texts of the statements that were sent.

    psycopg calls it for each statement between sending and waiting, except for statements of ``copy()``, ``stream()``
    and server-side cursors.

    Attributes:
        traces: Whether :meth:`begin` and :meth:`note` have to be called for each statement.
    """

    traces = False

    def __init__(self, sent: set[bytes]) -> None:
        """Begin without prepared statements.

        Args:
            sent: The set to which the texts are added.
        """
        super().__init__()
        self._sent = sent

    def begin(self) -> None:
        """Note that a cursor is about to send a statement."""

    def note(self, text: bytes) -> None:
        """Note that a statement was sent.

        Args:
            text: The statement.
        """

    def maybe_add_to_cache(self, query: PostgresQuery, prep: Prepare, name: bytes) -> Key | None:
        """Note the statement, when psycopg asks whether to prepare it the next time."""
        self._sent.add(query.query)
        if self.traces:
            self.note(query.query)
        return PrepareManager.maybe_add_to_cache(self, query, prep, name)

    def forget(self) -> list[bytes]:
        """Forget all prepared statements, without telling the server.

        Returns:
            The names of the statements that the server may still have.
        """
        names = [*self._names.values()]
        self._counts.clear()
        self._names.clear()
        self._to_flush.clear()
        return names

    def deallocate_later(self, names: Iterable[bytes]) -> None:
        """Make the server drop prepared statements as soon as it accepts statements again.

        Args:
            names: The names of the statements; others may have been prepared by then.
        """
        self._to_flush.extend(names)
