"""What an observation changed is told once; who the primary is, is followed."""

from __future__ import annotations

import logging
import pickle
from copy import copy, deepcopy
from dataclasses import FrozenInstanceError, asdict, fields
from typing import TYPE_CHECKING

import pytest

from router.core.changes import LastPrimary, changes, track_fallback, track_primary
from router.core.events import ConnectionsCut, Event, PoolClosed, PoolOpened, ReadOnPrimary, Repeated, RequestFailed
from router.core.health import observe
from router.core.observations import AttemptFailed, Connected, ProbeResult
from router.core.policies import HealthPolicy
from router.core.server_events import (
    FailedOver,
    Fenced,
    LeftBehind,
    LoginRefused,
    OtherSystem,
    ReadsFellBack,
    ReadsReturned,
    RoleChanged,
    ServerBanned,
    ServerDown,
    ServerUp,
    SeveralServers,
    UndeclaredPooler,
    WritesRefused,
)
from router.core.standing import Standing, Tier
from router.core.topology import Cluster, Node, Role, Secrets, Server

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.core.health import Health
    from router.core.observations import Observation

PRIMARY, REPLICA = Role.PRIMARY, Role.REPLICA
POLICY = HealthPolicy(ban=0.5, ban_max=15.0)

A, B, C = (
    Node(Server(host, 5432), (("dbname", "app"), ("user", "app")), secrets=Secrets((("password", "hunter2"),)))
    for host in "abc"
)
ONE, OTHER = Cluster("v1", (A, B, C)), Cluster("v2", (A, B))


def looked(node: Node, role: Role, timeline: int = 1) -> ProbeResult:
    return ProbeResult(node, role, 180001, 1000, timeline, 7)


def gone(node: Node, reason: str = "Connection refused") -> AttemptFailed:
    return AttemptFailed(node, reason, answered=False)


def refused(node: Node) -> AttemptFailed:
    return AttemptFailed(node, "FATAL: no such role", answered=True)


def told(*moments: tuple[float, Observation], clusters: tuple[Cluster, ...] = (ONE,)) -> list[list[Event]]:
    """The events of each observation."""
    health: Health = {}
    found = []
    for now, seen in moments:
        before, health = health, observe(health, seen, now=now, jitter=0.0, policy=POLICY)
        found.append(list(changes(before, health, clusters, now=now)))
    return found


def test_a_server_is_up_and_down_once_however_often_that_is_seen() -> None:
    assert told(
        (1.0, looked(A, PRIMARY)),
        (2.0, looked(A, PRIMARY)),
        (3.0, Connected(A, PRIMARY)),
        (4.0, gone(A)),
        (5.0, gone(A, "no answer within 1 s")),
        (6.0, looked(A, PRIMARY)),
    ) == [
        [ServerUp(A.server, PRIMARY, 180001)],
        [],
        [],
        [ServerDown(A.server, "Connection refused")],
        [],
        [ServerUp(A.server, PRIMARY, 180001)],
    ]


def test_a_server_that_was_never_up_is_down_once() -> None:
    assert told((1.0, gone(A)), (2.0, gone(A))) == [[ServerDown(A.server, "Connection refused")], []]


def test_a_login_is_refused_once_until_it_works_again() -> None:
    events = told(
        (1.0, looked(A, PRIMARY)),
        (2.0, refused(A)),
        (9.0, refused(A)),
        (10.0, Connected(A, PRIMARY)),
        (11.0, refused(A)),
    )
    assert events[1:] == [[LoginRefused(A, "FATAL: no such role")], [], [], [LoginRefused(A, "FATAL: no such role")]]


def test_a_server_that_is_back_is_avoided_if_it_was_down_before() -> None:
    *_, back = told(
        (1.0, looked(A, REPLICA)), (2.0, gone(A)), (2.1, looked(A, REPLICA)), (3.0, gone(A)), (3.25, looked(A, REPLICA))
    )
    assert back == [ServerUp(A.server, REPLICA, 180001), ServerBanned(A.server, 2, 0.75)]


def test_a_ban_that_has_ended_before_the_server_is_back_is_not_told() -> None:
    *_, back = told((1.0, gone(A)), (2.0, looked(A, REPLICA)), (3.0, gone(A)), (4.0, looked(A, REPLICA)))
    assert back == [ServerUp(A.server, REPLICA, 180001)]


