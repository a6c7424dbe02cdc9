"""Evaluate a model on a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from anyformer.data.examples import (
    ChatExample,
    ClassifyExample,
    CompletionExample,
    EmbedExample,
    Example,
    PreferenceExample,
    Seq2SeqExample,
    TagExample,
    Task,
    TextExample,
)
from anyformer.data.examples.columns import Columns
from anyformer.data.examples.labels import LabelKind
from anyformer.data.examples.loading import load_examples
from anyformer.errors import UserError
from anyformer.evaluation.logits import is_regression
from anyformer.evaluation.options import Options
from anyformer.evaluation.result import Evaluation
from anyformer.evaluation.tasks.answers import evaluate_answers, evaluate_preferences
from anyformer.evaluation.tasks.classify import evaluate_classify
from anyformer.evaluation.tasks.embed import evaluate_embed
from anyformer.evaluation.tasks.tag import evaluate_tag
from anyformer.evaluation.tasks.text import evaluate_text
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

Data = str | Path | Sequence[str | Path] | Sequence[Example]
"""Files, folders and globs; or examples."""


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer | None,
    data: Data,
    task: Task | None = None,
    *,
    columns: Columns | None = None,
    limit: int | None = None,
    options: Options | None = None,
) -> Evaluation:
    """Evaluate a model on a data set.

    ======================  ============================================================================
    classify                accuracy, f1, mcc; several labels: f1, f1_macro, exact_match;
                            numbers: spearman, pearson, mse
    tag                     entity_f1, precision, recall, accuracy
    embed                   spearman, pearson of scores; recall@1, recall@5, recall@10, mrr of pairs
    seq2seq                 bleu, chrf, rouge1, rouge2, rougeL, rougeLsum, exact_match, perplexity,
                            end_probability, stopped
    chat, completion        rouge1, rouge2, rougeL, rougeLsum, exact_match, perplexity, end_probability, stopped;
                            with choices: accuracy, f1, mcc, perplexity
    text                    perplexity, bits_per_byte
    ======================  ============================================================================

    Args:
        model, tokenizer: See `anyformer.load`.
        data: Files, folders and globs, see docs/finetuning.md; or examples.
        task: One of those above; None: as the columns of the data say.
        columns: The names of columns that aren't the usual ones.
        limit: Rows to evaluate, the first ones; None: all.
        options: How answers are generated or chosen.

    Returns:
        The metrics by name, such as ``{"accuracy": 0.87, ...}``, whose attributes are their intervals, the scores of
        each class, the confusion matrix and the rows.

    Raises:
        UserError: data that can't be read, a task that the model has no head for, labels that it doesn't know.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is a number of rows, at least 1, not {limit}.")
    options = options or Options()
    examples, found = _read(model, data, task, columns)
    return evaluate_examples(model, tokenizer, examples[:limit], found, options)


def evaluate_examples(
    model: Transformer, tokenizer: Tokenizer | None, examples: Sequence[Example], task: Task, options: Options
) -> Evaluation:
    """Evaluate a model on examples of a task."""
    if not examples:
        raise UserError("There is no example to evaluate the model on.")
    rows: Any = examples
    match task:
        case "classify":
            return evaluate_classify(model, tokenizer, rows, options)
        case "tag":
            return evaluate_tag(model, tokenizer, rows, options)
        case "embed":
            return evaluate_embed(model, tokenizer, rows, options)
        case "seq2seq" | "chat" | "completion":
            return evaluate_answers(task, model, tokenizer, rows, options)
        case "preference":
            return evaluate_preferences(model, tokenizer, rows, options)
        case "text":
            return evaluate_text(model, tokenizer, rows, options)


def _read(model: Transformer, data: Data, task: Task | None, columns: Columns | None) -> tuple[Sequence[Example], Task]:
    """The examples and their task."""
    paths = [data] if isinstance(data, str | Path) else data
    if paths and not isinstance(paths[0], str | Path):
        examples = cast("Sequence[Example]", paths)
        return examples, task or _TASKS[type(examples[0])]
    head = model.config.head
    kind: LabelKind | None = None
    if head.kind == "classification":
        multiple = head.problem_type == "multi_label_classification"
        kind = "regression" if is_regression(model) else "multiple" if multiple else None
    found = load_examples(
        [str(path) for path in paths],
        task=task,
        columns=columns,
        labels=head.label_names or None,
        kind=kind,
        training=False,
    )
    return found.examples, found.task


_TASKS: Mapping[type[Example], Task] = {
    TextExample: "text",
    ChatExample: "chat",
    CompletionExample: "completion",
    PreferenceExample: "preference",
    ClassifyExample: "classify",
    TagExample: "tag",
    EmbedExample: "embed",
    Seq2SeqExample: "seq2seq",
}
