"""Checks that the installed psycopg and psycopg_pool have everything that the router uses inside of them."""

from __future__ import annotations

from collections import OrderedDict, deque
from functools import cache
from types import CodeType
from typing import TYPE_CHECKING, Any

from psycopg import AsyncConnection, AsyncCursor, AsyncPipeline
from psycopg_pool import AsyncConnectionPool

from router._async.pool.inside.imports import AddConnection, MaintenanceTask, PrepareManager
from router._runtime.releases import out_of_range, unfit

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES: dict[type[Any], frozenset[str]] = {
    AsyncConnection: frozenset({
        "_adapters", "_autocommit", "_check_connection_ok", "_closed", "_connect_gen", "_deallocate", "_encoding",
        "_exec_command", "_get_tx_start_command", "_notice_handler", "_notice_handlers", "_notifies_backlog",
        "_notify_handler", "_notify_handlers", "_num_transactions", "_pipeline", "_pool", "_prepared", "_start_query",
        "_tpc", "_tpc_finish_gen", "_tpc_prepare_gen", "lock", "pgconn", "prepare_threshold", "prepared_max", "wait",
    }),
    AsyncConnectionPool: frozenset({
        "_close_connection", "_closed", "_expire_at", "_growing", "_lock", "_max_size", "_maybe_grow_pool", "_nconns",
        "_nconns_min", "_opened", "_pool", "_set_connection_expiry_date", "_shrink_pool", "_signal_stop_worker",
        "_waiting",
    }),
    AsyncCursor: frozenset({"_adapters"}),
    AsyncPipeline: frozenset({"result_queue"}),
    AddConnection: frozenset({"_run", "attempt", "growing"}),
    MaintenanceTask: frozenset({"_run", "tick"}),
    PrepareManager: frozenset({
        "_counts", "_names", "_to_flush", "maybe_add_to_cache", "prepare_threshold", "prepared_max",
    }),
}  # fmt: skip
"""The names that have to occur in the code of each class: methods, and attributes that it sets."""

OVERRIDDEN: tuple[tuple[type[Any], str, str], ...] = (
    (AsyncConnection, "_connect_gen", "conninfo"),
    (AsyncConnection, "_start_query", "self"),
    (AsyncConnection, "_get_tx_start_command", "self"),
    (AsyncConnection, "_exec_command", "self command result_format"),
    (AsyncConnection, "_tpc_prepare_gen", "self"),
    (AsyncConnection, "_tpc_finish_gen", "self action xid"),
    (AsyncConnectionPool, "_close_connection", "self conn"),
    (AsyncConnectionPool, "_maybe_grow_pool", "self"),
    (AsyncConnectionPool, "_set_connection_expiry_date", "self conn"),
    (AsyncConnectionPool, "_shrink_pool", "self"),
    (AsyncConnectionPool, "run_task", "self task"),
    (AsyncConnectionPool, "schedule_task", "self task delay"),
    (AddConnection, "__init__", "self pool attempt growing"),
    (AddConnection, "_run", "self pool"),
    (MaintenanceTask, "_run", "self pool"),
    (PrepareManager, "maybe_add_to_cache", "self query prep name"),
)
"""The overridden methods with their parameters: psycopg and psycopg_pool call them, so the parameters must match."""

CALLED: tuple[tuple[type[Any], str, int], ...] = (
    (AsyncConnection, "_check_connection_ok", 1),
    (AsyncConnection, "_deallocate", 2),
    (AsyncConnection, "_notice_handler", 2),
    (AsyncConnection, "_notify_handler", 2),
    (AsyncConnectionPool, "_signal_stop_worker", 1),
    (AsyncConnectionPool, "close", 2),
    (AsyncConnectionPool, "open", 1),
    (PrepareManager, "__init__", 1),
)
"""The methods that are called, and with how many arguments."""


@cache
def check_inside() -> None:
    """Check, once in a process, that the installed releases have everything that the router uses inside of them.

    Raises:
        RouterError: Something is missing: the error names it, and the releases that work.
    """
    lacking = [*_lacking()]
    if lacking or out_of_range():
        raise unfit(lacking)


def _lacking() -> Iterator[str]:
    for owner, names in NAMES.items():
        for name in sorted(names - _names_in(owner)):
            yield f"{owner.__module__}.{owner.__qualname__} has no {name}"
    for owner, name, expected in OVERRIDDEN:
        if (code := _code(getattr(owner, name, None))) is not None and expected.split() != _parameters(code):
            found = " ".join(_parameters(code))
            yield f"{owner.__module__}.{owner.__qualname__}.{name}() takes ({found}), not ({expected})"
    for owner, name, given in CALLED:
        function: Any = getattr(owner, name, None)
        if (code := _code(function)) is not None:
            most = code.co_argcount
            if not most - len(function.__defaults__ or ()) <= given <= most or code.co_kwonlyargcount:
                yield f"{owner.__module__}.{owner.__qualname__}.{name}() does not take {given} arguments"
    yield from _other_values()


def _other_values() -> Iterator[str]:
    """Check the attributes of an object of each of the two classes that are cheap to make."""
    pool: Any = AsyncConnectionPool(min_size=0, max_size=1, open=False)
    prepared: Any = PrepareManager()
    for one, name, kind in (
        (pool, "_pool", deque),
        (pool, "_waiting", deque),
        (pool, "_nconns", int),
        (pool, "_nconns_min", int),
        (pool, "_growing", bool),
        (pool, "_opened", bool),
        (pool, "_closed", bool),
        (prepared, "_counts", OrderedDict),
        (prepared, "_names", OrderedDict),
        (prepared, "_to_flush", deque),
    ):
        if not isinstance(value := getattr(one, name, None), kind) and value is not None:
            yield f"{name} of {type(one).__module__}.{type(one).__qualname__} is a {type(value).__name__}"


def _code(function: Any) -> CodeType | None:
    """Find the code of a function; ``None`` if the function was compiled to C and has none."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return code if isinstance(code, CodeType) else None


def _parameters(code: CodeType) -> list[str]:
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return [name for name in names if name != "cls"]


def _names_in(owner: type[Any]) -> set[str]:
    """Find the names that a class and its base classes define, and those that occur in their code."""
    found, in_code = set[str](), set[str]()
    for kind in owner.__mro__:
        if not kind.__module__.startswith("psycopg"):
            continue
        for name, value in vars(kind).items():
            found.add(name)
            if (code := _code(getattr(value, "fget", value))) is not None:
                in_code.update(code.co_names, (one for one in code.co_consts if isinstance(one, str)))
    return found | in_code if in_code else set(NAMES[owner])  # classes compiled to C cannot be checked
