"""What heads compute: the loss of each problem, the token that stands for a text, and no more than is asked for."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.parity.model_spec import ragged
from torch import Tensor

import anyformer as af
from anyformer.adapters import LoraConfig, add_adapter
from anyformer.blocks import head as heads
from anyformer.blocks.head import IGNORED, LanguageModelHead, loss
from anyformer.blocks.pooling import POOLINGS
from anyformer.kernels import cross_entropy


@given(seed=st.integers(0, 999), smoothing=st.sampled_from((0.0, 0.1)))
def test_losses_are_those_of_torch_to_the_bit(seed: int, smoothing: float) -> None:
    chance = torch.Generator().manual_seed(seed)
    logits = torch.randn((5, 7, 3), generator=chance)
    classes = torch.randint(3, (5, 7), generator=chance)
    classes[:, 2:4] = IGNORED
    expected = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), label_smoothing=smoothing)
    assert torch.equal(loss(logits, classes, smoothing), expected)
    numbers = torch.randn((5, 3), generator=chance)
    assert torch.equal(loss(logits[:, 0, :1], numbers[:, 0]), F.mse_loss(logits[:, 0, 0], numbers[:, 0]))
    assert torch.equal(loss(logits[:, 0], numbers, problem_type="regression"), F.mse_loss(logits[:, 0], numbers))
    chosen = (numbers > 0).float()
    assert torch.equal(loss(logits[:, 0], chosen), F.binary_cross_entropy_with_logits(logits[:, 0], chosen))
    one = loss(logits[:, 0, :1], chosen[:, :1], problem_type="multi_label_classification")
    assert torch.equal(one, F.binary_cross_entropy_with_logits(logits[:, 0, :1], chosen[:, :1]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("problem", [None, "regression", "multi_label_classification"])
def test_a_batch_without_a_target_has_no_loss(problem: Any, smoothing: float) -> None:
    logits = torch.randn((4, 3), requires_grad=True)
    targets = torch.full((4,) if problem is None else (4, 3), IGNORED)
    found = loss(logits, targets if problem is None else targets.float(), smoothing, problem)
    found.backward()
    assert found == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def _model(**head: Any) -> af.Transformer:
    torch.manual_seed(0)
    config = af.preset("gpt2-nano", vocab_size=30, d_model=16, decoder_layers=1, feed_forward={"width": 16})
    return af.build(config.replace(head=head)).eval()


@pytest.mark.parametrize("return_logits", [True, False])
@pytest.mark.parametrize("kind", ["language_model", "token_classification"])
def test_a_model_without_a_target_has_no_loss(kind: str, return_logits: bool) -> None:
    model = _model(kind=kind)
    tokens = torch.randint(30, (2, 5))
    found = model(tokens, targets=torch.full_like(tokens, IGNORED), return_logits=return_logits).loss
    assert found is not None
    found.backward()
    assert found == 0
    assert all(weight.grad is None or not weight.grad.any() for weight in model.parameters())


@pytest.mark.parametrize("kind", ["language_model", "token_classification"])
def test_logits_can_be_left_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(kind=kind)
    tokens = torch.randint(30, (2, 5))
    whole = model(tokens)
    monkeypatch.setattr(model.head, "forward", lambda *_: pytest.fail("they are computed"))
    without = model(tokens, return_logits=False)
    assert without.logits is None
    assert torch.equal(without.hidden, whole.hidden)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("change", ["int8", "adapter"])
def test_a_frozen_head_has_the_loss_of_its_logits(
    change: str, smoothing: float, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a few tokens at a time, in the backward pass as well."""
    torch.manual_seed(0)
    config = af.preset("llama-nano", vocab_size=64, d_model=32, decoder_layers=1, feed_forward={"width": 32})
    model = af.build(config.replace(embedding={"tied": tied}, attention={"heads": 2})).eval().requires_grad_(False)
    if change == "int8":
        model = af.quantize(model, "int8")
    else:
        add_adapter(model, LoraConfig(rank=4, target_modules=("q_proj",) if tied else ("lm_head",)))
    assert isinstance(model.head, LanguageModelHead)
    weight = model.token_embedding.weight
    hidden, targets = torch.randn(3, 7, 32, requires_grad=True), torch.randint(64, (3, 7))
    targets[:, 2:4] = IGNORED
    whole = loss(model.head(hidden, weight), targets, smoothing)
    (expected,) = torch.autograd.grad(whole, hidden)
    monkeypatch.setattr(heads, "_MAX_LOGITS", 64 * 4)
    monkeypatch.setattr(cross_entropy, "_QUANTIZED_BYTES", 4 * 64 * 4)
    found = model.head.loss(hidden, targets, weight, label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(found, hidden)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def _alone(kind: str, hidden: Tensor) -> Tensor:
    return {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1], "max": hidden.amax(0)}[kind]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", POOLINGS)
def test_pooling_passes_over_padding(kind: str, side: str) -> None:
    hidden, mask = torch.randn(3, 6, 4), ragged([6, 1, 4], side)
    expected = torch.stack([_alone(kind, row[real]) for row, real in zip(hidden, mask, strict=True)])
    torch.testing.assert_close(POOLINGS[kind](hidden, mask), expected)
    torch.testing.assert_close(POOLINGS[kind](hidden, None), torch.stack([_alone(kind, row) for row in hidden]))


def test_both_stacks_of_a_classifier_read_the_text() -> None:
    torch.manual_seed(0)
    config = af.preset("t5-nano", vocab_size=30, d_model=16, attention={"heads": 2, "head_dim": 4})
    model = af.build(config.replace(head={"kind": "classification", "pooling": "last", "labels": 3})).eval()
    tokens, mask = torch.randint(2, 30, (2, 5)), ragged([5, 3], "left")
    shifted = torch.tensor([[0, *tokens[0, :-1].tolist()], [0, 0, 0, *tokens[1, 2:4].tolist()]])
    expected = model(shifted, tokens, mask=mask, source_mask=mask).logits
    assert torch.equal(model(tokens, mask=mask).logits, expected)
    unknown = af.build(model.config.replace(special_tokens={"decoder_start": None}))
    with pytest.raises(ValueError, match="decoder_start"):
        unknown(tokens)