def test_a_promotion_and_a_demotion_are_told_once() -> None:
    assert told(
        (1.0, looked(A, REPLICA)),
        (2.0, looked(A, PRIMARY, 2)),
        (3.0, looked(A, PRIMARY, 2)),
        (4.0, gone(A)),
        (9.0, looked(A, REPLICA, 3)),
    )[1:] == [
        [RoleChanged(A.server, PRIMARY, 2)],
        [],
        [ServerDown(A.server, "Connection refused")],
        [ServerUp(A.server, REPLICA, 180001), RoleChanged(A.server, REPLICA, 3)],
    ]


FENCE = "fenced: it is a primary on timeline 1, and b:5432 is on the later timeline 2"


def test_a_primary_that_is_fenced_is_told_once_for_each_version() -> None:
    moments = (
        (1.0, looked(A, PRIMARY)),
        (2.0, looked(B, PRIMARY, 2)),
        (3.0, looked(A, PRIMARY)),
        (4.0, looked(B, PRIMARY, 2)),
    )
    events = told(*moments, clusters=(ONE, OTHER))
    assert events[1:] == [
        [ServerUp(B.server, PRIMARY, 180001)],  # A may be dead, which a look at it is about to show
        [Fenced("v1", A, FENCE), Fenced("v2", A, FENCE)],
        [],
    ]


def test_an_old_primary_that_is_seen_dead_just_after_the_new_one_is_seen_is_not_fenced() -> None:
    events = told((1.0, looked(A, PRIMARY)), (2.0, looked(B, PRIMARY, 2)), (2.1, gone(A)))
    assert events[-1] == [ServerDown(A.server, "Connection refused")]


def test_a_replica_that_does_not_follow_the_new_primary_is_told_once() -> None:
    events = told(
        (1.0, looked(A, PRIMARY)),
        (1.1, looked(C, REPLICA)),
        (2.0, gone(A)),
        (3.0, looked(B, PRIMARY, 2)),
        (3.1, looked(C, REPLICA)),
        (4.1, looked(C, REPLICA)),
        (5.1, looked(C, REPLICA, 2)),
    )
    assert events[4:] == [[LeftBehind("v1", C, 1)], [], []]


def test_a_dead_primary_is_not_told_to_be_fenced_until_it_comes_back_as_one() -> None:
    events = told(
        (1.0, looked(A, PRIMARY)),
        (2.0, gone(A)),
        (3.0, looked(B, PRIMARY, 2)),
        (9.0, looked(A, PRIMARY)),
        (10.0, looked(A, PRIMARY)),
        (11.0, gone(A)),
        (30.0, looked(A, PRIMARY)),
        (31.0, looked(A, REPLICA, 2)),
    )
    assert [[event for event in one if isinstance(event, Fenced)] for one in events] == [
        [], [], [], [Fenced("v1", A, FENCE)], [], [], [Fenced("v1", A, FENCE)], [],
    ]  # fmt: skip


def test_of_a_server_that_a_version_does_not_have_the_version_is_told_nothing() -> None:
    assert told((1.0, looked(A, PRIMARY)), (2.0, looked(B, PRIMARY, 2)), clusters=())[-1] == [
        ServerUp(B.server, PRIMARY, 180001)
    ]


def test_that_a_primary_refuses_writes_is_told_once_and_that_it_does_so_no_longer() -> None:
    refusing = looked(A, PRIMARY)._replace(refuses_writes=True)
    assert told((1.0, looked(A, PRIMARY)), (2.0, refusing), (3.0, refusing), (4.0, looked(A, PRIMARY)))[1:] == [
        [WritesRefused(A.server, refused=True)],
        [],
        [WritesRefused(A.server, refused=False)],
    ]
    assert told((1.0, looked(A, REPLICA)._replace(refuses_writes=True))) == [[ServerUp(A.server, REPLICA, 180001)]]


