"""Tasks that every family of transformers can do after training on a text, made from that text alone.

::

    tasks = make_tasks(train_texts, held_out_texts, tokenizer, seed=0)    # the same items for every model
    results = run_tasks(model, tokenizer, tasks)                          # {"minimal_pairs": TaskResult(...), ...}
"""

from collections.abc import Sequence

from anyformer.compare.tasks.choices import ChoiceTask, TaskResult
from anyformer.compare.tasks.classifier import (
    TRAINING,
    Classification,
    LabeledTexts,
    by_document,
    by_order,
    read_labeled_texts,
)
from anyformer.compare.tasks.items import WordStatistics, make_cloze, make_minimal_pairs, passages
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

__all__ = ["LabeledTexts", "Task", "TaskResult", "make_tasks", "read_labeled_texts", "run_tasks"]

Task = ChoiceTask | Classification

_PASSAGES = 600
"""Passages of the held-out text that the tasks can use."""


def make_tasks(
    train_texts: Sequence[str],
    held_out_texts: Sequence[str],
    tokenizer: Tokenizer,
    seed: int = 0,
    *,
    max_tokens: int = 32,
    labeled: LabeledTexts | None = None,
) -> tuple[Task, ...]:
    """Make the tasks of a corpus: the same for the same arguments, whatever model does them.

    Args:
        train_texts: Texts that models are trained on; they say which words are frequent.
        held_out_texts: Texts that models are judged on: all items are from there, and none of their passages occurs in
            the training texts.
        max_tokens: Tokens of an item; two less than the shortest context of a model leave room for those around it.
        labeled: Texts for the classifier instead of the corpus's, see `read_labeled_texts`.

    Returns:
        All tasks. One that the texts are too short for has no items, and says why.
    """
    statistics = WordStatistics.of(train_texts, held_out_texts)
    held_out = passages(
        held_out_texts, tokenizer, count=_PASSAGES, max_tokens=max_tokens, seed=seed, unlike=train_texts
    )
    labeled = labeled or by_document(held_out_texts, tokenizer, max_tokens, seed)
    if labeled is None:
        training = passages(train_texts, tokenizer, count=TRAINING, max_tokens=max_tokens, seed=seed)
        labeled = by_order(training, held_out, seed)
    return (
        make_minimal_pairs(held_out, held_out_texts, statistics, tokenizer, seed),
        make_cloze(held_out, statistics, tokenizer, seed),
        Classification.make(labeled, tokenizer, max_tokens, seed),
    )


def run_tasks(model: Transformer, tokenizer: Tokenizer, tasks: Sequence[Task]) -> dict[str, TaskResult]:
    """Let a language model of any family do tasks, and leave it as it was; their results by name.

    Raises:
        UserError: the tokenizer lacks a token that the model needs, the model's context is shorter than an item, or an
            output is NaN.
    """
    return {task.name: task.run(model, tokenizer) for task in tasks}
