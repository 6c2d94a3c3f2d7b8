"""Tests look at a router by its snapshot: of private names they use those that are listed here, each for a reason."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent

OFFERED = {"_snapshot", "_asdict", "_fields", "_make", "_replace"}
"""What is there to be used, by a router and by named tuples."""

# What a borrower may change on a connection, and has to find as it was.
PSYCOPGS = {
    "_dumpers", "_dumpers_by_oid", "_loaders", "_names", "_notice_handlers", "_notifies_backlog", "_notify_handlers",
    "_prepared", "_registry", "_to_flush",
}  # fmt: skip

ALLOWED: dict[str, set[str]] = {
    "_async/internals.py": {"_in_force"},  # what tests do to the inside of a router
    "_async/test_background.py": {"_getframe", "_start_initial_tasks"},  # each step fails once, also psycopg_pool's
    "_async/test_borrowing.py": PSYCOPGS,
    "_async/test_features.py": PSYCOPGS,
    "_async/test_pool_methods.py": {"_pool"},  # by which psycopg knows what to give a connection back to
    "_async/test_routing.py": {"_may_serve"},  # something happens in the middle of a request
    "_async/test_server_limit.py": {"_settle"},  # it is counted how often slots are handed out
    "_async/test_tenants.py": PSYCOPGS,
    "test_cancellation.py": {"_waiters"},  # of a lock of asyncio's
    "test_context.py": {"_context"},  # of a thread, from Python 3.14 on
    "test_fair_line.py": {
        "_accepting",
        "_heads",
        "_owners",
        "_queues",
    },  # that nothing is left there is what it is about
    "test_fork.py": {"_exit", "_guard"},  # another thread holds locks at the moment of the fork
    "test_interruptions.py": {"_adding", "_driver", "_kept_in_mind"},  # two threads at two lines of the wall
    "test_proxy.py": {"_threads"},  # no thread is among them that was not started
    "test_testing.py": {"_PACKAGE", "_keeper"},  # the process that ends the servers, and the package that brings them
}


@cache
def used() -> dict[str, frozenset[str]]:
    """The private attributes that each file uses, of others than itself."""
    paths = {path.relative_to(ROOT).as_posix(): path for path in ROOT.rglob("*.py") if "_sync" not in path.parts}
    return {name: frozenset(private_names(ast.parse(path.read_text(encoding="utf-8")))) for name, path in paths.items()}


def private_names(tree: ast.AST) -> Iterator[str]:
    """The private attributes that ``tree`` uses, of others than itself; those by ``setattr()`` as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "delattr")):
            yield from (str(argument.value) for argument in node.args[1:2] if isinstance(argument, ast.Constant))


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_a_test_uses_no_private_names_but_those_listed() -> None:
    apart = {"test_inside_psycopg_pool.py"}  # which is about nothing else
    found = {
        path: {name for name in names if private(name)} - OFFERED - ALLOWED.get(path, set())
        for path, names in used().items()
        if path not in apart
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_the_list_names_only_what_is_used() -> None:
    for path, names in ALLOWED.items():
        assert names <= used()[path] or (names is PSYCOPGS and names & used()[path])
