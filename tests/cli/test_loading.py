"""Every command that loads a model loads it in the same ways, and does what its own message recommends."""

import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import anyformer as af
from anyformer.adapters import LoraConfig, add_adapter
from anyformer.adapters.modules import adapters
from anyformer.cli.main import main

TEXT = ["the cat sat on the mat", "a dog and a cat", "Paris is the capital of France."]


def _only_pickle(path: Path) -> Path:
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    return path


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = af.Tokenizer.train(TEXT, "bpe:300")
    config = af.preset("gpt2-nano", vocab_size=tokenizer.vocab_size, d_model=32, decoder_layers=2)
    path = tmp_path_factory.mktemp("gpt")
    model = af.build(config.replace(special_tokens={"bos": None, "eos": (), "pad": None}))
    af.save(model, path, tokenizer=tokenizer)
    return _only_pickle(path)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = af.Tokenizer.train(TEXT, "wordpiece:120", special="masked")
    config = af.preset("bert-tiny", vocab_size=tokenizer.vocab_size, **{"embedding.padding": tokenizer.pad})
    path = tmp_path_factory.mktemp("bert")
    af.save(af.build(config.replace(special_tokens={"pad": tokenizer.pad})), path, tokenizer=tokenizer)
    return _only_pickle(path)


@pytest.fixture(scope="module")
def classifier(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = af.load(bert, allow_pickle=True)
    path = tmp_path_factory.mktemp("classifier")
    head = {"kind": "classification", "transform": None, "bias": "none", "pooler": "tanh"}
    af.save(af.build(model.config.replace(head=head)), path, tokenizer=tokenizer)
    return _only_pickle(path)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("generate", ["the cat", "--max-new-tokens", "2"]),
        ("chat", ["--max-new-tokens", "2"]),
        ("evaluate", ["--data", "notes.txt"]),
        ("verify", []),
        ("convert", ["model.gguf"]),
        ("convert", ["integers", "--type", "int8"]),
        ("convert", ["integers", "--quantize", "int8"]),
        ("fill", ["a [MASK]"]),
        ("embed", ["a cat", "a dog"]),
        ("classify", ["a cat", "a dog"]),
    ],
)
def test_a_pickle_is_read_where_the_message_says_so(
    command: str,
    arguments: list[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("\n".join(TEXT))
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\n"))
    fixtures = {"fill": "bert", "embed": "bert", "classify": "classifier"}
    path = request.getfixturevalue(fixtures.get(command, "gpt"))
    assert main([command, str(path), *arguments]) == 2
    assert "add --allow-pickle" in capsys.readouterr().err
    assert main([command, str(path), *arguments, "--allow-pickle"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--quantize", "int8"], ["--dtype", "bfloat16"]])
@pytest.mark.parametrize("command", ["fill", "embed"])
def test_encoders_load_in_lower_precision(command: str, flags: list[str], bert: Path) -> None:
    assert main([command, str(bert), "a [MASK]", "--allow-pickle", *flags]) == 0


def test_verify_tells_how_far_integers_move_a_model(gpt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["verify", str(gpt), "--allow-pickle", "--quantize", "int8"]
    assert main(command) == 1
    assert "different logits: largest difference" in capsys.readouterr().out
    main([*command, "--tolerance", "0.1"])
    assert "equal     logits: largest difference" in capsys.readouterr().out
    main(["verify", str(gpt), "--allow-pickle", "--dtype", "bfloat16", "--tolerance", "0.1"])
    assert "equal     logits: largest difference" in capsys.readouterr().out


def test_two_ways_to_say_how_to_convert(gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert", str(gpt), str(tmp_path / "new"), "--allow-pickle", "--quantize", "int8"]
    assert main([*command, "--type", "q8_0"]) == 2
    assert "--quantize int8 and --type q8_0 contradict each other" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--quantize", "int8"), ("--dtype", "bfloat16")])
def test_a_file_for_llama_cpp_is_verified_in_float32(
    bert: Path, flags: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = af.load(bert, allow_pickle=True)
    af.save_gguf(model, tmp_path / "bert.gguf", tokenizer=tokenizer, kind="f32")
    assert main(["verify", str(tmp_path / "bert.gguf"), *flags]) == 2
    assert "leave out --dtype and --quantize" in capsys.readouterr().err


@pytest.fixture
def adapted(tmp_path: Path) -> Path:
    """A model, and an adapter of it that changes what it says."""
    torch.manual_seed(0)
    tokenizer = af.Tokenizer.train(TEXT, "bpe:300")
    config = af.preset("gpt2-nano", vocab_size=tokenizer.vocab_size, d_model=32, decoder_layers=2)
    model = af.build(config.replace(special_tokens={"bos": None, "eos": (), "pad": None}))
    af.save(model, tmp_path / "base", tokenizer=tokenizer)
    add_adapter(model, LoraConfig(rank=4))
    for each in adapters(model):
        torch.nn.init.normal_(each.b)
    af.save_adapter(model, tmp_path / "adapter")
    return tmp_path


def test_every_command_takes_adapters(adapted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, adapter = str(adapted / "base"), str(adapted / "adapter")
    said: dict[str, str] = {}
    for name, flags in {
        "plain": [],
        "none": ["--adapter", f"{adapter}:0"],
        "whole": ["--adapter", adapter],
        "halves": ["--adapter", f"{adapter}:0.5", f"{adapter}:0.5"],
        "integers": ["--adapter", adapter, "--quantize", "int8"],
    }.items():
        assert main(["evaluate", base, "--data", str(notes(adapted)), "--json", *flags]) == 0
        said[name] = capsys.readouterr().out
    loss = {name: json.loads(text.splitlines()[-1])["perplexity"] for name, text in said.items()}
    assert loss["plain"] == pytest.approx(loss["none"], rel=1e-6)
    assert loss["whole"] == pytest.approx(loss["halves"], rel=1e-4)
    assert loss["whole"] == pytest.approx(loss["integers"], rel=0.02)
    assert loss["whole"] != pytest.approx(loss["plain"], rel=0.02)
    merged = str(adapted / "merged")
    assert main(["convert", base, merged, "--adapter", adapter]) == 0
    assert main(["convert", base, str(adapted / "small"), "--adapter", adapter, "--type", "int8"]) == 0
    for path in (merged, str(adapted / "small")):
        capsys.readouterr()
        assert main(["evaluate", path, "--data", str(notes(adapted)), "--json"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])["perplexity"]
        assert found == pytest.approx(loss["whole"], rel=1e-4 if path == merged else 0.02)
    assert main(["generate", base, "the", "--adapter", adapter, "--max-new-tokens", "3"]) == 0
    whole = capsys.readouterr().out
    assert main(["generate", merged, "the", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out == whole
    assert main(["verify", base, "--adapter", adapter]) == 2
    assert "convert MODEL DIR" in capsys.readouterr().err


def test_convert_merges_the_adapter_that_a_directory_holds(adapted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, run = str(adapted / "base"), adapted / "run"
    with_adapter, tokenizer = af.load(base, adapter=adapted / "adapter")
    af.save_adapter(with_adapter, run / "model", base=base)
    assert tokenizer is not None
    tokens = torch.tensor([tokenizer.encode(TEXT[0])])
    expected = with_adapter(tokens).logits
    for source, target, flags in ((run, "merged", []), (run / "model", "verified", ["--verify"])):
        assert main(["convert", str(source), str(adapted / target), *flags]) == 0, capsys.readouterr().err
        merged, same = af.load(adapted / target)
        assert same is not None
        assert not merged.adapter_configs
        torch.testing.assert_close(merged(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    assert main(["convert", str(run), str(adapted / "small"), "--type", "int8"]) == 0
    # Its base is read while the target is written.
    assert main(["convert", str(run), base]) == 2
    assert "would be lost" in capsys.readouterr().err


def notes(folder: Path) -> Path:
    path = folder / "notes.txt"
    path.write_text("the cat sat on the mat\n" * 20, encoding="utf-8")
    return path
