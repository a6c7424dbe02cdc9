"""Words, which of them a corpus knows side by side, and passages: parts of texts of about the same size."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.compare.tasks.words import WordStatistics, passages, words
from tests.compare.tasks.corpora import HELD_OUT, tokenizer

TEXT = "def f(x):\n    return self.x  # naïve größe, 東京へ"


def test_words_are_where_they_are() -> None:
    assert [word.text for word in words(TEXT)] == ["def", "f", "x", "return", "self", "x", "naïve", "größe", "東京へ"]
    assert all(TEXT[word.begin : word.end] == word.text for word in words(TEXT))


def test_counts_are_of_the_training_text_and_neighbors_of_both() -> None:
    known = WordStatistics.of(["a b a b", "c"], ["b.d   e    f"])
    assert (known.counts, known.total) == ({"a": 2, "b": 2, "c": 1}, 5)
    assert known.has("a", " ", "b")
    assert known.has("b", " ", "a")
    assert known.has("b", ".", "d")
    assert known.has("d", "   ", "e")
    assert not known.has("b", " ", "d")
    assert not known.has("e", "    ", "f")  # too far from one another
    assert not known.has("b", " ", "c")  # texts apart
    assert known.expected("a", "b") == 2 * 2 / 5


def test_only_the_beginning_of_a_large_corpus_is_counted(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("anyformer.compare.tasks.words._CHARACTERS", 6)
    assert WordStatistics.of(["a b ", "c d e"], ["f g h i"]).counts == {"a": 1, "b": 1, "c": 1}


_WORDS = st.sampled_from(["ba", "be", "da", "x1", "größe", "東京", "fo."])
_GAPS = st.sampled_from([" ", "\n", ". ", "(", "。", "  ", "\n\n    "])
TEXTS = st.lists(st.lists(st.tuples(_WORDS, _GAPS), max_size=400), min_size=1, max_size=3).map(
    lambda texts: [f"{number} " + "".join(map("".join, parts)) for number, parts in enumerate(texts)]
)


@settings(max_examples=60)
@given(TEXTS, st.sampled_from([12, 24]), st.integers(0, 3))
def test_they_are_parts_of_the_texts(texts: list[str], max_tokens: int, seed: int) -> None:
    made = tokenizer("causal")
    found = passages(texts, made, count=30, max_tokens=max_tokens, seed=seed)
    assert found == passages(texts, made, count=30, max_tokens=max_tokens, seed=seed)
    assert len(set(found)) == len(found) <= 30
    for passage in found:
        assert any(passage in text for text in texts)
        assert max_tokens // 2 <= len(made.encode(passage, special=False)) <= max_tokens
        assert len(words(passage)) >= 4
        assert passage == passage.rstrip()
    assert passages(texts, made, count=3, max_tokens=max_tokens, seed=seed) == found[:3]


def test_no_two_overlap_and_they_come_from_all_over() -> None:
    text = "".join(f"{number} has the square {number**2} and so on.\n" for number in range(4000))
    found = passages([text], tokenizer("causal"), count=100, max_tokens=24, seed=0)
    numbers = [int(each) for passage in found for each in re.findall(r"^(\d+) has", passage, re.MULTILINE)]
    assert len(numbers) == len(set(numbers)) >= len(found) == 100
    assert min(numbers) < 1000 < 3000 < max(numbers)
    assert found != passages([text], tokenizer("causal"), count=100, max_tokens=24, seed=1)


def test_none_is_in_what_they_must_be_unlike() -> None:
    everything = passages(HELD_OUT, tokenizer("causal"), count=50, max_tokens=24, seed=0)
    known = f"before {everything[7]} after"
    assert passages(HELD_OUT, tokenizer("causal"), count=49, max_tokens=24, seed=0, unlike=[known]) == [
        passage for passage in everything if passage != everything[7]
    ]


def test_a_text_without_words_has_none() -> None:
    for text in ("", "\n" * 500, "... !!! ???" * 100, "a" * 5000):
        assert passages([text], tokenizer("causal"), count=5, max_tokens=24, seed=0) == []
