"""Compiles each .cpp file here into a shared library on first use, and caches it.

A library is keyed by its source, the compiler and the processor's features. It is compiled in a background thread, next
to its place in the cache, and renamed into it; a file lock keeps other processes from compiling it, too. A program
that ends earlier waits for its compilers, so that the next one finds their libraries.

A library is code, so it is loaded only from where nobody but this user and root may write.
"""

import ctypes
import hashlib
import logging
import os
import platform
import struct
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

from anyformer import atomic, processes
from anyformer.kernels import cpu_features

_log = logging.getLogger("anyformer")
_HERE = Path(__file__).parent
_FLAGS = [
    *("-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-exceptions", "-fno-threadsafe-statics"),
    "-ffp-contract=fast",  # clang would contract within a statement only, and not across overloaded operators
]
_ZIG = processes.python("-m", "ziglang", "c++")

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
        if self._loaded is None:
            thread = self.start()
            if wait:
                thread.join()
        return self._loaded

    def _load(self) -> None:
        try:
            library = _build(self._name)
            try:
                self._loaded = self._open(library)
            except (OSError, AttributeError):
                # It was cut short, or made for another machine.
                library.unlink(missing_ok=True)
                self._loaded = self._open(_build(self._name))
        except Exception as error:
            # Whatever it is, torch computes the same. A program that has ended doesn't care.
            if threading.main_thread().is_alive() and not isinstance(error, _CacheRemovedError):
                _warn(_reason(error))

    def _open(self, path: Path) -> ctypes.CDLL:
        path = atomic.check_own(path)
        if not _is_whole(path):
            raise OSError(f"{path} is damaged")
        library = ctypes.CDLL(str(path))
        try:
            for name, (result, *arguments) in self._functions.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
        except AttributeError:
            if sys.platform != "win32":  # while it is loaded, another file at this path would not be
                import _ctypes

                _ctypes.dlclose(library._handle)
            raise
        return library


class _CacheRemovedError(Exception):
    """Somebody has removed the cache while something was made in it."""


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
    folder = atomic.private_folder(atomic.cache_folder() / "native")
    library = folder / f"{name}-{hashlib.sha256(chr(0).join(key).encode()).hexdigest()[:24]}.so"
    if library.exists():
        return library
    try:
        _compile(source, library, [*compiler, *flags], linker_flags)
    except (OSError, subprocess.CalledProcessError) as error:
        if folder.exists():
            raise
        raise _CacheRemovedError from error
    return library


def _compile(source: Path, library: Path, compiler: Sequence[str], linker_flags: Sequence[str]) -> None:
    with FileLock(library.with_suffix(".lock")):
        if library.exists():
            return
        # Of a process that was killed while it compiled.
        atomic.remove_abandoned(library.parent, library.name, age=0)
        with atomic.temporary_folder(library) as temporary:
            # Its own temporary files, too, are made where nobody else may write.
            changes: dict[str, str] = dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(temporary))
            for step in (["-c", str(source), "-o", "new.o"], ["new.o", *linker_flags, "-o", "new.so"]):
                processes.run([*compiler, *step], folder=temporary, changes=changes)
            (temporary / "new.so").chmod(0o700)
            atomic.move(temporary / "new.so", library)


def _is_whole(path: Path) -> bool:
    """Whether an ELF file has all its bytes. Loading one that was cut short would end the program by SIGBUS."""
    with path.open("rb") as file:
        header = file.read(64)
    if header[:4] != b"\x7fELF":
        return True
    if len(header) < 64:
        return False
    # The table of sections, which is the last part: its offset, and the size and number of its entries.
    (offset,), (size, count) = struct.unpack_from("<Q", header, 40), struct.unpack_from("<HH", header, 58)
    return offset + size * count <= path.stat().st_size


def _compiler() -> list[str]:
    """The command of the system's compiler, or of the one in the Python package `ziglang`."""
    for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++"):
        if name and (path := processes.find(name)):
            return [path]
    if find_spec("ziglang") is not None:
        return _ZIG
    raise OSError("there is no C++ compiler: install g++ or clang++, or run pip install ziglang")


@cache
def _version(compiler: tuple[str, ...]) -> str:
    return processes.run([*compiler, "--version"], timeout=60)


def _reason(error: Exception) -> str:
    """One line: the compiler's first error, or its last line."""
    lines = str(getattr(error, "stdout", None) or error).strip().splitlines()
    return next((line for line in lines if "error" in line), lines[-1] if lines else type(error).__name__)
