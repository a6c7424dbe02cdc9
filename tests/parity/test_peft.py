"""Adapters equal PEFT's: its files here and ours there, merged and unmerged, and thirty steps of training."""

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import anyformer as af
from anyformer.adapters import LoraConfig, add_adapter, disabled, merge, remove
from anyformer.adapters.modules import adapters, parameters, targets
from anyformer.checkpoint import load_adapter, save_adapter
from anyformer.errors import UserError
from tests.parity import hf_models
from tests.parity.conversion import ours_of
from tests.parity.float64 import EQUAL, Float64, build_wide, widened
from tests.parity.model_spec import Inputs, ModelSpec, draw_inputs

ARCHITECTURES = [name for name in hf_models.ARCHITECTURES if not name.endswith("Model")]
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own
few = settings(max_examples=4)


@st.composite
def options(draw: st.DrawFn, names: list[str], stacks: list[str], *, experts: bool = False) -> dict[str, Any]:
    """Fields of PEFT's LoraConfig for a model with linear layers of these names, and with experts and routers.

    Its "all-linear" takes in routers, which are chosen by name here.
    """
    ends = sorted({name.rpartition(".")[2] for name in names})
    some = draw(st.lists(st.sampled_from(ends), min_size=1, unique=True))
    kind = draw(st.sampled_from(("all", "names", "pattern", "paths")[experts:]))
    chosen: Any = {"all": "all-linear", "names": some, "pattern": rf".*\.({'|'.join(some)})", "paths": names[:3]}[kind]
    made: dict[str, Any] = {
        "target_modules": chosen,
        "r": draw(st.integers(1, 6)),
        "lora_alpha": draw(st.sampled_from((1, 8, 3.5))),
        "lora_dropout": draw(st.sampled_from((0.0, 0.1))),
        "use_rslora": draw(st.booleans()),
        "use_dora": draw(st.booleans()),
        "bias": draw(st.sampled_from(("none", "none", "all", "lora_only"))),
    }
    parameters = sorted({".".join(name.split(".")[-2:]) for name in stacks})
    if parameters and draw(st.booleans()):
        made |= {"lora_dropout": 0.0, "use_dora": False}  # there is none of parameters
        made["target_parameters"] = draw(st.lists(st.sampled_from(parameters), min_size=1, unique=True))
        made["target_modules"] = draw(st.sampled_from([[], chosen]))
    if draw(st.booleans()):
        made["rank_pattern"] = {draw(st.sampled_from(ends)): draw(st.integers(1, 4))}
    if draw(st.booleans()):
        made["alpha_pattern"] = {draw(st.sampled_from(ends)): 5}
    if kind == "names" and draw(st.booleans()):
        made["layers_to_transform"] = [0]
    if kind != "paths" and draw(st.booleans()) and len(some) < len(ends):
        made["exclude_modules"] = [next(end for end in ends if end not in some)]
    return made


def layers(model: af.Transformer) -> list[str]:
    return [name for name, target in targets(model).items() if not target.is_embedding]


def adapted(theirs: Any, made: dict[str, Any], seed: int) -> Any:
    """PEFT's model around a model of Hugging Face's, all that it trains being moved."""
    torch.manual_seed(seed)  # PEFT draws the adapters' weights
    model = peft.get_peft_model(theirs, peft.LoraConfig(**made))
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=chance)
    return model.eval()


def scores(model: Any, inputs: Inputs) -> Tensor:
    """The logits of either side's model."""
    with torch.no_grad():
        if isinstance(model, af.Transformer):
            found = model(**{**inputs.ours, "targets": None}).logits
        else:
            found = model(**inputs.theirs).logits
    assert found is not None
    # What is scored at padding means nothing.
    return found if inputs.mask is None or found.dim() == 2 else found * inputs.mask[..., None]


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert float((ours - theirs).abs().max()) <= tolerance * max(1.0, float(theirs.abs().max()))


def assert_as_theirs(model: af.Transformer, theirs: Any, inputs: Inputs, spec: ModelSpec, folder: str) -> None:
    """Our logits are PEFT's with the adapter in a folder."""
    try:
        assert_near(scores(model, inputs), scores(theirs, inputs))
    except AssertionError:
        # A few draws are so badly conditioned that rounding is more than 1e-5: there is none in float64.
        wide = peft.PeftModel.from_pretrained(build_wide(spec), folder).eval().double()
        with Float64():
            assert_near(scores(widened(copy.deepcopy(model)), inputs), scores(wide, inputs), EQUAL)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@few
