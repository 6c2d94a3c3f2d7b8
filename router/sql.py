"""Every SQL text that the router itself sends."""

from __future__ import annotations

IS_IN_RECOVERY = "SELECT pg_is_in_recovery()"

# What `router check` asks every server; it takes no privilege. In this order: connections that ordinary users may have
# open; the WAL position, in bytes; whether replay is paused; whether a WAL receiver runs, null on a primary.
SERVER_FACTS = """
SELECT
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true)::int, 0),
    (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0')::bigint,
    CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END,
    CASE WHEN pg_is_in_recovery() THEN EXISTS (SELECT FROM pg_stat_wal_receiver) END
"""
# Tells physical copies of one cluster from another cluster; some hosted servers do not let everybody call it.
SYSTEM_IDENTIFIER = "SELECT system_identifier FROM pg_control_system()"
