"""The choice of the likelier of several texts by a model, whatever it was trained on.

The texts have the same number of tokens, and differ in a few places::

    decoder                     the cat | sat on              the rest, given what all have in common at the beginning
    masked                      [M] cat sat on, the [M] ...   each token, given those on both sides of it
    encoder-decoder, spans      the cat <0> on -> <0> sat     the places in which they differ, given all others
    encoder-decoder, prefixes   the cat -> sat on             as a decoder, with the beginning as the source
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from anyformer.config import SpecialTokens
from anyformer.data.masked import WordBoundaries
from anyformer.data.objectives import SpanCorruption
from anyformer.errors import UserError
from anyformer.evaluation.scorer import Continuation, MaskedText, log_likelihoods, pseudo_log_likelihoods
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

_TIE = 1e-4
"""Nats below which a difference is rounding."""

Ids = tuple[int, ...]
Span = tuple[int, int]
"""Index of the first token, and of the one behind the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """The scores of one model on one task.

    Items are the same, in the same order, for every model that is compared, so that differences can be judged in pairs.

    Attributes:
        items: The score of each item, from 0 (wrong) to 1 (right); empty where the task was left out.
        parts: The mean of each kind of item, by name.
        controls: The scores of the same items by what the model is to be measured against, such as a bag of words.
        reason: Why the task was left out, one sentence; None: it wasn't.
    """

    name: str
    chance: float
    items: tuple[float, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    controls: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    reason: str | None = None


class Choice(NamedTuple):
    """The tokens of one of several texts, and the stretches in which these differ; the first begins after 0."""

    ids: Ids
    spans: tuple[Span, ...]


class Item(NamedTuple):
    """Texts of which the first is right; `kind` is how the others were made, if there are several ways."""

    kind: str
    texts: tuple[str, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceTask:
    """A task that a model does by the likelihood of texts.

    Attributes:
        options: Texts of each item.
        whole: Of masked models, whether all tokens are predicted; else those in which texts differ.
        reason: Why it is left out; None: it isn't.
    """

    name: str
    options: int
    whole: bool
    items: tuple[Item, ...] = ()
    reason: str | None = None

    def run(self, model: Transformer, tokenizer: Tokenizer) -> TaskResult:
        """Score a model. Raises UserError as `log_scores`."""
        choices = [choice for item in self.items for choice in item.choices]
        likelihoods = np.array(log_scores(model, tokenizer, choices, whole=self.whole)).reshape(-1, self.options)
        # Where others tie with the right one, as much of the point as a guess among them would earn.
        best = likelihoods > likelihoods.max(axis=1, keepdims=True) - _TIE
        scores: list[float] = (best[:, 0] / best.sum(axis=1)).tolist()
        by_kind = defaultdict[str, list[float]](list)
        for item, score in zip(self.items, scores, strict=True):
            if item.kind:
                by_kind[item.kind].append(score)
        parts = {kind: sum(own) / len(own) for kind, own in by_kind.items()}
        chance = 1 / self.options
        return TaskResult(name=self.name, chance=chance, items=tuple(scores), parts=parts, reason=self.reason)


def encode(text: str, tokenizer: Tokenizer) -> Ids:
    """The tokens of a text, without any around it."""
    return tuple(tokenizer.encode(text, special=False))


def differences(texts: Sequence[Ids]) -> tuple[Span, ...]:
    """The stretches in which texts of the same number of tokens differ."""
    differs = [False, *(len(set(ids)) > 1 for ids in zip(*texts, strict=True)), False]
    edges = [index for index, (left, right) in enumerate(pairwise(differs)) if left != right]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def log_scores(model: Transformer, tokenizer: Tokenizer, choices: Sequence[Choice], *, whole: bool) -> list[float]:
    """Score how likely some texts are, in nats: comparable between texts that differ in the same places.

    Args:
        model, tokenizer: A language model of any family; an encoder-decoder was trained on span corruption if the
            tokenizer has sentinels, else on continuations.
        whole: Of masked models, whether all tokens are predicted; else those in which texts differ, as one word each
            stretch.

    Raises:
        UserError: the tokenizer lacks a token that the model needs; and as `log_likelihoods` and
            `pseudo_log_likelihoods`.
    """
    if model.config.is_encoder_only:
        return _masked(model, tokenizer, choices, whole=whole)
    if model.config.is_decoder_only:
        start = [id_ for id_ in (tokenizer.bos, tokenizer.separator) if id_ is not None][:1]
        continuations = [Continuation((*start, *ids[: spans[0][0]]), ids[spans[0][0] :]) for ids, spans in choices]
    elif tokenizer.id("<extra_id_0>") is None:
        end = [] if tokenizer.eos is None else [tokenizer.eos]
        continuations = [Continuation((*ids[: spans[0][0]], *end), ids[spans[0][0] :]) for ids, spans in choices]
    else:
        corruption = SpanCorruption.of_tokenizer(tokenizer, SpecialTokens())
        continuations = [_blanks(choice, corruption) for choice in choices]
    return [each.logprob for each in log_likelihoods(model, continuations)]


def _masked(model: Transformer, tokenizer: Tokenizer, choices: Sequence[Choice], *, whole: bool) -> list[float]:
    if tokenizer.mask is None:
        raise UserError("A masked model needs a tokenizer with a mask token, and this one has none.")
    before = [] if tokenizer.cls is None else [tokenizer.cls]
    after = [] if tokenizer.sep is None else [tokenizer.sep]
    boundaries = WordBoundaries.of_tokenizer(tokenizer)
    texts = list[MaskedText]()
    for ids, spans in choices:
        row = np.array([[*before, *ids, *after]])
        number = boundaries.first(row)[0].cumsum()
        scored = range(len(before), len(before) + len(ids))
        if not whole:
            scored = [len(before) + index for begin, end in spans for index in range(begin, end)]
            for index, (begin, end) in enumerate(spans, start=1):
                number[len(before) + begin : len(before) + end] = -index
        texts.append(MaskedText(row[0].tolist(), number.tolist(), scored))
    return [sum(scores) for scores in pseudo_log_likelihoods(model, texts, tokenizer.mask)]


def _blanks(choice: Choice, corruption: SpanCorruption) -> Continuation:
    """The spans as the target, and the rest as the source, with sentinels as in training."""
    ids, spans = choice
    if len(spans) > len(corruption.sentinels):
        spans = ((spans[0][0], spans[-1][1]),)
    source, target = list[int](), list[int]()
    kept = 0
    for sentinel, (begin, end) in zip(corruption.sentinels, spans, strict=False):
        source += [*ids[kept:begin], sentinel]
        target += [sentinel, *ids[begin:end]]
        kept = end
    return Continuation([*source, *ids[kept:], corruption.eos], [*target, corruption.eos])
