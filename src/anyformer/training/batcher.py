"""Batches for training, as a pure function of the step, and for validation; of few shapes for devices that compile."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np

from anyformer.config import ModelConfig
from anyformer.data.batch import IGNORED, Batch
from anyformer.data.batches import Batches, PairBatches, count_validation_batches, validation_batches
from anyformer.data.disk_cache import key
from anyformer.data.objectives import decoder_start, objective
from anyformer.data.pairs import PairFile
from anyformer.data.token_files import TokenFile
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer
from anyformer.training.config import CompleteConfig

_VALIDATION_TOKENS = 4096
"""Tokens of a validation batch, at least: without gradients there is memory for more than in training."""

_SHORTEST = 16
"""Tokens that a row has at least."""


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


def padded(batch: Batch, config: ModelConfig, devices: int = 1) -> Batch:
    """The batch with padding on the right, and with more rows, so that there are few shapes; its loss is the same.

    Rows get the next power of two as their length, or the longest that the model was made for. Where the loss is a mean
    over targets, their number becomes one that the devices can share: of 4, 5, 6 or 7 times a power of two.

    Args:
        config: That of the model.
    """
    arrays: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    per_token = config.head.kind in ("language_model", "token_classification") and batch.targets.ndim == 2
    # Nothing in a decoder that predicts each token sees what follows it, unless all tokens are counted.
    counts = config.settled_length is not None or config.feed_forward.experts is not None
    hidden = per_token and config.decoder_layers > 0 and not counts
    sides = [("tokens", "mask", "segments", "documents", *(("targets",) if per_token else ()))]
    for tokens, mask, *others in sides if batch.source is None else [*sides, ("source", "source_mask")]:
        length = arrays[tokens].shape[1]
        added = _length(length, config.max_length) - length
        if added and arrays[mask] is None and (tokens == "source" or not hidden):
            arrays[mask] = np.ones(arrays[tokens].shape, dtype=bool)
        for name in (tokens, mask, *others):
            if arrays[name] is not None:
                fill = IGNORED if name == "targets" else 0
                arrays[name] = np.pad(arrays[name], ((0, 0), (0, added)), constant_values=fill)
    added = _rows(len(batch.tokens), devices) - len(batch.tokens)
    if added and type(batch) is Batch:
        for name, array in arrays.items():
            if array is not None:
                arrays[name] = np.concatenate((array, array[-1:].repeat(added, axis=0)))
        arrays["targets"][-added:] = IGNORED
    return replace(batch, **arrays)


def _length(tokens: int, longest: int) -> int:
    return max(tokens, min(longest, max(_SHORTEST, 1 << (tokens - 1).bit_length())))


def _rows(rows: int, devices: int) -> int:
    step = 1 << max(0, (rows - 1).bit_length() - 3)
    rows = -(-rows // step) * step
    return -(-rows // devices) * devices
