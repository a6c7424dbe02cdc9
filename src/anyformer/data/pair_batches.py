"""Batches of pairs for sequence to sequence: batch(step) is a pure function of (data, seed, step), as in `batches`.

Pairs of about equal length are batched together, so that little is padding (Vaswani et al. 2017, section 5.1). They are
sorted by length once and cut into batches of at most so many tokens, padding included. An epoch is a shuffle of these
batches, and pairs of exactly the same lengths are shuffled among themselves: so each epoch has every pair once, and
the same number of batches of the same shapes.
"""

from collections.abc import Iterator

import numpy as np

from anyformer.data.batch import IGNORED, Batch, Int64
from anyformer.data.feistel_shuffle import feistel_shuffle, mix_seed
from anyformer.data.pairs import PairFile
from anyformer.errors import UserError

_ORDER, _TIES = 4, 5  # other draws than those of `batches`


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
        order = mix_seed(self.seed, _ORDER, epoch)
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
        text = self._longest - 1
        sources = [self._pairs.source(index)[:text] for index in members.tolist()]
        targets = [self._pairs.target(index)[:text] for index in members.tolist()]
        source = np.full((len(members), max(map(len, sources)) + 1), self._pad, dtype=np.int64)
        target = np.full((len(members), max(map(len, targets)) + 1), IGNORED, dtype=np.int64)
        tokens = np.full_like(target, self._pad)
        tokens[:, 0] = self._start
        for row, (read, written) in enumerate(zip(sources, targets, strict=True)):
            source[row, : len(read)], source[row, len(read)] = read, self._eos
            target[row, : len(written)], target[row, len(written)] = written, self._eos
            tokens[row, 1 : len(written) + 1] = written
        mask = np.arange(source.shape[1]) <= np.array([[len(read)] for read in sources])
        return Batch(tokens, target, source=source, source_mask=None if mask.all() else mask)


def _edges(lengths: Int64, batch_tokens: int) -> Int64:
    """Edges of the longest stretches whose number of rows times longest row is at most `batch_tokens`."""
    edges = [0]
    while edges[-1] < len(lengths):
        begin = edges[-1]
        ahead = lengths[begin : begin + batch_tokens // int(lengths[begin])]
        cost = np.maximum.accumulate(ahead) * np.arange(1, len(ahead) + 1)
        edges.append(begin + int(np.searchsorted(cost, batch_tokens, side="right")))
    return np.array(edges)
