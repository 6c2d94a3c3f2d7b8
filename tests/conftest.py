"""Where the tests' PostgreSQL comes from, and what every test is kept from: the environment of whoever runs them."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import hypothesis
import psycopg
import pytest

from tests.tapped import tap

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from router.testing import PostgresCluster
    from router.testing._plugin import MakeCluster
    from tests.tapped import Tapped


# What is started in the background of a script ignores SIGINT, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine as busy as CI's now and then stops for longer than hypothesis' deadline.
hypothesis.settings.register_profile("thorough", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=10)
hypothesis.settings.load_profile("quick")  # --hypothesis-profile names another


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the thousands of objects that the tests are from the garbage collector, which many tests call."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before what chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked ``each_value``, leave to the slow set the combinations that bring no further value."""
    repeated: dict[str, list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("each_value"):
            repeated.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for combinations in repeated.values():
        left = sorted(combinations, key=lambda item: item.nodeid)  # so that each process chooses the same
        left = [item for item in left if not item.get_closest_marker("slow")]
        missing = set[tuple[str, int]]().union(*map(_values, left))
        used: Counter[tuple[str, int]] = Counter()
        while missing:
            best = max(
                left, key=lambda item: (len(missing & _values(item)), -sum(used[value] for value in _values(item)))
            )
            missing -= _values(best)
            used.update(_values(best))
            left.remove(best)
        for item in left:
            item.add_marker("slow")


def _values(item: pytest.Function) -> set[tuple[str, int]]:
    """Each parameter with the identity of its value, which all combinations share."""
    return {(name, id(value)) for name, value in item.callspec.params.items()}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres",
        default="embedded",
        metavar="embedded|docker|URL",
        help="where the PostgreSQL of the tests marked docker comes from: the wheel, a container, or a server you have",
    )
    parser.addoption(
        "--pooler",
        default="embedded",
        choices=["embedded", "pgbouncer"],
        help="the transaction pooler of the tests named pooler: their own, or PgBouncer, which has to be installed",
    )


@dataclass(frozen=True)
class Postgres:
    """One version's servers, of whatever make: without replicas, reads fall back to the primary."""

    primary: str
    replicas: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        return {"primary": self.primary, "replicas": list(self.replicas)}


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A version with two replicas; one without, where ``--postgres`` names something else than the wheel."""
    source: str = request.config.getoption("--postgres")
    if source == "embedded":
        cluster: PostgresCluster = request.getfixturevalue("cluster")
        yield Postgres(cluster.primary.dsn(), tuple(standby.dsn() for standby in cluster.standbys))
    elif source == "docker":
        from testcontainers.community.postgres import PostgresContainer

        with PostgresContainer("postgres:18", driver=None) as container:
            yield Postgres(container.get_connection_url())
    else:
        yield Postgres(source)


@pytest.fixture(scope="session")
def cluster(make_postgres_cluster: MakeCluster) -> PostgresCluster:
    """A primary with two standbys of PostgreSQL 18, for tests that leave them as they were."""
    return make_postgres_cluster(version=18, standbys=2)


@pytest.fixture(scope="session")
def _nowhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nowhere")


@pytest.fixture(autouse=True)
def _own_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, _nowhere: Path) -> Iterator[None]:
    for name in list(os.environ):
        if name.upper().startswith(("ROUTER_", "PG", "DATABASE_URL")):
            monkeypatch.delenv(name)
    # No .env of the checkout's. A directory of one's own costs as much as most tests do: only one that asks has it.
    with_files = "tmp_path" in request.fixturenames
    monkeypatch.chdir(request.getfixturevalue("tmp_path") if with_files else _nowhere)
    yield
    if any(_nowhere.iterdir()):  # the tests that follow find nothing, either
        shutil.rmtree(_nowhere)
        _nowhere.mkdir()


@pytest.fixture
def instrumentor() -> Iterator[Any]:
    """What has OpenTelemetry trace psycopg. It leaves other methods behind than it found: these are put back."""
    found = {kind: vars(kind)["connect"] for kind in (psycopg.Connection, psycopg.AsyncConnection)}
    yield import_module("opentelemetry.instrumentation.psycopg").PsycopgInstrumentor()
    for kind, connect in found.items():
        setattr(kind, "connect", connect)  # noqa: B010  (a descriptor, for which there is no type)


@pytest.fixture
def tapped(cluster: PostgresCluster) -> Iterator[Tapped]:
    with tap(cluster) as tapped:
        yield tapped
