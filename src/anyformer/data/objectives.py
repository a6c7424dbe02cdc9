"""Training objectives: inputs and targets of windows of the token stream; see `Objective`.

Sequence to sequence has pairs and no windows, see `pair_batches`.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from anyformer.config import SpecialTokens
from anyformer.data.batch import IGNORED, Batch, Bool, Int64, Rng
from anyformer.data.masked import Masked
from anyformer.data.span_corruption import SpanCorruption, decoder_start
from anyformer.errors import UserError, nearest, quote
from anyformer.tokenizer import Tokenizer

__all__ = ["OBJECTIVES", "Causal", "Masked", "Objective", "SpanCorruption", "decoder_start", "objective"]

OBJECTIVES = ("causal", "masked", "span_corruption")


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

    overlap: ClassVar[int] = 1  # the first token of a window is an input only, the last a target only
    reset: bool = False
    separator: int | None = None

    def stride(self, context: int) -> int:
        """The context."""
        return context

    def __call__(
        self, windows: Int64, loss_mask: Bool, padding_mask: Bool | None, rng: Rng, stream_start: Bool | None = None
    ) -> Batch:
        """Make a batch of [batch, context]."""
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


class Objective(Protocol):
    """A pure function that makes batches of windows, each of which shares `overlap` tokens with the next one."""

    overlap: ClassVar[int]

    def stride(self, context: int) -> int:
        """The distance between two windows in tokens; less than 1 where the context is too short."""
        ...

    def __call__(
        self, windows: Int64, loss_mask: Bool, padding_mask: Bool | None, rng: Rng, stream_start: Bool | None = None
    ) -> Batch:
        """Make a batch.

        Args:
            windows: [batch, stride + overlap] ids.
            loss_mask: like windows, True for tokens that may be targets in this window: each token of the stream is in
                one window an epoch.
            padding_mask: like windows, True for tokens that aren't padding, which is on the right; None without it.
            rng: the only source of randomness.
            stream_start: like windows, True for the first token of the stream, which the ring puts after the last one;
                None: it can only be the first of a window.
        """
        ...


def objective(
    name: str,
    tokenizer: Tokenizer,
    *,
    document_masking: bool = False,
    whole_word_masking: bool = False,
    tokens: SpecialTokens | None = None,
) -> Objective:
    """Return the objective of a name for a tokenizer.

    Args:
        document_masking: causal: attention and positions begin anew with each document.
        whole_word_masking: masked: hide whole words.
        tokens: encoder-decoders: the special tokens of the model's preset, see `decoder_start`.

    Raises:
        UserError: there is no such objective, or the tokenizer lacks a token that it needs.
    """
    if name == "masked":
        return Masked.of_tokenizer(tokenizer, whole_words=whole_word_masking)
    if name == "span_corruption":
        return SpanCorruption.of_tokenizer(tokenizer, tokens or SpecialTokens())
    if name != "causal":
        raise UserError(f"There is no objective called {quote(name)}: {nearest(name, OBJECTIVES)}")
    if document_masking and tokenizer.separator is None:
        raise UserError(
            "--document-masking needs a token between documents, and this tokenizer has none: the data is a single "
            "document, or the tokenizer was made for one. Leave it out or choose another tokenizer."
        )
    return Causal(document_masking, tokenizer.separator) if document_masking else Causal()
