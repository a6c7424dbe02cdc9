"""The compiler of the libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from anyformer import processes
from anyformer.native import compiler, levels

BEST = next(iter(levels.usable()))
needs_zig = pytest.mark.skipif(find_spec("ziglang") is None, reason="needs the package ziglang")


@pytest.mark.parametrize(("there", "chosen"), [(("g++", "c++"), "g++"), (("clang++",), "clang++")])
def test_the_systems_compiler_comes_first(there: tuple[str, ...], chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(processes.shutil, "which", lambda name: f"/bin/{name}" if name in there else None)
    monkeypatch.setattr(compiler, "_knows", lambda path, level: True)
    assert compiler.find(BEST) == [f"/bin/{chosen}"]


def test_one_that_knows_no_such_processor_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "old++"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o700)
    monkeypatch.setenv("CXX", str(old))
    monkeypatch.setattr(processes.shutil, "which", lambda name: name if name == str(old) else None)
    assert compiler.find_of_system(BEST) is None


def test_a_package_may_bring_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.shutil, "which", lambda name: None)
    monkeypatch.setattr(compiler, "find_spec", lambda name: object())
    assert compiler.find(BEST) == [sys.executable, "-P", "-m", "ziglang", "c++"]
    monkeypatch.setattr(compiler, "find_spec", lambda name: None)
    with pytest.raises(OSError, match="pip install ziglang"):
        compiler.find(BEST)


@needs_zig
def test_the_compiler_is_not_taken_from_the_current_folder(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for name in ("ziglang.py", "g++", "c++"):
        (tmp_path / name).write_text(f"#!{sys.executable}\nopen({str(marker)!r}, 'w')\n")
        (tmp_path / name).chmod(0o700)
    environment = os.environ | {"PATH": os.pathsep}
    environment.pop("CXX", None)
    code = (
        "import sys; del sys.path[0]\nfrom anyformer import processes\nfrom anyformer.native import compiler, levels\n"
    )
    code += "print(processes.run([*compiler.find(levels.usable()[0]), '--version']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert "clang version" in done.stdout, done.stderr
    assert not marker.exists()


@needs_zig
@pytest.mark.parametrize("target", [pytest.param(name, marks=pytest.mark.slow) for name in compiler.TARGETS])
def test_every_kernel_compiles_for_every_target(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All levels of each, with Zig."""
    system = compiler.TARGETS[target]
    chosen = levels.LEVELS[system.machine]
    monkeypatch.setattr(levels, "LIBRARIES", tmp_path)
    compiler.compile_all(target, chosen)
    sources = {path.stem for path in levels.SOURCES.glob("*.cpp")}
    assert {path.relative_to(tmp_path) for path in tmp_path.glob("*/*")} == {
        Path(level.name, name + system.suffix) for level in chosen for name in sources
    }


@pytest.mark.skipif(levels.machine() != "x86_64", reason="needs a compiler for such processors")
@pytest.mark.parametrize(
    "level",
    [
        # Where there is AMX, it is compiled to be used.
        pytest.param(
            level,
            marks=[] if "amx" in level.name and not levels.has("amx-bf16") else pytest.mark.slow,
            id=level.name,
        )
        for level in levels.LEVELS["x86_64"]
    ],
)
def test_every_kernel_compiles_for_every_level(level: levels.Level) -> None:
    """With plain code, AVX2, AVX-512, its integer products, and AMX."""
    found = compiler.find_of_system(level)
    if found is None:
        pytest.skip("no compiler for such processors")
    for source in levels.SOURCES.glob("*.cpp"):
        compiler.check_syntax(found, level, source)
