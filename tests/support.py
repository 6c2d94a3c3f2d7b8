"""What the tests of both shells share; where threads and asyncio differ, in pairs, as in ``router/_runtime/``."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from secrets import token_hex
from typing import TYPE_CHECKING, Any, LiteralString, TypeVar

import hypothesis
import psycopg
import pytest

from router import RouterSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from router.testing import PostgresCluster

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds until something that must happen counts as not happening; never waited for in vain."""

SLOW = pytest.mark.slow
_run = token_hex(4)  # a server that is given by --postgres=URL keeps the tables of earlier runs
_numbers = count(1)


def settings(**arguments: Any) -> RouterSettings:
    """Settings without a version of one's own to name: ``settings(primary=…)`` makes it ``v1``, the default."""
    version = {key: arguments.pop(key) for key in ("primary", "replicas", "nodes") if key in arguments}
    versions = {"v1": version} if version else arguments.pop("versions")
    return RouterSettings(**{"default_version": next(iter(versions)), "versions": versions, **arguments})


def examples(thorough: int) -> int:
    """How many examples a property gets that has so many in a thorough run, which has 100 where nothing is said."""
    return max(1, thorough * hypothesis.settings().max_examples // 100)


def short_and_long(short: T, long: T) -> list[Any]:
    """The values of a parameter that says how long a test goes on: the long one is of the slow set."""
    return [short, pytest.param(long, marks=SLOW)]


def one_of_each(values: Sequence[Any]) -> list[Any]:
    """The values of a parameter by which a test is repeated: all but the first are of the slow set."""
    first, *others = values
    return [first, *(pytest.param(*(each if isinstance(each, tuple) else [each]), marks=SLOW) for each in others)]


def new_name() -> LiteralString:
    """A name for a table that no other test uses."""
    return f"t{_run}_{next(_numbers)}"


def run(dsn: str, *statements: LiteralString) -> list[tuple[Any, ...]]:
    """Run statements by a plain connection; the rows of the last."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def port(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> int:
    return connection.info.port


async def aeventually(happened: Callable[[], Awaitable[T]]) -> T:
    """Wait until something holds, and give its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := await happened()):
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.005)
    return value


def eventually(happened: Callable[[], T]) -> T:
    """Wait until something holds, and give its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := happened()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return value


@contextmanager
def conflicts(cluster: PostgresCluster) -> Iterator[None]:
    """Have the recovery of standbys cancel many logins; ``max_standby_streaming_delay`` is 0 there."""
    ended = threading.Event()

    def lock() -> None:
        with psycopg.connect(cluster.primary.dsn(), autocommit=True) as connection:
            while not ended.is_set():
                connection.execute(
                    "DO $$ BEGIN FOR i IN 1..50 LOOP LOCK pg_authid IN ACCESS EXCLUSIVE MODE; COMMIT; END LOOP; END $$"
                )

    with ThreadPoolExecutor(1) as executor:
        done = executor.submit(lock)
        try:
            yield
        finally:
            ended.set()
        done.result()


async def aoutside(function: Callable[..., T], *args: object) -> T:
    """Call a function that blocks, while everything else goes on."""
    return await asyncio.to_thread(function, *args)


def outside(function: Callable[..., T], *args: object) -> T:
    """Call a function that blocks, while everything else goes on."""
    return function(*args)


async def aall_of(*functions: Callable[[], Awaitable[T]]) -> list[T]:
    """Call functions at once: a task each."""
    return await asyncio.gather(*(function() for function in functions))


def all_of(*functions: Callable[[], T]) -> list[T]:
    """Call functions at once: a thread each."""
    with ThreadPoolExecutor(len(functions)) as executor:
        return [future.result() for future in [executor.submit(function) for function in functions]]


async def atogether(function: Callable[[], Awaitable[T]], times: int) -> list[T]:
    """Call a function many times at once: a task each."""
    return await aall_of(*[function] * times)


def together(function: Callable[[], T], times: int) -> list[T]:
    """Call a function many times at once: a thread each."""
    return all_of(*[function] * times)


async def arunning() -> set[str]:
    """The names of the tasks that run."""
    return {task.get_name() for task in asyncio.all_tasks()}


def running() -> set[str]:
    """The names of the threads that run."""
    return {thread.name for thread in threading.enumerate()}


def acurrent() -> str:
    """The name of the task that runs."""
    task = asyncio.current_task()
    return "" if task is None else task.get_name()


def current() -> str:
    """The name of the thread that runs."""
    return threading.current_thread().name
