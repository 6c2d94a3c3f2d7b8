"""How far a read must see: WAL positions, and the token that passes them from a write to the reads after it.

A write is visible on a standby that has replayed the WAL up to where the write ended. A :class:`Position` names that
place, and a :class:`Token` holds one position for each version that was written to. The token's text goes into a
cookie, a header or a job.

PostgreSQL computes positions in ``src/backend/access/transam/xlog.c``. ``pg_current_wal_insert_lsn()`` reports where
the next record starts, after a page's header (``XLogBytePosToRecPtr()``). A standby reports where a record ends, before
the header (``XLogBytePosToEndRecPtr()``). :func:`without_page_header` makes the two comparable. Only positions of one
system and one timeline compare.
"""

from __future__ import annotations

import base64
import hmac
import struct
import zlib
from typing import NamedTuple

from router.core.errors import TokenRefused

_PAGE_BYTES = 8192
_HEADERS_BYTES = (24, 40)  # SizeOfXLogShortPHD; SizeOfXLogLongPHD, on the first page of a segment

_UNSIGNED, _SIGNED = 1, 2  # the first byte of a token
_ENTRY = struct.Struct(">IQIQ")  # fingerprint of the version, system, timeline, lsn
_SIGNATURE_BYTES = 16
_MAX_ENTRIES = 64
_MAX_CHARACTERS = (4 * (1 + _MAX_ENTRIES * _ENTRY.size + _SIGNATURE_BYTES) + 2) // 3


def lsn(text: str) -> int:
    """Read a WAL position as PostgreSQL writes it.

    Args:
        text: Such as ``16/B374D848``.

    Returns:
        The position in bytes.

    Raises:
        ValueError: It is not two hexadecimal numbers with a slash between them.
    """
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def lsn_text(position: int) -> str:
    """Write a WAL position as PostgreSQL does.

    Args:
        position: In bytes, below 2**64.

    Returns:
        Such as ``16/B374D848``.
    """
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def without_page_header(position: int) -> int:
    """Return the least position that a standby reports once it has replayed everything before an insert position.

    When the last record fills its page, ``pg_current_wal_insert_lsn()`` points after the header of the next page, where
    the next record will start. A standby reports where the last record ended, which is the start of that page, until
    something else is written. So a wait for the insert position itself could last for ever.

    On a page that is not the first of its segment, offset 40 may also be the end of a record that continues from the
    page before. The start of the page is right there, too: a replay position is always the end of a record, and this
    record began before the page, so a standby that reports the page's start or more has replayed it.

    This holds for the default ``wal_block_size`` of 8192 bytes.

    Args:
        position: From ``pg_current_wal_insert_lsn()``, taken after COMMIT, in bytes.

    Returns:
        The start of the page if the position is just after a page's header, else the position itself.
    """
    offset = position % _PAGE_BYTES
    return position - offset if offset in _HEADERS_BYTES else position


UNSURE = 2**64 - 1
"""A position that is never replayed: it stands for writes that may have been committed, at an unknown position."""


class Position(NamedTuple):
    """A position in the WAL of a cluster: where a write ended, or how far a standby has replayed.

    Attributes:
        system: The cluster's system identifier, unsigned; 0 while unknown.
        timeline: The timeline, from 1.
        lsn: The position in bytes, above 0.
    """

    system: int
    timeline: int
    lsn: int

    def __repr__(self) -> str:
        return f"{lsn_text(self.lsn)} on timeline {self.timeline}"

    def reached(self, timeline: int, lsn: int) -> bool:
        """Tell whether a replica of this system has replayed this position; on another timeline that is not known.

        Args:
            timeline: The timeline that the replica is on.
            lsn: How far it has replayed, in bytes.

        Returns:
            Whether it is known to have.
        """
        return timeline == self.timeline and lsn >= self.lsn


def later(one: Position | None, other: Position) -> Position:
    """Return which of two positions of the same version a read must wait for.

    Args:
        one: The position known before; ``None`` for none.
        other: The position observed since.

    Returns:
        ``other`` if the version has moved to another system; else the position on the higher timeline, or, on the same
        timeline, the higher position. An unknown system counts as the same one.
    """
    if one is None or (one.system != other.system and one.system and other.system):
        return other
    return max(one, other, key=lambda position: (position.timeline, position.lsn, position.system))


