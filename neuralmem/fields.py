"""Configs from plain values: what the fields of a frozen dataclass may hold, and errors that name the field.

Special: the annotations are the rules, so a field is declared once.
"""

import math
import types
from collections.abc import Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from neuralmem.errors import UserError, nearest


def build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """A config from plain values, refusing names that it does not have; `where` is what its fields are called by."""
    known = {f.name: f for f in fields(cls)}
    for name in values:
        if name not in known:
            raise UserError(f"{where} has no field {name!r}{nearest(name, known)}")
    values = {name: _nested(known[name], value, where) for name, value in values.items()}
    try:
        return cls(**values)
    except TypeError as error:
        missing = [n for n in known if n not in values and f"'{n}'" in str(error)]
        raise UserError(f"{where}.{missing[0]} is missing" if missing else f"{where}: {error}") from None


def _nested(known: Field[Any], value: Any, where: str) -> Any:
    """A field's value, built from plain values where the field is a config itself."""
    part = known.default_factory
    if isinstance(part, type) and is_dataclass(part) and isinstance(value, Mapping):
        return build(part, value, f"{where}.{known.name}")
    return value


def check(where: str, config: Any, positive: tuple[str, ...]) -> None:
    """Refuse a value of the wrong type, and one that must be positive and is not."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _is(value, kind):
            allowed = get_args(kind) if get_origin(kind) is Literal else ()
            raise UserError(f"{where}.{name} is {value!r}; it must be {_describe(kind)}{nearest(value, allowed)}")
        if name in positive and value is not None and not value > 0:
            raise UserError(f"{where}.{name} is {value!r}; it must be positive")


def _is(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_is(value, part) for part in get_args(kind))
    if origin is list:
        return isinstance(value, (list, tuple)) and all(_is(x, get_args(kind)[0]) for x in value)
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(part) for part in get_args(kind))
    if origin is list:
        (part,) = get_args(kind)
        return "a list of names" if part is str else f"a list of which each is {_describe(part)}"
    if is_dataclass(kind):
        return f"a {getattr(kind, '__name__', kind)}"
    names = {int: "an integer", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(kind, str(kind))
