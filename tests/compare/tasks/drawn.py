"""Drawn corpora: random languages in which words have classes, and source code."""

from __future__ import annotations

import inspect
import textwrap
import typing
from dataclasses import dataclass
from functools import cache

import numpy as np
from hypothesis import strategies as st

from anyformer.tokenizer import Tokenizer

SPECS = [("bpe:600", "causal"), ("wordpiece:600", "masked"), ("unigram:600", "span_corruption"), ("char", "seq2seq")]


def language(seed: int, sentences: int, classes: int = 5, size: int = 30) -> str:
    """Sentences whose words follow one another by their classes; a word is the likelier the earlier it was made."""
    rng = np.random.default_rng(seed)
    letters = list("abdefgiklmnoprstuvä")
    vocabulary = [["".join(rng.choice(letters, rng.integers(2, 8))) for _ in range(size)] for _ in range(classes)]
    shares = 1 / np.arange(1, size + 1)
    text = list[str]()
    for number in range(sentences):
        draw = np.random.default_rng((seed, number))
        kind, sentence = int(draw.integers(classes)), list[str]()
        for _ in range(draw.integers(6, 14)):
            sentence.append(vocabulary[kind][draw.choice(size, p=shares / shares.sum())])
            kind = (kind + int(draw.integers(1, 3))) % classes
        text.append(" ".join(sentence) + ".\n")
    return "".join(text)


CODE = textwrap.dedent(inspect.getsource(typing))


@dataclass(frozen=True)
class Corpus:
    """A text, by the seed of its language (None: source code), and the tokenizer that is trained on it."""

    seed: int | None
    spec: str
    special: str

    def texts(self) -> tuple[list[str], list[str], Tokenizer]:
        """Training texts, held-out texts and the tokenizer."""
        return _texts(self)


def corpora() -> st.SearchStrategy[Corpus]:
    drawn = st.tuples(st.none() | st.integers(0, 3), st.sampled_from(SPECS))
    return drawn.map(lambda parts: Corpus(parts[0], *parts[1]))


@cache
def _texts(corpus: Corpus) -> tuple[list[str], list[str], Tokenizer]:
    text = CODE if corpus.seed is None else language(corpus.seed, 1500)
    cut = round(0.8 * len(text))
    return [text[:cut]], [text[cut:]], Tokenizer.train([text], corpus.spec, special=corpus.special)
