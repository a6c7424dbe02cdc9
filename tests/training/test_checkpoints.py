"""A run that is killed and resumed ends like one that was left alone, bit for bit."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.cli import train
from anyformer.console import Console
from anyformer.errors import UserError
from anyformer.training.averaging import make_average
from anyformer.training.checkpoints import Checkpoints, read_facts
from anyformer.training.config import TrainConfig
from anyformer.training.optimizer import make_optimizer
from anyformer.training.precision import Precision
from anyformer.training.strategies.base import Plan, Strategy
from anyformer.training.strategies.group import Group
from anyformer.training.strategies.state_files import read_state
from tests.training import strategies_worker
from tests.training.conftest import TINY, Trains, metrics
from tests.training.kills import Starts, assert_survives, driver, places_with_cache

FLAGS = [
    "gpt2-nano",
    *("--tokenizer", "bpe:300", *TINY, "--model.dropout", "0.1", "--context", "16", "--batch-size", "4"),
    *("--steps", "42", "--save-every", "7", "--evaluate-every", "20", "--log-every", "4", "--dtype", "float32"),
    *("--optimizer", "muon", "--average", "ema:0.9", "--schedule", "wsd", "--grad-accumulation", "2"),
    "--keep-optimizer",
]


@pytest.fixture(scope="module")
def starts() -> Generator[Starts]:
    with driver("train") as start:
        yield start


def _is_whole(directory: Path) -> None:
    if (directory / "config.json").exists():
        model, tokenizer = af.load(directory)
        assert tokenizer is not None
        assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_killed_a_few_times(text: Path, tmp_path: Path, starts: Starts) -> None:
    assert_survives(
        [*FLAGS, "--data", str(text)], tmp_path, starts, kills=2, seed=0, check=_is_whole, where=places_with_cache
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_fifty_times(text: Path, tmp_path: Path, starts: Starts) -> None:
    assert_survives(
        [*FLAGS, "--data", str(text)], tmp_path, starts, kills=50, seed=1, check=_is_whole, where=places_with_cache
    )


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
    cut = tmp_path / "runs" / "cut"
    first = [*FLAGS, "--data", str(text), *places_with_cache(tmp_path, "cut")]
    first[first.index("--steps") + 1] = "21"
    _, status = starts(*first)
    assert status() == 0
    size = (cut / "checkpoints" / "step-00000021" / "state.safetensors").stat().st_size
    for _ in range(2):
        # A limit on the size of a file fails like a full disk, in the middle of a checkpoint.
        _, status = starts("--resume", str(cut), "--steps", "42", limit=size // 2)
        assert os.waitstatus_to_exitcode(status()) == 2
        assert sorted(path.name for path in (cut / "checkpoints").iterdir()) == ["step-00000020", "step-00000021"]
        af.load(cut / "model")


def _strategy() -> Strategy:
    precision = Precision(torch.device("cpu"), torch.float32, "for a test")
    model = af.build(strategies_worker.config("tied"))
    average = make_average("ema:0.9")
    return Strategy(model, Plan(precision, lambda model: make_optimizer("adamw", model, 1.0), average), Group())


@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize("part", [1 << 10, 1 << 26])
def test_training_goes_on_while_a_checkpoint_is_written(
    room: bool, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is on the disk when a step changes it, and whether there is room to copy the rest."""
    monkeypatch.setattr("anyformer.training.checkpoints.has_room", lambda size: room)
    monkeypatch.setattr("anyformer.training.checkpoints._PART", part)
    strategy, is_there, whole = _strategy(), tmp_path / "step-00000001", part > 1 << 20
    write = strategy.write

    def slow(folder: Path, state: Mapping[str, Tensor], part: str) -> Path | None:
        time.sleep(0.05 if whole else 0.01)
        return write(folder, state, part)

    monkeypatch.setattr(strategy, "write", slow)
    strategy.step(0, strategies_worker.batch("tied", 0), 1e-2)
    before = {name: value.clone() for name, value in strategy.state().items()}
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(strategy, 1, {})
    strategy.step(1, strategies_worker.batch("tied", 1), 1e-2)
    assert is_there.exists() <= (not room or whole)
    with strategy.averaged():
        strategy.evaluate(strategies_worker.batch("tied", 2))
    checkpoints.wait()
    after = read_state(is_there)
    assert len([*is_there.glob("*.safetensors")]) > (not whole)
    assert after.keys() == before.keys()
    assert all(after[name].equal(value) for name, value in before.items())
    assert [path.name for path in tmp_path.iterdir()] == [is_there.name]


def test_a_checkpoint_that_could_not_be_written_is_told_at_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = _strategy()
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(strategy, 1, {})
    checkpoints.wait()

    def refuse(folder: Path, state: Mapping[str, Tensor], part: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(strategy, "write", refuse)
    checkpoints.save(strategy, 2, {})
    with pytest.raises(UserError, match=r"step-00000002 can't be written: No space left on device\."):
        checkpoints.save(strategy, 3, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


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


def test_a_finished_run_keeps_no_optimizer_state(
    text: Path, trains: Trains, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [each for each in FLAGS if each != "--keep-optimizer"]
    run = trains(*flags, "--data", str(text), "--steps", "8", "--cache", str(tmp_path / "cache"))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["finished.json"]
    left = _outside(run)
    text.unlink()  # no data is read to say so
    capsys.readouterr()
    for changes in ([], ["--steps", "8"], ["--steps", "5"], ["--learning-rate", "0.5"]):
        assert train.run(["--resume", str(run), *changes]) == 0
        shown = capsys.readouterr().out
        assert "This run has finished after step 8" in shown
        assert f"next       anyformer finetune {run} --data FILE" in shown.replace("\n ", " ")
    for changes in (["--steps", "9"], ["--minutes", "1"]):
        said = _refused("--resume", str(run), *changes)
        assert f"takes no more steps. Train on from its model, by anyformer finetune {run} --data FILE" in said
    assert _outside(run) == left
    assert af.load(run)[1] is not None


def test_a_run_that_is_killed_as_it_finishes(text: Path, trains: Trains, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether before its checkpoints go, or in between, it has finished."""
    run = trains(*FLAGS, "--data", str(text), "--steps", "8")
    shutil.copytree(run / "checkpoints", run.parent / "kept")
    log = metrics(run)
    assert train.run(["--resume", str(run), "--no-keep-optimizer"]) == 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["finished.json"]
    shutil.copytree(run.parent / "kept" / "step-00000008", run / "checkpoints" / "step-00000008")
    assert train.run(["--resume", str(run)]) == 0
    assert "has finished after step 8" in capsys.readouterr().out
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["finished.json"]
    assert metrics(run) == log


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
        read_facts(
            tmp_path,
            TrainConfig(preset="gpt2-nano", model=af.preset("gpt2-nano")).complete(),
            {"fingerprint": ""},
            Console(),
        )


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
    planted += ["checkpoints/step-00000008/state.safetensors", "checkpoints/step-00000002"]
    planted += ["checkpoints/.step-00000003.x.tmp", "model/config.json"]
    for name in planted:
        foreign = tmp_path / "foreign"
        shutil.copytree(run, foreign)
        place = foreign / name
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        place.symlink_to(outside / name)
        assert "symbolic link" in _refused("--resume", str(foreign), "--steps", "12"), name
        assert _outside(outside) == before
        shutil.rmtree(foreign)


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
