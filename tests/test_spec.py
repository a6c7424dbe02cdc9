"""What `anyformer diff`, `show`, `diagram`, `compare` and `plan` are given."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.cli.main import main
from anyformer.config import OtherLayers
from anyformer.errors import UserError
from anyformer.families import ALIASES, PRESETS
from anyformer.spec import read_config
from anyformer.training.config import TrainConfig
from anyformer.training.config_file import to_yaml

CHANGES: dict[str, dict[str, Any]] = {
    "norm.kind=layer": {"norm.kind": "layer"},
    "norm.kind=layer,norm.eps=1e-6": {"norm.kind": "layer", "norm.eps": 1e-6},
    "attention.kv_heads=null": {"attention.kv_heads": None},
    "attention.window=None, decoder_layers=3": {"attention.window": None, "decoder_layers": 3},
    "embedding.tied=false": {"embedding.tied": False},
    "special_tokens.eos=[1,2],norm.eps=1": {"special_tokens.eos": (1, 2), "norm.eps": 1.0},
    'position={"kind":"learned","offset":2,"scaling":null}': {
        "position.kind": "learned",
        "position.offset": 2,
        "position.scaling": None,
    },
}


@pytest.mark.parametrize("name", [*PRESETS, *ALIASES])
def test_a_preset(name: str) -> None:
    assert read_config(name).config == af.preset(name)
    assert (read_config(name).spec, read_config(name).directory) == (name, None)


@pytest.mark.parametrize("change", CHANGES)
def test_a_preset_with_fields_changed(change: str) -> None:
    read = read_config(f"llama:{change}")
    assert (read.spec, read.directory) == (f"llama:{change}", None)
    assert read.config == af.preset("llama", **CHANGES[change])


def test_what_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = af.preset("gpt2-nano", d_model=32, decoder_layers=2, max_length=32)
    run, model = tmp_path / "runs" / "a:b=c", tmp_path / "gpt2"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(TrainConfig(preset="gpt2-nano", model=config)))
    assert read_config(str(run)).config.d_model == 32  # nothing has been saved yet
    af.save(af.build(config), run / "model")
    af.save(af.build(config.replace(decoder_layers=1)), model)
    (tmp_path / "gpt2-medium").write_text("a file, no config")

    assert (read_config(str(run)).config, read_config(str(run)).directory) == (config, run)
    assert read_config("gpt2").config.decoder_layers == 1  # a directory comes before a preset
    assert read_config("gpt2").directory == Path("gpt2")
    assert read_config("gpt2-medium").config == af.preset("gpt2-medium")
    file = read_config("gpt2/config.json")
    assert (file.config.decoder_layers, file.directory) == (1, None)
    changed = read_config("gpt2:norm.kind=rms")
    assert (changed.config.norm.kind, changed.config.decoder_layers, changed.directory) == ("rms", 1, None)
    tokenizer = af.Tokenizer.train(["the cat sat on the mat"], "bpe:260")
    small = config.replace(vocab_size=tokenizer.vocab_size)
    af.save_gguf(af.build(small), tmp_path / "model.gguf", tokenizer=tokenizer)
    assert read_config("model.gguf").config.vocab_size == tokenizer.vocab_size
    assert read_config("model.gguf:norm.kind=rms").config.norm.kind == "rms"
    assert read_config(f"{run}:norm.kind=rms").config == config.replace(norm={"kind": "rms"})


@pytest.mark.parametrize("flags", [[], ["--lora=2"]])
def test_a_fine_tuned_run(tmp_path: Path, flags: list[str]) -> None:
    """With an adapter alone it has the head that was trained, and before anything is saved that of its base."""
    tokenizer = af.Tokenizer.train(["the cat sat on the mat"], "bpe:260")
    sizes = {"d_model": 16, "encoder_layers": 1, "attention": {"heads": 2}, "feed_forward": {"width": 16}}
    base = af.preset("bert-tiny", vocab_size=tokenizer.vocab_size, **sizes)
    af.save(af.build(base), tmp_path / "base", tokenizer=tokenizer)
    rows = [f"the {word} {number},{label}" for number in range(8) for word, label in (("cat", "good"), ("mat", "bad"))]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]))
    arguments = [str(tmp_path / "base"), "--data", str(tmp_path / "data.csv"), "--runs", str(tmp_path), *flags]
    assert main(["finetune", *arguments, "--name", "run", "--steps", "1", "--device", "cpu"]) == 0
    run = tmp_path / "run"
    found = read_config(str(run))
    assert (found.config, found.directory) == (af.load(run)[0].config, run)
    assert found.config.head.label_names == ("bad", "good")
    assert "class Model" in af.eject(str(run))
    (run / "model").rename(tmp_path / "elsewhere")
    assert read_config(str(run)).config.encoder_layers == 1
    config = (run / "config.yaml").read_text()
    for base, message in (
        (run, "has no config.json"),  # itself
        (run / "config.yaml", "neither a model directory nor"),
        (tmp_path / "none", "is not on this machine"),
    ):
        (run / "config.yaml").write_text(config.replace(str(tmp_path / "base"), str(base)))
        with pytest.raises(UserError, match=message):
            read_config(str(run))


BAD = {
    "gpt3": "There is no preset 'gpt3'",
    "": "There is no preset ''",
    "x" * 5000: "There is no preset",
    "llama\0": "There is no preset",
    "runs/none": "There is no 'runs/none': a model is a preset, a config file, a model or run directory, or a GGUF",
    "none.json": "There is no 'none.json'",
    "none.yaml:norm.kind=rms": "There is no 'none.yaml'",
    "llama:": "after the colon come fields",
    "llama:norm": "'norm' is none",
    "llama:=1": "'=1' is none",
    "llama:norm.kin=layer": r"norm\.kin: no such field \(did you mean 'kind'\?\)",
    "llama:norm.kind=layr": r"norm\.kind: 'layr' is unknown \(did you mean 'layer'\?\)",
    "llama:feed_forward.activation=swish": r"feed_forward\.activation: 'swish' is unknown",
    "gpt2:position.kind=rotery": r"position\.kind: 'rotery' is unknown",
    "llama:norm.placement=last": r"norm\.placement: 'last' is unknown",
    "llama:attention.heads=7": r"attention\.kv_heads: 7 query heads",
    "llama:attention.heads=8.0": r"attention\.heads: wants a whole number",
    "llama:norm.eps=NaN": r"norm\.eps: wants a finite number",
    "llama:norm.eps=tiny": r"norm\.eps: wants a number, not 'tiny'",
    "llama:norm=rms": r"norm: wants fields of its own",
    "llama:decoder_layers=" + "9" * 5000: "decoder_layers: wants a whole number",
    "llama:d_model=" + "[" * 5000: "d_model: wants a whole number",
    "llama:decoder_attention.heads=4": "decoder_attention: only an encoder-decoder has it",
    "t5:encoder_layers=0,decoder_layers=0": "a model needs at least one stack",
}


@pytest.mark.parametrize("spec", BAD)
def test_what_is_refused(spec: str) -> None:
    with pytest.raises(af.UserError, match=BAD[spec]) as caught:
        read_config(spec)
    assert "\n" not in str(caught.value)


def test_a_file_that_describes_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model.safetensors", "notes"):
        Path(name).touch()
        for spec in (name, str(tmp_path / name), f"{name}:norm.kind=rms"):
            with pytest.raises(af.UserError, match=f"{name}' is a file, but describes no model: a model is a preset,"):
                read_config(spec)
    Path("gpt2").touch()  # no model is read from a file of this name
    assert read_config("gpt2").config == af.preset("gpt2")


@pytest.mark.parametrize("content", [[], {"model_type": "gpt5"}, {"model_type": "t5", "d_ff": []}])
def test_a_file_that_is_no_config(content: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    for spec in (tmp_path, tmp_path / "config.json", f"{tmp_path}:norm.kind=layer"):
        with pytest.raises(af.UserError, match=r"config\.json"):
            read_config(str(spec))


@settings(max_examples=100)
@given(spec=st.one_of(st.text(), st.from_regex(r"gpt2:([a-z_]+(\.[a-z_]+)?=.*,?)*", fullmatch=True)))
def test_anything_is_read_or_refused(spec: str) -> None:
    with suppress(af.UserError):
        read_config(spec)


def test_a_run_of_version_0_2(tmp_path: Path) -> None:
    values = af.preset("qwen3", decoder_layers=3, norm={"eps": 0.001}).to_dict()
    del values["other_layers"]
    values["attention"] |= {"window": 64, "window_from": 2, "qk_norm": True}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"preset": "llama-nano", "model": values}))
    config = read_config(str(path)).config
    assert config.attention.qk_norm == "head"
    assert config.other_layers == OtherLayers(first="..", window=64)


def test_a_spec_of_yaml_imports_no_training(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(TrainConfig(preset="gpt2-nano", model=af.preset("gpt2-nano"))))
    code = """import sys
