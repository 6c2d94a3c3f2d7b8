"""What only this process cannot do (resolve a name, get a descriptor, run at all) is no evidence against a server."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from router import AsyncRouter, NoPrimary, PoolExhausted
from router._runtime import login
from router._runtime.flags import asleep
from router._runtime.sockets import aping
from router.core.server_events import ServerDown
from tests.proxy import Proxy
from tests.support import aeventually, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from router.core.events import Event
    from router.testing import PostgresCluster

FAST = {"interval": 0.05, "timeout": 0.3}


class Watched:
    """A primary that is watched under a name of its own, so that a test can end the sessions of looks."""

    def __init__(self, cluster: PostgresCluster, name: str) -> None:
        self.name = name
        self.events: list[Event] = []
        self.admin = psycopg.connect(cluster.primary.dsn(), autocommit=True)

    def pids(self) -> set[int]:
        found = self.admin.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", [self.name])
        return {pid for (pid,) in found}

    def end_looks(self, *spared: int) -> None:
        for pid in self.pids().difference(spared):
            self.admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    def downs(self) -> list[Event]:
        return [event for event in self.events if isinstance(event, ServerDown)]


@pytest.fixture
def watched(cluster: PostgresCluster, request: pytest.FixtureRequest) -> Iterator[Watched]:
    watched = Watched(cluster, f"own troubles {os.getpid()} {hash(request.node.name) % 10**6}")
    with watched.admin:
        yield watched


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Host names are resolved while this is set."""
    works, resolve = threading.Event(), socket.getaddrinfo
    works.set()

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "localhost":
            works.wait()
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield works
    works.set()


async def test_a_resolver_that_hangs_puts_no_server_down(
    cluster: PostgresCluster, watched: Watched, resolver: threading.Event
) -> None:
    dsn = cluster.primary.dsn(host="localhost", application_name=watched.name)
    options = settings(primary=dsn, health=FAST)
    async with AsyncRouter(options, observers=[watched.events.append]) as router:
        async with router.connection() as connection:
            pid = connection.info.backend_pid
            assert connection.info.host == "localhost"
        resolver.clear()
        watched.end_looks(pid)

        async def looks_again() -> bool:
            return len(watched.pids()) > 1

        await aeventually(looks_again)  # where the server was found last
        async with router.connection() as first, router.connection() as another:
            assert first.info.backend_pid == pid
            await another.execute("SELECT 1")
        assert watched.downs() == []


async def test_a_name_that_has_never_been_resolved_is_what_the_error_tells(
    cluster: PostgresCluster, watched: Watched, resolver: threading.Event
) -> None:
    options = settings(primary=cluster.primary.dsn(host="localhost"), health=FAST)
    resolver.clear()
    async with AsyncRouter(options, observers=[watched.events.append]) as router:
        with pytest.raises(NoPrimary, match="'localhost' was not resolved"):
            async with router.connection(timeout=0.5):
                pytest.fail("there was one")
        resolver.set()
        async with router.connection() as connection:
            await connection.execute("SELECT 1")
    options = settings(primary=cluster.primary.dsn(host="nowhere.invalid"), health=FAST)
    async with AsyncRouter(options, observers=[watched.events.append]) as router:
        with pytest.raises(NoPrimary, match=r"'nowhere\.invalid' cannot be resolved: "):
            async with router.connection(timeout=0.5):
                pytest.fail("there was one")
    assert watched.downs() == []


