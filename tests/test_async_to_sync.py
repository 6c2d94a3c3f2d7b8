from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tools import async_to_sync
from tools.async_to_sync import formatted, main, translate

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("async def f(): pass", "def f(): pass"),
        ("async with a as b: pass", "with a as b: pass"),
        ("x = [y async for y in await z()]", "x = [y for y in z()]"),
        ("x = f'{await y} {z}'", "x = f'{y} {z}'"),
        ("x = f'{{await y}} {{{await z}'", "x = f'{{y}} {{{z}'"),
        ("from router._async.pool.node_pool import AsyncRouter", "from router._sync.pool.node_pool import Router"),
        ("x: 'AsyncRouter'", "x: 'Router'"),
        ("x: Callable[[], Awaitable[tuple[int, str]]]", "x: Callable[[], tuple[int, str]]"),
        ("MyAsyncRouter, AsyncRouters", "MyAsyncRouter, AsyncRouters"),
        ('"""Use ``async with`` and ``await x``."""', '"""Use ``with`` and ``x``."""'),
        ('"""The async shell; see router/_async/x.py."""', '"""The async shell; see router/_sync/x.py."""'),
        ("# An AsyncRouter, async or not\nawait x", "# An Router, async or not\nx"),
        ("x = 'ä', await y  # ö\n\n\nz = await y\n", "x = 'ä', y  # ö\n\n\nz = y\n"),
    ],
)
def test_words_and_names(source: str, expected: str) -> None:
    assert translate(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = (await c.execute('select (1)')).fetchone()", "x = c.execute('select (1)').fetchone()"),
        ("x = (await f())[0]", "x = f()[0]"),
        ("x = g(await f())", "x = g(f())"),
        ("x = (await f() or 1).y", "x = (f() or 1).y"),
        ("x = (\n    await f()\n)", "x = (\n    f()\n)"),
    ],
)
def test_parentheses_around_an_await(source: str, expected: str) -> None:
    assert translate(source) == expected


def test_uses_are_counted() -> None:
    used: Counter[str] = Counter()
    translate("class AsyncRouter: '''AsyncRouter''' # _async\n", used)
    assert used == {"AsyncRouter": 2, "_async": 1}


def test_imports_are_sorted_anew_and_the_unused_dropped() -> None:
    source = "from psycopg import Connection\nfrom collections import deque, Counter\n\nprint(Connection, deque)\n"
    expected = "from collections import deque\n\nfrom psycopg import Connection\n\nprint(Connection, deque)\n"
    assert formatted(source, "router/_sync/x.py") == expected


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one async module, that uses every entry of the table."""
    monkeypatch.setattr(async_to_sync, "ROOT", tmp_path)
    source = tmp_path / "router" / "_async" / "m.py"
    source.parent.mkdir(parents=True)
    source.write_text("\n".join(f"# {word}" for word in async_to_sync.RENAMES) + "\nasync def f() -> None: ...\n")
    return tmp_path


def test_check_passes_on_what_was_written_and_fails_on_any_difference(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generated = project / "router" / "_sync" / "m.py"
    assert main(["--check"]) == 1
    assert not generated.exists()
    assert main([]) == 0
    first, *rest = generated.read_text().splitlines()
    assert first == "# Generated from router/_async/m.py by tools/async_to_sync.py: do not edit."
    assert rest[-1] == "def f() -> None: ..."
    assert main(["--check"]) == 0
    capsys.readouterr()

    generated.write_text("edited\n")
    orphan = generated.with_name("orphan.py")
    orphan.touch()
    assert main(["--check"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "router/_sync/m.py: out of date; run `make generate`",
        "router/_sync/orphan.py: out of date; run `make generate`",
    ]
    assert main([]) == 0
    assert not orphan.exists()
    assert main(["--check"]) == 0


def test_an_entry_that_nothing_uses_fails_the_check(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = project / "router" / "_async" / "m.py"
    source.write_text(source.read_text().replace("# AsyncRouter\n", ""))
    main([])
    capsys.readouterr()
    assert main(["--check"]) == 1
    assert capsys.readouterr().out == "tools/async_to_sync.py: 'AsyncRouter' in RENAMES is used nowhere\n"


def test_another_argument_explains_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--chekc"]) == 2
    assert "Usage:" in capsys.readouterr().err
