"""What all tables of the settings have in common: every fault in them is told at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from inspect import getdoc
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from router.core.policies import DirectoryPolicy, HealthPolicy, PoolPolicy, ReadPolicy
from router.settings.words import Fault, in_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic import GetJsonSchemaHandler, ModelWrapValidatorHandler
    from pydantic.json_schema import JsonSchemaValue


class Table(BaseModel):
    """A table of settings, which reports every fault in it at once, in its final words and without its input."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        serialize_by_alias=True,
        defer_build=True,  # until settings are first read: whoever only imports the package does not wait for it
    )
    _as_string: ClassVar[str | None] = None  # what a plain string in its place stands for

    @classmethod
    def _prepared(cls, data: Any) -> Any:
        """``data`` as the table it stands for."""
        return asdict(data) if is_dataclass(data) and not isinstance(data, type) else data

    @classmethod
    def _faults(cls, data: Mapping[str, Any]) -> Iterator[Fault]:  # noqa: ARG003 (for subclasses)
        """What is wrong between the keys of ``data``, whose values need not be valid."""
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        data = cls._prepared(data)
        faults = list(cls._faults(data)) if isinstance(data, Mapping) else []
        try:
            made = handler(data)
        except ValidationError as error:
            faults = [(details["loc"], cls._in_words(details)) for details in error.errors(include_url=False)] + faults
        if faults:
            raise validation_error(cls.__name__, faults)
        return made

    @classmethod
    def _keys(cls) -> frozenset[str]:
        return frozenset(field.alias or name for name, field in cls.model_fields.items())

    @classmethod
    def _in_words(cls, details: Any) -> str:
        return in_words(details, cls._keys(), cls._as_string)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler, /
    ) -> JsonSchemaValue:
        found = handler.resolve_ref_schema(handler(schema))
        if cls._as_string:
            table = dict(found)
            found.clear()
            found["anyOf"] = [
                {"type": "string", "description": f"{cls._as_string[0].upper()}{cls._as_string[1:]}."},
                table,
            ]
        return found


def validation_error(title: str, faults: Iterable[Fault]) -> ValidationError:
    """Make one error of faults that are in words already.

    Args:
        title: The table.
        faults: What is wrong in it.

    Returns:
        The error to raise.
    """
    return ValidationError.from_exception_data(
        title,
        [
            InitErrorDetails(type=PydanticCustomError("in_words", "{text}", {"text": text}), loc=path, input=None)
            for path, text in faults
        ],
        hide_input=True,
    )


@cache
def about(described: type) -> Mapping[str, str]:
    """What the ``Attributes:`` of a docstring say of each field; nothing where Python strips docstrings (-OO)."""
    _, _, attributes = (getdoc(described) or "").partition("Attributes:\n")
    found = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).replace("``", "`") for name, text in found}


def table_of(policy: Any, *, ascending: tuple[str, str] | None = None, **limits: dict[str, Any]) -> GetPydanticSchema:
    """Reads a table into one of topology's policies, which alone says its fields, types, defaults and meanings."""
    types = get_type_hints(policy)
    keys: dict[str, Any] = {
        field.name: (
            types[field.name],
            Field(field.default, description=about(policy).get(field.name), **limits.get(field.name, {})),
        )
        for field in fields(policy)
    }
    order = {"ascending": _ascending(*ascending)} if ascending else {}
    model = create_model(
        policy.__name__,
        __base__=Table,
        __doc__=(policy.__doc__ or "").partition("\n")[0],
        __validators__=order,
        **keys,
    )
    return GetPydanticSchema(
        lambda _, handler: core_schema.no_info_after_validator_function(
            lambda table: policy(**dict(table)),
            handler.generate_schema(model),
            serialization=core_schema.plain_serializer_function_ser_schema(asdict),
        )
    )


def _ascending(low: str, high: str) -> Any:
    def check(value: float, info: ValidationInfo) -> float:
        if (least := info.data.get(low, value)) > value:
            raise ValueError(f"must be at least {low}, which is {least}; it is {value}")
        return value

    return field_validator(high)(check)


_SECONDS = {"gt": 0}
Pool = Annotated[
    PoolPolicy,
    table_of(
        PoolPolicy,
        ascending=("min_size", "max_size"),
        min_size={"ge": 0},
        max_size={"ge": 1},
        timeout=_SECONDS,
        connect_timeout={"ge": 2},
        max_waiting={"ge": 0},
        max_idle=_SECONDS,
        max_lifetime=_SECONDS,
        max_unused=_SECONDS,
    ),
]
Read = Annotated[
    ReadPolicy,
    table_of(ReadPolicy, max_lag={"ge": 0}, max_lag_bytes={"ge": 0}, catch_up={"ge": 0}),
]
Health = Annotated[
    HealthPolicy,
    table_of(
        HealthPolicy,
        ascending=("ban", "ban_max"),
        interval=_SECONDS,
        timeout=_SECONDS,
        cut_after=_SECONDS,
        ban=_SECONDS,
        ban_max=_SECONDS,
    ),
]
Directory = Annotated[
    DirectoryPolicy,
    table_of(DirectoryPolicy, table={"min_length": 1}, ttl=_SECONDS, unknown_ttl={"ge": 0}),
]
