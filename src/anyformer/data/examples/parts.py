"""The parts of an example in a row, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, cast

from anyformer import limits
from anyformer.data.examples import Where
from anyformer.data.records import MISSING, find
from anyformer.data.rows import Row, measure, unknown_field
from anyformer.errors import UserError, quote

_LARGEST = 3e38
"""A number that fits into 32 bits; targets have as many."""


class Parts:
    """The parts of an example in a row; each method raises UserError with the place of what is wrong.

    Args:
        row: The row.
        required: The column of each part that every row has.
        optional: The columns, in order of preference, that may hold an optional part.
    """

    def __init__(
        self, row: Row, required: Mapping[str, str], optional: Mapping[str, Sequence[str]] = MappingProxyType({})
    ) -> None:
        self.where, self.row, self.required, self._optional = row.where, row, required, optional

    def find(self, column: str) -> object:
        """The value of a column; None where there is none."""
        found = find(self.row.values, column)
        return None if found is MISSING else found

    def column(self, part: str) -> str:
        """The column of a part: the first of the possible ones that the row has, if it is optional."""
        if part in self.required:
            return self.required[part]
        names = self._optional.get(part, (part,))
        return next((name for name in names if find(self.row.values, name) not in (MISSING, None)), names[0])

    def has(self, part: str) -> bool:
        """Whether the reading knows the part, and the row has it, not null."""
        known = part in self.required or part in self._optional
        return known and self.get(part) is not None

    def get(self, part: str) -> Any:
        """The value of a part; None where there is none."""
        return self.find(self.column(part))

    def value(self, part: str) -> Any:
        """The value of a part that must be there."""
        column = self.column(part)
        found = find(self.row.values, column)
        if found is MISSING:
            raise UserError(f"{self.where}, {unknown_field(column, self.row.values, 'column')}")
        if found is None:
            raise fault(self.where, f"has nothing in its column {quote(column)}")
        return found

    def text(self, part: str, *, empty: bool = False) -> str:
        """A text; `empty`: whether it may be empty or null, or missing if it is optional."""
        if empty and self.get(part) is None and (part not in self.required or self.column(part) in self.row.values):
            return ""
        column = self.column(part)
        return as_text(self.value(part), self.where, f"its column {quote(column)}", empty=empty)

    def number(self, part: str) -> float:
        """A finite number, which may be written as a text."""
        return as_number(self.value(part), self.where, f"its column {quote(self.column(part))}")

    def items(self, part: str) -> list[Any]:
        """A list that isn't empty, which may be written as JSON."""
        column = self.column(part)
        return as_list(self.value(part), self.where, f"its column {quote(column)}")


def read_label(parts: Parts) -> Any:
    """A label as the row has it: a text, a number, a boolean, or a tuple of texts or whole numbers."""
    place = f"its column {quote(parts.column('label'))}"
    value = parts.value("label")
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(UserError):  # a name may begin like a list, too
            value = from_json(value, parts.where, place)
    if isinstance(value, str):
        return as_text(value, parts.where, place).strip()
    if isinstance(value, list):
        for each in cast("list[object]", value):
            if not isinstance(each, str | int) or isinstance(each, bool) or each == "":
                raise fault(parts.where, f"has {kind_of(each)} in the list of {place}", "labels are names or numbers")
        return tuple(cast("list[str | int]", value))
    if not isinstance(value, bool | int | float):
        raise fault(parts.where, f"has no label in {place}", f"that is {kind_of(value)}")
    return value


def fault(where: Where, what: str, advice: str | None = None) -> UserError:
    """The error for a row."""
    end = "" if advice and advice.endswith("?") else "."
    return UserError(f"{where}, {what}" + (f": {advice}" if advice else "") + end)


def kind_of(value: object) -> str:
    """The name that people give a value of this type."""
    kinds = (
        (str, "a text"),
        (bool, "true or false"),
        (int | float, "a number"),
        (list, "a list"),
        (Mapping, "an object"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), _other(value))


def _other(value: object) -> str:
    return "nothing" if value is None else f"of type {type(value).__name__}"


def as_text(value: object, where: Where, place: str, *, empty: bool = False) -> str:
    """A text, or raise UserError."""
    if not isinstance(value, str):
        raise fault(where, f"has no text in {place}", f"that is {kind_of(value)}")
    if not empty and not value.strip():
        raise fault(where, f"has an empty text in {place}", "fill it in, or leave the row out")
    return value


def as_list(value: object, where: Where, place: str) -> list[Any]:
    """A list that isn't empty, which may be written as JSON, or raise UserError."""
    found = from_json(value, where, place)
    if not isinstance(found, list):
        raise fault(where, f"has no list in {place}", f"that is {kind_of(value)}")
    if not found:
        raise fault(where, f"has an empty list in {place}")
    return cast("list[Any]", found)


def as_object(value: object, where: Where, place: str) -> dict[str, Any]:
    """An object, or raise UserError."""
    if not isinstance(value, dict):
        raise fault(where, f"has no object in {place}", f"that is {kind_of(value)}")
    return cast("dict[str, Any]", value)


def as_number(value: object, where: Where, place: str) -> float:
    """A number, which may be written as a text, or raise UserError."""
    number = number_of(value)
    if number is None:
        own = repr(value[:40]) if isinstance(value, str) else kind_of(value)
        raise fault(where, f"has no number in {place}", f"that is {own}")
    if not abs(number) <= _LARGEST:
        raise fault(where, f"has {number:g} in {place}", "only finite numbers below 3e38 can be learned")
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


def from_json(value: object, where: Where, place: str) -> object:
    """The list or object that a text describes, if it begins like one; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    found: object = limits.parse_json(value, f"{where}: {place}")
    measure({"": found}, where)
    return found
