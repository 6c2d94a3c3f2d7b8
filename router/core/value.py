"""The base of the frozen values that users are given: dataclasses that cost little to define."""

from __future__ import annotations

from dataclasses import Field, FrozenInstanceError, dataclass, field, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Value:
    """Makes each of its subclasses a frozen dataclass.

    ``@dataclass(frozen=True)`` compiles six methods for every class, which was a third of what ``import router`` cost.
    Here only ``__init__`` is; the others are written once, below, and behave the same. To make an object takes longer,
    so that what every request makes or compares is a dataclass of its own.
    """

    if TYPE_CHECKING:  # else `get_type_hints()` of a subclass would read these too
        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # the mark by which `asdict`, `fields` and `replace` go
        _names: ClassVar[frozenset[str]]
        _compared: ClassVar[attrgetter[Any]]  # gets the class, and the values of all fields that are compared
        _hashed: ClassVar[attrgetter[Any]]  # likewise

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclass(eq=False, repr=False)(cls)
        cls._names = frozenset(each.name for each in fields(cls))
        compared = [each for each in fields(cls) if each.compare]
        cls._compared = attrgetter("__class__", *(each.name for each in compared))
        cls._hashed = attrgetter("__class__", *(each.name for each in compared if each.hash is not False))

    def __setattr__(self, name: str, value: object) -> None:
        if name in self.__dict__ or name not in self._names:  # else this is __init__(), or a copy
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        object.__setattr__(self, name, value)

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
