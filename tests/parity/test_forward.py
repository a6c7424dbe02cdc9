"""Logits, every hidden state, loss and every gradient equal Hugging Face's, for every class that can be loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.parity import hf
from tests.parity.ours import assert_close, assert_same_gradients, ours_of


def _states(out: Any, *names: str) -> list[Tensor]:
    return next(list(out[name]) for name in names if out.get(name) is not None)


def assert_same(data: st.DataObject, drawn: hf.Drawn, **load: Any) -> None:
    """One drawn model and one drawn batch, through both."""
    inputs = data.draw(hf.draw_inputs(drawn))
    theirs = drawn.build()
    ours = ours_of(theirs, **load)
    labels = hf.labels(drawn, inputs)
    expected: Any = theirs(**inputs.theirs, output_hidden_states=True, **({} if labels is None else {"labels": labels}))
    out = ours(**inputs.ours, return_hidden=True)

    def real(states: Tensor, mask: Tensor | None) -> Tensor:
        return states if mask is None else states[mask]

    theirs_states = _states(expected, "decoder_hidden_states", "hidden_states")
    assert len(out.hidden_states) == len(theirs_states)
    for layer, (a, b) in enumerate(zip(out.hidden_states, theirs_states, strict=True)):
        assert_close(real(a, inputs.mask), real(b, inputs.mask), f"hidden state {layer}")
    if drawn.kind == "seq2seq":
        assert len(out.source_hidden_states) == len(expected.encoder_hidden_states)
        for layer, (a, b) in enumerate(zip(out.source_hidden_states, expected.encoder_hidden_states, strict=True)):
            assert_close(real(a, inputs.source_mask), real(b, inputs.source_mask), f"source hidden state {layer}")
    else:
        assert out.source_hidden_states is None
    if expected.get("pooler_output") is not None:
        assert_close(out.pooled, expected.pooler_output, "pooled")
    if not drawn.has_head:
        assert out.logits is None
        assert out.loss is None
        return
    mask = None if "SequenceClassification" in drawn.architecture else inputs.mask
    assert_close(real(out.logits, mask), real(expected.logits, mask), "logits")
    assert_close(out.loss, expected.loss, "loss")
    out.loss.backward()
    expected.loss.backward()
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("architecture", hf.ARCHITECTURES)
@given(data=st.data())
def test_everything_equals(architecture: str, data: st.DataObject) -> None:
    assert_same(data, data.draw(hf.models(architecture)))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", hf.ARCHITECTURES)
@settings(max_examples=150)
@given(data=st.data())
def test_everything_equals_over_many_configs(architecture: str, data: st.DataObject) -> None:
    assert_same(data, data.draw(hf.models(architecture)))


@pytest.mark.parametrize("kind", hf.ROPE_KINDS)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3ForCausalLM"])
@given(data=st.data())
def test_rope_scaling_beyond_the_original_length(architecture: str, kind: str, data: st.DataObject) -> None:
    drawn = data.draw(hf.models(architecture))
    drawn.options["max_position_embeddings"], drawn.options["rope_parameters"] = data.draw(hf.rope((kind,)))
    assert_same(data, drawn)


def _as_transformers_4(folder: Path) -> None:
    """Rewrite config.json as transformers 4 wrote it, which is how most published models have it."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters", None)
    if rope is not None:
        config["rope_theta"] = rope.pop("rope_theta")
        scaled = rope["rope_type"] != "default"
        if scaled and rope["rope_type"] in ("linear", "dynamic"):
            rope["type"] = rope.pop("rope_type")
        config["rope_scaling"] = rope if scaled else None
        config.pop("layer_types", None)
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("architecture", [name for name in hf.GENERATORS if name.endswith("ForCausalLM")])
@given(data=st.data())
def test_older_configs(architecture: str, data: st.DataObject) -> None:
    assert_same(data, data.draw(hf.models(architecture)), edit=_as_transformers_4)


@settings(max_examples=8)
@given(data=st.data())
def test_t5_v1_1_as_published(data: st.DataObject) -> None:
    """The published files say `tie_word_embeddings: false`, which current transformers writes in another way."""

    def edit(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["tie_word_embeddings"] = config.pop("scale_decoder_outputs")
        path.write_text(json.dumps(config))

    drawn = data.draw(hf.models("T5ForConditionalGeneration"))
    assert_same(data, drawn, edit=edit)


def test_labels_are_shifted_by_the_caller() -> None:
    """Ours are aligned with the logits: a causal model's targets are its tokens, one place on."""
    tokens = torch.tensor([[5, 6, 7]])
    targets = torch.tensor([[6, 7, -100]])
    drawn = hf.Drawn("gpt2", "GPT2LMHeadModel", {}, 0)
    assert hf.labels(drawn, hf.Inputs(tokens, targets=targets)).tolist() == [[-100, 6, 7]]
