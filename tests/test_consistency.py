"""WAL positions and the tokens that carry them: what is compared with what, and what comes back from a client."""

from __future__ import annotations

import base64
import hmac
import re
import struct
import zlib
from functools import partial, reduce
from itertools import accumulate, permutations
from random import randrange
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from router.core.consistency import UNSURE, Position, Token, later, lsn, lsn_text, without_page_header
from router.core.errors import TokenRefused
from tests.support import eventually, examples, new_name, run

if TYPE_CHECKING:
    from router.testing import PostgresCluster

PAGE = 8192
SHORT_HEADER, LONG_HEADER = 24, 40
KEY = b"sixteen bytes or more"
SYSTEM = 7_560_000_000_000_000_001

VERSIONS = ("v1", "v2", "blue", "2026-11", "größer")
systems = st.integers(0, 3) | st.integers(0, 2**64 - 1)
timelines = st.integers(1, 3) | st.integers(1, 2**32 - 1)
lsns = st.integers(1, 3) | st.integers(1, UNSURE - 1)
positions = st.builds(Position, systems, timelines, lsns)
writes = st.lists(st.tuples(st.sampled_from(VERSIONS), positions), max_size=8)
keys = st.none() | st.binary(min_size=1, max_size=40)


def token_of(*written: tuple[str, Position]) -> Token:
    return reduce(lambda token, write: token.at(*write), written, Token())


tokens = writes.map(lambda written: token_of(*written))


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "===")


def body(form: int, *entries: tuple[int, int, int, int]) -> bytes:
    """The bytes of a token: its format, and for each entry fingerprint, system, timeline and lsn."""
    return struct.pack(">B", form) + b"".join(struct.pack(">IQIQ", *entry) for entry in entries)


def signed(raw: bytes, key: bytes = KEY) -> bytes:
    return raw + hmac.new(key, raw, "sha256").digest()[:16]


# WAL positions


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("0/0", 0),
        ("0/3000148", 0x3000148),
        ("16/B374D848", 0x16B374D848),
        ("1/0", 2**32),
        ("1/A", 2**32 + 10),
        ("FFFFFFFF/FFFFFFFF", 2**64 - 1),
    ],
)
def test_positions_are_written_as_postgresql_writes_them(text: str, position: int, cluster: PostgresCluster) -> None:
    assert lsn(text) == position
    assert lsn_text(position) == text
    query = "SELECT %s::pg_lsn::text, (%s::pg_lsn - '0/0')::text"
    assert cluster.primary.execute(query, (text, text)) == [(text, str(position))]


@given(st.integers(0, 2**64 - 1))
def test_a_position_survives_being_written(position: int) -> None:
    assert lsn(lsn_text(position)) == position


@pytest.mark.parametrize("text", ["", "0", "/", "0/", "/0", "0/x", "0/0/0"])
def test_what_is_no_position_is_not_read(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        lsn(text)


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("0/3002018", "0/3002000"),  # a record filled the page before
        ("0/3000028", "0/3000000"),  # and the segment before
        ("0/3002028", "0/3002000"),  # or: a record from the page before ends here
        ("0/3002000", "0/3002000"),
        ("0/3002010", "0/3002010"),
        ("0/3002020", "0/3002020"),
        ("0/3002030", "0/3002030"),
        ("0/3001028", "0/3001028"),  # half a page further
    ],
)
def test_just_after_a_header_is_settled_at_the_start_of_the_page(position: str, expected: str) -> None:
    assert lsn_text(without_page_header(lsn(position))) == expected


PAGES = 3  # of a segment: the fewest that have all kinds of borders


def next_record(written: int) -> int:
    """Where the next record starts in the WAL, after so many bytes of records."""
    segment, rest = divmod(written, PAGES * (PAGE - SHORT_HEADER) - (LONG_HEADER - SHORT_HEADER))
    page, offset = divmod(rest + LONG_HEADER - SHORT_HEADER, PAGE - SHORT_HEADER)
    return (segment * PAGES + page) * PAGE + SHORT_HEADER + offset


def end_of_last(written: int) -> int:
    """Where the last record ends: just after its last byte, be that the next page's start."""
    return next_record(written - 1) + 1


aligned = st.integers(3, 2500).map(lambda eighths: 8 * eighths)
# Records that end near a border, and those after them that are as long as what a page, or a segment, holds.
borders = st.builds(
    lambda whole, more: max(24, whole + 8 * more),
    st.sampled_from([8168, 8152, 2 * 8168, 3 * 8168 - 16, 8152 + 16, 8168 + 16]),
    st.integers(-3, 3),
)


