from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.blocks.linear import Dropout


@settings(max_examples=25)
@given(p=st.floats(0.01, 0.95), seed=st.integers(0, 1000), shape=st.sampled_from([(50_001,), (70, 3, 251)]))
def test_keeps_the_mean_and_drops_its_share(p: float, seed: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(seed)
    x = torch.ones(shape, requires_grad=True)
    y = Dropout(p)(x)
    dropped = (y == 0).float().mean().item()
    assert dropped == pytest.approx(p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5 + 1e-5)
    assert torch.unique(y.detach()).tolist() == [0.0, pytest.approx(1 / (1 - p), rel=1e-3)]
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


def test_neighbors_are_independent() -> None:
    """Four decisions come from one draw: none of them may tell another."""
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(1 << 18)) > 0).float() - 0.5
    for lag in range(1, 9):
        assert abs((kept[:-lag] * kept[lag:]).mean().item()) < 0.25 * 0.01


def test_is_a_function_of_torchs_seed() -> None:
    x = torch.randn(3, 1000)
    torch.manual_seed(1)
    first, second = Dropout(0.3)(x), Dropout(0.3)(x)
    torch.manual_seed(1)
    assert torch.equal(first, Dropout(0.3)(x))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [0.0, 1e-9, 1.0])
def test_ends_of_the_range(p: float) -> None:
    x = torch.ones(100)
    assert torch.equal(Dropout(p)(x), torch.zeros(100) if p == 1.0 else x)


def test_does_nothing_in_evaluation() -> None:
    x = torch.randn(5)
    assert torch.equal(Dropout(0.9).eval()(x), x)


def test_bfloat16() -> None:
    y = Dropout(0.5)(torch.ones(1000, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert set(y.tolist()) == {0.0, 2.0}
