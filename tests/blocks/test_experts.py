"""The mixture of experts computes its equation, and balances by its loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from anyformer.blocks.experts import Experts, Routing, balance_loss
from anyformer.config import ExpertsConfig, FeedForwardConfig
from anyformer.schema import ConfigError


@st.composite
def blocks(draw: st.DrawFn) -> Experts:
    count = draw(st.integers(2, 6))
    experts = ExpertsConfig(
        count=count,
        used=draw(st.integers(1, count)),
        normalized=draw(st.booleans()),
        balance=draw(st.sampled_from((0.0, 0.1))),
    )
    config = FeedForwardConfig(
        width=draw(st.integers(1, 9)), activation="silu", gated=draw(st.booleans()), bias=False, experts=experts
    )
    torch.manual_seed(draw(st.integers(0, 99)))
    return Experts(config, draw(st.integers(1, 9)))


def equation(block: Experts, x: Tensor) -> Tensor:
    """Every expert on every token, and a weight of 0 for those that are not chosen."""
    probabilities = F.softmax(x @ block.router.weight.T, dim=-1)
    least = probabilities.sort(dim=-1, descending=True)[0][..., block.used - 1 : block.used]
    weights = probabilities * (probabilities >= least)
    if block.config.normalized:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    out = torch.zeros_like(x)
    gates = [None] * block.count if block.gate is None else block.gate.weight.chunk(block.count)
    for e, (up, gate, down) in enumerate(
        zip(block.up.weight.chunk(block.count), gates, block.down.weight.chunk(block.count), strict=True)
    ):
        inner = F.silu(x @ up.T) if gate is None else F.silu(x @ gate.T) * (x @ up.T)
        out = out + weights[..., e : e + 1] * (inner @ down.T)
    return out


@given(block=blocks(), shape=st.tuples(st.integers(1, 3), st.integers(1, 5)))
def test_it_is_the_equation(block: Experts, shape: tuple[int, int]) -> None:
    x = torch.randn(*shape, block.router.in_features, requires_grad=True)
    out, expected = block(x), equation(block, x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    inputs = [x, *block.parameters()]
    chance = torch.randn_like(out)
    got, wanted = (
        torch.autograd.grad((each * chance).sum(), inputs, allow_unused=True, materialize_grads=True)
        for each in (out, expected)
    )
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_no_expert_sees_a_token_that_it_was_not_sent() -> None:
    config = FeedForwardConfig(width=8, bias=False, experts=ExpertsConfig(count=4, used=1))
    block = Experts(config, 4)
    with torch.no_grad():
        block.router.weight.copy_(10 * torch.eye(4))
        block.down.weight[4:].fill_(torch.nan)
    x = torch.eye(4)[:1].expand(3, 4)
    assert torch.isfinite(block(x)).all()


def test_equal_shares_have_the_least_loss() -> None:
    even = Routing(torch.full((4, 2), 0.5), torch.tensor([[0], [1], [0], [1]]))
    one = Routing(torch.tensor([[0.9, 0.1]]).expand(4, 2), torch.zeros(4, 1, dtype=torch.long))
    assert balance_loss([even]).item() == pytest.approx(1.0)
    assert balance_loss([one]).item() == pytest.approx(1.8)
    real = torch.tensor([[True, True, False, False]])
    assert balance_loss([one, even], real).item() == pytest.approx(2 * (0.75 * 0.7 + 0.25 * 0.3))


def test_routing_is_kept_for_training_alone() -> None:
    config = FeedForwardConfig(width=8, bias=False, experts=ExpertsConfig(count=4, used=2, balance=0.1))
    block = Experts(config, 4)
    block.eval()(torch.randn(2, 4))
    assert block.routing is None
    block.train()(torch.randn(2, 4))
    assert block.routing is not None


def test_more_used_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="used: 5 of 4 experts can't be chosen"):
        ExpertsConfig(count=4, used=5)
    with pytest.raises(ConfigError, match="limit: only a gated feed-forward has it"):
        FeedForwardConfig(width=8, limit=7.0)
