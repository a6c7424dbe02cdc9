"""Patterns of attention heads: how much of a head's attention follows each.

A pattern says which keys each query would attend to. The score of a head is the mean weight that its queries put on
these keys, over the queries that have any. Beside it stands what attention to all visible keys alike would score: a
head is said to follow a pattern only where it is well above that.

The patterns are those of Clark et al. 2019 (section 3) and Voita et al. 2019 (section 5), "after the same word" is the
induction head of Olsson et al. 2022, and "diagonal" the alignment of translation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SPREAD = "spread out"
"""The score of heads that attend to many tokens: the entropy of a row, as a share of the largest that it can have."""
MIXED = "mixed"
_CLEAR = 0.25
"""Least distance of a score from chance at which a head is named after the pattern."""
_SPREAD_FROM = 0.85


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A pattern, and how far each head follows it."""

    name: str
    scores: Float[Tensor, "layers heads"]
    """From 0 to 1."""
    chance: float
    """The score of attention to all visible keys alike."""


def patterns(
    weights: Float[Tensor, "layers heads queries keys"],
    queries: Sequence[str],
    keys: Sequence[str] | None = None,
    *,
    causal: bool = False,
) -> list[Pattern]:
    """The patterns that the text has an occasion for, and the scores of all heads.

    Args:
        weights: Of all heads of a stack, or of its cross-attention.
        queries: The tokens that attend, as texts.
        keys: Of cross-attention, the tokens that they attend to; None: each other.
        causal: Queries see no later keys.
    """
    visible = torch.ones(weights.shape[-2:], dtype=torch.bool)
    visible = visible.tril() if causal else visible
    masks = _own(queries) if keys is None else _cross(queries, keys)
    scored: list[Pattern] = []
    for name, mask in masks.items():
        mask = mask & visible
        counted = mask.any(dim=-1)
        if counted.any():
            chance = (mask.sum(dim=-1) / visible.sum(dim=-1))[counted].mean()
            scores = (weights * mask).sum(dim=-1)[..., counted].mean(dim=-1)
            scored.append(Pattern(name=name, scores=scores.clamp(0, 1), chance=float(chance)))
    entropy = torch.special.entr(weights).sum(dim=-1)
    most = visible.sum(dim=-1).float().log()
    counted = most > 0
    if counted.any():
        share = (entropy[..., counted] / most[counted]).mean(dim=-1)
        scored.append(Pattern(name=SPREAD, scores=share.clamp(0, 1), chance=1.0))
    return scored


def names(scored: Sequence[Pattern]) -> list[list[str]]:
    """Name of each head by layer and head: the pattern furthest above chance, or "spread out", or "mixed"."""
    if not scored:
        return []
    layers, heads = scored[0].scores.shape
    return [[_name(scored, layer, head) for head in range(heads)] for layer in range(layers)]


def _name(scored: Sequence[Pattern], layer: int, head: int) -> str:
    scores = {pattern.name: float(pattern.scores[layer, head]) for pattern in scored}
    spread = scores.pop(SPREAD, 0.0)
    gains = ((scores[pattern.name] - pattern.chance, pattern.name) for pattern in scored if pattern.name in scores)
    gain, name = max(gains, default=(0.0, MIXED))
    if gain >= _CLEAR:
        return name
    return SPREAD if spread >= _SPREAD_FROM else MIXED


def _own(tokens: Sequence[str]) -> dict[str, Bool[Tensor, "queries keys"]]:
    """The patterns of self-attention. Many heads rest on the first token, whatever it is: it counts as itself alone."""
    count = len(tokens)
    distance = torch.arange(count)[:, None] - torch.arange(count)
    same = _same_word(tokens, tokens)
    after_same = torch.zeros_like(same)
    after_same[:, 1:] = same[:, :-1] & (distance[:, :-1] > 0)
    first = (torch.arange(count) == 0).expand(count, count)
    return {
        "previous token": distance == 1,
        "first token": first & (distance != 0),
        "itself": distance == 0,
        "next token": distance == -1,
        "same word": same & (distance != 0) & ~first,
        "after the same word": after_same & (distance != 0) & ~first,
        "punctuation": _not_words(tokens).expand(count, count) & (distance != 0) & ~first,
    }


def _cross(queries: Sequence[str], keys: Sequence[str]) -> dict[str, Bool[Tensor, "queries keys"]]:
    shape = len(queries), len(keys)
    diagonal = torch.arange(len(queries))[:, None] * (len(keys) - 1) / max(1, len(queries) - 1)
    position = torch.arange(len(keys))
    return {
        "diagonal": (position - diagonal).abs() <= 1,
        "first token": (position == 0).expand(shape),
        "last token": (position == len(keys) - 1).expand(shape),
        "same word": _same_word(queries, keys),
        "punctuation": _not_words(keys).expand(shape) & (position != len(keys) - 1),
    }


def _same_word(queries: Sequence[str], keys: Sequence[str]) -> Bool[Tensor, "queries keys"]:
    """Where two tokens are the same word, apart from case and spaces; what is no word is the same as nothing."""
    numbers: dict[str, int] = {}

    def numbered(tokens: Sequence[str]) -> Tensor:
        return torch.tensor(
            [numbers.setdefault(_word(token), len(numbers)) if _word(token) else -1 for token in tokens]
        )

    left, right = numbered(queries), numbered(keys)
    return (left[:, None] == right) & (left[:, None] >= 0)


def _word(token: str) -> str:
    """A token's letters and digits as one word; "" where it has none, or is a special token."""
    word = token.strip().casefold()
    special = len(word) > 2 and word[0] + word[-1] in ("[]", "<>")
    return word if not special and any(character.isalnum() for character in word) else ""


def _not_words(tokens: Sequence[str]) -> Bool[Tensor, " keys"]:
    return torch.tensor([not _word(token) for token in tokens])
