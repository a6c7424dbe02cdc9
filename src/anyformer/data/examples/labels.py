"""Labels, tags and scores: what those of a whole data set mean."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from anyformer.data.examples import ClassifyExample, EmbedExample, TagExample, Where
from anyformer.data.examples.parts import as_number, fault, number_of
from anyformer.errors import UserError, quote

LabelKind = Literal["single", "multiple", "regression"]
"""Kind of labels of a text: one, several, or a number."""

_MANY = 20
"""Examples from which on labels that hardly repeat are no classes."""
_STARS = 5.0
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels and their meaning.

    Attributes:
        kind: One label, several labels, or a number; None: it isn't that of a text that is classified.
        names: Of the labels, in the order of their numbers: that of the file, numbers by value, others sorted; ()
            for numbers to be predicted.
        note: What they are and why, for people.
    """

    kind: LabelKind | None
    names: tuple[str, ...]
    note: str


def settle_labels(
    examples: Sequence[ClassifyExample],
    kind: LabelKind | None = None,
    known: Sequence[str] | None = None,
    classes: Sequence[str] = (),
) -> tuple[list[ClassifyExample], Labels]:
    """Make names and numbers of labels that are as the rows have them.

    Numbers of which one has decimals are to be predicted, others are classes; so are numbers that are written as texts.

    Args:
        examples: At least one.
        kind: What is said about a text; None: what follows from the labels.
        known: The names of the labels there are, such as those of a model, which whole numbers may stand for; None:
            all that occur.
        classes: The names that the files have for numbers of classes.

    Raises:
        UserError: Labels are of different types, unknown, or not finite.
    """
    raw = cast("list[Any]", [example.label for example in examples])
    wheres = [example.where for example in examples]
    _check_types(raw, wheres)
    _check_pairs(examples)
    if isinstance(raw[0], tuple):
        if kind not in (None, "multiple"):
            raise fault(wheres[0], f"has a list of labels, and {kind} labels were asked for")
        values, labels = _several(raw, wheres, known, classes)
    elif kind == "regression" or (kind is None and known is None and not classes and _has_decimals(raw, wheres)):
        numbers = [as_number(label, where, "its label") for label, where in zip(raw, wheres, strict=True)]
        note = f"numbers from {min(numbers):g} to {max(numbers):g}"
        why = "as asked" if kind else "as some have decimals"
        values, labels = list[Any](numbers), Labels("regression", (), f"{note} to be predicted, {why}")
    else:
        named = _names_of_numbers(raw, wheres) if not classes else [_name(label) for label in raw]
        if kind == "multiple":
            values, labels = _several([(name,) for name in named], wheres, known, classes)
        else:
            values, labels = _single(named, wheres, known, classes)
    return [replace(example, label=value) for example, value in zip(examples, values, strict=True)], labels


def settle_tags(
    examples: Sequence[TagExample], known: Sequence[str] | None = None, classes: Sequence[str] = ()
) -> tuple[list[TagExample], Labels]:
    """Make names of tags that are as the rows have them; the arguments are those of `settle_labels`.

    Raises:
        UserError: Tags are texts and numbers, or unknown.
    """
    given = cast("list[Sequence[object]]", [example.tags for example in examples])
    is_text = isinstance(given[0][0], str)
    found = set[str]()
    for example, tags in zip(examples, given, strict=True):
        if any(isinstance(tag, str) != is_text for tag in tags):
            raise fault(example.where, "has texts as tags, and the rows before numbers, or the other way round")
        found.update(map(str, tags))
    names = tuple(known) if known is not None else _ordered(found, classes)
    name_of = _names_that_are_known(names, "tag")
    made = [
        replace(example, tags=tuple(name_of(str(tag), example.where) for tag in example.tags)) for example in examples
    ]
    return made, Labels(None, names, f"{_count(names, 'tag')}: {_some(names)}")


