"""Load, save, and open with Hugging Face: bitwise the same weights, the same config, the same answers."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import anyformer as af
from anyformer.families import FAMILIES, PRESETS
from tests.parity import hf_models
from tests.parity.conversion import assert_close, ours_of
from tests.parity.model_spec import Inputs, ModelSpec, draw_inputs
from tests.parity.presets import shrunk

SINUSOIDAL = ("MarianModel", "PegasusModel", "PegasusForConditionalGeneration")
"""Classes that compute their positions, and yet put them into files, or miss them there."""


def _config(model: Any) -> dict[str, Any]:
    fields = model.config.to_dict()
    return {name: value for name, value in fields.items() if name not in ("transformers_version", "_name_or_path")}


def _settings(model: Any) -> dict[str, Any]:
    fields = model.generation_config.to_dict()
    return {name: value for name, value in fields.items() if name not in ("transformers_version", "_from_model_config")}


def assert_same_model(a: Any, b: Any) -> None:
    """Raise unless the two Hugging Face models have the same config and the same bits in every weight."""
    assert _config(a) == _config(b)
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for name, weight in left.items():
        assert weight.dtype == right[name].dtype, name
        assert torch.equal(weight, right[name]), name
    if a.can_generate():
        assert _settings(a) == _settings(b)


def _missing(kind: type[Any], report: dict[str, Any]) -> set[str]:
    """Weights that the file lacks, but for sinusoids, which Hugging Face computes."""
    computed = "embed_positions.weight" if kind.__name__ in SINUSOIDAL else "nothing"
    return {name for name in report["missing_keys"] if not name.endswith(computed)}


def _reopened(theirs: Any, model: af.Transformer, **save: Any) -> tuple[Any, list[str]]:
    """The model as Hugging Face reads what we wrote, and the files that we wrote."""
    with tempfile.TemporaryDirectory() as folder:
        af.save(model, folder, **save)
        kind = type(theirs)
        again, report = kind.from_pretrained(folder, output_loading_info=True)
        assert not _missing(kind, report)
        assert not report["unexpected_keys"], report["unexpected_keys"]
        return again, sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


@pytest.mark.parametrize("architecture", hf_models.ARCHITECTURES)
@settings(max_examples=5)
@given(data=st.data())
def test_weights_and_config_come_back(architecture: str, data: st.DataObject) -> None:
    theirs = data.draw(hf_models.models(architecture)).build()
    again, files = _reopened(theirs, ours_of(theirs))
    assert_same_model(theirs, again)
    assert files == ["config.json", "generation_config.json", "model.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", hf_models.ARCHITECTURES)
@settings(max_examples=100)
@given(data=st.data())
def test_weights_and_config_come_back_over_many_configs(architecture: str, data: st.DataObject) -> None:
    theirs = data.draw(hf_models.models(architecture)).build()
    assert_same_model(theirs, _reopened(theirs, ours_of(theirs))[0])


@pytest.mark.parametrize("architecture", hf_models.ARCHITECTURES)
@settings(max_examples=5)
@given(data=st.data())
def test_a_config_in_our_own_words_says_the_same(architecture: str, data: st.DataObject) -> None:
    """Written from the ModelConfig alone, without the config.json that the model came with."""
    drawn = data.draw(hf_models.models(architecture))
    theirs = drawn.build()
    ours = ours_of(theirs)
    ours.origin = type(ours.origin)()
    again, _ = _reopened(theirs, ours)
    inputs = data.draw(draw_inputs(drawn))
    with torch.no_grad():
        a, b = theirs(**inputs.theirs), again(**inputs.theirs)
    for name in ("logits", "last_hidden_state", "pooler_output"):
        if a.get(name) is not None:
            # Where memory is aligned in another way the same sums may round in another way.
            # A lone score can be next to nothing, when all that was added up for it was not.
            assert_close(b[name].view_as(a[name]), a[name], name, floor=0.01)


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        # Hugging Face treats the two in another way in T5 and its kin only.
        pytest.param(name, dtype, marks=[] if dtype == torch.bfloat16 or "T5" in name else pytest.mark.slow)
        for name in hf_models.ARCHITECTURES
        for dtype in (torch.float16, torch.bfloat16)
    ],
)
@settings(max_examples=3)
@given(data=st.data())
def test_formats_are_kept(architecture: str, dtype: torch.dtype, data: st.DataObject) -> None:
    """File against file, since Hugging Face raises some of T5's halves to fp32 when it reads them."""
    theirs = data.draw(hf_models.models(architecture)).build().to(dtype)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        theirs.save_pretrained(first)
        ours, _ = af.load(first)
        assert {weight.dtype for weight in ours.state_dict().values()} == {dtype}
        af.save(ours, second)
        before, after = (load_file(Path(folder) / "model.safetensors") for folder in (first, second))
        sinusoids = {name for name in before if architecture in SINUSOIDAL and "embed_positions" in name}
        assert before.keys() - sinusoids == after.keys()
        for name, weight in after.items():
            assert weight.dtype == dtype
            assert torch.equal(weight, before[name]), name
        # Hugging Face's BART leaves two labels out of its config.json, and then takes them for three.
        labels = {"num_labels": theirs.config.num_labels}
        again = (type(theirs).from_pretrained(folder, **labels) for folder in (first, second))
        assert _config(next(again)) == _config(next(again))


