"""Training objectives: inputs and targets of windows of the token stream.

An objective is a pure function from windows to a Batch; its randomness comes from a generator that is passed in. A new
one is a class and an entry in OBJECTIVES. (Sequence to sequence has pairs and no windows, see `pair_batches`.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import numpy as np

from anyformer.config import SpecialTokens
from anyformer.data.batch import IGNORED, Batch, Bool, Int64
from anyformer.data.causal import Causal
from anyformer.data.masked import Masked, WordBoundaries
from anyformer.data.span_corruption import SpanCorruption
from anyformer.errors import UserError, nearest
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.whole_words import word_boundaries

__all__ = [
    "IGNORED",
    "OBJECTIVES",
    "Batch",
    "Bool",
    "Causal",
    "Int64",
    "Masked",
    "Objective",
    "SpanCorruption",
    "decoder_start",
    "objective",
]


class Objective(Protocol):
    """A function from windows of the token stream to batches."""

    @property
    def overlap(self) -> int:
        """The number of tokens that a window shares with the next one."""
        ...

    def stride(self, context: int) -> int:
        """The distance between two windows, in tokens; less than 1 where the context is too short."""
        ...

    def __call__(
        self,
        windows: Int64,
        loss_mask: Bool,
        padding_mask: Bool | None,
        rng: np.random.Generator,
        stream_start: Bool | None = None,
    ) -> Batch:
        """Make a batch.

        Args:
            windows: [batch, stride + overlap] ids.
            loss_mask: [batch, stride + overlap], True for tokens that may be targets in this window. Each token of the
                stream is True in one window an epoch.
            padding_mask: [batch, stride + overlap], True for tokens that aren't padding, which is on the right; None
                without padding.
            rng: the only source of randomness.
            stream_start: [batch, stride + overlap], True for the first token of the stream, which the ring puts after
                the last one; None: it can only be the first of a window.
        """
        ...


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user may choose about an objective.

    Attributes:
        document_masking: causal: attention and positions begin anew with each document.
        whole_word_masking: masked: hide whole words.
        tokens: encoder-decoders: the model's special tokens, which say with what its decoder starts.
    """

    document_masking: bool = False
    whole_word_masking: bool = False
    tokens: SpecialTokens = field(default_factory=SpecialTokens)


def causal(tokenizer: Tokenizer, choices: Choices) -> Causal:
    """The causal objective. Raises UserError when documents are to be kept apart and no token does."""
    if not choices.document_masking:
        return Causal()
    if tokenizer.separator is None:
        raise UserError(
            "--document-masking needs a token between documents, and this tokenizer has none: the data is a single "
            "document, or the tokenizer was made for one. Leave it out or choose another tokenizer."
        )
    return Causal(reset=True, separator=tokenizer.separator)


def masked(tokenizer: Tokenizer, choices: Choices) -> Masked:
    """The masked objective for a tokenizer. Raises UserError when it has no mask token."""
    if tokenizer.mask is None:
        raise UserError(
            "Masked training needs a tokenizer with a mask token, and this one has none: train one with "
            "--tokenizer wordpiece:N, or choose a decoder-only model."
        )
    special = np.array(sorted(tokenizer.special_ids), dtype=np.int64)
    ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size, dtype=np.int64), special)
    if not ordinary.size:
        raise UserError("Masked training needs a tokenizer with ordinary tokens, and all of this one's are special.")
    words = None
    if choices.whole_word_masking:
        left, right = word_boundaries(tokenizer.backend)
        left, right = np.array(left), np.array(right)
        left[special] = right[special] = False
        words = WordBoundaries(left, right)
    return Masked(tokenizer.mask, ordinary, special, tokenizer.cls, tokenizer.sep, words=words)


def span_corruption(tokenizer: Tokenizer, choices: Choices) -> SpanCorruption:
    """Span corruption for a tokenizer. Raises UserError when it has no sentinels, no end or no padding token."""
    sentinels: list[int] = []
    for number in count():
        id_ = tokenizer.id(f"<extra_id_{number}>")
        if id_ is None:
            break
        sentinels.append(id_)
    if not sentinels or tokenizer.eos is None or tokenizer.pad is None:
        raise UserError(
            "Span corruption needs a tokenizer with sentinels (<extra_id_0> ...), an end and a padding token, and this "
            "one lacks some: train one with --tokenizer unigram:N or bpe:N, or choose another objective."
        )
    start = decoder_start(choices.tokens, tokenizer)
    return SpanCorruption(tuple(sentinels), tokenizer.eos, start, tokenizer.pad)


def decoder_start(tokens: SpecialTokens, tokenizer: Tokenizer) -> int:
    """The id of the decoder's first input in this tokenizer: the token with the same role as in the model's own.

    Args:
        tokens: the special tokens of the model's preset, in the ids of its own tokenizer: which role they give to
            `decoder_start` is what counts (T5, Marian: padding; BART: end).
        tokenizer: the one that the model will be trained with.

    Raises:
        UserError: the tokenizer has no token in any role that would do.
    """
    usual = (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.cls)
    roles = ((tokens.pad, tokenizer.pad), (tokens.bos, tokenizer.bos), *((id_, tokenizer.eos) for id_ in tokens.eos))
    same = [ours for theirs, ours in roles if theirs is not None and theirs == tokens.decoder_start]
    for id_ in (*same, *usual):
        if id_ is not None:
            return id_
    raise UserError(
        "An encoder-decoder needs a tokenizer with a padding, a beginning or an end token for its decoder to start "
        "with, and this one has none: train one with --tokenizer bpe:N."
    )


OBJECTIVES: dict[str, Callable[[Tokenizer, Choices], Objective]] = {
    "causal": causal,
    "masked": masked,
    "span_corruption": span_corruption,
}


def objective(
    name: str,
    tokenizer: Tokenizer,
    *,
    document_masking: bool = False,
    whole_word_masking: bool = False,
    tokens: SpecialTokens | None = None,
) -> Objective:
    """Return the objective of a name for a tokenizer.

    Args:
        name: a key of OBJECTIVES.
        tokenizer: whose ids the windows hold.
        document_masking: causal: attention and positions begin anew with each document.
        whole_word_masking: masked: hide whole words.
        tokens: encoder-decoders: the special tokens of the model's preset, see `decoder_start`.

    Raises:
        UserError: there is no such objective, or the tokenizer lacks a token that it needs.
    """
    if name not in OBJECTIVES:
        raise UserError(f"There is no objective called {name!r}: {nearest(name, OBJECTIVES)}")
    return OBJECTIVES[name](tokenizer, Choices(document_masking, whole_word_masking, tokens or SpecialTokens()))
