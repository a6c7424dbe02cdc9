"""A run that is killed and resumed ends like one that was left alone, bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

import anyformer as af
from anyformer.cli import train
from anyformer.console import Console
from anyformer.errors import UserError
from anyformer.training.checkpoints import read_facts
from anyformer.training.config import TrainConfig
from tests.training.conftest import TINY, Trains, metrics

TIMES = ("elapsed", "tokens_per_second", "flops_per_second", "started", "peak_flops_per_second", "engine")
FLAGS = [
    "gpt2-nano",
    *("--tokenizer", "bpe:300", *TINY, "--model.dropout", "0.1", "--context", "16", "--batch-size", "4"),
    *("--steps", "60", "--save-every", "7", "--evaluate-every", "20", "--log-every", "4", "--dtype", "float32"),
    *("--optimizer", "muon", "--average", "ema:0.9", "--schedule", "wsd", "--grad-accumulation", "2"),
]

_DRIVER = """
import json, os, sys
from anyformer.cli import train
from anyformer.console import Console
from anyformer.runs import report
from anyformer.training import run
from anyformer.errors import UserError
for line in sys.stdin:
    argv, limit = json.loads(line)
    child = os.fork()
    if child == 0:
        import resource, torch
        torch.set_num_threads(1)
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            status = train.run(argv)
        except UserError as error:
            print(error, file=sys.stderr, flush=True)
            status = 2
        os._exit(status)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""

Starts = Callable[..., tuple[int, Callable[[], int]]]


