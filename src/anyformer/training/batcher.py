"""Batches for training, as a pure function of the step, and for validation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from anyformer.data.batch import Batch
from anyformer.data.batches import Batches, count_validation_batches, validation_batches
from anyformer.data.disk_cache import key
from anyformer.data.objectives import decoder_start, objective
from anyformer.data.pair_batches import PairBatches
from anyformer.data.pairs import PairFile
from anyformer.data.token_files import TokenFile
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer
from anyformer.training.config import CompleteConfig

_VALIDATION_TOKENS = 4096
"""Tokens of a validation batch, at least: without gradients there is memory for more than in training."""


@dataclass(frozen=True, slots=True)
class Batcher:
    """The batches of a run.

    Attributes:
        batch: the batch of a step, counted from 0, as a pure function.
        validation: one in every `every` batches (1 by default) of the validation text, the same at every call.
        steps_per_epoch: steps after which all of the data was seen once.
        validation_batches: number of batches of the validation text.
        validation_size: tokens of the validation text and its bytes in UTF-8, which turn a loss into bits per byte;
            None where the loss is not that of the whole text.
        digest: a hash of the ids, for training and validation.
        summary: the amount of data, for people.
    """

    batch: Callable[[int], Batch]
    validation: Callable[..., Iterator[Batch]]
    steps_per_epoch: int
    validation_batches: int
    validation_size: tuple[int, int] | None
    digest: str
    summary: str


def text_batches(config: CompleteConfig, tokenizer: Tokenizer, training: TokenFile, held_out: TokenFile) -> Batcher:
    """Windows of a stream of tokens; nothing is read yet.

    Raises:
        UserError: a text is too short, or the tokenizer has no token that the objective needs.
    """
    chosen = objective(
        config.objective,
        tokenizer,
        document_masking=config.document_masking,
        whole_word_masking=config.whole_word_masking,
        tokens=config.model.special_tokens,
    )
    batches = Batches(training.ids, config.context, config.batch_size, config.seed, chosen)
    windows = count_validation_batches(len(held_out), config.context, 1, chosen)
    rows = max(config.batch_size, min(_VALIDATION_TOKENS // config.context, windows))
    validation = partial(validation_batches, held_out.ids, config.context, rows, chosen, config.seed)
    validation()  # raises where the text is too short
    return Batcher(
        batches.batch,
        validation,
        steps_per_epoch=-(-batches.windows_per_epoch // config.batch_size),
        validation_batches=count_validation_batches(len(held_out), config.context, rows, chosen),
        validation_size=(len(held_out), held_out.header.bytes) if config.objective == "causal" else None,
        digest=key(training.header.digest, held_out.header.digest),
        summary=f"tokens     {len(training):,} to train on, {len(held_out):,} to validate on",
    )


def pair_batches(config: CompleteConfig, tokenizer: Tokenizer, training: PairFile, held_out: PairFile) -> Batcher:
    """Pairs of source and target, of about equal length in a batch.

    Raises:
        UserError: there are no pairs to train on or none to validate on, or the tokenizer has no end or no padding.
    """
    eos, pad = tokenizer.eos, tokenizer.pad
    if eos is None or pad is None:
        raise UserError(
            "Sequence to sequence needs a tokenizer with an end and a padding token, and this one lacks "
            f"{'an end' if eos is None else 'padding'}: train one with --tokenizer bpe:N."
        )
    if not len(held_out):
        raise UserError(f"There are {len(training)} pairs, too few to hold some out: give more, or --validation.")
    start = decoder_start(config.model.special_tokens, tokenizer)
    batches, validation = (
        PairBatches(pairs, config.batch_tokens, config.seed, eos=eos, pad=pad, start=start, context=config.context)
        for pairs in (training, held_out)
    )
    cut = batches.truncated + validation.truncated
    note = f"; {cut:,} are too long and cut" if cut else ""
    return Batcher(
        batches.batch,
        validation.validation,
        steps_per_epoch=batches.steps_per_epoch,
        validation_batches=validation.steps_per_epoch,
        validation_size=None,
        digest=key(training.digest, held_out.digest),
        summary=f"pairs      {len(training):,} to train on, {len(held_out):,} to validate on{note}",
    )
