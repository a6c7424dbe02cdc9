"""A batch: the tensors of one training step, as numpy arrays."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

IGNORED = -100
"""A target that the loss ignores, as `ignore_index` of `torch.nn.functional.cross_entropy` does."""

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs and targets of one training step, named as the arguments of `Transformer.forward`.

    Attributes:
        tokens: [batch, time] input ids, of an encoder-decoder those of the decoder.
        targets: [batch, time] ids to predict, IGNORED where there is none.
        mask: [batch, time] padding mask, True for tokens that aren't padding; None without padding, or where causal
            attention hides it anyway, as it follows the text.
        segments: [batch, time] segment ids; None for all zero.
        source: [batch, source_time] input ids of the encoder; None for a single stack.
        source_mask: [batch, source_time] padding mask of the source; None without padding.
        documents: [batch, time] index of the document that each token belongs to, within which attention and positions
            stay; None: a row is one document.
    """

    tokens: Int64
    targets: Int64
    mask: Bool | None = None
    segments: Int64 | None = None
    source: Int64 | None = None
    source_mask: Bool | None = None
    documents: Int64 | None = None

    @property
    def predicted(self) -> int:
        """The number of targets that aren't IGNORED."""
        return int((self.targets != IGNORED).sum())

    def split(self, chunks: int) -> list[Batch]:
        """Split the batch along its rows, like `torch.tensor_split`, but into no more chunks than there are rows."""
        edges = np.linspace(0, len(self.tokens), min(chunks, len(self.tokens)) + 1).astype(int).tolist()
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        given: dict[str, Any] = {name: rows for name, rows in fields if rows is not None}
        return [Batch(**{name: rows[begin:end] for name, rows in given.items()}) for begin, end in pairwise(edges)]
