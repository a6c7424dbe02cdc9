"""The build of the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from anyformer.native import levels

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(find_spec("hatchling") is None, reason="needs the package hatchling")


def _built(folder: Path, compiler: str) -> tuple[str, zipfile.ZipFile]:
    """Build with a script in the place of the compiler; returns the output and the wheel."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "hatch_build.py"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("lib", "__pycache__"))
    script = folder / "c++"
    script.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\nif '-fsyntax-only' in sys.argv: sys.exit()\n{compiler}\n"
    )
    script.chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "out"],
        cwd=folder,
        env=os.environ | {"CXX": str(script), "ANYFORMER_TARGET": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = (folder / "out").iterdir()
    return done.stdout + done.stderr, zipfile.ZipFile(wheel)


def test_where_the_compiler_fails_torch_is_left_to_compute_and_one_line_says_so(tmp_path: Path) -> None:
    said, wheel = _built(tmp_path, "sys.exit('norm.cpp:1: error: no room')")
    assert [line for line in said.splitlines() if "error" in line] == [
        "Kernels are left to torch: norm.cpp:1: error: no room"
    ]
    assert wheel.filename is not None
    assert wheel.filename.endswith("-py3-none-any.whl")
    assert "anyformer/native/levels.py" in wheel.namelist()
    assert not [name for name in wheel.namelist() if "/lib/" in name or "sboms" in name]


@pytest.mark.skipif(not levels.usable(), reason="needs a processor that has a level")
def test_libraries_and_their_bill_of_materials_are_in_the_wheel(tmp_path: Path) -> None:
    _, wheel = _built(tmp_path, "pathlib.Path(sys.argv[sys.argv.index('-o') + 1]).write_text('compiled')")
    libraries = {name for name in wheel.namelist() if "/lib/" in name}
    assert {Path(name).stem for name in libraries} == {path.stem for path in levels.SOURCES.glob("*.cpp")}
    (bill,) = (name for name in wheel.namelist() if "/sboms/" in name)
    assert {each["name"] for each in json.loads(wheel.read(bill))["components"]} == libraries
