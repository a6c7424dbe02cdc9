"""Models with matrices in integers: rounded while they are read, saved, and read again."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer.blocks.quantized import QuantizedMatrix, dequantize
from anyformer.model import Transformer
from anyformer.native.levels import SWITCH
from anyformer.quantization import (
    bits_per_module,
    parameter_count,
    quantizable,
    quantization,
    quantize_weight,
    quantized_weights,
)

SIZES: dict[str, dict[str, Any]] = {
    "gpt2-nano": {},
    "llama-nano": {"attention": {"heads": 4, "kv_heads": 2}},
    "bert-mini": {"attention": {"heads": 4}},
    "t5-nano": {"attention": {"heads": 4}},
    "transformer-tiny": {"attention": {"heads": 4}},
}
KINDS = ["int8", "int4"]


def _model(preset: str, **more: Any) -> Transformer:
    torch.manual_seed(0)
    layers = {
        name: min(2, number)
        for name in ("encoder_layers", "decoder_layers")
        if (number := getattr(af.preset(preset), name))
    }
    fields = {"vocab_size": 100, "d_model": 64, "feed_forward": {"width": 96}, **layers, **SIZES[preset], **more}
    return af.build(af.preset(preset, **fields)).eval()


def _answer(model: Transformer) -> torch.Tensor:
    torch.manual_seed(1)
    tokens = torch.randint(3, 100, (2, 9))
    with torch.no_grad():
        out = model(tokens, source=tokens.flip(0)) if model.config.is_encoder_decoder else model(tokens)
    assert out.logits is not None
    return out.logits.float().log_softmax(dim=-1)


@pytest.fixture(params=SIZES)
def preset(request: pytest.FixtureRequest) -> str:
    return request.param


EMBEDDING = "token_embedding.table.weight"


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_is_rounded_while_it_is_read(
    preset: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as the model with each matrix rounded and multiplied out again."""
    monkeypatch.setenv(SWITCH, "0")  # compiled products round what enters them, too
    model = _model(preset)
    af.save(model, tmp_path / "model")
    loaded, _ = af.load(tmp_path / "model", quantize=kind)
    plain, _ = af.load(tmp_path / "model")
    modules = quantizable(plain)
    assert len(modules) > 8
    assert {name.removesuffix(".weight") for name, _ in quantized_weights(loaded)} == modules.keys()
    bits = bits_per_module(plain, quantization(kind))
    assert bits["token_embedding.table"] == 8  # what touches the vocabulary keeps 8 bits
    for name, module in modules.items():
        weight = module.weight.detach()
        weight.copy_(dequantize(quantize_weight(name, weight, bits[name]), torch.float32))
    torch.testing.assert_close(_answer(loaded), _answer(plain), rtol=1e-4, atol=1e-4)
    assert not any(weight.requires_grad for weight in loaded.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_read_again_nothing_changes(preset: str, kind: str, tmp_path: Path) -> None:
    model = af.quantize(_model(preset), kind)
    af.save(model, tmp_path / "small")
    said = json.loads((tmp_path / "small" / "config.json").read_text())
    expected = {"quant_method": "anyformer", "bits": int(kind[3:]), "group_size": 32}
    assert said["model_type"] == "anyformer"
    assert said["quantization_config"].items() >= expected.items()
    again, _ = af.load(tmp_path / "small")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert replace(again.config, init=model.config.init) == model.config  # which T5 directories do not say
    assert torch.equal(_answer(model), _answer(again))
    af.save(again, tmp_path / "twice")
    assert (tmp_path / "twice" / "config.json").read_text() == (tmp_path / "small" / "config.json").read_text()


@pytest.mark.parametrize(
    ("kind", "dtype", "bound"),
    [(k, d, b) for k, b in (("int8", 0.06), ("int4", 0.6)) for d in (torch.float32, torch.bfloat16)],
)
def test_log_probabilities_stay_near(preset: str, kind: str, dtype: torch.dtype, bound: float, tmp_path: Path) -> None:
    model = _model(preset)
    af.save(model, tmp_path / "model")
    loaded, _ = af.load(tmp_path / "model", dtype, quantize=kind)
    assert loaded.dtype == dtype
    wanted = _answer(model)
    error = (_answer(loaded) - wanted).std() / wanted.std()
    assert float(error) < bound + (0.02 if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_integers_are_counted_as_the_weights_that_they_stand_for(kind: str, tied: bool) -> None:
    model = af.build(af.preset("llama-nano", vocab_size=96, d_model=64, decoder_layers=1, embedding={"tied": tied}))
    count = sum(weight.numel() for weight in model.parameters())
    assert parameter_count(model) == count
    assert parameter_count(af.quantize(model, kind)) == count
    assert sum(weight.numel() for weight in model.parameters()) < count / 10


def test_untied_heads_and_odd_widths(tmp_path: Path) -> None:
    model = _model("llama-nano", embedding={"tied": False}, feed_forward={"width": 50})
    af.save(model, tmp_path / "model")
    loaded, _ = af.load(tmp_path / "model", quantize="int4")
    assert loaded.head is not None
    assert isinstance(loaded.head.projection.weight, QuantizedMatrix)
    down = loaded.get_submodule("decoder.blocks.0.feed_forward.down")
    assert isinstance(down, torch.nn.Linear)  # rows of 50 are no whole groups
    af.save(loaded, tmp_path / "small")
    again, _ = af.load(tmp_path / "small")
    assert not again.config.embedding.tied
    assert torch.equal(_answer(loaded), _answer(again))


def test_activations_in_another_format(tmp_path: Path) -> None:
    af.save(af.quantize(_model("llama-nano"), "int4"), tmp_path / "small")
    narrow, _ = af.load(tmp_path / "small", "bfloat16")
    assert narrow.dtype == torch.bfloat16
    assert {part.scales.dtype for _, part in quantized_weights(narrow)} == {torch.float16}
    af.save(narrow, tmp_path / "narrow")
    assert af.load(tmp_path / "narrow")[0].dtype == torch.bfloat16


def test_what_is_refused(tmp_path: Path) -> None:
    model = _model("llama-nano")
    af.save(model, tmp_path / "model")
    with pytest.raises(af.UserError, match=r"no quantization 'int5' \(did you mean 'int"):
        af.load(tmp_path / "model", quantize="int5")
    unloaded: Any = "runs/x"
    with pytest.raises(af.UserError, match="`quantize` takes a model, not a str: load it first"):
        af.quantize(unloaded, "int8")
    with torch.no_grad():
        next(iter(quantizable(model).values())).weight[0, 0] = torch.nan
    with pytest.raises(af.UserError, match="not finite or too large"):
        af.quantize(model, "int8")
    af.save(af.quantize(_model("llama-nano"), "int4"), tmp_path / "small")
    with pytest.raises(af.UserError, match="integers of 4 bits already"):
        af.load(tmp_path / "small", quantize="int8")
    assert af.load(tmp_path / "small", quantize="int4")
    raw = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({**raw, "quantization_config": {"quant_method": "gptq"}})
    )
    with pytest.raises(af.UserError, match=r"quantized by 'gptq', which is not supported"):
        af.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("token_embedding.table.weight.scales"),
            "token_embedding.table.weight.scales is missing",
        ),
        (lambda state: state.pop("decoder.final_norm.weight"), "decoder.final_norm.weight is missing"),
        (lambda state: state.update(hat=torch.ones(1)), "the weight hat is unknown"),
        (
            lambda state: state.pop("decoder.blocks.0.attention.key.weight.minima"),
            "key.weight.integers, uint8.*does not fit",
        ),
        (lambda state: state.update({"decoder.final_norm.weight": torch.ones(3)}), "final_norm.weight.*does not fit"),
        (
            lambda state: state.update({f"{EMBEDDING}.scales": state[f"{EMBEDDING}.scales"].float()}),
            "token_embedding.table.weight.scales, float32.*does not fit",
        ),
    ],
)
def test_damaged_integers(change: Any, message: str, tmp_path: Path) -> None:
    af.save(af.quantize(_model("llama-nano"), "int4"), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(af.UserError, match=message):
        af.load(tmp_path)


def test_transformers_says_that_it_can_not_read_them(tmp_path: Path) -> None:
    import transformers

    af.save(af.quantize(_model("llama-nano"), "int4"), tmp_path)
    with pytest.raises(ValueError, match="anyformer"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


_WATCHED = """
import sys, threading, time, anyformer as af
from pathlib import Path
def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
af.load(sys.argv[1], quantize=sys.argv[3])
seen = [own()]
def watch():
    while True:
        seen.append(own())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
model, _ = af.load(sys.argv[2], quantize=sys.argv[3])
print(max(seen) - seen[0], len(seen))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["int8", pytest.param("int4", marks=pytest.mark.slow)])
def test_the_floats_are_never_in_memory_together(kind: str, tmp_path: Path) -> None:
    af.save(_model("llama-nano"), tmp_path / "little")
    large = _model("llama-nano", vocab_size=2000, d_model=1024, feed_forward={"width": 4096}, decoder_layers=3)
    size = sum(weight.numel() for weight in large.parameters())
    af.save(large, tmp_path / "large")
    folders = [str(tmp_path / "little"), str(tmp_path / "large")]
    done = subprocess.run([sys.executable, "-c", _WATCHED, *folders, kind], capture_output=True, text=True, check=True)
    grown, looks = map(int, done.stdout.split())
    assert looks > 20
    # The file is mapped, which is no memory of the process's own. In float32 the weights would take 4 bytes each.
    assert grown * 1024 < size * (1.1 if kind == "int8" else 0.7) + 80e6 < 3 * size