def test_t5_mixed_formats(tmp_path: Path) -> None:
    """Hugging Face reads a T5 in fp16 with some weights in fp32, and writes it so."""
    drawn = ModelSpec("t5", "T5ForConditionalGeneration", {"vocab_size": 40, "d_model": 16, "num_layers": 1}, 3)
    halves = drawn.build().half()
    halves.save_pretrained(tmp_path / "halves")
    mixed: Any = type(halves).from_pretrained(tmp_path / "halves")
    mixed.save_pretrained(tmp_path / "mixed")
    model, _ = af.load(tmp_path / "mixed")
    ids = torch.randint(40, (1, 5))
    with torch.no_grad():
        ours, theirs = model(ids, ids).logits, mixed(input_ids=ids, decoder_input_ids=ids).logits
    assert_close(ours.float(), theirs.float(), "logits", tolerance=1e-2)


@pytest.mark.parametrize("architecture", hf_models.ARCHITECTURES)
@settings(max_examples=3)
@given(data=st.data())
def test_shards(architecture: str, data: st.DataObject) -> None:
    theirs = data.draw(hf_models.models(architecture)).build()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder, max_shard_size=2_000)
        ours, _ = af.load(folder)
        sharded = len(list(Path(folder).glob("model-*.safetensors")))
    again, files = _reopened(theirs, ours, max_shard_size=2_000)
    assert_same_model(theirs, again)
    assert ("model.safetensors.index.json" in files) == (sharded > 1)
    assert ("model.safetensors" in files) == (sharded <= 1)


def test_dtype_can_be_chosen(tmp_path: Path) -> None:
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_TINY_LLAMA))
    theirs.save_pretrained(tmp_path)
    for dtype in ("bfloat16", torch.float16):
        model, _ = af.load(tmp_path, dtype=dtype)
        wanted = torch.bfloat16 if dtype == "bfloat16" else dtype
        assert {weight.dtype for weight in model.parameters()} == {wanted}


_TINY_LLAMA: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


OWN = {
    name
    for name, config in PRESETS.items()
    if config.model_type == "anyformer" or config.position.layout == "interleaved"
}
"""What no Hugging Face class can express."""
_FIRST = {shrunk(name): name for name in sorted(set(PRESETS) - OWN, reverse=True)}
FRESH = [
    pytest.param(name, marks=[] if _FIRST[shrunk(name)] == name else [pytest.mark.slow])
    for name in sorted(set(PRESETS) - OWN)
]
"""The gate is spared presets that differ from another one in sizes alone."""


