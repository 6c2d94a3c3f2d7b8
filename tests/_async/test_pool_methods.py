"""What ``psycopg_pool`` offers on a pool works on a router's, or is not there: its own bookkeeping is the router's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg_pool
import pytest

from router import AsyncRouter
from tests.support import settings

if TYPE_CHECKING:
    from tests.conftest import Postgres

METHODS = sorted(
    name
    for name in dir(psycopg_pool.AsyncConnectionPool)
    if callable(getattr(psycopg_pool.AsyncConnectionPool, name))
    and (not name.startswith("_") or name in ("__aenter__", "__aexit__"))
)
SHARED: dict[str, Any] = {"tenancy": {"pooling": "shared"}, "tenant_template": {"row": "app.tenant"}}


def test_the_list_of_methods_has_those_that_change_a_pool() -> None:
    assert {"check", "close", "connection", "drain", "getconn", "open", "putconn", "resize", "wait"} <= set(METHODS)


@pytest.mark.parametrize("tenants", [{}, SHARED], ids=["own", "shared"])
@pytest.mark.parametrize("read_only", [False, True])
async def test_no_method_of_psycopg_pool_can_be_called_on_the_pool_of_a_block(
    postgres: Postgres, tenants: dict[str, Any], read_only: bool
) -> None:
    options = settings(primary=postgres.primary, **tenants)
    async with AsyncRouter(options) as router:
        checkout = router.connection(version="v1", tenant="acme" if tenants else None, read_only=read_only)
        async with checkout as connection:
            pool: Any = checkout.pool
            pool_of_connection: Any = connection._pool
            assert pool is pool_of_connection
            assert not isinstance(pool, psycopg_pool.AsyncConnectionPool)
            assert [name for name in METHODS if hasattr(pool, name)] == []
        assert (pool.max_size, pool.size, pool.closed) == (10, 1, False)


async def test_a_block_within_a_block_of_the_same_connection_gives_nothing_back(postgres: Postgres) -> None:
    options = settings(primary=postgres.primary, pool={"max_size": 1})
    async with AsyncRouter(options) as router:
        async with router.connection() as connection:
            async with connection:  # psycopg closes it at the end, unless it belongs to a pool
                await connection.execute("SELECT 1")
            pid = connection.info.backend_pid
        async with router.connection() as connection:
            assert connection.info.backend_pid == pid
        [pool] = router._snapshot().pools
        assert (pool.counted, pool.idle) == (1, 1)
