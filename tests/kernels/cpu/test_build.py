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
from typing import Any

import pytest

from anyformer import processes
from anyformer.kernels import cpu_features
from anyformer.kernels.cpu import build

LIBRARIES = sorted(path.stem for path in build._HERE.glob("*.cpp"))
COMPILER = shutil.which("g++") or shutil.which("clang++")


@pytest.mark.parametrize(("there", "chosen"), [(("g++", "c++"), "g++"), (("clang++",), "clang++")])
def test_the_systems_compiler_comes_first(there: tuple[str, ...], chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(processes.shutil, "which", lambda name: f"/bin/{name}" if name in there else None)
    assert build._compiler() == [f"/bin/{chosen}"]


def test_a_package_may_bring_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.shutil, "which", lambda name: None)
    monkeypatch.setattr(build, "find_spec", lambda name: object())
    assert build._compiler() == [sys.executable, "-P", "-m", "ziglang", "c++"]
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(OSError, match="pip install ziglang"):
        build._compiler()


MAKES = """
import sys
from anyformer.kernels.cpu.build import Library
libraries = [Library(name) for name in sys.argv[1:]]
for library in libraries:
    library.start()
assert all(library.get(wait=True) is not None for library in libraries)
"""
DECODES = """
import torch
import anyformer as af
from anyformer.generation.cached_decoder import DecoderStep
from anyformer.generation.compiled_decoder import LIBRARY
torch.manual_seed(0)
model = af.build(af.preset("llama-nano", vocab_size=50, decoder_layers=2)).eval()
ids = torch.randint(50, (2, 5))
with torch.inference_mode():
    found = DecoderStep(model, wait=True)(ids, model.make_cache(2, 8))
    torch.testing.assert_close(found, model(ids).logits, atol=1e-4, rtol=1e-4)
assert LIBRARY.get() is not None
"""


@pytest.mark.skipif(find_spec("ziglang") is None, reason="is a dependency on Linux only")
@pytest.mark.parametrize(
    ("use", "libraries"), [(MAKES, ["rms_norm"]), pytest.param(MAKES + DECODES, LIBRARIES, marks=pytest.mark.slow)]
)
def test_the_packages_compiler_makes_the_library(use: str, libraries: list[str], tmp_path: Path) -> None:
    """A machine without a compiler, on first use."""
    nothing = {name: value for name, value in os.environ.items() if name != "CXX"} | {"PATH": str(tmp_path)}
    environment = nothing | {"ANYFORMER_CACHE": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", use, *libraries], check=True, env=environment, timeout=300)
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "native").glob("*.so")) == libraries
    assert {path.suffix for path in (tmp_path / "native").iterdir()} == {".lock", ".so"}


def test_what_an_ended_program_left_behind_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    run = processes.run
    compiled = lambda command, folder=None, **rest: (folder / "new.so").touch() if folder else run(command, **rest)  # noqa: E731
    monkeypatch.setattr(processes, "run", compiled)
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
    ran, run = [], processes.run

    def counted(command: Sequence[str], **options: Any) -> str:
        ran.append(command[-1])
        return run(command, **options)

    (tmp_path / "whole.cpp").write_text("int five = 5;\n")
    monkeypatch.setattr(build, "_HERE", tmp_path)
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(processes, "run", counted)
    library = build.Library("whole")
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: library.start(), range(50)))) == 1
    assert library.get(wait=True) is not None
    assert [what for what in ran if what != "--version"] == ["new.o", "new.so"]


def test_a_short_program_leaves_a_library(tmp_path: Path) -> None:
    environment = os.environ | {"ANYFORMER_CACHE": str(tmp_path)}
    use = "from anyformer.kernels.rms_norm import KERNEL; KERNEL.start()"
    subprocess.run([sys.executable, "-c", use], check=True, env=environment, timeout=300)
    assert sorted(path.suffix for path in (tmp_path / "native").iterdir()) == [".lock", ".so"]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, and a source that compiles at once."""
    sources, cache = tmp_path / "sources", tmp_path / "cache"
    sources.mkdir()
    text = 'extern "C" __attribute__((visibility("default"))) int five() { return 5; }\n'
    (sources / "small.cpp").write_text(text)
    monkeypatch.setattr(build, "_HERE", sources)
    monkeypatch.setenv("ANYFORMER_CACHE", str(cache))
    build._warn.cache_clear()
    return cache


FIVE = (ctypes.c_int64,)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such permissions")
@pytest.mark.parametrize("shared", [".", "native", "native/*.so"])
def test_a_library_that_others_may_have_written_is_not_loaded(
    shared: str, small: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build._build("small")
    assert [path.stat().st_mode & 0o777 for path in (small, made.parent, made)] == [0o700] * 3
    next(small.glob(shared) if shared != "." else iter([small])).chmod(0o777)
    loaded: list[int] = []
    monkeypatch.setattr(build.ctypes, "CDLL", lambda path: loaded.append(Path(path).stat().st_mode & 0o777))
    build.Library("small").get(wait=True)
    if shared == "native/*.so":  # nobody else could have changed it before, so it is made anew
        assert loaded == [0o700]
        return
    assert not loaded
    assert f"other users may write to {(small / shared).resolve()}: chmod go-w it" in caplog.text


@pytest.mark.parametrize("damage", ["short", "shorter", "text", "another"])
def test_a_damaged_library_is_made_anew(damage: str, small: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = build._build("small")
    content = made.read_bytes()
    if damage == "another":  # without the function
        other = build._HERE / "other.cpp"
        other.write_text("int six = 6;\n")
        content = build._build("other").read_bytes()
    kept = {"short": len(content) // 2, "shorter": 50, "text": 0, "another": len(content)}[damage]
    made.write_bytes(content[:kept] or b"no library")
    library = build.Library("small", five=FIVE).get(wait=True)
    assert library is not None
    assert library.five() == 5
    assert not caplog.text


def test_whatever_goes_wrong_is_one_sentence(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert build.Library("small", six=FIVE).get(wait=True) is None
    assert caplog.text.count("torch alone computes") == 1
    assert "six" in caplog.text
    assert build.Library("absent").get(wait=True) is None


ENDS = """
import shutil, sys
from pathlib import Path
from anyformer import processes
from anyformer.kernels.cpu import build
run = processes.run
def removed(command, *, folder=None, **options):
    if folder is not None:
        shutil.rmtree(sys.argv[1])
    return run(command, folder=folder, **options)
