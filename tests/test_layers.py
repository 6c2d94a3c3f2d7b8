"""A module of ``router`` imports, inside functions too, only from those below it; the core does no I/O."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import psycopg
import pytest

import router

# From the bottom up: a module imports only from those listed before it. A package that is not listed by its modules
# counts as one, its insides free.
CORE = [
    "core.value", "core.policies", "core.topology", "core.errors", "core.consistency", "core.names", "core.resolve",
    "core.faults", "core.policy_faults", "core.duplicates", "core.validate", "core.observations", "core.health",
    "core.replication", "core.standing", "core.balance", "core.choose", "core.budget", "core.fair_line", "core.bounds",
    "core.slot_lines", "core.server_limit", "core.events", "core.server_events", "core.changes", "core.view",
    "core.plan", "core.measures", "core.directory", "core.result", "core.outcomes", "core.statement", "core.stale",
    "core.traces", "core.sql",
]  # fmt: skip
SETTINGS = [
    "settings.words", "settings.dsn", "settings.variables", "settings.layers", "settings.files", "settings.sources",
    "settings.table", "settings.servers", "settings.tenants", "settings.tokens", "settings.models", "settings",
]  # fmt: skip
RUNTIME = [
    "_runtime.releases", "_runtime.flags", "_runtime.calls", "_runtime.workers", "_runtime.limited", "_runtime.names",
    "_runtime.sockets", "_runtime.login", "_runtime.forks",
]  # fmt: skip
BELOW_THE_SHELL = [*CORE, "_first_use", *SETTINGS, "context", "sessions", "ambient", "blocks", *RUNTIME, "_observers"]
# The modules of `_async`, and the same ones of `_sync`; neither shell imports from the other.
SHELL = [
    "closing", "eviction", "slot", "slots", "waiter", "line", "admission", "server_in_use", "cluster", "clusters",
    "pool.inside", "pool.scripts", "pool.connection", "pool.returned", "pool.pooled", "pool.commit", "pool.login",
    "pool.server_queries", "pool.opener", "pool.session_state", "pool.sessions", "pool.closer", "pool.quarantine",
    "pool.hygiene", "pool.release", "pool.counts", "pool.opening", "pool.node_pool", "pool.shared_pool",
    "pool.registry", "silence", "watcher", "monitor", "unavailable", "verify", "choice", "acquire",
    "ending", "checkout", "tenant_checkout", "acquired", "pool_set", "lane", "lane_table", "routes",
    "directory_table", "directory_source", "directory", "in_force", "checkouts", "statements", "each", "operations",
    "stats", "snapshot", "router",
]  # fmt: skip
ABOVE_THE_SHELL = ["events", "_process", "_default", "_loops", "aio", "__init__", "testing", "cli", "__main__"]
# The packages whose modules are listed; one that stands beside them itself, such as `settings`, offers what they have.
BY_MODULES = {"core", "settings", "_runtime", "_async", "_sync", "_async.pool", "_sync.pool"}
APART = {"testing"}  # imports nothing of the router but itself: it must not need what it tests

# The core is told the time and the chance, and does no I/O: of psycopg it knows the error classes only.
BANNED_IN_CORE = frozenset({
    "asyncio", "concurrent", "contextvars", "datetime", "io", "logging", "multiprocessing", "os", "pathlib",
    "psycopg_pool", "pydantic", "pydantic_settings", "random", "secrets", "select", "signal", "socket", "subprocess",
    "threading", "time", "uuid",
})  # fmt: skip

ROOT = Path(router.__file__).parent


def order(shell: str) -> list[str]:
    return [*BELOW_THE_SHELL, *(f"{shell}.{module}" for module in SHELL), *ABOVE_THE_SHELL]


LISTED = dict.fromkeys([*order("_async"), *order("_sync")])


def layer(dotted: str) -> str:
    """The entry of the list that a module belongs to: ``router.cli.demo`` to ``cli``, ``router`` to ``__init__``."""
    parts = dotted.split(".")[1:] or ["__init__"]
    depth = 1
    while ".".join(parts[:depth]) in BY_MODULES and depth < len(parts):
        depth += 1
    return ".".join(parts[:depth])


def module_name(path: Path) -> str:
    parts = ["router", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> set[str]:
    """Every module that ``tree`` imports at run time, dotted; what only type checkers see is left out."""
    found: set[str] = set()
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING":
        return found.union(*map(imports, tree.orelse))
    if isinstance(tree, ast.Import):
        found.update(name.name for name in tree.names)
    if isinstance(tree, ast.ImportFrom):
        assert not tree.level, f"line {tree.lineno}: a relative import"
        found.update(f"{tree.module}.{name.name}" for name in tree.names)
    return found.union(*map(imports, ast.iter_child_nodes(tree)))


def layers_imported(tree: ast.AST) -> set[str]:
    """The entries of the list that ``tree`` imports from; a name that is no module counts for the one it is in."""
    found = set()
    for dotted in imports(tree):
        package, *parts = dotted.split(".")
        if package == "router":
            path = ROOT.joinpath(*parts)
            is_module = path.is_dir() or path.with_suffix(".py").exists()
            found.add(layer(dotted if is_module else dotted.rpartition(".")[0]))
    return found


def allowed(here: str) -> set[str]:
    """The entries that ``here`` may import from."""
    if here in APART:
        return {here}
    below = (entries[: entries.index(here)] for entries in (order("_async"), order("_sync")) if here in entries)
    return {here}.union(*below)


def faults(name: str, tree: ast.AST) -> list[str]:
    """What the module ``name`` imports against the rules, in words."""
    here = layer(name)
    found = [f"{name} imports {other}" for other in sorted(layers_imported(tree) - allowed(here))]
    if here in CORE:
        found += [
            f"{name} imports {other}" for other in sorted(imports(tree)) if other.partition(".")[0] in BANNED_IN_CORE
        ]
        found += [f"{name} uses psycopg.{used}" for used in sorted(used_of_psycopg(tree)) if not is_error(used)]
    return found


def used_of_psycopg(tree: ast.AST) -> set[str]:
    """What ``tree`` takes from psycopg, dotted below it: ``OperationalError``, ``errors.ReadOnlySqlTransaction``."""
    names = {name.removeprefix("psycopg.") for name in imports(tree) if name.startswith("psycopg.")}
    attributes = (ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return names | {name.removeprefix("psycopg.") for name in attributes if name.startswith("psycopg.")}


def is_error(dotted: str) -> bool:
    if dotted == "errors":
        return True
    owner = importlib.import_module("psycopg.errors") if dotted.startswith("errors.") else psycopg
    value = getattr(owner, dotted.rpartition(".")[2], None)
    return isinstance(value, type) and issubclass(value, Exception)


MODULES = {
    module_name(path): path
    for path in ROOT.rglob("*.py")
    if path.name != "__init__.py" or ".".join(path.parent.relative_to(ROOT).parts) not in BY_MODULES - LISTED.keys()
}


def test_a_module_imports_only_from_those_below_it() -> None:
    assert [name for name in MODULES if layer(name) not in LISTED] == []
    found = {name: faults(name, ast.parse(path.read_text(encoding="utf-8"))) for name, path in MODULES.items()}
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_the_list_names_only_what_exists() -> None:
    assert set(LISTED) == {layer(name) for name in MODULES}


def test_a_package_that_is_listed_by_its_modules_alone_imports_nothing() -> None:
    for path in (ROOT.joinpath(*package.split("."), "__init__.py") for package in BY_MODULES - LISTED.keys()):
        assert not path.exists() or imports(ast.parse(path.read_text(encoding="utf-8"))) <= {"__future__.annotations"}


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("router.core.topology", "import router.core.errors", ["router.core.topology imports core.errors"]),
        ("router.core.errors", "import router.core.topology", []),
        ("router.core.topology", "from router import Router", ["router.core.topology imports __init__"]),
        (
            "router.core.topology",
            "def f():\n    from router.core import errors",
            ["router.core.topology imports core.errors"],
        ),
        ("router.core.topology", "if TYPE_CHECKING:\n    from router.core.errors import X", []),
        (
            "router._sync.pool.opener",
            "import router._async.slots",
            ["router._sync.pool.opener imports _async.slots"],
        ),
        (
            "router._sync.slots",
            "import router._sync.pool.opener",
            ["router._sync.slots imports _sync.pool.opener"],
        ),
        ("router._sync.pool.opener", "import router._sync.slots\nfrom router._runtime import flags", []),
        ("router.testing.cluster", "from router.core.errors import X", ["router.testing.cluster imports core.errors"]),
        ("router.testing.cluster", "from router.testing import cluster", []),
        ("router.cli.demo", "from router.testing import X\nfrom router import Router", []),
        ("router.core.choose", "import os.path", ["router.core.choose imports os.path"]),
        ("router.core.choose", "from time import monotonic", ["router.core.choose imports time.monotonic"]),
        ("router.core.choose", "from psycopg import Connection", ["router.core.choose uses psycopg.Connection"]),
        ("router.core.errors", "import psycopg\npsycopg.connect()", ["router.core.errors uses psycopg.connect"]),
        ("router.core.errors", "import psycopg\nclass E(psycopg.OperationalError): ...", []),
        ("router.core.health", "from psycopg.errors import ReadOnlySqlTransaction", []),
        ("router.settings", "import os", []),
    ],
)
def test_the_rules_themselves(name: str, source: str, expected: list[str]) -> None:
    assert faults(name, ast.parse(source)) == expected