from anyformer.spec import read_config
read_config("config.yaml")
print([name for name in sys.modules if name.startswith(("anyformer.training", "anyformer.finetuning", "torch."))])"""
    assert subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True) == "[]\n"


def test_other_commands_read_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "llama", "llama:norm.kind=layer"]) == 0
    assert "norm.kind" in capsys.readouterr().out
    assert main(["show", "llama:decoder_layers=1"]) == 0
    assert main(["show", "llama:norm.kind=no"]) == 2


def test_a_preset_is_named_where_a_config_is_taken(tmp_path: Path) -> None:
    small = "gpt2-nano:d_model=16,decoder_layers=1,vocab_size=30"
    torch.manual_seed(0)
    named = af.build(small)
    torch.manual_seed(0)
    given = af.build(read_config(small).config)
    assert named.training
    assert named.config == given.config
    assert all(torch.equal(*pair) for pair in zip(named.parameters(), given.parameters(), strict=True))
    assert af.diff("gpt2", "llama") == af.diff(af.preset("gpt2"), af.preset("llama"))
    af.save(named, tmp_path / "model")
    assert af.diff(tmp_path / "model", small) == {}
    assert af.diagram("gpt2", "llama") == af.diagram(af.preset("gpt2"), af.preset("llama"))
    wrong: Any = named
    for function in (af.build, af.diagram, lambda model: af.diff("gpt2", model)):
        with pytest.raises(
            UserError, match="A model is a config here, the name of a preset, or a path, and was given as"
        ):
            function(wrong)
