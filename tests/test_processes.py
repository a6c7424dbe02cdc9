"""Starting programs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from anyformer import processes


def test_nothing_is_imported_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by Python nor by what it starts in turn."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "decoy.py").write_text("print('decoy')")
    code = "import sys, subprocess; subprocess.run([sys.executable, '-m', 'decoy'], check=False); import decoy"
    said = processes.run([*processes.python("-c", f"try:\n exec({code!r})\nexcept ImportError: print('none')")])
    assert "No module named decoy" in said
    assert said.endswith("none\n")


def test_no_program_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "g++.exe"
    program.touch(mode=0o700)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f".{os.pathsep}")
    assert processes.find(program.name) is None
    assert processes.find(f"./{program.name}") == str(program)  # asked for
    monkeypatch.setenv("PATH", str(tmp_path))
    assert processes.find(program.name) == str(program)
