"""What a session has written, so that its reads see it: kept per task or thread, and handed on as a token."""

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
    """Makes the reads of this task or thread see this session's writes; a context manager, made by ``session()``.

    Tasks started inside its block share it; threads do not, they are handed ``token``. Inside the block of another
    session of the same settings, reads see what either has to see, and both note what is written.
    """

    __slots__ = ("_guard", "_policy", "_token")

    guard = "session()"

    def __init__(self, owner: object, policy: TokenPolicy, token: str | None) -> None:
        """Begin where a token ends.

        Args:
            owner: What it is for: the routers with the same settings.
            policy: How tokens are made and read.
            token: What an earlier session handed on; ``None`` for nothing.

        Raises:
            TokenRefused: The token is not one of this router's, and ``tokens.foreign`` is ``refuse``.
        """
        super().__init__(owner)
        self._policy = policy
        self._token = parsed(token, policy)
        self._guard = Lock()  # guards the replacing of _token: tasks and threads may share a session

    @property
    def token(self) -> str:
        """What it has written so far, and what it began with: URL-safe text, empty while that is nothing."""
        return self._token.text(self._policy.key)

    def whole_token(self) -> str:
        """Write what its reads have to see: its own token, and those of the sessions around it.

        Returns:
            URL-safe text, empty for nothing.
        """
        return self._whole().text(self._policy.key)

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


def current_session(owner: object) -> Session | None:
    """Find the session that the requests of this task or thread belong to.

    Args:
        owner: What they are made to: the routers with the same settings.

    Returns:
        The innermost one; ``None`` outside of any.
    """
    return next((block for block in blocks(owner) if isinstance(block, Session)), None)