@given(st.lists(aligned | borders, min_size=1, max_size=12))
@example([8152, 24])
@example([8152, 8168, 8168, 24])
@example([8152 + 16, 24])
@example([8152 - 24, 24 + 16, 24])
def test_a_standby_is_past_the_settled_position_just_if_it_has_replayed_the_write(sizes: list[int]) -> None:
    written = list(accumulate(sizes))
    for write, size in enumerate(written):
        for replayed, replayed_size in enumerate(written):
            assert (end_of_last(replayed_size) >= without_page_header(next_record(size))) == (replayed >= write)


def inserted(connection: psycopg.Connection[Any]) -> int:
    return position_of(connection, "pg_current_wal_insert_lsn()")


def replayed_to(connection: psycopg.Connection[Any], position: int) -> int | None:
    reported = position_of(connection, "pg_last_wal_replay_lsn()")
    return reported if reported >= position else None


def position_of(connection: psycopg.Connection[Any], function: LiteralString) -> int:
    row = connection.execute(f"SELECT {function}").fetchone()
    assert row is not None
    return lsn(row[0])


def fill_a_page(connection: psycopg.Connection[Any], table: LiteralString, segment_bytes: int) -> int:
    """Commit until the last record ends where its page does: one in about a thousand does; the insert position then."""
    for _ in range(20_000):
        connection.execute(f"INSERT INTO {table} VALUES (repeat('x', %s))", (randrange(400),))
        position = inserted(connection)
        page, offset = divmod(position, PAGE)
        if offset == (SHORT_HEADER if page * PAGE % segment_bytes else LONG_HEADER):
            return position
    pytest.fail("no record ended where its page does")


def test_a_standby_at_rest_reports_the_settled_position_not_the_insert_position(cluster: PostgresCluster) -> None:
    primary, standby = cluster.primary.dsn(), cluster.standbys[0].dsn()
    table = new_name()
    query: LiteralString = "SELECT setting::int FROM pg_settings WHERE name IN (%s, %s) ORDER BY name"
    ((page_bytes,), (segment_bytes,)) = cluster.primary.execute(query, ("wal_block_size", "wal_segment_size"))
    assert page_bytes == PAGE
    run(primary, f"CREATE TABLE {table} (filler text)")
    with psycopg.connect(primary, autocommit=True) as writer, psycopg.connect(standby, autocommit=True) as reader:
        for _ in range(5):
            position = fill_a_page(writer, table, segment_bytes)
            page = position // PAGE * PAGE
            reported = eventually(partial(replayed_to, reader, page))
            if inserted(writer) == position:  # else a server's own record came in between, as each 15 s: once more
                break
        else:
            pytest.fail("the servers never came to rest")
    assert reported == without_page_header(position) == page < position


# Positions


def test_a_position_is_readable() -> None:
    position = Position(system=SYSTEM, timeline=2, lsn=0x3000148)
    assert repr(position) == str(position) == "0/3000148 on timeline 2"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (None, Position(1, 1, 5), Position(1, 1, 5)),
        (Position(1, 1, 9), Position(1, 1, 5), Position(1, 1, 9)),
        (Position(1, 1, 5), Position(1, 1, 9), Position(1, 1, 9)),
        (Position(1, 2, 5), Position(1, 1, 9), Position(1, 2, 5)),
        (Position(1, 1, 9), Position(1, 2, 5), Position(1, 2, 5)),
        (Position(1, 2, 9), Position(7, 1, 5), Position(7, 1, 5)),
        (Position(7, 1, 5), Position(1, 2, 9), Position(1, 2, 9)),
        (Position(1, 1, 9), Position(0, 1, 5), Position(1, 1, 9)),
        (Position(0, 1, 9), Position(1, 1, 5), Position(0, 1, 9)),
        (Position(0, 1, 5), Position(1, 1, 5), Position(1, 1, 5)),
        (Position(1, 1, 5), Position(0, 1, 5), Position(1, 1, 5)),
    ],
)
def test_the_later_of_two_positions(one: Position | None, other: Position, expected: Position) -> None:
    assert later(one, other) == expected


@given(st.lists(positions, min_size=1, max_size=4), st.integers(1, 2**64 - 1))
def test_within_one_system_no_order_of_arrival_forgets_the_latest(seen: list[Position], system: int) -> None:
    seen = [Position(system, position.timeline, position.lsn) for position in seen]
    latest = max(seen, key=lambda position: (position.timeline, position.lsn))
    assert {reduce(later, order) for order in permutations(seen)} == {latest}


