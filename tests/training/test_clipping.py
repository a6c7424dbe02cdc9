"""Clipping is that of torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from anyformer.training.clipping import clip_grad_norm_


def parameter(gradient: Tensor | None, shape: tuple[int, ...]) -> nn.Parameter:
    made = nn.Parameter(torch.zeros(shape))
    made.grad = None if gradient is None else gradient.clone()
    return made


@given(
    shapes=st.lists(st.lists(st.integers(0, 40), min_size=0, max_size=3).map(tuple), max_size=4),
    absent=st.integers(0, 4),
    scale=st.sampled_from([0.0, 1e-6, 1e-2, 1.0, 1e4]),
    max_norm=st.sampled_from([1e-3, 1.0, 10.0]),
    stands=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_it_is_that_of_torch(
    shapes: list[tuple[int, ...]], absent: int, scale: float, max_norm: float, stands: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = [scale * torch.randn(shape, generator=generator) for shape in shapes]
    if stands:
        drawn = [gradient.mT.contiguous().mT if gradient.dim() >= 2 else gradient for gradient in drawn]
    gradients = [None if index == absent else gradient for index, gradient in enumerate(drawn)]
    ours, theirs = ([parameter(g, s) for g, s in zip(gradients, shapes, strict=True)] for _ in range(2))
    norm = clip_grad_norm_(iter(ours), max_norm)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs, max_norm), rtol=1e-5, atol=0)
    for our, their in zip(ours, theirs, strict=True):
        # Torch multiplies by max_norm / (norm + 1e-6) even where that is next to 1.
        torch.testing.assert_close(our.grad, their.grad, rtol=1e-5, atol=0)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_norm_that_is_not_finite_is_told(number: float) -> None:
    broken = parameter(torch.tensor([1.0, number]), (2,))
    assert not clip_grad_norm_([broken], 1.0).isfinite()
