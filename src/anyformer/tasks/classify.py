"""One label, several labels or a number for a text, or a pair of texts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from anyformer.config import ModelConfig
from anyformer.data.batch import IGNORED, Batch, Rng
from anyformer.data.examples import ClassifyExample
from anyformer.data.examples.columns import LABELS, PAIRS, SCORES, TEXTS, Names
from anyformer.data.examples.datasets import Dataset, labeled
from anyformer.data.examples.encoded import Truncation, encode_texts
from anyformer.data.examples.labels import LabelKind, Labels, resolve_labels
from anyformer.data.examples.parts import NAMED, Parts, fault, read_label
from anyformer.errors import UserError, quote
from anyformer.evaluation.label_metrics import multilabel
from anyformer.evaluation.logits import known_label, label_names, log_softmax, single_label, text_logits
from anyformer.evaluation.metrics import Array, regression
from anyformer.evaluation.result import EvaluatedRow, Evaluation, Options
from anyformer.model import Transformer
from anyformer.tasks.task import Encoded, EncodedText, Encoding, RowSchema, Task, random_ids
from anyformer.tokenizer import Tokenizer
from anyformer.training.config import CompleteRunConfig


def _build(parts: Parts) -> ClassifyExample:
    second = parts.text("second") if parts.has("second") or "second" in parts.required else None
    return ClassifyExample(location=parts.location, text=parts.text("text"), second=second, label=read_label(parts))


def _encode(encoding: Encoding, examples: Sequence[ClassifyExample]) -> Iterator[Encoded]:
    inputs = encode_texts(encoding.tokenizer, [(each.text, each.second) for each in examples], encoding.context)
    for example, each in zip(examples, inputs, strict=True):
        labels = [_number(example)] if encoding.kind == "regression" else _names(example)
        text = EncodedText(tokens=each.tokens, segments=each.segments, cut=Truncation(tokens=each.cut))
        yield Encoded(example=example, texts=[text], label=", ".join(map(str, labels)), labels=labels)


def _dataset(encoding: Encoding, encoded: Sequence[Encoded]) -> Dataset:
    examples, texts = [cast("ClassifyExample", each.example) for each in encoded], [each.texts[0] for each in encoded]
    numbers = encoding.numbers()
    if encoding.kind == "regression":
        targets: Any = np.array([_number(example) for example in examples], np.float32)
        targets[targets == IGNORED] = np.nextafter(np.float32(IGNORED), np.float32(0))  # it is to be learned
    elif encoding.kind == "multiple":
        targets = np.zeros((len(examples), len(encoding.labels)), np.float32)
        for row, example in enumerate(examples):
            targets[row, [numbers[name] for name in _names(example)]] = 1.0
    else:
        targets = np.array([numbers[_names(example)[0]] for example in examples], np.int64)
    paired = encoding.model.embedding.segments > 1 and any(example.second is not None for example in examples)
    segments = [text.segments for text in texts] if paired else None
    return labeled([text.tokens for text in texts], targets, encoding.pad, segments)


def _resolve_labels(
    examples: Sequence[ClassifyExample],
    kind: LabelKind | None,
    names: Sequence[str] | None,
    classes: Mapping[str, Sequence[str]],
) -> tuple[list[ClassifyExample], Labels]:
    """See `resolve_labels`. Raises UserError for lists of a 0 or 1 for each label, where labels have no names."""
    known, rows = classes.get("label", ()), [each.label for each in examples]
    width = len(rows[0]) if isinstance(rows[0], tuple) else 0
    is_indicator = all(isinstance(row, tuple) and len(row) == width and {*row} <= {0, 1} for row in rows)
    if width > 1 and is_indicator and not names and not known:
        raise fault(examples[0].location, f"has a 0 or 1 for each of {width} labels", NAMED)
    return resolve_labels(examples, kind, names, known)


def _number(example: ClassifyExample) -> float:
    return float(example.label) if isinstance(example.label, int | float) else 0.0


def _evaluate(
    model: Transformer, tokenizer: Tokenizer | None, examples: Sequence[ClassifyExample], options: Options
) -> Evaluation:
    """One label, several labels or a number for each text."""
    for example in examples:
        if example.label is None:
            raise UserError(f"{example.location}: there is no label to compare with.")
    texts = [(example.text, example.second) for example in examples]
    logits, _ = text_logits(model, tokenizer, texts, progress=options.counter("classify", len(examples)))
    if model.config.head.problem == "regression":
        return _regression(examples, logits)
    for example in examples:
        if isinstance(example.label, float):
            label = f"the label is the number {example.label:g}"
            raise UserError(f"{example.location}: {label}, and this model knows classes.")
    names = label_names(model)
    several = any(isinstance(example.label, tuple) for example in examples)
    if several or model.config.head.problem_type == "multi_label_classification":
        return _multilabel(examples, logits, names)
    labels = [known_label(str(example.label), names, example) for example in examples]
    return single_label(examples, labels, names, log_softmax(logits), [_shown(each) for each in examples])


def _multilabel(examples: Sequence[ClassifyExample], logits: Array, names: Sequence[str]) -> Evaluation:
    references = [[known_label(name, names, example) for name in _names(example)] for example in examples]
    predictions = [[name for name, logit in zip(names, row, strict=True) if logit > 0] for row in logits]
    truth = np.array([[name in right for name in names] for right in references])
    losses = np.logaddexp(0, np.where(truth, -logits, logits)).sum(axis=1)
    rows = list[EvaluatedRow]()
    for example, right, predicted, loss in zip(examples, references, predictions, losses, strict=True):
        answers, is_right = (", ".join(right), ", ".join(predicted)), set(right) == set(predicted)
        rows.append(EvaluatedRow(example.location, _shown(example), *answers, float(loss), is_right))
    metrics, classes = multilabel(references, predictions, names)
    return Evaluation(metrics=metrics, rows=rows, classes=classes)


def _names(example: ClassifyExample) -> Sequence[str]:
    return example.label if isinstance(example.label, tuple) else [str(example.label)]


def _regression(examples: Sequence[ClassifyExample], logits: Array) -> Evaluation:
    for example in examples:
        if isinstance(example.label, str | tuple):
            label = quote(example.label)
            raise UserError(f"{example.location}: the label {label} is a name, and this model predicts numbers.")
    references, predictions = [_number(example) for example in examples], logits[:, 0]
    rows = [
        EvaluatedRow(example.location, _shown(example), f"{right:g}", f"{number:.4g}", float((right - number) ** 2))
        for example, right, number in zip(examples, references, predictions, strict=True)
    ]
    return Evaluation(metrics=regression(references, predictions), rows=rows)


def _shown(example: ClassifyExample) -> str:
    return example.text if example.second is None else f"{example.text} | {example.second}"


def _commands(config: Any, example: ClassifyExample, evaluate: str) -> list[tuple[str, str]]:
    texts = '"text"' if example.second is None else '"text" --second "text"'
    return [("classify", texts), ("evaluate", evaluate)]


_LOSSES = {"multiple": "binary cross-entropy of a label, nats", "regression": "squared error"}


def _random_batch(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    tokens, kind = random_ids(config, model, rng), model.head.problem_type
    shape = (len(tokens), model.head.labels) if kind == "multi_label_classification" else len(tokens)
    if kind in (None, "single_label_classification"):
        return Batch(tokens, np.zeros(shape, np.int64))
    return Batch(tokens, np.zeros(shape, np.float32))


_TEXTS: Sequence[Mapping[str, Names]] = (*({"text": (a,), "second": (b,)} for a, b in PAIRS), {"text": TEXTS})

TASK = Task(
    name="classify",
    learns="one label, several labels or a number for a text or a pair of texts",
    finetune="bert-base-uncased --data reviews.csv --columns text=review label=stars",
    example=ClassifyExample,
    schemas=[
        RowSchema(build=_build, required={**texts, "label": names}, explicit=names is SCORES, rank=9, suggested=1)
        for names in (LABELS, SCORES)
        for texts in _TEXTS
    ],
    resolve_labels=_resolve_labels,
    classes=lambda example: [example.label],
    head="classification",
    encode=_encode,
    dataset=_dataset,
    loss_unit=lambda config: _LOSSES.get(str(config.get("label_kind")), "cross-entropy, nats"),
    settings=("labels", "label_kind"),
    # Few examples make few steps, after which a fresh head answers with the most frequent class (Mosbach et al. 2021).
    fewest_steps=150,
    smallest_batch=8,
    evaluate=_evaluate,
    pipeline="text-classification",
    auto_class="AutoModelForSequenceClassification",
    commands=_commands,
    random_batch=_random_batch,
)
