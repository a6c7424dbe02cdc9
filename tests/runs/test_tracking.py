"""Trackers: the real ones where they are installed, and one of our own that fails."""

from __future__ import annotations

import importlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from anyformer import errors
from anyformer.errors import UserError
from anyformer.runs.tracking import TRACKERS, Trackers
from tests.runs.run_files import HEADER, evaluation, sample, step


class _Notebook:
    """A tracker that remembers, and can be made to fail."""

    opened: tuple[Path, Mapping[str, Any], bool]
    lines: list[tuple[int, dict[str, float], dict[str, str]]]
    broken = False

    def __init__(self, directory: Path, config: Mapping[str, Any], resumed: bool) -> None:
        type(self).opened, type(self).lines = (directory, config, resumed), []

    def log(self, step: int, numbers: Mapping[str, float], texts: Mapping[str, str]) -> None:
        if self.broken:
            raise ConnectionError("the network\nis down.")
        self.lines.append((step, dict(numbers), dict(texts)))

    def close(self) -> None:
        if self.broken:
            raise ConnectionError("still down")
        self.lines.append((-1, {}, {}))


CONFIG = {"preset": "llama-nano", "track": ["notebook"], "model": {"attention": {"heads": 4}}}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "first"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> type[_Notebook]:
    kind = type("Notebook", (_Notebook,), {})
    monkeypatch.setitem(TRACKERS, "notebook", kind)
    return kind


def _track(trackers: Trackers) -> None:
    for line in (
        {"step": 0, **HEADER},
        step(10, 2.5),
        step(20, float("nan")),
        evaluation(20, 2.0),
        sample(20, "<b>\nwords"),
    ):
        trackers.log(line)
    trackers.close()


def test_what_a_tracker_is_told(directory: Path, notebook: type[_Notebook], tmp_path: Path):
    _track(Trackers(["notebook", "notebook"], directory, CONFIG, resumed=True))
    config = {"preset": "llama-nano", "track": ["notebook"], "model.attention.heads": 4}
    assert notebook.opened == (tmp_path / "runs" / "first", config, True)
    first, second, third, fourth, last = notebook.lines
    assert first[0] == 10
    assert first[1]["training/loss"] == 2.5
    assert first[1]["speed/tokens_per_second"] == 10_000
    assert "training/loss" not in second[1]
    assert third[1] == {"validation/loss": 2.0, "validation/bits_per_byte": 1.0, "progress/elapsed": 0.2}
    assert fourth == (20, {}, {"sample": "Once<b>\nwords"})
    assert last[0] == -1


def test_a_failure_is_said_once_and_stops_nothing(directory: Path, notebook: type[_Notebook]):
    notebook.broken = True
    said: list[str] = []
    _track(Trackers(["notebook"], directory, CONFIG, warn=said.append))
    assert said == ["--track notebook fails, training goes on: the network is down"]


