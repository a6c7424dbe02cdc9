"""Texts that share a row teach what they teach alone: loss and gradients are equal, and none sees another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import anyformer as af
from anyformer.config import ModelConfig
from anyformer.data.batch import IGNORED, Batch
from anyformer.data.examples.datasets import causal, pack
from anyformer.data.examples.encoded import EncodedRow
from anyformer.model import Transformer
from anyformer.schema import ConfigError
from tests.training.conftest import single

VOCABULARY, LONGEST = 24, 12
POSITIONS: dict[str, dict[str, Any]] = {
    "rotary": {"kind": "rotary"},
    "scaled": {"kind": "rotary", "scaling": {"kind": "linear", "factor": 2.0}},
    "learned": {"kind": "learned"},
    "offset": {"kind": "learned", "offset": 2},
    "sinusoidal": {"kind": "sinusoidal"},
    "relative": {"kind": "relative", "buckets": 4, "max_distance": 6},
    "none": {"kind": "none"},
}


@st.composite
def decoders(draw: st.DrawFn) -> ModelConfig:
    """Decoders that differ in whatever knows of positions."""
    window = draw(st.none() | st.integers(1, 6))
    attention: dict[str, Any] = {"heads": 2, "kv_heads": draw(st.sampled_from([1, 2])), "head_dim": 8}
    others = window and draw(st.sampled_from([None, {"first": ".", "window": window}]))
    attention["window"] = None if others else window
    try:
        config = af.preset(
            draw(st.sampled_from(["llama-nano", "gpt2-nano", "qwen3"])),
            vocab_size=VOCABULARY,
            d_model=16,
            decoder_layers=2,
            max_length=2 * LONGEST,
            attention=attention,
            other_layers=others,
            feed_forward={"width": 24},
            special_tokens={"bos": None, "eos": (), "pad": None},
        )
        return config.replace(
            position=POSITIONS[draw(st.sampled_from(list(POSITIONS)))],
            norm={"placement": draw(st.sampled_from(["pre", "post"]))},
            embedding={"tied": draw(st.booleans())},
        )
    except ConfigError:
        assume(False)
        raise


@st.composite
def texts(draw: st.DrawFn) -> list[EncodedRow]:
    """Texts of any lengths, some of whose tokens are learned."""
    found = []
    for _ in range(draw(st.integers(2, 7))):
        length = draw(st.integers(2, LONGEST + 1))
        tokens = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=length, max_size=length))
        learned = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        found.append(EncodedRow(tokens, [False, *learned[1:-1], True]))
    return found


def built(config: ModelConfig, seed: int) -> Transformer:
    """The model, without dropout, and with weights that are far from 0."""
    torch.manual_seed(seed)
    model = af.build(config)
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def learn(model: Transformer, batch: Batch, **changes: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch and its gradients, as a strategy computes them."""
    strategy = single(model, **changes)
    loss = strategy._loss_and_gradient(0, batch)
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return loss, found


@settings(max_examples=120)
@given(config=decoders(), read=texts(), spare=st.integers(0, LONGEST), seed=st.integers(0, 99))
def test_packed_equals_unpacked(config: ModelConfig, read: list[EncodedRow], spare: int, seed: int) -> None:
    model = built(config, seed)
    rows = pack(read, max(len(text.tokens) - 1 for text in read) + spare)
    packed, apart = causal(rows, 0), causal([[text] for text in read], 0)
    loss, found = learn(model, packed.collate(range(len(rows))))
    alone, wanted = learn(model, apart.collate(range(len(read))))
    assert loss.item() == pytest.approx(alone.item(), rel=1e-6)
    assert found.keys() == wanted.keys()
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6 * max(largest, 1.0), msg=name)


@settings(max_examples=60)
@given(config=decoders(), read=texts(), seed=st.integers(0, 99))
def test_no_text_sees_another(config: ModelConfig, read: list[EncodedRow], seed: int) -> None:
    """The loss of one has a gradient of exactly 0 for all tokens of the others, and for padding."""
    model = built(config, seed)
    rows = pack(read, 2 * LONGEST)
    batch = causal(rows, 0).collate(range(len(rows)))
    assume(batch.documents is not None)
    seen: list[Tensor] = []

    def keep(module: object, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    model.token_embedding.register_forward_hook(keep)
    row = max(range(len(rows)), key=lambda number: len(rows[number]))
    here = batch.documents[row] == len(rows[row]) - 1
    targets = np.full_like(batch.targets, IGNORED)
    targets[row, here] = batch.targets[row, here]
    learn(model, Batch(batch.tokens, targets, documents=batch.documents))
    reached = seen[0].grad.abs().sum(dim=-1) > 0
    assert reached[row].any()
    reached[row, torch.from_numpy(here)] = False
    assert not reached.any()
