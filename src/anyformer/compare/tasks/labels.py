"""Texts with classes for a classifier: from a file of one's own, or from the corpus itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from anyformer.compare.tasks.words import passages, words
from anyformer.data.examples import ClassifyExample
from anyformer.data.examples.held_out import held_out
from anyformer.errors import UserError
from anyformer.tasks.classify import TASK
from anyformer.tasks.loading import load_examples
from anyformer.tokenizer import Tokenizer

TRAINING, TEST = 1_000, 400
"""Examples, at most."""
_DOCUMENTS, _FEWEST_PASSAGES = 4, 100
"""Texts that passages are told apart by, and passages that each of them has."""
_LARGEST_SHARE = 0.3
"""Largest share of a file that is held out."""

Labeled = tuple[str, int]
"""A text, and the number of its class."""


class LabeledTexts(NamedTuple):
    """Texts with their classes.

    Attributes:
        training, test: Texts with the number of their class; none is in both.
        labels: The names of the classes.
    """

    training: Sequence[Labeled]
    test: Sequence[Labeled]
    labels: Sequence[str]


def read_labeled_texts(paths: Sequence[str], seed: int = 0) -> LabeledTexts:
    """Read examples as `anyformer finetune --task classify` does, and hold some of them out.

    Args:
        paths: Files of texts and labels.
        seed: Of which are held out.

    Raises:
        UserError: A file can't be read, a row is faulty, all labels are the same, or texts have several labels or
            numbers to be predicted.
    """
    found = load_examples(paths, task=TASK.name, training=True)
    if found.kind != "single" or found.labels is None:
        what = "numbers to be predicted" if found.kind == "regression" else "several labels a text"
        raise UserError(f"{paths[0]} has {what}, and a comparison takes texts with one label each.")
    examples = cast("Sequence[ClassifyExample]", found.examples)
    numbers = {name: number for number, name in enumerate(found.labels)}

    def labeled(example: ClassifyExample) -> Labeled:
        text = example.text if example.second is None else f"{example.text}\n{example.second}"
        return text, numbers[str(example.label)]

    parts = cast(
        "Sequence[Sequence[ClassifyExample]]", held_out(examples, min(_LARGEST_SHARE, TEST / len(examples)), seed)
    )
    training, test = ([labeled(example) for example in part] for part in parts)
    return LabeledTexts(training, test, found.labels)


def by_document(texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int, seed: int) -> LabeledTexts | None:
    """Passages of the four longest texts, as many of each: which text are they from? None without two long ones."""
    count = (TRAINING + TEST) // _DOCUMENTS
    longest = sorted(texts, key=len, reverse=True)[:_DOCUMENTS]
    found = [passages([text], tokenizer, count=count, max_tokens=max_tokens, seed=seed) for text in longest]
    found = [each for each in found if len(each) >= _FEWEST_PASSAGES]
    if len(found) < 2:
        return None
    size = min(map(len, found))
    cut = size * TRAINING // (TRAINING + TEST)
    training = [(text, label) for label, each in enumerate(found) for text in each[:cut]]
    known = {text for text, _ in training}
    test = [(text, label) for label, each in enumerate(found) for text in each[cut:size] if text not in known]
    return LabeledTexts(training, test, [f"text {number}" for number in range(1, len(found) + 1)])


def by_order(training: Sequence[str], test: Sequence[str], seed: int) -> LabeledTexts:
    """Passages of which every second one is shuffled: are their words in order?"""
    rng = np.random.default_rng(seed)
    first, second = (
        [(_shuffled(text, rng) if number % 2 else text, number % 2) for number, text in enumerate(texts)]
        for texts in (training, test)
    )
    return LabeledTexts(first, second, ("in order", "shuffled"))


def _shuffled(passage: str, rng: np.random.Generator) -> str:
    """A passage whose words, but for the first and the last, are in another order; what is between them stays."""
    found = words(passage)
    inner = (1 + rng.permutation(max(0, len(found) - 2))).tolist()
    parts, end = list[str](), 0
    for word, other in zip(found[1:-1], inner, strict=True):
        parts += [passage[end : word.begin], found[other].text]
        end = word.end
    return "".join([*parts, passage[end:]])
