"""What is kept from a block and used after it, while others have the session, harms nobody, a thousand times over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.strays import run

if TYPE_CHECKING:
    from router.testing import PostgresCluster


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        ("threads", "shared"),
        ("tasks", "dedicated"),
        pytest.param("threads", "dedicated", marks=pytest.mark.slow),
        pytest.param("tasks", "shared", marks=pytest.mark.slow),
    ],
)
def test_what_outlives_its_block_is_refused_and_nobody_else_notices(
    cluster: PostgresCluster, kind: str, pooling: str
) -> None:
    [tally] = run(cluster, 2400, [(kind, pooling)]).values()
    assert tally.problems == {}
    assert tally.checkouts == 2400
    assert tally.strays >= tally.checkouts