@given(positions, positions)
def test_of_different_systems_the_newer_observation_counts(one: Position, other: Position) -> None:
    assume(0 != one.system != other.system != 0)
    assert later(one, other) == other


# Tokens


@given(writes)
def test_a_token_has_the_latest_position_of_each_version(written: list[tuple[str, Position]]) -> None:
    token = token_of(*written)
    assert bool(token) == bool(written)
    for version in VERSIONS:
        of_version = [position for key, position in written if key == version]
        assert token.of(version) == (reduce(later, of_version) if of_version else None)


@given(positions, positions)
def test_a_write_whose_end_is_known_ends_the_doubt(one: Position, other: Position) -> None:
    unsure = Position(one.system, one.timeline, UNSURE)
    token = Token().at("v1", one).at("v1", unsure)
    assert token.of("v1") == unsure
    assert Token.parse(token.text(None), None) == token
    assert token.at("v1", other).of("v1") == other


@given(tokens, tokens)
def test_a_merged_token_asks_for_what_both_ask_for(one: Token, other: Token) -> None:
    merged = one.merged(other)
    for version in VERSIONS:
        position = other.of(version)
        assert merged.of(version) == (later(one.of(version), position) if position else one.of(version))


def test_a_token_never_changes() -> None:
    token = Token().at("v1", Position(1, 1, 1))
    token.at("v2", Position(1, 1, 2)).merged(token)
    assert token == Token().at("v1", Position(1, 1, 1))
    assert hash(token) == hash(Token().at("v1", Position(1, 1, 1)))


def test_its_repr_shows_the_positions() -> None:
    token = Token().at("v1", Position(SYSTEM, 2, 0x3000148))
    assert repr(token) == f"Token({zlib.crc32(b'v1'):08x}: 0/3000148 on timeline 2)"
    assert repr(Token()) == "Token()"


# Their text


@given(tokens, keys)
def test_a_token_survives_being_handed_on(token: Token, key: bytes | None) -> None:
    text = token.text(key)
    assert re.fullmatch(r"[A-Za-z0-9_-]*", text)
    assert Token.parse(text, key) == token


def test_the_format_is_as_documented() -> None:
    token = Token().at("größer", Position(2**64 - 1, 2**32 - 1, 2**64 - 1)).at("v1", Position(SYSTEM, 2, 0x16B374D848))
    entries = sorted([
        (zlib.crc32("größer".encode()), 2**64 - 1, 2**32 - 1, 2**64 - 1),
        (zlib.crc32(b"v1"), SYSTEM, 2, 0x16B374D848),
    ])  # fmt: skip
    assert token.text(None) == encoded(body(1, *entries))
    assert token.text(KEY) == encoded(signed(body(2, *entries)))


def test_how_long_it_is() -> None:
    token = Token().at("v1", Position(SYSTEM, 1, 0x3000148))
    assert len(token.text(None)) == 34
    assert len(token.text(KEY)) == 55


@pytest.mark.parametrize("key", [None, KEY])
def test_nothing_asked_for_is_an_empty_text(key: bytes | None) -> None:
    assert Token().text(key) == ""
    assert Token.parse("", key) == Token()


@pytest.mark.parametrize("key", [None, KEY])
def test_64_versions_fit_and_no_more(key: bytes | None) -> None:
    token = token_of(*[(f"v{number}", Position(2**64 - 1, 1, 1)) for number in range(64)])
    assert Token.parse(token.text(key), key) == token
    with pytest.raises(TokenRefused, match="too long"):
        Token.parse(token.at("v64", Position(1, 1, 1)).text(key), key)


ENTRY = (5, SYSTEM, 1, 0x3000148)
SECOND = (6, SYSTEM, 1, 0x3000148)


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "does not have the length"),
        (body(0, ENTRY)[1:-1], "does not have the length"),
        (body(0, ENTRY)[1:] + b"\1", "does not have the length"),
        (body(0, ENTRY, ENTRY)[1:], "a version occurs twice"),
        (body(0, ENTRY, SECOND, ENTRY)[1:], "a version occurs twice"),
        (body(0, SECOND, ENTRY)[1:], "out of order"),
        (body(0, (5, SYSTEM, 0, 1))[1:], "a timeline or a position is 0"),
        (body(0, ENTRY, (6, SYSTEM, 1, 0))[1:], "a timeline or a position is 0"),
    ],
)
def test_entries_that_no_router_wrote_are_refused_signed_or_not(raw: bytes, message: str, key: bytes | None) -> None:
    text = encoded(body(1) + raw) if key is None else encoded(signed(body(2) + raw))
    with pytest.raises(TokenRefused, match=message):
        Token.parse(text, key)


