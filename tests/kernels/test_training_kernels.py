"""What compiled code does in training, against torch in float32 with the same rounded operands."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import anyformer as af
from anyformer import kernels
from anyformer.blocks.feed_forward import ACTIVATIONS, FeedForward
from anyformer.blocks.linear import Linear
from anyformer.config import FeedForwardConfig
from anyformer.kernels import cross_entropy, reference
from anyformer.kernels.cpu import attention, matmul
from anyformer.native.levels import SWITCH, has_amx_bf16, has_avx512_bf16
from tests.kernels.stand_ins import activation, rms_norm, rotary, use_stand_ins

compiled_only = pytest.mark.skipif(
    not has_avx512_bf16(), reason="needs a processor that multiplies pairs of bfloat16 numbers"
)
BF16 = torch.bfloat16
ROUNDING = 2**-7
"""Of two bfloat16 numbers one after the other, relative to what they are part of."""


@pytest.fixture(
    autouse=True,
    scope="module",
    params=["stand-ins", pytest.param("compiled", marks=compiled_only)],
)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Compiled code, where the processor has what it needs; and torch in its place, which tests all around it."""
    if request.param == "stand-ins":
        with pytest.MonkeyPatch.context() as patch:
            use_stand_ins(patch)
            yield request.param
        return
    compiled = [attention.kernel(BF16), activation.KERNEL, cross_entropy.KERNEL, rms_norm.KERNEL, rotary.KERNEL]
    compiled.append(matmul.BF16)
    assert all(kernel.supported() for kernel in compiled)
    yield request.param


def near(ours: Tensor, exact: Tensor, bound: float = ROUNDING) -> None:
    assert ours.shape == exact.shape
    assert bool(ours.isfinite().all())
    assert float((ours.float() - exact.float()).norm()) <= bound * float(exact.float().norm()) + 1e-6


