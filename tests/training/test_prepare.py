"""From text to batches: for every objective, from every kind of data, once."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from anyformer.data import parallel_encoding
from anyformer.data.batch import IGNORED
from anyformer.errors import UserError
from anyformer.families import preset
from anyformer.tokenizer import Tokenizer
from anyformer.training.config import TrainConfig
from anyformer.training.prepare import TrainingData, prepare
from tests.tokenizer.hugging_face import automatic
from tests.training.conftest import prose

SPECS = {"gpt2-nano": "bpe:300", "bert-tiny": "wordpiece:100", "t5-small": "unigram:80", "transformer-tiny": "bpe:300"}


@pytest.fixture
def prepares(tmp_path: Path):
    """Prepares a run of a preset, with a cache of the test's own."""

    def run(name: str, **settings: Any) -> TrainingData:
        settings = {
            "context": 16,
            "batch_size": 4,
            "cache": tmp_path / "cache",
            "tokenizer": SPECS.get(name),
            **settings,
        }
        config = TrainConfig(preset=name, model=preset(name), **settings).complete()
        return prepare(config, Console(quiet=True))

    return run


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, str]:
    """Parallel files of sixty lines, one of them empty on one side."""
    lines = prose(600).splitlines()[:60]
    (tmp_path / "a.en").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "a.de").write_text("".join(f"{line.upper() if i != 7 else ''}\n" for i, line in enumerate(lines)))
    return {"source": str(tmp_path / "a.en"), "target": str(tmp_path / "a.de")}


