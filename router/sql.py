"""Every SQL text that the router itself sends."""

from __future__ import annotations

IS_IN_RECOVERY = "SELECT pg_is_in_recovery()"

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
# Tells the copies of one cluster from those of another; some hosted servers do not let everybody ask.
SYSTEM_IDENTIFIER = "SELECT system_identifier FROM pg_control_system()"
