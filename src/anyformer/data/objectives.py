"""Training objectives: inputs and targets of windows of the token stream; see `Objective`.

Sequence to sequence has pairs and no windows, see `batches.PairBatches`.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from anyformer.config import SpecialTokens
from anyformer.data.batch import IGNORED, Batch, Bool, Int64, Rng, padded
from anyformer.data.masked import Masked
from anyformer.errors import UserError, nearest, quote
from anyformer.tokenizer import Tokenizer

OBJECTIVES = ("causal", "masked", "span_corruption")


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


@dataclass(frozen=True, slots=True)
class SpanCorruption:
    """Replace random spans by sentinels and predict them (Raffel et al. 2020, sections 3.1.4 and 3.3.4).

    ::

        window   thank you for inviting me to your party last week
        source   thank you <extra_id_0> me to your party <extra_id_1> </s>
        targets  <extra_id_0> for inviting <extra_id_1> last week </s>

    15% of the tokens are in spans, 3 long on average. The number of spans and of their tokens is fixed, and only their
    positions are random: text and spans alternate, and every division into that many parts is equally likely (T5's
    code, random_spans_noise_mask). So all batches have the same shape, and windows are as long as the context allows
    (compute_input_and_target_lengths).

    Attributes:
        sentinels: the ids of <extra_id_0>, <extra_id_1> ...
        eos: ends source and targets.
        start: the decoder's first input.
        pad: fills up a window that is too short.
        noise_density: the fraction of tokens in spans.
        mean_span_length: in tokens.
    """

    overlap: ClassVar[int] = 0
    sentinels: tuple[int, ...]
    eos: int
    start: int
    pad: int
    noise_density: float = 0.15
    mean_span_length: float = 3.0

    @classmethod
    def of_tokenizer(cls, tokenizer: Tokenizer, tokens: SpecialTokens) -> Self:
        """Span corruption for a tokenizer and the special tokens of the model's preset, see `decoder_start`.

        Raises:
            UserError: the tokenizer has no sentinels, no end or no padding token.
        """
        sentinels: list[int] = []
        while (id_ := tokenizer.id(f"<extra_id_{len(sentinels)}>")) is not None:
            sentinels.append(id_)
        if not sentinels or tokenizer.eos is None or tokenizer.pad is None:
            raise UserError(
                "Span corruption needs a tokenizer with sentinels (<extra_id_0> ...), an end and a padding token, and "
                "this one lacks some: train one with --tokenizer unigram:N or bpe:N, or choose another objective."
            )
        return cls(tuple(sentinels), tokenizer.eos, decoder_start(tokens, tokenizer), tokenizer.pad)

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
        """The lengths of source and targets of a window of `length` tokens."""
        hidden, spans = self._counts(length)
        return length - hidden + spans + 1, hidden + spans + 1

    def __call__(
        self, windows: Int64, loss_mask: Bool, padding_mask: Bool | None, rng: Rng, stream_start: Bool | None = None
    ) -> Batch:
        """Make a batch of [batch, context], and targets of about a fifth of that.

        A sentinel is in the loss if the first token of its span is, and `eos` if the window's last token is.
        """
        rows, length = windows.shape
        sizes = [length] * rows if padding_mask is None else padding_mask.sum(axis=1).tolist()
        parts = [self._corrupt(windows[row, :size], loss_mask[row, :size], rng) for row, size in enumerate(sizes)]
        sources, written, learned = zip(*parts, strict=True)
        lengths = self.lengths(length)
        batch = Batch.of_pairs(sources, written, self.pad, self.start, lengths)
        is_target = padded(learned, False, np.bool_, lengths[1])
        return replace(batch, targets=np.where(is_target, batch.targets, IGNORED))

    def _counts(self, length: int) -> tuple[int, int]:
        """The number of tokens in spans, and of spans."""
        hidden = max(min(round(self.noise_density * length), length - 1), 1)
        return hidden, max(min(round(hidden / self.mean_span_length), length - hidden), 1)

    def _corrupt(self, window: Int64, loss_mask: Bool, rng: Rng) -> tuple[Int64, Int64, Bool]:
        """Source and targets of one window, and the loss mask of the targets."""
        hidden, spans = self._counts(len(window))
        sizes = np.stack((_divide(len(window) - hidden, spans, rng), _divide(hidden, spans, rng)), axis=1).ravel()
        ends = sizes.cumsum()[:-1]
        stretches, masks = np.split(window, ends), np.split(loss_mask, ends)
        source, targets, is_target = list[Any](), list[Any](), list[Any]()
        parts = zip(self.sentinels, stretches[::2], stretches[1::2], masks[1::2], strict=False)
        for sentinel, text, span, mask in parts:
            source += [text, [sentinel]]
            targets += [[sentinel], span]
            is_target += [mask[:1], mask]
        return (
            np.concatenate([*source, [self.eos]]),
            np.concatenate([*targets, [self.eos]]),
            np.concatenate([*is_target, loss_mask[-1:]]),
        )


def _divide(items: int, parts: int, rng: Rng) -> Int64:
    """Sizes of a random division of `items` into `parts`, none of them empty unless there are fewer items."""
    cuts = np.sort(rng.permutation(max(items - 1, 0))[: parts - 1]) + 1
    return np.diff(np.concatenate(([0], cuts, [items])))


def decoder_start(tokens: SpecialTokens, tokenizer: Tokenizer) -> int:
    """The id of the decoder's first input in this tokenizer: the token with the same role as in the model's own.

    Args:
        tokens: the special tokens of the model's preset, in the ids of its own tokenizer: which role they give to
            `decoder_start` is what counts (T5, Marian: padding; BART: end).

    Raises:
        UserError: the tokenizer has no token in any role that would do.
    """
    roles = ((tokens.pad, tokenizer.pad), (tokens.bos, tokenizer.bos), *((id_, tokenizer.eos) for id_ in tokens.eos))
    same = [ours for theirs, ours in roles if theirs is not None and theirs == tokens.decoder_start]
    for id_ in (*same, tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.cls):
        if id_ is not None:
            return id_
    raise UserError(
        "An encoder-decoder needs a tokenizer with a padding, a beginning or an end token for its decoder to start "
        "with, and this one has none: train one with --tokenizer bpe:N."
    )


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
