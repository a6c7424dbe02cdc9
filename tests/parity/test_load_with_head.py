"""A model gets a new head: everything else is as it was stored, and Hugging Face opens what is saved."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer.families import to_huggingface
from anyformer.quantization import bits_of
from anyformer.verify import verify
from tests.oracle import needs_newer_transformers
from tests.parity import hf_models

NAMES = ("bad", "good", "neither")
BASES = [
    *(name for name in hf_models.GENERATORS if not name.startswith(("Marian", "Pegasus", "M2M100"))),
    *(name for name in hf_models.ARCHITECTURES if name.endswith(("MaskedLM", "Model"))),
]
BASES = [name for name in dict.fromkeys(BASES) if not name.startswith(("Marian", "Pegasus", "M2M100"))]
AUTO = {
    "classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
}


def _small(name: str = "llama-nano", **changes: Any) -> af.Transformer:
    torch.manual_seed(0)
    return af.build(af.preset(name, vocab_size=40, d_model=32, **changes)).eval()


def _body(model: af.Transformer) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(("head.", "pooler."))}


@pytest.mark.parametrize("kind", AUTO)
@pytest.mark.parametrize("architecture", BASES)
@settings(max_examples=4)
@given(data=st.data())
def test_every_family_gets_a_head(
    architecture: str, kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base, made = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("made")
    theirs = data.draw(hf_models.models(architecture)).build()
    theirs.save_pretrained(base)
    lacking = {
        "Bart": ("token_classification",),
        "OPT": ("token_classification",),
        "DeepseekV2": ("token_classification",),
        **dict.fromkeys(("Gemma3", "Olmo"), ("token_classification",)),
        **dict.fromkeys(
            ("MBart", "Cohere", "Granite", "NanoChat", "Olmoe"), ("classification", "token_classification")
        ),
    }
    if any(architecture.startswith(name) and kind in kinds for name, kinds in lacking.items()):
        with pytest.raises(
            af.UserError, match=f"'{theirs.config.model_type}' has no architecture with the head '{kind}'"
        ):
            af.load_with_head(base, kind, NAMES)
        return
    torch.manual_seed(0)
    model, _ = af.load_with_head(base, kind, NAMES)
    before = _body(af.load(base)[0])
    after = _body(model)
    assert after.keys() <= before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert not any(weight.is_meta for weight in model.parameters())
    assert model.head is not None
    assert all(weight.requires_grad for weight in model.head.parameters())
    assert af.save(model, made) == theirs.config.model_type
    again, report = getattr(transformers, AUTO[kind]).from_pretrained(made, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert again.config.id2label == dict(enumerate(NAMES))
    back, _ = af.load(made)
    assert back.config.head == model.config.head
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "architecture", [name for name in hf_models.ARCHITECTURES if "Classification" in name and "MT5" not in name]
)
@settings(max_examples=2)
@given(data=st.data())
def test_verify_compares_classifiers(
    architecture: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("model")
    data.draw(hf_models.models(architecture)).build().save_pretrained(folder)
    assert [check.detail for check in verify(str(folder)) if not check.equal] == []


@needs_newer_transformers
@pytest.mark.parametrize("kind", ["classification", "token_classification"])
@given(data=st.data())
def test_norms_of_a_new_head_are_the_identity(
    kind: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    drawn = data.draw(hf_models.models("ModernBertForMaskedLM"))
    drawn.build().save_pretrained(folder := tmp_path_factory.mktemp("base"))
    model = af.load_with_head(folder, kind, 3)[0]
    assert model.head is not None
    weights = [weight for name, weight in model.head.named_parameters() if "norm.weight" in name]
    assert weights
    assert all(weight.eq(1).all() for weight in weights)
    # A classifier pools as the class of Hugging Face's that is made of the same file.
    poolings = {"cls": "first", "mean": "mean"}
    assert kind == "token_classification" or model.config.head.pooling == poolings[drawn.options["classifier_pooling"]]


def test_the_head_is_drawn_as_the_family_draws_it(tmp_path: Path) -> None:
    af.save(_small("bert-tiny"), tmp_path)
    torch.manual_seed(3)
    model, _ = af.load_with_head(tmp_path, "classification", 500)
    assert model.pooler is not None
    for name, weight in (("head", model.head.labels.weight), ("pooler", model.pooler.dense.weight)):
        assert 0.7 * 0.02 < float(weight.detach().std()) < 1.1 * 0.02, name
        assert float(weight.detach().abs().max()) <= 0.04, name
    assert not model.head.labels.bias.any()
    torch.manual_seed(3)
    again, _ = af.load_with_head(tmp_path, "classification", 500)
    assert torch.equal(again.head.labels.weight, model.head.labels.weight)


@pytest.mark.parametrize("architecture", ["BertForPreTraining", "BertModel", "RobertaModel"])
def test_a_pooler_that_is_there_is_kept(architecture: str, tmp_path: Path) -> None:
    """As that of bert-base-uncased, which calls itself a masked language model."""
    kind: Any = getattr(transformers, architecture)
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = kind(kind.config_class(**sizes, intermediate_size=16))
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    if architecture == "BertForPreTraining":
        path.write_text(json.dumps({**raw, "architectures": ["BertForMaskedLM"]}))
    model, _ = af.load_with_head(tmp_path, "classification", 2)
    assert model.pooler is not None
    dense = getattr(theirs, "bert", theirs).pooler.dense
    assert torch.equal(model.pooler.dense.weight, dense.weight)
    assert torch.equal(model.pooler.dense.bias, dense.bias)


def test_a_pooler_that_a_file_can_not_have_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    base = _small("bert-tiny", head={"kind": "none", "transform": None, "bias": "none"})
    af.save_gguf(base, tmp_path / "base.gguf", kind="f32")
    model, _ = af.load_with_head(tmp_path / "base.gguf", "classification", NAMES)
    assert model.pooler is not None
    assert model.pooler.dense.weight.any()
    before = base.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in _body(model).items())
    assert af.save(model, tmp_path / "made") == "bert"


def test_an_old_head_is_replaced_by_one_of_its_kind(tmp_path: Path) -> None:
    af.save(_small("bert-tiny"), tmp_path / "base")
    first, _ = af.load_with_head(tmp_path / "base", "classification", NAMES)
    af.save(first, tmp_path / "first")
    second, _ = af.load_with_head(tmp_path / "first", "classification", 1, problem_type="regression")
    assert second.config.head.problem_type == "regression"
    assert second.config.head.label_names == ()
    assert second.head.labels.weight.shape == (1, 32)
    assert torch.equal(second.pooler.dense.weight, first.pooler.dense.weight)
    af.save(second, tmp_path / "second")
    raw = json.loads((tmp_path / "second" / "config.json").read_text())
    assert raw["problem_type"] == "regression"
    assert raw["id2label"] == {"0": "LABEL_0"}
    assert af.load(tmp_path / "second")[0].config.head == second.config.head


def test_the_head_can_be_taken_off(tmp_path: Path) -> None:
    base = _small("bert-tiny")
    af.save(base, tmp_path / "base")
    model, _ = af.load_with_head(tmp_path / "base", "none")
    assert model.head is None
    assert model.pooler is None
    assert af.save(model, tmp_path / "made") == "bert"
    theirs, report = transformers.BertModel.from_pretrained(
        tmp_path / "made", output_loading_info=True, add_pooling_layer=False
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokens = torch.randint(40, (1, 6))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).hidden, theirs.eval()(tokens).last_hidden_state)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("form", ["directory", "quantized", "gguf"])
def test_the_head_over_a_quantized_model_is_in_floating_point(form: str, kind: str, tmp_path: Path) -> None:
    if form == "gguf":
        pytest.importorskip("gguf")
        af.save_gguf(_small(), tmp_path / "base.gguf", kind="q4_0" if kind == "int4" else "q8_0")
    else:
        af.save(af.quantize(_small(), kind) if form == "quantized" else _small(), tmp_path / "base")
    path = tmp_path / ("base.gguf" if form == "gguf" else "base")
    expected, _ = af.load(path, quantize=kind)
    model, _ = af.load_with_head(path, "classification", 32, quantize=kind)
    assert bits_of(model) == (4 if kind == "int4" else 8)
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {"head.labels.weight"}
    assert model.head.labels.weight.dtype == torch.float32
    tokens = torch.randint(40, (2, 6))
    with torch.no_grad():
        assert torch.equal(model(tokens).hidden, expected(tokens).hidden)
    loss = model(tokens, targets=torch.tensor([0, 1])).loss
    assert loss is not None
    loss.backward()
    assert model.head.labels.weight.grad.any()


def test_a_dtype_is_that_of_the_head_too(tmp_path: Path) -> None:
    af.save(_small(), tmp_path)
    model, _ = af.load_with_head(tmp_path, "token_classification", NAMES, dtype="bfloat16")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_our_own_models_get_one_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = af.build(af.preset("modern-nano", d_model=64, decoder_layers=1, feed_forward={"width": 64}))
    af.save(base, tmp_path / "base")
    model, _ = af.load_with_head(tmp_path / "base", "classification", NAMES)
    assert af.save(model, tmp_path / "made") == "anyformer"
    again, _ = af.load(tmp_path / "made")
    assert again.config.head == model.config.head
    assert again.config.head.label_names == NAMES
    tokens = torch.randint(60, (2, 6))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_nothing_else_may_be_missing_or_more(change: str, tmp_path: Path) -> None:
    af.save(_small(), tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        weights.pop(name)
    else:
        weights["model.layers.0.surprise.weight"] = torch.ones(2)
        name = "model.layers.0.surprise.weight"
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(af.UserError, match=f"{name}.*{'is unknown' if change == 'unknown' else 'is missing'}|{name}"):
        af.load_with_head(tmp_path, "classification", 2)


@pytest.mark.parametrize(
    ("labels", "problem", "message"),
    [
        (("a", "b", "a"), None, r"head\.label_names: 'a' is the name of more than one label"),
        (0, None, "labels: must be positive"),
        ((), None, "labels: must be positive"),
        (1, "single_label_classification", r"take two labels, or regression"),
        (2, "ranking", r"head\.problem_type: 'ranking' is unknown"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    labels: Sequence[str] | int, problem: Any, message: str, tmp_path: Path
) -> None:
    af.save(_small(), tmp_path)
    with pytest.raises(af.UserError, match=message):
        af.load_with_head(tmp_path, "classification", labels, problem_type=problem)


@pytest.mark.parametrize("name", ["opus-mt", "pegasus"])
def test_families_without_classifiers_say_so(name: str, tmp_path: Path) -> None:
    sizes = {"d_model": 16, "attention": {"heads": 2}, "feed_forward": {"width": 16}}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    tokens = {"embedding": {"padding": 0}, "special_tokens": {"pad": 0, "decoder_start": 0}}
    af.save(af.build(af.preset(name, vocab_size=40, **sizes, **layers, **tokens)), tmp_path)
    with pytest.raises(af.UserError, match="has no architecture with the head 'classification'"):
        af.load_with_head(tmp_path, "classification", 2)


def test_a_classifier_over_a_decoder_has_no_gguf(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    af.save(_small(), tmp_path / "base")
    model, _ = af.load_with_head(tmp_path / "base", "classification", 2)
    with pytest.raises(af.UserError, match="no place for a head of kind 'classification'"):
        af.save_gguf(model, tmp_path / "made.gguf")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"0": "a", "2": "b"}, "id2label has 2 names, and none for the label 1"),
        ({"0": "a", "1": "a"}, "'a' is the name of more than one label"),
    ],
)
def test_label_names_that_do_not_fit_are_refused(names: dict[str, str], message: str, tmp_path: Path) -> None:
    af.save(_small("bert-tiny"), tmp_path / "base")
    model, _ = af.load_with_head(tmp_path / "base", "classification", 2)
    af.save(model, tmp_path / "made")
    path = tmp_path / "made" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": names}))
    with pytest.raises(af.UserError, match=message):
        af.load(tmp_path / "made")


def test_no_family_writes_a_head_that_it_can_not_read() -> None:
    """A classifier that differs from Hugging Face's in one thing is written as our own model type."""
    base = _small().config.replace(head={"kind": "classification", "pooling": "last", "label_bias": False})
    assert to_huggingface(base)[0].model_type == "llama"
    for change in ({"label_bias": True}, {"pooler": "tanh"}, {"dropout": 0.5}):
        assert to_huggingface(base.replace(head=change))[0].model_type == "anyformer"
