"""Logits, every hidden state, loss and every gradient equal Hugging Face's, for every class that can be loaded."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from anyformer.model import Transformer
from tests.parity import hf_models, trace
from tests.parity.conversion import ours_of
from tests.parity.float64 import EQUAL, Float64, build_wide, widened
from tests.parity.model_spec import Inputs, ModelSpec, draw_inputs, labels


def assert_same(data: st.DataObject, drawn: ModelSpec, edit: Callable[[Path], None] = lambda _: None) -> None:
    """One drawn model and one drawn batch, through both; `edit` changes the directory in between."""
    inputs = data.draw(draw_inputs(drawn))
    theirs = drawn.build()
    ours = ours_of(theirs, edit)
    trace.assert_same(
        trace.of_ours(ours, drawn, inputs),
        trace.of_theirs(theirs, drawn, inputs),
        roundings=lambda: _roundings(ours, drawn, inputs),
    )


def _roundings(ours: Transformer, drawn: ModelSpec, inputs: Inputs) -> trace.Roundings:
    """Of Hugging Face's models, once ours agrees with the first in float64."""
    made = [
        (trace.of_theirs(each.build(), each, inputs), _in_float64(build_wide(each), each, inputs))
        for each in drawn.neighbors()
    ]
    trace.assert_close(_in_float64(widened(ours), drawn, inputs), made[0][1], EQUAL)
    return made


def _in_float64(model: Transformer | PreTrainedModel, drawn: ModelSpec, inputs: Inputs) -> trace.Trace:
    if inputs.targets is not None and inputs.targets.is_floating_point():
        inputs = replace(inputs, targets=inputs.targets.double())
    model.zero_grad()
    with Float64():
        if isinstance(model, Transformer):
            return trace.of_ours(model, drawn, inputs)
        return trace.of_theirs(model, drawn, inputs)


@pytest.mark.parametrize("architecture", hf_models.ARCHITECTURES)
@given(data=st.data())
def test_everything_equals(architecture: str, data: st.DataObject) -> None:
    assert_same(data, data.draw(hf_models.models(architecture)))


@pytest.mark.parametrize("architecture", hf_models.ARCHITECTURES)
@settings(max_examples=15)
@given(data=st.data())
def test_everything_equals_in_float64(architecture: str, data: st.DataObject) -> None:
    drawn = data.draw(hf_models.models(architecture))
    inputs, theirs = data.draw(draw_inputs(drawn)), build_wide(drawn)
    ours = widened(ours_of(drawn.build()))
    trace.assert_close(_in_float64(ours, drawn, inputs), _in_float64(theirs, drawn, inputs), EQUAL)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", hf_models.ARCHITECTURES)
@settings(max_examples=150)
@given(data=st.data())
def test_everything_equals_over_many_configs(architecture: str, data: st.DataObject) -> None:
    assert_same(data, data.draw(hf_models.models(architecture)))


@pytest.mark.parametrize("kind", hf_models.ROPE_KINDS)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3ForCausalLM"])
@given(data=st.data())
def test_rope_scaling_beyond_the_original_length(architecture: str, kind: str, data: st.DataObject) -> None:
    drawn = data.draw(hf_models.models(architecture))
    drawn.options["max_position_embeddings"], drawn.options["rope_parameters"] = data.draw(hf_models.rope((kind,)))
    assert_same(data, drawn)


def default_types(layers: int) -> list[str]:
    """The layers of a Gemma 2 whose config does not say which have a window."""
    return [("sliding_attention", "full_attention")[layer % 2] for layer in range(layers)]


def _as_transformers_4(folder: Path) -> None:
    """Rewrite config.json as transformers 4 wrote it, which is how most published models have it."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters", None)
    if rope is not None:
        names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
        for name in names.keys() & rope.keys():
            config[names[name] if config["model_type"] == "gpt_neox" else name] = rope.pop(name)
        scaled = rope["rope_type"] != "default"
        if scaled and rope["rope_type"] in ("linear", "dynamic"):
            rope["type"] = rope.pop("rope_type")
        config["rope_scaling"] = rope if scaled else None
        types = config.pop("layer_types", None)
        if config["model_type"] == "gemma2" and types != default_types(len(types)):
            config["layer_types"] = types
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("architecture", hf_models.ROTARY)
@given(data=st.data())
def test_older_configs(architecture: str, data: st.DataObject) -> None:
    assert_same(data, data.draw(hf_models.models(architecture)), edit=_as_transformers_4)


@settings(max_examples=8)
@given(data=st.data())
def test_t5_v1_1_as_published(data: st.DataObject) -> None:
    """The published files say `tie_word_embeddings: false`, which current transformers writes in another way."""

    def edit(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["tie_word_embeddings"] = config.pop("scale_decoder_outputs")
        path.write_text(json.dumps(config))

    drawn = data.draw(hf_models.models("T5ForConditionalGeneration"))
    assert_same(data, drawn, edit=edit)


def test_labels_are_shifted_by_the_caller() -> None:
    """Ours are aligned with the logits: a causal model's targets are its tokens, one place on."""
    tokens = torch.tensor([[5, 6, 7]])
    targets = torch.tensor([[6, 7, -100]])
    drawn = ModelSpec("gpt2", "GPT2LMHeadModel", {}, 0)
    assert labels(drawn, Inputs(tokens, targets=targets)).tolist() == [[-100, 6, 7]]
