"""Pairs with the same tokens in an order that occurs nowhere; and candidates of a cloze that are alike."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings

import anyformer as af
from anyformer.compare.tasks.choices import Choice, ChoiceTask, Item, differences, encode
from anyformer.compare.tasks.items import RATIO, make_cloze, make_minimal_pairs
from anyformer.compare.tasks.words import WordStatistics, passages, words
from anyformer.tokenizer import Tokenizer
from tests.compare.tasks.corpora import untrained
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
