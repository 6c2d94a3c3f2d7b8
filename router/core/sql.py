"""Every SQL text that the router itself sends."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from router.core.topology import TENANT_PATTERN

if TYPE_CHECKING:
    from collections.abc import Iterable

# ruff: noqa: S608  (every statement is composed of constants)

_POSITION = """(
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END - '0/0'
)::bigint"""
_PRIMARYS_TIMELINE = "('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int"
_REPLAY_AGE = "extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8"

# The role, and whether this session refuses writes: asked where the server does not report both parameters by itself.
ROLE = "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')::bool"
# Whether all sessions of the server refuse writes. A setting of one role or database does not count: it affects only
# the sessions of that role or database, and only those that begin later.
_REFUSES_WRITES = """CASE WHEN current_setting('default_transaction_read_only')::bool THEN (
    SELECT source IN ('configuration file', 'command line', 'environment variable') FROM pg_settings
    WHERE name = 'default_transaction_read_only'
) ELSE false END"""

PROCESS = "extract(epoch FROM pg_postmaster_start_time())::text"
"""The start time of the server: it tells apart servers that share one address, and one server before and after a
restart."""

_RECEIVED_TIMELINE = "(SELECT received_tli FROM pg_stat_wal_receiver)"


def _probe(replicas_timeline: str, system: str) -> str:
    return f"""
SELECT
    pg_is_in_recovery(), {_POSITION},
    CASE WHEN pg_is_in_recovery() THEN {replicas_timeline} ELSE {_PRIMARYS_TIMELINE} END,
    {system},
    {_REPLAY_AGE},
    {_REFUSES_WRITES},
    pg_backend_pid(), {PROCESS}
