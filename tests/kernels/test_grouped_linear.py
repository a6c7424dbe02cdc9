"""Products of groups of rows are those of each group by itself."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anyformer import kernels
from anyformer.kernels.packed_weight import pack
from anyformer.kernels.quantization import QUANTIZERS, Quantization

SIZES = st.integers(0, 5) | st.sampled_from([63, 64, 65, 128, 150])
"""Rows of a group; oneDNN multiplies blocks of 64."""


def _by_hand(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    starts = [0, *ends.tolist()[:-1]]
    matrices = weight.chunk(len(ends))
    return torch.cat([x[a:b] @ w.T for a, b, w in zip(starts, ends.tolist(), matrices, strict=True)])


@given(groups=st.lists(st.integers(0, 4), min_size=1, max_size=20), count=st.integers(5, 7), copies=st.integers(1, 2))
def test_rows_are_sorted_and_come_back(groups: list[int], count: int, copies: int) -> None:
    group = torch.tensor(groups * copies)
    sorted_rows = kernels.sort_by_group(group, count)
    assert group[sorted_rows.order].tolist() == sorted(group.tolist())
    assert sorted_rows.ends.tolist() == [sum(g <= e for g in group.tolist()) for e in range(count)]
    tokens = torch.randn(len(group) // copies, 3, dtype=torch.float64, requires_grad=True)
    rows = kernels.gather_groups(tokens, sorted_rows)
    assert torch.equal(kernels.scatter_groups(rows, sorted_rows), tokens.repeat_interleave(copies, dim=0))
    weights = torch.randn_like(rows)
    (got,) = torch.autograd.grad((rows * weights).sum(), tokens, retain_graph=True)
    expected = weights[sorted_rows.inverse].unflatten(0, (-1, copies)).sum(dim=1)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@given(sizes=st.lists(SIZES, min_size=1, max_size=4), inputs=st.integers(1, 20), outputs=st.integers(1, 20))
def test_products_and_gradients(dtype: torch.dtype, sizes: list[int], inputs: int, outputs: int) -> None:
    ends = torch.tensor(sizes).cumsum(dim=0).int()
    x = torch.randn(sum(sizes), inputs, dtype=dtype, requires_grad=True)
    weight = torch.randn(len(sizes) * outputs, inputs, dtype=dtype, requires_grad=True)
    out, expected = kernels.grouped_linear(x, weight, ends), _by_hand(x, weight, ends)
    rtol, atol = (0.05, 0.2) if dtype == torch.bfloat16 else (1e-4, 1e-4)
    torch.testing.assert_close(out, expected, rtol=rtol, atol=atol)
    chance = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad(out, (x, weight), chance), torch.autograd.grad(expected, (x, weight), chance), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


@pytest.mark.parametrize("is_frozen", [True, False], ids=["frozen weight", "input without gradient"])
def test_only_the_gradient_that_is_needed(is_frozen: bool) -> None:
    ends = torch.tensor([2, 2, 5]).int()
    x, weight = torch.randn(5, 4, requires_grad=is_frozen), torch.randn(3 * 2, 4, requires_grad=not is_frozen)
    wanted = x if is_frozen else weight
    (got,) = torch.autograd.grad(kernels.grouped_linear(x, weight, ends).sum(), wanted)
    (expected,) = torch.autograd.grad(_by_hand(x, weight, ends).sum(), wanted)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("matmul", ["float", "int8"])
def test_autocast_multiplies_in_its_dtype_and_weights_keep_theirs(matmul: Literal["float", "int8"]) -> None:
    ends = torch.tensor([300, 300, 323, 900]).int()  # 23 rows are too few to gain by int8
    x, weight = torch.randn(900, 640, requires_grad=True), torch.randn(4 * 512, 640, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = kernels.grouped_linear(x, weight, ends, matmul=matmul)
    assert out.dtype == torch.bfloat16
    got = torch.autograd.grad(out.float().square().mean(), (x, weight))
    wanted = torch.autograd.grad(_by_hand(x, weight, ends).square().mean(), (x, weight))
    assert [part.dtype for part in got] == [torch.float32] * 2
    for ours, theirs in zip(got, wanted, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.02


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantized_groups(kind: Quantization) -> None:
    ends = torch.tensor([2, 2, 5]).int()
    x, weight = torch.randn(5, 64, requires_grad=True), torch.randn(3 * 16, 64)
    packed = pack(QUANTIZERS[kind](weight))
    out = kernels.quantized_grouped_linear(x, packed, ends)
    expected = _by_hand(x, weight, ends)
    assert (out - expected).norm().item() < 0.15 * expected.norm().item()
    (grad,) = torch.autograd.grad(out.sum(), x)
    (wanted,) = torch.autograd.grad(expected.sum(), x)
    assert float((grad - wanted).norm() / wanted.norm()) < 0.15
