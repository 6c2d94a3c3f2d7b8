"""Writes the functions of the process-wide routers, ``router.connection()`` and ``router.aio.connection()`` and so on.

Each has the signature and the description of the method of ``Router`` or ``AsyncRouter`` that it calls.

Usage: python -m tools.faces [--check]

With --check nothing is written; the exit code says whether the files are up to date.
"""

from __future__ import annotations

import ast
import re
import sys
from typing import TYPE_CHECKING, NamedTuple

from tools.async_to_sync import ROOT, formatted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FUNCTIONS = (
    "connection", "acquire", "session", "use", "current", "carry", "carried", "execute", "run", "each", "explain",
    "stats",
)  # fmt: skip
"""The methods that are functions as well; ``configure()`` and ``close()`` are written by hand."""

CONFIG_ERROR = "ConfigError: This is the first use, and the environment's settings are wrong."
NO_LOOP = "RuntimeError: No event loop runs here."


class Face(NamedTuple):
    """A module of functions.

    Attributes:
        path: Where it is written.
        sources: The modules of the class whose methods they call, and of those that it inherits from.
        kept: The module that keeps the routers, and has what is written by hand; its ``here()`` gives the one to call.
        doc: Its description.
        raises: What each function raises besides.
    """

    path: Path
    sources: tuple[Path, ...]
    kept: str
    doc: str
    raises: tuple[str, ...]


FACES = (
    Face(
        ROOT / "router/_default.py",
        (ROOT / "router/_sync/router.py", ROOT / "router/_sync/operations.py", ROOT / "router/blocks.py"),
        "router._process",
        "The process-wide router: made from the environment at first use, closed at exit.",
        (CONFIG_ERROR,),
    ),
    Face(
        ROOT / "router/aio.py",
        (ROOT / "router/_async/router.py", ROOT / "router/_async/operations.py", ROOT / "router/blocks.py"),
        "router._loops",
        "The process-wide async routers: one for each event loop, made at its first use and closed with the loop.\n\n"
        '::\n\n    import router\n    async with router.aio.connection(version="v2") as conn: ...\n',
        (NO_LOOP, CONFIG_ERROR),
    ),
)


def face(module: Face) -> str:
    """Write one of the modules.

    Args:
        module: Which.

    Returns:
        Its text, formatted.
    """
    trees = [ast.parse(source.read_text(encoding="utf-8")) for source in module.sources]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    methods = {
        node.name: node
        for kind in classes
        for node in kind.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    functions = [function(methods[name], module.raises) for name in FUNCTIONS]
    exported = ", ".join(f'"{name}"' for name in sorted([*FUNCTIONS, "close", "configure"]))
    names = {name for function in FUNCTIONS for name in names_of(methods[function])}
    needed = {line for tree in trees for line in imports(tree, names)}
    pieces = [
        f"# Generated from {module.sources[0].relative_to(ROOT).as_posix()} by tools/faces.py: do not edit.",
        f'"""{module.doc}"""',
        "from __future__ import annotations",
        "from typing import TYPE_CHECKING, TypeVar",
        f"from {module.kept} import close, configure, here as _here",
        "if TYPE_CHECKING:\n" + "\n".join(f"    {line}" for line in sorted(needed)),
        f"__all__ = [{exported}]",
        'T = TypeVar("T")',
        *functions,
    ]
    return formatted("\n\n".join(pieces) + "\n", module.path.relative_to(ROOT).as_posix())


def function(method: ast.FunctionDef | ast.AsyncFunctionDef, raises: tuple[str, ...]) -> str:
    """Write the function that calls a method.

    Args:
        method: The method.
        raises: What the function raises besides.

    Returns:
        Its text.
    """
    arguments = method.args
    arguments.args = arguments.args[1:]  # without self
    given = [argument.arg for argument in arguments.args]
    given += [f"{argument.arg}={argument.arg}" for argument in arguments.kwonlyargs]
    waits, keyword = ("await ", "async ") if isinstance(method, ast.AsyncFunctionDef) else ("", "")
    returns = "None" if method.returns is None else ast.unparse(method.returns)
    return (
        f"{keyword}def {method.name}({ast.unparse(arguments)}) -> {returns}:\n"
        f'    """{docstring(method, raises)}"""\n'
        f"    return {waits}_here().{method.name}({', '.join(given)})\n"
    )


def docstring(method: ast.FunctionDef | ast.AsyncFunctionDef, raises: tuple[str, ...]) -> str:
    """Take over the description of a method."""
    text = ast.get_docstring(method) or ""
    for name in FUNCTIONS:
        text = text.replace(f":meth:`{name}`", f":func:`{name}`")
    if "\nRaises:\n" not in text:
        text += "\n\nRaises:"
    head, _, tail = text.partition("\nRaises:")
    text = head + "\nRaises:" + "".join(f"\n    {line}" for line in raises) + tail
    return re.sub(r"\n(?=[^\n])", "\n    ", text) + "\n    "


def names_of(method: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """The names in the annotations of a method."""
    for part in (method.args, method.returns):
        for node in ast.walk(part) if part is not None else ():
            if isinstance(node, ast.Name):
                yield node.id


def imports(tree: ast.Module, names: set[str]) -> Iterator[str]:
    """The imports of a module that the names need, one for each name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for name in node.names:
                if name.name in names and node.module != "typing":
                    yield f"from {node.module} import {name.name}"


def main(arguments: list[str]) -> int:
    """Write or check the modules.

    Args:
        arguments: Empty, or ``["--check"]``.

    Returns:
        The exit code: 0 when all is well, 1 when ``--check`` found a fault, 2 for another argument.
    """
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    stale = [(module, text) for module in FACES if module.path.read_text(encoding="utf-8") != (text := face(module))]
    for module, text in stale:
        if arguments:
            print(f"{module.path.relative_to(ROOT)}: out of date; run `make generate`")
        else:
            module.path.write_text(text, encoding="utf-8")
            print(f"wrote {module.path.relative_to(ROOT)}")
    return bool(stale and arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
