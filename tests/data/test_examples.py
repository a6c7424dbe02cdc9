from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.data.examples import ChatExample, ClassifyExample, PreferenceExample, duplicates, held_out, overlap
from anyformer.data.formats import Location
from anyformer.errors import UserError


def classify(*texts: str, label: str = "a", start: int = 1) -> list[Any]:
    return [
        ClassifyExample(location=Location(Path("a.csv"), number), text=text, label=label)
        for number, text in enumerate(texts, start=start)
    ]


def chat(answer: str, number: int = 1) -> ChatExample:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
    return ChatExample(location=Location(Path("a.csv"), number), messages=messages, loss_mask=[False, True])


@given(
    texts=st.lists(st.integers(0, 60).map(str), min_size=2, max_size=80),
    share=st.floats(0.01, 0.99),
    seed=st.integers(-5, 2**40),
    chance=st.randoms(use_true_random=False),
)
def test_the_split_depends_on_the_content_alone(texts: list[str], share: float, seed: int, chance: Random):
    examples = classify(*texts)
    distinct = len(set(texts))
    if distinct < 2:
        with pytest.raises(UserError, match="There are no two different examples"):
            held_out(examples, share, seed)
        return
    training, validation = held_out(examples, share, seed)
    assert sorted(e.location.number for e in training + validation) == list(range(1, len(texts) + 1))
    # Whatever says the same is on one side.
    assert not {e.text for e in training} & {e.text for e in validation}
    assert not overlap(training, validation)
    count = len({e.text for e in validation})
    assert 1 <= count < distinct
    assert count in (1, distinct - 1, round(share * distinct))
    shuffled = chance.sample(examples, len(examples))
    assert {e.location for e in held_out(shuffled, share, seed)[1]} == {e.location for e in validation}


def test_another_seed_gives_another_split():
    examples = classify(*map(str, range(200)))
    one, two = (set(map(id, held_out(examples, seed=seed)[1])) for seed in (0, 1))
    assert len(one) == len(two) == 20
    assert one != two
    for share in (0, 1, -1, float("nan")):
        with pytest.raises(UserError, match="must be between 0 and 1"):
            held_out(examples, share)


def test_labels_are_part_of_what_is_said_and_not_of_what_is_asked():
    one, other = classify("x", "y"), classify("x", label="b", start=3)
    assert duplicates([*one, *other]) == []
    assert overlap(one, other) == [(one[0].location, other[0].location)]
    again = classify("x", start=9)
    assert duplicates([*one, *again]) == [(one[0].location, again[0].location)]


def test_conversations_and_pairs_of_them_are_compared_whole():
    assert duplicates([chat("a", 1), chat("b", 2), chat("a", 3)]) == [(chat("a", 1).location, chat("a", 3).location)]
    pairs = [
        PreferenceExample(
            location=Location(Path("a.csv"), number), chosen=chat("a", number), rejected=chat(bad, number)
        )
        for number, bad in enumerate("bcb")
    ]
    assert [(one.number, two.number) for one, two in duplicates(pairs)] == [(0, 2)]


@given(
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=5),
    seed=st.integers(0, 2**40),
    share=st.floats(0.01, 0.5),
)
def test_each_label_with_two_examples_is_on_both_sides(counts: list[int], seed: int, share: float):
    examples = [
        each
        for number, count in enumerate(counts)
        for each in classify(*(f"{number} {index}" for index in range(count)), label=str(number))
    ]
    plain = held_out(examples, share, seed)
    sides = held_out(examples, share, seed, label=lambda example: example.label)
    assert sorted(e.text for side in sides for e in side) == sorted(e.text for e in examples)
    labels = [{e.label for e in side} for side in sides]
    for number, count in enumerate(counts):
        if count > 1:
            assert all(str(number) in side for side in labels)
    assert all(sides)
    # Where every label was on both sides, nothing is changed.
    if all({e.label for e in side} == {e.label for e in examples} for side in plain):
        assert sides == plain
