"""Operations on sockets instead of sessions: ping a server, cut a connection, tell its silence, await its end."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import psycopg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg.pq.abc import PGconn


_ASKS_FOR_TLS = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")  # the SSLRequest of PostgreSQL's protocol


async def aping(addresses: Sequence[str], port: int, timeout: float) -> bool:
    """Tell whether a PostgreSQL server or a pooler reacts at all, without a session, by asking whether it accepts TLS.

    Args:
        addresses: Its addresses, or the directory of its socket.
        port: Its port.
        timeout: The most to wait for each address, in seconds.

    Returns:
        Whether it reacts; also true if this process itself cannot try any of the addresses.
    """
    asked = False
    for address in addresses:
        try:
            async with asyncio.timeout(timeout):
                if address.startswith("/"):
                    reader, writer = await asyncio.open_unix_connection(f"{address}/.s.PGSQL.{port}")
                else:
                    reader, writer = await asyncio.open_connection(address, port)
                try:
                    writer.write(_ASKS_FOR_TLS)
                    await reader.read(1)
                finally:
                    writer.close()
        except (ConnectionError, FileNotFoundError, TimeoutError):
            asked = True
        except OSError:  # this process cannot, without IPv6 say
            pass
        else:
            return True
    return not asked


def ping(addresses: Sequence[str], port: int, timeout: float) -> bool:
    """Tell whether a PostgreSQL server or a pooler reacts at all, without a session, by asking whether it accepts TLS.

    Args:
        addresses: Its addresses, or the directory of its socket.
        port: Its port.
        timeout: The most to wait for each step with each address, in seconds.

    Returns:
        Whether it reacts; also true if this process itself cannot try any of the addresses.
    """
    asked = False
    for address in addresses:
        try:
            if address.startswith("/"):
                door = socket.socket(socket.AF_UNIX)
                door.settimeout(timeout)
                with door:
                    door.connect(f"{address}/.s.PGSQL.{port}")
                    door.sendall(_ASKS_FOR_TLS)
                    door.recv(1)
            else:
                with socket.create_connection((address, port), timeout) as door:
                    door.sendall(_ASKS_FOR_TLS)
                    door.recv(1)
        except (ConnectionError, FileNotFoundError, TimeoutError):
            asked = True
        except OSError:  # this process cannot, without IPv6 say
            pass
        else:
            return True
    return not asked


class HasPgconn(Protocol):
    """A connection or session, which has a connection of libpq."""

    @property
    def pgconn(self) -> PGconn: ...


def cut(connection: HasPgconn) -> None:
    """Shut a connection's socket down, although it may be in use: a query over it then fails with a lost connection.

    The connection is not closed here: that would free memory that libpq may be using in another thread or for a
    suspended task.

    Args:
        connection: The connection to cut.
    """
    with (
        suppress(OSError, psycopg.OperationalError),  # the connection is closed already
        socket.socket(fileno=os.dup(connection.pgconn.socket)) as duplicate,
    ):
        duplicate.shutdown(socket.SHUT_RDWR)


def quiet_for(connection: HasPgconn) -> float:
    """Tell for how long nothing has been sent or received over a connection, not even a part of a message.

    Args:
        connection: The connection.

    Returns:
        The seconds since the last byte in either direction; 0 where the system does not tell (it does on Linux, for
        TCP).
    """
    if sys.platform == "linux":
        with (
            suppress(OSError, psycopg.OperationalError),
            socket.socket(fileno=os.dup(connection.pgconn.socket)) as duplicate,
        ):
            told = duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            sent, received = _TCP_INFO.unpack(told)
            return float(min(sent, received)) / 1000.0
    return 0.0


_TCP_INFO = struct.Struct("44x I 4x I")  # of the kernel's tcp_info: milliseconds since data was sent, and was received


async def await_end(end: socket.socket, timeout: float) -> None:
    """Wait until the other side of a socket has closed it.

    Args:
        end: The socket; data that arrives is read and dropped.
        timeout: The most to wait, in seconds.
    """
    end.settimeout(0.0)
    with suppress(OSError):
        async with asyncio.timeout(timeout):
            while await asyncio.get_running_loop().sock_recv(end, 4096):
                pass


def wait_end(end: socket.socket, timeout: float) -> None:
    """Wait until the other side of a socket has closed it.

    Args:
        end: The socket; data that arrives is read and dropped.
        timeout: The most to wait, in seconds.
    """
    deadline = time.monotonic() + timeout
    with suppress(OSError):
        while (left := deadline - time.monotonic()) > 0.0:
            end.settimeout(left)
            if not end.recv(4096):
                return
