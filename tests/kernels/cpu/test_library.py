"""Loading compiled code, and compiling what has changed in a checkout."""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from anyformer.kernels.cpu import library
from anyformer.kernels.cpu.library import Library
from anyformer.native import compiler, levels

FIVE = (ctypes.c_int64,)
EXPORTED = '__attribute__((visibility("default")))'
SOURCE = f'extern "C" {EXPORTED} int five() {{ return 5; }} extern "C" {EXPORTED} void use_openmp(const void*) {{}}\n'


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a source that compiles at once."""
    (tmp_path / "small.cpp").write_text(SOURCE)
    monkeypatch.setattr(levels, "SOURCES", tmp_path)
    monkeypatch.setattr(levels, "LIBRARIES", tmp_path / "lib")
    monkeypatch.setattr(library, "LIBRARIES", [])
    library._warn.cache_clear()
    levels.level.cache_clear()
    yield tmp_path
    levels.level.cache_clear()


def five() -> int | None:
    found = Library("small", "a number", five=FIVE).get()
    return None if found is None else found.five()


def test_it_says_why_it_is_not_used(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, lacking = Library("small", "a number", five=FIVE), Library("small", "a number", "amx-fp64")
    assert there.absence() is None
    assert "it needs amx-fp64" in str(lacking.absence())
    monkeypatch.setenv(levels.SWITCH, "0")
    assert there.absence() == "ANYFORMER_NATIVE=0 switches compiled code off"
    monkeypatch.undo()


def compiled(folder: Path) -> Path:
    """The only library."""
    (found,) = (path for path in folder.glob("lib/*/*") if path.is_file())
    return found


def test_it_is_compiled_once_and_again_if_a_source_is_newer(sources: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: five(), range(8))) == {5}
    made = compiled(sources)
    before = made.stat().st_mtime_ns
    assert five() == 5
    assert compiled(sources).stat().st_mtime_ns == before
    (sources / "any.h").touch()
    os.utime(sources / "any.h", ns=(before + 10**9, before + 10**9))
    Library("small", "a number").get()
    assert compiled(sources).stat().st_mtime_ns > before


def test_without_sources_the_best_installed_level_is_loaded(sources: Path) -> None:
    if len(levels.usable()) < 2:
        pytest.skip("a machine with one level")
    worse = levels.usable()[1]
    compiler.compile_library("small", worse)
    (sources / "small.cpp").unlink()
    levels.level.cache_clear()
    assert levels.level() == worse
    assert five() == 5


def test_without_a_library_torch_computes_and_one_line_says_so(sources: Path, caplog: pytest.LogCaptureFixture) -> None:
    (sources / "small.cpp").unlink()
    assert five() is None
    assert five() is None
    assert caplog.text.count("torch alone computes") == 1
    assert "nothing is installed for this processor" in caplog.text


@pytest.mark.parametrize("damage", ["code", "name", "compiler"])
def test_whatever_goes_wrong_is_one_line(
    damage: str, sources: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"code": "small.cpp:2", "name": "five", "compiler": "there is no C++ compiler: install g++"}[damage]
    (sources / "small.cpp").write_text({"code": "int one = 1;\nint two = three;\n"}.get(damage, "int six = 6;\n"))
    if damage == "compiler":
        monkeypatch.setattr(compiler, "find_of_system", lambda level: None)
        monkeypatch.setattr(compiler, "find_spec", lambda name: None)
    assert five() is None
    assert five() is None
    (line,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert said in line
    assert "\n" not in line
    assert not list(sources.glob("lib/*/.*"))


def test_nothing_is_loaded_where_it_is_switched_off(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(levels.SWITCH, "0")
    assert five() is None
    assert not (sources / "lib").exists()


PRODUCTS, DECODERS = "blocks/test_quantized.py", "generation/test_compiled_decoder.py"
OLDER = [
    # The gate is spared whole decoding steps.
    ("x86-64-v2", "not slow", [PRODUCTS]),
    *(
        pytest.param(processor, examples, [PRODUCTS, DECODERS], marks=pytest.mark.slow)
        for processor in ("x86-64-v2", "x86-64-v3")
        for examples in ("not slow", "slow")
    ),
]


@pytest.mark.skipif(levels.machine() != "x86_64", reason="needs such processors")
@pytest.mark.parametrize(("processor", "examples", "files"), OLDER)
def test_what_is_made_for_older_processors_holds(processor: str, examples: str, files: list[str]) -> None:
    if processor not in (level.name for level in levels.usable()):
        pytest.skip("this processor is no such")
    tests, environment = Path(__file__).parents[2], os.environ | {levels.SWITCH: processor}
    chosen = ["-k", "multiply or no_number or integers or bfloat16 or pieces"]
    command = [sys.executable, "-m", "pytest", "-q", *(str(tests / file) for file in files), *chosen, "-m", examples]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()
    assert b"skipped" not in done.stdout


@pytest.mark.skipif(levels.has("amx-bf16"), reason="they run as they are")
@pytest.mark.skipif(not levels.EMULATED.needs <= levels.features(), reason="needs products of bfloat16 pairs")
@pytest.mark.parametrize(
    ("file", "examples"),
    [
        ("cpu/test_matmul.py", "not slow"),
        *(
            pytest.param(file, examples, marks=pytest.mark.slow)
            for file in ("cpu/test_matmul.py", "test_training_kernels.py")
            for examples in ("not slow", "slow")
        ),
    ],
)
def test_what_is_made_for_amx_holds_where_it_is_emulated(file: str, examples: str) -> None:
    environment = os.environ | {levels.SWITCH: "emulated"}
    # What torch compiles there are stand-ins for the kernels, whatever the processor.
    chosen = ["-m", examples, "-k", "not torch_compile"]
    command = [sys.executable, "-m", "pytest", "-q", str(Path(__file__).parents[1] / file), *chosen]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()
    assert b"skipped" not in done.stdout
