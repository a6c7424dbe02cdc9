"""Which task the columns of a data set are for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches as close_matches
from itertools import islice
from typing import Any

from anyformer.data.examples.columns import Columns
from anyformer.data.rows import MISSING, find, unknown_field
from anyformer.errors import UserError, nearest, quote
from anyformer.tasks import TASKS
from anyformer.tasks.task import Shape

_FEW = 20
_DATA = re.compile(r"-?\d+(\.\d+)?|.{40,}|.* .* .* .*", re.DOTALL)
"""Values that are no name of a column, but a number or a sentence."""
_LISTS = ("messages", "tokens", "tags")
"""Parts that are no texts."""
_NUMBERING = ("", "id", "idx", "index")
"""Columns that only number the rows."""
_CLOSE = 0.75
"""Likeness of two names of which one may be meant by the other, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the rows of a data set are read.

    Attributes:
        task: What a model learns from them.
        shape: What an example is made of.
        columns: The column of each required part.
        optional: The columns, in order of preference, that may hold an optional part.
        reason: Why, for people: "because of the columns 'sentence' and 'label'".
    """

    task: str
    shape: Shape
    columns: Mapping[str, str]
    optional: Mapping[str, tuple[str, ...]]
    reason: str


def find_reading(
    sample: Mapping[str, Any], where: object, task: str | None = None, columns: Columns | None = None
) -> Reading:
    """Find out how rows are to be read.

    Args:
        sample: The values of the first one.
        where: What to call it in a message.
        task: What they are for; None: what follows from the columns.
        columns: Those whose names are not the usual ones.

    Raises:
        UserError: There is no such task or column, or no task follows from the columns.
    """
    if task is not None and task not in TASKS:
        raise UserError(f"There is no task {quote(task)}: {nearest(task, TASKS)}" + _stop(nearest(task, TASKS)))
    given = {} if columns is None else columns.by_role()
    for column in given.values():
        if find(sample, _inside_translation(column, sample)) is MISSING:
            line = (columns or Columns()).flags(None, **_suggestion(sample, task, given)[2])
            raise UserError(f"{where} {unknown_field(column, sample, 'column')} Write {line}.")
    for name, shape in _shapes(task):
        found = _fit(shape, sample, given)
        if found is not None and shape.fits({part: find(sample, column) for part, column in found.items()}):
            verb = "as asked, with" if task else "because of"
            return Reading(name, shape, found, _optional(shape, given), f"{verb} {_listed(found)}")
    if task is not None and not given and (ordered := TASKS[task].by_order(sample)) is not None:
        shape, found = ordered
        return Reading(task, shape, found, {}, f"as asked, with {_listed(found)}, in this order")
    raise _no_task(sample, where, task, columns or Columns())


def _shapes(task: str | None) -> list[tuple[str, Shape]]:
    """The shapes of a task, or those of all that are looked for unasked, each with the name of its task."""
    found = [(name, shape) for name, each in TASKS.items() if task in (None, name) for shape in each.shapes]
    return sorted((pair for pair in found if task or not pair[1].asked), key=lambda pair: pair[1].rank)


def _fit(shape: Shape, sample: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str] | None:
    """The columns of a shape's required parts, each another one; None where one of them is missing."""
    if not given.keys() <= shape.required.keys() | shape.optional.keys():
        return None
    # A text that was named alone is half of a pair only if it has the name of one.
    alone = "text" in given and "second" in shape.required and "second" not in given
    if alone and given["text"] not in shape.required["text"]:
        return None
    found = dict[str, str]()
    for part, names in shape.required.items():
        taken = {*given.values(), *found.values()}
        usual = next((name for name in names if name in sample and name not in taken), None)
        column = _inside_translation(given[part], sample) if part in given else usual
        if column is None:
            return None
        found[part] = column
    return found


