"""Pairs with the same tokens in an order that occurs nowhere; and candidates of a cloze that are alike."""

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.compare.tasks.choices import Choice, ChoiceTask, Item, differences, encode
from anyformer.compare.tasks.items import RATIO, WordStatistics, make_cloze, make_minimal_pairs, passages, words
from anyformer.tokenizer import Tokenizer
from tests.compare.tasks.corpora import HELD_OUT, tokenizer, untrained
from tests.compare.tasks.drawn import Corpus, corpora, language


def _make_pairs(train: list[str], held_out: list[str], tokenizer: Tokenizer, seed: int = 0) -> ChoiceTask:
    found = passages(held_out, tokenizer, count=200, max_tokens=32, seed=seed, unlike=train)
    return make_minimal_pairs(found, held_out, WordStatistics.of(train, held_out), tokenizer, seed)


def _neighbors(text: str) -> set[str]:
    found = words(text)
    return {text[a.begin : b.end] for a, b in pairwise(found)}


@settings(max_examples=10)
@given(corpora())
def test_a_pair_has_the_same_tokens_in_an_order_that_occurs_nowhere(corpus: Corpus) -> None:
    train, held_out, tokenizer = corpus.texts()
    task = _make_pairs(train, held_out, tokenizer)
    assert task == _make_pairs(train, held_out, tokenizer)
    assert task.reason is None
    assert len(set(task.items)) == len(task.items) >= 24
    known = _neighbors(train[0]) | _neighbors(held_out[0])
    for kind, (right, wrong), _ in task.items:
        a, b = (tokenizer.encode(text, special=False) for text in (right, wrong))
        assert a[0] == b[0]
        assert a != b
        assert sorted(a) == sorted(b)
        assert sorted(right) == sorted(wrong)
        if kind == "word_order":
            assert right in held_out[0]
            assert right not in train[0]
            assert not _neighbors(wrong) <= known
        else:
            frames = zip(right.split("\n"), wrong.split("\n"), strict=True)
            for good, bad in frames:
                assert good in held_out[0]
                assert not _neighbors(bad) & known
                assert [word.text for word in words(good)][::2] == [word.text for word in words(bad)][::2]


def test_kinds_share_the_room_out() -> None:
    text = language(0, 2000)
    train, held_out = [text[:80_000]], [text[80_000:]]
    task = _make_pairs(train, held_out, Tokenizer.train([text], "bpe:600"))
    counts = [sum(pair.kind == kind for pair in task.items) for kind in ("word_order", "agreement")]
    assert sum(counts) == 160
    assert min(counts) > 40


def test_a_short_text_has_no_task_and_says_why() -> None:
    text = language(0, 200)
    task = _make_pairs([text], ["a few words only, and no more than that"], Tokenizer.train([text], "bpe:400"))
    assert task.items == ()
    assert task.reason == "The held-out text is too short for minimal pairs: it gives 1 of 24."
    candidate = untrained("gpt2")
    result = task.run(candidate.model, candidate.tokenizer)
    assert (result.items, result.reason, result.chance) == ((), task.reason, 0.5)


@pytest.mark.parametrize("preset", ["bert", "gpt2"])
def test_a_model_that_knows_no_order_ties(preset: str) -> None:
    """A masked model without positions sees a bag of words; a decoder without positions still sees what came before."""
    candidate = untrained(preset)
    config = candidate.model.config.replace(position={"kind": "none"})
    torch.manual_seed(0)
    items = list[Item]()
    for texts in (("ba be bo da do", "ba be bo do da"), ("ba be bo da do", "ba be da bo do")):
        both = [encode(text, candidate.tokenizer) for text in texts]
        items.append(Item("word_order", texts, tuple(Choice(ids, differences(both)) for ids in both)))
    task = ChoiceTask(name="minimal_pairs", options=2, whole=True, items=tuple(items))
    scores = task.run(af.build(config).eval(), candidate.tokenizer).items
    assert (scores == (0.5, 0.5)) == (preset == "bert")


def _make_cloze(train: list[str], held_out: list[str], tokenizer: Tokenizer) -> ChoiceTask:
    found = passages(held_out, tokenizer, count=200, max_tokens=32, seed=0, unlike=train)
    return make_cloze(found, WordStatistics.of(train, held_out), tokenizer, seed=0)


@settings(max_examples=10)
@given(corpora())
def test_candidates_are_alike(corpus: Corpus) -> None:
    train, held_out, tokenizer = corpus.texts()
    task = _make_cloze(train, held_out, tokenizer)
    assert task == _make_cloze(train, held_out, tokenizer)
    assert task.reason is None
    statistics = WordStatistics.of(train, held_out)
    for _, texts, choices in task.items:
        inside = [words(text) for text in texts]
        (index,) = (n for n, others in enumerate(zip(*inside, strict=True)) if len({word.text for word in others}) > 1)
        candidates = [each[index].text for each in inside]
        before, after = texts[0][: inside[0][index].begin], texts[0][inside[0][index].end :]
        assert texts == tuple(before + word + after for word in candidates)
        assert before + candidates[0] + after in held_out[0]
        assert before + candidates[0] + after not in train[0]
        assert len(set(candidates)) == len(candidates) == len(choices) == 4
        counts = [statistics.counts[word] for word in candidates]
        assert max(counts) <= RATIO * min(counts)
        ((span,),) = {choice.spans for choice in choices}
        for word, choice in zip(candidates, choices, strict=True):
            assert choice.ids == tuple(tokenizer.encode(before + word + after, special=False))
            # What is not the word is the same for all, and there is something of it on both sides.
            assert choice.ids[: span[0]] == choices[0].ids[: span[0]] != ()
            assert choice.ids[span[1] :] == choices[0].ids[span[1] :] != ()
        different = differences([choice.ids for choice in choices])
        assert span[0] <= different[0][0] < different[-1][1] <= span[1]
        left, right = words(before)[-1], words(after)[0]
        gaps = before[left.end :], after[: right.begin]
        for word in candidates[1:]:
            assert not (statistics.has(left.text, gaps[0], word) and statistics.has(word, gaps[1], right.text))


def test_a_short_text_has_no_cloze_and_says_why() -> None:
    text = language(0, 200)
    task = _make_cloze([text], ["a few words only, and no more than that"], Tokenizer.train([text], "bpe:400"))
    assert task.reason == "The held-out text is too short for a cloze test: it gives 0 of 24."
    candidate = untrained("gpt2")
    result = task.run(candidate.model, candidate.tokenizer)
    assert (result.items, result.reason, result.chance) == ((), task.reason, 0.25)


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
    monkeypatch.setattr("anyformer.compare.tasks.items._CHARACTERS", 6)
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