@given(data=st.data())
def test_adapters_of_peft_and_ours_are_the_same(architecture: str, data: st.DataObject) -> None:
    spec: ModelSpec = data.draw(hf_models.models(architecture))
    inputs: Inputs = data.draw(draw_inputs(spec))
    model = ours_of(spec.build())
    made = data.draw(
        options(layers(model), list(parameters(model)), experts=model.config.feed_forward.experts is not None)
    )
    task = {"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS"}
    made["task_type"] = next((name for end, name in task.items() if architecture.endswith(end)), None)
    try:
        theirs = adapted(spec.build(), made, data.draw(st.integers(0, 99)))
    except (ValueError, TypeError):  # it selects nothing, or adapts a head that it trains whole as well
        return
    expected = scores(theirs, inputs)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        load_adapter(model, folder)
        assert_as_theirs(model, theirs, inputs, spec, folder)
        with tempfile.TemporaryDirectory() as back:
            save_adapter(model, back)
            again = peft.PeftModel.from_pretrained(spec.build(), back).eval()
            assert_near(scores(again, inputs), expected)
    with disabled(model):
        if made["bias"] == "none" and made["task_type"] is None:
            assert_near(scores(model, inputs), scores(spec.build(), inputs))
    # In float64: some drawn models enlarge the rounding of a merged weight a thousandfold.
    unmerged = scores(model.double(), inputs)
    merge(model)
    assert next(adapters(model), None) is None
    torch.testing.assert_close(scores(model, inputs), unmerged, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if "Classification" in name])
@settings(max_examples=2)
@given(data=st.data())
def test_a_classifier_is_saved_with_its_adapter_as_by_peft(architecture: str, data: st.DataObject) -> None:
    spec: ModelSpec = data.draw(hf_models.models(architecture))
    inputs: Inputs = data.draw(draw_inputs(spec))
    model, base, seed = ours_of(spec.build()), spec.build(), data.draw(st.integers(0, 99))
    torch.manual_seed(seed)
    for name, parameter in base.named_parameters():  # a head of another draw
        if any(word in name for word in ("score", "classif")):
            parameter.data.normal_()
    add_adapter(model, LoraConfig(rank=data.draw(st.integers(1, 4)), use_dora=data.draw(st.booleans())))
    # ModernBERT's layer before the labels is no part of its module `classifier`, and PEFT leaves it as it is.
    trained = model.head.labels if "ModernBert" in architecture else model.head
    assert all(weight.requires_grad for weight in trained.parameters())
    chance = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=chance)
    expected = scores(model, inputs)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)
        raw = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
        assert raw["task_type"] == ("SEQ_CLS" if "Sequence" in architecture else "TOKEN_CLS")
        theirs = peft.PeftModel.from_pretrained(base, folder).eval()
        assert_as_theirs(model, theirs, inputs, spec, folder)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        again = load_adapter(ours_of(spec.build()), folder)
    assert_near(scores(again, inputs), expected)


TRAINED = ["LlamaForCausalLM", "Qwen3ForCausalLM", "GPT2LMHeadModel", "BertForMaskedLM", "RobertaForMaskedLM"]
TRAINED += ["T5ForConditionalGeneration", "BartForConditionalGeneration", "MixtralForCausalLM", "GptOssForCausalLM"]


@pytest.mark.parametrize("architecture", TRAINED)
@settings(max_examples=3)
@given(data=st.data())
def test_thirty_steps_of_adamw_are_those_of_peft(architecture: str, data: st.DataObject) -> None:
    """In float64: AdamW's first steps are as long for a gradient that is nothing but rounding as for any other."""
    spec: ModelSpec = data.draw(hf_models.models(architecture))
    inputs: Inputs = data.draw(draw_inputs(spec))
    kind = data.draw(st.sampled_from(({}, {"use_rslora": True}, {"use_dora": True})))
    made: dict[str, Any] = {"target_modules": "all-linear", "r": 4, "lora_alpha": 8, "task_type": None, **kind}
    model = ours_of(spec.build())
    if stacks := list(parameters(model)):
        made |= {"target_modules": ["q_proj"], "target_parameters": stacks, "use_dora": False}
    torch.manual_seed(data.draw(st.integers(0, 99)))
    theirs = peft.get_peft_model(build_wide(spec), peft.LoraConfig(**made)).eval().double()
    model.requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        model = load_adapter(model, folder).double()
    with Float64():
        losses, expected = _thirty_losses(model, inputs.ours, inputs), _thirty_losses(theirs, inputs.theirs, inputs)
    assert losses == pytest.approx(expected, rel=1e-10)
    assert losses[-1] < losses[0]


