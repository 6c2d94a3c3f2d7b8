"""A file of ``router`` has at most 350 lines, and a function fits a screen."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import router

if TYPE_CHECKING:
    from collections.abc import Iterator

LINES = 350
"""The most lines of a file."""

SCREEN = 50
"""The most lines of code of a function's body: without its description, comments and empty lines."""

ROOT = Path(router.__file__).parent
FILES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in ROOT.rglob("*.py")
    if not path.read_text(encoding="utf-8").startswith("# Generated")
}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    described = ast.get_docstring(function, clean=False) is not None
    begin = function.body[0].end_lineno if described else function.body[0].lineno - 1
    code = (line.strip() for line in lines[begin : function.end_lineno])
    return sum(bool(line) and not line.startswith("#") for line in code)


def test_a_file_is_short() -> None:
    sizes = {path: len(text.splitlines()) for path, text in FILES.items()}
    assert {path: size for path, size in sizes.items() if size > LINES} == {}


def test_a_function_is_short() -> None:
    sizes = {
        (path, function.name): lines_of_code(function, text.splitlines())
        for path, text in FILES.items()
        for function in functions(ast.parse(text))
    }
    assert {name: size for name, size in sizes.items() if size > SCREEN} == {}


def test_what_is_generated_is_all_that_is_left_out() -> None:
    left_out = {path.relative_to(ROOT).parts[0] for path in ROOT.rglob("*.py")} - {path.split("/")[0] for path in FILES}
    assert left_out == {"_sync", "_default.py", "aio.py"}


def test_it_counts_what_is_read() -> None:
    text = 'def f():\n    """Say."""\n    # why\n    a = 1\n\n    return a\n'
    [function] = functions(ast.parse(text))
    assert lines_of_code(function, text.splitlines()) == 2
