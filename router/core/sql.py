"""Every SQL text that the router itself sends."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from router.core.topology import TENANT_PATTERN

if TYPE_CHECKING:
    from collections.abc import Iterable

# ruff: noqa: S608  (each is put together from constants)

_POSITION = """(
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END - '0/0'
)::bigint"""
_PRIMARYS_TIMELINE = "('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int"
_REPLAY_AGE = "extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8"

# Role, and whether sessions like this one refuse writes, where the server does not tell both unasked.
ROLE = "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')::bool"
# The same for all sessions: what is set for a role or database holds in those that begin later, and for these alone.
_REFUSES_WRITES = """CASE WHEN current_setting('default_transaction_read_only')::bool THEN (
    SELECT source IN ('configuration file', 'command line', 'environment variable') FROM pg_settings
    WHERE name = 'default_transaction_read_only'
) ELSE false END"""

PROCESS = "extract(epoch FROM pg_postmaster_start_time())::text"
"""What no two servers have in common, nor one before and after a restart; an address may lead to several of them."""

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


# What a probe asks: role, position, timeline, system identifier, seconds since the last replayed commit, whether writes
# are refused, and the number of the process that answers. A replica tells its timeline to members of pg_read_all_stats
# only; its control file, which every login may read, tells it later. A standby that has received WAL of a timeline, and
# replayed past the point where it began, has replayed along it.
PROBE = _probe(
    f"""greatest(
        {_RECEIVED_TIMELINE},
        (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
        (SELECT timeline_id FROM pg_control_checkpoint())
    )""",
    "(SELECT system_identifier FROM pg_control_system())",
)
# The same where the functions that read the control file are not for everybody.
PROBE_WITHOUT_CONTROL = _probe(_RECEIVED_TIMELINE, "NULL")

# Where the WAL ends, with its timeline. After COMMIT: before it, the position is that of the COMMIT record's start.
WRITTEN = f"SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, {_PRIMARYS_TIMELINE}"

# Everything that a borrower can leave in a session, undone: what DISCARD ALL does, which cannot share a round trip. The
# role goes back to the one that the session began with. The rest of it is an expression, for a SELECT to come.
RESET_SESSION = (
    "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; DEALLOCATE ALL; UNLISTEN *; "
    "DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES"
)
UNLOCK_ALL = "pg_catalog.pg_advisory_unlock_all()"

# What `router check` asks every server. It takes no privilege; `receiver` is null when there is none.
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

# And which server it is that answers, for an address may lead to several.
SERVER_IDENTITY = "SELECT pg_postmaster_start_time()::text AS started, inet_server_addr()::text AS address"


def sessions(pids: Iterable[int]) -> str:
    """Write the question which sessions a server has.

    Args:
        pids: Of which processes.

    Returns:
        A statement; one row for each: the process, when it began, how old it is in seconds, and since when it is at
        rest, null if it is not. All but the process is null for a login that may not see it.
    """
    return f"""\
SELECT pid, backend_start::text, extract(epoch FROM clock_timestamp() - backend_start),
    CASE WHEN state LIKE 'idle%' THEN state_change::text END
FROM pg_catalog.pg_stat_activity WHERE pid IN ({", ".join(map(str, pids))})"""


def terminate(pid: int, began: str) -> str:
    """Write a statement that ends a session.

    Args:
        pid: Its process.
        began: When that began, as :func:`sessions` says.

    Returns:
        The statement; it does nothing if the number is another session's by now.
    """
    return (
        "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity "
        f"WHERE pid = {pid} AND backend_start::text = {literal(began)}"
    )


def literal(text: str) -> str:
    """Write a text as a literal that means the same however the session is set.

    Args:
        text: The text, without NUL.

    Returns:
        An escape string: what ``standard_conforming_strings`` says does not matter to it; in ASCII: neither does what
        ``client_encoding`` says.
    """
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return "E'" + "".join(one if one.isascii() else f"\\U{ord(one):08X}" for one in escaped) + "'"


NO_USAGE = "no USAGE on schema "


def settings(pairs: Iterable[tuple[str, str]], *, local: bool) -> list[str]:
    """Write what sets PostgreSQL's settings, and fails where a part of a search path would be passed over.

    Functions are qualified: an earlier borrower of the session may have had names found elsewhere.

    Args:
        pairs: Names and values; the names in a search path are quoted.
        local: Whether they last for the transaction only.

    Returns:
        Expressions for a SELECT. It fails with 3F000 if a schema is not there, and with 22023 and a text that holds
        ``NO_USAGE`` and its name if the session may not use it.
    """
    scope = "true" if local else "false"
    found = []
    for name, value in sorted(pairs, key=lambda pair: pair[0] == "search_path"):  # as the role that is set by then
        text = _usable(value) if name == "search_path" else literal(value)
        found.append(f"pg_catalog.set_config({literal(name)}, {text}, {scope})")
    return found


def session(startup: Iterable[tuple[str, str]]) -> str:
    """Write the question which process serves this session, and whether it began with the right settings.

    Args:
        startup: The settings that it was to begin with.

    Returns:
        A SELECT of the server process's number, and whether all of them are in force. It fails as what
        :func:`settings` writes does if a part of the search path would be passed over.
    """
    pairs = list(startup)
    begun = " AND ".join(
        f"pg_catalog.current_setting({literal(name)}, true) IS NOT DISTINCT FROM {literal(value)}"
        for name, value in pairs
    )
    found = settings([pair for pair in pairs if pair[0] == "search_path"], local=True)  # in its turn: after it was read
    return f"SELECT {', '.join(['pg_catalog.pg_backend_pid()', begun or 'true', *found])}"


def _usable(search_path: str) -> str:
    """Write a search path as an expression that is no search path if a schema in it cannot be used.

    PostgreSQL skips such a schema, and names would be found in a later one.
    """
    names = [name.replace('""', '"') for name in re.findall(r'"((?:[^"]|"")*)"', search_path)]
    refusals = (
        f"WHEN NOT pg_catalog.has_schema_privilege({literal(name)}, 'USAGE') THEN {literal(NO_USAGE + name)} "
        for name in names
    )
    return f"CASE {''.join(refusals)}ELSE {literal(search_path)} END"


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

# What `router tenants` counts: the sessions of a server, of all users; their user is shown without any privilege.
SESSIONS = """
SELECT datname, usename, application_name, count(*)::int AS sessions
FROM pg_stat_activity
WHERE datname IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend' AND pid <> pg_backend_pid()
GROUP BY 1, 2, 3
"""

# What tells later, after a crash, whether the transaction it is asked in was committed: its number, and the timeline.
TRANSACTION = f"SELECT pg_current_xact_id()::text, {_PRIMARYS_TIMELINE}"
# In what state it is now; null when it is too old for the server to know. Fails with 22023 if there was none yet.
TRANSACTION_STATE = f"SELECT pg_xact_status(%s::text::xid8), {_PRIMARYS_TIMELINE}"

TENANTS_CHANNEL = "router_tenant"
"""Where one hears of changes in a table of tenants: what is sent is the tenant's key, or nothing when it may be any."""

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
    """Write what makes a table of tenants that tells of its changes.

    Args:
        table: Its name, as SQL writes it.
        pattern: What a key matches; if it is the default, the table holds no other keys.

    Returns:
        The statements, for ``psql`` or a migration.
    """
    schema = re.match(r'(?:"(?:[^"]|"")*"|[^".]*)\s*\.\s*', table)
    function = f"{schema[0] if schema else ''}router_tenant_changed"
    # Any other pattern may mean something else to PostgreSQL than to Python.
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