def _thirty_losses(model: Any, arguments: dict[str, Any], inputs: Inputs) -> list[float]:
    assert inputs.targets is not None
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=2e-3)
    losses: list[float] = []
    for _ in range(30):
        loss = F.cross_entropy(model(**arguments).logits.flatten(0, 1), inputs.targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("preset", ["llama-nano", "mixtral-nano"])
def test_an_adapter_of_a_quantized_model_learns(preset: str, kind: str) -> None:
    torch.manual_seed(0)
    config = af.preset(preset, vocab_size=40, d_model=64, decoder_layers=2, attention={"heads": 4})
    model = af.quantize(af.build(config), kind)
    tokens = torch.randint(40, (4, 20))

    def logits() -> Tensor:
        with torch.inference_mode():
            found = model(tokens).logits
        assert found is not None
        return found

    before = logits()
    experts = ["experts.gate_up_proj", "experts.down_proj"] if config.feed_forward.experts else []
    add_adapter(model, LoraConfig(rank=8, target_parameters=experts))
    assert torch.equal(logits(), before)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses: list[float] = []
    for _ in range(60):
        loss = model(tokens[:, :-1], targets=tokens[:, 1:], return_logits=False).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    with disabled(model):
        assert torch.equal(logits(), before)
    found = logits()
    merge(model)
    # Compiled products of integers round their inputs to 8 bits, those of the merged weights don't, and one of 80
    # tokens goes to another expert.
    assert float((logits() - found).norm()) < (0.2 if experts else 0.1) * float(found.norm())


def test_a_fresh_adapter_changes_nothing(tmp_path: Path) -> None:
    model = af.build(af.preset("gpt2-nano", vocab_size=40, d_model=32, attention={"heads": 2}))
    tokens = torch.randint(40, (2, 9))
    before = model.eval()(tokens).logits
    for made in (LoraConfig(rank=3), LoraConfig(rank=3, use_dora=True), LoraConfig(target_modules=["wpe", "c_fc"])):
        add_adapter(model, made)
        torch.testing.assert_close(model(tokens).logits, before, atol=1e-5, rtol=1e-5)
        save_adapter(model, tmp_path)
        merge(model)
        torch.testing.assert_close(model(tokens).logits, before, atol=1e-5, rtol=1e-5)
    af.save(model, tmp_path / "model")
    add_adapter(model, LoraConfig(target_modules=["wte"]))
    with pytest.raises(UserError, match="head is tied"):
        merge(model)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = af.build(af.preset("gpt2-nano", vocab_size=40, d_model=32, attention={"heads": 2}))
    with pytest.raises(UserError, match="did you mean 'c_attn'"):
        add_adapter(model, LoraConfig(target_modules=["c_atn"]))
    with pytest.raises(UserError, match="rank of an adapter"):
        LoraConfig(rank=0)
    add_adapter(model, LoraConfig(rank=3))
    with pytest.raises(UserError, match="merge"):
        af.save(model, tmp_path / "model")
    save_adapter(model, tmp_path / "adapter")
    other = af.build(af.preset("gpt2-nano", vocab_size=40, d_model=48, attention={"heads": 2}))
    with pytest.raises(UserError, match="does not fit this model"):
        load_adapter(other, tmp_path / "adapter")
    other = af.build(af.preset("llama-nano", vocab_size=40))
    with pytest.raises(UserError, match=r"has no layer transformer\.h\.0\.attn\.c_attn"):
        load_adapter(other, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    for change, message in (
        ({"peft_type": "IA3"}, "adapter type 'IA3' is not supported"),
        ({"rank_pattern": {"con: [": 1}}, "is no regular expression"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "may take too long"),
        ({"alpha_pattern": {"c_attn": "much"}}, "alpha_pattern: wants a number, not 'much'"),
        ({"alpha_pattern": {"c_attn": 1e999}}, "alpha_pattern: wants a finite number"),
        ({"alpha_pattern": {"c_attn": 10**400}}, "alpha_pattern: wants a finite number, not 1"),
        ({"lora_alpha": 10**400}, "alpha: wants a finite number, not 1"),
        ({"modules_to_save": [3]}, "modules_to_save: wants text, not 3"),
        ({"lora_bias": True}, "lora_bias = True is not supported"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"r": "many"}, "rank: wants a whole number, not 'many'"),
        ({"r": 4}, "does not fit this model"),
    ):
        kept = path.read_text(encoding="utf-8")
        path.write_text(json.dumps({**json.loads(kept), **change}), encoding="utf-8")
        fresh = af.build(af.preset("gpt2-nano", vocab_size=40, d_model=32, attention={"heads": 2}))
        with pytest.raises(UserError, match=message):
            load_adapter(fresh, tmp_path / "adapter")
        path.write_text(kept, encoding="utf-8")
    with pytest.raises(UserError, match="There is no adapter"):
        load_adapter(model, tmp_path)


@pytest.mark.parametrize("dora", [False, True])
def test_files_of_mlx_lm(dora: bool, tmp_path: Path) -> None:
    """Matrices are [inputs, rank] and [rank, outputs], and the scale is applied as it is."""
    torch.manual_seed(0)
    model = af.build(
        af.preset("llama-nano", vocab_size=40, d_model=32, decoder_layers=2, attention={"heads": 4})
    ).eval()
    base = copy.deepcopy(model)
    add_adapter(model, LoraConfig(rank=3, alpha=60, target_modules=["q_proj", "down_proj"], use_dora=dora))
    for each in adapters(model):
        torch.nn.init.normal_(each.b, std=0.1)
    tokens = torch.randint(40, (2, 9))
    expected = model(tokens).logits
    save_adapter(model, tmp_path / "mlx", library="mlx")
    raw = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text(encoding="utf-8"))
    assert raw["fine_tune_type"] == ("dora" if dora else "lora")
    assert raw["lora_parameters"]["scale"] == 20.0
    files = load_file(tmp_path / "mlx" / "adapters.safetensors")
    a, b = (files[f"model.layers.0.self_attn.q_proj.lora_{part}"] for part in "ab")
    assert a.shape == (32, 3)
    assert b.shape == (3, 32)
    assert ("model.layers.1.mlp.down_proj.m" in files) == dora
    load_adapter(base, tmp_path / "mlx")
    torch.testing.assert_close(base(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    save_adapter(base, tmp_path / "peft")
    again = copy.deepcopy(base)
    remove(again)
    load_adapter(again, tmp_path / "peft")
    torch.testing.assert_close(again(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    for change, message in (
        ({"fine_tune_type": "full"}, "is no adapter"),
        ({"lora_parameters": {"scale": "much"}}, "lora_parameters.scale: wants a number, not 'much'"),
        ({"lora_parameters": {"scale": 10**400}}, "lora_parameters.scale: wants a finite number, not 1"),
    ):
        (tmp_path / "mlx" / "adapter_config.json").write_text(json.dumps({**raw, **change}), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            load_adapter(af.build(model.config), tmp_path / "mlx")


def test_a_weighted_adapter_is_saved_as_it_counts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = af.preset("llama-nano", vocab_size=40, d_model=32, decoder_layers=2, attention={"heads": 4})
    model, tokens = af.build(config).eval(), torch.randint(40, (2, 9))
    base, again = copy.deepcopy(model), copy.deepcopy(model)
    add_adapter(model, LoraConfig(rank=3, alpha=6, alpha_pattern={"q_proj": 9}))
    for each in adapters(model):
        torch.nn.init.normal_(each.b, std=0.1)
    save_adapter(model, tmp_path / "whole")
    load_adapter(base, f"{tmp_path / 'whole'}:0.5")
    assert not torch.allclose(base(tokens).logits, model(tokens).logits, atol=1e-3)
    save_adapter(base, tmp_path / "half")
    load_adapter(again, tmp_path / "half")
    torch.testing.assert_close(again(tokens).logits, base(tokens).logits)


def test_an_adapter_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    config = af.preset("llama-nano", vocab_size=40, d_model=32, decoder_layers=2, attention={"heads": 4})
    model = af.build(config)
    add_adapter(model, LoraConfig(rank=3))
    save_adapter(model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    last = max(tensors)
    shape = tensors[last].shape
    other = [torch.zeros(shape).to(dtype) for dtype in (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)]
    for bad in (torch.zeros(()), torch.zeros(3, 5), *other):
        save_file({**tensors, last: bad}, path)
        fresh = af.build(config)
        with pytest.raises(UserError, match=r"does not fit this model|is stored as (int8|float8_e\dm\d)"):
            load_adapter(fresh, tmp_path)
        assert next(adapters(fresh), None) is None
        assert not fresh.adapter_configs
