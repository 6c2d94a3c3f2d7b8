# Generated from tests/_async/test_arguments.py by tools/async_to_sync.py: do not edit.
"""Arguments that make no sense are refused by name, where they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from router import Router
from tests.support import settings

if TYPE_CHECKING:
    from psycopg import Connection

    from tests.conftest import Postgres

NAN = float("nan")
SENSELESS = [-1, -0.001, NAN, float("-inf"), "5", [1.0]]


def nothing(connection: Connection[Any]) -> None:
    pytest.fail("it was called")


@pytest.mark.parametrize("value", SENSELESS, ids=repr)
@pytest.mark.parametrize("shared", [False, True])
def test_a_senseless_timeout_is_refused_everywhere(postgres: Postgres, value: Any, shared: bool) -> None:
    tenants: dict[str, Any] = (
        {"tenant_template": {"row": "app.tenant"}, "tenancy": {"pooling": "shared"}} if shared else {}
    )
    named: dict[str, Any] = {"tenant": "acme"} if shared else {"version": "v1"}
    with Router(settings(primary=postgres.primary, **tenants)) as router:
        for _ in range(2):  # with and without a lane
            with pytest.raises(ValueError, match=r"timeout is .*: it must be a number, 0 or more"):
                router.connection(**named, timeout=value)
            with pytest.raises(ValueError, match="timeout is"):
                router.connection(**named, read_only=True, max_lag=1.0, timeout=value)
            with pytest.raises(ValueError, match="timeout is"):
                router.acquire(**named, timeout=value)
            with pytest.raises(ValueError, match="timeout is"):
                router.execute("SELECT 1", **named, timeout=value)
            with pytest.raises(ValueError, match="timeout is"):
                router.run(nothing, **named, timeout=value)
            with pytest.raises(ValueError, match="timeout is"):
                router.close(value)
            with router.connection(**named, timeout=float("inf")) as connection:  # this waits as long as it takes
                connection.execute("SELECT 1")


@pytest.mark.parametrize("value", SENSELESS, ids=repr)
def test_a_senseless_timeout_is_refused_before_a_tenant_is_looked_up(postgres: Postgres, value: Any) -> None:
    with Router(settings(primary=postgres.primary), directory=lambda _: {"row": "app.tenant"}) as router:
        with pytest.raises(ValueError, match="timeout is"):
            router.connection(tenant="acme", timeout=value)


@pytest.mark.parametrize("value", SENSELESS, ids=repr)
def test_a_senseless_lag_or_number_of_retries_is_refused(postgres: Postgres, value: Any) -> None:
    with Router(settings(primary=postgres.primary)) as router:
        with pytest.raises(ValueError, match=r"max_lag is .*: it must be a number, 0 or more"):
            router.connection(read_only=True, max_lag=value)
        with pytest.raises(ValueError, match="max_lag is"):
            router.explain(read_only=True, max_lag=value)
        with pytest.raises(ValueError, match="max_lag is"):
            router.execute("SELECT 1", max_lag=value)
        with pytest.raises(ValueError, match=r"retries is .*: it must be a number, 0 or more"):
            router.run(nothing, retries=value)


@pytest.mark.parametrize("value", ["yes", "no", "", None, 2])
def test_read_only_is_true_or_false(postgres: Postgres, value: Any) -> None:
    with Router(settings(primary=postgres.primary)) as router:
        for read_only in (False, True):
            with router.connection(read_only=read_only):  # from now on there is a lane for it
                pass
        with pytest.raises(ValueError, match=r"read_only is .*: it must be True or False"):
            router.connection(read_only=value)
        with pytest.raises(ValueError, match="read_only is"):
            router.acquire(read_only=value)
        with pytest.raises(ValueError, match="read_only is"):
            router.explain(read_only=value)


@pytest.mark.parametrize("name", ["password", "configure", "observer"])
def test_what_is_to_be_called_is_callable(postgres: Postgres, name: str) -> None:
    given: dict[str, Any] = {"observers": ["hunter2"]} if name == "observer" else {name: "hunter2"}
    with pytest.raises(TypeError, match=f"^{name} must be callable, not str$"):
        Router(settings(primary=postgres.primary), **given)
