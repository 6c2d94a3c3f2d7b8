"""The libpq that psycopg was loaded with, for a function that psycopg does not offer."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from psycopg.pq import PGconn

if TYPE_CHECKING:
    from collections.abc import Callable


@cache
def verbosity_setter() -> Callable[[Any, int], None]:
    """Find libpq's ``PQsetErrorVerbosity``, in the same libpq that psycopg's module was loaded with.

    Returns:
        A function of a libpq connection and the verbosity; it does nothing if libpq's cannot be found.
    """
    implementation = sys.modules[PGconn.__module__]
    try:
        if PGconn.__module__.startswith("psycopg."):  # psycopg's implementation in Python
            from psycopg.pq import _pq_ctypes

            libpq: ctypes.CDLL = vars(_pq_ctypes)["pq"]
        else:
            libpq = ctypes.CDLL(implementation.__file__)
        function = libpq.PQsetErrorVerbosity
    except (OSError, AttributeError):  # libpq may be linked statically
        return lambda *_: None
    function.argtypes = [ctypes.c_void_p, ctypes.c_int]

    def set_verbosity(pgconn: Any, verbosity: int) -> None:
        function(pgconn.pgconn_ptr, verbosity)

    return set_verbosity
