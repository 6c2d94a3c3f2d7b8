"""What can be told of a statement from its text, without quoted parts and comments; only the server knows for sure."""

from __future__ import annotations

import re

# Each pattern is compiled at its first use, and kept by `re`: importing the router need not wait for them.

# Comments, and what may look like one but is quoted. Two quotes in a row end one string and begin another.
_QUOTED = r"""(?xs)
    (?P<comment> --[^\r\n]* | /\* )
    | (?<![\w$]) [eE] ' (?: [^'\\] | \\. )* (?: ' | \Z )
    | ' [^']* (?: ' | \Z )
    | " [^"]* (?: " | \Z )
    | (?<![\w$]) \$ (?P<tag> (?: [^\W\d]\w* )? ) \$ .*? (?: \$ (?P=tag) \$ | \Z )
"""
_COMMENTS_EDGE = r"/\*|\*/"
_FIRST_WORD = r"[\s(;]*([A-Za-z]+)\b"
_WRITES = frozenset({
    "INSERT", "UPDATE", "DELETE", "MERGE", "TRUNCATE", "CREATE", "ALTER", "DROP", "GRANT", "REVOKE", "COMMENT",
    "SECURITY", "REASSIGN", "REFRESH", "IMPORT", "REINDEX", "CLUSTER", "VACUUM", "ANALYZE", "ANALYSE", "CHECKPOINT",
})  # fmt: skip
# COPY of a query, in parentheses, only reads; what stands in parentheses after a table's name are its columns.
_COPY_FROM = r"(?i)[\s(;]*COPY\s+[^\s(][^(]*?(?:\([^)]*\)\s*)?\bFROM\b"
_COPY_TO = r"(?i)[\s(;]*COPY\b[^(]*?(?:\([^)]*\)\s*)?\bTO\b"
# Functions that a standby allows, but for itself alone; and those that need the primary's WAL. Not those that are meant
# for standbys (pg_promote, pg_wal_replay_…), or for whichever server the session is on (pg_terminate_backend).
_ADMINISTERS = r"""(?xi)
    \b pg_ (?: current_wal_\w+ | switch_wal | walfile_name\w* | create_restore_point | log_standby_snapshot
    | backup_start | backup_stop | start_backup | stop_backup | reload_conf | rotate_logfile | stat_reset\w*
    | (?: create | copy | drop ) _ (?: physical_ | logical_ )? replication_slot | replication_slot_advance
    | replication_origin_\w+ | logical_slot_\w+ | logical_emit_message ) \s* \(
"""
_UNDONE_WHOLE = r"(?i)[\s(]*(?:SELECT|WITH|VALUES|TABLE|INSERT|UPDATE|DELETE|MERGE)\b[^;]*;?\s*\Z"
_COMMITS = r"(?i)\s*(?:COMMIT|END|PREPARE\s+TRANSACTION)\b"


def without_comments(text: str) -> str:
    """Leave the comments of a statement out.

    Args:
        text: The statement, or several.

    Returns:
        It, with a space for each comment, and none around it.
    """
    return _blanked(text, quoted=False) if "--" in text or "/*" in text else text.strip()


def without_quoted(text: str) -> str:
    """Leave the comments of a statement out, and what is quoted in it.

    Args:
        text: The statement, or several.

    Returns:
        It, with a space for each comment, and two quotes for each string and quoted name.
    """
    return _blanked(text, quoted=True)


def needs_primary(text: str) -> bool:
    """Tell whether a statement is certainly for the primary: what it begins with writes, or it administers a server.

    Args:
        text: The statement, without comments.

    Returns:
        Whether it is so; if not, it may still write.
    """
    first = re.match(_FIRST_WORD, text)
    word = "" if first is None else first[1].upper()
    if word in _WRITES:
        return True
    if word != "COPY" and ("pg_" not in text.lower() or re.search(_ADMINISTERS, text) is None):
        return False
    text = _blanked(text, quoted=True)
    return re.search(_ADMINISTERS, text) is not None or _copies_into(text)


def _copies_into(text: str) -> bool:
    into, out = re.match(_COPY_FROM, text), re.match(_COPY_TO, text)
    return into is not None and (out is None or into.end() < out.end())


def can_be_repeated(text: str) -> bool:
    """Tell whether nothing of a statement is left once it has failed.

    Args:
        text: The statement.

    Returns:
        Whether it is one alone, and of a kind that cannot commit by itself.
    """
    return re.match(_UNDONE_WHOLE, _blanked(text, quoted=True)) is not None


def commits(text: bytes) -> bool:
    """Tell whether one of the statements of a text ends a transaction and keeps what it did.

    Args:
        text: The text, as it was sent.

    Returns:
        Whether one of them is COMMIT, COMMIT PREPARED, END or PREPARE TRANSACTION.
    """
    statements = _blanked(text.decode(errors="replace"), quoted=True).split(";")
    return any(re.match(_COMMITS, statement) for statement in statements)


def _blanked(text: str, *, quoted: bool) -> str:
    """Put a space for each comment, and if wanted two quotes for all that is quoted."""
    kept: list[str] = []
    done = place = 0
    while match := re.compile(_QUOTED).search(text, place):
        place = match.end() if match[0] != "/*" else _end_of_comment(text, match.end())
        if quoted or match["comment"]:
            kept += text[done : match.start()], " " if match["comment"] else '""'
            done = place
    return "".join([*kept, text[done:]]).strip()


def _end_of_comment(text: str, place: int) -> int:
    """Find where a comment ends, others within it ended before."""
    depth = 1
    while depth and (edge := re.compile(_COMMENTS_EDGE).search(text, place)):
        depth += 1 if edge[0] == "/*" else -1
        place = edge.end()
    return len(text) if depth else place
