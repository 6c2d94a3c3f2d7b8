"""What the documentation names exists: files, links, classes and functions, and the decisions are numbered in order."""

from __future__ import annotations

import ast
import re
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import psycopg_pool

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SOURCES = sorted(path for folder in ("router", "tests", "tools", "bench") for path in (ROOT / folder).glob("**/*.py"))
ELSEWHERE = {"router.py", "myapp/router.py"}  # files of an application
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code_in(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", page.read_text()))


@cache
def files() -> frozenset[str]:
    """Every file and folder by each of its ends: ``router/core/sql.py``, ``core/sql.py`` and ``sql.py``."""
    paths = chain.from_iterable(
        [folder, *folder.glob("**/*")]
        for folder in map(ROOT.joinpath, ("router", "tests", "tools", "docs", "examples", "bench", "config", ".ci"))
    )
    ends = (path.relative_to(ROOT).parts for path in [*paths, *ROOT.glob("*.*"), ROOT / "Makefile"])
    return frozenset("/".join(parts[start:]) for parts in ends for start in range(len(parts)))


@cache
def defined() -> frozenset[str]:
    """Every name that is defined in the sources, and those that psycopg and its pool offer."""
    found = (
        set(dir(psycopg))
        | set(dir(psycopg_pool))
        | set(dir(psycopg.AsyncConnection))
        | set(dir(psycopg_pool.AsyncConnectionPool))
    )
    for path in SOURCES:
        if "_sync" in path.parts:  # generated; its names are those of the source
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    found.add(name)
                case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                    found.add(name)
    return frozenset(found | {name.removeprefix("Async") for name in found})


def test_each_file_that_a_page_names_is_there() -> None:
    pattern = re.compile(r"[\w./-]+(?:\.py|/)|(?:docs|config|\.ci)/[\w./-]+")
    named = [(name_of(page), text) for page in PAGES for text in code_in(page) if pattern.fullmatch(text)]
    assert [(page, text) for page, text in named if text not in ELSEWHERE and text.rstrip("/") not in files()] == []


def test_each_link_of_a_page_leads_somewhere() -> None:
    pattern = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
    links = [(page, link) for page in PAGES for link in pattern.findall(FENCED.sub("", page.read_text()))]
    broken = [(page, link) for page, link in links if "://" not in link and not (page.parent / link).exists()]
    assert broken == []


def test_each_class_of_the_async_shell_that_a_page_names_is_there() -> None:
    texts = [(name_of(page), text) for page in PAGES for text in code_in(page)]
    named = {(page, name) for page, text in texts for name in re.findall(r"\bAsync[A-Z]\w+", text)}
    assert {(page, name) for page, name in named if name not in defined()} == set()


def test_each_function_that_the_design_names_is_there() -> None:
    named = {name for text in code_in(ROOT / "docs/design.md") for name in re.findall(r"\b([a-z_]\w*)\(\)", text)}
    assert named - defined() - {"fork"} == set()


def roles() -> Iterator[tuple[str, str]]:
    for path in SOURCES:
        for target in re.findall(r":(?:meth|func|class|attr|data|exc|mod):`~?([\w.]+)`", path.read_text()):
            yield name_of(path), target


def test_each_name_that_a_docstring_refers_to_is_there() -> None:
    modules = {path.stem for path in SOURCES} | {"router"}
    assert [(path, target) for path, target in roles() if target.rpartition(".")[2] not in defined() | modules] == []


def test_each_decision_has_a_number_of_its_own() -> None:
    numbers = [path.name[:4] for path in (ROOT / "docs/decisions").glob("*.md")]
    assert sorted(set(numbers)) == sorted(numbers)
    for path in (ROOT / "docs/decisions").glob("*.md"):
        assert re.match(rf"# {path.name[:4]}\W", path.read_text())
