"""A text to compare models on, and its tokenizer."""

import random
from functools import cache

import anyformer as af

_WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "mat",
    "sat",
    "ran",
    "to",
    "on",
    "and",
    "it",
    "house",
    "my",
    "tree",
    "saw",
    "then",
    "slept",
    "near",
    "old",
    "red",
]


@cache
def text(sentences: int = 1500) -> str:
    """Sentences whose words follow each other by a rule: order can be learned, and is worth something."""
    chance = random.Random(0)
    lines: list[str] = []
    for _ in range(sentences):
        at = chance.randrange(len(_WORDS))
        words: list[str] = []
        for _ in range(chance.randint(6, 12)):
            words.append(_WORDS[at])
            at = (at * 3 + 1 + chance.randrange(2)) % len(_WORDS)
        lines.append(" ".join(words) + ".")
    return "\n".join(lines) + "\n"


@cache
def tokenizer() -> af.Tokenizer:
    """One that models of every family can use."""
    return af.Tokenizer.train([text()], "bpe:320", special="any")
