"""Which of several texts a model thinks the likelier, whatever it was trained on.

The texts have the same number of tokens, and differ in a few places::

    decoder                     the cat | sat on              the rest, given what all have in common at the beginning
    masked                      [M] cat sat on, the [M] ...   each token, given those on both sides of it
    encoder-decoder, spans      the cat <0> on -> <0> sat     the places in which they differ, given all others
    encoder-decoder, prefixes   the cat -> sat on             as a decoder, with the beginning as the source
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from anyformer.config import SpecialTokens
from anyformer.data.masked import WordBoundaries
from anyformer.data.objectives import SpanCorruption
from anyformer.errors import UserError
from anyformer.evaluation.loglikelihood import Continuation, log_likelihoods
from anyformer.evaluation.pseudo_likelihood import MaskedText, pseudo_log_likelihoods
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """The scores of one model on one task.

    Items are the same, in the same order, for every model that is compared, so that differences can be judged in pairs.

    Attributes:
        name: Of the task, such as ``minimal_pairs``.
        measure: What the scores are, for people, such as ``accuracy``.
        chance: The mean that guessing has.
        items: The score of each item, from 0 (wrong) to 1 (right); empty where the task was left out.
        parts: The mean of each kind of item, or other figures of the same task, by name.
        controls: The scores of the same items by what the model is to be measured against, such as a bag of words.
        reason: Why the task was left out, one sentence; None: it wasn't.
    """

    name: str
    measure: str
    chance: float
    items: tuple[float, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    controls: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    reason: str | None = None

    @property
    def mean(self) -> float:
        """The mean score; NaN without items."""
        return math.fsum(self.items) / len(self.items) if self.items else math.nan


Objective = Literal["causal", "masked", "span_corruption", "prefix"]
"""Training objective of a model."""
Ids = tuple[int, ...]


class Choice(NamedTuple):
    """One of several texts that differ in a few places.

    Attributes:
        ids: Its tokens.
        places: First and last place, exclusive, of each stretch in which the texts differ; the first begins after 0.
    """

    ids: Ids
    places: tuple[tuple[int, int], ...]


def encode(text: str, tokenizer: Tokenizer) -> Ids:
    """The tokens of a text, without any around it."""
    return tuple(tokenizer.encode(text, special=False))


def differences(texts: Sequence[Ids]) -> tuple[tuple[int, int], ...]:
    """The stretches in which texts of the same number of tokens differ."""
    differs = [False, *(len(set(ids)) > 1 for ids in zip(*texts, strict=True)), False]
    edges = [place for place, (left, right) in enumerate(pairwise(differs)) if left != right]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def log_scores(
    model: Transformer, tokenizer: Tokenizer, choices: Sequence[Choice], objective: Objective | None, *, whole: bool
) -> list[float]:
    """How likely each of some texts is, in nats: comparable between texts that differ in the same places.

    Args:
        model, tokenizer: A language model of any family.
        choices: The texts.
        objective: What the model was trained on; None: what its stacks are for, and of an encoder-decoder span
            corruption where the tokenizer has sentinels.
        whole: Of masked models, whether all tokens are predicted; else those in which texts differ, as one word each
            stretch.

    Raises:
        UserError: the tokenizer lacks a token that the objective needs; and as `log_likelihoods` and
            `pseudo_log_likelihoods`.
    """
    objective = objective or _objective(model, tokenizer)
    if objective == "masked":
        return _masked(model, tokenizer, choices, whole=whole)
    if objective == "span_corruption":
        spans = SpanCorruption.of_tokenizer(tokenizer, SpecialTokens())
        asked = [_blanks(choice, spans) for choice in choices]
    elif objective == "prefix":
        asked = [_prefix(choice, tokenizer) for choice in choices]
    else:
        start = [id_ for id_ in (tokenizer.bos, tokenizer.separator) if id_ is not None][:1]
        asked = [Continuation((*start, *ids[: places[0][0]]), ids[places[0][0] :]) for ids, places in choices]
    return [each.logprob for each in log_likelihoods(model, asked)]


def _objective(model: Transformer, tokenizer: Tokenizer) -> Objective:
    if model.config.is_decoder_only:
        return "causal"
    if model.config.is_encoder_only:
        return "masked"
    return "prefix" if tokenizer.id("<extra_id_0>") is None else "span_corruption"


def _masked(model: Transformer, tokenizer: Tokenizer, choices: Sequence[Choice], *, whole: bool) -> list[float]:
    if tokenizer.mask is None:
        raise UserError("A masked model needs a tokenizer with a mask token, and this one has none.")
    before = [] if tokenizer.cls is None else [tokenizer.cls]
    after = [] if tokenizer.sep is None else [tokenizer.sep]
    boundaries = WordBoundaries.of_tokenizer(tokenizer)
    texts = list[MaskedText]()
    for ids, places in choices:
        row = np.array([[*before, *ids, *after]])
        number = boundaries.first(row)[0].cumsum()
        if whole:
            scored = range(len(before), len(before) + len(ids))
        else:
            scored = [len(before) + place for begin, end in places for place in range(begin, end)]
            for index, (begin, end) in enumerate(places, start=1):
                number[len(before) + begin : len(before) + end] = -index
        texts.append(MaskedText(row[0].tolist(), number.tolist(), scored))
    return [sum(scores) for scores in pseudo_log_likelihoods(model, texts, tokenizer.mask)]


def _blanks(choice: Choice, spans: SpanCorruption) -> Continuation:
    ids, places = choice
    if len(places) > len(spans.sentinels):
        places = ((places[0][0], places[-1][1]),)
    source, target = list[int](), list[int]()
    kept = 0
    for sentinel, (begin, end) in zip(spans.sentinels, places, strict=False):
        source += [*ids[kept:begin], sentinel]
        target += [sentinel, *ids[begin:end]]
        kept = end
    return Continuation([*source, *ids[kept:], spans.eos], [*target, spans.eos])


def _prefix(choice: Choice, tokenizer: Tokenizer) -> Continuation:
    ids, places = choice
    first = places[0][0]
    end = [] if tokenizer.eos is None else [tokenizer.eos]
    return Continuation([*ids[:first], *end], ids[first:])
