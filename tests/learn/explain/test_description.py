"""A page's JavaScript computes what torch does with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import anyformer as af
from anyformer.config import ModelConfig
from anyformer.families import PRESETS
from anyformer.learn import explain
from anyformer.learn.attention_maps import recording
from anyformer.learn.explain.description import QuantizedRows, describe, pack, page_weights
from tests.learn.explain.javascript import needs_node, run
from tests.learn.test_eject import SOURCE_VOCAB, VOCAB, configs, filled, small, takes_source

FORWARD = """
const answer = ({ description, listed, bytes, tokens, source, steps, eos }) => {
  const model = new Model(description, Weights.unpack(listed, new Uint8Array(Buffer.from(bytes, "base64")).slice()));
  const { kind } = description.head, plain = (matrix) => [...matrix.numbers];
  const encoded = source && model.encode(source);
  const record = model.read(tokens, model.decoder ? model.cache(encoded) : undefined);
  const all = record.output;
  const logits = kind === "none" ? all : kind === "language_model" ? model.logits(all) : model.labels(all);
  const found = { logits: plain(logits), written: [], states: record.layers.map((each) => plain(each.output)) };
  found.attention = record.layers.map((each) => [...each.attention.weights]);
  found.cross = record.layers.map((each) => (each.cross ? [...each.cross.weights] : []));
  if (steps) {
    const writer = new Writer(model, { prompt: tokens, source });
    for (let i = 0; i < steps; i++) {
      const token = likeliest(writer.logits);
      found.written.push(token);
      if (i + 1 < steps) writer.read([token]);
    }
  }
  return found;
};
"""


def rounded(model: af.Transformer) -> af.Transformer:
    """The model with the weights that a page has."""
    with torch.no_grad():
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, weight in ((name, weight) for name, weight in page_weights(model).items() if name in own):
            is_rounded = isinstance(weight, QuantizedRows)
            own[name].copy_(weight.integers.float() * weight.scales[:, None] if is_rounded else weight)
    return model


def close(found: Any, expected: Tensor) -> None:
    expected = expected.flatten()
    largest = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float32), expected, rtol=1e-4, atol=1e-4 * largest)


def check(config: ModelConfig, steps: int = 0) -> None:
    """Logits, every hidden state, attention of every head, and greedy text are torch's, unless a page refuses them."""
    try:
        explain.check(config, 0)
    except af.UserError:
        return
    model = rounded(filled(config))
    listed, bytes_ = pack(page_weights(model))
    chance = torch.Generator().manual_seed(1)
    tokens = torch.randint(min(VOCAB, SOURCE_VOCAB), (1, 11), generator=chance)
    source = torch.randint(SOURCE_VOCAB, (1, 9), generator=chance) if config.is_encoder_decoder else None
    if source is not None and not takes_source(config):
        source, tokens = tokens, torch.cat((torch.tensor([[3]]), tokens[:, :-1]), dim=1)  # as the model shifts them
    writes = config.decoder_layers > 0 and config.head.kind == "language_model"
    found = run(
        FORWARD,
        {
            "description": describe(model),
            "listed": listed,
            "bytes": bytes_,
            "tokens": tokens[0].tolist(),
            "source": None if source is None else source[0].tolist(),
            "steps": min(steps, (config.context_length or 64) - 11) if writes else 0,
        },
    )
    with torch.no_grad(), recording(model) as record:
        out = model(tokens, source=source, return_hidden=True)
    assert out.hidden_states is not None
    close(found["logits"], out.hidden if out.logits is None else out.logits)
    for ours, theirs in zip(found["states"][:-1], out.hidden_states[1:-1], strict=True):
        close(ours, theirs)
    for ours, theirs in zip(found["attention"], record.decoder or record.encoder, strict=True):
        close(ours, theirs)
    for ours, theirs in zip(found["cross"], record.cross or [torch.zeros(0)] * len(found["cross"]), strict=True):
        close(ours, theirs)
    if writes and steps:
        text = [] if source is None else tokens[0].tolist()
        for written in found["written"]:
            read = tokens if source is None else torch.tensor([text])
            with torch.no_grad():
                best = model(read, source=source).logits[0, -1]
            # A tie may go either way.
            assert best[written] >= best.max() - 1e-4 * best.abs().max()
            if source is None:
                tokens = torch.cat((tokens, torch.tensor([[written]])), dim=1)
            else:
                text.append(written)


@needs_node
@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("llama-3.2-1b", "bert-base", "t5-small", "mixtral-8x7b")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in PRESETS
    ],
)
def test_presets(name: str) -> None:
    check(small(PRESETS[name]), steps=12)


@needs_node
@settings(max_examples=12, suppress_health_check=list(HealthCheck), deadline=None)
@given(config=configs())
def test_drawn(config: ModelConfig) -> None:
    check(config, steps=30)


SPEED = """
const answer = ({ description, listed, bytes }) => {
  const model = new Model(description, Weights.unpack(listed, new Uint8Array(Buffer.from(bytes, "base64")).slice()));
  const writer = new Writer(model, { prompt: [1, 2, 3] }), begun = process.cpuUsage().user, count = 60;
  for (let i = 0; i < count; i++) writer.read([likeliest(writer.logits)]);
  return (count * 1e6) / (process.cpuUsage().user - begun);
};
"""


@needs_node
@pytest.mark.slow
def test_llama_nano_writes_twenty_tokens_a_second() -> None:
    """Of processor time, as other programs may want the machine."""
    model = af.build(PRESETS["llama-nano"])
    listed, bytes_ = pack(page_weights(model))
    speed = run(SPEED, {"description": describe(model), "listed": listed, "bytes": bytes_})
    print(f"{speed:.0f} tokens/s")
    assert speed >= 20
