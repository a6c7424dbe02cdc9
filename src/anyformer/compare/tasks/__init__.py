"""Tasks that every family of transformers can do after training on a text, made from that text alone.

::

    tasks = make_tasks(train_texts, held_out_texts, tokenizer, seed=0)    # the same items for every contender
    results = run_tasks(model, tokenizer, tasks)                          # {"minimal_pairs": TaskResult(...), ...}
"""

from collections.abc import Callable, Sequence

from anyformer.compare.tasks.choices import Objective, TaskResult
from anyformer.compare.tasks.classifier import Classification
from anyformer.compare.tasks.cloze import Cloze
from anyformer.compare.tasks.labels import TRAINING, LabeledTexts, by_document, by_order, read_labeled_texts
from anyformer.compare.tasks.minimal_pairs import MinimalPairs
from anyformer.compare.tasks.words import WordStatistics, passages
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

__all__ = ["LabeledTexts", "Objective", "Task", "TaskResult", "make_tasks", "read_labeled_texts", "run_tasks"]

Task = MinimalPairs | Cloze | Classification

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
        train_texts: What models are trained on; it says which words are frequent.
        held_out_texts: What they are judged on: all items are from there, and none of their passages occurs in the
            training texts.
        tokenizer: That of all models.
        seed: Of what is drawn.
        max_tokens: Tokens of an item; two less than the shortest context of a model leave room for those around it.
        labeled: Texts for the classifier instead of the corpus's, see `read_labeled_texts`.

    Returns:
        All tasks. One that the texts are too short for has no items, and says why.
    """
    known = WordStatistics.of(train_texts, held_out_texts)
    held_out = passages(
        held_out_texts, tokenizer, count=_PASSAGES, max_tokens=max_tokens, seed=seed, unlike=train_texts
    )
    labeled = labeled or by_document(held_out_texts, tokenizer, max_tokens, seed)
    if labeled is None:
        training = passages(train_texts, tokenizer, count=TRAINING, max_tokens=max_tokens, seed=seed)
        labeled = by_order(training, held_out, seed)
    return (
        MinimalPairs.make(held_out, held_out_texts, known, tokenizer, seed),
        Cloze.make(held_out, known, tokenizer, seed),
        Classification.make(labeled, tokenizer, max_tokens, seed),
    )


def run_tasks(
    model: Transformer,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    objective: Objective | None = None,
    *,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, TaskResult]:
    """Let a model do tasks. It is left as it was.

    Args:
        model, tokenizer: A language model of any family.
        tasks: As `make_tasks` made them.
        objective: What the model was trained on, which says how its likelihoods are had; None: what its stacks are
            for, and of an encoder-decoder span corruption where the tokenizer has sentinels.
        progress: Called with the name of each task that is done.

    Returns:
        The result of each task by its name, in order.

    Raises:
        UserError: the tokenizer lacks a token that the objective needs, the model's context is shorter than an item,
            or an output is NaN.
    """
    results = dict[str, TaskResult]()
    for task in tasks:
        results[task.name] = task.run(model, tokenizer, objective)
        progress(task.name)
    return results
