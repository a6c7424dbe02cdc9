"""Libraries with one operation each, whose arguments are a structure."""

import ctypes
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from ctypes import c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from anyformer.kernels.autocast import matmul_dtype
from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.build import Library
from anyformer.kernels.cpu_features import enabled, has_avx512_bf16
from anyformer.kernels.operation import constant_result

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


class Kernel(Library):
    """A library that exports `supported`, `workspace_size` and `run`, which takes a structure of arguments."""

    def __init__(self, name: str, arguments: Any) -> None:
        super().__init__(name, supported=(c_int64,), workspace_size=(c_int64, c_void_p), run=(None, c_void_p, c_void_p))
        self._arguments = arguments

    @constant_result
    def supported(self) -> bool:
        """Whether compiled code is enabled, this is compiled, and the processor has its instructions.

        It waits for the compiler, so that results, which differ from torch's by rounding, do not change during a run.
        """
        if not enabled():
            return False
        library: Any = self.get(wait=True)
        return library is not None and library.supported() > 0

    def supports_bf16(self, x: Tensor, dtype: torch.dtype | None = None) -> bool:
        """Whether a kernel of bfloat16 for training may be used on x, which needs AVX-512's dot products.

        Without a dtype to compute in, it is autocast's, or that of x.
        """
        is_bf16 = x.device.type == "cpu" and (dtype or matmul_dtype(x)) == torch.bfloat16
        return is_bf16 and _has_avx512_bf16() and self.supported()

    def run(self, **arguments: Tensor | float | None) -> None:
        """Run it with torch's number of threads, in a workspace of its own.

        On tensors without memory nothing is done, unless it is `intercepted`.
        """
        if not is_intercepted() and any(isinstance(value, FakeTensor) for value in arguments.values()):
            return
        library: Any = self.get(wait=True)
        struct = structs.make(self._arguments, num_threads=torch.get_num_threads(), **arguments)
        workspace = torch.empty(library.workspace_size(ctypes.addressof(struct)), dtype=torch.uint8)
        if not was_intercepted(self._name, arguments):
            library.run(ctypes.addressof(struct), workspace.data_ptr())


@constant_result
def _has_avx512_bf16() -> bool:
    return has_avx512_bf16()
