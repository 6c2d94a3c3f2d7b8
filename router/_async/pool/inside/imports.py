"""The names from undocumented modules of psycopg and psycopg_pool; one readable error is raised if one is missing."""

from __future__ import annotations

from router._runtime.releases import unfit

try:
    from psycopg._compat import Interpolation, Template  # Python's own classes, if it has them
    from psycopg._encodings import conninfo_encoding, pg2pyenc
    from psycopg._preparing import PrepareManager
    from psycopg_pool.pool_async import AddConnection, MaintenanceTask
except ImportError as error:
    raise unfit([str(error)]) from error

__all__ = [
    "AddConnection", "Interpolation", "MaintenanceTask", "PrepareManager", "Template", "conninfo_encoding",
    "pg2pyenc",
]  # fmt: skip
