"""Opens a connection so that libpq reports the SQLSTATE of a refused login, which is the same in every language."""

from __future__ import annotations

import errno
import os
import re
import socket
from typing import TYPE_CHECKING

import psycopg
from psycopg.errors import finish_pgconn
from psycopg.pq import ConnStatus, PGconn, PollingStatus
from psycopg.waiting import Wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.abc import PQGenConn
    from psycopg.pq import abc

_DEFAULT, _VERBOSE = 1, 2  # libpq's PGVerbosity

# A verbose libpq adds in any language: "SEVERITY:  SQLSTATE: message", and, after the server's message, a line with the
# routine, file and line in PostgreSQL's source.
_SQLSTATE = r"(?<!\S)(\S+:  )([0-9A-Z]{5}): "
_LOCATION = r"\n[^\n]*?:\s+(\w+), [^\n,]+:\d+(?=\n|\Z)"


LOCAL_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL)
"""The error numbers for a process that has no file descriptor, memory or port left."""


class LoginFailed(psycopg.OperationalError):
    """A connection could not be opened.

    Attributes:
        sqlstate: The SQLSTATE of the server's error; ``None`` if the server sent no error.
        routine: The routine in PostgreSQL's source that reported it; empty if unknown.
    """

    def __init__(self, verbose: str, pgconn: abc.PGconn) -> None:
        """Take the SQLSTATE and the routine out of libpq's message.

        Args:
            verbose: The message, verbose or not.
            pgconn: The connection.
        """
        super().__init__(re.sub(_LOCATION, "", re.sub(_SQLSTATE, r"\1", verbose)), pgconn=pgconn)
        said, where = re.search(_SQLSTATE, verbose), re.search(_LOCATION, verbose)
        self.sqlstate = said[2] if said else None
        self.routine = where[1] if where else ""


def log_in(conninfo: str, encoding: str, set_verbosity: Callable[[abc.PGconn, int], None]) -> PQGenConn[abc.PGconn]:
    """Open a connection as ``psycopg.generators.connect`` does, but with a verbose libpq.

    Args:
        conninfo: The connection string.
        encoding: The encoding of libpq's messages.
        set_verbosity: Libpq's ``PQsetErrorVerbosity``.

    Returns:
        The connection.

    Raises:
        LoginFailed: The connection could not be opened.
        OSError: This process lacks a file descriptor, memory or a port for it.
    """
    pgconn = PGconn.connect_start(conninfo.encode())
    set_verbosity(pgconn, _VERBOSE)
    while True:
        if pgconn.status == ConnStatus.BAD:
            raise _failure(f"connection is bad: {pgconn.get_error_message(encoding)}", pgconn)
        match pgconn.connect_poll():
            case PollingStatus.OK:
                break
            case PollingStatus.FAILED:
                raise _failure(f"connection failed: {pgconn.get_error_message(encoding)}", pgconn)
            case state:
                wait = Wait.R if state == PollingStatus.READING else Wait.W
                while not (yield pgconn.socket, wait):
                    pass
    set_verbosity(pgconn, _DEFAULT)
    pgconn.nonblocking = 1
    return pgconn


def _failure(verbose: str, pgconn: abc.PGconn) -> LoginFailed | OSError:
    silent = not pgconn.error_message  # libpq 18 has no message if it gets no socket
    error = LoginFailed(verbose, finish_pgconn(pgconn))
    if error.sqlstate is None:
        for number in LOCAL_ERRORS:  # libpq takes its text from strerror(), as Python does, in the same language
            if os.strerror(number) in verbose:
                return OSError(number, os.strerror(number))
        if silent:
            try:
                socket.socket().close()
            except OSError as lacking:
                return lacking
            return OSError("libpq does not say why")
    return error
