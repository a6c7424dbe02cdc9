"""Attention weights equal transformers' `output_attentions`, for every class that can be loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyformer.compare.attention.weights import recording
from tests.parity import hf_models
from tests.parity.conversion import ours_of
from tests.parity.float64 import Float64
from tests.parity.model_spec import Inputs, ModelSpec, draw_inputs

TOLERANCE = 1e-6


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
    with torch.no_grad(), recording(ours) as record:
        ours(**{name: value for name, value in inputs.ours.items() if name != "targets"})
    if drawn.kind == "seq2seq":
        found = {f"{name}_attentions": getattr(record, name) for name in ("encoder", "decoder", "cross")}
    else:
        found = {"attentions": record.encoder or record.decoder}
    expected = _of_theirs(theirs, inputs)
    exact: dict[str, Any] | None = None
    for name, layers in found.items():
        assert len(layers) == len(expected[name]) > 0
        real = inputs.source_mask if name == "encoder_attentions" and inputs.source is not None else inputs.mask
        for layer, weights in enumerate(layers):
            wanted = expected[name][layer]
            assert weights.shape == wanted.shape
            sums = weights.sum(dim=-1)
            torch.testing.assert_close(sums, torch.ones_like(sums), atol=TOLERANCE, rtol=0)
            tolerance = TOLERANCE
            if _difference(weights, wanted, real) > tolerance:
                # Scores that are far apart magnify the rounding of float32, theirs as well as ours.
                exact = exact or _exact(drawn, inputs)
                tolerance = max(tolerance, 3 * _difference(wanted, exact[name][layer], real))
            assert _difference(weights, wanted, real) <= tolerance, f"{name}, layer {layer}"


def _exact(drawn: ModelSpec, inputs: Inputs) -> dict[str, tuple[Tensor, ...]]:
    theirs = drawn.build().double()
    with Float64():
        return _of_theirs(theirs, inputs)


def _of_theirs(theirs: Any, inputs: Inputs) -> dict[str, tuple[Tensor, ...]]:
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        return theirs(**inputs.theirs, output_attentions=True)


def _difference(a: Tensor, b: Tensor, real: Tensor | None) -> float:
    """The largest, of queries that are no padding: those of padding attend to themselves here, and to all there."""
    rows = torch.ones(a.shape[0], a.shape[2], dtype=torch.bool) if real is None else real
    return float((a - b).transpose(1, 2)[rows].abs().max())
