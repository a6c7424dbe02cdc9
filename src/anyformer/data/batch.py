"""A batch: what a model is trained on in one step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

IGNORED = -100
"""A target that counts for nothing in the loss."""

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Batch:
    """What a model is trained on in one step. The fields have the names of `Transformer.forward`'s arguments.

    Attributes:
        tokens: [batch, time] ids, for an encoder-decoder those that the decoder reads.
        targets: [batch, time] ids to predict, IGNORED where there is nothing to predict.
        mask: [batch, time], True for a real token; None where all are, or where no real token can see another:
            padding behind a text that is read from left to right.
        segments: [batch, time] segment ids; None for all zero.
        source: [batch, source] ids that an encoder reads; None for a single stack.
        source_mask: [batch, source], True for a real token; None where all are.
        documents: [batch, time] the number of the document that a token belongs to: attention and positions begin
            anew with each. None: a row is read as one text.
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
        """Number of targets that count."""
        return int((self.targets != IGNORED).sum())

    def split(self, parts: int) -> list[Batch]:
        """Cut the batch between its rows into parts as equal as can be, in order.

        Args:
            parts: how many, at least 1; fewer come back where there are fewer rows.
        """
        edges = np.linspace(0, len(self.tokens), min(parts, len(self.tokens)) + 1).astype(int).tolist()
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given: dict[str, Any] = {name: rows for name, rows in fields.items() if rows is not None}
        return [Batch(**{name: rows[begin:end] for name, rows in given.items()}) for begin, end in pairwise(edges)]
