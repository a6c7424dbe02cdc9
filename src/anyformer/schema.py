"""The reader of mappings into dataclasses: config files, a stranger's JSON, changes to a config.

A value that does not fit its field's type is refused with the field's dotted name, a name that is not known with the
nearest one that is. Ranges are for each dataclass to check, in its `__post_init__`.
"""

import dataclasses
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from anyformer.errors import UserError, cut, nearest, quote

T = TypeVar("T")


class ConfigError(UserError, ValueError):
    """A config that describes no transformer, or a file that describes no config: the message names the field."""


def lookup(table: Mapping[str, T], name: str, field: str) -> T:
    """The entry of a table that a field names. Raises ConfigError for an unknown name."""
    if name not in table:
        raise ConfigError(f"{field}: {quote(name)} is unknown ({nearest(name, table)}).")
    return table[name]


def change(config: T, changes: Mapping[str, Any], prefix: str = "") -> T:
    """A copy with other values; nested fields by dict or dotted name. `prefix` is the name of the config itself."""
    return dataclasses.replace(cast("Any", config), **typed(type(config), changes, prefix, current=config))


def make(kind: type[T], values: Any, prefix: str = "", *, nulls: bool = False) -> T:
    """A dataclass from nested objects, the inverse of `to_plain`.

    Args:
        kind: The dataclass.
        values: What a file holds: any value.
        prefix: Begins the messages: the file's name, or that of the field around it.
        nulls: Whether null stands for a number that was not finite.

    Raises:
        ConfigError: Something is unknown, missing or misshapen.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix}wants an object, not {quote(values)}.")
    made = typed(kind, cast("Mapping[str, Any]", values), prefix, nulls=nulls)
    for each in dataclasses.fields(cast("Any", kind)):
        if each.name not in made and each.default is each.default_factory:
            raise ConfigError(f"{prefix}{each.name}: is missing.")
    return kind(**made)


def typed(
    kind: type[Any], values: Mapping[str, Any], prefix: str = "", *, current: Any = None, nulls: bool = False
) -> dict[str, Any]:
    """The values of some fields of a dataclass, as the fields' types want them.

    Args:
        current: An instance, whose parts an object of some of their fields changes.

    Raises:
        ConfigError: A field is unknown or misshapen.
    """
    hints = _hints(kind)
    nested: dict[str, Any] = {}
    for dotted, value in values.items():
        name, _, rest = dotted.partition(".")
        if name not in hints:
            raise ConfigError(f"{prefix}{cut(name)}: no such field ({nearest(name, hints)}).")
        part = {rest: value} if rest else value
        if isinstance(part, Mapping) and isinstance(nested.get(name), dict):
            nested[name].update(part)
        else:
            nested[name] = dict(cast("Mapping[str, Any]", part)) if isinstance(part, Mapping) else part
    return {
        name: _value(value, hints[name], f"{prefix}{name}", getattr(current, name, None), nulls)
        for name, value in nested.items()
    }


def check(config: Any, prefix: str = "") -> None:
    """Raise ConfigError for a field of a dataclass that holds something else than its type says.

    A file may say `"false"`, `96.0` or `[]` where a switch or a number is meant; nothing that is computed by it would
    notice at once.
    """
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            check(value, f"{prefix}{name}.")
        else:
            _value(value, hint, f"{prefix}{name}")


def to_plain(value: Any) -> Any:
    """A dataclass as JSON has it. A number that is not finite becomes null."""
    return _finite(dataclasses.asdict(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(each) for name, each in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _value(value: Any, hint: Any, name: str, current: Any = None, nulls: bool = False) -> Any:
    """The value as a type wants it; `current` is what an object of some fields changes."""
    if hint in NAMES:
        if fits(value, hint):
            return value if hint is str or hint is bool else hint(value)
        if hint is float and value is None and nulls:
            return math.nan
        wanted = _LIMITS.get(hint, NAMES[hint]) if type(value) in (int, hint) else NAMES[hint]
        raise ConfigError(f"{name}: wants {wanted}, not {quote(value)}.")
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and type(None) in arguments:
            return None
        *options, last = (option for option in arguments if option is not type(None))
        kind = next((option for option in options if option in NAMES and fits(value, option)), last)
        return _value(value, kind, name, current, nulls)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, cast("type", hint)):
            return value
        if not isinstance(value, Mapping):
            first = dataclasses.fields(hint)[0].name
            raise ConfigError(f"{name}: wants fields of its own (such as {name}.{first}), not {quote(value)}.")
        if current is None:
            return make(cast("type[Any]", hint), value, f"{name}.", nulls=nulls)
        return change(current, cast("Mapping[str, Any]", value), f"{name}.")
    if origin is Literal:
        if not any(value == each and type(value) is type(each) for each in arguments):
            raise ConfigError(f"{name}: {quote(value)} is unknown ({nearest(str(value), map(str, arguments))}).")
        return value
    if origin in (tuple, list, Sequence):
        items = cast("list[Any]", value) if isinstance(value, list | tuple) else [value]
        kinds = arguments if origin is tuple and Ellipsis not in arguments else arguments[:1] * len(items)
        if len(kinds) != len(items):
            raise ConfigError(f"{name}: wants {len(kinds)} values, not {len(items)}.")
        made = [_value(item, each, name, None, nulls) for item, each in zip(items, kinds, strict=True)]
        return made if origin is list else tuple(made)
    if origin not in (dict, Mapping):
        raise TypeError(f"{name}: {hint} is the type of no field that is read")
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}: wants an object, not {quote(value)}.")
    entries = cast("Mapping[str, Any]", value).items()
    return {key: _value(item, arguments[1], name, None, nulls) for key, item in entries}


NAMES: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}
"""Types of values, for people."""
_LIMITS: Mapping[Any, str] = {int: "a whole number below 2^63", float: "a finite number"}
_LARGEST = 1 << 63


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is one of this type's, a whole number also one of `float`'s."""
    if kind is Path:
        return isinstance(value, str | Path) and "\0" not in str(value)
    if kind in (bool, str):
        return isinstance(value, kind)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return False
    return -_LARGEST <= value < _LARGEST if kind is int else abs(value) <= sys.float_info.max


def fits_each(values: Any, kind: Any) -> bool:
    """Whether all items of a list, or all values of an object, are of this type."""
    items = cast("dict[Any, Any]", values).values() if isinstance(values, dict) else values
    return isinstance(values, dict | list) and all(fits(each, kind) for each in items)


def flag(name: str, value: object = True) -> str:
    """The flag of a field on the command line, followed by its value unless that is True."""
    words = shlex.join(map(str, cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,)))
    return f"--{name.replace('_', '-')}" + ("" if value is True else f" {words}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    """The type of each field."""
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in dataclasses.fields(kind)}


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
