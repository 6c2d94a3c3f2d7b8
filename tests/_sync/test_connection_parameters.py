# Generated from tests/_async/test_connection_parameters.py by tools/async_to_sync.py: do not edit.
"""What libpq is told beside the connection string: options from elsewhere, and when to give up a silent peer."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from router import Router
from tests.support import settings

if TYPE_CHECKING:
    from pathlib import Path

    from router.testing import PostgresCluster

SEEN = "SELECT concat_ws(', ', current_setting('statement_timeout'), current_setting('app.from', true))"
LOOKS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"


def seen(router: Router) -> set[tuple[str, ...]]:
    found = set()
    for tenant in (None, "acme"):
        for read_only in (False, True):
            with router.connection(version="v1", tenant=tenant, read_only=read_only) as connection:
                cursor = connection.execute(SEEN)
                found.update(cursor.fetchall())
    return found


@pytest.mark.each_value
@pytest.mark.parametrize("pooling", ["dedicated", "shared"])
@pytest.mark.parametrize(
    ("environment", "service", "own", "expected"),
    [
        ("-c statement_timeout=3s -c app.from=environment", None, None, "3s, environment"),
        ("-c app.from=environment", "-c statement_timeout=4s -c app.from=service", None, "4s, service"),
        ("-c app.from=environment", "-c app.from=service", "-c statement_timeout=5s -c app.from=own", "5s, own"),
    ],
)
def test_options_from_elsewhere_hold_in_every_session(
    cluster: PostgresCluster,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    pooling: str,
    environment: str,
    service: str | None,
    own: str | None,
    expected: str,
) -> None:
    monkeypatch.setenv("PGOPTIONS", environment)
    more = {} if own is None else {"options": own}
    if service is not None:
        file = tmp_path / "pg_service.conf"
        file.write_text(f"[app]\noptions={service}\n", encoding="utf-8")
        monkeypatch.setenv("PGSERVICEFILE", str(file))
        more["service"] = "app"
    options = settings(
        versions={"v1": {"primary": cluster.dsn(**more), "replicas": [cluster.standbys[0].dsn(**more)]}},
        tenancy={"pooling": pooling},
        tenants={"acme": {"version": "v1", "row": "app.tenant"}},
    )
    with Router(options) as router:
        assert seen(router) == {(expected,)}


def test_options_from_the_environment_hold_in_the_sessions_of_looks(
    cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"looks {os.getpid()}"
    monkeypatch.setenv("PGOPTIONS", f"-c application_name={name.replace(' ', chr(92) + ' ')}")
    with Router(settings(primary=cluster.dsn())) as router, router.connection() as connection:
        cursor = connection.execute(LOOKS, [name])
        assert cursor.fetchone() == (2,)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("own", "service", "expected"),
    [
        ({}, "", (1, 60, 15, 3, 45_000)),
        ({"keepalives_idle": 777, "tcp_user_timeout": 888_000}, "", (1, 777, 15, 3, 888_000)),
        ({"service": "app"}, "keepalives_count=7\ntcp_user_timeout=9000\n", (1, 60, 15, 7, 9_000)),
        ({"keepalives": 0}, "", (0,)),
    ],
)
def test_a_peer_that_is_silent_is_given_up_after_a_minute_or_so_unless_something_else_is_said(
    cluster: PostgresCluster,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    own: dict[str, Any],
    service: str,
    expected: tuple[int, ...],
    read_only: bool,
) -> None:
    file = tmp_path / "pg_service.conf"
    file.write_text(f"[app]\n{service}", encoding="utf-8")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    tcp = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
    with (
        Router(settings(primary=cluster.dsn(**own))) as router,
        router.connection(read_only=read_only) as connection,
    ):
        with socket.socket(fileno=os.dup(connection.fileno())) as peer:
            alive = peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            found = (alive, *(peer.getsockopt(socket.IPPROTO_TCP, option) for option in tcp))
    assert found[: len(expected)] == expected