@pytest.mark.parametrize(
    ("name", "segments"), [("bert-tiny", True), ("roberta-base", False), ("distilbert-base", False)]
)
def test_a_tokenizer_of_a_model_with_segments_says_so(
    name: str, segments: bool, prepares: Any, text: Path, tmp_path: Path
) -> None:
    found = prepares(name, data=(str(text),), tokenizer="wordpiece:100")
    found.tokenizer.save(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert ("token_type_ids" in written["model_input_names"]) is segments
    assert {"input_ids", "attention_mask"} <= set(written["model_input_names"])
    theirs = automatic(tmp_path / "saved")
    assert ("token_type_ids" in theirs("the cat")) is segments


@pytest.mark.parametrize("name", ["gpt2-nano", "bert-tiny", "t5-small"])
def test_text_for_each_objective(name: str, prepares: Any, text: Path):
    found = prepares(name, data=(str(text),))
    batch = found.batches.batch(3)
    again = prepares(name, data=(str(text),)).batches.batch(3)
    assert np.array_equal(batch.tokens, again.tokens)
    assert np.array_equal(batch.targets, again.targets)
    assert (batch.source is not None) is (name == "t5-small")
    assert batch.predicted > 0
    assert batch.tokens.max() < found.config.model.vocab_size == found.tokenizer.vocab_size
    assert len(list(found.batches.validation())) == found.batches.validation_batches > 0
    assert len(list(found.batches.validation(3))) == -(-found.batches.validation_batches // 3)
    causal = name == "gpt2-nano"
    assert (found.batches.validation_size is not None) is causal
    if causal:
        predicted = sum(batch.predicted for batch in found.batches.validation())
        assert found.batches.validation_size == (predicted + 1, round(0.1 * text.stat().st_size))
        epoch = sum(found.batches.batch(step).predicted for step in range(found.batches.steps_per_epoch))
        assert epoch >= 0.9 * text.stat().st_size * predicted / found.batches.validation_size[1] - 4 * 16
    assert found.tokenizer.model_max_length == 16
    lines = found.summary
    assert lines[0] == f"data       {len(text.read_text()):,} characters in 1 file"
    assert lines[1].endswith(f"to validate on ({SPECS[name]})")


def _held_out(found: TrainingData) -> int:
    """The number of pairs to validate on."""
    return sum(len(batch.tokens) for batch in found.batches.validation())


def test_pairs_of_parallel_files(prepares: Any, pairs: dict[str, str]):
    found = prepares("transformer-tiny", **pairs, batch_tokens=256, context=64)
    model, tokenizer = found.config.model, found.tokenizer
    assert _held_out(found) == 5
    assert found.summary[1] == "           1 pair is left out: one side is empty"
    assert "pairs      54 to train on, 5 to validate on" in found.summary[2]
    written: list[str] = []
    for step in range(found.batches.steps_per_epoch):
        batch = found.batches.batch(step)
        assert batch.source is not None
        assert (batch.tokens[:, 0] == model.special_tokens.decoder_start).all()
        written += [tokenizer.decode(row[row != IGNORED].tolist()) for row in batch.targets]
    expected = Path(pairs["target"]).read_text().splitlines()
    assert len(written) == 54
    assert set(written) <= set(expected)
    assert found.batches.validation_size is None


def test_pairs_of_records(prepares: Any, pairs: dict[str, str], tmp_path: Path):
    lines = zip(*(Path(path).read_text().splitlines() for path in pairs.values()), strict=True)
    rows = "".join(json.dumps({"en": a, "de": b}) + "\n" for a, b in lines)
    (tmp_path / "pairs.jsonl").write_text(rows)
    fields = {"source": "en", "target": "de"}
    found = prepares("transformer-tiny", data=(str(tmp_path / "pairs.jsonl"),), **fields)
    apart = prepares("transformer-tiny", data=(str(tmp_path / "pairs.jsonl"),), validation=(str(tmp_path),), **fields)
    assert 4 <= _held_out(found) <= 6
    assert _held_out(apart) == 59
    both = prepares("transformer-tiny", **pairs, validation=tuple(pairs.values()))
    assert _held_out(both) == 59
    assert both.fingerprint == apart.fingerprint != found.fingerprint
    with pytest.raises(UserError, match="--validation of parallel files is two files"):
        prepares("transformer-tiny", **pairs, validation=(pairs["source"],))


@pytest.mark.parametrize("name", ["gpt2-nano", "transformer-tiny"])
def test_a_second_run_reads_no_data(
    name: str, prepares: Any, text: Path, pairs: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    settings = pairs if name == "transformer-tiny" else {"data": (str(text),)}
    first = prepares(name, **settings)

    def refuses(*_: object) -> None:
        raise AssertionError("the data is read again")

    for module in ("corpus", "rows", "formats.text"):
        monkeypatch.setattr(f"anyformer.data.{module}.opened", refuses)
    second = prepares(name, **settings, context=8, seed=3)
    assert second.fingerprint == first.fingerprint
    assert second.summary[0] == first.summary[0]
    assert second.tokenizer.model_max_length == 8
    monkeypatch.undo()
    for path in [text, *map(Path, pairs.values())]:
        path.write_text(path.read_text().replace("t", "k"))
    third = prepares(name, **settings)
    assert third.fingerprint != first.fingerprint


def test_the_fingerprint_is_the_contents(prepares: Any, text: Path, tmp_path: Path):
    first = prepares("gpt2-nano", data=(str(text),)).fingerprint
    moved = tmp_path / "elsewhere.txt"
    moved.write_bytes(text.read_bytes())
    assert prepares("gpt2-nano", data=(str(moved),)).fingerprint == first
    assert prepares("gpt2-nano", data=(str(text),), tokenizer="bpe:301").fingerprint != first
    assert prepares("gpt2-nano", data=(str(text),), validation=(str(text),)).fingerprint != first


def test_workers_change_nothing(prepares: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parallel_encoding, "CHUNK", 500)
    monkeypatch.setattr("anyformer.data.corpus.PIECE", 300)
    found = [
        prepares("gpt2-nano", data=(str(text),), workers=workers, cache=tmp_path / str(workers)) for workers in (1, 2)
    ]
    assert found[0].fingerprint == found[1].fingerprint


def test_standard_input_can_be_repeated(prepares: Any, text: Path, monkeypatch: pytest.MonkeyPatch):
    class Piped:
        buffer = io.BytesIO(text.read_bytes())

    monkeypatch.setattr(sys, "stdin", Piped)
    found = prepares("gpt2-nano", data=("-",))
    (kept,) = found.config.data
    assert Path(kept).read_bytes() == text.read_bytes()
    assert prepares("gpt2-nano", data=(kept,)).fingerprint == found.fingerprint


def test_a_tokenizer_by_its_path(prepares: Any, text: Path, pairs: dict[str, str], tmp_path: Path):
    for special, name in (("causal", "gpt2-nano"), ("masked", "bert-tiny"), ("span_corruption", "t5-small")):
        Tokenizer.train([prose()], SPECS[name], special=special).save(tmp_path / special)
        found = prepares(name, data=(str(text),), tokenizer=str(tmp_path / special))
        assert found.config.tokenizer == str(tmp_path / special)
        assert found.batches.batch(0).predicted > 0
    with pytest.raises(UserError, match="Sequence to sequence needs a tokenizer with an end and a padding token"):
        prepares("transformer-tiny", **pairs, tokenizer=str(tmp_path / "causal"))
    assert (
        prepares("transformer-tiny", **pairs, tokenizer=str(tmp_path / "span_corruption")).batches.batch(0).predicted
        > 0
    )
    with pytest.raises(UserError, match="Span corruption needs a tokenizer with sentinels"):
        prepares("t5-small", data=(str(text),), tokenizer=str(tmp_path / "causal"))


def test_the_tokenizer_is_the_papers_unless_it_is_named(prepares: Any, text: Path):
    for name, kind in (("gpt2-nano", "bpe:512"), ("bert-tiny", "wordpiece:512")):
        assert prepares(name, data=(str(text),), tokenizer=None).config.tokenizer == kind


def test_a_cache_that_can_not_be_written(prepares: Any, text: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"The cache folder .* can't be written: "):
        prepares("gpt2-nano", data=(str(text),), cache=tmp_path / "file")


_PREPARES = """
import sys
from pathlib import Path
from rich.console import Console
from anyformer.data import corpus, parallel_encoding
from anyformer.families import preset
from anyformer.training.config import TrainConfig
from anyformer.training import prepare as module

parallel_encoding.CHUNK, corpus.PIECE = 20_000, 10_000
print("begun", flush=True)
advance = module.Progress.advance
module.Progress.advance = lambda self, task, n: (print(n, flush=True), advance(self, task, n))
config = TrainConfig(
    preset="gpt2-nano", model=preset("gpt2-nano"), context=16, data=(sys.argv[1],), cache=Path(sys.argv[2]),
    tokenizer="bpe:300", workers=2,
)
print(module.prepare(config.complete(), Console(quiet=True)).fingerprint, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_killed_while_tokenizing(text: Path, tmp_path: Path):
    text.write_text(prose(60_000))

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _PREPARES, str(text), str(tmp_path / "cache")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    for lines in (2, 5):
        process = start()
        assert process.stdout is not None
        for _ in range(lines):
            # Nothing more comes where the first one was done before it was killed.
            if not process.stdout.readline():
                break
        time.sleep(0.05 * lines)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    # and two at once into what is left
    results = [process.communicate(timeout=120)[0].split()[-1] for process in (start(), start())]
    assert results[0] == results[1]
    fresh = subprocess.run(
        [sys.executable, "-c", _PREPARES, str(text), str(tmp_path / "other")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert fresh.stdout.split()[-1] == results[0]
