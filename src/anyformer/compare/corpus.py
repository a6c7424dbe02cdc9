"""The text of a comparison, and its windows: one tokenizer for all, tokens to train on, and those nobody trains on.

::

    DIRECTORY/data/tokenizer/     trained on the training share
                   training.bin   token files, see `anyformer.data.token_files`
                   held_out.bin   a tenth of the text: one half for curves and learning rates, the other for verdicts

A window is a stretch of the stream of tokens, two shorter than the context. Every family's objective takes the same
windows in the same order, and every model reads each of them whole::

    window              the cat sat on the mat
    causal              <s> the cat sat on the             ->  the cat sat on the mat
    masked              <s> the [M] sat on the [M] </s>    ->  cat, mat
    encoder-decoders, one half of the batches
      span corruption   the <0> on the <1> </s>            ->  <0> cat sat <1> mat </s>
    and the other
      continuation      the cat sat </s>                   ->  on the mat

Continuation is the S-denoising of Tay et al. (2022, UL2, section 3.1.1), and a half of each is within what they found
to work: it makes encoder-decoders writers whose text can be measured beside that of decoders.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tokenizers

from anyformer import atomic
from anyformer.config import ModelConfig
from anyformer.data.batch import Batch, Bool, Int64, Rng
from anyformer.data.corpus import Corpus, standard_library
from anyformer.data.disk_cache import Cache
from anyformer.data.input_files import find_files
from anyformer.data.masked import Masked
from anyformer.data.materialize import HUB, STANDARD_INPUT, materialize
from anyformer.data.objectives import SpanCorruption, decoder_start
from anyformer.data.token_files import TokenFile, tokenize_splits
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.library import surround
from anyformer.training.config import default_tokenizer

AROUND = 2
"""Tokens of a context that are left for those around a text."""
_ENOUGH = 1 << 24
"""Characters that the tokenizer is trained on at most."""
_SPLITS = ("training", "held_out")
_FEWEST = 8
"""Windows that each half of the held-out text has at least."""


@dataclass(frozen=True, slots=True)
class SharedText:
    """The text that all models are trained and measured on.

    Attributes:
        tokenizer: of all of them; nothing is put around a text, see `tokenizer_for`.
        context: tokens that a model reads at a time.
    """

    tokenizer: Tokenizer
    training: TokenFile
    held_out: TokenFile
    context: int

    @property
    def window(self) -> int:
        """Tokens of text in a row of a batch."""
        return self.context - AROUND

    @property
    def for_curves(self) -> Int64:
        """[tokens] the half of the held-out text that is looked at while training."""
        return self.held_out.ids[: len(self.held_out) // 2].astype(np.int64)

    @property
    def for_verdicts(self) -> Int64:
        """[tokens] the half that is looked at once, at the end."""
        return self.held_out.ids[len(self.held_out) // 2 :].astype(np.int64)

    def pieces(self, most: int) -> Int64:
        """[pieces, window] stretches of the text for verdicts, as far apart as can be, `most` of them or all."""
        ids = self.for_verdicts
        count = len(ids) // self.window
        chosen = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
        return ids[: count * self.window].reshape(count, self.window)[chosen].astype(np.int64)

    def bytes_of(self, windows: Int64) -> Int64:
        """[rows] the bytes in UTF-8 of windows [rows, window]; a token that is no whole character has its own."""
        tokenizer = self.tokenizer
        if '"type":"ByteLevel"' not in "".join(tokenizer.backend.to_str().split()):
            return np.array([len(tokenizer.decode(row).encode("utf-8")) for row in windows.tolist()])
        # Such tokens are written in 256 characters, one for each byte.
        special = tokenizer.special_ids
        tokens = ("" if id_ in special else tokenizer.token(id_) or "" for id_ in range(tokenizer.vocab_size))
        return np.array([*map(len, tokens)])[windows].sum(axis=1)

    def texts(self, ids: Int64) -> list[str]:
        """The documents in a stream of tokens."""
        parts = np.split(ids, np.flatnonzero(ids == self.tokenizer.separator))
        return [text for part in parts if (text := self.tokenizer.decode(part.tolist())).strip()]


def read_files(data: Sequence[str], field: str) -> list[Path]:
    """Find the files of the text; without any those of the standard library. Raises UserError where there are none."""
    if not data:
        return standard_library()
    elsewhere = any(path == STANDARD_INPUT or path.startswith(HUB) for path in data)
    return find_files(materialize(data, (field,), Cache()) if elsewhere else data)


def prepare(
    folder: Path, files: Sequence[Path], field: str, context: int, spec: str | None, tokenizer: Tokenizer | None
) -> SharedText:
    """Split the text, train the tokenizer on the training share, and write the tokens; or open what is there.

    Args:
        spec: kind and size of the tokenizer, such as bpe:4096; None: of byte pairs, in number to suit the text.

    Raises:
        UserError: the text can't be read, or is too short for a held-out part.
    """
    if not folder.is_dir():
        with atomic.writing(folder), atomic.temporary_folder(folder) as made:
            _write(made, files, field, spec, tokenizer)
            atomic.move(made, folder)
    splits = {split: TokenFile.open(folder / f"{split}.bin") for split in _SPLITS}
    text = SharedText(Tokenizer.load(folder / "tokenizer"), **splits, context=context)
    needed = _FEWEST * text.window
    if len(text.held_out) < 2 * needed or len(text.training) < needed:
        raise UserError(
            f"The data is too short for a held-out part: a tenth of it has {len(text.held_out):,} tokens, and two "
            f"times {_FEWEST} windows of {text.window} need {2 * needed:,}. Give more text, or a smaller --context."
        )
    return text


def _write(folder: Path, files: Sequence[Path], field: str, spec: str | None, tokenizer: Tokenizer | None) -> None:
    corpus = Corpus(files, field)
    if tokenizer is None:
        every = -(-corpus.split.characters // _ENOUGH)
        texts = islice(corpus.training(), 0, None, every)
        spec = spec or default_tokenizer("causal", corpus.split.characters)
        tokenizer = Tokenizer.train(texts, spec, special="any")
    tokenizer.save(folder / "tokenizer")
    labeled = (("held_out" if held_out else "training", document) for held_out, document in corpus.labeled())
    tokenize_splits(labeled, tokenizer, {split: folder / f"{split}.bin" for split in _SPLITS})


_AROUND = {"causal": ("bos", None), "masked": ("cls", "sep"), "span_corruption": (None, "eos")}


def tokenizer_for(tokenizer: Tokenizer, objective: str) -> Tokenizer:
    """Make a tokenizer put the special tokens around a text that models of an objective have seen there."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    config: dict[str, Any] = tokenizer.complete_config()
    surround(backend, *(None if role is None else config.get(f"{role}_token") for role in _AROUND[objective]))
    return Tokenizer(backend, config)


