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
    create_model,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from router.core.errors import like_connection_string
from router.core.faults import Fault
from router.core.policies import DirectoryPolicy, HealthPolicy, PoolPolicy, ReadPolicy
from router.core.policy_faults import health_faults, pool_faults
from router.settings.words import MISPLACED, in_words

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from pydantic import GetJsonSchemaHandler, ModelWrapValidatorHandler
    from pydantic.json_schema import JsonSchemaValue

    from router.core.faults import KeyPath


def as_table(data: Any) -> Any:
    """Take a policy, which may be given as a value, for the table of its keys.

    Args:
        data: What is given.

    Returns:
        The table; whatever else was given, as it is.
    """
    return asdict(data) if is_dataclass(data) and not isinstance(data, type) else data


class Table(BaseModel):
    """A table of settings, which reports every fault in it at once, in its final words and without its input."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        serialize_by_alias=True,
        defer_build=True,  # until settings are first read: importing the package alone does not wait for it
    )
    _as_string: ClassVar[str | None] = None  # what a plain string in its place stands for

    @classmethod
    def _prepared(cls, data: Any) -> Any:
        """``data`` as the table it stands for."""
        return as_table(data)

    @classmethod
    def _faults(cls, data: Mapping[str, Any]) -> Iterator[Fault]:  # noqa: ARG003 (for subclasses)
        """What is wrong between the keys of ``data``, whose values need not be valid."""
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        made, faults = cls._read(cls._prepared(data), handler)
        if made is None or faults:
            raise validation_error(cls.__name__, faults)
        return made

    @classmethod
    def _read(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> tuple[Self | None, list[Fault]]:
        """Make the table, or find all that is wrong with it."""
        faults = list(cls._faults(data)) if isinstance(data, Mapping) else []
        try:
            return handler(data), faults
        except ValidationError as error:
            found = [Fault(details["loc"], cls._in_words(details)) for details in error.errors(include_url=False)]
        return None, found + faults

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


def without(data: Any, paths: Iterable[KeyPath]) -> Any:
    """Leave out what could not be read.

    Args:
        data: Tables and lists.
        paths: Where the faults are, with any number of keys below what is there.

    Returns:
        The same without what stands at those places, or else nearest above.
    """
    below: dict[str | int, list[KeyPath]] = {}
    for path in paths:
        if not path:
            return {}
        below.setdefault(path[0], []).append(path[1:])
    if isinstance(data, Mapping):
        return {
            key: without(value, below[key]) if key in below else value
            for key, value in data.items()
            if key not in below or _leads_on(value, below[key])
        }
    return [
        without(value, below[index]) if index in below else value
        for index, value in enumerate(data)
        if index not in below or _leads_on(value, below[index])
    ]


def _leads_on(value: Any, paths: Iterable[KeyPath]) -> bool:
    """Whether each path leads to something in ``value``."""
    keys = range(len(value)) if isinstance(value, (list, tuple)) else value if isinstance(value, Mapping) else ()
    return all(path and path[0] in keys for path in paths)


def apart(faults: Iterable[Fault], known: Collection[Fault]) -> list[Fault]:
    """Leave out the faults that may only follow from others.

    Args:
        faults: What was found once the others were left out.
        known: The others.

    Returns:
        The faults that are neither above nor below one of those.
    """
    paths = {fault.path for fault in known}
    above = {path[:length] for path in paths for length in range(len(path))}
    return [
        fault
        for fault in faults
        if fault.path not in above and not any(fault.path[:length] in paths for length in range(len(fault.path) + 1))
    ]


@cache
def about(described: type) -> Mapping[str, str]:
    """What the ``Attributes:`` of a docstring say of each field; nothing where Python strips docstrings (-OO)."""
    _, _, attributes = (getdoc(described) or "").partition("Attributes:\n")
    found = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).replace("``", "`") for name, text in found}


def table_of(
    policy: Any, check: Callable[[Any], Iterable[Fault]] = lambda _: (), **limits: dict[str, Any]
) -> GetPydanticSchema:
    """Read a table into one of the topology's policies, which alone says its fields, types, defaults and meanings.

    Args:
        policy: The class of the policy.
        check: Finds what is wrong between the policy's values.
        **limits: Arguments of pydantic's ``Field`` for each key that has limits.

    Returns:
        What makes a field of that class such a table.
    """

    @cache  # made at the first use of settings, not when this is imported, and once for all fields that have it
    def model() -> type[Table]:
        types, meanings = get_type_hints(policy), about(policy)
        keys: dict[str, Any] = {
            field.name: (
                types[field.name],
                Field(field.default, description=meanings.get(field.name), **limits.get(field.name, {})),
            )
            for field in fields(policy)
        }
        summary = (policy.__doc__ or "").partition("\n")[0]
        return create_model(policy.__name__, __base__=Table, __doc__=summary, **keys)

    def made(table: Table) -> Any:
        value = policy(**dict(table))
        if faults := list(check(value)):
            raise validation_error(policy.__name__, faults)
        return value

    return GetPydanticSchema(
        lambda _, handler: core_schema.no_info_after_validator_function(
            made,
            handler.generate_schema(model()),
            serialization=core_schema.plain_serializer_function_ser_schema(asdict),
        )
    )


def _no_connection_string(policy: DirectoryPolicy) -> Iterator[Fault]:
    if like_connection_string(policy.table):
        yield Fault(("table",), f"is not a table but {MISPLACED}")


_SECONDS = {"gt": 0}
Pool = Annotated[
    PoolPolicy,
    table_of(
        PoolPolicy,
        pool_faults,
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
        health_faults,
        interval=_SECONDS,
        timeout=_SECONDS,
        cut_after=_SECONDS,
        ban=_SECONDS,
        ban_max=_SECONDS,
    ),
]
Directory = Annotated[
    DirectoryPolicy,
    table_of(DirectoryPolicy, _no_connection_string, table={"min_length": 1}, ttl=_SECONDS, unknown_ttl={"ge": 0}),
]
