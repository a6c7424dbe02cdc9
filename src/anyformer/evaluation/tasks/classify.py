"""One label, several labels or a number for each text."""

from collections.abc import Sequence
from typing import cast

import numpy as np

from anyformer.data.examples import ClassifyExample
from anyformer.errors import UserError, quote
from anyformer.evaluation.logits import is_regression, label_names, text_logits
from anyformer.evaluation.metrics import class_table, multilabel, regression
from anyformer.evaluation.metrics.classification import class_counts
from anyformer.evaluation.metrics.metric import Array
from anyformer.evaluation.options import Options
from anyformer.evaluation.result import EvaluatedRow, Evaluation
from anyformer.evaluation.tasks.labels import known_label, log_softmax, single_label
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer


def evaluate_classify(
    model: Transformer, tokenizer: Tokenizer | None, examples: Sequence[ClassifyExample], options: Options
) -> Evaluation:
    """One label, several labels or a number for each text."""
    for example in examples:
        if example.label is None:
            raise UserError(f"{example.where}: there is no label to compare with.")
    texts = [(example.text, example.second) for example in examples]
    logits, _ = text_logits(model, tokenizer, texts, progress=options.counter("classify", len(examples)))
    if is_regression(model):
        return _regression(examples, logits)
    for example in examples:
        if isinstance(example.label, float):
            raise UserError(
                f"{example.where}: the label is the number {example.label:g}, and this model knows classes."
            )
    names = label_names(model)
    several = any(isinstance(example.label, tuple) for example in examples)
    if several or model.config.head.problem_type == "multi_label_classification":
        return _multilabel(examples, logits, names)
    labels = [known_label(str(example.label), names, example) for example in examples]
    return single_label("classify", examples, labels, names, log_softmax(logits), [_shown(each) for each in examples])


def _multilabel(examples: Sequence[ClassifyExample], logits: Array, names: Sequence[str]) -> Evaluation:
    references = [[known_label(name, names, example) for name in _labels_of(example)] for example in examples]
    said = [[name for name, logit in zip(names, row, strict=True) if logit > 0] for row in logits]
    truth = np.array([[name in right for name in names] for right in references])
    losses = np.logaddexp(0, np.where(truth, -logits, logits)).sum(axis=1)
    rows = [
        EvaluatedRow(
            example.where, _shown(example), ", ".join(right), ", ".join(found), float(loss), set(right) == set(found)
        )
        for example, right, found, loss in zip(examples, references, said, losses, strict=True)
    ]
    classes = class_table(class_counts(references, said, names), names)
    return Evaluation(task="classify", metrics=multilabel(references, said, names), rows=rows, classes=classes)


def _labels_of(example: ClassifyExample) -> Sequence[str]:
    label = example.label
    return label if isinstance(label, tuple) else [str(label)]


def _regression(examples: Sequence[ClassifyExample], logits: Array) -> Evaluation:
    wanted: list[float] = []
    for example in examples:
        if isinstance(example.label, str | tuple):
            label = quote(example.label)
            raise UserError(f"{example.where}: the label {label} is a name, and this model predicts numbers.")
        wanted.append(float(cast("float", example.label)))
    found = logits[:, 0]
    rows = [
        EvaluatedRow(example.where, _shown(example), f"{right:g}", f"{said:.4g}", float((right - said) ** 2))
        for example, right, said in zip(examples, wanted, found, strict=True)
    ]
    return Evaluation(task="classify", metrics=regression(wanted, found), rows=rows)


def _shown(example: ClassifyExample) -> str:
    return example.text if example.second is None else f"{example.text} | {example.second}"
