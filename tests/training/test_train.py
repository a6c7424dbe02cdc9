"""Training from Python does what the command does."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.cli.options import flag_names
from anyformer.errors import UserError
from anyformer.runs.listing import read_run
from anyformer.training.config import TrainConfig
from anyformer.training.train import TrainOptions
from tests.training.conftest import TINY, Trains, losses, prose

FLAGS = ["--tokenizer", "bpe:300", "--context", "16", "--batch-size", "4", "--steps", "4", "--dtype", "float32"]
OPTIONS: Any = {"tokenizer": "bpe:300", "context": 16, "batch_size": 4, "steps": 4, "dtype": torch.float32}
SMALL: dict[str, Any] = {"d_model": 32, "decoder_layers": 2, "attention": {"heads": 2}, "feed_forward": {"width": 64}}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_options_are_the_fields_of_the_config() -> None:
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert set(TrainOptions.__annotations__) == {*flag_names(TrainConfig)} - {"data", "restarts"}
    assert fields - set(TrainOptions.__annotations__) == {
        *("data", "restarts", "model", "preset", "vocab_size", "max_length")
    }


def test_it_is_the_command(text: Path, trains: Trains, capsys: pytest.CaptureFixture[str]) -> None:
    run = trains("gpt2-nano", "--data", str(text), *FLAGS, *TINY)
    capsys.readouterr()
    spec = "gpt2-nano:d_model=32,decoder_layers=2,attention.heads=2,feed_forward.width=64"
    for model in (af.preset("gpt2-nano", **SMALL), spec):
        result = af.train(model, text, **OPTIONS)
        assert capsys.readouterr().out == ""
        assert result.directory.parent == Path("runs")
        assert losses(result.directory) == losses(run)
        ours, theirs = result.model.state_dict(), af.load(run)[0].state_dict()
        assert all(ours[name].equal(theirs[name]) for name in theirs)
        assert not result.model.training
        assert result.metrics["after"]["validation_loss"] < result.metrics["before"]["validation_loss"]
        assert result.metrics["after"].keys() == {"validation_loss", "bits_per_byte"}
        assert repr(result).startswith("TrainResult(directory=")
        assert af.generate(result.model, result.tokenizer, "the", max_new_tokens=3, stop_at_eos=False)[0]


def test_rows_are_text() -> None:
    rows = [{"page": sentence} for sentence in prose().splitlines()]
    result = af.train(af.preset("gpt2-nano", **SMALL), rows, field="page", validation=rows[:50], **OPTIONS)
    config = read_run(result.directory).config
    assert all(Path(path).suffix == ".jsonl" for path in (*config["data"], *config["validation"]))


def test_a_run_is_called_by_its_preset_or_family(text: Path) -> None:
    own = af.preset("modern-nano", **SMALL)
    for model, name in (("gpt2-nano", "gpt2-nano"), (af.preset("llama-nano", **SMALL), "llama"), (own, "modern-nano")):
        result = af.train(model, text, **{**OPTIONS, "steps": 1})
        assert result.directory.name == f"{name}-1"
        config = af.train(resume=result.directory).model.config  # it has finished, and stays as it is
        assert config == result.model.config


def test_a_run_goes_on(text: Path) -> None:
    first = af.train("gpt2-nano", text, keep_optimizer=True, **OPTIONS)
    result = af.train(resume=first.directory, steps=7, quiet=True)
    assert result.directory == first.directory
    assert read_run(result.directory).step == 7
    assert result.metrics["before"] == first.metrics["before"]
    with pytest.raises(UserError, match="leave model out"):
        af.train("gpt2-nano", resume=first.directory)
    with pytest.raises(UserError, match="leave out name"):
        af.train(resume=first.directory, name="other")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "gpt3"}, "There is no preset 'gpt3'"),
        ({"model": 5}, "A model is a config here"),
        ({"data": "missing.txt"}, "missing.txt"),
        ({"data": {"text": ["a"]}}, "data is a dict"),
        ({"steps": "many"}, "^train: steps: wants a whole number, not 'many'"),
        ({"steps": 5, "minutes": 1.0}, "give one of the two"),
        ({"zero_stage": 1}, "--zero-stage would do nothing here"),
        ({"resume": "runs/x"}, "There is no run in"),
        ({"engine": "ddp", "processes": 2}, "start several with anyformer train"),
    ],
)
def test_bad_input_is_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        af.train(**arguments)
    assert not list(Path().glob("runs/*/*"))


def test_an_unknown_option_has_a_neighbor() -> None:
    options: Any = {"lr": 1.0}
    with pytest.raises(TypeError, match="that is 'learning_rate' here"):
        af.train("gpt2-nano", **options)
