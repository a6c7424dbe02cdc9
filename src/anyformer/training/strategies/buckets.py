"""Batches of a few shapes, for devices that compile a program for each."""

import dataclasses
from typing import Any

import numpy as np

from anyformer.config import ModelConfig
from anyformer.data.batch import IGNORED, Batch

_SHORTEST = 16
"""Tokens that a row has at least."""


def padded(batch: Batch, config: ModelConfig, devices: int = 1) -> Batch:
    """The batch with padding on the right, and with more rows, so that there are few shapes; its loss is the same.

    Rows get the next power of two as their length, or the longest that the model was made for. Where the loss is a mean
    over targets, their number becomes one that the devices can share: of 4, 5, 6 or 7 times a power of two.

    Args:
        config: That of the model.
    """
    arrays: dict[str, Any] = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
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
    return dataclasses.replace(batch, **arrays)


def _length(tokens: int, longest: int) -> int:
    return max(tokens, min(longest, max(_SHORTEST, 1 << (tokens - 1).bit_length())))


def _rows(rows: int, devices: int) -> int:
    step = 1 << max(0, (rows - 1).bit_length() - 3)
    rows = -(-rows // step) * step
    return -(-rows // devices) * devices
