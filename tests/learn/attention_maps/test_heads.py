"""Patterns of heads: heads made to follow one are found to, and no other head is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anyformer.learn.attention_maps.heads import MIXED, SPREAD, Pattern, names, patterns

TOKENS = ("[CLS]", "the", " cat", ",", " sees", " the", " cat", "[SEP]")


def _one_hot(keys: list[int], count: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(keys), count).float()


def _head(found: list[Pattern]) -> dict[str, float]:
    return {each.name: float(each.scores[0, 0]) for each in found}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("previous token", [0, 0, 1, 2, 3, 4, 5, 6]),
        ("next token", [1, 2, 3, 4, 5, 6, 7, 7]),
        ("first token", [0] * 8),
        ("itself", list(range(8))),
        ("same word", [0, 5, 6, 0, 0, 1, 2, 0]),
        ("after the same word", [0, 0, 0, 0, 0, 2, 3, 0]),
        ("punctuation", [7, 7, 3, 7, 3, 3, 7, 3]),
    ],
)
def test_a_head_that_follows_a_pattern_is_named_after_it(name: str, keys: list[int]):
    found = patterns(_one_hot(keys, 8)[None, None], TOKENS)
    assert _head(found)[name] == 1.0
    assert names(found) == [[name]]


@pytest.mark.parametrize(
    ("name", "keys"), [("diagonal", [0, 2, 3, 5]), ("first token", [0] * 4), ("last token", [5] * 4)]
)
def test_patterns_of_cross_attention(name: str, keys: list[int]):
    source, target = ("a", " small", " house", " by", " the", " sea"), ("ein", " kleines", " Haus", " am")
    found = patterns(_one_hot(keys, 6)[None, None], target, source)
    assert _head(found)[name] == 1.0
    assert names(found) == [[name]]


@given(
    st.lists(st.sampled_from(("the", " cat", ",", "[SEP]", "x")), min_size=1, max_size=9),
    st.booleans(),
    st.integers(0, 9),
)
def test_equal_weights_score_as_chance(tokens: list[str], causal: bool, seed: int):
    count = len(tokens)
    visible = torch.ones(count, count).tril() if causal else torch.ones(count, count)
    even = (visible / visible.sum(dim=-1, keepdim=True))[None, None]
    found = patterns(even, tokens, causal=causal)
    for each in found:
        assert float(each.scores[0, 0]) == pytest.approx(each.chance, abs=1e-5), each.name
    assert names(found)[0][0] in (SPREAD, MIXED)
    # Whatever the weights are, a score is a share.
    drawn = torch.randn(2, 3, count, count, generator=torch.Generator().manual_seed(seed)) * 4
    drawn = drawn.masked_fill(visible == 0, -torch.inf).softmax(dim=-1)
    for each in patterns(drawn, tokens, causal=causal):
        assert each.scores.shape == (2, 3)
        assert 0 <= float(each.scores.min()) <= float(each.scores.max()) <= 1


def test_what_a_text_has_no_occasion_for_is_left_out():
    assert "same word" not in _head(patterns(torch.eye(3)[None, None], ("a", "b", "c")))
    assert "next token" not in _head(patterns(torch.eye(3)[None, None], ("a", "b", "c"), causal=True))
    assert names(patterns(torch.ones(1, 1, 1, 1), ("a",))) == [[MIXED]]
