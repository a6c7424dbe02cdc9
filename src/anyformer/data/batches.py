"""Batches of a token stream, and of pairs: batch(step) is a pure function of (data, seed, step).

So there is no loader state to save.

A *window* is a stretch of the stream as long as the model's context; a *batch* has `batch_size` windows, one a row.
Windows pay no heed to where documents end. The stream is taken as a ring and cut into windows side by side. Each epoch
cuts it at another offset, and shuffles the windows by its own permutation: sample i of a run is window i % n of epoch
i // n, so no window is dropped or repeated within an epoch, across batches as well. Where the ring is not a whole
number of windows, the last window of an epoch overlaps the first, and the targets that both have are ignored in it.
Every token is thus predicted exactly once an epoch, but for the very first, which has nothing before it.

For sequence to sequence, pairs of about equal length are batched together, so that little is padding (Vaswani et al.
2017, section 5.1). They are sorted by length once and cut into batches of at most so many tokens, padding included. An
epoch is a shuffle of these batches, and pairs of exactly the same lengths are shuffled among themselves: so each epoch
has every pair once, and the same number of batches of the same shapes.

A shuffle is a random permutation of range(n) in constant memory, however large n is: a Feistel network is a bijection
of the numbers of 2h bits whatever its round function is (Luby & Rackoff 1988). Numbers that it sends to n or beyond are
sent on until they land below n (cycle walking, Black & Rogaway 2002), which keeps it a bijection, now of the numbers
below n.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from anyformer.data.batch import Batch, Bool, Int64
from anyformer.data.objectives import Causal, Objective
from anyformer.data.pairs import PairFile
from anyformer.errors import UserError

_ROUNDS = 6
_MASK = (1 << 64) - 1


def feistel_shuffle(index: npt.NDArray[np.int64], n: int, key: int) -> npt.NDArray[np.int64]:
    """Return the values of a pseudorandom permutation of `range(n)`, in the shape of `index`.

    Args:
        index: any shape, values in [0, n).
        n: size of the permutation, at least 1.
        key: of the permutation, in [0, 2**64).
    """
    half = max((n - 1).bit_length() + 1, 2) // 2
    keys = [_mix_number(key + round_) for round_ in range(_ROUNDS)]
    result = _feistel(index.astype(np.uint64).reshape(-1), half, keys)
    outside = np.flatnonzero(result >= n)
    while outside.size:
        result[outside] = _feistel(result[outside], half, keys)
        outside = outside[result[outside] >= n]
    return result.astype(np.int64).reshape(index.shape)


def _feistel(x: npt.NDArray[np.uint64], half: int, keys: list[int]) -> npt.NDArray[np.uint64]:
    bits = np.uint64(half)
    low = np.uint64((1 << half) - 1)
    left, right = x >> bits, x & low
    for key in keys:
        left, right = right, left ^ (_mix(right ^ np.uint64(key)) & low)
    return (left << bits) | right


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea & Flood 2014); products are meant to wrap around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix_number(x: int) -> int:
    """SplitMix64 of one number."""
    return int(_mix(np.array([(x + 1) * 0x9E3779B97F4A7C15 & _MASK], np.uint64))[0])


def mix_seed(*numbers: int) -> int:
    """Mix numbers, such as a seed and an epoch, into one key of 64 bits."""
    key = 0
    for number in numbers:
        key = _mix_number(key ^ (number & _MASK))
    return key


Stream = npt.NDArray[np.integer]
_OFFSET, _ORDER, _NOISE, _VALIDATION, _PAIR_ORDER, _TIES = range(6)
"""Draws, none of which depends on another; `examples.datasets` has the next numbers."""


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


class PairBatches:
    """Batches of pairs. Sources and targets end with `eos`, and the decoder's input begins with `start`.

    Attributes:
        steps_per_epoch, tokens_per_epoch: number of batches and of targets in an epoch.
        truncated: number of pairs with a side that was too long and is cut.
    """

    def __init__(
        self,
        pairs: PairFile,
        batch_tokens: int,
        seed: int = 0,
        *,
        eos: int,
        pad: int,
        start: int,
        context: int | None = None,
    ) -> None:
        """Sort the pairs by length; their ids are read as they are needed.

        Args:
            batch_tokens: tokens that a batch has at most: rows times the longest row, of the larger of its two sides.
            eos: ends every source and target.
            pad: fills rows up.
            start: the decoder's first input.
            context: longest source and target in tokens, `eos` included; longer ones are cut, and counted in
                `truncated`. None: only a side longer than a whole batch is.

        Raises:
            UserError: there are no pairs, or no room for one.
        """
        longest = batch_tokens if context is None else min(context, batch_tokens)
        if not len(pairs):
            raise UserError("There are no pairs of source and target in the data: is it empty?")
        if longest < 2:
            raise UserError(f"A batch of {batch_tokens} tokens has no room for a text and its end: give more.")
        self.seed = seed
        self._pairs = pairs
        self._longest = longest
        self._eos, self._pad, self._start = eos, pad, start
        source, target = pairs.source_lengths + 1, pairs.target_lengths + 1
        self.truncated = int(((source > longest) | (target > longest)).sum())
        source, target = np.minimum(source, longest), np.minimum(target, longest)
        self.tokens_per_epoch = int(target.sum())
        # Back and forth: where the source gets longer, the target stays about as it was.
        self._sorted = np.lexsort((np.where(source % 2 == 0, target, -target), source))
        source, target = source[self._sorted], target[self._sorted]
        new = np.flatnonzero((np.diff(source) != 0) | (np.diff(target) != 0)) + 1
        self._ties = np.concatenate(([0], new, [len(source)]))
        self._edges = _edges(np.maximum(source, target), batch_tokens)
        self.steps_per_epoch = len(self._edges) - 1

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0: the same whenever and wherever it is asked for."""
        return self._collate(self.members(step))

    def members(self, step: int) -> Int64:
        """Return the numbers of a step's pairs, [rows]."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = mix_seed(self.seed, _PAIR_ORDER, epoch)
        number = int(feistel_shuffle(np.array([index]), self.steps_per_epoch, order)[0])
        indices = np.arange(self._edges[number], self._edges[number + 1])
        tie = np.searchsorted(self._ties, indices, side="right") - 1
        for group in np.unique(tie).tolist():
            first, end = self._ties[group : group + 2].tolist()
            rows = tie == group
            if end - first > 1:
                key = mix_seed(self.seed, _TIES, epoch, group)
                indices[rows] = first + feistel_shuffle(indices[rows] - first, end - first, key)
        return self._sorted[indices]

    def validation(self, every: int = 1) -> Iterator[Batch]:
        """Yield every so many-th batch in order of length, the same at each call; with every=1 each pair once."""
        for begin, end in zip(self._edges[:-1:every], self._edges[1::every], strict=True):
            yield self._collate(self._sorted[begin:end])

    def _collate(self, members: Int64) -> Batch:
        sources, targets = (
            [np.append(text_of(index)[: self._longest - 1], self._eos) for index in members.tolist()]
            for text_of in (self._pairs.source, self._pairs.target)
        )
        return Batch.of_pairs(sources, targets, self._pad, self._start)


def _edges(lengths: Int64, batch_tokens: int) -> Int64:
    """Edges of the longest stretches whose number of rows times longest row is at most `batch_tokens`."""
    edges = [0]
    while edges[-1] < len(lengths):
        begin = edges[-1]
        ahead = lengths[begin : begin + batch_tokens // int(lengths[begin])]
        cost = np.maximum.accumulate(ahead) * np.arange(1, len(ahead) + 1)
        edges.append(begin + int(np.searchsorted(cost, batch_tokens, side="right")))
    return np.array(edges)
