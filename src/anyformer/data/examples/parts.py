"""The parts of an example in a row, checked."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, cast

from anyformer import limits
from anyformer.data.formats import Location
from anyformer.data.rows import MISSING, Row, find, measure, unknown_field
from anyformer.errors import UserError, quote

NAMED = 'give the names of the labels that a text has, such as ["a", "c"]'
"""Advice on a 0 or 1, true or false for each label."""
_LARGEST = 3e38
"""A number that fits into 32 bits; targets have as many."""


class Parts:
    """The parts of an example in a row; each method raises UserError with the location of what is wrong.

    Args:
        required: The column of each part that every row has.
        optional: The columns, in order of preference, that may hold an optional part.
    """

    def __init__(
        self, row: Row, required: Mapping[str, str], optional: Mapping[str, Sequence[str]] = MappingProxyType({})
    ) -> None:
        self.location, self.row, self.required, self._optional = row.location, row, required, optional

    def find(self, column: str) -> object:
        """The value of a column; None where there is none."""
        value = find(self.row.values, column)
        return None if value is MISSING else value

    def column(self, part: str) -> str:
        """The column of a part: the first of the possible ones that the row has, if it is optional."""
        if part in self.required:
            return self.required[part]
        names = self._optional.get(part, (part,))
        return next((name for name in names if self.find(name) is not None), names[0])

    def has(self, part: str) -> bool:
        """Whether the part is one of these, and the row has it, not null."""
        return (part in self.required or part in self._optional) and self.get(part) is not None

    def get(self, part: str) -> Any:
        """The value of a part; None where there is none."""
        return self.find(self.column(part))

    def value(self, part: str) -> Any:
        """The value of a part that must be there."""
        column = self.column(part)
        value = find(self.row.values, column)
        if value is MISSING:
            raise UserError(f"{self.location}, {unknown_field(column, self.row.values, 'column')}")
        if value is None:
            raise fault(self.location, f"has nothing in its column {quote(column)}")
        return value

    def place(self, part: str) -> str:
        """The column of a part, for messages."""
        return f"its column {quote(self.column(part))}"

    def text(self, part: str, *, empty: bool = False) -> str:
        """A text; `empty`: whether it may be empty or null, or missing if it is optional."""
        if empty and self.get(part) is None and (part not in self.required or self.column(part) in self.row.values):
            return ""
        return as_text(self.value(part), self.location, self.place(part), empty=empty)

    def number(self, part: str) -> float:
        """A finite number, which may be written as a text."""
        return as_number(self.value(part), self.location, self.place(part))

    def items(self, part: str) -> list[Any]:
        """A list that isn't empty, which may be written as JSON."""
        return as_list(self.value(part), self.location, self.place(part))


def read_label(parts: Parts) -> Any:
    """A label as the row has it: a text, a number, a boolean, or a tuple of texts or whole numbers."""
    place, value = parts.place("label"), parts.value("label")
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(UserError):  # a name may begin like a list, too
            value = from_json(value, parts.location, place)
    if isinstance(value, str):
        return as_text(value, parts.location, place).strip()
    if isinstance(value, list):
        for each in cast("list[object]", value):
            if not isinstance(each, str | int) or isinstance(each, bool) or each == "":
                advice = NAMED if isinstance(each, bool) else "labels are names or numbers"
                raise fault(parts.location, f"has {kind_of(each)} in the list of {place}", advice)
        return tuple(cast("list[str | int]", value))
    if not isinstance(value, bool | int | float):
        raise fault(parts.location, f"has no label in {place}", f"that is {kind_of(value)}")
    return value


def fault(location: Location, problem: str, advice: str | None = None) -> UserError:
    """The error for a row."""
    end = "" if advice and advice.endswith("?") else "."
    return UserError(f"{location}, {problem}" + (f": {advice}" if advice else "") + end)


def kind_of(value: object) -> str:
    """The name that people give a value of this type."""
    kinds = (
        (str, "a text"),
        (bool, "true or false"),
        (int | float, "a number"),
        ((list, tuple), "a list"),
        (Mapping, "an object"),
        (type(None), "nothing"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), f"of type {type(value).__name__}")


def as_text(value: object, location: Location, place: str, *, empty: bool = False) -> str:
    """A text, or raise UserError."""
    if not isinstance(value, str):
        raise fault(location, f"has no text in {place}", f"that is {kind_of(value)}")
    if not empty and not value.strip():
        raise fault(location, f"has an empty text in {place}", "fill it in, or leave the row out")
    return value


def as_list(value: object, location: Location, place: str) -> list[Any]:
    """A list that isn't empty, which may be written as JSON, or raise UserError."""
    items = from_json(value, location, place)
    if not isinstance(items, list):
        raise fault(location, f"has no list in {place}", f"that is {kind_of(value)}")
    if not items:
        raise fault(location, f"has an empty list in {place}")
    return cast("list[Any]", items)


def as_object(value: object, location: Location, place: str) -> dict[str, Any]:
    """An object, or raise UserError."""
    if not isinstance(value, dict):
        raise fault(location, f"has no object in {place}", f"that is {kind_of(value)}")
    return cast("dict[str, Any]", value)


def as_number(value: object, location: Location, place: str) -> float:
    """A number, which may be written as a text, or raise UserError."""
    number = number_of(value)
    if number is None:
        actual = repr(value[:40]) if isinstance(value, str) else kind_of(value)
        raise fault(location, f"has no number in {place}", f"that is {actual}")
    if not abs(number) <= _LARGEST:
        raise fault(location, f"has {number:g} in {place}", "only finite numbers below 3e38 can be learned")
    return number


def number_of(value: object) -> float | None:
    """The number that a value is, or spells; None where it does neither."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        return None


def from_json(value: object, location: Location, place: str) -> object:
    """The list or object that a text describes, if it begins like one; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    parsed: object = limits.parse_json(value, f"{location}: {place}")
    measure({"": parsed}, location)
    return parsed
