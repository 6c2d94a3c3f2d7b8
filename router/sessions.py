"""Sessions: the positions that a task or thread has written, so that its reads see them, and their tokens."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from router.context import Block, blocks
from router.core.consistency import Token
from router.core.errors import TokenRefused

if TYPE_CHECKING:
    from router.core.consistency import Position
    from router.core.policies import TokenPolicy


class Session(Block):
    """A context manager, made by ``session()``, that makes the reads of this task or thread see its writes.

    Tasks started inside its block share it. Threads do not: pass them ``token``. Inside the block of another
    session of the same settings, reads see the writes of both sessions, and both note what is written.
    """

    __slots__ = ("_guard", "_policy", "_token")

    guard = "session()"

    def __init__(self, owner: object, policy: TokenPolicy, token: str | None) -> None:
        """Make a session that starts at the positions of a token.

        Args:
            owner: The owner of the block: the routers with the same settings.
            policy: How tokens are made and read.
            token: The token of an earlier session; ``None`` for none.

        Raises:
            TokenRefused: The token is not one of this router's, and ``tokens.foreign`` is ``refuse``.
        """
        super().__init__(owner)
        self._policy = policy
        self._token = parsed(token, policy)
        self._guard = Lock()  # guards the replacing of _token: tasks and threads may share a session

    @property
    def token(self) -> str:
        """The positions that it has written, and those it started with, as URL-safe text; empty if there are none."""
        return self._token.text(self._policy.key)

    def whole_token(self) -> str:
        """Return one token for all that its reads have to see: its own positions, and those of the sessions around it.

        Returns:
            URL-safe text, empty if there are none.
        """
        return self._whole().text(self._policy.key)

    def positions(self, version: str) -> list[Position]:
        """List the positions that its reads of a version have to see.

        Args:
            version: The version's key.

        Returns:
            Its own position and those of the sessions around it, outermost first; empty if nothing was written.
        """
        own, around = self._token.of(version), self._around()
        return [*([] if around is None else around.positions(version)), *([] if own is None else [own])]

    def wrote(self, version: str, position: Position) -> None:
        """Note that a write was committed.

        Args:
            version: The version's key.
            position: The end of the version's WAL after the commit.
        """
        with self._guard:
            self._token = self._token.at(version, position)
        if (around := self._around()) is not None:
            around.wrote(version, position)

    def _whole(self) -> Token:
        around = self._around()
        return self._token if around is None else around._whole().merged(self._token)  # noqa: SLF001  (of its own kind)

    def _around(self) -> Session | None:
        outer = self.around()
        while outer is not None:
            if outer.owner is self.owner and isinstance(outer, Session):
                return outer
            outer = outer.around()
        return None

    def __repr__(self) -> str:
        """Show the positions, not the token."""
        return f"<Session {self._token!r}>"


def parsed(text: str | None, policy: TokenPolicy) -> Token:
    """Read a token; by the settings, a foreign token is ignored or refused.

    Args:
        text: The token; ``None`` for none.
        policy: How tokens are read.

    Returns:
        The positions in it; none if it is ignored.

    Raises:
        TokenRefused: The token cannot be read, and ``tokens.foreign`` is ``refuse``.
    """
    if not text:
        return Token()
    try:
        return Token.parse(text, policy.key)
    except TokenRefused:
        if policy.foreign == "refuse":
            raise
        return Token()


def current_session(owner: object) -> Session | None:
    """Find the session in force for the requests of this task or thread.

    Args:
        owner: The owner of the blocks: the routers with the same settings.

    Returns:
        The innermost session; ``None`` outside of a session.
    """
    return next((block for block in blocks(owner) if isinstance(block, Session)), None)
