"""Which task the columns of a data set are for."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anyformer.data.examples import TASKS, Task
from anyformer.data.examples.columns import SHAPES, Columns, Shape
from anyformer.data.records import MISSING, find, unknown_field
from anyformer.errors import UserError, nearest, quote

_FEW = 20
_DATA = re.compile(r"-?\d+(\.\d+)?|.{40,}|.* .* .* .*", re.DOTALL)
"""What is no name of a column, but a number or a sentence."""
_LABELS = (True, False, 0, 1, "true", "false", "True", "False", "0", "1")
"""Of unpaired preferences."""
_RARE = ("segments", "translation")
"""Kinds of shapes that nobody looks for."""
_SAID = ("label", "labels", "score", "scores")
"""Columns that aren't texts to embed."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the rows of a data set are read.

    Attributes:
        shape: What an example is made of.
        columns: The column of each required part.
        optional: The columns, in order of preference, that may hold an optional part.
        reason: Why, for people: "because of the columns 'sentence' and 'label'".
    """

    shape: Shape
    columns: Mapping[str, str]
    optional: Mapping[str, tuple[str, ...]]
    reason: str

    @property
    def task(self) -> Task:
        """What a model learns from them."""
        return self.shape.task


def detect(columns: Collection[str], sample: Mapping[str, Any]) -> tuple[Task, str]:
    """Say which task a data set is for.

    Args:
        columns: Its columns.
        sample: The values of one row.

    Returns:
        The task, and why: "because of the column 'messages'".

    Raises:
        UserError: No task follows from the columns.
    """
    values = {column: sample.get(column) for column in columns}
    reading = find_reading(values, "The data")
    return reading.task, reading.reason


def find_reading(
    sample: Mapping[str, Any], where: object, task: Task | None = None, columns: Columns | None = None
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
    given = {} if columns is None else columns.given()
    for column in given.values():
        if find(sample, _inside_translation(column, sample)) is MISSING:
            raise UserError(f"{where} {unknown_field(column, sample, 'column')}")
    for shape in SHAPES:
        if task not in (None, shape.task) or (task is None and shape.asked):
            continue
        found = _fit(shape, sample, given)
        if found is not None and _is_meant(shape, found, sample, task):
            verb = "as asked, with" if task else "because of"
            return Reading(shape, found, _optional(shape, given), f"{verb} {_listed(found)}")
    if task == "embed" and not given and (reading := _by_order(sample)):
        return reading
    raise _no_task(sample, where, task, columns or Columns())


def _fit(shape: Shape, sample: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str] | None:
    """The columns of a shape's required parts; None where one of them is missing."""
    if not given.keys() <= shape.required.keys() | shape.optional.keys():
        return None
    found = dict[str, str]()
    for part, names in shape.required.items():
        usual = next((name for name in names if name in sample), None)
        column = _inside_translation(given[part], sample) if part in given else usual
        if column is None:
            return None
        found[part] = column
    return found


def _is_meant(shape: Shape, found: Mapping[str, str], sample: Mapping[str, Any], task: Task | None) -> bool:
    """Whether the values of the columns are such as the shape has, too."""
    values = {part: find(sample, column) for part, column in found.items()}
    if shape.kind == "unpaired":
        return any(values["label"] is each or values["label"] == each for each in _LABELS)
    if shape.kind == "completion":
        return not any(isinstance(value, list) for value in values.values())
    return True


def _optional(shape: Shape, given: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    return {part: (given[part],) if part in given else names for part, names in shape.optional.items()}


def _inside_translation(column: str, sample: Mapping[str, Any]) -> str:
    """A language is a column, too."""
    inside = f"translation.{column}"
    return inside if column not in sample and find(sample, inside) is not MISSING else column


def _by_order(sample: Mapping[str, Any]) -> Reading | None:
    """Texts to embed by the order of their columns, as sentence-transformers takes them."""
    said = next((column for column in sample if column in _SAID), None)
    texts = [column for column, value in sample.items() if isinstance(value, str) and column != said]
    if said is not None and 1 <= len(texts) <= 2:
        found = dict(zip(("text", "second"), texts, strict=False)) | {"label": said}
        shape = Shape("similarity", "embed", {part: (column,) for part, column in found.items()})
    elif len(texts) >= 2:
        anchor, positive, *negatives = texts
        found = {"anchor": anchor, "positive": positive} | {f"negative_{i}": each for i, each in enumerate(negatives)}
        shape = Shape("embed", "embed", {part: (column,) for part, column in found.items()})
    else:
        return None
    return Reading(shape, found, {}, f"as asked, with {_listed(found)}, in this order")


def _listed(found: Mapping[str, str]) -> str:
    *first, last = [repr(column) for column in found.values()]
    return f"the columns {', '.join(first)} and {last}" if first else f"the column {last}"


def _no_task(sample: Mapping[str, Any], where: object, task: Task | None, asked: Columns) -> UserError:
    given = asked.given()
    columns = [str(column)[:60] for column in sample]
    some = ", ".join(map(repr, columns[:_FEW])) + (", ..." if len(columns) > _FEW else "")
    has = f"{where} has the column{'s' if len(columns) != 1 else ''} {some or 'none'}"
    if task is None:
        how = f"name the task and its columns, such as --task classify {asked.ask('text', 'label')}."
        if any(_DATA.fullmatch(column) for column in columns):
            how = "if the first line is no header, write the names of the columns above it."
        how = _misspelt(columns) or how
        return UserError(f"{has}, from which no task follows: {how}")
    shapes = [shape for shape in SHAPES if shape.task == task]

    def distance(shape: Shape) -> tuple[bool, bool, int]:
        missing = sum(not any(name in sample for name in names) for names in shape.required.values())
        return not given.keys() <= shape.required.keys() | shape.optional.keys(), shape.kind in _RARE, missing

    shape = min(shapes, key=distance)
    needs = " and ".join(f"{part} ({', '.join(map(repr, names))})" for part, names in shape.required.items())
    return UserError(f"{has}, and {task} needs {needs}: say which they are with {asked.ask(*shape.required)}.")


def _misspelt(columns: Sequence[str]) -> str | None:
    """A question about the first column that is nearly a usual name."""
    usual = sorted({name for shape in SHAPES for names in shape.required.values() for name in names})
    for column in columns[:_FEW]:
        hint = nearest(column, usual)
        if column not in usual and hint.endswith("?"):
            return f"{hint.removesuffix('?')} instead of {quote(column)}?"
    return None


def _stop(hint: str) -> str:
    return "" if hint.endswith("?") else "."
