"""Attention weights equal transformers' `output_attentions`, for every class that can be loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyformer.learn.attention_maps import recording
from anyformer.model import Transformer
from tests.parity import hf_models
from tests.parity.conversion import ours_of
from tests.parity.float64 import EQUAL, Float64, build_wide, widened
from tests.parity.model_spec import Inputs, ModelSpec, draw_inputs

TOLERANCE = 1e-6
Layers = Mapping[str, Sequence[Tensor]]
"""Attention weights, [batch, heads, queries, keys], of each layer of each kind of attention."""


KINDS = (
    "GPT2LMHeadModel",
    "MistralForCausalLM",
    "Qwen3Model",
    "RobertaModel",
    "T5ForConditionalGeneration",
    "BartForSequenceClassification",
)
"""One of each kind of attention: the gate has these, and `pytest -m slow` every class."""


@pytest.mark.parametrize("architecture", KINDS)
@settings(max_examples=8)
@given(data=st.data())
def test_weights_equal(architecture: str, data: st.DataObject) -> None:
    assert_same(data, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", hf_models.ARCHITECTURES)
@settings(max_examples=100)
@given(data=st.data())
def test_weights_equal_over_many_configs(architecture: str, data: st.DataObject) -> None:
    assert_same(data, architecture)


def assert_same(data: st.DataObject, architecture: str) -> None:
    """One drawn model and one drawn batch, padded or not, through both."""
    drawn = data.draw(hf_models.models(architecture))
    inputs = data.draw(draw_inputs(drawn))
    theirs = drawn.build()
    ours = ours_of(theirs)
    found, expected = _of_ours(ours, drawn, inputs), _of_theirs(theirs, inputs)
    for layers in found.values():
        for weights in layers:
            sums = weights.sum(dim=-1)
            if ours.config.attention.sinks:  # which have the rest
                assert 0 <= float(sums.min()) <= float(sums.max()) <= 1 + TOLERANCE
                continue
            torch.testing.assert_close(sums, torch.ones_like(sums), atol=TOLERANCE, rtol=0)
    off = {name: error for name, error in _differences(found, expected, inputs).items() if error > TOLERANCE}
    if not off:
        return
    # Scores that are far apart magnify the rounding of float32, theirs as well as ours.
    with Float64():
        exact = [_of_theirs(build_wide(each), inputs) for each in drawn.neighbors()]
        same = _of_ours(widened(ours), drawn, inputs)
    assert max(_differences(same, exact[0], inputs).values()) <= EQUAL
    roundings = [
        _differences(_of_theirs(each.build(), inputs), truth, inputs)
        for each, truth in zip(drawn.neighbors(), exact, strict=True)
    ]
    for name, error in off.items():
        rounding = max(each[name] for each in roundings)
        assert error <= 3 * rounding, f"{name}: off by {error:.2e} (and Hugging Face's rounding is {rounding:.2e})"


def _of_ours(ours: Transformer, drawn: ModelSpec, inputs: Inputs) -> Layers:
    with torch.no_grad(), recording(ours) as record:
        ours(**{name: value for name, value in inputs.ours.items() if name != "targets"})
    if drawn.kind == "seq2seq":
        return {f"{name}_attentions": getattr(record, name) for name in ("encoder", "decoder", "cross")}
    return {"attentions": record.encoder or record.decoder}


def _of_theirs(theirs: Any, inputs: Inputs) -> Layers:
    theirs.set_attn_implementation("eager")
    theirs.config._attn_implementation = "eager"  # which Falcon's method refuses
    with torch.no_grad():
        out = theirs(**inputs.theirs, output_attentions=True)
    return {name: layers for name, layers in out.items() if name.endswith("attentions")}


def _differences(ours: Layers, theirs: Layers, inputs: Inputs) -> dict[str, float]:
    """The largest of each layer, of queries that are no padding: those of padding attend to themselves here, and to all
    there."""
    found: dict[str, float] = {}
    for name, layers in ours.items():
        assert len(layers) == len(theirs[name]) > 0
        real = inputs.source_mask if name == "encoder_attentions" and inputs.source is not None else inputs.mask
        for layer, (mine, wanted) in enumerate(zip(layers, theirs[name], strict=True)):
            assert mine.shape == wanted.shape
            rows = torch.ones(mine.shape[0], mine.shape[2], dtype=torch.bool) if real is None else real
            found[f"{name}, layer {layer}"] = float((mine - wanted).transpose(1, 2)[rows].abs().max())
    return found
