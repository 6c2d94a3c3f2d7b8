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
    """A connection to a transaction pooler: a tenant's settings are sent with each BEGIN.

    Attributes:
        begin_suffix: The statement that is sent with each BEGIN; empty for none.
    """

    begin_suffix = b""

    def begin_command(self) -> bytes:
        """Return the command that begins a transaction, with the tenant's settings."""
        begin = super().begin_command()
        return begin + b"; " + self.begin_suffix if self.begin_suffix else begin

    def note_statement(self, *, commits_itself: bool) -> None:
        """Refuse a statement outside of a transaction.

        Args:
            commits_itself: Whether no transaction is begun before it.

        Raises:
            psycopg.ProgrammingError: The statement would run without the tenant's settings, which are sent with
                ``BEGIN``.
        """
        if self.autocommit and self.begin_suffix:
            raise psycopg.ProgrammingError(
                "behind a transaction pooler a tenant's statements run in transactions: in autocommit it would be lost"
            )
        super().note_statement(commits_itself=commits_itself)

    def run_command(self, command: QueryNoTemplate, result_format: Format) -> PQGen[Any]:
        """Run a command that psycopg sends by itself; for ``BEGIN`` with the tenant's settings, both statements.

        Args:
            command: The command.
            result_format: The format of the result.

        Returns:
            The generator that runs it.
        """
        if not self.begin_suffix or not isinstance(command, bytes) or not command.endswith(self.begin_suffix):
            return super().run_command(command, result_format)
        return self._begin_in_pipeline(command, result_format) if in_pipeline(self) else sent(self, command, inf)

    def _begin_in_pipeline(self, command: bytes, result_format: Format) -> PQGen[None]:
        """Send the two statements one by one: a pipeline takes single statements, and they cost no round trip there."""
        yield from super().run_command(command.removesuffix(b"; " + self.begin_suffix), result_format)
        yield from super().run_command(self.begin_suffix, result_format)
