"""Only the wall, ``pool/inside``, uses private names of psycopg and psycopg_pool; it checks what it uses."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import psycopg_pool
import pytest

import router
from router import AsyncRouter, Router, RouterError, RouterSettings
from router._async.pool.inside import check as async_check
from router._runtime import releases
from router._sync.pool.inside import check as sync_check

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(router.__file__).parent
WALLS = [ROOT / "_async/pool/inside", ROOT / "_sync/pool/inside"]
# `testing` is left out: it starts servers, and private names in it are its own.
APART = [*WALLS, ROOT / "testing"]
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.parent not in APART)
DRIVERS: list[ModuleType] = [psycopg, psycopg_pool]
CHECKS: dict[type, ModuleType] = {AsyncRouter: async_check, Router: sync_check}


def is_private(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"_[a-zA-Z]\w*", name) is not None


def private_names(tree: ast.AST) -> Iterator[str]:
    """Every private name that is written anywhere in ``tree``: attributes, methods, and in text of its own."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.Attribute(attr=name)
                | ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.Constant(value=str(name))
                | ast.keyword(arg=str(name))
            ) if is_private(name):
                yield name


@cache
def of_the_drivers() -> frozenset[str]:
    """The private names of attributes and methods in psycopg and psycopg_pool."""
    found: set[str] = set()
    for package in DRIVERS:
        for path in Path(str(package.__file__)).parent.rglob("*.py"):
            found.update(private_names(ast.parse(path.read_text(encoding="utf-8"))))
    return frozenset(found)


@cache
def derived() -> frozenset[str]:
    """The names of the router's classes that are derived from one of psycopg's or psycopg_pool's."""
    bases: dict[str, set[str]] = {}
    found: set[str] = set()
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in ("psycopg", "psycopg_pool")
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                names = {ast.unparse(base).partition("[")[0] for base in node.bases}
                bases.setdefault(node.name, set()).update(names)
                if any(name in imported or name.startswith(("psycopg.", "psycopg_pool.")) for name in names):
                    found.add(node.name)
    while more := {name for name, of in bases.items() if of & found} - found:
        found |= more
    return frozenset(found)


def faults(tree: ast.AST) -> list[str]:
    """What ``tree`` uses of the drivers' insides: the router's own private names are those of its own objects.

    An object is the router's own where it is ``self`` or ``cls`` in a class that is derived from none of theirs.
    """
    return [f"line {line}: {what}" for line, what in sorted(_faults(tree, own=False))]


def _faults(tree: ast.AST, *, own: bool) -> Iterator[tuple[int, str]]:  # noqa: C901  (one case for each way)
    match tree:
        case ast.ClassDef():
            own = not any(ast.unparse(base).partition("[")[0] in derived() for base in tree.bases) and not any(
                ast.unparse(base).startswith(("psycopg.", "psycopg_pool.")) for base in tree.bases
            )
            if not own:
                yield from _defined(tree)
        case ast.Import(names=names) if any(is_inside(name.name) for name in names):
            yield tree.lineno, ast.unparse(tree)
        case ast.ImportFrom(module=str(module), names=names) if any(is_inside(f"{module}.{n.name}") for n in names):
            yield tree.lineno, ast.unparse(tree)
        case ast.Attribute(value=ast.Name(id="self" | "cls")) if own:
            pass
        case ast.Attribute(value=ast.Name(id="os" | "sys")):
            pass
        case ast.Attribute(attr=name) if name in of_the_drivers():
            yield tree.lineno, ast.unparse(tree)
        case ast.Constant(value=str(name)) if name in of_the_drivers():
            yield tree.lineno, repr(name)
        case ast.Assign(targets=[ast.Name(id="__slots__")]):
            return
    for child in ast.iter_child_nodes(tree):
        yield from _faults(child, own=own)


def _defined(tree: ast.ClassDef) -> Iterator[tuple[int, str]]:
    for node in tree.body:
        names = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        yield from ((node.lineno, f"{tree.name} defines {name}") for name in names if name in of_the_drivers())


def is_inside(dotted: str) -> bool:
    package, *names = dotted.split(".")
    return package in ("psycopg", "psycopg_pool") and any(map(is_private, names))


def test_nothing_but_the_wall_uses_a_private_name_of_the_drivers() -> None:
    found = {str(path.relative_to(ROOT)): faults(ast.parse(path.read_text(encoding="utf-8"))) for path in MODULES}
    assert len(found) > 100
    assert {path: problems for path, problems in found.items() if problems} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("connection._pipeline", ["line 1: connection._pipeline"]),
        ("pool._nconns -= 1", ["line 1: pool._nconns"]),
        ("vars(connection)['_closed']", ["line 1: '_closed'"]),
        ("from psycopg._preparing import PrepareManager", ["line 1: from psycopg._preparing import PrepareManager"]),
        ("import psycopg_pool._acompat", ["line 1: import psycopg_pool._acompat"]),
        (
            "class Mine(AsyncNodeConnection):\n    def _start_query(self): return self._autocommit",
            ["line 2: Mine defines _start_query", "line 2: self._autocommit"],
        ),
        ("class Mine(psycopg.Connection):\n    _pool = None", ["line 2: Mine defines _pool"]),
        ("class Mine:\n    def _start_query(self): return self._pool", []),
        ("class Mine:\n    __slots__ = ('_pool',)", []),
        ("connection._router", []),
        ("from psycopg import Connection", []),
    ],
)
def test_the_rule_itself(source: str, found: list[str]) -> None:
    assert faults(ast.parse(source)) == found


