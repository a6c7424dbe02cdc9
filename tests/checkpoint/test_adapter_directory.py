"""Directories that hold an adapter alone."""

import json
from pathlib import Path

import pytest

from anyformer.checkpoint import hub
from anyformer.checkpoint.adapter_directory import read_base
from anyformer.errors import UserError


def _adapter(folder: Path, base: object) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return folder


def test_a_base_is_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert read_base(_adapter(tmp_path, str(tmp_path))) == str(tmp_path)
    monkeypatch.setattr(hub, "is_cached", lambda name: name == "somebody/model")
    assert read_base(_adapter(tmp_path, "somebody/model")) == "somebody/model"
    with pytest.raises(UserError, match="its base 'somebody/other' is not on this machine: load the model that it"):
        read_base(_adapter(tmp_path, "somebody/other"))


@pytest.mark.parametrize("base", [None, 3, ["a"], ""])
def test_an_adapter_that_names_no_base_is_refused(tmp_path: Path, base: object):
    with pytest.raises(UserError, match="holds an adapter alone"):
        read_base(_adapter(tmp_path, base))
