"""Labels, tags and scores: what those of a whole data set mean."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from anyformer.data.examples import ClassifyExample, EmbedExample, Example, TagExample
from anyformer.data.examples.parts import as_number, fault, kind_of, number_of
from anyformer.data.formats import Location
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


def resolve_labels(
    examples: Sequence[ClassifyExample],
    kind: LabelKind | None = None,
    names: Sequence[str] | None = None,
    classes: Sequence[str] = (),
) -> tuple[list[ClassifyExample], Labels]:
    """Make names and numbers of labels that are as the rows have them.

    Numbers of which one has decimals are to be predicted, others are classes; so are numbers that are written as texts.

    Args:
        kind: The kind of the labels; None: what follows from them.
        names: The names of the labels there are, such as those of a model, which whole numbers may stand for; None: all
            that occur.
        classes: The names that the files have for numbers of classes.

    Raises:
        UserError: Labels are of different types, unknown, or not finite.
    """
    values = _checked_labels(examples)
    _check_same(examples, ["one text" if each.second is None else "a pair of texts" for each in examples])
    if isinstance(values[0], tuple):
        if kind not in (None, "multiple"):
            raise fault(examples[0].location, f"has a list of labels, and {kind} labels were asked for")
        values, labels = _several(examples, values, names, classes)
    elif kind == "regression" or (kind is None and names is None and not classes and _has_decimals(examples, values)):
        values = _numbers(examples, values)
        note, why = f"numbers from {min(values):g} to {max(values):g}", "as asked" if kind else "as some have decimals"
        labels = Labels("regression", (), f"{note} to be predicted, {why}")
    else:
        texts = [*map(_text, values)] if classes else _texts_of_numbers(examples, values)
        if kind == "multiple":
            values, labels = _several(examples, [(text,) for text in texts], names, classes)
        else:
            values, labels = _single(examples, texts, names, classes)
    return [replace(example, label=value) for example, value in zip(examples, values, strict=True)], labels


def resolve_tags(
    examples: Sequence[TagExample], names: Sequence[str] | None = None, classes: Sequence[str] = ()
) -> tuple[list[TagExample], Labels]:
    """Make names of tags that are as the rows have them; see `resolve_labels`."""
    rows = [example.tags for example in examples]
    names, name_of, note = _vocabulary(_parts(examples, rows, "tags", rows[0][0]), names, classes, "tag")
    made = [
        replace(example, tags=tuple(name_of(str(tag), example.location) for tag in example.tags))
        for example in examples
    ]
    return made, Labels(None, names, note)


def resolve_embeddings(
    examples: Sequence[EmbedExample], names: Sequence[str] | None = None
) -> tuple[list[EmbedExample], Labels]:
    """Make scores, or names of classes, of scores and labels that are as the rows have them.

    Raises UserError for examples with different parts, unknown classes, or scores of an unknown range.
    """
    count = len(examples[0].texts)
    _check_same(examples, [len(each.texts) for each in examples], " texts")
    if examples[0].score is not None:
        return _scored(examples, [cast("float", example.score) for example in examples])
    if examples[0].label is None:
        kinds = {2: "pairs", 3: "triplets"}
        note = kinds.get(count, f"anchors with one text like them and {count - 2} unlike them")
        return list(examples), Labels(None, (), note)
    values = _checked_labels(examples)
    if count == 2 and _has_decimals(examples, values):
        return _scored(examples, _numbers(examples, values))
    values, labels = _single(examples, _texts_of_numbers(examples, values), names, ())
    made = [replace(example, label=value) for example, value in zip(examples, values, strict=True)]
    return made, replace(labels, kind=None)


def check_learnable(labels: Sequence[object], location: Location, *, named: bool = True) -> None:
    """Refuse labels that are all the same, or too many to be classes; `location` is that of the first one.

    They may be many where a list of names says which there are (`named`).
    """
    counts = Counter(labels)
    if len(counts) == 1:
        only = "missing" if labels[0] == () else quote(labels[0])
        raise UserError(f"{location.path}: all labels are {only}, so there is nothing to learn.")
    if not named and len(labels) >= _MANY and len(counts) > len(labels) / 2:
        raise UserError(
            f"{location.path}: there are {len(counts):,} different labels in {len(labels):,} examples, which are too "
            "many for classes: name another column, or say that numbers are to be predicted."
        )


def _checked_labels(examples: Sequence[ClassifyExample | EmbedExample]) -> list[Any]:
    """The labels as the rows have them. Raises UserError for one of another type than the first, or not finite."""
    labels = [example.label for example in examples]
    _check_same(examples, [*map(kind_of, labels)], " as its label", "use one of the two")
    for example, label in zip(examples, labels, strict=True):
        if isinstance(label, float) and not math.isfinite(label):
            raise fault(example.location, f"has {label} as its label", "only finite numbers can be learned")
    return labels


def _check_same(
    examples: Sequence[Example], facts: Sequence[object], noun: str = "", advice: str | None = None
) -> None:
    """Raise UserError for the first example that has something else than the first one."""
    for example, fact in zip(examples, facts, strict=True):
        if fact != facts[0]:
            raise fault(example.location, f"has {fact}{noun}, and the rows before have {facts[0]}", advice)


def _numbers(examples: Sequence[Example], labels: Sequence[object]) -> list[float]:
    pairs = zip(examples, labels, strict=True)
    return [as_number(label, example.location, "its label") for example, label in pairs]


def _scored(examples: Sequence[EmbedExample], scores: Sequence[float]) -> tuple[list[EmbedExample], Labels]:
    low, high = min(scores), max(scores)
    note, scale = f"scores from {low:g} to {high:g}", 1.0
    if high > 1 or low < -1:
        note, scale = f"{note}, divided by 5", _STARS
        if low < 0 or high > _STARS:
            raise fault(
                examples[scores.index(high if high > _STARS else low)].location,
                f"has a score of a range that isn't known, as scores go from {low:g} to {high:g}",
                "they must be from 0 to 1, from -1 to 1, or from 0 to 5",
            )
    pairs = zip(examples, scores, strict=True)
    return [replace(example, score=score / scale, label=None) for example, score in pairs], Labels(None, (), note)


def _single(
    examples: Sequence[Example], labels: Sequence[str], names: Sequence[str] | None, classes: Sequence[str]
) -> tuple[list[Any], Labels]:
    names, name_of, note = _vocabulary(labels, names, classes)
    pairs = zip(examples, labels, strict=True)
    return [name_of(label, example.location) for example, label in pairs], Labels("single", names, note)


def _several(
    examples: Sequence[Example], rows: Sequence[Any], names: Sequence[str] | None, classes: Sequence[str]
) -> tuple[list[Any], Labels]:
    if _is_indicator(rows):
        # A 1 for each label that a text has.
        rows = [[index for index, is_one in enumerate(row) if is_one] for row in rows]
        classes = classes or tuple(map(str, range(1 + max(map(max, filter(None, rows)), default=0))))
    first = next((row[0] for row in rows if row), "")
    names, name_of, note = _vocabulary(_parts(examples, rows, "labels", first), names, classes)
    pairs = zip(examples, rows, strict=True)
    values = [tuple(dict.fromkeys(name_of(str(each), example.location) for each in row)) for example, row in pairs]
    return list(values), Labels("multiple", names, f"several of {note}")


def _parts(examples: Sequence[Example], rows: Sequence[Sequence[object]], noun: str, first: object) -> set[str]:
    """All texts or numbers in lists. Raises UserError where they are not all what the first one is."""
    for example, row in zip(examples, rows, strict=True):
        if any(isinstance(each, str) != isinstance(first, str) for each in row):
            raise fault(example.location, f"has texts as {noun}, and the rows before numbers, or the other way round")
    return {str(each) for row in rows for each in row}


def _is_indicator(rows: Sequence[tuple[str | int, ...]]) -> bool:
    """Whether lists have a 0 or 1 for each label, and not the labels themselves."""
    width = len(rows[0])
    return (
        width > 1
        and all(len(row) == width and all(each in (0, 1) for each in row) for row in rows)
        and any(len(set(row)) < width for row in rows)
    )


def _has_decimals(examples: Sequence[Example], labels: Sequence[object]) -> bool:
    """Whether all labels are numbers, one with decimals. Raises UserError if most have some, and one is no number."""
    numbers = [*map(number_of, labels)]
    with_decimals = sum(number is not None and not float(number).is_integer() for number in numbers)
    if None not in numbers:
        return with_decimals > 0
    if 2 * with_decimals > len(labels):
        index = numbers.index(None)
        problem = f"has {quote(str(labels[index]))} as its label"
        raise fault(examples[index].location, problem, "that is no number, as most labels are")
    return False


def _texts_of_numbers(examples: Sequence[Example], labels: Sequence[object]) -> list[str]:
    """Labels as texts; where all are numbers, each has one text however it is written."""
    if None in map(number_of, labels):
        return [*map(_text, labels)]
    pairs = zip(labels, _numbers(examples, labels), strict=True)
    return [_text(label if isinstance(label, int) else number) for label, number in pairs]


def _text(label: object) -> str:
    if isinstance(label, float):
        return str(int(label)) if label.is_integer() else repr(label)
    return str(label).lower() if isinstance(label, bool) else str(label)


def _vocabulary(
    labels: Iterable[str], names: Sequence[str] | None, classes: Sequence[str], noun: str = "label"
) -> tuple[tuple[str, ...], Callable[[str, Location], str], str]:
    """All names, a function from what a row has to the name that it stands for, and a note on them.

    Without `names` they are those of the files in their order, and then all others: numbers by value, texts sorted.
    """
    if names is None:
        others = sorted(set(labels) - set(classes))
        if all(number_of(name) is not None for name in others):
            others.sort(key=lambda name: cast("float", number_of(name)))
        names = (*classes, *others)
    ordered, members = tuple(names), frozenset(names)
    some = ", ".join(name[:40] for name in ordered[:_SHOWN]) + (", ..." if len(ordered) > _SHOWN else "")

    def name_of(name: str, location: Location) -> str:
        if name in members:
            return name
        if name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(ordered):
            return ordered[int(name)]
        raise fault(
            location, f"has the {noun} {quote(name)}, which isn't among the {len(ordered)} that there are", some
        )

    return ordered, name_of, f"{len(ordered)} {noun}{'s' if len(ordered) != 1 else ''}: {some}"
