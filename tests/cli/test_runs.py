"""`anyformer runs`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.runs.run_files import HEADER, config, evaluation, sample, short_run, step, write_run

from anyformer.cli.main import main


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs in ./runs: `first`, and a newer `second` that was killed in the middle of a line."""
    monkeypatch.chdir(tmp_path)
    newer = {**HEADER, "started": "2026-11-26T10:00:00+00:00"}
    write_run(Path("runs/first"), short_run())
    lines = [newer, step(10), evaluation(10, 2.5), sample(10), {"step": 10, "state": "stopped"}, '{"step": 2']
    write_run(Path("runs/second"), lines, config(learning_rate=2e-3, model={"attention.heads": 8}))
    return Path("runs")


def _fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("anyformer: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_list(runs: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["runs"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == [
        "name",
        "preset",
        "parameters",
        "state",
        "steps",
        "tokens",
        "time",
        "tokens/s",
        "loss",
        "bits/byte",
    ]
    assert rows[1] == ["second", "llama-nano", "1.12M", "stopped", "10", "1k", "0:00", "10k", "2.5000", "1.2500"]
    assert rows[2] == ["first", "llama-nano", "1.12M", "finished", "100", "10k", "0:01", "10k", "3.1000", "1.5500"]
    assert rows[3][:2] == ["second:", "1"]
    assert main(["runs", "runs"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == rows


def test_two_runs(runs: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["runs", "first", "runs/second"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[1:3]] == ["first", "second"]
    assert lines[-3:] == [
        ["first", "second"],
        ["learning_rate", "0.001", "0.002"],
        ["model.attention.heads", "4", "8"],
    ]


def test_the_same_run_twice_and_different_texts(runs: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["runs", "first", "first"]) == 0
    assert "Their configs are the same." in capsys.readouterr().out
    write_run(runs / "third", short_run(), config(tokenizer="bpe:512"))
    assert main(["runs", "first", "third"]) == 0
    assert "don't compare" in capsys.readouterr().out


def test_a_narrow_terminal_drops_columns(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "70")
    assert main(["runs"]) == 0
    header = capsys.readouterr().out.splitlines()[0]
    assert header.split()[0] == "name"
    assert header.split()[-2:] == ["loss", "bits/byte"]
    assert "preset" not in header
    assert len(header) <= 70


def test_json(runs: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["runs", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(run["name"], run["broken_lines"]) for run in listed["runs"]] == [("second", 1), ("first", 0)]
    assert listed["runs"][1]["validation_loss"] == pytest.approx(3.1)
    assert "differences" not in listed
    assert main(["runs", "first", "second", "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["differences"] == {"learning_rate": [0.001, 0.002], "model.attention.heads": [4, 8]}


def test_html(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["runs", "first", "second", "--html", "both.html"]) == 0
    assert "both.html" in capsys.readouterr().out
    assert "first vs second" in Path("both.html").read_text()
    assert main(["runs", "first", "--html", "one.html"]) == 0
    assert "Training run</p>" in Path("one.html").read_text()
    assert main(["runs", "--html", "all.html"]) == 0
    assert "second vs first" in Path("all.html").read_text()
    capsys.readouterr()
    Path("diary.html").write_text("<html>my only diary of anyformer</html>")
    for names in (["first"], ["first", "second"], []):
        assert "is there already" in _fails(capsys, "runs", *names, "--html", "diary.html")
    assert Path("diary.html").read_text() == "<html>my only diary of anyformer</html>"
    assert main(["runs", "first", "--html", "both.html"]) == 0  # a page of ours is replaced
    assert "Training run</p>" in Path("both.html").read_text()
    capsys.readouterr()
    assert "is a directory" in _fails(capsys, "runs", "--html", str(tmp_path))
    assert "is not a file but a device" in _fails(capsys, "runs", "--html", "/dev/null")
    assert "can't be written" in _fails(capsys, "runs", "--html", "nowhere/all.html")


def test_what_is_not_there(runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert "no run directory runs/frist (did you mean 'first'?)" in _fails(capsys, "runs", "runs/frist")
    assert "no run directory runs/frist (did you mean 'first'?)" in _fails(capsys, "runs", "first", "frist")
    (runs.parent / "empty").mkdir()
    assert "There are no runs in empty" in _fails(capsys, "runs", "empty")
    monkeypatch.chdir(runs.parent / "empty")
    assert "There are no runs here yet" in _fails(capsys, "runs")


def test_help_says_it(capsys: pytest.CaptureFixture[str]):
    assert main(["runs", "--help"]) == 0
    assert "--html" in capsys.readouterr().out
