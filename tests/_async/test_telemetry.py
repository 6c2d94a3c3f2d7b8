"""OpenTelemetry sees what requests do, and nothing that the router does by itself."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from router import AsyncRouter, UnknownTenant
from router._async.pool.connection import AsyncNodeConnection
from tests.support import aeventually, new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import AsyncConnection

    from router import Node
    from router.testing import PostgresCluster

LOOKS = 3


@pytest.fixture
def spans(instrumentor: Any) -> Iterator[Any]:
    sdk = import_module("opentelemetry.sdk.trace")
    export = import_module("opentelemetry.sdk.trace.export")
    exporter = import_module("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    instrumentor.instrument(tracer_provider=provider)
    yield exporter
    instrumentor.uninstrument()
    provider.shutdown()


async def looked(router: AsyncRouter) -> None:
    """Wait until each server has been looked at several times more."""
    health = router._snapshot().health

    async def again() -> bool:
        known = router._snapshot().health
        return all(known[key].answered_at > state.answered_at for key, state in health.items())

    for _ in range(LOOKS):
        health = router._snapshot().health
        await aeventually(again)


async def test_no_span_is_the_routers_own(cluster: PostgresCluster, spans: Any) -> None:
    name = new_name()
    run(cluster.dsn(), f"CREATE TABLE {name} (i int)", f"CREATE SCHEMA {name}")
    cluster.wait_replayed()
    insert = f"INSERT INTO {name} VALUES (1)"
    options = settings(
        **cluster.version_settings(), health={"interval": 0.02}, tenant_template={"schema": "{tenant}"},
        tenancy={"pooling": "shared"},
    )  # fmt: skip
    async with AsyncRouter(options) as router:
        spans.clear()
        with router.session():
            async with router.connection(version="v1") as connection:
                await connection.execute(insert)
            async with router.connection(version="v1", read_only=True) as connection:
                await connection.execute("SELECT 1")
        async with router.connection(tenant=name) as connection:
            await connection.execute("SELECT 2")
        await router.execute("SELECT 3", version="v1")
        await looked(router)
        texts = [span.attributes["db.statement"] for span in spans.get_finished_spans()]
    assert texts == [insert, "SELECT 1", "SELECT 2", "SELECT 3"]


async def test_instrumentation_is_suppressed_in_looks_alone(cluster: PostgresCluster, spans: Any) -> None:
    is_enabled = import_module("opentelemetry.instrumentation.utils").is_instrumentation_enabled
    in_looks, in_requests = list[bool](), list[bool]()

    def password(_: Node) -> str:
        in_looks.append(is_enabled())
        return "asked for by nobody"

    def configure(_: AsyncConnection[Any]) -> None:
        in_requests.append(is_enabled())

    options = settings(primary=cluster.dsn())
    router = AsyncRouter(options, password=password, configure=configure)
    async with router, router.connection():
        assert is_enabled()
    assert spans.get_finished_spans() == ()
    assert (in_looks[0], set(in_requests)) == (False, {True})


async def test_connections_are_the_routers_own_once_psycopg_is_no_longer_traced(
    cluster: PostgresCluster, instrumentor: Any
) -> None:
    instrumentor.instrument()
    instrumentor.uninstrument()
    options = settings(primary=cluster.dsn(), tenant_template={"database": "{tenant}"})
    async with AsyncRouter(options) as router:
        async with router.connection(version="v1") as connection:
            assert type(connection) is AsyncNodeConnection
        with pytest.raises(UnknownTenant):  # which psycopg's own class could not tell
            async with router.connection(tenant="nowhere"):
                pass
