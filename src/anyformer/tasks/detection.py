"""Detection of the task that the columns of a data set are for."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from difflib import get_close_matches as close_matches
from itertools import islice
from typing import Any

from anyformer.config import ModelConfig
from anyformer.data.examples.columns import Columns
from anyformer.data.rows import MISSING, Row, find, unknown_field
from anyformer.errors import UserError, nearest, quote
from anyformer.pages.formatting import listed
from anyformer.tasks import TASKS
from anyformer.tasks.task import RowSchema

_FEW = 20
_ROWS, _LABEL = 200, 40
"""Rows by which labels are told from answers, and the longest label in characters."""
_DATA = re.compile(r"-?\d+(\.\d+)?|.{40,}|.* .* .* .*", re.DOTALL)
"""Values that are no name of a column, but a number or a sentence."""
_LISTS = ("messages", "tokens", "tags")
"""Parts that are no texts."""
_NUMBERING = ("", "id", "idx", "index")
"""Columns that only number the rows."""
_CLOSE = 0.75
"""Likeness of two names of which one may be meant by the other, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class DetectedTask:
    """The task of a data set, and the columns of its rows.

    Attributes:
        optional: The columns, in order of preference, that may hold an optional part.
        reason: Why, for people: "because of the columns 'sentence' and 'label'".
    """

    task: str
    schema: RowSchema
    columns: Mapping[str, str]
    optional: Mapping[str, tuple[str, ...]]
    reason: str


def detect_task(
    sample: Mapping[str, Any],
    location: object,
    task: str | None = None,
    columns: Columns | None = None,
    model: Callable[[], ModelConfig] | None = None,
    others: Iterable[Row] = (),
) -> DetectedTask:
    """Detect how rows are to be read.

    Args:
        sample: The values of the first one.
        location: Its name in messages.
        task: Their task; None: the one that follows from the columns.
        columns: The columns whose names are not the usual ones.
        model: Looks up the model that is to learn; by it and other rows a task is suggested where none follows.
        others: More rows.

    Raises:
        UserError: There is no such task or column, or no task follows from the columns.
    """
    if task is not None and task not in TASKS:
        hint = nearest(task, TASKS)
        raise UserError(f"There is no task {quote(task)}: {hint}{'' if hint.endswith('?') else '.'}")
    columns = columns or Columns()
    named = {role: _as_spelled(column, sample) for role, column in columns.by_role().items()}
    for column in named.values():
        if find(sample, _inside_translation(column, sample)) is MISSING:
            line = columns.flags(None, **_suggestion(sample, task, named)[2])
            raise UserError(f"{location} {unknown_field(column, sample, 'column')} Write {line}.")
    for name, schema in _schemas(task):
        match = _match(schema, sample, named)
        if match is not None and schema.fits({part: find(sample, column) for part, column in match.items()}):
            optional = {
                part: (named[part],) if part in named else tuple(_as_spelled(name, sample) for name in names)
                for part, names in schema.optional.items()
            }
            verb = "as asked, with" if task else "because of"
            return DetectedTask(name, schema, match, optional, f"{verb} {_listed(match)}")
    if task is not None and not named and (ordered := TASKS[task].by_order(sample)) is not None:
        schema, match = ordered
        return DetectedTask(task, schema, match, {}, f"as asked, with {_listed(match)}, in this order")
    config = model() if model is not None and task is None and not named else None
    raise _no_task(sample, location, task, columns, config, others)


def _schemas(task: str | None) -> list[tuple[str, RowSchema]]:
    """The schemas of a task, or those of all that are looked for unasked, each with the name of its task."""
    pairs = [(name, schema) for name, each in TASKS.items() if task in (None, name) for schema in each.schemas]
    return sorted((pair for pair in pairs if task or not pair[1].explicit), key=lambda pair: pair[1].rank)


def _match(schema: RowSchema, sample: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, str] | None:
    """The columns of a schema's required parts, each another one; None where one of them is missing."""
    if not schema.has(named):
        return None
    # A text that was named alone is half of a pair only if it has the name of one.
    alone = "text" in named and "second" in schema.required and "second" not in named
    if alone and named["text"] not in schema.required["text"]:
        return None
    match = dict[str, str]()
    for part, names in schema.required.items():
        taken = {*named.values(), *match.values()}
        spelled = (_as_spelled(name, sample) for name in names)
        usual = next((name for name in spelled if name in sample and name not in taken), None)
        column = _inside_translation(named[part], sample) if part in named else usual
        if column is None:
            return None
        match[part] = column
    return match


def _as_spelled(column: str, sample: Mapping[str, Any]) -> str:
    """The column of this name, or the first that is it but for the case of letters; else the name."""
    folded = column.casefold()
    return column if column in sample else next((name for name in sample if name.casefold() == folded), column)


def _inside_translation(column: str, sample: Mapping[str, Any]) -> str:
    """The column, or that of the language of this name."""
    inside = f"translation.{column}"
    return inside if column not in sample and find(sample, inside) is not MISSING else column


def _listed(match: Mapping[str, str]) -> str:
    return f"the column{'s' * (len(match) > 1)} {listed([repr(column) for column in match.values()])}"


