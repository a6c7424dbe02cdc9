"""Which compiler makes the library."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from anyformer.blocks.native import build


@pytest.mark.parametrize(("there", "chosen"), [(("g++", "c++"), "g++"), (("clang++",), "clang++")])
def test_the_systems_compiler_comes_first(there: tuple[str, ...], chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: f"/bin/{name}" if name in there else None)
    assert build._compiler() == [f"/bin/{chosen}"]


def test_a_package_may_bring_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build, "find_spec", lambda name: object())
    assert build._compiler() == [sys.executable, "-m", "ziglang", "c++"]
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(OSError, match="pip install ziglang"):
        build._compiler()


USE = """
import torch
import anyformer as af
from anyformer.blocks.native.build import library
from anyformer.generation.step import step_of
torch.manual_seed(0)
model = af.build(af.preset("llama-nano", vocab_size=50, decoder_layers=2)).eval()
ids = torch.randint(50, (2, 5))
with torch.inference_mode():
    found = step_of(model, wait=True)(ids, model.make_cache(2, 8))
    torch.testing.assert_close(found, model(ids).logits, atol=1e-4, rtol=1e-4)
assert library().get() is not None
"""


@pytest.mark.skipif(find_spec("ziglang") is None, reason="is a dependency on Linux only")
def test_the_packages_compiler_makes_the_library(tmp_path: Path) -> None:
    """A machine without a compiler, on first use."""
    nothing = {name: value for name, value in os.environ.items() if name != "CXX"} | {"PATH": str(tmp_path)}
    environment = nothing | {"ANYFORMER_CACHE": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", USE], check=True, env=environment, timeout=300)
    assert sorted(path.suffix for path in (tmp_path / "native").iterdir()) == [".lock", ".so"]


def test_what_an_ended_program_left_behind_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_run", lambda command, folder: (folder / "new.so").touch())
    made = build._build()
    made.unlink()
    left = made.with_suffix(".making")
    (left / "product.o").mkdir(parents=True)
    assert build._build() == made
    assert not left.exists()