def with_gradients(compute: Callable[..., Tensor], operands: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [operand.detach().clone().requires_grad_() for operand in operands]
    out = compute(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


@settings(max_examples=60)
@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    queries=st.sampled_from([1, 5, 31, 32, 33, 64, 65, 127, 128, 129, 200]),
    keys=st.sampled_from([1, 16, 33, 64, 130]),
    head_dim=st.sampled_from([1, 8, 24, 32, 40, 64, 96, 128]),
    kind=st.sampled_from(["all", "causal", "hidden", "biased"]),
    shared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention(
    batch: int, kv_heads: int, group: int, queries: int, keys: int, head_dim: int, kind: str, shared: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    keys = queries if kind == "causal" else keys
    heads = kv_heads * group

    def drawn(time: int, count: int) -> Tensor:
        return torch.randn(batch, time, count, head_dim).to(BF16).transpose(1, 2)

    operands = [drawn(queries, heads), drawn(keys, kv_heads), drawn(keys, kv_heads)]
    scores = torch.randn(1 if shared else batch, heads, queries, keys)
    if kind == "hidden":
        scores = torch.rand(batch, 1, 1 if shared else queries, keys) < 0.7
        scores[..., 0] = True
    elif kind == "biased":
        operands.append(scores)
    grad, scale = torch.randn(batch, heads, queries, head_dim).to(BF16), 1.3 / math.sqrt(head_dim)

    def ours(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        mask = scores if kind == "hidden" else bias
        return kernels.attention(query, key, value, mask, is_causal=kind == "causal", scale=scale)

    def exact(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        of_each = [part.float().repeat_interleave(group, dim=1) for part in (key, value)]
        mask = scores if kind == "hidden" else bias
        return F.scaled_dot_product_attention(
            query.float(), *of_each, attn_mask=mask, is_causal=kind == "causal", scale=scale
        )

    results = (with_gradients(ours, operands, grad), with_gradients(exact, [part.float() for part in operands], grad))
    bias = scores if kind == "biased" else None
    if kind in ("causal", "hidden"):
        seen = torch.ones(queries, keys, dtype=torch.bool).tril() if kind == "causal" else scores
        bias = torch.zeros(seen.shape).masked_fill(~seen, -math.inf)
    bounds = rounding_of_attention(*operands[:3], grad, bias, scale)
    for mine, theirs, bound in zip(*results, bounds[: len(operands) + 1], strict=True):
        assert mine.shape == theirs.shape
        assert float((mine.float() - theirs).norm()) <= float(bound.norm()) + 1e-6


def rounding_of_attention(
    query: Tensor, key: Tensor, value: Tensor, grad: Tensor, bias: Tensor | None, scale: float
) -> list[Tensor]:
    """Bounds of the errors of attention's output and of the gradients of query, key, value and bias in bfloat16.

    With P = softmax(S), dP = G V' and dS = P (dP - D), D = rowsum(G O) as Dao et al. 2022 (appendix B.4) compute them:
    each of O, P, dS and of what is returned is rounded once, by u = 2**-8 of itself. From O the rounding passes to D,
    from D to dS, and through the products with absolute values in the place of values. D is the difference of what may
    be far larger than dS is, so no multiple of a gradient bounds its error.
    """
    unit, group, (batch, kv_heads) = ROUNDING / 2, query.shape[1] // key.shape[1], key.shape[:2]
    q, k, v, g = (part.double().abs() for part in (query, key, value, grad))
    k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))
    signed = [part.double().repeat_interleave(group, dim=1) for part in (key, value)]
    s = query.double() @ signed[0].mT * scale
    p = (s if bias is None else s + bias).softmax(dim=-1)
    out, dp = p @ signed[1], grad.double() @ signed[1].mT
    ds = p * (dp - (grad.double() * out).sum(dim=-1, keepdim=True))
    out_error = unit * (p @ v + out.abs())
    ds_error = p * (g * out_error).sum(dim=-1, keepdim=True) + unit * ds.abs()

    def of_heads(part: Tensor) -> Tensor:
        return part.view(batch, kv_heads, group, *part.shape[2:]).sum(dim=2)

    dq = ds @ signed[0] * scale
    dk, dv = of_heads(ds.mT @ query.double()) * scale, of_heads(p.mT @ grad.double())
    found = [out_error, ds_error @ k * scale + unit * dq.abs(), of_heads(ds_error.mT @ q) * scale + unit * dk.abs()]
    found.append(unit * (of_heads(p.mT @ g) + dv.abs()))
    is_shared = bias is not None and len(bias) == 1
    return [*found, ds_error.sum(dim=0, keepdim=True) if is_shared else ds_error]


@settings(max_examples=100)
@given(
    rows=st.sampled_from([1, 15, 32, 33, 70]),
    outputs=st.integers(1, 150),
    depth=st.sampled_from([0, 1, 31, 32, 64, 767, 4096, 4100]),
    transposed=st.tuples(st.booleans(), st.booleans()),
    narrow=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    biased=st.booleans(),
    add=st.booleans(),
    seed=st.integers(0, 99),
)
def test_bf16_matmul(
    rows: int,
    outputs: int,
    depth: int,
    transposed: tuple[bool, bool],
    narrow: tuple[bool, bool, bool],
    biased: bool,
    add: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)

    def drawn(count: int, is_transposed: bool, is_narrow: bool) -> Tensor:
        values = torch.randn(count, depth)
        # Elements beside the operand belong to somebody else.
        wide = torch.full((depth, count + 3) if is_transposed else (count, depth + 3), torch.nan)
        wide = wide.to(BF16) if is_narrow else wide
        part = wide[:, 1:-2]
        part.copy_(values.t() if is_transposed else values)
        return part.t() if is_transposed else part

    left, right = drawn(rows, transposed[0], narrow[0]), drawn(outputs, transposed[1], narrow[1])
    bias = torch.randn(outputs) if biased else None
    before, sums = torch.randn(rows, outputs).to(BF16 if narrow[2] else torch.float32), torch.empty(rows)
    expected = left.to(BF16).double() @ right.to(BF16).double().t()
    expected = expected + (0 if bias is None else bias.double()) + (before.double() if add else 0)
    found = matmul.bf16_matmul(left, right, bias, out=before.clone(), sums=sums, add=add)
    near = ROUNDING if narrow[2] else 1e-4
    torch.testing.assert_close(found.double(), expected, atol=1e-3 + near * 8, rtol=near)
    torch.testing.assert_close(sums.double(), left.double().sum(dim=1), atol=1e-3, rtol=1e-4)
    if not add:
        assert torch.equal(matmul.bf16_matmul(left, right, bias, out=torch.empty_like(before)), found)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
@settings(max_examples=10)
@given(shape=st.sampled_from([(1,), (3, 16), (2, 5, 37), (9000,)]), dropped=st.booleans(), seed=st.integers(0, 99))
def test_activations(name: str, gated: bool, shape: tuple[int, ...], dropped: bool, seed: int) -> None:
    torch.manual_seed(seed)
    operands = [3 * torch.randn(*shape).to(BF16) for _ in range(1 + gated)]
    kept = torch.rand(*shape) < 0.5
    grad = torch.randn(*shape)

    def then(inner: Tensor) -> Tensor:
        return (inner * kept if dropped else inner).square()

    def ours(x: Tensor, factor: Tensor | None = None) -> Tensor:
        return then(kernels.activation(x, ACTIVATIONS[name], factor))

    def exact(x: Tensor, factor: Tensor | None = None) -> Tensor:
        return then(ACTIVATIONS[name](x) * (1 if factor is None else factor))

    for mine, theirs in zip(
        with_gradients(ours, operands, grad),
        with_gradients(exact, [part.float() for part in operands], grad),
        strict=True,
    ):
        near(mine, theirs, 2 * ROUNDING)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 9),
    vocab=st.sampled_from([1, 2, 15, 16, 17, 300]),
    smoothing=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 99),
)
def test_loss_and_gradient(rows: int, vocab: int, smoothing: float, seed: int) -> None:
    torch.manual_seed(seed)
    logits, targets = 4 * torch.randn(rows, vocab).to(BF16), torch.randint(vocab, (rows,))
    exact = logits.float().requires_grad_()
    expected = F.cross_entropy(exact, targets, label_smoothing=smoothing, reduction="none")
    (0.25 * expected.sum()).backward()
    assert exact.grad is not None
    found = cross_entropy.compiled_loss_and_grad_(logits, targets[:, None], smoothing, 0.25)
    torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(logits.float(), exact.grad, atol=1e-6, rtol=ROUNDING)


