"""Batches of examples: batch(step) is a pure function of (dataset, seed, step).

An epoch is a shuffle of all examples. It is cut into pools of many batches, and examples of about equal length share a
batch of their pool, so that little is padding; the batches of a pool come in random order. Each example is in exactly
one batch of an epoch. An epoch of few batches stays as it was shuffled: a tagger learns more from batches of mixed
lengths, where a token counts as much in a short text as in a long one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from anyformer.data.batch import Batch, Int64
from anyformer.data.examples.datasets import Dataset
from anyformer.data.feistel_shuffle import feistel_shuffle, mix_seed

_ORDER, _POOL = 6, 7  # other draws than those of `batches` and `pair_batches`
_POOL_BATCHES = 32, 128
"""Batches of a pool, at least and at most."""
_POOLS = 4
"""Fewest pools of an epoch: in one alone the same examples would meet again and again."""


@dataclass(frozen=True, slots=True, eq=False)
class ExampleBatches:
    """Batches of a dataset.

    Attributes:
        batch_size: Examples of a batch; the last of an epoch may have fewer.
        by_length: Whether examples of about equal length share a batch, where there are enough of them.
    """

    dataset: Dataset
    lengths: Int64
    batch_size: int
    seed: int = 0
    by_length: bool = True

    @property
    def steps_per_epoch(self) -> int:
        """Batches after which each example was seen once."""
        return -(-len(self.lengths) // self.batch_size)

    @property
    def pool_batches(self) -> int:
        """Batches of a pool; the last of an epoch may have fewer. 1: too few to be grouped by length."""
        fewest, most = _POOL_BATCHES
        batches = min(most, self.steps_per_epoch // _POOLS)
        return batches if batches >= fewest else 1

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0: the same whenever and wherever it is asked for."""
        return self.dataset.collate(self.members(step))

    def members(self, step: int) -> list[int]:
        """The numbers of the examples of a step."""
        epoch, number = divmod(step, self.steps_per_epoch)
        pool, index = divmod(number, self.pool_batches)
        return _pool(self, epoch, pool)[index]

    def validation(self, batch_tokens: int, every: int = 1) -> Iterator[Batch]:
        """Every so many-th batch of the examples in order of length, the same at each call."""
        for members in self.validation_members(batch_tokens)[::every]:
            yield self.dataset.collate(members)

    def validation_members(self, batch_tokens: int) -> list[list[int]]:
        """The numbers of the examples of each batch of `validation`: rows times the longest are about so many tokens,
        and at least as many examples as in training."""
        found: list[list[int]] = []
        members: list[int] = []
        for index in np.argsort(self.lengths, kind="stable").tolist():
            if len(members) >= self.batch_size and (len(members) + 1) * self.lengths[index] > batch_tokens:
                found.append(members)
                members = []
            members.append(index)
        return [*found, members]


@lru_cache(maxsize=4)
def _pool(batches: ExampleBatches, epoch: int, pool: int) -> list[list[int]]:
    """The batches of a pool, which is the same for many steps."""
    count, size = len(batches.lengths), batches.batch_size
    first = pool * batches.pool_batches * size
    places = np.arange(first, min(first + batches.pool_batches * size, count))
    members = feistel_shuffle(places, count, mix_seed(batches.seed, _ORDER, epoch))
    if batches.by_length:
        members = members[np.argsort(batches.lengths[members], kind="stable")]
    edges = range(0, len(members), size)
    found: list[list[int]] = [members[edge : edge + size].tolist() for edge in edges]
    order = feistel_shuffle(np.arange(len(found)), len(found), mix_seed(batches.seed, _POOL, epoch, pool))
    return [found[number] for number in order.tolist()]
