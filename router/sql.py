"""Every SQL text that the router itself sends."""

from __future__ import annotations

IS_IN_RECOVERY = "SELECT pg_is_in_recovery()"

# ruff: noqa: S608  (each is put together from constants)

_POSITION = """(
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END - '0/0'
)::bigint"""
_PRIMARYS_TIMELINE = "('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int"
_REPLAY_AGE = "extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8"

_RECEIVED_TIMELINE = "(SELECT received_tli FROM pg_stat_wal_receiver)"


def _look(replicas_timeline: str, system: str) -> str:
    return f"""
SELECT
    pg_is_in_recovery(), {_POSITION},
    CASE WHEN pg_is_in_recovery() THEN {replicas_timeline} ELSE {_PRIMARYS_TIMELINE} END,
    {system},
    {_REPLAY_AGE}
"""


# What a look asks: role, position, timeline, system identifier, seconds since the last replayed commit. A replica
# tells its timeline to members of pg_read_all_stats only; its control file, which anybody may ask, tells it later.
# Whoever has received WAL of a timeline, and replayed past the point where it began, has replayed along it.
LOOK = _look(
    f"""greatest(
        {_RECEIVED_TIMELINE},
        (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
        (SELECT timeline_id FROM pg_control_checkpoint())
    )""",
    "(SELECT system_identifier FROM pg_control_system())",
)
# The same where the functions that read the control file are not for everybody.
LOOK_WITHOUT_CONTROL = _look(_RECEIVED_TIMELINE, "NULL")

# Where the WAL ends, with its timeline. After COMMIT: before it, the position is that of the COMMIT record's start.
WRITTEN = f"SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, {_PRIMARYS_TIMELINE}"
COMMIT_AND_WRITTEN = f"COMMIT; {WRITTEN}"

# What `router check` asks every server. It takes no privilege; `receiver` is null when there is none.
SERVER_FACTS = """
SELECT
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true)::int, 0) AS connections,
    (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0')::bigint
        AS position_bytes,
    CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END AS paused,
    (SELECT coalesce(status, 'running') FROM pg_stat_wal_receiver) AS receiver
"""

# What `router status` counts: the sessions of a node's user in its database, the one that asks left out. What they do
# is shown to their own user without any privilege; of other users' sessions it might see no more than that they exist.
ACTIVITY = """
SELECT
    count(*) FILTER (WHERE state <> 'idle') AS in_use,
    count(*) FILTER (WHERE state = 'idle') AS idle,
    count(*) FILTER (WHERE wait_event_type = 'Lock') AS waiting
FROM pg_stat_activity
WHERE datname = current_database() AND usename = session_user AND backend_type = 'client backend'
    AND pid <> pg_backend_pid()
"""