def test_a_node_of_another_system_is_told_once() -> None:
    other = looked(B, REPLICA)._replace(system=8)
    events = told((1.0, looked(A, PRIMARY)), (1.1, looked(C, REPLICA)), (2.0, other), (3.0, other), (4.0, gone(A)))
    reason = "is of another system (8) than most of the version's nodes (7): its data are not the version's"
    assert events[2:4] == [[ServerUp(B.server, REPLICA, 180001), OtherSystem("v1", B, reason)], []]


# Who the primary is


def test_a_failover_is_told_once_with_how_long_there_was_no_primary() -> None:
    leader: LastPrimary | None = None
    found = []
    for now, node in [(1.0, A), (2.0, A), (3.0, None), (4.0, None), (5.5, B), (6.0, B)]:
        leader, failover = track_primary("v1", leader, node, now=now)
        found.append(failover)
    assert found == [None, None, None, None, FailedOver("v1", A, B, 2.5), None]
    assert leader == LastPrimary(B)


@pytest.mark.parametrize(
    ("leader", "node", "expected"),
    [
        (None, None, (None, None)),
        (None, A, (LastPrimary(A), None)),
        (LastPrimary(A), None, (LastPrimary(A, 10.0), None)),
        (LastPrimary(A, 0.0), None, (LastPrimary(A, 0.0), None)),  # lost when the clock showed nought
        (LastPrimary(A, 7.0), A, (LastPrimary(A), None)),  # it came back
        (LastPrimary(A), B, (LastPrimary(B), FailedOver("v1", A, B, 0.0))),  # without a gap that was seen
        (LastPrimary(A, 7.0), B, (LastPrimary(B), FailedOver("v1", A, B, 3.0))),
        (LastPrimary(A, 0.0), B, (LastPrimary(B), FailedOver("v1", A, B, 10.0))),
    ],
)
def test_who_is_the_primary_after_whom(
    leader: LastPrimary | None, node: Node | None, expected: tuple[LastPrimary | None, FailedOver | None]
) -> None:
    assert track_primary("v1", leader, node, now=10.0) == expected


# Who serves the reads


def test_reads_fall_back_once_it_is_known_that_no_replica_can_serve_them() -> None:
    best, fallback = Standing(Tier.BEST), Standing(Tier.FALLBACK)
    down, unseen = Standing(Tier.DOWN, note="down: no answer"), Standing(Tier.UNPROBED)
    began = ReadsFellBack("v1", A, f"{B}: down: no answer")
    turns: list[tuple[Mapping[Node, Standing], bool, tuple[bool, Event | None]]] = [
        ({A: fallback, B: unseen}, False, (False, None)),
        ({A: fallback, B: best}, False, (False, None)),
        ({A: fallback, B: down}, False, (True, began)),
        ({A: fallback, B: down}, True, (True, None)),
        ({A: down, B: down}, True, (True, None)),  # nobody serves any
        ({A: fallback, B: best}, True, (False, ReadsReturned("v1"))),
        ({A: Standing(None), B: down}, False, (False, None)),
        ({A: fallback}, False, (False, None)),  # there never was another
    ]
    for standings, fell_back, expected in turns:
        assert track_fallback("v1", standings, fell_back=fell_back) == expected


# Reading an event

SERVER = A.server


