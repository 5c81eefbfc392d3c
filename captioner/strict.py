"""Check the values of a settings dataclass against the types of its fields, all at once.

The checks are pydantic's, but of pydantic_core alone on standard dataclasses. It imports in a fifth
of the time of pydantic, accepts no text for a number, and leaves the wording of the errors to us.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from annotated_types import Interval
from pydantic_core import SchemaValidator, ValidationError

# Ranges that several settings share.
AtLeastOne: TypeAlias = Annotated[int, Interval(ge=1)]
NotNegative: TypeAlias = Annotated[int, Interval(ge=0)]
Amount: TypeAlias = Annotated[float, Interval(ge=0)]
Positive: TypeAlias = Annotated[float, Interval(gt=0)]
Probability: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
Share: TypeAlias = Annotated[float, Interval(ge=0, lt=1)]

_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_SHOWN = 60  # characters of a wrong value
_also: dict[tuple[type, str], list[object]] = {}  # values added by `allow`


def problems(kind: type, values: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong with each value that its field of `kind` does not allow.

    Other keys are ignored. Types are strict: text is not a number, true is not 1, and 2.0 is not a
    whole number. A whole number is a number, though.
    """
    found = {}
    for name, (validator, rule) in _fields(kind).items():
        if name in values:
            try:
                validator.validate_python(values[name])
            except ValidationError:
                if values[name] in _also.get((kind, name), []):
                    continue
                shown = repr(values[name])
                shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + " ..."
                found[name] = f"is {shown} but must be {rule}"
    return found


def allow(kind: type, name: str, values: Iterable[object]) -> None:
    """Allow further values of a field, such as the name of a decoder added to DECODERS."""
    _also.setdefault((kind, name), []).extend(values)


@cache
def _fields(kind: type) -> dict[str, tuple[SchemaValidator, str]]:
    """Return for each field of a dataclass its validator and its rule in words."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.name: (SchemaValidator(_schema(hints[field.name])), _rule(hints[field.name]))
        for field in dataclasses.fields(kind)
    }


def _schema(hint: Any) -> Any:
    """Return pydantic_core's schema of a type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return {**_schema(arguments[0]), **_bounds(arguments[1])}
    if origin is Literal:
        return {"type": "literal", "expected": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"type": "union", "choices": [_schema(part) for part in arguments]}
    if origin is list:
        return {"type": "list", "items_schema": _schema(arguments[0]), "strict": True}
    if origin is tuple:  # of any length
        items = [_schema(arguments[0])]
        return {"type": "tuple", "items_schema": items, "variadic_item_index": 0, "strict": True}
    if hint is float:
        return {"type": "float", "strict": True, "allow_inf_nan": False}
    if hint in _PLAIN:
        return {"type": hint.__name__, "strict": True}
    return {"type": "is-instance", "cls": hint}


def _rule(hint: Any) -> str:
    """Return what a type allows, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [f"{_BOUNDS[name]} {bound}" for name, bound in _bounds(arguments[1]).items()]
        return f"{_rule(arguments[0])} {' and '.join(bounds)}"
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(_rule(part) for part in arguments)
    if origin in (list, tuple):
        return f"a list, each {_rule(arguments[0])}"
    return _PLAIN.get(hint, f"a {getattr(hint, '__name__', hint)}")


def _bounds(interval: Interval) -> dict[str, Any]:
    return {
        name: getattr(interval, name) for name in _BOUNDS if getattr(interval, name) is not None
    }
