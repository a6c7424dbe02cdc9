"""`anyformer classify MODEL "text"`: what a classifier or a tagger says of texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from anyformer.cli.options import AT_LEAST_1, ModelOptions, Positional, Text, parse
from anyformer.errors import UserError
from anyformer.limits import RECORD_BYTES
from anyformer.schema import Rule
from anyformer.terminal import message, shorten, write

if TYPE_CHECKING:
    from anyformer.evaluation import Classification
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
    max_record_bytes: Annotated[int, "N", AT_LEAST_1] = RECORD_BYTES
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
    top: Annotated[int | None, "N", Rule(lambda top: top >= 1, "is a number of labels, at least 1")] = None
    """Labels to show, the likeliest first (default: 5, or those over 50% of several)."""
    json: bool = False
    """Print all labels, one JSON object a text."""


class _Answer(NamedTuple):
    """The model's answer on a text: for people, for programs, and whether it has read the whole text."""

    title: str
    lines: Sequence[str]
    values: dict[str, Any]
    is_whole: bool


def run(argv: list[str]) -> int:
    """Print what the model says of each text."""
    options = parse(ClassifyOptions, argv, "classify")
    if options.file is None and not options.texts:
        raise UserError("There is nothing to classify: give a text in quotes, or a --file of texts.")
    if options.file is not None and options.texts:
        raise UserError("Give texts or a --file of texts, not both.")
    if options.file is not None and len(options.second) > 1:
        raise UserError("With a --file, --second is one text, that of all.")
    texts: Sequence[str] = options.texts
    if options.file is not None:
        from anyformer.generation.batch_job import read_prompts

        texts = [each.text for each in read_prompts(options.file, options.field, options.max_record_bytes, "text")]
    model, tokenizer = options.load_model()
    answers = _tagged if model.config.head.kind == "token_classification" else _classified
    size = len(texts) if options.file is None else _AT_A_TIME
    batches = (texts[begin : begin + size] for begin in range(0, len(texts), size))
    truncated = list[str]()
    for number, answer in enumerate(answers(model, tokenizer, batches, options), start=1):
        if options.json:
            write(json.dumps(answer.values))
        else:
            write("\n".join([answer.title] * (len(texts) > 1) + [*answer.lines]))
        truncated += [] if answer.is_whole else [str(number)]
    if truncated:
        shown = ", ".join(truncated[:_NUMBERS]) + (" ..." if len(truncated) > _NUMBERS else "")
        message(f"Too long for the model, so that the end was left out: text {shown} of {len(texts)}.")
    return 0


def _classified(
    model: Transformer, tokenizer: Tokenizer | None, batches: Iterator[Sequence[str]], options: ClassifyOptions
) -> Iterator[_Answer]:
    from anyformer.evaluation import classify

    if options.top is not None and model.config.head.problem == "regression":
        raise UserError("--top is for labels, and this model predicts a number: leave it out.")
    several = options.second if len(options.second) > 1 else None
    one = options.second[0] if len(options.second) == 1 else None
    for texts in batches:
        results = classify(model, tokenizer, texts, several or one)
        for text, second, result in zip(texts, several or [one] * len(texts), results, strict=True):
            values: dict[str, Any] = {"text": text} if second is None else {"text": text, "second": second}
            if result.value is None:
                values |= {"labels": result.labels, "scores": dict(list(result.scores.items())[: options.top])}
            else:
                values["value"] = result.value
            title = _title(text) if second is None else f"{_title(text)} | {_title(second)}"
            lines = _labels(result, options.top, model.config.head.problem_type == "multi_label_classification")
            yield _Answer(title, lines, {**values, "cut": result.cut}, not result.cut)


def _labels(result: Classification, top: int | None, several: bool) -> list[str]:
    """A line for each label that is shown, or for each number."""
    if not result.labels and not several:
        return [
            f"{number:.4g}" if result.value is not None else f"{number:9.4g}  {name}"
            for name, number in result.scores.items()
        ]
    names = result.labels if several and top is None else list(result.scores)[: top or _LABELS]
    if not names:
        name, score = next(iter(result.scores.items()))
        return [f"no label is over 50%; the likeliest is {name}, {score:.1%}"]
    return [f"{result.scores[name]:7.1%}  {name}" for name in names]


def _tagged(
    model: Transformer, tokenizer: Tokenizer | None, batches: Iterator[Sequence[str]], options: ClassifyOptions
) -> Iterator[_Answer]:
    from anyformer.evaluation import tag
    from anyformer.evaluation.classify import finds_entities

    for name in ("top", "second"):
        if getattr(options, name):
            raise UserError(f"--{name} is for models that label whole texts, and this one labels words: leave it out.")
    grouped = finds_entities(model)
    for texts in batches:
        for text, result in zip(texts, tag(model, tokenizer, texts), strict=True):
            rows = [(word.probability, word.tag or "", word.text) for word in result.words]
            if grouped:
                rows = [(each.probability, each.label, _one_line(each.text)) for each in result.entities]
            width = max((len(label) for _, label, _ in rows), default=0)
            lines = [f"{probability:7.1%}  {label:<{width}}  {words}" for probability, label, words in rows]
            yield _Answer(_title(text), lines or ["no entity"], {"text": text, **asdict(result)}, not result.untagged)


def _title(text: str) -> str:
    return shorten(_one_line(text), _TITLE)


def _one_line(text: str) -> str:
    return " ".join(text.split())