"""


# The query of a probe: role, position, timeline, system identifier, seconds since the last replayed commit, whether
# writes are refused, the backend's process number and the server's start time. A replica shows the timeline that it
# receives only to members of pg_read_all_stats; its control file, which every login may read, shows it later. A standby
# that has received WAL of a timeline, and has replayed past the point where that begins, has replayed that timeline.
PROBE = _probe(
    f"""greatest(
        {_RECEIVED_TIMELINE},
        (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
        (SELECT timeline_id FROM pg_control_checkpoint())
    )""",
    "(SELECT system_identifier FROM pg_control_system())",
)
# The query for servers where this login may not call the functions that read the control file.
PROBE_WITHOUT_CONTROL = _probe(_RECEIVED_TIMELINE, "NULL")

# Where the WAL ends, and its timeline. Sent after COMMIT: before it, the position would be where the COMMIT record
# starts.
WRITTEN = f"SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, {_PRIMARYS_TIMELINE}"

# Resets everything that a borrower can leave in a session. These are the parts of DISCARD ALL, which itself cannot
# share a round trip with other statements. The role becomes the one that the session began with. UNLOCK_ALL is the last
# part, an expression for a SELECT that follows.
RESET_SESSION = (
    "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; DEALLOCATE ALL; UNLISTEN *; "
    "DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES"
)
UNLOCK_ALL = "pg_catalog.pg_advisory_unlock_all()"

# `router check` asks this of every server. It needs no privilege; `receiver` is null if there is no WAL receiver.
SERVER_FACTS = """
SELECT
    least(
        current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true)::int, 0),
        (SELECT nullif(rolconnlimit, -1) FROM pg_catalog.pg_roles WHERE rolname = session_user AND NOT rolsuper),
        (SELECT nullif(datconnlimit, -1) FROM pg_catalog.pg_database, pg_catalog.pg_roles
            WHERE datname = current_database() AND rolname = session_user AND NOT rolsuper)
    ) AS connections,
    (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0')::bigint
        AS position_bytes,
    CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END AS paused,
    (SELECT coalesce(status, 'running') FROM pg_stat_wal_receiver) AS receiver
"""

# `router check` asks this as well to learn which server answers, since an address may lead to several.
SERVER_IDENTITY = "SELECT pg_postmaster_start_time()::text AS started, inet_server_addr()::text AS address"


def sessions(pids: Iterable[int]) -> str:
    """Write the query for sessions of a server.

    Args:
        pids: The process numbers of the sessions.

    Returns:
        A statement with one row for each session that exists: the process number, when the session began, its age in
        seconds, and since when it has been idle, null if it is not. All but the process number are null if the login
        may not see the session.
    """
    return f"""\
SELECT pid, backend_start::text, extract(epoch FROM clock_timestamp() - backend_start),
    CASE WHEN state LIKE 'idle%' THEN state_change::text END
FROM pg_catalog.pg_stat_activity WHERE pid IN ({", ".join(map(str, pids))})"""


def terminate(pid: int, began: str) -> str:
    """Write a statement that ends a session.

    Args:
        pid: The process number of the session.
        began: When the session began, from :func:`sessions`.

    Returns:
        The statement; it does nothing if the process number belongs to another session by now.
    """
    return (
        "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity "
        f"WHERE pid = {pid} AND backend_start::text = {literal(began)}"
    )


def literal(text: str) -> str:
    """Write a text as a literal that means the same whatever the session's settings are.

    Args:
        text: The text, without NUL.

    Returns:
        The literal. It is an escape string, so ``standard_conforming_strings`` does not matter, and in ASCII, so
        ``client_encoding`` does not matter.
    """
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return "E'" + "".join(one if one.isascii() else f"\\U{ord(one):08X}" for one in escaped) + "'"


NO_USAGE = "no USAGE on schema "


def settings(pairs: Iterable[tuple[str, str]], *, local: bool) -> list[str]:
    """Write expressions that change settings, and fail if PostgreSQL would skip a schema of a search path.

    Function names are qualified, because an earlier borrower of the session may have changed its search path.

    Args:
        pairs: The names and values of the settings; the names in a search path are quoted.
        local: Whether the settings last only until the transaction ends.

    Returns:
        Expressions for a SELECT. It fails with 3F000 if a schema does not exist, and with 22023 and a message that
        holds ``NO_USAGE`` and the schema's name if the session may not use it.
    """
    scope = "true" if local else "false"
    found = []
    for name, value in sorted(pairs, key=lambda pair: pair[0] == "search_path"):  # last: the role is set by then
        text = _usable(value) if name == "search_path" else literal(value)
        found.append(f"pg_catalog.set_config({literal(name)}, {text}, {scope})")
    return found


def session(startup: Iterable[tuple[str, str]]) -> str:
    """Write the query for the process number of a session, and whether the session began with the right settings.

    Args:
        startup: The settings that the connection asked for at its start.

    Returns:
        A SELECT of the process number, and whether all of these settings are in force. It fails like the expressions
        of :func:`settings` if PostgreSQL would skip a schema of the search path.
    """
    pairs = list(startup)
    begun = " AND ".join(
        f"pg_catalog.current_setting({literal(name)}, true) IS NOT DISTINCT FROM {literal(value)}"
        for name, value in pairs
    )
    found = settings([pair for pair in pairs if pair[0] == "search_path"], local=True)  # last: it is compared before
    return f"SELECT {', '.join(['pg_catalog.pg_backend_pid()', begun or 'true', *found])}"


def _usable(search_path: str) -> str:
    """Write a search path as an expression that fails if the session may not use a schema in it.

    PostgreSQL would skip such a schema, and find names in a later one. In that case the expression's value is no valid
    search path, so setting it fails.
    """
    names = [name.replace('""', '"') for name in re.findall(r'"((?:[^"]|"")*)"', search_path)]
    refusals = (
        f"WHEN NOT pg_catalog.has_schema_privilege({literal(name)}, 'USAGE') THEN {literal(NO_USAGE + name)} "
        for name in names
    )
    return f"CASE {''.join(refusals)}ELSE {literal(search_path)} END"


# `router status` counts the sessions of a node's user in its database, except the session that asks. A user needs no
# privilege to see the state of its own sessions, but may see no state of other users' sessions.
ACTIVITY = """
SELECT
    count(*) FILTER (WHERE state <> 'idle') AS in_use,
    count(*) FILTER (WHERE state = 'idle') AS idle,
    count(*) FILTER (WHERE wait_event_type = 'Lock') AS waiting
FROM pg_stat_activity
WHERE datname = current_database() AND usename = session_user AND backend_type = 'client backend'
    AND pid <> pg_backend_pid()
"""

# `router tenants` counts the sessions of all users of a server; no privilege is needed to see a session's user.
SESSIONS = """
SELECT datname, usename, application_name, count(*)::int AS sessions
FROM pg_stat_activity
WHERE datname IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend' AND pid <> pg_backend_pid()
GROUP BY 1, 2, 3
"""

# The number of the current transaction, and the timeline: with them TRANSACTION_STATE tells later, after a lost
# connection, whether it was committed.
TRANSACTION = f"SELECT pg_current_xact_id()::text, {_PRIMARYS_TIMELINE}"
# The state of that transaction now; null if it is too old for the server to know. It fails with 22023 if the server has
# not reached that number.
TRANSACTION_STATE = f"SELECT pg_xact_status(%s::text::xid8), {_PRIMARYS_TIMELINE}"

TENANTS_CHANNEL = "router_tenant"
"""The channel that reports changes in a table of tenants: the payload is the tenant's key, or empty for any tenant."""

LISTEN_TO_TENANTS = f"LISTEN {TENANTS_CHANNEL}"


def tenant_of(table: str) -> str:
    """Write the query for one tenant.

    Args:
        table: The table of tenants, as SQL writes it.

    Returns:
        The query; its parameter is the key.
    """
    return f"SELECT * FROM {table.replace('%', '%%')} WHERE tenant = %s"


def tenants_of(table: str) -> str:
    """Write the query for the keys of all tenants.

    Args:
        table: The table of tenants, as SQL writes it.

    Returns:
        The query.
    """
    return f"SELECT tenant FROM {table} ORDER BY tenant"


def homes_of(table: str) -> str:
    """Write the query for all tenants.

    Args:
        table: The table of tenants, as SQL writes it.

    Returns:
        The query.
    """
    return f"SELECT * FROM {table} ORDER BY tenant"


def tenants_table(table: str, pattern: str = TENANT_PATTERN) -> str:
    """Write the statements that create a table of tenants, and triggers that report its changes.

    Args:
        table: The table's name, as SQL writes it.
        pattern: The pattern of keys; if it is the default one, the table accepts no other keys.

    Returns:
        The statements, for ``psql`` or a migration.
    """
    schema = re.match(r'(?:"(?:[^"]|"")*"|[^".]*)\s*\.\s*', table)
    function = f"{schema[0] if schema else ''}router_tenant_changed"
    # PostgreSQL may read any other pattern differently from Python.
    check = f" CHECK (tenant ~ '^{pattern}$')" if pattern == TENANT_PATTERN else ""
    return f"""\
-- Where each tenant lives. A column that is NULL takes what the settings say under [tenant_template].
CREATE TABLE IF NOT EXISTS {table} (
    tenant          text PRIMARY KEY{check},
    version         text[],  -- the versions or aliases that it lives in, its first one first
    database        text,
    "user"          text,
    schema          text[],
    role            text,
    "row"           text,    -- the setting that row-level security goes by
    pooling         text CHECK (pooling IN ('dedicated', 'shared')),
    hygiene         text CHECK (hygiene IN ('transaction', 'full')),
    max_connections integer CHECK (max_connections > 0),
    min_size        integer CHECK (min_size >= 0)
);

-- Every router hears of a change as soon as it is committed.
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        EXECUTE format('SELECT pg_notify(%L, tenant) FROM %s', '{TENANTS_CHANNEL}', TG_RELID::regclass);
    ELSE
        PERFORM pg_notify('{TENANTS_CHANNEL}', key)
        FROM unnest(ARRAY[OLD.tenant, NEW.tenant]) AS key WHERE key IS NOT NULL;
    END IF;
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER router_tenant_changed AFTER INSERT OR UPDATE OR DELETE ON {table}
    FOR EACH ROW EXECUTE FUNCTION {function}();
CREATE OR REPLACE TRIGGER router_tenants_gone BEFORE TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION {function}();
"""
