"""The loss in chunks against torch's cross-entropy of all logits at once."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import anyformer as af
from anyformer.kernels import cross_entropy as module
from anyformer.kernels import linear_cross_entropy, quantized_linear_cross_entropy
from anyformer.kernels.packed_weight import pack, transpose
from anyformer.kernels.quantization import GROUP, QUANTIZERS, Quantization, dequantize
from anyformer.native.levels import SWITCH, has_avx512_bf16


@settings(max_examples=60)
@given(
    tokens=st.integers(0, 40),
    vocab=st.integers(1, 50),
    width=st.integers(1, 9),
    at_once=st.integers(1, 600),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    with_bias=st.booleans(),
    more=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_equals_torch(
    tokens: int, vocab: int, width: int, at_once: int, smoothing: float, with_bias: bool, more: int, seed: int
) -> None:
    torch.manual_seed(seed)
    x, matrix = torch.randn(tokens, width, dtype=torch.float64), torch.randn(vocab, width, dtype=torch.float64)
    bias = torch.randn(vocab, dtype=torch.float64) if with_bias else None
    targets = torch.randint(vocab, (tokens,))
    ours = [tensor.float().requires_grad_() for tensor in (x, matrix, *([] if bias is None else [bias]))]
    theirs = [tensor.requires_grad_() for tensor in (x, matrix, *([] if bias is None else [bias]))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BYTES", 4 * at_once)
        patch.setattr(module, "_CHUNK_CPU", at_once // 3)
        patch.setattr(module, "_VOCAB_CHUNK", 7)
        padded = torch.cat([ours[0], torch.full((more, width), 3.0)])
        loss = linear_cross_entropy(
            padded, ours[1], targets, linear_bias=ours[2] if with_bias else None, label_smoothing=smoothing
        )
        (3 * loss).backward()
    logits = F.linear(theirs[0], theirs[1], theirs[2] if with_bias else None)
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum") / max(tokens, 1)
    (3 * expected).backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for our, their in zip(ours, theirs, strict=True):
        assert our.grad is not None
        assert their.grad is not None
        torch.testing.assert_close(our.grad.double(), their.grad, rtol=1e-4, atol=1e-6)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(sorted(QUANTIZERS)),
    tokens=st.integers(1, 40),
    vocab=st.integers(GROUP, 150),
    groups=st.integers(1, 3),
    at_once=st.integers(1, 4000),
    smoothing=st.sampled_from([0.0, 0.1]),
    with_bias=st.booleans(),
    ignored=st.floats(0.0, 1.0),
    compiled=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_of_a_quantized_weight_equals_that_of_its_logits(
    kind: Quantization,
    tokens: int,
    vocab: int,
    groups: int,
    at_once: int,
    smoothing: float,
    with_bias: bool,
    ignored: float,
    compiled: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    quantized = QUANTIZERS[kind](torch.randn(vocab, groups * GROUP) / 4)
    weight = pack(quantized)
    x = torch.randn(tokens, groups * GROUP, requires_grad=True)
    parts = [x, torch.randn(vocab, requires_grad=True)] if with_bias else [x]
    bias = parts[1] if with_bias else None
    targets = torch.randint(vocab, (tokens,)).where(torch.rand(tokens) >= ignored, -100)
    logits = F.linear(x, dequantize(quantized, torch.float32), bias)
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
    expected = expected / (targets != -100).sum().clamp(min=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, str(int(compiled)))
        patch.setattr(module, "_QUANTIZED_BYTES", 4 * at_once)
        found = quantized_linear_cross_entropy(
            x, weight, targets, bias=bias, transposed=lambda: transpose(weight), label_smoothing=smoothing
        )
        with torch.no_grad():
            alone = quantized_linear_cross_entropy(x, weight, targets, bias=bias, label_smoothing=smoothing)
    assert torch.equal(found, alone)
    rounding = 0.1 if compiled else 1e-4  # to 8 bits, of inputs and gradients of a few tokens
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
    gradients = torch.autograd.grad(3 * found, parts), torch.autograd.grad(3 * expected, parts)
    for our, their in zip(*gradients, strict=True):
        assert (our - their).norm() <= rounding * their.norm() + 1e-6


def test_an_evaluation_pays_for_no_gradients() -> None:
    x, targets = torch.randn(20, 8), torch.randint(30, (20,))
    matrix, bias = torch.nn.Parameter(torch.randn(30, 8)), torch.nn.Parameter(torch.zeros(30))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        linear_cross_entropy(x, matrix, targets, linear_bias=bias)
    assert counter.get_total_flops() == 2 * 20 * 8 * 30


@pytest.mark.parametrize("name", ["gpt2-nano", "bert-tiny", "t5-small", "bart-base"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_model_learns_the_same_with_and_without_its_logits(name: str, smoothing: float) -> None:
    config = af.preset(name, vocab_size=61, d_model=32, dropout=0.0, attention={"heads": 2, "dropout": 0.0})
    config = config.replace(
        embedding={"dropout": 0.0},
        encoder_layers=min(config.encoder_layers, 1),
        decoder_layers=min(config.decoder_layers, 1),
    )
    torch.manual_seed(0)
    model = af.build(config).eval()
    tokens, targets = torch.randint(61, (3, 8)), torch.randint(61, (3, 8))
    targets[torch.rand(3, 8) < 0.4] = -100
    source = torch.randint(61, (3, 5)) if config.is_encoder_decoder else None
    whole = model(tokens, source, targets=targets, label_smoothing=smoothing)
    whole.loss.backward()
    expected = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    chunked = model(tokens, source, targets=targets, label_smoothing=smoothing, return_logits=False)
    chunked.loss.backward()
    assert chunked.logits is None
    torch.testing.assert_close(chunked.loss, whole.loss)
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantized", [False, True])
def test_ignored_tokens_count_for_nothing_where_they_cannot_be_selected(
    quantized: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a graph of torch.compile, where their number is not known."""
    torch.manual_seed(0)
    x, weight = torch.randn(9, 32, dtype=dtype, requires_grad=True), torch.randn(64, 32, dtype=dtype)
    targets = torch.randint(64, (9,))
    targets[2:6] = -100
    packed = pack(QUANTIZERS["int8"](weight))

    def loss() -> torch.Tensor:
        if quantized:
            return quantized_linear_cross_entropy(x, packed, targets)
        return linear_cross_entropy(x, weight, targets)

    expected = loss()
    (gradient,) = torch.autograd.grad(expected, x)
    monkeypatch.setattr(module, "drop_ignored", lambda x, target: (x, target))
    found = loss()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.autograd.grad(found, x)[0], gradient, rtol=2e-2, atol=1e-3)


