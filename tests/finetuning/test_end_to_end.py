"""From a model and a file of examples to a better model, through the command line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.cli.main import main
from anyformer.tokenizer import Tokenizer
from tests.finetuning import toys
from tests.finetuning.conftest import Tunes
from tests.serving.running import running
from tests.training.conftest import metrics

LEARNED: dict[str, tuple[str, float]] = {
    "classify": ("accuracy", 0.9),
    "tag": ("entity_f1", 0.9),
    "embed": ("spearman", 0.8),
    "chat": ("exact_match", 0.5),
    "completion": ("exact_match", 0.9),
    "preference": ("accuracy", 0.9),
    "seq2seq": ("exact_match", 0.9),
}
"""What each task is measured by, and how good it should be on toys."""


@pytest.mark.parametrize("task", LEARNED)
def test_a_task_is_learned(
    task: str, tunes: Tunes, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metric, good = LEARNED[task]
    validation = toys.write(tmp_path / "validation.jsonl", toys.rows(task, 30, seed=7))
    run = tunes(task, "--epochs=8", "--learning-rate=1e-2", f"--validation={validation}", rows=toys.rows(task, 100))
    assert sorted(path.name for path in run.glob("[!.]*"))[-1] == "report.html"
    lines = metrics(run)
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    *before, after = [line["scores"][metric] for line in lines if "scores" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert len(before) == (task not in ("classify", "tag"))  # what a new head says is not measured
    assert all(after > each for each in before)
    assert after >= good
    model, tokenizer = af.load(run)
    assert tokenizer is not None
    assert model.config.head.label_names == {"classify": ("no", "yes"), "tag": ("B-animal", "B-thing", "O")}.get(
        task, ()
    )
    capsys.readouterr()
    assert main(["evaluate", str(run), f"--task={task}", f"--data={validation}", "--json", "--device=cpu"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["metrics"][metric]["value"] == pytest.approx(after, rel=1e-5)


@pytest.mark.parametrize(
    ("task", "flags"),
    [
        ("chat", ["--lora=4"]),
        pytest.param("chat", [], marks=pytest.mark.slow),
        pytest.param("preference", ["--lora=4"], marks=pytest.mark.slow),
        ("preference", []),
    ],
)
def test_a_base_without_a_chat_template_gets_that_of_the_lines_it_was_shown(
    flags: list[str],
    task: str,
    tunes: Tunes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, tokenizer = toys.decoder()
    tokenizer.config.pop("chat_template")
    tokenizer.chat_template = None
    af.save(model, tmp_path / "base", tokenizer=tokenizer)
    rows: list[Any] = [*toys.rows("chat", 100)]
    if task == "preference":
        rows = [{"prompt": row["messages"][:1], "chosen": row["messages"][1:], "rejected": "the"} for row in rows]
    run = tunes(task, "--epochs=8", "--keep-optimizer", *flags, model=str(tmp_path / "base"), rows=rows)
    assert Tokenizer.load(tmp_path / "base").chat_template is None
    model, tokenizer = af.load(run)
    assert tokenizer is not None
    question = rows[0]["messages" if task == "chat" else "prompt"][0]["content"]
    assert tokenizer.chat([{"role": "user", "content": question}]) == f"User: {question}\nAssistant:"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{question}\n"))
    capsys.readouterr()
    assert main(["chat", str(run), "--temperature=0"]) == 0
    captured = capsys.readouterr()
    assert "template" not in captured.err
    if task == "chat":
        assert captured.out in ("yes\n", "no\n")
    with running({"tuned": (model, tokenizer)}) as (client, _):
        asked = {"model": "tuned", "messages": [{"role": "user", "content": question}], "temperature": 0}
        answer = client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"]
    assert answer.strip() == captured.out.strip()
    # The run is still that of its base, which has no template.
    result = af.finetune(resume=run, steps=120)
    assert result.tokenizer.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("columns", [("source", "target"), ("prompt", "completion")])
def test_an_encoder_decoder_without_sentinels_learns_pairs(
    columns: tuple[str, str], tunes: Tunes, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sentinels are what span corruption needs, of plain text."""
    assert Tokenizer.load(models / "both").id("<extra_id_0>") is None
    rows = [dict(zip(columns, row.values(), strict=True)) for row in toys.rows("seq2seq")]
    run = tunes("seq2seq", "--steps=1", rows=rows)
    text = tmp_path / "notes.txt"
    text.write_text(toys.WORDS * 200)
    capsys.readouterr()
    assert main(["finetune", str(run), f"--data={text}", "--steps=1", f"--runs={tmp_path / 'runs'}"]) == 2
    assert "Span corruption needs a tokenizer with sentinels" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--quantize=int8"], ["--quantize=int4"]])
def test_the_parameters_of_a_base_are_counted_whatever_they_are_stored_as(
    flags: list[str], tunes: Tunes, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tunes("preference", "--steps=1", "--lora=4", *flags)
    base, _ = af.load(models / "decoder")
    model, _ = af.load(run)
    sizes = [sum(weight.numel() for weight in each.parameters()) for each in (base, model)]
    said = f"model      decoder, {sizes[1]:,} parameters, {sizes[1] - sizes[0]:,} of them trained; float32"
    assert capsys.readouterr().out.startswith(said)


def test_classes_of_pairs_are_learned_by_vectors(tunes: Tunes, tmp_path: Path) -> None:
    """What reads the classes off the vectors is trained with them, and isn't a part of the model, or of an adapter."""
    rows, others = toys.pairs_with_a_class(100), toys.pairs_with_a_class(30, seed=7)
    validation = toys.write(tmp_path / "validation.jsonl", others)
    flags = ["--task=embed", f"--validation={validation}"]
    run = tunes("embed", "--epochs=8", "--learning-rate=2e-2", *flags, rows=rows)
    losses = [line["validation_loss"] for line in metrics(run) if "validation_loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    model, tokenizer = af.load(run)
    assert not hasattr(model, "pair_classifier")
    scores = af.evaluate(model, tokenizer, str(validation), task="embed")
    assert scores["accuracy"] >= 0.8
    adapted, _ = af.load(tunes("embed", "--steps=1", "--lora=4", *flags, rows=rows, name="adapter"))
    assert not hasattr(adapted, "pair_classifier")


@pytest.mark.parametrize("model", ["encoder", "decoder", "both"])
def test_an_adapter_for_vectors_is_loaded_without_the_head_of_its_base(
    model: str, tunes: Tunes, models: Path, tmp_path: Path
) -> None:
    base = models / model
    assert af.load(base)[0].config.head.kind == "language_model"
    run = tunes("embed", "--steps=2", "--lora=4", "--learning-rate=1e-1", model=model)
    made = [af.embed(*af.load(run), ["a cat"]), af.embed(*af.load(base, adapter=run), ["a cat"])]
    assert torch.equal(*made)
    assert not torch.allclose(made[0], af.embed(*af.load(base), ["a cat"]))