@pytest.fixture
def no_ipv6(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address that this process cannot use: another reason stands for what the system says of one without IPv6."""
    monkeypatch.setattr(login, "LOCAL_ERRORS", (errno.ENETUNREACH,))
    return "255.255.255.255"


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)


async def test_an_address_that_this_process_cannot_use_keeps_it_from_no_other(
    cluster: PostgresCluster, watched: Watched, no_ipv6: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, no_ipv6, "127.0.0.1")
    options = settings(primary=cluster.primary.dsn(host="several.test"), health=FAST)
    async with AsyncRouter(options, observers=[watched.events.append]) as router, router.connection() as connection:
        await connection.execute("SELECT 1")
    assert watched.downs() == []


async def test_a_server_is_down_that_answers_at_no_address_that_this_process_can_use(
    watched: Watched, no_ipv6: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "127.0.0.1", no_ipv6)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and nobody listens
        options = settings(primary=f"postgresql://several.test:{nobody.getsockname()[1]}/postgres", health=FAST)
        async with AsyncRouter(options, observers=[watched.events.append]) as router:
            with pytest.raises(NoPrimary, match="Connection refused"):
                async with router.connection(timeout=0.5):
                    pytest.fail("there was one")
    assert len(watched.downs()) == 1


async def test_a_server_is_asked_whether_it_reacts_at_each_address_that_this_process_can_use(
    cluster: PostgresCluster, tmp_path: Path
) -> None:
    unusable, port = "255.255.255.255", cluster.primary.port
    assert await aping([unusable], port, 1.0)  # nobody knows
    assert await aping([unusable, "127.0.0.1"], port, 1.0)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        assert not await aping(["127.0.0.1", unusable], port, 1.0)
        assert not await aping([unusable, "127.0.0.1"], port, 1.0)
        nobody.listen()  # and answers nothing
        assert not await aping(["127.0.0.1"], port, 0.1)
    assert not await aping([str(tmp_path)], port, 1.0)  # where no socket is


async def test_a_name_is_asked_for_again_whatever_the_resolver_has_raised(
    cluster: PostgresCluster, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, raised = socket.getaddrinfo, [MemoryError("no room")]

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "localhost" and raised:
            raise raised.pop()
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    options = settings(primary=cluster.primary.dsn(host="localhost"), health=FAST)
    async with AsyncRouter(options, observers=[watched.events.append]) as router, router.connection() as connection:
        await connection.execute("SELECT 1")
    assert not raised
    assert watched.downs() == []


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Have every further one refused; those that there are go on working."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_process_without_descriptors_puts_no_server_down(
    cluster: PostgresCluster, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    dsn = cluster.primary.dsn(application_name=watched.name)
    async with AsyncRouter(settings(primary=dsn, health=FAST), observers=[watched.events.append]) as router:
        async with router.connection() as connection:
            pid = connection.info.backend_pid
        with no_descriptor_left():
            watched.end_looks(pid)

            async def could_not_look() -> bool:
                return "could not probe" in caplog.text

            await aeventually(could_not_look)
            async with router.connection() as connection:
                assert connection.info.backend_pid == pid
                with pytest.raises(PoolExhausted, match="this process cannot connect: OSError: Too many open files"):
                    async with router.connection(timeout=0.5):
                        pytest.fail("there was one")
        async with router.connection() as connection, router.connection() as another:
            assert connection.info.backend_pid == pid
            await another.execute("SELECT 1")
        assert watched.downs() == []
        assert router.stats().versions[0].nodes[0].state == "up"


async def test_a_process_that_does_not_run_puts_no_server_down(cluster: PostgresCluster, watched: Watched) -> None:
    hold_the_gil: Callable[[int], int] = ctypes.PyDLL(None).usleep  # which so stops the event loop, too
    health = {"interval": 0.05, "timeout": 1.0}
    with Proxy(cluster.primary.host, cluster.primary.port) as proxy:
        dsn = cluster.primary.dsn(port=proxy.port, application_name=watched.name)
        async with AsyncRouter(settings(primary=dsn, health=health), observers=[watched.events.append]) as router:
            async with router.connection() as connection:
                pid = connection.info.backend_pid
            proxy.slow(0.1)  # a look takes some time
            [node] = router.stats().versions[0].nodes
            answered_at = 0.0

            def last_heard_at() -> float:
                return router._snapshot().health[node.node.server].answered_at

            async def answers() -> bool:
                return last_heard_at() > answered_at

            for moment in (0.05, 0.15, 0.25):
                watched.end_looks(pid)
                await asleep(moment)  # so that it is held in different parts of a look
                answered_at = last_heard_at()
                hold_the_gil(1_100_000)
                await aeventually(answers)
            proxy.forward()
            async with router.connection() as connection:
                assert connection.info.backend_pid == pid
            assert watched.downs() == []


async def test_a_password_that_takes_its_time_puts_no_server_down(cluster: PostgresCluster, watched: Watched) -> None:
    asked = list[object]()

    async def password(node: object) -> str:
        asked.append(node)
        await asleep(3 * FAST["timeout"])
        return "secret"

    options = settings(primary=cluster.primary.dsn(), health=FAST)
    async with AsyncRouter(options, observers=[watched.events.append], password=password) as router:
        async with router.connection() as connection:
            await connection.execute("SELECT 1")
        assert asked
        assert watched.downs() == []