def settle_embeddings(
    examples: Sequence[EmbedExample], known: Sequence[str] | None = None
) -> tuple[list[EmbedExample], Labels]:
    """Make scores, or names of classes, of scores and labels that are as the rows have them.

    Args:
        examples: At least one.
        known: The names of the classes there are; None: all that occur.

    Returns:
        The examples, and the names of classes.

    Raises:
        UserError: Examples have different parts, unknown classes, or scores of an unknown range.
    """
    count = len(examples[0].texts)
    for example in examples:
        if len(example.texts) != count:
            raise fault(example.where, f"has {len(example.texts)} texts, and the rows before have {count}")
    wheres = [example.where for example in examples]
    if examples[0].score is not None:
        return _scored(examples, [cast("float", example.score) for example in examples])
    if examples[0].label is None:
        kinds = {2: "pairs", 3: "triplets"}
        note = kinds.get(count, f"anchors with one text like them and {count - 2} unlike them")
        return list(examples), Labels(None, (), note)
    raw = cast("list[Any]", [example.label for example in examples])
    _check_types(raw, wheres)
    if count == 2 and _has_decimals(raw, wheres):
        return _scored(
            examples, [as_number(label, where, "its label") for label, where in zip(raw, wheres, strict=True)]
        )
    values, labels = _single(_names_of_numbers(raw, wheres), wheres, known, ())
    made = [replace(example, label=value) for example, value in zip(examples, values, strict=True)]
    return made, replace(labels, kind=None)


def check_learnable(labels: Sequence[object], where: Where, *, named: bool = True) -> None:
    """Refuse labels from which nothing can be learned.

    Args:
        labels: Those of all examples.
        where: The place of the first one.
        named: Whether a list of names says which labels there are, however seldom each occurs.

    Raises:
        UserError: They are all the same, or too many to be classes.
    """
    counts = Counter(labels)
    if len(counts) == 1:
        only = "missing" if labels[0] == () else quote(labels[0])
        raise UserError(f"{where.path}: all labels are {only}, so there is nothing to learn.")
    if not named and len(labels) >= _MANY and len(counts) > len(labels) / 2:
        raise UserError(
            f"{where.path}: there are {len(counts):,} different labels in {len(labels):,} examples, which are too many "
            "for classes: name another column, or say that numbers are to be predicted."
        )


def _scored(examples: Sequence[EmbedExample], scores: Sequence[float]) -> tuple[list[EmbedExample], Labels]:
    low, high = min(scores), max(scores)
    note = f"scores from {low:g} to {high:g}"
    scale = 1.0
    if high > 1 or low < -1:
        scale = _STARS
        note += ", divided by 5"
        if low < 0 or high > _STARS:
            worst = examples[scores.index(high if high > _STARS else low)].where
            raise fault(
                worst,
                f"has a score of a range that isn't known, as scores go from {low:g} to {high:g}",
                "they must be from 0 to 1, from -1 to 1, or from 0 to 5",
            )
    pairs = zip(examples, scores, strict=True)
    return [replace(example, score=score / scale, label=None) for example, score in pairs], Labels(None, (), note)


def _single(
    named: Sequence[str], wheres: Sequence[Where], known: Sequence[str] | None, classes: Sequence[str]
) -> tuple[list[Any], Labels]:
    names = tuple(known) if known is not None else _ordered(named, classes)
    name_of = _names_that_are_known(names)
    return [*map(name_of, named, wheres)], Labels("single", names, f"{_count(names, 'label')}: {_some(names)}")


def _several(
    raw: Sequence[tuple[str | int, ...]],
    wheres: Sequence[Where],
    known: Sequence[str] | None,
    classes: Sequence[str],
) -> tuple[list[Any], Labels]:
    if _is_indicator(raw):
        # A 1 for each label that a text has.
        raw = [tuple(index for index, is_one in enumerate(row) if is_one) for row in raw]
        classes = classes or tuple(map(str, range(1 + max((max(row, default=0) for row in raw), default=0))))
    is_text = next((isinstance(row[0], str) for row in raw if row), True)
    for row, where in zip(raw, wheres, strict=True):
        if any(isinstance(each, str) != is_text for each in row):
            raise fault(where, "has texts as labels, and the rows before numbers, or the other way round")
    found = {str(each) for row in raw for each in row}
    names = tuple(known) if known is not None else _ordered(found, classes)
    name_of = _names_that_are_known(names)
    values = [
        tuple(dict.fromkeys(name_of(str(each), where) for each in row)) for row, where in zip(raw, wheres, strict=True)
    ]
    return list(values), Labels("multiple", names, f"several of {_count(names, 'label')}: {_some(names)}")


