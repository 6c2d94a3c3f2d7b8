"""A connection to a transaction pooler, where a session ends with each transaction."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import psycopg

from router._async.pool.connection import AsyncNodeConnection
from router._async.pool.inside.connection import in_pipeline
from router._async.pool.scripts import sent

if TYPE_CHECKING:
    from psycopg.abc import PQGen, QueryNoTemplate
    from psycopg.pq import Format


class AsyncPooledConnection(AsyncNodeConnection):
    """A connection to a transaction pooler: whatever a tenant's session is set to rides with each BEGIN.

    Attributes:
        begin_suffix: What goes after each BEGIN; empty for nothing.
    """

    begin_suffix = b""

    def begin_command(self) -> bytes:
        """Tell what a transaction is begun with: the tenant's settings go with it."""
        begin = super().begin_command()
        return begin + b"; " + self.begin_suffix if self.begin_suffix else begin

    def note_statement(self, *, commits_itself: bool) -> None:
        """Refuse a statement before which no transaction is begun.

        Args:
            commits_itself: As for any connection.

        Raises:
            psycopg.ProgrammingError: It would not be the tenant's: the settings go with ``BEGIN``.
        """
        if self.autocommit and self.begin_suffix:
            raise psycopg.ProgrammingError(
                "behind a transaction pooler a tenant's statements run in transactions: in autocommit it would be lost"
            )
        super().note_statement(commits_itself=commits_itself)

    def run_command(self, command: QueryNoTemplate, result_format: Format) -> PQGen[Any]:
        """Run what psycopg sends by itself; of ``BEGIN`` and the tenant's settings, both.

        Args:
            command: What it sends.
            result_format: How the answer is to come.

        Returns:
            The generator for it.
        """
        if not self.begin_suffix or not isinstance(command, bytes) or not command.endswith(self.begin_suffix):
            return super().run_command(command, result_format)
        return self._begin_in_pipeline(command, result_format) if in_pipeline(self) else sent(self, command, inf)

    def _begin_in_pipeline(self, command: bytes, result_format: Format) -> PQGen[None]:
        """Send both statements by themselves: in a pipeline each goes alone, and costs no round trip."""
        yield from super().run_command(command.removesuffix(b"; " + self.begin_suffix), result_format)
        yield from super().run_command(self.begin_suffix, result_format)
