"""Errors whose cause is the session, not the statement: the session is out of date, or every statement fails in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg


def is_stale(error: psycopg.Error) -> bool:
    """Tell whether a statement failed because its session remembers tables or types from before a migration.

    Args:
        error: The statement's error.

    Returns:
        Whether it did. Then another session can run the statement, or this one once its prepared statements are gone.
    """
    return _is_stale_plan(error) or is_stale_session(error)


def is_spoilt(error: psycopg.Error) -> bool:
    """Tell whether a statement failed because, with its settings, every statement of the session fails.

    Args:
        error: The statement's error.

    Returns:
        Whether it did: a hot standby has no serializable transactions, and they are the session's default.
    """
    return error.sqlstate == "0A000" and error.diag.source_function == "GetSerializableTransactionSnapshot"


def _is_stale_plan(error: psycopg.Error) -> bool:
    # A standby reports 0A000 also for relations that it cannot read. The function's name is the same in every language.
    return error.sqlstate == "0A000" and error.diag.source_function == "RevalidateCachedQuery"


def is_stale_session(error: psycopg.Error) -> bool:
    """Tell whether a statement failed for state that its session cannot drop, so that only another session can run it.

    Args:
        error: The statement's error.

    Returns:
        Whether it did.
    """
    if error.sqlstate == "XX000":  # PostgreSQL does not translate the messages of internal errors
        return (error.diag.message_primary or "").startswith("cache lookup failed")
    # PL/pgSQL keeps the types of its variables as long as the session lasts.
    return error.sqlstate == "42804" and (error.diag.source_function or "").startswith("plpgsql_param_eval")