def _optional(shape: Shape, given: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    return {part: (given[part],) if part in given else names for part, names in shape.optional.items()}


def _inside_translation(column: str, sample: Mapping[str, Any]) -> str:
    """A language is a column, too."""
    inside = f"translation.{column}"
    return inside if column not in sample and find(sample, inside) is not MISSING else column


def _listed(found: Mapping[str, str]) -> str:
    *first, last = [repr(column) for column in found.values()]
    return f"the columns {', '.join(first)} and {last}" if first else f"the column {last}"


def _no_task(sample: Mapping[str, Any], where: object, task: str | None, asked: Columns) -> UserError:
    columns = [str(column)[:60] for column in sample]
    some = ", ".join(map(repr, columns[:_FEW])) + (", ..." if len(columns) > _FEW else "")
    has = f"{where} has the column{'s' if len(columns) != 1 else ''} {some or 'none'}"
    if task is None and not asked.by_role() and any(_DATA.fullmatch(column) for column in columns):
        return UserError(
            f"{has}, from which no task follows: if the first line is no header, name the columns with "
            f"{asked.header(len(columns))}."
        )
    name, shape, suggested = _suggestion(sample, task, asked.by_role())
    line = asked.flags(name if task is None else None, **suggested)
    if task is None:
        misspelt = _misspelt(columns)
        how = f"{misspelt} Or write {line}." if misspelt else f"name the task and its columns, such as {line}."
        return UserError(f"{has}, from which no task follows: {how}")
    needs = " and ".join(f"{part} ({', '.join(map(repr, names))})" for part, names in shape.required.items())
    return UserError(f"{has}, and {task} needs {needs}: say which they are with {line}.")


def _suggestion(
    sample: Mapping[str, Any], task: str | None, given: Mapping[str, str]
) -> tuple[str, Shape, dict[str, str]]:
    """The shape that suits a row best with its task, and a column for each of its parts; NAME where none is left."""

    def fit(pair: tuple[str, Shape]) -> tuple[tuple[bool | int, ...], str, Shape, dict[str, str]]:
        name, shape = pair
        columns, guessed = _columns_for(shape, sample, given)
        stray = not given.keys() <= shape.required.keys() | shape.optional.keys()
        unnamed = sum(part not in columns for part in shape.required)
        known = len(columns) > (guessed if unnamed and task else 0)
        parts = {part: columns.get(part, "NAME") for part in (*shape.required, *given)}
        return (stray, not known, unnamed, shape.suggested < 0, guessed, shape.suggested <= 0), name, shape, parts

    roles = {each.name for each in fields(Columns)}
    suitable = (pair for pair in _shapes(task) if pair[1].required.keys() <= roles)
    return min(map(fit, suitable), key=lambda found: found[0])[1:]


def _columns_for(shape: Shape, sample: Mapping[str, Any], given: Mapping[str, str]) -> tuple[dict[str, str], int]:
    """The columns that were named, that have nearly such a name or a usual one, or whose value suits; last, how many
    are known by their value only."""
    left, found, guessed = dict(sample), dict[str, str](), 0
    parts = dict.fromkeys((*shape.required, *given))
    for part in parts:
        if part in given and find(sample, _inside_translation(given[part], sample)) is not MISSING:
            found[part] = given[part]
            left.pop(given[part], None)
    for by_value in (False, True):
        for part in [part for part in parts if part not in found]:
            names = (given.get(part, ""), *shape.required.get(part, ()))
            column = _by_value(part, left) if by_value else _close(names, left)
            if column is not None:
                found[part] = column
                del left[column]
                guessed += by_value
    return found, guessed


def _close(names: Iterable[str], columns: Iterable[str]) -> str | None:
    """The column that has one of the names, or nearly."""
    known = list(islice(columns, _FEW))
    tries = ((name, cutoff) for cutoff in (1, _CLOSE) for name in names)
    return next((hit for name, cutoff in tries for hit in close_matches(name, known, 1, cutoff)), None)


def _by_value(part: str, values: Mapping[str, Any]) -> str | None:
    """The column whose value is likeliest for a part: the longest text, the shortest label, a list of words."""
    sizes = {column: len(str(value)) for column, value in values.items() if column not in _NUMBERING}
    lists = [column for column in sizes if isinstance(values[column], list)]
    texts = [column for column in sizes if isinstance(values[column], str)]
    if part in _LISTS:
        return next(iter(lists), None)
    if part in ("label", "score"):
        return min((column for column in sizes if column not in lists), key=lambda column: sizes[column], default=None)
    return max(texts, key=lambda column: sizes[column], default=None)


def _misspelt(columns: Sequence[str]) -> str | None:
    """A question about the first column that is nearly a usual name."""
    shapes = [shape for task in TASKS.values() for shape in task.shapes]
    usual = sorted({name for shape in shapes for names in shape.required.values() for name in names})
    for column in columns[:_FEW]:
        hint = nearest(column, usual)
        if column not in usual and hint.endswith("?"):
            return f"{hint.removesuffix('?')} instead of {quote(column)}?"
    return None


def _stop(hint: str) -> str:
    return "" if hint.endswith("?") else "."