@pytest.mark.parametrize(
    ("event", "level", "text"),
    [
        (ServerUp(SERVER, PRIMARY, 160004), logging.INFO, "a:5432 is up: primary, PostgreSQL 16"),
        (ServerDown(SERVER, "no answer within 1 s"), logging.WARNING, "a:5432 is down: no answer within 1 s"),
        (LoginRefused(A, "FATAL: no"), logging.WARNING, "app@a:5432/app cannot be logged in to: FATAL: no"),
        (
            UndeclaredPooler(SERVER),
            logging.WARNING,
            (
                "a:5432 is a pooler that the settings do not declare: tenants that share it, or are separated by "
                'a schema, role or setting, are refused there until pooler = "transaction" or "session" is set on the '
                "node"
            ),
        ),
        (
            RequestFailed("v1", "acme", read_only=True, error="NoReplica", reason="no node; a: down"),
            logging.DEBUG,
            "v1, tenant acme: a request to read failed with NoReplica: no node; a: down",
        ),
        (
            Repeated("v1", None, read_only=False, node=A, reason="DeadlockDetected (40P01)"),
            logging.DEBUG,
            "v1: a transaction that failed on app@a:5432/app is run again: DeadlockDetected (40P01)",
        ),
        (
            Repeated("v1", None, read_only=True, node=A, reason="OperationalError"),
            logging.DEBUG,
            "v1: a read that failed on app@a:5432/app is run again: OperationalError",
        ),
        (
            ReadOnPrimary("v1", None, A),
            logging.DEBUG,
            "v1: a read goes to the primary app@a:5432/app: no replica has replayed the required position",
        ),
        (
            ReadsFellBack("v1", A, "b: down"),
            logging.WARNING,
            "v1: reads go to the primary app@a:5432/app now: b: down",
        ),
        (ReadsReturned("v1"), logging.INFO, "v1: reads go to replicas again"),
        (
            LoginRefused(A, "FATAL: no", read_only=True),
            logging.WARNING,
            "app@a:5432/app cannot be logged in to for reading: FATAL: no",
        ),
        (
            WritesRefused(SERVER, refused=True),
            logging.WARNING,
            "a:5432 refuses writes: default_transaction_read_only is on",
        ),
        (
            WritesRefused(SERVER, refused=False),
            logging.WARNING,
            "a:5432 takes writes again: default_transaction_read_only is off",
        ),
        (OtherSystem("v1", A, "is of another system"), logging.ERROR, "v1: app@a:5432/app is of another system"),
        (
            SeveralServers(SERVER),
            logging.WARNING,
            (
                "a:5432: several servers answer at this address; reads that have to be fresh ask on each connection, "
                "or go to the primary: give each server an address of its own"
            ),
        ),
        (
            ServerBanned(SERVER, 3, 1.26),
            logging.INFO,
            "a:5432 is avoided for 1.3 s more: it went down 3 times recently",
        ),
        (RoleChanged(SERVER, PRIMARY, 3), logging.WARNING, "a:5432 is a primary now, on timeline 3"),
        (RoleChanged(SERVER, REPLICA, 0), logging.WARNING, "a:5432 is a replica now"),
        (
            LeftBehind("v1", A, 1),
            logging.WARNING,
            "v1: app@a:5432/app is still on timeline 1, and does not follow the new primary",
        ),
        (Fenced("v1", A, FENCE), logging.ERROR, f"v1: app@a:5432/app is {FENCE}"),
        (
            FailedOver("v1", A, B, 1.234),
            logging.WARNING,
            "v1: the primary is b:5432 now, no longer a:5432; there was none for 1.23 s",
        ),
        (
            ConnectionsCut(A, 3, "is a replica"),
            logging.WARNING,
            "cut 3 borrowed connections to app@a:5432/app: is a replica",
        ),
        (PoolOpened("v1", A, read_only=True), logging.DEBUG, "v1: opened the pool to read from app@a:5432/app"),
        (PoolClosed("v1", A, read_only=False), logging.DEBUG, "v1: closed the pool to write to app@a:5432/app"),
    ],
)
def test_an_event_says_in_a_line_what_happened_and_shows_no_secret(event: Event, level: int, text: str) -> None:
    assert (str(event), event.level) == (text, level)
    assert "hunter" not in f"{event} {event!r}"
    with pytest.raises(FrozenInstanceError):
        setattr(event, fields(event)[0].name, None)


def test_whoever_takes_an_event_apart_finds_no_secret() -> None:
    event = PoolOpened("v1", A, read_only=True)
    assert event.node.secrets.values == (("password", "hunter2"),)
    assert asdict(event)["node"]["secrets"].values == deepcopy(event).node.secrets.values == ()


def test_an_event_is_frozen_and_can_be_copied() -> None:
    event = ServerDown(Server("127.0.0.1", 5432), "gone")
    for name in ("reason", "level"):
        with pytest.raises(FrozenInstanceError):
            setattr(event, name, "another")
        with pytest.raises(FrozenInstanceError):
            delattr(event, name)
    with pytest.raises(AttributeError):
        event.other = 1
    assert repr(event) == f"ServerDown(server={event.server!r}, reason='gone')"
    for other in (copy(event), pickle.loads(pickle.dumps(event))):  # noqa: S301  (our own)
        assert other == event
        assert hash(other) == hash(event)
    assert event != ServerDown(event.server, "another")
