"""Compiled attention in float32, with and without dropout, against its equation in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyformer import kernels
from anyformer.kernels import reference
from anyformer.kernels.cpu import attention as cpu
from anyformer.native.levels import SWITCH, has

BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2**-6}


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    if not has("avx512vnni"):
        pytest.skip("needs a processor with AVX-512")
    assert cpu.supports(torch.zeros(1), torch.float32)


def with_gradients(compute: Callable[..., Tensor], operands: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [operand.detach().clone().requires_grad_() for operand in operands]
    out = compute(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def assert_near(found: list[Tensor], exact: list[Tensor], bound: float) -> None:
    for mine, theirs in zip(found, exact, strict=True):
        assert mine.shape == theirs.shape
        # A single key has no gradient but rounding's.
        size = max(float(theirs.norm()), 0.1 * math.sqrt(theirs.numel()))
        assert float((mine.double() - theirs).norm()) <= bound * size


@settings(max_examples=80)
@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    queries=st.integers(1, 150),
    keys=st.integers(1, 150),
    head_dim=st.sampled_from([1, 8, 24, 32, 40, 64, 96]),
    kind=st.sampled_from(["all", "causal", "hidden", "hidden from each", "padding", "biased", "biased each"]),
    dropout_p=st.sampled_from([0.0, 0.1, 0.5]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_equals_the_equation(
    batch: int,
    kv_heads: int,
    group: int,
    queries: int,
    keys: int,
    head_dim: int,
    kind: str,
    dropout_p: float,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    keys = queries if kind == "causal" else keys
    heads = kv_heads * group
    sizes = (queries, heads), (keys, kv_heads), (keys, kv_heads)
    operands = [torch.randn(batch, time, count, head_dim).to(dtype).transpose(1, 2) for time, count in sizes]
    mask = None
    grad = torch.randn(batch, heads, queries, head_dim)
    if kind == "padding":
        mask = (torch.arange(keys) < torch.randint(1, keys + 1, (batch, 1)))[:, None, None]
        grad *= (torch.arange(queries) < torch.randint(queries + 1, (batch, 1)))[:, None, :, None]
    elif "hidden" in kind:
        mask = torch.rand(batch, 1, queries if "each" in kind else 1, keys) < 0.7
        mask[..., 0] = True
    elif "biased" in kind:
        operands.append(torch.randn(batch if "each" in kind else 1, heads, queries, keys))
    scale = 1.3 / math.sqrt(head_dim)
    kept = _kept(batch, heads, queries, keys, dropout_p)

    def ours(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        torch.manual_seed(7)
        return kernels.attention(query, key, value, mask if bias is None else bias, dropout_p, kind == "causal", scale)

    def exact(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        seen = mask if bias is None else bias
        weights = reference.attention_weights(query, key, seen, kind == "causal", scale)
        return weights * kept / (1 - dropout_p) @ reference.repeat_kv(value, query)

    found = with_gradients(ours, operands, grad)
    with torch.no_grad():
        alone = ours(*(part.to(dtype) for part in operands))
    assert found[0].dtype == alone.dtype == dtype
    wanted = with_gradients(exact, [part.double() for part in operands], grad.to(dtype))
    assert_near([*found, alone], [*wanted, wanted[0]], BOUNDS[dtype])
    assert not found[1][~grad.any(dim=3)].any()  # not even rounding's


@pytest.mark.parametrize("keys", [2, 20, 150])
def test_gradients_of_large_scores_are_as_exact(keys: int) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, time, 16) for time in (40, keys, keys))
    operands = [query, key, value + 3, 30 + torch.randn(2, 2, 40, keys)]
    grad = torch.randn(2, 2, 40, 16)
    found = with_gradients(kernels.attention, operands, grad)
    exact = with_gradients(reference.attention, [part.double() for part in operands], grad)
    assert_near(found, exact, BOUNDS[torch.float32])
    assert float(found[4].double().sum(dim=3).abs().max()) <= 5e-6


def _kept(batch: int, heads: int, queries: int, keys: int, dropout_p: float) -> Tensor:
    """Which weights are kept: those of scores that are all 0, which one-hot values tell apart."""
    zeros = torch.zeros(batch, heads, max(queries, keys), keys)
    torch.manual_seed(7)
    values = torch.eye(keys).expand(batch, heads, keys, keys)
    return kernels.attention(zeros[:, :, :queries], zeros[:, :, :keys], values, None, dropout_p) > 0


@pytest.mark.parametrize("dropout_p", [0.05, 0.3])
def test_as_many_weights_are_dropped_as_asked_for(dropout_p: float) -> None:
    kept = _kept(4, 4, 100, 90, dropout_p).float()
    assert float(kept.mean()) == pytest.approx(1 - dropout_p, abs=3 * math.sqrt(dropout_p / kept.numel()))
    for dim in range(4):
        others = [other for other in range(4) if other != dim]
        assert len(kept.mean(dim=others).unique()) > 1, "each part has draws of its own"
    torch.manual_seed(8)
    zeros = torch.zeros(1, 1, 90, 90)
    first = kernels.attention(zeros, zeros, torch.eye(90).expand_as(zeros), None, dropout_p)
    second = kernels.attention(zeros, zeros, torch.eye(90).expand_as(zeros), None, dropout_p)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_nothing(dtype: torch.dtype) -> None:
    operands = [torch.randn(3, 4, 70, 24).to(dtype) for _ in range(3)]
    operands.append(torch.randn(1, 4, 70, 70))
    grad = torch.randn(3, 4, 70, 24)

    def compute(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        torch.manual_seed(7)
        return kernels.attention(query, key, value, bias, 0.2)

    before, found = torch.get_num_threads(), list[list[Tensor]]()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(with_gradients(compute, operands, grad))
    torch.set_num_threads(before)
    for one, several in zip(*found, strict=True):
        assert torch.equal(one, several)


def test_who_sees_nothing_gets_nothing() -> None:
    operands = [torch.randn(2, 2, 5, 16) for _ in range(3)]
    visible = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    visible[1, 0, 2] = False
    out, *grads = with_gradients(
        lambda *parts: kernels.attention(*parts, visible, scale=0.3), operands, torch.randn(2, 2, 5, 16)
    )
    assert not out[1, :, 2].any()
    assert not grads[0][1, :, 2].any()
    assert all(bool(part.isfinite().all()) for part in (out, *grads))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_no_number_is_noticed(wrong: float) -> None:
    x = torch.randn(2, 2, 40, 16)
    x[1, 1, 7, 3] = wrong
    assert not bool(kernels.attention(x.requires_grad_(), x, x, scale=0.3)[1, 1, 7].isfinite().all())


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 2, 40, 16)
    monkeypatch.setenv(SWITCH, "0")
    assert not cpu.supports(x, torch.float32)
    expected = reference.attention(x, x, x, scale=0.3)
    torch.testing.assert_close(kernels.attention(x.requires_grad_(), x, x, scale=0.3), expected)
    assert kernels.attention(x, x, x, None, 0.5).count_nonzero() > 0


@pytest.mark.parametrize("dropout_p", [1.0, 1 - 1e-12])
def test_all_weights_can_be_dropped(dropout_p: float) -> None:
    operands = [torch.randn(1, 2, 5, 8) for _ in range(3)]
    grad = torch.ones(1, 2, 5, 8)
    for found in with_gradients(lambda *parts: kernels.attention(*parts, None, dropout_p), operands, grad):
        assert not found.any()
