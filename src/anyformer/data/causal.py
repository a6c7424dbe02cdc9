"""The causal objective: the next token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anyformer.data.batch import IGNORED, Batch, Bool, Int64


@dataclass(frozen=True, slots=True)
class Causal:
    """Predict each token from those before it: targets are the tokens shifted by one.

    With `reset`, attention and positions stay within each document of a window. The separator between two documents is
    both the last target of the first and the first input of the second, as GPT-2's <|endoftext|> is, which also starts
    a generation without a prompt::

        tokens     the  cat  <|e|>  a    dog  <|e|>
        targets    cat  <|e|>  a    dog  <|e|>  ...
        documents   0    0     1    1    1     2

    No target is lost, and a document among others gives the loss that it would give alone.

    Attributes:
        reset: whether tokens attend within their document only.
        separator: the id between documents; None where the stream is one document.
    """

    reset: bool = False
    separator: int | None = None

    @property
    def overlap(self) -> int:
        """1: the first token of a window is an input only, the last a target only."""
        return 1

    def stride(self, context: int) -> int:
        """The context."""
        return context

    def __call__(
        self,
        windows: Int64,
        loss_mask: Bool,
        padding_mask: Bool | None,
        rng: np.random.Generator,
        stream_start: Bool | None = None,
    ) -> Batch:
        """Make a batch of [batch, context]."""
        del rng
        tokens = np.ascontiguousarray(windows[:, :-1])
        targets = np.where(loss_mask[:, 1:], windows[:, 1:], IGNORED)
        mask = None if padding_mask is None else padding_mask[:, :-1]
        documents = None
        if self.reset:
            first = np.zeros_like(tokens, dtype=np.bool_) if self.separator is None else tokens == self.separator
            if stream_start is not None:
                first = first | stream_start[:, :-1]
            documents = first.cumsum(axis=1, dtype=np.int64)
        return Batch(tokens, targets, mask, documents=documents)
