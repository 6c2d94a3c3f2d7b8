"""A plain script: two versions of a database, writes to each one's primary, reads from its replicas.

It starts two clusters of its own, PostgreSQL 16 and 18; in a service, `RouterSettings()` reads the environment.
"""

from __future__ import annotations

from contextlib import ExitStack
from time import monotonic, sleep

from psycopg.errors import ReadOnlySqlTransaction, UndefinedTable

from router import Router, RouterSettings
from router.testing import PostgresCluster


def settings(stack: ExitStack) -> RouterSettings:
    """Start PostgreSQL 16 and 18 for as long as this runs."""
    old, new = (stack.enter_context(PostgresCluster(version=version)) for version in (16, 18))
    return RouterSettings(versions={"v1": old.version_settings(), "v2": new.version_settings()})


def read(router: Router, version: str) -> tuple[str, str]:
    """Read the greeting from a replica, which is a moment behind its primary: wait until it has it."""
    deadline = monotonic() + 10.0
    while monotonic() < deadline:
        try:
            # A read outside of any transaction: one round trip for the query, none for anything else.
            with router.connection(version=version, read_only=True) as conn:
                if row := conn.execute("SELECT words, current_setting('server_version') FROM greeting").fetchone():
                    return row
        except UndefinedTable:
            pass
        sleep(0.01)
    raise TimeoutError(f"the replicas of {version} are more than 10 s behind")


with ExitStack() as stack:
    router = stack.enter_context(Router(settings(stack)))
    for version in ("v1", "v2"):
        # The block is one transaction on the primary: committed at its end, rolled back if it raises.
        with router.connection(version=version) as conn:
            conn.execute("CREATE TABLE greeting (words text)")
            conn.execute("INSERT INTO greeting VALUES (%s)", [f"hello from {version}"])
        words, server_version = read(router, version)
        print(f"{words}, PostgreSQL {server_version}")

    # No parser guesses what is a write: the server itself refuses it, whatever it is wrapped in.
    try:
        with router.connection(version="v2", read_only=True) as conn:
            conn.execute("DO $$ BEGIN CREATE TABLE hidden (); END $$")
    except ReadOnlySqlTransaction as error:
        print(f"a write to a replica: refused with SQLSTATE {error.sqlstate}")

    # Where would a request go, and why? Nothing is opened for the answer.
    print(router.explain(version="v2", read_only=True))
    for version in ("v1", "v2"):
        with router.connection(version=version) as conn:
            conn.execute("DROP TABLE greeting")
