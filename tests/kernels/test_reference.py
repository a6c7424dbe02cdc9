"""Every operation, by whichever backend is chosen, against its equation: values and gradients in float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anyformer import kernels
from anyformer.blocks.feed_forward import ACTIVATIONS
from anyformer.kernels import reference

SIZES, SEEDS = st.integers(1, 9), st.integers(0, 99)


def _assert_equal(ours: Callable[..., Tensor], equation: Callable[..., Tensor], *operands: Tensor) -> None:
    """The same values, and the same gradients of a random sum of them for every operand."""
    results: list[list[Tensor]] = []
    for function in (ours, equation):
        leaves = [operand.clone().requires_grad_() for operand in operands]
        out = function(*leaves)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
        results.append([out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def _normal(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@given(batch=st.integers(1, 2), kv_heads=st.integers(1, 2), groups=st.integers(1, 2), width=SIZES, seed=SEEDS)
@pytest.mark.parametrize("mask", ["none", "causal", "boolean", "bias"])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (3, 7), (70, 70)])
def test_attention(
    queries: int, keys: int, mask: str, batch: int, kv_heads: int, groups: int, width: int, seed: int
) -> None:
    if mask == "causal":
        keys = queries
    heads = kv_heads * groups
    query, key, value, bias = _normal(
        seed, (batch, heads, queries, width), *2 * [(batch, kv_heads, keys, width)], (1, heads, queries, keys)
    )
    attn_mask = {"boolean": (bias > 0).index_fill(3, torch.tensor([0]), value=True), "bias": bias}.get(mask)

    def with_mask(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda query, key, value: function(query, key, value, attn_mask, 0.0, mask == "causal", 0.3)

    _assert_equal(with_mask(kernels.attention), with_mask(reference.attention), query, key, value)


@given(rows=SIZES, inputs=SIZES, outputs=SIZES, seed=SEEDS)
def test_linear(rows: int, inputs: int, outputs: int, seed: int) -> None:
    operands = _normal(seed, (rows, inputs), (outputs, inputs), (outputs,))
    _assert_equal(kernels.linear, reference.linear, *operands)
    _assert_equal(kernels.linear, reference.linear, *operands[:2])


@given(rows=SIZES, width=SIZES, gated=st.booleans(), seed=SEEDS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str, rows: int, width: int, gated: bool, seed: int) -> None:
    x, multiplier = _normal(seed, (rows, width), (rows, width))

    def named(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, *multiplier: function(x, ACTIVATIONS[name], *multiplier)

    _assert_equal(named(kernels.activation), named(reference.activation), x, *([multiplier] if gated else []))


@given(rows=SIZES, width=st.integers(2, 9), seed=SEEDS)
def test_rms_norm(rows: int, width: int, seed: int) -> None:
    x, weight = _normal(seed, (rows, width), (width,))
    _assert_equal(lambda *x: kernels.rms_norm(*x, 1e-3), lambda *x: reference.rms_norm(*x, 1e-3), x, weight)


@given(rows=SIZES, width=SIZES, vocab=st.integers(2, 40), smoothing=st.sampled_from([0.0, 0.1]), seed=SEEDS)
def test_linear_cross_entropy(rows: int, width: int, vocab: int, smoothing: float, seed: int) -> None:
    x, weight, bias = _normal(seed, (rows, width), (vocab, width), (vocab,))
    target = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(seed))
    target[1::3] = -100

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, weight, bias: function(x, weight, target, linear_bias=bias, label_smoothing=smoothing)

    _assert_equal(of(kernels.linear_cross_entropy), of(reference.linear_cross_entropy), x, weight, bias)
