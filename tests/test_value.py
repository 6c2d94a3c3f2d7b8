"""A value is what a frozen dataclass is."""

from __future__ import annotations

import pickle
from copy import copy, deepcopy
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

import pytest

from router.core.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable


class Point(Value):
    """A point."""

    x: int
    y: float = 0.5
    label: str = field(default="", compare=False)
    key: bytes | None = field(default=None, repr=False)
    kind: ClassVar[str] = "flat"


class Other(Value):
    """Another value with the same fields."""

    x: int
    y: float = 0.5


class Deep(Point):
    """A point with one field more."""

    z: int = 3


class Made(Value):
    """A value with a default that is made."""

    items: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Compiled:
    x: int
    y: float = 0.5
    label: str = field(default="", compare=False)
    key: bytes | None = field(default=None, repr=False)
    kind: ClassVar[str] = "flat"


def test_it_is_shown_and_taken_apart_as_a_dataclass_is() -> None:
    value, compiled = Point(1, 2.0, "here", b"secret"), Compiled(1, 2.0, "here", b"secret")
    assert is_dataclass(value)
    assert repr(value) == repr(compiled).replace("Compiled", "Point") == "Point(x=1, y=2.0, label='here')"
    assert asdict(value) == asdict(compiled)
    assert [each.name for each in fields(value)] == [each.name for each in fields(compiled)]
    assert replace(value, x=5) == Point(5, 2.0, "here", b"secret")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (Point, "misses the argument 'x'"),
        (lambda: Point(1, 2.0, "here", b"", 5), "takes 4 arguments, not 5"),  # type: ignore[call-arg]
        (lambda: Point(1, x=2), "multiple values for argument 'x'"),  # type: ignore[misc]
        (lambda: Point(1, w=2), "unexpected argument 'w'"),  # type: ignore[call-arg]
    ],
)
def test_arguments_are_those_of_its_fields(make: Callable[[], Point], problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        make()


def test_a_default_may_be_made_for_each_object() -> None:
    assert Made().items == []
    assert Made().items is not Made().items
    assert Made([1]).items == [1]


def test_equality_and_hash_are_by_what_is_compared() -> None:
    assert Point(1, label="here") == Point(1, label="there") != Point(2)
    assert hash(Point(1, label="here")) == hash(Point(1, label="there")) != hash(Point(2))
    assert Point(1) != Other(1)
    assert Point(1) != Deep(1) == Deep(1) != Deep(1, z=4)
    assert Point(1) != (1, 0.5)


@pytest.mark.parametrize("name", ["x", "y", "label", "kind", "unknown"])
def test_nothing_of_it_can_be_set_or_deleted(name: str) -> None:
    value: Any = Point(1)
    with pytest.raises(FrozenInstanceError):
        setattr(value, name, 2)
    with pytest.raises(FrozenInstanceError):
        delattr(value, name)


def test_it_can_be_copied_and_pickled() -> None:
    value = Point(1, 2.0, "here", b"secret")
    for same in (copy(value), deepcopy(value), pickle.loads(pickle.dumps(value))):  # noqa: S301 (its own)
        assert asdict(same) == asdict(value)


def test_its_type_hints_are_those_of_its_fields() -> None:
    assert set(get_type_hints(Deep)) == {"x", "y", "label", "key", "kind", "z"}


def test_patterns_match_it_by_position() -> None:
    match Deep(1, 2.0):
        case Deep(x, y, label, key, z):
            assert (x, y, label, key, z) == (1, 2.0, "", None, 3)
        case _:
            pytest.fail("no match")
