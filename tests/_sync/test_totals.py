# Generated from tests/_async/test_totals.py by tools/async_to_sync.py: do not edit.
"""What a router has counted stays counted, whatever becomes of the pools; and what requests suffer is told."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Any

import pytest

from router import NoReplica, PoolExhausted, Router, TooManyWaiting
from router.core.events import ReadOnPrimary, Repeated, RequestFailed
from router.core.server_events import ReadsFellBack, ReadsReturned
from tests._sync.internals import inside
from tests.support import all_of, eventually, new_name, run, settings, together
from tests.tapped import tap

if TYPE_CHECKING:
    from psycopg import Connection

    from router.core.events import Event
    from router.core.measures import Totals
    from router.testing import PostgresCluster

ROW = {"tenant_template": {"row": "app.tenant"}}


def totals(router: Router, *, read_only: bool, version: str | None = "v1") -> Totals:
    [found] = [one for one in router.stats().totals if (one.version, one.read_only) == (version, read_only)]
    return found


def test_totals_outlive_the_pools_they_come_from(cluster: PostgresCluster) -> None:
    options = settings(primary=cluster.dsn(), max_pools=3, **ROW)
    with Router(options) as router:
        assert [(one.version, one.read_only, one.requests) for one in router.stats().totals] == [
            ("v1", True, 0),
            ("v1", False, 0),
        ]
        before = totals(router, read_only=True)
        for number in range(30):
            with router.connection(tenant=f"t{number // 3}", read_only=True) as connection:
                connection.execute("SELECT 1")
            now = totals(router, read_only=True)
            assert now.requests == number + 1
            assert (now.opened, now.queued) >= (before.opened, before.queued)
            before = now
        assert (before.opened, before.queued, before.failed) == (10, 10, 0)
        assert before.wait_seconds > 0.0
        assert totals(router, read_only=False).requests == 0
        assert len(router.stats().tenant_pools) <= 3


def test_totals_only_grow_while_pools_are_closed_in_the_middle_of_requests(cluster: PostgresCluster) -> None:
    options = settings(primary=cluster.dsn(), max_pools=2, **ROW)
    with Router(options) as router:
        turns, seen = iter(range(400)), [0]

        def work() -> None:
            for turn in turns:
                with router.connection(tenant=f"t{turn % 5}", read_only=True, timeout=20.0) as connection:
                    connection.execute("SELECT 1")
                found = router.stats().totals[0].requests
                assert found >= seen[0]
                seen[0] = found

        together(work, 4)
        assert totals(router, read_only=True).requests >= 400

        # Nothing is kept of pools that are gone but the sums.
        def added_up() -> bool:
            gc.collect()
            router.stats()
            return router._snapshot().counted <= 3

        eventually(added_up)
        assert totals(router, read_only=True).requests >= 400


def test_servers_of_tenants_own_are_counted_together(cluster: PostgresCluster) -> None:
    homes: dict[str, dict[str, Any]] = {
        f"t{number}": {"primary": cluster.dsn(), "row": "app.tenant"} for number in range(2)
    }
    with Router(settings(primary=cluster.dsn(), tenants=homes)) as router:
        for tenant in homes:
            with router.connection(tenant=tenant):
                pass
        assert totals(router, read_only=False, version=None).requests == 2
        assert totals(router, read_only=False).requests == 0


def test_attempts_to_connect_that_failed_are_counted(cluster: PostgresCluster) -> None:
    options = settings(primary=cluster.dsn(), tenant_template={"database": "{tenant}"})
    with Router(options) as router:
        for number in range(2):
            with pytest.raises(LookupError, match="does not exist"):
                with router.connection(tenant=f"nowhere{number}"):
                    pass
        found = totals(router, read_only=False)
        assert (found.opened, found.failed) == (2, 2)


# What requests suffer


def of(events: list[Event], *kinds: type[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, kinds)]


def test_a_request_that_gets_no_connection_is_counted_and_told(cluster: PostgresCluster) -> None:
    events: list[Event] = []
    options = settings(
        primary=cluster.dsn(), pool={"max_size": 1, "max_waiting": 1}, read={"fallback": "error"}, **ROW,
        tenancy={"pooling": "shared", "max_connections": 1},
    )  # fmt: skip
    with Router(options, observers=[events.append]) as router:

        def refused(kind: type[Exception], **request: Any) -> None:
            with pytest.raises(kind):
                with router.connection(timeout=0.1, **request):
                    pass

        with router.connection(version="v1"):
            refused(PoolExhausted, version="v1")

            def wait() -> None:
                with pytest.raises(PoolExhausted):
                    with router.connection(version="v1", timeout=0.5):
                        pass

            def turned_away() -> None:
                def waits() -> bool:
                    write = router.stats().versions[0].nodes[0].write
                    return write is not None and write.waiting > 0

                eventually(waits)
                refused(TooManyWaiting, version="v1")

            all_of(wait, turned_away)
        with router.connection(tenant="acme"):  # it has all that it may
            refused(PoolExhausted, tenant="acme")
        refused(NoReplica, version="v1", read_only=True)
        writes, reads = totals(router, read_only=False), totals(router, read_only=True)
        assert (writes.exhausted, writes.unavailable, reads.exhausted, reads.unavailable) == (4, 0, 0, 1)
        told = [event for event in events if isinstance(event, RequestFailed)]
        assert [(event.version, event.tenant, event.read_only, event.error) for event in told] == [
            ("v1", None, False, "PoolExhausted"),
            ("v1", None, False, "TooManyWaiting"),
            ("v1", None, False, "PoolExhausted"),
            ("v1", "acme", False, "PoolExhausted"),
            ("v1", None, True, "NoReplica"),
        ]
        assert all("\n" not in str(event) for event in told)


def test_what_is_run_again_is_counted_and_told(cluster: PostgresCluster) -> None:
    events: list[Event] = []
    calls: list[object] = []

    def function(connection: Connection[Any]) -> None:
        calls.append(connection)
        if len(calls) % 3:
            connection.execute("DO $$ BEGIN RAISE SQLSTATE '40001' USING MESSAGE = 'hunter2'; END $$")

    with tap(cluster) as tapped:
        with Router(settings(**tapped.version()), observers=[events.append]) as router:
            router.run(function)
            router.run(function)
            assert (totals(router, read_only=False).repeated, len(of(events, Repeated))) == (4, 4)
            tapped.cut(*tapped.standbys, on="SELECT 4711")
            assert router.execute("SELECT 4711").rows == [(4711,)]
            found = of(events, Repeated)
            assert (totals(router, read_only=True).repeated, len(found)) == (1, 5)
            assert "a transaction that failed on" in str(found[0])
            assert "SerializationFailure (40001)" in str(found[0])
            assert "hunter2" not in str(found[0])
            assert "v1: a read that failed on" in str(found[-1])


def test_a_read_that_only_the_primary_may_serve_yet_is_counted_and_told(cluster: PostgresCluster) -> None:
    events: list[Event] = []
    name = new_name()
    run(cluster.dsn(), f"CREATE TABLE {name} (i int)")
    cluster.wait_replayed()
    options = settings(**cluster.version_settings(), read={"catch_up": 0.05})
    with Router(options, observers=[events.append]) as router:

        def read(*, on_primary: bool) -> None:
            with router.connection(read_only=True) as connection:
                cursor = connection.execute("SELECT pg_is_in_recovery()")
                assert cursor.fetchone() == (not on_primary,)

        read(on_primary=False)
        try:
            for standby in cluster.standbys:
                standby.pause_replay()
            with router.session():
                with router.connection() as connection:
                    connection.execute(f"INSERT INTO {name} VALUES (1)")
                for _ in range(5):
                    read(on_primary=True)
        finally:
            for standby in cluster.standbys:
                standby.resume_replay()
        read(on_primary=False)
        found = totals(router, read_only=True)
        assert (found.for_token, found.on_primary) == (5, 5)
        assert of(events, ReadOnPrimary) == [ReadOnPrimary("v1", None, router.explain().nodes[0])] * 5
        assert of(events, ReadsFellBack, ReadsReturned) == []


def test_reads_that_fall_back_to_the_primary_are_counted_and_told_when_they_begin_and_end(
    cluster: PostgresCluster,
) -> None:
    events: list[Event] = []
    with tap(cluster) as tapped:
        options = settings(**tapped.version(), health={"interval": 0.1, "ban": 0.01})
        with Router(options, observers=[events.append]) as router:

            def read() -> bool:
                with router.connection(read_only=True) as connection:
                    cursor = connection.execute("SELECT pg_is_in_recovery()")
                    return bool((cursor.fetchone() or [None])[0])

            def told(kind: type[Event]) -> bool:
                return bool(of(events, kind))

            assert read()
            for proxy in tapped.standbys:
                proxy.stop()
            eventually(lambda: told(ReadsFellBack))
            before = totals(router, read_only=True)
            for _ in range(5):
                assert not read()
            found = totals(router, read_only=True)
            assert (found.on_primary - before.on_primary, found.for_token) == (5, 0)
            for proxy in tapped.standbys:
                proxy.start()
            eventually(lambda: told(ReadsReturned))
            assert eventually(read)
            primary, *replicas = (node.node for node in router.stats().versions[0].nodes)
            [began, ended] = of(events, ReadsFellBack, ReadsReturned)
            assert isinstance(began, ReadsFellBack)
            assert (began.version, began.node, ended) == ("v1", primary, ReadsReturned("v1"))
            assert all(str(node) in str(began) for node in (primary, *replicas))
            after = totals(router, read_only=True).on_primary
            assert read()
            assert totals(router, read_only=True).on_primary == after


def test_no_event_is_made_of_a_request_when_nobody_listens(
    cluster: PostgresCluster, caplog: pytest.LogCaptureFixture
) -> None:
    with Router(settings(primary=cluster.dsn())) as router:
        heard = inside(router).observers.listens_to
        caplog.set_level(logging.INFO, "router")
        assert not any(heard(kind) for kind in (RequestFailed, Repeated, ReadOnPrimary))
        caplog.set_level(logging.DEBUG, "router")
        assert all(heard(kind) for kind in (RequestFailed, Repeated, ReadOnPrimary))