@pytest.fixture(scope="module")
def starts() -> Generator[Starts]:
    """Starts `anyformer train` in a process that has imported torch already: its pid, and what waits for its status."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", _DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        write, read = driver.stdin, driver.stdout

        def start(*argv: str, limit: int = 0) -> tuple[int, Callable[[], int]]:
            write.write(json.dumps([argv, limit]) + "\n")
            write.flush()
            return int(read.readline()), lambda: int(read.readline())

        yield start
        write.close()


def _log(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in metrics(run)]


def _same(run: Path, other: Path) -> None:
    """Log, model and the whole state of training are equal."""
    assert _log(run) == _log(other)
    for name in ("model/model.safetensors", "checkpoints/step-00000060/state.safetensors"):
        ours, theirs = load_file(run / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert ours[key].tobytes() == theirs[key].tobytes(), key


def _places(tmp_path: Path, name: str) -> list[str]:
    return ["--runs", str(tmp_path / "runs"), "--name", name, "--cache", str(tmp_path / f"cache-{name}")]


def _survives(text: Path, tmp_path: Path, starts: Starts, kills: int, seed: int) -> None:
    data = ["--data", str(text)]
    begun = time.monotonic()
    _, status = starts(*FLAGS, *data, *_places(tmp_path, "whole"))
    assert status() == 0
    length = time.monotonic() - begun
    whole, cut = tmp_path / "runs" / "whole", tmp_path / "runs" / "cut"
    chance = random.Random(seed)

    def go() -> tuple[int, Callable[[], int]]:
        if (cut / "config.yaml").exists():
            return starts("--resume", str(cut))
        # It was killed before it had said what to do.
        shutil.rmtree(cut, ignore_errors=True)
        return starts(*FLAGS, *data, *_places(tmp_path, "cut"))

    for _ in range(kills):
        pid, status = go()
        _wait_for_a_moment(chance, cut, tmp_path / "cache-cut", length / 2)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        ended = status() == 0
        if (cut / "model" / "config.json").exists():
            model, tokenizer = af.load(cut / "model")
            assert tokenizer is not None
            assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
        if ended:
            # It was done before it could be killed: begin another.
            _same(cut, whole)
            for place in (cut, tmp_path / "cache-cut"):
                shutil.rmtree(place, ignore_errors=True)
    _, status = go()
    assert status() == 0
    _same(cut, whole)


def _wait_for_a_moment(chance: random.Random, run: Path, cache: Path, length: float) -> None:
    """Any time, or in the middle of tokenizing or of a checkpoint."""
    until = time.monotonic() + chance.uniform(0, length)
    watched = chance.choice([None, (run / "checkpoints", ".step-*.tmp"), (run, ".model.*"), (cache, "**/.*")])
    while time.monotonic() < until:
        if watched is not None and any(watched[0].glob(watched[1])):
            return
        time.sleep(0.001)


def test_killed_a_few_times(text: Path, tmp_path: Path, starts: Starts) -> None:
    _survives(text, tmp_path, starts, kills=4, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_fifty_times(text: Path, tmp_path: Path, starts: Starts) -> None:
    _survives(text, tmp_path, starts, kills=50, seed=1)


def test_killed_before_its_last_words(text: Path, trains: Trains) -> None:
    run = trains(*FLAGS, "--data", str(text), "--steps", "8")
    whole = metrics(run)
    assert "sample" in whole[-2]
    log = run / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-2]))
    for _ in range(2):
        assert train.run(["--resume", str(run)]) == 0
        assert metrics(run) == whole


def test_a_full_disk_keeps_the_last_good_checkpoint(text: Path, tmp_path: Path, starts: Starts) -> None:
    data = ["--data", str(text)]
    _, status = starts(*FLAGS, *data, *_places(tmp_path, "whole"))
    assert status() == 0
    whole, cut = tmp_path / "runs" / "whole", tmp_path / "runs" / "cut"
    size = (whole / "checkpoints" / "step-00000060" / "state.safetensors").stat().st_size
    first = [*FLAGS, *data, *_places(tmp_path, "cut")]
    first[first.index("--steps") + 1] = "21"
    _, status = starts(*first)
    assert status() == 0
    for _ in range(2):
        # A limit on the size of a file fails like a full disk, in the middle of a checkpoint.
        _, status = starts("--resume", str(cut), "--steps", "60", limit=size // 2)
        assert os.waitstatus_to_exitcode(status()) == 2
        assert sorted(path.name for path in (cut / "checkpoints").iterdir()) == ["step-00000020", "step-00000021"]
        af.load(cut / "model")


def _refused(*argv: str) -> str:
    with pytest.raises(UserError) as refusal:
        train.run(list(argv))
    return str(refusal.value)


def test_what_has_changed_is_said(text: Path, trains: Trains, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    short = [*FLAGS, "--data", str(text), "--steps", "8", "--cache", str(tmp_path / "cache")]
    run = trains(*short)
    said = _refused("--resume", str(run), "--learning-rate", "0.5", "--model.dropout", "0.2", "--seed", "7")
    for change in ("learning-rate 0.01 -> 0.5", "model.dropout 0.1 -> 0.2", "seed 0 -> 7"):
        assert change in said
    capsys.readouterr()
    assert train.run(["--resume", str(run), "--steps", "12", "--log-every", "2"]) == 0
    shown = capsys.readouterr().out
    assert "changed    steps 8 -> 12" in shown
    assert "changed    log-every 4 -> 2" in shown
    assert "resumed    after step 8" in shown
    assert metrics(run)[-1]["step"] == 12
    assert train.run(["--resume", str(run)]) == 0
    assert "had ended after step 12" in capsys.readouterr().out

    text.write_text(text.read_text() + "More of it.\n" * 50)
    assert "the data or the tokenizer has changed" in _refused("--resume", str(run), "--steps", "20")


def test_a_run_that_had_ended_keeps_its_config(text: Path, trains: Trains, tmp_path: Path) -> None:
    run = trains(*FLAGS, "--data", str(text), "--steps", "8", "--cache", str(tmp_path / "cache"))
    before = (run / "config.yaml").read_text()
    assert train.run(["--resume", str(run), "--steps", "5"]) == 0
    assert (run / "config.yaml").read_text() == before


def test_a_run_can_only_be_trained_once_at_a_time(text: Path, trains: Trains, tmp_path: Path) -> None:
    short = [*FLAGS, "--data", str(text), "--steps", "8", "--cache", str(tmp_path / "cache")]
    run = trains(*short)
    lock = f"lock = filelock.FileLock({str(run / '.lock')!r}); lock.acquire(); print(1, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"import filelock, time; {lock}; time.sleep(60)"], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert "is being trained by another process" in _refused("--resume", str(run))
        other.kill()
    assert "exists already" in _refused(*short, "--runs", str(run.parent), "--name", run.name)


def test_there_must_be_a_run(tmp_path: Path) -> None:
    assert "There is no run in" in _refused("--resume", str(tmp_path))
    assert "--resume expected one argument" in _refused("--resume")


@pytest.mark.parametrize("file", ["state.safetensors", "run.json"])
def test_a_damaged_checkpoint_is_named(file: str, text: Path, trains: Trains, tmp_path: Path) -> None:
    run = trains(*FLAGS, "--data", str(text), "--steps", "8", "--cache", str(tmp_path / "cache"))
    place = run / "checkpoints" / "step-00000008" / file
    place.write_bytes(place.read_bytes()[:50])
    assert f"{place.parent} can't be read" in _refused("--resume", str(run), "--steps", "12")


@pytest.mark.parametrize(
    ("field", "value"),
    [("step", "8"), ("step", -1), ("step", True), ("every", 0), ("meter", [1]), ("meter", {"a": "x"}), ("config", 3)],
)
def test_facts_of_another_type_are_named(field: str, value: object, tmp_path: Path) -> None:
    facts = {"step": 8, "every": 1, "meter": {"tokens": 1}, "config": {}, field: value}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=f"can't be read: {field} in run.json should be"):
        read_facts(tmp_path, TrainConfig(preset="gpt2-nano", model=af.preset("gpt2-nano")).complete(), "", Console())


def _outside(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(os.name != "posix", reason="links as POSIX has them")
def test_a_foreign_run_leads_nowhere_else(text: Path, trains: Trains, tmp_path: Path) -> None:
    run = trains(*FLAGS, "--data", str(text), "--steps", "8", "--save-every", "4", "--cache", str(tmp_path / "cache"))
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("config.yaml", "metrics.jsonl", "report.html"):
        (outside / name).write_bytes((run / name).read_bytes())
    for name in ("model", "checkpoints"):
        shutil.copytree(run / name, outside / name)
    shutil.copytree(run / "checkpoints" / "step-00000004", outside / "step-00000002")
    before = _outside(outside)
    planted = [*(each.name for each in outside.iterdir()), ".lock", ".config.yaml.tmp", ".metrics.jsonl.tmp"]
    planted += ["checkpoints/step-00000008", "checkpoints/step-00000008/run.json"]
    planted += ["checkpoints/step-00000008/state.safetensors"]
    for name in planted:
        foreign = tmp_path / "foreign"
        shutil.copytree(run, foreign)
        place = foreign / name
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        place.symlink_to(outside / name)
        assert "symbolic link" in _refused("--resume", str(foreign), "--steps", "12"), name
        assert _outside(outside) == before
        shutil.rmtree(foreign)
    # An old checkpoint that is a link stands aside, and is not removed with the others.
    (run / "checkpoints" / "step-00000002").symlink_to(outside / "step-00000002")
    (run / "checkpoints" / ".step-00000003.x.tmp").symlink_to(outside / "step-00000002")
    assert train.run(["--resume", str(run), "--steps", "12"]) == 0
    assert _outside(outside) == before
    assert (run / "checkpoints" / "step-00000012").is_dir()


@pytest.mark.skipif(os.name != "posix", reason="there is no umask")
def test_permissions_follow_the_umask(text: Path, trains: Trains, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        run = trains(*FLAGS, "--data", str(text), "--steps", "4", "--cache", str(tmp_path / "cache"))
    finally:
        os.umask(before)
    made = [each for place in (run, tmp_path / "cache") for each in (place, *place.rglob("*"))]
    assert len(made) > 15
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path
