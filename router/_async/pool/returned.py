"""The class of connection objects whose block has ended: every use of one raises."""

from __future__ import annotations

from typing import Any, Self

import psycopg

from router._async.pool.connection import AsyncNodeConnection
from router._async.pool.inside.connection import PUT_BACK, GonePgconn


def given_back(borrowed_at: tuple[str, int] | None) -> psycopg.InterfaceError:
    """Make the error for a use of a connection after its block.

    Args:
        borrowed_at: The file and line where it was borrowed, if they were noted.

    Returns:
        The error.
    """
    where = "" if borrowed_at is None else f" This one was borrowed in {borrowed_at[0]}, line {borrowed_at[1]}."
    return psycopg.InterfaceError(
        "the block that borrowed this connection has ended, or it was closed: it was given back, and cannot be used "
        f"any more. Borrow another one.{where}"
    )


def borrowed_before_fork(borrowed_at: tuple[str, int] | None) -> str:
    """Explain why a connection that was borrowed before a ``fork()`` cannot be used in the child.

    Args:
        borrowed_at: The file and line where it was borrowed, if they were noted.

    Returns:
        The explanation.
    """
    where = "" if borrowed_at is None else f" This one was borrowed in {borrowed_at[0]}, line {borrowed_at[1]}."
    return (
        "this connection was borrowed before the fork, and belongs to the parent process: borrow another one in this "
        f"process.{where}"
    )


class AsyncReturnedConnection(AsyncNodeConnection):
    """A connection object whose block has ended: the session has moved on to another object.

    This becomes the class of the object that was borrowed. So everything kept from the block (the connection, a cursor,
    a transaction, a pipeline, a bound method) raises as soon as it is used. Closing it again is allowed, and so is a
    cursor's ``close()``, which takes the lock and reads whether the connection is closed.
    """

    __slots__ = ()

    closed = True

    @property
    def broken(self) -> bool:
        """Whether the connection was lost before its block ended."""
        return bool(self.__dict__.get("_was_broken"))

    def __getattribute__(self, name: str) -> Any:
        if name in _HARMLESS or name.startswith("__"):
            return object.__getattribute__(self, name)
        attributes = object.__getattribute__(self, "__dict__")
        borrowed_at = attributes.get("_borrowed_at")
        if name == "pgconn":
            return GonePgconn(given_back(borrowed_at), attributes["_router"].client_encoding)
        raise given_back(borrowed_at)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HARMLESS:
            raise given_back(self.__dict__.get("_borrowed_at"))
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise given_back(self.__dict__.get("_borrowed_at"))

    async def __aenter__(self) -> Self:
        """Refuse to begin a block."""
        raise given_back(self.__dict__.get("_borrowed_at"))

    def __repr__(self) -> str:
        return f"<a connection that was given back, at {id(self):#x}>"

    __del__ = tuple  # type: ignore[assignment]  # the cheapest callable that does nothing

    async def close(self) -> None:
        """Do nothing: for its borrower the connection is closed already."""


_HARMLESS = PUT_BACK | {"broken", "close", "closed", "lock"}