def test_bfloat16_stays_within_its_rounding() -> None:
    torch.manual_seed(0)
    x, matrix = torch.randn(50, 32, requires_grad=True), torch.randn(300, 32, requires_grad=True)
    targets = torch.randint(300, (50,))
    exact = torch.autograd.grad(linear_cross_entropy(x, matrix, targets), (x, matrix))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(x, matrix, targets)
    assert loss.dtype == torch.float32
    for rough, fine in zip(torch.autograd.grad(loss, (x, matrix)), exact, strict=True):
        assert rough.dtype == torch.float32
        assert (rough - fine).abs().max() < 0.02 * fine.abs().max()


@pytest.mark.parametrize("quantized", [False, True])
def test_all_logits_are_never_held(quantized: bool) -> None:
    """The largest tensor that is made on the way is as large as the matrix at most, not as all logits."""
    made: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                made.append(result.numel())
            return result

    x, weight, targets = torch.randn(400, 32, requires_grad=True), torch.randn(512, 32), torch.randint(500, (400,))
    packed = pack(QUANTIZERS["int8"](weight))
    with pytest.MonkeyPatch.context() as patch, Watch():
        patch.setattr(module, "_QUANTIZED_BYTES" if quantized else "_BYTES", 1 << 14)
        if quantized:
            quantized_linear_cross_entropy(x, packed, targets)
        else:
            linear_cross_entropy(x, weight, targets)
    assert max(made) <= 512 * 32


