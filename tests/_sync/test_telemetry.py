# Generated from tests/_async/test_telemetry.py by tools/async_to_sync.py: do not edit.
"""OpenTelemetry sees what requests do, and nothing that the router does by itself."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from router import Router, UnknownTenant
from router._sync.pool.connection import NodeConnection
from tests.support import eventually, new_name, run, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection

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


def looked(router: Router) -> None:
    """Wait until each server has been looked at several times more."""
    health = router._snapshot().health

    def again() -> bool:
        known = router._snapshot().health
        return all(known[key].answered_at > state.answered_at for key, state in health.items())

    for _ in range(LOOKS):
        health = router._snapshot().health
        eventually(again)


def test_no_span_is_the_routers_own(cluster: PostgresCluster, spans: Any) -> None:
    name = new_name()
    run(cluster.dsn(), f"CREATE TABLE {name} (i int)", f"CREATE SCHEMA {name}")
    cluster.wait_replayed()
    insert = f"INSERT INTO {name} VALUES (1)"
    options = settings(
        **cluster.version_settings(), health={"interval": 0.02}, tenant_template={"schema": "{tenant}"},
        tenancy={"pooling": "shared"},
    )  # fmt: skip
    with Router(options) as router:
        spans.clear()
        with router.session():
            with router.connection(version="v1") as connection:
                connection.execute(insert)
            with router.connection(version="v1", read_only=True) as connection:
                connection.execute("SELECT 1")
        with router.connection(tenant=name) as connection:
            connection.execute("SELECT 2")
        router.execute("SELECT 3", version="v1")
        looked(router)
        texts = [span.attributes["db.statement"] for span in spans.get_finished_spans()]
    assert texts == [insert, "SELECT 1", "SELECT 2", "SELECT 3"]


def test_instrumentation_is_suppressed_in_looks_alone(cluster: PostgresCluster, spans: Any) -> None:
    is_enabled = import_module("opentelemetry.instrumentation.utils").is_instrumentation_enabled
    in_looks, in_requests = list[bool](), list[bool]()

    def password(_: Node) -> str:
        in_looks.append(is_enabled())
        return "asked for by nobody"

    def configure(_: Connection[Any]) -> None:
        in_requests.append(is_enabled())

    options = settings(primary=cluster.dsn())
    router = Router(options, password=password, configure=configure)
    with router, router.connection():
        assert is_enabled()
    assert spans.get_finished_spans() == ()
    assert (in_looks[0], set(in_requests)) == (False, {True})


def test_connections_are_the_routers_own_once_psycopg_is_no_longer_traced(
    cluster: PostgresCluster, instrumentor: Any
) -> None:
    instrumentor.instrument()
    instrumentor.uninstrument()
    options = settings(primary=cluster.dsn(), tenant_template={"database": "{tenant}"})
    with Router(options) as router:
        with router.connection(version="v1") as connection:
            assert type(connection) is NodeConnection
        with pytest.raises(UnknownTenant):  # which psycopg's own class could not tell
            with router.connection(tenant="nowhere"):
                pass
