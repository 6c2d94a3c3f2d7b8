"""The base of the frozen values that users are given: dataclasses that cost little to define."""

from __future__ import annotations

from dataclasses import Field, FrozenInstanceError, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Value:
    """Makes each of its subclasses a frozen dataclass.

    ``@dataclass(frozen=True)`` compiles six methods for every class, which was a third of what ``import router`` cost.
    Here only ``__init__`` is; the others are written once, below, and behave the same.
    """

    _names: ClassVar[tuple[str, ...]]
    _compared: ClassVar[tuple[str, ...]]
    if TYPE_CHECKING:  # the mark of a dataclass, so that `asdict`, `fields` and `replace` take it
        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclass(eq=False, repr=False)(cls)
        cls._names = tuple(each.name for each in fields(cls))
        cls._compared = tuple(each.name for each in fields(cls) if each.compare)

    def __setattr__(self, name: str, value: object) -> None:
        if name in self.__dict__ or name not in self._names:  # else this is __init__(), or a copy
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def _values(self) -> list[object]:
        return [getattr(self, name) for name in self._compared]

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self is other or self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), *self._values()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if each.repr)
        return f"{type(self).__qualname__}({shown})"
