"""Dataclasses as JSON has them, and back: what a stranger wrote is read by the types of the fields."""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from anyformer.errors import UserError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """A dataclass as JSON has it. A number that is not finite becomes null."""
    return _finite(dataclasses.asdict(value))


def from_plain(kind: type[T], values: Any, where: str) -> T:
    """The inverse of `to_plain`. Raises UserError, which begins with `where`, for what is missing or misshapen."""
    return _read(kind, values, where)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(name): _finite(each) for name, each in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in cast("list[Any]", value)]
    return value


def _read(kind: type[T], values: Any, where: str) -> T:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}wants an object, not {repr(values)[:40]}.")
    given, hints = cast("Mapping[str, Any]", values), get_type_hints(kind)
    fields = dataclasses.fields(cast("Any", kind))
    for each in fields:
        if each.name not in given and each.default is each.default_factory:
            raise UserError(f"{where}{each.name} is missing.")
    known = {name: _value(hints[name], value, f"{where}{name} ") for name, value in given.items() if name in hints}
    return kind(**known)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (types.UnionType,):
        return None if value is None else _value(arguments[0], value, where)
    if dataclasses.is_dataclass(hint):
        return _read(cast("type[Any]", hint), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}wants a list, not {repr(value)[:40]}.")
        items = cast("list[Any]", value)
        kinds = arguments[:1] * len(items) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(items):
            raise UserError(f"{where}wants {len(kinds)} values, not {len(items)}.")
        return tuple(_value(kind, item, where) for kind, item in zip(kinds, items, strict=True))
    if origin in (dict, Mapping, list):
        if not isinstance(value, list if origin is list else dict):
            raise UserError(f"{where}wants {'a list' if origin is list else 'an object'}, not {repr(value)[:40]}.")
        if isinstance(value, dict):
            inner = cast("dict[str, Any]", value)
            return {name: _value(arguments[1], item, where) for name, item in inner.items()}
        return [_value(arguments[0], item, where) for item in cast("list[Any]", value)]
    if hint is Any:
        return value
    if hint is float:
        if value is None:  # it was not finite
            return math.nan
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"{where}wants {getattr(hint, '__name__', hint)}, not {repr(value)[:40]}.")
