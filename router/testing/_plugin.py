"""The pytest fixtures, loaded by every pytest run where the package is installed: so nothing heavy before one is used."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.testing import PostgresCluster


class MakeCluster(Protocol):
    """Makes a :class:`router.testing.PostgresCluster`; the arguments are its."""

    def __call__(self, **arguments: Any) -> PostgresCluster: ...  # noqa: ANN401, D102 - see there


@pytest.fixture(scope="session")
def make_postgres_cluster() -> Iterator[MakeCluster]:
    """Make PostgreSQL clusters that last until the session ends: ``make_postgres_cluster(version=16, standbys=2)``."""
    from router.testing import PostgresCluster  # noqa: PLC0415 - not before use

    with ExitStack() as stack:

        def make(**arguments: Any) -> PostgresCluster:  # noqa: ANN401 - as above
            return stack.enter_context(PostgresCluster(**arguments))

        yield make


@pytest.fixture(scope="session")
def postgres_cluster(make_postgres_cluster: MakeCluster) -> PostgresCluster:
    """Give a primary and one standby; override it with ``make_postgres_cluster`` for others."""
    return make_postgres_cluster()