def test_one_that_fails_does_not_keep_the_others_from_it(
    directory: Path, notebook: type[_Notebook], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(TRACKERS, "burnt", type("Burnt", (_Notebook,), {"broken": True}))
    _track(Trackers(["burnt", "notebook"], directory, CONFIG))
    assert len(notebook.lines) == 5
    assert capsys.readouterr().err.count("anyformer: --track burnt fails") == 1


def test_an_unknown_tracker_is_refused(directory: Path):
    with pytest.raises(UserError, match=r"no tracker 'tensorbord' \(did you mean 'tensorboard'\?\)"):
        Trackers(["tensorbord"], directory, CONFIG)


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_missing_library_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    def without(module: str) -> object:
        if module.partition(".")[0] == name:
            raise ModuleNotFoundError(module)
        return importlib.import_module(module)

    monkeypatch.setattr(errors, "import_module", without)
    with pytest.raises(UserError, match=rf"--track {name} needs {name}: pip install 'anyformer\[track\]'\."):
        Trackers([name], directory, CONFIG)


def test_one_that_can_not_begin_is_a_sentence_and_closes_the_others(
    directory: Path, notebook: type[_Notebook], monkeypatch: pytest.MonkeyPatch
):
    def locked(directory: Path, config: Mapping[str, Any], resumed: bool) -> _Notebook:
        raise RuntimeError("no key.")

    monkeypatch.setitem(TRACKERS, "locked", locked)
    with pytest.raises(UserError, match=r"^--track locked can't begin: no key\.$"):
        Trackers(["notebook", "locked"], directory, CONFIG)
    assert notebook.lines == [(-1, {}, {})]


def test_nothing_is_imported_before_it_is_asked_for():
    code = (
        "import sys, anyformer.runs.tracking;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'tensorboard', 'wandb', 'trackio')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _available(*names: str) -> None:
    for name in names:
        pytest.importorskip(name)


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_writes_event_files(directory: Path):
    _available("tensorboard")
    _track(Trackers(["tensorboard"], directory, CONFIG))
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("training/loss")] == [(10, 2.5)]
    assert [(event.step, event.value) for event in events.Scalars("validation/loss")] == [(20, 2.0)]
    (text,) = events.Tensors("sample/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "    Once<b>\n    words"


_TRACK = """
import sys
from pathlib import Path
from typing import Any
from anyformer.runs.tracking import Trackers
trackers = Trackers([sys.argv[1]], Path(sys.argv[2]), {"preset": "llama-nano"}, resumed=sys.argv[3] == "resumed")
for step in map(int, sys.argv[4:]):
    trackers.log({"step": step, "loss": step / 4})
trackers.close()
"""


def _in_a_process_of_its_own(name: str, directory: Path, kind: str, *steps: int, **environment: str) -> str:
    """These libraries start threads and servers, and hold on to their folders: nothing for the process of the tests."""
    done = subprocess.run(
        [sys.executable, "-c", _TRACK, name, str(directory), kind, *map(str, steps)],
        env={**os.environ, "HOME": str(directory.parent), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr if done.returncode == 0 else pytest.fail(done.stderr)


def test_trackio_writes_its_database_and_goes_on_with_it(directory: Path, tmp_path: Path):
    _available("trackio")
    place = tmp_path / "trackio"
    for kind, steps in (("new", (4, 8)), ("resumed", (12,)), ("new", (4,))):
        said = _in_a_process_of_its_own("trackio", directory, kind, *steps, TRACKIO_DIR=str(place))
        assert said == ""
    with sqlite3.connect(place / "anyformer.db") as database:
        rows = database.execute("SELECT run_id, step, metrics FROM metrics ORDER BY id").fetchall()
    database.close()
    assert [row[1] for row in rows] == [4, 8, 12, 4]
    assert json.loads(rows[2][2])["training/loss"] == 3
    assert rows[0][0] == rows[2][0] != rows[3][0]


def test_wandb_stays_offline_when_it_is_told_to(directory: Path):
    _available("wandb")
    quiet = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
    _in_a_process_of_its_own("wandb", directory, "new", 4, 8, **quiet)
    _in_a_process_of_its_own("wandb", directory, "resumed", 12, **quiet)
    place = directory / "wandb"
    runs = sorted(place.glob("offline-run-*"))
    assert len(runs) == 2
    # offline-run-TIME-ID, and -1 after that for the second one of a second
    assert {run.name.split("-")[3] for run in runs} == {(place / "run-id").read_text()}
    assert any(b"training/loss" in file.read_bytes() for file in runs[0].glob("*.wandb"))
    assert not list(place.rglob("requirements.txt"))


def test_wandb_without_a_login_is_a_sentence(directory: Path):
    _available("wandb")
    with pytest.raises(pytest.fail.Exception, match=r"--track wandb can't begin: .*WANDB_MODE=offline sends nothing"):
        _in_a_process_of_its_own("wandb", directory, "new", 4, WANDB_MODE="online", WANDB_API_KEY="")
