"""Batches of a token stream: batch(step) is a pure function of (data, seed, step), so there is no loader state to save.

A *window* is a stretch of the stream as long as the model's context; a *batch* has `batch_size` windows, one a row.
Windows pay no heed to where documents end. The stream is taken as a ring and cut into windows side by side. Each epoch
cuts it at another offset, and shuffles the windows by its own permutation: sample i of a run is window i % n of epoch
i // n, so no window is dropped or repeated within an epoch, across batches as well. Where the ring is not a whole
number of windows, the last window of an epoch overlaps the first, and the targets that both have are ignored in it.
Every token is thus predicted exactly once an epoch, but for the very first, which has nothing before it.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from anyformer.data.batch import Batch, Bool, Int64
from anyformer.data.feistel_shuffle import feistel_shuffle, mix_seed
from anyformer.data.objectives import Causal, Objective
from anyformer.errors import UserError

Stream = npt.NDArray[np.integer]
_OFFSET, _ORDER, _NOISE, _VALIDATION = range(4)


class Batches:
    """Training batches of a token stream; an epoch has `windows_per_epoch` samples."""

    def __init__(
        self, tokens: Stream, context: int, batch_size: int, seed: int, objective: Objective | None = None
    ) -> None:
        """Nothing is read yet.

        Args:
            tokens: [n] ids, such as `TokenFile.ids`.
            context: the number of tokens that the model reads.
            batch_size: windows a batch.
            seed: of the order, the offsets and the objective.
            objective: makes batches of windows; None: `Causal`.

        Raises:
            UserError: the stream is shorter than one window.
        """
        self._tokens = tokens
        self._objective = objective or Causal()
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
        """Samples of an epoch."""

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0: the same whenever and wherever it is asked for."""
        positions, loss_mask = self._positions(step)
        rng = np.random.default_rng((self.seed, _NOISE, step))
        windows = self._tokens[positions].astype(np.int64)
        return self._objective(windows, loss_mask, None, rng, positions == 0)

    def _positions(self, step: int) -> tuple[Int64, Bool]:
        """The positions in the stream of a step's windows, and their loss mask, both [batch, stride + overlap]."""
        samples = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)
        starts, sizes = np.empty_like(samples), np.empty_like(samples)
        epochs = samples // self.windows_per_epoch
        total = len(self._tokens)
        for epoch in np.unique(epochs).tolist():
            rows = epochs == epoch
            own = samples[rows] - epoch * self.windows_per_epoch
            window = feistel_shuffle(own, self.windows_per_epoch, mix_seed(self.seed, _ORDER, epoch))
            starts[rows] = mix_seed(self.seed, _OFFSET, epoch) % total + window * self._stride
            sizes[rows] = np.minimum(self._stride, total - window * self._stride)
        offsets = np.arange(self._length)
        positions = (starts[:, None] + offsets) % total
        overlap = self._objective.overlap
        loss_mask = (offsets >= overlap) & (offsets < sizes[:, None] + overlap)
        if overlap:
            loss_mask &= positions != 0
        return positions, loss_mask


def validation_batches(
    tokens: Stream, context: int, batch_size: int, objective: Objective | None = None, seed: int = 0, every: int = 1
) -> Iterator[Batch]:
    """Yield the whole of a stream once and in order, nothing dropped; every batch has the same shape.

    The last window begins earlier to fill its context, and the last batch repeats windows to be full: targets that an
    earlier window has are ignored. A stream shorter than one window is padded, with a padding mask.

    Args:
        tokens, context, batch_size, objective: as in `Batches`.
        seed: of the objective, the same at every evaluation.
        every: yield only each `every`-th batch.

    Raises:
        UserError: there are fewer than two tokens; it is raised by the call, not by the first batch.
    """
    objective = objective or Causal()
    total = len(tokens)
    if total < 2:
        raise UserError(f"The validation data is too short: {total} tokens, at least 2 are needed. Give more text.")
    stride, overlap = _stride(objective, context), objective.overlap
    length = stride + overlap
    count = count_validation_batches(total, context, 1, objective)

    def batches() -> Iterator[Batch]:
        for first in range(0, count, batch_size * every):
            window = np.arange(first, first + batch_size)
            begin = np.minimum(window, count - 1) * stride
            starts = np.maximum(np.minimum(begin, total - length), 0)
            positions = starts[:, None] + np.arange(length)
            loss_mask = (positions >= begin[:, None] + overlap) & (positions < total) & (window < count)[:, None]
            padding_mask = positions < total
            windows = np.where(padding_mask, tokens[np.minimum(positions, total - 1)], 0).astype(np.int64)
            rng = np.random.default_rng((seed, _VALIDATION, first // batch_size))
            yield objective(windows, loss_mask, None if padding_mask.all() else padding_mask, rng)

    return batches()


def count_validation_batches(tokens: int, context: int, batch_size: int, objective: Objective | None = None) -> int:
    """The number of batches that `validation_batches` yields for a number of tokens. Raises UserError as it does."""
    objective = objective or Causal()
    windows = -(-(tokens - objective.overlap) // _stride(objective, context))
    return -(-windows // batch_size)


def _stride(objective: Objective, context: int) -> int:
    stride = objective.stride(context)
    if stride < 1:
        raise UserError(f"A context of {context} is too short for this objective: choose a longer one.")
    return stride
