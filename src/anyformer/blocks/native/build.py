"""The compiled library: made by the system's C++ compiler on first use, and kept for every later one.

A library is keyed by its source, the compiler and the processor, made beside its place and renamed into it. Programs
that want it at the same time wait for the one that makes it. Making it takes some seconds, in the background; a program
that is done earlier waits for it at its end, so that the next one has it.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock

_log = logging.getLogger("anyformer")
_HERE = Path(__file__).parent
_FLAGS = [
    *("-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-exceptions", "-fno-threadsafe-statics"),
    "-ffp-contract=fast",  # clang would join products and sums in one statement only, and not through operators
]
_ZIG = [sys.executable, "-m", "ziglang", "c++"]
SWITCH = "ANYFORMER_NATIVE"
"""An environment variable. Set to 0, it leaves all work to torch. The rest is for tests: set to `emulated`, it has
AVX-512 do the work of AMX, and set to one of `LESSER`, the library is made as for that processor."""
LESSER = ("x86-64", "x86-64-v3")
"""Processors without vectors of more than 16 bytes, and with AVX2 alone."""


class Library:
    """What will be the compiled library, once the compiler is done."""

    def __init__(self) -> None:
        self._loaded: ctypes.CDLL | None = None
        self._worker = threading.Thread(target=self._make, name="compiler")
        self._worker.start()

    def get(self, *, wait: bool = False) -> ctypes.CDLL | None:
        """The library; None while it is being made (unless one waits for it), and where it can't be made."""
        if wait:
            self._worker.join()
        return self._loaded

    def _make(self) -> None:
        try:
            self._loaded = _load(_build())
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            _log.warning("decoding runs on torch alone, at a part of its speed: %s", _reason(error))


@cache
def library() -> Library:
    """The library of this process, whose making starts with the first call."""
    return Library()


def wanted() -> bool:
    """Whether the library is to be used at all."""
    return os.environ.get(SWITCH, "1") != "0"


@cache
def has_tiles() -> bool:
    """Whether this processor multiplies matrices of bfloat16 numbers (Intel's AMX)."""
    return _emulates() or "amx_bf16" in _processor().split()


@cache
def has_pairs() -> bool:
    """Whether this processor multiplies pairs of bfloat16 numbers at once (AVX-512)."""
    return "avx512_bf16" in _processor().split() and os.environ.get(SWITCH) not in LESSER


def _emulates() -> bool:
    return os.environ.get(SWITCH) == "emulated" and "avx512_bf16" in _processor().split()


def _build() -> Path:
    compiler = _compiler()
    sources = sorted([*_HERE.glob("*.h"), *_HERE.glob("*.cpp")])
    linked = ["-shared", _openmp()]
    if compiler == _ZIG:
        # It would compile the standard libraries first, for a minute, and the objects call none of their functions.
        linked.append("-nostdlib")
    asked = os.environ.get(SWITCH)
    flags = [f"-march={asked if asked in LESSER else 'native'}", *_FLAGS]
    if _emulates():
        flags.append("-DEMULATED_TILES")
    facts = [_version(compiler), platform.machine(), _processor(), *flags, *linked]
    facts += [path.read_text() for path in sources]
    name = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:24]
    folder = _folder()
    made = folder / f"{name}.so"
    if made.exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        if not made.exists():
            beside = folder / f"{name}.making"
            # A program that was killed while its compiler was at work has left one behind.
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            units = [path for path in sources if path.suffix == ".cpp"]
            try:
                _run([[*compiler, "-c", str(unit), *flags] for unit in units], beside)
                _run([[*compiler, *(f"{unit.stem}.o" for unit in units), *linked, "-o", "new.so"]], beside)
                (beside / "new.so").rename(made)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    return made


def _run(commands: Sequence[Sequence[str]], folder: Path) -> None:
    """All of them side by side."""
    pipe, joined = subprocess.PIPE, subprocess.STDOUT
    started = [subprocess.Popen(each, cwd=folder, stdout=pipe, stderr=joined, errors="replace") for each in commands]
    said = [process.communicate()[0] for process in started]
    for process, text in zip(started, said, strict=True):
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args, stderr=text)


def _compiler() -> list[str]:
    """The command of the system's compiler, or of the one that Python's package `ziglang` brings."""
    for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++"):
        if name and (found := shutil.which(name)):
            return [found]
    if find_spec("ziglang") is not None:
        return _ZIG
    raise OSError("there is no C++ compiler: install g++ or clang++, or run pip install ziglang")


def _openmp() -> str:
    """The library whose threads torch computes in: two of them would fight for the cores."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*"))
    return str(found[0]) if found else "-fopenmp"


def _version(compiler: Sequence[str]) -> str:
    return subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True, timeout=60).stdout


def _processor() -> str:
    """What the processor can do: a library made for another one with the same home directory may not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(next((line for line in lines if line.startswith(name)), "") for name in ("flags", "Features"))


def _folder() -> Path:
    given = os.environ.get("ANYFORMER_CACHE")
    base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anyformer"
    return base / "native"


def _load(path: Path) -> ctypes.CDLL:
    made = ctypes.CDLL(str(path))
    made.workspace_bytes.restype = ctypes.c_int64
    made.workspace_bytes.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64]
    made.step.restype = None
    made.step.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    for alone in (made.activate_all, made.cross_entropy, made.rms_norm):
        alone.restype = None
        alone.argtypes = [ctypes.c_void_p]
    for size, work in (
        (made.outer_bytes, made.outer),
        (made.attention_bytes, made.attention),
        (made.rounded_bytes, made.rounded_product),
    ):
        size.restype = ctypes.c_int64
        size.argtypes = [ctypes.c_void_p]
        work.restype = None
        work.argtypes = [ctypes.c_void_p] * 2
    for fact in (made.wide_rows, made.byte_rows, made.pairs, made.rounds):
        fact.restype = ctypes.c_int64
        fact.argtypes = []
    made.product_bytes.restype = ctypes.c_int64
    made.product_bytes.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    made.product.restype = None
    made.product.argtypes = [*[ctypes.c_void_p] * 2, ctypes.c_int64, *[ctypes.c_void_p] * 2, ctypes.c_int64]
    return made


def _reason(error: Exception) -> str:
    """In a line: a compiler's first error, or the last that was said."""
    lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
    return next((line for line in lines if "error" in line), lines[-1] if lines else type(error).__name__)
