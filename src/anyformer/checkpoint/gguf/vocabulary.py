"""The vocabulary of a tokenizer as llama.cpp's metadata: tokens, their types and roles, and what surrounds a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from anyformer.config import ModelConfig
from anyformer.errors import UserError, quote
from anyformer.tokenizer import Tokenizer

ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Ends of a text, a turn and a message; generation stops at each."""
KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Values of token_type."""
ROLES = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # so misspelt in the format
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "cls": "cls_token_id",
}


@dataclass
class Entries:
    """Entries of llama.cpp's vocabulary, by token id.

    Attributes:
        tokens: their texts; no two are alike.
        token_types: their types. llama.cpp finds control tokens in a text where it is asked to, and users' tokens
            always.
        scores: what the tokenizer goes by, where it goes by scores.
        before, after: the ids around every text.
    """

    tokens: list[str]
    token_types: list[int]
    before: list[int]
    after: list[int]
    scores: list[float] | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, size: int, notes: list[str]) -> Entries:
        """A tokenizer's, filled up to the size of the model's token table. Raises UserError for one that has more."""
        named = {id_: token for token, id_ in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
        if named and max(named) >= size:
            sizes = f"The tokenizer has ids up to {max(named)} and the model only {size} tokens"
            raise UserError(f"{sizes}: they do not belong together.")
        added = tokenizer.backend.get_added_tokens_decoder()
        tokens = [named.get(i, f"[PAD{i}]") for i in range(size)]
        token_types = [NORMAL if i in named else UNUSED for i in range(size)]
        for i, token in added.items():
            token_types[i] = CONTROL if token.special else USER
        if spaced := [token.content for token in added.values() if token.lstrip or token.rstrip or token.single_word]:
            more = f" and {len(spaced) - 1} more" if len(spaced) > 1 else ""
            notes.append(
                f"llama.cpp takes special tokens as they are written, and leaves the spaces around {quote(spaced[0])}"
                f"{more} which this tokenizer swallows, or finds it inside words where this one does not."
            )
        return cls(tokens, token_types, *_around(tokenizer))

    def metadata(self) -> dict[str, Any]:
        """The keys for all this. Raises UserError for two tokens alike, of which llama.cpp would know but one."""
        if len(set(self.tokens)) < len(self.tokens):
            seen: set[str] = set()
            twice = next(token for token in self.tokens if token in seen or seen.add(token))
            raise UserError(f"Two tokens of this vocabulary would both be {quote(twice)} to llama.cpp.")
        scores = {} if self.scores is None else {"scores": self.scores}
        return {"tokens": self.tokens, "token_type": self.token_types, **scores}

    def around(self) -> dict[str, Any]:
        """The keys for at most one token before every text and one after it. Raises UserError for more."""
        if len(self.before) > 1 or len(self.after) > 1:
            raise UserError(
                f"This tokenizer puts {len(self.before)} tokens before a text and {len(self.after)} after it; "
                "llama.cpp puts at most one at each end."
            )
        return {
            "add_bos_token": bool(self.before),
            "add_eos_token": bool(self.after),
            **({"bos_token_id": self.before[0]} if self.before else {}),
            **({"eos_token_id": self.after[0]} if self.after else {}),
        }


def roles(tokenizer: Tokenizer | None, config: ModelConfig) -> dict[str, Any]:
    """The ids of tokens with a role; the model's own word on where a text begins and ends counts first."""
    tokens = config.special_tokens
    ids = {} if tokenizer is None else {key: getattr(tokenizer, role) for role, key in ROLES.items()}
    ends = dict(zip(ENDS, tokens.eos, strict=False))
    given = {"bos_token_id": tokens.bos, "padding_token_id": tokens.pad, **ends}
    ids |= {key: id_ for key, id_ in given.items() if id_ is not None}
    return {key: id_ for key, id_ in ids.items() if id_ is not None and id_ < config.vocab_size}


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text."""
    for text in ("a", "0", "."):
        plain, whole = tokenizer.backend.encode(text, add_special_tokens=False).ids, tokenizer.backend.encode(text).ids
        for start in range(len(whole) - len(plain) + 1):
            if plain and whole[start : start + len(plain)] == plain:
                return whole[:start], whole[start + len(plain) :]
    raise UserError("What this tokenizer puts around a text can't be told, so llama.cpp can't be told either.")
