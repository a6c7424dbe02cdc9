"""Labels by their names, and one label an example, for the tasks with labels."""

from collections.abc import Sequence

import torch

from anyformer.data.examples import Example
from anyformer.errors import UserError, quote
from anyformer.evaluation.metrics import ClassScores, class_table, classification, confusion_matrix
from anyformer.evaluation.metrics.classification import all_labels, class_counts
from anyformer.evaluation.metrics.metric import Array
from anyformer.evaluation.result import Confusion, EvaluatedRow, Evaluation

_SHOWN_LABELS = 5


def single_label(
    examples: Sequence[Example],
    references: Sequence[str],
    names: Sequence[str],
    log_p: Array,
    shown: Sequence[str],
) -> Evaluation:
    """The evaluation of log-probabilities [examples, labels]."""
    index = {name: number for number, name in enumerate(names)}
    said = [names[int(best)] for best in log_p.argmax(axis=1)]
    rows = [
        EvaluatedRow(example.location, text, reference, name, -float(row[index[reference]]), name == reference)
        for example, text, reference, name, row in zip(examples, shown, references, said, log_p, strict=True)
    ]
    return Evaluation(
        metrics=classification(references, said, names),
        rows=rows,
        classes=label_table(references, said, names),
        confusion=Confusion(names, confusion_matrix(references, said, names)),
    )


def label_table(references: Sequence[str], said: Sequence[str], names: Sequence[str]) -> list[ClassScores]:
    """The scores of each label that occurs, of one label an example."""
    labels = all_labels(references, said, names)
    counts = class_counts([{name} for name in references], [{name} for name in said], labels)
    return [row for row in class_table(counts, labels) if row.support or row.precision]


def known_label(label: str, names: Sequence[str], example: Example) -> str:
    """The label as the model calls it: by name, or by its number. Raises UserError for another one."""
    if label in names:
        return label
    if label.isdecimal() and int(label) < len(names):
        return names[int(label)]
    some = ", ".join(map(repr, names[:_SHOWN_LABELS])) + (" ..." if len(names) > _SHOWN_LABELS else "")
    raise UserError(f"{example.location}: the label is {quote(label)}, and those that can be predicted are {some}.")


def log_softmax(logits: Array) -> Array:
    """The log-probabilities of logits [rows, labels]."""
    return torch.from_numpy(logits).log_softmax(dim=-1).numpy()
