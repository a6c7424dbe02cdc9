"""Windows of text, equal for every family, and the tokens that a model reads and predicts of them.

A window is a stretch of the stream of tokens, two shorter than the context. Every objective takes the same windows in
the same order, and every model reads each of them whole::

    window              the cat sat on the mat
    causal              <s> the cat sat on the             ->  the cat sat on the mat
    masked              <s> the [M] sat on the [M] </s>    ->  cat, mat
    encoder-decoders, one half of the batches
      span corruption   the <0> on the <1> </s>            ->  <0> cat sat <1> mat </s>
    and the other
      continuation      the cat sat </s>                   ->  on the mat

Continuation is the S-denoising of Tay et al. (2022, UL2, section 3.1.1), and a half of each is within what they found
to work: it makes encoder-decoders writers whose text can be measured beside that of decoders.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from anyformer.config import ModelConfig
from anyformer.data.batch import Batch, Bool, Int64, Rng
from anyformer.data.masked import Masked
from anyformer.data.objectives import SpanCorruption, decoder_start
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer

AROUND = 2
"""Tokens of a context that are left for those around a text."""


@dataclass(frozen=True, slots=True)
class FromStart:
    """Predict all tokens of a window, the first one after `start`, a token that begins a text."""

    start: int

    def __call__(self, windows: Int64, rng: Rng) -> Batch:
        """Make a batch of [batch, window]."""
        tokens = np.concatenate([np.full((len(windows), 1), self.start), windows[:, :-1]], axis=1)
        return Batch(tokens, windows.copy())


@dataclass(frozen=True, slots=True)
class Continuation:
    """Read the beginning of a window, and predict the rest.

    Attributes:
        start: the decoder's first input.
        eos: ends the source.
        share: of the window that is read; None: from a quarter to three quarters of it, drawn for each batch.
    """

    start: int
    eos: int
    share: float | None = None

    def __call__(self, windows: Int64, rng: Rng) -> Batch:
        """Make a batch of [batch, window]."""
        share = rng.uniform(0.25, 0.75) if self.share is None else self.share
        source, rest = np.split(windows, [cut(windows.shape[1], share)], axis=1)
        batch = FromStart(self.start)(rest, rng)
        return replace(batch, source=np.concatenate([source, np.full((len(source), 1), self.eos)], axis=1))


@dataclass(frozen=True, slots=True)
class Filling:
    """Predict masked tokens of a window, as BERT does."""

    masked: Masked

    def __call__(self, windows: Int64, rng: Rng) -> Batch:
        """Make a batch of [batch, window]."""
        return self.masked(windows, np.ones_like(windows, dtype=np.bool_), None, rng)


@dataclass(frozen=True, slots=True)
class Spans:
    """Predict spans that were taken out of a window, as T5 does."""

    corruption: SpanCorruption

    def __call__(self, windows: Int64, rng: Rng) -> Batch:
        """Make a batch of [batch, window]."""
        return self.corruption(windows, np.ones_like(windows, dtype=np.bool_), None, rng)


@dataclass(frozen=True, slots=True)
class Mixture:
    """Span corruption or continuation, each for one half of the batches."""

    spans: Spans
    continuation: Continuation

    def __call__(self, windows: Int64, rng: Rng) -> Batch:
        """Make a batch of [batch, window]."""
        return (self.spans if rng.random() < 0.5 else self.continuation)(windows, rng)


WindowObjective = FromStart | Filling | Mixture
"""Objective of a model that is trained on windows."""


@dataclass(frozen=True, slots=True)
class Windows:
    """An objective of `anyformer.data.Batches` with windows as long for every family; `seen` is called with them."""

    overlap: ClassVar[int] = 0
    objective: WindowObjective
    seen: Callable[[Int64], None] = lambda windows: None

    def stride(self, context: int) -> int:
        """Tokens of a window."""
        return context - AROUND

    def __call__(
        self, windows: Int64, loss_mask: Bool, padding_mask: Bool | None, rng: Rng, stream_start: Bool | None = None
    ) -> Batch:
        """Make a batch. A token that an epoch reads twice, where its ring closes, is predicted twice."""
        self.seen(windows)
        return self.objective(windows, rng)


def window_objective(config: ModelConfig, tokenizer: Tokenizer) -> WindowObjective:
    """The objective of a model with these stacks. Raises UserError where the tokenizer lacks a token that it needs."""
    if config.is_encoder_only:
        return Filling(Masked.of_tokenizer(tokenizer))
    if config.is_encoder_decoder:
        if tokenizer.eos is None:
            raise UserError("A source ends with a token, and this tokenizer has none for the end of a text.")
        spans = Spans(SpanCorruption.of_tokenizer(tokenizer, config.special_tokens))
        return Mixture(spans, Continuation(decoder_start(config.special_tokens, tokenizer), tokenizer.eos))
    start = tokenizer.bos if tokenizer.bos is not None else tokenizer.separator
    if start is None:
        raise UserError("A decoder begins a text after a token, and this tokenizer has none that could begin one.")
    return FromStart(start)


def cut(window: int, share: float) -> int:
    """Tokens of a window that are its beginning: at least one, and not all."""
    return min(max(round(share * window), 1), window - 1)