@pytest.mark.parametrize(
    ("raw", "key", "message"),
    [
        (body(0, ENTRY), None, "unknown format 0"),
        (body(3, ENTRY), None, "unknown format 3"),
        (signed(body(3, ENTRY)), KEY, "unknown format 3"),
        (signed(body(2, ENTRY)), None, "is signed, but no key is set"),
        (body(1, ENTRY), KEY, "is not signed, but a key is set"),
        (signed(body(1, ENTRY)), KEY, "is not signed, but a key is set"),
        (signed(body(1, ENTRY)), None, "does not have the length"),
        (signed(body(2, ENTRY), b"another key"), KEY, "signature is wrong"),
        (body(2, ENTRY), KEY, "signature is wrong"),
        (body(2, ENTRY) + bytes(16), KEY, "signature is wrong"),
        (signed(body(2, ENTRY))[:-1], KEY, "signature is wrong"),
        (body(2), KEY, "signature is wrong"),
    ],
)
def test_what_another_key_made_is_refused(raw: bytes, key: bytes | None, message: str) -> None:
    with pytest.raises(TokenRefused, match=message):
        Token.parse(encoded(raw), key)


GOOD = Token().at("v1", Position(SYSTEM, 1, 0x3000148)).text(None)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"{GOOD}==", id="padded"),
        pytest.param(f" {GOOD}", id="space before"),
        pytest.param(f"{GOOD}\n", id="newline after"),
        pytest.param(f"{GOOD[:4]}\n{GOOD[4:]}", id="newline within"),
        pytest.param(f"{GOOD[:-1]}B", id="bits left over"),
        pytest.param(f"{GOOD[:4]}={GOOD[4:]}", id="padding within"),
        pytest.param(f"{GOOD}AAA", id="one character over"),
        pytest.param(encoded(body(1, (2**32 - 1,) * 4)).replace("_", "/"), id="the other alphabet"),
        pytest.param("=", id="only padding"),
        pytest.param("A", id="one character"),
        pytest.param("\0", id="NUL"),
        pytest.param("\ud800", id="surrogate"),
        pytest.param("größer", id="not ASCII"),
        pytest.param(f"\uff21{GOOD[1:]}", id="full-width A"),
    ],
)
@pytest.mark.parametrize("key", [None, KEY])
def test_what_is_not_the_routers_base64_is_refused(text: str, key: bytes | None) -> None:
    with pytest.raises(TokenRefused, match="not URL-safe base64"):
        Token.parse(text, key)


@pytest.mark.parametrize("character", ["A", "\0", "\ud800", " "])
def test_much_text_is_refused_before_it_is_read(character: str) -> None:
    with pytest.raises(TokenRefused, match="too long: 10000000 characters, at most 2071"):
        Token.parse(character * 10_000_000, None)


@given(tokens.filter(bool), st.data())
def test_a_signed_token_in_which_anything_was_changed_is_refused(token: Token, data: st.DataObject) -> None:
    raw = bytearray(decoded(token.text(KEY)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(TokenRefused):
        Token.parse(encoded(bytes(raw)), KEY)


def nearly_right(form: int, entries: list[tuple[int, int, int, int]], key: bytes | None, more: bytes) -> str:
    raw = body(form, *entries)
    return encoded((signed(raw, key) if key else raw) + more)


small = st.integers(0, 2)
small_entries = st.lists(st.tuples(small, small, small, small), max_size=3)
nearly = st.builds(nearly_right, st.integers(0, 3), small_entries, st.none() | st.just(KEY), st.binary(max_size=2))
spoilt = st.builds(
    lambda text, at, removed, put: text[:at] + put + text[at + removed :],
    tokens.flatmap(lambda token: st.sampled_from([token.text(None), token.text(KEY)])),
    st.integers(0, 60),
    st.integers(0, 2),
    st.text(max_size=2) | st.sampled_from(["=", "\n", "A", "-", "+", "\ud800"]),
)
anything = st.text() | st.text(st.characters()) | st.binary().map(encoded) | nearly | spoilt


@settings(max_examples=examples(500))
@given(anything, st.none() | st.just(KEY))
def test_whatever_comes_it_is_a_token_or_refused(text: str, key: bytes | None) -> None:
    try:
        token = Token.parse(text, key)
    except TokenRefused as refused:
        assert len(text) < 12 or text not in str(refused)  # noqa: PT017  (whichever comes, it must hold)
        assert refused.__context__ is None  # noqa: PT017  (which would show it in a traceback)
    else:
        assert token.text(key) == text
