"""Runs, read back from what they wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyformer.errors import UserError
from anyformer.runs.listing import default_settings, differences, read_run, read_runs
from anyformer.runs.report import comparison, page, write_comparison, write_report
from anyformer.training.config import TrainConfig, defaults
from tests.runs.run_files import HEADER, config, evaluation, sample, short_run, step, write_run

DEFAULTS = defaults(TrainConfig)


def test_a_run_is_summed_up(tmp_path: Path):
    run = read_run(write_run(tmp_path / "good", short_run()))
    assert (run.name, run.preset, run.state, run.parameters) == ("good", "llama-nano", "finished", 1_115_264)
    assert (run.step, run.tokens, run.seconds, run.broken_lines) == (100, 10_000, 1.0, 0)
    assert run.validation_loss == pytest.approx(3.1)
    assert run.bits_per_byte == pytest.approx(1.55)
    assert run.tokens_per_second == pytest.approx(10_000)
    assert run.peak_share == pytest.approx(10_000 * 6e6 / 2.4e11)
    json.dumps(run.summary(), allow_nan=False)


def test_speed_is_that_of_the_tokens_not_of_the_lines(tmp_path: Path):
    # 100 tokens at 100/s take 1 s, 900 at 900/s as well: 500/s.
    lines = [
        step(1, tokens=100, tokens_per_second=100.0, flops_per_second=1e9),
        step(2, tokens=1000, tokens_per_second=900.0, flops_per_second=3e9),
    ]
    run = read_run(write_run(tmp_path / "r", lines))
    assert run.tokens_per_second == pytest.approx(500)
    assert run.flops_per_second == 2e9
    assert run.peak_share is None


def test_the_best_evaluation_is_not_the_latest(tmp_path: Path):
    run = read_run(write_run(tmp_path / "r", [evaluation(1, 3.0), evaluation(2, 2.0), evaluation(3, 2.5)]))
    assert run.validation_loss == 2.5
    assert run.best is not None
    assert run.best["step"] == 2


def test_what_a_resumed_run_does_again_counts_once(tmp_path: Path):
    lines = [HEADER, step(10, 4.0), evaluation(10, 4.0), sample(10), step(20, 3.0), evaluation(20, 3.0), sample(20)]
    again = [{**HEADER, "started": "2026-11-26T10:00:00+00:00"}, step(20, 2.9), evaluation(20, 2.9), step(30, 2.0)]
    run = read_run(write_run(tmp_path / "r", [*lines, {"step": 20, "state": "stopped"}, *again]))
    assert [(line["step"], line["loss"]) for line in run.steps] == [(10, 4.0), (20, 2.9), (30, 2.0)]
    assert [line["validation_loss"] for line in run.evaluations] == [4.0, 2.9]
    assert [line["step"] for line in run.samples] == [10]
    assert run.header["started"] == HEADER["started"]
    assert run.state == "running"


@pytest.mark.parametrize("state", ["finished", "stopped", "diverged"])
def test_a_run_says_how_it_ended(tmp_path: Path, state: str):
    run = read_run(write_run(tmp_path / "r", [step(10), {"step": 10, "state": state, "reason": "It was late."}]))
    assert (run.state, run.reason) == (state, "It was late.")


def test_a_run_that_does_not_say_so_is_judged_by_its_lines(tmp_path: Path):
    steps = [step(number) for number in range(10, 101, 10)]
    done = write_run(tmp_path / "done", [*steps, evaluation(100, 2.0)])
    assert read_run(done).state == "finished"
    assert read_run(write_run(tmp_path / "burst", ['{"step": 10, "loss": NaN}'])).state == "diverged"
    silent = write_run(tmp_path / "silent", steps[:3])
    assert read_run(silent).state == "running"
    hour = time.time() - 3600
    os.utime(silent / "metrics.jsonl", (hour, hour))
    assert read_run(silent).state == "stopped"


@given(st.integers(0, 400))
def test_a_run_that_was_killed_anywhere_is_read(tmp_path_factory: pytest.TempPathFactory, cut: int):
    path = write_run(tmp_path_factory.mktemp("runs") / "r", short_run())
    whole = (path / "metrics.jsonl").read_bytes()
    (path / "metrics.jsonl").write_bytes(whole[: len(whole) - cut])
    run = read_run(path)
    before = whole[: len(whole) - cut].split(b"\n")
    assert run.broken_lines == (before[-1] != b"" and before[-1] not in whole.split(b"\n"))
    assert len(run.steps) == sum(b'"loss"' in line for line in before[:-1]) + (
        b'"loss"' in before[-1] and run.broken_lines == 0
    )


@pytest.mark.parametrize("line", ['{"step": 12, "lo', "\x00\x00\x00", "[1, 2]", "7", "[" * 100_000])
def test_lines_that_are_no_objects_are_counted(tmp_path: Path, line: str):
    run = read_run(write_run(tmp_path / "r", [step(10), line, step(20)]))
    assert run.broken_lines == 1
    assert len(run.steps) == 2


@pytest.mark.parametrize(
    "line", [{"step": "3", "loss": 1.0}, {"step": True, "loss": 1.0}, {"step": 10**400, "loss": 1.0}, {"loss": 1.0}, {}]
)
def test_lines_of_another_kind_are_passed_over(tmp_path: Path, line: dict[str, object]):
    run = read_run(write_run(tmp_path / "r", [step(10), line]))
    assert (len(run.steps), run.broken_lines, run.step) == (1, 0, 10)


def test_numbers_that_are_none(tmp_path: Path):
    odd = [step(20, tokens=10**400), step(30, tokens="many", tokens_per_second=None, elapsed=True)]
    run = read_run(write_run(tmp_path / "r", [step(10), *odd]))
    assert (run.tokens, run.seconds) == (1000, None)
    assert run.tokens_per_second == pytest.approx(10_000)


def test_a_run_without_metrics_or_config_is_read(tmp_path: Path):
    path = write_run(tmp_path / "r", [])
    (path / "metrics.jsonl").unlink()
    assert read_run(path).step is None
    (path / "config.yaml").write_text("a: [")
    assert read_run(path).config == {}


def test_what_is_not_there_is_said(tmp_path: Path):
    write_run(tmp_path / "shakespeare", short_run())
    with pytest.raises(UserError, match=r"no run directory .*shakespear \(did you mean 'shakespeare'\?\)\.$"):
        read_run(tmp_path / "shakespear")
    with pytest.raises(UserError, match=r"neither metrics\.jsonl nor config\.yaml"):
        read_run(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="There are no runs in"):
        read_runs(tmp_path / "empty")


def test_the_newest_run_comes_first(tmp_path: Path):
    for name, day in (("a", 2), ("b", 3), ("c", 1)):
        write_run(tmp_path / name, [{**HEADER, "started": f"2026-11-0{day}T10:00:00+00:00"}])
    (tmp_path / "notes").mkdir()
    assert [run.name for run in read_runs(tmp_path)] == ["b", "a", "c"]


def test_only_what_differs(tmp_path: Path):
    a = read_run(write_run(tmp_path / "a", short_run())).config
    b = read_run(write_run(tmp_path / "b", short_run(), config(grad_clip=0.5, model={"norm.kind": "layer"}))).config
    assert differences([a, b]) == {"grad_clip": [1.0, 0.5], "model.norm.kind": ["rms", "layer"]}
    assert differences([a, a]) == {}


def test_the_usual_settings_of_a_preset():
    settings = default_settings("gpt2", DEFAULTS)
    assert settings["model.attention.heads"] == 12
    assert settings["grad_clip"] == 1.0
    assert settings["learning_rate"] is None
    assert "model.attention.heads" not in default_settings("of another version", DEFAULTS)


def test_reading_runs_imports_no_torch():
    code = "import sys, anyformer.cli.runs, anyformer.runs.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(os.name != "posix", reason="links and named pipes as POSIX has them")
@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_a_run_that_can_not_be_read_stops_no_others(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = tmp_path / "runs"
    for run in ("pipe", "link", "whole"):
        (runs / run).mkdir(parents=True)
        (runs / run / "config.yaml").write_text("steps: 1\n")
        (runs / run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (runs / "link" / name).rename(tmp_path / "elsewhere")
    (runs / "link" / name).symlink_to(tmp_path / "elsewhere")
    (runs / "pipe" / name).unlink()
    os.mkfifo(runs / "pipe" / name)
    assert [run.name for run in read_runs(runs)] == ["whole"]
    said = capsys.readouterr().err
    assert f"{name} is a symbolic link out of its folder" in said
    assert f"{name} is not a file but a named pipe" in said
    for run in ("pipe", "link"):
        with pytest.raises(UserError, match=rf"{name} is "):
            read_run(runs / run)


def test_a_config_that_expands_is_left_out(tmp_path: Path):
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 25))]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    assert read_run(tmp_path).config == {}


def test_an_endless_log_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_run(tmp_path / "good", short_run())
    bad = write_run(tmp_path / "bad", [])
    with (bad / "metrics.jsonl").open("wb") as file:
        file.truncate(64 << 30)  # takes no space on the disk
    assert [run.name for run in read_runs(tmp_path)] == ["good"]
    assert "metrics.jsonl has 68,719,476,736 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 25))]),
        "steps: 1\nsteps: 2",
        "1: 2",
        "a: 2026-13-45\nb: !!timestamp 2026-13-45",
        "steps: 0x" + "f" * 100_000,
        "[" * 500,
    ],
)
def test_a_config_that_is_no_plain_yaml_is_left_out_at_once(content: str, tmp_path: Path):
    run = write_run(tmp_path / "r", short_run())
    (run / "config.yaml").write_text(content)
    begun = time.monotonic()
    assert read_run(run).config == {}
    assert read_run(run).step == 100
    assert time.monotonic() - begun < 5


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (*HEADER, *step(1), "validation_loss", "bits_per_byte", "sample", "state", "reason", "before", "written")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES), max_size=4),
    changes=st.dictionaries(st.sampled_from(tuple(config())), VALUES, max_size=4),
)
def test_any_value_in_any_field(tmp_path: Path, lines: list[dict[str, Any]], changes: dict[str, Any]):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    write_run(folder / "a", [*short_run(), *lines], config() | {"model": {}} | changes)
    write_run(folder / "b", [*lines, *short_run()])
    runs = read_runs(folder)
    json.dumps([run.summary() for run in runs])
    for values in (*(page(run, DEFAULTS) for run in runs), comparison(runs)):
        json.dumps(values["data"], allow_nan=False)
    for run in runs:
        write_report(run.path, DEFAULTS)
    write_comparison(runs, folder / "both.html")


def test_speeds_beyond_all_numbers_leave_gaps(tmp_path: Path):
    lines = [HEADER | {"flops_per_token": 1e300}, *(step(i, loss=1e308, tokens_per_second=1e300) for i in range(1, 60))]
    run = read_run(write_run(tmp_path / "r", lines))
    json.dumps(page(run, DEFAULTS)["data"], allow_nan=False)
