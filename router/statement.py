"""What the text of a statement tells of it, quoted parts and comments told apart: to be sure of it takes the server."""

from __future__ import annotations

import re

# Comments, and what may look like one but is quoted. Two quotes in a row end one string and begin another.
_QUOTED = re.compile(
    r"""
    (?P<comment> --[^\r\n]* | /\* )
    | (?<![\w$]) [eE] ' (?: [^'\\] | \\. )* (?: ' | \Z )
    | ' [^']* (?: ' | \Z )
    | " [^"]* (?: " | \Z )
    | (?<![\w$]) \$ (?P<tag> (?: [^\W\d]\w* )? ) \$ .*? (?: \$ (?P=tag) \$ | \Z )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENTS_EDGE = re.compile(r"/\*|\*/")
_UNDONE_WHOLE = re.compile(
    r"[\s(]*(?:SELECT|WITH|VALUES|TABLE|INSERT|UPDATE|DELETE|MERGE)\b[^;]*;?\s*\Z", re.IGNORECASE
)
_COMMITS = re.compile(r"\s*(?:COMMIT|END|PREPARE\s+TRANSACTION)\b", re.IGNORECASE)


def without_comments(text: str) -> str:
    """Leave the comments of a statement out.

    Args:
        text: The statement, or several.

    Returns:
        It, with a space for each comment, and none around it.
    """
    return _blanked(text, quoted=False) if "--" in text or "/*" in text else text.strip()


def can_be_repeated(text: str) -> bool:
    """Tell whether nothing of a statement is left once it has failed.

    Args:
        text: The statement.

    Returns:
        Whether it is one alone, and of a kind that cannot commit by itself.
    """
    return _UNDONE_WHOLE.match(_blanked(text, quoted=True)) is not None


def commits(text: bytes) -> bool:
    """Tell whether one of the statements of a text ends a transaction and keeps what it did.

    Args:
        text: The text, as it was sent.

    Returns:
        Whether one of them is COMMIT, COMMIT PREPARED, END or PREPARE TRANSACTION.
    """
    return any(map(_COMMITS.match, _blanked(text.decode(errors="replace"), quoted=True).split(";")))


def _blanked(text: str, *, quoted: bool) -> str:
    """Put spaces where comments are, and if wanted also where something is quoted."""
    kept: list[str] = []
    done = place = 0
    while match := _QUOTED.search(text, place):
        place = match.end() if match[0] != "/*" else _end_of_comment(text, match.end())
        if quoted or match["comment"]:
            kept += text[done : match.start()], " "
            done = place
    return "".join([*kept, text[done:]]).strip()


def _end_of_comment(text: str, place: int) -> int:
    """Find where a comment ends, others within it ended before."""
    depth = 1
    while depth and (edge := _COMMENTS_EDGE.search(text, place)):
        depth += 1 if edge[0] == "/*" else -1
        place = edge.end()
    return len(text) if depth else place
