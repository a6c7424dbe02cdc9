"""Answers of a classifier on texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from anyformer.checkpoint.by_name import takes_model
from anyformer.data.examples.asked import Texts, asked_texts
from anyformer.data.examples.columns import Columns
from anyformer.errors import UserError
from anyformer.evaluation.logits import is_regression, label_names, require_words, text_logits
from anyformer.model import Transformer
from anyformer.one_line import OneLine
from anyformer.tokenizer import Tokenizer

_LIKELY = 0.5
"""The probability above which one of several labels is taken for right, as in training and evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Classification(OneLine):
    """The answer of a classifier on a text.

    Attributes:
        labels: The likeliest label; of a model for several labels those whose probability is over 0.5, the likeliest
            first; none of a regression.
        scores: By the name of each label its probability, the highest first; of a regression the numbers.
        cut: Tokens of the text that were cut off, as it is longer than the model's context.
    """

    labels: tuple[str, ...]
    scores: Mapping[str, float]
    cut: int = 0

    @property
    def label(self) -> str | None:
        """The first of the labels; None: there is none."""
        return self.labels[0] if self.labels else None

    @property
    def value(self) -> float | None:
        """The number that a regression predicts; None: there are labels, or several numbers."""
        return next(iter(self.scores.values())) if not self.labels and len(self.scores) == 1 else None


@takes_model
def classify(
    model: Transformer,
    tokenizer: Tokenizer | None,
    texts: Texts,
    second: str | Sequence[str] | None = None,
    *,
    columns: Columns | Mapping[str, str] | None = None,
) -> list[Classification]:
    """Classify texts, or pairs of texts.

    Args:
        model, tokenizer: A model with a classification head, and its tokenizer. A text that is too long for the model
            is cut at its end, of a pair the longer one.
        texts: One string is a list of one. In their place may be rows, as `anyformer.evaluate` takes them: dicts, a
            data frame of pandas or polars, a `datasets.Dataset`; their labels are not read.
        second: The second text of each pair; one string is that of all. None: the texts are no pairs, or rows have
            both.
        columns: The names of columns of rows that aren't the usual ones, such as ``{"text": "review"}``.

    Returns:
        For each text its label and the probability of every label: the softmax of the logits, or for a model of several
        labels their sigmoid; the logits themselves are the numbers of a regression.

    Raises:
        UserError: a model without a classification head, no tokenizer, an empty text, other numbers of texts and second
            texts, rows without a column of texts, an output that is NaN.
    """
    pairs = asked_texts(texts, columns)
    texts = [text for text, _ in pairs]
    seconds = [own for _, own in pairs]
    if second is not None:
        seconds = [second] * len(texts) if isinstance(second, str) else list(second)
    if len(seconds) != len(texts):
        raise UserError(
            f"There are {len(texts)} texts and {len(seconds)} second texts: give one for each, or one for all."
        )
    require_words(texts)
    require_words([each for each in seconds if each is not None], "Second text")
    rows, cut = text_logits(model, tokenizer, list(zip(texts, seconds, strict=True)))
    names = label_names(model)
    logits = torch.from_numpy(rows)
    if is_regression(model):
        return [
            Classification(labels=(), scores=dict(zip(names, row, strict=True)), cut=tokens)
            for row, tokens in zip(logits.tolist(), cut, strict=True)
        ]
    several = model.config.head.problem_type == "multi_label_classification"
    probabilities = (logits.sigmoid() if several else logits.softmax(dim=-1)).numpy()
    answers = list[Classification]()
    for row, tokens in zip(probabilities, cut, strict=True):
        scores = {names[index]: float(row[index]) for index in np.argsort(-row, kind="stable")}
        labels = [name for name, score in scores.items() if score > _LIKELY] if several else list(scores)[:1]
        answers.append(Classification(labels=tuple(labels), scores=scores, cut=tokens))
    return answers
