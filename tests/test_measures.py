"""What ``stats()`` returns reads as a table, one line a node."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from typing import Literal

import pytest

from router.core.measures import DirectoryStats, NodeStats, PoolStats, Stats, VersionStats
from router.core.topology import Node, Role, Secrets, Server

PARAMS = (("dbname", "app"), ("user", "app"))


def make_pool(in_use: int, idle: int, waiting: int) -> PoolStats:
    return PoolStats(
        size=in_use + idle,
        max_size=10,
        idle=idle,
        in_use=in_use,
        waiting=waiting,
        requests=70,
        queued=71,
        wait_seconds=7.2,
        opened=73,
        failed=74,
    )


def make_node(
    node: Node,
    role: Role | None,
    state: Literal["up", "down", "login refused", "unknown"] = "up",
    *,
    reason: str = "",
    lag: float | None = None,
    read: PoolStats | None = None,
    write: PoolStats | None = None,
) -> NodeStats:
    return NodeStats(
        node=node,
        role=role,
        state=state,
        reason=reason,
        server_version=180001,
        timeline=2,
        lag=lag,
        lag_bytes=None if lag is None else round(lag * 1000),
        latency=0.001,
        failures=0,
        read=read,
        write=write,
    )


def app(host: str) -> Node:
    return Node(Server(host, 5432), PARAMS, secrets=Secrets((("password", "hunter2"),)))


DOWN = make_node(Node(Server("::1", 5433), ()), Role.REPLICA, "down", reason="Connection refused")
UNTRIED = make_node(Node(Server("/run/pg", 5432), ()), None, "unknown")

STATS = Stats(
    connections=9,
    max_connections=200,
    versions=(
        VersionStats(
            "v1",
            (
                make_node(app("p"), Role.PRIMARY, read=make_pool(1, 2, 0), write=make_pool(4, 0, 3)),
                make_node(app("r"), Role.REPLICA, lag=0.0, read=make_pool(0, 2, 0)),
                make_node(app("s"), Role.REPLICA, lag=2.34),
                make_node(app("o"), Role.PRIMARY, reason="fenced: it is a primary on timeline 1, and p:5432 on 2"),
            ),
        ),
        VersionStats("v2", (make_node(app("w"), Role.PRIMARY, write=make_pool(5, 6, 7)), DOWN, UNTRIED)),
        VersionStats("v3", ()),
    ),
)


def test_stats_read_as_one_line_a_node() -> None:
    assert repr(STATS).splitlines() == [
        "Stats: 9 of at most 200 connections",
        "  v1",
        "    app@p:5432/app  primary, up; read: 1 in use, 2 idle, 0 waiting; write: 4 in use, 0 idle, 3 waiting",
        "    app@r:5432/app  replica, up; read: 0 in use, 2 idle, 0 waiting",
        "    app@s:5432/app  replica, up, 2.3 s behind",
        "    app@o:5432/app  primary, up (fenced: it is a primary on timeline 1, and p:5432 on 2)",
        "  v2",
        "    app@w:5432/app  primary, up; write: 5 in use, 6 idle, 7 waiting",
        "    [::1]:5433  replica, down (Connection refused)",
        "    /run/pg:5432  role unknown, unknown",
        "  v3",
    ]
    assert str(STATS) == repr(STATS)


@pytest.mark.parametrize(
    ("directory", "line"),
    [
        (DirectoryStats(7, 2, 0), "7 tenants known, 2 keys of no tenant"),
        (
            DirectoryStats(7, 0, 3, failing_for=4.2, reason="Connection refused"),
            "7 tenants known, 0 keys of no tenant, 3 known tenants not confirmed, failing for 4 s: Connection refused",
        ),
    ],
)
def test_stats_describe_the_directory_in_words(directory: DirectoryStats, line: str) -> None:
    assert repr(replace(STATS, directory=directory)).splitlines()[-1] == f"  directory: {line}"


def test_stats_show_no_secret() -> None:
    assert "hunter" not in f"{STATS!r} {STATS.versions!r}"


@pytest.mark.parametrize("value", [STATS, STATS.versions[0], DOWN, make_pool(0, 0, 0)])
def test_stats_are_frozen_values(value: Stats | VersionStats | NodeStats | PoolStats) -> None:
    for field in fields(value):
        with pytest.raises(FrozenInstanceError):
            setattr(value, field.name, None)
    assert isinstance(hash(value), int)
