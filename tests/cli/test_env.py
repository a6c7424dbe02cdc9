"""`anyformer env`."""

from __future__ import annotations

import json

import pytest

from anyformer.cli.main import main
from anyformer.native import levels


def test_every_operation_has_a_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = {path.stem for path in levels.SOURCES.glob("*.cpp")}
    assert len(found["operations"]) == len(names)
    for each in found["operations"]:
        assert each["backend"].endswith(".cpp") == (not each["reason"])
    assert found["torch"]
    assert found["available memory, bytes"] > 0


def test_a_switch_is_a_reason(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(levels.SWITCH, "0")
    assert main(["env"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "ANYFORMER_NATIVE=0 switches compiled code off" in out
    assert "level in use none libraries none" in out