@pytest.mark.parametrize("check", CHECKS.values(), ids=["async", "sync"])
def test_all_that_the_wall_uses_is_checked(check: ModuleType) -> None:
    wall = Path(str(check.__file__)).parent
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in wall.glob("*.py") if path.name != "check.py"]
    used = {name for tree in trees for name in private_names(tree)} & of_the_drivers()
    assert used == {name for names in check.NAMES.values() for name in names if is_private(name)}


def test_the_releases_that_work_are_those_that_are_asked_for() -> None:
    asked = tomllib.loads(ROOT.with_name("pyproject.toml").read_text())["project"]["dependencies"]
    for name, (low, high) in releases.WORKING.items():
        range_ = f">={'.'.join(map(str, low))},<{'.'.join(map(str, high))}"
        assert [one for one in asked if re.match(rf"{name}\b(?!-)", one)] == [
            f"{name}[binary,pool]{range_}" if name == "psycopg" else f"{name}{range_}"
        ]


@pytest.mark.parametrize(
    ("package", "release", "works"),
    [
        (psycopg, "3.3.5", False), (psycopg, "3.3.6", True), (psycopg, "3.3.12", True), (psycopg, "3.4.0", False),
        (psycopg, "3.4.0.dev1", False), (psycopg, "4.0", False), (psycopg, "0.0.0", True),
        (psycopg_pool, "3.2.6", False), (psycopg_pool, "3.3.9", True), (psycopg_pool, "3.4", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", CHECKS)
def test_a_release_that_may_not_work_is_told_by_the_first_router(
    monkeypatch: pytest.MonkeyPatch, package: ModuleType, release: str, works: bool, kind: type
) -> None:
    monkeypatch.setattr(package, "__version__", release)
    CHECKS[kind].check_inside.cache_clear()
    settings = RouterSettings(versions={"v1": "postgresql://db1.internal/app"})
    if works:
        kind(settings)
        return
    for _ in range(2):
        with pytest.raises(RouterError) as raised:
            kind(settings)
        text = str(raised.value)
        assert f"{package.__name__.replace('_', '-')} {release}" in text
        assert re.search(r'install "psycopg>=3\.3\.\d+,<3\.4" "psycopg-pool>=3\.3\.\d+,<3\.4"$', text)


FIRST_ROUTERS = """
import asyncio
from router import AsyncRouter, Router, RouterError, RouterSettings

settings = RouterSettings(versions={"v1": "postgresql://db1.internal/app"})
for kind in (Router, AsyncRouter):
    try:
        kind(settings)
    except RouterError as error:
        print(error)
        print()
"""


def told_with(folder: Path, package: ModuleType, old: str, new: str) -> list[str]:
    """What the first router of either kind says of a copy of a package in which something is written differently."""
    source = Path(str(package.__file__)).parent
    copy = shutil.copytree(source, folder / package.__name__, ignore=shutil.ignore_patterns("__pycache__"))
    changed = 0
    for path in copy.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        changed += text.count(old)
        path.write_text(text.replace(old, new), encoding="utf-8")
    assert changed
    name = package.__name__.replace("_", "-")
    about = folder / f"{package.__name__}-{package.__version__}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(str(distribution(name).read_text("METADATA")), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT.parent), *sys.path))}
    command = [sys.executable, "-c", FIRST_ROUTERS]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    if ended.returncode:  # a module is gone: the import says so
        return [ended.stderr.rpartition("RouterError: ")[2]] * 2
    return [told for told in ended.stdout.split("\n\n") if told]


@pytest.mark.parametrize(
    ("package", "old", "new", "lacking"),
    [
        (psycopg_pool, "_waiting", "_clients", "has no _waiting"),
        pytest.param(psycopg_pool, "_nconns", "_size", "has no _nconns", marks=pytest.mark.slow),
        pytest.param(psycopg_pool, "_expire_at", "_expires_at", "has no _expire_at", marks=pytest.mark.slow),
        pytest.param(
            psycopg_pool,
            "deque[WaitingClient[ACT]]()",
            "list[WaitingClient[ACT]]()",
            "_waiting of",
            marks=pytest.mark.slow,
        ),
        (psycopg_pool, "deque[WaitingClient[CT]]()", "list[WaitingClient[CT]]()", "_waiting of"),
        pytest.param(psycopg_pool, "AddConnection", "OpenConnection", "AddConnection", marks=pytest.mark.slow),
        pytest.param(
            psycopg_pool,
            "_close_connection(self, conn",
            "_close_connection(self, why, conn",
            "_close_connection() takes",
            marks=pytest.mark.slow,
        ),
        (psycopg, "_prepared", "_statements", "has no _prepared"),
        pytest.param(psycopg, "_exec_command", "_run_command", "has no _exec_command", marks=pytest.mark.slow),
        pytest.param(psycopg, "_num_transactions", "_transactions", "has no _num_transactions", marks=pytest.mark.slow),
        (psycopg, "def _start_query(self)", "def _start_query(self, again=False)", "_start_query() takes"),
        pytest.param(
            psycopg,
            "_deallocate(self, name: bytes",
            "_deallocate(self, how, name: bytes",
            "_deallocate() does not take",
            marks=pytest.mark.slow,
        ),
        pytest.param(psycopg, "PrepareManager", "StatementManager", "PrepareManager", marks=pytest.mark.slow),
    ],
)
def test_what_is_lacking_inside_is_told_by_the_first_router_in_one_error(
    tmp_path: Path, package: ModuleType, old: str, new: str, lacking: str
) -> None:
    told = told_with(tmp_path, package, old, new)
    assert len(told) == (1 if "CT]" in old else 2)  # in the pool of one kind, or of both
    for each in told:
        assert lacking in each
        assert f"{package.__name__.replace('_', '-')} {package.__version__}" in each
        assert '"psycopg-pool>=3.3' in each