@dataclass(frozen=True, slots=True)
class FromStart:
    """Predict all tokens of a window, the first one after `start`, a token that begins a text."""

    start: int

    def __call__(self, windows: Int64, rng: Rng) -> Batch:
        """Make a batch of [batch, window]."""
        tokens = np.concatenate([np.full((len(windows), 1), self.start), windows[:, :-1]], axis=1)
        return Batch(tokens, windows.copy())


@dataclass(frozen=True, slots=True)
class Continuation:
    """Read the beginning of a window, and predict the rest.

    Attributes:
        start: the decoder's first input.
        eos: ends the source.
        share: of the window that is read; None: from a quarter to three quarters of it, drawn for each batch.
    """

    start: int
    eos: int
    share: float | None = None

    def __call__(self, windows: Int64, rng: Rng) -> Batch:
        """Make a batch of [batch, window]."""
        share = rng.uniform(0.25, 0.75) if self.share is None else self.share
        source, rest = np.split(windows, [cut(windows.shape[1], share)], axis=1)
        batch = FromStart(self.start)(rest, rng)
        return replace(batch, source=np.concatenate([source, np.full((len(source), 1), self.eos)], axis=1))


@dataclass(frozen=True, slots=True)
class Filling:
    """Predict masked tokens of a window, as BERT does."""

    masked: Masked

    def __call__(self, windows: Int64, rng: Rng) -> Batch:
        """Make a batch of [batch, window]."""
        return self.masked(windows, np.ones_like(windows, dtype=np.bool_), None, rng)


@dataclass(frozen=True, slots=True)
class Spans:
    """Predict spans that were taken out of a window, as T5 does."""

    corruption: SpanCorruption

    def __call__(self, windows: Int64, rng: Rng) -> Batch:
        """Make a batch of [batch, window]."""
        return self.corruption(windows, np.ones_like(windows, dtype=np.bool_), None, rng)


@dataclass(frozen=True, slots=True)
class Mixture:
    """Span corruption or continuation, each for one half of the batches."""

    spans: Spans
    continuation: Continuation

    def __call__(self, windows: Int64, rng: Rng) -> Batch:
        """Make a batch of [batch, window]."""
        return (self.spans if rng.random() < 0.5 else self.continuation)(windows, rng)


WindowObjective = FromStart | Filling | Mixture
"""Objective of a model that is trained on windows."""


@dataclass(frozen=True, slots=True)
class Windows:
    """An objective of `anyformer.data.Batches` with windows as long for every family; `seen` is called with them."""

    overlap: ClassVar[int] = 0
    objective: WindowObjective
    seen: Callable[[Int64], None] = lambda windows: None

    def stride(self, context: int) -> int:
        """Tokens of a window."""
        return context - AROUND

    def __call__(
        self, windows: Int64, loss_mask: Bool, padding_mask: Bool | None, rng: Rng, stream_start: Bool | None = None
    ) -> Batch:
        """Make a batch. A token that an epoch reads twice, where its ring closes, is predicted twice."""
        self.seen(windows)
        return self.objective(windows, rng)


def window_objective(config: ModelConfig, tokenizer: Tokenizer) -> WindowObjective:
    """The objective of a model with these stacks. Raises UserError where the tokenizer lacks a token that it needs."""
    if config.is_encoder_only:
        return Filling(Masked.of_tokenizer(tokenizer))
    if config.is_encoder_decoder:
        if tokenizer.eos is None:
            raise UserError("A source ends with a token, and this tokenizer has none for the end of a text.")
        spans = Spans(SpanCorruption.of_tokenizer(tokenizer, config.special_tokens))
        return Mixture(spans, Continuation(decoder_start(config.special_tokens, tokenizer), tokenizer.eos))
    start = tokenizer.bos if tokenizer.bos is not None else tokenizer.separator
    if start is None:
        raise UserError("A decoder begins a text after a token, and this tokenizer has none that could begin one.")
    return FromStart(start)


def cut(window: int, share: float) -> int:
    """Tokens of a window that are its beginning: at least one, and not all."""
    return min(max(round(share * window), 1), window - 1)
