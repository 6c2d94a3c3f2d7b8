"""Errors that say more of the session than of the statement: it goes by what is no more, or refuses everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg


def is_stale(error: psycopg.Error) -> bool:
    """Tell whether a statement failed because its session goes by tables or types as they were before a migration.

    Args:
        error: What it failed with.

    Returns:
        Whether it is so: then another session, or this one once it has forgotten what is prepared, may run it.
    """
    return _is_stale_plan(error) or is_stale_session(error)


def is_spoilt(error: psycopg.Error) -> bool:
    """Tell whether a statement failed because its session is set so that every statement fails there.

    Args:
        error: What it failed with.

    Returns:
        Whether it does: a hot standby has no serializable transactions, wherever the session has that default from.
    """
    return error.sqlstate == "0A000" and error.diag.source_function == "GetSerializableTransactionSnapshot"


def _is_stale_plan(error: psycopg.Error) -> bool:
    # 0A000 is also what a standby has for what it cannot read. The function's name is the same in every language.
    return error.sqlstate == "0A000" and error.diag.source_function == "RevalidateCachedQuery"


def is_stale_session(error: psycopg.Error) -> bool:
    """Tell whether it goes by what the session itself keeps, so that only another session may run it.

    Args:
        error: What it failed with.

    Returns:
        Whether it is so.
    """
    if error.sqlstate == "XX000":  # PostgreSQL does not translate what it says of errors of its own
        return (error.diag.message_primary or "").startswith("cache lookup failed")
    # PL/pgSQL, which keeps the types of its variables as long as the session lasts.
    return error.sqlstate == "42804" and (error.diag.source_function or "").startswith("plpgsql_param_eval")