@settings(max_examples=40)
@given(shape=st.sampled_from([(1,), (4, 16), (2, 3, 37), (70, 100)]), seed=st.integers(0, 99))
def test_rms_norm(shape: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    operands, grad = [torch.randn(*shape), torch.randn(shape[-1])], torch.randn(*shape)
    ours = with_gradients(lambda x, weight: kernels.rms_norm(x, weight, 1e-5), operands, grad)
    exact = with_gradients(lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-5), operands, grad)
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_rms_norm_of_narrow_numbers() -> None:
    torch.manual_seed(0)
    operands, grad = [torch.randn(5, 37).to(BF16), torch.randn(37).to(BF16)], torch.randn(5, 37)
    ours = with_gradients(lambda x, weight: kernels.rms_norm(x, weight, 1e-5), operands, grad)
    exact = with_gradients(lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-5), operands, grad)
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.dtype == theirs.dtype == BF16
        near(mine, theirs)


@settings(max_examples=60)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    time=st.integers(1, 40),
    half=st.sampled_from([1, 8, 12, 16, 20, 32, 64]),
    tables=st.booleans(),
    split=st.booleans(),
    dtype=st.sampled_from([torch.float32, BF16]),
    seed=st.integers(0, 99),
)
def test_rotary(
    batch: int, heads: int, time: int, half: int, tables: bool, split: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    shape = (batch, time, heads, 2 * half) if split else (batch, heads, time, 2 * half)
    angles = [torch.randn(batch if tables else 1, 1, time, 2 * half) for _ in range(2)]
    x, grad = torch.randn(shape).to(dtype), torch.randn(shape).to(BF16)

    def rotate(function: Callable[..., Tensor], x: Tensor) -> Tensor:
        return function(x.transpose(1, 2) if split else x, *angles)

    grad = grad.transpose(1, 2) if split else grad
    with torch.autocast("cpu", BF16):
        ours = with_gradients(partial(rotate, kernels.rotate), [x], grad)
    exact = with_gradients(partial(rotate, reference.rotate), [x.float()], grad)
    assert ours[0].dtype == BF16
    assert ours[1].dtype == dtype
    for mine, theirs in zip(ours, exact, strict=True):
        near(mine, theirs)


def test_targets_are_in_the_vocabulary() -> None:
    logits, targets = torch.randn(3, 20).to(BF16), torch.tensor([[3], [19], [0]])
    expected = cross_entropy.compiled_loss_and_grad_(logits.clone(), targets, 0.0, 1.0)
    assert torch.equal(cross_entropy.compiled_loss_and_grad_(logits.clone(), targets.int(), 0.0, 1.0), expected)
    for wrong in (-1, 20):
        targets[1] = wrong
        with pytest.raises(IndexError, match="20 tokens"):
            cross_entropy.compiled_loss_and_grad_(logits, targets, 0.0, 1.0)


def test_who_sees_nothing_gets_nothing() -> None:
    torch.manual_seed(0)
    operands = [torch.randn(2, 2, 5, 16).to(BF16) for _ in range(3)]
    visible = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    visible[1, 0, 2] = False
    grad = torch.randn(2, 2, 5, 16)
    out, *grads = with_gradients(lambda *parts: kernels.attention(*parts, visible, scale=0.3), operands, grad)
    assert not out[1, :, 2].any()
    assert not grads[0][1, :, 2].any()
    assert all(bool(part.isfinite().all()) for part in (out, *grads))


def test_activations_are_compiled_for_narrow_numbers_alone() -> None:
    torch.manual_seed(0)
    block = FeedForward(FeedForwardConfig(width=40, activation="silu", gated=True), 16)
    x = torch.randn(3, 16)

    def found() -> Tensor:
        with torch.autocast("cpu", dtype=BF16):
            return block.train()(x).detach()

    expected = found()
    block.up.register_forward_hook(lambda module, given, made: made.float())
    near(found(), expected, 2 * ROUNDING)


@pytest.mark.skipif(not has_amx_bf16(), reason="needs a processor that multiplies matrices")
def test_a_layer_of_no_rows() -> None:
    layer = Linear(8, 5)
    made = layer(torch.zeros(0, 3, 8, dtype=BF16))
    assert made.shape == (0, 3, 5)


def test_what_asks_for_gradients_later_gets_them() -> None:
    layer, x = Linear(8, 5), torch.randn(3, 8)
    with torch.autocast("cpu", dtype=BF16):
        layer(x)
        x.requires_grad_()
        layer(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_what_is_far_from_0(name: str) -> None:
    x = torch.tensor([12.0, -12.0, 1e3, -1e3, 1e30, -1e30, 0.0]).to(BF16)
    ours = kernels.activation(x.clone().requires_grad_(), ACTIVATIONS[name]).detach()
    torch.testing.assert_close(ours, ACTIVATIONS[name](x), rtol=2 * ROUNDING, atol=1e-3)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_notice_what_is_no_number(name: str) -> None:
    x = torch.tensor([1.0, math.nan, -1.0]).to(BF16)
    ours = with_gradients(lambda x: kernels.activation(x, ACTIVATIONS[name]), [x], torch.ones(3))
    exact = with_gradients(ACTIVATIONS[name], [x.float()], torch.ones(3))
    for mine, theirs in zip(ours, exact, strict=True):
        assert torch.equal(mine.isnan(), theirs.isnan())


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_no_number_is_noticed(wrong: float) -> None:
    x = torch.randn(2, 2, 40, 16).to(BF16)
    x[1, 1, 7, 3] = wrong
    assert not bool(kernels.attention(x.requires_grad_(), x, x, scale=0.3)[1, 1, 7].isfinite().all())
    logits = torch.randn(3, 50).to(BF16)
    logits[1, 20] = wrong
    losses = cross_entropy.compiled_loss_and_grad_(logits, torch.zeros(3, 1, dtype=torch.int64), 0.0, 1.0)
    assert not bool(losses[1].isfinite())
    assert bool(losses[::2].isfinite().all())
    found = matmul.bf16_matmul(x[1, 1], x[1, 1], out=torch.empty(40, 40))
    assert not bool(found[7].isfinite().any())


@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano", "bert-tiny", "t5-small", "bart-base"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_model_learns_as_exactly_as_in_torch(
    name: str, dropout: float, checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = af.preset(
        name,
        vocab_size=61,
        d_model=64,
        dropout=dropout,
        attention={"heads": 4, "kv_heads": None, "head_dim": None, "dropout": 0.0},
    )
    config = config.replace(
        embedding={"dropout": dropout},
        feed_forward={"width": 96, "dropout": dropout},
        encoder_layers=min(config.encoder_layers, 2),
        decoder_layers=min(config.decoder_layers, 2),
    )
    torch.manual_seed(0)
    model = af.build(config).train()
    if checkpointed:
        for stack in (model.encoder, model.decoder):
            for block in stack.blocks if stack is not None else ():
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    tokens, targets = torch.randint(61, (3, 60)), torch.randint(61, (3, 60))
    source = torch.randint(61, (3, 41)) if config.is_encoder_decoder else None
    hidden = torch.ones(3, 41, dtype=torch.bool) if source is not None else None
    if hidden is not None:
        hidden[1, 30:] = False

    def gradients(dtype: torch.dtype) -> dict[str, Tensor]:
        model.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype == BF16):
            out = model(tokens, source, source_mask=hidden, targets=targets, return_logits=False)
        out.loss.backward()
        found = {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
        return {"loss": out.loss.detach(), **found}

    ours, exact = gradients(BF16), gradients(torch.float32)
    monkeypatch.setenv(SWITCH, "0")
    theirs = gradients(BF16)
    assert ours.keys() == theirs.keys() == exact.keys()
    most = max(float(part.norm()) for part in exact.values())
    for name, part in exact.items():
        errors = [float((found[name] - part).norm()) for found in (ours, theirs)]
        assert errors[0] <= 1.5 * errors[1] + 1e-3 * most, name


def test_the_widest_tensor_of_a_block_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of an activation is not saved for the gradient of the linear layer's weight."""
    calls: list[str] = []
    forward = activation.forward.function

    def counted(*args: Any) -> Tensor:
        calls.append("forward")
        return forward(*args)

    monkeypatch.setattr(activation.forward, "function", counted)
    torch.manual_seed(0)
    block = FeedForward(FeedForwardConfig(width=40, activation="silu", gated=True), 16)
    x = torch.randn(3, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=BF16):
        out = block(x)
        assert len(calls) == 1
    out.float().square().sum().backward()
    assert len(calls) == 2
    ours = [parameter.grad for parameter in block.parameters()]
    block.zero_grad()
    block.float()(x).square().sum().backward()
    for mine, exact in zip(ours, (parameter.grad for parameter in block.parameters()), strict=True):
        assert mine is not None
        assert exact is not None
        near(mine, exact, 4 * ROUNDING)


@compiled_only
@pytest.mark.parametrize("backend", ["compiled"], indirect=True)  # stand-ins support what they are given
def test_it_is_for_bfloat16(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 4, 8, 16)
    assert not rms_norm.KERNEL.supports_bf16(x)
    assert rms_norm.KERNEL.supports_bf16(x.to(BF16))
    assert not cross_entropy.KERNEL.supports_bf16(x, torch.float32)
    assert cross_entropy.KERNEL.supports_bf16(x, BF16)
    assert matmul.supports_bf16(x.to(BF16))
    with torch.autocast("cpu", dtype=BF16):
        assert rms_norm.KERNEL.supports_bf16(x)
        assert activation._supports(x.to(BF16), None)
        assert not activation._supports(x.to(BF16), x)
        monkeypatch.setenv(SWITCH, "0")
        assert not rms_norm.KERNEL.supports_bf16(x)
        assert not cross_entropy.KERNEL.supports_bf16(x, BF16)


@pytest.mark.parametrize("backend", ["stand-ins"], indirect=True)
@pytest.mark.parametrize("name", [pytest.param("gpt2-nano", marks=pytest.mark.slow), "llama-nano"])
def test_torch_compile_keeps_operations(backend: str, name: str) -> None:
    """A compiled stack learns what an eager one learns, and its graph has the registered operations."""
    command = [sys.executable, "-m", "tests.kernels.compiled_graph", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["off"] < 2 * ROUNDING
    kept = ["anyformer.attention", "anyformer.activation", "anyformer.bf16_linear"]
    for operation in kept + ["anyformer.rms_norm"] * (name == "llama-nano"):
        assert any(operation in target for target in found["operations"]), operation


def test_logits_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, matrix, bias = torch.randn(90, 32), torch.randn(200, 32), torch.randn(200)
    targets = torch.randint(200, (90,))

    def found() -> list[Tensor]:
        leaves = [part.clone().requires_grad_() for part in (x, matrix, bias)]
        with torch.autocast("cpu", dtype=BF16):
            loss = kernels.linear_cross_entropy(
                leaves[0], leaves[1], targets, linear_bias=leaves[2], label_smoothing=0.1
            )
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    whole = found()
    monkeypatch.setattr(cross_entropy, "_BYTES", 2 * 200 * 40)
    for piece, all_at_once in zip(found(), whole, strict=True):
        near(piece, all_at_once, 1e-4 if has_amx_bf16() else ROUNDING)
    monkeypatch.setenv(SWITCH, "0")
    for torchs, ours in zip(found(), whole, strict=True):
        near(ours, torchs, 2 * ROUNDING)
