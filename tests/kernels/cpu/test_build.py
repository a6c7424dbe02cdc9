"""How compiled code is made."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

from anyformer.kernels import cpu_features
from anyformer.kernels.cpu import build

LIBRARIES = sorted(path.stem for path in build._HERE.glob("*.cpp"))
COMPILER = shutil.which("g++") or shutil.which("clang++")


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
import sys
import torch
import anyformer as af
from anyformer.kernels.cpu.build import Library
from anyformer.generation.cached_decoder import DecoderStep
from anyformer.generation.compiled_decoder import LIBRARY
torch.manual_seed(0)
model = af.build(af.preset("llama-nano", vocab_size=50, decoder_layers=2)).eval()
ids = torch.randint(50, (2, 5))
with torch.inference_mode():
    found = DecoderStep(model, wait=True)(ids, model.make_cache(2, 8))
    torch.testing.assert_close(found, model(ids).logits, atol=1e-4, rtol=1e-4)
assert LIBRARY.get() is not None
libraries = [Library(name) for name in sys.argv[1:]]
for library in libraries:
    library.start()
assert all(library.get(wait=True) is not None for library in libraries)
"""


@pytest.mark.skipif(find_spec("ziglang") is None, reason="is a dependency on Linux only")
@pytest.mark.parametrize("libraries", [["decode_step"], pytest.param(LIBRARIES, marks=pytest.mark.slow)])
def test_the_packages_compiler_makes_the_library(libraries: list[str], tmp_path: Path) -> None:
    """A machine without a compiler, on first use."""
    nothing = {name: value for name, value in os.environ.items() if name != "CXX"} | {"PATH": str(tmp_path)}
    environment = nothing | {"ANYFORMER_CACHE": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", USE, *libraries], check=True, env=environment, timeout=300)
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "native").glob("*.so")) == libraries
    assert {path.suffix for path in (tmp_path / "native").iterdir()} == {".lock", ".so"}


def test_what_an_ended_program_left_behind_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_run", lambda command, folder: (folder / "new.so").touch())
    made = build._build("cross_entropy")
    made.unlink()
    left = made.with_name(f".{made.name}.0123456789abcdef.tmp")
    left.mkdir(parents=True)
    (left / "new.o").touch()
    assert build._build("cross_entropy") == made
    assert not left.exists()


def test_what_can_not_be_compiled_is_told_once_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.cpp").write_text("int one = 1;\nint two = three;\nint four = 4;\n")
    (tmp_path / "whole.cpp").write_text('extern "C" __attribute__((visibility("default"))) int five() { return 5; }\n')
    monkeypatch.setattr(build, "_HERE", tmp_path)
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    assert build.Library("broken").get(wait=True) is None
    assert build.Library("broken").get(wait=True) is None
    assert "broken.cpp:2" in caplog.text
    assert caplog.text.count("three") == 1
    assert [path.suffix for path in (tmp_path / "native").iterdir()] == [".lock"]
    made = build.Library("whole", five=(ctypes.c_int64,)).get(wait=True)
    assert made is not None
    assert made.five() == 5


def test_many_ask_and_one_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, run = [], build._run

    def counted(command: Sequence[str], folder: Path) -> None:
        ran.append(command[-1])
        run(command, folder)

    (tmp_path / "whole.cpp").write_text("int five = 5;\n")
    monkeypatch.setattr(build, "_HERE", tmp_path)
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_run", counted)
    library = build.Library("whole")
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: library.start(), range(50)))) == 1
    assert library.get(wait=True) is not None
    assert ran == ["new.o", "new.so"]


def test_a_short_program_leaves_a_library(tmp_path: Path) -> None:
    environment = os.environ | {"ANYFORMER_CACHE": str(tmp_path)}
    use = "from anyformer.kernels.cpu.rms_norm import KERNEL; KERNEL.start()"
    subprocess.run([sys.executable, "-c", use], check=True, env=environment, timeout=300)
    assert sorted(path.suffix for path in (tmp_path / "native").iterdir()) == [".lock", ".so"]


@pytest.mark.skipif(platform.machine() != "x86_64" or COMPILER is None, reason="needs a compiler for such processors")
@pytest.mark.parametrize(
    "processor",
    [
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("x86-64", "x86-64-v3", "skylake-avx512", "icelake-server")
        ),
        "sapphirerapids",
    ],
)
def test_it_compiles_for_every_processor(processor: str) -> None:
    """With plain code, AVX2, AVX-512, its integer products, and AMX."""
    assert COMPILER is not None
    for source in build._HERE.glob("*.cpp"):
        command = [COMPILER, "-fsyntax-only", f"-march={processor}", *build._FLAGS, str(source)]
        subprocess.run(command, check=True, timeout=300)


EXAMPLES = ["not slow", pytest.param("slow", marks=pytest.mark.slow)]
"""The gate's share of the drawn examples, or all of them."""
OLDER = [
    pytest.param(processor, examples, marks=[] if (processor, examples) == ("x86-64", "not slow") else pytest.mark.slow)
    for processor in cpu_features.BASELINES
    for examples in ("not slow", "slow")
]


@pytest.mark.skipif(platform.machine() != "x86_64" or COMPILER is None, reason="needs a compiler for such processors")
@pytest.mark.parametrize(("processor", "examples"), OLDER)
def test_what_is_made_for_older_processors_holds(processor: str, examples: str) -> None:
    if "avx2" not in cpu_features.flags().split() and processor != "x86-64":
        pytest.skip("needs AVX2")
    root, environment = Path(__file__).parents[2], os.environ | {cpu_features.SWITCH: processor}
    tests = [root / "blocks" / "test_quantized.py", root / "generation" / "test_compiled_decoder.py"]
    chosen = ["-k", "multiply or no_number or integers or bfloat16 or pieces"]
    command = [sys.executable, "-m", "pytest", "-q", *map(str, tests), *chosen, "-m", examples]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()
    assert b"skipped" not in done.stdout


@pytest.mark.skipif(cpu_features.has_amx_bf16(), reason="they run as they are")
@pytest.mark.skipif("avx512_bf16" not in cpu_features.flags().split(), reason="needs products of bfloat16 pairs")
@pytest.mark.parametrize("examples", EXAMPLES)
def test_what_is_made_for_amx_holds_where_it_is_emulated(examples: str) -> None:
    tests = Path(__file__).parents[1] / "test_training_kernels.py"
    environment = os.environ | {cpu_features.SWITCH: "emulated"}
    command = [sys.executable, "-m", "pytest", "-q", str(tests), "-m", examples]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()
    assert b"skipped" not in done.stdout
