"""The reader of mappings into dataclasses: config files, a stranger's JSON, arguments, changes to a config.

A value that does not fit its field's type is refused with the field's dotted name, a name that is not known with the
nearest one that is. A type may have a `Rule` for its values: ``Annotated[int, Rule(...)]``.
"""

import dataclasses
import math
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from anyformer.errors import UserError, cut, nearest, quote

T = TypeVar("T")


class ConfigError(UserError, ValueError):
    """A config that describes no transformer, or a file that describes no config: the message names the field."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A condition on a value, and the words for one that breaks it, as in "must be positive"."""

    holds: Callable[[Any], bool]
    words: str


@dataclasses.dataclass(frozen=True)
class Section:
    """The section of a help in which a field has its flag."""

    title: str


class Checked:
    """A dataclass that is checked when it is made: each field by its type, and what depends on several of them.

    Raises:
        ConfigError: Something is misshapen, or makes no sense; the message begins with the name of the field.
    """

    prefix: ClassVar[str] = ""

    def __init_subclass__(cls, part: str = "") -> None:
        """Set the name that a class has as a part of another one, for messages."""
        cls.prefix = f"{part}." if part else ""

    def __post_init__(self) -> None:
        check(self, self.prefix)
        for fault in self._faults():
            raise ConfigError(f"{self.prefix}{fault}.")

    def _faults(self) -> Iterator[str]:
        """Yield a field and what is wrong with it, for each combination of fields that makes no sense."""
        yield from ()


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
        values: The content of a file: any value.
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
    kind: type[Any],
    values: Mapping[str, Any],
    prefix: str = "",
    *,
    current: Any = None,
    nulls: bool = False,
    from_text: bool = False,
) -> dict[str, Any]:
    """The values of some fields of a dataclass, as the fields' types want them.

    Args:
        current: An instance, whose parts an object of some of their fields changes.
        nulls: As for `make`.
        from_text: Whether a text may stand for a value of another type, see `parse_text`.

    Raises:
        ConfigError: A field is unknown or misshapen.
    """
    types = hints(kind)
    nested: dict[str, Any] = {}
    for dotted, value in values.items():
        name, _, rest = dotted.partition(".")
        if name not in types:
            raise ConfigError(f"{prefix}{cut(name)}: no such field ({nearest(name, types)}).")
        value = parse_text(value, types[name]) if from_text and isinstance(value, str) else value
        part = {rest: value} if rest else value
        if isinstance(part, Mapping) and isinstance(nested.get(name), dict):
            nested[name].update(part)
        else:
            nested[name] = dict(cast("Mapping[str, Any]", part)) if isinstance(part, Mapping) else part
    return {
        name: _value(value, types[name], f"{prefix}{name}", getattr(current, name, None), nulls)
        for name, value in nested.items()
    }


def check(config: Any, prefix: str = "") -> None:
    """Raise ConfigError for a field of a dataclass that holds something else than its type says.

    A file may say `"false"`, `96.0` or `[]` where a switch or a number is meant; nothing that is computed by it would
    notice at once.
    """
    for name, hint in hints(type(config)).items():
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


def parse_text(text: str, hint: Any) -> Any:
    """The value that a text stands for where a type is wanted, such as 1000 for "1e3"; the text if it is none."""
    for kind in _options(hint):
        if kind is NoneType and text == "None":
            return None
        if kind in (int, float, Path):
            with suppress(ValueError):
                return kind(float(text)) if kind is int and re.fullmatch(r"\d+e\d{1,2}", text) else kind(text)
        for choice in get_args(kind) if get_origin(kind) is Literal else ():
            if text == str(choice):
                return choice
    return text


def as_type(text: str, hint: Any) -> Any:
    """The value of a type that a text stands for. Raises ConfigError where it is none, without a name before it."""
    try:
        return _value(parse_text(text, hint), hint, "")
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix(": ")) from None


def _options(hint: Any) -> list[Any]:
    """The types that a value may have, without their rules."""
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return [kind for each in get_args(hint) for kind in _options(each)] if _is_union(hint) else [hint]


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _value(value: Any, hint: Any, name: str, current: Any = None, nulls: bool = False) -> Any:
    """The value as a type wants it; `current` is what an object of some fields changes."""
    if hint in NAMES:
        if fits(value, hint):
            return value if hint is str or hint is bool else hint(value)
        if hint is float and value is None and nulls:
            return math.nan
        expected = _LIMITS.get(hint, NAMES[hint]) if type(value) in (int, hint) else NAMES[hint]
        raise ConfigError(f"{name}: wants {expected}, not {quote(value)}.")
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        made = _value(value, arguments[0], name, current, nulls)
        for rule in arguments[1:]:
            if isinstance(rule, Rule) and made is not None and not rule.holds(made):
                raise ConfigError(f"{name}: {rule.words}, not {quote(made)}.")
        return made
    if _is_union(hint):
        if value is None and NoneType in arguments:
            return None
        *options, last = (option for option in arguments if option is not NoneType)
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
def hints(kind: Any) -> dict[str, Any]:
    """The type of each field of a dataclass, with its annotations."""
    types = get_type_hints(kind, include_extras=True)
    return {each.name: types[each.name] for each in dataclasses.fields(kind)}


def unknown_fields(config: Any, known: Collection[str], prefix: str = "") -> list[str]:
    """The fields, by dotted name, that have another value than their default and are not known.

    Args:
        known: Dotted names; that of a part stands for all of its fields.
    """
    unknown: list[str] = []
    for each in dataclasses.fields(config):
        name, value = f"{prefix}{each.name}", getattr(config, each.name)
        if name in known:
            continue
        if dataclasses.is_dataclass(value) and any(other.startswith(f"{name}.") for other in known):
            unknown += unknown_fields(value, known, f"{name}.")
        elif value != (each.default_factory() if callable(each.default_factory) else each.default):
            unknown.append(name)
    return unknown


def differences(a: Any, b: Any, prefix: str) -> list[tuple[str, tuple[Any, Any]]]:
    """The fields in which two configs of one kind differ, by dotted name, in the order that they are declared in."""
    pairs: list[tuple[str, tuple[Any, Any]]] = []
    for f in dataclasses.fields(a):
        left, right = getattr(a, f.name), getattr(b, f.name)
        if left == right:
            continue
        if dataclasses.is_dataclass(left) and dataclasses.is_dataclass(right):
            pairs += differences(left, right, f"{prefix}{f.name}.")
        else:
            pairs.append((f"{prefix}{f.name}", (left, right)))
    return pairs
