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

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from anyformer.config import ModelConfig
from anyformer.data.batch import IGNORED, Batch, Bool, Int64, Rng
from anyformer.data.masked import Masked
from anyformer.data.objectives import SpanCorruption, decoder_start
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer

AROUND = 2
"""Tokens of a context that are left for those around a text."""


@dataclass(frozen=True, slots=True)
class FromStart:
    """Predict all tokens of a window, the first one after a token that begins a text.

    Attributes:
        start: that token.
    """

    start: int

    def __call__(self, windows: Int64, rng: Rng) -> Batch:
        """Make a batch of [batch, window]."""
        tokens = np.concatenate([np.full((len(windows), 1), self.start), windows[:, :-1]], axis=1)
        return Batch(tokens, windows.copy())

    def restore(self, batch: Batch) -> Int64:
        """The windows that a batch was made of."""
        return np.asarray(batch.targets, dtype=np.int64)


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

    def restore(self, batch: Batch) -> Int64:
        """The windows that a batch was made of."""
        assert batch.source is not None
        return np.concatenate([batch.source[:, :-1], batch.targets], axis=1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Filling:
    """Predict masked tokens of a window, as BERT does."""

    masked: Masked

    def __call__(self, windows: Int64, rng: Rng) -> Batch:
        """Make a batch of [batch, window]."""
        return self.masked(windows, np.ones_like(windows, dtype=np.bool_), None, rng)

    def restore(self, batch: Batch) -> Int64:
        """The windows that a batch was made of."""
        whole = np.where(batch.targets == IGNORED, batch.tokens, batch.targets)
        end = whole.shape[1] - (self.masked.after is not None)
        return whole[:, int(self.masked.before is not None) : end].astype(np.int64)


@dataclass(frozen=True, slots=True)
class Spans:
    """Predict spans that were taken out of a window, as T5 does."""

    corruption: SpanCorruption

    def __call__(self, windows: Int64, rng: Rng) -> Batch:
        """Make a batch of [batch, window]."""
        return self.corruption(windows, np.ones_like(windows, dtype=np.bool_), None, rng)

    def restore(self, batch: Batch) -> Int64:
        """The windows that a batch was made of."""
        assert batch.source is not None
        rows: list[Int64] = []
        sentinels = np.array(self.corruption.sentinels)
        for source, targets in zip(batch.source[:, :-1], np.asarray(batch.targets)[:, :-1], strict=True):
            kept, hidden = (np.split(part, np.flatnonzero(np.isin(part, sentinels))) for part in (source, targets))
            spans = zip(kept, [*hidden[1:], hidden[0]], strict=True)  # before the first sentinel nothing is hidden
            parts = [(read[index > 0 :], span[1:]) for index, (read, span) in enumerate(spans)]
            rows.append(np.concatenate([piece for pair in parts for piece in pair]))
        return np.stack(rows).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Mixture:
    """Span corruption or continuation, each for one half of the batches."""

    spans: Spans
    continuation: Continuation

    def __call__(self, windows: Int64, rng: Rng) -> Batch:
        """Make a batch of [batch, window]."""
        return (self.spans if rng.random() < 0.5 else self.continuation)(windows, rng)

    def restore(self, batch: Batch) -> Int64:
        """The windows that a batch was made of."""
        corrupted = batch.tokens.shape[1] > 1 and bool(np.isin(batch.targets, self.spans.corruption.sentinels).any())
        return (self.spans if corrupted else self.continuation).restore(batch)


WindowObjective = FromStart | Filling | Mixture
"""Objective of a model that is trained on windows."""


@dataclass(frozen=True, slots=True)
class Windows:
    """An objective of `anyformer.data.Batches` whose windows are as long for every family."""

    overlap: ClassVar[int] = 0
    objective: WindowObjective

    def stride(self, context: int) -> int:
        """Tokens of a window."""
        return context - AROUND

    def __call__(
        self, windows: Int64, loss_mask: Bool, padding_mask: Bool | None, rng: Rng, stream_start: Bool | None = None
    ) -> Batch:
        """Make a batch. A token that an epoch reads twice, where its ring closes, is predicted twice."""
        return self.objective(windows, rng)


def window_objective(config: ModelConfig, tokenizer: Tokenizer) -> WindowObjective:
    """Choose how a model of this config is trained on windows, by its stacks alone.

    Raises:
        UserError: the tokenizer lacks a token that it needs.
    """
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
