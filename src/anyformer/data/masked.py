"""The masked language modeling objective."""

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import numpy as np
from tokenizers import decoders, models

from anyformer.data.batch import IGNORED, Batch, Bool, Int64, Rng
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer

PROBABILITY = 0.15
"""The share of tokens that are targets (Devlin et al. 2018, section 3.1)."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True, eq=False)
class WordBoundaries:
    """Which tokens make up a word: two neighbors belong to one word if the first allows it and the second as well.

    Attributes:
        left: [vocab_size] whether a token may continue the word of the token before it.
        right: [vocab_size] whether a token's word may continue in the token after it.
    """

    left: Bool
    right: Bool

    @classmethod
    def of_tokenizer(cls, tokenizer: Tokenizer) -> Self:
        """The word boundaries of a vocabulary.

        WordPiece tells by its prefix (##). Elsewhere a token joins with a letter, digit or mark at that end: the space
        that other tokenizers put at the beginning of a word (Ġ, ▁) is none. A token of bytes that are no whole
        character joins on both sides, a special token on neither.
        """
        backend = tokenizer.backend
        ids = backend.get_vocab(with_added_tokens=True).values()
        tokens = [backend.id_to_token(index) or "" for index in range(max(ids, default=-1) + 1)]
        if isinstance(backend.model, models.WordPiece):
            prefix = str(cast("Any", backend.model).continuing_subword_prefix)
            left, right = [token.startswith(prefix) for token in tokens], [bool(token) for token in tokens]
        else:
            pipeline = json.loads(backend.to_str())
            if '"type": "ByteLevel"' in json.dumps([pipeline["pre_tokenizer"], pipeline["decoder"]]):
                # its tokens are written in the 256 printable characters that stand for bytes
                tokens = [decoders.ByteLevel().decode([token]) for token in tokens]
            left, right = [_joins(token, 0) for token in tokens], [_joins(token, -1) for token in tokens]
        ordinary = ~np.isin(np.arange(len(tokens)), list(tokenizer.special_ids))
        return cls(np.array(left) & ordinary, np.array(right) & ordinary)

    def first(self, windows: Int64) -> Bool:
        """Mark the first token of each word, [batch, time]; a word that a window cuts begins at the window's edge."""
        starts = np.ones_like(windows, dtype=np.bool_)
        starts[:, 1:] = ~(self.left[windows[:, 1:]] & self.right[windows[:, :-1]])
        return starts


def _joins(token: str, end: int) -> bool:
    if not token:
        return False
    character = token[end]
    is_bytes = character == "\N{REPLACEMENT CHARACTER}" or bool(_BYTE.fullmatch(token))
    return is_bytes or unicodedata.category(character)[0] in "LMN"


@dataclass(frozen=True, slots=True)
class Masked:
    """Predict masked tokens from the tokens on both sides (Devlin et al. 2018, section 3.1 and appendix A.1).

    15% of a window's tokens that aren't special are targets (rounded, at least one). Of these, 80% are replaced by the
    mask token, 10% by a random token, and 10% are kept.

    With `words`, the targets are whole words: words are drawn until 15% of the tokens are targets, and those that would
    exceed it are skipped (whole word masking, in the README and the create_pretraining_data.py of BERT's code; Cui et
    al. 2021). Each token of a word is still replaced independently. Where every word exceeds it, the shortest is taken.

    Attributes:
        ordinary: [n] the ids that random replacements are drawn from: all that are not special.
        special: [m] the ids that are never targets.
        before, after: tokens around each window, such as [CLS] and [SEP]; None for none.
        probability: the fraction of tokens that are targets.
        words: which tokens make up a word, for whole word masking; None: tokens are drawn one by one.
    """

    overlap: ClassVar[int] = 0
    mask_id: int
    ordinary: Int64
    special: Int64
    before: int | None = None
    after: int | None = None
    probability: float = PROBABILITY
    words: WordBoundaries | None = None

    @classmethod
    def of_tokenizer(cls, tokenizer: Tokenizer, *, whole_words: bool = False) -> Self:
        """The masked objective for a tokenizer. Raises UserError when it has no mask token or no ordinary ones."""
        if tokenizer.mask is None:
            raise UserError(
                "Masked training needs a tokenizer with a mask token, and this one has none: train one with "
                "--tokenizer wordpiece:N, or choose a decoder-only model."
            )
        special = np.array(sorted(tokenizer.special_ids), dtype=np.int64)
        ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size, dtype=np.int64), special)
        if not ordinary.size:
            raise UserError(
                "Masked training needs a tokenizer with ordinary tokens, and all of this one's are special."
            )
        words = WordBoundaries.of_tokenizer(tokenizer) if whole_words else None
        return cls(tokenizer.mask, ordinary, special, tokenizer.cls, tokenizer.sep, words=words)

    def stride(self, context: int) -> int:
        """The context less the tokens around a window."""
        return context - (self.before is not None) - (self.after is not None)

    def __call__(
        self, windows: Int64, loss_mask: Bool, padding_mask: Bool | None, rng: Rng, stream_start: Bool | None = None
    ) -> Batch:
        """Make a batch of [batch, context]."""
        candidates = loss_mask & ~np.isin(windows, self.special)
        count = candidates.sum(axis=1)
        most = np.where(count > 0, np.maximum(1, np.rint(self.probability * count)), 0).astype(np.int64)
        if self.words is None:
            draw = np.where(candidates, rng.random(windows.shape), np.inf)
            rank = draw.argsort(axis=1).argsort(axis=1)
            chosen = rank < most[:, None]
        else:
            # A word of which a part must not be predicted is predicted as far as it may be.
            number = (self.words.first(windows) | np.isin(windows, self.special)).cumsum(axis=1) - 1
            rows = zip(number, candidates, most.tolist(), strict=True)
            chosen = np.stack([_whole_words(*row, rng) for row in rows])

        fate = rng.random(windows.shape)
        random = rng.choice(self.ordinary, windows.shape)
        changed = np.where(fate < 0.8, self.mask_id, np.where(fate < 0.9, random, windows))
        tokens = np.where(chosen, changed, windows)
        targets = np.where(chosen, windows, IGNORED)
        edges = (0, 0), (int(self.before is not None), int(self.after is not None))
        tokens = np.pad(tokens, edges, constant_values=((0, 0), (self.before or 0, self.after or 0)))
        targets = np.pad(targets, edges, constant_values=IGNORED)
        mask = None if padding_mask is None else np.pad(padding_mask, edges, constant_values=True)
        return Batch(tokens, targets, mask)


def _whole_words(number: Int64, candidates: Bool, most: int, rng: Rng) -> Bool:
    """Draw words of a row until `most` tokens are targets, or fewer where no words add up to that, [time].

    Args:
        number: [time] index of the word that each token belongs to.
        candidates: [time] True for tokens that may be targets.
    """
    sizes = np.bincount(number[candidates], minlength=int(number[-1]) + 1)
    order = rng.permutation(np.flatnonzero(sizes))
    chosen: list[int] = []
    for word, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if size <= most:
            chosen.append(word)
            most -= size
    if order.size and not chosen:
        chosen.append(int(order[sizes[order].argmin()]))
    return candidates & np.isin(number, chosen)