processes.run = removed
library = build.Library("rms_norm")
library.get(wait=sys.argv[2] == "waits")
"""


@pytest.mark.parametrize("end", ["waits", "ends"])
def test_a_cache_that_is_removed_meanwhile_is_not_worth_a_word(end: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    environment = os.environ | {"ANYFORMER_CACHE": str(cache)}
    command = [sys.executable, "-c", ENDS, str(cache), end]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(find_spec("ziglang") is None, reason="is a dependency on Linux only")
def test_the_compiler_is_not_taken_from_the_current_folder(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for name in ("ziglang.py", "g++", "c++"):
        (tmp_path / name).write_text(f"#!{sys.executable}\nopen({str(marker)!r}, 'w')\n")
        (tmp_path / name).chmod(0o700)
    environment = os.environ | {"PATH": os.pathsep, "ANYFORMER_CACHE": str(tmp_path / "cache")}
    environment.pop("CXX", None)
    code = "import sys; del sys.path[0]; from anyformer.kernels.cpu.build import _compiler, _version\n"
    code += "print(_version(tuple(_compiler())))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert "clang version" in done.stdout, done.stderr
    assert not marker.exists()


@pytest.mark.skipif(platform.machine() != "x86_64" or COMPILER is None, reason="needs a compiler for such processors")
@pytest.mark.parametrize(
    "processor",
    [
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("x86-64", "x86-64-v3", "skylake-avx512", "icelake-server")
        ),
        # Where there is AMX, it is compiled to be used.
        pytest.param("sapphirerapids", marks=[pytest.mark.slow] if cpu_features.has_amx_bf16() else []),
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
CODES, DECODERS = "blocks/test_quantized.py", "generation/test_compiled_decoder.py"
OLDER = [
    # The gate is spared the library of whole decoding steps, which takes half a minute to compile.
    pytest.param("x86-64", "not slow", [CODES]),
    *(
        pytest.param(processor, examples, [CODES, DECODERS], marks=pytest.mark.slow)
        for processor in cpu_features.BASELINES
        for examples in ("not slow", "slow")
    ),
]


@pytest.mark.skipif(platform.machine() != "x86_64" or COMPILER is None, reason="needs a compiler for such processors")
@pytest.mark.parametrize(("processor", "examples", "files"), OLDER)
def test_what_is_made_for_older_processors_holds(processor: str, examples: str, files: list[str]) -> None:
    if "avx2" not in cpu_features.flags().split() and processor != "x86-64":
        pytest.skip("needs AVX2")
    environment = os.environ | {cpu_features.SWITCH: processor}
    tests = [str(Path(__file__).parents[2] / file) for file in files]
    chosen = ["-k", "multiply or no_number or integers or bfloat16 or pieces"]
    command = [sys.executable, "-m", "pytest", "-q", *tests, *chosen, "-m", examples]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()
    assert b"skipped" not in done.stdout


@pytest.mark.skipif(cpu_features.has_amx_bf16(), reason="they run as they are")
@pytest.mark.skipif("avx512_bf16" not in cpu_features.flags().split(), reason="needs products of bfloat16 pairs")
@pytest.mark.parametrize("examples", EXAMPLES)
def test_what_is_made_for_amx_holds_where_it_is_emulated(examples: str) -> None:
    here = Path(__file__).parent
    tests = here.parent / "test_training_kernels.py", here / "test_matmul.py"
    environment = os.environ | {cpu_features.SWITCH: "emulated"}
    # What torch compiles there are stand-ins for the kernels, whatever the processor.
    command = [sys.executable, "-m", "pytest", "-q", *map(str, tests), "-m", examples, "-k", "not torch_compile"]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()
    assert b"skipped" not in done.stdout
