"""The text that an explained model opens with is of its own data, and the page's own where that is not to be had."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import anyformer as af
from anyformer.learn.explain import explain
from anyformer.learn.explain.first_text import first_text
from tests.finetuning import toys

DATA = "the cat sat on the mat\nand the dog ran after it because it was a good dog and the cat was a bad cat\n"
CODE, PROSE = "def main(self, name):\n    return", "The cat could not sleep because it was"


def _run(folder: Path, data: str, *, metrics: str = "", evaluation: object = None) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"preset: gpt2-nano\ndata: [{data}]\n")
    (folder / "metrics.jsonl").write_text(metrics)
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "model").mkdir()
    return folder


def test_a_run_opens_with_its_own_data(tmp_path: Path) -> None:
    model, tokenizer = toys.decoder()
    text = tmp_path / "text" / "notes.txt"
    text.parent.mkdir()
    text.write_text(DATA)
    beginning = "the cat sat on the mat\nand the dog ran after it because it"
    for data in (text, text.parent):
        run = _run(tmp_path / f"run-{data.name}", str(data))
        for directory in (run, run / "model"):
            assert first_text(model.config, tokenizer, directory) == beginning
    # What a run recorded needs no file but its own.
    sample = json.dumps({"step": 1, "sample": [{"before": "a good dog sat ", "written": "down", "after": "there"}]})
    run = _run(tmp_path / "sampled", str(tmp_path / "gone.txt"), metrics=f"{sample}\n")
    assert first_text(model.config, tokenizer, run) == "a good dog sat there"
    rows = {"answers": [], "worst": [{"question": "a bad cat and a good dog"}]}
    run = _run(tmp_path / "evaluated", str(text), metrics=f"{sample}\n", evaluation=rows)
    assert first_text(model.config, tokenizer, run) == "a bad cat and a good dog"


@pytest.mark.parametrize(("data", "expected"), [(CODE, CODE), (PROSE, PROSE)])
def test_without_a_run_it_is_what_the_tokenizer_was_made_for(data: str, expected: str) -> None:
    model, _ = toys.decoder()
    tokenizer = af.Tokenizer.train([f"{data}\n" * 50], "bpe:300")
    assert first_text(model.config, tokenizer) == expected


def test_a_word_of_it_is_masked_for_an_encoder(tmp_path: Path) -> None:
    model, tokenizer = toys.encoder()
    (tmp_path / "notes.txt").write_text("the cat sat on the mat")
    run = _run(tmp_path / "run", str(tmp_path / "notes.txt"))
    assert first_text(model.config, tokenizer, run) == f"the cat sat {tokenizer.mask_token} the mat"


@pytest.mark.parametrize(
    ("data", "evaluation"),
    [("gone.txt", None), ("1", [1]), ("notes.bin", {"answers": [{}], "worst": []}), ("'a\\0b'", {"answers": 3})],
)
def test_what_is_gone_or_broken_is_passed_over(data: str, evaluation: object, tmp_path: Path) -> None:
    model, tokenizer = toys.decoder()
    (tmp_path / "notes.bin").write_bytes(b"\xff\x00")
    run = _run(tmp_path / "run", data, metrics='{"sample": 3}\nno JSON', evaluation=evaluation)
    assert first_text(model.config, tokenizer, run) == first_text(model.config, tokenizer)


def test_characters_that_the_tokenizer_lacks_are_not_shown(tmp_path: Path) -> None:
    tokenizer = af.Tokenizer.train(["abc " * 99], "char", special="causal")
    model, _ = toys.decoder()
    (tmp_path / "notes.txt").write_text("\u0416\u0416\u0416 and more of it")
    found = first_text(model.config, tokenizer, _run(tmp_path / "run", str(tmp_path / "notes.txt")))
    assert found
    assert set(found) <= set("abc ")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give a file away")
def test_a_config_of_another_user_names_no_files(tmp_path: Path) -> None:
    model, tokenizer = toys.decoder()
    (tmp_path / "secret.txt").write_text(DATA)
    run = _run(tmp_path / "run", str(tmp_path / "secret.txt"))
    os.chown(run / "config.yaml", 12345, 12345)
    assert "cat sat" not in first_text(model.config, tokenizer, run)


def test_the_page_of_a_run_has_it(tmp_path: Path) -> None:
    model, tokenizer = toys.decoder()
    (tmp_path / "notes.txt").write_text("a good dog and a bad cat")
    run = _run(tmp_path / "run", str(tmp_path / "notes.txt"))
    af.save(model, run / "model", tokenizer=tokenizer)
    assert ">a good dog and a bad cat</textarea>" in explain(run)
    assert ">a good dog and a bad cat</textarea>" in explain(model, tokenizer, directory=run)
