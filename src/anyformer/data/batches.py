"""Batches: batch(step) is a pure function of (data, seed, step), so there is no loader state to save.

The token stream is taken as a ring and cut into windows. Each epoch cuts it elsewhere, and shuffles the
windows with its own permutation; sample i of a run is window i % n of epoch i // n, so no window is dropped
or repeated within an epoch, across batches as well. A ring of n tokens is rarely a whole number of windows:
the last window of an epoch is then responsible only for what is left, and its other targets are ignored.
Every token is thus predicted exactly once an epoch, but for the very first, which has nothing before it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from anyformer.data.batch import Batch, Bool, Int64
from anyformer.data.causal import Causal
from anyformer.data.objectives import Objective
from anyformer.data.permutation import derive, permute
from anyformer.errors import UserError

Stream = npt.NDArray[np.integer]
_CUT, _ORDER, _NOISE, _VALIDATION = range(4)


class Batches:
    """Training batches of a token stream.

    Attributes:
        windows_per_epoch: number of samples in an epoch.
    """

    def __init__(
        self,
        tokens: Stream,
        context: int,
        batch_size: int,
        seed: int,
        objective: Objective | None = None,
    ) -> None:
        """Describe the batches; nothing is read yet.

        Args:
            tokens: [n] ids, such as `TokenFile.ids`.
            context: length in tokens of what the model reads.
            batch_size: rows of a batch.
            seed: decides the order, the cuts and the objective's randomness.
            objective: what is to be predicted; the next token by default.

        Raises:
            UserError: the stream is shorter than one window.
        """
        self._tokens = tokens
        self._objective: Objective = Causal() if objective is None else objective
        self._stride = _stride(self._objective, context)
        self._length = self._stride + self._objective.overlap
        if len(tokens) < self._length:
            raise UserError(
                f"The data is too short: {len(tokens)} tokens, and one context of {context} needs "
                f"{self._length}. Give more text or choose a shorter context."
            )
        self.batch_size = batch_size
        self.seed = seed
        self.windows_per_epoch = -(-len(tokens) // self._stride)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0: the same whenever and wherever it is asked for."""
        positions, owned = self._places(step)
        rng = np.random.default_rng((self.seed, _NOISE, step))
        return self._objective(self._read(positions), owned, None, rng, positions == 0)

    def windows(self, step: int) -> tuple[Int64, Bool]:
        """Return a step's windows, and which of their tokens they are responsible for.

        Both are [batch, stride + overlap].
        """
        positions, owned = self._places(step)
        return self._read(positions), owned

    def _read(self, positions: Int64) -> Int64:
        return self._tokens[positions].astype(np.int64)

    def _places(self, step: int) -> tuple[Int64, Bool]:
        """Where the tokens of a step's windows stand in the stream, and which the windows are responsible for."""
        samples = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)
        starts = np.empty_like(samples)
        sizes = np.empty_like(samples)
        epochs = samples // self.windows_per_epoch
        total = len(self._tokens)
        for epoch in np.unique(epochs).tolist():
            rows = epochs == epoch
            own = samples[rows] - epoch * self.windows_per_epoch
            window = permute(own, self.windows_per_epoch, derive(self.seed, _ORDER, epoch))
            cut = derive(self.seed, _CUT, epoch) % total
            starts[rows] = cut + window * self._stride
            sizes[rows] = np.minimum(self._stride, total - window * self._stride)
        offsets = np.arange(self._length)
        positions = (starts[:, None] + offsets) % total
        overlap = self._objective.overlap
        owned = (offsets >= overlap) & (offsets < sizes[:, None] + overlap)
        if overlap:
            owned &= positions != 0
        return positions, owned


def validation_batches(
    tokens: Stream,
    context: int,
    batch_size: int,
    objective: Objective | None = None,
    seed: int = 0,
    every: int = 1,
) -> Iterator[Batch]:
    """Yield the whole of a stream once and in order, nothing dropped; every batch has the same shape.

    The last window reaches back to fill its context, and the last batch repeats windows to be full: their targets
    that were counted already are ignored. A stream shorter than one window is padded, with a mask.

    Args:
        tokens: [n] ids, at least 2.
        context: length in tokens of what the model reads.
        batch_size: rows of a batch.
        objective: what is to be predicted; the next token by default.
        seed: decides the objective's randomness, the same at every evaluation.
        every: yield only every so many-th batch.

    Raises:
        UserError: there are fewer than two tokens.
    """
    objective = Causal() if objective is None else objective
    if len(tokens) < 2:
        raise UserError(
            f"The validation data is too short: {len(tokens)} tokens, at least 2 are needed. Give more text."
        )
    return _validation(tokens, _stride(objective, context), batch_size, objective, seed, every)


def count_validation_batches(tokens: int, context: int, batch_size: int, objective: Objective | None = None) -> int:
    """Return how many batches `validation_batches` makes of so many tokens. Raises UserError as it does."""
    objective = Causal() if objective is None else objective
    windows = -(-(tokens - objective.overlap) // _stride(objective, context))
    return -(-windows // batch_size)


def _validation(
    tokens: Stream, stride: int, batch_size: int, objective: Objective, seed: int, every: int
) -> Iterator[Batch]:
    overlap = objective.overlap
    length = stride + overlap
    total = len(tokens)
    count = -(-(total - overlap) // stride)
    offsets = np.arange(length)
    for first in range(0, count, batch_size * every):
        number = first // batch_size
        window = np.arange(first, first + batch_size)
        begin = np.minimum(window, count - 1) * stride
        starts = np.maximum(np.minimum(begin, total - length), 0)
        positions = starts[:, None] + offsets
        owned = (positions >= begin[:, None] + overlap) & (positions < total) & (window < count)[:, None]
        present = positions < total
        windows = np.where(present, tokens[np.minimum(positions, total - 1)], 0).astype(np.int64)
        rng = np.random.default_rng((seed, _VALIDATION, number))
        yield objective(windows, owned, None if present.all() else present, rng)


def _stride(objective: Objective, context: int) -> int:
    stride = objective.stride(context)
    if stride < 1:
        raise UserError(f"A context of {context} is too short for this objective: choose a longer one.")
    return stride
