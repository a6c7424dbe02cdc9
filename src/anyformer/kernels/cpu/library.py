"""Libraries of compiled code, of the level of processors in use (see `anyformer.native.levels`).

The installation compiles them. In a checkout a library that is missing, or older than its source or a header, is
compiled when it is first used.
"""

import ctypes
import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from ctypes import c_int64, c_void_p
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from anyformer.kernels.autocast import matmul_dtype
from anyformer.kernels.cpu import structs
from anyformer.kernels.operation import constant_result
from anyformer.native import compiler, levels

_log = logging.getLogger("anyformer")
_OPENMP = ("omp_get_num_threads", "omp_get_thread_num")
_GNU = ("GOMP_parallel",)
_LLVM = ("__kmpc_global_thread_num", "__kmpc_push_num_threads", "__kmpc_fork_call")
Signature = tuple[type[c_int64] | None, *tuple[type[c_int64 | c_void_p], ...]]
"""The type that a C function returns, and those of its arguments."""
LIBRARIES: list["Library"] = []
"""All that have been declared."""
_interceptor: ContextVar[Callable[[str, Mapping[str, Any]], None] | None] = ContextVar("interceptor", default=None)


@contextmanager
def intercepted(interceptor: Callable[[str, Mapping[str, Any]], None]) -> Generator[None]:
    """In here no kernel runs: each call allocates its workspace, and the interceptor gets its name and arguments."""
    token = _interceptor.set(interceptor)
    try:
        yield
    finally:
        _interceptor.reset(token)


def is_intercepted() -> bool:
    """Whether no kernel runs, as tensors have no memory."""
    return _interceptor.get() is not None


def was_intercepted(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a kernel must not run; then the interceptor has been called with it."""
    interceptor = _interceptor.get()
    if interceptor is not None:
        interceptor(name, arguments)
    return interceptor is not None


class Library:
    """The functions that a .cpp file exports.

    Args:
        name: Of the file, without its extension.
        operation: The operation that it computes, for `anyformer env`.
        needs: A feature that the level in use must have, as `levels.Level.features` names it; "": none.
        functions: Their signatures, by name.
    """

    def __init__(self, name: str, operation: str, needs: str = "", **functions: Signature) -> None:
        self.name, self.operation, self.needs = name, operation, needs
        LIBRARIES.append(self)
        self._functions = functions
        self._reason = ""
        self._loaded: ctypes.CDLL | None = None
        self._tried, self._lock = False, Lock()

    def get(self) -> ctypes.CDLL | None:
        """The loaded library; None where compiled code is switched off, or there is none, which a warning tells."""
        if not levels.enabled():
            return None
        if not self._tried:
            with self._lock:
                if not self._tried:
                    self._loaded = self._load()
                    self._tried = True
        return self._loaded

    def absence(self) -> str | None:
        """The reason for which torch, or a lesser backend, computes in its place; None: there is none."""
        if not levels.enabled():
            return f"{levels.SWITCH}=0 switches compiled code off"
        found = levels.level()
        if self.needs and found is not None and not levels.has(self.needs) and found != levels.EMULATED:
            return f"it needs {self.needs}, and the level in use, {found.name}, has none"
        return None if self.get() is not None else self._reason

    def _load(self) -> ctypes.CDLL | None:
        try:
            level = levels.level()
            if level is None:
                raise OSError(f"nothing is installed for this processor ({levels.machine()})")
            if not compiler.is_current(self.name, level):
                compiler.compile_library(self.name, level)
            library = ctypes.CDLL(str(compiler.path_of(self.name, level)))
            for name, (result, *arguments) in self._functions.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
            library.use_openmp(_openmp())
        except Exception as error:
            self._reason = compiler.reason(error)
            _warn(self._reason)  # whatever it is, torch computes the same
            return None
        return library


@cache
def _warn(reason: str) -> None:
    """Once for all libraries, which as a rule fail for the same reason."""
    _log.warning("torch alone computes what compiled code would, at a part of its speed: %s", reason)


@cache
def _openmp() -> Any:
    """The functions of the OpenMP library that torch has loaded: the threads of a second one would compete with its.

    A parallel region is begun as GCC's programs do where the library has that, else, as on Windows, as LLVM's do.
    """
    packages = Path(torch.__file__).parents[1]
    # Torch's wheels for ARM have it beside the package.
    paths = [*(packages / "torch" / "lib").glob("*omp*"), *(packages / "torch.libs").glob("*omp*")]
    # Beside libiomp5md.dll there is libiompstubs5md.dll, which has no threads.
    library = ctypes.CDLL(str(min(paths)) if paths else "libgomp.so.1")
    return openmp_functions(library)


def openmp_functions(library: ctypes.CDLL) -> Any:
    """The arguments of `use_openmp` of a kernel. Raises AttributeError where an OpenMP library lacks a function."""
    is_gnu = hasattr(library, _GNU[0])
    names = (*_OPENMP, *_GNU) if is_gnu else (*_OPENMP, None, *_LLVM)
    functions = [None if name is None else ctypes.cast(getattr(library, name), c_void_p).value for name in names]
    return (c_void_p * 6)(*functions)


class Kernel(Library):
    """A library that exports `supported`, `workspace_size` and `run`, which takes a structure of arguments."""

    def __init__(self, name: str, arguments: Any, operation: str, needs: str = "") -> None:
        functions: dict[str, Signature] = {"supported": (c_int64,), "workspace_size": (c_int64, c_void_p)}
        super().__init__(name, operation, needs, **functions, run=(None, c_void_p, c_void_p))
        self._arguments = arguments

    @constant_result
    def supported(self) -> bool:
        """Whether there is compiled code, and the processor has its instructions."""
        library: Any = self.get()
        return library is not None and library.supported() > 0

    def supports_bf16(self, x: Tensor, dtype: torch.dtype | None = None) -> bool:
        """Whether a kernel of bfloat16 for training may be used on x, which needs AVX-512's dot products.

        Without a dtype to compute in, it is autocast's, or that of x.
        """
        is_bf16 = x.is_cpu and (dtype or matmul_dtype(x)) == torch.bfloat16
        return is_bf16 and _has_avx512_bf16() and self.supported()

    def run(self, **arguments: Tensor | float | None) -> None:
        """Run it with torch's number of threads, in a workspace of its own.

        On tensors without memory nothing is done, unless it is `intercepted`.
        """
        if not is_intercepted() and FakeTensor in map(type, arguments.values()):
            return
        library: Any = self._loaded or self.get()
        struct = structs.make(self._arguments, num_threads=torch.get_num_threads(), **arguments)
        workspace = torch.empty(library.workspace_size(ctypes.addressof(struct)), dtype=torch.uint8)
        if not was_intercepted(self.name, arguments):
            library.run(ctypes.addressof(struct), workspace.data_ptr())


@constant_result
def _has_avx512_bf16() -> bool:
    return levels.has_avx512_bf16()
