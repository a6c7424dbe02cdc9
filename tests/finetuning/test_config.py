"""`--config`: a run that is described by a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import anyformer as af
from anyformer.cli.main import main
from anyformer.errors import UserError
from anyformer.finetuning.config import FinetuneConfig, complete, configured
from anyformer.runs.listing import read_run
from tests.finetuning import toys
from tests.finetuning.conftest import Tunes
from tests.training.conftest import losses


def _file(folder: Path, content: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    return path


def test_the_config_of_a_run_repeats_it(tunes: Tunes) -> None:
    run = tunes("classify", "--epochs=1", "--lora=4")
    assert main(["finetune", "--config", str(run / "config.yaml"), "--name=again"]) == 0
    again = run.parent / "again"
    assert losses(again) == losses(run)
    assert (again / "config.yaml").read_text() == (run / "config.yaml").read_text()


def test_flags_and_the_model_override_a_file(models: Path, tmp_path: Path) -> None:
    data = toys.write(tmp_path / "tags.jsonl", toys.rows("tag"))
    file = _file(tmp_path, f"base: {models / 'decoder'}\ndata: {data}\nepochs: 2\nlora: 4\ndora: true\nseed: 7")
    config = configured(file, {"base": str(models / "encoder"), "steps": 2, "dora": False})
    assert (config.base, config.data) == (str(models / "encoder"), (str(data),))
    assert (config.epochs, config.steps, config.minutes) == (None, 2, None)
    assert (config.lora, config.dora, config.seed) == (4, False, 7)
    argv = ["finetune", str(models / "encoder"), "--config", str(file), "--steps=2", "--name=mine", "--device=cpu"]
    assert main([*argv, f"--runs={tmp_path / 'runs'}"]) == 0
    assert read_run(tmp_path / "runs" / "mine").config["base"] == str(models / "encoder")


def test_a_file_needs_no_more_than_the_flags_leave_open(tmp_path: Path) -> None:
    """And it may hold what fits only with them."""
    file = _file(tmp_path, "quantize: int4")
    assert configured(file, {"base": str(tmp_path), "lora": 8}).quantize == "int4"
    with pytest.raises(UserError, match="names no model"):
        configured(file, {"lora": 8})
    with pytest.raises(UserError, match=r"lorra: no such field \(did you mean 'lora'"):
        configured(_file(tmp_path, "lorra: 3"), {})


TAG_OR_CLASSIFY: tuple[str, str] = ("tag", "classify")


@given(examples=st.integers(1, 1_000_000), lora=st.sampled_from([None, 8]))
def test_many_examples_are_read_less_often_in_larger_batches(examples: int, lora: int | None) -> None:
    model, config = af.preset("bert-base"), FinetuneConfig(base="bert", data=("a.csv",), lora=lora)
    few, found = (complete(config, model, "classify", examples=number) for number in (2000, examples))
    assert (few.epochs, few.batch_size) == (3, 32)
    many = examples >= 60_000 and lora is None
    if examples >= 1600:
        assert found.epochs == pytest.approx(max(1, min(3, 60_000 / examples)))
    else:
        assert found.epochs * examples / found.batch_size + 1e-6 >= 150 or (found.epochs, found.batch_size) == (20, 8)
    assert found.batch_size == (128 if many else min(32, max(8, 20 * examples // 150)))
    assert found.learning_rate == few.learning_rate * (2 if many else 1)
    assert (few.average, found.average) == (None, "ema:0.99" if many else None)
    own = replace(config, batch_size=8, epochs=2.5, learning_rate=1e-6)
    assert complete(own, model, "classify", examples=examples).average is None
    for asked in (complete(own, model, "classify", examples=examples), complete(own, model, "chat")):
        assert (asked.batch_size, asked.epochs, asked.learning_rate) == (8, 2.5, 1e-6)


@given(examples=st.integers(1, 1_000_000), batch_size=st.sampled_from([None, 8, 64]))
def test_few_sentences_are_read_more_often_by_a_tagger(examples: int, batch_size: int | None) -> None:
    model, config = af.preset("bert-base"), FinetuneConfig(base="bert", data=("a.csv",), batch_size=batch_size)
    tag, label = (complete(config, model, task, examples=examples) for task in TAG_OR_CLASSIFY)
    assert tag.epochs is not None
    assert label.epochs is not None
    steps = tag.epochs * examples / tag.batch_size
    assert label.epochs <= tag.epochs <= 20
    assert round(steps, 6) >= 500 or tag.epochs == 20
    assert tag.epochs == label.epochs or steps == pytest.approx(min(500, 20 * examples / tag.batch_size))
    assert complete(config, model, "tag").epochs == 3  # of an unknown number of examples
    lengths: list[dict[str, Any]] = [{"steps": 7}, {"minutes": 1.0}, {"epochs": 2.0}]
    for asked in lengths:
        own = complete(replace(config, **asked), model, "tag", examples=examples)
        assert [getattr(own, name) for name in ("steps", "minutes", "epochs")] == [
            asked.get(name) for name in ("steps", "minutes", "epochs")
        ]


def test_the_help_and_the_page_have_these_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    model, config = af.preset("bert-base"), FinetuneConfig(base="bert", data=("a.csv",))
    few, many = (complete(config, model, "classify", examples=number).batch_size for number in (2000, 60_000))
    assert main(["finetune", "--help"]) == 0
    assert f"default: {few}, or {many} from 60,000 examples on" in " ".join(capsys.readouterr().out.split())
    page = (Path(__file__).parents[2] / "docs" / "finetuning" / "settings.md").read_text(encoding="utf-8")
    assert f"batches have {many} instead of {few}" in " ".join(page.split())


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("data: [chats.jsonl]", [], "names no model"),
        ("base: BASE", [], "What is it to learn"),
        ("base: someone/model\ndata: [chats.jsonl]", [], "add someone/model"),
        ("base: BASE\ndata: ['hf:someone/set']", [], "add --data hf:someone/set"),
        ("base: BASE\ndata: [chats.jsonl]\nmax_record_bytes: 1000000000000", [], "add --max-record-bytes"),
        ("base: BASE\ndata: [chats.jsonl]\nallow_pickle: true", [], "add --allow-pickle"),
        ("base: BASE\ndata: [chats.jsonl]\nprocesses: 2\nengine: ddp", [], "add --processes 2 --engine ddp"),
        ("base: BASE\ndata: [chats.jsonl]\ntrack: [wandb]", [], "add --track wandb"),
        ("preset: gpt2", [], "preset: no such field"),
        ("base: BASE\ndata: [chats.jsonl]", ["--resume=RUN"], "leave out --config"),
    ],
)
def test_what_a_file_may_not_decide(
    content: str,
    flags: list[str],
    message: str,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    file = _file(tmp_path, content.replace("BASE", str(models / "decoder")))
    assert main(["finetune", "--config", str(file), *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_writes_every_field_that_a_file_may_hold(tunes: Tunes) -> None:
    written = yaml.safe_load((tunes("classify", "--steps=1") / "config.yaml").read_text())
    file = tunes("tag", "--steps=1", name="other") / "config.yaml"
    assert set(written) == set(yaml.safe_load(file.read_text()))
    assert configured(file, {}).task == "tag"
