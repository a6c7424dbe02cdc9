"""The causal objective: the next token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anyformer.data.batch import IGNORED, Batch, Bool, Int64


@dataclass(frozen=True, slots=True)
class Causal:
    """Predict each token from those before it: targets are the tokens shifted by one.

    With `reset`, attention and positions begin anew with each document of a window. The separator that ends one
    document, and is the last token predicted there, is also the first token read of the next one, as GPT-2's
    <|endoftext|> is and as a generation without a prompt begins::

        read       the  cat  <|e|>  a    dog  <|e|>
        predicted  cat  <|e|>  a    dog  <|e|>  ...
        document    0    0     1    1    1     2

    So nothing of what is predicted is lost, and a document among others is trained on as it would be alone.

    Attributes:
        reset: whether documents are kept apart.
        separator: the id between documents; None where there is only one.
    """

    reset: bool = False
    separator: int | None = None

    @property
    def overlap(self) -> int:
        """The first token of a window is only read, the last only predicted."""
        return 1

    def stride(self, context: int) -> int:
        """All of the context."""
        return context

    def __call__(
        self,
        windows: Int64,
        owned: Bool,
        present: Bool | None,
        rng: np.random.Generator,
        begins: Bool | None = None,
    ) -> Batch:
        """Make a batch of [batch, context]."""
        del rng
        tokens = np.ascontiguousarray(windows[:, :-1])
        targets = np.where(owned[:, 1:], windows[:, 1:], IGNORED)
        mask = None if present is None else present[:, :-1]
        documents = None
        if self.reset:
            first = np.zeros_like(tokens, dtype=np.bool_) if self.separator is None else tokens == self.separator
            if begins is not None:
                first = first | begins[:, :-1]
            documents = first.cumsum(axis=1, dtype=np.int64)
        return Batch(tokens, targets, mask, documents=documents)
