"""Scores of tokens, by which llama.cpp's SentencePiece joins neighbors, from the merges of a tokenizer.json."""

from collections.abc import Sequence, Set
from typing import Any, cast

from anyformer.errors import UserError


def scores(model: Any, tokens: Sequence[str]) -> list[float]:
    """Minus the rank of a token's first merge. Raises UserError where scores can't stand for these merges.

    Runs of a character that are as good as each other (Gemma's spaces, tabs and line ends) share a rank.
    """
    not_scores = UserError(
        "llama.cpp can't follow this tokenizer: it joins any two neighbors that make a token, best score first, and "
        "these merges are not in such an order."
    )
    pairs = [cast("tuple[str, str]", tuple(p.split(" ") if isinstance(p, str) else p)) for p in model["merges"]]
    first: dict[str, int] = {}
    scattered: set[str] = set()
    last = ""
    for rank, (left, right) in enumerate(pairs):
        token = left + right
        if token != last and token in first:
            scattered.add(token)
        first.setdefault(token, rank)
        last = token
    if scattered:
        runs = None if any(len({*token}) > 1 for token in scattered) else _runs(pairs, scattered)
        if runs is None:
            raise not_scores
        first |= runs
    vocabulary, made = set(model["vocab"]), set(pairs)
    for pair in ((token[:cut], token[cut:]) for token in first for cut in range(1, len(token))):
        if vocabulary.issuperset(pair) and pair not in made:
            raise not_scores
    # A token that nothing makes is a single character, or one that is found before any merging.
    return [float(-first[token]) if token in first else float(-len(pairs)) for token in tokens]


def _runs(pairs: Sequence[tuple[str, str]], scattered: Set[str]) -> dict[str, int] | None:
    """The rank of every run of the characters that these runs are of; None where one rank can't stand for them all.

    A run grows from its left end, by one character at a time, before anything else is made of that character: so it
    does in llama.cpp, which joins the leftmost of neighbors that are as good as others.
    """
    lengths: dict[str, list[tuple[int, int]]] = {token[0]: [] for token in scattered}
    first, used = len(pairs), set[str]()
    for rank, (left, right) in enumerate(pairs):
        characters = {*left, *right}
        if len(characters) == 1 and left[0] in lengths:
            if not used.isdisjoint(characters):
                return None
            lengths[left[0]].append((len(left), len(right)))
            first = min(first, rank)
        else:
            used |= characters
    for found in lengths.values():
        longest = max(map(sum, found), default=0)
        if found != [(left, right) for left in range(longest - 1, 0, -1) for right in range(longest - left, 0, -1)]:
            return None
    return {character * count: first for character, found in lengths.items() for count in range(2, found[0][0] + 2)}