def test_logits_are_freed_before_the_next_are_computed() -> None:
    """Two parts of them would take twice the memory."""
    alive: list[int] = []
    logits: list[weakref.ref[torch.Tensor]] = []

    def product(*args: Any, **kwargs: Any) -> torch.Tensor:
        alive.append(sum(part() is not None for part in logits))
        out = real(*args, **kwargs)
        logits.append(weakref.ref(out))
        return out

    real = F.linear
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", product)
        patch.setattr(module, "_BYTES", 4 * 30 * 10)
        linear_cross_entropy(torch.randn(40, 8), torch.randn(30, 8), torch.randint(30, (40,)))
    assert alive == [0] * 4


sampled_only = pytest.mark.skipif(
    not has_avx512_bf16(), reason="needs a processor that multiplies pairs of bfloat16 numbers"
)


def _sampled(logits: Tensor, targets: Tensor, smoothing: float, scale: float, samples: int) -> tuple[Tensor, Tensor]:
    """The losses of logits, and their gradient with what was not sampled as 0."""
    rows, vocab = logits.shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SAMPLES", samples)
        # The products of the gradient with a unit matrix are the gradient.
        grads = torch.full((rows, vocab), torch.nan), torch.full((vocab, rows), torch.nan), torch.empty(vocab)
        sampled = module.SampledGradient(torch.eye(vocab), grads[0], None, grads[2])
        losses = sampled.loss_and_grad(logits, targets[:, None], smoothing, scale)
        sampled.backward(torch.zeros(rows, vocab), logits, slice(0, rows))
        transposed = module.SampledGradient(torch.zeros(vocab, rows), None, grads[1], None)
        transposed._rows, transposed._starts = sampled._rows, sampled._starts
        transposed.backward(torch.eye(rows), logits, slice(0, rows))
    assert torch.equal(grads[1].t(), grads[0])
    torch.testing.assert_close(grads[2], grads[0].sum(dim=0), rtol=1e-4, atol=1e-5)
    return losses, grads[0]


