"""The loss in chunks against torch's cross-entropy of all logits at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import anyformer as af
from anyformer.kernels import cross_entropy as module
from anyformer.kernels import linear_cross_entropy


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


def test_all_logits_are_never_held() -> None:
    """The largest tensor that is made on the way has as many numbers as the matrix, not as all logits."""
    made: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                made.append(result.numel())
            return result

    with pytest.MonkeyPatch.context() as patch, Watch():
        patch.setattr(module, "_BYTES", 1 << 14)
        linear_cross_entropy(torch.randn(400, 8, requires_grad=True), torch.randn(500, 8), torch.randint(500, (400,)))
    assert max(made) <= 1 << 13
