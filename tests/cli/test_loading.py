"""Every command that loads a model loads it in the same ways, and does what its own message recommends."""

import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import anyformer as af
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
    path = request.getfixturevalue("bert" if command in ("fill", "embed") else "gpt")
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
