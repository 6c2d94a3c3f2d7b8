# Generated from router/_async/pool/pooled.py by tools/async_to_sync.py: do not edit.
"""A connection to a transaction pooler, where a session ends with each transaction."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import Format

from router._sync.pool.connection import NodeConnection
from router._sync.pool.scripts import sent

if TYPE_CHECKING:
    from psycopg.abc import PQGen, QueryNoTemplate


class PooledConnection(NodeConnection):
    """A connection to a transaction pooler: whatever a tenant's session is set to rides with each BEGIN.

    Attributes:
        begin_suffix: What goes after each BEGIN; empty for nothing.
    """

    begin_suffix = b""

    def _get_tx_start_command(self) -> bytes:
        begin = super()._get_tx_start_command()
        return begin + b"; " + self.begin_suffix if self.begin_suffix else begin

    def _start_query(self) -> PQGen[None]:
        if self._autocommit and self.begin_suffix:
            raise psycopg.ProgrammingError(
                "behind a transaction pooler a tenant's statements run in transactions: in autocommit it would be lost"
            )
        return super()._start_query()

    def _exec_command(self, command: QueryNoTemplate, result_format: Format = Format.TEXT) -> PQGen[Any]:
        if not self.begin_suffix or not isinstance(command, bytes) or not command.endswith(self.begin_suffix):
            return super()._exec_command(command, result_format)
        return self._begin_in_pipeline(command, result_format) if self._pipeline else sent(self, command, inf)

    def _begin_in_pipeline(self, command: bytes, result_format: Format) -> PQGen[None]:
        """Send both statements by themselves: in a pipeline each goes alone, and costs no round trip."""
        yield from super()._exec_command(command.removesuffix(b"; " + self.begin_suffix), result_format)
        yield from super()._exec_command(self.begin_suffix, result_format)
