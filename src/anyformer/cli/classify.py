"""`anyformer classify MODEL "text"`: what a classifier or a tagger says of texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from anyformer.cli.options import ModelOptions, Positional, Text, parse
from anyformer.errors import UserError
from anyformer.limits import RECORD_BYTES
from anyformer.terminal import message, shorten, write

if TYPE_CHECKING:
    from anyformer.evaluation import Classification, TaggedText
    from anyformer.model import Transformer
    from anyformer.tokenizer import Tokenizer

_LABELS = 5
"""Labels that are shown of a text."""
_AT_A_TIME = 256
"""Texts of a file that are classified before they are printed."""
_TITLE = 100
"""Characters that are shown of a text."""
_NUMBERS = 8
"""Texts that a message names."""


@dataclass(frozen=True, kw_only=True)
class _FileOptions:
    """Texts from a file."""

    file: Path | None = None
    """Classify all texts of this file instead: one a line, or a field of a .jsonl, .csv, .tsv or .parquet."""
    field: str = "text"
    """The field of --file's records that holds the text."""
    max_record_bytes: Annotated[int, "N"] = RECORD_BYTES
    """Bytes that a record of --file may have, or a line."""


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions(_FileOptions, ModelOptions):
    """Label texts, or the words of texts, with a model that was trained to.

    A classifier shows each label with its probability, one of several labels those over 50%, a regression its number.
    A tagger shows the entities in a text, such as names.

    Examples:
        anyformer classify runs/MiniLM-1 "a fine film" "two wasted hours"
        anyformer classify runs/MiniLM-1 --file reviews.csv --field review
        anyformer classify my-model "A man sleeps." --second "Somebody is awake."
        anyformer classify runs/names "Anna lives in Rome." --json
    """

    texts: Positional[Text[tuple[str, ...]]] = ()
    """The texts."""
    second: Annotated[Text[tuple[str, ...]], "TEXT"] = ()
    """The second text of each pair, for a model of pairs; one is that of all."""
    top: int | None = None
    """Labels to show, the likeliest first (default: 5, or those over 50% of several)."""
    json: bool = False
    """Print all labels, one JSON object a text."""


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """The model's answer on a text: for people, for programs, and whether it has read the whole text."""

    title: str
    lines: Sequence[str]
    values: dict[str, Any]
    whole: bool


def run(argv: list[str]) -> int:
    """Print what the model says of each text."""
    options = parse(ClassifyOptions, argv, "classify")
    _check_flags(options)
    texts: Sequence[str] = options.texts
    if options.file is not None:
        from anyformer.generation.batch_job import read_prompts

        texts = [each.text for each in read_prompts(options.file, options.field, options.max_record_bytes, "text")]
    model, tokenizer = options.load_model()
    answers = _tagged if model.config.head.kind == "token_classification" else _classified
    cut = list[int]()
    for number, answer in enumerate(answers(model, tokenizer, texts, options), start=1):
        if options.json:
            write(json.dumps(answer.values))
        else:
            write("\n".join([answer.title] * (len(texts) > 1) + [*answer.lines]))
        cut += [] if answer.whole else [number]
    if cut:
        shown = ", ".join(map(str, cut[:_NUMBERS])) + (" ..." if len(cut) > _NUMBERS else "")
        message(f"Too long for the model, so that the end was left out: text {shown} of {len(texts)}.")
    return 0


def _check_flags(options: ClassifyOptions) -> None:
    """Raise UserError for flags that are out of range or contradict each other."""
    if options.top is not None and options.top < 1:
        raise UserError(f"--top is a number of labels, at least 1, not {options.top}.")
    if options.max_record_bytes < 1:
        raise UserError(f"--max-record-bytes is at least 1, not {options.max_record_bytes}.")
    if options.file is None and not options.texts:
        raise UserError("There is nothing to classify: give a text in quotes, or a --file of texts.")
    if options.file is not None and options.texts:
        raise UserError("Give texts or a --file of texts, not both.")
    if options.file is not None and len(options.second) > 1:
        raise UserError("With a --file, --second is one text, that of all.")


def _parts(texts: Sequence[str], options: ClassifyOptions) -> Iterator[Sequence[str]]:
    """The texts, those of a file in parts."""
    size = len(texts) if options.file is None else _AT_A_TIME
    return (texts[begin : begin + size] for begin in range(0, len(texts), size))


def _classified(
    model: Transformer, tokenizer: Tokenizer | None, texts: Sequence[str], options: ClassifyOptions
) -> Iterator[_Answer]:
    from anyformer.evaluation import classify
    from anyformer.evaluation.logits import is_regression

    if options.top is not None and is_regression(model):
        raise UserError("--top is for labels, and this model predicts a number: leave it out.")
    several = options.second if len(options.second) > 1 else None
    one = options.second[0] if len(options.second) == 1 else None
    for part in _parts(texts, options):
        found = classify(model, tokenizer, part, several or one)
        for text, second, each in zip(part, several or [one] * len(part), found, strict=True):
            values: dict[str, Any] = {"text": text} if second is None else {"text": text, "second": second}
            if each.value is None:
                values |= {"labels": each.labels, "scores": dict(list(each.scores.items())[: options.top])}
            else:
                values["value"] = each.value
            title = _title(text) if second is None else f"{_title(text)} | {_title(second)}"
            lines = _labels(each, options.top, model.config.head.problem_type == "multi_label_classification")
            yield _Answer(title=title, lines=lines, values={**values, "cut": each.cut}, whole=not each.cut)


def _labels(found: Classification, top: int | None, several: bool) -> list[str]:
    """A line for each label that is shown, or for each number."""
    if not found.labels and not several:
        return [
            f"{number:.4g}" if found.value is not None else f"{number:9.4g}  {name}"
            for name, number in found.scores.items()
        ]
    names = found.labels if several and top is None else list(found.scores)[: top or _LABELS]
    if not names:
        name, score = next(iter(found.scores.items()))
        return [f"no label is over 50%; the likeliest is {name}, {score:.1%}"]
    return [f"{found.scores[name]:7.1%}  {name}" for name in names]


def _tagged(
    model: Transformer, tokenizer: Tokenizer | None, texts: Sequence[str], options: ClassifyOptions
) -> Iterator[_Answer]:
    from anyformer.evaluation import tag
    from anyformer.evaluation.tag import finds_entities

    for name, given in (("--top", options.top is not None), ("--second", bool(options.second))):
        if given:
            raise UserError(f"{name} is for models that label whole texts, and this one labels words: leave it out.")
    grouped = finds_entities(model)
    for part in _parts(texts, options):
        for text, each in zip(part, tag(model, tokenizer, part), strict=True):
            lines = _entities(each) if grouped else _words(each)
            yield _Answer(
                title=_title(text), lines=lines, values={"text": text, **asdict(each)}, whole=not each.untagged
            )


def _entities(found: TaggedText) -> list[str]:
    """A line for each entity."""
    width = max((len(entity.label) for entity in found.entities), default=0)
    lines = [
        f"{entity.probability:7.1%}  {entity.label:<{width}}  {_one_line(entity.text)}" for entity in found.entities
    ]
    return lines or ["no entity"]


def _words(found: TaggedText) -> list[str]:
    """A line for each word."""
    width = max(len(word.tag or "") for word in found.words)
    return [f"{word.probability:7.1%}  {word.tag or '':<{width}}  {word.text}" for word in found.words]


def _title(text: str) -> str:
    return shorten(_one_line(text), _TITLE)


def _one_line(text: str) -> str:
    return " ".join(text.split())
