"""`anyformer attention`: a page for every kind of model, adapters too, and one sentence for what can't be shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.finetuning import toys

import anyformer as af
from anyformer.adapters import LoraConfig, add_adapter
from anyformer.cli.main import main

TEXT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind, made in toys.MODELS.items():
        model, tokenizer = made()
        af.save(model, folder / kind, tokenizer=tokenizer)
    model, _ = af.load(folder / "decoder")
    af.save_adapter(add_adapter(model, LoraConfig(rank=2)), folder / "adapter")
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["encoder", TEXT], "{page}: 8 tokens\n"),
        (["encoder", TEXT * 9], "The text has {long} tokens; these are the first 32.\n{page}: 32 tokens\n"),
        pytest.param(["decoder", TEXT, "--quantize=int8"], "{page}: ", marks=pytest.mark.slow),
        (["decoder", TEXT, "--adapter={place}/adapter"], "{page}: "),
        pytest.param(
            ["both", TEXT], "The target is the model's own: it was generated greedily", marks=pytest.mark.slow
        ),
        (["both", TEXT, "--target", "a dog"], "{page}: "),
    ],
)
def test_a_page_is_written(
    arguments: list[str], said: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    page = tmp_path / "page.html"
    model, text, *options = arguments
    options = [option.format(place=place) for option in options]
    assert main(["attention", str(place / model), text, *options, "-o", str(page)]) == 0
    long = len(af.Tokenizer.load(place / model).encode(text))
    assert capsys.readouterr().out.startswith(said.format(page=page, long=long))
    assert f"Attention of {model}" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["decoder", ""], "The text is empty"),
        (["decoder", TEXT, "--target", "a dog"], "single stack"),
        (["both", TEXT, "--target", " "], "The target is empty"),
        (["nowhere", TEXT], "nowhere"),
        (["decoder", TEXT, "-o", "{tmp}/missing/page.html"], "page.html"),
        (["decoder", TEXT, "-o", "{tmp}"], "{tmp}"),
        (["decoder", TEXT, "-o", "{tmp}/notes.txt"], "no page of anyformer's"),
        (["decoder"], "TEXT must be given"),
    ],
)
def test_errors_are_sentences(
    arguments: list[str],
    error: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    model, *rest = (part.format(tmp=tmp_path) for part in arguments)
    assert main(["attention", str(place / model), *rest]) == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert said.startswith("anyformer: ")
    assert error.format(tmp=tmp_path) in said.lower() or error.format(tmp=tmp_path) in said
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
