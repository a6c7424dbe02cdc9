"""`anyformer.finetune`: the command as a function."""

import dataclasses
import json
import shlex
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.cli.finetune import SECTIONS
from anyformer.cli.main import main
from anyformer.errors import UserError
from anyformer.finetuning.config import FinetuneConfig, FinetuneOptions
from anyformer.runs.listing import read_run
from anyformer.training.run import Finished

ROWS = [{"text": f"a {'good' if i % 2 else 'bad'} film {i}", "label": "yes" if i % 2 else "no"} for i in range(30)]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny encoder, in the current directory."""
    monkeypatch.chdir(tmp_path)
    tokenizer = af.Tokenizer.train([row["text"] for row in ROWS], "wordpiece:300", special="masked")
    sizes: dict[str, Any] = {"d_model": 16, "vocab_size": tokenizer.vocab_size, "encoder_layers": 1, "max_length": 32}
    torch.manual_seed(0)
    af.save(af.build(af.preset("bert-tiny", **sizes, attention={"heads": 2})), "base", tokenizer=tokenizer)
    return Path("base")


def test_options_are_the_fields_of_the_config() -> None:
    flags = [name for names in SECTIONS.values() for name in names if name != "data"]
    assert list(FinetuneOptions.__annotations__) == flags
    fields = {field.name for field in dataclasses.fields(FinetuneConfig)}
    assert fields - set(flags) == {"base", "data", "workers"}


def test_rows_are_learned_and_what_was_gained_is_returned(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same: Any = {"steps": 60, "learning_rate": 2e-2, "batch_size": 8, "dtype": "float32", "runs": "out"}
    result = af.finetune(base, ROWS, name="first", **same)
    assert result.directory == Path("out/first")
    assert not result.model.training
    assert result.model.config.head.label_names == ("no", "yes")
    assert result.metrics["after"]["validation_loss"] < 0.3 < result.metrics["before"]["validation_loss"]
    assert result.metrics["after"]["accuracy"] == 1.0
    saved, _ = af.load(result.directory)
    text = torch.tensor([result.tokenizer.encode("a good film 3")])
    assert torch.equal(result.model(text).logits, saved(text).logits)
    assert capsys.readouterr().out == ""  # no terminal
    assert af.finetune(base, ROWS, **same).metrics == result.metrics


def test_rows_are_kept_so_that_the_run_can_be_repeated(base: Path) -> None:
    result = af.finetune(base, iter(ROWS), steps=2, save_every=1, keep_optimizer=True)
    (file,) = read_run(result.directory).config["data"]
    assert [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()] == ROWS
    longer = af.finetune(resume=result.directory, steps=4)
    assert longer.directory == result.directory
    assert longer.metrics["before"] == result.metrics["before"]
    assert read_run(longer.directory).steps[-1]["step"] == 4


def test_options_are_given_as_python_has_them(base: Path) -> None:
    rows = [{"review": row["text"], "stars": row["label"]} for row in ROWS]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    columns: Mapping[str, str] = {"text": "review", "label": "stars"}
    files = [Path("train.jsonl")]
    result = af.finetune(
        str(base),
        files,
        columns=columns,
        validation=rows[:6],
        labels=["yes", "no"],
        steps=1,
        lora=2,
        targets="query",
        track=(),
    )
    config = read_run(result.directory).config
    assert config["columns"] == ["text=review", "label=stars"]
    assert config["labels"] == ["yes", "no"]
    assert config["targets"] == ["query"]
    assert result.model.adapter_configs
    tokens = torch.tensor([result.tokenizer.encode("a good film")])
    for loaded, _ in (af.load(base, adapter=result.directory), af.load(result.directory)):
        assert loaded.config.head == result.model.config.head
        assert torch.equal(loaded(tokens).logits, result.model(tokens).logits)
    assert len(config["validation"]) == 1
    assert result.model.config.head.label_names == ("yes", "no")


def test_it_speaks_as_the_command_does_if_asked_to(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = af.finetune(base, ROWS, steps=1, quiet=False)
    said = capsys.readouterr().out
    assert "examples   27" in said
    assert f"model      {result.directory}/model" in said
    next_, other = said.splitlines()[-2:]
    assert next_ == f'next       anyformer classify {result.directory} "text"'
    assert other == f"           anyformer evaluate {result.directory} --data FILE"
    assert main(shlex.split(next_)[2:]) == 0


def test_what_comes_next_has_the_columns_of_the_data(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"a": row["text"], "my label": row["label"]} for row in ROWS]
    Path("dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    columns = {"text": "a", "label": "my label"}
    af.finetune(base, rows, columns=columns, validation="dev.jsonl", steps=1, quiet=False)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "           anyformer evaluate runs/base-1 --data dev.jsonl --text a --label 'my label'"
    assert main(shlex.split(line)[1:]) == 0


def test_what_comes_next_is_for_the_task(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [{"premise": row["text"], "hypothesis": "a film", "label": row["label"]} for row in ROWS]
    words = [{"tokens": row["text"].split(), "ner_tags": ["O", "O", "B-work", "I-work"]} for row in ROWS]
    for number, (rows, texts) in enumerate([(pairs, '"text" --second "text"'), (words, '"text"')], start=1):
        af.finetune(base, rows, steps=1, quiet=False)
        line = capsys.readouterr().out.splitlines()[-2]
        assert line == f"next       anyformer classify runs/base-{number} {texts}"
        assert main(shlex.split(line)[2:]) == 0


def test_plain_text_has_no_preview(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.txt").write_text("a good film. " * 500, encoding="utf-8")
    assert main(["finetune", str(base), "--data", "notes.txt", "--preview", "page.html"]) == 2
    assert "--preview draws examples of a task" in capsys.readouterr().err
    assert not Path("page.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Which model is to be fine-tuned"),
        ({"base": "base"}, "What is it to learn"),
        ({"base": "base", "data": [ROWS[0], "x.csv"]}, "item 2 is a str"),
        ({"base": "base", "data": [{"text": b"\0"}]}, "data, row 1, is not what a .jsonl file can hold"),
        ({"base": "base", "data": [{"text": np.float32(1)}]}, "data, row 1, is not what a .jsonl file can hold"),
        ({"base": "base", "data": ROWS, "resume": "runs/x"}, "leave base out"),
        ({"resume": "runs/x"}, "There is no run in"),
        ({"base": "base", "data": ROWS, "engine": "ddp", "processes": 2}, "From Python a run has one process"),
        ({"base": "base", "data": ROWS, "lora_alpha": 3.0}, "add --lora"),
    ],
)
def test_what_is_wrong_is_one_sentence(base: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        af.finetune(**arguments)
    assert not list(Path().glob("runs/*/*"))


def test_an_unknown_option_has_a_neighbor(base: Path) -> None:
    options: Any = {"learning_rat": 1.0}
    with pytest.raises(TypeError, match="did you mean 'learning_rate'"):
        af.finetune(base, ROWS, **options)


def test_ctrl_c_is_one(base: Path) -> None:
    stopped = Finished(128 + signal.SIGINT, Path("runs/base-1"))
    with (
        patch("anyformer.finetuning.finetune.run", return_value=stopped),
        pytest.raises(KeyboardInterrupt, match="resume='runs/base-1'"),
    ):
        af.finetune(base, ROWS)
