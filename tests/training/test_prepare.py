"""From text to batches: for every objective, from every kind of data, once."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from anyformer.data import token_files
from anyformer.data.batch import IGNORED
from anyformer.errors import UserError
from anyformer.families import preset
from anyformer.tokenizer import Tokenizer
from anyformer.training.config import TrainConfig
from anyformer.training.prepare import TrainingData, prepare
from tests.dask_programs import needs_dask, scheduler, worker
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

    for module in ("documents", "rows", "formats"):
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
    monkeypatch.setattr(token_files, "CHUNK", 500)
    monkeypatch.setattr("anyformer.data.documents.PIECE", 300)
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
from anyformer.data import documents, token_files
from anyformer.families import preset
from anyformer.training.config import TrainConfig
from anyformer.training import prepare as module

token_files.CHUNK, documents.PIECE, documents.SHARD = 20_000, 10_000, int(sys.argv[3])
print("begun", flush=True)
advance = module.Progress.advance
module.Progress.advance = lambda self, task, n: (print(n, flush=True), advance(self, task, n))
config = TrainConfig(
    preset="gpt2-nano", model=preset("gpt2-nano"), context=16, data=(sys.argv[1],), cache=Path(sys.argv[2]),
    tokenizer="bpe:300", workers=2, scheduler=dict(enumerate(sys.argv)).get(4),
)
print(module.prepare(config.complete(), Console(quiet=True)).fingerprint, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_killed_while_tokenizing(text: Path, tmp_path: Path):
    text.write_text(prose(60_000))

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _PREPARES, str(text), str(tmp_path / "cache"), str(1 << 26)]
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
        [sys.executable, "-c", _PREPARES, str(text), str(tmp_path / "other"), str(1 << 26)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert fresh.stdout.split()[-1] == results[0]


@pytest.mark.parametrize("validation", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_shards_change_nothing(
    validation: bool, prepares: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = {
        "validation": (str(text),) if validation else (),
        "data": (str(text), str(text.with_name("more.jsonl"))),
    }
    text.with_name("more.jsonl").write_text(
        "".join(json.dumps({"text": line}) + "\n" for line in prose(800, seed=1).splitlines())
    )
    whole = prepares("gpt2-nano", **settings, cache=tmp_path / "whole")
    monkeypatch.setattr("anyformer.data.documents.SHARD", 20_000)
    found = prepares("gpt2-nano", **settings, cache=tmp_path / "shards", workers=2)
    assert found.fingerprint == whole.fingerprint
    assert found.summary == whole.summary
    assert not [*(tmp_path / "shards" / "shards").iterdir()]


def _tokens(cache: Path) -> list[bytes]:
    """The token files of the one entry of a cache, beside what a killed program had begun."""
    (entry,) = (path for path in (cache / "tokens").iterdir() if not path.name.startswith("."))
    return [path.read_bytes() for path in sorted(entry.iterdir())]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_shards_that_are_killed_at_any_moment(text: Path, tmp_path: Path):
    text.write_text(prose(120_000))
    chance = random.Random(0)

    def start(cache: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _PREPARES, str(text), str(tmp_path / cache), str(1 << 16)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    begun = time.monotonic()
    fingerprint = start("whole").communicate()[0].split()[-1]
    length, kills, reused = time.monotonic() - begun, 0, 0
    while kills < 12:
        process = start("cut")
        try:
            process.communicate(timeout=chance.uniform(0, length))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            reused += bool([*(tmp_path / "cut" / "shards").glob("*/0*")])
        else:
            assert _tokens(tmp_path / "cut") == _tokens(tmp_path / "whole")
            shutil.rmtree(tmp_path / "cut")
    assert reused
    assert start("cut").communicate()[0].split()[-1] == fingerprint
    assert _tokens(tmp_path / "cut") == _tokens(tmp_path / "whole")


@needs_dask
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_worker_of_a_scheduler_may_be_killed(text: Path, tmp_path: Path):
    text.write_text(prose(240_000))
    command = [sys.executable, "-c", _PREPARES, str(text)]
    whole = subprocess.check_output([*command, str(tmp_path / "whole"), str(1 << 16)], text=True).split()[-1]
    dask = tmp_path / "dask"
    dask.mkdir()
    with scheduler(dask) as address, ExitStack() as stack:
        first, *_ = (stack.enter_context(worker(address, dask)) for _ in range(3))
        command += [str(tmp_path / "cut"), str(1 << 16), address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            while process.poll() is None and not [*(tmp_path / "cut" / "shards").glob("*/00000*")]:
                time.sleep(0.01)
            first.kill()
            assert process.communicate(timeout=600)[0].split()[-1] == whole
    assert _tokens(tmp_path / "cut") == _tokens(tmp_path / "whole")
    logs = "".join(path.read_text() for path in dask.glob("*.log"))
    assert logs.count("Registered to") >= 3, logs
