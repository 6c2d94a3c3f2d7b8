"""Fixtures for pytest, which loads this module in every run: so heavy modules are imported only when they are used."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.testing import PostgresCluster


class MakeCluster(Protocol):
    """Makes a :class:`router.testing.PostgresCluster` with the given arguments."""

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
    """Provide a primary and one standby; override it with ``make_postgres_cluster`` for another cluster."""
    return make_postgres_cluster()
