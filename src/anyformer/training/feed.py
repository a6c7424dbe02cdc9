"""What a model is fed with: batches for training, a pure function of the step, and batches for validation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from anyformer.data.batch import Batch
from anyformer.data.batches import Batches, count_validation_batches, validation_batches
from anyformer.data.disk_cache import key
from anyformer.data.objectives import decoder_start, objective
from anyformer.data.pair_batches import PairBatches
from anyformer.data.pair_files import PairFile
from anyformer.data.token_files import TokenFile
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer
from anyformer.training.config import CompleteConfig

_TOKENS_AT_ONCE = 4096
"""Of a validation text, at least: without gradients there is memory for more than in training, and it is faster."""


class Feed(Protocol):
    """Batches, and how many there are.

    Attributes:
        steps_per_epoch: steps after which all of the data was seen once.
        validation_batches: how many batches the validation text has.
        digest: a hash of the ids, for training and validation.
    """

    steps_per_epoch: int
    validation_batches: int
    digest: str

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0: the same whenever and wherever it is asked for."""
        ...

    def validation(self, every: int = 1) -> Iterator[Batch]:
        """Yield every so many-th batch of the validation text, the same at every call."""
        ...

    def in_words(self) -> str:
        """How much there is, for people."""
        ...


class TextFeed:
    """Windows of a stream of tokens. See `Feed`."""

    def __init__(self, config: CompleteConfig, tokenizer: Tokenizer, training: TokenFile, held_out: TokenFile) -> None:
        """Describe the batches; nothing is read yet.

        Raises:
            UserError: a text is too short, or the tokenizer has no token that the objective needs.
        """
        self._config = config
        self._objective = objective(
            config.objective,
            tokenizer,
            document_masking=config.document_masking,
            whole_word_masking=config.whole_word_masking,
            tokens=config.model.special_tokens,
        )
        self._training, self._held_out = training, held_out
        self._batches = Batches(training.ids, config.context, config.batch_size, config.seed, self._objective)
        self.steps_per_epoch = -(-self._batches.windows_per_epoch // config.batch_size)
        tokens, context = len(held_out), config.context
        windows = count_validation_batches(tokens, context, 1, self._objective)
        self._rows = max(config.batch_size, min(_TOKENS_AT_ONCE // context, windows))
        self.validation_batches = count_validation_batches(tokens, context, self._rows, self._objective)
        self.validation()
        self.digest = key(training.header.digest, held_out.header.digest)

    def batch(self, step: int) -> Batch:
        """See `Feed`."""
        return self._batches.batch(step)

    def validation(self, every: int = 1) -> Iterator[Batch]:
        """See `Feed`."""
        config = self._config
        return validation_batches(self._held_out.ids, config.context, self._rows, self._objective, config.seed, every)

    def in_words(self) -> str:
        """See `Feed`."""
        return f"tokens     {len(self._training):,} to train on, {len(self._held_out):,} to validate on"


class PairFeed:
    """Pairs of about equal length. See `Feed`."""

    def __init__(self, config: CompleteConfig, tokenizer: Tokenizer, training: PairFile, held_out: PairFile) -> None:
        """Sort the pairs by length.

        Raises:
            UserError: there are no pairs to train on or none to validate on, or the tokenizer has no end or no padding.
        """
        if tokenizer.eos is None or tokenizer.pad is None:
            raise UserError(
                "Sequence to sequence needs a tokenizer with an end and a padding token, and this one lacks "
                f"{'an end' if tokenizer.eos is None else 'padding'}: train one with --tokenizer bpe:N."
            )
        if not len(held_out):
            raise UserError(f"There are {len(training)} pairs, too few to hold some out: give more, or --validation.")
        eos, pad = tokenizer.eos, tokenizer.pad
        start = decoder_start(config.model.special_tokens, tokenizer)

        def batches(pairs: PairFile) -> PairBatches:
            return PairBatches(
                pairs, config.batch_tokens, config.seed, eos=eos, pad=pad, start=start, context=config.context
            )

        self._batches, self._held_out = batches(training), batches(held_out)
        self._pairs = len(training), len(held_out)
        self.steps_per_epoch = self._batches.steps_per_epoch
        self.validation_batches = self._held_out.steps_per_epoch
        self.digest = key(training.digest, held_out.digest)

    def batch(self, step: int) -> Batch:
        """See `Feed`."""
        return self._batches.batch(step)

    def validation(self, every: int = 1) -> Iterator[Batch]:
        """See `Feed`."""
        return self._held_out.validation(every)

    def in_words(self) -> str:
        """See `Feed`."""
        training, held_out = self._pairs
        cut = self._batches.truncated + self._held_out.truncated
        told = f"; {cut:,} are too long and cut" if cut else ""
        return f"pairs      {training:,} to train on, {held_out:,} to validate on{told}"
