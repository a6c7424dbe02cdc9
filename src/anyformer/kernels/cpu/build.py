"""Compiles each .cpp file here into a shared library on first use, and caches it.

A library is keyed by its source, the compiler and the processor's features. It is compiled in a background thread, next
to its place in the cache, and renamed into it; a file lock keeps other processes from compiling it, too. A program
that ends earlier waits for its compilers, so that the next one finds their libraries.
"""

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
from anyformer.kernels import cpu_features

_log = logging.getLogger("anyformer")
_HERE = Path(__file__).parent
_FLAGS = [
    *("-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-exceptions", "-fno-threadsafe-statics"),
    "-ffp-contract=fast",  # clang would contract within a statement only, and not across overloaded operators
]
_ZIG = [sys.executable, "-m", "ziglang", "c++"]

Signature = tuple[type[c_int64] | None, *tuple[type[c_int64 | c_void_p], ...]]
"""The type that a C function returns, and those of its arguments."""


class Library:
    """The functions that a .cpp file, named without its extension, exports, by their signatures."""

    def __init__(self, name: str, **functions: Signature) -> None:
        self._name = name
        self._functions = functions
        self._loaded: ctypes.CDLL | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> threading.Thread:
        """Start compiling it in the background, unless that was done before."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._load, name=f"compiler of {self._name}")
                self._thread.start()
        return self._thread

    def get(self, *, wait: bool = False) -> ctypes.CDLL | None:
        """The loaded library; None while it is being compiled (unless `wait`) and where that fails."""
        thread = self.start()
        if wait:
            thread.join()
        return self._loaded

    def _load(self) -> None:
        try:
            library = ctypes.CDLL(str(_build(self._name)))
            for name, (result, *arguments) in self._functions.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
            self._loaded = library
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            _warn(_reason(error))


@cache
def _warn(reason: str) -> None:
    """Once for all libraries, which as a rule fail for the same reason."""
    _log.warning("torch alone computes what compiled code would, at a part of its speed: %s", reason)


def _build(name: str) -> Path:
    """The path of a library, which is compiled if it is not in the cache."""
    compiler, source = _compiler(), _HERE / f"{name}.cpp"
    switch = os.environ.get(cpu_features.SWITCH)
    flags = [f"-march={switch if switch in cpu_features.BASELINES else 'native'}", *_FLAGS]
    # The OpenMP library that torch has loaded: the threads of a second one would compete for the cores.
    openmp = sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*"))
    linker_flags = ["-shared", str(openmp[0]) if openmp else "-fopenmp"]
    if compiler == _ZIG:
        # It would compile the standard libraries first, for a minute, and the kernels call none of their functions.
        linker_flags.append("-nostdlib")
    if cpu_features.emulates_amx():
        flags.append("-DEMULATED_AMX")
    key = [_version(tuple(compiler)), platform.machine(), cpu_features.flags(), *flags, *linker_flags]
    key += [path.read_text() for path in (source, *sorted(_HERE.glob("*.h")))]
    folder = atomic.cache_folder() / "native"
    library = folder / f"{name}-{hashlib.sha256(chr(0).join(key).encode()).hexdigest()[:24]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(library.with_suffix(".lock")):
        if not library.exists():
            # Of a process that was killed while it compiled.
            atomic.remove_abandoned(folder, library.name, age=0)
            with atomic.temporary_folder(library) as temporary:
                _run([*compiler, "-c", str(source), *flags, "-o", "new.o"], temporary)
                _run([*compiler, "new.o", *linker_flags, "-o", "new.so"], temporary)
                (temporary / "new.so").rename(library)
    return library


def _run(command: Sequence[str], folder: Path) -> None:
    stderr = subprocess.STDOUT
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, stderr=stderr, text=True, errors="replace")


def _compiler() -> list[str]:
    """The command of the system's compiler, or of the one in the Python package `ziglang`."""
    for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++"):
        if name and (found := shutil.which(name)):
            return [found]
    if find_spec("ziglang") is not None:
        return _ZIG
    raise OSError("there is no C++ compiler: install g++ or clang++, or run pip install ziglang")


@cache
def _version(compiler: tuple[str, ...]) -> str:
    return subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True, timeout=60).stdout


def _reason(error: Exception) -> str:
    """One line: the compiler's first error, or its last line."""
    lines = str(getattr(error, "stdout", None) or error).strip().splitlines()
    return next((line for line in lines if "error" in line), lines[-1] if lines else type(error).__name__)