@sampled_only
@settings(max_examples=40)
@given(
    rows=st.integers(1, 9),
    vocab=st.sampled_from([1, 2, 15, 16, 17, 255, 256, 257, 700]),
    smoothing=st.sampled_from([0.0, 0.1]),
    samples=st.sampled_from([1, 16, 256]),
    spread=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_large_numbers_of_a_sampled_gradient_are_exact(
    rows: int, vocab: int, smoothing: float, samples: int, spread: float, seed: int
) -> None:
    torch.manual_seed(seed)
    logits, targets, scale = (spread * torch.randn(rows, vocab)).bfloat16(), torch.randint(vocab, (rows,)), 1 / 16
    exact = logits.float()
    expected = module.loss_and_grad_(exact, targets[:, None], smoothing, scale)
    losses, found = _sampled(logits, targets, smoothing, scale, samples)
    torch.testing.assert_close(losses, expected, atol=1e-4, rtol=1e-5)
    step = scale / samples
    is_large = exact.abs() > step * 1.0001
    torch.testing.assert_close(found[is_large], exact[is_large], rtol=1e-4, atol=1e-6)
    # The others are a step, of the same sign, or nothing.
    small, signs = found[exact.abs() < step * 0.9999], exact.sign()[exact.abs() < step * 0.9999]
    assert bool(((small == 0) | torch.isclose(small, step * signs)).all())


@sampled_only
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_mean_of_sampled_gradients_is_the_gradient(smoothing: float) -> None:
    torch.manual_seed(0)
    rows, samples = 4000, 16
    logits, target = (2 * torch.randn(1, 300)).bfloat16(), torch.tensor([7])
    exact = logits.float()
    module.loss_and_grad_(exact, target[:, None], smoothing, 1.0)
    # Each row has random numbers of its own.
    _, found = _sampled(logits.repeat(rows, 1), target.repeat(rows), smoothing, 1.0, samples)
    share = (exact.abs() * samples).clamp(max=1)
    spread = (share * (1 - share) / rows).sqrt() / samples
    errors = (found.mean(dim=0) - exact[0]).abs()
    assert bool((errors <= 5 * spread[0] + 1e-5).all())
    assert float((found != 0).float().mean()) < 2 * samples / 300


@sampled_only
@settings(max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 600), st.integers(1, 530)),
    dtypes=st.tuples(*[st.sampled_from([torch.float32, torch.bfloat16])] * 2),
    accumulate=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_products_of_a_sampled_gradient(
    shape: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype], accumulate: bool, threads: int, seed: int
) -> None:
    torch.manual_seed(seed)
    rows, vocab, width = shape
    logits, targets = torch.randn(rows, vocab).bfloat16(), torch.randint(vocab, (rows,))
    x, weight = torch.randn(rows + 2, width, dtype=dtypes[0]), torch.randn(vocab, width, dtype=dtypes[1])
    _, dense = _sampled(logits.clone(), targets, 0.0, 1.0, 256)
    before = torch.randn(vocab, width), torch.randn(vocab)
    grads = torch.full((rows + 5, width), torch.nan, dtype=dtypes[0]), *(part.clone() for part in before)
    sampled = module.SampledGradient(weight, *grads)
    sampled.loss_and_grad(logits, targets[:, None], 0.0, 1.0)
    first, others = (3 if accumulate else 0), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        padded = torch.cat([torch.full((first, width), torch.nan, dtype=dtypes[0]), x])
        sampled.backward(padded, logits, slice(first, first + rows + 2))
    assert torch.get_num_threads() == others
    rounded = x[:rows].bfloat16().float()
    expected = [dense @ weight.float(), dense.t() @ rounded, dense.sum(dim=0)]
    if accumulate:
        expected[1:] = [part + grad for part, grad in zip(before, expected[1:], strict=True)]
    found = grads[0][first : first + rows].float(), *grads[1:]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2 if ours is found[0] else 1e-4, atol=1e-3)
    assert bool((grads[0][first + rows : first + rows + 2] == 0).all())
    assert bool(grads[0][first + rows + 2 :].isnan().all())


@sampled_only
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_sampled_gradient_hides_no_nan(wrong: float) -> None:
    logits = torch.randn(3, 5000).bfloat16()
    logits[1, 4000] = wrong
    grads = torch.empty(3, 8), torch.empty(5000, 8), None
    sampled = module.SampledGradient(torch.randn(5000, 8), *grads)
    losses = sampled.loss_and_grad(logits, torch.tensor([[1], [2], [3]]), 0.0, 1.0)
    sampled.backward(torch.randn(3, 8), logits, slice(0, 3))
    assert losses.isfinite().tolist() == [True, False, True]
    assert grads[0].isfinite().all(dim=1).tolist() == [True, False, True]
    assert not grads[1].isfinite().all()


@sampled_only
def test_without_its_compiled_products_no_gradient_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAMPLED_VOCAB", 0)
    monkeypatch.setattr(module.products, "_MIN_SIZE", 0)
    x, weight, targets = torch.randn(40, 32, requires_grad=True), torch.randn(300, 32), torch.randint(300, (40,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sampled = torch.autograd.grad(linear_cross_entropy(x, weight, targets, matmul="int8"), x)[0]
        monkeypatch.setattr(module.SPARSE, "supported", lambda: False)
        dense = torch.autograd.grad(linear_cross_entropy(x, weight, targets, matmul="int8"), x)[0]
    assert not torch.equal(sampled, dense)
    assert float((sampled - dense).norm()) < 0.15 * float(dense.norm())
