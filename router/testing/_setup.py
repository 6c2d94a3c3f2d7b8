"""The settings of servers, a free port for one, and waiting with a deadline."""

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
    # A standby refuses to start with lower limits than its data directory was last used with: so begin with the lowest.
    *("-c", "max_connections=4", "-c", "max_worker_processes=0", "-c", "max_wal_senders=0"),
    *("-c", "max_locks_per_transaction=10"),
    *("-c", "dynamic_shared_memory_type=mmap"),  # as in SETTINGS: initdb may be killed, too
)
SETTINGS: dict[str, Setting] = {
    "fsync": False,
    "shared_buffers": "16MB",
    # In the data directory instead of /dev/shm: it is removed with it, and containers have only 64 MB in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
    # A standby that was stopped finds the WAL it missed without a replication slot, which a failover would not keep.
    "wal_keep_size": "512MB",
    "max_wal_size": "256MB",
    "wal_retrieve_retry_interval": "100ms",
    "wal_receiver_status_interval": 1,
    "log_line_prefix": "%m [%p] ",
}
PATIENCE = 30.0
"""The most seconds to wait for anything that a server does."""


def wait_until(condition: Callable[[], object], problem: Callable[[], str]) -> None:
    """Wait until a condition holds.

    Args:
        condition: Returns a true value once the condition holds.
        problem: Returns the error's message if it does not hold in time.

    Raises:
        ClusterError: The condition did not hold in time.
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
        The value, quoted.
    """
    text = ("on" if value else "off") if isinstance(value, bool) else str(value)
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def free_port() -> int:
    """Find a port that is free now, outside the range of ports for outgoing connections.

    Within that range, an outgoing connection could take the port of a server that is stopped for a moment.

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
