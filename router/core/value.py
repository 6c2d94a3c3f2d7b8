"""The base of the frozen values that users are given: dataclasses that cost little to define."""

from __future__ import annotations

from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Value:
    """Makes each of its subclasses a frozen dataclass.

    ``@dataclass(frozen=True)`` compiles six methods for every class, which was a third of what ``import router`` cost.
    Here they are written once, below, and behave the same. To make an object takes longer, so that what every request
    makes or compares is a dataclass of its own.
    """

    if TYPE_CHECKING:  # else `get_type_hints()` of a subclass would read these too
        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # the mark by which `asdict`, `fields` and `replace` go
        _compared: ClassVar[attrgetter[Any]]  # gets the class, and the values of all fields that are compared
        _hashed: ClassVar[attrgetter[Any]]  # likewise
        _order: ClassVar[tuple[str, ...]]  # the fields, as arguments are taken
        _defaults: ClassVar[dict[str, Any]]
        _factories: ClassVar[dict[str, Callable[[], Any]]]  # what makes the other defaults

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclass(init=False, eq=False, repr=False)(cls)
        all_of_them = fields(cls)
        cls._order = tuple(each.name for each in all_of_them)
        cls._defaults = {each.name: each.default for each in all_of_them if each.default is not MISSING}
        cls._factories = {
            each.name: each.default_factory for each in all_of_them if each.default_factory is not MISSING
        }
        compared = [each for each in all_of_them if each.compare]
        cls._compared = attrgetter("__class__", *(each.name for each in compared))
        cls._hashed = attrgetter("__class__", *(each.name for each in compared if each.hash is not False))

    if not TYPE_CHECKING:  # where each class has the arguments of its own

        def __init__(self, *args: object, **kwargs: object) -> None:
            given = dict(zip(self._order, args, strict=False))
            if len(args) > len(given):
                raise TypeError(f"{type(self).__name__}() takes {len(self._order)} arguments, not {len(args)}")
            for name in kwargs:
                if name not in self._order or name in given:
                    problem = "got multiple values for" if name in given else "got an unexpected"
                    raise TypeError(f"{type(self).__name__}() {problem} argument {name!r}")
            values = {**self._defaults, **given, **kwargs}
            for name, factory in self._factories.items():
                if name not in values:
                    values[name] = factory()
            if missing := [name for name in self._order if name not in values]:
                raise TypeError(f"{type(self).__name__}() misses the argument {missing[0]!r}")
            self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return bool(self._compared(self) == self._compared(other))

    def __hash__(self) -> int:
        return hash(self._hashed(self))

    def __repr__(self) -> str:
        shown = ", ".join(f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if each.repr)
        return f"{type(self).__qualname__}({shown})"
