"""What is in force for a task or thread: it can be looked at and handed on, and is for all routers of the settings."""

from __future__ import annotations

import asyncio
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

import router as process_wide
from router import AsyncRouter, Router, TenantLocked, TokenRefused, UnknownTenant, UnknownVersion
from router.context import CURRENT
from router.core.consistency import Position
from tests.support import new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.testing import PostgresCluster

NOWHERE = "postgresql://app:s3cret@127.0.0.1:1/app"  # nothing here is ever opened


def options(**more: Any) -> Any:
    return settings(
        versions={"v1": {"primary": NOWHERE}, "v2": {"primary": NOWHERE}},
        aliases={"live": "v2"},
        tenant_template={"schema": "{tenant}"},
        **more,
    )


@pytest.fixture
def router() -> Iterator[Router]:
    with Router(options()) as router:
        yield router
    assert CURRENT.get() is None


def written(router: Router | AsyncRouter, lsn: int) -> None:
    """As if a write of the session's had ended there."""
    session = router.current().session
    assert session is not None
    session.wrote("v1", Position(1, 1, lsn))


# What is in force


def test_it_is_told_what_is_in_force(router: Router) -> None:
    assert router.current() == (None, None, None, False)
    with router.use(tenant="acme"):
        assert router.current() == ("acme", None, None, False)
        with router.session() as session, router.use(version="live", lock=True):
            assert router.current() == ("acme", "live", session, True)
        assert router.current() == ("acme", None, None, False)
    assert router.current() == (None, None, None, False)


def test_a_suspended_lock_is_no_less_than_an_error(router: Router) -> None:
    def locked() -> Iterator[None]:
        with router.use(tenant="acme", lock=True):
            yield

    generator = locked()
    next(generator)
    with pytest.raises(RuntimeError, match="suspended"):
        router.current()
    for _ in generator:
        pass


# One for the sync and the async router


async def test_a_block_of_a_router_is_for_the_async_one_of_the_same_settings_as_well(router: Router) -> None:
    async with AsyncRouter(options()) as other:
        with router.use(tenant="acme", lock=True), other.session() as session:
            assert router.current() == other.current() == ("acme", None, session, True)
            assert other.explain().target.tenant == "acme"
            with pytest.raises(TenantLocked):
                other.connection(tenant="globex")
            with pytest.raises(RuntimeError, match="in use"), session:
                pytest.fail("it was entered twice")


async def test_it_is_not_for_a_router_of_other_settings(router: Router) -> None:
    async with AsyncRouter(options(max_pools=7)) as other:
        with router.use(tenant="acme"), router.session():
            assert other.current() == (None, None, None, False)


async def test_what_the_async_router_writes_is_seen_by_the_reads_of_the_sync_one(cluster: PostgresCluster) -> None:
    table, both = new_name(), settings(**cluster.version_settings())
    run(cluster.dsn(), f"CREATE TABLE {table} (i int)")
    async with AsyncRouter(both) as writer:
        with Router(both) as reader:
            for number in range(1, 11):
                with writer.session() as session:
                    async with writer.connection() as connection:
                        await connection.execute(f"INSERT INTO {table} VALUES (1)")
                    assert session.token

                    def count() -> list[Any]:
                        with reader.connection(read_only=True) as connection:
                            return connection.execute(f"SELECT count(*) FROM {table}").fetchall()

                    assert await asyncio.to_thread(count) == [(number,)]


# Handing it on


def test_what_is_carried_is_in_force_at_the_other_end(router: Router) -> None:
    with router.use(tenant="acme", version="live"), router.session():
        written(router, 5)
        with router.session(), router.use(tenant="acme", lock=True):
            written(router, 7)
            carried = router.carry()
    assert all(isinstance(value, str) and value.isascii() for value in carried.values())
    assert "s3cret" not in repr(carried)
    seen: list[Any] = []

    def elsewhere() -> None:  # a thread has nothing of this one's
        with Router(options()) as other:
            assert other.current() == (None, None, None, False)
            with other.carried({"Accept": "*/*", **{name.title(): value for name, value in carried.items()}}) as block:
                seen.append(other.current())
                assert block.session is other.current().session
            assert other.current() == (None, None, None, False)

    thread = Thread(target=elsewhere)
    thread.start()
    thread.join()
    [(tenant, version, session, locked)] = seen
    assert (tenant, version, locked) == ("acme", "live", True)
    assert session.positions("v1") == [Position(1, 1, 7)]


def test_nothing_is_carried_where_nothing_is_in_force(router: Router) -> None:
    assert router.carry() == {}
    with router.use(tenant="acme"), router.carried({}) as block:
        assert block.session is None
        assert router.current().tenant == "acme"


def test_a_session_that_wrote_nothing_yet_goes_on(router: Router) -> None:
    with router.session():
        carried = router.carry()
    with router.carried(carried):
        written(router, 3)
        assert router.current().session is not None
        assert router.carry() != carried


def test_it_may_be_entered_without_a_with(router: Router) -> None:
    with router.use(tenant="acme"), router.session():
        carried = router.carry()
    block = router.carried(carried).enter()
    assert router.current().tenant == "acme"
    with pytest.raises(RuntimeError, match="in use"):
        block.enter()
    block.exit()
    block.exit()
    assert router.current() == (None, None, None, False)


def test_one_that_cannot_begin_leaves_nothing(router: Router) -> None:
    with router.use(tenant="globex", lock=True), router.session():
        carried = router.carry()
    block = router.carried(carried)
    assert block.session is not None
    with block.session:
        with pytest.raises(RuntimeError, match="in use"), block:
            pytest.fail("the session was entered twice")
        assert router.current().tenant is None


@pytest.mark.parametrize(
    ("mapping", "error"),
    [
        ({"router-tenant": "../a"}, UnknownTenant),
        ({"router-tenant": "%2E%2E%2Fa"}, UnknownTenant),
        ({"router-tenant": ""}, UnknownTenant),
        ({"router-tenant": 7}, TypeError),
        ({"router-version": "v9"}, UnknownVersion),
        ({"router-version": None}, TypeError),
        ({"router-token": "AAAA"}, TokenRefused),
        ({"router-locked": "yes", "router-token": b""}, TypeError),
    ],
)
def test_what_is_not_as_it_was_carried_is_refused(mapping: Any, error: type[Exception]) -> None:
    with Router(options(tokens={"foreign": "refuse"})) as router, pytest.raises(error):
        router.carried(mapping)


def test_a_signed_token_is_carried_and_another_is_refused() -> None:
    signed = {"tokens": {"key": "k" * 40, "foreign": "refuse"}}
    with Router(options(**signed)) as router:
        with router.session():
            written(router, 5)
            carried = router.carry()
        assert "k" * 40 not in repr(carried)
        with router.carried(carried):
            assert router.carry() == carried
        with pytest.raises(TokenRefused):
            router.carried({"router-token": carried["router-token"][:-2] + "AA"})


async def test_the_process_wide_routers_have_it_too() -> None:
    process_wide.configure(options())
    process_wide.aio.configure(options())
    try:
        with process_wide.use(tenant="acme"), process_wide.aio.session() as session:
            assert process_wide.current() == process_wide.aio.current() == ("acme", None, session, False)
            carried = process_wide.carry()
            assert process_wide.aio.carry() == carried
        with process_wide.aio.carried(carried):
            assert process_wide.current().tenant == "acme"
        with process_wide.carried(carried):
            assert process_wide.aio.current().tenant == "acme"
    finally:
        process_wide.close()
        await process_wide.aio.close()
