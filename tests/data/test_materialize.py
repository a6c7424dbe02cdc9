from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anyformer.data.disk_cache import Cache
from anyformer.data.documents import documents
from anyformer.data.materialize import materialize
from anyformer.data.pairs import PairCorpus
from anyformer.errors import UserError


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def test_standard_input_is_a_file_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = Cache(tmp_path / "cache")

    def piped(stdin: io.BytesIO, *others: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
        return materialize(["-", *others], ("text",), cache)

    (path, other) = piped(io.BytesIO("one\ntwo €".encode()), "a.txt")
    assert other == "a.txt"
    assert [d.text for d in documents(path)] == ["one\ntwo €"]
    assert piped(io.BytesIO("one\ntwo €".encode())) == [path]
    assert piped(io.BytesIO(b"other")) != [path]
    with pytest.raises(UserError, match="standard input is empty"):
        piped(io.BytesIO())
    with pytest.raises(UserError, match="that is a terminal"):
        piped(Terminal(b"x"))
    assert len(list((tmp_path / "cache" / "sources").iterdir())) == 2


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set in a folder, as the hub has them."""
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("zstandard")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "set"
    folder.mkdir()
    for split, number in (("train", 5), ("test", 2)):
        rows = (
            {"text": f"{split} {i}" if i else None, "translation": {"en": f"{i}", "de": "x"}} for i in range(number)
        )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_a_data_set_is_read_once(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    cache = Cache(tmp_path / "cache")
    said: list[str] = []
    (path,) = materialize([f"hf:{hub}"], ("text",), cache, progress=said.append)
    assert said == [f"reading hf:{hub}"]
    assert [d.text for d in documents(path)] == [f"train {i}" for i in range(1, 5)]
    (test,) = materialize([f"hf:{hub}:test"], ("text",), cache)
    assert [d.text for d in documents(test)] == ["test 1"]
    assert materialize([f"hf:{hub}:default:test"], ("text",), cache) != [test]
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert materialize([f"hf:{hub}"], ("text",), cache) == [path]


@pytest.mark.filterwarnings("ignore")
def test_pairs_of_a_data_set(tmp_path: Path, hub: Path):
    fields = ("translation.en", "translation.de")
    (path,) = materialize([f"hf:{hub}"], fields, Cache(tmp_path / "cache"))
    assert [(p.source, p.target) for p in PairCorpus([Path(path)], fields)] == [(str(i), "x") for i in range(5)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("end", "field", "message"),
    [
        ("", "txt", "has no field 'txt': did you mean 'text'"),
        (":nothing", "text", r"The data set hf:.*:nothing can't be read: .*nothing"),
        (":a:b:c", "text", "is not a data set's name: write hf:NAME"),
    ],
)
def test_a_data_set_that_can_not_be_had(tmp_path: Path, hub: Path, end: str, field: str, message: str):
    with pytest.raises(UserError, match=message) as error:
        materialize([f"hf:{hub}{end}"], (field,), Cache(tmp_path / "cache"))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.zst"))


def test_names_configs_and_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("zstandard")
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> list[dict[str, str]]:
        asked.append((name, config, split, streaming))
        return [{"text": "x"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["de-en"])
    specs = ["hf:a/b", "hf:a/b:de-en", "hf:a/b:test", "hf:a/b:de-en:test", "hf:a/b::test"]
    materialize(specs, ("text",), Cache(tmp_path))
    assert asked == [
        ("a/b", None, "train", True),
        ("a/b", "de-en", "train", True),
        ("a/b", None, "test", True),
        ("a/b", "de-en", "test", True),
        ("a/b", None, "test", True),
    ]


def test_a_failure_of_the_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("zstandard")

    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the hub.\nmore of it")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"^The data set hf:a/b can't be read: Couldn't reach the hub\.$"):
        materialize(["hf:a/b"], ("text",), Cache(tmp_path))
