"""What an observation changes, and what is read from libpq's words for a failed attempt to connect."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router.health import UNKNOWN, Connected, Failed, State, failed, observe, role_of, state_of
from router.topology import HealthPolicy, Node, Role, Server

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router.health import Health

PRIMARY, REPLICA = Role.PRIMARY, Role.REPLICA
POLICY = HealthPolicy(retry=0.5, retry_max=15.0)

NEAR, FAR = Server("near", 5432), Server("far", 5432)
NODE = Node(NEAR, (("dbname", "app"),), REPLICA)
SIBLING = Node(NEAR, (("dbname", "other"),))
DISTANT = Node(FAR, (("dbname", "app"),))
NODES = (NODE, SIBLING, DISTANT)

REFUSED = Failed(NODE, "Connection refused", answered=False)
BAD_LOGIN = Failed(NODE, "FATAL: no such role", answered=True)
UP = Connected(NODE, PRIMARY, 180001)


def after(*seen: Connected | Failed, now: float = 100.0, jitter: float = 0.0, health: Health | None = None) -> Health:
    """What is known once all of this was seen, at one moment."""
    known: Health = {} if health is None else health
    for one in seen:
        known = observe(known, one, now=now, jitter=jitter, policy=POLICY)
    return known


def in_a_row(failure: Failed, jitters: Iterable[float]) -> list[float]:
    """The pauses after failures in a row, each seen at the moment when the last one's pause was over."""
    health: Health = {}
    now, pauses = 100.0, []
    for jitter in jitters:
        health = after(failure, now=now, jitter=jitter, health=health)
        retry_at = state_of(health, failure.node).retry_at
        pauses.append(retry_at - now)
        now = retry_at
    return pauses


def test_of_what_nobody_tried_nothing_is_known() -> None:
    assert state_of({}, NODE) == UNKNOWN == State(up=None, role=None, server_version=0, failures=0, reason="")
    assert [role_of({}, node) for node in NODES] == [REPLICA, None, None]


def test_a_connection_tells_of_every_node_of_the_server() -> None:
    health = after(UP)
    assert health == {NEAR: State(up=True, role=PRIMARY, server_version=180001)}
    assert [state_of(health, node).up for node in NODES] == [True, True, None]
    assert [role_of(health, node) for node in NODES] == [PRIMARY, PRIMARY, None]


def test_a_connection_clears_what_went_wrong_before() -> None:
    assert after(REFUSED, BAD_LOGIN, REFUSED, UP) == after(UP)


def test_what_was_known_already_changes_nothing() -> None:
    assert after(UP, now=200.0, health=after(UP)) == after(UP)


def test_a_server_that_changes_its_role_is_believed() -> None:
    health = after(UP, Connected(SIBLING, REPLICA, 180001))
    assert role_of(health, NODE) is REPLICA
    assert health != after(UP)


def test_a_failed_server_is_down_for_each_of_its_nodes_and_for_no_other_server() -> None:
    health = after(Connected(DISTANT, REPLICA, 160004), UP, REFUSED)
    assert [state_of(health, node).up for node in NODES] == [False, False, True]
    assert state_of(health, SIBLING).reason == "Connection refused"


def test_a_refused_login_is_down_alone() -> None:
    health = after(UP, BAD_LOGIN)
    assert [state_of(health, node).up for node in NODES] == [False, True, None]
    assert state_of(health, NODE).reason == "FATAL: no such role"
    assert role_of(health, NODE) is PRIMARY


def test_a_connection_of_one_node_does_not_vouch_for_a_login_that_is_refused() -> None:
    health = after(BAD_LOGIN, Connected(SIBLING, PRIMARY, 180001))
    assert [state_of(health, node).up for node in (NODE, SIBLING)] == [False, True]


@pytest.mark.parametrize("before", [[], [BAD_LOGIN]])
def test_a_server_that_refuses_a_login_is_not_down(before: list[Failed]) -> None:
    health = after(*before, REFUSED, BAD_LOGIN)
    assert [state_of(health, node).up for node in (NODE, SIBLING)] == [False, None]


def test_of_a_node_whose_login_was_refused_the_latest_failure_of_its_server_counts() -> None:
    health = after(REFUSED, now=101.0, health=after(BAD_LOGIN))
    assert (state_of(health, NODE).reason, state_of(health, NODE).seen_at) == ("Connection refused", 101.0)


@pytest.mark.parametrize("failure", [REFUSED, BAD_LOGIN], ids=["the server", "the login"])
def test_each_failure_in_a_row_doubles_the_pause_up_to_the_most(failure: Failed) -> None:
    assert in_a_row(failure, [0.0] * 8) == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


def test_a_server_down_for_weeks_is_still_tried_at_the_longest_pause() -> None:
    assert in_a_row(REFUSED, [0.0] * 2000)[-1] == 15.0


@given(st.floats(0.0, 1.0))
def test_chance_shortens_a_pause_by_a_quarter_at_most(jitter: float) -> None:
    whole, drawn = (in_a_row(REFUSED, [part] * 7) for part in (0.0, jitter))
    assert drawn == pytest.approx([pause * (1.0 - jitter / 4) for pause in whole])


