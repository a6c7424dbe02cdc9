"""A batch: the tensors of one training step, as numpy arrays."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from typing_extensions import override

IGNORED = -100
"""A target that the loss ignores, as `ignore_index` of `torch.nn.functional.cross_entropy` does."""

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]
Rng = np.random.Generator
Ids = Sequence[int] | Int64


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs and targets of one training step, named as the arguments of `Transformer.forward`.

    Attributes:
        tokens: [batch, time] input ids, of an encoder-decoder those of the decoder.
        targets: [batch, time] ids to predict, IGNORED where there is none; for a classifier of whole texts [batch] the
            classes or numbers, or [batch, labels] which labels a text has.
        mask: [batch, time] padding mask, True for tokens that aren't padding; None without padding, or where causal
            attention hides it anyway, as it follows the text.
        segments: [batch, time] segment ids; None for all zero.
        source: [batch, source_time] input ids of the encoder; None for a single stack.
        source_mask: [batch, source_time] padding mask of the source; None without padding.
        documents: [batch, time] index of the document that each token belongs to, within which attention and positions
            stay; None: a row is one document.
        rows: [batch] number of each row in the batch that this is a part of, for dropout; None: it is the whole batch.
    """

    tokens: Int64
    targets: Int64 | Float32
    mask: Bool | None = None
    segments: Int64 | None = None
    source: Int64 | None = None
    source_mask: Bool | None = None
    documents: Int64 | None = None
    rows: Int64 | None = None

    @classmethod
    def of_pairs(
        cls, sources: Sequence[Ids], targets: Sequence[Ids], pad: int, start: int, lengths: tuple[int, int] = (0, 0)
    ) -> Self:
        """Sources and targets, each with its end, for an encoder-decoder.

        Args:
            start: the decoder's first input.
            lengths: fewest tokens of the padded sources, and of the padded targets.
        """
        source, written = padded(sources, pad, length=lengths[0]), padded(targets, IGNORED, length=lengths[1])
        tokens = np.full_like(written, pad)
        tokens[:, 0] = start
        tokens[:, 1:] = np.where(written[:, 1:] == IGNORED, pad, written[:, :-1])
        return cls(tokens, written, source=source, source_mask=padding_mask(sources, lengths[0]))

    @property
    def examples(self) -> int:
        """The number of examples that the batch can be split into: of rows, or of the targets of several together."""
        return len(self.targets)

    @property
    def predicted(self) -> int:
        """The number of targets that aren't IGNORED, over which the loss is a mean."""
        return int((self.targets != IGNORED).sum())

    def split(self, chunks: int) -> list[Self]:
        """Split the batch by examples, like `torch.tensor_split`, but into no more chunks than there are."""
        edges = np.linspace(0, self.examples, min(chunks, self.examples) + 1).astype(int).tolist()
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        arrays: dict[str, Any] = {name: array for name, array in fields if array is not None}

        def rows(array: Any, begin: int, end: int) -> Any:
            each = len(array) // self.examples
            return array[begin * each : end * each]

        return [
            replace(self, **{name: rows(array, *chunk) for name, array in arrays.items()}) for chunk in pairwise(edges)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceBatch(Batch):
    """Pairs of answers: rows 0, 2, 4 ... are the chosen ones, 1, 3, 5 ... the rejected ones.

    Attributes:
        targets: [2 * pairs, time] the tokens of the answers, IGNORED elsewhere.
        reference: [2 * pairs] the log-probability of each answer under the reference model.
    """

    reference: Float32

    @property
    @override
    def examples(self) -> int:
        return len(self.tokens) // 2

    @property
    @override
    def predicted(self) -> int:
        return self.examples


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingBatch(Batch):
    """Texts whose vectors are compared; those of an example follow one another.

    Attributes:
        targets: [examples] the score of each pair, the class of each text or pair, or zeros.
        slots: [examples] the index of each in the batch that this is a part of; None: nothing compares examples.
    """

    slots: Int64 | None = None


def padded(rows: Sequence[Any], value: int, dtype: type = np.int64, length: int = 0) -> Any:
    """[rows, longest] rows filled up on the right, to `length` at least."""
    filled = np.full((len(rows), max(length, *map(len, rows))), value, dtype)
    for number, row in enumerate(rows):
        filled[number, : len(row)] = row
    return filled


def padding_mask(rows: Sequence[Ids], length: int = 0) -> Bool | None:
    """[rows, longest] False for the padding of `padded`; None where there is none."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(max(length, lengths.max())) < lengths[:, None]
    return None if mask.all() else mask
