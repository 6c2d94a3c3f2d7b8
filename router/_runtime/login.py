"""How libpq is made to say what a server refused a login with: its SQLSTATE, which is the same in every language."""

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

# What libpq adds where it is verbose, in any language: "SEVERITY:  SQLSTATE: message", and at the end of what the
# server said a line with the routine, file and line in PostgreSQL's source.
_SQLSTATE = r"(?<!\S)(\S+:  )([0-9A-Z]{5}): "
_LOCATION = r"\n[^\n]*?:\s+(\w+), [^\n,]+:\d+(?=\n|\Z)"


LOCAL_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL)
"""How the system says that a process has no file descriptor, memory or port left."""


class LoginFailed(psycopg.OperationalError):
    """A connection could not be opened.

    Attributes:
        sqlstate: What the server refused it with; ``None`` if it said nothing.
        routine: Where in PostgreSQL's source; empty if it did not say.
    """

    def __init__(self, verbose: str, pgconn: abc.PGconn) -> None:
        """Take apart what libpq says.

        Args:
            verbose: Its message, verbose or not.
            pgconn: The connection.
        """
        super().__init__(re.sub(_LOCATION, "", re.sub(_SQLSTATE, r"\1", verbose)), pgconn=pgconn)
        said, where = re.search(_SQLSTATE, verbose), re.search(_LOCATION, verbose)
        self.sqlstate = said[2] if said else None
        self.routine = where[1] if where else ""


def log_in(conninfo: str, encoding: str, set_verbosity: Callable[[abc.PGconn, int], None]) -> PQGenConn[abc.PGconn]:
    """Open a connection: what ``psycopg.generators.connect`` does, while libpq is verbose.

    Args:
        conninfo: The connection string.
        encoding: What libpq's messages are written in.
        set_verbosity: Libpq's ``PQsetErrorVerbosity``.

    Returns:
        The connection.

    Raises:
        LoginFailed: It could not be opened.
        OSError: It could not, for want of something that this process has too little of.
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
    silent = not pgconn.error_message  # as libpq 18 is if it gets no socket
    error = LoginFailed(verbose, finish_pgconn(pgconn))
    if error.sqlstate is None:
        for number in LOCAL_ERRORS:  # libpq has its words from where Python has them, in the same language
            if os.strerror(number) in verbose:
                return OSError(number, os.strerror(number))
        if silent:
            try:
                socket.socket().close()
            except OSError as lacking:
                return lacking
            return OSError("libpq does not say why")
    return error
