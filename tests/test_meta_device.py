"""Every preset computes on torch's meta device, which has no numbers: nothing mixes devices or waits for the host."""

from __future__ import annotations

import pytest
import torch

from anyformer.blocks.head import LanguageModelHead
from anyformer.families import PRESETS
from anyformer.model import Transformer, skeleton

layers = pytest.mark.parametrize("layers", [2, pytest.param(1000, marks=pytest.mark.slow)], ids=["two", "all"])
"""How many of a stack there are at most: the others repeat them."""


def _model(name: str, layers: int) -> Transformer:
    config = PRESETS[name]
    stacks = {stack: min(getattr(config, stack), layers) for stack in ("encoder_layers", "decoder_layers")}
    other, count = config.other_layers, max(stacks.values())
    is_cut = other is not None and len(other.first) > count
    first = {"other_layers.first": other.first[: count - 1]} if is_cut else {}  # one layer of the usual kind is left
    return skeleton(config.replace(**stacks, **first))


@layers
@pytest.mark.parametrize("name", PRESETS)
def test_forward_loss_and_backward(name: str, layers: int) -> None:
    model = _model(name, layers).train()
    tokens = torch.zeros(2, 8, dtype=torch.long, device="meta")
    inputs = {"source": tokens} if model.config.is_encoder_decoder else {}
    output = model(tokens, **inputs)
    assert output.hidden.device.type == "meta"
    if not isinstance(model.head, LanguageModelHead):
        return
    loss = model(tokens, targets=tokens, return_logits=False, **inputs).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.head.parameters())
    assert model.token_embedding.table.weight.grad is not None


@layers
@pytest.mark.parametrize("name", [name for name, config in PRESETS.items() if config.decoder_layers])
def test_a_cached_step(name: str, layers: int) -> None:
    model = _model(name, layers).eval()
    tokens = torch.zeros(2, 4, dtype=torch.long, device="meta")
    cache = model.make_cache(2, 8)
    inputs = {"source": tokens} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        model(tokens, cache=cache, last_only=True, **inputs)
        output = model(tokens[:, :1], cache=cache, last_only=True)
    assert output.logits is None or output.logits.shape[1] == 1
    assert cache.length == 5
