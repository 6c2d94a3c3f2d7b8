# Generated from tests/_async/test_credentials.py by tools/async_to_sync.py: do not edit.
"""Passwords: apart from the connection string, rotated, refused; and never seen anywhere."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from router import Node, NoPrimary, NoReplica, Router
from tests._sync.internals import inside
from tests.support import new_name, run, settings

if TYPE_CHECKING:
    from pathlib import Path

    from router.testing import PostgresCluster
    from router.testing._plugin import MakeCluster

CANARY = "canary-f00d-7a11"


@pytest.fixture(scope="session")
def guarded(make_postgres_cluster: MakeCluster) -> PostgresCluster:
    """A server that asks for passwords."""
    return make_postgres_cluster(version=16, standbys=0, password="superuser-" + CANARY)


def new_user(cluster: PostgresCluster, password: str) -> str:
    name = new_name()
    cluster.primary.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
    return name


def dsn(cluster: PostgresCluster, user: str) -> str:
    return f"postgresql://{user}@{cluster.primary.host}:{cluster.primary.port}/postgres"


def who(router: Router) -> Any:
    with router.connection() as connection:
        row = connection.execute("SELECT current_user").fetchone()
        assert row is not None
        return row[0]


def test_a_password_apart_from_the_connection_string(guarded: PostgresCluster) -> None:
    user = new_user(guarded, "one")
    with Router(settings(primary={"dsn": dsn(guarded, user), "password": "one"})) as router:
        assert who(router) == user


def test_a_password_file_is_read_for_each_connection(guarded: PostgresCluster, tmp_path: Path) -> None:
    user, secret = new_user(guarded, "one"), tmp_path / "password"
    secret.write_text("one\n")
    node = {"dsn": dsn(guarded, user), "password_file": str(secret)}
    with Router(settings(primary=node, pool={"max_size": 1})) as router:
        assert who(router) == user
        guarded.primary.execute(f"ALTER ROLE {user} PASSWORD 'two'")
        secret.write_text("two\n")
        with router.connection() as connection:
            connection.close()
        assert who(router) == user
        secret.unlink()
        with router.connection() as connection:
            connection.close()
        with pytest.raises(
            NoPrimary, match=r"its password_file /.*/password cannot be read: No such file or directory"
        ):
            who(router)


def test_a_password_callable_is_asked_again_when_its_answer_is_refused(guarded: PostgresCluster) -> None:
    user, answers, asked = new_user(guarded, "one"), ["one", "two"], []

    def password(node: Node) -> str:
        asked.append(str(node))
        return answers[len(asked) - 1]

    options = settings(primary=dsn(guarded, user), pool={"max_size": 1})
    with Router(options, password=password) as router:
        assert who(router) == user
        with router.connection() as connection:
            connection.close()
        assert who(router) == user
        assert len(asked) == 1
        guarded.primary.execute(f"ALTER ROLE {user} PASSWORD 'two'")
        with router.connection() as connection:
            connection.close()
        assert who(router) == user
        assert asked == [f"{user}@{guarded.primary.host}:{guarded.primary.port}/postgres"] * 2


def test_a_password_callable_may_be_async(guarded: PostgresCluster) -> None:
    user = new_user(guarded, "one")

    def password(node: Node) -> str:
        return "one"

    with Router(settings(primary=dsn(guarded, user)), password=password) as router:
        assert who(router) == user


def test_a_refused_password_concerns_that_login_only(guarded: PostgresCluster) -> None:
    right, wrong = new_user(guarded, "one"), new_user(guarded, "one")
    versions = {
        "v1": {"primary": {"dsn": dsn(guarded, wrong), "password": "not it"}},
        "v2": {"primary": {"dsn": dsn(guarded, right), "password": "one"}},
    }
    with Router(settings(versions=versions)) as router:
        with pytest.raises(NoPrimary, match="password authentication failed"):
            who(router)
        with router.connection(version="v2") as connection:
            connection.execute("SELECT 1")
        nodes = [node for version in router.stats().versions for node in version.nodes]
        assert [node.state for node in nodes] == ["login refused", "up"]
        assert "password authentication failed" in nodes[0].reason
        assert "login refused (" in repr(router.stats())


def test_no_password_is_ever_seen(
    guarded: PostgresCluster, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    user, wrong = new_user(guarded, "p-" + CANARY), new_user(guarded, "other")

    def password(node: Node) -> str:
        raise RuntimeError("the vault is sealed")

    seen: list[str] = []

    def see(*things: object) -> None:
        seen.extend(str(form) for thing in things for form in (thing, repr(thing)))

    good = {"dsn": dsn(guarded, user), "password": "p-" + CANARY}
    bad = dsn(guarded, wrong).replace("@", f":w-{CANARY}@")
    refused = psycopg.conninfo.make_conninfo(bad, port=1)
    options = settings(
        versions={"v1": {"primary": good, "replicas": [refused]}, "v2": {"primary": bad}},
        read={"fallback": "error"},
    )
    see(options, options.model_dump(), options.model_dump_json(), options.topology())
    with Router(options) as router:
        with router.connection() as connection:
            activity = connection.execute("SELECT * FROM pg_stat_activity")
            see(connection, activity.fetchall())
        for version, read_only in (("v1", True), ("v2", False), ("v3", False)):
            try:
                with router.connection(version=version, read_only=read_only):
                    pytest.fail("it was served")
            except (NoPrimary, NoReplica, LookupError) as error:
                see(error, error.__dict__, error.__cause__, error.__context__)
        see(router, router.stats(), router.explain(), router.explain(read_only=True), vars(router))
        see(vars(inside(router)), *(vars(pool) for pool in inside(router).pools))
    with Router(settings(primary=dsn(guarded, user)), password=password) as router:
        with pytest.raises(NoPrimary, match="the password callable failed") as raised:
            who(router)
        see(raised.value)
    seen += [record.getMessage() + str(record.exc_info) for record in caplog.records]
    seen += [caplog.text, *capfd.readouterr()]
    assert "the vault is sealed" in caplog.text
    assert any("password authentication failed" in text for text in seen)
    assert not [text for text in seen if CANARY in text]
    assert run(guarded.dsn(), "SELECT 1") == [(1,)]