def test_what_several_saw_at_once_counts_once() -> None:
    once = after(REFUSED)
    assert after(REFUSED, now=100.49, jitter=0.5, health=once) == once
    assert state_of(after(REFUSED, now=100.5, health=once), NODE).failures == 2


def test_after_a_connection_failures_count_from_one_again() -> None:
    health = after(REFUSED, UP, health=after(REFUSED, now=90.0))
    again = after(REFUSED, now=200.0, health=health)
    assert (state_of(again, NODE).failures, state_of(again, NODE).retry_at) == (1, 200.5)


def test_the_pause_is_never_longer_than_the_most_even_at_first() -> None:
    health = observe({}, REFUSED, now=0.0, jitter=0.0, policy=HealthPolicy(retry=20.0, retry_max=3.0))
    assert state_of(health, NODE).retry_at == 3.0


@pytest.mark.parametrize("seen", [UP, REFUSED, BAD_LOGIN])
def test_when_it_was_seen_is_noted_even_if_nothing_changed(seen: Connected | Failed) -> None:
    first = after(seen)
    second = after(seen, now=100.25, health=first)
    assert (state_of(first, NODE).seen_at, state_of(second, NODE).seen_at) == (100.0, 100.25)
    assert first == second


class Observing(RuleBasedStateMachine):
    """Random observations, and a clock, against a plain account of what has been seen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.health: Health = {}
        self.streaks: dict[Server | Node, int] = {}  # failures in a row of all that is down
        self.left_alone: dict[Server | Node, float] = {}  # until when further failures do not count

    def see(self, seen: Connected | Failed, jitter: float = 0.0) -> Health:
        """Observe, and give what was known before."""
        before = MappingProxyType(self.health)
        copy = dict(before)
        self.health = observe(before, seen, now=self.now, jitter=jitter, policy=POLICY)
        assert before == copy
        assert all(before[key] is state for key, state in copy.items())
        return before

    def untouched(self, before: Health, *but: Server | Node) -> bool:
        return {key: id(state) for key, state in before.items() if key not in but} == {
            key: id(state) for key, state in self.health.items() if key not in but
        }

    @rule(seconds=st.floats(0.0, 20.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(node=st.sampled_from(NODES), role=st.sampled_from(Role), server_version=st.sampled_from([160004, 180001]))
    def connected(self, node: Node, role: Role, server_version: int) -> None:
        before = self.see(Connected(node, role, server_version))
        for key in (node, node.server):
            self.streaks.pop(key, None)
            self.left_alone.pop(key, None)
        assert self.untouched(before, node, node.server)
        assert state_of(self.health, node) == State(up=True, role=role, server_version=server_version)
        assert state_of(self.health, node).seen_at == self.now

    @rule(node=st.sampled_from(NODES), reason=st.sampled_from(["a", "b"]), jitter=st.floats(0.0, 1.0))
    def the_server_fails(self, node: Node, reason: str, jitter: float) -> None:
        before = self.see(Failed(node, reason, answered=False), jitter)
        assert self.untouched(before, node.server)
        self.check_down(before, node.server, reason)

    @rule(node=st.sampled_from(NODES), reason=st.sampled_from(["a", "b"]), jitter=st.floats(0.0, 1.0))
    def the_login_is_refused(self, node: Node, reason: str, jitter: float) -> None:
        before = self.see(Failed(node, reason, answered=True), jitter)
        was_down = before.get(node.server, UNKNOWN).up is False
        assert self.untouched(before, node, *([node.server] if was_down else []))
        self.check_down(before, node, reason)
        if was_down:
            assert self.health[node.server] == UNKNOWN
            del self.streaks[node.server], self.left_alone[node.server]

    def check_down(self, before: Health, key: Server | Node, reason: str) -> None:
        """Check what is known of what failed."""
        state = self.health[key]
        assert state.up is False
        assert state.seen_at == self.now
        if self.now >= self.left_alone.get(key, 0.0):
            streak = self.streaks[key] = self.streaks.get(key, 0) + 1
            longest = min(POLICY.retry * 2.0 ** (streak - 1), POLICY.retry_max)
            assert 0.75 * longest - 1e-9 <= state.retry_at - self.now <= longest + 1e-9
            assert state.reason == reason
            self.left_alone[key] = state.retry_at
        else:
            assert state == before[key]

    @invariant()
    def exactly_what_failed_and_has_not_connected_since_is_down(self) -> None:
        assert {key: state.failures for key, state in self.health.items() if state.up is False} == self.streaks

    @invariant()
    def a_login_is_only_kept_while_it_is_refused(self) -> None:
        assert all(state.up is False for key, state in self.health.items() if isinstance(key, Node))

    @invariant()
    def what_is_up_has_a_role_and_nothing_to_complain_of(self) -> None:
        for state in self.health.values():
            assert (state.reason != "") == (state.up is False)
            assert state.up is not True or (state.role is not None and state.server_version and not state.failures)


TestObserving = Observing.TestCase
TestObserving.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)


# What libpq says

AT = 'connection failed: connection to server at "db1.internal" (10.0.0.7), port 5432 failed: '
ON_SOCKET = 'connection is bad: connection to server on socket "/run/pg/.s.PGSQL.5432" failed: '
# libpq speaks the language of the process if that has called setlocale().
IN_GERMAN = "connection failed: Verbindung zum Server auf »10.0.0.7«, Port 5432 fehlgeschlagen: "
IN_FRENCH = "connection failed: la connexion au serveur sur « 10.0.0.7 », port 5432 a échoué : "
SEVERAL = "Multiple connection attempts failed. All failures were:\n- host: 'db', port: '5432', hostaddr: "


@pytest.mark.parametrize("where", [AT, ON_SOCKET])
@pytest.mark.parametrize(
    "said",
    [
        "Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?",
        "No such file or directory\n\tIs the server running locally and accepting connections on that socket?",
        "server closed the connection unexpectedly\n\tThis probably means the server terminated abnormally\n\t…",
        f"Connection refused\n\tIs the server running on …?\n{SEVERAL}'::1': {AT}FATAL:  no such role",
        "SSL error: unexpected eof while reading",
        f"SSL error: unexpected eof while reading\n{AT.partition(': ')[2]}server closed the connection unexpectedly",
        "server does not support SSL, but SSL was required",
        'authentication method requirement "scram-sha-256" failed: server did not complete authentication',
        "expected authentication request from server, but received H",
        "FATAL:  the database system is starting up",
        "FATAL:  the database system is shutting down",
        "FATAL:  the database system is in recovery mode",
        "FATAL:  the database system is not yet accepting connections\nDETAIL:  Consistent recovery state has not …",
    ],
)
def test_a_server_that_cannot_be_used_is_told_by_what_is_wrong(where: str, said: str) -> None:
    reason = said.partition("\n")[0].replace(":  ", ": ")
    assert failed(NODE, where + said) == Failed(NODE, reason, answered=False)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("", "failed to resolve host 'nowhere.invalid': [Errno -2] Name or service not known"),
        ("", "connection timeout expired"),
        ("connection is bad: ", "GSSAPI encryption required but no credential cache"),
        ("connection is bad: ", 'definition of service "app" not found'),
    ],
)
def test_what_went_wrong_before_any_server_was_met_is_told_as_it_is(before: str, reason: str) -> None:
    message = before + reason
    observed = [failed(NODE, text) for text in (message, f"{message}\n{SEVERAL}'::1': {AT}FATAL:  no such role")]
    assert observed == [Failed(NODE, reason, answered=False)] * 2


@pytest.mark.parametrize(
    "said",
    [
        'FATAL:  password authentication failed for user "app"',
        'FATAL:  role "app" does not exist',
        'FATAL:  role "app" is not permitted to log in',
        'FATAL:  database "app" does not exist',
        'FATAL:  database "app" is not currently accepting connections',
        'FATAL:  permission denied for database "app"\nDETAIL:  User does not have CONNECT privilege.',
        "FATAL:  sorry, too many clients already",
        'FATAL:  too many connections for role "app"',
        'FATAL:  no pg_hba.conf entry for host "10.0.0.9", user "app", database "app", no encryption',
        'FATAL:  unrecognized configuration parameter "nope"',
        "FATAL:  server login has been failing, cached error: connect failed (server_login_retry)",  # PgBouncer
        'ÖLÜMCÜL (FATAL):  "app" rolü mevcut değil',
        "SCHWERWIEGEND:  Passwort-Authentifizierung für Benutzer »app« fehlgeschlagen",
        "FATAL:  la base de données « app » n'existe pas",
        '致命错误:  用户 "app" Password 认证失败',
    ],
)
def test_a_refused_login_is_told_by_the_servers_words_in_any_language(said: str) -> None:
    reason = said.partition("\n")[0].replace(":  ", ": ").removeprefix("ÖLÜMCÜL ")
    expected = Failed(NODE, reason, answered=True)
    assert [failed(NODE, where + said) for where in (AT, ON_SOCKET, IN_GERMAN, IN_FRENCH, "")] == [expected] * 5


def test_a_password_that_is_missing_is_a_matter_of_the_login() -> None:
    reason = "fe_sendauth: no password supplied"
    assert failed(NODE, AT + reason) == Failed(NODE, reason, answered=True)


def test_of_two_attempts_with_and_without_encryption_the_first_ones_reason_is_given() -> None:
    entry = 'FATAL:  no pg_hba.conf entry for host "10.0.0.9", user "app", database "app", '
    observed = failed(NODE, f"{AT}{entry}SSL encryption\n{AT.partition(': ')[2]}{entry}no encryption")
    assert observed == Failed(NODE, f"{entry}SSL encryption".replace(":  ", ": "), answered=True)


@given(st.text())
@example(" failed: \n")
def test_whatever_libpq_says_the_reason_is_one_line_of_it(text: str) -> None:
    observed = failed(NODE, f"{AT}x{text}")
    assert observed.node == NODE
    assert observed.reason
    assert "\n" not in observed.reason
    assert "connection failed" not in observed.reason
    assert "port 5432" not in observed.reason
