"""Run directories never collide, and a model is found in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import anyformer as af
from anyformer.errors import UserError
from anyformer.runs.directory import RunDirectory, check_run_directory, model_directory


def test_run_directories_never_collide(tmp_path: Path):
    first = RunDirectory.create(tmp_path / "runs", None, "gpt2")
    second = RunDirectory.create(tmp_path / "runs", None, "gpt2")
    assert (first.path.name, second.path.name) == ("gpt2-1", "gpt2-2")
    long = RunDirectory.create(tmp_path / "runs", None, "x" * 5000)
    assert long.path.name == "x" * 120 + "-1"
    with pytest.raises(UserError, match=r"gpt2-1 is being trained by another process"):
        RunDirectory.create(tmp_path / "runs", "gpt2-1", "gpt2")
    first.write_config("seed: 1")
    with pytest.raises(UserError, match=r"gpt2-1 exists already: choose another --name"):
        RunDirectory.create(tmp_path / "runs", "gpt2-1", "gpt2")


def test_run_directory_where_there_is_a_file(tmp_path: Path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="can't be made"):
        RunDirectory.create(tmp_path / "runs", None, "gpt2")


def test_model_directory_finds_the_model(tmp_path: Path):
    run = RunDirectory.create(tmp_path, "a", "gpt2")
    assert model_directory(run.path) == run.path
    model = af.build(af.preset("gpt2-nano", vocab_size=8, d_model=8, decoder_layers=1))
    af.save(model, run.model)
    assert model_directory(str(run.path)) == run.model
    assert model_directory(run.model) == run.model
    assert model_directory("some/name") == Path("some/name")


posix = pytest.mark.skipif(os.name != "posix", reason="links and named pipes as POSIX has them")


@posix
@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.jsonl", ".lock", "report.html", "model", "checkpoints", "tensorboard", "wandb"]
)
def test_a_run_with_links_is_not_entered(tmp_path: Path, name: str):
    victim, run = tmp_path / "victim", tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("steps: 1\n")
    if name in ("model", "checkpoints", "tensorboard", "wandb"):
        victim.mkdir()
    else:
        victim.write_text("steps: 1\n")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim)
    for enter in (check_run_directory, lambda path: RunDirectory(path).lock()):
        with pytest.raises(UserError, match=f"{name} is a symbolic link, by which something elsewhere"):
            enter(run)
    if name == "metrics.jsonl":
        with pytest.raises(UserError, match="is a symbolic link"):
            RunDirectory(run).log({"step": 1})
    assert victim.is_dir() or victim.read_text() == "steps: 1\n"
    # The run itself may be reached by a link.
    (run / name).unlink()
    (run / "config.yaml").write_text("steps: 1\n")
    (tmp_path / "link").symlink_to(run)
    check_run_directory(tmp_path / "link")
    again = RunDirectory(tmp_path / "link")
    again.lock()
    again.unlock()


@posix
@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", ".lock"])
def test_a_run_with_pipes_is_not_entered(tmp_path: Path, name: str):
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    for enter in (check_run_directory, lambda path: RunDirectory(path).lock()):
        with pytest.raises(UserError, match=f"{name} is not a file but a named pipe"):
            enter(tmp_path)


def test_lines_of_something_else_are_taken_for_cut_off_ones(tmp_path: Path):
    run = RunDirectory(tmp_path)
    lines = [
        '{"step": 1}',
        '{"step": NaN}',
        '{"step": "2"}',
        "[3]",
        '{"step": 1' + "0" * 400 + "}",
        '{"step": {}}',
        "{",
    ]
    for last in lines:
        run.rewind(0)
        (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, "[" * 1000, last]))
        assert not run.finished()
        run.rewind(5)
        assert (tmp_path / "metrics.jsonl").read_text().splitlines() == ['{"step": 1}'] * (1 + (last == lines[0]))
    run.log({"step": 5, "state": "finished"})
    assert run.finished()
