"""What the shell's objects are given are objects with a name, not callables that hide who depends on whom."""

from __future__ import annotations

import ast
from pathlib import Path

import router

SHELL = Path(router.__file__).parent / "_async"
CALLABLE = ("Callable", "AFunction", "APassword", "AConfigure", "ASource", "Observer", "Note")
FROM_USERS = {"password", "configure", "observers", "source", "directory"}
# Of one request each: what notes how far its WAL is in its session; what finds its lane once the home is known.
OF_A_REQUEST = {("AsyncTrackedCheckout", "note"), ("AsyncScopedCheckout", "note"), ("AsyncLookupCheckout", "find")}


def callables(tree: ast.AST) -> set[tuple[str, str]]:
    """The parameters of constructors that are callables: each with its class."""
    found = set()
    for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for function in kind.body:
            if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                for parameter in (*function.args.args, *function.args.kwonlyargs):
                    written = ast.unparse(parameter.annotation) if parameter.annotation else ""
                    words = written.replace("[", " ").replace("]", " ").replace("|", " ").split()
                    if any(word in CALLABLE for word in words):
                        found.add((kind.name, parameter.arg))
    return found


def test_only_users_give_callables() -> None:
    found = set[tuple[str, str]]().union(
        *(callables(ast.parse(path.read_text(encoding="utf-8"))) for path in SHELL.rglob("*.py"))
    )
    assert {(kind, name) for kind, name in found if name not in FROM_USERS} == OF_A_REQUEST
    assert ("AsyncRouter", "password") in found


def test_the_rule_itself() -> None:
    source = "class A:\n    def __init__(self, pools: Callable[[], list[int]], policy: Policy | None) -> None: ..."
    assert callables(ast.parse(source)) == {("A", "pools")}