class Token(NamedTuple):
    """What reads must see: for each version that was written to, the position where the last write ended.

    The token's text is URL-safe base64, without padding, of a byte that says whether it is signed, the entries, and, if
    it is signed, the first 16 bytes of their HMAC-SHA256. The text for one version has 34 characters, or 55 if it is
    signed; the text of an empty token is empty.

    Attributes:
        entries: The position for the fingerprint of each version, ordered by fingerprint.
    """

    entries: tuple[tuple[int, Position], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.entries)

    def __repr__(self) -> str:
        return f"Token({', '.join(f'{version:08x}: {position}' for version, position in self.entries)})"

    def at(self, version: str, position: Position) -> Token:
        """Return the token after a write.

        Args:
            version: The version that was written to.
            position: Where the write ended.

        Returns:
            A token with the later of this position and the version's position so far. A position of :data:`UNSURE` is
            replaced, because any write that it stood for ended before this position.
        """
        written = Token(((_fingerprint(version), position),))
        known = self.of(version)
        if known is not None and known.lsn == UNSURE:
            return Token(tuple(sorted({**dict(self.entries), **dict(written.entries)}.items())))
        return self.merged(written)

    def of(self, version: str) -> Position | None:
        """Return the position that reads of a version must see.

        Args:
            version: The version's key.

        Returns:
            The position; ``None`` if the token has none for this version.
        """
        return dict(self.entries).get(_fingerprint(version))

    def merged(self, other: Token) -> Token:
        """Return a token that asks for everything that either of two tokens asks for.

        Args:
            other: The other token; it counts as the newer one if the two are of different systems.

        Returns:
            A token with the later position for each version that occurs in one of them.
        """
        known = dict(self.entries)
        known.update((version, later(known.get(version), position)) for version, position in other.entries)
        return Token(tuple(sorted(known.items())))

    def text(self, key: bytes | None) -> str:
        """Write the token as text.

        Args:
            key: The key to sign it with; ``None`` leaves it unsigned.

        Returns:
            Letters, digits, ``-`` and ``_``; empty for an empty token. With more than 64 versions, :meth:`parse`
            refuses it.
        """
        if not self.entries:
            return ""
        body = bytes([_UNSIGNED if key is None else _SIGNED]) + b"".join(
            _ENTRY.pack(version, position.system, position.timeline, position.lsn) for version, position in self.entries
        )
        return _encoded(body if key is None else body + _signature(key, body))

    @staticmethod
    def parse(text: str, key: bytes | None) -> Token:
        """Read a token that came back from a client, which may have sent anything.

        Args:
            text: The text that :meth:`text` wrote.
            key: The key that it must be signed with; ``None`` if it must be unsigned.

        Returns:
            The token; an empty text gives the empty token, even if there is a key.

        Raises:
            TokenRefused: The text is damaged, or was not made with this key. The message does not repeat the text.
        """
        if not text:
            return Token()
        raw = _decoded(text)
        if raw[0] == _SIGNED:
            if key is None:
                raise TokenRefused("the token is signed, but no key is set here: set the one it was signed with")
            raw, signature = raw[:-_SIGNATURE_BYTES], raw[-_SIGNATURE_BYTES:]
            if not hmac.compare_digest(signature, _signature(key, raw)):
                raise TokenRefused("the token's signature is wrong: it was changed, or signed with another key")
        elif raw[0] != _UNSIGNED:
            raise TokenRefused(f"the token has the unknown format {raw[0]}: it is damaged, or of a newer router")
        elif key is not None:
            raise TokenRefused("the token is not signed, but a key is set here: set it where tokens are made as well")
        return Token(_entries(raw[1:]))


def _fingerprint(version: str) -> int:
    return zlib.crc32(version.encode())


def _signature(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, "sha256")[:_SIGNATURE_BYTES]


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    if len(text) > _MAX_CHARACTERS:
        raise TokenRefused(f"the token is too long: {len(text)} characters, at most {_MAX_CHARACTERS}")
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raw = b""
    if _encoded(raw) != text:  # the decoder skips characters that are not base64, and ignores surplus bits
        raise TokenRefused("the token is damaged: it is not URL-safe base64 as the router writes it")
    return raw


def _entries(raw: bytes) -> tuple[tuple[int, Position], ...]:
    if not raw or len(raw) % _ENTRY.size:
        raise TokenRefused("the token is damaged: it does not have the length of one or more positions")
    entries = tuple((version, Position(*position)) for version, *position in _ENTRY.iter_unpack(raw))
    versions = [version for version, _ in entries]
    if versions != sorted(set(versions)):
        raise TokenRefused("the token is damaged: a version occurs twice, or they are out of order")
    if not all(position.timeline and position.lsn for _, position in entries):
        raise TokenRefused("the token is damaged: a timeline or a position is 0")
    return entries
