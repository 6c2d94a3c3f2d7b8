"""Whether a statement may leave something in its session, told from its text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.traces import LONGEST, leaves_trace

LEAVE_SOMETHING = [
    "SET work_mem = '5MB'",
    "set search_path to x",
    "SET SESSION work_mem = '5MB'",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET local.setting = 1",
    "SET ROLE other",
    "SET SESSION AUTHORIZATION other",
    "RESET ALL",
    "DISCARD ALL",
    "DEALLOCATE ALL",
    "LISTEN jobs",
    "LOAD 'auto_explain'",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "DO $$ BEGIN PERFORM 1; END $$",
    "CALL p()",
    "CREATE TEMP TABLE t (i int)",
    "create local temporary table t (i int)",
    "CREATE OR REPLACE TEMP VIEW v AS SELECT 1",
    "CREATE /* a */ TEMPORARY -- b\n SEQUENCE s",
    "CREATE TABLE pg_temp.t (i int)",
    'CREATE TABLE "pg_temp".t (i int)',
    "CREATE FUNCTION pg_temp.f() RETURNS int RETURN 1",
    "SELECT 1 AS i INTO TEMP t",
    "WITH w AS (SELECT 1 AS i) SELECT i INTO TEMPORARY TABLE t FROM w",
    "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "DECLARE c SCROLL CURSOR WITH /* */ HOLD FOR SELECT 1",
    "SELECT pg_advisory_lock(1)",
    "SELECT PG_ADVISORY_LOCK_SHARED (1)",
    "SELECT pg_catalog.pg_try_advisory_lock(1)",
    "SELECT pg_try_advisory_lock_shared(1, 2)",
    'SELECT "pg_advisory_lock"(1)',
    'SELECT u&"pg_advisory\\005flock"(1)',
    "SELECT query_to_xml('SELECT pg_advisory_lock(1)', true, true, '')",
    "INSERT INTO t SELECT pg_advisory_lock(1)",
    "SELECT set_config('work_mem', '5MB', false)",
    "SELECT set_config($1, $2, $3)",
    "SELECT set_config('app.a', $1, true), set_config('app.b', $1, false)",
    "SELECT set_config('app.a, true)', $1, false)",
    "UPDATE pg_settings SET setting = '5MB' WHERE name = 'work_mem'",
    "SELECT nextval('s')",
    "SELECT setval('s', 7)",
    "SELECT 1; SET work_mem = '5MB'",
    "SELECT ';'; LISTEN x",
    "/* SELECT */ LISTEN x",
    "-- SELECT\nLISTEN x",
    "BEGIN; LISTEN x; COMMIT",
    "((LISTEN x))",
    "SELECT 'it\\'; SET work_mem = '5MB'; --'",  # with standard_conforming_strings = off
    "whatever this is",
    "\u00e9",
]

LEAVE_NOTHING = [
    "",
    " ; ; -- nothing",
    "SELECT 1",
    "(SELECT 1) UNION (SELECT 2)",
    "select 'SET work_mem; LISTEN x'",
    "SELECT $$; LISTEN x$$, $a$ ; SET x TO 1 $a$",
    'SELECT 1 AS "x; LISTEN y"',
    "-- LISTEN x\nSELECT 1 /* ; LISTEN x */",
    "INSERT INTO t VALUES ($1) ON CONFLICT DO NOTHING",
    "UPDATE t SET a = $1",
    "DELETE FROM t; SELECT 1",
    "MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE",
    "WITH w AS (SELECT 1) SELECT * FROM w",
    "VALUES (1)",
    "TABLE t",
    "SELECT temp, temporary FROM weather",
    "SELECT 1 AS i INTO t",
    "CREATE TABLE t (temp int)",
    "CREATE UNLOGGED TABLE t (i int)",
    "ALTER ROLE r SET work_mem = '5MB'",
    "BEGIN; SET LOCAL work_mem = '5MB'; SET CONSTRAINTS ALL DEFERRED; COMMIT",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET LOCAL ROLE other",
    "DECLARE c CURSOR FOR SELECT 1",
    "FETCH 1 FROM c",
    "SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(2)",
    "SELECT pg_advisory_unlock_all()",
    "SELECT set_config('app.tenant', $1, true)",
    "SELECT Set_Config( 'app.tenant' , 'acme'::text , TRUE )",
    "NOTIFY jobs, 'LISTEN'",
    "SELECT pg_notify('jobs', $1)",
    "SHOW work_mem",
    "EXPLAIN SELECT 1",
    "VACUUM",
    "UNLISTEN *",
]


@pytest.mark.parametrize("text", LEAVE_SOMETHING)
def test_what_may_outlast_its_transaction(text: str) -> None:
    assert leaves_trace(text.encode())
    assert leaves_trace(text.swapcase().encode())


@pytest.mark.parametrize("text", LEAVE_NOTHING)
def test_what_ends_with_its_transaction(text: str) -> None:
    assert not leaves_trace(text.encode())
    assert not leaves_trace(text.swapcase().encode())


QUOTED = st.sampled_from(["'a;b'", "'it''s; LISTEN'", '"a;b"', "$$;$$", "$a$;$$;$a$", "E'a\\\\;b'", "U&'a;b'"])
COMMENTS = st.sampled_from(["", " ", "\n", "/* ; */", "/* /* ' */ ' */", "-- ' ; \"\n", "-- $$\n"])


@given(
    before=st.lists(st.tuples(COMMENTS, QUOTED), max_size=4),
    between=COMMENTS,
    text=st.sampled_from([text for text in LEAVE_SOMETHING if text.isascii()]),
)
def test_nothing_that_is_quoted_before_it_hides_a_statement(
    before: list[tuple[str, str]], between: str, text: str
) -> None:
    selected = ", ".join(f"{comment}{quoted}" for comment, quoted in before)
    assert leaves_trace(f"SELECT {selected};{between}{text}".encode())
    assert leaves_trace(f"{text}\n;{between}SELECT {selected}".encode())


@given(before=st.lists(st.tuples(COMMENTS, QUOTED), min_size=1, max_size=4), text=st.sampled_from(LEAVE_NOTHING))
def test_what_is_quoted_is_no_statement(before: list[tuple[str, str]], text: str) -> None:
    selected = ", ".join(f"{comment}{quoted}" for comment, quoted in before)
    assert not leaves_trace(f"SELECT {selected};{text}".encode())


@given(st.binary(max_size=50))
def test_any_bytes_are_answered(text: bytes) -> None:
    assert leaves_trace(b"LISTEN x;" + text)
    leaves_trace(text)


def test_what_is_too_long_to_be_read_counts() -> None:
    assert leaves_trace(b"SELECT 1 --" + b" " * LONGEST)
    assert not leaves_trace(b"SELECT 1 --" + b" " * (LONGEST - 11))


@pytest.mark.parametrize("text", ["SELECT 1", "INSERT INTO t VALUES ('a')", "SET work_mem = '5MB'"])
def test_the_first_word_of_a_single_statement_tells_however_long_it_is(text: str) -> None:
    assert leaves_trace(text.encode() + b" " * LONGEST) == leaves_trace(text.encode())


def test_what_a_sequence_gave_last_counts_if_it_is_to() -> None:
    for text in (b"SELECT nextval('s')", b"SELECT setval('s', 7)"):
        assert leaves_trace(text)
        assert not leaves_trace(text, sequences=False)
    assert leaves_trace(b"SELECT nextval('s'); LISTEN x", sequences=False)
