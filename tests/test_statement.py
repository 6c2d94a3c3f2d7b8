"""What the text of a statement tells."""

from __future__ import annotations

import pytest

from router.core.statement import can_be_repeated, commits, needs_primary, without_comments

FOR_THE_PRIMARY = [
    "INSERT INTO t VALUES (1)",
    "update t set i = 1",
    "(((DELETE FROM t)))",
    " ; MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE",
    "-- a comment\nTRUNCATE t",
    "/* /* nested */ still */ CREATE TABLE t (i int)",
    "/*traceparent='00-1-01'*/ INSERT INTO t VALUES ('/*')",
    "ALTER SYSTEM SET work_mem = '5MB'",
    "CHECKPOINT",
    "VACUUM (ANALYZE) t",
    "COPY t FROM STDIN",
    "COPY t FROM PROGRAM 'echo to'",
    "COPY public.t (a, b) FROM '/tmp/to'",
    'COPY "to" ("to") FROM STDIN WHERE a IN (SELECT 1)',
    "SELECT pg_switch_wal()",
    "SELECT pg_catalog.PG_CURRENT_WAL_LSN ()",
    "SELECT pg_create_restore_point('before')",
    "SELECT * FROM pg_create_physical_replication_slot('mine')",
    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots",
    "SELECT pg_copy_logical_replication_slot('a', 'b')",
    "SELECT data FROM pg_logical_slot_get_changes('a', NULL, NULL)",
    "SELECT pg_reload_conf()",
    "WITH p AS (SELECT pg_backup_start('x')) SELECT 1 FROM p",
]

FOR_WHOEVER_CAN = [
    "",
    "SELECT 1",
    "-- INSERT\nSELECT 1",
    "/* INSERT */ SELECT 'INSERT'",
    "WITH w AS (INSERT INTO t VALUES (1) RETURNING i) SELECT i FROM w",
    "EXPLAIN INSERT INTO t VALUES (1)",
    "insert_all()",
    "COPY t TO STDOUT",
    "COPY t (a, b) TO PROGRAM 'cat > from'",
    "COPY (SELECT a FROM t) TO STDOUT",
    'COPY "from" TO STDOUT',
    "COPY from_here TO STDOUT",
    "SELECT * FROM pg_replication_slots",
    "SELECT 1 WHERE 'pg_switch_wal()' <> $$pg_switch_wal()$$",
    "SELECT pg_last_wal_replay_lsn(), pg_is_in_recovery(), pg_wal_replay_pause()",
    "SELECT pg_terminate_backend(1)",
]


@pytest.mark.parametrize("text", FOR_THE_PRIMARY)
def test_what_is_for_the_primary(text: str) -> None:
    assert needs_primary(without_comments(text))


@pytest.mark.parametrize("text", FOR_WHOEVER_CAN)
def test_what_may_be_for_a_replica(text: str) -> None:
    assert not needs_primary(without_comments(text))


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("SELECT 1", "SELECT 1"),
        ("  SELECT 1 -- one\n", "SELECT 1"),
        ("SELECT/* one */1", "SELECT 1"),
        ("/* a /* b */ c */SELECT 1/* open", "SELECT 1"),
        (
            "SELECT '--', \"/*\", E'\\'--', $$--$$, $a$ $$ -- $a$ -- x",
            "SELECT '--', \"/*\", E'\\'--', $$--$$, $a$ $$ -- $a$",
        ),
        ("SELECT 'it''s --' -- x", "SELECT 'it''s --'"),
        ("SELECT $1 -- x\n, $2", "SELECT $1  \n, $2"),
        ("SELECT 'open -- x", "SELECT 'open -- x"),
        ("SELECT a$b$ -- x", "SELECT a$b$"),
    ],
)
def test_comments_are_left_out_and_nothing_else(text: str, bare: str) -> None:
    assert without_comments(text) == bare


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"COMMIT", True),
        (b"commit and chain", True),
        (b"/* x */ END;", True),
        (b"INSERT INTO t VALUES (1); COMMIT", True),
        (b"COMMIT PREPARED 'x'", True),
        (b"PREPARE\n TRANSACTION 'x'", True),
        (b"PREPARE s AS SELECT 1", False),
        (b"SELECT CASE WHEN true THEN 1 END", False),
        (b"SELECT '; COMMIT' -- ; COMMIT", False),
        (b"ROLLBACK", False),
        (b"RELEASE commit", False),
        (b"ENDING", False),
        ("SELECT 'Zürich'; COMMIT".encode("latin-1"), True),
    ],
)
def test_what_commits(text: bytes, expected: bool) -> None:
    assert commits(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1", True),
        ("/* x */ (SELECT ';');", True),
        ("INSERT INTO t VALUES (1) RETURNING *", True),
        ("SELECT 1; CALL p()", False),
        ("CALL p()", False),
        ("DO $$ BEGIN COMMIT; END $$", False),
        ("CREATE INDEX CONCURRENTLY i ON t (a)", False),
    ],
)
def test_what_leaves_nothing_when_it_fails(text: str, expected: bool) -> None:
    assert can_be_repeated(text) is expected
