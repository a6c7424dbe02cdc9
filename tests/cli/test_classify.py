"""`anyformer classify`: what it prints is what `af.classify` and `af.tag` return."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluation.models import decoder, encoder, vary

import anyformer as af
from anyformer.cli import classify as command
from anyformer.cli.main import main
from anyformer.evaluation import Classification

TEXTS = ["the cat sat on the mat", "a bad dog", "yes it was"]
ONE = {"kind": "classification", "pooler": "tanh", "labels": 2, "label_names": ("animal", "other")}


def _save(folder: Path, head: dict[str, Any]) -> tuple[Any, Any]:
    """A model in a folder."""
    model, tokenizer = encoder(head)
    if head["kind"] == "classification" and head["labels"] > 1:
        vary(model, tokenizer)
    af.save(model, folder, tokenizer=tokenizer)
    return model, tokenizer


def _says(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """Lines of standard output of a command that succeeds."""
    assert main(["classify", *argv]) == 0, capsys.readouterr().err
    return capsys.readouterr().out.splitlines()


def _fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one sentence of a command that ends with status 2."""
    assert main(["classify", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def _rows(found: Classification) -> list[str]:
    return [f"{score:7.1%}  {name}" for name, score in found.scores.items()]


def test_one_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = af.classify(*_save(tmp_path, ONE), TEXTS)
    assert _says(capsys, str(tmp_path), TEXTS[0]) == _rows(found[0])
    wanted = [line for text, each in zip(TEXTS, found, strict=True) for line in (text, *_rows(each))]
    assert _says(capsys, str(tmp_path), *TEXTS) == wanted
    assert _says(capsys, str(tmp_path), TEXTS[0], "--top", "1") == _rows(found[0])[:1]
    lines = _says(capsys, str(tmp_path), *TEXTS, "--json")
    assert [json.loads(line) for line in lines] == [
        {"text": text, "labels": list(each.labels), "scores": pytest.approx(each.scores), "cut": 0}
        for text, each in zip(TEXTS, found, strict=True)
    ]
    (line,) = _says(capsys, str(tmp_path), TEXTS[0], "--json", "--top", "1")
    assert list(json.loads(line)["scores"]) == list(found[0].labels)


def test_many_labels_are_not_all_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = tuple(f"label {number}" for number in range(9))
    (found,) = af.classify(*_save(tmp_path, {**ONE, "labels": 9, "label_names": names}), TEXTS[0])
    assert _says(capsys, str(tmp_path), TEXTS[0]) == _rows(found)[:5]
    assert _says(capsys, str(tmp_path), TEXTS[0], "--top", "20") == _rows(found)


def test_several_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("a", "b", "c", "d")
    head = {**ONE, "labels": 4, "label_names": names, "problem_type": "multi_label_classification"}
    model, tokenizer = _save(tmp_path, head)
    # Which tokens a text has differs between processes, as WordPiece is trained: two labels of four it is in any case.
    model.head.labels.bias.data += torch.tensor([1.0, -1.0, 1.0, -1.0])
    af.save(model, tmp_path, tokenizer=tokenizer)
    (found,) = af.classify(model, tokenizer, TEXTS[0])
    assert set(found.labels) == {"a", "c"}
    assert _says(capsys, str(tmp_path), TEXTS[0]) == _rows(found)[: len(found.labels)]
    assert _says(capsys, str(tmp_path), TEXTS[0], "--top", "4") == _rows(found)
    model.head.labels.bias.data -= 100
    af.save(model, tmp_path, tokenizer=tokenizer)
    (line,) = _says(capsys, str(tmp_path), TEXTS[0])
    assert line == f"no label is over 50%; the likeliest is {next(iter(found.scores))}, 0.0%"


def test_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = af.classify(*_save(tmp_path, {"kind": "classification", "pooler": "tanh", "labels": 1}), TEXTS[0])
    assert _says(capsys, str(tmp_path), TEXTS[0]) == [f"{found.value:.4g}"]
    (line,) = _says(capsys, str(tmp_path), TEXTS[0], "--json")
    assert json.loads(line) == {"text": TEXTS[0], "value": pytest.approx(found.value), "cut": 0}
    assert "--top is for labels" in _fails(capsys, str(tmp_path), TEXTS[0], "--top", "2")


def test_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = _save(tmp_path, ONE)
    second = ["yes", "no", "a dog"]
    each = af.classify(model, tokenizer, TEXTS, second)
    wanted = [
        line
        for text, other, found in zip(TEXTS, second, each, strict=True)
        for line in (f"{text} | {other}", *_rows(found))
    ]
    assert _says(capsys, str(tmp_path), *TEXTS, "--second", *second) == wanted
    (line,) = _says(capsys, str(tmp_path), TEXTS[0], "--second", "no", "--json")
    assert json.loads(line)["second"] == "no"
    assert "3 texts and 2 second texts" in _fails(capsys, str(tmp_path), *TEXTS, "--second", "yes", "no")


def test_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path / "model", ONE)
    wanted = _says(capsys, str(tmp_path / "model"), *TEXTS, "--second", "no", "--json")
    monkeypatch.setattr(command, "_AT_A_TIME", 2)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    (tmp_path / "texts.csv").write_text("id,review\n" + "".join(f"1,{text}\n" for text in TEXTS))
    for flags in (["texts.txt"], ["texts.csv", "--field", "review"]):
        given = ["--file", str(tmp_path / flags[0]), *flags[1:], "--second", "no", "--json"]
        for line, other in zip(_says(capsys, str(tmp_path / "model"), *given), wanted, strict=True):
            own, first = json.loads(line), json.loads(other)
            assert own.pop("scores") == pytest.approx(first.pop("scores"), abs=1e-6)
            assert own == first
    (tmp_path / "texts.txt").write_text("a\n\nb\n")
    file = ["--file", str(tmp_path / "texts.txt")]
    assert "line 2, has an empty text" in _fails(capsys, str(tmp_path / "model"), *file)
    assert "no file of texts" in _fails(capsys, str(tmp_path / "model"), "--file", str(tmp_path / "none.txt"))
    assert "not both" in _fails(capsys, str(tmp_path / "model"), "a", *file)
    assert "is one text" in _fails(capsys, str(tmp_path / "model"), *file, "--second", "a", "b")
    assert "at least 1, not 0" in _fails(capsys, str(tmp_path / "model"), *file, "--max-record-bytes", "0")


def test_entities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("O", "B-animal", "I-animal", "B-place")
    model, tokenizer = _save(tmp_path, {"kind": "token_classification", "labels": 4, "label_names": names})
    model.head.labels.bias.data[0] -= 100
    af.save(model, tmp_path, tokenizer=tokenizer)
    text = 'the  "cat"\nsat.'
    (found,) = af.tag(model, tokenizer, text)
    assert found.entities
    assert [line.split() for line in _says(capsys, str(tmp_path), text)] == [
        [f"{entity.probability:.1%}", entity.label, *entity.text.split()] for entity in found.entities
    ]
    (line,) = _says(capsys, str(tmp_path), text, "--json")
    told = json.loads(line)
    assert list(told) == ["text", "words", "entities"]
    assert [text[entity["start"] : entity["end"]] for entity in told["entities"]] == [e.text for e in found.entities]
    assert [(word["text"], word["tag"]) for word in told["words"]] == [(word.text, word.tag) for word in found.words]
    model.head.labels.bias.data[0] += 200
    af.save(model, tmp_path, tokenizer=tokenizer)
    assert _says(capsys, str(tmp_path), "the cat", "a dog") == ["the cat", "no entity", "a dog", "no entity"]
    assert "--second is for models that label whole" in _fails(capsys, str(tmp_path), "a", "--second", "b")
    assert "--top is for models that label whole" in _fails(capsys, str(tmp_path), "a", "--top", "2")


def test_words_whose_tags_are_no_entities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = {"kind": "token_classification", "labels": 2, "label_names": ("NOUN", "VERB")}
    (found,) = af.tag(*_save(tmp_path, head), "the cat sat.")
    wanted = [f"{word.probability:7.1%}  {word.tag}  {word.text}" for word in found.words]
    assert _says(capsys, str(tmp_path), "the cat sat.") == wanted
    assert len(wanted) == 4


@pytest.mark.parametrize("kind", ["classification", "token_classification"])
def test_what_is_cut_off_is_said(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _save(tmp_path, {"kind": kind, "labels": 2, "pooler": "tanh" if kind == "classification" else None})
    assert main(["classify", str(tmp_path), "the cat", "the cat sat " * 30]) == 0
    assert "the end was left out: text 2 of 2.\n" in capsys.readouterr().err
    assert main(["classify", str(tmp_path), "the cat"]) == 0
    assert capsys.readouterr().err == ""


def test_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _save(tmp_path / "model", ONE)
    model, tokenizer = decoder()
    af.save(model, tmp_path / "decoder", tokenizer=tokenizer)
    path = str(tmp_path / "model")
    sentence = _fails(capsys, str(tmp_path / "decoder"), "a")
    assert "no head that classifies texts (its head is 'language_model')" in sentence
    assert "anyformer finetune MODEL --data FILE" in sentence
    assert "Text 2 of 2 is empty" in _fails(capsys, path, "a", "")
    assert "nothing to classify" in _fails(capsys, path)
    assert "--top is a number of labels, at least 1, not 0" in _fails(capsys, path, "a", "--top", "0")
    assert "MODEL must be given" in _fails(capsys)
