"""Units of compiled code: made by the system's C++ compiler on first use, and kept for every later one.

Each .cpp file here is a library of its own, so that nobody waits for code that he doesn't want. It is keyed by its
source, the compiler and the processor, made beside its place and renamed into it. Programs that want it at the same
time wait for the one that makes it. Making it takes a second or a few, in the background; a program that is done
earlier waits for it at its end, so that the next one has it.
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
from ctypes import c_int64, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock

from anyformer import atomic

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
AVX-512 do the work of AMX, and set to one of `LESSER`, they are made as for that processor."""
LESSER = ("x86-64", "x86-64-v3")
"""Processors without vectors of more than 16 bytes, and with AVX2 alone."""


Function = tuple[type[c_int64] | None, *tuple[type[c_int64 | c_void_p], ...]]
"""What a function of C++ returns, and what it takes."""


class Unit:
    """A file of C++ and its functions, once the compiler is done."""

    def __init__(self, name: str, **functions: Function) -> None:
        """Nothing is compiled yet.

        Args:
            name: The file's, without .cpp.
            functions: Those that it gives away.
        """
        self._name = name
        self._functions = functions
        self._loaded: ctypes.CDLL | None = None
        self._worker: threading.Thread | None = None
        self._starting = threading.Lock()

    def start(self) -> threading.Thread:
        """Begin to make it, if nobody has."""
        with self._starting:
            if self._worker is None:
                self._worker = threading.Thread(target=self._make, name=f"compiler of {self._name}")
                self._worker.start()
        return self._worker

    def get(self, *, wait: bool = False) -> ctypes.CDLL | None:
        """The functions; None while they are being made (unless one waits for them), and where they can't be made."""
        worker = self.start()
        if wait:
            worker.join()
        return self._loaded

    def _make(self) -> None:
        try:
            made = ctypes.CDLL(str(_build(self._name)))
            for name, (result, *arguments) in self._functions.items():
                function = getattr(made, name)
                function.restype, function.argtypes = result, arguments
            self._loaded = made
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            _warn(_reason(error))


@cache
def _warn(reason: str) -> None:
    """Once for all units: they fail alike, as a rule."""
    _log.warning("torch alone computes what compiled code would, at a part of its speed: %s", reason)


def wanted() -> bool:
    """Whether compiled code is to be used at all."""
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


def _build(name: str) -> Path:
    """The library of a unit."""
    compiler = _compiler()
    unit = _HERE / f"{name}.cpp"
    asked = os.environ.get(SWITCH)
    flags = [f"-march={asked if asked in LESSER else 'native'}", *_FLAGS]
    linked = ["-shared", _openmp()]
    if compiler == _ZIG:
        # It would compile the standard libraries first, for a minute, and the units call none of their functions.
        linked.append("-nostdlib")
    if _emulates():
        flags.append("-DEMULATED_TILES")
    facts = [_version(tuple(compiler)), platform.machine(), _processor(), *flags, *linked]
    facts += [path.read_text() for path in (unit, *sorted(_HERE.glob("*.h")))]
    folder = atomic.cache_folder() / "native"
    made = folder / f"{name}-{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:24]}.so"
    if made.exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(made.with_suffix(".lock")):
        if not made.exists():
            # Of a program that was killed while its compiler was at work.
            atomic.remove_abandoned(folder, made.name, age=0)
            with atomic.temporary_folder(made) as temporary:
                _run([*compiler, "-c", str(unit), *flags, "-o", "new.o"], temporary)
                _run([*compiler, "new.o", *linked, "-o", "new.so"], temporary)
                (temporary / "new.so").rename(made)
    return made


def _run(command: Sequence[str], folder: Path) -> None:
    joined = subprocess.STDOUT
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, stderr=joined, text=True, errors="replace")


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


@cache
def _version(compiler: tuple[str, ...]) -> str:
    return subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True, timeout=60).stdout


def _processor() -> str:
    """What the processor can do: a library made for another one with the same home directory may not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(next((line for line in lines if line.startswith(name)), "") for name in ("flags", "Features"))


def _reason(error: Exception) -> str:
    """In a line: a compiler's first error, or the last that was said."""
    lines = str(getattr(error, "stdout", None) or error).strip().splitlines()
    return next((line for line in lines if "error" in line), lines[-1] if lines else type(error).__name__)
