"""The filters equal Hugging Face's, and what is drawn has the distribution that it should have."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from anyformer.errors import UserError
from anyformer.generation import GenerationConfig
from anyformer.generation.logits_processors import History, config_processors
from anyformer.generation.sampling import Sampler, draw, keep_min_p, keep_top_k, keep_top_p

few = settings(max_examples=60, derandomize=True, database=None)
# Few distinct values, so that there are ties; banned tokens too.
scores = st.one_of(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0]), st.floats(-20, 20, width=32))


@st.composite
def logits(draw: st.DrawFn) -> Tensor:
    vocab = draw(st.integers(1, 12))
    row = st.lists(scores, min_size=vocab, max_size=vocab).filter(lambda row: max(row) > -math.inf)
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=3)), dtype=torch.float32)


@few
@given(logits(), st.integers(1, 15))
def test_top_k_is_theirs(drawn: Tensor, k: int) -> None:
    assert torch.equal(keep_top_k(drawn, k), TopKLogitsWarper(k)(None, drawn))


@few
@given(logits(), st.floats(0.01, 1.0))
def test_top_p_is_theirs(drawn: Tensor, p: float) -> None:
    expected = TopPLogitsWarper(p)(None, drawn) if p < 1.0 else drawn
    assert torch.equal(keep_top_p(drawn, p), expected)


@few
@given(st.integers(0, 999), st.floats(0.0, 6.0), st.floats(0.01, 0.99), st.booleans())
def test_top_p_of_a_large_vocabulary_is_theirs(seed: int, spread: float, p: float, ties: bool) -> None:
    drawn = torch.randn(2, 5000, generator=torch.Generator().manual_seed(seed)) * spread
    drawn = drawn.round() if ties else drawn
    ours, theirs = keep_top_p(drawn, p), TopPLogitsWarper(p)(None, drawn)
    # Of sums of thousands of numbers the last digits depend on the order: one token at the border, at most, is others'.
    assert int((ours != theirs).sum(dim=-1).max()) <= (0 if ties else 1)


@few
@given(logits(), st.floats(0.0, 1.0))
def test_min_p_is_theirs(drawn: Tensor, share: float) -> None:
    assert torch.equal(keep_min_p(drawn, share), MinPLogitsWarper(share)(None, drawn))


@few
@given(logits(), st.floats(0.1, 3.0), st.floats(-2, 2), st.floats(-2, 2), st.lists(st.integers(0, 11), max_size=8))
def test_penalties_are_their_formulae(
    drawn: Tensor, repetition: float, presence: float, frequency: float, said: list[int]
) -> None:
    vocab = drawn.shape[1]
    ids = torch.tensor([[0] + [token % vocab for token in said]]).expand(len(drawn), -1)
    config = GenerationConfig(repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency)
    history = History(ids=ids, padding=torch.zeros(len(drawn), dtype=torch.long), new=len(said))
    judged = drawn
    for processor in config_processors(config, vocab):
        judged = processor(judged, history)
    expected = RepetitionPenaltyLogitsProcessor(repetition)(ids, drawn)
    for token in range(vocab):
        count = ids[0, 1:].tolist().count(token)
        expected[:, token] -= count * frequency + (count > 0) * presence
    torch.testing.assert_close(judged, expected)


@few
@given(logits(), st.floats(0.1, 5.0), st.integers(1, 15), st.floats(0.01, 0.99))
def test_order_is_theirs(drawn: Tensor, temperature: float, k: int, p: float) -> None:
    expected = drawn
    for warper in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(k), TopPLogitsWarper(p)):
        expected = warper(None, expected)
    assert torch.equal(Sampler(GenerationConfig(temperature=temperature, top_k=k, top_p=p)).filter(drawn), expected)


@few
@given(logits())
def test_the_likeliest_always_stays(drawn: Tensor) -> None:
    best = drawn.max(dim=-1).values
    for kept in (keep_top_k(drawn, 1), keep_top_p(drawn, 1e-9)):
        assert torch.equal(kept.max(dim=-1).values, best)


def fits(counts: Tensor, probabilities: Tensor) -> bool:
    """A chi-square test at four standard deviations (Wilson and Hilferty's approximation of the quantile)."""
    assert not counts[probabilities == 0].any()
    counts, probabilities = counts[probabilities > 0], probabilities[probabilities > 0]
    expected = probabilities * counts.sum()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(counts) - 1
    return statistic < freedom * (1 - 2 / (9 * freedom) + 4 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize(
    "config",
    [
        GenerationConfig(temperature=1.0),
        GenerationConfig(temperature=0.5),
        GenerationConfig(temperature=2.0, top_k=4),
        GenerationConfig(temperature=1.3, top_p=0.8),
        GenerationConfig(temperature=0.9, top_k=6, top_p=0.7),
    ],
)
def test_distribution(config: GenerationConfig) -> None:
    row = torch.tensor([[0.3, 2.0, -1.0, 1.1, 0.0, -torch.inf, 1.9, -3.0, 0.8]])
    generator = torch.Generator().manual_seed(7)
    sampler = Sampler(config, generator)
    expected = sampler.filter(row).double().softmax(dim=-1)[0]
    drawn = sampler(row.expand(40_000, -1))
    counts = drawn.bincount(minlength=row.shape[1]).double()
    assert fits(counts, expected)
    assert not fits(counts.roll(1)[expected > 0], expected[expected > 0])


def test_rows_are_drawn_independently() -> None:
    generator = torch.Generator().manual_seed(3)
    pairs = draw(torch.zeros(20_000, 2, 3).flatten(0, 1), generator).view(-1, 2)
    counts = (pairs[:, 0] * 3 + pairs[:, 1]).bincount(minlength=9).double()
    assert fits(counts, torch.full((9,), 1 / 9, dtype=torch.double))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 1e-40}, "too small"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias"),
        ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": math.nan}, "presence_penalty"),
    ],
)
def test_impossible_values(values: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        GenerationConfig(**values)
