"""What compiled code does in training, against torch in float32 with the same rounded operands."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import anyformer as af
from anyformer.blocks.feed_forward import ACTIVATIONS, COMPILED, FeedForward
from anyformer.blocks.mask import Mask
from anyformer.config import FeedForwardConfig
from anyformer.kernels import cross_entropy as loss_module
from anyformer.kernels.cpu import activation as activate
from anyformer.kernels.cpu import attention, cross_entropy, rms_norm
from anyformer.kernels.cpu import weight_grad as outer
from anyformer.kernels.cpu.activation import activated, can_activate
from anyformer.kernels.cpu.attention import can_attend
from anyformer.kernels.cpu.cross_entropy import can_soften, cross_entropy_
from anyformer.kernels.cpu.rms_norm import can_normalize
from anyformer.kernels.cpu.weight_grad import can_sum, outer_products
from anyformer.kernels.cpu_features import SWITCH, has_amx_bf16, has_avx512_bf16
from anyformer.training.linear import use_fastest
from anyformer.training.precision import Precision
from anyformer.training.tiled import TiledLinear

pytestmark = pytest.mark.skipif(not has_avx512_bf16(), reason="needs AVX-512-BF16")
needs_amx = pytest.mark.skipif(not has_amx_bf16(), reason="needs AMX")
BF16 = torch.bfloat16
ROUNDING = 2**-7
"""Of two bfloat16 numbers one after the other, relative to what they are part of."""


@pytest.fixture(autouse=True, scope="module")
def compiled() -> None:
    kernels = [activate, attention, cross_entropy, rms_norm, *([outer] if has_amx_bf16() else [])]
    for kernel in kernels:
        kernel.KERNEL.start()
    assert all(kernel.KERNEL.supported() for kernel in kernels)


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

    def mask(bias: Tensor | None) -> Mask:
        return Mask(scores if kind == "hidden" else bias, causal=kind == "causal")

    def ours(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        return attention.attention(query, key, value, scale, mask(bias))

    def exact(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        of_each = [part.float().repeat_interleave(group, dim=1) for part in (key, value)]
        found = mask(bias)
        return F.scaled_dot_product_attention(
            query.float(), *of_each, attn_mask=found.scores, is_causal=found.causal, scale=scale
        )

    # A single key has no gradient but rounding's.
    for mine, theirs in zip(
        with_gradients(ours, operands, grad),
        with_gradients(exact, [part.float() for part in operands], grad),
        strict=True,
    ):
        assert mine.shape == theirs.shape
        size = max(float(theirs.norm()), 0.1 * float(grad.float().norm()))
        assert float((mine.float() - theirs).norm()) <= 2 * ROUNDING * size


@needs_amx
@settings(max_examples=60)
@given(
    rows=st.sampled_from([0, 1, 31, 33, 512, 513, 1100]),
    outputs=st.integers(1, 150),
    inputs=st.sampled_from([1, 31, 64, 767, 800]),
    add=st.booleans(),
    seed=st.integers(0, 99),
)
def test_outer_products(rows: int, outputs: int, inputs: int, add: bool, seed: int) -> None:
    torch.manual_seed(seed)
    left, right = torch.randn(rows, outputs + 3).to(BF16)[:, 1:-2], torch.randn(rows, inputs).to(BF16)
    before, sums = torch.randn(outputs, inputs), torch.empty(outputs)
    expected = left.double().t() @ right.double() + (before.double() if add else 0)
    found = outer_products(left, right, before.clone(), sums=sums, add=add)
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(sums.double(), left.double().sum(dim=0), atol=1e-3, rtol=1e-4)
    if not add:
        assert torch.equal(outer_products(left, right), found)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
@settings(max_examples=10)
@given(shape=st.sampled_from([(1,), (3, 16), (2, 5, 37), (9000,)]), dropped=st.booleans(), seed=st.integers(0, 99))
def test_activations(name: str, gated: bool, shape: tuple[int, ...], dropped: bool, seed: int) -> None:
    torch.manual_seed(seed)
    operands = [3 * torch.randn(*shape).to(BF16) for _ in range(1 + gated)]
    kept = torch.rand(*shape) < 0.5
    grad = torch.randn(*shape)

    # Squares ask for what they were given: it is made again, unless something came between.
    def then(inner: Tensor) -> Tensor:
        return (inner * kept if dropped else inner).square()

    def ours(x: Tensor, factor: Tensor | None = None) -> Tensor:
        return activated(COMPILED[ACTIVATIONS[name]], x, factor, then)

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
def test_softened_logits(rows: int, vocab: int, smoothing: float, seed: int) -> None:
    torch.manual_seed(seed)
    logits, targets = 4 * torch.randn(rows, vocab).to(BF16), torch.randint(vocab, (rows,))
    exact = logits.float().requires_grad_()
    expected = F.cross_entropy(exact, targets, label_smoothing=smoothing, reduction="none")
    (0.25 * expected.sum()).backward()
    assert exact.grad is not None
    found = cross_entropy_(logits, targets[:, None], smoothing, 0.25)
    torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(logits.float(), exact.grad, atol=1e-6, rtol=ROUNDING)


@settings(max_examples=40)
@given(shape=st.sampled_from([(1,), (4, 16), (2, 3, 37), (70, 100)]), seed=st.integers(0, 99))
def test_rms_norm(shape: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    operands, grad = [torch.randn(*shape), torch.randn(shape[-1])], torch.randn(*shape)
    ours = with_gradients(lambda x, weight: rms_norm.rms_norm(x, weight, 1e-5), operands, grad)
    exact = with_gradients(lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-5), operands, grad)
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_rms_norm_of_narrow_numbers() -> None:
    torch.manual_seed(0)
    operands, grad = [torch.randn(5, 37).to(BF16), torch.randn(37).to(BF16)], torch.randn(5, 37)
    ours = with_gradients(lambda x, weight: rms_norm.rms_norm(x, weight, 1e-5), operands, grad)
    exact = with_gradients(lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-5), operands, grad)
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.dtype == theirs.dtype == BF16
        near(mine, theirs)


def test_targets_are_words() -> None:
    logits, targets = torch.randn(3, 20).to(BF16), torch.tensor([[3], [19], [0]])
    expected = cross_entropy_(logits.clone(), targets, 0.0, 1.0)
    assert torch.equal(cross_entropy_(logits.clone(), targets.int(), 0.0, 1.0), expected)
    for wrong in (-1, 20):
        targets[1] = wrong
        with pytest.raises(IndexError, match="20 words"):
            cross_entropy_(logits, targets, 0.0, 1.0)


def test_who_sees_nothing_gets_nothing() -> None:
    torch.manual_seed(0)
    operands = [torch.randn(2, 2, 5, 16).to(BF16) for _ in range(3)]
    visible = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    visible[1, 0, 2] = False
    grad = torch.randn(2, 2, 5, 16)
    out, *grads = with_gradients(lambda *parts: attention.attention(*parts, 0.3, Mask(visible)), operands, grad)
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


def test_what_was_changed_in_place_is_kept_as_it_is() -> None:
    x, grad = torch.randn(41).to(BF16), torch.randn(41)

    def then(inner: Tensor) -> Tensor:
        return inner.mul_(2).square()

    ours = with_gradients(lambda x: activated(COMPILED[F.silu], x, None, then), [x], grad)
    exact = with_gradients(lambda x: then(F.silu(x)), [x.float()], grad)
    for mine, theirs in zip(ours, exact, strict=True):
        near(mine, theirs, 2 * ROUNDING)


@needs_amx
def test_a_layer_of_no_rows() -> None:
    layer = TiledLinear(8, 5)
    made = layer(torch.zeros(0, 3, 8, dtype=BF16))
    assert made.shape == (0, 3, 5)


def test_what_asks_for_gradients_later_gets_them() -> None:
    layer, x = TiledLinear(8, 5), torch.randn(3, 8)
    with torch.autocast("cpu", dtype=BF16):
        layer(x)
        x.requires_grad_()
        layer(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_notice_what_is_no_number(name: str) -> None:
    x = torch.tensor([1.0, math.nan, -1.0]).to(BF16)
    ours = with_gradients(lambda x: activated(COMPILED[ACTIVATIONS[name]], x, None, torch.clone), [x], torch.ones(3))
    exact = with_gradients(ACTIVATIONS[name], [x.float()], torch.ones(3))
    for mine, theirs in zip(ours, exact, strict=True):
        assert torch.equal(mine.isnan(), theirs.isnan())


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_no_number_is_noticed(wrong: float) -> None:
    x = torch.randn(2, 2, 40, 16).to(BF16)
    x[1, 1, 7, 3] = wrong
    assert not bool(attention.attention(x, x, x, 0.3, Mask())[1, 1, 7].isfinite().all())
    logits = torch.randn(3, 50).to(BF16)
    logits[1, 20] = wrong
    losses = cross_entropy_(logits, torch.zeros(3, 1, dtype=torch.int64), 0.0, 1.0)
    assert not bool(losses[1].isfinite())
    assert bool(losses[::2].isfinite().all())
    if has_amx_bf16():
        assert not bool(outer_products(x[1, 1], x[1, 1]).isfinite().all())


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
    for stack in (model.encoder, model.decoder):
        if stack is not None:
            stack.checkpoint_gradients = checkpointed
    use_fastest(model, Precision(torch.device("cpu"), BF16, ""))
    assert any(isinstance(part, TiledLinear) for part in model.modules())
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


def test_the_widest_tensor_of_a_block_is_not_kept() -> None:
    x = torch.randn(4, 50).to(BF16).requires_grad_()
    kept: list[Tensor] = []

    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, inner):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(inner)
            return inner.clone()

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            kept.extend(ctx.saved_tensors)
            return grad

    places: list[int] = []

    def then(inner: Tensor) -> Tensor:
        places.append(inner.data_ptr())
        return Keeps.apply(inner)  # pyright: ignore[reportReturnType]

    out = activated(COMPILED[F.relu], x, None, then)
    out.backward(torch.ones_like(out))
    assert torch.equal(kept[0], F.relu(x))
    assert kept[0].data_ptr() != places[0]


def test_it_is_for_bfloat16_and_for_masks_that_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 4, 8, 16)
    assert not can_normalize(x)
    assert can_normalize(x.to(BF16))
    assert not can_soften(x, torch.float32)
    assert can_soften(x, BF16)
    assert can_sum(x.to(BF16)) == has_amx_bf16()
    with torch.autocast("cpu", dtype=BF16):
        assert can_normalize(x)
        assert can_activate(x.to(BF16), None)
        assert not can_activate(x.to(BF16), x)
        assert can_attend(x, Mask(torch.zeros(1, 4, 8, 8, requires_grad=True)))
        assert not can_attend(x, Mask(torch.zeros(1, 1, 8, 8, requires_grad=True)))
        monkeypatch.setenv(SWITCH, "0")
        assert not can_normalize(x)
        assert not can_attend(x, Mask())
        assert not can_soften(x, BF16)


def test_logits_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, matrix, bias = torch.randn(90, 32), torch.randn(200, 32), torch.randn(200)
    targets = torch.randint(200, (90,))

    def found() -> list[Tensor]:
        leaves = [part.clone().requires_grad_() for part in (x, matrix, bias)]
        with torch.autocast("cpu", dtype=BF16):
            loss = loss_module.vocabulary_loss(leaves[0], leaves[1], leaves[2], targets, 0.1)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    whole = found()
    monkeypatch.setattr(loss_module, "_BYTES", 2 * 200 * 40)
    for piece, all_at_once in zip(found(), whole, strict=True):
        near(piece, all_at_once, 1e-4 if has_amx_bf16() else ROUNDING)
    monkeypatch.setenv(SWITCH, "0")
    for torchs, ours in zip(found(), whole, strict=True):
        near(ours, torchs, 2 * ROUNDING)
