"""Fixtures for pytest, which loads this in every run where the package is installed: nothing heavy before use."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.testing import PostgresCluster


class MakeCluster(Protocol):
    """Makes a :class:`router.testing.PostgresCluster`; the arguments are its."""

    def __call__(self, **arguments: Any) -> PostgresCluster: ...


@pytest.fixture(scope="session")
def make_postgres_cluster() -> Iterator[MakeCluster]:
    """Make PostgreSQL clusters that last until the session ends: ``make_postgres_cluster(version=16, standbys=2)``."""
    from router.testing import PostgresCluster

    with ExitStack() as stack:

        def make(**arguments: Any) -> PostgresCluster:
            return stack.enter_context(PostgresCluster(**arguments))

        yield make


@pytest.fixture(scope="session")
def postgres_cluster(make_postgres_cluster: MakeCluster) -> PostgresCluster:
    """Give a primary and one standby; override it with ``make_postgres_cluster`` for others."""
    return make_postgres_cluster()
