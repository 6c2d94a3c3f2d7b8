"""How servers are set up: their settings, a free port, and how long something is waited for."""

from __future__ import annotations

import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from router.testing._keeper import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

    Setting = str | int | float | bool


HOST = "127.0.0.1"
USER = "postgres"
INITDB = (
    *("-U", USER, "-A", "trust", "--encoding=UTF8", "--locale=C", "--wal-segsize=1", "--no-sync"),
    # A standby refuses to start with less than its data directory was last used with: so begin with the least there is.
    *("-c", "max_connections=4", "-c", "max_worker_processes=0", "-c", "max_wal_senders=0"),
    *("-c", "max_locks_per_transaction=10"),
    *("-c", "dynamic_shared_memory_type=mmap"),  # see below; initdb may be killed, too
)
SETTINGS: dict[str, Setting] = {
    "fsync": False,
    "shared_buffers": "16MB",
    # In the data directory instead of /dev/shm: removed with it, and containers have 64 MB there.
    "dynamic_shared_memory_type": "mmap",
    # A standby that was away finds what it missed, without a slot that no failover would carry over.
    "wal_keep_size": "512MB",
    "max_wal_size": "256MB",
    "wal_retrieve_retry_interval": "100ms",
    "wal_receiver_status_interval": 1,
    "log_line_prefix": "%m [%p] ",
}
PATIENCE = 30.0
"""Seconds that a server has for anything."""


def wait_until(condition: Callable[[], object], problem: Callable[[], str]) -> None:
    """Wait until a condition holds.

    Args:
        condition: It holds when this returns something true.
        problem: Says what is wrong if it does not come to hold.

    Raises:
        ClusterError: It did not hold in time.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(problem())
        time.sleep(0.005)


def literal(value: Setting) -> str:
    """Write a value as ``postgresql.conf`` takes it.

    Args:
        value: The value.

    Returns:
        It, quoted.
    """
    text = ("on" if value else "off") if isinstance(value, bool) else str(value)
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def free_port() -> int:
    """Find a port that is free now, outside the range that outgoing connections draw theirs from.

    Within that range, some connection could take the port of a server that is stopped for a moment.

    Returns:
        The port.
    """
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="utf-8").split()[0])
    first, end = (10000, low) if low > 11000 else (10000, 65536)  # noqa: PLR2004 - enough to choose from
    while True:
        port = first + secrets.randbelow(end - first)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port
