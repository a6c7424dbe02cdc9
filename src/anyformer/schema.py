"""Frozen dataclasses within dataclasses: made from plain values, changed field by field, and compared.

What does not fit is refused with the field's dotted name and, for a name that is not known, the nearest one that is.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from anyformer.errors import UserError, nearest

T = TypeVar("T")


class ConfigError(UserError, ValueError):
    """A config that describes no transformer: the message names the field and the reason."""


def lookup(table: Mapping[str, T], name: str, field: str) -> T:
    """The entry of a table that a field names. Raises ConfigError for an unknown name."""
    if name not in table:
        raise ConfigError(f"{field}: {name!r} is unknown ({nearest(name, table)}).")
    return table[name]


def change(config: T, changes: Mapping[str, Any], prefix: str) -> T:
    """A copy with other values; nested fields by dict or dotted name. `prefix` is the name of the config itself."""
    hints = get_type_hints(type(config))
    values: dict[str, Any] = {}
    for name, value in _nested(changes).items():
        if name not in hints:
            raise ConfigError(f"{prefix}{name}: no such field ({nearest(name, list(hints))}).")
        values[name] = _coerce(value, hints[name], f"{prefix}{name}", getattr(config, name))
    return dataclasses.replace(cast("Any", config), **values)


def make(kind: type[T], values: Mapping[str, Any], prefix: str) -> T:
    """A config from nested dicts."""
    hints, values = get_type_hints(kind), _nested(values)
    for name in values:
        if name not in hints:
            raise ConfigError(f"{prefix}{name}: no such field ({nearest(name, list(hints))}).")
    made = {name: _coerce(value, hints[name], f"{prefix}{name}", None) for name, value in values.items()}
    required = [f.name for f in dataclasses.fields(cast("Any", kind)) if f.default is f.default_factory]
    missing = [name for name in required if name not in made]
    if missing:
        raise ConfigError(f"{prefix}{missing[0]}: is missing.")
    return kind(**made)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as dicts of the parts that they begin with."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        head, _, rest = name.partition(".")
        part = {rest: value} if rest else value
        merges = isinstance(part, Mapping) and isinstance(made.get(head), dict)
        made[head] = {**made[head], **cast("Mapping[str, Any]", part)} if merges else part
    return made


def _coerce(value: Any, hint: Any, name: str, current: Any) -> Any:
    """The value as the field's type wants it; `current` is what a partial dict changes."""
    if get_origin(hint) in (Union, UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        hint = next(option for option in options if option is not type(None))
    if dataclasses.is_dataclass(hint):
        if isinstance(value, cast("type", hint)):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"{name}: wants fields of its own (such as {name}.{next(iter(get_type_hints(hint)))}), not "
                f"{value!r:.60}."
            )
        fields = cast("Mapping[str, Any]", value)
        if current is None:
            return make(cast("type[Any]", hint), fields, f"{name}.")
        return change(current, fields, f"{name}.")
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{name}: {value!r:.60} is unknown ({nearest(str(value), get_args(hint))}).")
        return value
    if get_origin(hint) is tuple:
        return tuple(cast("list[int]", value)) if isinstance(value, list | tuple) else (value,)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{name}: wants {hint.__name__}, not {value!r:.60}.")
    return value


def check_numbers(config: Any, prefix: str) -> None:
    """Raise ConfigError for a field that should hold a whole number, a number or a name and holds something else.

    A file may say `true`, `96.0` or `[]` where a number is meant; nothing that is computed by it would notice at once.
    """
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            check_numbers(value, f"{prefix}{name}.")
        elif value is not None or type(None) not in hint:
            for part in cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,):
                wanted = next((text for kind, text in _WANTED.items() if kind in hint and not _is(part, kind)), None)
                if wanted is not None:
                    raise ConfigError(f"{prefix}{name}: wants {wanted}, not {repr(part)[:40]}.")


_WANTED: Mapping[type, str] = {
    int: "a whole number of less than 19 digits",
    float: "a finite number",
    str: "a name",
}


def _is(value: Any, kind: type) -> bool:
    if kind is str:
        return isinstance(value, str)
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18
    return whole or (kind is float and isinstance(value, float) and math.isfinite(value))


@cache
def _hints(kind: type) -> dict[str, tuple[Any, ...]]:
    """The types that each field may have; of a tuple, those of its items."""
    return {name: get_args(hint) or (hint,) for name, hint in get_type_hints(kind).items()}


def differences(a: Any, b: Any, prefix: str) -> list[tuple[str, tuple[Any, Any]]]:
    """The fields in which two configs of one kind differ, by dotted name, in the order that they are declared in."""
    found: list[tuple[str, tuple[Any, Any]]] = []
    for f in dataclasses.fields(a):
        left, right = getattr(a, f.name), getattr(b, f.name)
        if left == right:
            continue
        if dataclasses.is_dataclass(left) and dataclasses.is_dataclass(right):
            found += differences(left, right, f"{prefix}{f.name}.")
        else:
            found.append((f"{prefix}{f.name}", (left, right)))
    return found
