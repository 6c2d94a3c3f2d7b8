"""The tree of errors, and that each says all it knows and no secret."""

from __future__ import annotations

import copy
import pickle
from inspect import isclass
from typing import TYPE_CHECKING

import psycopg
import pytest

import router
from router.core import errors
from router.core.errors import (
    ConfigError,
    NoPrimary,
    NoReplica,
    PoolExhausted,
    RouterClosed,
    RouterError,
    TooManyWaiting,
    Unavailable,
    UnknownVersion,
)
from router.core.topology import Node, Role, Secrets, Server

if TYPE_CHECKING:
    from collections.abc import Callable

P = Node(Server("p", 5432), (("dbname", "app"), ("user", "app")), Role.PRIMARY)
R = Node(Server("::1", 5433), ())
S = Node(Server("s", 5434), (), secrets=Secrets((("password", "hunter2"), ("sslpassword", "hunter3"))))
REFUSED = {P: "primary, down: Connection refused", R: "is a replica"}

UNAVAILABLE = [Unavailable, NoPrimary, NoReplica, PoolExhausted, TooManyWaiting]


@pytest.mark.parametrize(
    ("error", "kinds"),
    [
        (RouterError, {Exception}),
        (ConfigError, {RouterError, ValueError}),
        (UnknownVersion, {RouterError, LookupError}),
        (RouterClosed, {RouterError}),
        (Unavailable, {RouterError, psycopg.OperationalError}),
        (NoPrimary, {Unavailable}),
        (NoReplica, {Unavailable}),
        (PoolExhausted, {Unavailable}),
        (TooManyWaiting, {PoolExhausted}),
    ],
)
def test_the_tree(error: type[Exception], kinds: set[type[Exception]]) -> None:
    assert set(error.__bases__) == kinds


def test_every_error_is_in_the_tree_and_public() -> None:
    defined = {name for name, value in vars(errors).items() if isclass(value) and value.__module__ == errors.__name__}
    assert all(issubclass(getattr(errors, name), RouterError) for name in defined)
    assert defined <= set(router.__all__)
    assert errors.__doc__ is not None
    assert all(f" {name} " in errors.__doc__.replace("\n", " ") for name in defined)


@pytest.mark.parametrize(
    ("problems", "text"),
    [
        ([], "0 problems in the settings:"),
        (["a.toml: pool.size: unknown"], "1 problem in the settings:\n  - a.toml: pool.size: unknown"),
        (["a: x", "b: y", "c: z"], "3 problems in the settings:\n  - a: x\n  - b: y\n  - c: z"),
    ],
)
def test_wrong_settings_are_listed_whole(problems: list[str], text: str) -> None:
    error = ConfigError(iter(problems))
    assert str(error) == text
    assert error.problems == tuple(problems)


@pytest.mark.parametrize(
    ("version", "known", "text"),
    [
        ("bleu", ["blue", "green"], "unknown version 'bleu' (did you mean 'blue'?); known: blue, green"),
        ("x", ["blue", "green"], "unknown version 'x'; known: blue, green"),
        ("", ["blue"], "unknown version ''; known: blue"),
        ("v1", [], "unknown version 'v1'; known: none"),
        (None, ["v1"], "no version was named and the settings have no default_version; known: v1"),
    ],
)
def test_an_unknown_version_names_those_there_are(version: str | None, known: list[str], text: str) -> None:
    error = UnknownVersion(version, iter(known))
    assert str(error) == text
    assert (error.version, error.known) == (version, tuple(known))


@pytest.mark.parametrize("kind", UNAVAILABLE)
def test_an_unavailable_version_gives_each_nodes_reason(kind: type[Unavailable]) -> None:
    error = kind("no node is up", version="v2", attempts=1, refused=REFUSED)
    lines = ["no node is up", "  - app@p:5432/app: primary, down: Connection refused", "  - [::1]:5433: is a replica"]
    assert str(error).splitlines() == lines
    assert (error.version, error.attempts, dict(error.refused)) == ("v2", 1, REFUSED)


def test_what_was_refused_is_a_copy_that_cannot_be_changed() -> None:
    refused = dict(REFUSED)
    error = NoPrimary("none", version="v2", refused=refused)
    refused.clear()
    assert error.refused == REFUSED
    with pytest.raises(TypeError, match="does not support item"):
        del error.refused[P]  # type: ignore[attr-defined]


def test_with_nothing_refused_the_message_is_one_line() -> None:
    error = PoolExhausted("all 10 are in use", version="v2")
    assert (str(error), error.attempts, dict(error.refused)) == ("all 10 are in use", 0, {})


def test_no_error_shows_a_secret() -> None:
    error = NoPrimary("none", version="v2", refused={S: "is a replica"})
    assert "hunter" not in f"{error} {error!r} {error.args} {error.refused}"
    assert b"hunter" not in pickle.dumps(error)
    assert [str(node) for node in pickle.loads(pickle.dumps(error)).refused] == ["s:5434"]  # noqa: S301


@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])  # noqa: S301
@pytest.mark.parametrize(
    "error",
    [
        RouterError("x"),
        RouterClosed("the router is closed"),
        ConfigError(["a: x", "b: y"]),
        UnknownVersion("bleu", ["blue"]),
        *(kind("none", version="v2", attempts=1, refused=REFUSED) for kind in UNAVAILABLE),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_goes_to_another_process_and_back(
    error: RouterError, again: Callable[[RouterError], RouterError]
) -> None:
    error.add_note("seen by a worker")
    copied = again(error)
    assert type(copied) is type(error)
    assert (str(copied), copied.args, vars(copied)) == (str(error), error.args, vars(error))