UNTIED = ["bert-mini", "roberta-base", "albert-base-v2", "bart-base", "mbart-large-50", "m2m100_418m", "opus-mt"]


@pytest.mark.parametrize(
    ("name", "tied"),
    [pytest.param(*part.values, None, marks=part.marks) for part in FRESH] + [(name, False) for name in UNTIED],
)
def test_fresh_models_open_in_hugging_face(name: str, tied: bool | None, tmp_path: Path) -> None:
    """Hugging Face's classes tie nothing of a model whose embeddings are not, neither tables nor biases."""
    torch.manual_seed(0)
    config = shrunk(name)
    if tied is not None:
        config = config.replace(embedding={"tied": tied})
    ours = af.build(config).eval()
    with torch.no_grad():
        for weight in ours.parameters() if tied is False else ():
            weight += torch.randn_like(weight) / 10
    assert af.save(ours, tmp_path) == PRESETS[name].model_type
    raw = transformers.AutoConfig.from_pretrained(tmp_path)
    kind = getattr(transformers, raw.architectures[0])
    theirs, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not _missing(kind, report)
    assert not any(report[f"{what}_keys"] for what in ("unexpected", "mismatched"))
    assert kind.__name__ == next(iter(FAMILIES[config.model_type].architectures))
    inputs = Inputs(torch.randint(60, (2, 20)), torch.randint(60, (2, 15)) if config.is_encoder_decoder else None)
    with torch.no_grad():
        assert_close(ours(**inputs.ours).logits, theirs.eval()(**inputs.theirs).logits, "logits")
    again, _ = af.load(tmp_path)
    # What no file says: how the weights were drawn, and that LLaMA's padding, if any, learns nothing.
    padding = replace(config.embedding, padding=again.config.embedding.padding)
    assert again.config == replace(config, init=again.config.init, embedding=padding)
    for weight, loaded in zip(ours.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(weight, loaded)


@pytest.mark.parametrize("name", sorted(OWN))
def test_what_hugging_face_lacks_comes_back_to_us(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = shrunk(name)
    ours = af.build(config).eval()
    assert af.save(ours, tmp_path) == "anyformer"
    again, _ = af.load(tmp_path)
    assert again.config == replace(config, model_type=again.config.model_type)
    inputs = Inputs(torch.randint(60, (2, 20)), torch.randint(60, (2, 15)) if config.is_encoder_decoder else None)
    with torch.no_grad():
        assert torch.equal(ours(**inputs.ours).logits, again(**inputs.ours).logits)


@pytest.mark.parametrize("placement", ["post", "pre"])
@pytest.mark.parametrize("layout", ["halves", "interleaved"])
def test_the_paper_transformer_is_marian_or_pegasus_but_for_its_sinusoids(
    layout: str, placement: str, tmp_path: Path
) -> None:
    config = shrunk("transformer-base").replace(**{"position.layout": layout, "norm.placement": placement})
    expressed = "marian" if placement == "post" else "pegasus"
    assert af.save(af.build(config), tmp_path) == (expressed if layout == "halves" else "anyformer")


@pytest.mark.parametrize(
    ("name", "millions", "tolerance"),
    [("transformer-base", 65, 0.04), ("transformer-big", 213, 0.02), ("gpt2", 124, 0.01), ("bert-base", 110, 0.01)],
)
def test_presets_have_the_published_sizes(name: str, millions: float, tolerance: float) -> None:
    with torch.device("meta"):
        model: nn.Module = af.build(af.preset(name))
    count = sum(weight.numel() for weight in model.parameters())
    assert count == pytest.approx(millions * 1e6, rel=tolerance)


def test_both_names_of_a_tied_weight_are_read(tmp_path: Path) -> None:
    """Old files list the head beside the token table that it is tied to."""
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_TINY_LLAMA, tie_word_embeddings=True))
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, path, metadata={"format": "pt"})
    model, _ = af.load(tmp_path)
    assert model.config.embedding.tied
    af.save(model, tmp_path)
    assert "lm_head.weight" not in load_file(path)