def _is_indicator(raw: Sequence[tuple[str | int, ...]]) -> bool:
    """Whether lists have a 0 or 1 for each label, and not the labels themselves."""
    width = len(raw[0])
    return (
        width > 1
        and all(len(row) == width and all(each in (0, 1) for each in row) for row in raw)
        and any(len(set(row)) < width for row in raw)
    )


def _check_types(raw: Sequence[Any], wheres: Sequence[Where]) -> None:
    """Raise UserError for the first label that is of another type than the first one."""
    kind = _type(raw[0])
    for label, where in zip(raw, wheres, strict=True):
        if _type(label) != kind:
            raise fault(
                where, f"has {_type(label)} as its label, and the rows before have {kind}", "use one of the two"
            )
        if isinstance(label, float) and not math.isfinite(label):
            raise fault(where, f"has {label} as its label", "only finite numbers can be learned")


def _type(label: object) -> str:
    kinds = ((bool, "true or false"), (int | float, "a number"), (str, "a text"))
    return next((name for kind, name in kinds if isinstance(label, kind)), "a list")


def _check_pairs(examples: Sequence[ClassifyExample]) -> None:
    is_pair = examples[0].second is not None
    for example in examples:
        if (example.second is not None) != is_pair:
            own, others = ("a pair of texts", "one text") if not is_pair else ("one text", "a pair of texts")
            raise fault(example.where, f"has {own}, and the rows before have {others}")


def _has_decimals(raw: Sequence[Any], wheres: Sequence[Where]) -> bool:
    """Whether all labels are numbers, of which one is not whole.

    Raises:
        UserError: Most are, with decimals, and one is no number.
    """
    numbers = [number_of(label) for label in raw]
    with_decimals = sum(number is not None and not float(number).is_integer() for number in numbers)
    if None not in numbers:
        return with_decimals > 0
    if 2 * with_decimals > len(raw):
        index = numbers.index(None)
        raise fault(
            wheres[index], f"has {quote(str(raw[index]))} as its label", "that is no number, as most labels are"
        )
    return False


def _names_of_numbers(raw: Sequence[Any], wheres: Sequence[Where]) -> list[str]:
    """Names of labels; where all are numbers, each with one name however it is written."""
    numbers = [number_of(label) for label in raw]
    if None in numbers:
        return [_name(label) for label in raw]
    for number, where in zip(numbers, wheres, strict=True):
        as_number(number, where, "its label")
    return [
        _name(label) if isinstance(label, int) else _number_name(cast("float", number))
        for label, number in zip(raw, numbers, strict=True)
    ]


def _name(label: object) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


def _number_name(number: float) -> str:
    return str(int(number)) if number.is_integer() else repr(number)


def _ordered(found: Iterable[str], classes: Sequence[str]) -> tuple[str, ...]:
    """The names that files have, in their order, and then all others: numbers by value, texts sorted."""
    others = sorted(set(found) - set(classes))
    if all(number_of(name) is not None for name in others):
        others.sort(key=lambda name: cast("float", number_of(name)))
    return (*classes, *others)


def _names_that_are_known(names: Sequence[str], noun: str = "label") -> Callable[[str, Where], str]:
    """A function from what a row has to the name of a label that there is; a whole number may stand for it."""
    known = frozenset(names)

    def name_of(name: str, where: Where) -> str:
        if name in known:
            return name
        if name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(names):
            return names[int(name)]
        missing = f"has the {noun} {quote(name)}, which isn't among the {len(names)} that there are"
        raise fault(where, missing, _some(names))

    return name_of


def _count(names: Sequence[str], noun: str) -> str:
    return f"{len(names)} {noun}{'s' if len(names) != 1 else ''}"


def _some(names: Sequence[str]) -> str:
    """The names, unless there are many."""
    return ", ".join(name[:40] for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
