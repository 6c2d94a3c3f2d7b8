"""Whether a statement may leave something in its session that outlasts its transaction, told from its text.

What cannot be told counts as leaving a trace: to reset a session in vain costs one round trip. Only what PostgreSQL
calls a statement is seen, not what a function, trigger or view does inside.
"""

from __future__ import annotations

import re
from functools import lru_cache

from router.core.statement import without_quoted

LONGEST = 10_000
"""Bytes of a text whose quoted parts are told from the rest, if that is needed; a longer one counts as leaving a trace,
since to tell them apart would cost more than a reset.
"""

REMEMBERED = 1000
"""Bytes of a text whose answer is kept."""

# Looked for in the whole text, quoted parts and comments included: so no way of quoting hides them. Session-level
# advisory locks; what sets a setting; temporary schemas; and names in escapes.
_FUNCTIONS = r'(?i)pg_(?:try_)?advisory_lock|set_config|set_limit|pg_settings|pg_temp|\bU&"'
# What a sequence gave last.
_SEQUENCES = r"(?i)nextval|setval"
# One that lasts for the transaction only, with plain arguments.
_SETS_LOCALLY = r"(?i)\bset_config\s*\(\s*(?:'[\w.]+'|\$\d+)\s*,\s*(?:'[\w .,:/-]*'|\$\d+)(?:::\w+)?\s*,\s*true\s*\)"
# A text without any of these is one statement without comments, and makes nothing temporary.
_PARTS = r"(?i);|--|/\*|temp|hold"
# In a text without quoted parts and comments.
_TEMPORARY = r"(?i)\b(?:CREATE|INTO)\s+(?:OR\s+REPLACE\s+)?(?:(?:GLOBAL|LOCAL)\s+)?TEMP(?:ORARY)?\b"
_WITH_HOLD = r"(?i)\bWITH\s+HOLD\b"
_FIRST_WORD = r"[\s(]*([A-Za-z]+)\b"
_LASTS_FOR_THE_TRANSACTION = r'(?i)[\s(]*SET\s+(?:LOCAL|TRANSACTION|CONSTRAINTS)\s+[\w"]'
# What statements begin with that leave nothing, but for what is looked for above.
_TRACELESS = frozenset({
    "ABORT", "ALTER", "ANALYSE", "ANALYZE", "BEGIN", "CHECKPOINT", "CLOSE", "CLUSTER", "COMMENT", "COMMIT", "COPY",
    "CREATE", "DECLARE", "DELETE", "DROP", "END", "EXPLAIN", "FETCH", "GRANT", "IMPORT", "INSERT", "LOCK",
    "MERGE", "MOVE", "NOTIFY", "REASSIGN", "REFRESH", "REINDEX", "RELEASE", "REVOKE", "ROLLBACK", "SAVEPOINT",
    "SECURITY", "SELECT", "SHOW", "START", "TABLE", "TRUNCATE", "UNLISTEN", "UPDATE", "VACUUM", "VALUES", "WITH",
})  # fmt: skip


def leaves_trace(text: bytes, *, sequences: bool = True) -> bool:
    """Tell whether a text that was sent may leave something in its session that outlasts its transaction.

    Args:
        text: One statement or several, as they were sent.
        sequences: Whether the value that a sequence gave last counts.

    Returns:
        Whether one of them may.
    """
    return (_judged if len(text) <= REMEMBERED else _judge)(text, sequences)


def _names_what_lasts(text: str) -> bool:
    """Tell whether a text names a lock or a setting of its session that does not last for the transaction only."""
    functions = len(re.findall(_FUNCTIONS, text))
    return functions > 0 and functions > len(re.findall(_SETS_LOCALLY, text))


def _judge(text: bytes, sequences: bool) -> bool:  # noqa: FBT001  (lru_cache tells a keyword from a position)
    statements = text.decode(errors="replace")
    if _names_what_lasts(statements) or (sequences and re.search(_SEQUENCES, statements)):
        return True
    if "\\'" in statements:  # where it ends depends on standard_conforming_strings
        return True
    if re.search(_PARTS, statements):
        if len(text) > LONGEST:
            return True
        statements = without_quoted(statements)
        if re.search(_TEMPORARY, statements) or re.search(_WITH_HOLD, statements):
            return True
    return any(map(_is_no_traceless, statements.split(";")))


def _is_no_traceless(statement: str) -> bool:
    if not statement.strip():
        return False
    first = re.match(_FIRST_WORD, statement)
    if first is not None and first[1].upper() in _TRACELESS:
        return False
    return re.match(_LASTS_FOR_THE_TRANSACTION, statement) is None


_judged = lru_cache(maxsize=1024)(_judge)
