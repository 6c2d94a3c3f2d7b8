"""What a session has written, so that its reads see it: kept per task or thread, and handed on as a token."""

from __future__ import annotations

from contextvars import ContextVar
from threading import Lock
from typing import TYPE_CHECKING, Literal, Self

from router.consistency import Token
from router.errors import TokenRefused

if TYPE_CHECKING:
    from router.consistency import Position
    from router.topology import TokenPolicy


class Session:
    """Makes the reads of this task or thread see this session's writes; a context manager, made by ``session()``.

    Tasks started inside its block share it; threads do not, they are handed ``token``. Inside the block of another
    session of the same router, reads see what either has to see, and both note what is written.
    """

    __slots__ = ("_guard", "_open", "_outer", "_owner", "_policy", "_token")

    def __init__(self, owner: object, policy: TokenPolicy, token: str | None) -> None:
        """Begin where a token ends.

        Args:
            owner: The router it is for.
            policy: How tokens are made and read.
            token: What an earlier session handed on; ``None`` for nothing.

        Raises:
            TokenRefused: The token is not one of this router's, and ``tokens.foreign`` is ``refuse``.
        """
        self._owner = owner
        self._policy = policy
        self._token = parsed(token, policy)
        self._guard = Lock()  # guards the replacing of _token: tasks and threads may share a session
        self._open = False
        self._outer: Session | None = None

    @property
    def token(self) -> str:
        """What it has written so far, and what it began with: URL-safe text, empty while that is nothing."""
        return self._token.text(self._policy.key)

    def positions(self, version: str) -> list[Position]:
        """List what its reads of a version have to see.

        Args:
            version: The version's key.

        Returns:
            Its own position and those of the sessions around it, outermost first; none where nothing was written.
        """
        own, around = self._token.of(version), self._around()
        return [*([] if around is None else around.positions(version)), *([] if own is None else [own])]

    def wrote(self, version: str, position: Position) -> None:
        """Note that a write was committed.

        Args:
            version: The version's key.
            position: Where its WAL ended after that.
        """
        with self._guard:
            self._token = self._token.at(version, position)
        if (around := self._around()) is not None:
            around.wrote(version, position)

    def __enter__(self) -> Self:
        """Have the requests of this task or thread belong to it."""
        if self._open:
            raise RuntimeError("this session is in use: call session() once for each block")
        self._open = True
        self._outer = _in_force()
        CURRENT.set(self)
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        """Leave what was before in force; the token stays readable."""
        self._open = False
        # A generator may be closed while a later session is in force, or in another context: then it is passed over.
        CURRENT.set(_in_force())
        return False

    def in_force(self) -> Session | None:
        """Find the innermost session that is not over.

        Returns:
            This session or one around it; ``None`` when they are all over.
        """
        if self._open:
            return self
        return None if self._outer is None else self._outer.in_force()

    def of(self, owner: object) -> Session | None:
        """Find the innermost session of a router.

        Args:
            owner: The router.

        Returns:
            This session or one around it; ``None`` when they are of other routers, or over.
        """
        if self._open and self._owner is owner:
            return self
        return None if self._outer is None else self._outer.of(owner)

    def _around(self) -> Session | None:
        return None if self._outer is None else self._outer.of(self._owner)

    def __repr__(self) -> str:
        """Show the positions, not the token."""
        return f"<Session {self._token!r}>"


def parsed(text: str | None, policy: TokenPolicy) -> Token:
    """Read a token, or take a foreign one as none, as the settings say.

    Args:
        text: The token; ``None`` for none.
        policy: How tokens are read.

    Returns:
        What it says.

    Raises:
        TokenRefused: It cannot be read, and ``tokens.foreign`` is ``refuse``.
    """
    if not text:
        return Token()
    try:
        return Token.parse(text, policy.key)
    except TokenRefused:
        if policy.foreign == "refuse":
            raise
        return Token()


CURRENT: ContextVar[Session | None] = ContextVar("router_session", default=None)
"""The innermost session of this task or thread; its default is none, so that a thread never gets one by accident."""


def _in_force() -> Session | None:
    current = CURRENT.get()
    return None if current is None else current.in_force()


def current(owner: object) -> Session | None:
    """Find the session that the requests of this task or thread belong to.

    Args:
        owner: The router they are made to.

    Returns:
        The innermost one of that router; ``None`` outside of any.
    """
    innermost = CURRENT.get()
    return None if innermost is None else innermost.of(owner)