def _no_task(
    sample: Mapping[str, Any],
    location: object,
    task: str | None,
    columns: Columns,
    model: ModelConfig | None,
    others: Iterable[Row],
) -> UserError:
    names, named = [str(column)[:60] for column in sample], columns.by_role()
    some = ", ".join(map(repr, names[:_FEW])) + (", ..." if len(names) > _FEW else "")
    has = f"{location} has the column{'s' if len(names) != 1 else ''} {some or 'none'}"
    if task is None and not named and any(_DATA.fullmatch(name) for name in names):
        header = columns.header_flag(len(names))
        return UserError(
            f"{has}, from which no task follows: if the first line is no header, name the columns with {header}."
        )
    name, schema, parts = _suggestion(sample, task, named)
    if model is not None and TASKS[name].labels_texts and not _repeats(parts.get("label", ""), sample, others):
        texts = {column: value for column, value in sample.items() if isinstance(value, str)}
        for each in ("completion", "seq2seq"):
            answer = _suggestion(texts, each, named)
            if TASKS[each].refusal(model, "") is None and "NAME" not in answer[2].values():
                name, schema, parts = answer
    line = columns.flags(name if task is None else None, **parts)
    if task is None:
        misspelt = _misspelt(names)
        advice = f"{misspelt} Or write {line}." if misspelt else f"name the task and its columns, such as {line}."
        return UserError(f"{has}, from which no task follows: {advice}")
    needs = " and ".join(f"{part} ({', '.join(map(repr, usual))})" for part, usual in schema.required.items())
    return UserError(f"{has}, and {task} needs {needs}: say which they are with {line}.")


def _repeats(column: str, sample: Mapping[str, Any], others: Iterable[Row]) -> bool:
    """Whether the values of a column are no texts, or few short ones, as labels are."""
    if not isinstance(sample.get(column), str):
        return True
    values = [str(sample[column])]
    with suppress(UserError):  # a faulty row, which is not what is wrong first
        for row in islice(others, _ROWS):
            values.append(str(row.values.get(column)))
    return 2 * len(set(values)) <= len(values) and max(map(len, values)) <= _LABEL


def _suggestion(
    sample: Mapping[str, Any], task: str | None, named: Mapping[str, str]
) -> tuple[str, RowSchema, dict[str, str]]:
    """The schema that suits a row best with its task, and a column for each of its parts; NAME where none is left."""

    def rank(pair: tuple[str, RowSchema]) -> tuple[tuple[bool | int, ...], str, RowSchema, dict[str, str]]:
        name, schema = pair
        columns, guesses = _likely_columns(schema, sample, named)
        missing = sum(part not in columns for part in schema.required)
        is_blind = len(columns) <= (guesses if missing and task else 0)
        parts = {part: columns.get(part, "NAME") for part in (*schema.required, *named)}
        order = (not schema.has(named), is_blind, missing, schema.suggested < 0, guesses, schema.suggested <= 0)
        return order, name, schema, parts

    roles = {each.name for each in fields(Columns)}
    suitable = (pair for pair in _schemas(task) if pair[1].required.keys() <= roles)
    return min(map(rank, suitable), key=lambda ranked: ranked[0])[1:]


def _likely_columns(
    schema: RowSchema, sample: Mapping[str, Any], named: Mapping[str, str]
) -> tuple[dict[str, str], int]:
    """The columns that were named, that have nearly such a name or a usual one, or whose value suits.

    Returns:
        They, and how many of them only their value speaks for.
    """
    parts = dict.fromkeys((*schema.required, *named))
    columns = {
        part: named[part]
        for part in parts
        if part in named and find(sample, _inside_translation(named[part], sample)) is not MISSING
    }
    left, guesses = {name: value for name, value in sample.items() if name not in columns.values()}, 0
    for by_value in (False, True):
        for part in [part for part in parts if part not in columns]:
            names = (named.get(part, ""), *schema.required.get(part, ()))
            column = _by_value(part, left) if by_value else _close(names, left)
            if column is not None:
                columns[part] = column
                del left[column]
                guesses += by_value
    return columns, guesses


def _close(names: Iterable[str], columns: Iterable[str]) -> str | None:
    """The column that has one of the names, or nearly."""
    first = list(islice(columns, _FEW))
    tries = ((name, cutoff) for cutoff in (1, _CLOSE) for name in names)
    return next((hit for name, cutoff in tries for hit in close_matches(name, first, 1, cutoff)), None)


def _by_value(part: str, values: Mapping[str, Any]) -> str | None:
    """The column whose value is likeliest for a part: the longest text, the shortest label, a list of words."""
    columns = [column for column in values if column not in _NUMBERING]
    lists = [column for column in columns if isinstance(values[column], list)]
    if part in _LISTS:
        return next(iter(lists), None)
    if part in ("label", "score"):
        others = [column for column in columns if column not in lists]
        return min(others, key=lambda column: len(str(values[column])), default=None)
    texts = [column for column in columns if isinstance(values[column], str)]
    if part in ("prompt", "source"):  # a question comes before its answer, however long that is
        return next(iter(texts), None)
    return max(texts, key=lambda column: len(values[column]), default=None)


def _misspelt(columns: Sequence[str]) -> str | None:
    """A question about the first column that is nearly a usual name."""
    schemas = [schema for task in TASKS.values() for schema in task.schemas]
    usual = sorted({name for schema in schemas for names in schema.required.values() for name in names})
    for column in columns[:_FEW]:
        hint = nearest(column, usual)
        if column not in usual and hint.endswith("?"):
            return f"{hint.removesuffix('?')} instead of {quote(column)}?"
    return None
