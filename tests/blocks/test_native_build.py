"""Which compiler makes the library."""

from __future__ import annotations

import sys

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
    with pytest.raises(OSError, match=r"anyformer\[compiler\]"):
        build._compiler()
