"""`anyformer.finetune`: the command as a function."""

import dataclasses
import html
import json
import re
import shlex
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

import anyformer as af
from anyformer.cli.main import main
from anyformer.cli.options import flag_names
from anyformer.errors import UserError
from anyformer.finetuning.config import FinetuneConfig, tasks_of
from anyformer.finetuning.finetune import FinetuneOptions
from anyformer.runs.listing import read_run
from anyformer.schema import flag
from anyformer.tasks import TASKS
from anyformer.training.run import Finished
from tests.finetuning import toys

ROWS = [{"text": f"a {'good' if i % 2 else 'bad'} film {i}", "label": "yes" if i % 2 else "no"} for i in range(30)]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny encoder, in the current directory."""
    monkeypatch.chdir(tmp_path)
    tokenizer = af.Tokenizer.train([row["text"] for row in ROWS], "wordpiece:300", special="masked")
    sizes: dict[str, Any] = {"d_model": 16, "vocab_size": tokenizer.vocab_size, "encoder_layers": 1, "max_length": 32}
    torch.manual_seed(2)
    af.save(af.build(af.preset("bert-tiny", **sizes, attention={"heads": 2})), "base", tokenizer=tokenizer)
    return Path("base")


def test_options_are_the_fields_of_the_config() -> None:
    flags = {*flag_names(FinetuneConfig)} - {"data", "restarts"}  # which starts the command again
    assert set(FinetuneOptions.__annotations__) == flags
    fields = {field.name for field in dataclasses.fields(FinetuneConfig)}
    assert fields - flags == {"base", "data", "workers", "restarts"}


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


def test_a_system_message_is_added_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, tokenizer = toys.decoder(max_length=64)
    af.save(model, tmp_path / "chat", tokenizer=tokenizer)
    asked = [{"role": "user", "content": "yes or no"}, {"role": "assistant", "content": "yes"}]
    own = [{"messages": [{"role": "system", "content": "a mat"}, *asked]}]
    given = [{"messages": [{**asked[0], "content": f"{number} or no"}, asked[1]]} for number in range(20)]
    toys.write(Path("chats.jsonl"), own + given)
    command = ["finetune", str(tmp_path / "chat"), "--data", "chats.jsonl", "--system", "a good dog", "--device", "cpu"]
    assert main([*command, "--preview", "page.html"]) == 0
    assert "--system added to 20 conversations" in capsys.readouterr().out
    shown = re.findall("<pre.*?</pre>", Path("page.html").read_text(), re.DOTALL)
    texts = [html.unescape(re.sub("<[^>]+>", "", row)) for row in shown]
    assert sorted({text.partition("user")[0] for text in texts}) == [
        "system: a good dog<|endoftext|>",
        "system: a mat<|endoftext|>",
    ]
    assert main([*command, "--steps", "1"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "next       anyformer chat runs/chat-1 --system 'a good dog'"
    assert "a good dog" in Path("runs/chat-1/model/README.md").read_text()
    # What is measured after it is asked in the same way.
    assert "a good dog" in Path("runs/chat-1/evaluation.json").read_text()


def test_the_help_of_a_setting_names_the_tasks_that_obey_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--help"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    settings = {setting for task in TASKS.values() for setting in task.settings}
    assert {"beta", "labels", "train_on"} <= settings <= {*flag_names(FinetuneConfig)}
    for setting in settings:
        *first, last = tasks_of(setting)
        names = f"{', '.join(first)} and {last}" if first else last
        assert re.search(rf"{flag(setting)}[^:]*?{names.capitalize()}: ", page), setting


def test_each_task_has_its_command_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--help"]) == 0
    examples = capsys.readouterr().out.partition("examples:")[2]
    for task in TASKS.values():
        assert task.finetune
        assert f"anyformer finetune {task.finetune}\n" in examples


def test_a_system_message_is_for_conversations(base: Path) -> None:
    with pytest.raises(UserError, match="--system is for chat and preference, and the task is classify"):
        af.finetune(base, ROWS, system="a dog", steps=1)
    model, tokenizer = toys.decoder()
    af.save(model, "chat", tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"--system is for conversations, and .*line 1, is a text"):
        af.finetune("chat", toys.rows("preference"), system="a dog", steps=1)


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
        ({"base": "base", "data": {"train": ROWS}}, r"data is a dict of 'train': give a list of rows"),
        ({"base": ("model", "tokenizer"), "data": ROWS}, r"base is a tuple, .* give the directory"),
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
    for name, ours in {"learning_rat": "did you mean 'learning_rate'", "lr": "that is 'learning_rate' here"}.items():
        options: Any = {name: 1.0}
        with pytest.raises(TypeError, match=ours):
            af.finetune(base, ROWS, **options)


def test_frames_and_data_sets_are_rows(base: Path) -> None:
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["yes", "no"])})
    classes = datasets.Dataset.from_list(
        [{**row, "label": int(row["label"] == "no")} for row in ROWS], features=features
    )
    kept = set[str]()
    for data, labels in ((ROWS, ("no", "yes")), (pandas.DataFrame(ROWS), ("no", "yes")), (classes, ("yes", "no"))):
        result = af.finetune(base, data, validation=data, steps=1)
        assert result.model.config.head.label_names == labels
        config = read_run(result.directory).config
        assert config["data"] == config["validation"]
        kept.update(config["data"])
        evaluated = af.evaluate(result.directory, data)
        assert evaluated == pytest.approx({name: result.metrics["after"][name] for name in evaluated})
        assert evaluated.notes[0].startswith("This model was trained on these rows: ")
    assert sorted(Path(path).suffix for path in kept) == [".jsonl", ".parquet"]


def test_evaluating_on_what_was_learned_is_said(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "dev"):
        Path(f"{name}.csv").write_text("".join(f"{row['text']},{row['label']}\n" for row in ROWS), encoding="utf-8")
    header = ["text", "label"]
    held = af.finetune(base, "train.csv", header=header, steps=1)
    given = af.finetune(base, [Path().absolute() / "tr*.csv"], header=header, validation="dev.csv", steps=1)
    Path("elsewhere").mkdir()
    for path, result, said in (
        ("train.csv", held, "trained on train.csv, but for the tenth that was held out: the figures"),
        ("train.csv", given, "trained on train.csv: the figures"),
        ("dev.csv", held, ""),
        ("dev.csv", given, ""),
    ):
        for model in (str(result.directory), f"{result.directory}/model"):
            assert main(["evaluate", model, "--data", path, "--header", *header]) == 0
            out = " ".join(capsys.readouterr().out.split())
            assert said in out
            assert ("This model was trained on" in out) == bool(said)
        notes = af.evaluate(*af.load(result.directory), path, header=header).notes
        assert [said in note for note in notes] == [True] * bool(said)
    (held.directory / "config.yaml").write_text("- [")  # whoever goes on with the run is told
    assert not af.evaluate(held.directory, "train.csv", header=header).notes


def test_ctrl_c_is_one(base: Path) -> None:
    stopped = Finished(128 + signal.SIGINT, Path("runs/base-1"))
    with (
        patch("anyformer.finetuning.finetune.run", return_value=stopped),
        pytest.raises(KeyboardInterrupt, match="resume='runs/base-1'"),
    ):
        af.finetune(base, ROWS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": "1e-3"}, "learning_rate: wants a number, not '1e-3'"),
        ({"lora": "x"}, "lora: wants a whole number, not 'x'"),
        ({"lora": True}, "lora: wants a whole number, not True"),
        ({"labels": 3}, "labels: wants text, not 3"),
        ({"dtype": torch.int64}, "--dtype int64: there is no such dtype"),
    ],
)
def test_an_option_has_the_type_of_its_field(base: Path, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        af.finetune(base, ROWS, **options)


def test_a_dtype_may_be_one_of_torch(base: Path) -> None:
    result = af.finetune(base, ROWS, steps=1, dtype=torch.float32)
    assert read_run(result.directory).config["dtype"] == "float32"


def test_rows_are_called_data(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^data, line 31, has an empty text in its column 'text'"):
        af.finetune(base, [*ROWS, {"text": "", "label": "no"}])
    af.finetune(base, ROWS, steps=1, quiet=False)
    assert "30 examples in data; " in " ".join(capsys.readouterr().out.split())
