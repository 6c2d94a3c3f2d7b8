"""How far a read must see: WAL positions, and the token that hands them from a write to the reads after it.

A write is visible on a standby that has replayed the WAL up to where the write ended. A :class:`Position` says where
that is, and a :class:`Token` holds one for each version that was written to; its text goes into a cookie, a header or
a job.

Positions are read as PostgreSQL computes them in ``src/backend/access/transam/xlog.c``: ``XLogBytePosToRecPtr()`` gives
where a record starts, after a page's header, and ``pg_current_wal_insert_lsn()`` reports that;
``XLogBytePosToEndRecPtr()`` gives where one ends, before the header, and a standby reports that
(:func:`without_page_header` brings the two together). Only positions of one system and one timeline compare.
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
    """Return the position that a standby reports at least, once it has replayed all up to an insert position.

    When the last record fills its page, ``pg_current_wal_insert_lsn()`` points after the header of the next page, where
    the next record will start. A standby reports where the last record ended, the start of that page, until something
    else is written: waiting for the insert position itself could last for ever.

    On a page that is not the first of its segment, offset 40 may also be the end of a record continued from the page
    before. The page's start will do there as well: replay positions are where records end, this record began before
    the page did, so a standby that has replayed up to the page's start or beyond has replayed it.

    This holds for the default ``wal_block_size`` of 8192 bytes.

    Args:
        position: From ``pg_current_wal_insert_lsn()``, taken after COMMIT, in bytes.

    Returns:
        The start of the page if the position is just after a page's header, else the position itself.
    """
    offset = position % _PAGE_BYTES
    return position - offset if offset in _HEADERS_BYTES else position


UNSURE = 2**64 - 1
"""A position that is never replayed: it stands for writes of which it is not known how far they went, or if at all."""


class Position(NamedTuple):
    """Where in the WAL of which cluster a write ended, or a replay has come.

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
        one: What was known; ``None`` when nothing was.
        other: What was observed since.

    Returns:
        ``other`` if the version has moved to another system; else the one on the higher timeline, on the same timeline
        the higher one. A system that is not known yet is not another one.
    """
    if one is None or (one.system != other.system and one.system and other.system):
        return other
    return max(one, other, key=lambda position: (position.timeline, position.lsn, position.system))


class Token(NamedTuple):
    """What reads must see: for each version that was written to, up to where.

    Its text is URL-safe base64, without padding, of a byte that says whether it is signed, the entries, and the first
    16 bytes of their HMAC-SHA256 if it is. For one version it has 34 characters, or 55 signed; for none it is empty.

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
            version: Where it was written.
            position: Where the write ended.

        Returns:
            A token with the later of this position and the former one of the version. An unsure position is replaced,
            because anything that may have been written before ended before this position.
        """
        written = Token(((_fingerprint(version), position),))
        known = self.of(version)
        if known is not None and known.lsn == UNSURE:
            return Token(tuple(sorted({**dict(self.entries), **dict(written.entries)}.items())))
        return self.merged(written)

    def of(self, version: str) -> Position | None:
        """Return what reads of a version must see.

        Args:
            version: Its key.

        Returns:
            The position, or ``None`` when the token says nothing of this version.
        """
        return dict(self.entries).get(_fingerprint(version))

    def merged(self, other: Token) -> Token:
        """Return a token for what both ask for.

        Args:
            other: The newer one, should they be of different systems.

        Returns:
            A token with the later position for each version that one of them has.
        """
        known = dict(self.entries)
        known.update((version, later(known.get(version), position)) for version, position in other.entries)
        return Token(tuple(sorted(known.items())))

    def text(self, key: bytes | None) -> str:
        """Write the token, to hand it on.

        Args:
            key: Signs it; ``None`` leaves it unsigned.

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
        """Read a token that came back from a client, who may have sent anything.

        Args:
            text: What :meth:`text` wrote.
            key: The key it must be signed with; ``None`` when it must be unsigned.

        Returns:
            The token; the empty one for empty text, with a key as well.

        Raises:
            TokenRefused: It is damaged, or not made with this key. The message does not repeat it.
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
    if _encoded(raw) != text:  # the decoder skips what is no base64, and ignores bits that are left over
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
