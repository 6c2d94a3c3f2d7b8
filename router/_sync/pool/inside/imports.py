# Generated from router/_async/pool/inside/imports.py by tools/async_to_sync.py: do not edit.
"""What is taken from modules of psycopg and psycopg_pool that are not documented; one error tells if any is gone."""

from __future__ import annotations

from router._runtime.releases import unfit

try:
    from psycopg._compat import Interpolation, Template  # Python's own, where it has them
    from psycopg._encodings import conninfo_encoding, pg2pyenc
    from psycopg._preparing import PrepareManager
    from psycopg_pool.pool import AddConnection, MaintenanceTask
except ImportError as error:
    raise unfit([str(error)]) from error

__all__ = [
    "AddConnection", "Interpolation", "MaintenanceTask", "PrepareManager", "Template", "conninfo_encoding",
    "pg2pyenc",
]  # fmt: skip
