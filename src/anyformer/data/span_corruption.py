"""The span corruption objective: what stood where the sentinels stand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anyformer.data.batch import IGNORED, Batch, Bool, Int64
from anyformer.errors import UserError


@dataclass(frozen=True, slots=True)
class SpanCorruption:
    """Replace random spans by sentinels and predict them, as T5 does (Raffel et al. 2020, sections 3.1.4 and 3.3.4).

    ::

        window   thank you for inviting me to your party last week
        source   thank you <extra_id_0> me to your party <extra_id_1> </s>
        targets  <extra_id_0> for inviting <extra_id_1> last week </s>

    15% of the tokens are predicted, in spans of 3 on average. How many tokens and spans is not left to chance, only
    where they are: text and spans alternate, and every division into so many parts is equally likely (T5's code,
    random_spans_noise_mask). So all batches have one shape, and a window is as long as a source of the model's
    context allows (compute_input_and_target_lengths).

    Attributes:
        sentinels: the ids of <extra_id_0>, <extra_id_1> ...
        eos: ends source and targets.
        start: what the decoder reads first.
        pad: stands where a window is too short.
        share: which share of the tokens is predicted.
        span: mean length of a span.
    """

    sentinels: tuple[int, ...]
    eos: int
    start: int
    pad: int
    share: float = 0.15
    span: float = 3.0

    @property
    def overlap(self) -> int:
        """Windows stand side by side."""
        return 0

    def stride(self, context: int) -> int:
        """The longest window whose corrupted source, and whose targets, fit into the context.

        Raises:
            UserError: it would have more spans than there are sentinels.
        """
        length = 1
        while max(self.lengths(length + 1)) <= context:
            length += 1
        if max(self.lengths(length)) > context:
            return 0
        spans = self._counts(length)[1]
        if spans > len(self.sentinels):
            raise UserError(
                f"Span corruption of a context of {context} needs {spans} sentinel tokens (<extra_id_0> ...), and the "
                f"tokenizer has {len(self.sentinels)}: choose a shorter context or another tokenizer."
            )
        return length

    def lengths(self, length: int) -> tuple[int, int]:
        """How long source and targets of a window of `length` tokens are."""
        hidden, spans = self._counts(length)
        return length - hidden + spans + 1, hidden + spans + 1

    def __call__(
        self,
        windows: Int64,
        owned: Bool,
        present: Bool | None,
        rng: np.random.Generator,
        begins: Bool | None = None,
    ) -> Batch:
        """Make a batch of [batch, context], and targets of about a fifth of that.

        The sentinel before a span counts where the span's first token does, and the end where the last token does.
        """
        del begins
        rows, length = windows.shape
        source = np.full((rows, self.lengths(length)[0]), self.pad, dtype=np.int64)
        targets = np.full((rows, self.lengths(length)[1]), IGNORED, dtype=np.int64)
        tokens = np.full_like(targets, self.pad)
        real = np.zeros_like(source, dtype=np.bool_)
        for row in range(rows):
            size = length if present is None else int(present[row].sum())
            read, written, counts = self._corrupt(windows[row, :size], owned[row, :size], rng)
            source[row, : len(read)] = read
            real[row, : len(read)] = True
            tokens[row, : len(written)] = np.concatenate(([self.start], written[:-1]))
            targets[row, : len(written)] = np.where(counts, written, IGNORED)
        return Batch(tokens, targets, source=source, source_mask=None if real.all() else real)

    def _counts(self, length: int) -> tuple[int, int]:
        """How many tokens of a window are hidden, and in how many spans."""
        hidden = max(min(round(self.share * length), length - 1), 1)
        return hidden, max(min(round(hidden / self.span), length - hidden), 1)

    def _corrupt(self, window: Int64, owned: Bool, rng: np.random.Generator) -> tuple[Int64, Int64, Bool]:
        """Source and targets of one window, and which of the targets count."""
        hidden, spans = self._counts(len(window))
        sizes = np.stack((_divide(len(window) - hidden, spans, rng), _divide(hidden, spans, rng)), axis=1).ravel()
        ends = sizes.cumsum()
        read: list[Int64] = []
        written: list[Int64] = []
        counts: list[Bool] = []
        for index in range(spans):
            sentinel = np.array([self.sentinels[index]])
            begin, middle, end = ends[2 * index] - sizes[2 * index], ends[2 * index], ends[2 * index + 1]
            read += [window[begin:middle], sentinel]
            written += [sentinel, window[middle:end]]
            counts += [owned[middle : middle + 1], owned[middle:end]]
        last = np.array([self.eos])
        return np.concatenate([*read, last]), np.concatenate([*written, last]), np.concatenate([*counts, owned[-1:]])


def _divide(items: int, parts: int, rng: np.random.Generator) -> Int64:
    """Sizes of a random division of so many items into so many parts, none of them empty unless items are too few."""
    cuts = np.sort(rng.permutation(max(items - 1, 0))[: parts - 1]) + 1
    return np.diff(np.concatenate(([0], cuts, [items])))
