"""Run directories never collide, and a model is found in them."""

from __future__ import annotations

from pathlib import Path

import pytest

import anyformer as af
from anyformer.errors import UserError
from anyformer.runs.directory import RunDirectory, model_directory


def test_run_directories_never_collide(tmp_path: Path):
    first = RunDirectory.create(tmp_path / "runs", None, "gpt2")
    second = RunDirectory.create(tmp_path / "runs", None, "gpt2")
    assert (first.path.name, second.path.name) == ("gpt2-1", "gpt2-2")
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
